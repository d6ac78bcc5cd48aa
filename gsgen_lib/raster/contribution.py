"""What is one Gaussian worth? The loss of a picture with it, less the loss without it, exactly.

Compositing is affine in every alpha, so nothing has to be rendered again. With C the pixel, background included, and

    S_j = sum_{i>j} T_i alpha_i c_i + T_end background                 what lies behind Gaussian j
    C - C_without_j = T_j alpha_j c_j - S_j alpha_j / (1 - alpha_j)    what lies behind shines through 1 / (1 - alpha_j) times

the contribution of j to a loss against a target C* is, summed over pixels and channels,

    L1:  |C - C*| - |C_without_j - C*|         L2:  (C - C*)^2 - (C_without_j - C*)^2

Negative where j helps. The L1 is not linear: near C = C* its slope is the sign of a rounding error, but the difference is not.
(Removing j is exact as long as no pixel was finished early: one that was would see a little farther without j.)

The numba engine accumulates both while it computes gradients. The others list (pixel, Gaussian, alpha) and come here.

Taught in notebook 10. Source: DeG (2605.16355), whose renderer leaves the background out of S; ours does not.
"""

from __future__ import annotations

import torch
from torch import Tensor


def contributions_of_pairs(pixel: Tensor, gaussian: Tensor, alpha: Tensor, colors: Tensor, background: Tensor,
                           target: Tensor) -> Tensor:
    """Contributions to L1 and L2 (N, 2), float64, from K composited pairs, sorted by pixel, within it from front to back.

    pixel, gaussian (K,) int64; alpha (K,) in (0, 1); colors (N, 3); background (P, 3); target (P, 3) of P pixels.

    >>> red, white = torch.tensor([[1.0, 0.0, 0.0]]), torch.ones(1, 3)
    >>> first = torch.tensor([0])
    >>> contributions_of_pairs(first, first, torch.tensor([0.5]), red, white, red)  # halves an error of 2
    tensor([[-1.0000, -1.5000]], dtype=torch.float64)
    """
    colors, background, target, alpha = (x.detach().double() for x in (colors, background, target, alpha))
    pixels = len(target)

    def before(x):  # sums over the earlier pairs of the same pixel: (K, ...)
        whole = torch.cat([torch.zeros_like(x[:1]), x.cumsum(0)])
        return whole[:-1] - whole[start[pixel]]

    count = torch.bincount(pixel, minlength=pixels)
    start = torch.cat([count.new_zeros(1), count.cumsum(0)])  # where the pairs of each pixel begin
    keep = torch.log1p(-alpha)
    T = before(keep).exp()
    shown = (T * alpha)[:, None] * colors[gaussian]  # (K, 3)
    T_end = torch.zeros(pixels, dtype=keep.dtype, device=keep.device).index_add(0, pixel, keep).exp()
    C = background * T_end[:, None]
    C = C.index_add(0, pixel, shown)
    S = C[pixel] - before(shown) - shown
    change = shown - S * (alpha / (1 - alpha))[:, None]  # C - C_without_j
    error = (C - target)[pixel]
    each = torch.stack([error.abs() - (error - change).abs(), change * (2 * error - change)], -1).sum(1)  # (K, 2)
    return each.new_zeros(len(colors), 2).index_add(0, gaussian, each)

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

from gsgen_lib.raster.api import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians


def contributions(gaussians: Gaussians, cameras: Cameras, target: Tensor, background=None, engine: str = "auto") -> Tensor:
    """Changes of L1 and L2 if each Gaussian were not there, (..., V, N, 2): with it less without it, summed over pixels,
    channels.

    target: pictures (..., V, H, W, 3); background, engine: as of `rasterize`, which raises what does not fit. It needs one
    backward pass, of which no gradient is kept; a training reads `info.contribution` after its own instead.

    >>> scene = Gaussians.random(5, generator=torch.Generator().manual_seed(0))
    >>> camera = Cameras.orbit(1, width=16, height=16)
    >>> whole = rasterize(scene, camera).rgb
    >>> bool((contributions(scene, camera, whole) <= 0).all())  # where the picture is right, nobody harms
    True
    """
    free = gaussians.map(lambda x: x.detach().clone().requires_grad_())
    with torch.enable_grad():
        out = rasterize(free, cameras, background, engine, target=target)
        out.rgb.sum().backward()
    return out.info.contribution


def most_worth(gaussians: Gaussians, cameras: Cameras, target: Tensor, count: int, background=None,
               rounds: int = 20) -> Gaussians:
    """The scene (N,) pruned to `count` Gaussians, those of least worth (L1, over all views) first, in so many rounds of equal
    shares of what is left.

    In rounds, because a contribution holds as long as the others stay: of two Gaussians that cover the same place neither seems
    to be worth anything, and one of them is. target, background: as of `contributions`. ValueError for count outside 1 to N.

    >>> red = Gaussians.random(1, generator=torch.Generator().manual_seed(0))
    >>> twins = Gaussians.cat([red, red, red])
    >>> most_worth(twins, Cameras.orbit(2), rasterize(twins, Cameras.orbit(2)).rgb, 2).num
    2
    """
    n = gaussians.num
    if gaussians.batch_shape or not isinstance(count, int) or not 1 <= count <= n or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"gaussians, count, rounds: got batch {gaussians.batch_shape}, {count!r}, {rounds!r}, wanted one scene, "
                         f"1 to {n}, and at least 1")
    for k in range(1, rounds + 1):
        worth = contributions(gaussians, cameras, target, background)[..., 0].sum(0)  # (N,), most negative first
        gaussians = gaussians.select(worth.argsort()[:round(n * (count / n) ** (k / rounds))])
    return gaussians.detach()


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

"""Classifier-free guidance: follow the caption more than the data do.

With a network that was trained with and without the caption, u = prediction without, c = with:

    guided = u + s (c - u),    s = `guidance_scale`

s = 0 ignores the caption, s = 1 samples the conditional model, s > 1 sharpens p(caption | x). Some
codes write c + s (c - u): their s is ours minus 1. Large s pushes pictures out of range; two cures:
`rescale` gives the guided prediction the standard deviation of c again (2305.08891 eq. 15, 16), and
`interval` guides only in a middle range of noise levels (2404.07724).

All words grow louder at once. With a second prediction o, for the caption less one of its words, that word alone is made louder:

    contrasted = u + s (c - u) + a (c - o)

Source: Ho and Salimans (2207.12598) eq. 6, whose w is s - 1; sums over several conditions: Liu et al. (2206.01714). Taught in
notebooks 02 and 03.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["contrasted", "guide", "guided", "rescale_guidance"]


def guide(uncond: Tensor, cond: Tensor, guidance_scale: float, rescale: float = 0.0) -> Tensor:
    """u + s (c - u), both (B, ...); rescale in [0, 1] blends in `rescale_guidance`.

    >>> guide(torch.tensor([1.0]), torch.tensor([2.0]), 3.0)
    tensor([4.])
    """
    if uncond.shape != cond.shape:
        raise ValueError(f"cond: got shape {tuple(cond.shape)}, wanted that of uncond, {tuple(uncond.shape)}")
    mixed = uncond + guidance_scale * (cond - uncond)
    return mixed if rescale == 0 else rescale_guidance(mixed, cond, rescale)


def rescale_guidance(mixed: Tensor, cond: Tensor, amount: float) -> Tensor:
    """Scale each item of `mixed` (B, ...) towards the standard deviation of `cond`; amount in [0, 1].

    An item must hold two numbers or more, else it has no standard deviation.

    >>> c = torch.tensor([[-1.0, 1.0]])
    >>> rescale_guidance(5 * c, c, 1.0), rescale_guidance(5 * c, c, 0.5)
    (tensor([[-1.,  1.]]), tensor([[-3.,  3.]]))
    """
    if not 0 <= amount <= 1:
        raise ValueError(f"amount: got {amount}, wanted a number in [0, 1]")
    if mixed.shape != cond.shape or mixed[:1].numel() < 2:
        raise ValueError(f"mixed, cond: got shapes {tuple(mixed.shape)}, {tuple(cond.shape)}, wanted the same "
                         "(B, ...) with two numbers or more for each item")
    dims = tuple(range(1, mixed.ndim))
    ratio = cond.std(dims, keepdim=True) / mixed.std(dims, keepdim=True).clamp_min(1e-12)
    return amount * ratio * mixed + (1 - amount) * mixed


def guided(model: Callable, cond, uncond, guidance_scale: float, rescale: float = 0.0,
           interval: tuple[float, float] = (0.0, float("inf"))) -> Callable:
    """A denoiser (x_t, t) -> prediction that guides `model(x_t, t, condition)`.

    cond, uncond: what the model takes as condition (tensors with the batch first are stacked, so
    that one call of 2 B serves both; anything else is called twice). interval: guidance acts where
    low <= t <= high, elsewhere the conditional prediction is returned. t is the model's own time:
    0 ... T - 1 in diffusion, [0, 1] in flows; all items of a call share it.

    >>> model = lambda x, t, c: x * 0 + c.reshape(-1, 1)
    >>> denoise = guided(model, torch.ones(2), torch.zeros(2), 4.0, interval=(0, 500))
    >>> denoise(torch.zeros(2, 1), torch.tensor([9, 9])).flatten(), denoise(torch.zeros(2, 1), 900).flatten()
    (tensor([4., 4.]), tensor([1., 1.]))
    """
    low, high = interval
    if not low <= high:
        raise ValueError(f"interval: got {interval}, wanted low <= high")
    both = None
    if isinstance(cond, Tensor) and isinstance(uncond, Tensor):
        if cond.shape != uncond.shape:
            raise ValueError(f"uncond: got shape {tuple(uncond.shape)}, wanted that of cond, {tuple(cond.shape)}")
        both = torch.cat([uncond, cond])

    def denoise(x_t: Tensor, t) -> Tensor:
        time = torch.as_tensor(t, device=x_t.device)
        now = float(time.flatten()[0])
        if guidance_scale == 1 or not low <= now <= high:
            return model(x_t, time, cond)
        if both is None:
            return guide(model(x_t, time, uncond), model(x_t, time, cond), guidance_scale, rescale)
        double = torch.cat([time, time]) if time.ndim else time
        u, c = model(torch.cat([x_t, x_t]), double, both).chunk(2)  # (2B, ...) -> 2 x (B, ...)
        return guide(u, c, guidance_scale, rescale)

    return denoise


def contrasted(model: Callable, cond: Tensor, uncond: Tensor, other: Tensor, guidance_scale: float, louder: float,
               rescale: float = 0.0) -> Callable:
    """A denoiser (x_t, t) -> u + s (c - u) + a (c - o), in one call of 3 B; s = guidance_scale, a = louder.

    cond, uncond, other: conditions (B, ...) of model(x_t, t, condition); t: one, or (B,); rescale: of the first two terms.

    >>> model = lambda x, t, c: x * 0 + c.reshape(-1, 1)
    >>> front, nothing, back = torch.full((1,), 3.0), torch.zeros(1), torch.ones(1)
    >>> contrasted(model, front, nothing, back, 2.0, 10.0)(torch.zeros(1, 1), 5)  # 2 * 3 + 10 * (3 - 1)
    tensor([[26.]])
    """
    for name, one in (("uncond", uncond), ("other", other)):
        if one.shape != cond.shape:
            raise ValueError(f"{name}: got shape {tuple(one.shape)}, wanted that of cond, {tuple(cond.shape)}")
    three = torch.cat([uncond, cond, other])

    def denoise(x_t: Tensor, t) -> Tensor:
        time = torch.as_tensor(t, device=x_t.device)
        u, c, o = model(torch.cat([x_t] * 3), time.repeat(3) if time.ndim else time, three).chunk(3)  # (3B, ...) -> 3 x (B, ...)
        return guide(u, c, guidance_scale, rescale) + louder * (c - o)

    return denoise

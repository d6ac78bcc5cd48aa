"""Walking back from noise: ancestral DDPM, and DDIM in both directions.

Both start at x_T ~ N(0, I) and use a network's guess of the clean picture. With a = abar_t now,
b = abar_s at the next, cleaner time s < t, and x0, eps the guess at x_t (`gaussian.convert`):

    DDPM   x_s = mean + sqrt(variance) z,   z ~ N(0, I)                        2006.11239 eq. 6, 7
           mean     = sqrt(b) beta / (1 - a) x0 + sqrt(a / b) (1 - b) / (1 - a) x_t,  beta = 1 - a / b
           variance = (1 - b) / (1 - a) beta
    DDIM   x_s = sqrt(b) x0 + sqrt(1 - b - sigma^2) eps + sigma z              2010.02502 eq. 12
           sigma    = eta sqrt((1 - b) / (1 - a)) sqrt(1 - a / b)

DDIM with eta = 0 draws no noise: a picture and its noise determine each other, so the same step
with s > t runs the clock backwards (inversion). The last step goes to b = 1, where x_s = x0.

A denoiser is any function (x_t (B, ...), t) -> prediction (B, ...). Taught in notebook 02.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gsgen_lib.diffusion.gaussian import convert, spread

__all__ = ["ddim_invert", "ddim_sample", "ddim_step", "ddpm_sample", "ddpm_step", "timesteps"]


def timesteps(train_steps: int, steps: int, spacing: str = "trailing") -> Tensor:
    """`steps` of the times 0 ... train_steps - 1, noisiest first; (steps,) int64.

    spacing, as in diffusers: "trailing" ends exactly at the noisiest time (needed for zero terminal
    SNR), "leading" starts exactly at 0, "linspace" does both.

    >>> timesteps(1000, 4), timesteps(1000, 4, "leading"), timesteps(1000, 4, "linspace")
    (tensor([999, 749, 499, 249]), tensor([750, 500, 250,   0]), tensor([999, 666, 333,   0]))
    """
    if not 1 <= steps <= train_steps:
        raise ValueError(f"steps: got {steps}, wanted 1 to {train_steps}")
    if spacing == "trailing":
        return torch.arange(steps, 0, -1, dtype=torch.float64).mul(train_steps / steps).round().long() - 1
    if spacing == "leading":
        return torch.arange(steps - 1, -1, -1) * (train_steps // steps)
    if spacing == "linspace":
        return torch.linspace(train_steps - 1, 0, steps, dtype=torch.float64).round().long()
    raise ValueError(f"spacing: got {spacing!r}, wanted trailing, leading or linspace")


def ddpm_step(x_t: Tensor, x0: Tensor, abar_t, abar_s, noise: Tensor) -> Tensor:
    """One ancestral step from abar_t to abar_s > abar_t; x_t, x0, noise (B, ...).

    >>> x = torch.ones(1, 2)
    >>> bool((ddpm_step(x, 3 * x, 0.5, 1.0, x) == 3 * x).all())  # to the clean end: x0, no noise
    True
    """
    a, b = spread(abar_t, x_t), spread(abar_s, x_t)
    beta = 1 - a / b
    mean = b.sqrt() * beta / (1 - a) * x0 + (a / b).sqrt() * (1 - b) / (1 - a) * x_t
    variance = (1 - b) / (1 - a) * beta
    return mean + variance.clamp_min(0).sqrt() * noise


def ddim_step(x_t: Tensor, x0: Tensor, eps: Tensor, abar_t, abar_s, eta: float = 0.0,
              noise: Tensor | None = None) -> Tensor:
    """One DDIM step from abar_t to abar_s, in either direction when eta = 0; x_t, x0, eps (B, ...).

    eta: 0 draws no noise, 1 as much as DDPM; then `noise` (B, ...) is needed and abar_s >= abar_t.

    >>> x0, eps = torch.tensor([[1.0]]), torch.tensor([[2.0]])
    >>> x_t = 0.6 * x0 + 0.8 * eps
    >>> ddim_step(x_t, x0, eps, 0.36, 0.64)  # 0.8 * 1 + 0.6 * 2
    tensor([[2.]])
    """
    a, b = spread(abar_t, x_t), spread(abar_s, x_t)
    if eta == 0:
        return b.sqrt() * x0 + (1 - b).sqrt() * eps
    if noise is None:
        raise ValueError(f"noise: got None, wanted a tensor like x_t since eta = {eta}")
    if bool((b < a).any()):
        raise ValueError("abar_s: got less than abar_t, wanted a cleaner time, since only eta = 0 runs backwards")
    sigma = eta * ((1 - b) / (1 - a)).sqrt() * (1 - a / b).sqrt()
    return b.sqrt() * x0 + (1 - b - sigma**2).clamp_min(0).sqrt() * eps + sigma * noise


@torch.no_grad()
def ddpm_sample(denoise: Callable, noise: Tensor, alphas_cumprod: Tensor, steps: int | None = None,
                prediction: str = "eps", spacing: str = "trailing", generator: torch.Generator | None = None) -> Tensor:
    """Ancestral sampling from `noise` (B, ...); steps: all T where None; the generator lives on noise's device.

    >>> from gsgen_lib.diffusion.schedules import alphas_cumprod_of, linear_betas
    >>> abar = alphas_cumprod_of(linear_betas())
    >>> eps_of_origin = lambda x, t: x / (1 - abar[t]).sqrt()  # all data at the origin
    >>> ddpm_sample(eps_of_origin, torch.randn(2, 3), abar, 10).abs().max() < 1e-5
    tensor(True)
    """
    x = noise
    times = timesteps(len(alphas_cumprod), steps or len(alphas_cumprod), spacing)
    for t, a, b in _pairs(times, alphas_cumprod):
        x0 = convert(denoise(x, t.to(x.device)), x, a, prediction, "x0")
        x = ddpm_step(x, x0, a, b, torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype))
    return x


@torch.no_grad()
def ddim_sample(denoise: Callable, noise: Tensor, alphas_cumprod: Tensor, steps: int = 50, prediction: str = "eps",
                eta: float = 0.0, spacing: str = "trailing", generator: torch.Generator | None = None) -> Tensor:
    """DDIM from `noise` (B, ...) in `steps` steps; eta as in `ddim_step`.

    >>> abar = torch.linspace(0.999, 0.01, 100)
    >>> eps_of_origin = lambda x, t: x / (1 - abar[t]).sqrt()
    >>> ddim_sample(eps_of_origin, torch.randn(2, 3), abar, 5).abs().max() < 1e-4
    tensor(True)
    """
    x = noise
    for t, a, b in _pairs(timesteps(len(alphas_cumprod), steps, spacing), alphas_cumprod):
        guess = denoise(x, t.to(x.device))
        x0, eps = (convert(guess, x, a, prediction, kind) for kind in ("x0", "eps"))
        z = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype) if eta else None
        x = ddim_step(x, x0, eps, a, b, eta, z)
    return x


@torch.no_grad()
def ddim_invert(denoise: Callable, x0: Tensor, alphas_cumprod: Tensor, steps: int = 50, prediction: str = "eps",
                spacing: str = "trailing") -> Tensor:
    """The noise (B, ...) from which `ddim_sample` with the same steps draws x0, nearly.

    Each step uses the prediction at its own cleaner end: an Euler step of the same ODE with time
    reversed, so the error falls with the number of steps. At the clean end the network is asked at t = 0.

    >>> abar = torch.linspace(0.999, 0.01, 1000)
    >>> eps_of_normal = lambda x, t: x * (1 - abar[t]).sqrt()  # data ~ N(0, 1)
    >>> x = torch.tensor([[1.0], [-2.0]])
    >>> z = ddim_invert(eps_of_normal, x, abar, 500)
    >>> (ddim_sample(eps_of_normal, z, abar, 500) - x).abs().max() < 0.02
    tensor(True)
    """
    x = x0
    for t, b, a in reversed(list(_pairs(timesteps(len(alphas_cumprod), steps, spacing), alphas_cumprod, True))):
        guess = denoise(x, t.to(x.device))  # t: the cleaner end of this step
        clean, eps = (convert(guess, x, a if a < 1 else alphas_cumprod[0], prediction, kind) for kind in ("x0", "eps"))
        clean = x if a == 1 else clean
        x = ddim_step(x, clean, eps, a, b)
    return x


def _pairs(times: Tensor, alphas_cumprod: Tensor, cleaner: bool = False):
    """(t, abar now, abar next) of each step, noisiest first; with `cleaner`, t is the time of the next one (>= 0)."""
    if alphas_cumprod.ndim != 1:
        raise ValueError(f"alphas_cumprod: got shape {tuple(alphas_cumprod.shape)}, wanted (T,)")
    abar = alphas_cumprod.cpu()
    following = [*times[1:].tolist(), -1]
    for t, s in zip(times.tolist(), following, strict=True):
        yield torch.tensor(max(s, 0) if cleaner else t), abar[t], abar[s] if s >= 0 else torch.tensor(1.0)

"""Walking back from noise: ancestral DDPM, and DDIM in both directions.

Both start at x_T ~ N(0, I) and use a network's guess of the clean picture. With a = abar_t now,
b = abar_s at the next, cleaner time s < t, and x0, eps the guess at x_t (`gaussian.convert`):

    DDPM   x_s = mean + sqrt(variance) z,   z ~ N(0, I)                        2006.11239 eq. 6, 7
           mean     = sqrt(b) beta / (1 - a) x0 + sqrt(a / b) (1 - b) / (1 - a) x_t,  beta = 1 - a / b
           variance = (1 - b) / (1 - a) beta
    DDIM   x_s = sqrt(b) x0 + sqrt(1 - b - sigma^2) eps + sigma z              2010.02502 eq. 12
           sigma    = eta sqrt((1 - b) / (1 - a)) sqrt(1 - a / b)           eq. 16

DDIM with eta = 0 draws no noise: a picture and its noise determine each other, so the same step
with s > t runs the clock backwards (inversion). The last step goes to b = 1, where x_s = x0.

A denoiser is any function (x_t (B, ...), t) -> prediction (B, ...). Taught in notebook 02.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from gsgen_lib.diffusion.gaussian import checked_abar, convert, q_sample, spread

__all__ = ["ddim_invert", "ddim_sample", "ddim_step", "ddpm_sample", "ddpm_step", "timesteps"]


def timesteps(train_steps: int, steps: int, spacing: str = "trailing") -> Tensor:
    """`steps` of the times 0 ... train_steps - 1, noisiest first; (steps,) int64.

    spacing, as in diffusers: "trailing" starts exactly at the noisiest time (needed for zero terminal
    SNR), "leading" ends exactly at 0, "linspace" does both. Two differences: one step of "linspace" is the
    noisiest time, not 0; and where rounding makes diffusers' "trailing" append a time -1, it is left out.

    >>> timesteps(1000, 4), timesteps(1000, 4, "leading"), timesteps(1000, 4, "linspace")
    (tensor([999, 749, 499, 249]), tensor([750, 500, 250,   0]), tensor([999, 666, 333,   0]))
    """
    if not 1 <= steps <= train_steps:
        raise ValueError(f"steps: got {steps}, wanted 1 to {train_steps}")
    if spacing == "trailing":
        times = np.arange(train_steps, 0, -train_steps / steps)[:steps].round() - 1  # arange may add one too many
    elif spacing == "leading":
        times = np.arange(steps - 1, -1, -1) * (train_steps // steps)
    elif spacing == "linspace":
        times = np.linspace(0, train_steps - 1, steps)[::-1] if steps > 1 else np.array([train_steps - 1])
    else:
        raise ValueError(f"spacing: got {spacing!r}, wanted trailing, leading or linspace")
    return torch.from_numpy(times.round().astype(np.int64))


def ddpm_step(x_t: Tensor, x0: Tensor, abar_t, abar_s, noise: Tensor) -> Tensor:
    """One ancestral step from abar_t < 1 to abar_s >= abar_t; x_t, x0, noise (B, ...).

    >>> x = torch.ones(1, 2)
    >>> bool((ddpm_step(x, 3 * x, 0.5, 1.0, x) == 3 * x).all())  # to the clean end: x0, no noise
    True
    """
    a, b = _cleaner(abar_t, abar_s, x_t)
    beta = 1 - a / b
    mean = spread(b.sqrt() * beta / (1 - a), x_t) * x0 + spread((a / b).sqrt() * (1 - b) / (1 - a), x_t) * x_t
    return mean + spread(((1 - b) / (1 - a) * beta).sqrt(), x_t) * noise


def ddim_step(x_t: Tensor, x0: Tensor, eps: Tensor, abar_t, abar_s, eta: float = 0.0,
              noise: Tensor | None = None) -> Tensor:
    """One DDIM step from abar_t to abar_s, in either direction when eta = 0; x_t, x0, eps (B, ...).

    eta: in [0, 1]; 0 draws no noise, 1 as much as DDPM. Above 0 `noise` (B, ...) is needed, and
    abar_t < 1 and abar_s >= abar_t, since only eta = 0 runs backwards.

    >>> x0, eps = torch.tensor([[1.0]]), torch.tensor([[2.0]])
    >>> x_t = 0.6 * x0 + 0.8 * eps
    >>> ddim_step(x_t, x0, eps, 0.36, 0.64)  # 0.8 * 1 + 0.6 * 2
    tensor([[2.]])
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: got {eta}, wanted a number in [0, 1]")
    if eta == 0:
        return q_sample(x0, eps, abar_s)
    if noise is None:
        raise ValueError(f"noise: got None, wanted a tensor like x_t since eta = {eta}")
    a, b = _cleaner(abar_t, abar_s, x_t)
    sigma = eta * ((1 - b) / (1 - a)).sqrt() * (1 - a / b).sqrt()
    direction = (1 - b - sigma**2).clamp_min(0).sqrt()  # rounding may go below 0
    return spread(b.sqrt(), x_t) * x0 + spread(direction, x_t) * eps + spread(sigma, x_t) * noise


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
    for (t, a), (_, b) in pairwise(_levels(alphas_cumprod, len(alphas_cumprod) if steps is None else steps, spacing)):
        x0 = convert(denoise(x, t.to(x.device)), x, a, prediction, "x0")
        x = ddpm_step(x, x0, a, b, torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype))
    return x


def ddim_sample(denoise: Callable, noise: Tensor, alphas_cumprod: Tensor, steps: int = 50, prediction: str = "eps",
                eta: float = 0.0, spacing: str = "trailing", generator: torch.Generator | None = None,
                through: int = 0) -> Tensor:
    """DDIM from `noise` (B, ...) in `steps` steps; eta as in `ddim_step`; through: how many of the last steps a gradient
    flows through, 0 to steps.

    >>> abar = torch.linspace(0.999, 0.01, 100)
    >>> eps_of_origin = lambda x, t: x / (1 - abar[t]).sqrt()
    >>> ddim_sample(eps_of_origin, torch.randn(2, 3), abar, 5).abs().max() < 1e-4
    tensor(True)
    """
    if not 0 <= through <= steps:
        raise ValueError(f"through: got {through}, wanted 0 to {steps}, the steps")
    x = noise
    for i, ((t, a), (_, b)) in enumerate(pairwise(_levels(alphas_cumprod, steps, spacing))):
        with torch.set_grad_enabled(torch.is_grad_enabled() and i >= steps - through):
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
    (Pipelines around diffusers' DDIMInverseScheduler ask it at the step's noisier t; the steps are equal.)

    >>> abar = torch.linspace(0.999, 0.01, 1000)
    >>> eps_of_normal = lambda x, t: x * (1 - abar[t]).sqrt()  # data ~ N(0, 1)
    >>> x = torch.tensor([[1.0], [-2.0]])
    >>> z = ddim_invert(eps_of_normal, x, abar, 500)
    >>> (ddim_sample(eps_of_normal, z, abar, 500) - x).abs().max() < 0.02
    tensor(True)
    """
    x = x0
    for (t, a), (_, b) in pairwise(reversed(_levels(alphas_cumprod, steps, spacing))):
        guess = denoise(x, t.to(x.device))
        eps = convert(guess, x, alphas_cumprod[t], prediction, "eps")
        clean = x if a == 1 else convert(guess, x, a, prediction, "x0")
        x = ddim_step(x, clean, eps, a, b)
    return x


def _levels(alphas_cumprod: Tensor, steps: int, spacing: str) -> list[tuple[Tensor, Tensor]]:
    """(t, abar_t) of every level a sampler visits, noisiest first; the clean end comes last, as (0, 1.0)."""
    if alphas_cumprod.ndim != 1 or bool((alphas_cumprod.diff() > 0).any()):
        raise ValueError(f"alphas_cumprod: got shape {tuple(alphas_cumprod.shape)}, wanted (T,) falling numbers "
                         "(betas rise: see alphas_cumprod_of)")
    times = timesteps(len(alphas_cumprod), steps, spacing)
    return [*zip(times, alphas_cumprod.cpu()[times], strict=True), (torch.tensor(0), torch.tensor(1.0))]


def _cleaner(abar_t, abar_s, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """Both as tensors, after a look that the step removes noise."""
    a, b = checked_abar(abar_t, x_t), checked_abar(abar_s, x_t)
    if not bool(((a < 1) & (a <= b) & (b > 0)).all()):
        raise ValueError(f"abar_t, abar_s: got {a.tolist()}, {b.tolist()}, wanted abar_t < 1 and abar_t <= abar_s > 0")
    return a, b

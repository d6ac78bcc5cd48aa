"""Noise schedules: how much of the picture is left at step t.

A variance-preserving process keeps  x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,  eps ~ N(0, I):

    beta_t  = `betas[t]`           variance added by step t, in (0, 1]
    abar_t  = `alphas_cumprod[t]`  = prod_{s <= t} (1 - beta_s), the share of signal variance left
    SNR_t   = abar_t / (1 - abar_t)

t = 0 is almost clean, t = T - 1 almost pure noise. All functions give float32 tensors of length T,
computed in float64.

Sources: linear, DDPM (2006.11239) section 4; scaled linear, latent diffusion (2112.10752), the
released configuration; cosine, improved DDPM (2102.09672) eq. 17; zero terminal SNR (2305.08891)
algorithm 1. Taught in notebook 02.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["alphas_cumprod_of", "betas_of", "cosine_betas", "linear_betas", "scaled_linear_betas", "snr",
           "zero_terminal_snr"]


def linear_betas(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """beta_t on a straight line from `start` to `end`; (T,).

    >>> linear_betas(3, 0.1, 0.3)
    tensor([0.1000, 0.2000, 0.3000])
    """
    _check(steps, start, end)
    return torch.linspace(start, end, steps, dtype=torch.float64).float()


def scaled_linear_betas(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """sqrt(beta_t) on a straight line: Stable Diffusion's schedule; (T,).

    >>> scaled_linear_betas(3, 0.01, 0.09)
    tensor([0.0100, 0.0400, 0.0900])
    """
    _check(steps, start, end)
    return (torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2).float()


def cosine_betas(steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """Betas for which abar_t follows cos^2: noise comes slowly at both ends; (T,).

    offset: keeps beta_0 from being too small; max_beta: cap, met only near t = T - 1.

    >>> alphas_cumprod_of(cosine_betas(1000))[499].item()  # cos^2(pi / 4) at half time, nearly
    0.49384...
    """
    if not (offset >= 0 and 0 < max_beta <= 1):
        raise ValueError(f"offset, max_beta: got {offset}, {max_beta}, wanted offset >= 0 and 0 < max_beta <= 1")
    _check(steps)
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    alpha_bar = torch.cos((time + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta).float()


def alphas_cumprod_of(betas: Tensor) -> Tensor:
    """abar_t = prod_{s <= t} (1 - beta_s); (T,) -> (T,).

    >>> alphas_cumprod_of(torch.tensor([0.5, 0.5]))
    tensor([0.5000, 0.2500])
    """
    if betas.ndim != 1 or not len(betas) or not bool(((betas >= 0) & (betas <= 1)).all()):
        raise ValueError(f"betas: got shape {tuple(betas.shape)}, wanted (T,) numbers in [0, 1]")
    return torch.cumprod(1 - betas.double(), 0).float()


def betas_of(alphas_cumprod: Tensor) -> Tensor:
    """The inverse of `alphas_cumprod_of`; (T,) -> (T,).

    >>> betas_of(torch.tensor([0.5, 0.25]))
    tensor([0.5000, 0.5000])
    """
    a = alphas_cumprod.double()
    if a.ndim != 1 or not len(a) or not bool(((a >= 0) & (a <= 1)).all()) or bool((a.diff() > 0).any()):
        raise ValueError(f"alphas_cumprod: got shape {tuple(a.shape)}, wanted (T,) falling numbers in [0, 1]")
    return (1 - a / torch.cat([a.new_ones(1), a[:-1]])).float()


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shift and scale sqrt(abar) so that the last step is pure noise and the first is unchanged; (T,) -> (T,).

    Most schedules leave a little signal at t = T - 1, so a network learns that noise knows the
    picture's mean brightness; sampling then starts from noise that does not. With abar = 0 at the
    end, x_0 cannot be had from eps there: predict v or x_0 instead.

    >>> zero_terminal_snr(torch.tensor([0.81, 0.36, 0.01])) ** 0.5
    tensor([0.9000, 0.5625, 0.0000])
    """
    root = alphas_cumprod.double().sqrt()
    if root.ndim != 1 or len(root) < 2 or not root[0] > root[-1]:
        raise ValueError(f"alphas_cumprod: got shape {tuple(root.shape)}, wanted (T,) falling numbers, T >= 2")
    return (((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2).float()


def snr(alphas_cumprod: Tensor) -> Tensor:
    """Signal-to-noise ratio abar / (1 - abar), any shape.

    >>> snr(torch.tensor([0.5, 0.75]))
    tensor([1., 3.])
    """
    return alphas_cumprod / (1 - alphas_cumprod)


def _check(steps: int, start: float = 0.5, end: float = 0.5) -> None:
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: got {steps!r}, wanted a whole number >= 1")
    if not 0 < start <= end < 1:
        raise ValueError(f"start, end: got {start}, {end}, wanted 0 < start <= end < 1")

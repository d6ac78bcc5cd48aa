"""Rectified flow: a straight road from noise to data.

    x_t = (1 - t) x_0 + t eps,     t in [0, 1]                  (`interpolate`; t = 1 is pure noise)
    velocity = dx_t / dt = eps - x_0                            (what the network learns, `flow_loss`)

The learned velocity is the mean over all roads through x_t; following it from t = 1 to 0 turns
noise into data. Where to spend training (`logit_normal_times`: the middle, where roads cross) and
sampling steps (`flow_times` with `shift` > 1: the noisy end, where large pictures are decided):

    t = sigmoid(mean + std n), n ~ N(0, 1)            t' = shift t / (1 + (shift - 1) t)

Sources: Liu et al. (2209.03003) eq. 1; Lipman et al. (2210.02747); logit-normal times and shift:
Stable Diffusion 3 (2403.03206) sections 3.1, 5.3.2. Taught in notebook 02.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gsgen_lib.diffusion.gaussian import spread

__all__ = ["flow_loss", "flow_sample", "flow_times", "interpolate", "logit_normal_times", "shift_times"]


def interpolate(x0: Tensor, eps: Tensor, t) -> Tensor:
    """x_t = (1 - t) x0 + t eps; x0, eps (B, ...), t one number or (B,) in [0, 1].

    >>> interpolate(torch.tensor([[0.0]]), torch.tensor([[4.0]]), 0.25)
    tensor([[1.]])
    """
    if x0.shape != eps.shape:
        raise ValueError(f"eps: got shape {tuple(eps.shape)}, wanted that of x0, {tuple(x0.shape)}")
    t = spread(t, x0)
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"t: got {t.flatten().tolist()[:4]}, wanted numbers in [0, 1]")
    return (1 - t) * x0 + t * eps


def shift_times(t: Tensor, shift: float) -> Tensor:
    """Move times towards 1 (noise) for shift > 1; 0 and 1 stay; any shape.

    >>> shift_times(torch.tensor([0.0, 0.5, 1.0]), 3.0)
    tensor([0.0000, 0.7500, 1.0000])
    """
    if not shift > 0:
        raise ValueError(f"shift: got {shift}, wanted a number > 0")
    return shift * t / (1 + (shift - 1) * t)


def logit_normal_times(n: int, mean: float = 0.0, std: float = 1.0, generator: torch.Generator | None = None,
                       device=None) -> Tensor:
    """n training times in [0, 1], dense in the middle; (n,); std > 0 (float32 rounds to the ends only for large ones).
    The generator lives on `device`.

    >>> t = logit_normal_times(10_000, generator=torch.Generator().manual_seed(0))
    >>> bool(((t > 0.25) & (t < 0.75)).float().mean() > 0.7)  # 0.5 if they were uniform
    True
    """
    if not std > 0:
        raise ValueError(f"std: got {std}, wanted a number > 0")
    return torch.sigmoid(mean + std * torch.randn(n, generator=generator, device=device))


def flow_loss(model: Callable, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """mean |model(x_t, t) - (eps - x0)|^2 per item, (B,); x0, eps (B, ...), t (B,).

    >>> perfect = lambda x, t: x / t.reshape(-1, 1)  # all data at the origin: x_t = t eps
    >>> x0, eps = torch.zeros(4, 2), torch.randn(4, 2)
    >>> flow_loss(perfect, x0, torch.tensor([0.1, 0.4, 0.7, 1.0]), eps).max() < 1e-10
    tensor(True)
    """
    error = model(interpolate(x0, eps, t), t) - (eps - x0)
    return error.square().flatten(1).mean(1)


def flow_times(steps: int, shift: float = 1.0) -> Tensor:
    """The steps + 1 times from 1 to 0 that a sampler visits; (steps + 1,).

    The sigmas of diffusers' FlowMatchEulerDiscreteScheduler when it is given `sigmas=linspace(1, 1 / steps,
    steps)`; its own default spaces them from 1 to 1 / 1000, shifts, and ends with a step from there to 0.

    >>> flow_times(4), flow_times(2, shift=3.0)
    (tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000]), tensor([1.0000, 0.7500, 0.0000]))
    """
    if steps < 1:
        raise ValueError(f"steps: got {steps}, wanted at least 1")
    return shift_times(torch.linspace(1, 0, steps + 1), shift)


@torch.no_grad()
def flow_sample(velocity: Callable, noise: Tensor, steps: int = 25, shift: float = 1.0,
                method: str = "euler") -> Tensor:
    """Follow `velocity(x_t, t)` from noise (B, ...) at t = 1 to data at t = 0; t is passed as a 0-d tensor.

    method: "euler", one call a step, or "heun", two calls a step (the slope at both ends, averaged);
    its last step is Euler's, as the velocity is not needed at t = 0.

    >>> to_three = lambda x, t: (x - 3.0) / t  # all data at 3
    >>> flow_sample(to_three, torch.tensor([[0.5], [-2.0]]), steps=1)
    tensor([[3.],
            [3.]])
    """
    if method not in ("euler", "heun"):
        raise ValueError(f"method: got {method!r}, wanted euler or heun")
    x, times = noise, flow_times(steps, shift).to(noise.device)
    for t, s in zip(times[:-1], times[1:], strict=True):
        slope = velocity(x, t)
        if method == "heun" and s > 0:
            slope = (slope + velocity(x + (s - t) * slope, s)) / 2
        x = x + (s - t) * slope
    return x

"""How many steps from noise to data: straight roads against bent ones.

Problem. A diffusion sampler asks its network once a step, so steps are seconds. What the network was taught decides how long a
step may be:

    flow    x_t = (1 - t) x_0 + t eps                                  road straight, velocity eps - x_0
    DDPM    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps              road bent; the network says eps

Both networks are the same, see the same data, and are trained for as many steps. The second is asked by two samplers, ancestral
DDPM, which draws new noise in every step, and DDIM, which draws none; so one can tell what is owed to the road, and what to the
sampler. Here the data are points in space, and the network is small enough for seconds; `noised` and `draw` serve the latents of
voxels, too (`sparse_voxels_flow.structure_asker`).

    how far    sliced Wasserstein distance of drawn points to true ones, beside that of other true points (the floor)

Taught in notebook 09. Source: 2209.03003 (straight roads); 2006.11239; 2010.02502; TRELLIS (2412.01506) samples in 12 steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsgen_lib.diffusion import (
    alphas_cumprod_of,
    ddim_sample,
    ddpm_sample,
    flow_sample,
    interpolate,
    linear_betas,
    q_sample,
)
from gsgen_lib.training import seeded

METHODS = ("flow", "ddim", "ddpm")
ABAR = alphas_cumprod_of(linear_betas())  # (1000,), DDPM's own


class PointNet(nn.Module):
    """Points (B, D) at times (B,) in [0, 1] -> velocities, or eps, (B, D).

    >>> PointNet(3)(torch.zeros(4, 3), torch.zeros(4)).shape
    torch.Size([4, 3])
    """

    def __init__(self, numbers: int, width: int = 128):
        super().__init__()
        self.register_buffer("waves", 2 ** torch.arange(6) * torch.pi)
        self.layers = nn.Sequential(nn.Linear(numbers + 12, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                                    nn.Linear(width, width), nn.SiLU(), nn.Linear(width, numbers))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = t[:, None] * self.waves / 2
        return self.layers(torch.cat([x, angle.sin(), angle.cos()], 1))


def noised(x0: Tensor, t: Tensor, eps: Tensor, ddpm: bool) -> tuple[Tensor, Tensor]:
    """x_t and what the network shall say, both like x0 (B, ...); t (B,) in [0, 1].

    >>> x0, eps = torch.ones(1, 2), torch.zeros(1, 2)
    >>> noised(x0, torch.tensor([0.25]), eps, ddpm=False)
    (tensor([[0.7500, 0.7500]]), tensor([[-1., -1.]]))
    """
    if not bool(((t >= 0) & (t <= 1)).all()):  # also false for nan
        raise ValueError(f"t: got {t.flatten().tolist()[:4]}, wanted numbers in [0, 1]")
    if not ddpm:
        return interpolate(x0, eps, t), eps - x0
    steps = len(ABAR)
    return q_sample(x0, eps, ABAR.to(x0.device)[(t * steps).long().clamp(max=steps - 1)]), eps


@torch.enable_grad()
def train_points(points: Tensor, ddpm: bool, steps: int = 2000, batch: int = 512, seed: int = 0) -> PointNet:
    """A network that draws points like these, (N, D), of about unit spread; the generator is that of `seed`.

    Rates fall from 2e-3 to 0 along half a cosine. ValueError for points that are no (N, D) finite numbers.
    """
    if points.ndim != 2 or not len(points) or not bool(points.isfinite().all()):
        raise ValueError(f"points: got shape {tuple(points.shape)}, wanted (N, D), N > 0, finite numbers")
    if steps < 1 or batch < 1:
        raise ValueError(f"steps, batch: got {steps}, {batch}, wanted at least 1 each")
    net = seeded(lambda: PointNet(points.shape[1]), seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x0 = points[torch.randint(len(points), (batch,), generator=generator)]
        t, eps = torch.rand(batch, generator=generator), torch.randn(x0.shape, generator=generator)
        x_t, wanted = noised(x0, t, eps, ddpm)
        optimizer.zero_grad()
        F.mse_loss(net(x_t, t), wanted).backward()
        optimizer.step()
        falling.step()
    return net.eval().requires_grad_(False)


def draw(ask: Callable, method: str, noise: Tensor, steps: int, shift: float = 1.0,
         generator: torch.Generator | None = None) -> Tensor:
    """From noise (B, ...) to data in so many steps, one call of the network each.

    ask(x (B, ...), t (B,) in [0, 1]) -> velocities for the method "flow", else eps; shift: of the flow's times; generator: of
    the noise that "ddpm" draws.

    >>> to_three = lambda x, t: (x - 3.0) / t[:, None]  # all data at 3
    >>> draw(to_three, "flow", torch.tensor([[0.5], [-2.0]]), 1)
    tensor([[3.],
            [3.]])
    """
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, wanted one of {', '.join(METHODS)}")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: got {steps!r}, wanted a whole number >= 1")
    if method == "flow":
        return flow_sample(lambda x, t: ask(x, t.expand(len(x))), noise, steps, shift)

    def denoise(x, t):  # t is a whole number below 1000: its middle, so that `noised` finds it again
        return ask(x, ((t + 0.5) / len(ABAR)).to(x).expand(len(x)))

    if method == "ddim":
        return ddim_sample(denoise, noise, ABAR, steps)
    return ddpm_sample(denoise, noise, ABAR, steps, generator=generator)


def principal(x: Tensor, count: int = 32) -> Tensor:
    """The first `count` principal directions of x (N, D), (D, count): on these lines data of many numbers can be compared.

    >>> line = torch.outer(torch.randn(9), torch.tensor([0.6, 0.8]))
    >>> principal(line, 1).abs().squeeze()
    tensor([0.6000, 0.8000])
    """
    return torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:count].T


def steps_for(curve: dict[int, float], wanted: float) -> float:
    """After how many steps a curve {steps: distance} first falls to `wanted`, between two points of it on the straight line of
    their logarithms; inf if it never does.

    >>> steps_for({4: 0.5, 12: 0.2, 30: 0.1}, 0.2), steps_for({4: 0.5}, 0.2)
    (12.0, inf)
    >>> round(steps_for({10: 0.4, 40: 0.1}, 0.2), 1)
    20.0
    """
    before = None
    for steps, distance in sorted(curve.items()):
        if distance <= wanted:
            if before is None or distance == wanted:
                return float(steps)
            share = math.log(before[1] / wanted) / math.log(before[1] / distance)
            return before[0] * (steps / before[0]) ** share
        before = (steps, distance)
    return math.inf

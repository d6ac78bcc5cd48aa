"""Checks of the exercises of notebook 04: density and slope, a baked texel, opacity against level, crossings."""

from __future__ import annotations

import math

import torch

from gsgen_lib.checks import NotYet, expect_close, expect_letter, fresh_generator, shows


def _pair(answer, names: str):
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise NotYet(f"wanted two things: {names}")
    return answer


def exercise_1(density_and_gradient) -> None:
    """Density of spheres and its gradient. Oracle: Python numbers, and autograd for the slope."""
    generator = fresh_generator()
    points, means = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (4, 6))
    scales, opacities = (0.5 + torch.rand(6, generator=generator, dtype=torch.float64) for _ in range(2))
    density, gradient = _pair(density_and_gradient(points, means, scales, opacities), "the density and its gradient")
    wanted = [sum(o * math.exp(-0.5 * math.dist(p, m) ** 2 / s**2) for m, s, o in zip(means.tolist(), scales.tolist(),
                                                                                      opacities.tolist(), strict=True))
              for p in points.tolist()]
    hint = "density: the exponent is -1/2 |p - mu|^2 / scale^2, times the opacity, summed over Gaussians"
    expect_close(density, wanted, hint, tol=1e-8)
    leaf = points.clone().requires_grad_()
    torch.exp(-0.5 * (leaf[:, None] - means).square().sum(-1) / scales**2).mul(opacities).sum().backward()
    hint = "gradient: the chain rule brings -(p - mu) / scale^2 in front of each Gaussian"
    if shows(gradient, -leaf.grad):
        hint = "gradient: the sign; the density falls as you walk away from a Gaussian"
    expect_close(gradient, leaf.grad, hint, tol=1e-8)


def exercise_2(baked_colours) -> None:
    """Weighted means of colours. Oracle: a loop over texels and views."""
    generator = fresh_generator()
    colours = torch.rand(5, 7, 3, generator=generator, dtype=torch.float64)
    cosine = 2 * torch.rand(5, 7, generator=generator, dtype=torch.float64) - 1
    visible = torch.rand(5, 7, generator=generator) < 0.7
    cosine[:, 0], visible[:, 0] = 0.9, False  # seen squarely, but hidden
    cosine[:, 1], visible[:, 1] = 0.3, True  # visible, but at a slant
    cosine[0, 2], cosine[1, 2], visible[:, 2] = 0.95, 0.6, True  # two views that are trusted differently

    def loop(power):
        rows, empty = [], []
        for texel in range(7):
            total, sums = 0.0, [0.0] * 3
            for view in range(5):
                c = float(cosine[view, texel])
                if bool(visible[view, texel]) and c > 0.5:
                    total += c**power
                    sums = [s + c**power * float(v) for s, v in zip(sums, colours[view, texel], strict=True)]
            rows.append([s / total if total else 0.0 for s in sums])
            empty.append(total == 0)
        return rows, empty

    answer, unpainted = _pair(baked_colours(colours, cosine, visible), "colours and unpainted")
    rows, empty = loop(2)
    hint = "colours: sum of w times colour over the views, divided by the sum of w"
    if shows(answer, loop(1)[0]):
        hint = "colours: the weight is cos squared"
    elif shows(answer, loop(0)[0]):
        hint = "colours: every view has the same weight; wanted cos squared"
    expect_close(answer, rows, hint, tol=1e-8)
    expect_close(torch.as_tensor(unpainted).double(), [float(e) for e in empty], "unpainted: texels whose weights are all 0")


def exercise_3(prediction) -> None:
    """Which letter: opacities and level doubled."""
    expect_letter(prediction, "c", "how does d(p) change when every o_i is doubled? Then run it")


def exercise_4(crossing_1d) -> None:
    """Crossings along a line. Oracle: a density that is straight between ticks, solved for the level in Python numbers."""
    generator = fresh_generator()
    ticks = torch.linspace(-0.5, 0.5, 21, dtype=torch.float64)
    bumps = torch.rand(2, generator=generator, dtype=torch.float64)
    values = 1.5 * torch.exp(-((ticks + 0.1 + 0.1 * bumps[0]) / 0.15) ** 2) + 0.3 * bumps[1]
    wanted = []
    for x, y, a, b in zip(ticks[:-1].tolist(), ticks[1:].tolist(), values[:-1].tolist(), values[1:].tolist(), strict=True):
        if (a > 0.7) != (b > 0.7):
            wanted.append(x + (0.7 - a) / (b - a) * (y - x))
    answer = crossing_1d(ticks, values, 0.7)
    hint = "the share of the way is (level - value at the left) / (value at the right - value at the left)"
    if isinstance(answer, torch.Tensor) and answer.shape == (len(wanted),) and (
            (answer[:, None] - ticks).abs().amin(1).max() < 1e-9):
        hint = "the places are grid points, hence the staircases: do not round"
    expect_close(answer, wanted, hint, tol=1e-9)


def _right(points, means, scales, opacities):
    away = points[:, None] - means
    part = opacities * torch.exp(-0.5 * away.square().sum(-1) / scales**2)
    return part.sum(1), -(part[..., None] * away / scales[:, None] ** 2).sum(1)


def _uphill_turned(*args):
    density, gradient = _right(*args)
    return density, -gradient


def _no_half(points, means, scales, opacities):
    return _right(points, means, scales / 2**0.5, opacities)


def _density_only(*args):
    return _right(*args)[0]


def _baked(colours, cosine, visible, power=2, least=0.5):
    w = torch.where(visible & (cosine > least), cosine.clamp_min(1e-9) ** power, torch.zeros_like(cosine))[..., None]
    return (w * colours).sum(0) / w.sum(0).clamp_min(1e-12), w.sum(0)[:, 0] == 0


def _linear(colours, cosine, visible):
    return _baked(colours, cosine, visible, 1)


def _hidden_too(colours, cosine, visible):
    return _baked(colours, cosine, torch.ones_like(visible))


def _slanted_too(colours, cosine, visible):
    return _baked(colours, cosine, visible, 2, 0.0)


def _rounded(ticks, values, level):
    inside = values > level
    where = (inside[1:] != inside[:-1]).nonzero()[:, 0]
    share = (level - values[where]) / (values[where + 1] - values[where])
    return ticks[where] + share.round() * (ticks[where + 1] - ticks[where])


def _middle(ticks, values, level):
    inside = values > level
    where = (inside[1:] != inside[:-1]).nonzero()[:, 0]
    return (ticks[where] + ticks[where + 1]) / 2


WRONG = {
    "exercise_1": [(_uphill_turned,), (_no_half,), (_density_only,)],
    "exercise_2": [(_linear,), (_hidden_too,), (_slanted_too,)],
    "exercise_3": [("a",), ("b",), (3,)],
    "exercise_4": [(_rounded,), (_middle,)],
}

"""Checks of the exercises of notebook 01: compositing, splat sizes, and the gradient of an opacity."""

from __future__ import annotations

import math

import torch

from gsgen_lib.checks import NotYet, expect_close, fresh_generator


def exercise_1(back_to_front) -> None:
    """Blend N layers (N,), (N, 3), nearest first, on a background (3,), starting from the farthest.

    Oracle: front to back in Python numbers, with the transmittance kept beside the colour.
    """
    generator = fresh_generator()
    alphas = 0.2 + 0.6 * torch.rand(5, generator=generator)
    colors = torch.rand(5, 3, generator=generator)
    background = torch.rand(3, generator=generator)
    wanted, passes = [0.0, 0.0, 0.0], 1.0
    for i in range(5):
        for c in range(3):
            wanted[c] += passes * alphas[i].item() * colors[i, c].item()
        passes *= 1 - alphas[i].item()
    wanted = [wanted[c] + passes * background[c].item() for c in range(3)]
    hint = "start from the background, walk from the last layer to the first: color = alpha c + (1 - alpha) color"
    expect_close(back_to_front(alphas, colors, background), wanted, hint)


def exercise_2(half_box) -> None:
    """Half width and half height, in pixels, of the smallest box that holds all alpha >= 1/255.

    Oracle: a dense grid of points at which the splat is evaluated. A faint and a strong splat are tried.
    """
    generator = fresh_generator()
    for low, high in ((0.03, 0.1), (0.7, 0.95)):
        opacity = low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64)
        angle = math.radians(25) + math.radians(40) * torch.rand((), generator=generator, dtype=torch.float64)
        c, s = angle.cos(), angle.sin()
        turn = torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
        cov = turn @ torch.diag(torch.tensor([9.0, 1.0], dtype=torch.float64)) @ turn.T
        line = torch.arange(-11, 11, 0.02, dtype=torch.float64)
        x, y = torch.meshgrid(line, line, indexing="xy")
        A = torch.linalg.inv(cov)
        alpha = opacity * torch.exp(-0.5 * (A[0, 0] * x * x + A[1, 1] * y * y) - A[0, 1] * x * y)
        wanted = [x[alpha >= 1 / 255].max(), y[alpha >= 1 / 255].max()]
        hint = (f"opacity {opacity:.2f}: solve opacity exp(-r^2 / 2) = 1/255 for r, then scale the standard deviations "
                "along x and y, the roots of the diagonal of cov")
        expect_close([float(v) for v in half_box(cov.float(), opacity.float())], wanted, hint, tol=0.05)


def exercise_3(prediction) -> None:
    """Which letter: twice as large and twice as far."""
    if prediction != "a":
        raise NotYet("render scene.transform(scale=2) with Cameras.orbit(1, radius=3.6) and compare; "
                     "in J, both t and the lengths in Sigma doubled")


def exercise_4(alpha_gradient) -> None:
    """dL/dalpha (N,) of L = v . C, C the blend of N layers, nearest first, on a background.

    Oracle: autograd in float64.
    """
    generator = fresh_generator()
    alphas = (0.2 + 0.6 * torch.rand(6, generator=generator, dtype=torch.float64)).requires_grad_()
    colors = torch.rand(6, 3, generator=generator, dtype=torch.float64)
    background, v = torch.rand(2, 3, generator=generator, dtype=torch.float64)
    T = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - alphas, 0)])
    C = ((T[:-1] * alphas)[:, None] * colors).sum(0) + T[-1] * background
    (C * v).sum().backward()
    hint = "alpha_j also dims all that lies behind it, background included: that light holds one factor (1 - alpha_j)"
    expect_close(alpha_gradient(alphas.detach(), colors, background, v), alphas.grad, hint)


def _blend_from_the_wrong_end(alphas, colors, background):
    color = background
    for alpha, c in zip(alphas, colors, strict=True):
        color = alpha * c + (1 - alpha) * color
    return color


def _gradient(alphas, colors, background, v, divide=True):
    T = torch.cat([torch.ones_like(alphas[:1]), torch.cumprod(1 - alphas, 0)])
    light = T[:-1] * alphas * (colors @ v)
    behind = light.flip(0).cumsum(0).flip(0) - light + T[-1] * (background @ v)
    return T[:-1] * (colors @ v) - (behind / (1 - alphas) if divide else behind)


WRONG = {
    "exercise_1": [
        (_blend_from_the_wrong_end,),
        (lambda alphas, colors, background: _blend_from_the_wrong_end(alphas.flip(0), colors.flip(0), 0 * background),),
    ],
    "exercise_2": [
        (lambda cov, opacity: 3 * cov.diagonal().sqrt(),),
        (lambda cov, opacity: (2 * torch.log(255 * opacity)).sqrt() * torch.linalg.eigvalsh(cov)[-1].sqrt().repeat(2),),
        (lambda cov, opacity: (2 * torch.log(255 * opacity)).sqrt() * cov.diagonal(),),
    ],
    "exercise_3": [("b",), ("c",)],
    "exercise_4": [
        (lambda alphas, colors, background, v: _gradient(alphas, colors, background, v, divide=False),),
        (lambda alphas, colors, background, v: _gradient(alphas, colors, 0 * background, v),),
        (lambda alphas, colors, background, v: -_gradient(alphas, colors, background, v),),
    ],
}

"""Checks of the exercises of notebook 01: compositing, splat sizes, and the gradient of an opacity."""

from __future__ import annotations

import math

import torch

from gsgen_lib.checks import expect_close, expect_letter, fresh_generator, shows


def exercise_1(back_to_front) -> None:
    """Blend N layers (N,), (N, 3), nearest first, on a background (3,), starting from the farthest.

    Oracle: front to back in Python numbers, with the transmittance kept beside the colour. First one layer, then five.
    """
    generator = fresh_generator()
    for count in (1, 5):
        alphas = 0.2 + 0.6 * torch.rand(count, generator=generator)
        colors = torch.rand(count, 3, generator=generator)
        background = torch.rand(3, generator=generator)
        answer = back_to_front(alphas, colors, background)
        hint = f"one layer of alpha {alphas[0]:.2f}: how much of the background is seen, and how much of the layer?"
        if count > 1:
            hint = "one layer is right, five are not: onto what is layer j painted, once those behind it are done?"
            if shows(answer, _front_to_back(alphas.flip(0), colors.flip(0), background)):
                hint = "you end with the farthest layer: index 0 is the nearest, and must be painted last"
        expect_close(answer, _front_to_back(alphas, colors, background), hint)


def _front_to_back(alphas, colors, background) -> list[float]:
    """The pixel's colour, in Python numbers."""
    color, passes = [0.0, 0.0, 0.0], 1.0
    for i in range(len(alphas)):
        for c in range(3):
            color[c] += passes * alphas[i].item() * colors[i, c].item()
        passes *= 1 - alphas[i].item()
    return [color[c] + passes * background[c].item() for c in range(3)]


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
        wanted = [x[alpha >= 1 / 255].max().item(), y[alpha >= 1 / 255].max().item()]
        answer = half_box(cov.float(), opacity.float())
        hint = (f"opacity {opacity:.2f}: alpha falls to 1/255 at x = {wanted[0]:.2f} and y = {wanted[1]:.2f} pixels; "
                "how many standard deviations is that, for this opacity?")
        for mistake, name in USUAL.items():
            if shows(answer, mistake(cov.float(), opacity.float())):
                hint = f"opacity {opacity:.2f}: {name}"
        expect_close(answer, wanted, hint, tol=0.05)


def exercise_3(prediction) -> None:
    """Which letter: twice as large and twice as far."""
    expect_letter(prediction, "a", "render scene.transform(scale=2) from `away`, the scene from `close`, and compare; "
                  "then look at J: t doubles, and so do the lengths in Sigma")


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


def _reach(opacity):
    return (2 * torch.log(255 * opacity)).sqrt()


def _three_deviations(cov, opacity):
    return 3 * cov.diagonal().sqrt()


def _long_axis(cov, opacity):
    return _reach(opacity) * torch.linalg.eigvalsh(cov)[-1].sqrt().repeat(2)


def _variances(cov, opacity):
    return _reach(opacity) * cov.diagonal()


USUAL = {  # usual mistakes of exercise 2, and what to say about each
    _three_deviations: "three standard deviations suit no opacity but one; how many does this one need?",
    _long_axis: "the box stands upright: ask how far the ellipse reaches along x and y, not along its own axis",
    _variances: "the diagonal of cov holds variances, in pixels squared, not lengths",
}
WRONG = {
    "exercise_1": [
        (_blend_from_the_wrong_end,),
        (lambda alphas, colors, background: _blend_from_the_wrong_end(alphas.flip(0), colors.flip(0), 0 * background),),
    ],
    "exercise_2": [
        *[(mistake,) for mistake in USUAL],
        (lambda cov, opacity: opacity,),
        (lambda cov, opacity: _reach(opacity) * cov.diagonal().sqrt() + torch.nan,),
    ],
    "exercise_3": [("b",), ("c",), ("A",), (3,)],
    "exercise_4": [
        (lambda alphas, colors, background, v: _gradient(alphas, colors, background, v, divide=False),),
        (lambda alphas, colors, background, v: _gradient(alphas, colors, 0 * background, v),),
        (lambda alphas, colors, background, v: -_gradient(alphas, colors, background, v),),
    ],
}

"""Checks of the exercises of notebook 00."""

from __future__ import annotations

import torch

from gsgen_lib.checks import NotYet, expect_close, fresh_generator


def exercise_1(over) -> None:
    """Put a picture (H, W, 3) with coverage (H, W, 1) on a background colour (3,).

    Oracle: pixel by pixel in Python numbers.
    """
    generator = fresh_generator()
    alpha = torch.rand(4, 5, 1, generator=generator)
    rgb = torch.rand(4, 5, 3, generator=generator) * alpha
    background = torch.rand(3, generator=generator)
    wanted = torch.empty(4, 5, 3)
    for y in range(4):
        for x in range(5):
            for c in range(3):
                passes = 1.0 - alpha[y, x, 0].item()
                wanted[y, x, c] = rgb[y, x, c].item() + passes * background[c].item()
    hint = "the background counts where coverage is missing: 1 - alpha; rgb already holds its alpha"
    expect_close(over(rgb, alpha, background), wanted, hint)


def exercise_2(prediction) -> None:
    """Which letter: half the scales cover a smaller part of the picture."""
    if prediction != "b":
        raise NotYet("draw the scene with scales * 0.5 and compare the mean of alpha")


WRONG = {
    "exercise_1": [
        (lambda rgb, alpha, background: rgb * alpha + (1 - alpha) * background,),
        (lambda rgb, alpha, background: rgb + alpha * background,),
    ],
    "exercise_2": [("a",), ("c",)],
}

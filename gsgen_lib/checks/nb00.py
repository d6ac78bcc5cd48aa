"""Checks of the exercises of notebook 00."""

from __future__ import annotations

import math

import numpy as np
import torch

from gsgen_lib.checks import NotYet, expect_close, expect_letter, fresh_generator, shows


def exercise_1(eye) -> None:
    """eye(azimuth, elevation, radius) in degrees -> camera position (3,).

    Oracle: the point (0, 0, radius) turned by two rotation matrices in float64. First the three axes, then anywhere.
    """
    axes = [(0.0, 0.0, 1.5), (90.0, 0.0, 1.5), (0.0, 90.0, 1.5)]
    numbers = torch.rand(12, 3, generator=fresh_generator()).double().tolist()
    asked = axes + [(360 * u - 180, 160 * v - 80, 0.5 + 3 * w) for u, v, w in numbers]
    answers = [_three_numbers(eye(*angles)) for angles in asked]
    for mistake, hint in USUAL.items():
        if all(shows(answer, mistake(*angles)) for answer, angles in zip(answers, asked, strict=True)):
            raise NotYet(hint)
    for number, (answer, (azimuth, elevation, radius)) in enumerate(zip(answers, asked, strict=True)):
        wanted = _turn_y(azimuth) @ _turn_x(-elevation) @ np.array([0.0, 0.0, radius])
        place = ", ".join(f"{x + 0.0:.2f}" for x in wanted.round(2))
        hint = f"azimuth {azimuth:.0f}, elevation {elevation:.0f}, radius {radius:.2f} is the place ({place})"
        if number >= len(axes):
            hint = "right on the axes, but not between them: is your camera always `radius` away? " + hint
        expect_close(answer, wanted, hint, tol=1e-4 * radius)


def _three_numbers(answer):
    """A list or tuple of one-element tensors as an array; anything else as it is."""
    if isinstance(answer, list | tuple) and any(isinstance(x, torch.Tensor) for x in answer):
        return np.array([float(x) for x in answer])
    return answer


def _turn_x(degrees: float) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _turn_y(degrees: float) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def exercise_2(to_raw, to_opacity) -> None:
    """Opacity -> logit and back, on tensors.

    Oracle: Python's own logarithm and hyperbolic tangent, number by number (sigmoid(l) = (1 + tanh(l/2)) / 2).
    """
    generator = fresh_generator()
    opacity = 0.02 + 0.96 * torch.rand(3, 5, generator=generator)
    raw = 6 * torch.randn(3, 5, generator=generator)
    logit = [[math.log(o) - math.log1p(-o) for o in line] for line in opacity.double().tolist()]
    answer, hint = to_raw(opacity), "to_raw: opacity 0.5 should give 0, and opacity 0.9 should give 2.197"
    if shows(answer, torch.sigmoid(opacity)):
        hint = "the two functions are swapped: to_raw takes an opacity and returns its logit"
    elif shows(answer, np.array(logit) / math.log(10)):
        hint = "to_raw: the logarithm is the natural one, not base 10"
    expect_close(answer, logit, hint, tol=1e-4)
    sigmoid = [[0.5 + 0.5 * math.tanh(x / 2) for x in line] for line in raw.double().tolist()]
    answer, hint = to_opacity(raw), "to_opacity: raw 0 should give 0.5, raw 2.197 should give 0.9, and 20 almost 1"
    if shows(answer, 1 - np.array(sigmoid)):
        hint = "to_opacity: a larger raw number is a larger opacity, but yours falls: look at the sign"
    expect_close(answer, sigmoid, hint, tol=1e-5)


def exercise_3(prediction) -> None:
    """Which letter: two splats of opacity 0.5 behind each other cover 1 - (1 - 0.5)^2 = 0.75."""
    expect_letter(prediction, "b", "the first splat lets half of the light pass; what share of that does the second one stop?")


def exercise_4(gain) -> None:
    """gain(k): rise of PSNR in dB when all errors become k times smaller.

    Oracle: two pictures with random errors, scored by the definition in float64.
    """
    generator = fresh_generator()
    for _ in range(5):
        k = 1.1 + 9 * torch.rand((), generator=generator).item()
        errors = torch.randn(50, generator=generator).double()
        before, after = (-10 * math.log10((e * e).mean().item()) for e in (errors, errors / k))
        expect_close(gain(k), after - before, "PSNR holds the mean of the squared error: what does k do to the square?",
                     tol=1e-3)


def _radians_forgotten(azimuth, elevation, radius):
    a, e = azimuth, elevation
    return radius * np.array([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])


def _azimuth_from_x(azimuth, elevation, radius):
    a, e = np.radians(azimuth), np.radians(elevation)
    return radius * np.array([np.cos(e) * np.cos(a), np.sin(e), np.cos(e) * np.sin(a)])


def _other_way_round(azimuth, elevation, radius):
    a, e = np.radians(azimuth), np.radians(elevation)
    return radius * np.array([-np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])


def _no_smaller_circle(azimuth, elevation, radius):
    a, e = np.radians(azimuth), np.radians(elevation)
    return radius * np.array([np.sin(a), np.sin(e), np.cos(a)])


USUAL = {  # usual mistakes of exercise 1, and what to say about each
    _radians_forgotten: "the angles come in degrees, but sin and cos want radians: np.radians(azimuth)",
    _azimuth_from_x: "your azimuth 0 stands on +x; it should stand on +z: swap sine and cosine",
    _other_way_round: "your camera turns the other way: at azimuth 90 it should stand on +x",
    _no_smaller_circle: "a lifted camera circles closer to the y axis: by cos(elevation)",
}
WRONG = {
    "exercise_1": [(mistake,) for mistake in USUAL] + [(lambda a, e, r: [0.0, 0.0, r],)],
    "exercise_2": [
        (lambda o: torch.log10(o / (1 - o)), torch.sigmoid),
        (torch.sigmoid, torch.logit),
        (torch.logit, torch.exp),
        (torch.logit, lambda raw: 1 / (1 + torch.exp(raw))),
    ],
    "exercise_3": [("a",), ("c",)],
    "exercise_4": [(lambda k: 10 * math.log10(k),), (lambda k: 20 * math.log(k),)],
}

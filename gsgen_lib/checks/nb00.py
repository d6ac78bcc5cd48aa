"""Checks of the exercises of notebook 00."""

from __future__ import annotations

import math

import numpy as np
import torch

from gsgen_lib.checks import NotYet, expect_close, fresh_generator


def exercise_1(eye) -> None:
    """eye(azimuth, elevation, radius) in degrees -> camera position (3,).

    Oracle: the point (0, 0, radius) turned by two rotation matrices in float64.
    """
    numbers = torch.rand(12, 3, generator=fresh_generator()).double().numpy()
    for u, v, w in numbers:
        azimuth, elevation, radius = 360 * u - 180, 160 * v - 80, 0.5 + 3 * w
        wanted = _turn_y(azimuth) @ _turn_x(-elevation) @ np.array([0.0, 0.0, radius])
        answer = eye(azimuth, elevation, radius)
        if isinstance(answer, list | tuple):  # of numbers or of one-element tensors
            answer = np.array([float(x) for x in answer])
        hint = "azimuth 0 is on +z, 90 on +x, elevation 90 on +y; the horizontal circle has radius * cos(elevation)"
        for mistake, name in USUAL.items():
            if np.shape(answer) == (3,) and np.allclose(answer, mistake(azimuth, elevation, radius), atol=1e-6):
                hint = name
        expect_close(answer, wanted, hint, tol=1e-4 * radius)


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
    expect_close(to_raw(opacity), logit, "to_raw: the logarithm of o / (1 - o), natural and not base 10", tol=1e-4)
    sigmoid = [[0.5 + 0.5 * math.tanh(x / 2) for x in line] for line in raw.double().tolist()]
    hint = "to_opacity: solve l = log(o / (1 - o)) for o; raw 0 is opacity 0.5, and large raw numbers approach 1"
    expect_close(to_opacity(raw), sigmoid, hint, tol=1e-5)


def exercise_3(prediction) -> None:
    """Which letter: two splats of opacity 0.5 behind each other cover 1 - (1 - 0.5)^2 = 0.75."""
    if prediction not in ("a", "b", "c"):
        raise NotYet(f"got {prediction!r}, wanted 'a', 'b' or 'c'")
    if prediction != "b":
        raise NotYet("the first splat lets half of the light pass; what share of that does the second one stop?")


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
        (torch.logit, torch.exp),
        (torch.logit, lambda raw: 1 / (1 + torch.exp(raw))),
    ],
    "exercise_3": [("a",), ("c",)],
    "exercise_4": [(lambda k: 10 * math.log10(k),), (lambda k: 20 * math.log(k),)],
}

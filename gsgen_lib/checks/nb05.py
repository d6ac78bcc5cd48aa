"""Checks of the exercises of notebook 05: a Plücker ray's nearest point, the entry into the hull, attention, quaternions."""

from __future__ import annotations

import math

import numpy as np
import torch

from gsgen_lib.checks import NotYet, expect_close, expect_letter, fresh_generator, shows


def exercise_1(nearest_point) -> None:
    """Points of lines nearest to the origin. Oracle: o - (o . d) d, in Python numbers."""
    generator = fresh_generator()
    o, d = (torch.randn(4, 5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    d = d / d.norm(dim=-1, keepdim=True)
    answer = nearest_point(torch.cat([torch.linalg.cross(o, d), d], -1))
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise NotYet("wanted two things: the points and their distances")
    wanted, far = [], []
    for a, b in zip(o.reshape(-1, 3).tolist(), d.reshape(-1, 3).tolist(), strict=True):
        along = sum(x * y for x, y in zip(a, b, strict=True))
        point = [x - along * y for x, y in zip(a, b, strict=True)]
        wanted.append(point)
        far.append(math.dist(point, [0, 0, 0]))
    wanted, far = torch.tensor(wanted).reshape(4, 5, 3), torch.tensor(far).reshape(4, 5)
    hint = "the points: a vector that is perpendicular to both m and d; |m| is how far the line is from the origin"
    if shows(answer[0], -wanted):
        hint = "the points: the order of the cross product, d x m"
    expect_close(answer[0], wanted, hint, tol=1e-6)
    expect_close(answer[1], far, "the distances: the length of m, since d has length 1", tol=1e-6)


def exercise_2(enters) -> None:
    """First crossings of 1/2. Oracle: a loop."""
    generator = fresh_generator()
    inside = torch.rand(40, 12, generator=generator, dtype=torch.float64)
    inside[0], inside[1, 0], inside[2], inside[3, 0] = 0.3, 0.8, torch.linspace(0, 1, 12), 0.9
    inside[4, :3] = torch.tensor([0, 0.5, 0])
    inside[5:, 0] *= 0.4  # the others begin outside
    t = 1 + torch.rand(12, generator=generator, dtype=torch.float64).cumsum(0)  # steps of different lengths

    def loop(straight):
        found = []
        for row in inside.tolist():
            k = next((i for i, value in enumerate(row) if value >= 0.5), None)
            if k is None or k == 0:
                found.append(math.nan if k is None else t[0].item())
                continue
            share = (0.5 - row[k - 1]) / (row[k] - row[k - 1]) if straight else 1.0
            found.append(t[k - 1].item() + share * (t[k] - t[k - 1]).item())
        return torch.tensor(found, dtype=torch.float64)

    answer = enters(inside, t)
    answer = torch.as_tensor(answer) if isinstance(answer, np.ndarray | list) else answer
    if not isinstance(answer, torch.Tensor) or answer.shape != (40,):
        raise NotYet(f"wanted 40 distances, one for each ray, got {tuple(getattr(answer, 'shape', [])) or type(answer).__name__}")
    answer = answer.double()
    wanted = loop(True)
    if not bool((answer.isnan() == wanted.isnan()).all()):
        raise NotYet("NaN belongs to the rays that are never inside, and to no others")
    if not bool((answer[[1, 3]] - t[0]).abs().max() < 1e-6):
        raise NotYet("a ray that is inside at the first step enters there, at t[0]")
    if not bool((answer[4] - t[1]).abs() < 1e-6):
        raise NotYet("exactly 1/2 counts as reached")
    hint = "between the last step outside (a) and the first inside (b): the share of the way is (1/2 - a) / (b - a)"
    if shows(answer.nan_to_num(0), loop(False).nan_to_num(0)):
        hint = "that is the first step inside: interpolate between it and the step before"
    expect_close(answer.nan_to_num(0), wanted.nan_to_num(0), hint, tol=1e-6)


def exercise_3(prediction) -> None:
    """Which letter: products of an attention over twice the views."""
    expect_letter(prediction, "b", "how many tokens are there, and how many does each of them ask?")


def exercise_4(quaternions) -> None:
    """Unit quaternions. Oracle: Python numbers."""
    generator = fresh_generator()
    raw = torch.randn(2, 4, 3, 5, 4, generator=generator, dtype=torch.float64)
    raw[0, 0, 0, 0] = 0
    wanted = []
    for w, x, y, z in raw.reshape(-1, 4).tolist():
        size = math.sqrt((w + 1) ** 2 + x * x + y * y + z * z)
        wanted.append([(w + 1) / size, x / size, y / size, z / size])
    answer = quaternions(raw.clone())
    hint = "every quaternion for itself: the last of the five dimensions holds its four numbers"
    if shows(answer, raw + torch.tensor([1.0, 0, 0, 0])):
        hint = "they do not have length 1"
    for one in ([0.0, 0, 0, 0], [0.0, 0, 0, 1]):
        if shows(answer, torch.nn.functional.normalize(raw + torch.tensor(one), dim=-1)):
            hint = "where raw is 0 the quaternion must be (1, 0, 0, 0): that is added, w first"
    expect_close(answer, torch.tensor(wanted).reshape(raw.shape), hint, tol=1e-6)


def _turned(plucker):
    m, d = plucker.split(3, -1)
    return torch.linalg.cross(m, d), m.norm(dim=-1)


def _moment(plucker):
    m, _ = plucker.split(3, -1)
    return m, m.norm(dim=-1)


def _first_step(inside, t):
    above = inside >= 0.5
    return torch.where(above.any(1), t[above.int().argmax(1)], torch.nan)


def _never_at_the_first(inside, t):
    above = inside >= 0.5
    up = above[:, 1:] & ~above[:, :-1]
    k = up.int().argmax(1)
    rows = torch.arange(len(inside))
    a, b = inside[rows, k], inside[rows, k + 1]
    return torch.where(above.any(1), t[k] + (0.5 - a) / (b - a) * (t[k + 1] - t[k]), torch.nan)


def _last(inside, t):
    above = inside >= 0.5
    k = inside.shape[1] - 1 - above.flip(1).int().argmax(1)
    return torch.where(above.any(1), t[k], torch.nan)


def _wrong_dim(raw):
    return torch.nn.functional.normalize(raw + torch.tensor([1.0, 0, 0, 0]).to(raw), dim=2)


def _nothing_added(raw):
    return torch.nn.functional.normalize(raw, dim=-1)


def _not_unit(raw):
    return raw + torch.tensor([1.0, 0, 0, 0]).to(raw)


WRONG = {
    "exercise_1": [(_turned,), (_moment,)],
    "exercise_2": [(_first_step,), (_last,), (_never_at_the_first,)],
    "exercise_3": [("a",), ("c",), (2,)],
    "exercise_4": [(_wrong_dim,), (_not_unit,), (_nothing_added,)],
}

"""Checks of the exercises of notebook 09: seen voxels, guidance in an interval, growth of voxels, kept numbers."""

from __future__ import annotations

import torch

from gsgen_lib.checks import NotYet, expect_close, expect_letter, fresh_generator, shows


def exercise_1(seen_along_z) -> None:
    """Voxels that a camera on the z axis sees. Oracle: a loop over all pairs."""
    generator = fresh_generator()
    for r, share in ((4, 0.3), (7, 0.15)):
        bits = torch.rand(r, r, r, generator=generator) < share
        bits[1, 2, [0, 2]] = True  # one behind the other, and at the rim
        coords = bits.nonzero()
        coords = coords[torch.randperm(len(coords), generator=generator)]
        rows = coords.tolist()
        wanted = [not any(a[0] == b[0] and a[1] == b[1] and b[2] > a[2] for b in rows) for a in rows]
        answer = seen_along_z(coords.clone(), r)
        hint = "of the voxels with the same x and y, only the one with the largest z is seen"
        if shows(answer, [not any(a[0] == b[0] and a[1] == b[1] and b[2] < a[2] for b in rows) for a in rows]):
            hint = "the camera is on the positive z axis: the largest z is nearest to it"
        expect_close(answer, wanted, hint)


def exercise_2(guided_flow) -> None:
    """Euler steps with guidance in an interval of times. Oracle: Python numbers, one at a time."""
    generator = fresh_generator()
    noise = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    a, b = torch.randn(2, generator=generator, dtype=torch.float64).tolist()

    def given(x, t):
        return a * x + t

    def nothing(x, t):
        return b * x - t * t

    def walk(value, steps, scale, low, high, always=False, shrink=False):
        for k in range(steps):
            t = 1 - k / steps
            c, u = a * value + t, b * value - t * t
            inside = always or low <= t <= high
            v = (u + scale * (c - u)) if inside else (u if shrink else c)
            value = value - v / steps
        return value

    for steps, scale, low, high in ((5, 3.0, 0.3, 0.9), (4, 2.0, 0.0, 1.0), (4, 4.0, 0.75, 0.75), (4, 3.0, 0.5, 0.6)):
        def every(steps=steps, scale=scale, low=low, high=high, **how):
            return [[walk(v, steps, scale, low, high, **how) for v in row] for row in noise.tolist()]

        answer = guided_flow(given, nothing, noise.clone(), steps, scale, low, high)
        hint = "x moves by minus velocity / steps, from t = 1 on; the velocity is asked at the start of a step"
        if (low, high) != (0.0, 1.0) and shows(answer, every(always=True)):
            hint = "outside of the interval there is no guidance: the velocity is given(x, t)"
        elif (low, high) != (0.0, 1.0) and shows(answer, every(shrink=True)):
            hint = "outside of the interval the condition still counts: given(x, t), not nothing(x, t)"
        wanted = every()
        expect_close(answer, wanted, hint, tol=1e-5 * (1 + max(abs(v) for row in wanted for v in row)))


def exercise_3(prediction) -> None:
    """Which letter: growth of the active voxels."""
    expect_letter(prediction, "b", "a surface has two dimensions: how many cells does it meet when each is halved?")


def exercise_4(edited_numbers) -> None:
    """Numbers of edited voxels. Oracle: a decoder in which all voxels hear the mean of all, row by row."""
    generator = fresh_generator()
    for count in (5, 9):
        latents, old = torch.randn(2, count, 3, generator=generator)
        fresh = torch.rand(count, generator=generator) < 0.5
        fresh[0], fresh[1] = True, False
        old[fresh] = float("nan")

        def decode(z):
            return 2 * z + z.mean(0)

        new = decode(latents)
        answer = edited_numbers(decode, latents.clone(), old.clone(), fresh.clone())
        if not isinstance(answer, torch.Tensor) or answer.shape != old.shape:
            raise NotYet(f"wanted a tensor of shape {tuple(old.shape)}")
        if shows(answer, new):
            raise NotYet("the kept rows were decoded again: take them from old")
        if not torch.equal(answer[~fresh], old[~fresh]):
            raise NotYet("rows of kept voxels must be those of old, to the bit")
        alone = decode(latents[fresh])
        hint = "rows of fresh voxels: those of decode(latents)"
        if fresh.sum() < count and shows(answer[fresh], alone):
            hint = "fresh voxels must hear the kept ones: decode all latents, then choose"
        expect_close(answer[fresh], new[fresh], hint)


def _nearest_wrong(coords, r):
    return _seen(coords, lambda a, b: b[2] < a[2])


def _seen(coords, hides):
    rows = coords.tolist()
    return torch.tensor([not any(a[0] == b[0] and a[1] == b[1] and hides(a, b) for b in rows) for a in rows])


def _one_for_each_x(coords, r):
    rows = coords.tolist()
    return torch.tensor([not any(a[0] == b[0] and b[2] > a[2] for b in rows) for a in rows])


def _all_seen(coords, r):
    return torch.ones(len(coords), dtype=torch.bool)


def _flow(given, nothing, noise, steps, scale, low, high, outside="given", sign=-1.0, late=0, ends=(0.0, 0.0)):
    x = noise
    for k in range(steps):
        t = 1 - (k + late) / steps
        c, u = given(x, t), nothing(x, t)
        guided = low + ends[0] <= t <= high - ends[1]
        x = x + sign * ((u + scale * (c - u)) if guided else (c if outside == "given" else u)) / steps
    return x


def _open_below(*args):
    return _flow(*args, ends=(1e-6, 0.0))


def _open_above(*args):
    return _flow(*args, ends=(0.0, 1e-6))


def _always(given, nothing, noise, steps, scale, low, high):
    return _flow(given, nothing, noise, steps, scale, 0.0, 1.0)


def _unheard(*args):
    return _flow(*args, outside="nothing")


def _uphill(*args):
    return _flow(*args, sign=1.0)


def _late(*args):
    return _flow(*args, late=1)


def _decoded_again(decode, latents, old, fresh):
    return decode(latents)


def _decoded_alone(decode, latents, old, fresh):
    out = old.clone()
    out[fresh] = decode(latents[fresh])
    return out


def _nearly_kept(decode, latents, old, fresh):
    return torch.where(fresh[:, None], decode(latents), old + 1e-6)


WRONG = {
    "exercise_1": [(_nearest_wrong,), (_one_for_each_x,), (_all_seen,)],
    "exercise_2": [(_always,), (_unheard,), (_uphill,), (_late,), (_open_below,), (_open_above,)],
    "exercise_3": [("a",), ("c",), (4,)],
    "exercise_4": [(_decoded_again,), (_decoded_alone,), (_nearly_kept,)],
}

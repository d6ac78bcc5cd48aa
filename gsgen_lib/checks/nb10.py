"""Checks of the exercises of notebook 10: residual sampling, a pixel without a Gaussian, three ways to draw, taming in order."""

from __future__ import annotations

import math

import torch

from gsgen_lib.checks import NotYet, expect_close, expect_letter, fresh_generator, shows


def exercise_1(sure_and_rest) -> None:
    """What each child gets for sure, and the probabilities of the rest. Oracle: Python numbers, child by child."""
    generator = fresh_generator()
    for n in (3, 10, 57):
        p = torch.rand(8, generator=generator, dtype=torch.float64) ** 2 + 0.01
        p = p / p.sum()
        sure = [math.floor(n * share) for share in p.tolist()]
        cut = [n * share - whole for share, whole in zip(p.tolist(), sure, strict=True)]
        answer = sure_and_rest(n, p.clone())
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise NotYet("wanted two things: what each child gets for sure, and the probabilities of the rest")
        hint = "the whole part of n p"
        if shows(answer[0], [round(n * share) for share in p.tolist()]):
            hint = "rounding may hand out more than there is: the whole part, rounded down"
        expect_close(answer[0], sure, hint)
        hint = "in proportion to what was cut off, n p less its whole part, with a sum of 1"
        if shows(answer[1], p):
            hint = "not p again: a child that got its whole share has no claim on the rest"
        elif shows(answer[1], cut):
            hint = "probabilities have a sum of 1"
        expect_close(answer[1], [x / sum(cut) for x in cut], hint)


def exercise_2(changes) -> None:
    """Changes of a pixel without each Gaussian. Oracle: composite again, in Python numbers."""
    generator = fresh_generator()

    def pixel(alpha, color, background, skip=None, behind=True):
        clear, total = 1.0, [0.0] * 3
        for i, (a, c) in enumerate(zip(alpha, color, strict=True)):
            if i != skip:
                total = [t + clear * a * one for t, one in zip(total, c, strict=True)]
                clear *= 1 - a
        return [t + clear * b * behind for t, b in zip(total, background, strict=True)]

    for n in (1, 2, 6):
        alpha = 0.05 + 0.85 * torch.rand(n, generator=generator, dtype=torch.float64)
        color, background = (torch.rand(k, generator=generator, dtype=torch.float64) for k in ((n, 3), (3,)))
        given = alpha.tolist(), color.tolist(), background.tolist()

        def wanted(behind=True, given=given, n=n):
            whole = pixel(*given, behind=behind)
            return [[b - a for a, b in zip(whole, pixel(*given, skip=j, behind=behind), strict=True)] for j in range(n)]

        answer = changes(alpha.clone(), color.clone(), background.clone())
        hint = "what is behind shows through 1 / (1 - alpha) times as much, and the Gaussian's own T alpha c is gone"
        if shows(answer, [[-x for x in row] for row in wanted()]):
            hint = "the other way round: the colour without it, less the colour with it"
        elif shows(answer, wanted(behind=False)):
            hint = "the background lies behind all of them, too"
        expect_close(answer, wanted(), hint)


def exercise_3(prediction) -> None:
    """Which letter: the way to hand on counts that spreads least."""
    expect_letter(prediction, "c", "which of them leaves least to chance?")


def exercise_4(my_tamed) -> None:
    """Worths, tamed in order. Oracle: Python numbers, sorted by hand."""
    generator = fresh_generator()
    for n in (11, 20):
        d = torch.randn(n, generator=generator, dtype=torch.float64)
        d[0], d[1] = -30.0, 20.0
        answer = my_tamed(d.clone())
        kept = [min(x, 0.0) for x in d.tolist()]

        def clipped(values):
            sizes = sorted(abs(x) for x in values)
            at = 0.9 * (len(sizes) - 1)
            low = math.floor(at)
            most = sizes[low] + (at - low) * (sizes[min(low + 1, len(sizes) - 1)] - sizes[low])
            return [max(min(x, most), -most) for x in values]

        def centred(values):
            return [x - sum(values) / len(values) for x in values]

        hint = "harm first, then the quantile, then the mean"
        if shows(answer, centred(kept)):
            hint = "clip at the 0.9 quantile of |d|"
        elif shows(answer, clipped(kept)):
            hint = "take the mean off"
        elif shows(answer, clipped(centred(kept))):
            hint = "clip before the mean is taken off, else its sum is not 0"
        expect_close(answer, centred(clipped(kept)), hint)


def _rounded(n, p):
    sure = (n * p).round()
    return sure, (n * p - sure).abs() / (n * p - sure).abs().sum()


def _same_p(n, p):
    return (n * p).floor(), p


def _no_sum(n, p):
    return (n * p).floor(), n * p - (n * p).floor()


def _changes(alpha, color, background, with_background=1.0, through=True, own=True, sign=1.0):
    clear = torch.cat([torch.ones_like(alpha[:1]), (1 - alpha).cumprod(0)])
    shown = (clear[:-1] * alpha)[:, None] * color
    behind = shown.sum(0) - shown.cumsum(0) + with_background * clear[-1] * background
    return sign * (behind * ((alpha / (1 - alpha)) if through else alpha)[:, None] - own * shown)


def _tamed(d, steps):
    for step in steps:
        if step == "harm":
            d = d.clamp(max=0)
        elif step == "clip":
            most = d.abs().quantile(0.9)
            d = d.clamp(min=-most, max=most)
        else:
            d = d - d.mean()
    return d


WRONG = {
    "exercise_1": [(_rounded,), (_same_p,), (_no_sum,)],
    "exercise_2": [(lambda a, c, b: _changes(a, c, b, with_background=0.0),), (lambda a, c, b: _changes(a, c, b, through=False),),
                   (lambda a, c, b: _changes(a, c, b, own=False),), (lambda a, c, b: _changes(a, c, b, sign=-1.0),)],
    "exercise_3": [("a",), ("b",), (4,)],
    "exercise_4": [(lambda d: _tamed(d, ("mean", "harm", "clip")),), (lambda d: _tamed(d, ("harm", "mean", "clip")),),
                   (lambda d: _tamed(d, ("clip", "harm", "mean")),), (lambda d: _tamed(d, ("harm", "clip")),),
                   (lambda d: _tamed(d, ("harm", "mean")),)],
}

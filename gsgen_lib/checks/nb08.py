"""Checks of the exercises of notebook 08: places of Gaussians, the best of k, compression, weights of skips."""

from __future__ import annotations

import math
from itertools import combinations

import torch

from gsgen_lib.checks import NotYet, expect_close, expect_letter, fresh_generator, shows


def exercise_1(numbers_for) -> None:
    """Depth number and offset. Oracle: the way forward, in Python numbers."""
    generator = fresh_generator()
    for _ in range(3):
        R, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
        t = torch.tensor([0.1, -0.2, 1.8], dtype=torch.float64)
        x, y = (torch.rand(2, generator=generator) - 0.5).tolist()
        through = torch.tensor([x, y, 1.0], dtype=torch.float64)
        point = 0.4 * (torch.rand(3, generator=generator, dtype=torch.float64) - 0.5)
        near, far = 0.9, 2.7
        answer = numbers_for(point, through, R, t, near, far)
        if not isinstance(answer, tuple | list) or len(answer) != 2:
            raise NotYet("wanted two things: d, and the offset")
        r, u = R.tolist(), through.tolist()
        p = [sum(r[i][j] * float(point[j]) for j in range(3)) + float(t[i]) for i in range(3)]
        try:
            d = float(answer[0])
        except (TypeError, ValueError) as error:
            raise NotYet("d: wanted one number") from error
        z = near + (far - near) / (1 + math.exp(-min(max(d, -50.0), 50.0)))
        if not abs(z - p[2]) <= 1e-4:  # also where d is no number
            back = [sum(r[j][i] * (float(point[j]) - float(t[j])) for j in range(3)) for i in range(3)]
            hint = "z is the third number of R p + t; d is where sigmoid(d) is the share of the way from near to far"
            if abs(z - back[2]) < 1e-4:
                hint = "that is the way from the camera to the world: here p_camera = R p + t"
            elif abs(d - (p[2] - near) / (far - near)) < 1e-6:
                hint = "that is the share itself: d is the number whose sigmoid it is, log(s / (1 - s))"
            raise NotYet(hint)
        expect_close(answer[1], [p[i] - p[2] * u[i] for i in range(3)], "the offset is p_camera - z * through", tol=1e-6)


def exercise_2(expected_best) -> None:
    """Best of k. Oracle: every way to take k of n."""
    generator = fresh_generator()
    for n, k in ((6, 3), (7, 1), (5, 5), (8, 2)):
        scores = torch.randn(n, generator=generator, dtype=torch.float64)
        ways = list(combinations(scores.tolist(), k))
        answer = expected_best(scores.clone(), k)
        hint = "the i-th best (i = 1, 2, ...) is the best of k if the other k - 1 are among the n - i below it"
        if 1 < k < n and shows(answer, max(scores.tolist())):
            hint = "that is the best of all n: average over the ways to take k of them"
        elif k > 1 and shows(answer, scores.mean().item()):
            hint = "that is the mean of all scores, k = 1"
        expect_close(answer, sum(map(max, ways)) / len(ways), hint, tol=1e-6)


def exercise_3(prediction) -> None:
    """Which letter: compression of larger pictures."""
    expect_letter(prediction, "b", "how many cells has the code of a picture twice as wide, and how many pixels has the picture?")


def exercise_4(weighed) -> None:
    """Weights of skips. Oracle: a loop over scenes."""
    generator = fresh_generator()
    for b in (4, 3):
        skips = [torch.randn(b, 2, 4, 4, generator=generator), torch.randn(b, 3, 2, 2, generator=generator)]
        keep = torch.zeros(b)
        keep[torch.randperm(b, generator=generator)[:2]] = 1.0
        answer = weighed([skip.clone() for skip in skips], keep.clone())
        if not isinstance(answer, tuple | list) or len(answer) != len(skips):
            raise NotYet(f"wanted a list of {len(skips)} skips")
        wanted = [torch.stack([skip[i] * float(keep[i]) for i in range(b)]) for skip in skips]
        for k, (got, right) in enumerate(zip(answer, wanted, strict=True)):
            hint = "keep belongs to the first axis, the scenes: give it three more axes of length 1"
            if k and shows(got, skips[k]) and shows(answer[0], wanted[0]):
                hint = "all skips of a scene have its weight, the coarse ones too"
            elif k and not shows(got, right) and shows(answer[0], wanted[0]):
                hint = "all skips of a scene have the same weight"
            expect_close(got, right, hint)


def _wrong_way(point, through, R, t, near, far):
    p = R.T @ (point - t)
    share = ((p[2] - near) / (far - near)).clamp(1e-4, 1 - 1e-4)
    return torch.log(share / (1 - share)), p - p[2] * through


def _share_itself(point, through, R, t, near, far):
    p = R @ point + t
    return (p[2] - near) / (far - near), p - p[2] * through


def _sign_slip(point, through, R, t, near, far):
    p = R @ point + t
    share = (p[2] - near) / (far - near)
    return torch.log(share / (share - 1)), p - p[2] * through


def _no_offset(point, through, R, t, near, far):
    p = R @ point + t
    share = (p[2] - near) / (far - near)
    return torch.log(share / (1 - share)), torch.zeros(3)


def _best_of_all(scores, k):
    return scores.max()


def _mean(scores, k):
    return scores.mean()


def _lucky(scores, k):
    return scores[:k].max()


def _off_by_one(scores, k):
    n, falling = len(scores), scores.sort(descending=True).values.tolist()
    return sum(v * math.comb(n - i, k) for i, v in enumerate(falling, 1)) / math.comb(n, k)


def _along_the_width(skips, keep):
    return [skip * keep for skip in skips]


def _first_alone(skips, keep):
    return [skips[0] * keep[:, None, None, None], *skips[1:]]


def _one_for_all(skips, keep):
    return [skip * keep.mean() for skip in skips]


def _by_channel(skips, keep):
    return [skip * keep[: skip.shape[1], None, None] for skip in skips]


WRONG = {
    "exercise_1": [(_wrong_way,), (_share_itself,), (_no_offset,), (_sign_slip,)],
    "exercise_2": [(_best_of_all,), (_mean,), (_lucky,), (_off_by_one,)],
    "exercise_3": [("a",), ("c",), (480,)],
    "exercise_4": [(_along_the_width,), (_first_alone,), (_one_for_all,), (_by_channel,)],
}

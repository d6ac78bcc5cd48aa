"""Checks of the exercises of notebook 07: two guidances, total variation beside chance, calls of the network, the leak."""

from __future__ import annotations

import math

import torch

from gsgen_lib.checks import NotYet, expect_close, expect_letter, fresh_generator, shows


def exercise_1(two_guidances) -> None:
    """Guidance on words and on a view. Oracle: Python numbers."""
    generator = fresh_generator()
    u, w, c = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    for s_words, s_view in ((1.0, 1.0), (3.0, 0.0), (2.5, 1.7)):
        wanted = [a + s_words * (b - a) + s_view * (d - b) for a, b, d in zip(u.tolist(), w.tolist(), c.tolist(), strict=True)]
        answer = two_guidances(u, w, c, s_words, s_view)
        hint = "walk from u to the words, then from the words to words and view, each step times its strength"
        if shows(answer, u + s_words * (w - u) + s_view * (c - u)):
            hint = "the view's step starts at the words: its difference is c - c_words"
        expect_close(answer, wanted, hint, tol=1e-8)


def exercise_2(against_chance) -> None:
    """Total variation, and its mean by chance. Oracle: Python numbers, and the multinomial distribution."""
    generator = fresh_generator()
    odds = 0.2 + torch.rand(3, generator=generator)
    odds, n = odds / odds.sum(), 12
    counts = torch.tensor([2, 3, 7])[torch.randperm(3, generator=generator)]
    answer = against_chance(counts, odds, 4000, generator)
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise NotYet("wanted two numbers: of the counts, and by chance")
    p = odds.tolist()

    def apart(found):
        return 0.5 * sum(abs(k / n - q) for k, q in zip(found, p, strict=True))

    hint = "half the sum of |count / n - odds|"
    if shows(answer[0], 2 * apart(counts.tolist())):
        hint = "half of that sum: a share that moves from one value to another is counted twice"
    expect_close(answer[0], apart(counts.tolist()), hint, tol=1e-4)
    chance = 0.0
    for i in range(n + 1):
        for j in range(n + 1 - i):
            k = n - i - j
            ways = math.factorial(n) // (math.factorial(i) * math.factorial(j) * math.factorial(k))
            chance += ways * p[0] ** i * p[1] ** j * p[2] ** k * apart((i, j, k))
    if abs(float(answer[1]) - chance) > 0.01:
        raise NotYet("by chance: the mean over rounds, each of as many draws from the odds as there are counts")


def exercise_3(prediction) -> None:
    """Which letter: calls of the network."""
    expect_letter(prediction, "a", "one call can hold a batch: how many calls does one step need, with and without guidance?")


def exercise_4(conditioning) -> None:
    """Latents of given views, encoded alone. Oracle: a leaky encoder, and a loop."""
    generator = fresh_generator()
    pictures, rays = torch.randn(2, 4, 3, generator=generator)
    known = torch.tensor([True, False, True, False])[torch.randperm(4, generator=generator)]

    def encode(x, r):
        return 2 * x + r + x.mean(0) * 10  # views hear each other

    rows = [i for i in range(4) if known[i]]
    wanted = torch.zeros(4, 3)
    heard = sum(pictures[i] for i in rows) / len(rows)
    for i in rows:
        wanted[i] = 2 * pictures[i] + rays[i] + 10 * heard
    answer = conditioning(encode, pictures.clone(), rays.clone(), known.clone())
    hint = "encode the known views, and write their latents into a tensor of zeros at their places"
    if shows(answer, encode(pictures, rays) * known.reshape(-1, 1)):
        hint = "the hidden views were heard: choose the known views before you encode"
    elif shows(answer, encode(pictures * known.reshape(-1, 1), rays) * known.reshape(-1, 1)):
        hint = "black pictures are heard, too: leave the hidden views out instead of blackening them"
    elif shows(answer, torch.stack([encode(pictures[[i]], rays[[i]])[0] if known[i] else torch.zeros(3) for i in range(4)])):
        hint = "the given views may hear each other: encode them in one call"
    expect_close(answer, wanted, hint, tol=1e-4)


def _from_nothing(u, w, c, s_words, s_view):
    return u + s_words * (w - u) + s_view * (c - u)


def _only_all(u, w, c, s_words, s_view):
    return u + s_words * (c - u)


def _fair(counts, odds, rounds, generator):
    n = int(counts.sum())
    drawn = [torch.multinomial(odds, n, True, generator=generator) for _ in range(rounds)]
    far = [0.5 * (torch.bincount(d, minlength=len(odds)) / n - odds).abs().sum() for d in drawn]
    return (0.5 * (counts / n - odds).abs().sum()).item(), torch.stack(far).mean().item()


def _whole_sum(*args):
    return tuple(2 * value for value in _fair(*args))


def _mean_of(counts, odds, rounds, generator):
    return _fair(counts, odds, rounds, generator)[0] * 2 / 3, _fair(counts, odds, rounds, generator)[1] * 2 / 3


def _no_chance(*args):
    return _fair(*args)[0], 0.0


def _leaky(encode, pictures, rays, known):
    return encode(pictures, rays) * known.reshape(-1, 1)


def _blackened(encode, pictures, rays, known):
    mask = known.reshape(-1, 1)
    return encode(pictures * mask, rays) * mask


WRONG = {
    "exercise_1": [(_from_nothing,), (_only_all,)],
    "exercise_2": [(_whole_sum,), (_mean_of,), (_no_chance,)],
    "exercise_3": [("b",), ("c",), (2,)],
    "exercise_4": [(_leaky,), (_blackened,)],
}

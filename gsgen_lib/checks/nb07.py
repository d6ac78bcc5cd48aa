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
    """Total variation, and its mean by chance. Oracle: Python numbers, and the binomial distribution of each count."""
    generator = fresh_generator()
    for odds, counts in (([0.75, 0.2, 0.05], [1, 3, 1]), ([0.55, 0.3, 0.1, 0.05], [4, 3, 13, 0])):
        order = torch.randperm(len(odds), generator=generator).tolist()
        p, k, n = [odds[i] for i in order], [counts[i] for i in order], sum(counts)
        answer = against_chance(torch.tensor(k), torch.tensor(p), 6000, generator)
        if not isinstance(answer, tuple | list) or len(answer) != 2:
            raise NotYet("wanted two numbers: of the counts, and by chance")
        far = 0.5 * sum(abs(c / n - q) for c, q in zip(k, p, strict=True))
        hint = "half the sum of |count / n - odds|"
        if shows(answer[0], 2 * far):
            hint = "half of that sum: a share that moves from one value to another is counted twice"
        expect_close(answer[0], far, hint, tol=1e-4)
        # the mean of a sum is the sum of the means, and each count alone is binomial
        chance = 0.5 * sum(math.comb(n, c) * q**c * (1 - q) ** (n - c) * abs(c / n - q) for q in p for c in range(n + 1))
        if abs(float(answer[1]) - chance) > 0.007:
            raise NotYet("by chance: the mean over rounds, each of as many draws from the odds as there are counts, of their "
                         "total variation from these odds")


def exercise_3(prediction) -> None:
    """Which letter: calls of the network."""
    expect_letter(prediction, "a", "one call can hold a batch: how many calls does one step need, with and without guidance?")


def exercise_4(conditioning) -> None:
    """Latents of given views, encoded alone. Oracle: a leaky encoder, and a loop, for every choice of given views."""
    generator = fresh_generator()
    pictures, rays = torch.randn(2, 4, 3, generator=generator)

    def encode(x, r):  # views hear the sum of all, and how many there are
        return (2 * x + r + 10 * x.sum(0) + r.sum(0)).repeat(1, 2)

    for number in torch.randperm(14, generator=generator).tolist():
        known = torch.tensor([bool((number + 1) >> i & 1) for i in range(4)])
        rows = [i for i in range(4) if known[i]]
        wanted = torch.zeros(4, 6)
        heard = sum(10 * pictures[i] + rays[i] for i in rows)
        for i in rows:
            wanted[i] = (2 * pictures[i] + rays[i] + heard).repeat(2)
        answer = conditioning(encode, pictures.clone(), rays.clone(), known.clone())
        mask = known.reshape(-1, 1)
        apart = [encode(pictures[[i]], rays[[i]])[0] if known[i] else torch.zeros(6) for i in range(4)]
        hint = "encode the known views, and write their latents into a tensor of zeros at their places"
        if shows(answer, encode(pictures, rays) * mask):
            hint = "the hidden views were heard: choose the known views before you encode"
        elif shows(answer, encode(pictures * mask, rays) * mask):
            hint = "black pictures are heard, too: leave the hidden views out instead of blackening them"
        elif len(rows) > 1 and shows(answer, torch.stack(apart)):
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


def _filled(encode, pictures, rays, known):
    mask = known.reshape(-1, 1)
    return encode(torch.where(mask, pictures, pictures[known].mean(0)), rays) * mask


def _first_rows(encode, pictures, rays, known):
    alone = encode(pictures[known], rays[known])
    return torch.cat([alone, torch.zeros(len(pictures) - len(alone), alone.shape[1])])


def _one_by_one(encode, pictures, rays, known):
    rows = [encode(pictures[[i]], rays[[i]])[0] for i in range(len(pictures))]
    return torch.stack(rows) * known.reshape(-1, 1)


def _uniform(counts, odds, rounds, generator):
    even = torch.full_like(odds, 1 / len(odds))
    return _fair(counts, odds, rounds, generator)[0], _fair(counts, even, rounds, generator)[1]


def _of_counts(counts, odds, rounds, generator):
    return _fair(counts, odds, rounds, generator)[0], _fair(counts, counts / counts.sum(), rounds, generator)[1]


WRONG = {
    "exercise_1": [(_from_nothing,), (_only_all,)],
    "exercise_2": [(_whole_sum,), (_mean_of,), (_no_chance,), (_uniform,), (_of_counts,)],
    "exercise_3": [("b",), ("c",), (2,)],
    "exercise_4": [(_leaky,), (_blackened,), (_filled,), (_first_rows,), (_one_by_one,)],
}

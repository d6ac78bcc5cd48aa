"""Do samples come in the true proportions? What a scene shows where nobody looked, read off and counted.

A toy's hidden attributes (`data.toys`) are drawn with known odds, and its front view says nothing about them. So the true
posterior given the front is the odds themselves, and a sampler can be graded: draw many scenes for one front view, look at
their backs, read the attribute, count.

The reader needs no training. It knows the toy but for the hidden attribute, so it renders one picture of the back for each
combination of hidden values, and takes the combination whose picture is nearest, in the pixels where they differ at all:

    D = {pixels where two of the pictures r_k differ by more than 0.05},    read(x) = argmin_k sum over D of |x - r_k|^2

Its error is measured on true scenes that went through the same autoencoder. Frequencies f and odds p are compared by

    TV(f, p) = 1/2 sum over values |f - p|                     total variation, 0 to 1

beside what TV would be for as many draws from the odds themselves, which is not 0. Taught in notebook 07.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.data.raycast import render_mesh
from gsgen_lib.data.toys import Toy, sample_toy
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems.prompt_scorer import Scorer, rank_of_own
from gsgen_lib.systems.splat_diffusion import ELEVATION, VIEWS, scene_cameras

TOY_SEED = 9_000_000
BACK = 180.0


@dataclass(frozen=True)
class Hidden:
    """One toy whose front hides everything: rgba (4, S, S, 4) of its four views in [0, 1]; combinations: K lists of hidden values
    in the order of `toy.odds`; pictures (K, S, S, 3) of the back with each, on white; true: which it has."""

    toy: Toy
    rgba: Tensor
    combinations: list[tuple[str, ...]]
    pictures: Tensor
    true: int

    @property
    def odds(self) -> Tensor:
        """Probability of each combination, (K,)."""
        tables = list(self.toy.odds.values())
        return torch.tensor([np.prod([t[v] for t, v in zip(tables, c, strict=True)]) for c in self.combinations],
                            dtype=torch.float32)

    def read(self, backs: Tensor) -> Tensor:
        """Which combination each picture (N, S, S, 3) of the back shows: (N,)."""
        differs = (self.pictures[:, None] - self.pictures[None]).abs().amax((0, 1, 4)) > 0.05  # (S, S)
        off = (backs[:, None] - self.pictures[None])[:, :, differs]  # (N, K, P, 3)
        return off.square().sum((2, 3)).argmin(1)


def back_camera(size: int = 64) -> Cameras:
    """The camera that reads the back."""
    return Cameras.orbit(1, azimuth=[BACK], elevation=[ELEVATION], width=size, height=size)


def hidden_toys(count: int, seed: int = 0, size: int = 64) -> list[Hidden]:
    """`count` new toys, families in turn, whose front view leaves every hidden attribute at its odds.

    >>> one = hidden_toys(1, size=16)[0]
    >>> len(one.combinations) == len(one.pictures), bool(one.read(one.pictures[[one.true]]) == one.true)
    (True, True)
    """
    from gsgen_lib.data.toys import FAMILIES

    generator, found, families = np.random.default_rng([TOY_SEED, seed]), [], list(FAMILIES)
    while len(found) < count:
        toy = sample_toy(generator, families[len(found) % len(families)])
        posterior = toy.posterior((0, ELEVATION), size)
        if any(abs(posterior[name][v] - p) > 1e-6 for name, table in toy.odds.items() for v, p in table.items()):
            continue  # something of it can be seen
        rgba = torch.from_numpy(render_mesh(toy.mesh, scene_cameras(size)).rgba).float()
        combinations = list(product(*toy.odds.values()))
        backs = [render_mesh(toy.with_attributes(**dict(zip(toy.odds, c, strict=True))).mesh, back_camera(size)).rgba[0]
                 for c in combinations]
        pictures = on_background(torch.from_numpy(np.stack(backs)).float(), torch.ones(3))
        true = combinations.index(tuple(toy.hidden[name] for name in toy.odds))
        found.append(Hidden(toy, rgba, combinations, pictures, true))
    return found


def total_variation(counts: Tensor, odds: Tensor) -> float:
    """1/2 sum |f - p| of counts (K,) and odds (K,).

    >>> total_variation(torch.tensor([8, 0]), torch.tensor([0.5, 0.5]))
    0.5
    """
    return 0.5 * (counts / counts.sum() - odds).abs().sum().item()


def frequencies(cases: list[Hidden], read: list[Tensor], generator: torch.Generator) -> dict[str, float]:
    """How far the readings of samples are from the odds, attribute by attribute. read: for each case, the combinations (n,) that
    its n samples show.

    Returns "pooled": TV of all readings of one attribute of one family, mean over these; "each": TV of the n readings of one toy,
    mean over toys and attributes; and both "..., by chance": the same for as many draws from the odds.
    """
    drawn = [[torch.multinomial(c.odds, len(f), True, generator=generator) for c, f in zip(cases, read, strict=True)]
             for _ in range(50)]
    found, chance = _apart(cases, read), [_apart(cases, one) for one in drawn]
    return found | {f"{key}, by chance": float(np.mean([c[key] for c in chance])) for key in found}


def _apart(cases: list[Hidden], read: list[Tensor]) -> dict[str, float]:
    pooled, each = {}, []
    for case, found in zip(cases, read, strict=True):
        for place, (name, table) in enumerate(case.toy.odds.items()):
            values = list(table)
            shown = torch.tensor([values.index(case.combinations[k][place]) for k in found.tolist()])
            counts, odds = torch.bincount(shown, minlength=len(values)).float(), torch.tensor(list(table.values()))
            each.append(total_variation(counts, odds))
            pooled.setdefault((case.toy.family, name), [odds, torch.zeros_like(counts)])[1] += counts
    return {"pooled": float(np.mean([total_variation(counts, odds) for odds, counts in pooled.values()])),
            "each": float(np.mean(each))}


def gradient_energy(pictures: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean squared difference of neighbouring pixels of pictures (N, H, W, 3): (N,). A blur has less than what it blurs.

    where (N, H, W) bool: only of neighbours that both lie there; nan for a picture that has none.

    >>> half = torch.tensor([[[[0.0] * 3, [1.0] * 3], [[0.0] * 3, [1.0] * 3]]])
    >>> gradient_energy(half), gradient_energy(half, torch.tensor([[[True, True], [False, False]]]))
    (tensor([0.5000]), tensor([1.]))
    """
    where = torch.ones(pictures.shape[:3], dtype=torch.bool, device=pictures.device) if where is None else where

    total, pairs = 0, 0
    for axis in (1, 2):  # neighbours below, and at the right
        n = pictures.shape[axis] - 1
        both = where.narrow(axis, 1, n) & where.narrow(axis, 0, n)
        off = (pictures.narrow(axis, 1, n) - pictures.narrow(axis, 0, n)).square().mean(-1)
        total, pairs = total + (off * both).flatten(1).sum(1), pairs + both.flatten(1).sum(1)
    return total / pairs


@torch.no_grad()
def captions_first(judge: Scorer, pictures: Tensor, captions: list[str], others: int = 49, seed: int = 0) -> float:
    """Share of P scenes whose own caption the judge ranks before `others` of the rest, by the mean vector of their four views.

    pictures (4 P, S, S, 3) of P scenes in the order of captions; fewer others where there are not that many captions.
    """
    vectors = judge.embed_mirrored(pictures).unflatten(0, (-1, VIEWS)).mean(1)  # (P, E)
    whole = Scorer(judge.name, lambda _: vectors.repeat(2, 1), judge.embed_prompts)  # is asked of pictures and mirror images
    others = min(others, len(set(captions)) - 1)
    ranks = rank_of_own(whole, pictures[::VIEWS], captions, others, torch.Generator().manual_seed(seed))
    return (ranks == 0).float().mean().item()


def right_by_neighbours(x: Tensor, labels: list[str], k: int = 5) -> float:
    """Share of N things x (N, ...) whose label is the most frequent among their k nearest others; of labels that come equally
    often, the first in the alphabet counts.

    >>> right_by_neighbours(torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]]), list("aaabbb"), k=2)
    1.0
    """
    names = sorted(set(labels))
    number = torch.tensor([names.index(label) for label in labels])
    flat = x.flatten(1)
    near = torch.cdist(flat, flat).fill_diagonal_(torch.inf).topk(k, largest=False).indices
    return (number[near].mode(1).values == number).float().mean().item()

"""Is the prior any good? Samples for captions that training never had, one each, no selection.

    own_first   share of samples whose own caption the prompt scorer ranks first among 50
    near_first  the same among 7 that differ from it in one word only: a harder question
    view_word   share of samples whose view word it finds the best of four
    kid         kernel distance of the samples' features to those of true renders of other held-out toys

The scorer learned from other toys than the prior, and is asked about held-out combinations only. Each number needs its
neighbours: true renders scored the same way (what the judge gets wrong by itself; the floor of KID, whose estimate is
unbiased for independent sets only, hence the other toys), and samples
under shuffled captions (what a judge would say that liked everything). Taught in notebook 02.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gsgen_lib.data.captioned_views import VIEW_WORDS, on_background, random_backgrounds, views_of
from gsgen_lib.data.toys import heldout_combinations, sample_toy
from gsgen_lib.distributions import kid
from gsgen_lib.image_features import features_name, image_features
from gsgen_lib.systems.prompt_scorer import Scorer, rank_of_own
from gsgen_lib.systems.scorer_training import one_attribute_changed

TOY_SEED = 4_000_000  # of held-out toys, apart from those of training and of the scorer's test


@dataclass(frozen=True)
class Asked:
    """captions, words: P of each; truth (P, 64, 64, 3): a true render of each; others (P, 64, 64, 3): of other toys."""

    captions: list[str]
    words: list[str]
    truth: Tensor
    others: Tensor

    @property
    def prompts(self) -> list[str]:
        """Caption and view word together."""
        return [f"{c}, {w}" for c, w in zip(self.captions, self.words, strict=True)]


def held_out_prompts(count: int = 100, seed: int = 0) -> Asked:
    """`count` toys with combinations that training never has; view words in turn: front, side, back, overhead.

    Each combination of family, colour and pattern comes once before any comes twice; there are 100. Side views are from
    the right and from the left in turn.

    >>> held_out_prompts(4).words
    ['front view', 'side view', 'back view', 'overhead view']
    """
    generator, every = np.random.default_rng(TOY_SEED + seed), heldout_combinations()
    order = [i for _ in range(-(-2 * count // len(every))) for i in generator.permutation(len(every))]
    toys = (sample_toy(generator, every[i][0], "test", color=every[i][1], pattern=every[i][2]) for i in order)
    views = views_of(toys, 2 * count, generator, sets=1, overhead=1)
    turn = torch.arange(count) % 4
    place = torch.tensor([0, 1, 2, 4, 0, 3, 2, 4])[torch.arange(count) % 8]  # of four around and one from above
    rows = 5 * torch.arange(2 * count) + place.repeat(2)
    pictures = on_background(views.images[rows], random_backgrounds(2 * count, torch.Generator().manual_seed(seed)))
    return Asked([views.captions[int(i)] for i in rows[:count]], [VIEW_WORDS[i] for i in turn], pictures[:count],
                 pictures[count:])


def draw_all(draw: Callable[[list[str], torch.Generator], Tensor], prompts: list[str], seed: int = 0, batch: int = 25) -> Tensor:
    """One picture for each prompt, `batch` at a time: (P, H, W, 3). draw(prompts, generator) -> (B, H, W, 3).

    >>> draw_all(lambda prompts, generator: torch.rand(len(prompts), 2, 2, 3, generator=generator), ["a"] * 30).shape
    torch.Size([30, 2, 2, 3])
    """
    return torch.cat([draw(prompts[i:i + batch], torch.Generator().manual_seed(seed + i)).cpu()
                      for i in range(0, len(prompts), batch)])


def picture_scores(pictures: Tensor, asked: Asked, judge: Scorer, seed: int = 0) -> dict:
    """Scores of pictures (P, H, W, 3), one per prompt asked: the three of the header, {"kid_error", "pictures", "among"}.

    KID is measured to `asked.others`. ValueError where the number of pictures is another one.
    """
    if len(pictures) != len(asked.captions):
        raise ValueError(f"pictures: got {len(pictures)}, wanted {len(asked.captions)}, one for each prompt")
    rivals = min(49, len(set(asked.captions)) - 1)
    ranks = rank_of_own(judge, pictures, asked.captions, rivals, torch.Generator().manual_seed(seed))
    near = sum(nearest_first(judge, picture, caption, seed) for picture, caption in zip(pictures, asked.captions, strict=True))
    views = judge.view(pictures, asked.captions)
    apart = kid(image_features(pictures), image_features(asked.others), features=features_name())
    return {"own_first": round((ranks == 0).float().mean().item(), 4),
            "near_first": round(near / len(pictures), 4),
            "view_word": round(sum(a == b for a, b in zip(views, asked.words, strict=True)) / len(views), 4),
            "kid": round(apart.value, 4), "kid_error": round(apart.std, 4), "pictures": len(pictures), "among": rivals + 1}


@torch.no_grad()
def top1(judge: Scorer, pictures: Tensor, caption: str, rivals: list[str]) -> float:
    """Share of pictures (V, H, W, 3) that fit a caption better than every rival, by `embed_mirrored`. A tie is a loss."""
    if caption in rivals or not rivals:
        raise ValueError(f"rivals: got {len(rivals)} captions, {'the own one among them' if rivals else ''}, wanted others only")
    scores = judge.embed_mirrored(pictures) @ judge.embed_prompts([caption, *rivals]).T  # (V, 1 + R)
    return (scores[:, 0] > scores[:, 1:].amax(1)).float().mean().item()


@torch.no_grad()
def nearest_first(judge: Scorer, picture: Tensor, caption: str, seed: int = 0, others: int = 6) -> bool:
    """Whether a picture (H, W, 3) fits a toy's caption better than `others` captions that differ from it in one attribute.
    A tie is a loss."""
    generator, wrong = torch.Generator().manual_seed(seed), []
    while len(wrong) < others:
        new = one_attribute_changed(caption, generator, split="all")
        wrong += [new] if new not in wrong else []
    return top1(judge, picture[None], caption, wrong) == 1

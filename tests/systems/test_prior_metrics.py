"""Scores of a prior, asked of judges whose answers are known."""

import pytest
import torch

from gsgen_lib.data.captioned_views import VIEW_WORDS
from gsgen_lib.data.toys import combinations, parse_caption
from gsgen_lib.systems.prior_metrics import draw_all, held_out_prompts, picture_scores
from gsgen_lib.systems.prompt_scorer import Scorer, draw_rivals, rank_of_own


@pytest.fixture(scope="module")
def asked():
    return held_out_prompts(24, seed=3)


def knowing(asked):
    """A judge for pictures whose first pixel tells which prompt was asked: it knows captions and view words."""
    captions = list(dict.fromkeys(asked.captions))

    def vector(caption, word):
        v = torch.zeros(len(captions) + 4)
        if caption in captions:
            v[captions.index(caption)] = 1.0
        if word:
            v[len(captions) + VIEW_WORDS.index(word)] = 1.0
        return v / v.norm().clamp_min(1e-6)

    def embed_images(pictures):
        rows = (pictures[:, 0, 0, 0] * 255).round().long().tolist()
        return torch.stack([vector(asked.captions[r], asked.words[r]) for r in rows])

    def embed_prompts(prompts):
        return torch.stack([vector(*(p.split(", ") if ", " in p else (p, ""))) for p in prompts])

    return Scorer("knowing", embed_images, embed_prompts)


def marked(pictures):
    pictures = pictures.clone()
    pictures[:, 0, [0, -1]] = torch.arange(len(pictures))[:, None, None] / 255  # in both corners: a mirror keeps the mark
    return pictures


def test_prompts_are_held_out_and_turn_through_the_view_words(asked):
    held_out = set(combinations("test"))
    for caption in asked.captions:
        family, found = parse_caption(caption)
        assert (family, found["color"], found["pattern"]) in held_out
    triples = [(parse_caption(c)[0], parse_caption(c)[1]["color"], parse_caption(c)[1]["pattern"]) for c in asked.captions]
    assert len(set(triples)) == 24  # none comes twice
    assert asked.words == list(VIEW_WORDS) * 6
    assert asked.prompts[1] == asked.captions[1] + ", side view"
    assert asked.truth.shape == asked.others.shape == (24, 64, 64, 3)
    everything = torch.cat([asked.truth, asked.others]).flatten(1)
    assert torch.cdist(everything, everything).fill_diagonal_(9.0).min() > 1.0  # no picture comes twice
    assert held_out_prompts(24, seed=4).captions != asked.captions


def test_a_knowing_judge_gives_full_marks_and_shuffled_pictures_none(asked):
    judge, pictures = knowing(asked), marked(asked.truth)
    full = picture_scores(pictures, asked, judge)
    assert full["own_first"] == full["near_first"] == full["view_word"] == 1.0 and full["pictures"] == 24
    assert full["among"] == min(50, len(set(asked.captions)))
    shuffled = picture_scores(pictures.roll(1, 0), asked, judge)  # the next view word, and another caption
    assert shuffled["own_first"] < 0.2 and shuffled["view_word"] == 0.0
    four = picture_scores(pictures.roll(4, 0), asked, judge)  # the same view word, another caption
    assert four["own_first"] < 0.2


def test_all_hundred_combinations_come_once():
    from gsgen_lib.data.toys import heldout_combinations

    captions = [parse_caption(c) for c in held_out_prompts(100, seed=1).captions]
    assert {(family, found["color"], found["pattern"]) for family, found in captions} == set(heldout_combinations())


def test_near_captions_ask_for_more_than_noun_and_colour(asked):
    """A judge that reads nouns and colours only passes among random rivals more often than among near ones."""
    from gsgen_lib.data.toy_words import COLORS, NOUNS

    def embed_prompts(prompts):
        found = [parse_caption(p.split(", ")[0]) for p in prompts]
        return torch.stack([torch.cat([torch.eye(14)[NOUNS.index(f)], torch.eye(10)[COLORS.index(a["color"])]]) for f, a in found])

    def embed_images(pictures):
        return embed_prompts([asked.captions[int(i)] for i in (pictures[:, 0, 0, 0] * 255).round()])

    found = picture_scores(marked(asked.truth), asked, Scorer("coarse", embed_images, embed_prompts))
    assert found["near_first"] < 0.3 < 0.5 < found["own_first"]


def test_a_blind_judge_gives_no_marks(asked):
    blind = Scorer("blind", lambda x: torch.ones(len(x), 1), lambda p: torch.ones(len(p), 1))
    found = picture_scores(asked.truth, asked, blind)
    assert found["own_first"] == found["near_first"] == 0.0  # a tie is no first rank
    assert found["view_word"] == 0.25  # always the first word


def test_kid_knows_true_renders_from_noise(asked):
    judge = knowing(asked)
    floor = picture_scores(marked(asked.truth), asked, judge)
    noise = picture_scores(marked(torch.rand(24, 64, 64, 3, generator=torch.Generator().manual_seed(0))), asked, judge)
    assert abs(floor["kid"]) < 0.1 * noise["kid"]
    with pytest.raises(ValueError, match="pictures: got 23, wanted 24"):
        picture_scores(asked.truth[:23], asked, judge)


def test_rivals_are_others_drawn_evenly_and_ranks_are_those_of_sorting():
    own = torch.randint(8, (4000,), generator=torch.Generator().manual_seed(0))
    rivals = draw_rivals(own, 8, 5, torch.Generator().manual_seed(1))
    assert rivals.shape == (4000, 5) and not (rivals == own[:, None]).any()
    assert (rivals.sort(1).values.diff(dim=1) > 0).all()  # without repetition
    share = torch.bincount((rivals - own[:, None]).flatten() % 8, minlength=8) / 4000
    assert share[0] == 0 and ((share[1:] - 5 / 7).abs() < 0.03).all()
    for others in (0, 8):
        with pytest.raises(ValueError, match=f"others: got {others}, wanted 1 to 7"):
            draw_rivals(own, 8, others)
    scores = torch.randn(8, 8, generator=torch.Generator().manual_seed(2))
    judge = Scorer("table", lambda x: scores[x[:, 0, 0, 0].long()], lambda prompts: torch.eye(8)[[int(p) for p in prompts]])
    numbered = torch.arange(8.0).reshape(8, 1, 1, 1).expand(8, 2, 2, 3)
    ranks = rank_of_own(judge, numbered, [str(i) for i in range(8)], 7)
    by_sorting = [sorted(row.tolist(), reverse=True).index(row[i].item()) for i, row in enumerate(scores)]
    assert ranks.tolist() == by_sorting


def test_every_batch_has_its_own_noise():
    def draw(prompts, generator):
        return torch.rand(len(prompts), 1, 1, 3, generator=generator)

    drawn = draw_all(draw, ["a"] * 7, seed=5, batch=3)
    assert drawn.shape == (7, 1, 1, 3) and len({x.item() for x in drawn[:, 0, 0, 0]}) == 7
    assert torch.equal(drawn, draw_all(draw, ["a"] * 7, seed=5, batch=3))

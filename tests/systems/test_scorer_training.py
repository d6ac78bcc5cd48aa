"""What the judge learns from, and how it is asked: batches, disturbances, losses, ranks, confusions."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from gsgen_lib.data.captioned_views import VIEW_WORDS, toy_views, view_word
from gsgen_lib.data.toys import combinations, parse_caption
from gsgen_lib.systems.prior_metrics import held_out_prompts
from gsgen_lib.systems.prompt_scorer import (
    PromptScorer,
    Scorer,
    ScorerConfig,
    contrastive_loss,
    load_scorer,
    near_miss_loss,
    scale_of,
    token_memory,
)
from gsgen_lib.systems.scorer_training import (
    both_losses,
    contrastive_batches,
    difference,
    disturb,
    near_misses,
    scorer_metrics,
)
from gsgen_lib.training import seeded


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def views():
    return toy_views(12, np.random.default_rng(5), split="test", size=8, sets=1, overhead=1)


# ---- what it learns from


def test_the_loss_is_the_sum_of_its_two_parts(views):
    model = seeded(lambda: PromptScorer(ScorerConfig(vocabulary=30)), 0)
    data = torch.rand(3, 64, 64, 3, generator=gen()), torch.randint(28, (3, 7, 24), generator=gen()), ["a", "b", "c"]
    found = both_losses(model, data, None)
    images, texts, scale = model(*data[:2])
    near, apart = near_miss_loss(images, texts, scale), contrastive_loss(images, texts[:, 0], data[2], scale)
    assert found["loss"].item() == pytest.approx((near + apart).item()) and near > 0.1 < apart
    assert found["contrastive"].item() == pytest.approx(apart.item())


def test_the_scale_stops_at_a_hundred_and_pictures_are_centred():
    assert scale_of(torch.tensor(9.0)).item() == pytest.approx(100.0) and scale_of(torch.tensor(1.0)).item() == pytest.approx(
        np.e)
    model, seen = seeded(lambda: PromptScorer(ScorerConfig(vocabulary=30)), 0), []
    model.blocks.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.embed_images(torch.stack([torch.zeros(64, 64, 3), torch.ones(64, 64, 3)]))
    assert (seen[0][0] == -1).all() and (seen[0][1] == 1).all()


def test_batches_hold_prompts_with_and_without_view_word(views):
    draw = contrastive_batches(views, lambda texts: torch.arange(len(texts)), 300)
    asked = []
    draw = contrastive_batches(views, lambda texts: asked.extend(texts) or torch.arange(len(texts)), 300)
    pictures, ids, prompts = draw(gen())
    assert pictures.shape == (300, 8, 8, 3) and torch.equal(ids, torch.arange(2100).reshape(300, 7))
    assert asked[::7] == prompts  # the first of each seven is the own one
    short = [", " not in p for p in prompts]
    assert abs(sum(short) / 300 - 1 / 3) < 4 * (2 / 9 / 300) ** 0.5
    for i, s in enumerate(short):
        rest = asked[7 * i + 1:7 * i + 7]
        assert prompts[i] not in rest and all((", " not in other) == s for other in rest)


def test_memory_of_tokens_keeps_the_order():
    from gsgen_lib.systems.prompt_scorer import make_tokenizer, tokenize

    tokenizer = make_tokenizer(["a red mug", "a blue boat"])
    texts = ["a red mug", "a blue boat", "a", "a red mug"]
    for _ in range(2):
        assert torch.equal(token_memory(tokenizer)(texts), tokenize(tokenizer, texts))


def test_disturbing_shifts_scales_blurs_and_noises_within_its_ranges():
    y, x = (torch.arange(64.0) - 31.5)[:, None], (torch.arange(64.0) - 31.5)[None]
    disc = ((x**2 + y**2).sqrt() < 12).float()[None, :, :, None].expand(400, 64, 64, 3)
    out = disturb(disc, gen())[..., 0]
    mass = out.clamp_min(0.3).sub(0.3)  # above the noise
    size = ((out > 0.5).sum((1, 2)) / (disc[0, ..., 0] > 0.5).sum()).sqrt()
    assert 0.8 < size.min() < 0.9 and 1.1 < size.max() < 1.2
    for axis, place in ((1, y), (2, x)):
        moved = (mass * place).sum((1, 2)) / mass.sum((1, 2))
        assert 3 < moved.abs().max() < 5 and abs(moved.mean()) < 0.5, axis  # 4 pixels, times at most 1.15
    flat = disturb(torch.full((400, 64, 64, 3), 0.5), gen(1))
    std = flat.std((1, 2, 3))
    assert std.min() < 0.002 and 0.036 < std.max() < 0.042
    board = ((torch.arange(64)[:, None] // 2 + torch.arange(64) // 2) % 2).float()[None, :, :, None].expand(400, 64, 64, 3)
    sharp = disturb(board, gen(2))[:, 16:48, 16:48].std((1, 2, 3))
    assert sharp.max() > 0.3 and sharp.min() < 0.2  # from sharp to soft


def test_near_misses_miss_by_one_attribute_and_never_name_a_held_out_combination():
    views = toy_views(40, np.random.default_rng(3), size=8, sets=1, overhead=1)
    held_out, changed = set(combinations("test")), set()
    for row in range(len(views)):
        own = views.prompt(row)
        misses = near_misses(views, row, False, [], gen(row))
        captions, words = zip(*(m.split(", ") for m in misses), strict=True)
        assert own not in misses and len(misses) == 6
        assert captions[:3] == (views.captions[row],) * 3 and len({own.split(", ")[1], *words[:3]}) == 4
        assert words[3:] == (own.split(", ")[1],) * 3
        for other in captions[3:] + tuple(near_misses(views, row, True, [], gen(row))):
            names = difference(views.captions[row], other)
            assert len(names) == 1 or names == ["pattern", "pattern_color"]  # plain has no pattern colour
            family, found = parse_caption(other)
            assert (family, found["color"], found["pattern"]) not in held_out
            changed.update(names)
    assert changed == {"color", "pattern", "pattern_color", "build"}
    real = replace(views, real=torch.ones(len(views), dtype=torch.bool))
    assert set(near_misses(real, 0, True, [views.captions[0], "a lamp"], gen())) == {"a lamp"}
    for captions in ([], [views.captions[0]]):  # nothing to draw from
        with pytest.raises(ValueError, match="captions: got"):
            near_misses(real, 0, True, captions, gen())


def test_disturbing_keeps_range_and_depends_on_the_generator():
    pictures = torch.rand(4, 64, 64, 3, generator=gen())
    a, b, c = disturb(pictures, gen(1)), disturb(pictures, gen(1)), disturb(pictures, gen(2))
    assert torch.equal(a, b) and not torch.equal(a, c) and a.min() >= 0 and a.max() <= 1
    flat = torch.full((2, 64, 64, 3), 0.25)
    assert (disturb(flat, gen()) - 0.25).abs().max() < 0.25  # a plain picture stays plain but for noise


# ---- how it is asked


def table_judge(views, seed=0):
    """A judge with a random but known score for each picture and caption, and for each picture and view word."""
    captions = list(dict.fromkeys(views.captions))
    names = [*captions, *VIEW_WORDS]
    table = torch.randn(len(views), len(names), generator=gen(seed))

    def embed_prompts(prompts):
        rows = []
        for prompt in prompts:
            caption, _, word = prompt.partition(", ")
            rows.append(torch.eye(len(names))[names.index(word or caption)])
        return torch.stack(rows)

    count = iter(range(0, 10**9))
    return Scorer("table", lambda x: table[[next(count) % len(views) for _ in x]], embed_prompts), table, captions


def test_metrics_against_loops(views):
    judge, table, captions = table_judge(views)
    wins, words, confusions = 0, 0, Counter()
    for i, caption in enumerate(views.captions):
        own = captions.index(caption)
        best = max((k for k in range(len(captions)) if k != own), key=lambda k: table[i, k].item())
        wins += table[i, own].item() > table[i, best].item()
        if table[i, own].item() < table[i, best].item():
            confusions[" and ".join(difference(caption, captions[best]))] += 1
        guess = VIEW_WORDS[int(table[i, len(captions):].argmax())]
        words += guess == view_word(float(views.azimuths[i]), float(views.elevations[i]))
    found = scorer_metrics(judge, views, among=len(captions))
    assert found["top1"] == pytest.approx(wins / len(views), abs=1e-4) and 0 < wins < len(views)
    assert found["view_accuracy"] == pytest.approx(words / len(views), abs=1e-4) and 0 < words != len(views) / 2
    assert found["confusions"] == dict(confusions.most_common(8)) and "" not in found["confusions"]


def test_metrics_of_a_perfect_and_of_a_blind_judge():
    """The perfect one reads a number written into the picture's transparency; the blind one always says the same."""
    views = toy_views(12, np.random.default_rng(5), split="test", size=8, sets=1, overhead=1)
    captions = list(dict.fromkeys(views.captions))
    marked = views.images.clone()
    marked[..., 3] = 255  # opaque: the picture is what is stored
    marked[..., :3] = torch.tensor([captions.index(c) for c in views.captions], dtype=torch.uint8)[:, None, None, None]
    views = type(views)(marked, views.captions, views.azimuths, views.elevations, views.sets, views.owners, views.real)
    table = torch.eye(len(captions) + 1)

    def embed_prompts(prompts):
        return table[[captions.index(p) if p in captions else -1 for p in prompts]]

    perfect = Scorer("perfect", lambda x: table[(x[:, 0, 0, 0] * 255).round().long()], embed_prompts)
    blind = Scorer("blind", lambda x: table[[0] * len(x)], embed_prompts)
    assert scorer_metrics(perfect, views, among=len(captions))["top1"] == 1.0
    found = scorer_metrics(blind, views, among=len(captions))
    assert found["top1"] == pytest.approx(views.captions.count(captions[0]) / len(views), abs=1e-4)
    assert found["pictures"] == 60 and sum(found["confusions"].values()) <= 60 and found["view_accuracy"] <= 1
    assert json.dumps(found) and difference(captions[0], captions[0]) == []


def test_fewer_rivals_are_easier_and_a_tie_is_a_loss(views):
    judge, table, captions = table_judge(views)
    table[:, :len(captions)] = torch.arange(len(captions)).float()  # every picture prefers the last caption
    alone, all_of_them = (scorer_metrics(judge, views, among=n)["top1"] for n in (2, len(captions)))
    assert all_of_them == pytest.approx(1 / len(captions), abs=1e-4) and 0.3 < alone < 0.7
    table[:] = 1.0
    assert scorer_metrics(judge, views, among=2)["top1"] == 0.0


def test_the_shipped_judge_knows_true_renders_by_caption_and_by_view():
    """Also that `held_out_prompts` renders the view it names: the judge is an outside opinion."""
    asked, judge = held_out_prompts(48, seed=11), load_scorer()
    seen = judge.view(asked.truth, asked.captions)
    assert sum(a == b for a, b in zip(seen, asked.words, strict=True)) >= 36
    captions = sorted(set(asked.captions))
    best = judge.similarity(asked.truth, captions).argmax(1).tolist()
    assert sum(captions[b] == c for b, c in zip(best, asked.captions, strict=True)) >= 40
    moved = judge.view(asked.truth.roll(1, 0), asked.captions[-1:] + asked.captions[:-1])
    assert sum(a == b for a, b in zip(moved, asked.words, strict=True)) < 16

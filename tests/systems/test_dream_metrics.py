"""Scores of generated objects, asked of judges whose answers are known."""

import colorsys

import numpy as np
import pytest
import torch

from gsgen_lib.data.captioned_views import VIEW_WORDS
from gsgen_lib.data.toys import heldout_combinations, parse_caption
from gsgen_lib.systems.dream_metrics import around, caption_score, clipped, fronts, prompts_24, saturation, sharpness, true_toy
from gsgen_lib.systems.prior_metrics import top1
from gsgen_lib.systems.prompt_scorer import Scorer, load_scorer


def table(scores, names):
    """A judge: picture number (its first value) -> scores for each name."""
    return Scorer("table", lambda x: scores[(x[:, 0, 0, 0] * 255).round().long()],
                  lambda prompts: torch.stack([torch.eye(len(names))[names.index(p)] for p in prompts]))


def numbered(count):
    return (torch.arange(count) / 255).reshape(-1, 1, 1, 1).expand(count, 2, 2, 3)


def test_top1_and_cosine_by_hand():
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.5, 0.1], [0.4, 0.4, 0.1], [0.6, 0.2, 0.5]])
    judge = table(scores, ["own", "a", "b"])
    assert top1(judge, numbered(4), "own", ["a", "b"]) == 0.5  # a tie is a loss
    assert caption_score(judge, numbered(4), "own") == pytest.approx(0.55)
    for rivals in ([], ["own", "a"]):
        with pytest.raises(ValueError, match="rivals: got"):
            top1(judge, numbered(4), "own", rivals)


def test_fronts_by_hand():
    """24 pictures, one every 15 degrees; the judge calls chosen ones a front."""
    names = [f"x, {w}" for w in VIEW_WORDS]

    def called(degrees):
        scores = torch.zeros(24, 4)
        scores[:, 1] = 0.5  # a side
        for d in degrees:
            scores[d // 15, 0] = 1.0
        return fronts(table(scores, names), numbered(24), "x")

    # 5 of the 7 pictures from -45 to 45 degrees, none of those around the back
    assert called([0, 15, 30, 330, 345]) == {"all": pytest.approx(5 / 24), "hits": 1.0, "false": 0.0,
                                             "contrast": pytest.approx(5 / 7)}
    assert called([180])["false"] == pytest.approx(1 / 17)  # 60, 75 ... 300
    assert called([])["hits"] == 0.0 and called(range(0, 360, 15)) == {"all": 1.0, "hits": 1.0, "false": 1.0, "contrast": 0.0}
    assert called([45, 315]) == {"all": pytest.approx(2 / 24), "hits": 0.0, "false": 0.0, "contrast": pytest.approx(2 / 7)}
    assert called([180, 165])["contrast"] == pytest.approx(-2 / 7)  # a front where the back should be
    scores = torch.zeros(24, 4)
    scores[:, 2] = torch.linspace(0, 1, 24)  # how much of a back: it counts too
    wanted = scores[[9, 10, 11, 12, 13, 14, 15], 2].mean() - scores[[21, 22, 23, 0, 1, 2, 3], 2].mean()
    assert fronts(table(scores, names), numbered(24), "x")["contrast"] == pytest.approx(wanted.item(), abs=1e-6)


def test_sharpness_against_loops_and_blur():
    x = torch.rand(1, 6, 7, 3, generator=torch.Generator().manual_seed(0)).double()
    grey = 0.299 * x[0, ..., 0] + 0.587 * x[0, ..., 1] + 0.114 * x[0, ..., 2]
    values = [(grey[i - 1, j] + grey[i + 1, j] + grey[i, j - 1] + grey[i, j + 1] - 4 * grey[i, j]).item()
              for i in range(1, 5) for j in range(1, 6)]
    assert sharpness(x).item() == pytest.approx(np.var(values, ddof=1), rel=1e-9)
    soft = torch.nn.functional.avg_pool2d(x.movedim(-1, 1), 3, 1, 1).movedim(1, -1)
    assert sharpness(soft) < 0.3 * sharpness(x)


def test_saturation_and_clipping_by_the_standard_library():
    colors = np.random.default_rng(0).uniform(0.2, 1, (50, 3))
    weights, saturations = zip(*[(colorsys.rgb_to_hsv(*c)[2], colorsys.rgb_to_hsv(*c)[1]) for c in colors], strict=True)
    wanted = sum(w * s for w, s in zip(weights, saturations, strict=True)) / sum(weights)
    assert saturation(torch.from_numpy(colors)) == pytest.approx(wanted, rel=1e-6)
    assert saturation(torch.tensor([[0.01, 0.0, 0.0], [1.0, 1.0, 1.0]])) < 0.02
    assert clipped(torch.tensor([0.0, 1.0, 0.5, 0.3])) == 0.5


def test_prompts_are_of_the_split_they_say_and_families_take_turns():
    seen, held_out = prompts_24()
    held = set(heldout_combinations())
    for captions, inside in ((seen, False), (held_out, True)):
        for caption in captions:
            family, found = parse_caption(caption)
            assert ((family, found["color"], found["pattern"]) in held) == inside
        assert len({parse_caption(c)[0] for c in captions}) == 12
    assert prompts_24() == (seen, held_out)


def test_true_toys_pass_their_own_test():
    caption = "a red robot with white dots"
    pictures = true_toy(caption, np.random.default_rng(0), around(24))
    judge = load_scorer()
    found = fronts(judge, pictures, caption)
    assert found["hits"] > 0.7 and found["false"] < 0.2
    assert top1(judge, pictures, caption, ["a blue boat", "a green robot", "a red house"]) > 0.9

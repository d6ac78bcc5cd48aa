"""Captions with view words: words fit the camera, sets stand at right angles, backgrounds are what they say."""

import numpy as np
import pytest
import torch

from gsgen_lib.data.captioned_views import (
    JUDGE,
    PAINTER,
    CaptionedViews,
    draw_pictures,
    draw_rows,
    draw_sets,
    join_views,
    kept,
    on_background,
    random_backgrounds,
    real_views,
    toy_views,
    training_views,
    view_word,
)
from gsgen_lib.data.toys import heldout_combinations, parse_caption
from gsgen_lib.scene.cameras import Cameras


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def toys():
    return toy_views(3, np.random.default_rng(0), size=16)


def test_words_follow_from_where_the_camera_stands():
    """Oracle: the camera centre itself. Front and back: |z| is the larger part; right side: x > 0."""
    for azimuth in range(-360, 361, 7):
        for elevation in (-10, 30, 59, 61, 90):
            x, y, z = Cameras.orbit(1, azimuth=[float(azimuth)], elevation=float(elevation)).centers[0].tolist()
            if abs(abs(x) - abs(z)) < 1e-4:  # on the border itself
                continue
            word = view_word(azimuth, elevation, sides=True)
            if y > 1.8 * np.sin(np.pi / 3):
                assert word == "overhead view"
            elif abs(z) > abs(x):
                assert word == ("front view" if z > 0 else "back view")
            else:
                assert word == ("right side view" if x > 0 else "left side view")
            assert view_word(azimuth, elevation) == word.replace("left ", "").replace("right ", "")


def test_sets_are_front_right_back_left_of_one_toy_at_one_height(toys):
    for row in toys.sets:
        words = [view_word(float(toys.azimuths[i]), float(toys.elevations[i]), True) for i in row]
        assert words == ["front view", "right side view", "back view", "left side view"]
        assert len(set(toys.owners[row].tolist())) == 1 and len(set(toys.elevations[row].tolist())) == 1
        assert torch.allclose(toys.azimuths[row].diff(), torch.tensor(90.0))
    real = real_views("val")
    assert [view_word(float(real.azimuths[i]), 15, True)[:4] for i in real.sets[5]] == ["fron", "righ", "back", "left"]
    assert real.real.all() and not toys.real.any()
    assert (real.owners[real.sets] == torch.arange(len(real.sets))[:, None]).all()


def test_angles_fill_their_ranges():
    views = toy_views(60, np.random.default_rng(2), size=8, sets=1, overhead=2)
    around, above = views.sets[:, 0], torch.tensor([i for i in range(len(views)) if i % 6 >= 4])
    for values, low, high in ((views.azimuths[around], -45, 45), (views.elevations[around], -10, 60),
                              (views.elevations[above], 61, 90), (views.azimuths[above], 0, 360)):
        spread = 0.15 * (high - low)
        assert low <= values.min() < low + spread and high - spread < values.max() <= high
    borders = (-45, 45, 135, -135)  # 45 degrees belong to the front, 135 to the sides
    assert [view_word(a, 0) for a in borders] == ["front view"] * 2 + ["side view"] * 2
    assert [view_word(a, 0) for a in (135.01, -135.01, 45.01)] == ["back view", "back view", "side view"]


def test_pictures_are_those_of_the_cameras_that_the_angles_name(toys):
    from gsgen_lib.data.raycast import render_mesh
    from gsgen_lib.data.toys import sample_toy

    toy = sample_toy(np.random.default_rng(0), split="train")  # the first draw of the same stream
    assert toy.caption == toys.captions[0]
    cams = Cameras.orbit(10, azimuth=toys.azimuths[:10].tolist(), elevation=toys.elevations[:10].tolist(), width=16, height=16)
    again = torch.from_numpy(np.round(render_mesh(toy.mesh, cams).rgba * 255).astype(np.uint8))
    assert (again.int() - toys.images[:10].int()).abs().max() <= 1


def test_test_toys_have_combinations_that_training_never_has():
    held = set(heldout_combinations())
    for split, inside in (("train", False), ("test", True)):
        views = toy_views(4, np.random.default_rng(1), split=split, size=8, sets=1, overhead=0)
        for caption in set(views.captions):
            family, a = parse_caption(caption)
            assert ((family, a["color"], a["pattern"]) in held) == inside


def test_compositing_by_hand():
    rgba = torch.rand(5, 3, 2, 4, generator=gen())
    colors = torch.rand(5, 3, generator=gen(1))
    out = on_background(rgba, colors)
    i, y, x = 3, 2, 1
    for c in range(3):
        a = rgba[i, y, x, 3].item()
        assert out[i, y, x, c].item() == pytest.approx(rgba[i, y, x, c].item() * a + colors[i, c].item() * (1 - a), abs=1e-6)


def test_share_of_white_and_of_empty_prompts(toys):
    colors = random_backgrounds(4000, gen(), white=0.25)
    share = (colors == 1).all(-1).float().mean().item()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    _, prompts = draw_pictures(toys, torch.arange(30).repeat(50), gen(), drop=0.1)
    assert abs(prompts.count("") / 1500 - 0.1) < 4 * (0.09 / 1500) ** 0.5
    said = [("left" in p or "right" in p) for p in prompts if "side view" in p]
    assert 0.35 < sum(said) / len(said) < 0.65
    fates = []
    for seed in range(30):
        pictures, prompts = draw_pictures(toys, toys.sets[0], gen(seed), drop=0.5, one_background=True)
        assert (pictures[:, 0, 0] == pictures[0, 0, 0]).all()
        fates.append(prompts == [""] * 4)
        assert fates[-1] or ["right side view" in prompts[1], "left side view" in prompts[3], all(prompts)] == [True] * 3
    assert 5 < sum(fates) < 25  # a set keeps or loses all of its prompts
    _, silent = draw_pictures(toys, toys.sets[0], gen(), one_background=True, sides=0.0)
    assert silent[1].endswith(", side view")


def test_draws_keep_the_share_of_real_objects():
    toys, real = toy_views(2, np.random.default_rng(0)), real_views("val")
    both = join_views(toys, real)
    rows = draw_rows(both, 4000, gen(), 0.2)
    share = both.real[rows].float().mean().item()
    assert abs(share - 0.2) < 4 * (0.16 / 4000) ** 0.5 and len(set(rows.tolist())) > 500
    sets = draw_sets(both, 2000, gen(), 0.2)
    assert abs(both.real[sets[:, 0]].float().mean().item() - 0.2) < 0.04
    assert (both.owners[sets] == both.owners[sets[:, :1]]).all()
    assert len(set(both.owners.tolist())) == len(set(toys.owners.tolist())) + len(set(real.owners.tolist()))
    assert both.captions[both.sets[-1, 0]] == real.captions[real.sets[-1, 0]]


def test_painter_and_judge_never_see_one_picture_and_no_heldout_caption():
    painter, judge = (real_views("train", views) for views in (PAINTER, JUDGE))
    assert len(painter) == 2 * len(judge) and len(painter.sets) == int(painter.owners.max()) + 1
    both = training_views(1, np.random.default_rng(0), JUDGE)
    assert [c for c, real in zip(both.captions, both.real.tolist()) if real] == judge.captions
    seen = {image.numpy().tobytes() for image in painter.images}
    assert not seen & {image.numpy().tobytes() for image in judge.images} and len(seen) > 0.99 * len(painter)
    turns = torch.tensor([0.0, 90.0, 180.0, 270.0])
    assert (painter.azimuths[painter.sets] == turns).all() and (painter.elevations[painter.sets] == 15).all()
    held_out = set(heldout_combinations())
    for caption in {*painter.captions, *judge.captions}:
        try:
            family, found = parse_caption(caption)
        except ValueError:
            continue
        assert (family, found["color"], found["pattern"]) not in held_out
    assert len(set(real_views("test").captions)) > 10  # other splits keep all of theirs


def test_kept_collections_are_whole_or_refused(tmp_path, toys):
    path = tmp_path / "views.safetensors"
    first = kept(path, lambda: toys)
    assert torch.equal(first.images, toys.images) and first.captions == toys.captions
    assert [p.name for p in tmp_path.iterdir()] == ["views.safetensors"]  # nothing half-written stays
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole collection"):
        kept(path, lambda: toys)


@pytest.mark.parametrize("call,message", [
    (lambda: toy_views(0, np.random.default_rng(0)), "count, sets, overhead: got 0"),
    (lambda: toy_views(1, np.random.default_rng(0), sets=0, overhead=0), "at least one toy and view"),
    (lambda: real_views("nothing"), "split"),
    (lambda: real_views("val", (3, 24)), "views: got"),
    (lambda: join_views(toy_views(1, np.random.default_rng(0), size=8), toy_views(1, np.random.default_rng(0), size=9)),
     "wanted one size"),
])
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_fields_are_what_the_docstring_says(toys):
    assert isinstance(toys, CaptionedViews) and toys.images.dtype == torch.uint8 and len(toys) == 30
    assert toys.prompt(0).startswith(toys.captions[0] + ", ")

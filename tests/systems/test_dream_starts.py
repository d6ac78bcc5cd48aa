"""Where a dream begins: cutting out what a prior paints, lifting it, samples from words, growing."""

import numpy as np
import pytest
import torch

from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.data.multiview import toy_views
from gsgen_lib.data.raycast import render_mesh
from gsgen_lib.data.toys import sample_toy
from gsgen_lib.metrics import alpha_iou
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.dream_metrics import around, caption_score
from gsgen_lib.systems.dream_starts import ELEVATIONS, cut_out, from_latents, from_views, grown, lifted
from gsgen_lib.systems.dreamgaussian import DreamConfig, ball, dream
from gsgen_lib.systems.feed_forward import load_feed_forward
from gsgen_lib.systems.prior import load_prior
from gsgen_lib.systems.prompt_scorer import load_scorer
from gsgen_lib.systems.splat_diffusion import load_splat_diffusion


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def prior():
    return load_prior()


@pytest.mark.parametrize("background", [(1.0, 1.0, 1.0), (0.9, 0.8, 0.3), (0.05, 0.1, 0.2)])
def test_cut_out_finds_the_object(background):
    """True renders on a plain background, with a little noise, as a painter leaves it."""
    rgba = toy_views(6, 3, 64, 4, points=8, progress=False).images.flatten(0, 1).float() / 255
    views = on_background(rgba, torch.tensor(background)) + 0.01 * torch.randn(24, 64, 64, 3, generator=gen())
    found = cut_out(views.clamp(0, 1))
    iou = alpha_iou(found[..., 3:], rgba[..., 3:], reduction="none")
    assert iou.median() > (0.95 if max(background) > 0.5 else 0.85)  # toys have black parts, which a dark background hides
    again = on_background(found, torch.tensor(background))
    assert (again - views).abs().mean() < 0.01  # laid on the same background, the pictures come back


def test_cut_out_leaves_no_dust_and_no_object_where_there_is_none():
    views = torch.ones(2, 32, 32, 3)
    views[0, 8:24, 8:24] = 0.3
    views[0, 2, 2] = 0.3  # dust
    found = cut_out(views)
    assert found[0, 2, 2, 3] == 0 and found[0, 12, 12, 3] == 1 and found[0, ..., 3].sum() == 256
    assert found[1, ..., 3].sum() == 0
    assert not found.isnan().any()


def test_growing_keeps_the_scene_and_adds_faint_neighbours():
    scene = Gaussians.random(400, generator=gen())
    more = grown(scene, 0.5, 0.02, 0.1, gen(1))
    assert more.num == 600 and torch.equal(more.means[:400], scene.means) and torch.equal(more.colors[:400], scene.colors)
    away, nearest = torch.cdist(more.means[400:], scene.means).min(1)
    assert 0.005 < away.mean() < 0.05
    assert more.colors.min() >= 0 and more.colors.max() <= 1
    assert grown(scene, 0.0, generator=gen()).num == 400
    assert torch.equal(grown(scene, generator=gen(2)).means, grown(scene, generator=gen(2)).means)
    with pytest.raises(ValueError, match="share"):
        grown(scene, -1.0)
    with pytest.raises(ValueError, match="scene: got batch"):
        grown(Gaussians.stack([scene]))


def test_both_starts_show_the_caption_and_a_ball_does_not(prior):
    judge, caption = load_scorer(), "a tall blue clock with black stripes"
    drawn = from_latents(load_splat_diffusion(), caption, 1500, generator=gen())
    lifted, views = from_views(prior, load_feed_forward(), caption, 1500, generator=gen())
    assert drawn.num == lifted.num == 1500 and views.shape == (4, 64, 64, 4)
    scores = {name: caption_score(judge, rasterize(scene, around(8), (1.0, 1.0, 1.0)).rgb.clamp(0, 1), caption)
              for name, scene in (("drawn", drawn), ("lifted", lifted), ("ball", ball(1000, 0.4, gen())))}
    assert min(scores["drawn"], scores["lifted"]) > scores["ball"] + 0.2
    other = from_latents(load_splat_diffusion(), caption, 1500, generator=gen(1))
    assert not torch.equal(other.means, drawn.means)


def test_a_dream_goes_on_from_a_start(prior):
    start = grown(ball(300, 0.3, gen()), generator=gen())
    config = DreamConfig(steps=2, high=300)
    result = dream(prior, "a red mug", config, init=start, generator=gen(), progress=False)
    assert result.gaussians.num == 450 and (result.gaussians.means - start.means).abs().max() < 0.1
    assert max(row["t"] for row in result.log) <= 300
    assert np.isfinite(result.log[-1]["loss"])


@pytest.mark.parametrize("elevation", [0.0, 15.0, 40.0])
def test_how_high_four_views_were_taken_is_found_from_themselves(elevation):
    """Turned toys, so that no azimuth is known either: the scene that shows its own pictures again has the elevation, or the
    next one of those that are tried."""
    network, toy = load_feed_forward(), sample_toy(np.random.default_rng(5), "rocket")
    cameras = Cameras.orbit(4, azimuth=[30.0, 120.0, 210.0, 300.0], elevation=[elevation] * 4, width=64, height=64)
    rgba = torch.from_numpy(render_mesh(toy.mesh, cameras).rgba).float()
    nearest = min(ELEVATIONS, key=lambda e: abs(e - elevation))
    assert abs(lifted(network, rgba)[1] - nearest) <= (15.0 if elevation == 40.0 else 0.0)

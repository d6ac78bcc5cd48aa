"""Single lines of DreamGaussian that nothing else would miss: each was broken once, and no other test noticed."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch

from gsgen_lib.data.toy_words import NOUNS
from gsgen_lib.data.toys import parse_caption
from gsgen_lib.mesh import TextureRays, bake_texture, extract_mesh, grid_points, render_texture, unwrap
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems import dreamgaussian, texture_refinement
from gsgen_lib.systems.dream_metrics import around, clipped, prompts_24, true_toy
from gsgen_lib.systems.dreamgaussian import ball, dream
from gsgen_lib.systems.dreamgaussian_sample import to_mesh
from gsgen_lib.systems.score_distillation import ViewPrompts, sds_gradient
from gsgen_lib.systems.texture_refinement import RefineConfig, denoised, refine
from tests.systems.test_dreamgaussian import FEW, OneColour, gen

SHORT = replace(FEW, steps=6, init=20, size=8, densify_every=100)


# ---- stage 1


def test_the_ball_is_grey_and_faint():
    start = ball(50, 0.4, gen())
    assert (start.opacities == 0.1).all() and (start.colors == 0.5).all()


def test_backgrounds_are_random(monkeypatch):
    seen, original = [], dreamgaussian.rasterize
    monkeypatch.setattr(dreamgaussian, "rasterize", lambda scene, cameras, back: seen.append(back) or original(scene, cameras, back))
    dream(OneColour(), "x", SHORT, generator=gen(), progress=False)
    seen = torch.stack(seen)  # (6, 3)
    assert seen.std(0).min() > 0.1 and 0 <= seen.min() and seen.max() <= 1


def test_times_end_at_low_and_the_weight_is_the_one_of_the_configuration(monkeypatch):
    weights, original = [], dreamgaussian.sds_loss
    monkeypatch.setattr(dreamgaussian, "sds_loss", lambda *a: weights.append(a[5]) or original(*a))
    prior = OneColour()
    dream(prior, "x", replace(SHORT, low=300, weight="sigma"), generator=gen(), progress=False)
    assert min(t for t, _, _ in prior.asked) == 300 and set(weights) == {"sigma"}


def test_the_encoder_never_sees_more_than_white():
    """Colours add up beyond 1 where Gaussians of SH or bright ones lie over a background; pictures end there."""
    prior, seen = OneColour(), []
    prior.encode_image = lambda x: seen.append(x.max().item()) or OneColour.encode_image(prior, x)
    bright = ball(20, 0.4, gen())
    bright = replace(bright, colors=torch.full((20, 3), 3.0), opacities=torch.full((20,), 0.99))
    dream(prior, "x", replace(SHORT, steps=1), init=bright, generator=gen(), progress=False)
    assert seen == [1.0]


def test_nothing_is_split_after_the_last_step_and_snapshots_are_taken():
    found = dream(OneColour(), "x", replace(SHORT, densify_every=3), generator=gen(), snapshot_every=2, progress=False)
    assert found.gaussians.num == found.log[-1]["gaussians"] != found.log[0]["gaussians"]
    assert [step for step, _ in found.snapshots] == [2, 4, 6]


def test_snapshots_stay_as_they_were():
    """Adam changes tensors in place: what was kept early must not move with them."""
    still = replace(SHORT, densify="none", annealed=False)
    found = dream(OneColour(), "x", still, generator=gen(), snapshot_every=2, progress=False)
    (_, early), (_, middle), (_, late) = found.snapshots
    for a, b in ((early, middle), (middle, late)):
        assert all(not torch.equal(getattr(a, k), getattr(b, k)) for k in ("means", "quats", "scales", "opacities", "colors"))
    assert torch.equal(late.means, found.gaussians.means)


def test_two_sets_of_four_views_are_asked_together():
    prior = OneColour()
    dream(prior, "x", replace(SHORT, views=8, multi_view=True, view_guidance=0.0), generator=gen(), progress=False)
    _, words, views = prior.asked[0]
    assert views == 4 and len(words) == 8 and words[:4] == words[4:]


# ---- stage 2


class Dim(OneColour):
    """Its autoencoder halves every picture."""

    def decode(self, z):
        return OneColour.decode(self, z) / 2


@pytest.fixture(scope="module")
def sphere():
    r = torch.stack(torch.meshgrid(*[grid_points(16)] * 3, indexing="ij")).norm(dim=0)
    return unwrap(*extract_mesh(2 - r / 0.3, max_faces=200), 32)


def test_what_the_autoencoder_alone_changes_is_no_target(sphere, monkeypatch):
    """Denoising that changes nothing leaves the texture, though pictures come back dim. Control: DreamGaussian's own target."""
    monkeypatch.setattr(texture_refinement, "denoised", lambda prior, x, *rest: prior.decode(prior.encode_image(x)))
    texture = 0.2 + 0.6 * torch.rand(32, 32, 3, generator=gen())
    config = RefineConfig(steps=6, views=2, every=3)
    out = refine(Dim(), "a thing", sphere, texture, config, 16, gen(), progress=False)
    assert (out - texture).mean().abs() < 0.003  # Adam makes steps of rounding errors, up and down
    source = inspect.getsource(refine)
    plain = {**vars(texture_refinement)}
    own = source.replace("target = (seen + target - prior.decode(prior.encode_image(seen))).clamp(0, 1)", "pass")
    assert own != source
    exec(own, plain)
    assert (plain["refine"](Dim(), "a thing", sphere, texture, config, 16, gen(), progress=False) - texture).mean() < -0.03


def test_what_each_target_is_made_with(sphere, monkeypatch):
    """Falling strength, the guidance asked for, words by view, other backgrounds; gradients smoothed; colours stay in [0, 1]."""
    seen, backs, smooths = [], [], []

    def fake(prior, pictures, text, start, steps, guidance_scale, generator):
        seen.append((start, steps, guidance_scale, text.flatten().tolist()))
        backs.append(pictures[0, 0, 0])
        return torch.ones_like(pictures) * 2

    original = texture_refinement.smoothed
    monkeypatch.setattr(texture_refinement, "denoised", fake)
    monkeypatch.setattr(texture_refinement, "smoothed", lambda g: smooths.append(1) or original(g))
    config = RefineConfig(steps=9, views=3, every=3, strength=(0.8, 0.2), denoise=4, guidance_scale=2.5, lr=0.3)
    out = refine(OneColour(), "a thing", sphere, torch.full((32, 32, 3), 0.5), config, 16, gen(), progress=False)
    assert [s[0] for s in seen] == [round(999 * x) for x in (0.8, 0.5, 0.2)] and {s[1:3] for s in seen} == {(4, 2.5)}
    assert len({tuple(s[3]) for s in seen}) == 3 and all(len(s[3]) == 3 for s in seen)
    assert torch.stack(backs).std(0).max() > 0.05 and len(smooths) == 9
    assert out.min() >= 0 and out.max() == 1


def test_denoising_starts_from_noise():
    """Control: the same noise gives the same picture."""
    class Undecided(OneColour):
        def predict_eps(self, x_t, t, text, views=1):
            return x_t * 0

    x = torch.full((1, 4, 4, 3), 0.5)
    text = torch.ones(1, 1, 1)
    a, b, c = (denoised(Undecided(), x, text, 400, 3, 1.0, gen(seed)) for seed in (0, 1, 0))
    assert (a - b).abs().max() > 0.1 and torch.equal(a, c)


def test_a_start_beyond_the_schedule_is_named():
    with pytest.raises(ValueError, match="start, steps: got 1000, 3"):
        denoised(OneColour(), torch.full((1, 4, 4, 3), 0.5), torch.ones(1, 1, 1), 1000, 3, 1.0, gen())


# ---- score distillation


def test_a_caption_that_leaves_room_for_some_view_words_only_is_refused():
    class Short:
        def encode_prompt(self, prompts):
            return torch.tensor([[[1.0 if "front" in p or "side" in p else float(len(p))]] for p in prompts])

    with pytest.raises(ValueError, match="so long that"):
        ViewPrompts(Short(), "a very long caption")


def test_half_precision_keeps_its_levels():
    """Against double precision: the weight of a late step is beyond the largest number of half precision before its root."""
    abar = torch.tensor([1e-5], dtype=torch.float64)
    x, eps = torch.randn(2, 4, 3, generator=gen()).double()
    exact = sds_gradient(lambda x_t, t: eps.to(x_t) * 0.5, x, torch.tensor(0), eps, abar, "x0")
    half = sds_gradient(lambda x_t, t: eps.to(x_t) * 0.5, x.half(), torch.tensor(0), eps.half(), abar, "x0")
    assert torch.isfinite(half).all() and (half.double() / exact - 1).abs().max() < 0.01


# ---- measuring


def test_what_objects_are_measured_with():
    assert torch.equal(around(4, elevation=40.0).viewmats, Cameras.orbit(4, azimuth=[0.0, 90, 180, 270], elevation=40.0).viewmats)
    assert (true_toy("a red mug", np.random.default_rng(0), around(1, 16))[0, 0] == 1).all()
    assert clipped(torch.tensor([0.1, 0.9, 0.005, 0.99])) == 0 and clipped(torch.tensor([0.0, 1.0])) == 1
    assert parse_caption(prompts_24()[1][0])[0] == NOUNS[6]


# ---- mesh and texture


def test_a_hidden_surface_takes_no_colour_from_what_hides_it():
    """A small red square stands before a large blue one; what lies behind it stays blue, as its neighbours."""
    square = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0.0]])
    vertices = np.concatenate([0.4 * square, 0.12 * square + [0, 0, 0.2]]).astype(np.float32)
    mesh = unwrap(vertices, np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]]), 64)
    camera = Cameras.orbit(1, azimuth=[0.0], elevation=0.0, width=96, height=96)
    from gsgen_lib.data.raycast import first_hits

    face = torch.from_numpy(first_hits(mesh, camera)[0]).reshape(96, 96)
    image = torch.zeros(1, 96, 96, 4)
    image[0, face >= 2] = torch.tensor([1.0, 0, 0, 1])
    image[0, (face >= 0) & (face < 2)] = torch.tensor([0, 0, 1.0, 1])
    texture = bake_texture(mesh, image, camera, 64)
    middle = mesh.uv[:2].reshape(-1, 2).mean(0)
    row, column = int((1 - middle[1]) * 64), int(middle[0] * 64)
    assert texture[row, column, 2] > 0.9 and texture[row, column, 0] < 0.1


def test_textures_have_no_dark_rim():
    corners = torch.tensor([-1.0, 1.0])
    uv = torch.stack(torch.meshgrid(corners, corners, indexing="ij"), -1)  # the very corners of the texture
    rays = TextureRays(uv.reshape(1, 2, 1, 2, 1, 2), torch.ones(1, 2, 1, 2, 1, dtype=torch.bool))
    assert (render_texture(torch.ones(4, 4, 3), rays, torch.zeros(3))[0] == 1).all()


def test_faint_scenes_become_meshes_of_their_own_colour():
    """A shell whose density stays below DreamGaussian's level 1; its colours are not mixed with the background."""
    points = torch.nn.functional.normalize(torch.randn(600, 3, generator=gen()), dim=1) * 0.3
    scene = Gaussians(points, torch.tensor([1.0, 0, 0, 0]).repeat(600, 1), torch.full((600, 3), 0.05), torch.full((600,), 0.12),
                      torch.tensor([0.9, 0.5, 0.2]).repeat(600, 1))
    from gsgen_lib.mesh import density_field

    scene = replace(scene, opacities=scene.opacities * (0.9 / density_field(scene, 48).max()))
    mesh = to_mesh(scene, 48, texture_size=64)
    assert (mesh.texture.median(0).values.median(0).values - torch.tensor([0.9, 0.5, 0.2])).abs().max() < 0.05

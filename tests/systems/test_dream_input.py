"""Score distillation and DreamGaussian, given what they cannot use: each refusal names it, and what is near to it passes."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from gsgen_lib.data.meshes import Mesh
from gsgen_lib.diffusion import alphas_cumprod_of, ddim_sample, linear_betas
from gsgen_lib.mesh import bake_texture, extract_mesh, grid_points, pieces_of, texel_points, unwrap
from gsgen_lib.options import check_options
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.dream_metrics import caption_score, fronts
from gsgen_lib.systems.dreamgaussian import DreamConfig, dream
from gsgen_lib.systems.dreamgaussian_sample import Textured, check_prompt, read_picture, sample_dreamgaussian
from gsgen_lib.systems.prompt_scorer import load_scorer
from gsgen_lib.systems.score_distillation import annealed_time, ism_gradient, random_time, sds_gradient, view_guided, view_shares
from gsgen_lib.systems.texture_refinement import RefineConfig
from tests.systems.test_dreamgaussian import OneColour

ABAR = alphas_cumprod_of(linear_betas())
NAN = float("nan")


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- score distillation


def test_answers_of_another_shape_are_refused_not_spread():
    x, eps, narrow = torch.zeros(3, 2), torch.zeros(3, 2), lambda x_t, t: x_t[:, :1]
    with pytest.raises(ValueError, match=r"predict: got shape \(3, 1\) back, wanted that of x_t, \(3, 2\)"):
        sds_gradient(narrow, x, torch.tensor(5), eps, ABAR)
    whole = lambda x_t, t: x_t  # noqa: E731
    for ask, plain in ((narrow, whole), (whole, narrow)):
        with pytest.raises(ValueError, match="predict: got shape"):
            ism_gradient(ask, plain, x, 300, 50, ABAR)


@pytest.mark.parametrize("t", [torch.tensor(0.5), torch.tensor([1, 2]), torch.tensor([[1], [2], [3]])])
def test_steps_of_another_kind_or_number_are_refused(t):
    with pytest.raises(ValueError, match="t: got"):
        sds_gradient(lambda x_t, t: x_t, torch.zeros(3, 2), t, torch.zeros(3, 2), ABAR)


def test_times_and_directions_out_of_range_are_refused():
    for low, high in ((5, 5), (9, 2), (-1, 4)):
        with pytest.raises(ValueError, match="low, high: got"):
            random_time(3, gen(), low, high)
    for low, high in ((9, 2), (-1, 4), (0, 1000)):
        with pytest.raises(ValueError, match="low, high: got"):
            annealed_time(1, 3, low, high)
    assert annealed_time(1, 3, 500, 500) == 500
    for a, e in ((NAN, 0.0), (0.0, float("inf"))):
        with pytest.raises(ValueError, match="azimuth, elevation: got"):
            view_shares(a, e)
    for through in (-1, 6):
        with pytest.raises(ValueError, match=f"through: got {through}, wanted 0 to 5"):
            ddim_sample(lambda x, t: x, torch.zeros(1, 2), ABAR, 5, through=through)


def test_each_view_may_have_its_own_time():
    """Three copies of the batch go through one call: each copy must carry the same times."""
    model = lambda x, t, c: x * t[:, None].float() + c[:, :, 0]  # noqa: E731
    words, empty, x, t = torch.randn(4, 1, 1, generator=gen()), torch.zeros(1, 1, 1), torch.randn(2, 1, generator=gen(1)), torch.tensor([3, 7])
    both = view_guided(model, words[:2], words, empty, 5.0, 2.0)(x, t)
    alone = [view_guided(model, words[i:i + 1], words, empty, 5.0, 2.0)(x[i:i + 1], t[i:i + 1]) for i in range(2)]
    torch.testing.assert_close(both, torch.cat(alone))


# ---- options


@pytest.mark.parametrize("change,message", [
    ({"steps": 10.0}, "config.steps: got 10.0, wanted a whole number > 0"), ({"steps": True}, "config.steps: got True"),
    ({"lr_means": NAN}, "config.lr_means: got nan, wanted a finite number >= 0"), ({"lr_colors": -1e-3}, "config.lr_colors: got -0.001"),
    ({"annealed": 1}, "config.annealed: got 1, wanted True or False"), ({"elevations": (0.0,)}, "config.elevations: got .*2 finite numbers"),
    ({"weight": 3}, "config.weight: got 3, wanted str"), ({"guidance_scale": "10"}, "config.guidance_scale: got '10'"),
    ({"prune_opacity": 1.5}, "config.prune_opacity: got 1.5"), ({"init": 5000}, "config.init: got 5000 .*max_gaussians = 4000"),
])
def test_options_of_another_kind_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dream(OneColour(), "a thing", replace(DreamConfig(), **change), progress=False)
    check_options(DreamConfig(steps=np.int64(3), lr_means=1, elevations=[-10, 20]))  # numbers are numbers


@pytest.mark.parametrize("change", [{"views": 2.0}, {"lr": NAN}, {"strength": (0.5,)}, {"elevations": (20.0, 10.0)}])
def test_options_of_the_refinement_are_named(change):
    with pytest.raises(ValueError, match=f"config.{next(iter(change))}: got"):
        RefineConfig(**change)


@pytest.mark.parametrize("picture,error", [
    (torch.zeros(8, 8, 4, dtype=torch.uint8), TypeError), (np.zeros((8, 8, 4), np.float32), TypeError),
    (255 * torch.ones(8, 8, 4), ValueError), (torch.full((8, 8, 4), NAN), ValueError), (torch.zeros(2, 8, 8, 4), ValueError),
])
def test_pictures_of_another_kind_or_range_are_refused(picture, error):
    with pytest.raises(error, match="picture: "):
        dream(OneColour(), "a thing", DreamConfig(steps=1, size=16), picture=picture, progress=False)


# ---- pictures from files


def test_sixteen_bits_of_grey_are_scaled_and_numbers_of_any_size_refused(tmp_path):
    grey = np.full((40, 40), 60000, np.uint16)
    grey[10:30, 12:28] = 20000
    Image.fromarray(grey).save(tmp_path / "grey.png")
    found = read_picture(tmp_path / "grey.png", 32)
    assert found[16, 16].tolist() == pytest.approx([20000 / 65535] * 3 + [1.0], abs=0.02)
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="mode F; save it with 8 bits"):
        read_picture(tmp_path / "float.tiff", 32)


def test_specks_do_not_widen_the_frame_and_what_is_too_thin_is_refused(tmp_path):
    picture = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((30, 30, 69, 69), fill=(200, 30, 30, 255))
    picture.save(tmp_path / "clean.png")
    draw.point([(1, 1), (98, 97)], fill=(0, 0, 0, 255))
    picture.save(tmp_path / "specks.png")
    clean, specks = (read_picture(tmp_path / f"{name}.png", 32) for name in ("clean", "specks"))
    torch.testing.assert_close(clean, specks)
    thin = Image.new("RGBA", (1000, 1000), (0, 0, 0, 0))
    ImageDraw.Draw(thin).line((500, 10, 500, 990), fill=(0, 0, 0, 255))
    thin.save(tmp_path / "thin.png")
    with pytest.raises(ValueError, match="thinner than half a pixel"):
        read_picture(tmp_path / "thin.png", 32)
    Image.new("RGBA", (50, 50), (200, 0, 0, 128)).save(tmp_path / "veil.png")
    with pytest.raises(ValueError, match=r"transparent everywhere alike \(alpha 0.50\)"):
        read_picture(tmp_path / "veil.png", 32)


# ---- the command


def test_the_command_refuses_before_it_loads_anything(tmp_path):
    (tmp_path / "file").write_text("")
    for wrong, message in (({"out": tmp_path / "file"}, "out: got .*file, which is a file"), ({"seed": -1}, "seed: got -1"),
                           ({"seed": 2**70}, "seed: got"), ({"elevation": NAN}, "elevation: got nan")):
        with pytest.raises(ValueError, match=message):
            sample_dreamgaussian("a red mug", prior="no such prior", **({"out": tmp_path / "new"} | wrong))
    assert not (tmp_path / "new").exists()


def test_words_that_end_like_a_view_stay():
    words = {"a", "red", "mug", "inside", "view"}
    assert check_prompt("a red mug inside view", words) == "a red mug inside view"
    assert check_prompt("a red mug,side view", words) == check_prompt("a red mug right  side view", words) == "a red mug"


# ---- the judge, and textures


def test_the_judge_refuses_what_is_no_ring_of_pictures():
    judge, few = load_scorer(), torch.rand(3, 64, 64, 3, generator=gen())
    with pytest.raises(ValueError, match="pictures: got 3, wanted 4 or more"):
        fronts(judge, few, "a red mug")
    for bad in (few * 255, few * NAN):
        with pytest.raises(ValueError, match="pictures: "):
            fronts(judge, bad.repeat(2, 1, 1, 1), "a red mug")
        with pytest.raises(ValueError, match="pictures: "):
            caption_score(judge, bad, "a red mug")


def ball(resolution=20):
    r = torch.stack(torch.meshgrid(*[grid_points(resolution)] * 3, indexing="ij")).norm(dim=0)
    return extract_mesh(2 - r / 0.3)


def test_baking_refuses_pictures_that_are_not_the_cameras():
    mesh, cameras = unwrap(*ball(), 64), Cameras.orbit(2, width=16, height=16)
    for images, message in ((torch.rand(2, 8, 8, 4), "images: got .* pixels"), (torch.full((2, 16, 16, 4), NAN), "images: holds non-finite")):
        with pytest.raises(ValueError, match=message):
            bake_texture(mesh, images, cameras, 64)


def test_a_texture_of_no_colours_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="texture: holds non-finite"):
        Textured(unwrap(*ball(), 64), torch.full((64, 64, 3), NAN)).save(tmp_path / "x.glb")
    assert not list(tmp_path.iterdir())


def test_charts_stand_apart_in_the_texture():
    """Bilinear lookups, and the smaller levels that a viewer makes of a texture, would mix the colours of charts that touch.
    A padding of 2 leaves more than 4 texels between the texels of two charts; one of 1 does not."""
    size, mesh = 128, unwrap(*ball(), 128)
    corners, where = np.unique(np.round(mesh.uv.reshape(-1, 2), 6), axis=0, return_inverse=True)
    chart = pieces_of(corners, where.reshape(-1, 3))
    assert chart.max() > 3
    owner = np.full((size, size), -1)
    for c in range(chart.max() + 1):
        texels = texel_points(Mesh(mesh.vertices, mesh.faces[chart == c], mesh.uv[chart == c]), size)[0]
        owner[tuple(texels.T)] = c
    for down, right in product(range(5), range(-4, 5)):
        here = owner[:size - down, max(0, -right):size - max(0, right)]
        there = owner[down:, max(0, right):size - max(0, -right)]
        assert not ((here >= 0) & (there >= 0) & (here != there)).any()


def test_a_scene_larger_than_the_cap_is_refused_before_anything_is_computed():
    with pytest.raises(ValueError, match="init: got 60 Gaussians, wanted at most config.max_gaussians = 50"):
        dream(OneColour(), "a thing", DreamConfig(max_gaussians=50), init=Gaussians.random(60, generator=gen()), progress=False)

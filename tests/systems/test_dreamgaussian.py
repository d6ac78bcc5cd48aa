"""DreamGaussian with a denoiser whose opinion is known: everything is one colour. Then the loop, resuming, bad input."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gsgen_lib.data.captioned_views import VIEW_WORDS
from gsgen_lib.diffusion import alphas_cumprod_of, linear_betas
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems import dreamgaussian
from gsgen_lib.systems.dreamgaussian import DreamConfig, ball, directions, dream
from gsgen_lib.systems.score_distillation import ViewPrompts
from gsgen_lib.systems.texture_refinement import RefineConfig, denoised, refine, smoothed

GREEN = torch.tensor([0.1, 0.8, 0.2])


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


class OneColour:
    """A prior of pictures that are `color` everywhere when asked with words, grey when asked with none: its latents
    are the pixels, its denoiser is exact."""

    def __init__(self, color=GREEN):
        self.color, self.alphas_cumprod, self.device = color, alphas_cumprod_of(linear_betas()), torch.device("cpu")
        self.asked, self.fail_at = [], None

    def encode_prompt(self, prompts):
        return torch.stack([torch.full((1, 1), float(len(p))) for p in prompts])  # "" is 0

    def encode_image(self, images):
        return images.movedim(-1, 1) * 2 - 1

    def decode(self, z):
        return (z.movedim(1, -1) / 2 + 0.5).clamp(0, 1)

    def predict_eps(self, x_t, t, text, views=1):
        self.asked.append((int(t), text.flatten().tolist(), views))
        if len(self.asked) == self.fail_at:
            raise KeyboardInterrupt
        a = self.alphas_cumprod[int(t)]
        clean = torch.where(text.reshape(-1, 1, 1, 1) > 0, self.color.reshape(1, 3, 1, 1), torch.full((1, 3, 1, 1), 0.5)) * 2 - 1
        return (x_t - a.sqrt() * clean) / (1 - a).sqrt()


FEW = DreamConfig(steps=40, views=2, size=24, init=60, guidance_scale=1.0, weight="one", densify_every=10, high=600, lr_colors=0.05,
                  max_gaussians=300, weight_opaque=0.0)


def test_gaussians_take_the_colour_of_the_prior_and_cover_the_frame():
    found = dream(OneColour(), "a thing", FEW, generator=gen(), progress=False)
    start = ball(60, FEW.radius, gen())
    before, after = (rasterize(g, Cameras.orbit(4, width=24, height=24), (0.5, 0.5, 0.5)) for g in (start, found.gaussians))
    off = [(out.rgb - GREEN).abs().mean().item() for out in (before, after)]
    assert off[1] < 0.7 * off[0] and after.alpha.mean() > 1.3 * before.alpha.mean()
    heavy = found.gaussians.opacities > 0.3
    assert (found.gaussians.colors[heavy].mean(0) - GREEN).abs().max() < 0.15
    other = dream(OneColour(torch.tensor([0.9, 0.1, 0.1])), "a thing", FEW, generator=gen(), progress=False)  # control
    assert (other.gaussians.colors[other.gaussians.opacities > 0.3].mean(0) - GREEN).abs().max() > 0.4


def test_what_the_prior_is_asked():
    """Falling noise levels, one question with words and one without each step, the words of each view."""
    prior = OneColour()
    found = dream(prior, "x", replace(FEW, guidance_scale=3.0, steps=10, densify_every=99), generator=gen(), progress=False)
    assert [t for t, _, _ in prior.asked] == [600] * 4 + [600, 500, 400, 300, 200, 100] and len(found.log) == 10
    for _, text, views in prior.asked:
        assert text[:2] == [0.0, 0.0] and all(t > 1 for t in text[2:]) and views == 1
    plain = OneColour()
    dream(plain, "x", replace(FEW, steps=3, view_prompts=False), generator=gen(), progress=False)
    assert all(text == [1.0, 1.0] for _, text, _ in plain.asked)  # the caption alone: one letter
    together = OneColour()
    dream(together, "x", replace(FEW, steps=2, views=4, multi_view=True), generator=gen(), progress=False)
    assert {views for _, _, views in together.asked} == {4}
    drawn = OneColour()
    dream(drawn, "x", replace(FEW, steps=30, annealed=False), generator=gen(), progress=False)
    times = [t for t, _, _ in drawn.asked]
    assert times != sorted(times, reverse=True) and min(times) >= 20 and max(times) < 600


def test_each_view_is_asked_for_by_its_own_words(monkeypatch):
    """The words asked with are those of the cameras rendered from."""
    drawn, prior, kept = [], OneColour(), dreamgaussian.rasterize
    monkeypatch.setattr(dreamgaussian, "rasterize", lambda g, cameras, *a: drawn.append(cameras) or kept(g, cameras, *a))
    dream(prior, "x", replace(FEW, steps=6, views=3, view_guidance=0.0, guidance_scale=2.0), generator=gen(), progress=False)
    words = ViewPrompts(OneColour(), "x")
    for cameras, (_, text, _) in zip(drawn, prior.asked, strict=True):
        x, y, z = cameras.centers.double().T
        azimuths, elevations = torch.rad2deg(torch.atan2(x, z)), torch.rad2deg(torch.asin(y / cameras.centers.double().norm(dim=1)))
        assert text[3:] == pytest.approx(words(azimuths.tolist(), elevations.tolist()).flatten().tolist(), abs=0.05)


def test_view_words_are_pushed_against_each_other_unless_left_out():
    """Three questions a view: nothing, the view, the other views; two where the view is not said or not to be louder."""
    for change, chunks in (({}, 3), ({"view_guidance": 0.0}, 2), ({"view_prompts": False}, 2), ({"views": 4, "multi_view": True}, 3)):
        prior, config = OneColour(), replace(FEW, guidance_scale=2.0, steps=1, **change)
        dream(prior, "x", config, generator=gen(), progress=False)
        (_, text, _), = prior.asked
        assert len(text) == chunks * config.views
        own, other = text[config.views:2 * config.views], text[2 * config.views:]
        words = [len(f"x, {w}") for w in ("front view", "right side view", "back view", "left side view")] if change.get("multi_view") \
            else [len(f"x, {w}") for w in VIEW_WORDS]
        assert other == pytest.approx([(sum(words) - o) / 3 for o in own][:len(other)], rel=1e-5)


def test_a_ray_is_stopped_wholly_or_not_at_all():
    """Thin fog goes and thick fog closes; without the term the thin one grows, since the prior paints with it."""
    middle = {}
    for opacity in (0.02, 0.5):
        start = replace(ball(200, 0.4, gen()), opacities=torch.full((200,), opacity))
        for weight in (0.0, 1e5):
            config = replace(FEW, guidance_scale=0.0, weight_opaque=weight, steps=40, densify="none")
            found = dream(OneColour(torch.full((3,), 0.5)), "x", config, init=start, generator=gen(), progress=False)
            alpha = rasterize(found.gaussians, Cameras.orbit(4, width=24, height=24)).alpha[:, 8:16, 8:16]
            middle[opacity, weight] = alpha.mean().item()
    assert middle[0.02, 1e5] < 0.02 and middle[0.02, 0.0] > 0.2
    assert middle[0.5, 1e5] > 0.99


def test_an_interrupted_dream_goes_on_to_the_same_end(tmp_path):
    config = replace(FEW, steps=70)
    whole = dream(OneColour(), "a thing", config, generator=gen(), progress=False)
    broken = OneColour()
    broken.fail_at = 63
    with pytest.raises(KeyboardInterrupt):
        dream(broken, "a thing", config, generator=gen(), folder=tmp_path, progress=False)
    prior = OneColour()
    again = dream(prior, "a thing", config, generator=gen(), folder=tmp_path, progress=False)
    assert len(prior.asked) == 20 and len(again.log) == 70  # from step 50 on
    for name in ("means", "quats", "scales", "opacities", "colors"):
        assert torch.equal(getattr(again.gaussians, name), getattr(whole.gaussians, name))


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(tmp_path):
    dream(OneColour(), "a thing", replace(FEW, steps=50), generator=gen(), folder=tmp_path, progress=False)
    for caption, config, message in (("else", replace(FEW, steps=50), "caption='a thing', wanted 'else'"),
                                     ("a thing", replace(FEW, steps=50, lr_means=1.0), "lr_means=0.005, wanted 1.0")):
        with pytest.raises(ValueError, match=message):
            dream(OneColour(), caption, config, generator=gen(), folder=tmp_path, progress=False)
    config = replace(FEW, steps=50)
    picture = torch.rand(24, 24, 4, generator=gen())
    others = (dict(generator=gen(1)), dict(elevation=20.0), dict(init=ball(60, 0.4, gen())), dict(picture=picture))
    for other, name in zip(others, ("generator", "elevation", "scene", "picture"), strict=True):
        with pytest.raises(ValueError, match=f"belongs to a run with {name}="):
            dream(OneColour(), "a thing", config, folder=tmp_path, progress=False, **{"generator": gen()} | other)
    dream(OneColour(), "a thing", config, generator=gen(), picture=picture, folder=tmp_path / "front", progress=False)
    with pytest.raises(ValueError, match="with picture="):  # the same numbers, mirrored
        dream(OneColour(), "a thing", config, generator=gen(), picture=picture.flip(1), folder=tmp_path / "front", progress=False)
    path = tmp_path / "dream.pt"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="dream.pt: damaged"):
        dream(OneColour(), "a thing", replace(FEW, steps=50), generator=gen(), folder=tmp_path, progress=False)


def test_growth_follows_the_pull_or_chance_or_nothing():
    counts, marks = {}, {}
    for kind in ("gradient", "random", "none"):
        found = dream(OneColour(), "a thing", replace(FEW, densify=kind), generator=gen(), progress=False)
        counts[kind], marks[kind] = found.gaussians.num, [row["gaussians"] for row in found.log]
    assert counts["none"] == 60 < counts["gradient"] <= 300 and counts["random"] > 60
    assert marks["gradient"][9] == 60 < marks["gradient"][10]  # at every tenth step, never at the last
    capped = dream(OneColour(), "a thing", replace(FEW, max_gaussians=62), generator=gen(), progress=False)
    assert capped.gaussians.num <= 62


def test_the_pull_is_that_of_the_rasterizer(monkeypatch):
    """What densification is handed: the mean over views of the norm of the 2D-mean gradient, since the last time."""
    handed, made = [], []
    kept, drawn = dreamgaussian.densify_and_prune, dreamgaussian.rasterize
    monkeypatch.setattr(dreamgaussian, "densify_and_prune", lambda raw, adam, pull, c, g: handed.append(pull) or kept(raw, adam, pull, c, g))
    monkeypatch.setattr(dreamgaussian, "rasterize", lambda *a: made.append(drawn(*a)) or made[-1])
    dream(OneColour(), "a thing", replace(FEW, steps=21), generator=gen(), progress=False)
    for k, pull in enumerate(handed):
        outs = made[10 * k:10 * k + 10]
        total, seen = (sum(getattr(o.info, name).sum(0) for o in outs) for name in ("grad_norm2d", "visible"))
        torch.testing.assert_close(pull, total / seen.clamp_min(1))
    assert len(handed) == 2 and handed[0].max() > 0


def test_a_picture_holds_the_front():
    truth = Gaussians.random(40, scale=0.08, generator=gen(5))
    camera = Cameras.orbit(1, elevation=20.0, width=24, height=24)
    out = rasterize(truth, camera, (0.0, 0.0, 0.0))
    alpha = out.alpha[0].clamp(0, 1)
    picture = torch.cat([(out.rgb[0] / alpha.clamp_min(1e-3)).clamp(0, 1), alpha], -1)
    off = []
    for given in (None, picture):
        found = dream(OneColour(), "a thing", replace(FEW, guidance_scale=0.0, steps=120), picture=given, elevation=20.0, generator=gen(),
                      progress=False)
        seen = rasterize(found.gaussians, camera, (1.0, 1.0, 1.0)).rgb[0]
        off.append((seen - (picture[..., :3] * alpha + 1 - alpha)).square().mean().item())
    assert off[1] < 0.3 * off[0]


def test_directions_fill_their_ranges():
    config = replace(FEW, views=400, elevations=(-10.0, 50.0))
    azimuths, elevations = (torch.tensor(v) for v in directions(config, gen()))
    assert -180 <= azimuths.min() < -170 and 170 < azimuths.max() <= 180 and -10 <= elevations.min() < -8 and 48 < elevations.max() <= 50
    azimuths, elevations = (torch.tensor(v).reshape(100, 4) for v in directions(replace(config, multi_view=True), gen()))
    torch.testing.assert_close(azimuths.diff(dim=1), torch.full((100, 3), 90.0))
    assert (elevations == elevations[:, :1]).all() and -45 <= azimuths[:, 0].min() < -40 and 40 < azimuths[:, 0].max() <= 45


def test_ball_is_uniform_in_volume():
    g = ball(4000, 0.4, gen())
    r = g.means.norm(dim=1)
    assert r.max() <= 0.4 and abs((r < 0.2).float().mean() - 1 / 8) < 0.02 and g.means.mean(0).abs().max() < 0.02
    near = torch.cdist(g.means[:50], g.means).topk(4, largest=False).values[:, 1:].mean(1)
    torch.testing.assert_close(g.scales[:50], near[:, None].expand(50, 3), atol=1e-4, rtol=1e-3)


# ---- stage 2


def test_denoising_ends_where_the_prior_says_and_weak_noise_keeps_more():
    prior, pictures = OneColour(), torch.rand(2, 6, 6, 3, generator=gen())
    text = prior.encode_prompt(["a", "a"])
    out = denoised(prior, pictures, text, 500, 4, 1.0, gen())
    torch.testing.assert_close(out, GREEN.expand(2, 6, 6, 3), atol=1e-4, rtol=0)
    times = [t for t, _, _ in prior.asked]
    assert times == [500, 375, 250, 125]


def test_refining_moves_seen_texels_to_the_target_and_no_others():
    from gsgen_lib.mesh import extract_mesh, grid_points, texel_points, unwrap

    r = torch.stack(torch.meshgrid(*[grid_points(24)] * 3, indexing="ij")).norm(dim=0)
    mesh = unwrap(*extract_mesh(2 - r / 0.3, max_faces=400), 64)
    grey = torch.full((64, 64, 3), 0.5)
    config = RefineConfig(steps=60, lr=0.03, guidance_scale=1.0, elevations=(40.0, 60.0), views=3)  # never from below
    out = refine(OneColour(), "a thing", mesh, grey, config, 48, gen(), progress=False)
    texels, points, _ = texel_points(mesh, 64)
    colors = out[texels[:, 0], texels[:, 1]]
    above, below = points[:, 1] > 0.1, points[:, 1] < -0.25
    assert (colors[above].mean(0) - GREEN).abs().max() < 0.1
    assert (colors[below] == 0.5).all(1).float().mean() > 0.95  # but for texels at the rim of a seen chart
    again = refine(OneColour(), "a thing", mesh, grey, config, 48, gen(), progress=False)
    assert torch.equal(again, out)


@pytest.mark.parametrize("period", [2, 3, 4, 6, 8])
def test_smoothing_turns_no_stripes_around(period):
    """What is smoothed still points along the gradient. Control: one mean over three turns stripes of two texels around."""
    phase = 2 * torch.pi * torch.arange(48) / period
    stripes = torch.cos(phase)[:, None, None].expand(48, 48, 3).contiguous()
    inner = (stripes * smoothed(stripes))[8:40, 8:40].mean() / stripes.square().mean()
    assert inner == pytest.approx((1 / 3 + 2 / 3 * np.cos(2 * np.pi / period)) ** 2, abs=0.03)
    once = torch.nn.functional.avg_pool2d(stripes.movedim(-1, 0)[None], 3, 1, 1)[0].movedim(0, -1)
    assert ((stripes * once)[8:40, 8:40].mean() < -0.01) == (period == 2)


@pytest.mark.parametrize("change,message", [
    ({"strength": (1.0, 0.5)}, "strength: got"), ({"every": 0}, "every: got 0"), ({"denoise": 0}, "denoise: got 0"),
])
def test_bad_settings_of_refinement_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        RefineConfig(**change)


@pytest.mark.parametrize("change,message", [
    ({"densify": "often"}, "config.densify: got 'often'"), ({"multi_view": True, "views": 6}, "config.views, view_prompts: got 6"),
    ({"steps": 0}, "config.steps: got 0"), ({"init": 3}, "config.init: got 3"), ({"weight": "two"}, "weight: got 'two'"),
    ({"max_gaussians": 50}, "max_gaussians = 50"), ({"low": 600}, "config.low, high: got 600, 600"),
    ({"high": 1000}, "wanted 0 <= low < high < 1000"), ({"elevations": (50.0, -10.0)}, "config.elevations: got"),
    ({"multi_view": True, "views": 4, "view_prompts": False}, "wanted a multiple of 4 and True"),
    ({"densify_quantile": 1.5}, "config.densify_quantile: got 1.5"),
])
def test_bad_configurations_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dream(OneColour(), "a thing", replace(FEW, **change), generator=gen(), progress=False)


def test_a_scene_that_cannot_be_coloured_is_refused():
    for init in (Gaussians.random(9, sh_degree=1, generator=gen()), Gaussians.stack([Gaussians.random(9, generator=gen())])):
        with pytest.raises(ValueError, match="init: got batch"):
            dream(OneColour(), "a thing", FEW, init=init, generator=gen(), progress=False)


def test_a_picture_without_alpha_is_refused():
    with pytest.raises(ValueError, match=r"picture: got shape \(24, 24, 3\)"):
        dream(OneColour(), "a thing", FEW, picture=torch.rand(24, 24, 3), generator=gen(), progress=False)

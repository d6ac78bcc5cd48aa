"""Fitting: it learns the scene and not the backgrounds, densification does what the paper says, bad input is named."""

import pytest
import torch
from skimage.metrics import structural_similarity

from gsgen_lib.metrics import psnr
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems import fitting
from gsgen_lib.systems.fitting import (FitConfig, NAMES, densify_and_prune, fit, initial_scene, inside_silhouettes, to_raw,
                                       to_scene)

WHITE = (1.0, 1.0, 1.0)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def posed():
    """RGBA images of a small scene from 16 sides, with straight alpha, and their cameras."""
    truth = Gaussians.random(40, radius=0.35, scale=0.08, opacity=0.9, generator=gen(3))
    cams = Cameras.orbit(16, elevation=(torch.arange(16) * 37 % 80 - 20).float(), width=32, height=32)
    out = rasterize(truth, cams)
    rgb = out.rgb / out.alpha.clamp_min(1e-6)
    return torch.cat([rgb.clamp(0, 1), out.alpha], -1), cams


SMALL = FitConfig(steps=250, init=300, max_gaussians=600, densify_every=40)
TRAIN, TEST = torch.arange(16)[torch.arange(16) % 4 != 3], torch.arange(16)[torch.arange(16) % 4 == 3]


def held_out_psnr(scene, images, cams):
    target = images[TEST][..., :3] * images[TEST][..., 3:] + 1 - images[TEST][..., 3:]
    return psnr(rasterize(scene, cams[TEST], WHITE).rgb.clamp(0, 1), target).item()


def test_fit_shows_unseen_views_and_wrong_cameras_do_not(posed):
    images, cams = posed
    good = fit(images[TRAIN], cams[TRAIN], config=SMALL, generator=gen(), progress=False)
    assert held_out_psnr(good.gaussians, images, cams) > 28
    alpha = rasterize(good.gaussians, cams[TEST]).alpha[..., 0]
    assert (alpha - images[TEST][..., 3]).abs().mean() < 0.03  # the background did not become part of the scene
    assert [e["step"] for e in good.log] == list(range(250)) and good.log[-1]["gaussians"] == good.gaussians.num
    good.gaussians.validate()
    wrong = fit(images[TRAIN], cams[TRAIN.roll(5)], config=SMALL, generator=gen(), progress=False)  # negative control
    assert held_out_psnr(wrong.gaussians, images, cams) < 22


def test_same_generator_same_scene(posed):
    images, cams = posed
    config = FitConfig(steps=60, init=200, densify_every=15)
    a, b, c = (fit(images, cams, config=config, generator=gen(s), progress=False).gaussians for s in (1, 1, 2))
    assert all(torch.equal(getattr(a, k), getattr(b, k)) for k in NAMES)
    assert a.num != c.num or not torch.equal(a.means, c.means)


def test_rgb_images_and_snapshots(posed):
    images, cams = posed
    rgb = images[..., :3] * images[..., 3:] + 1 - images[..., 3:]
    result = fit(rgb, cams, config=FitConfig(steps=40, init=200), generator=gen(), snapshot_every=20, densify=False,
                 progress=False)
    assert [s for s, _ in result.snapshots] == [20, 40] and {e["gaussians"] for e in result.log} == {200}
    assert torch.equal(result.snapshots[-1][1].means, result.gaussians.means)


def test_raw_and_activated_are_inverse():
    g = Gaussians.random(50, generator=gen())
    back = to_scene(to_raw(g))
    for k in NAMES:
        torch.testing.assert_close(getattr(back, k), getattr(g, k), atol=1e-6, rtol=1e-5)


def grown(pull, config, scales=None, opacities=None, n=8):
    g = Gaussians.random(n, generator=gen())
    raw = to_raw(Gaussians(g.means, g.quats, torch.full((n, 3), 0.01) if scales is None else scales,
                           torch.full((n,), 0.5) if opacities is None else opacities, g.colors))
    raw = {k: v.clone().requires_grad_() for k, v in raw.items()}
    adam = torch.optim.Adam([dict(params=[raw[k]], name=k) for k in NAMES], lr=1e-9)
    sum((v * torch.arange(1.0, n + 1).reshape(-1, *[1] * (v.ndim - 1))).sum() for v in raw.values()).backward()
    adam.step()  # gives each Gaussian i a first moment proportional to i + 1
    return raw, adam, densify_and_prune(raw, adam, pull, config, gen())


def test_small_gaussians_are_cloned_large_ones_split_transparent_ones_pruned():
    config = FitConfig(densify_quantile=0.7, split_scale=0.05, prune_opacity=0.02)
    pull = torch.tensor([0.0, 0, 9, 0, 8, 0, 7, 0])  # 2, 4, 6 are pulled hardest
    scales, opacities = torch.full((8, 3), 0.01), torch.full((8,), 0.5)
    scales[4] = torch.tensor([0.3, 0.01, 0.02])  # large
    opacities[6], opacities[7] = 0.01, 0.001  # transparent: gone, also though 6 is pulled
    raw, adam, new = grown(pull, config, scales, opacities)
    stay = [0, 1, 2, 3, 5]  # 4 is replaced by its halves
    assert len(new["means"]) == len(stay) + 1 + 2
    assert torch.equal(new["means"][:5], raw["means"][stay]) and torch.equal(new["colors"][5], raw["colors"][2])
    halves = to_scene(new).scales[6:]
    torch.testing.assert_close(halves, (scales[4] / 1.6).expand(2, 3), rtol=1e-4, atol=0)
    assert not torch.equal(new["means"][6], new["means"][7])
    moments = adam.state[new["means"]]["exp_avg"]
    torch.testing.assert_close(moments[:5, 0], 0.1 * torch.tensor([1.0, 2, 3, 4, 6]))
    assert (moments[5:] == 0).all() and all(g["params"][0] is new[g["name"]] for g in adam.param_groups)


def test_halves_are_drawn_from_the_gaussian_they_replace():
    config = FitConfig(densify_quantile=0.0, split_scale=0.0, max_gaussians=10**6)
    n = 4000
    g = Gaussians.random(1, generator=gen(1))
    one = to_raw(Gaussians(g.means, g.quats, torch.tensor([[0.3, 0.1, 0.02]]), g.opacities, g.colors))
    raw = {k: v.repeat(n, *[1] * (v.ndim - 1)).requires_grad_() for k, v in one.items()}
    adam = torch.optim.Adam([dict(params=[raw[k]], name=k) for k in NAMES])
    new = densify_and_prune(raw, adam, torch.rand(n, generator=gen()) + 1, config, gen())
    spread = torch.cov((new["means"] - g.means).detach()[-2 * (n - 1):].T)
    want = Gaussians(g.means, g.quats, torch.tensor([[0.3, 0.1, 0.02]]), g.opacities, g.colors).covariances()[0]
    assert (spread - want).abs().max() < 0.06 * want.abs().max()


def test_the_cap_is_kept_and_prefers_the_strongest_pull():
    config = FitConfig(densify_quantile=0.0, max_gaussians=10)
    _, _, new = grown(torch.arange(8.0), config)
    assert len(new["means"]) == 10
    raw, _, _ = grown(torch.arange(8.0), config)
    assert torch.equal(new["colors"][8:].detach(), raw["colors"][[7, 6]].detach())


def test_silhouettes_equal_brute_force(posed):
    images, cams = posed
    points = 0.7 * (torch.rand(300, 3, generator=gen()) - 0.5)  # in frame in every view
    want = []
    for p in points:
        ok = True
        for v in range(len(cams)):
            x = cams.Ks[v] @ (cams.viewmats[v] @ torch.cat([p, torch.ones(1)]))[:3]
            col, row = int(x[0] / x[2]), int(x[1] / x[2])
            ok &= bool(images[v, row, col, 3] > 0.5)
        want.append(ok)
    got = inside_silhouettes(points, images[..., 3], cams)
    assert got.tolist() == want and 0 < sum(want) < 300
    scene = initial_scene(images, cams, 500, gen())
    assert scene.num == 500 and inside_silhouettes(scene.means, images[..., 3], cams).all()


def test_thin_silhouettes_are_filled_and_never_ignored():
    """A stick two pixels wide: random points rarely hit it, and yet all n Gaussians lie inside."""
    cams = Cameras.orbit(6, width=32, height=32)
    alphas = torch.zeros(6, 32, 32)
    alphas[:, 6:26, 15:17] = 1
    images = torch.cat([torch.zeros(6, 32, 32, 3), alphas[..., None]], -1)
    first_draw = (torch.rand(40 * 300, 3, generator=gen()) - 0.5)
    assert inside_silhouettes(first_draw, alphas, cams).sum() < 300 // 4
    scene = initial_scene(images, cams, 300, gen())
    assert inside_silhouettes(scene.means, alphas, cams).all() and 100 < scene.num <= 300
    empty = initial_scene(torch.zeros(6, 32, 32, 4), cams, 300, gen())  # no silhouette at all: the whole cube
    assert empty.num == 300 and empty.means.abs().max() > 0.49


@pytest.mark.parametrize("change,message", [
    (dict(images=torch.rand(4, 16, 16, 3)), r"images: got shape \(4, 16, 16, 3\)"),
    (dict(images=torch.rand(3, 16, 16, 3) * 2), r"images: wanted finite floats in \[0, 1\]"),
    (dict(images=torch.zeros(3, 16, 16, 3, dtype=torch.uint8)), "images: wanted finite floats"),
    (dict(cameras=Cameras.orbit(3, width=8, height=8), images=torch.rand(3, 8, 8, 3)), "wanted >= 11 pixels"),
    (dict(config=FitConfig(steps=0)), "config.steps: got 0"),
    (dict(init=Gaussians.random(5, sh_degree=1)), "init: got batch"),
    (dict(init=Gaussians.random(0)), "init: got 0 Gaussians"),
    (dict(init=Gaussians.random(30), config=FitConfig(max_gaussians=20)), "init: got 30 Gaussians, wanted 1 to .* = 20"),
    (dict(config=FitConfig(init=300, max_gaussians=100, steps=1)), "config.init: got 300"),
    (dict(images=torch.cat([torch.rand(3, 16, 16, 3), torch.zeros(3, 16, 16, 1)], -1)), "images: got alpha 0 everywhere"),
    (dict(cameras=Cameras.orbit(3, width=16, height=16)[:0], images=torch.zeros(0, 16, 16, 3)), "cameras: got no views"),
    (dict(cameras=Cameras(2 * torch.eye(4).repeat(3, 1, 1), torch.eye(3).repeat(3, 1, 1), 16, 16)), "viewmats: got a 3x3"),
    (dict(cameras=Cameras.stack([Cameras.orbit(3, width=16, height=16)])), "cameras: got batch shape")])
def test_bad_input_is_named(change, message):
    kwargs = {**dict(images=torch.rand(3, 16, 16, 3), cameras=Cameras.orbit(3, width=16, height=16)), **change}
    with pytest.raises(ValueError, match=message):
        fit(**kwargs, progress=False)


def test_arrays_are_refused_and_other_precisions_taken():
    cams = Cameras.orbit(3, width=16, height=16)
    with pytest.raises(TypeError, match="images: got ndarray"):
        fit(torch.rand(3, 16, 16, 3).numpy(), cams, progress=False)
    images, init = torch.rand(3, 16, 16, 3, generator=gen()), Gaussians.random(20, generator=gen())
    config = FitConfig(steps=3)
    want = fit(images, cams, init, config, gen(), progress=False)
    double = fit(images.double(), cams.to(torch.float64), init.to(torch.float64), config, gen(), progress=False)
    assert double.gaussians.means.dtype == torch.float32 and double.log == want.log
    assert fit(images.half(), cams, init, config, gen(), progress=False).gaussians.means.dtype == torch.float32


def test_a_scene_that_fades_keeps_its_most_opaque_gaussian():
    opacities = torch.full((8,), 0.001)
    opacities[5] = 0.002
    raw, _, new = grown(torch.zeros(8), FitConfig(), opacities=opacities)
    assert len(new["means"]) == 1 and torch.equal(new["means"][0], raw["means"][5])
    nothing = torch.ones(3, 16, 16, 3)  # white on white: every Gaussian has to go
    config = FitConfig(steps=120, init=20, densify_every=5, densify_from=0.0, densify_until=1.0, prune_opacity=0.25)
    result = fit(nothing, Cameras.orbit(3, width=16, height=16), config=config, generator=gen(), progress=False)
    assert result.gaussians.num >= 1 and result.log[-1]["gaussians"] < 20


def test_the_cap_holds_during_a_fit(posed):
    images, cams = posed
    config = FitConfig(steps=30, init=100, max_gaussians=110, densify_every=5, densify_from=0.0, densify_until=1.0)
    counts = [e["gaussians"] for e in fit(images, cams, config=config, generator=gen(), progress=False).log]
    assert max(counts) == 110


def test_points_behind_a_camera_or_in_no_frame():
    """A camera does not speak about what lies behind it; what no camera sees is outside."""
    K = torch.tensor([[16.0, 0, 8], [0, 16, 8], [0, 0, 1]])
    behind, ahead = torch.eye(4), torch.eye(4)
    ahead[2, 3] = 3.0  # stands 3 further back
    cams = Cameras(torch.stack([behind, ahead]), K.repeat(2, 1, 1), 16, 16)
    point = torch.tensor([[0.5, 0.5, -1.0]])  # projects to pixel (0, 0) of the first camera if its sign is overlooked
    alphas = torch.ones(2, 16, 16)
    alphas[0, 0, 0] = 0
    assert inside_silhouettes(point, alphas, cams).item()
    assert not inside_silhouettes(point, alphas, cams[:1]).item()  # in no frame at all
    assert not inside_silhouettes(torch.tensor([[50.0, 0, 1]]), alphas, cams).item()


def test_the_loop_takes_what_the_config_says(posed, monkeypatch):
    """Views per step, the loss, the decay of the rate, and the pull averaged over the views that saw a Gaussian."""
    images, cams = posed
    rgb = images[..., :3] * images[..., 3:] + 1 - images[..., 3:]
    rates, renders, pulls = [], [], []

    class Adam(torch.optim.Adam):
        def step(self):
            rates.append({g["name"]: g["lr"] for g in self.param_groups})
            return super().step()

    def render(scene, cameras, *more):
        renders.append((cameras, rasterize(scene, cameras, *more)))
        return renders[-1][1]

    def densify(raw, adam, pull, *more):
        pulls.append(pull)
        return raw

    monkeypatch.setattr(fitting.torch.optim, "Adam", Adam)
    monkeypatch.setattr(fitting, "rasterize", render)
    monkeypatch.setattr(fitting, "densify_and_prune", densify)
    config = FitConfig(steps=8, batch=3, densify_every=8, densify_until=1.0, lr_means=1e-3, final_decay=0.1)
    init = Gaussians.random(30, generator=gen())
    log = fit(rgb, cams, init, config, gen(), progress=False).log
    for k, rate in enumerate(rates):
        assert rate["means"] == pytest.approx(1e-3 * 0.1 ** (k / 8)) and rate["colors"] == config.lr_colors
    for entry, (views, out) in zip(log, renders, strict=True):
        assert len(views) == 3
        target = torch.stack([rgb[(cams.viewmats == w).all((-1, -2)).nonzero()[0, 0]] for w in views.viewmats])
        got, want = out.rgb.detach().numpy(), target.numpy()
        similar = sum(structural_similarity(a, b, channel_axis=-1, data_range=1, gaussian_weights=True,
                                            use_sample_covariance=False) for a, b in zip(got, want, strict=True)) / 3
        l1 = abs(got - want).mean()
        assert entry["l1"] == pytest.approx(l1, abs=1e-6)
        assert entry["loss"] == pytest.approx(0.8 * l1 + 0.2 * (1 - similar), abs=1e-4)
    total = sum(out.info.grad_norm2d.sum(0) for _, out in renders)
    seen = sum(out.info.visible.sum(0) for _, out in renders)
    assert len(pulls) == 1 and seen.max() > 1
    torch.testing.assert_close(pulls[0], total / seen.clamp_min(1))

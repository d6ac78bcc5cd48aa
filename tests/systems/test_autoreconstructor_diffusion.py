"""Diffusion over codes: what is known and what is dropped, the loss, guidance, the second set from behind, training, loading."""

import math
import shutil

import pytest
import torch

from gsgen_lib import training
from gsgen_lib.data.multiview import toy_views
from gsgen_lib.diffusion import alphas_cumprod_of, scaled_linear_betas
from gsgen_lib.pretrained import read_card
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems import autoreconstructor_training, code_training
from gsgen_lib.systems.autoreconstructor import AutoReconstructor, AutoReconstructorConfig
from gsgen_lib.systems.autoreconstructor_diffusion import (
    CodeDenoiser,
    CodeDiffusionConfig,
    OneImage,
    Seen,
    code_loss,
    load_one_image,
    opposite,
    patches,
)
from gsgen_lib.systems.autoreconstructor_training import train_autoreconstructor
from gsgen_lib.systems.code_training import batches, set_scales, train_codes
from gsgen_lib.training import load_state, seeded

S, CELLS, FEATURES = 32, 4, 24


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def autoreconstructor(**settings):
    config = AutoReconstructorConfig(size=S, widths=(8, 16, 16, FEATURES), budget=400, **settings)
    return seeded(lambda: AutoReconstructor(config), 0).eval()


def denoiser():
    """Not as it is made, when its answer is 0 everywhere."""
    model = seeded(lambda: CodeDenoiser(CodeDiffusionConfig(cells=CELLS, features=FEATURES, widths=(16, 16), embed=16)), 0)
    torch.nn.init.normal_(model.unet.leave[-1].weight, std=0.1, generator=gen())
    model.mean.copy_(torch.tensor([0.5, -1.0, 0.0, 2.0]))
    model.std.copy_(torch.tensor([1.0, 2.0, 0.5, 1.5]))
    return model.eval()


@pytest.fixture(scope="module")
def sampler():
    return OneImage(autoreconstructor(), denoiser())


@pytest.fixture(scope="module")
def toys():
    return toy_views(3, 0, S, 10, points=16, progress=False)


@pytest.fixture(scope="module")
def picture(toys):
    return toys.images[:1, 0].float() / 255, Cameras(toys.cameras.viewmats[0, :1], toys.cameras.Ks[0, :1], S, S)


# ---- what is known


def test_dropped_scenes_do_not_depend_on_their_picture(sampler):
    seen = sampler.seen(torch.rand(3, S, S, 4, generator=gen()))
    other = sampler.seen(torch.rand(3, S, S, 4, generator=gen(1)))
    x, t = torch.randn(3, 4, CELLS, CELLS, generator=gen()), torch.tensor([10, 500, 900])
    which = torch.tensor([True, False, True])
    a, b = (sampler.denoiser(x, t, s.dropped(which)) for s in (seen, other))
    assert torch.equal(a[[0, 2]], b[[0, 2]]) and not torch.allclose(a[1], b[1])
    assert torch.equal(a[1], sampler.denoiser(x, t, seen)[1])


def test_the_side_is_known_even_where_the_picture_is_dropped(sampler):
    seen = sampler.seen(torch.rand(1, S, S, 4, generator=gen()))
    behind = Seen(seen.features, seen.mask, torch.ones(1))
    x, t = torch.randn(1, 4, CELLS, CELLS, generator=gen()), torch.tensor([500])
    all_of_them = torch.ones(1, dtype=torch.bool)
    for a, b in ((seen, behind), (seen.dropped(all_of_them), behind.dropped(all_of_them))):
        assert not torch.allclose(sampler.denoiser(x, t, a), sampler.denoiser(x, t, b))


def test_masked_patches_are_never_seen(sampler):
    rgba = torch.rand(2, S, S, 4, generator=gen())
    mask = torch.ones(2, 1, CELLS, CELLS)
    mask[:, :, 1, 2] = 0
    changed = rgba.clone()
    changed[:, 8:16, 16:24] = torch.rand(2, 8, 8, 4, generator=gen(1))  # row 1, column 2, of 8 pixels each
    assert torch.equal(patches(rgba, mask), patches(changed, mask)) and not torch.equal(patches(rgba, mask), rgba)
    assert torch.equal(sampler.seen(rgba, mask).features, sampler.seen(changed, mask).features)
    assert not torch.equal(sampler.seen(rgba).features, sampler.seen(changed).features)  # negative control
    hole = patches(rgba, mask)[:, 8:16, 16:24]
    assert bool((hole[..., :3] == 1).all()) and bool((hole[..., 3] == 0).all())


def test_a_hidden_half_changes_no_sample(sampler, picture):
    """Neither through the features nor through the skips."""
    rgba, camera = picture
    mask = torch.ones(1, 1, CELLS, CELLS)
    mask[..., CELLS // 2:] = 0
    changed = rgba.clone()
    changed[:, :, S // 2:] = torch.rand(1, S, S // 2, 4, generator=gen(7))
    told = [sampler.sample(x, camera, mask=mask, steps=2, generator=gen()) for x in (rgba, changed)]
    assert torch.equal(told[0].opacities, told[1].opacities) and torch.equal(told[0].means, told[1].means)
    free = [sampler.sample(x, camera, steps=2, generator=gen()) for x in (rgba, changed)]
    assert not torch.equal(free[0].opacities, free[1].opacities)  # negative control


def test_opposite_cameras_stand_opposite_at_the_same_height():
    cameras = Cameras.orbit(5, elevation=[-20.0, 0, 10, 30, 60], width=8, height=8)
    there = opposite(cameras)
    torch.testing.assert_close(there.centers, cameras.centers * torch.tensor([-1.0, 1.0, -1.0]))
    torch.testing.assert_close(there.project(torch.zeros(1, 3))[0], cameras.project(torch.zeros(1, 3))[0])
    torch.testing.assert_close(opposite(there).viewmats, cameras.viewmats)


# ---- loss and sampling


def test_the_loss_is_the_error_of_the_noise(sampler):
    seen = sampler.seen(torch.rand(2, S, S, 4, generator=gen()))
    h, net = torch.randn(2, 4, CELLS, CELLS, generator=gen(2)), sampler.denoiser
    found = code_loss(net, net, h, seen, gen(3))["loss"]
    g = gen(3)
    t, eps = torch.randint(1000, (2,), generator=g), torch.randn(h.shape, generator=g)
    abar = alphas_cumprod_of(scaled_linear_betas(1000))[t].float()[:, None, None, None]
    noisy = abar.sqrt() * h + (1 - abar).sqrt() * eps
    assert found.item() == pytest.approx((net(noisy, t, seen) - eps).square().mean().item(), rel=1e-5)


def test_guidance_points_away_from_nothing_and_codes_are_unscaled(sampler):
    """One step from the last time, by hand."""
    seen = sampler.seen(torch.rand(2, S, S, 4, generator=gen()))
    noise, net, t = torch.randn(2, 4, CELLS, CELLS, generator=gen(1)), sampler.denoiser, torch.tensor([999, 999])
    with torch.no_grad():
        told, nothing = net(noise, t, seen), net(noise, t, seen.dropped(torch.ones(2, dtype=torch.bool)))
        a = float(net.alphas_cumprod[999])
        for s in (0.0, 1.0, 3.0):
            eps = nothing + s * (told - nothing)
            h = (noise - math.sqrt(1 - a) * eps) / math.sqrt(a)
            by_hand = h * net.std[:, None, None] + net.mean[:, None, None]
            torch.testing.assert_close(sampler.draw(seen, 1, s, noise=noise), by_hand, rtol=1e-4, atol=1e-3)
        assert not torch.allclose(told, nothing)
    x = torch.randn(2, 4, CELLS, CELLS, generator=gen())
    torch.testing.assert_close(net.scale(net.unscale(x)), x)


def test_samples_are_reproducible_and_differ(sampler, picture):
    one, again, other = (sampler.sample(*picture, count=2, steps=3, generator=gen(k)) for k in (0, 0, 1))
    assert one.batch_shape == (2,) and one.num == 400
    assert torch.equal(one.means, again.means) and not torch.equal(one.means, other.means)
    assert not torch.equal(one.means[0], one.means[1])


def test_a_second_set_from_behind_is_the_first_for_the_opposite_camera(sampler, picture):
    rgba, camera = picture
    both = sampler.sample(rgba, camera, 1, behind=True, steps=3, generator=gen())
    assert both.num == 800
    g = gen()
    sampler.draw(sampler.seen(rgba), 3, generator=g)  # the first set
    h = sampler.draw(sampler.seen(rgba, behind=True), 3, generator=g)
    second = sampler.var.splats(sampler.var.decode(h, Cameras.stack([camera])))  # as if it were seen from the front
    ours = both.map(lambda x: x[:, 400:])
    there = Cameras.stack([opposite(camera)])
    a, b = rasterize(ours, there).rgb, rasterize(second, Cameras.stack([camera])).rgb
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


# ---- training and loading


def test_batches_pair_a_picture_with_itself_or_the_opposite_one(toys):
    draw, seen = batches([toys[:2], toys[2:]], 8, CELLS, 0.0), set()
    for seed in range(10):
        pictures, aims, behind, mask, drop = draw(gen(seed))
        assert bool((mask == 1).all())
        for k in range(8):
            same = torch.equal(pictures[k], aims[k])
            seen.add((bool(behind[k]), same))
            if behind[k]:  # the opposite alpha of the same object (colours are changed)
                alphas = toys.images[..., 3].float() / 255
                alphas = torch.cat([alphas[:, :8], alphas[:, :8].flip(3)])
                near = (alphas - pictures[k, ..., 3]).abs().mean((2, 3))
                far = (alphas.roll(4, 1) - aims[k, ..., 3]).abs().mean((2, 3))
                assert (near + far).min() < 1e-6
    assert (True, False) in seen and (False, True) in seen and (False, False) not in seen
    share = torch.stack([batches([toys[:2], toys[2:]], 8, CELLS, 0.5)(gen(k))[3] for k in range(40)])
    assert 0.6 < share.mean() < 0.9  # half of the scenes lose half of their patches
    assert 0.1 < torch.stack([draw(gen(k))[4] for k in range(60)]).float().mean() < 0.3


def test_scales_bring_codes_to_mean_0_and_spread_1(toys):
    var, model = autoreconstructor(), CodeDenoiser(CodeDiffusionConfig(cells=CELLS, features=FEATURES, widths=(16, 16), embed=16))
    draw = batches([toys[:2], toys[2:]], 16, CELLS, 0.0)
    set_scales(model, var, draw, 0)
    with torch.no_grad():
        mu, logvar, features, _ = var.encode(torch.cat([draw(gen(k))[0] for k in range(8)]))
    h = model.scale(mu + (0.5 * logvar).exp() * torch.randn(mu.shape, generator=gen()))
    assert h.mean((0, 2, 3)).abs().max() < 0.1 and (h.std((0, 2, 3)) - 1).abs().max() < 0.1
    assert model.feature_std.item() == pytest.approx(features.std().item(), rel=0.1)


def test_codes_without_sampling_are_the_means(toys):
    """Where nothing was learned of sigma, it is neither in the scale nor in what the denoiser learns."""
    var = autoreconstructor(variational=False)
    model = CodeDenoiser(CodeDiffusionConfig(cells=CELLS, features=FEATURES, widths=(16, 16), embed=16))
    draw = batches([toys[:2], toys[2:]], 16, CELLS, 0.0)
    set_scales(model, var, draw, 0)
    with torch.no_grad():
        mu, logvar, *_ = var.encode(torch.cat([draw(gen(k))[0] for k in range(8)]))
    assert torch.equal(model.std, mu.var((0, 2, 3)).sqrt().half().float())
    assert torch.equal(var.drawn(mu, logvar, torch.ones_like(mu)), mu)


def test_noise_that_is_given_starts_the_first_set_alone(sampler, picture):
    """Else the code from behind would be drawn from the very noise of the code of the picture."""
    seen, draw = [], sampler.draw

    def spied(told, **settings):
        seen.append(settings.get("noise"))
        return draw(told, **settings)

    sampler.draw = spied
    try:
        noise = torch.randn(2, 4, CELLS, CELLS, generator=gen())
        sampler.sample(*picture, 2, behind=True, noise=noise, steps=2, generator=gen())
    finally:
        del sampler.draw
    assert seen[0] is noise and seen[1] is None


@pytest.mark.parametrize("system", ["var", "codes"])
def test_minutes_are_of_both_stages_together(trained, tmp_path, monkeypatch, system):
    """A first stage that takes 3 of 5 minutes leaves 2 for the second."""
    module = autoreconstructor_training if system == "var" else code_training
    now, left = [0.0], []

    def spied(model, *words, **settings):
        left.append(settings.get("minutes", words[5] if len(words) > 5 else None))
        now[0] += 180
        return training.TrainResult(words[2].steps, 1.0, [{"loss": 1.0}])

    monkeypatch.setattr(module, "train", spied)
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    more = {} if system == "var" else {"autoreconstructor": str(trained[0] / "var" / "model")}
    (autoreconstructor_training.train_autoreconstructor if system == "var" else code_training.train_codes)(
        tmp_path / "x", preset="tiny", minutes=5.0, device="cpu", **more)
    assert left == [5.0, 2.0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("one_image")
    train_autoreconstructor(out / "var", preset="tiny", device="cpu")
    card = train_codes(out / "codes", preset="tiny", autoreconstructor=str(out / "var" / "model"), device="cpu")
    return out, card


def test_stages_differ_in_lpips_masks_and_batches(trained, tmp_path, monkeypatch):
    seen = {"lpips": [], "first picture": [], "masked": []}
    real_loss, real_patches = autoreconstructor_training.var_loss, code_training.patches

    def spied_loss(network, config, truth, cameras, keep, weight_lpips, generator):
        seen["lpips"].append(weight_lpips)
        seen["first picture"].append(truth[0, 0].sum().item())
        return real_loss(network, config, truth, cameras, keep, weight_lpips, generator)

    def spied_patches(rgba, mask):
        seen["masked"].append(bool((mask == 0).any()))
        return real_patches(rgba, mask)

    monkeypatch.setattr(autoreconstructor_training, "var_loss", spied_loss)
    monkeypatch.setattr(code_training, "patches", spied_patches)
    monkeypatch.setattr(code_training, "MASKED", 1.0)
    train_autoreconstructor(tmp_path / "var", preset="tiny", device="cpu", weight_lpips=0.03)
    train_codes(tmp_path / "codes", preset="tiny", autoreconstructor=str(trained[0] / "var" / "model"), device="cpu")
    assert seen["lpips"] == [0.0] * 4 + [0.03] * 2 and len(set(seen["first picture"])) == 6
    assert seen["masked"] == [False] * 4 + [True] * 2


def test_what_was_trained_is_loaded_and_draws(trained, picture):
    out, card = trained
    assert card["name"] == "code_diffusion" and card["autoreconstructor_sha256"]
    sampler = load_one_image(out / "codes" / "model")
    scene = sampler.sample(*picture, steps=2, generator=gen())
    assert scene[0].validate().num == sampler.var.config.budget
    first = load_state(out / "codes" / "first" / "checkpoint.pt", ("step",))["step"]
    assert (first, load_state(out / "codes" / "checkpoint.pt", ("step",))["step"]) == (4, 2)


def test_an_interrupted_training_takes_the_same_steps(trained, tmp_path):
    out, card = trained
    assert train_autoreconstructor(tmp_path / "var", preset="tiny", device="cpu", minutes=0.0) == {}
    card = train_autoreconstructor(tmp_path / "var", preset="tiny", device="cpu")
    while not card:
        card = train_autoreconstructor(tmp_path / "var", preset="tiny", device="cpu")
    assert card["sha256"]["model.safetensors"] == read_card(out / "var" / "model")["sha256"]["model.safetensors"]


def test_another_autoreconstructor_is_refused(trained, tmp_path):
    out, _ = trained
    train_autoreconstructor(tmp_path / "other", preset="tiny", seed=1, device="cpu")
    with pytest.raises(ValueError, match="sha256 of its weights"):
        load_one_image(out / "codes" / "model", autoreconstructor=tmp_path / "other" / "model")
    shutil.copytree(out / "codes" / "model", tmp_path / "codes")
    damaged = tmp_path / "codes" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"xxxx")
    with pytest.raises(ValueError, match="sha256"):
        load_one_image(tmp_path / "codes")


@pytest.mark.parametrize("wrong, said", [(dict(cells=5), "config.cells"), (dict(latent=0), "config.latent"),
                                         (dict(widths=(8, 20)), "config.widths")])
def test_wrong_options_are_named(wrong, said):
    with pytest.raises(ValueError, match=said):
        CodeDiffusionConfig(**wrong)


def test_wrong_input_is_named(sampler, picture, tmp_path):
    rgba, camera = picture
    with pytest.raises(ValueError, match="denoiser: draws codes"):
        OneImage(autoreconstructor(), CodeDenoiser(CodeDiffusionConfig(features=8, cells=CELLS, widths=(16, 16))))
    seen = sampler.seen(rgba)
    for wrong, said in ((dict(guidance_scale=float("nan")), "guidance_scale"), (dict(noise=torch.zeros(2, 4, 4, 4)), "noise"),
                        (dict(steps=0), "steps")):
        with pytest.raises(ValueError, match=said):
            sampler.draw(seen, **wrong)
    with pytest.raises(ValueError, match="count"):
        sampler.sample(rgba, camera, 0)
    with pytest.raises(ValueError, match="wanted one picture"):
        sampler.sample(rgba.expand(2, -1, -1, -1), Cameras.orbit(2, width=S, height=S))
    with pytest.raises(ValueError, match="mask"):
        sampler.seen(rgba, torch.ones(1, 1, 3, 3))
    for train, folder in ((train_autoreconstructor, "a"), (train_codes, "b")):
        with pytest.raises(ValueError, match="preset"):
            train(tmp_path / folder, preset="large")
    with pytest.raises(ValueError, match="kept"):
        train_autoreconstructor(tmp_path / "a", preset="tiny", kept=2.0)

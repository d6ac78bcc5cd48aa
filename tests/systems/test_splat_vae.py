"""The splat autoencoder against torch's own distributions, loops, formulas written out, and what it may not see."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gsgen_lib.data.multiview import MultiView, toy_views
from gsgen_lib.nn.multiview import HALF
from gsgen_lib.perceptual import lpips
from gsgen_lib.pretrained import save_network, write_card
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems.feed_forward import most_opaque
from gsgen_lib.systems.feed_forward_metrics import evaluate
from gsgen_lib.systems.splat_vae import (
    MixViews,
    SplatVAE,
    SplatVAEConfig,
    compression,
    encoder_digest,
    kl_to_normal,
    load_splat_vae,
    vae_loss,
)
from gsgen_lib.systems.splat_vae_training import train_splat_vae
from gsgen_lib.training import seeded

SMALL = dict(size=32, widths=(16, 24, 32, 32), depths=8)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def toys():
    return toy_views(6, 21, 32, 16, points=64, progress=False)


@pytest.fixture(scope="module")
def given(toys):
    return MultiView(toys, 4, 3, "orthogonal", background=None).batch([0, 1], gen())


def network(**more):
    return seeded(lambda: SplatVAE(SplatVAEConfig(**SMALL | more)), 0).eval()


def awake(model):
    """Layers that start as the identity, awake, as after training."""
    for part in model.modules():
        if isinstance(part, MixViews):
            torch.nn.init.normal_(part.say.weight, std=0.3, generator=gen())
        if hasattr(part, "out") and isinstance(part.out, torch.nn.Linear):
            torch.nn.init.normal_(part.out.weight, std=0.3, generator=gen())
        if hasattr(part, "conv2"):
            torch.nn.init.normal_(part.conv2.weight, std=0.1, generator=gen())
    return model


@pytest.mark.parametrize("factor", [4, 8, 16])
@pytest.mark.parametrize("views", [1, 3, 8])
@torch.no_grad()
def test_any_number_of_views_and_the_compression_is_that_of_the_tensors(factor, views):
    model, cameras = network(factor=factor), Cameras.stack([Cameras.orbit(views, width=32, height=32)] * 2)
    rgba = torch.rand(2, views, 32, 32, 4, generator=gen())
    mu, logvar = model.encode(rgba, cameras)
    assert mu.shape == logvar.shape == (2, views, 6, 32 // factor, 32 // factor)
    scenes, painted = model.decode(mu, cameras)
    assert scenes.num == views * 32 * 32 and painted.shape == rgba.shape and 0 <= painted.min() and painted.max() <= 1
    told = compression(model.config)
    assert told["splats"] == pytest.approx(2 * scenes.num * 12 / mu.numel())
    assert told["pictures"] == pytest.approx(rgba[..., :3].numel() / mu.numel())


def test_corrections_read_the_paint_and_only_the_latents_decide(given):
    """Passes render to what was painted: their scenes come nearer to it when the layers do nothing but a step down the slope."""
    rgba, cameras = given.images[:, :4], given.cameras[:4]
    model = awake(network(passes=2))
    mu, logvar = model.encode(rgba, cameras)
    scenes, painted = model.decode(mu, cameras, every=True)
    assert len(scenes) == 3 and not torch.equal(scenes[0].means, scenes[2].means)
    assert torch.equal(model.decode(mu, cameras)[0].means, scenes[2].means)
    with torch.no_grad():  # 4 errors of 4 pixels come first, then 12 slopes of 4 pixels: the channels of pixel_unshuffle
        model.correct = torch.nn.Identity()
        model.remember = torch.nn.Conv2d(64 + 4 * 28, 64, 1)
        model.change = torch.nn.Conv2d(64 + 4 * 28, 48, 1)
        for layer in (model.remember, model.change):
            layer.weight.zero_(), layer.bias.zero_()
        for k in range(48):
            model.change.weight[k, 64 + 16 + k] = -0.02
        scenes, painted = model.decode(mu, cameras, every=True)
    white = painted[..., :3] * painted[..., 3:] + 1 - painted[..., 3:]
    off = [(rasterize(s, cameras, (1.0, 1.0, 1.0)).rgb - white).square().mean().item() for s in scenes]
    assert off[1] < off[0] and off[2] < off[1]
    with pytest.raises(ValueError, match="config.passes: got -1, wanted a whole number >= 0"):
        SplatVAEConfig(passes=-1)


def test_a_reconstruction_is_the_decoded_mean(given):
    cameras = Cameras(given.cameras.viewmats[0, :4], given.cameras.Ks[0, :4], 32, 32)
    rgba, model, batch = given.images[0, :4], awake(network()), Cameras.stack([cameras])
    wanted = model.splats(model.encode(rgba[None], batch)[0], batch)[0]
    found = model.reconstruct(rgba, cameras)
    assert torch.equal(found.means, wanted.means) and torch.equal(found.colors, wanted.colors)


def test_a_decoder_goes_on_alone(tmp_path):
    """Its encoder stays to the bit, its decoder learns, corrections are new, and the card says where it began."""
    run = dict(preset="tiny", device="cpu")
    first = train_splat_vae(tmp_path / "first", **run)
    card = train_splat_vae(tmp_path / "on", decoder_of=str(tmp_path / "first" / "model"), passes=2, steps=3, **run)
    old, new = (load_splat_vae(tmp_path / name / "model") for name in ("first", "on"))
    assert encoder_digest(old) == encoder_digest(new) and not torch.equal(old.fine[0].weight, new.fine[0].weight)
    assert new.config.passes == 2 and "--passes 2" in card["command"] and card["start"]["sha256"] == first["sha256"]
    fresh = seeded(lambda: SplatVAE(new.config), 0)
    assert not torch.equal(fresh.change.weight.half().float(), new.change.weight)
    for wrong, message in (({"mix": False}, "decoder_of: got an autoencoder"), ({"latent": 4}, "decoder_of: got an autoencoder")):
        with pytest.raises(ValueError, match=message):
            train_splat_vae(tmp_path / "no", decoder_of=str(tmp_path / "first" / "model"), **wrong, **run)
    with pytest.raises(ValueError, match="decoder_of: got an autoencoder"):
        train_splat_vae(tmp_path / "no", decoder_of=str(tmp_path / "on" / "model"), **run)


def test_kl_equals_that_of_torch():
    mu, logvar = torch.randn(2, 50, generator=gen(), dtype=torch.float64)
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(mu, (0.5 * logvar).exp()), normal(torch.zeros(50).double(), 1.0)).mean()
    torch.testing.assert_close(kl_to_normal(mu, logvar), wanted)


@torch.no_grad()
def test_mixing_goes_from_pixel_to_the_same_pixel_of_all_views():
    mix, x = MixViews(8), torch.randn(6, 8, 4, 4, generator=gen())
    torch.nn.init.normal_(mix.say.weight, generator=gen())
    mix.norm = torch.nn.Identity()  # its statistics are over all pixels
    other = x.clone()
    other[1, :, 2, 3] += 1  # second view of the first object
    moved = (mix(other, 3) - mix(x, 3)).abs().sum(1) > 1e-6  # (6, 4, 4)
    assert moved[:3, 2, 3].all() and moved.sum() == 3
    order = [2, 0, 1, 5, 3, 4]
    torch.testing.assert_close(mix(x[order], 3), mix(x, 3)[order])
    y = x.unflatten(0, (2, 3))
    hidden = torch.nn.functional.silu(mix.hear(torch.cat([x, y.mean(1, keepdim=True).expand_as(y).flatten(0, 1)], 1)))
    torch.testing.assert_close(mix(x, 3), x + HALF * mix.say(hidden))


@pytest.mark.parametrize("mix,geometry", [(False, False), (True, False), (False, True)])
@torch.no_grad()
def test_views_hear_each_other_through_mixing_or_the_hull_and_not_otherwise(given, mix, geometry):
    model = awake(network(mix=mix, geometry=geometry))
    rgba, cameras = given.images[:, :4], given.cameras[:4]
    other = rgba.clone()
    other[:, 2] = other[:, 2].roll(5, 1)  # the back's picture, shifted
    a, b = (model.encode(x, cameras)[0][:, 0] for x in (rgba, other))
    assert torch.equal(a, b) == (not mix and not geometry)
    z = torch.randn(2, 4, 6, 4, 4, generator=gen())
    moved = z.clone()
    moved[:, 2] += 1
    a, b = (model.decode(x, cameras)[0].means.unflatten(1, (4, -1))[:, 0] for x in (z, moved))
    assert torch.equal(a, b) == (not mix and not geometry)


@torch.no_grad()
def test_objects_of_a_batch_do_not_hear_each_other(given):
    model, rgba, cameras = awake(network()), given.images[:, :4], given.cameras[:4]
    alone = model.encode(rgba[1:], replace(cameras, viewmats=cameras.viewmats[1:], Ks=cameras.Ks[1:]))[0]
    torch.testing.assert_close(model.encode(rgba, cameras)[0][1:], alone, atol=1e-4, rtol=1e-4)


def test_the_decoder_gets_gradients_through_the_latents_alone(given):
    """The paint is asked about its hull, without gradient: what reaches z comes through the network."""
    model, z = network(), torch.randn(2, 4, 6, 4, 4, generator=gen()).requires_grad_()
    scenes, painted = model.decode(z, given.cameras[:4])
    scenes.means.sum().backward(retain_graph=True)
    assert z.grad.abs().sum() > 0 and torch.isfinite(z.grad).all()
    z.grad = None
    painted.sum().backward()
    assert z.grad.abs().sum() > 0


@torch.no_grad()
def test_the_loss_is_that_of_its_formula(given):
    model, truth, cameras = awake(network(weight_lpips=0.3, weight_kl=0.01, weight_paint=0.7)), given.images, given.cameras
    found = vae_loss(model, model.config, truth, cameras, 4, gen(5))
    mu, logvar = model.encode(truth[:, :4], cameras[:4])
    z = mu + torch.exp(logvar / 2) * torch.randn(mu.shape, generator=gen(5))
    scenes, painted = model.decode(z, cameras[:4])
    out = rasterize(most_opaque(scenes, 4 * 1536), cameras, (1.0, 1.0, 1.0))
    white = truth[..., :3] * truth[..., 3:] + 1 - truth[..., 3:]
    wanted = ((out.rgb - white) ** 2).mean() + ((out.alpha - truth[..., 3:]) ** 2).mean()
    wanted = wanted + 0.3 * lpips(out.rgb.flatten(0, 1).clamp(0, 1), white.flatten(0, 1))
    on_white = painted[..., :3] * painted[..., 3:] + 1 - painted[..., 3:]
    paint = ((on_white - white[:, :4]) ** 2).mean() + ((painted[..., 3:] - truth[:, :4, ..., 3:]) ** 2).mean()
    wanted = wanted + 0.7 * paint + 0.01 * (0.5 * (mu**2 + logvar.exp() - 1 - logvar)).mean()
    assert found["loss"].item() == pytest.approx(wanted.item(), rel=1e-4)
    psnr = -10 * torch.log10(((out.rgb - white)[:, 4:] ** 2).mean())
    assert found["psnr"].item() == pytest.approx(psnr.item(), abs=1e-3)


def test_a_tiny_training_beats_its_start(toys):
    model = network(weight_lpips=0.0)
    before = np.mean([s["psnr"] for s in evaluate(model.reconstruct, toys)])
    adam, draw = torch.optim.Adam(model.parameters(), lr=2e-3), MultiView(toys, 4, 4, "orthogonal", background=None)
    model.train()
    for step in range(80):
        batch = draw.batch(torch.randint(6, (3,), generator=gen(step)), gen(step))
        loss = vae_loss(model, model.config, batch.images, batch.cameras, 4, gen(step))["loss"]
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert np.mean([s["psnr"] for s in evaluate(model.eval().reconstruct, toys)]) > before + 1.5


def test_saved_and_loaded_it_is_the_same_and_another_network_is_refused(tmp_path, given):
    model, folder = network(factor=4), tmp_path / "model"
    save_network(model, folder, {"name": "test"})
    again = load_splat_vae(folder)
    rgba, cameras = given.images[:, :4], given.cameras[:4]
    with torch.no_grad():
        a, b = (m.encode(rgba, cameras)[0] for m in (model, again))
    assert again.config == model.config and (a - b).abs().max() < 0.02 and not next(again.parameters()).requires_grad
    save_network(network(factor=8), folder, {"name": "test"})
    config = (folder / "config.json").read_text()
    save_network(model, folder, {"name": "test"})
    (folder / "config.json").write_text(config)
    with pytest.raises(ValueError, match="sha256"):
        load_splat_vae(folder)
    write_card(folder, {"name": "test"})  # whole, but of two networks
    with pytest.raises(ValueError, match="no SplatVAE"):
        load_splat_vae(folder)


@pytest.mark.parametrize("wrong", [dict(factor=3), dict(factor=16, size=24), dict(latent=0), dict(weight_kl=-1.0), dict(mix=1)])
def test_wrong_options_are_named(wrong):
    with pytest.raises(ValueError, match=f"config.{list(wrong)[0] if 'size' not in wrong else 'size'}"):
        SplatVAEConfig(**wrong)


def test_the_tiny_preset_trains_resumes_and_ships(tmp_path):
    assert train_splat_vae(tmp_path / "run", preset="tiny", minutes=0.0, device="cpu") == {}
    card = train_splat_vae(tmp_path / "run", preset="tiny", device="cpu")
    assert card["name"] == "splat_vae_8" and card["steps"] == 5
    assert load_splat_vae(tmp_path / "run" / "model").config.size == 32
    with pytest.raises(ValueError, match="preset: got 'huge'"):
        train_splat_vae(tmp_path / "run", preset="huge")

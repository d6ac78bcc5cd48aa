"""Details of the reconstruction networks that shapes do not show: which pictures, which window, which scale, which random numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gsgen_lib.data.captioned_views import names_heldout
from gsgen_lib.data.multiview import MultiView, load_views, toy_views
from gsgen_lib.nn.cross_view import hull_features
from gsgen_lib.nn.multiview import MultiViewUNet
from gsgen_lib.pretrained import beginning, save_network
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.feed_forward import (
    FeedForwardConfig,
    Transformer,
    check_views,
    pictures_with_rays,
    reconstruction_loss,
)
from gsgen_lib.systems.feed_forward_metrics import BASELINES, cases, evaluate, score
from gsgen_lib.systems.feed_forward_training import augmented, batches, grid_warp, orbit_jitter, training_objects
from gsgen_lib.systems.pixel_splats import failing
from gsgen_lib.systems.splat_vae import encoder_digest, load_splat_vae, vae_loss
from gsgen_lib.systems.splat_vae_training import train_splat_vae
from gsgen_lib.training import seeded
from tests.systems.test_feed_forward import SMALL, gen, network
from tests.systems.test_splat_vae import network as autoencoder

@pytest.fixture(scope="module")
def toys():
    return toy_views(4, 31, 32, 16, points=64, progress=False)


@pytest.fixture(scope="module")
def given(toys):
    return MultiView(toys, 4, 3, "orthogonal", background=None).batch([0, 1], gen())


# ---- what is asked and what is compared


def test_the_model_gets_the_bent_inputs_and_is_compared_with_the_true_views(given):
    truth, cameras = given.images, given.cameras
    inputs, turned = augmented(truth[:, :4], cameras[:4], 1.0, gen())
    scenes, asked = [Gaussians.stack([Gaussians.random(30, generator=gen(i + 2 * k)) for i in (0, 1)]) for k in (0, 1)], {}

    def model(rgba, at, every):
        asked.update(rgba=rgba, at=at, every=every)
        return scenes

    found = reconstruction_loss(model, FeedForwardConfig(weight_lpips=0.0), truth, cameras, inputs, turned)["loss"]
    assert asked["rgba"] is inputs and asked["at"] is turned and asked["every"] is True
    assert not torch.equal(inputs, truth[:, :4])
    white, wanted = truth[..., :3] * truth[..., 3:] + 1 - truth[..., 3:], 0.0
    for scene, weight in zip(scenes, (0.3, 1.0), strict=True):
        out = rasterize(scene, cameras, (1.0, 1.0, 1.0))
        wanted += weight * (((out.rgb - white) ** 2).mean() + ((out.alpha - truth[..., 3:]) ** 2).mean())
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_batches_bend_inputs_as_often_as_they_are_told(toys):
    def touched(chance):
        found = []
        for seed in range(30):
            truth, viewmats, _, inputs, turned, count = batches([toys[:2], toys[2:]], 4, chance)(gen(seed))
            if count > 1:
                found += [bool((a != b).any()) for a, b in zip(inputs, truth[:, :count], strict=True)]
                found += [bool((a != b).any()) for a, b in zip(turned, viewmats[:, :count], strict=True)]
        return np.mean(found)

    assert touched(0.0) == 0 and touched(1.0) == 1 and 0.35 < touched(0.5) < 0.65


def test_half_of_a_batch_is_mirrored(toys):
    """Of each object there are two versions, its own and its mirror image, about equally often."""
    seen = {True: 0, False: 0}
    for seed in range(40):
        truth, viewmats, *_ = batches([toys[:1], toys[1:2]], 2, 0.0)(gen(seed))
        for k, (rgba, W) in enumerate(zip(truth, viewmats, strict=True)):
            shown = (rgba[0] * 255).round().byte()
            alike = [(toys.images[k, v] == shown).all() for v in range(16)]
            flipped = [(toys.images[k, v].flip(1) == shown).all() for v in range(16)]
            assert any(alike) or any(flipped)
            seen[any(flipped) and not any(alike)] += 1
            v = int(np.argmax(flipped if any(flipped) else alike))
            far = (Cameras(W[:1], toys.cameras.Ks[k, :1], 32, 32).centers[0] - toys.cameras.centers[k, v]).abs()
            assert far[1:].max() < 1e-4  # height and depth of the camera stay in a mirror
    assert 20 < seen[True] < 60


def test_training_sees_the_training_split_alone(tmp_path):
    (real, toys), shown = training_objects(dict(real=5, toys=6), 32, 0, tmp_path)
    assert shown is real
    train = load_views("train", progress=False)
    assert set(real.ids) <= set(train.ids) and not any(names_heldout(c) for c in toys.captions)
    others = {i for split in ("val", "test") for i in load_views(split, progress=False).ids}
    assert not set(real.ids) & others and {m["split"] for m in toys.meta} == {"train"}
    again = training_objects(dict(real=5, toys=6), 32, 0, tmp_path)[0][1]
    assert torch.equal(again.images, toys.images)
    other = training_objects(dict(real=5, toys=6), 32, 1, tmp_path)[0][1]
    assert not torch.equal(other.images, toys.images)  # another seed, other toys


@torch.no_grad()
def test_nothing_draws_from_the_global_generators(given, toys):
    model, truth, cameras = autoencoder(weight_lpips=0.0), given.images, given.cameras
    calls = [lambda g: grid_warp(truth[0], 0.5, g), lambda g: orbit_jitter(cameras, generator=g).viewmats,
             lambda g: augmented(truth, cameras, 0.5, g)[0], lambda g: batches([toys[:2], toys[2:]], 4, 0.5)(g)[3],
             lambda g: vae_loss(model, model.config, truth, cameras, 4, g)["loss"]]
    for call in calls:
        torch.manual_seed(1)
        np.random.seed(1)
        before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
        a = call(gen(3))
        assert torch.equal(torch.get_rng_state(), before) and (np.random.get_state()[1] == numpy_before).all()
        torch.manual_seed(2)
        b, c = call(gen(3)), call(gen(4))
        assert torch.equal(a, b) and (a.shape != c.shape or not torch.equal(a, c))


# ---- networks


@torch.no_grad()
def test_networks_read_colours_on_white_and_rays(given):
    rgba, cameras = given.images[:, :4], given.cameras[:4]
    found = pictures_with_rays(rgba, cameras).unflatten(0, (2, 4)).movedim(2, -1)
    white = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
    torch.testing.assert_close(found[..., :3], 2 * white - 1)
    torch.testing.assert_close(found[..., 3], 2 * rgba[..., 3] - 1)
    torch.testing.assert_close(found[..., 4:], cameras.plucker())


@torch.no_grad()
def test_windows_of_the_transformer_stay_where_they_are():
    """With the attention of all views off, an output pixel depends on inputs of its own window of 16 x 16 input pixels."""
    net = seeded(lambda: Transformer(3, 2, FeedForwardConfig(backbone="transformer", **SMALL)), 0)
    for layer in net.layers:
        layer.out.weight.zero_(), layer.out.bias.zero_()
    net.leave[0] = torch.nn.Identity()  # its statistics are over the whole picture
    x = torch.randn(2, 3, 32, 32, generator=gen())
    for y0, x0 in ((0, 0), (0, 16), (16, 0), (16, 16)):
        other = x.clone()
        other[1, :, y0 + 4:y0 + 8, x0 + 8:x0 + 12] += 1  # one token
        moved = (net(other, 2) - net(x, 2)).abs().amax(1) > 1e-6
        inside = torch.zeros(2, 32, 32, dtype=torch.bool)
        inside[1, y0:y0 + 16, x0:x0 + 16] = True
        assert moved[inside].float().mean() > 0.9 and not moved[~inside].any()


@torch.no_grad()
def test_a_unet_carries_detail_through_its_skips_and_hears_vector_and_words():
    net = seeded(lambda: MultiViewUNet(3, 2, (16, 16), (False, True), 1, embed=8, context=4), 0)
    for layer in [m for m in net.modules() if isinstance(m, torch.nn.Linear)]:
        torch.nn.init.normal_(layer.weight, std=0.5, generator=gen())
    net.leave[0] = torch.nn.Identity()
    x, e, c = (torch.randn(*shape, generator=gen(i)) for i, shape in enumerate(((2, 3, 8, 8), (2, 8), (1, 5, 4))))
    out = net(x, 2, e, c)
    assert (net(x, 2, e + 1, c) - out).abs().max() > 1e-3 and (net(x, 2, e, c + 1) - out).abs().max() > 1e-3
    for layer in net.down:  # nothing reaches the coarse level
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.zero_(), layer.bias.zero_()
    other = x.clone()
    other[0, :, 3, 5] += 1
    assert (net(other, 2, e, c) - net(x, 2, e, c))[0, :, 3, 5].abs().max() > 1e-3


@torch.no_grad()
def test_without_geometry_rays_start_at_their_middle(given):
    rgba, cameras = given.images[:, :4], given.cameras[:4]
    model = network(geometry=False)
    model.fine[-1].weight.zero_()
    found = model(rgba, cameras, every=True)[0].means
    origin, ray = cameras.rays()
    middle = origin - (origin * ray).sum(-1, keepdim=True) * ray
    torch.testing.assert_close(found, middle.flatten(1, 3), atol=1e-5, rtol=0)
    assert model.network.enter.in_channels == 40


@torch.no_grad()
def test_slopes_are_scaled_for_each_view_and_number_and_features_are_kept(given):
    rgba, cameras = given.images[:, :4], given.cameras[:4]
    origin, ray = cameras.rays()
    pixels = (rgba[..., :3], rgba[..., 3:], origin, ray, -(origin * ray).sum(-1, keepdim=True))
    told = failing(0.3 * torch.randn(2, 4, 32, 32, 14, generator=gen()), pixels, rgba, cameras)[..., 4:18]
    rms = (torch.expm1(told.abs()).square().mean((2, 3))).sqrt()  # (2, 4, 14)
    torch.testing.assert_close(rms, torch.ones_like(rms), atol=0.02, rtol=0)
    model = network(passes=2)
    before = model(rgba, cameras).means
    torch.nn.init.normal_(model.remember.weight, std=1.0, generator=gen())
    scenes = model(rgba, cameras, every=True)
    assert not torch.equal(scenes[2].means, before)  # what the first pass remembers, the second reads
    alone = network(passes=1)
    alone.load_state_dict(model.state_dict())
    assert torch.equal(alone(rgba, cameras).means, scenes[1].means)


@torch.no_grad()
def test_a_reconstruction_holds_as_many_splats_as_its_budget(toys):
    rgba, cameras, _, _ = next(cases(toys))
    model = network(budget=100)
    whole, few = model(rgba[None], Cameras.stack([cameras]))[0], model.reconstruct(rgba, cameras)
    assert few.num == 400
    torch.testing.assert_close(few.opacities.sort().values, whole.opacities.sort().values[-400:])


@torch.no_grad()
def test_the_autoencoders_rays_start_at_the_hull_of_its_paint(given):
    cameras, model = given.cameras[:4], autoencoder()
    model.fine[-1].weight.zero_()
    z = 2 * torch.randn(2, 4, 6, 4, 4, generator=gen())
    scenes, painted = model.decode(z, cameras)
    origin, ray = cameras.rays()
    depth = hull_features(painted, cameras, 8)[1]
    torch.testing.assert_close(scenes.means, (origin + depth * ray).flatten(1, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(scenes.colors, painted[..., :3].flatten(1, 3))
    torch.testing.assert_close(scenes.opacities, torch.sigmoid(8 * painted[..., 3] - 7).flatten(1))
    turned = replace(cameras, viewmats=orbit_jitter(cameras, generator=gen()).viewmats)
    assert (model.decode(z, turned)[1] - painted).abs().max() > 1e-4  # the paint depends on where it is seen from


@torch.no_grad()
def test_variances_of_latents_are_bounded_and_colours_of_splats_too(given):
    rgba, cameras, model = given.images[:, :4], given.cameras[:4], autoencoder(budget=50)
    for bias, wanted in ((100.0, 10.0), (-100.0, -20.0)):
        model.moments.bias[6:] = bias
        assert (model.encode(rgba, cameras)[1] == wanted).all()
    model.fine[-1].bias[9:] = 20.0  # far too bright
    scenes = model.splats(torch.randn(2, 4, 6, 4, 4, generator=gen()), cameras)
    assert scenes.num == 200 and scenes.colors.max() == 1 and model.decode(torch.zeros(2, 4, 6, 4, 4), cameras)[0].colors.max() > 1


def test_options_reach_the_autoencoder(tmp_path):
    card = train_splat_vae(tmp_path / "run", preset="tiny", factor=4, latent=5, weight_kl=0.25, mix=False, geometry=False, passes=1,
                           device="cpu")
    config = load_splat_vae(tmp_path / "run" / "model").config
    assert (config.factor, config.latent, config.weight_kl, config.passes) == (4, 5, 0.25, 1)
    assert config.mix is False and config.geometry is False
    for flag in ("--factor 4", "--latent 5", "--weight-kl 0.25", "--no-mix", "--no-geometry", "--passes 1"):
        assert flag in card["command"]


@torch.no_grad()
def test_the_digest_of_an_encoder_is_that_of_its_numbers():
    a, b = autoencoder(), autoencoder(passes=2)
    a.enter.weight[0, 0, 0, 0], b.enter.weight[0, 0, 0, 0] = 0.0, -0.0
    assert encoder_digest(a) == encoder_digest(b)  # decoders differ, and the sign of a zero
    b.enter.weight[0, 0, 0, 0] = 0.01
    assert encoder_digest(a) != encoder_digest(b)
    b.enter.weight[0, 0, 0, 0] = 0.0
    b.moments.bias[3] += 0.01
    assert encoder_digest(a) != encoder_digest(b)


def test_hours_of_a_training_that_goes_on_are_counted_from_its_beginning(tmp_path):
    first = save_network(autoencoder(), tmp_path / "a", {"name": "test", "hours": 1.5, "steps": 7, "command": "x"})
    then = save_network(autoencoder(), tmp_path / "b", {"name": "test", "hours": 0.25}, beginning(tmp_path / "a"))
    assert first["hours"] == 1.5 and "start" not in first
    assert then["hours"] == 1.75 and then["start"]["sha256"] == first["sha256"] and then["start"]["steps"] == 7


# ---- judging


def test_box_and_overlap_are_those_of_numpy():
    truth, rgb = torch.zeros(2, 16, 16, 4), torch.rand(2, 16, 16, 3, generator=gen())
    truth[0, 4:9, 2:12], truth[1, 1:4, 8:10] = 1.0, 1.0
    truth[..., :3] = torch.rand(2, 16, 16, 3, generator=gen(1))
    alpha = torch.zeros(2, 16, 16, 1)
    alpha[0, 5:10, 2:12], alpha[1, 1:4, 8:10] = 0.9, 0.4
    found = score(rgb, alpha, truth)
    white = np.where(truth[..., 3:] > 0, truth[..., :3], 1.0)
    off = (rgb.numpy() - white) ** 2
    boxes = [off[0, 4:9, 2:12], off[1, 1:4, 8:10]]
    assert found["psnr"] == pytest.approx(np.mean([-10 * np.log10(o.mean()) for o in off]), abs=1e-4)
    assert found["box"] == pytest.approx(np.mean([-10 * np.log10(o.mean()) for o in boxes]), abs=1e-4)
    assert found["iou"] == pytest.approx(np.mean([40 / 60, 0.0]), abs=1e-4)  # a faint silhouette does not count


@torch.no_grad()
def test_the_nearest_input_is_the_nearest_and_white_sees_nothing(toys):
    rgba, cameras, truth, there = next(cases(toys))
    found, alpha = BASELINES["nearest input"](rgba, cameras)(there)
    for v in range(8):
        near = min(range(4), key=lambda k: float((there.centers[v] - cameras.centers[k]).norm()))
        torch.testing.assert_close(found[v], rgba[near, ..., :3] * rgba[near, ..., 3:] + 1 - rgba[near, ..., 3:])
        assert torch.equal(alpha[v], rgba[near, ..., 3:])
    assert evaluate(BASELINES["white"], toys[:1])[0]["iou"] == 0


def test_pictures_that_do_not_fit_are_refused_everywhere(toys):
    rgba, cameras, _, _ = next(cases(toys))
    nan = rgba.clone()
    nan[0, 0, 0, 0] = torch.nan
    wrong = [(255 * rgba, cameras, "numbers from 0 to 255"), (nan, cameras, "numbers from nan"), (rgba.double(), cameras, "torch.float64"),
             (rgba.numpy(), cameras, "rgba: got ndarray"), ((255 * rgba).byte(), cameras, "torch.uint8"),
             (rgba, Cameras.stack([cameras]), "cameras: got a batch"), (rgba[:3], cameras, "cameras: got 4 of 32 x 32, wanted 3"),
             (rgba[..., :3], cameras, "rgba: got shape")]
    for pictures, at, message in wrong:
        for reconstruct in (network().reconstruct, autoencoder().reconstruct):
            with pytest.raises(ValueError, match=message):
                reconstruct(pictures, at)
    check_views(rgba, cameras, 32)
    batch = Cameras.stack([cameras])
    for call, message in ((lambda m: m.encode(rgba[None, :, :16], batch), "rgba, cameras: got"),
                          (lambda m: m.encode(rgba[None, :2], batch), "rgba, cameras: got"),
                          (lambda m: m.decode(torch.zeros(1, 4, 5, 4, 4), batch), "z, cameras: got"),
                          (lambda m: m.splats(torch.zeros(1, 2, 6, 4, 4), batch), "z, cameras: got")):
        with pytest.raises(ValueError, match=message):
            call(autoencoder())
    for change, message in ((dict(depths=1), "config.depths: got 1"), (dict(widths=(16, 20, 24)), "config.widths")):
        with pytest.raises(ValueError, match=message):
            FeedForwardConfig(**change)
    for count, message in (((0, 0), "different places"), ((), "count: got"), ((-1,), "count: got")):
        with pytest.raises(ValueError, match=message):
            next(cases(toys, count))
    assert torch.equal(next(cases(toys, [0, 4]))[0], next(cases(toys, (0, 4)))[0])
    few = replace(toys, images=toys.images[:, :12], cameras=toys.cameras[:12])
    with pytest.raises(ValueError, match="views: got 12 of each object"):
        next(cases(few))


@pytest.mark.parametrize("make", [network, lambda: autoencoder(passes=1)])
def test_reconstruction_works_in_inference_mode(toys, make):
    model = make()
    rgba, cameras, _, _ = next(cases(toys))
    wanted = model.reconstruct(rgba, cameras)
    with torch.inference_mode():
        rgba, cameras, _, _ = next(cases(toys))
        found = model.reconstruct(rgba, cameras)
    assert torch.equal(found.means, wanted.means)

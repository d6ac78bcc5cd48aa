"""The two backbones: what their numbers become, what may change what, the loss by hand, augmentation, and bad input."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from gsgen_lib.data.multiview import MultiView, toy_views
from gsgen_lib.metrics import psnr
from gsgen_lib.nn.cross_view import refine, sweep
from gsgen_lib.perceptual import lpips
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.feed_forward import (
    BACKBONES,
    FeedForward,
    FeedForwardConfig,
    load_feed_forward,
    most_opaque,
    reconstruction_loss,
)
from gsgen_lib.systems.feed_forward_metrics import BASELINES, cases, evaluate, front_views
from gsgen_lib.systems.feed_forward_training import (
    augmented,
    batches,
    grid_warp,
    mirrored,
    orbit_jitter,
    smaller,
    train_feed_forward,
)
from gsgen_lib.systems.pixel_splats import failing, pixel_splats
from gsgen_lib.training import seeded

SMALL = dict(size=32, widths=(16, 16, 24), width=48, layers=2, heads=4, depths=12)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def toys():
    return toy_views(6, 11, 32, 16, points=64, progress=False)


@pytest.fixture(scope="module")
def given(toys):
    """Two toys from four sides: rgba (2, 4, 32, 32, 4), cameras."""
    batch = MultiView(toys, 4, 4, "orthogonal", background=None).batch([0, 1], gen())
    return batch


def network(backbone="unet", **more):
    return seeded(lambda: FeedForward(FeedForwardConfig(backbone=backbone, **SMALL | more)), 0).eval()


def silent(model):
    """The network with its last layer at 0: what it starts from."""
    with torch.no_grad():
        model.fine[-1].weight.zero_()
    return model


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_without_corrections_each_pixel_is_a_splat_at_the_hull(given, backbone):
    rgba, cameras = given.images[:, :4], given.cameras[:4]
    found = silent(network(backbone))(rgba, cameras, every=True)[0]
    depth = sweep(rgba, cameras, 12, 16)[1].repeat_interleave(2, 2).repeat_interleave(2, 3)
    depth = refine(rgba[..., 3:], cameras, depth, 1.5 * (2 * 0.87 / 11))  # three halves of a step of the sweep
    origin, ray = cameras.rays()
    torch.testing.assert_close(found.means, (origin + depth * ray).flatten(1, 3))
    alpha = rgba[..., 3].flatten(1)
    torch.testing.assert_close(found.opacities, 1 / (1 + torch.exp(7 - 8 * alpha)))
    shown = alpha > 0
    torch.testing.assert_close(found.colors[shown], rgba[..., :3].flatten(1, 3)[shown])
    assert found.scales.unique().numel() == 1 and 0.006 < found.scales[0, 0, 0] < 0.007
    assert (found.quats == torch.tensor([1.0, 0, 0, 0])).all()


@torch.no_grad()
def test_corrections_follow_the_equations(given):
    rgba, cameras = given.images[:, :4], given.cameras[:4]
    raw = torch.randn(2, 4, 32, 32, 14, generator=gen())
    origin, ray = cameras.rays()
    start = 1 + torch.rand(2, 4, 32, 32, 1, generator=gen(1))
    found = pixel_splats(raw, rgba[..., :3], rgba[..., 3:], origin, ray, start)
    n = raw.flatten(1, 3).double()
    flat = {name: x.flatten(1, 3).double() for name, x in dict(o=origin, d=ray, t=start, a=rgba[..., 3:], c=rgba[..., :3]).items()}
    wanted = Gaussians(
        flat["o"] + flat["t"] * flat["d"] + 0.5 * torch.tanh(n[..., :3]),
        (n[..., 7:11] + torch.tensor([1.0, 0, 0, 0])) / (n[..., 7:11] + torch.tensor([1.0, 0, 0, 0])).norm(dim=-1, keepdim=True),
        0.1 * torch.log1p(torch.exp(n[..., 4:7] - 2.7)), 1 / (1 + torch.exp(7 - n[..., 3] - 8 * flat["a"][..., 0])),
        flat["c"] + 0.5 * torch.tanh(n[..., 11:]))
    for name in ("means", "quats", "scales", "opacities", "colors"):
        torch.testing.assert_close(getattr(found, name).double(), getattr(wanted, name), atol=1e-5, rtol=1e-5, msg=name)


def test_what_fails_is_the_error_and_its_slope(given):
    """Errors against a render made here; gradients, before their compression, against differences of the summed squares."""
    rgba, cameras = given.images[:, :4], given.cameras[:4]
    origin, ray = cameras.rays()
    pixels = (rgba[..., :3], rgba[..., 3:], origin, ray, -(origin * ray).sum(-1, keepdim=True))
    raw = 0.3 * torch.randn(2, 4, 32, 32, 14, generator=gen())
    white = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]

    def errors(raw):
        out = rasterize(pixel_splats(raw, *pixels), cameras, (1.0, 1.0, 1.0))
        return torch.cat([white - out.rgb, rgba[..., 3:] - out.alpha], -1)

    with torch.no_grad():  # as in use: the gradient is taken all the same
        found = failing(raw, pixels, rgba, cameras)
    assert found.shape[-1] == 4 + 28 and not found.requires_grad
    torch.testing.assert_close(found[..., :4], 4 * errors(raw), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[..., 18:], raw)
    seen = (rgba[0, 1, ..., 3] > 0.9).nonzero()[:40]  # pixels of the first object in its second view
    for channel in (0, 3, 5, 9, 12):  # offset, opacity, scale, quaternion, colour
        slopes = []
        for y, x in seen.tolist():
            ends = []
            for step in (0.005, -0.005):
                moved = raw.clone()
                moved[0, 1, y, x, channel] += step
                ends.append(errors(moved)[0].double().square().sum().item())
            slopes.append((ends[0] - ends[1]) / 0.01)
        told = found[0, 1, seen[:, 0], seen[:, 1], 4 + channel].double()
        told = told.sign() * torch.expm1(told.abs())  # the compression undone, but for the rms of the channel
        slopes = torch.tensor(slopes, dtype=torch.float64)
        assert torch.corrcoef(torch.stack([told, slopes]))[0, 1] > 0.98, channel


def test_corrections_learn_from_the_pictures_and_without_passes_there_are_none(given):
    rgba, cameras = given.images[:, :4], given.cameras[:4]
    assert len(network(passes=0)(rgba, cameras, every=True)) == 1
    model = network(passes=2)
    scenes = model(rgba, cameras, every=True)
    assert len(scenes) == 3 and not torch.equal(scenes[1].means, scenes[2].means)
    assert torch.equal(model(rgba, cameras).means, scenes[2].means)
    scenes[2].colors.sum().backward()
    assert model.change.weight.grad.abs().sum() > 0 and model.network.enter.weight.grad.abs().sum() > 0


def test_a_mirrored_scene_looks_mirrored():
    """Splats drawn at (-x, y, z), seen from mirrored cameras, against the flipped picture; a camera off its middle, too."""
    scene = Gaussians.random(40, scale=0.05, generator=gen())
    scene = replace(scene, quats=torch.tensor([1.0, 0, 0, 0]).repeat(40, 1))
    scene = replace(scene, scales=scene.scales[:, :1].expand(-1, 3).contiguous())  # balls have no handedness
    cameras = Cameras.stack([Cameras.orbit(3, width=24, height=24)] * 2)
    cameras.Ks[..., 0, 2] += 3
    pictures = rasterize(Gaussians.stack([scene] * 2), cameras)
    rgba, there = mirrored(torch.cat([pictures.rgb, pictures.alpha], -1), cameras, torch.tensor([True, False]))
    other = replace(scene, means=scene.means * torch.tensor([-1.0, 1, 1]))
    seen = rasterize(Gaussians.stack([other, scene]), there)
    torch.testing.assert_close(seen.rgb, rgba[..., :3], atol=2e-4, rtol=0)
    assert (rgba[0] - torch.cat([pictures.rgb, pictures.alpha], -1)[0]).abs().max() > 0.1


@torch.no_grad()
def test_the_transformers_splats_stay_on_their_rays_and_the_unets_need_not(given):
    rgba, cameras = given.images[:, :4], given.cameras[:4]
    origin, ray = (x.flatten(1, 3) for x in cameras.rays())
    for backbone in BACKBONES:
        model = network(backbone)
        model.fine[-1].weight.mul_(30)
        off = torch.linalg.cross(model(rgba, cameras).means - origin, ray).norm(dim=-1).max()
        assert (off < 1e-5) == (backbone == "transformer")


@pytest.mark.parametrize("passes", [0, 3])
@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_objects_do_not_mix_views_do_and_their_order_does_not_matter(given, backbone, passes):
    model, rgba, cameras = network(backbone, passes=passes), given.images[:, :4], given.cameras[:4]
    for part in model.network.modules():  # attention starts as the identity in the U-Net: wake it
        if hasattr(part, "out") and isinstance(part.out, torch.nn.Linear):
            torch.nn.init.normal_(part.out.weight, std=0.3, generator=gen())
    whole = model(rgba, cameras)
    alone = model(rgba[1:], replace(cameras, viewmats=cameras.viewmats[1:], Ks=cameras.Ks[1:]))
    torch.testing.assert_close(whole.means[1:], alone.means, atol=1e-4, rtol=0)
    order = [2, 0, 3, 1]
    mixed = model(rgba[:, order], replace(cameras, viewmats=cameras.viewmats[:, order], Ks=cameras.Ks[:, order]))
    off = (mixed.colors.unflatten(1, (4, -1)) - whole.colors.unflatten(1, (4, -1))[:, order]).abs()
    assert off.max() < (1e-3 if passes else 2e-5) and off.mean() < 1e-5  # a correction enlarges rounding at single pixels
    other = rgba.clone()
    other[0, 3] = 0
    changed = (model(other, cameras).colors - whole.colors).abs().unflatten(1, (4, -1)).amax((2, 3))
    assert (changed[0] > (0.05 if passes else 2e-3)).all() and (changed[1] == 0).all()


def test_the_most_opaque_are_those_of_a_sort():
    scenes = Gaussians.stack([Gaussians.random(20, generator=gen(s)) for s in (0, 1)])
    some = most_opaque(scenes, 7)
    for b in range(2):
        best = np.sort(np.argsort(-scenes.opacities[b].numpy())[:7])
        where = torch.cdist(some.means[b], scenes.means[b]).argmin(1).sort().values
        assert where.tolist() == best.tolist()
        order = torch.cdist(some.means[b], scenes.means[b]).argmin(1)
        torch.testing.assert_close(some.colors[b], scenes.colors[b, order])
    assert most_opaque(scenes, 99) is scenes


@torch.no_grad()
def test_the_loss_is_that_of_its_formula(given):
    model, truth, cameras = network(weight_lpips=0.3), given.images, given.cameras
    found = reconstruction_loss(model, model.config, truth, cameras, truth[:, :4], cameras[:4])
    white = truth[..., :3] * truth[..., 3:] + 1 - truth[..., 3:]
    scenes = model(truth[:, :4], cameras[:4], every=True)
    assert len(scenes) == 4
    wanted = 0.0
    for scene, weight in ((scenes[0], 0.3), (scenes[-1], 1.0)):
        out = rasterize(most_opaque(scene, 4 * 1536), cameras, (1.0, 1.0, 1.0))
        wanted = wanted + weight * (((out.rgb - white) ** 2).mean() + ((out.alpha - truth[..., 3:]) ** 2).mean())
    wanted = wanted + 0.3 * lpips(out.rgb.flatten(0, 1).clamp(0, 1), white.flatten(0, 1))
    assert found["loss"].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert found["psnr"].item() == pytest.approx(-10 * np.log10(((out.rgb - white)[:, 4:] ** 2).mean().item()), abs=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_any_number_of_views_is_taken(toys, count):
    rgba = toys.images[0, :count].float() / 255
    cameras = Cameras(toys.cameras.viewmats[0, :count], toys.cameras.Ks[0, :count], 32, 32)
    scene = network().reconstruct(rgba, cameras)
    assert scene.num == count * 1024 and scene.colors.min() >= 0 and scene.colors.max() <= 1
    scene.validate()


def test_what_does_not_fit_is_named(toys):
    model, cameras = network(), Cameras.orbit(2, width=32, height=32)
    for rgba, there, message in ((torch.rand(2, 32, 32, 3), cameras, "rgba: got shape"), (torch.rand(9, 32, 32, 4), cameras, "rgba: got shape"),
                                 (torch.rand(3, 32, 32, 4), cameras, "cameras: got 2 of"),
                                 (torch.rand(2, 32, 32, 4), Cameras.orbit(2, width=16, height=16), "cameras: got 2 of 16 x 16")):
        with pytest.raises(ValueError, match=message):
            model.reconstruct(rgba, there)
    for change, message in (({"backbone": "mlp"}, "config.backbone: got 'mlp'"), ({"size": 40}, "config.size, width: got 40"),
                            ({"depths": 0}, "config.depths: got 0"), ({"weight_lpips": -1.0}, "config.weight_lpips: got -1.0")):
        with pytest.raises(ValueError, match=message):
            FeedForwardConfig(**change)
    for wrong, message in (({"preset": "huge"}, "preset: got 'huge'"), ({"augment": 2.0}, "augment: got 2.0")):
        with pytest.raises(ValueError, match=message):
            train_feed_forward(**wrong)
    with pytest.raises(ValueError, match="count: got 3, wanted 1, 2, 4 or 8"):
        next(cases(toys, 3))
    with pytest.raises(ValueError, match="count: got \\(0, 8\\), wanted"):
        next(cases(toys, (0, 8)))


# ---- augmentation


def test_a_warp_keeps_order_and_its_strength_bounds_it():
    x = torch.linspace(0, 1, 64)
    ramp = [x[:, None].expand(64, 64), x[None].expand(64, 64), torch.zeros(64, 64), torch.ones(64, 64)]  # y, x, -, opaque
    ramp = torch.stack(ramp, -1)[None].repeat(5, 1, 1, 1)
    bent = grid_warp(ramp, 0.5, gen())
    assert (bent[:, 1:, :, 0] >= bent[:, :-1, :, 0] - 1e-6).all() and (bent[:, :, 1:, 1] >= bent[:, :, :-1, 1] - 1e-6).all()
    off = (bent - ramp).abs().amax((1, 2, 3))
    assert (off > 0.005).all() and (off < 0.25).all()
    assert (bent[:, :, :1, 0] - bent[..., 0]).abs().max() < 1e-5  # y is moved by rows alone
    torch.testing.assert_close(grid_warp(ramp, 0.5, gen()), bent)
    assert not torch.equal(bent[0], bent[1])


def test_a_turned_camera_sees_the_object_turned():
    cameras = Cameras.orbit(40, elevation=10.0)
    turned = orbit_jitter(cameras, 0.3, 0.0, gen())
    turned.validate()
    torch.testing.assert_close(turned.centers[:, 1], cameras.centers[:, 1])  # the height stays
    angle = (torch.atan2(*turned.centers[:, [0, 2]].T) - torch.atan2(*cameras.centers[:, [0, 2]].T) + np.pi) % (2 * np.pi) - np.pi
    assert angle.abs().max() <= 0.3 + 1e-5 and angle.abs().mean() > 0.1
    wanted = Cameras.orbit(40, elevation=10.0, azimuth=torch.rad2deg(torch.atan2(*turned.centers[:, [0, 2]].T)).tolist())
    torch.testing.assert_close(turned.viewmats, wanted.viewmats, atol=1e-4, rtol=0)
    raised = orbit_jitter(cameras, 0.0, 0.15, gen())
    lift = torch.asin(raised.centers[:, 1] / 1.8) - torch.asin(cameras.centers[:, 1] / 1.8)
    assert lift.abs().max() <= 0.15 + 1e-5 and lift.abs().mean() > 0.05
    assert (project_origin(raised) - 32).abs().max() < 1e-3  # it still looks at the object


def project_origin(cameras):
    at = torch.einsum("vij,vj->vi", cameras.Ks, cameras.viewmats[:, :3, 3])
    return at[:, :2] / at[:, 2:]


def test_the_first_view_is_never_touched_and_chance_0_touches_none(given):
    rgba, cameras = given.images[:, :4], given.cameras[:4]
    for chance, touched in ((0.0, False), (1.0, True)):
        bent, turned = augmented(rgba, cameras, chance, gen())
        assert torch.equal(bent[:, 0], rgba[:, 0]) and torch.equal(turned.viewmats[:, 0], cameras.viewmats[:, 0])
        assert torch.equal(bent, rgba) != touched and torch.equal(turned.viewmats, cameras.viewmats) != touched
    assert torch.equal(given.images[:, :4], rgba)


def test_a_batch_holds_inputs_first_and_both_kinds(toys):
    draw = batches([toys[:3], toys[3:]], 4, 0.0)
    counts = set()
    for seed in range(40):
        truth, viewmats, Ks, inputs, turned, count = draw(gen(seed))
        counts.add(count)
        assert torch.equal(truth[:, :count], inputs) and torch.equal(viewmats[:, :count], turned) and len(truth) == 4
        assert truth.shape[1] - count == 5
    assert counts >= {1, 2, 4, 8}


# ---- judging, and learning


def test_cases_hide_the_views_that_are_asked_for(toys):
    for count in (1, 2, 4, 8):
        for rgba, cameras, truth, there in cases(toys, count):
            assert len(rgba) == len(cameras) == count and len(truth) == len(there) == 8
            assert torch.cdist(cameras.centers, there.centers).min() > 0.01
    four, again = ([c[2] for c in cases(toys, n)] for n in (4, 1))
    assert all(torch.equal(a, b) for a, b in zip(four, again, strict=True))  # the same questions for any number of inputs
    assert front_views(toys) == [0, 2, 4, 6]
    angles = {2: 0.0, (0, 4): -1.0, (0, 1): 0.5**0.5}  # cosines between the two cameras, seen from above
    for count, cosine in angles.items():
        at = next(cases(toys, count))[1].centers[:, [0, 2]]
        assert torch.cosine_similarity(at[0], at[1], dim=0).item() == pytest.approx(cosine, abs=1e-4)


def test_baselines_stand_in_the_order_of_what_they_know(toys):
    mean = {name: np.mean([s["psnr"] for s in evaluate(f, toys)]) for name, f in BASELINES.items()}
    assert mean["white"] + 2 < mean["coloured hull"] and mean["white"] + 2 < min(mean["nearest input"], mean["splats at the hull"])
    iou = np.mean([s["iou"] for s in evaluate(BASELINES["coloured hull"], toys)])
    assert iou > 0.65


def test_smaller_views_equal_means_of_pixels(toys):
    half = smaller(toys, 16)
    alpha = toys.images[..., 3].float().unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    assert (half.images[..., 3].float() - alpha).abs().max() <= 0.5 + 1e-3 and half.cameras.width == 16


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_tiny_training_beats_its_start(backbone, toys):
    """The same four views of the same six toys, 60 steps: other views of them improve by more than 1 dB."""
    model = seeded(lambda: FeedForward(FeedForwardConfig(backbone=backbone, weight_lpips=0.0, **SMALL)), 0)
    before = np.mean([s["psnr"] for s in evaluate(model.reconstruct, toys)])
    adam, draw = torch.optim.Adam(model.parameters(), lr=2e-3), MultiView(toys, 4, 4, "orthogonal", background=None)
    for step in range(60):
        batch = draw.batch(torch.randint(6, (3,), generator=gen(step)), gen(step))
        loss = reconstruction_loss(model, model.config, batch.images, batch.cameras, batch.images[:, :4], batch.cameras[:4])["loss"]
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert np.mean([s["psnr"] for s in evaluate(model.reconstruct, toys)]) > before + 1


def test_scores_are_those_of_the_metrics(toys):
    rgba, cameras, truth, there = next(cases(toys))
    scene = BASELINES["coloured hull"](rgba, cameras)
    out = rasterize(scene, there, (1.0, 1.0, 1.0))
    white = truth[..., :3] * truth[..., 3:] + 1 - truth[..., 3:]
    wanted = np.mean([psnr(a, b).item() for a, b in zip(out.rgb.clamp(0, 1), white, strict=True)])
    assert evaluate(BASELINES["coloured hull"], toys[:1])[0]["psnr"] == pytest.approx(wanted, abs=1e-3)


def test_the_tiny_preset_trains_resumes_ships_and_may_begin_with_weights(tmp_path):
    run = tmp_path / "run"
    assert train_feed_forward(run, preset="tiny", minutes=0.0, device="cpu") == {}
    card = train_feed_forward(run, preset="tiny", device="cpu")
    assert card["name"] == "feedforward_unet" and card["steps"] == 5
    first = load_feed_forward(run / "model")
    assert first.config.size == 32 and not next(first.parameters()).requires_grad
    again = train_feed_forward(tmp_path / "again", preset="tiny", steps=1, start=str(run / "model"), device="cpu")
    assert "--start" in again["command"] and again["start"]["sha256"] == json.loads((run / "model/card.json").read_text())["sha256"]
    often = train_feed_forward(tmp_path / "often", preset="tiny", steps=1, start=str(run / "model"), passes=5, device="cpu")
    assert load_feed_forward(tmp_path / "often" / "model").config.passes == 5 and "--passes 5" in often["command"]
    second = load_feed_forward(tmp_path / "again" / "model")
    fresh = seeded(lambda: FeedForward(first.config), 0)
    near, far = ((other.network.enter.weight - first.network.enter.weight).abs().max() for other in (second, fresh))
    assert near < 0.2 * far
    with pytest.raises(FileNotFoundError, match="no card"):
        train_feed_forward(tmp_path / "none", preset="tiny", start=str(run), device="cpu")
    with pytest.raises(ValueError, match="start: got a network of"):
        train_feed_forward(tmp_path / "none", preset="tiny", geometry=False, start=str(run / "model"), device="cpu")


def test_a_checkpoint_of_another_training_is_refused_not_shipped(tmp_path):
    run = dict(preset="tiny", minutes=0.0, device="cpu")
    train_feed_forward(tmp_path / "run", **run)
    for change, message in (({"augment": 0.9}, "augment=0.2, wanted 0.9"), ({"passes": 1}, "was trained with network")):
        with pytest.raises(ValueError, match=message):
            train_feed_forward(tmp_path / "run", **run | change)
    with pytest.raises(ValueError, match="steps: got 0"):
        train_feed_forward(tmp_path / "none", preset="tiny", steps=0)
    train_feed_forward(tmp_path / "run", preset="tiny", device="cpu")
    with pytest.raises(ValueError, match="has taken 5 steps, wanted 2"):
        train_feed_forward(tmp_path / "run", preset="tiny", steps=2, device="cpu")
    with pytest.raises(ValueError, match="device: got 'gpu'"):
        train_feed_forward(tmp_path / "run", preset="tiny", device="gpu")

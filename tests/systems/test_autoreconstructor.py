"""The AutoReconstructor: its Gaussians written out by loops, frames, skips, loss; its diffusion: what is known, drawn, guided."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.data.multiview import MultiView, toy_views
from gsgen_lib.metrics import ssim
from gsgen_lib.perceptual import lpips
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import quat_to_rotmat
from gsgen_lib.systems.autoreconstructor import (
    HEAD,
    NUMBERS,
    WIDTH,
    AutoReconstructor,
    AutoReconstructorConfig,
    splatter,
    var_loss,
)
from gsgen_lib.systems.autoreconstructor_training import batches, recoloured
from gsgen_lib.training import seeded

S = 32


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def network(**more):
    config = AutoReconstructorConfig(**dict(size=S, widths=(8, 16, 16, 24), budget=600) | more)
    return seeded(lambda: AutoReconstructor(config), 0).eval()


@pytest.fixture(scope="module")
def toys():
    return toy_views(4, 0, S, 8, points=16, progress=False)


@pytest.fixture(scope="module")
def batch(toys):
    return MultiView(toys, 1, 3, background=None).batch(range(4), gen())


def first_camera(batch):
    return Cameras(batch.cameras.viewmats[:1, :1], batch.cameras.Ks[:1, :1], S, S)


# ---- numbers to Gaussians


def odd_camera():
    """Not level, not square: unequal focal lengths, a principal point off the middle."""
    cameras = Cameras.orbit(2, elevation=[20.0, -30.0], azimuth=[50.0, 200.0], width=6, height=6)
    Ks = cameras.Ks.clone()
    Ks[:, 1, 1] *= 1.2
    Ks[:, 0, 2] += 0.7
    return Cameras(cameras.viewmats[:, None], Ks[:, None], 6, 6)


def test_the_table_of_the_header_by_hand():
    raw = torch.randn(2, 6, 6, 2, NUMBERS, generator=gen(), dtype=torch.float64)
    cameras = odd_camera()
    cameras = Cameras(cameras.viewmats.double(), cameras.Ks.double(), 6, 6)
    found, near, far, n = splatter(raw, cameras, 0.7, 2.9), 0.7, 2.9, 0
    for b in range(2):
        W, K = cameras.viewmats[b, 0].numpy(), cameras.Ks[b, 0].numpy()
        n = 0
        for y in range(6):
            for x in range(6):
                for m in range(2):
                    o, d, *rest = raw[b, y, x, m].tolist()
                    offset, s, q, c = rest[:3], rest[3:6], rest[6:10], rest[10:]
                    depth = near + (far - near) / (1 + math.exp(-d))
                    ray = np.linalg.inv(K) @ [x + 0.5, y + 0.5, 1]
                    world = np.linalg.inv(W) @ [*(depth * ray + offset), 1]
                    torch.testing.assert_close(found.means[b, n], torch.from_numpy(world[:3]))
                    turn = W[:3, :3].T @ Rotation.from_quat([q[1], q[2], q[3], 1 + q[0]]).as_matrix()
                    torch.testing.assert_close(quat_to_rotmat(found.quats[b, n]), torch.from_numpy(turn))
                    wide = [depth / K[0, 0] * WIDTH * math.exp(2 * math.tanh(v / 2)) for v in s]
                    torch.testing.assert_close(found.scales[b, n], torch.tensor(wide, dtype=torch.float64))
                    assert found.opacities[b, n].item() == pytest.approx(1 / (1 + math.exp(-o)))
                    assert found.colors[b, n].tolist() == pytest.approx([1 / (1 + math.exp(-v)) for v in c])
                    n += 1
    assert found.num == n == 72


def test_the_first_scene_is_in_front_of_the_camera_and_as_the_head_says():
    var, cameras = network(), Cameras.stack([Cameras.orbit(1, width=S, height=S)])
    scene = var.decode(torch.zeros(1, 4, 4, 4), cameras)
    depth = cameras.project(scene.means)[1]
    assert 0.9 < depth.min() and depth.max() < 2.7 and abs(depth.mean() - 1.8) < 0.15
    assert abs(scene.opacities.mean() - 0.12) < 0.1  # two for a pixel, each faint
    biases = [network(gaussians=m).leave[-1].bias[:1].sigmoid().item() * m for m in (1, 2, 3)]
    assert biases == pytest.approx([0.24] * 3, abs=1e-5)  # together as opaque, however many
    assert list(HEAD) == ["opacity", "depth", "offset", "scales", "quats", "color"] and NUMBERS == 15


def test_the_pose_of_the_camera_changes_nothing_in_its_own_view(batch):
    """No pose is read: a camera that stands elsewhere sees the same picture of its own scene."""
    var, rgba = network(), batch.images[:1, 0]
    with torch.no_grad():
        mu, _, _, skips = var.encode(rgba)
        pictures = []
        for turn in (0.0, 130.0):
            cameras = Cameras.stack([Cameras.orbit(1, azimuth=[turn], elevation=[turn / 4], width=S, height=S)])
            pictures.append(rasterize(var.decode(mu, cameras, skips), cameras).rgb)
    torch.testing.assert_close(*pictures, atol=2e-4, rtol=0)


def test_the_scene_is_turned_with_its_quaternions(batch):
    """Negative control of the test before: without turning quaternions the pictures differ."""
    var = network()
    with torch.no_grad():
        var.leave[-1].bias.view(2, 15)[:, 5:8] = torch.tensor([2.0, -2.0, 0.0])  # long Gaussians
        mu, _, _, skips = var.encode(batch.images[:1, 0])
        cameras = [Cameras.stack([Cameras.orbit(1, azimuth=[a], elevation=[a / 4], width=S, height=S)]) for a in (0.0, 130.0)]
        first, second = (var.decode(mu, c, skips) for c in cameras)
        same = rasterize(second, cameras[1]).rgb - rasterize(first, cameras[0]).rgb
        wrong = rasterize(replace(second, quats=first.quats), cameras[1]).rgb - rasterize(first, cameras[0]).rgb
    assert same.abs().max() < 1e-3 < 1e-2 < wrong.abs().max()


# ---- skips


def test_without_weight_skips_say_nothing(batch):
    var, rgba, cameras = network(), batch.images[:, 0], batch.cameras[:1]
    with torch.no_grad():
        mu, _, _, skips = var.encode(rgba)
        assert [tuple(s.shape[1:]) for s in skips] == [(8, S, S), (16, S // 2, S // 2)]
        none, off, on = (var.decode(mu, cameras, *more) for more in ((), (skips, 0.0), (skips, 1.0)))
        noise = [s + 100 * torch.randn(s.shape, generator=gen()) for s in skips]
        assert torch.equal(off.means, var.decode(mu, cameras, noise, 0.0).means) and torch.equal(off.means, none.means)
        assert (on.colors - off.colors).abs().max() > 1e-3
        mixed = var.decode(mu, cameras, skips, torch.tensor([1.0, 0.0, 1.0, 0.5]))
        assert torch.equal(mixed.means[1], off.means[1]) and torch.allclose(mixed.means[0], on.means[0], atol=1e-6)
        assert not torch.equal(mixed.means[3], on.means[3])
    assert network(skips=False).encode(rgba)[3] == []


def test_both_skips_are_carried(batch):
    var, rgba, cameras = network(), batch.images[:1, 0], first_camera(batch)
    with torch.no_grad():
        mu, _, _, skips = var.encode(rgba)
        whole = var.decode(mu, cameras, skips).colors
        for k in range(2):
            less = [s * (i != k) for i, s in enumerate(skips)]
            assert (var.decode(mu, cameras, less).colors - whole).abs().max() > 1e-4


def test_a_code_is_of_one_picture_alone(batch):
    var = network()
    with torch.no_grad():
        whole = var.encode(batch.images[:, 0])[0]
        torch.testing.assert_close(whole[2:3], var.encode(batch.images[2:3, 0])[0], atol=1e-5, rtol=1e-4)


def test_a_draw_is_mu_and_sigma_and_noise(batch):
    var, rgba = network(), batch.images[:1, 0]
    one = Cameras(batch.cameras.viewmats[0, :1], batch.cameras.Ks[0, :1], S, S)
    noise = torch.randn(4, 4, 4, generator=gen())
    with torch.no_grad():
        mu, logvar, _, skips = var.encode(rgba)
        by_hand = var.splats(var.decode(mu + (0.5 * logvar).exp() * noise, Cameras.stack([one]), skips))[0]
    assert torch.equal(var.reconstruct(rgba, one, noise=noise).means, by_hand.means)
    assert not torch.equal(var.reconstruct(rgba, one).means, by_hand.means)
    assert var.reconstruct(rgba, one).num == 600


# ---- loss


def test_the_loss_is_the_one_of_its_header(batch):
    var = network(weight_kl=0.01)
    c, truth, keep = var.config, batch.images, torch.tensor([1.0, 0.0, 1.0, 0.0])
    found = var_loss(var, c, truth, batch.cameras, keep, 0.05, gen(3))
    noise = torch.randn(4, 4, 4, 4, generator=gen(3))
    scenes, mu, logvar = var(truth[:, 0], batch.cameras[:1], noise, keep)
    out = rasterize(var.splats(scenes), batch.cameras, (1.0, 1.0, 1.0))
    white = on_background(truth, torch.ones(3))
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(mu, (0.5 * logvar).exp()), torch.distributions.Normal(0, 1))
    parts = [0.8 * (out.rgb - white).square().mean(), 0.2 * (1 - ssim(out.rgb.clamp(0, 1), white)), 0.01 * kl.mean(),
             0.5 * (out.alpha - truth[..., 3:]).square().mean(), 0.05 * lpips(out.rgb.flatten(0, 1), white.flatten(0, 1))]
    torch.testing.assert_close(found["loss"], sum(parts), atol=1e-5, rtol=1e-5)
    others = (out.rgb - white)[:, 1:].square().mean()
    assert found["psnr"].item() == pytest.approx(-10 * math.log10(others.item()), abs=1e-3)
    none = var_loss(network(variational=False), network(variational=False).config, truth, batch.cameras, keep)
    assert none["loss"] > 0 and torch.isfinite(none["loss"])


def test_without_sampling_noise_says_nothing(batch):
    var = network(variational=False)
    one, two = (var(batch.images[:, 0], batch.cameras[:1], torch.randn(4, 4, 4, 4, generator=gen(k)), torch.ones(4))[0]
                for k in (0, 1))
    assert torch.equal(one.means, two.means)
    own = Cameras(batch.cameras.viewmats[0, :1], batch.cameras.Ks[0, :1], S, S)
    drawn, mean = (var.reconstruct(batch.images[0, :1], own, noise=noise) for noise in (
        torch.randn(4, 4, 4, generator=gen()), None))
    assert torch.equal(drawn.means, mean.means)  # nothing was learned of sigma


def test_the_loss_is_finite_in_half_precision(batch):
    var = network()
    with torch.autocast("cpu", torch.bfloat16):
        half = var_loss(var, var.config, batch.images, batch.cameras, torch.ones(4), 0.01, gen())["loss"]
    assert half.dtype == torch.float32 and half.item() == pytest.approx(
        var_loss(var, var.config, batch.images, batch.cameras, torch.ones(4), 0.01, gen())["loss"].item(), rel=0.05)


def test_every_weight_learns(batch):
    var = network()
    for p in var.parameters():  # some start at 0 and stop the gradient of those before them
        p.data += 0.05 * torch.randn(p.shape, generator=gen(p.numel()))
    var_loss(var, var.config, batch.images, batch.cameras, torch.ones(4), 0.0, gen())["loss"].backward()
    assert not [name for name, p in var.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


# ---- training data


def test_colours_change_alike_in_all_pictures_and_grey_stays_grey():
    x = torch.rand(3, 5, 4, 4, 4, generator=gen())
    x[0] = x[0, :1]  # five times the same picture
    y = recoloured(x, gen(1))
    assert torch.equal(y[0], y[0, :1].expand_as(y[0])) and torch.equal(y[..., 3], x[..., 3])
    assert (y[..., :3] - x[..., :3]).abs().mean((1, 2, 3, 4)).min() > 0.01 and y.min() >= 0 and y.max() <= 1
    grey = torch.full((2, 4, 4, 4), 0.5)
    turned = recoloured(grey, gen(2), gain=0.0)
    torch.testing.assert_close(turned, grey)


def test_hue_is_a_rotation_about_grey():
    x = 0.3 + 0.2 * torch.rand(1, 6, 6, 4, generator=gen())
    y = recoloured(x, gen(5), hue=0.4, saturation=0.0, gain=0.0)
    angle = (2 * torch.rand(1, 1, 1, generator=gen(5)) - 1).item() * 0.4
    turn = torch.from_numpy(Rotation.from_rotvec(angle * np.ones(3) / math.sqrt(3)).as_matrix()).float()
    torch.testing.assert_close(y[..., :3], x[..., :3] @ turn.T, atol=1e-5, rtol=0)


def test_batches_hold_both_kinds_and_mirror_only_real_ones(toys):
    views = replace(toys, meta=[m | {"id": f"real {i}"} if i < 2 else m for i, m in enumerate(toys.meta)])
    noise = replace(views, images=torch.randint(256, toys.images.shape, generator=gen(), dtype=torch.uint8))  # nothing symmetric
    alphas, kept, seen = noise.images[..., 3].float() / 255, [], set()
    for seed in range(30):
        rgba, _, _, keep = batches([noise[:2], noise[2:]], 4)(gen(seed))
        kept += keep.tolist()
        for k in range(4):
            own = alphas[:2] if k < 2 else alphas[2:]
            plain, flipped = ((own - x).abs().amax((2, 3)).min() < 1e-6 for x in (rgba[k, 0, ..., 3], rgba[k, 0, ..., 3].flip(1)))
            assert plain != flipped
            seen.add((k < 2, bool(flipped)))
    assert seen == {(True, False), (True, True), (False, False)}
    assert 0.3 < np.mean(kept) < 0.7 and set(kept) == {0.0, 1.0}
    assert set(batches([toys], 4, kept=1.0)(gen())[3].tolist()) == {1.0}
    with pytest.raises(ValueError, match="multiple of the number of sets, 3"):
        batches([toys, toys, toys], 4)


# ---- bad input


@pytest.mark.parametrize("wrong, said", [(dict(size=20), "config.size"), (dict(far=0.5), "config.far"), (dict(gaussians=0), "gaussians"),
                                         (dict(widths=(8, 16, 16, 20)), "config.widths"), (dict(weight_kl=-1.0), "weight_kl")])
def test_wrong_options_are_named(wrong, said):
    with pytest.raises(ValueError, match=said):
        AutoReconstructorConfig(**wrong)


def test_wrong_input_is_named(batch):
    var, one = network(), Cameras.orbit(1, width=S, height=S)
    with pytest.raises(ValueError, match="rgba"):
        var.encode(torch.rand(1, S, S, 3))
    with pytest.raises(ValueError, match="h, cameras"):
        var.decode(torch.zeros(1, 4, 8, 8), Cameras.stack([one]))
    with pytest.raises(ValueError, match="h, cameras"):
        var.decode(torch.zeros(1, 4, 4, 4), Cameras.stack([Cameras.orbit(2, width=S, height=S)]))
    with pytest.raises(ValueError, match="skips"):
        var.decode(torch.zeros(2, 4, 4, 4), Cameras.stack([one] * 2), var.encode(torch.rand(1, S, S, 4))[3])
    with pytest.raises(ValueError, match="wanted one"):
        var.reconstruct(torch.rand(2, S, S, 4), Cameras.orbit(2, width=S, height=S))
    with pytest.raises(ValueError, match="rgba: got numbers"):
        var.reconstruct(2 * torch.ones(1, S, S, 4), one)

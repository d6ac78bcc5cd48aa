"""Sparse voxels: both autoencoders, on cases whose answer is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import qmc

from gsgen_lib.data.multiview import toy_views
from gsgen_lib.data.occupancy import cells_of, occupancy
from gsgen_lib.metrics import ssim
from gsgen_lib.nn.sparse_grid import Voxels
from gsgen_lib.perceptual import lpips
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.sparse_voxels import (
    FEATURES,
    NUMBERS,
    AppearanceConfig,
    AppearanceVAE,
    StructureConfig,
    StructureVAE,
    appearance_loss,
    gaussians_of,
    hammersley,
    iou,
    padded,
    structure_loss,
    voxel_features,
)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def toys():
    return toy_views(2, 5, 32, 12, points=2048, progress=False)


SMALL = AppearanceConfig(resolution=16, width=24, heads=2, layers=1)


# ---- structure -----------------------------------------------------------------------------------------------------


def test_eight_voxels_fold_into_channels_and_back(monkeypatch):
    """What `encode` folds, `decode` unfolds: with networks that pass on what they get, bits come back."""
    vae = StructureVAE(StructureConfig(resolution=8, latent=4, widths=(8, 8)))
    grid = torch.rand(2, 8, 8, 8, generator=gen()) < 0.3
    folded = torch.cat(vae.encode.__func__(_Through(vae), grid), 1)
    assert folded.shape == (2, 8, 4, 4, 4)
    assert torch.equal(folded[1, 5, 2, 3, 1], 2.0 * grid[1, 5, 6, 3] - 1)  # channel 5 = (1, 0, 1) in the cell (2, 3, 1)
    monkeypatch.setattr(vae, "up", torch.nn.Sequential())
    monkeypatch.setattr(StructureConfig, "cells", 4)
    object.__setattr__(vae.config, "latent", 8)
    assert torch.equal(vae.decode(folded) > 0, grid)


class _Through:
    """A structure autoencoder whose layers pass on what they get."""

    def __init__(self, vae):
        self.config, self.up, self.down = vae.config, vae.up, torch.nn.Identity()


def test_the_structure_loss_written_out():
    config = StructureConfig(resolution=8, widths=(8, 8), weight_kl=0.25)
    vae, grid = StructureVAE(config).requires_grad_(False), torch.rand(3, 8, 8, 8, generator=gen(1)) < 0.3
    found = structure_loss(vae, config, grid, gen(7))
    mu, logvar = vae.encode(grid)
    noise = torch.randn(mu.shape, generator=gen(7))
    p, y = torch.sigmoid(vae.decode(mu + (logvar / 2).exp() * noise)).double(), grid.double()
    dice = np.mean([1 - (2 * float((p[i] * y[i]).sum()) + 1) / (float(p[i].sum() + y[i].sum()) + 1) for i in range(3)])
    entropy = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).mean()
    assert float(found["loss"]) == pytest.approx(float(dice + entropy + 0.25 * kl), rel=1e-5)
    alone = structure_loss(vae, replace(config, dice_alone=True), grid, gen(7))
    assert float(alone["loss"]) == pytest.approx(float(dice + 0.25 * kl), rel=1e-5)
    assert float(found["iou"]) == pytest.approx(float(iou(p > 0.5, grid).mean()))


def test_iou_by_hand():
    a, b = torch.zeros(3, 2, 2, 2).bool(), torch.zeros(3, 2, 2, 2).bool()
    a[0, 0] = b[0, :, 0] = True  # 4 and 4, 2 in both
    a[1, 0, 0, 0] = True
    assert iou(a, b).tolist() == pytest.approx([1 / 3, 0, 1])


def test_a_structure_is_learned_by_heart(toys):
    """Two toys on a 16^3 grid; the control: dice alone from the same start learns less in the same steps."""
    grids = torch.stack([occupancy(p, 16) for p in toys.points])
    reached = {}
    for alone in (False, True):
        torch.manual_seed(0)
        config = StructureConfig(resolution=16, widths=(16, 24), weight_kl=1e-4, dice_alone=alone)
        vae = StructureVAE(config)
        adam = torch.optim.Adam(vae.parameters(), 3e-3)
        for step in range(120):
            loss = structure_loss(vae, config, grids, gen(step))
            adam.zero_grad()
            loss["loss"].backward()
            adam.step()
        reached[alone] = float(iou(vae.decode(vae.encode(grids)[0]) > 0, grids).mean())
    assert reached[True] < 0.9 < reached[False], reached


# ---- features ------------------------------------------------------------------------------------------------------


def plates():
    """Two plates, x-y planes of voxels: a red one at z > 0 and a blue one behind it, and a camera that looks from +z."""
    grid = torch.zeros(1, 16, 16, 16, dtype=torch.bool)
    grid[0, 4:12, 4:12, 12] = grid[0, 5:11, 5:11, 3] = True
    voxels = Voxels.from_grid(grid)
    red = voxels.coords[:, 2] == 12
    colors = torch.where(red[:, None], torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0]))
    n = len(colors)
    scene = Gaussians(voxels.centres(), torch.tensor([1.0, 0, 0, 0]).expand(n, 4), torch.full((n, 3), 0.03),
                      torch.full((n,), 0.99), colors)
    return voxels, red, scene


def pictures(scene, cameras):
    out = rasterize(scene, cameras)
    return torch.cat([out.rgb / out.alpha.clamp_min(1e-4), out.alpha], -1).clamp(0, 1)


def test_a_voxel_behind_another_reads_nothing_of_it():
    voxels, red, scene = plates()
    front = Cameras.orbit(1, elevation=0.0, width=64, height=64)
    found = voxel_features(voxels, pictures(scene, front)[None], Cameras.stack([front]))
    assert found.shape == (len(voxels.coords), FEATURES)
    colour, any_ = found[:, :32].unflatten(1, (8, 4)).split((3, 1), -1)
    inner = red & ((voxels.coords[:, :2] - 7.5).abs().amax(1) < 3)
    assert (any_[inner] == 1).all() and (colour[inner] - torch.tensor([0.5, -0.5, -0.5])).abs().max() < 0.15
    assert (found[~red] == 0).all()  # hidden: no colour, seen by none
    assert (found[red, 32] == 1).all()
    back = Cameras.orbit(2, elevation=0.0, width=64, height=64)  # the second from behind
    both = voxel_features(voxels, pictures(scene, back)[None], Cameras.stack([back]))
    middle = ~red & ((voxels.coords[:, :2] - 7.5).abs().amax(1) < 2)
    blue = both[middle][:, :32].unflatten(1, (8, 4))
    assert (blue[..., :3] - torch.tensor([-0.5, -0.5, 0.5])).abs().max() < 0.15 and (both[:, 32] == 0.5).all()


def test_features_hold_the_colours_of_the_surface(toys):
    """Mean colour of a voxel's places against that of the true surface points in it; the control: another toy's pictures."""
    grid = torch.stack([occupancy(p, 16) for p in toys.points])
    voxels = Voxels.from_grid(grid)
    rgba = toys.images.float() / 255
    right = voxel_features(voxels, rgba, toys.cameras)
    wrong = voxel_features(voxels, rgba.flip(0), toys.cameras)

    def off(found):
        errors = []
        for b, rows in enumerate(torch.arange(len(found)).split(voxels.lengths)):
            points = toys.points[b]
            number = torch.full((16, 16, 16), -1)
            number[tuple(voxels.coords[rows].unbind(-1))] = rows
            at = number[tuple(cells_of(points[:, :3], 16).unbind(-1))]
            for t in rows.tolist():
                mine = found[t, :32].reshape(8, 4)
                inside = points[at == t]
                if mine[:, 3].any() and len(inside) > 3:
                    seen = mine[mine[:, 3] > 0, :3].mean(0) + 0.5
                    errors.append(float((seen - inside[:, 6:].mean(0)).abs().mean()))
        return np.mean(errors), len(errors)

    (good, many), (bad, _) = off(right), off(wrong)
    assert many > 100 and good < 0.08 < 2 * good < bad


def test_objects_of_a_batch_are_read_alone(toys):
    grid = torch.stack([occupancy(p, 16) for p in toys.points])
    rgba = toys.images.float() / 255
    together = voxel_features(Voxels.from_grid(grid), rgba, toys.cameras)
    alone = [voxel_features(Voxels.from_grid(grid[i:i + 1]), rgba[i:i + 1], toys[i].cameras) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone))
    vae = _said(AppearanceVAE(SMALL))
    both = vae.encode(Voxels.from_grid(grid), together)[0]
    one = [vae.encode(Voxels.from_grid(grid[i:i + 1]), alone[i])[0] for i in range(2)]
    torch.testing.assert_close(both, torch.cat(one), atol=1e-5, rtol=1e-4)


def _said(vae):
    """With a last layer that says something."""
    torch.nn.init.normal_(vae.leave[-1].weight, 0.0, 0.3, generator=gen())
    return vae


# ---- Gaussians -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1.0, 1e3, 1e15])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_no_gaussian_leaves_its_voxel_by_more_than_half_of_it(size, count):
    voxels = Voxels.from_grid(torch.rand(2, 8, 8, 8, generator=gen()) < 0.2)
    raw = size * torch.randn(len(voxels.coords), count, NUMBERS, generator=gen(1))
    means = torch.cat([g.means for g in gaussians_of(voxels, raw)]).unflatten(0, (-1, count))
    off = (means - voxels.centres()[:, None]).abs() * 8
    assert off.max() <= 0.75 + 1e-5
    assert off.max() > 0.74 or size == 1.0  # and they use it
    for scene in gaussians_of(voxels, raw):
        scene.validate()
        assert scene.scales.min() >= 9e-4


def test_the_equations_of_the_header():
    voxels = Voxels.from_grid(torch.eye(2).bool()[None, :, :, None].expand(1, 2, 2, 2).contiguous())
    raw = torch.randn(len(voxels.coords), 2, NUMBERS, generator=gen(3), dtype=torch.float64)
    scene = gaussians_of(voxels, raw)[0]
    for t in range(len(raw)):
        for k in range(2):
            x = raw[t, k].tolist()
            i = 2 * t + k
            for axis in range(3):
                a = math.atanh(float(hammersley(2)[k, axis]) / 1.5)
                centre = (float(voxels.coords[t, axis]) + 0.5) / 2 - 0.5
                assert float(scene.means[i, axis]) == pytest.approx(centre + math.tanh(x[axis] + a) * 0.75 / 2, abs=1e-6)
                assert float(scene.scales[i, axis]) == pytest.approx(9e-4 + math.log1p(math.exp(x[4 + axis] - 1)) / 2)
                assert float(scene.colors[i, axis]) == pytest.approx(1 / (1 + math.exp(-x[11 + axis])))
            assert float(scene.opacities[i]) == pytest.approx(1 / (1 + math.exp(-x[3] - 1)))
            q = np.array(x[7:11]) + [1, 0, 0, 0]
            assert scene.quats[i].tolist() == pytest.approx((q / np.linalg.norm(q)).tolist())


def test_a_new_decoder_puts_gaussians_into_their_voxels():
    vae, voxels = AppearanceVAE(SMALL), Voxels.from_grid(torch.rand(1, 16, 16, 16, generator=gen()) < 0.05)
    scene = vae.splats(voxels, torch.randn(len(voxels.coords), 8, generator=gen(1)))[0]
    assert torch.equal(cells_of(scene.means, 16), voxels.coords.repeat_interleave(2, 0).clamp(0, 15))


def test_hammersley_is_that_of_scipy():
    found = (hammersley(5) + 1) / 2
    assert found[:, 0].tolist() == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    halton = qmc.Halton(2, scramble=False).random(5)
    assert found[:, 1:].numpy() == pytest.approx(halton, abs=1e-6)


def test_scenes_of_different_sizes_render_as_they_do_alone():
    scenes = [Gaussians.random(n, generator=gen(n)) for n in (3, 40, 11)]
    cameras = Cameras.orbit(2, width=32, height=32)
    together = rasterize(padded(scenes), Cameras.stack([cameras] * 3), (1.0, 1.0, 1.0)).rgb
    for i, scene in enumerate(scenes):
        torch.testing.assert_close(together[i], rasterize(scene, cameras, (1.0, 1.0, 1.0)).rgb)


def test_the_appearance_loss_written_out(toys):
    config = replace(SMALL, weight_kl=0.5, weight_lpips=0.3, weight_ssim=0.7, weight_volume=2e3, weight_opacity=0.9)
    vae = _said(AppearanceVAE(config)).requires_grad_(False)
    voxels, rgba = Voxels.from_grid(torch.stack([occupancy(p, 16) for p in toys.points])), toys.images.float() / 255
    features, truth, there = voxel_features(voxels, rgba, toys.cameras), rgba[:, 8:10], toys.cameras[8:10]
    found = appearance_loss(vae, config, voxels, features, truth, there, gen(3))
    g = gen(3)
    mu, logvar = vae.encode(voxels, features)
    scenes = gaussians_of(voxels, vae.decode(voxels, mu + (logvar / 2).exp() * torch.randn(mu.shape, generator=g)))
    background = torch.rand(2, 1, 3, generator=g)
    rgb, alpha, wanted = [], [], []
    for i, scene in enumerate(scenes):
        out = rasterize(scene, Cameras(there.viewmats[i], there.Ks[i], 32, 32), tuple(background[i, 0].tolist()))
        rgb.append(out.rgb), alpha.append(out.alpha)
        wanted.append(truth[i, ..., :3] * truth[i, ..., 3:] + background[i] * (1 - truth[i, ..., 3:]))
    rgb, alpha, wanted = torch.stack(rgb), torch.stack(alpha), torch.stack(wanted)
    every = Gaussians.cat(scenes)
    total = (rgb - wanted).abs().mean() + (alpha - truth[..., 3:]).abs().mean() + 0.7 * (1 - ssim(rgb, wanted, validate=False))
    total += 0.3 * lpips(rgb.flatten(0, 1).clamp(0, 1), wanted.flatten(0, 1))
    total += 0.5 * 0.5 * (mu**2 + logvar.exp() - 1 - logvar).mean()
    total += 2e3 * every.scales.prod(-1).mean() + 0.9 * ((1 - every.opacities) ** 2).mean()
    assert float(found["loss"]) == pytest.approx(float(total), rel=1e-4)


def test_a_voxel_knows_its_place():
    """The same features two voxels farther give other latents, and other Gaussians."""
    vae = _said(AppearanceVAE(SMALL))
    grid = torch.zeros(1, 16, 16, 16, dtype=torch.bool)
    grid[0, 4:8, 4:8, 4] = True
    here, there = Voxels.from_grid(grid), Voxels.from_grid(grid.roll(2, 1))
    features = torch.rand(16, FEATURES, generator=gen())
    a, b = vae.encode(here, features)[0], vae.encode(there, features)[0]
    assert (a - b).abs().max() > 1e-3
    assert (vae.decode(here, a) - vae.decode(there, a)).abs().max() > 1e-3


def test_the_appearance_loss_falls_on_a_toy(toys):
    """120 steps on one toy: beats, on views that were not read, a scene that is grey all over."""
    torch.manual_seed(0)
    one = toys[0]
    voxels = Voxels.from_grid(occupancy(one.points[0], 16)[None])
    rgba = one.images.float() / 255
    features = voxel_features(voxels, rgba[:, :8], one.cameras[:8])
    vae = AppearanceVAE(SMALL)
    adam = torch.optim.Adam(vae.parameters(), 4e-3)
    truth, cameras = rgba[:, 8:], one.cameras[8:]

    def asked():
        with torch.no_grad():
            return float(appearance_loss(vae, SMALL, voxels, features, truth, cameras, gen(999))["psnr"])

    before = asked()
    for step in range(120):
        loss = appearance_loss(vae, SMALL, voxels, features, rgba[:, :4], one.cameras[:4], gen(step))["loss"]
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert asked() > before + 4


@pytest.mark.parametrize(("make", "complaint"), [
    (lambda: StructureConfig(resolution=10), "config.resolution: got 10"),
    (lambda: StructureConfig(widths=(8, 9)), "config.widths"),
    (lambda: AppearanceConfig(width=20), "config.width, resolution: got 20"),
    (lambda: AppearanceConfig(gaussians=0), "config.gaussians: got 0"),
    (lambda: StructureVAE(StructureConfig(resolution=8)).encode(torch.zeros(1, 8, 8, 8)), "grid: got"),
    (lambda: StructureVAE(StructureConfig(resolution=8)).decode(torch.zeros(1, 8, 3, 2, 2)), "z: got"),
    (lambda: AppearanceVAE(SMALL).encode(Voxels.from_grid(torch.ones(1, 2, 2, 2).bool()), torch.zeros(8, FEATURES)), "R = 16"),
    (lambda: AppearanceVAE(SMALL).decode(Voxels.from_grid(torch.ones(1, 16, 16, 16).bool()), torch.zeros(5, 8)), "values: got"),
    (lambda: voxel_features(Voxels.from_grid(torch.ones(2, 2, 2, 2).bool()), torch.zeros(1, 1, 8, 8, 4),
                            Cameras.stack([Cameras.orbit(1, width=8, height=8)])), "got 2 objects"),
])
def test_wrong_input_is_named(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()

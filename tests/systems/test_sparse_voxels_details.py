"""Sparse voxels: scales of tokens, what each training is told, and input that does not fit."""

import math

import pytest
import torch

from gsgen_lib.data.occupancy import cells_of
from gsgen_lib.nn.packed import place_waves
from gsgen_lib.nn.sparse_grid import Voxels, structure_tokens
from gsgen_lib.pretrained import load_network
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems import sparse_voxels_training as training
from gsgen_lib.systems.few_steps import draw, noised
from gsgen_lib.systems.sparse_voxels import (
    AppearanceConfig,
    AppearanceVAE,
    StructureConfig,
    StructureVAE,
    iou,
    load_appearance,
    load_structure,
    voxel_features,
)
from gsgen_lib.systems.sparse_voxels_edit import Asset, draw_asset, inside, repaint, restyle
from gsgen_lib.systems.sparse_voxels_flow import FlowConfig, SparseVoxels, VoxelFlow, load_sparse_voxels
from gsgen_lib.training import seeded

R = 16


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def words_of(captions):
    return torch.zeros(len(captions), 5, 96)


def make_sampler(**more):
    small = dict(width=24, heads=2, layers=1, size=16)
    flows = [FlowConfig(numbers=64, reach=2, **small), FlowConfig(numbers=64, extra=8, reach=8, **small | more)]

    def make():
        return SparseVoxels(StructureVAE(StructureConfig(resolution=R, widths=(8, 8))),
                            AppearanceVAE(AppearanceConfig(resolution=R, width=24, heads=2, layers=1)),
                            *(VoxelFlow(c) for c in flows), words_of)

    return seeded(make, 0)


@pytest.fixture(scope="module")
def sampler():
    """Whose tokens have means and spreads of their own."""
    found = make_sampler()
    for net in (found.flow_structure, found.flow_appearance):
        net.mean.copy_(torch.linspace(-1, 2, 64))
        net.std.copy_(torch.linspace(0.5, 3, 64))
    return found


@pytest.fixture(scope="module")
def voxels():
    return Voxels.from_grid(torch.rand(1, R, R, R, generator=gen()) < 0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the toys of the tiny preset are kept."""
    return tmp_path_factory.mktemp("toys")


# ---- scales --------------------------------------------------------------------------------------------------------


def to_zero(x, extra, places, lengths, t, given):
    """A velocity that leads every token to 0, where the mean of the training tokens is."""
    return x / t.repeat_interleave(torch.tensor(lengths))[:, None]


def test_scaled_and_unscaled_are_inverse(sampler):
    z, net = torch.randn(5, 64, generator=gen()), sampler.flow_structure
    torch.testing.assert_close(net.scale(z), (z - net.mean) / net.std)
    torch.testing.assert_close(net.unscale(net.scale(z)), z)


def test_tokens_that_are_drawn_are_unscaled(sampler, voxels, monkeypatch):
    """At the flow's 0 are latents of the training mean."""
    monkeypatch.setattr(sampler.flow_structure, "forward", to_zero)
    monkeypatch.setattr(sampler.flow_appearance, "forward", to_zero)
    decoded = []
    monkeypatch.setattr(sampler.structure, "decode", lambda z: decoded.append(z) or torch.ones(1, R, R, R))
    given = sampler.condition([""])
    sampler.draw_structure(given, 3, generator=gen())
    torch.testing.assert_close(structure_tokens(decoded[0], 2), sampler.flow_structure.mean.expand(8, -1))
    z = sampler.draw_latents(voxels, given, 3, generator=gen())
    wanted = sampler.flow_appearance.mean.reshape(8, 8)[voxels.cells()[1]]  # by slot
    torch.testing.assert_close(z, wanted)


def test_what_is_known_comes_back_as_it_was_given(sampler, voxels, monkeypatch):
    """Not scaled, in the latents that are decoded."""
    decoded = []
    monkeypatch.setattr(sampler.structure, "decode", lambda z: decoded.append(z) or torch.ones(1, R, R, R))
    values = torch.randn(1, 8, 4, 4, 4, generator=gen(3))
    known = torch.rand(values.shape, generator=gen(4)) < 0.5
    sampler.draw_structure(sampler.condition([""]), 3, values=values, known=known, generator=gen())
    torch.testing.assert_close(decoded[0][known], values[known], atol=1e-4, rtol=1e-4)
    assert (decoded[0][~known] - values[~known]).abs().mean() > 0.1
    seen = []
    monkeypatch.setattr(sampler.flow_appearance, "forward",
                        lambda x, extra, places, lengths, t, given: seen.append((float(t[0]), x.clone())) or torch.zeros_like(x))
    values, known = torch.randn(len(voxels.coords), 8, generator=gen(5)), torch.rand(len(voxels.coords), generator=gen(6)) < 0.5
    noise = torch.randn(values.shape, generator=gen(7))
    sampler.draw_latents(voxels, sampler.condition([""]), 4, 1.0, noise=noise, values=values, known=known)
    t, x = seen[2]  # on the straight road between noise and the scaled value
    value = voxels.from_cells(sampler.flow_appearance.scale(voxels.to_cells(values)[:, :64]))
    torch.testing.assert_close(voxels.from_cells(x)[known], ((1 - t) * value + t * noise)[known], atol=1e-5, rtol=1e-4)


def test_scales_of_a_token_repeat_those_of_a_place():
    """Channels of very different spread: each of the 8 places of a token has the same eight."""
    spread = 10.0 ** torch.arange(-2.0, 2.0, 0.5)
    mu = torch.randn(50, 8, 4, 4, 4, generator=gen()) * spread[:, None, None, None] + 3 * spread[:, None, None, None]
    flow = VoxelFlow(FlowConfig(numbers=64, reach=2, width=24, heads=2, layers=1))
    training.set_scales(flow, {"mu": mu, "logvar": torch.full_like(mu, -20.0)})
    tokens = flow.scale(structure_tokens(mu, 2))
    torch.testing.assert_close(tokens.std(0), torch.ones(64), atol=0.15, rtol=0)
    torch.testing.assert_close(tokens.mean(0), torch.zeros(64), atol=0.2, rtol=0)


def test_shift_moves_the_times_of_a_flow():
    asked = []
    draw(lambda x, t: asked.append(float(t[0])) or x, "flow", torch.zeros(1, 2), 2, shift=3.0)
    assert asked == [1.0, 0.75]


# ---- what trainings are told ---------------------------------------------------------------------------------------


def test_comparisons_reach_the_loss_and_the_network(tmp_path, monkeypatch):
    class Enough(Exception):
        pass

    def stop(model, loss_fn, draw, *more, **facts):
        seen["network"], seen["loss"] = model.config, loss_fn
        seen["batch"] = draw(gen())
        raise Enough

    seen = {}
    monkeypatch.setattr(training, "train", stop)
    with pytest.raises(Enough):
        training.train_voxels(tmp_path / "s", "structure", "tiny", dice_alone=True)
    assert seen["network"].dice_alone
    monkeypatch.undo()
    training.train_voxels(tmp_path / "s", "structure", "tiny", 1, device="cpu")
    monkeypatch.setattr(training, "train", stop)
    asked = []
    monkeypatch.setattr(training, "voxel_flow_loss", lambda *words: asked.append(words[-1]) or {})
    for ddpm in (False, True):
        with pytest.raises(Enough):
            training.train_voxels(tmp_path / "f", "structure-flow", "tiny", structure=str(tmp_path / "s" / "model"), ddpm=ddpm)
        seen["loss"](None, seen["batch"], gen())
        assert seen["network"].ddpm == ddpm
        x = seen["batch"][0]
        assert 0.6 < x.std() < 1.5 and abs(x.mean()) < 0.3  # tokens come scaled
    assert asked == [False, True]


def test_pictures_are_judged_from_their_own_cameras(folder):
    sets, _ = training.training_objects(training.PRESETS["tiny"], 32, 0, folder)
    grids = [training.grids_of(one, R) for one in sets]
    _, _, _, truth, viewmats, _ = training.appearance_batches(sets, grids, 2)(gen(4))
    every = torch.cat([s.images.flatten(0, 1) for s in sets]).float() / 255
    cameras = torch.cat([s.cameras.viewmats.flatten(0, 1) for s in sets])
    for picture, matrix in zip(truth.flatten(0, 1), viewmats.flatten(0, 1), strict=True):
        same = ((every - picture).abs().amax((1, 2, 3)) < 1e-6).nonzero()[:, 0]
        turned = ((every.flip(2) - picture).abs().amax((1, 2, 3)) < 1e-6).nonzero()[:, 0]
        flip = torch.diag(torch.tensor([-1.0, 1, 1, 1]))
        own = [torch.allclose(cameras[i], matrix, atol=1e-5) for i in same.tolist()]
        own += [torch.allclose(flip @ cameras[i] @ flip, matrix, atol=1e-5) for i in turned.tolist()]
        assert any(own)


def test_latents_of_appearance_are_those_of_its_pictures(folder):
    sets, _ = training.training_objects(training.PRESETS["tiny"], 32, 0, folder)
    vae = make_sampler().appearance
    found = training.latents_of(vae, sets, R)
    grid = training.grids_of(sets[1][[0]], R)
    one = Voxels.from_grid(grid)
    rgba, cameras = training.some_views(sets[1], torch.tensor([0]), torch.arange(8)[None])
    wanted = vae.encode(one, voxel_features(one, rgba, cameras))[0]
    first = int(found["lengths"][:2 * len(sets[0])].sum())
    torch.testing.assert_close(found["mu"][first:first + len(wanted)].float(), wanted, atol=5e-3, rtol=5e-3)
    assert (vae.encode(one, torch.zeros(len(wanted), 33))[0] - wanted).abs().max() > 0.01


def test_places_of_patches_are_heard():
    """Four patches in another order are another picture; without places they are the same one."""
    own = make_sampler()
    net = own.flow_structure
    for weight in net.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, 0.0, 0.2, generator=gen(1))
    kernel = net.look[2].weight.data
    kernel[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0.0  # no look across the borders of a patch
    x, picture = torch.randn(8, 64, generator=gen()), torch.rand(1, 16, 16, 4, generator=gen(2))
    apart = []
    for size in (1.0, 0.0):
        net.where.copy_(size * torch.randn(net.where.shape, generator=gen(3)))
        one, other = (net(x, x[:, :0], torch.zeros(8, 3), (8,), torch.tensor([0.5]), own.condition([""], p))
                      for p in (picture, picture.roll(8, 1)))  # by one patch
        apart.append((one - other).abs().max().item())
    assert apart[0] > 0.005 and apart[1] < 1e-5


def test_waves_of_places_are_as_long_as_it_says():
    turns = place_waves(torch.eye(3) * 4.0, 24, reach=5.0)  # one place a row, 4 along one axis
    lengths = [4 * 5.0, 4.0]  # the longest, the shortest of four
    x = turns[0].reshape(3, 4, 2)[0]  # x axis: (waves, cos and sin)
    for row, length in zip((0, -1), lengths, strict=True):
        assert x[row].tolist() == pytest.approx([math.cos(2 * math.pi * 4 / length), math.sin(2 * math.pi * 4 / length)], abs=1e-5)


def test_a_log_variance_stays_in_its_bounds(voxels):
    vae = make_sampler().appearance
    vae.moments[-1].bias.fill_(99.0)
    assert vae.encode(voxels, torch.zeros(len(voxels.coords), 33))[1].max() == 10


# ---- input that does not fit ---------------------------------------------------------------------------------------


def bits(x):
    return torch.tensor(x, dtype=torch.long)


@pytest.mark.parametrize(("call", "said"), [
    (lambda: Voxels(bits([[-1, 0, 0]]), (1,), 4), "coords: got -1"),
    (lambda: Voxels(bits([[4, 0, 0]]), (1,), 4), "coords: got 0 to 4"),
    (lambda: Voxels(bits([[0, 0, 0], [0, 0, 0]]), (2,), 4), "coords: got voxels twice"),
    (lambda: Voxels((torch.ones(4, 4, 4) > 0).nonzero(), (64,), 4), "not by cell and slot"),
    (lambda: Voxels(bits([[0, 0, 0]]), (2, -1), 4), "lengths: got"),
    (lambda: Voxels(bits([[0, 0, 0]]), (1,), 4).to_cells(torch.zeros(2, 3)), "values: got shape"),
    (lambda: Voxels(bits([[0, 0, 0]]), (1,), 4).from_cells(torch.zeros(2, 8)), "rows: got shape"),
    (lambda: Voxels(bits([[0, 0, 0]]), (1,), 4).from_cells(torch.zeros(1, 9)), "rows: got shape"),
    (lambda: iou(torch.ones(4, 4, 4) > 0, torch.ones(4, 4, 4) > 0), "a, b: got"),
    (lambda: iou(torch.ones(1, 4, 4, 4), torch.ones(1, 4, 4, 4)), "a, b: got"),
    (lambda: AppearanceConfig(resolution=33), "resolution: got 144 and 33"),
    (lambda: cells_of(torch.tensor([float("nan")] * 3), 4), "positions: got"),
    (lambda: noised(torch.zeros(1, 2), torch.tensor([1.5]), torch.zeros(1, 2), True), "t: got"),
    (lambda: noised(torch.zeros(1, 2), torch.tensor([float("nan")]), torch.zeros(1, 2), True), "t: got"),
    (lambda: draw(lambda x, t: x, "ddim", torch.zeros(1, 2), 2.5), "steps: got 2.5"),
    (lambda: make_sampler(size=24), "flows: got pictures of 16 and 24"),
    (lambda: training.train_voxels(part="structure", ddpm=True), "ddpm: is no option of part 'structure'"),
    (lambda: training.train_voxels(part="structure", gaussians=4), "gaussians: is no option"),
    (lambda: training.train_voxels(part="appearance", dice_alone=True), "dice_alone: is no option"),
    (lambda: training.train_voxels(steps="3"), "steps: got '3'"),
    (lambda: load_sparse_voxels(structure="prior", flow_structure="voxel_structure"), "was trained on another autoencoder"),
])
def test_it_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize(("more", "said"), [
    (dict(noise=torch.full((1, 8, 4, 4, 4), float("nan"))), "noise: got"),
    (dict(values=torch.zeros(1, 8, 4, 4, 4)), "values, known: got one of them"),
    (dict(known=torch.ones(1, 8, 4, 4, 4) > 0), "values, known: got one of them"),
    (dict(values=torch.zeros(1, 8, 4, 4, 4), known=torch.ones(1, 8, 4, 4, 4)), "known: got"),
    (dict(values=torch.full((1, 8, 4, 4, 4), float("inf")), known=torch.ones(1, 8, 4, 4, 4) > 0), "values: got"),
    (dict(generator=0), "generator: got 0"),
])
def test_what_structures_start_from_is_checked(sampler, more, said):
    with pytest.raises(ValueError, match=said):
        sampler.draw_structure(sampler.condition([""]), 2, **more)


def test_double_noise_is_taken(sampler):
    noise = torch.randn(1, 8, 4, 4, 4, generator=gen(), dtype=torch.float64)
    assert sampler.draw_structure(sampler.condition([""]), 1, noise=noise).any()


@pytest.mark.parametrize("rgba", [torch.zeros(1, 2, 8, 6, 4), torch.zeros(1, 2, 8, 8, 3), torch.full((1, 2, 8, 8, 4), 255.0),
                                  torch.zeros(1, 2, 8, 8, 4, dtype=torch.uint8), torch.full((1, 2, 8, 8, 4), float("nan"))])
def test_pictures_of_voxels_are_checked(voxels, rgba):
    with pytest.raises(ValueError, match="rgba: got"):
        voxel_features(voxels, rgba, Cameras.stack([Cameras.orbit(2, width=8, height=8)]))


def test_an_asset_of_another_decoder_is_not_edited(sampler, voxels):
    n = len(voxels.coords)
    one = Asset(voxels, torch.zeros(n, 8), torch.zeros(n, 1, 14))
    for edit in (lambda: restyle(sampler, one, sampler.condition([""])),
                 lambda: repaint(sampler, one, sampler.condition([""]), ((-0.5,) * 3, (0.5, 0.0, 0.5)))):
        with pytest.raises(ValueError, match="asset: has 1 Gaussians"):
            edit()
    for raw in (torch.zeros(n, 14), torch.zeros(n, 2, 13)):
        with pytest.raises(ValueError, match="latents, raw: got"):
            Asset(voxels, torch.zeros(n, 8), raw)
    for box in ((0, 0, 0, 1, 1, 1), None, "box"):
        with pytest.raises(ValueError, match="box: got"):
            inside(voxels, box)


def test_the_same_seed_makes_the_same_asset(sampler):
    found = [draw_asset(sampler, sampler.condition([""]), gen(s)) for s in (1, 1, 2)]
    assert torch.equal(found[0].voxels.coords, found[1].voxels.coords) and torch.equal(found[0].latents, found[1].latents)
    assert not torch.equal(found[0].latents, found[2].latents)


def test_each_flow_belongs_to_its_autoencoder(tmp_path):
    training.train_voxels(tmp_path / "s", "structure", "tiny", 1, device="cpu")
    training.train_voxels(tmp_path / "a", "appearance", "tiny", 1, device="cpu")
    training.train_voxels(tmp_path / "b", "appearance", "tiny", 1, seed=1, device="cpu")
    paths = {k: str(tmp_path / k / "model") for k in "sab"}
    training.train_voxels(tmp_path / "sf", "structure-flow", "tiny", 1, structure=paths["s"], device="cpu")
    training.train_voxels(tmp_path / "af", "appearance-flow", "tiny", 1, appearance=paths["a"], device="cpu")
    flows = [tmp_path / k / "model" for k in ("sf", "af")]
    load_sparse_voxels("cpu", paths["s"], paths["a"], *flows)
    with pytest.raises(ValueError, match="was trained on another autoencoder"):
        load_sparse_voxels("cpu", paths["s"], paths["b"], *flows)
    assert load_structure(paths["s"]).config.resolution == load_appearance(paths["a"]).config.resolution == R
    with pytest.raises(ValueError, match="no StructureVAE"):
        load_network(paths["a"], StructureVAE, StructureConfig)

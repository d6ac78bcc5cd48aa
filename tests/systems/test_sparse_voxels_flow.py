"""The flows of sparse voxels, editing and training, on small networks and on velocities that are known."""

import pytest
import torch

from gsgen_lib.data.occupancy import occupancy
from gsgen_lib.nn.sparse_grid import Voxels, from_structure_tokens, structure_places, structure_tokens
from gsgen_lib.pretrained import read_card
from gsgen_lib.systems import sparse_voxels_training as training
from gsgen_lib.systems.sparse_voxels import AppearanceConfig, AppearanceVAE, StructureConfig, StructureVAE, load_structure
from gsgen_lib.systems.sparse_voxels_edit import Asset, draw_asset, encoded, inside, merge, remove, repaint, restyle
from gsgen_lib.systems.sparse_voxels_flow import (
    FlowConfig,
    Given,
    SparseVoxels,
    VoxelFlow,
    load_flow,
    structure_asker,
    voxel_flow_loss,
)

R = 16
BOX = ((-0.5, -0.5, -0.5), (0.5, 0.0, 0.5))  # the lower half


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def words_of(captions):
    """Each caption as 5 tokens that depend on it; "" as zeros."""
    return torch.stack([torch.zeros(5, 96) if not c else torch.randn(5, 96, generator=gen(sum(map(ord, c)))) for c in captions])


def loud(network):
    """Every weight that starts at 0 says something."""
    for i, weight in enumerate(network.parameters()):
        if not weight.any():
            torch.nn.init.normal_(weight, 0.0, 0.2, generator=gen(i))
    return network


@pytest.fixture(scope="module")
def sampler():
    torch.manual_seed(0)
    small = dict(width=24, heads=2, layers=1, size=16)
    return SparseVoxels(loud(StructureVAE(StructureConfig(resolution=R, widths=(8, 8)))),
                        loud(AppearanceVAE(AppearanceConfig(resolution=R, width=24, heads=2, layers=1))),
                        loud(VoxelFlow(FlowConfig(reach=4, **small))),
                        loud(VoxelFlow(FlowConfig(numbers=64, extra=8, reach=8, **small))), words_of)


@pytest.fixture(scope="module")
def asset(sampler):
    return draw_asset(sampler, sampler.condition(["a mug"]), gen())


# ---- the network ---------------------------------------------------------------------------------------------------


def tokens(net, lengths, seed=0):
    count, c = sum(lengths), net.config
    return (torch.randn(count, c.numbers, generator=gen(seed)), (torch.rand(count, c.extra, generator=gen(seed)) < 0.5).float(),
            torch.randint(4, (count, 3), generator=gen(seed)))


def test_scenes_of_a_batch_do_not_hear_each_other(sampler):
    net, lengths = sampler.flow_appearance, (3, 6)
    x, extra, places = tokens(net, lengths)
    given = sampler.condition(["a cup", "a car"], torch.rand(2, 16, 16, 4, generator=gen(1)))
    t = torch.tensor([0.2, 0.7])
    both = net(x, extra, places, lengths, t, given)
    for i, rows in enumerate((slice(0, 3), slice(3, 9))):
        alone = net(x[rows], extra[rows], places[rows], (lengths[i],), t[i:i + 1], given[[i]])
        torch.testing.assert_close(both[rows], alone, atol=1e-5, rtol=1e-4)


def test_words_time_place_and_picture_are_read(sampler):
    net, lengths = sampler.flow_appearance, (5,)
    x, extra, places = tokens(net, lengths)
    picture = torch.rand(1, 16, 16, 4, generator=gen(1))
    plain = dict(x=x, extra=extra, places=places, lengths=lengths, t=torch.tensor([0.5]), given=sampler.condition(["a cup"], picture))
    first = net(**plain)
    changed = {"t": torch.tensor([0.6]), "places": places.flip(0), "extra": 1 - extra, "given": sampler.condition(["a car"], picture)}
    for name, value in changed.items():
        assert (net(**(plain | {name: value})) - first).abs().max() > 1e-3, name
    other = sampler.condition(["a cup"], picture.flip(1))
    assert (net(**(plain | {"given": other})) - first).abs().max() > 1e-3
    alpha0 = picture.clone()
    alpha0[..., 3] = 0
    noisy = alpha0.clone()
    noisy[..., :3] = torch.rand(1, 16, 16, 3, generator=gen(9))  # colours where nothing is
    same = [net(**(plain | {"given": sampler.condition(["a cup"], p)})) for p in (alpha0, noisy)]
    torch.testing.assert_close(*same)


def test_a_picture_that_is_not_given_changes_nothing(sampler):
    net, lengths = sampler.flow_structure, (4,)
    x, extra, places = tokens(net, lengths)
    words = words_of(["a cup"])
    found = [net(x, extra, places, lengths, torch.tensor([0.5]), Given(words, torch.rand(1, 16, 16, 4, generator=gen(k)), torch.zeros(1)))
             for k in (1, 2)]
    assert torch.equal(*found)


def test_the_loss_written_out(sampler):
    net, lengths = sampler.flow_appearance, (3, 4)
    x, extra, places = tokens(net, lengths, 3)
    active = extra.repeat_interleave(8, 1)
    given = sampler.condition(["a cup", ""])
    found = voxel_flow_loss(net, x, extra, places, lengths, given, active, gen(5))["loss"]
    g = gen(5)
    t = torch.sigmoid(1 + torch.randn(2, generator=g))
    eps = torch.randn(x.shape, generator=g)
    each = t[[0, 0, 0, 1, 1, 1, 1], None]
    noisy = ((1 - each) * x + each * eps) * active
    off = (net(noisy, extra, places, lengths, t, given) - (eps - x)) ** 2
    assert float(found) == pytest.approx(float(off[active > 0].mean()), rel=1e-5)


def test_times_of_training_are_logit_normal_around_one():
    asked = []

    def model(x, extra, places, lengths, t, given):
        asked.append(t)
        return x

    for k in range(40):
        x = torch.zeros(50, 8)
        voxel_flow_loss(model, x, x[:, :0], torch.zeros(50, 3), (1,) * 50, None, torch.ones(50, 8), gen(k))
    t = torch.cat(asked)
    assert torch.logit(t).mean() == pytest.approx(1.0, abs=0.08) and torch.logit(t).std() == pytest.approx(1.0, abs=0.08)


def test_the_comparison_says_eps_on_the_other_road(sampler):
    """A model that knows eps has no loss; asked for velocities it has."""
    x = torch.randn(9, 8, generator=gen())
    known = {}

    def model(x_t, extra, places, lengths, t, given):
        a = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000).double(), 0).float()[(t * 1000).long()].repeat_interleave(3)[:, None]
        known["t"] = t
        return (x_t - a.sqrt() * x) / (1 - a).sqrt()

    ask = (model, x, x[:, :0], torch.zeros(9, 3), (3, 3, 3), None, torch.ones(9, 8))
    assert voxel_flow_loss(*ask, gen(1), ddpm=True)["loss"] < 1e-3 < 0.1 < voxel_flow_loss(*ask, gen(1))["loss"]


@pytest.mark.parametrize("side", [1, 2, 4])
def test_tokens_of_structures_hold_blocks_of_places(side):
    """Every number is where a loop over places puts it."""
    z, p = torch.randn(2, 3, 4, 4, 4, generator=gen()), 4 // side
    rows = structure_tokens(z, side)
    assert rows.shape == (2 * side**3, 3 * p**3) and torch.equal(from_structure_tokens(rows, side, 3), z)
    places, lengths = structure_places(side, 2)
    for row, (x, y, w) in enumerate(places.tolist()):
        block = z[row // side**3, :, x * p:(x + 1) * p, y * p:(y + 1) * p, w * p:(w + 1) * p]
        wanted = [block[c, i, j, k] for i in range(p) for j in range(p) for k in range(p) for c in range(3)]
        assert torch.equal(rows[row], torch.stack(wanted))
    assert lengths == (side**3,) * 2


def test_the_asker_of_structures_asks_each_as_it_is(sampler):
    given = sampler.condition(["a cup", "a car"])
    x, t = torch.randn(2, 64, 8, generator=gen()), torch.tensor([0.3, 0.8])
    both = structure_asker(sampler.flow_structure, given)(x, t)
    places = torch.stack(torch.meshgrid(*[torch.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    for i in range(2):
        alone = sampler.flow_structure(x[i], x[i, :, :0], places, (64,), t[[i]], given[[i]])
        torch.testing.assert_close(both[i], alone, atol=1e-5, rtol=1e-4)


# ---- sampling ------------------------------------------------------------------------------------------------------


class Known:
    """A velocity that leads to the target of the caption: given.words[0, 0, 0] names it; notes what it is asked."""

    def __init__(self, target, nothing=0.0):
        self.target, self.nothing, self.asked = target, nothing, []

    def __call__(self, x, extra, places, lengths, t, given):
        self.asked.append((round(float(t[0]), 4), len(lengths)))
        aim = torch.cat([torch.full((n, x.shape[1]), self.target if float(w.abs().sum()) else self.nothing)
                         for n, w in zip(lengths, given.words, strict=True)])
        return (x - aim) / float(t[0])


def follow(sampler, net, scale=1.0, steps=4, shift=1.0, interval=(0.0, 1.0), kept=None):
    noise = torch.randn(6, 8, generator=gen(2))
    return sampler._follow(net, noise, noise[:, :0], torch.zeros(6, 3), (2, 4), sampler.condition(["a", "b"]), steps, scale, shift,
                           interval, kept)


def test_flow_arrives_and_guidance_goes_beyond(sampler):
    torch.testing.assert_close(follow(sampler, Known(3.0)), torch.full((6, 8), 3.0))
    # u + s (c - u): from 1 (nothing) towards 3 (the words), twice as far
    torch.testing.assert_close(follow(sampler, Known(3.0, 1.0), scale=2.0), torch.full((6, 8), 5.0), atol=1e-5, rtol=1e-5)


def test_guidance_asks_twice_in_its_interval_alone(sampler):
    net = Known(3.0, 1.0)
    follow(sampler, net, 2.0, 4, 1.0, (0.6, 1.0))
    assert net.asked == [(1.0, 4), (0.75, 4), (0.5, 2), (0.25, 2)]
    shifted = Known(3.0)
    follow(sampler, shifted, 1.0, 2, 3.0)
    assert [t for t, _ in shifted.asked] == [1.0, 0.75]


def test_guidance_of_a_batch_is_its_formula(sampler):
    """One step, written out with two calls: each scene with its own tokens, places and words."""
    net, lengths = sampler.flow_appearance, (3, 6)
    x, extra, places = tokens(net, lengths)
    x = x * extra.repeat_interleave(8, 1)
    given, one = sampler.condition(["a cup", "a car"]), torch.ones(2)
    found = sampler._follow(net, x, extra, places, lengths, given, 1, 3.0, 1.0, (0.0, 1.0), None)
    u, c = (net(x, extra, places, lengths, one, g) for g in (sampler.condition(["", ""]), given))
    wanted = (x - (u + 3 * (c - u))) * extra.repeat_interleave(8, 1)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_sample_guides_latents_less_than_structure(sampler, monkeypatch):
    asked = []
    for name in ("draw_structure", "draw_latents"):
        whole = getattr(sampler, name)
        monkeypatch.setattr(sampler, name, lambda *a, whole=whole, **k: asked.append(a[-1]) or whole(*a, **k))
    sampler.sample(["a cup"], steps=1, guidance_scale=4.0, generator=gen())
    assert asked == [4.0, 3.0]


def test_what_is_known_stays_and_the_rest_is_drawn(sampler):
    values, known = torch.randn(6, 8, generator=gen(4)), torch.rand(6, 8, generator=gen(5)) < 0.5
    found = follow(sampler, Known(3.0), kept=(values, known))
    torch.testing.assert_close(found[known], values[known], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[~known], torch.full((int((~known).sum()),), 3.0))


def test_slots_without_a_voxel_stay_empty(sampler):
    voxels, seen = Voxels.from_grid(torch.rand(1, R, R, R, generator=gen()) < 0.05), []
    net = sampler.flow_appearance
    hook = net.register_forward_pre_hook(lambda module, args: seen.append(args[:2]))
    sampler.draw_latents(voxels, sampler.condition(["a cup"]), 3, generator=gen())
    hook.remove()
    assert len(seen) == 3
    for x, extra in seen:
        empty = extra.repeat_interleave(8, 1) == 0
        assert empty.any() and (x[empty] == 0).all() and (x[~empty] != 0).all()


def test_a_batch_draws_what_each_scene_draws_alone(sampler):
    captions, noise = ["a cup", "a car"], torch.randn(2, 8, 4, 4, 4, generator=gen(1))
    both = sampler.draw_structure(sampler.condition(captions), 3, noise=noise)
    for i in range(2):
        assert torch.equal(both[i:i + 1], sampler.draw_structure(sampler.condition(captions[i:i + 1]), 3, noise=noise[i:i + 1]))
    assert both.shape == (2, R, R, R) and both.dtype == torch.bool


def test_every_scene_has_a_voxel(sampler, monkeypatch):
    logits = -torch.ones(1, R, R, R)
    logits[0, 3, 4, 5] = -0.5
    monkeypatch.setattr(sampler.structure, "decode", lambda z: logits)
    assert sampler.draw_structure(sampler.condition([""]), 1, generator=gen()).nonzero().tolist() == [[0, 3, 4, 5]]


def test_the_same_seed_draws_the_same_scene_and_another_does_not(sampler):
    scenes = [sampler.sample(["a cup"], steps=2, generator=gen(s))[0] for s in (0, 0, 1)]
    assert torch.equal(scenes[0].means, scenes[1].means) and torch.equal(scenes[0].colors, scenes[1].colors)
    assert scenes[0].means.shape != scenes[2].means.shape or not torch.equal(scenes[0].means, scenes[2].means)


@pytest.mark.parametrize(("call", "complaint"), [
    (lambda s: s.condition("a cup"), "captions: got"),
    (lambda s: s.condition([]), "captions: got"),
    (lambda s: s.condition([""], torch.zeros(1, 16, 16, 3)), "pictures: got shape"),
    (lambda s: s.condition([""], torch.full((1, 16, 16, 4), 2.0)), "outside of"),
    (lambda s: s.condition([""], torch.full((1, 16, 16, 4), float("nan"))), "outside of"),
    (lambda s: s.draw_structure(s.condition([""]), 0), "steps: got 0"),
    (lambda s: s.draw_structure(s.condition([""]), 2, float("nan")), "guidance_scale"),
    (lambda s: s.draw_structure(s.condition([""]), 2, interval=(1.0, 0.5)), "interval"),
    (lambda s: s.draw_structure(s.condition([""]), 2, noise=torch.zeros(1, 8, 4, 4, 5)), "noise: got"),
    (lambda s: s.draw_latents(Voxels.from_grid(torch.ones(1, 4, 4, 4).bool()), s.condition([""])), "voxels: got"),
    (lambda s: s.draw_latents(Voxels.from_grid(torch.ones(2, R, R, R).bool()), s.condition([""])), "voxels: got 2 objects"),
    (lambda s: s.draw_latents(Voxels.from_grid(torch.ones(1, R, R, R).bool()), s.condition([""]), known=torch.ones(3)), "known: got"),
    (lambda s: SparseVoxels(s.structure, s.appearance, s.flow_appearance, s.flow_appearance, words_of), "flow_structure: draws"),
    (lambda s: SparseVoxels(s.structure, AppearanceVAE(AppearanceConfig(width=24, layers=1)), s.flow_structure, s.flow_appearance,
                            words_of), "appearance: got R = 32"),
])
def test_wrong_input_is_named(sampler, call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call(sampler)


# ---- editing -------------------------------------------------------------------------------------------------------


def as_dict(asset):
    return {tuple(c): (z.tolist(), r.tolist()) for c, z, r in zip(asset.voxels.coords.tolist(), asset.latents, asset.raw, strict=True)}


def in_box(c):
    return all(lo <= (x + 0.5) / R - 0.5 <= hi for x, lo, hi in zip(c, *BOX, strict=True))


def test_removing_leaves_the_rest_to_the_bit(asset):
    found, before = as_dict(remove(asset, BOX)), as_dict(asset)
    assert found == {c: v for c, v in before.items() if not in_box(c)} and 0 < len(found) < len(before)
    with pytest.raises(ValueError, match="no voxel would be left"):
        remove(asset, ((-1.0,) * 3, (1.0,) * 3))


def test_merging_keeps_both_and_the_first_where_they_meet(asset, sampler):
    other = draw_asset(sampler, sampler.condition(["a car"]), gen(8))
    found = as_dict(merge(asset, other))
    assert found == as_dict(other) | as_dict(asset)
    assert set(as_dict(asset)) & set(as_dict(other)) and set(as_dict(other)) - set(as_dict(asset))
    tiny = Asset(Voxels.from_grid(torch.ones(1, 2, 2, 2).bool()), torch.zeros(8, 8), torch.zeros(8, 2, 14))
    with pytest.raises(ValueError, match="second: got R = 2"):
        merge(asset, tiny)


@pytest.mark.parametrize("edit", [restyle, repaint])
def test_what_is_outside_of_the_box_stays_to_the_bit(asset, sampler, edit):
    found = as_dict(edit(sampler, asset, sampler.condition(["a green car"]), box=BOX, generator=gen(3)))
    before = as_dict(asset)
    assert {c: v for c, v in found.items() if not in_box(c)} == {c: v for c, v in before.items() if not in_box(c)}
    inner, was = ({c: v for c, v in d.items() if in_box(c)} for d in (found, before))
    assert inner and all(v != was.get(c) for c, v in inner.items())  # and all inside is new
    if edit is restyle:
        assert set(inner) == set(was)
    else:
        assert set(inner) != set(was)


def test_repainting_holds_the_structure_that_the_box_does_not_touch(asset, sampler, monkeypatch):
    asked, whole = {}, sampler.draw_structure
    monkeypatch.setattr(sampler, "draw_structure", lambda given, **more: asked.update(more) or whole(given, **more))
    box = ((-0.5, -0.5, -0.5), (0.5, -0.2, 0.5))  # y up to 4.8 of 16 voxels: two rows of latents of 4
    repaint(sampler, asset, sampler.condition(["a car"]), box, gen(3))
    touched = ~asked["known"][0, 0]
    assert touched[:, :2].all() and not touched[:, 2:].any()
    assert torch.equal(asked["values"], sampler.structure.encode(asset.voxels.grid())[0])


def test_decoding_the_edited_scene_anew_would_change_the_rest(asset, sampler):
    """The control: why decoded numbers are kept."""
    new = restyle(sampler, asset, sampler.condition(["a green car"]), BOX, gen(3))
    again = sampler.appearance.decode(new.voxels, new.latents)
    outside = ~inside(asset.voxels, BOX)
    assert not torch.equal(again[outside], asset.raw[outside]) and torch.equal(new.raw[outside], asset.raw[outside])


def test_restyling_all_of_it_needs_no_box(asset, sampler):
    new = restyle(sampler, asset, sampler.condition(["a green car"]), generator=gen(3))
    assert torch.equal(new.voxels.coords, asset.voxels.coords)
    assert (new.latents != asset.latents).all(1).all() and new.gaussians.num == asset.gaussians.num


def test_a_box_that_splits_no_voxel_is_exact(asset):
    found = inside(asset.voxels, BOX)
    assert found.tolist() == [in_box(c) for c in asset.voxels.coords.tolist()]
    for box in (((0, 0, 0), (0, 1, 1)), ((0, 0), (1, 1)), ((float("nan"), 0, 0), (1, 1, 1))):
        with pytest.raises(ValueError, match="box: got"):
            inside(asset.voxels, box)


def test_rows_that_do_not_fit_are_named(asset):
    with pytest.raises(ValueError, match="voxels, latents, raw"):
        Asset(asset.voxels, asset.latents[1:], asset.raw)


# ---- training ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voxels")
    training.train_voxels(folder / "s", "structure", "tiny", device="cpu")
    training.train_voxels(folder / "a", "appearance", "tiny", device="cpu")
    for part, name in (("structure-flow", "s"), ("appearance-flow", "a")):
        other = {"structure" if name == "s" else "appearance": str(folder / name / "model")}
        training.train_voxels(folder / f"{name}f", part, "tiny", device="cpu", **other)
    return folder


def test_four_trainings_make_a_sampler(trained):
    from gsgen_lib.systems.sparse_voxels_flow import load_sparse_voxels

    names = {"structure": "s", "appearance": "a", "flow_structure": "sf", "flow_appearance": "af"}
    whole = load_sparse_voxels(**{k: trained / v / "model" for k, v in names.items()})
    scene = whole.sample(["a red mug"], steps=2, generator=gen())[0]
    scene.validate()
    asset = draw_asset(whole, whole.condition(["a red mug"]), gen())
    assert asset.gaussians.num == 2 * len(asset.latents)
    card = read_card(trained / "sf" / "model")
    assert card["command"].startswith("gsgen train voxels --part structure-flow --preset tiny --structure")
    assert card["autoencoder_sha256"] == read_card(trained / "s" / "model")["sha256"]["model.safetensors"]


def test_the_comparison_trains_and_is_no_part_of_a_sampler(trained, sampler):
    card = training.train_voxels(trained / "ddpm", "structure-flow", "tiny", 1, str(trained / "s" / "model"), ddpm=True,
                                 device="cpu")
    assert "--ddpm" in card["command"]
    net = load_flow(trained / "ddpm" / "model")
    assert net.config.ddpm and not load_flow(trained / "sf" / "model").config.ddpm
    vae = load_structure(trained / "s" / "model")
    with pytest.raises(ValueError, match="flow_structure: says eps"):
        SparseVoxels(vae, sampler.appearance, net, sampler.flow_appearance, words_of)


def test_a_flow_of_another_autoencoder_is_refused(trained, tmp_path):
    from gsgen_lib.systems.sparse_voxels_flow import load_sparse_voxels

    training.train_voxels(tmp_path / "s", "structure", "tiny", seed=1, device="cpu")
    names = {"structure": tmp_path / "s", "appearance": trained / "a", "flow_structure": trained / "sf", "flow_appearance": trained / "af"}
    with pytest.raises(ValueError, match="trained on another autoencoder"):
        load_sparse_voxels(**{k: v / "model" for k, v in names.items()})


def test_mirrored_bits_are_the_bits_of_mirrored_points(trained):
    toys = training.training_objects(training.PRESETS["tiny"], 32, 0, trained)[0][1]
    grids = training.grids_of(toys, R)
    points = toys.points[0].clone()
    points[:, [0, 3]] *= -1
    turned = occupancy(points, R)
    assert (turned & grids[0].flip(0)).sum() / (turned | grids[0].flip(0)).sum() > 0.94  # the points of a disc are no mirror images
    drawn = training.structure_batches([grids[:1]], 16)(gen())[0]
    assert {int(torch.equal(d, grids[0])) for d in drawn} == {0, 1}
    assert all(torch.equal(d, grids[0]) or torch.equal(d, grids[0].flip(0)) for d in drawn)


def test_a_mirrored_object_reads_what_it_reads_in_the_mirror(trained):
    toys = training.training_objects(training.PRESETS["tiny"], 32, 0, trained)[0][1][0]
    grid = training.grids_of(toys, R)
    plain = Voxels.from_grid(grid)
    rgba, cameras = training.some_views(toys, torch.tensor([0]), torch.arange(8)[None])
    read = training.voxel_features(plain, rgba, cameras)
    where = {tuple(c): k for k, c in enumerate(plain.coords.tolist())}
    draw, turns = training.appearance_batches([toys], [grid], 1), 0
    for seed in range(6):
        coords, lengths, features, truth, viewmats, Ks = draw(gen(seed))
        assert len(features) == len(coords) == sum(lengths) and truth.shape == (1, 5, 32, 32, 4)
        if torch.equal(coords, plain.coords):
            assert torch.equal(features, read)
        else:
            turns += 1
            back = read[[where[R - 1 - x, y, z] for x, y, z in coords.tolist()]]
            eight = back[:, :32].unflatten(1, (2, 4, 4)).flip(1).flatten(1)  # left and right places of each voxel change, too
            off = (torch.cat([eight, back[:, 32:]], 1) - features).abs()
            assert (off < 1e-3).float().mean() > 0.97  # but for depths that are equal
    assert 0 < turns < 6


def test_tokens_of_a_flow_are_those_of_its_objects(trained):
    sets, _ = training.training_objects(training.PRESETS["tiny"], 32, 0, trained)
    vae = load_structure(trained / "s" / "model")
    found = training.latents_of(vae, sets, R)
    n = len(sets[0])
    assert len(found["mu"]) == 2 * n + len(sets[1]) == len(found["front"])
    assert found["caption"].tolist() == [*range(n), *range(n), *range(n, n + len(sets[1]))]
    assert torch.equal(found["front"][n], found["front"][0].flip(1))  # mirrored
    turned = training.grids_of(sets[0], R).flip(1)
    for rows, grids in ((slice(2 * n, None), training.grids_of(sets[1], R)), (slice(n, 2 * n), turned)):
        torch.testing.assert_close(found["mu"][rows].float(), vae.encode(grids)[0], atol=2e-3, rtol=2e-3)
    flow = load_flow(trained / "sf" / "model")
    words = torch.arange(found["caption"].max() + 2.0)[:, None, None].expand(-1, 5, 96)
    x, extra, places, lengths, said, picture, seen, active = training.flow_batches(found, words, 2 * n, 8, R, flow)(gen(1))
    assert x.shape == (64, 64) and lengths == (8,) * 8
    assert places[:8].tolist() == torch.cartesian_prod(*[torch.arange(2)] * 3).tolist()
    number = {bytes(f.numpy().tobytes()): int(c) for f, c in zip(found["front"], found["caption"], strict=True)}
    for k in range(8):
        whose = number[(picture[k] * 255).round().to(torch.uint8).numpy().tobytes()]
        assert float(said[k, 0, 0]) in (whose, len(words) - 1)  # its own words, or none
        assert (whose < n) == (k < 4)


def test_words_and_pictures_are_left_out_as_often_as_it_says(trained):
    path = next(trained.glob("latents_structure-flow_*.safetensors"))
    found = training.kept_latents(path, None, read_card(trained / "s" / "model")["sha256"]["model.safetensors"])
    words = torch.ones(int(found["caption"].max()) + 2, 1, 1)
    words[-1] = 0
    draw = training.flow_batches(found, words, 12, 200, R, load_flow(trained / "sf" / "model"))
    _, _, _, _, said, _, seen, _ = draw(gen())
    assert abs((said == 0).float().mean() - training.NO_WORDS) < 0.08 and abs(seen.mean() - training.SEEN) < 0.1


@pytest.mark.parametrize("kind", ["s", "a"])
def test_scales_make_tokens_of_variance_one(trained, kind):
    part = {"s": "structure-flow", "a": "appearance-flow"}[kind]
    flow = load_flow(trained / f"{kind}f" / "model")
    path = next(trained.glob(f"latents_{part}_*.safetensors"))
    found = training.kept_latents(path, None, read_card(trained / kind / "model")["sha256"]["model.safetensors"])
    draw = training.flow_batches(found, torch.zeros(100, 5, 96), 12, 8, R, flow)
    x, _, _, _, _, _, _, active = draw(gen())
    inside = x[active > 0]
    assert abs(inside.mean()) < 0.2 and 0.8 < inside.std() < 1.2


def test_kept_latents_that_are_damaged_or_of_another_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    made = training.kept_latents(path, lambda: {"mu": torch.arange(5.0)}, "a")
    assert torch.equal(training.kept_latents(path, None, "a")["mu"], made["mu"])
    with pytest.raises(ValueError, match="another autoencoder"):
        training.kept_latents(path, None, "b")
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        training.kept_latents(path, None, "a")


@pytest.mark.parametrize(("options", "complaint"), [
    (dict(preset="huge"), "preset: got 'huge'"), (dict(part="colour"), "part: got 'colour'"),
    (dict(part="structure-flow", preset="tiny", structure="nowhere"), "nowhere"),
])
def test_wrong_options_are_named(tmp_path, options, complaint):
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        training.train_voxels(tmp_path, **options)


def test_encoding_a_true_object_gives_an_asset(trained, sampler):
    from gsgen_lib.systems.sparse_voxels import voxel_features

    toys = training.training_objects(training.PRESETS["tiny"], 32, 0, trained)[0][1]
    voxels = Voxels.from_grid(training.grids_of(toys[0], R))
    features = voxel_features(voxels, toys.images[:1, :8].float() / 255, toys[0].cameras[:8])
    found = encoded(sampler, voxels, features)
    assert torch.equal(found.latents, sampler.appearance.encode(voxels, features)[0])
    assert found.gaussians.num == 2 * len(voxels.coords)

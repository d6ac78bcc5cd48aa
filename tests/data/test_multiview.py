"""Multi-view batches: what goes in and out, what is drawn, what never leaks."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from gsgen_lib.data.multiview import MultiView, loader, orthogonal_sets
from gsgen_lib.data.objects import load_object, save_object
from gsgen_lib.data.raycast import render_mesh
from gsgen_lib.data.toy_words import combinations
from gsgen_lib.data.view_sets import ViewSet, load_views, toy_of, toy_views
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians

SMALL = dict(size=16, points=32, progress=False)


@pytest.fixture(scope="module")
def shapes():
    return toy_views(5, seed=1, views=12, **SMALL)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- batches -------------------------------------------------------------------------------------------


def test_batch_holds_the_views_it_says(shapes):
    """Every picture, camera and point against the set, through the indices that the batch reports."""
    batch = MultiView(shapes, views_in=3, views_out=5, background=None).batch([4, 0, 2], generator())
    assert batch.images.shape == (3, 8, 16, 16, 4) and batch.points.shape == (3, 32, 9) and batch.background is None
    for b, (i, views) in enumerate(zip(batch.indices.tolist(), batch.views.tolist(), strict=True)):
        assert (i, batch.ids[b], batch.captions[b]) == ([4, 0, 2][b], shapes.ids[i], shapes.captions[i])
        assert len(set(views)) == 8
        for v, view in enumerate(views):
            assert torch.equal(batch.images[b, v], shapes.images[i, view].float() / 255)
            assert torch.equal(batch.cameras.viewmats[b, v], shapes.cameras.viewmats[i, view])
            assert torch.equal(batch.cameras.Ks[b, v], shapes.cameras.Ks[i, view])
        assert torch.equal(batch.points[b], shapes.points[i])
    (images, cameras), (targets, _) = batch.inputs, batch.targets
    assert images.shape[1] == len(cameras) == 3 and targets.shape[1] == 5 and cameras.batch_shape == (3,)


def test_cameras_of_a_batch_see_what_the_pictures_show(shapes):
    """End to end: the toy rendered again with a batch's cameras gives the batch's pictures."""
    batch = MultiView(shapes, views_in=2, views_out=2, background=None).batch([1, 3], generator())
    for b, i in enumerate(batch.indices.tolist()):
        cameras = Cameras(batch.cameras.viewmats[b], batch.cameras.Ks[b], 16, 16)
        again = render_mesh(toy_of(shapes.meta[i]).mesh, cameras).rgba
        shown = batch.images[b].numpy()
        solid = shown[..., 3] > 0
        assert np.abs(again[..., 3] - shown[..., 3]).max() < 0.51 / 255 + 1e-6
        assert np.abs(again - shown)[solid].max() < 0.51 / 255 + 1e-6
    wrong = render_mesh(toy_of(shapes.meta[1]).mesh, Cameras.orbit(1, azimuth=[77.0], width=16, height=16)).rgba
    assert np.abs(wrong[0] - batch.images[0, 0].numpy()).max() > 0.1  # negative control


def test_backgrounds(shapes):
    def draw(background):
        return MultiView(shapes, views_in=1, views_out=3, background=background).batch([0, 1, 2], generator(3))

    rgba = draw(None)
    assert torch.equal(rgba.alphas, rgba.images[..., 3:])
    for background in ("white", "random", (0.2, 0.4, 0.6)):
        batch = draw(background)
        assert torch.equal(batch.views, rgba.views) and batch.images.shape[-1] == 3  # the draw of views is the same
        b = batch.background[:, :, None, None]
        assert torch.allclose(batch.images, rgba.images[..., :3] * rgba.alphas + b * (1 - rgba.alphas))
        empty = (batch.alphas == 0).expand_as(batch.images)
        assert torch.allclose(batch.images[empty], b.expand_as(batch.images)[empty])
    assert torch.equal(draw("white").background, torch.ones(3, 1, 3))
    assert draw("random").background.unique(dim=0).shape[0] == 3


def test_the_rasterizer_lays_splats_on_the_background_of_the_pictures(shapes):
    """Three objects, three views: nothing but empty splats, so each render is the background of its object."""
    batch = MultiView(shapes, views_in=1, views_out=2, background="random").batch([0, 1, 2], generator(3))
    ones = torch.ones(3, 2, 3)
    empty = Gaussians(0 * ones, torch.tensor([1.0, 0, 0, 0]).expand(3, 2, 4), 0.01 * ones, torch.zeros(3, 2), ones)
    rendered = rasterize(empty, batch.cameras, batch.background).rgb
    outside = (batch.alphas == 0).expand_as(rendered)
    assert outside[:, :, 0].all() and torch.allclose(rendered[outside], batch.images[outside])


def test_ranges_and_overlap(shapes):
    data, seen = MultiView(shapes, views_in=(1, 3), views_out=(0, 2)), set()
    for seed in range(60):
        batch = data.batch([0, 1], generator(seed))
        seen.add((batch.n_inputs, batch.images.shape[1] - batch.n_inputs))
    assert seen == {(m, k) for m in (1, 2, 3) for k in (0, 1, 2)}
    both = MultiView(shapes, views_in=12, views_out=12, overlap=True).batch([0], generator())
    assert sorted(both.views[0, :12].tolist()) == sorted(both.views[0, 12:].tolist()) == list(range(12))


def test_overlapping_targets_are_drawn_anew(shapes):
    """Inputs and targets are independent: with 4 of 12 views each, 4/3 of them agree on average."""
    data = MultiView(shapes, views_in=4, views_out=4, overlap=True)
    views = torch.cat([data.batch(range(5), generator(seed)).views for seed in range(60)])  # (300, 8)
    shared = (views[:, :4, None] == views[:, None, 4:]).sum(dim=(1, 2)).float()
    assert abs(shared.mean() - 4 / 3) < 5 * shared.std() / 300**0.5 and set(shared.tolist()) >= {0.0, 1.0, 2.0}


def test_all_views_are_drawn_equally_often(shapes):
    data, count = MultiView(shapes, views_in=2, views_out=2), torch.zeros(2, 12)
    for seed in range(400):
        views = data.batch(range(5), generator(seed)).views
        for half, part in enumerate((views[:, :2], views[:, 2:])):
            count[half] += torch.bincount(part.flatten(), minlength=12)
    expected = 400 * 5 * 2 / 12
    assert ((count - expected) ** 2 / expected).sum(1).max() < 40  # chi-square, 11 degrees of freedom: p = 4e-5


def test_inputs_from_around_are_of_the_ring_where_there_is_one(shapes):
    ring, around = (MultiView(shapes, 2, 5, inputs=name).batch([0, 1], generator(3)) for name in ("ring", "around"))
    assert torch.equal(ring.views, around.views)
    without = replace(shapes, images=shapes.images[:, 8:], cameras=replace(
        shapes.cameras, viewmats=shapes.cameras.viewmats[:, 8:], Ks=shapes.cameras.Ks[:, 8:]))
    with pytest.raises(ValueError, match="share no four views"):
        MultiView(without, 1, 3, inputs="ring")
    plan = MultiView(without, 1, 3, inputs="around")
    assert {int(plan.batch([0], generator(k)).views[0, 0]) for k in range(60)} == {0, 1, 2, 3}


def test_inputs_of_the_ring(shapes):
    plan, seen = MultiView(shapes, 2, 5, inputs="ring"), set()
    for seed in range(30):
        views = plan.batch([0, 1, 2], generator(seed)).views
        assert all(len(set(row)) == 7 for row in views.tolist())
        seen |= set(views[:, :2].flatten().tolist())
    assert seen == set(range(8))  # each of them, and none of those that stand elsewhere for each object
    with pytest.raises(ValueError, match="the ring has 8 views"):
        MultiView(shapes, 9, 1, inputs="ring")


def test_orthogonal_inputs(shapes):
    assert orthogonal_sets(shapes.cameras).tolist() == [[(s + k) % 8 for k in (0, 2, 4, 6)] for s in range(8)]
    assert orthogonal_sets(shapes.cameras, front_only=True).tolist() == [[0, 2, 4, 6]]
    starts = set()
    for seed in range(40):
        batch = MultiView(shapes, inputs="orthogonal", views_out=8).batch([0, 1, 2], generator(seed))
        centers = batch.inputs[1].centers
        flat = torch.nn.functional.normalize(centers[..., [0, 2]], dim=-1)
        assert torch.allclose((flat[:, :-1] * flat[:, 1:]).sum(-1), torch.zeros(()), atol=1e-5)
        assert torch.allclose(centers[..., 1], centers[:, :1, 1].expand(3, 4), atol=1e-5)
        assert all(len(set(v)) == 12 for v in batch.views.tolist())
        starts |= set(batch.views[:, 0].tolist())
    assert starts == set(range(8))
    front = MultiView(shapes, inputs="front", views_out=0).batch([3], generator()).cameras.centers[0, 0]
    assert front[0].abs() < 1e-5 and front[2] > 1.5
    assert len(orthogonal_sets(Cameras.stack([Cameras.orbit(4)]))) == 4
    assert len(orthogonal_sets(Cameras.stack([Cameras.orbit(4, elevation=[0.0, 30, 0, 0])]))) == 0  # not on one level
    moved = replace(shapes.cameras, viewmats=shapes.cameras.viewmats.clone())
    moved.viewmats[1, 2, :3, 3] += 0.1  # view 2 of one object stands elsewhere
    assert all(2 not in four for four in orthogonal_sets(moved).tolist())


# --- loader -------------------------------------------------------------------------------------------------


def same(a, b):
    return a.ids == b.ids and all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("images", "points", "views"))


def test_loader_is_decided_by_its_generator(shapes):
    def run(seed, **kw):
        data = loader(shapes, 2, generator(seed), views_in=2, views_out=2, background="random", **kw)
        return [batch for _ in range(2) for batch in data]  # two epochs

    first = run(0)
    assert [len(b.ids) for b in first] == [2, 2, 1] * 2 and all(map(same, first, run(0)))
    assert not all(map(same, first, run(1))) and not all(map(same, first[:3], first[3:]))
    for epoch in (first[:3], first[3:]):
        assert sorted(i for b in epoch for i in b.ids) == sorted(shapes.ids)
    ordered = run(0, shuffle=False)
    assert [b.ids for b in ordered] == [shapes.ids[:2], shapes.ids[2:4], shapes.ids[4:]] * 2
    assert not any(map(same, ordered[:3], ordered[3:]))  # the same objects, other views and backgrounds
    assert [len(b.ids) for b in run(0, drop_last=True)] == [2, 2] * 2


def test_loader_with_a_worker_gives_the_same_batches(shapes):
    def run(workers):
        return list(loader(shapes[:2], 1, generator(5), views_in=1, views_out=1, num_workers=workers))

    data = loader(shapes[:2], 1, generator(5), num_workers=1)
    assert data.multiprocessing_context.get_start_method() == "spawn"
    assert all(map(same, run(0), run(1)))


@pytest.mark.parametrize("wrong, word", [
    (dict(views_in=0), "views_in"), (dict(views_in=(3, 2)), "views_in"), (dict(views_out=-1), "views_out"),
    (dict(views_in=8, views_out=5), "12 views"), (dict(inputs="side"), "inputs"),
    (dict(background="grey"), "background"), (dict(inputs="front", views_in=3), "views_in"),
    (dict(background=(0, 0, 2)), "background"),
])
def test_wrong_choices_are_named(shapes, wrong, word):
    with pytest.raises(ValueError, match=word):
        MultiView(shapes, **wrong)


def test_other_wrong_arguments(shapes):
    with pytest.raises(ValueError, match="right angles"):
        MultiView(toy_views(2, seed=0, views=6, **SMALL), inputs="front", views_out=2)
    with pytest.raises(ValueError, match="batch_size"):
        loader(shapes, 0, generator())
    with pytest.raises(ValueError, match="drop_last"):
        loader(shapes, 6, generator(), drop_last=True)
    with pytest.raises(ValueError, match="cameras"):
        replace(shapes, cameras=Cameras.orbit(12))
    with pytest.raises(ValueError, match="images"):
        replace(shapes, images=shapes.images.float())
    with pytest.raises(ValueError, match="meta"):
        replace(shapes, meta=shapes.meta[:2])
    with pytest.raises(ValueError, match="points"):
        replace(shapes, points=shapes.points[..., :3])


# --- sets ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, shapes):
    """Three objects per split in the format of the shipped data, made of small pictures."""
    for k, split in enumerate(("train", "train", "train", "val", "test", "test")):
        meta = dict(shapes.meta[0], id=f"thing_{k}", split=split, category="odd" if k % 2 else "even")
        images = shapes.images[k % 5].numpy().copy()
        images[0, 0, 0] = [k, 0, 0, 255]  # all different
        cloud = shapes.points[k % 5].numpy()
        save_object(tmp_path, meta, images, cloud[:, :3], cloud[:, 3:6], cloud[:, 6:])
    return tmp_path


def test_a_folder_is_read_by_split_and_nothing_leaks(folder):
    sets = {split: load_views(split, folder, progress=False) for split in ("train", "val", "test")}
    assert {s: v.ids for s, v in sets.items()} == {
        "train": ["thing_0", "thing_1", "thing_2"], "val": ["thing_3"], "test": ["thing_4", "thing_5"]}
    assert all(m["split"] == split for split, v in sets.items() for m in v.meta)
    assert load_views(root=folder, progress=False).ids == sets["train"].ids  # training is what you get unless you ask
    assert load_views(root=folder, limit=2, progress=False).ids == ["thing_0", "thing_1"]
    assert load_views(root=folder, category="odd", progress=False).ids == ["thing_1"]
    for split in (None, "all", "Train"):
        with pytest.raises(ValueError, match="split: wanted one of"):
            load_views(split, folder)
    with pytest.raises(ValueError, match="no object"):
        load_views("train", folder, category="spoon")
    one = load_object("thing_4", folder)
    assert np.array_equal(sets["test"].images[0].numpy(), one.images)
    assert np.allclose(sets["test"].points[0].numpy(), np.concatenate([one.points, one.normals, one.colors], 1))


def test_the_same_pictures_in_two_splits_are_refused(folder):
    index = folder / "objects.json"
    entries = json.loads(index.read_text(encoding="utf-8"))
    entries[0]["files"] = entries[4]["files"]  # a test object under another name in the training split
    index.write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(ValueError, match="thing_0.*thing_4.*another split"):
        load_views("train", folder, progress=False)


@pytest.mark.parametrize("name", ["objects/thing_1.webp", "objects/thing_1.npz"])
def test_missing_and_damaged_files_are_named(folder, name):
    file = folder / name
    content = file.read_bytes()
    file.write_bytes(content[:-20] + bytes(20))
    with pytest.raises(ValueError, match=file.name):
        load_views("train", folder, progress=False)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=file.name):
        load_views("train", folder, progress=False)
    assert load_views("test", folder, progress=False).ids == ["thing_4", "thing_5"]  # others are unharmed


def test_objects_of_different_shape_are_refused(folder, shapes):
    meta = dict(shapes.meta[0], id="thing_9", split="train", azimuth=[0.0], elevation=[0.0])
    cloud = np.full((4, 3), 0.1)
    save_object(folder, meta, shapes.images[0, :1].numpy(), cloud, cloud, cloud)
    with pytest.raises(ValueError, match="thing_9"):
        load_views("train", folder, progress=False)


def test_toy_sets_are_seeded_extendable_and_split(shapes):
    again = toy_views(3, seed=1, views=12, **SMALL)
    assert torch.equal(again.images, shapes.images[:3]) and torch.equal(again.points, shapes.points[:3])
    assert again.meta == shapes.meta[:3]
    train, test = set(combinations("train")), set(combinations("test"))
    allowed = {"train": train, "val": train, "test": test}
    drawn = {}
    for split in allowed:
        some = toy_views(12, seed=1, views=1, size=4, points=4, split=split, progress=False)
        drawn[split] = {json.dumps(m["attributes"]) for m in some.meta}
        triples = {(m["family"], m["attributes"]["color"], m["attributes"]["pattern"]) for m in some.meta}
        assert triples <= allowed[split] and all(m["split"] == split for m in some.meta)
        assert [toy_of(m).caption for m in some.meta] == some.captions
    assert not drawn["train"] & drawn["val"] and not drawn["train"] & drawn["test"]
    assert {m["family"] for m in toy_views(3, seed=0, family="cat", views=1, **SMALL).meta} == {"cat"}


def test_toy_sets_on_disk_are_the_same_and_grow(tmp_path, shapes, monkeypatch):
    toy_views(2, seed=1, views=12, folder=tmp_path, **SMALL)
    calls = []
    original = __import__("gsgen_lib.data.view_sets", fromlist=["x"]).photograph_toy
    monkeypatch.setattr("gsgen_lib.data.view_sets.photograph_toy", lambda *a, **k: calls.append(a) or original(*a, **k))
    some = toy_views(3, seed=1, views=12, folder=tmp_path, **SMALL)
    assert len(calls) == 1  # only the third is new
    assert torch.equal(some.images, shapes.images[:3]) and some.captions == shapes.captions[:3]
    assert (some.points - shapes.points[:3]).abs().max() < 1 / 127  # as finely as the format holds them
    assert toy_of(some.meta[0]).attributes == toy_of(shapes.meta[0]).attributes
    assert isinstance(load_views("train", tmp_path, progress=False), ViewSet)
    (tmp_path / "objects" / f"{some.ids[1]}.webp").write_bytes(b"x")
    with pytest.raises(ValueError, match=some.ids[1]):
        toy_views(3, seed=1, views=12, folder=tmp_path, **SMALL)


def test_toy_set_arguments(shapes):
    for wrong, word in ((dict(n=0), "n, size"), (dict(split="all"), "split"), (dict(family="spoon"), "spoon"),
                        (dict(seed=-1), "seed")):
        with pytest.raises(ValueError, match=word):
            toy_views(**{**dict(n=1, seed=0, views=1), **wrong}, **SMALL)
    with pytest.raises(ValueError, match="no toy"):
        toy_of({"id": "chair_3"})
    assert shapes[[1, 3]].ids == [shapes.ids[1], shapes.ids[3]] and shapes[-1].ids == shapes.ids[-1:]
    assert shapes[torch.tensor([True, False, False, True, False]).numpy()].ids == [shapes.ids[0], shapes.ids[3]]

"""The object format: what is stored comes back, damage is named; how objects are photographed."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import trimesh

from gsgen_lib.data import data_root
from gsgen_lib.data.meshes import Material, Mesh, normalise
from gsgen_lib.data.objects import DamagedFile, list_objects, load_object, mesh_path, object_cameras, save_object
from gsgen_lib.data.prerender import (
    color_name,
    describe,
    id_generator,
    make_object,
    view_angles,
    visible_sample,
)
from gsgen_lib.data.raycast import LIGHT, render_mesh

FACTS = dict(id="thing", name="Thing", category="thing", caption="a thing", split="train")
ANGLES = dict(size=8, radius=1.8, fov=40.0, elevation=[15.0, 15.0, 40.0], azimuth=[0.0, 180.0, 77.25])


def sample(n=50, seed=0):
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(n, 3))
    images = rng.integers(0, 256, (3, 8, 8, 4)).astype(np.uint8)
    images[images[..., 3] == 0] = 0
    return (
        images,
        rng.uniform(-0.5, 0.5, (n, 3)),
        normals / np.linalg.norm(normals, axis=1, keepdims=True),
        rng.random((n, 3)),
    )


@pytest.fixture
def stored(tmp_path):
    save_object(tmp_path, FACTS | ANGLES, *sample())
    return tmp_path


# --- format ----------------------------------------------------------------------------------


def test_what_is_stored_comes_back(stored):
    images, points, normals, colors = sample()
    o = load_object("thing", stored)
    np.testing.assert_array_equal(o.images, images)  # lossless
    assert np.abs(o.points - points).max() <= 0.5 / 65535 + 1e-7
    assert np.abs(o.colors - colors).max() <= 0.5 / 255 + 1e-6
    assert (np.einsum("nx,nx->n", o.normals, normals) > np.cos(np.deg2rad(0.6))).all()
    np.testing.assert_allclose(np.linalg.norm(o.normals, axis=1), 1, atol=1e-6)
    assert [a.dtype for a in (o.points, o.normals, o.colors)] == [np.float32] * 3
    assert (len(o.cameras), o.cameras.width, o.meta["caption"]) == (3, 8, "a thing")
    az, el = np.deg2rad(77.25), np.deg2rad(40)
    np.testing.assert_allclose(
        o.cameras.centers[2], 1.8 * np.array([np.sin(az) * np.cos(el), np.sin(el), np.cos(az) * np.cos(el)]), atol=1e-5
    )


def test_colours_of_invisible_pixels_are_not_kept(tmp_path):
    """They would make equal pictures differ, and the sheets larger."""
    images, *cloud = sample()
    images[..., 3] *= np.random.default_rng(1).random((3, 8, 8)) < 0.5
    hidden = images[..., 3] == 0
    assert images[hidden].any()
    save_object(tmp_path, FACTS | ANGLES, images, *cloud)
    kept = load_object("thing", tmp_path).images
    assert not kept[hidden].any() and (kept[~hidden] == images[~hidden]).all()
    assert images[hidden].any()  # the array that came in is left as it was


def test_index_lists_sorted_and_filtered(stored):
    save_object(stored, FACTS | ANGLES | dict(id="another", split="test", category="b"), *sample(seed=1), glb=b"glTF")
    assert [e["id"] for e in list_objects(root=stored)] == ["another", "thing"]
    assert [e["id"] for e in list_objects("test", root=stored)] == ["another"]
    assert [e["id"] for e in list_objects(category="thing", root=stored)] == ["thing"]
    assert mesh_path("another", stored).read_bytes() == b"glTF"
    with pytest.raises(KeyError, match="without a mesh"):
        mesh_path("thing", stored)
    with pytest.raises(ValueError, match="split"):
        list_objects("validation", root=stored)
    assert not list(stored.rglob("*.part"))


@pytest.mark.parametrize("file", ["objects/thing.webp", "objects/thing.npz"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_found_and_named(stored, file, damage):
    path = stored / file
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-20])
    else:
        path.unlink()
    with pytest.raises(FileNotFoundError if damage == "gone" else DamagedFile, match=Path(file).name):
        load_object("thing", stored)
    if damage == "cut":
        with pytest.raises(ValueError, match=Path(file).name):
            load_object("thing", stored, check=False)


def test_pickled_arrays_are_refused(stored):
    path = stored / "objects/thing.npz"
    np.savez(
        path,
        positions=np.array([{}], dtype=object),
        normals=np.zeros((1, 3), np.int8),
        colors=np.zeros((1, 3), np.uint8),
    )
    with pytest.raises(DamagedFile, match="thing.npz.*allow_pickle"):
        load_object("thing", stored, check=False)


def test_wrong_index_or_id(stored, tmp_path):
    with pytest.raises(KeyError, match="thang.*1 objects"):
        load_object("thang", stored)
    (stored / "objects.json").write_text('[{"id": "thing"}]')
    with pytest.raises(DamagedFile, match="objects.json"):
        load_object("thing", stored)
    with pytest.raises(FileNotFoundError, match="objects.json"):
        list_objects(root=tmp_path / "nowhere")


@pytest.mark.parametrize("field", ["id", "size", "radius", "fov", "azimuth", "elevation", "name", "caption", "files"])
@pytest.mark.parametrize("damage", ["gone", "wrong"])
def test_an_index_that_lacks_a_field_is_called_damaged(stored, field, damage):
    index = stored / "objects.json"
    (entry,) = json.loads(index.read_text())
    if damage == "gone":
        del entry[field]
    else:
        entry[field] = None
    index.write_text(json.dumps([entry]))
    for read in (lambda: load_object("thing", stored), lambda: list_objects(root=stored)):
        with pytest.raises(DamagedFile, match=f"objects.json: damaged.*{field}"):
            read()


def test_an_index_with_half_the_facts_of_a_file_is_called_damaged(stored):
    index = stored / "objects.json"
    for change in (lambda e: e["files"].pop("points"), lambda e: e["files"]["views"].pop("sha256"),
                   lambda e: e["files"]["views"].update(path=3), lambda e: e["azimuth"].pop(),
                   lambda e: e["azimuth"].__setitem__(0, "north")):
        entry = json.loads(json.dumps(list_objects(root=stored)[0]))
        text = index.read_text()
        change(entry)
        index.write_text(json.dumps([entry]))
        with pytest.raises(DamagedFile, match="objects.json: damaged"):
            load_object("thing", stored)
        index.write_text(text)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(id="Bad Id"), "id"),
        (dict(id="../up"), "id"),
        (dict(size=9), "images"),
        (dict(split=None), None),
    ],
)
def test_save_object_names_what_does_not_fit(tmp_path, change, message):
    meta = FACTS | ANGLES | change
    if message is None:
        del meta["split"]
        message = "split"
    with pytest.raises(ValueError, match=message):
        save_object(tmp_path, meta, *sample())
    assert not (tmp_path / "objects.json").exists()
    images, points, normals, colors = sample()
    for i, bad in ((1, points * 2), (2, normals[:, :2]), (3, colors * np.nan)):
        arrays = [images, points, normals, colors]
        arrays[i] = bad
        with pytest.raises(ValueError, match=["", "points", "normals", "colors"][i]):
            save_object(tmp_path, FACTS | ANGLES, *arrays)


def test_an_interrupted_write_leaves_nothing_half(tmp_path, monkeypatch):
    save_object(tmp_path, FACTS | ANGLES, *sample())
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        save_object(tmp_path, FACTS | ANGLES, *sample(seed=1))
    monkeypatch.undo()
    assert all(f.read_bytes() == content for f, content in before.items())
    np.testing.assert_array_equal(load_object("thing", tmp_path).images, sample()[0])


def test_data_root_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("GSGEN_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.setenv("GSGEN_DATA", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match="GSGEN_DATA"):
        data_root()


# --- photographing ---------------------------------------------------------------------------


def test_standard_views():
    for n in (1, 4, 8, 24, 40):
        elevation, azimuth = view_angles(n, np.random.default_rng(0))
        ring = min(n, 8)
        assert len(elevation) == len(azimuth) == n
        assert azimuth[:ring] == [360 * i / ring for i in range(ring)] and elevation[:ring] == [15] * ring
        assert all(-20 <= e <= 70 for e in elevation) and all(0 <= a < 360 for a in azimuth)
    elevation, azimuth = (np.deg2rad(x[8:]) for x in view_angles(24, id_generator("mug")))
    assert (elevation, azimuth)[0].tolist() != np.deg2rad(view_angles(24, id_generator("cup"))[0][8:]).tolist()
    d = np.stack([np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)], 1)
    angle = np.rad2deg(np.arccos(np.clip(d @ d.T, -1, 1))) + 180 * np.eye(16)
    assert angle.min() > 8  # none beside another
    low, high = np.sin(np.deg2rad([-20, 70]))  # equal shares of equal areas
    assert np.histogram(np.sin(elevation), bins=4, range=(low, high))[0].tolist() == [4, 4, 4, 4]


def test_points_come_from_what_is_seen():
    outer = trimesh.creation.box(extents=(1, 1, 1))
    inner = trimesh.creation.icosphere(subdivisions=2, radius=0.3)
    mesh = Mesh(
        np.concatenate([outer.vertices, inner.vertices]), np.concatenate([outer.faces[:, ::-1], inner.faces + 8])
    )
    eyes = object_cameras(
        dict(size=8, radius=1.8, fov=40.0, elevation=[15.0] * 8, azimuth=list(np.arange(8) * 45.0))
    ).centers.numpy()
    points, normals, _ = visible_sample(mesh, eyes, 500, np.random.default_rng(0))
    assert np.allclose(np.abs(points).max(1), 0.5, atol=1e-5)  # on the box, none on the hidden ball
    assert (points[:, 1] > -0.499).all()  # and none below, where no eye looks
    assert (np.einsum("nx,nx->n", points, normals) > 0).all()  # outwards, although the box is wound inwards


def test_make_object_writes_what_the_renderer_shows(tmp_path):
    mesh = normalise(
        Mesh(
            *(lambda b: (b.vertices, b.faces))(trimesh.creation.box(extents=(1, 2, 0.5))),
            materials=[Material((0.1, 0.2, 0.9, 1))],
        )
    )
    entry = make_object(
        mesh, tmp_path, dict(id="slab", name="Slab", category="slab", split="val"), size=24, views=10, points=128
    )
    o = load_object("slab", tmp_path)
    assert entry["caption"] == "a blue slab" and o.images.shape == (10, 24, 24, 4) and o.points.shape == (128, 3)
    np.testing.assert_allclose(o.images / 255, render_mesh(mesh, o.cameras, 4).rgba, atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(o.colors, np.array([0.1, 0.2, 0.9]) * (o.normals**2 @ LIGHT)[:, None], atol=0.01)
    far = Mesh([[9, 9, 9], [9, 9, 9.1], [9, 9.1, 9]], [[0, 1, 2]])
    with pytest.raises(ValueError, match="invisible"):
        make_object(far, tmp_path, dict(id="far", name="Far", category="x", split="val"), size=8, views=2)


def test_an_object_of_next_to_no_pixels_is_refused(tmp_path):
    """A box whose front covers 0.1% of the picture is refused, the limit being 0.2%; one of 0.6% is made."""
    facts = dict(id="speck", name="Speck", category="x", split="val")
    seen_side = 2 * 1.8 * np.tan(np.deg2rad(20))  # of the picture, at the origin
    boxes = {}
    for share in (0.001, 0.006):
        box = trimesh.creation.box(extents=[np.sqrt(share) * seen_side] * 3)
        boxes[share] = Mesh(box.vertices, box.faces)
    with pytest.raises(ValueError, match="nearly invisible"):
        make_object(boxes[0.001], tmp_path, facts, size=64, views=8, points=8)
    entry = make_object(boxes[0.006], tmp_path, facts, size=64, views=8, points=8)
    alpha = load_object("speck", tmp_path).images[..., 3]
    assert entry["id"] == "speck" and 0.002 < (alpha > 127).mean() < 0.02


def test_words():
    assert describe("Oak table", np.array([[0.5, 0.3, 0.1]] * 9 + [[1, 1, 1]])) == "a brown oak table"
    assert describe("TV stand", np.array([[1.0, 0.55, 0.0]] * 5)) == "an orange TV stand"
    rainbow = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    assert describe("Xylophone", rainbow) == "a colorful xylophone"
    assert {color_name(c) for c in np.random.default_rng(0).random((500, 3))} <= {
        "black",
        "white",
        "gray",
        "brown",
        "beige",
        "red",
        "orange",
        "yellow",
        "green",
        "blue",
        "purple",
        "pink",
    }

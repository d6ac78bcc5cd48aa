"""The object format, rendering a folder of own meshes, and the build path on a tiny library made here."""

import hashlib
import io
import json
import lzma
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import trimesh

from gsgen_lib.data import data_root
from gsgen_lib.data.data_docs import write_credits
from gsgen_lib.data.meshes import Material, Mesh, load_mesh, normalise, save_glb
from gsgen_lib.data.objects import DamagedFile, list_objects, load_object, mesh_path, object_cameras, save_object
from gsgen_lib.data.prerender import (
    color_name,
    describe,
    id_generator,
    make_object,
    render_folder,
    view_angles,
    visible_sample,
)
from gsgen_lib.data.raycast import LIGHT, render_mesh
from gsgen_lib.data.sweethome import build, open_libraries, read_catalogue, read_model, turn

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


# --- your own folder -------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    meshes = tmp_path / "mine"
    (meshes / "sub").mkdir(parents=True)
    box = trimesh.creation.box(extents=(3, 2, 1))
    box.visual.vertex_colors = [200, 30, 30, 255]
    box.export(meshes / "Red_Box01.ply")
    ball = trimesh.creation.icosphere(subdivisions=2)
    ball.export(meshes / "ball.obj")
    save_glb(Mesh(ball.vertices, ball.faces, materials=[Material((0, 0.6, 0, 0.5))]), meshes / "sub" / "ball.glb")
    (meshes / "broken.glb").write_bytes(b"not a mesh")
    (meshes / "notes.txt").write_text("not a mesh either")
    return meshes


def test_render_folder(folder, tmp_path, capsys):
    out = tmp_path / "out"
    entries = render_folder(folder, out, size=16, views=4, points=64)
    shown = capsys.readouterr()
    assert [e["id"] for e in entries] == ["red_box01", "ball", "sub_ball"]
    assert "skipped" in shown.out + shown.err and "broken.glb" in shown.out + shown.err
    assert "3 objects" in shown.out and "1 files skipped" in shown.out
    assert (entries[0]["name"], entries[0]["caption"]) == ("red box", "a red box")
    box, glass = load_object("red_box01", out), load_object("sub_ball", out)
    assert box.images.shape == (4, 16, 16, 4) and np.abs(box.points).max() <= 0.5
    assert abs(int(glass.images[0, 8, 8, 3]) - 192) <= 2  # two walls of opacity 1/2
    assert glass.meta["category"] == "own" and glass.meta["source"] == "sub/ball.glb"


def test_render_folder_goes_on_where_it_stopped(folder, tmp_path, monkeypatch):
    from gsgen_lib.data import prerender

    out, made = tmp_path / "out", []
    real = prerender.make_object

    def spy(mesh, root, facts, *args):
        made.append(facts["id"])
        return real(mesh, root, facts, *args)

    monkeypatch.setattr(prerender, "make_object", spy)
    options = dict(size=16, views=2, points=32)
    render_folder(folder, out, **options)
    assert len(made) == 3
    (out / "objects/ball.npz").write_bytes(b"damaged")
    render_folder(folder, out, **options)
    assert made[3:] == ["ball"]
    render_folder(folder, out, **options, overwrite=True)
    render_folder(folder, out, size=16, views=3, points=32)
    assert len(made) == 10


def test_render_folder_without_meshes(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        render_folder(tmp_path / "gone", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no .obj"):
        render_folder(tmp_path, tmp_path / "out")
    for bad in (dict(size=0), dict(views=0), dict(split="dev")):
        with pytest.raises(ValueError, match=next(iter(bad))):
            render_folder(tmp_path, tmp_path / "out", **bad)
    (tmp_path / "a.glb").write_bytes(b"?")
    with pytest.raises(ValueError, match="none of the 1"):
        render_folder(tmp_path, tmp_path / "out")


# --- the build -------------------------------------------------------------------------------

CATALOGUE = """# a comment
id=Tiny
license={licence}
id#1=Tiny#crate
name#1=Crate
category#1=Miscellaneous
model#1=/tiny/crate/crate.obj
width#1=40
depth#1=10
height#1=20
creator#1=Zo\\u00e9
name#2=Lamp
model#2=/tiny/lamp/lamp.obj
modelRotation#2=0 0 1 0 1 0 -1 0 0
width#2=10
depth#2=40
height#2=20
creator#2=Ann & Bob
"""
CRATE_OBJ = trimesh.creation.box(extents=(1, 1, 1)).export(file_type="obj", include_normals=False)


def arrow_obj():
    """A flat arrow along +x, so that turning is seen."""
    return "v -1 0 -1\nv 2 0.5 0\nv -1 0 1\nv -1 1 0\nf 1 2 3\nf 1 2 4\nf 2 3 4\nf 1 3 4\n"


def sh3f(licence="Public domain", crate=CRATE_OBJ):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as z:
        z.writestr("PluginFurnitureCatalog.properties", CATALOGUE.format(licence=licence))
        z.writestr("tiny/crate/crate.obj", crate)
        z.writestr("tiny/lamp/lamp.obj", arrow_obj())
        z.writestr("tiny/lamp/license.txt", "a text")
    return buffer.getvalue()


def deb(content):
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as t:
        info = tarfile.TarInfo("./usr/share/sweethome3d/furniture/Tiny.sh3f")
        info.size = len(content)
        t.addfile(info, io.BytesIO(content))
    members = [("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", lzma.compress(tar.getvalue()))]
    out = b"!<arch>\n"
    for name, data in members:
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    return out


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source" / "deep"
    folder.mkdir(parents=True)
    (folder / "Tiny.sh3f").write_bytes(sh3f())
    digest = hashlib.sha256(CRATE_OBJ.encode()).hexdigest()[:16]
    selection = {
        "kept": {
            "Tiny/1": dict(id="crate", name="Crate", category="box", split="train", obj_sha256=digest, mesh=True),
            "Tiny/2": dict(id="lamp", name="Lamp", category="lamp", split="test", yaw=90, licence="CC-BY-3.0"),
        },
        "dropped": {"Tiny/3": "a reason"},
    }
    (tmp_path / "selection.json").write_text(json.dumps(selection))
    return tmp_path / "source"


SMALL = dict(size=16, views=9, points=64)


def test_build_path_on_a_tiny_library(source, tmp_path):
    out = tmp_path / "out"
    entries = build(source, out, tmp_path / "selection.json", **SMALL)
    assert [(e["id"], e["split"], e["licence"], e["creator"]) for e in entries] == [
        ("crate", "train", "CC0-1.0", "Zoé"),
        ("lamp", "test", "CC-BY-3.0", "Ann & Bob"),
    ]
    crate = load_mesh(mesh_path("crate", out))
    np.testing.assert_allclose(np.ptp(crate.vertices, axis=0), [1, 0.5, 0.25], atol=1e-5)  # stretched to 40 x 20 x 10
    lamp = load_object("lamp", out)
    tip, tail = lamp.points[lamp.points[:, 0] < -0.35], lamp.points[lamp.points[:, 0] > 0.35]
    assert np.ptp(tip[:, 2]) < 0.5 * np.ptp(tail[:, 2])  # +x by the catalogue to -z, by yaw 90 to -x
    credits, card = (out / "CREDITS.md").read_text(encoding="utf-8"), (out / "DATA.md").read_text(encoding="utf-8")
    for text in ("`crate`", "Zoé", "`lamp`", "Ann & Bob", "Tiny, model 2", "licenses/by/3.0/", "publicdomain/zero"):
        assert text in credits
    digest = hashlib.sha256((out / "objects.json").read_bytes()).hexdigest()
    assert digest in card and "| box | 1 | 0 | 0 | 1 |" in card and "| all | 1 | 0 | 1 | 2 |" in card


def test_building_twice_and_from_a_deb_gives_the_same_bytes(source, tmp_path):
    (tmp_path / "tiny.deb").write_bytes(deb(sh3f()))
    folders = [tmp_path / "a", tmp_path / "b"]
    for where, out in zip((source, tmp_path / "tiny.deb"), folders, strict=True):
        build(where, out, tmp_path / "selection.json", **SMALL)
    files = [{str(f.relative_to(out)): f.read_bytes() for f in out.rglob("*") if f.is_file()} for out in folders]
    assert files[0] == files[1] and len(files[0]) == 8


def test_models_are_turned_and_stretched_as_the_catalogue_says(source):
    libraries = open_libraries(source, Path("unused"))
    archive, catalogue, licence = libraries["Tiny"]
    mesh = read_model(archive, catalogue[2])
    tip = mesh.vertices[mesh.faces.ravel()][np.argmin(mesh.vertices[mesh.faces.ravel()][:, 2])]
    lo, hi = mesh.vertices.min(0), mesh.vertices.max(0)
    np.testing.assert_allclose(hi - lo, [10, 20, 40], atol=1e-4)  # width, height, depth
    assert abs(tip[0] - (lo[0] + hi[0]) / 2) < 1e-4 and tip[2] == lo[2]  # +x became -z
    np.testing.assert_allclose(
        turn(Mesh(tip[None].repeat(3, 0), [[0, 1, 2]]), 180).vertices[0], [-tip[0], tip[1], -tip[2]], atol=1e-4
    )
    archive.close()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s["kept"]["Tiny/1"].update(obj_sha256="0" * 16), "crate.*another version"),
        (
            lambda s: s["kept"].update({"Tiny/9": dict(id="x", name="X", category="x", split="val")}),
            "Tiny/9.*no model 9",
        ),
        (lambda s: s["kept"].update({"Huge/1": dict(id="x", name="X", category="x", split="val")}), "no Huge.sh3f"),
        (lambda s: s["kept"]["Tiny/2"].update(id="crate"), "twice"),
        (lambda s: s["kept"]["Tiny/2"].update(split="dev"), "bad split"),
        (lambda s: s.pop("kept"), "not a valid selection"),
    ],
)
def test_build_refuses_what_is_not_as_listed(source, tmp_path, change, message):
    file = tmp_path / "selection.json"
    selection = json.loads(file.read_text())
    change(selection)
    file.write_text(json.dumps(selection))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build(source, tmp_path / "out", file, **SMALL)


def test_sources_that_are_none(tmp_path, source):
    selection = tmp_path / "selection.json"
    for name, content, message in (
        ("a.deb", b"no", "not a Debian package"),
        ("a.sh3f", b"no", "not a furniture library"),
        ("b.deb", deb(sh3f())[:-300], "b.deb"),
        ("c.sh3f", sh3f("All rights reserved"), "unknown licence"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            build(tmp_path / name, tmp_path / "out", selection, **SMALL)
    (tmp_path / "empty").mkdir()
    for where in (tmp_path / "empty", tmp_path / "gone"):
        with pytest.raises(FileNotFoundError):
            build(where, tmp_path / "out", selection, **SMALL)
    with pytest.raises(ValueError, match="only"):
        build(source, tmp_path / "out", selection, only="table", **SMALL)
    with pytest.raises(ValueError, match="no licence"):
        read_catalogue("name#1=x\n")


def test_credits_refuse_an_object_without_creator(tmp_path):
    with pytest.raises(ValueError, match="'x'"):
        write_credits(tmp_path, [dict(id="x", name="X", licence="CC-BY-3.0", creator="", source="s")])


@pytest.mark.skipif(
    "GSGEN_FURNITURE" not in os.environ,
    reason="set GSGEN_FURNITURE to sweethome3d-furniture_1.8-1_all.deb to rebuild shipped objects",
)
def test_shipped_objects_build_again_to_the_same_bytes(tmp_path):
    shipped = {e["id"]: e for e in list_objects()}
    meshes = [i for i, e in shipped.items() if "mesh" in e["files"]]
    ids = [meshes[0], *[i for i in shipped if i not in meshes][:2]]
    shutil.copy(data_root() / "selection.json", tmp_path)
    for entry in build(os.environ["GSGEN_FURNITURE"], tmp_path, only=",".join(ids)):
        assert entry == shipped[entry["id"]]

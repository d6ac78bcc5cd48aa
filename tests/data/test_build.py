"""Rendering a folder of own meshes, and the whole build path on a tiny furniture library made here."""

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
from gsgen_lib.data.meshes import Material, Mesh, load_mesh, save_glb
from gsgen_lib.data.objects import list_objects, load_object, mesh_path
from gsgen_lib.data.prerender import (
    render_folder,
)
from gsgen_lib.data.sweethome import build, open_libraries, read_catalogue, read_model, turn

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

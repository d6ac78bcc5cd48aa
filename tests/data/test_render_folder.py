"""Rendering your own folder: nothing is lost, nothing stale is kept, nothing hangs."""

import os

import numpy as np
import pytest

from gsgen_lib.data import prerender
from gsgen_lib.data.objects import list_objects, load_object
from gsgen_lib.data.prerender import render_folder

SMALL = dict(size=8, views=1, points=8)


def write_triangle(file, height=1):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"v -1 -1 0\nv 1 -1 0\nv 0 {height} 0\nf 1 2 3\n")


@pytest.mark.parametrize("names", [
    ["椅子.obj", "名前.obj", "стол.obj", "стул.obj"],  # no ASCII letter at all
    ["a/same.obj", "b/same.obj", "a_same.obj"],
    ["a-b.obj", "a_b.obj", "a b.obj", "a/b.obj", "a/b.ply", "b.obj"],
    ["x/a.obj", "y/a.obj", "x_a_obj.obj", "x/a_obj.obj"],
])
def test_ids_are_unique_and_stay_the_same(tmp_path, names):
    files = sorted(tmp_path / n for n in names)
    ids = prerender._make_ids(files, tmp_path)
    assert len(set(ids)) == len(names) and all(i.isascii() and i == i.lower() for i in ids)
    assert prerender._make_ids(files[::-1], tmp_path) == ids[::-1]  # they depend on the paths alone


def test_no_object_is_lost_to_another_with_the_same_name(tmp_path):
    names = ["椅子.obj", "名前.obj", "a/same.obj", "b/same.obj", "a_same.obj"]
    for k, name in enumerate(names):
        write_triangle(tmp_path / "mine" / name, height=k + 1)
    entries = render_folder(tmp_path / "mine", tmp_path / "out", size=8, views=1, points=256)
    listed = list_objects(root=tmp_path / "out")
    assert len(entries) == len(listed) == 5 and {e["source"] for e in listed} == set(names)
    width = {e["source"]: np.ptp(load_object(e["id"], tmp_path / "out").points[:, 0]) for e in listed}
    assert width["a/same.obj"] > width["a_same.obj"]  # each holds its own triangle: the last one is the slimmest


# --- going on --------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [dict(size=9), dict(views=2), dict(points=9), dict(split="test"), {}])
def test_another_size_count_or_split_is_rendered_again(tmp_path, monkeypatch, change):
    write_triangle(tmp_path / "mine/a.obj")
    render_folder(tmp_path / "mine", tmp_path / "out", **SMALL)
    made, real = [], prerender.make_object
    monkeypatch.setattr(prerender, "make_object", lambda *a: made.append(a) or real(*a))
    (entry,) = render_folder(tmp_path / "mine", tmp_path / "out", **(SMALL | change))
    assert len(made) == bool(change)
    one = load_object("a", tmp_path / "out")
    wanted = SMALL | {"split": "train"} | change
    assert (one.images.shape[1], len(one.images), len(one.points), entry["split"]) == tuple(
        wanted[k] for k in ("size", "views", "points", "split"))


def test_out_may_not_hold_the_meshes_but_may_lie_below_them(tmp_path, monkeypatch):
    write_triangle(tmp_path / "mine/a.obj")
    monkeypatch.chdir(tmp_path)
    for folder, out in ((tmp_path / "mine", tmp_path), ("mine", "mine"), ("mine", tmp_path / "mine"), ("mine", ".")):
        with pytest.raises(ValueError, match="^out: .*holds the folder"):
            render_folder(folder, out, **SMALL)
    for _ in range(2):
        render_folder("mine", tmp_path / "mine" / "out", **SMALL)
        write_triangle(tmp_path / "mine/out/meshes/b.obj")  # what lies in `out` is a result, not a source
    assert [e["id"] for e in list_objects(root="mine/out")] == ["a"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes of Unix")
def test_pipes_and_folders_named_like_meshes_are_skipped(tmp_path, capsys):
    write_triangle(tmp_path / "mine/a.obj")
    os.mkfifo(tmp_path / "mine/b.obj")
    (tmp_path / "mine/c.obj").mkdir()
    assert [e["id"] for e in render_folder(tmp_path / "mine", tmp_path / "out", **SMALL)] == ["a"]
    shown = "".join(capsys.readouterr())
    assert "2 files skipped" in shown and "b.obj: not a plain file" in shown and "c.obj: not a plain file" in shown


def test_sheets_too_large_for_webp_are_refused_before_rendering(tmp_path, monkeypatch):
    write_triangle(tmp_path / "mine/a.obj")
    monkeypatch.setattr(prerender, "render_mesh", lambda *_: pytest.fail("rendered"))
    for size, views in ((4096, 24), (2731, 6), (64, 1536)):
        with pytest.raises(ValueError, match=f"size, views: {views} views of {size} pixels.*16383"):
            render_folder(tmp_path / "mine", tmp_path / "out", size=size, views=views)
        with pytest.raises(ValueError, match="16383"):
            prerender.make_object(None, tmp_path, dict(id="a", name="A"), size=size, views=views)
    prerender.check_sheet(2730, 6)  # 16380 pixels wide
    prerender.check_sheet(63, 6 * 260)  # 16380 high

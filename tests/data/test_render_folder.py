"""Rendering your own folder: nothing is lost, nothing stale is kept, nothing hangs."""

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

"""`gsgen view`: a page that works offline and a turntable, or one clear line."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from gsgen_lib import Gaussians, load_ply, save_ply
from gsgen_lib.viz import view


@pytest.fixture(scope="module")
def scene():
    return Gaussians.random(50, generator=torch.Generator().manual_seed(0), sh_degree=1)


def test_page_and_turntable(scene, tmp_path, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr(view.webbrowser, "open", opened.append)
    path = save_ply(scene, tmp_path / "a & b.ply")
    options = {"size": 32, "frames": 3, "ellipsoids": 5, "engine": "reference"}
    assert view.view_scene(path, out=tmp_path / "new", **options) == 0
    page, turn = tmp_path / "new" / "a & b.html", tmp_path / "new" / "a & b.webp"
    printed = capsys.readouterr().out
    assert str(page) in printed and str(turn) in printed and opened == []
    with Image.open(turn) as file:
        assert file.n_frames == 3 and file.size == (32, 32)
    text = page.read_text(encoding="utf-8")
    assert "<title>a &amp; b.ply</title>" in text and "50 Gaussians, spherical harmonics of degree 1" in text
    # Offline: no script, style sheet or picture is fetched, and plotly itself is inside.
    assert not re.search(r"<(?:script|img|link)[^>]+(?:src|href)=[\"']?(?:https?:)?//", text)
    assert len(text) > 3e6 and "data:image/webp;base64," in text
    assert view.view_scene(path, out=tmp_path, open=True, **options) == 0
    assert opened == [(tmp_path / "a & b.html").resolve().as_uri()]


def test_default_place_is_beside_the_scene(scene, tmp_path):
    path = save_ply(scene, tmp_path / "scene.ply")
    assert view.write_view(path, size=16, frames=2, ellipsoids=3, engine="reference") == (
        tmp_path / "scene.html", tmp_path / "scene.webp")


def test_figure_switches_between_ellipsoids_and_centres(scene):
    figure = view._figure(scene, 5, size=200, most_points=20)
    solids, centres = figure.data
    assert len(solids.x) == 5 * 42 and len(centres.x) == 17  # every third of 50
    np.testing.assert_allclose(centres.y, scene.means[::3, 1])
    switch = [button.args[0]["visible"] for button in figure.layout.updatemenus[0].buttons]
    assert switch == [[True, False], [False, True]] and centres.visible is False


def test_foreign_scenes_are_framed_and_ours_are_left(scene):
    same, what = view.framed(scene)
    assert same is scene and what == ""
    far = scene.transform(translation=torch.tensor([30.0, -4.0, 7.0]), scale=20.0)
    back, what = view.framed(far)
    assert back.means.norm(dim=-1).median() < 0.5 and what.startswith("shown at 0.0")
    ratio = back.scales / far.scales
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio))


@pytest.mark.parametrize("damage", ["missing", "truncated", "not a ply", "empty"])
def test_bad_files_give_one_line_and_no_page(scene, tmp_path, capsys, damage):
    path = save_ply(scene if damage != "empty" else scene.select(slice(0, 0)), tmp_path / "scene.ply")
    if damage == "missing":
        path.unlink()
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    if damage == "not a ply":
        path.write_text("solid cube")
    assert view.view_scene(path, engine="reference") == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("gsgen view: ") and captured.err.count("\n") == 1
    assert "scene.ply" in captured.err
    assert not (tmp_path / "scene.html").exists() and not (tmp_path / "scene.webp").exists()
    if damage != "missing" and damage != "empty":
        with pytest.raises(ValueError, match="scene.ply"):
            load_ply(path)


def test_a_few_floaters_do_not_shrink_the_scene(scene):
    far = scene.transform(scale=10.0)
    floating = far.map(torch.clone)
    floating.means[:2] = torch.tensor([300.0, 0.0, 0.0])  # two of fifty
    assert scene.num == 50
    plain, with_floaters = view.framed(far)[0], view.framed(floating)[0]
    size, again = (g.means[2:].norm(dim=-1).quantile(0.9) for g in (plain, with_floaters))
    assert abs(again / size - 1) < 0.1  # were the farthest centre to decide, this would be 1/30

"""Turntables: the frames in the file are the views that the rasterizer draws."""

import base64
import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from gsgen_lib import Cameras, Gaussians, rasterize, viz


@pytest.fixture(scope="module")
def scene():
    return Gaussians.random(40, generator=torch.Generator().manual_seed(0), scale=0.08)


def frames_of(path):
    return [np.asarray(frame.convert("RGB")) / 255 for frame in ImageSequence.Iterator(Image.open(path))]


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_frames_are_the_orbit(scene, tmp_path, suffix):
    turn = viz.turntable(scene, tmp_path / f"new/turn{suffix}", n=5, size=32, seconds=2.0, engine="reference")
    frames = frames_of(turn.path)
    expected = rasterize(scene, Cameras.orbit(5, width=32, height=32), background=torch.ones(3),
                         engine="reference").rgb.clamp(0, 1).numpy()
    assert len(frames) == 5
    errors = np.array([[np.abs(f - e).mean() for e in expected] for f in frames])
    assert (errors.argmin(1) == np.arange(5)).all() and errors.diagonal().max() < 0.03
    with Image.open(turn.path) as file:
        file.seek(1)
        file.load()
        assert file.info["loop"] == 0 and file.info["duration"] == 400


def test_it_shows_the_strip_first_and_embeds_the_animation(scene, tmp_path, monkeypatch):
    import IPython.display

    turn = viz.turntable(scene, tmp_path / "turn.webp", n=4, size=32, engine="reference", alt='a "cloud"')
    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    turn._ipython_display_()
    assert isinstance(shown[0], viz.Picture)
    assert shown[0].alt == 'a "cloud", 4 images in a row: 0°, 90°, 180°, 270°'
    match = re.search(r'alt="(.*?)" .*src="data:image/webp;base64,(.*?)"', shown[1].data)
    assert match[1] == "a &quot;cloud&quot;"
    assert base64.b64decode(match[2]) == turn.path.read_bytes()


def test_render_frames_in_chunks_equals_one_call(scene):
    cameras = Cameras.orbit(5, width=16, height=16)
    together = viz.render_frames(scene, cameras, engine="reference")
    chunked = viz.render_frames(scene, cameras, engine="reference", chunk=2)
    torch.testing.assert_close(chunked, together, rtol=0, atol=1e-6)
    assert together.shape == (5, 16, 16, 3) and not together.requires_grad


def test_bad_arguments_are_named(scene, tmp_path):
    batch = Gaussians.stack([scene, scene])
    with pytest.raises(ValueError, match="gaussians: got a batch"):
        viz.turntable(batch, tmp_path / "a.webp")
    with pytest.raises(ValueError, match=r"path: got 'a.mp4', wanted a name ending in .webp or .gif"):
        viz.save_animation(torch.zeros(2, 8, 8, 3), tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="seconds: got 0"):
        viz.save_animation(torch.zeros(2, 8, 8, 3), tmp_path / "a.webp", seconds=0)
    assert list(tmp_path.iterdir()) == []

"""The live viewer without a browser: every change draws the frame that the rasterizer draws."""

import importlib.util
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gsgen_lib import Cameras, Gaussians, rasterize, save_ply, viz

SIZE = 24


@pytest.fixture(scope="module")
def scene():
    return Gaussians.random(30, generator=torch.Generator().manual_seed(0), scale=0.1)


def shown(viewer):
    return np.asarray(Image.open(io.BytesIO(viewer.picture.value)))


def expected(scene, azimuth, elevation, radius=1.8):
    camera = Cameras.orbit(1, azimuth=[azimuth], elevation=elevation, radius=radius, width=SIZE, height=SIZE)
    rgb = rasterize(scene, camera, background=torch.ones(3), engine="reference").rgb[0]
    return (rgb.clamp(0, 1) * 255).round().byte().numpy()


@pytest.mark.parametrize("drag", [True, False])
def test_sliders_draw_what_the_rasterizer_draws(scene, drag):
    viewer = viz.OrbitViewer(scene, size=SIZE, engine="reference", drag=drag)
    np.testing.assert_array_equal(shown(viewer), expected(scene, 30, 15))
    viewer.azimuth.value = -120
    np.testing.assert_array_equal(shown(viewer), expected(scene, -120, 15))
    viewer.elevation.value = 40
    np.testing.assert_array_equal(shown(viewer), expected(scene, -120, 40))
    viewer.zoom.value = 150
    np.testing.assert_array_equal(shown(viewer), expected(scene, -120, 40, radius=1.2))
    assert (shown(viewer) != expected(scene, -120, 40)).any()
    assert viewer.frames == 4  # one frame per change


def test_a_drag_draws_one_frame_and_moves_the_sliders(scene):
    viewer = viz.OrbitViewer(scene, size=SIZE, engine="reference", drag=True)
    viewer.picture.set_state({"azimuth": 47.5, "elevation": -20.25})  # one message of the browser
    assert viewer.frames == 2
    np.testing.assert_array_equal(shown(viewer), expected(scene, 47.5, -20.25))
    assert (viewer.azimuth.value, viewer.elevation.value, viewer.zoom.value) == (48, -20, 100)
    viewer.azimuth.value = 90  # a slider moves what the mouse starts from, and keeps the rest
    assert (viewer.picture.azimuth, viewer.picture.elevation) == (90.0, -20.25)
    np.testing.assert_array_equal(shown(viewer), expected(scene, 90, -20.25))


def test_the_last_of_many_moves_is_shown(scene):
    viewer = viz.OrbitViewer(scene, size=SIZE, engine="reference", drag=True)
    generator = np.random.default_rng(0)
    for _ in range(20):
        azimuth, elevation = generator.uniform(-180, 180), generator.uniform(-90, 90)
        viewer.picture.set_state({"azimuth": azimuth, "elevation": elevation})
        if generator.random() < 0.3:
            viewer.zoom.value = int(generator.integers(50, 250))
    np.testing.assert_array_equal(
        shown(viewer), expected(scene, azimuth, elevation, radius=180 / viewer.zoom.value))


def test_another_scene_can_be_shown(scene):
    viewer = viz.OrbitViewer(scene, size=SIZE, engine="reference")
    other = scene.map(lambda x: x.clone().requires_grad_())
    other.colors.data = 1 - other.colors
    viewer.show(other)
    np.testing.assert_array_equal(shown(viewer), expected(other.detach(), 30, 15))
    viewer.show(scene.select(slice(0, 0)))  # an empty scene is a white picture
    assert (shown(viewer) == 255).all()


def test_static_twin_comes_first_and_starts_at_the_present_view(scene, monkeypatch):
    import IPython.display

    viewer = viz.OrbitViewer(scene, size=SIZE, engine="reference", azimuth=20)
    strip = viewer.static(4)
    assert strip.alt.endswith("at azimuths 20°, 110°, 200°, 290°")
    images = [axis.images[0].get_array() for axis in strip.figure.axes]
    np.testing.assert_allclose(images[1], expected(scene, 110, 15) / 255, atol=0.003)
    order = []
    monkeypatch.setattr(IPython.display, "display", order.append)
    viewer._ipython_display_()
    assert isinstance(order[0], viz.Picture) and order[1] is viewer.widget


def test_without_anywidget_it_falls_back_to_sliders(scene, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "gsgen_lib.viz.drag_image", raising=False)
    viewer = viz.OrbitViewer(scene, size=SIZE, engine="reference")
    assert type(viewer.picture).__name__ == "Image"
    viewer.azimuth.value = 77
    np.testing.assert_array_equal(shown(viewer), expected(scene, 77, 15))
    with pytest.raises(ImportError, match="pip install anywidget"):
        viz.OrbitViewer(scene, size=SIZE, drag=True)


def test_bad_scenes_are_named(scene):
    with pytest.raises(TypeError, match="gaussians: got Tensor"):
        viz.OrbitViewer(scene.means)
    with pytest.raises(ValueError, match="gaussians: got a batch"):
        viz.OrbitViewer(Gaussians.stack([scene, scene]))
    broken = scene.map(torch.clone)
    broken.means[3, 1] = torch.nan
    with pytest.raises(ValueError, match="means: got 1 non-finite"):
        viz.OrbitViewer(broken)
    with pytest.raises(ValueError, match="drag: got 'mouse'"):
        viz.OrbitViewer(scene, drag="mouse")


def test_in_a_real_kernel_a_drag_message_brings_an_image(scene, tmp_path):
    """The benchmark's own path: kernel, widget messages in, PNG bytes out."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "viewer.py"
    spec = importlib.util.spec_from_file_location("benchmark_viewer", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    times = benchmark.time_in_kernel(save_ply(scene, tmp_path / "scene.ply"), SIZE, drag=True, seconds=0)
    assert len(times) == 10

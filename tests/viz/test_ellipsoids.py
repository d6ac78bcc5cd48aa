"""Ellipsoids: their surfaces lie at the stated number of standard deviations."""

import numpy as np
import pytest
import torch

from gsgen_lib import Cameras, Gaussians, viz
from gsgen_lib.scene.sh import rgb_to_sh
from gsgen_lib.viz import ellipsoid_plot


@pytest.fixture(scope="module")
def scene():
    return Gaussians.random(60, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sigmas", [1.0, 2.5])
def test_vertices_have_the_mahalanobis_distance_sigmas(scene, sigmas):
    vertices, faces, colors = ellipsoid_plot.ellipsoid_mesh(scene, 7, sigmas)
    chosen = scene.select(ellipsoid_plot.largest(scene, 7))
    offset = torch.tensor(vertices).reshape(7, 42, 3) - chosen.means[:, None]
    inverse = torch.linalg.inv(chosen.covariances().double())
    distance = torch.einsum("mvi,mij,mvj->mv", offset.double(), inverse, offset.double()).sqrt()
    torch.testing.assert_close(distance, torch.full_like(distance, sigmas), rtol=1e-3, atol=0)
    assert faces.shape == (7 * 80, 3) and len(np.unique(faces)) == 7 * 42
    assert (faces // 42 == faces[:, :1] // 42).all()  # no triangle joins two ellipsoids
    np.testing.assert_allclose(colors.reshape(7, 42, 3)[:, 0], chosen.colors, atol=1e-6)


def test_the_largest_are_chosen(scene):
    ordered = scene.scales.sort(dim=-1).values
    score = scene.opacities * ordered[:, 1] * ordered[:, 2]
    chosen = set(ellipsoid_plot.largest(scene, 5).tolist())
    assert chosen == set(score.argsort(descending=True)[:5].tolist())
    assert chosen != set(scene.scales.prod(-1).argsort(descending=True)[:5].tolist())


def test_spherical_harmonics_show_their_mean_color(scene):
    sh = torch.cat([rgb_to_sh(scene.colors)[:, None], torch.rand(60, 3, 3)], dim=1)
    bent = Gaussians(scene.means, scene.quats, scene.scales, scene.opacities, sh)
    np.testing.assert_allclose(ellipsoid_plot.ellipsoid_mesh(bent, 9, 1.0)[2],
                               ellipsoid_plot.ellipsoid_mesh(scene, 9, 1.0)[2], atol=1e-6)


def test_painter_draws_near_over_far_and_drops_what_faces_away():
    two = Gaussians(torch.tensor([[0.0, 0, 0.3], [0.0, 0, -0.3]]), torch.tensor([[1.0, 0, 0, 0]] * 2),
                    torch.full((2, 3), 0.1), torch.ones(2), torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]))
    cameras = Cameras.orbit(1, elevation=0.0)  # looks along -z: the red one is nearer
    polygons, shades = ellipsoid_plot.project_mesh(*ellipsoid_plot.ellipsoid_mesh(two, 2, 1.0), cameras)
    red = shades[:, 0] > shades[:, 2]
    assert not red[: len(red) // 3].any() and red[-len(red) // 3 :].all()
    assert 2 * 80 * 0.3 < len(polygons) < 2 * 80 * 0.6  # about half of all triangles
    assert shades.max(1).mean() > 0.7  # the light comes from the viewer's side: what is seen is lit
    center = polygons.reshape(-1, 2).mean(0)
    np.testing.assert_allclose(center, [32, 32], atol=0.5)
    # radius of the near sphere in pixels: f r / sqrt(d^2 - r^2)
    focal, distance = cameras.Ks[0, 0, 0].item(), 1.5
    reach = np.abs(polygons[red][..., 0] - 32).max()
    assert reach == pytest.approx(focal * 0.1 / np.sqrt(distance**2 - 0.01), rel=0.05)


def test_plotly_figure_and_static_twin(scene, monkeypatch):
    import IPython.display

    view = viz.ellipsoids(scene, n=6, engine="reference")
    mesh = view.figure.data[0]
    assert len(mesh.x) == 6 * 42 and len(mesh.i) == 6 * 80 and len(mesh.vertexcolor) == 6 * 42
    assert view.figure.layout.scene.camera.up.to_plotly_json() == {"x": 0, "y": 1, "z": 0}
    assert len(viz.ellipsoids(scene, n=6, engine="reference").figure.to_json()) < 30_000
    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda *a, **k: shown.append((a, k)))
    view._ipython_display_()
    assert shown[0][0][0] is view.static  # the twin first
    bundle = shown[1][0][0]
    assert set(bundle) == {"application/vnd.plotly.v1+json", "text/plain"} and shown[1][1] == {"raw": True}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda g: Gaussians.stack([g, g]), {}, "gaussians: got a batch"),
        (lambda g: g.select(slice(0, 0)), {}, "gaussians: got an empty scene"),
        (lambda g: g, {"n": 0}, "n: got 0"),
        (lambda g: g, {"sigmas": -1.0}, "sigmas: got -1.0"),
    ],
)
def test_bad_arguments_are_named(scene, change, options, message):
    with pytest.raises(ValueError, match=message):
        ellipsoid_plot.ellipsoid_figure(change(scene), **options)

"""How wide a ray is where it meets a slanted surface, against the true outline of its pixel there."""

import numpy as np
import pytest

from gsgen_lib.data import raycast
from gsgen_lib.scene.cameras import Cameras

NORMALS = np.array([[0, 0, 1]], np.float32)


def meet(camera, pixels):
    """Where rays through pixels (N, 2) of a camera meet the plane z = 0: (N, 3), and unit directions, distances."""
    W, K = camera.viewmats[0].double().numpy(), camera.Ks[0].double().numpy()
    d = np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1) @ np.linalg.inv(K).T @ W[:3, :3]
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    eye = -W[:3, :3].T @ W[:3, 3]
    t = -eye[2] / d[:, 2]
    return eye + t[:, None] * d, d, t


@pytest.mark.parametrize("azimuth", [0.0, 30.0, 60.0, 75.0])
def test_the_footprint_has_the_area_of_the_pixel_on_the_surface(azimuth):
    camera = Cameras.orbit(1, elevation=0.0, azimuth=[azimuth], width=65, height=65)
    corners, _, _ = meet(camera, np.array([[32.0, 32], [33, 32], [33, 33], [32, 33]]))
    a, b = corners[2] - corners[0], corners[3] - corners[1]
    area = np.linalg.norm(np.cross(a, b)) / 2  # of a quadrilateral, from its diagonals
    _, d, t = meet(camera, np.array([[32.5, 32.5]]))
    angle = np.float32(1 / camera.Ks[0, 1, 1].item())
    cosine, footprint = raycast._slant(NORMALS, np.zeros(1, np.int32), np.float32(d), np.float32(t), angle)
    assert footprint[0] ** 2 == pytest.approx(area, rel=0.01)
    assert -cosine[0] == pytest.approx(np.cos(np.deg2rad(azimuth)), abs=1e-5)

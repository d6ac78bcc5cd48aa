"""Posed photos: lenses given by two angles, the scale of a rig with a stray camera, points that are refused."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from gsgen_lib.data.posed import SEEN, fit_unit_cube, load_transforms, save_colmap
from gsgen_lib.scene.cameras import Cameras


def test_both_opening_angles_count(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    frame = {"file_path": "a.png", "transform_matrix": np.eye(4).tolist()}

    def focal(**fields):
        (tmp_path / "transforms.json").write_text(json.dumps({**fields, "frames": [frame]}))
        K = load_transforms(tmp_path).cameras.Ks[0]
        return pytest.approx((K[0, 0].item(), K[1, 1].item()), rel=1e-6)

    x, y = math.radians(90), math.radians(60)
    assert focal(camera_angle_x=x, camera_angle_y=y) == (4, 3 * math.sqrt(3))  # 4 / tan 45, 3 / tan 30
    assert focal(camera_angle_x=x) == (4, 4)  # square pixels unless told
    assert focal(camera_angle_x=x, camera_angle_y=y, fl_y=5.0) == (4, 5)


def test_one_camera_far_away_does_not_change_the_scale():
    """The scale follows what half of the cameras see: 7 stand at 1.8, one at 180, and all look at the origin."""
    rig = Cameras.orbit(8, elevation=[10.0, 30] * 4)
    viewmats = rig.viewmats.clone()
    viewmats[5, 2, 3] *= 100
    scale, center = fit_unit_cube(Cameras(viewmats, rig.Ks, rig.width, rig.height))
    assert scale == pytest.approx(SEEN / (1.8 * math.tan(math.radians(20))), rel=1e-4)
    assert np.abs(center).max() < 1e-4


def test_points_that_cannot_be_written_are_refused(tmp_path):
    cameras, points = Cameras.orbit(2, width=4, height=4), torch.full((5, 6), 0.5)
    for column, bad in ((0, math.nan), (2, math.inf), (3, 128.0), (4, -0.1), (5, math.nan)):
        wrong = points.clone()
        wrong[3, column] = bad
        with pytest.raises(ValueError, match="points: wanted finite"):
            save_colmap(tmp_path, torch.ones(2, 4, 4, 3), cameras, wrong)
    assert not any(tmp_path.iterdir())

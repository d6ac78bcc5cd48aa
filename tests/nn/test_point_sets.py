"""Points that are far apart, near neighbours, and who sees them, against brute force."""

import pytest
import torch

from gsgen_lib.nn.point_sets import farthest_points, spacing, visible_points
from gsgen_lib.scene.cameras import Cameras


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def test_farthest_points_are_the_farthest():
    points = torch.randn(3, 50, 3, generator=gen())
    for cloud, got in zip(points, farthest_points(points, 12, first=4).tolist(), strict=True):
        chosen = [4]
        while len(chosen) < 12:
            away = torch.stack([(cloud - cloud[i]).norm(dim=1) for i in chosen]).amin(0)
            chosen.append(int(away.argmax()))
        assert got == chosen
    assert torch.equal(farthest_points(points, 12)[:, :5], farthest_points(points, 5))  # more begin with fewer


def test_spacing_is_the_mean_of_the_nearest():
    points = torch.randn(2, 30, 3, generator=gen())
    apart = (points[:, :, None] - points[:, None]).norm(dim=-1)
    want = apart.sort(-1).values[:, :, 1:5].mean(-1)
    assert torch.allclose(spacing(points), want, atol=1e-6)
    assert torch.allclose(spacing(points[:, :3]), apart[:, :3, :3].sum(-1) / 2, atol=1e-6)  # fewer than four others
    assert spacing(points[:, :1]).tolist() == [[1.0], [1.0]]


def test_twins_have_no_distance_but_no_nan():
    assert spacing(torch.zeros(1, 9, 3)).tolist() == [[0.0] * 9]


def test_a_sphere_is_seen_by_half_and_what_is_inside_is_not():
    shell = torch.nn.functional.normalize(torch.randn(1, 4000, 3, generator=gen()), dim=-1)
    points = torch.cat([0.4 * shell, 0.1 * shell[:, :200]], 1)
    normals = torch.cat([shell, shell[:, :200]], 1)
    cameras = Cameras.stack([Cameras.orbit(3, radius=1.8)])
    seen = visible_points(points, normals, cameras)
    facing = ((cameras.centers[:, :, None] - points[:, None]) * normals[:, None]).sum(-1)
    angle = facing / (cameras.centers[:, :, None] - points[:, None]).norm(dim=-1)
    assert not seen[angle <= 0].any()
    assert seen[..., :4000][angle[..., :4000] > 0.4].float().mean() > 0.97  # the rim shares its cells with nearer points
    assert seen[..., 4000:].float().mean() < 0.1 < (angle[..., 4000:] > 0).float().mean()  # through gaps between points


@pytest.mark.parametrize("points", [torch.zeros(3, 3), torch.zeros(1, 4, 2), torch.full((1, 4, 3), float("inf")),
                                    torch.zeros(1, 0, 3), torch.zeros(1, 4, 3, dtype=torch.int64)])
def test_what_are_no_points_is_refused(points):
    for call in (lambda: farthest_points(points, 1), lambda: spacing(points)):
        with pytest.raises(ValueError, match="points: got"):
            call()


def test_counts_that_do_not_fit_are_refused():
    for count, first in ((0, 0), (5, 0), (2.0, 0), (2, 4), (2, -1)):
        with pytest.raises(ValueError, match="count, first: got"):
            farthest_points(torch.zeros(1, 4, 3), count, first)
    cameras = Cameras.stack([Cameras.orbit(2)])
    with pytest.raises(ValueError, match="normals, cameras: got"):
        visible_points(torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), cameras)
    with pytest.raises(ValueError, match="normals, cameras: got"):
        visible_points(torch.zeros(1, 4, 3), torch.zeros(1, 5, 3), cameras)

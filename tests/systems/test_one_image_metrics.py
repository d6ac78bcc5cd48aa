"""Diversity, best of k: against brute force, and what they must tell apart."""

from itertools import combinations

import pytest
import torch
import trimesh

from gsgen_lib.data.meshes import Mesh
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.one_image_metrics import best_of, diversity, seen_points, truth_but, unseen_pixels


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def test_points_come_as_often_as_they_are_opaque():
    scene = Gaussians.random(4, generator=gen())
    scene.opacities.copy_(torch.tensor([0.9, 0.3, 0.0, 0.6]))
    points = seen_points(scene, 20_000, gen())
    shares = torch.stack([(points == m).all(1).float().mean() for m in scene.means])
    torch.testing.assert_close(shares, torch.tensor([0.5, 1 / 6, 0.0, 1 / 3]), atol=0.015, rtol=0)
    with pytest.raises(ValueError, match="one scene"):
        seen_points(Gaussians.stack([scene]))
    scene.opacities.zero_()
    with pytest.raises(ValueError, match="opacity above 0"):
        seen_points(scene)


def two_sided(back: tuple[float, float, float]) -> Gaussians:
    """A grey sheet towards +z, and one of a colour behind it."""
    axis = torch.linspace(-0.3, 0.3, 24)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    sheets = [torch.stack([x.flatten(), y.flatten(), torch.full((576,), z)], 1) for z in (0.1, -0.1)]
    means = torch.cat(sheets)
    colors = torch.cat([torch.full((576, 3), 0.5), torch.tensor(back).expand(576, 3)])
    return Gaussians(means, torch.tensor([1.0, 0, 0, 0]).repeat(1152, 1), torch.full((1152, 3), 0.012), torch.full((1152,), 0.95), colors)


def test_diversity_is_found_where_it_is():
    front, back = (Cameras.orbit(1, azimuth=[a], elevation=[0.0]) for a in (0.0, 180.0))
    same = Gaussians.stack([two_sided((1.0, 0.2, 0.1))] * 3)
    colours = Gaussians.stack([two_sided(c) for c in ((1.0, 0.2, 0.1), (0.1, 0.2, 1.0), (0.1, 0.9, 0.2))])
    a, b = (diversity(x, front, back, gen()) for x in (same, colours))
    assert a["seen"] < 1e-6 and a["unseen"] < 1e-6 and b["unseen"] > 0.1 > 3 * b["seen"]  # a little shines through
    assert b["chamfer"] == pytest.approx(a["chamfer"], rel=0.1)  # colours are no shape
    moved = Gaussians.stack([two_sided((0.5,) * 3).transform(translation=torch.tensor([0.0, 0, z])) for z in (0.0, 0.1, -0.1)])
    assert diversity(moved, front, back, gen())["chamfer"] > 3 * a["chamfer"]
    with pytest.raises(ValueError, match="at least two"):
        diversity(Gaussians.stack([two_sided((0.5,) * 3)]), front, back)


def test_best_of_is_the_mean_over_all_choices():
    scores = torch.randn(5, 7, generator=gen())
    for k in (1, 2, 4, 7):
        by_hand = torch.stack([scores[:, list(c)].max(1).values for c in combinations(range(7), k)]).mean()
        assert best_of(scores, k) == pytest.approx(by_hand.item(), abs=1e-6)
    with pytest.raises(ValueError, match="k: got 8"):
        best_of(scores, 8)


@pytest.mark.parametrize("azimuth", [0.0, 60.0, 120.0, 180.0])
def test_unseen_pixels_of_a_ball_are_those_beyond_its_horizon(azimuth):
    """A camera in distance D sees the points x of a ball with x.eye >= r^2; each pixel's point is computed from its ray."""
    r = 0.4
    ball = trimesh.creation.icosphere(subdivisions=5, radius=r)
    picture, there = (Cameras.orbit(1, azimuth=[a], elevation=[10.0], width=64, height=64) for a in (0.0, azimuth))
    found = unseen_pixels(Mesh(ball.vertices, ball.faces), picture, there)[0]
    o, d = (x.reshape(-1, 3) for x in there.rays())
    d = torch.nn.functional.normalize(d, dim=-1)
    b = (o * d).sum(-1)
    inside = b**2 - (o.square().sum(-1) - r**2)
    x = o + (-b - inside.clamp_min(0).sqrt())[:, None] * d
    height = (x @ picture.centers[0]) / r**2 - 1  # above 0: seen
    clear = (height.abs() > 0.25) | (inside < -0.01)  # neither at the horizon, where a polyhedron is no ball, nor at the rim
    clear &= (inside > 0.004) | (inside < -0.01)
    wanted = (inside > 0) & (height < 0)
    assert clear.float().mean() > 0.8
    assert torch.equal(found.reshape(-1)[clear], wanted[clear])
    assert wanted.any() == (azimuth > 30)


def test_a_thin_sheet_hides_its_back_and_an_object_what_is_behind_it():
    front, back = (Cameras.orbit(1, azimuth=[a], elevation=[0.0], width=32, height=32) for a in (0.0, 180.0))
    sheet = Mesh([[-0.4, -0.4, 0], [0.4, -0.4, 0], [0, 0.4, 0]], [[0, 1, 2]])
    assert not unseen_pixels(sheet, front, front).any()
    assert unseen_pixels(sheet, front, back).float().mean() > 0.05
    small = [[-0.2, -0.2, -0.3], [0.2, -0.2, -0.3], [0, 0.2, -0.3]]  # farther from the front camera, which sees none of it
    two = Mesh(sheet.vertices.tolist() + small, [[0, 1, 2], [3, 4, 5]])
    side = Cameras.orbit(1, azimuth=[40.0], elevation=[0.0], width=32, height=32)
    assert unseen_pixels(two, front, side).sum() > unseen_pixels(sheet, front, side).sum() == 0


def test_truth_stands_in_all_other_pixels():
    one, truth = torch.rand(2, 3, 4, 4, 3, generator=gen())
    where = torch.rand(3, 4, 4, generator=gen()) < 0.5
    mixed = truth_but(one, truth, where)
    assert torch.equal(mixed[where], one[where]) and torch.equal(mixed[~where], truth[~where])

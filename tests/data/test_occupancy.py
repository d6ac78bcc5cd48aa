"""Occupied cells against exact ones of a sphere and a plane."""

import math

import pytest
import torch

from gsgen_lib.data.occupancy import ON_DISC, REACH, cells_of, disc_points, occupancy, voxel_mesh


def sphere(count, radius=0.45, seed=0):
    normals = torch.nn.functional.normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)), dim=-1)
    return torch.cat([radius * normals, normals], 1)


def crossed(resolution, radius=0.45):
    """Cells that the sphere passes through: nearest corner inside of it, farthest outside."""
    low = torch.arange(resolution) / resolution - 0.5
    high = low + 1 / resolution
    near = torch.where((low <= 0) & (high >= 0), 0.0, torch.minimum(low.abs(), high.abs()))
    far = torch.maximum(low.abs(), high.abs())

    def length(x):
        return (x[:, None, None] ** 2 + x[None, :, None] ** 2 + x[None, None] ** 2).sqrt()

    return (length(near) <= radius) & (length(far) >= radius)


@pytest.mark.parametrize("resolution", [8, 16, 32])
def test_many_points_find_the_cells_that_a_sphere_crosses(resolution):
    found, exact = occupancy(sphere(400_000), resolution, discs=False), crossed(resolution)
    assert not (found & ~exact).any()
    assert (found & exact).sum() / exact.sum() > 0.97


def test_discs_fill_what_few_points_leave_open():
    exact, few = crossed(32), sphere(2048)
    with_discs, without = occupancy(few, 32), occupancy(few, 32, discs=False)
    assert (with_discs & exact).sum() / exact.sum() > 0.83 > 0.65 > (without & exact).sum() / exact.sum()
    assert (with_discs & exact).sum() / (with_discs | exact).sum() > 0.83
    assert (with_discs | ~without).all()  # the points themselves count


def test_occupied_fraction_of_a_sphere_halves_as_cells_do():
    found = [occupancy(sphere(1_000_000), r, discs=False).float().mean().item() for r in (16, 32, 64)]
    exact = [crossed(r).float().mean().item() for r in (16, 32, 64)]
    assert found == pytest.approx(exact, abs=0.004)
    assert 1.9 < found[0] / found[1] < 2.15 and 1.9 < found[1] / found[2] < 2.15


def test_discs_lie_in_their_planes_within_their_radius():
    points = sphere(200)
    found = disc_points(points[:, :3], points[:, 3:]) - points[:, None, :3]
    assert found.shape == (200, ON_DISC, 3)
    assert (found * points[:, None, 3:]).sum(-1).abs().max() < 1e-6
    distance = (points[:, None, :3] - points[None, :, :3]).norm(dim=-1).sort(1).values[:, 6]
    torch.testing.assert_close(found.norm(dim=-1).amax(1), REACH * distance)
    assert (found[:, 0] == 0).all()
    angles = torch.atan2(found[0] @ torch.linalg.svd(found[0])[2][1], found[0] @ torch.linalg.svd(found[0])[2][0])[1:]
    gaps = torch.cat([angles.sort().values.diff(), (angles.min() + 2 * math.pi - angles.max())[None]])
    assert gaps.max() < 1.0  # all around


def test_cells_at_the_rim_and_outside():
    assert cells_of(torch.tensor([[0.5, -0.5, 0.0], [7.0, -7.0, 0.499]]), 8).tolist() == [[7, 0, 4], [7, 0, 7]]


@pytest.mark.parametrize(("points", "resolution", "complaint"), [
    (torch.zeros(5, 3), 8, r"points: got shape \(5, 3\)"),
    (torch.zeros(0, 6), 8, "P > 0"),
    (torch.full((2, 6), float("nan")), 8, "not finite"),
    (torch.zeros(2, 6), 0, "resolution: got 0"),
    (torch.zeros(2, 6), 2.5, "resolution: got 2.5"),
])
def test_wrong_input_is_named(points, resolution, complaint):
    with pytest.raises(ValueError, match=complaint):
        occupancy(points, resolution, discs=False)


def test_boxes_cover_what_is_occupied_and_look_outward():
    """Sides counted one by one; volume by the divergence theorem, which has the sign of the orientation."""
    grid = torch.rand(5, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.4
    mesh = voxel_mesh(grid)
    sides = sum(int(bool(grid[x, y, z]) and not (0 <= x + dx < 5 and 0 <= y + dy < 5 and 0 <= z + dz < 5
                                                 and bool(grid[x + dx, y + dy, z + dz])))
                for x in range(5) for y in range(5) for z in range(5)
                for dx, dy, dz in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)))
    assert len(mesh.faces) == 2 * sides
    a, b, c = (torch.from_numpy(mesh.vertices[mesh.faces[:, k]]).double() for k in range(3))
    volume = (a * torch.linalg.cross(b, c)).sum() / 6
    assert volume.item() == pytest.approx(grid.sum().item() / 125, rel=1e-5)
    up = torch.linalg.cross(b - a, c - a)[:, 1] > 0
    lit = torch.from_numpy(mesh.colors[:, 0, 0])
    assert lit[up].min() > lit[~up].max()
    assert voxel_mesh(grid, (0.2, 0.4, 0.8)).colors[up.numpy()][0, 0].tolist() == pytest.approx([0.2, 0.4, 0.8, 1.0])


@pytest.mark.parametrize("grid", [torch.zeros(4, 4, 4, dtype=torch.bool), torch.ones(4, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool)])
def test_boxes_of_nothing_or_of_no_bits_are_refused(grid):
    with pytest.raises(ValueError, match="grid: got"):
        voxel_mesh(grid)


@pytest.mark.parametrize("column", [0, 5])
def test_one_number_that_is_none_is_refused(column):
    points = sphere(20)
    points[3, column] = float("nan")
    with pytest.raises(ValueError, match="points: got positions or normals"):
        occupancy(points, 8)

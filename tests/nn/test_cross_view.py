"""Projection, lookups and the sweep against a rasterizer, scipy, a loop and a ball whose surface is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from scipy.ndimage import map_coordinates

from gsgen_lib.data.meshes import Mesh
from gsgen_lib.data.raycast import render_mesh
from gsgen_lib.nn.cross_view import REACH, first_crossing, look_up, refine, sweep
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians

RADIUS = 0.4


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def ring(count, size=64, elevation=20.0):
    return Cameras.orbit(count, elevation=elevation, width=size, height=size)


def test_points_appear_where_the_rasterizer_paints_them():
    cameras, point = ring(3, 48), torch.tensor([[0.13, -0.21, 0.08]])
    dot = Gaussians(point, torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.03), torch.ones(1), torch.ones(1, 3))
    alpha = rasterize(dot, cameras).alpha[..., 0]  # (3, 48, 48)
    y, x = torch.meshgrid(*[torch.arange(48) + 0.5] * 2, indexing="ij")
    centre = torch.stack([(alpha * a).sum((1, 2)) / alpha.sum((1, 2)) for a in (x, y)], 1)
    found = cameras.project(point)[0][:, 0]
    assert (found - centre).abs().max() < 0.05
    assert (found.flip(-1) - centre).abs().max() > 1  # x and y are not the same here


def test_lookups_equal_those_of_scipy_and_are_empty_outside():
    cameras, picture = Cameras.stack([ring(2, 16)]), torch.rand(1, 2, 16, 16, 3, generator=gen())
    points = 0.8 * (torch.rand(1, 40, 3, generator=gen(1)) - 0.5)
    at = cameras.project(points)[0][0].double().numpy() - 0.5  # pixel centres are whole numbers to scipy
    found = look_up(picture, cameras, points)[0]
    for v in range(2):
        wanted = [map_coordinates(picture[0, v, ..., c].double().numpy(), at[v, :, ::-1].T, order=1, mode="grid-constant") for c in range(3)]
        np.testing.assert_allclose(found[v].numpy(), np.stack(wanted, 1), atol=1e-5)
    assert (look_up(picture, cameras, torch.tensor([[[5.0, 5.0, 0.0]]])) == 0).all()


def test_the_first_crossing_equals_a_loop():
    inside, t = torch.rand(50, 12, generator=gen()), torch.linspace(1, 2, 12)
    inside[0], inside[1, 0] = 0.1, 0.9  # never, and at once
    for row, found in zip(inside.tolist(), first_crossing(inside, t.expand(50, -1)).tolist(), strict=True):
        wanted = t[-1].item()
        for k, value in enumerate(row):
            if value >= 0.5:
                wanted = t[k].item() if k == 0 else t[k - 1].item() + (0.5 - row[k - 1]) / (value - row[k - 1]) * (t[k] - t[k - 1]).item()
                break
        assert found == pytest.approx(wanted, abs=1e-5)


@pytest.fixture(scope="module")
def ball():
    """A red ball, blue on its left half, from eight sides: (1, 8, 64, 64, 4), cameras."""
    shape = trimesh.creation.icosphere(4, RADIUS)
    cameras = ring(8)
    rgba = torch.from_numpy(render_mesh(Mesh(shape.vertices.astype(np.float32), shape.faces.astype(np.int32)), cameras).rgba).float()
    origin, ray = cameras.rays()
    hit = origin + true_depth(cameras)[..., None] * ray
    rgba[..., :3] = torch.where(hit[..., :1] < 0, torch.tensor([0.1, 0.1, 0.9]), torch.tensor([0.9, 0.1, 0.1]))
    rgba[..., :3] *= rgba[..., 3:] > 0
    return rgba[None], Cameras.stack([cameras])


def true_depth(cameras, radius=RADIUS):
    """Where a ray meets the ball: |o + t d| = radius, the smaller root; its nearest point where it misses."""
    o, d = cameras.rays()
    b, c = (o * d).sum(-1), (o * o).sum(-1) - radius**2
    return -b - (b * b - c).clamp_min(0).sqrt()


def test_the_hull_of_a_ball_is_met_just_before_the_ball(ball):
    rgba, cameras = ball
    features, depth = sweep(rgba, cameras, 48, 64)
    truth, inside = true_depth(cameras), rgba[..., 3] > 0.9
    off = (truth - depth[..., 0])[inside]
    assert off.min() > -0.03 and off.median() < 0.04 and off.quantile(0.9) < 0.12  # a hull is never smaller
    turned = replace(cameras, viewmats=cameras.viewmats.roll(1, 1))  # each picture with its neighbour's camera
    o, d = ring(8).rays()
    lonely = sweep(rgba[:, :1], cameras[:1], 48, 64)
    torch.testing.assert_close(lonely[1][0, 0, ..., 0], -(o * d).sum(-1)[0])  # one view knows nothing: the middle of the ray
    assert not lonely[0].any()
    moved = rgba.clone()
    moved[:, 1:] = moved[:, 1:].roll(12, 3)  # the others' silhouettes shifted: the hull moves away
    assert (sweep(moved, turned, 48, 64)[1][..., 0] - depth[..., 0])[inside].abs().mean() > 0.1


def test_a_second_look_brings_the_hull_nearer_to_a_finer_sweep(ball):
    """Coarse depths, refined, against a sweep of many depths at every pixel; one view has nothing to ask."""
    rgba, cameras = ball
    coarse = sweep(rgba, cameras, 12, 32)[1].repeat_interleave(2, 2).repeat_interleave(2, 3)
    fine, inside = sweep(rgba, cameras, 200, 64)[1], rgba[..., 3:] > 0.9
    step = 2 * REACH / 11
    found = refine(rgba[..., 3:], cameras, coarse, 1.5 * step)
    off = [(x - fine)[inside].abs().mean() for x in (coarse, found)]
    assert off[1] < 0.3 * off[0]
    assert ((found - coarse).abs() <= 1.5 * step + 1e-5).all()
    assert torch.equal(refine(rgba[:, :1, ..., 3:], cameras[:1], coarse[:, :1], step), coarse[:, :1])
    nothing = torch.zeros_like(rgba[..., 3:])
    assert torch.equal(refine(nothing, cameras, coarse, step), coarse)


def test_colours_agree_at_the_surface_and_not_before_it(ball):
    """Where the border of the colours is seen, only the true depth shows the same colour in another view."""
    rgba, cameras = ball
    depths = 48
    features = sweep(rgba, cameras, depths, 64)[0]
    inside, alike = features.split(depths, -1)
    t = cameras.centers.norm(dim=-1)[..., None, None, None] + torch.linspace(-REACH, REACH, depths)
    at = (t - true_depth(cameras)[..., None]).abs().argmin(-1, keepdim=True)  # (1, 8, 64, 64, 1)
    solid = rgba[..., 3] > 0.99

    def same(features):
        """1 - differs at the true depth; `inside` itself is about 1/2 there, where some view sees the point on its rim."""
        inside, alike = (x.gather(-1, at)[..., 0] for x in features.split(depths, -1))
        return (alike / inside.clamp_min(1e-3))[solid]

    assert same(features).quantile(0.1) > 0.95
    assert (alike <= inside + 1e-6).all() and (inside <= 1).all() and inside.amax(-1)[solid].median() > 0.95
    lies = rgba.clone()
    lies[:, ::2, ..., :3] = 0.5  # half of the pictures are of another ball, and the other half too far away to agree by chance
    lies[:, 1::2, ..., :3] = 0.0
    grey = lies.clone()
    grey[:, 0, ..., :3] = 1.0
    first = sweep(grey, cameras, depths, 64)[0][:, 0]
    inside, alike = (x.gather(-1, at[:, 0])[..., 0] for x in first.split(depths, -1))
    assert (alike / inside.clamp_min(1e-3))[solid[:, 0]].quantile(0.9) < 0.6


def test_the_order_of_the_other_views_does_not_matter(ball):
    rgba, cameras = ball
    order = [0, 5, 3, 1, 7, 2, 6, 4]
    mixed = replace(cameras, viewmats=cameras.viewmats[:, order], Ks=cameras.Ks[:, order])
    for a, b in zip(sweep(rgba, cameras, 8, 16), sweep(rgba[:, order], mixed, 8, 16), strict=True):
        torch.testing.assert_close(a[:, order], b)

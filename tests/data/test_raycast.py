"""Ray casting against closed forms: spheres, boxes, known textures, the over operator."""

import dataclasses

import numpy as np
import pytest
import torch
import trimesh
from scipy import ndimage

from gsgen_lib.data.meshes import Material, Mesh
from gsgen_lib.data.raycast import LIGHT, render_mesh, sample_surface, visible_points
from gsgen_lib.data.surface import mipmaps, prepare_surface, surface_colors
from gsgen_lib.scene.cameras import Cameras


def light(normals):
    return np.asarray(normals, dtype=np.float64) ** 2 @ LIGHT.astype(np.float64)


def square(z=0.0, half=0.5, **kwargs):
    """A square across the z axis, uv (0, 0) at its lower left."""
    v = np.array([[-half, -half, z], [half, -half, z], [half, half, z], [-half, half, z]])
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    return Mesh(v, faces, uv=uv[faces], **kwargs)


def stack(*layers):
    """Squares at several z with one material each: [(z, rgba), ...]."""
    meshes = [square(z) for z, _ in layers]
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.faces + 4 * i for i, m in enumerate(meshes)]),
        material_ids=np.repeat(np.arange(len(layers)), 2),
        materials=[Material(c) for _, c in layers],
    )


def rays_of(cameras):
    o, d = cameras.rays()
    return o.double().numpy(), d.double().numpy()


def test_sphere_matches_the_quadratic_formula():
    r, color = 0.45, np.array([0.9, 0.5, 0.2])
    ball = trimesh.creation.icosphere(subdivisions=6, radius=r)
    cameras = Cameras.orbit(3, elevation=[0, 30, -20], width=48, height=40)
    out = render_mesh(Mesh(ball.vertices, ball.faces, materials=[Material((*color, 1))]), cameras, supersample=1)
    o, d = rays_of(cameras)
    b, c = (o * d).sum(-1), (o * o).sum(-1) - r * r  # |o + t d|^2 = r^2
    disc = b * b - c
    inside = disc > 0.02  # away from the silhouette
    t = -b - np.sqrt(np.maximum(disc, 0))
    hit = o + t[..., None] * d
    forward = cameras.viewmats[:, 2, :3].double().numpy()
    z = t * np.einsum("vhwx,vx->vhw", d, forward)
    assert inside.mean() > 0.2
    assert np.abs(out.depth - z)[inside].max() < 1e-3
    assert (np.einsum("vhwx,vhwx->vhw", out.normals, hit / r)[inside] > np.cos(np.deg2rad(2))).all()
    assert np.abs(out.rgba[..., :3] - color * light(hit / r)[..., None])[inside].max() < 0.02
    assert (
        (out.rgba[..., 3][inside] == 1).all()
        and (out.rgba[disc < -0.02] == 0).all()
        and (out.depth[disc < -0.02] == 0).all()
    )


def test_box_matches_the_slab_test():
    half = np.array([0.5, 0.3, 0.4])
    box = trimesh.creation.box(extents=2 * half)
    cameras = Cameras.orbit(5, elevation=[10, 40, -15, 70, 25], width=40, height=40)
    out = render_mesh(Mesh(box.vertices, box.faces, materials=[Material((0.8, 0.6, 0.4, 1))]), cameras, supersample=1)
    o, d = rays_of(cameras)
    near = np.minimum((-half - o) / d, (half - o) / d)
    far = np.maximum((-half - o) / d, (half - o) / d)
    t, axis = near.max(-1), near.argmax(-1)
    hit = t < far.min(-1)
    agree = (out.rgba[..., 3] > 0) == hit
    assert agree.mean() > 0.999
    both = (out.rgba[..., 3] > 0) & hit
    z = t * np.einsum("vhwx,vx->vhw", d, cameras.viewmats[:, 2, :3].double().numpy())
    normal = -np.sign(d) * np.eye(3)[axis]
    clear = both & (np.sort(near, -1)[..., 2] - np.sort(near, -1)[..., 1] > 1e-3)  # not on an edge of the box
    assert np.abs(out.depth - z)[clear].max() < 1e-4
    assert np.abs(out.normals - normal)[clear].max() < 1e-5
    assert np.abs(out.rgba[..., :3] - np.array([0.8, 0.6, 0.4]) * LIGHT[axis][..., None])[clear].max() < 1e-5


def test_texture_lies_the_right_way_round():
    rng = np.random.default_rng(0)
    texture = np.concatenate([rng.integers(0, 256, (4, 3, 3)), np.full((4, 3, 1), 255)], axis=2).astype(np.uint8)
    big = np.repeat(np.repeat(texture, 64, 0), 64, 1)  # large texels: bilinear blending only near their borders
    cameras = Cameras.orbit(1, elevation=0.0, width=96, height=96)
    rgba = render_mesh(square(materials=[Material((1, 1, 1, 1), big)]), cameras, supersample=1).rgba[0]
    o, d = rays_of(cameras)
    p = (o + (-o[..., 2:] / d[..., 2:]) * d)[0]  # where each ray meets z = 0
    u, v = p[..., 0] + 0.5, p[..., 1] + 0.5
    row, column = 4 * (1 - v), 3 * u  # row 0 of an image is its top, v = 1
    middle = (np.abs(p[..., :2]).max(-1) < 0.5) & (np.abs(row % 1 - 0.5) < 0.4) & (np.abs(column % 1 - 0.5) < 0.4)
    wanted = texture[np.clip(row.astype(int), 0, 3), np.clip(column.astype(int), 0, 2), :3] / 255 * LIGHT[2]
    assert middle.sum() > 1000
    assert np.abs(rgba[..., :3] - wanted)[middle].max() < 0.01
    upside_down = texture[np.clip((4 * v).astype(int), 0, 3), np.clip(column.astype(int), 0, 2), :3] / 255 * LIGHT[2]
    assert np.abs(rgba[..., :3] - upside_down)[middle].mean() > 0.1  # the check can fail


def test_textures_repeat_and_material_and_corner_colours_multiply():
    texture = np.full((8, 8, 4), 255, np.uint8)
    texture[:, :4] = (255, 0, 0, 255)
    mesh = square(materials=[Material((1, 0.5, 1, 1), texture)])
    shifted = dataclasses.replace(
        mesh, uv=mesh.uv + np.array([3, -2], np.float32), colors=np.full((2, 3, 4), (0.5, 1, 1, 1))
    )
    cameras = Cameras.orbit(1, elevation=0.0, width=16, height=16)
    a, b = (render_mesh(m, cameras, supersample=1).rgba[0] for m in (mesh, shifted))
    np.testing.assert_allclose(b, a * np.array([0.5, 1, 1, 1]), atol=1e-3)
    np.testing.assert_allclose(a[8, 5], [LIGHT[2], 0, 0, 1], atol=1e-5)
    np.testing.assert_allclose(a[8, 10], [LIGHT[2], 0.5 * LIGHT[2], LIGHT[2], 1], atol=1e-5)


@pytest.mark.parametrize("azimuth", [0.0, 180.0])
def test_see_through_layers_are_composited_front_to_back(azimuth):
    layers = [(0.2, (1, 0, 0, 0.3)), (0.0, (0, 1, 0, 0.5)), (-0.2, (0, 0, 1, 0.8))]
    cameras = Cameras.orbit(1, elevation=0.0, azimuth=[azimuth], width=9, height=9)
    out = render_mesh(stack(*layers), cameras)
    ordered = layers if azimuth == 0 else layers[::-1]
    rgb, through, depth = np.zeros(3), 1.0, None
    for z, (*c, a) in ordered:
        rgb, through = rgb + through * a * np.array(c) * LIGHT[2], through * (1 - a)
        depth = 1.8 - abs(z) * np.sign(z) * (1 if azimuth == 0 else -1) if depth is None and through <= 0.5 else depth
    alpha = 1 - through
    np.testing.assert_allclose(out.rgba[0, 4, 4], [*(rgb / alpha), alpha], atol=1e-5)
    assert abs(out.depth[0, 4, 4] - depth) < 1e-4
    front_only = render_mesh(stack(*layers), cameras, layers=1).rgba[0, 4, 4]
    np.testing.assert_allclose(front_only, [*(np.array(ordered[0][1][:3]) * LIGHT[2]), ordered[0][1][3]], atol=1e-5)


def test_alpha_of_a_texture_lets_the_ray_through():
    texture = np.full((16, 16, 4), 255, np.uint8)
    texture[:, 8:] = (200, 10, 10, 0)  # right half invisible, whatever its colour
    front = square(0.1, materials=[Material((1, 1, 1, 1), texture)])
    back = square(-0.1)
    both = Mesh(
        np.concatenate([front.vertices, back.vertices]),
        np.concatenate([front.faces, back.faces + 4]),
        uv=np.concatenate([front.uv, back.uv]),
        material_ids=[0, 0, 1, 1],
        materials=[front.materials[0], Material((0, 0, 1, 1))],
    )
    out = render_mesh(both, Cameras.orbit(1, elevation=0.0, width=20, height=20))
    np.testing.assert_allclose(out.rgba[0, 10, 6], [LIGHT[2]] * 3 + [1], atol=1e-5)
    np.testing.assert_allclose(out.rgba[0, 10, 13], [0, 0, LIGHT[2], 1], atol=1e-5)
    assert abs(out.depth[0, 10, 6] - 1.7) < 1e-4 and abs(out.depth[0, 10, 13] - 1.9) < 1e-4


def test_texture_lookup_against_scipy():
    rng = np.random.default_rng(3)
    texture = rng.integers(0, 256, (3, 5, 4), dtype=np.uint8)
    texture[..., 3] = rng.integers(100, 256, (3, 5))
    corners = rng.uniform(-2, 2, (1, 3, 2))
    mesh = Mesh(
        [[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], uv=corners, materials=[Material((0.9, 0.8, 0.7, 0.6), texture)]
    )
    b = rng.dirichlet([1, 1, 1], 400)
    rgba = surface_colors(prepare_surface(mesh), np.zeros(400, int), b, np.zeros(400), shaded=False)
    u, v = (b @ corners[0]).T
    premultiplied = texture / 255 * np.where(np.arange(4) < 3, texture[..., 3:] / 255, 1)
    where = np.stack([(1 - v) * 3 - 0.5, u * 5 - 0.5])  # row, column: the centre of texel i is at i + 0.5
    wanted = np.stack(
        [ndimage.map_coordinates(premultiplied[..., c], where, order=1, mode="grid-wrap") for c in range(4)], 1
    )
    wanted[:, :3] /= wanted[:, 3:]
    np.testing.assert_allclose(rgba, wanted * [0.9, 0.8, 0.7, 0.6], atol=0.006)  # premultiplied texels are 8 bits


def test_mipmaps_remove_the_sparkle_of_fine_textures():
    rng = np.random.default_rng(0)
    noise = np.repeat(rng.integers(0, 2, (512, 512, 1)) * 255, 4, 2).astype(np.uint8)
    noise[..., 3] = 255
    mesh = square(materials=[Material((1, 1, 1, 1), noise)])
    cameras = Cameras.orbit(2, elevation=[0.0, 0.5], azimuth=[0.0, 0.5], width=32, height=32)
    inner = render_mesh(mesh, cameras).rgba[:, 12:20, 12:20, 0]
    assert abs(inner.mean() - 0.5 * LIGHT[2]) < 0.03 and inner.std() < 0.06
    surface = prepare_surface(mesh)
    full_size = surface._replace(levels=np.ones_like(surface.levels))  # without mipmaps
    face, b = np.zeros(500, int), rng.dirichlet([1, 1, 1], 500)
    smooth, sharp = (surface_colors(s, face, b, np.full(500, 0.02))[:, 0] for s in (surface, full_size))
    assert sharp.std() > 4 * smooth.std()


def test_mipmaps_average_what_is_seen_not_what_is_hidden():
    texture = np.array([[[200, 100, 0, 255], [0, 0, 255, 0]]] * 2, np.uint8)  # (2, 2, 4): right column invisible
    assert mipmaps(texture)[-1].tolist() == [[[100, 50, 0, 128]]]  # premultiplied: no blue leaks in


def test_one_point_has_one_colour_in_all_views():
    ball = trimesh.creation.icosphere(subdivisions=5, radius=0.5)
    texture = np.zeros((64, 64, 4), np.uint8)
    texture[...] = np.linspace(60, 255, 64)[:, None, None]
    texture[..., 3] = 255
    uv = ball.vertices[ball.faces][..., [0, 1]] + 0.5
    mesh = Mesh(ball.vertices, ball.faces, uv=uv, materials=[Material((1, 0.7, 0.4, 1), texture)])
    point = np.array([0.3, 0.2, 0.1])
    point = torch.tensor(point / np.linalg.norm(point) * 0.5, dtype=torch.float32)
    cameras = Cameras.orbit(12, elevation=list(np.linspace(-10, 60, 12)), width=128, height=128)
    out, seen = render_mesh(mesh, cameras), []
    for i in range(12):
        x = cameras.viewmats[i, :3, :3] @ point + cameras.viewmats[i, :3, 3]
        u, v, w = cameras.Ks[i] @ x
        column, row = int(u / w), int(v / w)
        if (
            abs(out.depth[i, row, column] - float(x[2])) < 0.01
            and out.normals[i, row, column] @ (cameras.centers[i] - point).numpy() > 0.5
        ):
            seen.append(out.rgba[i, row, column])
    assert len(seen) >= 4 and np.ptp(seen, axis=0).max() < 0.03


def test_both_sides_are_lit_alike_and_winding_does_not_matter():
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.5)
    cameras = Cameras.orbit(3, width=32, height=32)
    a = render_mesh(Mesh(ball.vertices, ball.faces), cameras)
    b = render_mesh(Mesh(ball.vertices, ball.faces[:, ::-1]), cameras)
    np.testing.assert_allclose(a.rgba, b.rgba, atol=1e-5)
    np.testing.assert_allclose(a.normals, b.normals, atol=1e-5)
    toward = np.einsum("vhwx,vhwx->vhw", a.normals, cameras.rays()[1].numpy())
    assert (toward[a.depth > 0] < 0).all()


def test_supersampling_is_the_mean_of_finer_pixels_with_straight_alpha():
    mesh = stack((0.0, (1, 0, 0, 1)))
    cameras = Cameras.orbit(2, elevation=[20.0, -10.0], width=11, height=11)
    coarse = render_mesh(mesh, cameras, supersample=4).rgba
    fine = render_mesh(mesh, cameras.resize(44, 44), supersample=1).rgba.reshape(2, 11, 4, 11, 4, 4)
    alpha = fine[..., 3].mean((2, 4))
    np.testing.assert_allclose(coarse[..., 3], alpha, atol=1e-6)
    partly = (alpha > 0) & (alpha < 1)
    assert partly.any()
    np.testing.assert_allclose(coarse[partly][:, :3], [[LIGHT[2], 0, 0]] * partly.sum(), atol=1e-4)  # not darkened


def test_tracing_only_the_window_of_the_object_changes_nothing(monkeypatch):
    from gsgen_lib.data import raycast

    ball = trimesh.creation.icosphere(subdivisions=2, radius=0.4)
    mesh = Mesh(ball.vertices + [0.1, 0, 0], ball.faces)
    cameras = Cameras.look_at(
        [[0, 0, 2.0], [0.3, 0.2, 0.45], [0.1, 0, 0], [0, 0.1, 1.0]],
        [[0, 0, 0.0], [0, 0, 0.0], [1, 0, 0.0], [0.7, 0, 0.0]],
        width=21,
        height=17,
    )
    cameras.viewmats.requires_grad_()  # a camera under optimisation is fine
    window = render_mesh(mesh, cameras)
    monkeypatch.setattr(raycast, "_pixel_box", lambda corners, cameras, i: (0, 21, 0, 17))
    full = render_mesh(mesh, cameras)
    assert all((full.rgba[i, ..., 3] > 0).any() for i in range(4)) and not full.rgba[0, 0, 0].any()
    for a, b in zip((window.rgba, window.depth, window.normals), (full.rgba, full.depth, full.normals), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_nothing_in_view_is_empty_and_bad_arguments_are_named():
    away = Cameras.look_at((0.0, 0.0, 2.0), (0.0, 0.0, 4.0), width=8, height=6)
    out = render_mesh(square(), away)
    assert out.rgba.shape == (1, 6, 8, 4) and not out.rgba.any() and not out.depth.any() and not out.normals.any()
    with pytest.raises(ValueError, match="supersample"):
        render_mesh(square(), away, supersample=0)
    with pytest.raises(ValueError, match="cameras"):
        render_mesh(square(), Cameras(away.viewmats[None], away.Ks[None], 8, 6))
    with pytest.raises(ValueError, match="n:"):
        sample_surface(square(), 0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="invisible"):
        sample_surface(square(materials=[Material((1, 1, 1, 0))]), 10, np.random.default_rng(0))
    with pytest.raises(ValueError, match="area"):
        sample_surface(Mesh([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]]), 10, np.random.default_rng(0))


def test_samples_are_uniform_by_area_on_the_surface_and_coloured_like_the_picture():
    texture = np.zeros((2, 2, 4), np.uint8)
    texture[...] = (0, 255, 0, 255)
    texture[0, 0] = (255, 0, 0, 255)  # top left quarter red
    mesh = square(half=0.5, materials=[Material((1, 1, 1, 1), np.repeat(np.repeat(texture, 32, 0), 32, 1))])
    points, normals, colors = sample_surface(mesh, 8000, np.random.default_rng(1))
    assert np.abs(points).max() <= 0.5 and (points[:, 2] == 0).all() and (normals == [0, 0, 1]).all()
    counts = np.histogram2d(points[:, 0], points[:, 1], bins=4, range=[[-0.5, 0.5]] * 2)[0]
    assert ((counts - 500) ** 2 / 500).sum() < 37.7  # chi square, 15 degrees of freedom, p = 0.001
    red = (points[:, 0] < -0.02) & (points[:, 1] > 0.02) & (np.abs(points).max(1) < 0.48)  # textures repeat at the rim
    np.testing.assert_allclose(colors[red], [[LIGHT[2], 0, 0]] * red.sum(), atol=1e-5)
    green = (points[:, 0] > 0.02) & (points[:, 0] < 0.48) & (np.abs(points[:, 1]) < 0.48)
    np.testing.assert_allclose(colors[green], [[0, LIGHT[2], 0]] * green.sum(), atol=1e-5)
    _, _, unlit = sample_surface(mesh, 8000, np.random.default_rng(1), shaded=False)
    np.testing.assert_allclose(unlit * LIGHT[2], colors, atol=1e-5)
    again = sample_surface(mesh, 8000, np.random.default_rng(1))[0]
    assert (again == points).all()


def test_samples_are_thinned_by_opacity():
    mesh = stack((0.1, (1, 0, 0, 0.25)), (-0.1, (0, 0, 1, 1)))
    points, _, _ = sample_surface(mesh, 5000, np.random.default_rng(0))
    assert abs((points[:, 2] > 0).mean() - 0.2) < 0.02  # 0.25 : 1


def test_visible_points_against_brute_force():
    rng = np.random.default_rng(0)
    triangles = rng.uniform(-0.5, 0.5, (12, 3, 3))
    mesh = Mesh(triangles.reshape(-1, 3), np.arange(36).reshape(12, 3))
    points, normals, _ = sample_surface(mesh, 150, rng)
    eyes = Cameras.orbit(6, elevation=20.0).centers.numpy()
    seen = visible_points(mesh, points, normals, eyes)
    v0, e1, e2 = triangles[:, 0], triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    for i, eye in enumerate(eyes):
        for j, p in enumerate(points.astype(np.float64)):
            matrix = np.stack([np.broadcast_to(p - eye, e1.shape), e1, e2], -1)  # p + s (eye - p) = v0 + a e1 + b e2
            s, a, b = np.linalg.solve(matrix, (p - v0)[..., None])[..., 0].T
            margin = np.minimum.reduce([a, b, 1 - a - b])
            blocked = (s > 2e-3) & (s < 1) & (margin > 0)
            unclear = ((np.abs(s) < 1e-2) & (np.abs(s) > 1e-5)) | (np.abs(margin) < 1e-2)
            if not (unclear & (s > -1e-2) & (s < 1)).any():
                assert seen[i, j] == (not blocked.any())
    assert 0.2 < seen.mean() < 0.95


def test_edge_on_is_not_seen():
    mesh, points, normals = square(), np.array([[0.1, 0.1, 0.0]]), np.array([[0, 0, 1.0]])
    eyes = np.array([[2.0, 0.3, 0.0], [2.0, 0.3, 0.01], [2.0, 0.3, 0.5], [2.0, 0.3, -0.5]])
    assert visible_points(mesh, points, normals, eyes).ravel().tolist() == [False, False, True, True]


def test_glass_hides_nothing():
    mesh = stack((0.1, (1, 1, 1, 0.3)), (-0.1, (0, 0, 1, 1)))
    eyes, up = np.array([[0, 0, 2.0], [0, 0, -2.0]]), np.array([[0, 0, 1.0]])
    assert visible_points(mesh, np.array([[0, 0, -0.1]]), up, eyes).ravel().tolist() == [True, True]
    all_glass = stack((0.1, (1, 1, 1, 0.3)), (-0.1, (0, 0, 1, 0.3)))
    assert visible_points(all_glass, np.array([[0, 0, 0.1]]), up, eyes).ravel().tolist() == [True, True]
    assert visible_points(mesh, np.array([[0, 0, 0.1]]), up, eyes).ravel().tolist() == [True, False]

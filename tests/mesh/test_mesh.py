"""Gaussians to a textured mesh: the field against brute force, surfaces against spheres, textures against renders."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
import torch
import trimesh

from gsgen_lib.data.glb import save_glb
from gsgen_lib.data.meshes import Material, Mesh, load_mesh
from gsgen_lib.data.raycast import first_hits, render_mesh
from gsgen_lib.mesh import (
    EmptyField,
    bake_texture,
    density_field,
    drop_small_pieces,
    extract_mesh,
    grid_points,
    render_texture,
    texel_points,
    texture_rays,
    unwrap,
)
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def grid(resolution):
    return torch.stack(torch.meshgrid(*[grid_points(resolution)] * 3, indexing="ij"), -1)


def sphere_field(resolution=48, radius=0.3):
    return 2 - grid(resolution).norm(dim=-1) / radius


@pytest.fixture(scope="module")
def ball():
    return unwrap(*extract_mesh(sphere_field(), max_faces=2000))


# ---- field ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [5, 16])
def test_blocked_field_equals_brute_force_in_double_precision(block):
    g = Gaussians.random(60, scale=0.05, generator=gen())
    g = Gaussians(g.means, g.quats, g.scales * torch.rand(60, 3, generator=gen(1)), g.opacities, g.colors)
    p = grid(20).reshape(-1, 3).double()
    wanted = torch.zeros(len(p), dtype=torch.float64)
    for mean, cov, opacity in zip(g.means.double(), g.to(torch.float64).covariances(), g.opacities.double(), strict=True):
        d = p - mean
        if opacity > 0.005:
            wanted += opacity * torch.exp(-0.5 * (d @ torch.linalg.inv(cov) * d).sum(1))
    field = density_field(g, 20, block)
    torch.testing.assert_close(field.flatten().double(), wanted, atol=2e-5, rtol=2e-4)
    assert field.max() > 0.1  # there is something


def test_faint_gaussians_are_left_out():
    g = Gaussians(torch.zeros(1, 3), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.1), torch.tensor([0.004]),
                  torch.zeros(1, 3))
    assert density_field(g, 8).max() == 0


# ---- surface -------------------------------------------------------------------------------------------------------


def test_a_sphere_is_found_closed_and_facing_outwards():
    vertices, faces = extract_mesh(sphere_field())
    radius = np.linalg.norm(vertices, axis=1)
    assert abs(radius - 0.3).max() < 0.003
    shape = trimesh.Trimesh(vertices, faces)
    assert shape.is_watertight and shape.volume == pytest.approx(4 / 3 * np.pi * 0.027, rel=0.02)  # positive: outwards


def test_one_gaussian_gives_its_ellipsoid():
    """opacity exp(-d^2 / 2) = 0.5 at d = sqrt(2 log(opacity / 0.5)) standard deviations."""
    quat = torch.nn.functional.normalize(torch.tensor([[0.9, 0.2, -0.3, 0.1]]), dim=1)
    g = Gaussians(torch.tensor([[0.05, -0.1, 0.02]]), quat, torch.tensor([[0.2, 0.1, 0.15]]), torch.tensor([0.9]),
                  torch.zeros(1, 3))
    vertices, _ = extract_mesh(density_field(g, 64), level=0.5)
    d = torch.from_numpy(vertices) - g.means
    reach = (d @ torch.linalg.inv(g.covariances()[0]) * d).sum(1).sqrt()
    assert (reach - (2 * np.log(1.8)) ** 0.5).abs().max() < 0.05


def test_a_surface_at_the_border_of_the_grid_is_closed():
    vertices, faces = extract_mesh(torch.full((12, 12, 12), 2.0))
    assert trimesh.Trimesh(vertices, faces).is_watertight and np.abs(vertices).max() < 0.6


def test_specks_are_dropped_and_many_faces_simplified():
    field = sphere_field()
    centre = grid(48) - torch.tensor([0.45, 0.45, 0.45])
    speck = 2 - centre.norm(dim=-1) / 0.05
    both = torch.maximum(field, speck)
    whole, _ = extract_mesh(both, keep_share=0.0)
    cleaned, _ = extract_mesh(both)
    assert np.linalg.norm(whole, axis=1).max() > 0.6 > 0.35 > np.linalg.norm(cleaned, axis=1).max()
    vertices, faces = extract_mesh(field, max_faces=500)
    assert len(faces) <= 510 and abs(np.linalg.norm(vertices, axis=1) - 0.3).max() < 0.02
    assert trimesh.Trimesh(vertices, faces).volume > 0.1


def test_pieces_are_connected_components():
    v = np.arange(24.0).reshape(8, 3)
    f = np.array([[0, 1, 2], [1, 2, 3], [4, 5, 6]])
    vertices, faces = drop_small_pieces(v, f, 0.6)
    assert vertices.tolist() == v[:4].tolist() and faces.tolist() == [[0, 1, 2], [1, 2, 3]]


def test_an_empty_field_is_told_and_bad_shapes_are_named():
    with pytest.raises(EmptyField, match="largest density is 0.5, below the level 1"):
        extract_mesh(torch.full((8, 8, 8), 0.5))
    with pytest.raises(ValueError, match="field: got shape"):
        extract_mesh(torch.zeros(4, 5, 4))
    with pytest.raises(ValueError, match="resolution"):
        density_field(Gaussians.random(3, generator=gen()), 1)


# ---- texture -------------------------------------------------------------------------------------------------------


def test_charts_lie_apart_in_the_texture(ball):
    assert ball.uv.min() >= 0 and ball.uv.max() <= 1
    a, b, c = ball.uv.transpose(1, 0, 2)
    (ux, uy), (vx, vy) = (b - a).T, (c - a).T
    area = 0.5 * np.abs(ux * vy - uy * vx)
    texels, _, _ = texel_points(ball, 256)
    assert len(texels) / 256**2 == pytest.approx(area.sum(), rel=0.1)  # charts that overlapped would cover less


def test_texels_know_where_on_the_surface_they_are(ball):
    texels, points, normals = texel_points(ball, 128)
    assert abs(np.linalg.norm(points, axis=1) - 0.3).max() < 0.01
    facing = np.einsum("tx,tx->t", points / 0.3, normals)
    assert np.quantile(facing, 0.02) > 0.9 and facing.min() > 0.5
    # and rays agree: what a camera sees at a pixel has the texture coordinates of that point
    face, b = first_hits(ball, Cameras.orbit(1, width=32, height=32))
    hit = face[0] >= 0
    at = np.einsum("rc,rcx->rx", b[0][hit], ball.vertices[ball.faces[face[0][hit]]])
    uv = np.einsum("rc,rcx->rx", b[0][hit], ball.uv[face[0][hit]])
    row, column = np.clip((1 - uv[:, 1]) * 128, 0, 127).astype(int), np.clip(uv[:, 0] * 128, 0, 127).astype(int)
    table = np.full((128, 128, 3), np.nan)
    table[tuple(texels.T)] = points
    far = np.linalg.norm(table[row, column] - at, axis=1)
    assert np.nanmedian(far) < 0.01 and np.isnan(far).mean() < 0.1


def painted(ball, size=256):
    """The ball with a colour that is its position."""
    texels, points, _ = texel_points(ball, size)
    texture = np.full((size, size, 3), 0.5, np.float32)
    texture[tuple(texels.T)] = points / 0.8 + 0.5
    from scipy.ndimage import distance_transform_edt

    known = np.zeros((size, size), bool)
    known[tuple(texels.T)] = True
    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    return torch.from_numpy(texture[tuple(nearest)])


def test_rendering_a_texture_shows_it(ball):
    """Colour = position, so every pixel's colour is known in closed form: the ray meets a sphere."""
    cameras = Cameras.orbit(3, width=48, height=48)
    picture, alpha = render_texture(painted(ball), texture_rays(ball, cameras, 3), torch.tensor([1.0, 0.0, 0.0]))
    o, d = cameras.rays()
    half = (o * d).sum(-1, keepdim=True)
    root = half**2 - (o.square().sum(-1, keepdim=True) - 0.09)
    inside = (root[..., 0] > 0.02)
    at = o + (-half - root.clamp_min(0).sqrt()) * d
    assert (picture - (at / 0.8 + 0.5))[inside].abs().max() < 0.03 and alpha[inside].min() == 1
    assert (picture[root[..., 0] < -0.02] == torch.tensor([1.0, 0.0, 0.0])).all()


def test_gradient_reaches_the_texture_exactly(ball):
    cameras = Cameras.orbit(2, width=16, height=16)
    rays = texture_rays(ball, cameras, 2)
    texture = torch.rand(32, 32, 3, generator=gen(), dtype=torch.float64).requires_grad_()
    weight = torch.randn(2, 16, 16, 3, generator=gen(1), dtype=torch.float64)
    back = torch.zeros(3, dtype=torch.float64)
    (render_texture(texture, rays, back)[0] * weight).sum().backward()
    direction = torch.randn(texture.shape, generator=gen(2), dtype=torch.float64)
    step = [(render_texture(texture.detach() + h * direction, rays, back)[0] * weight).sum() for h in (1.0, -1.0)]
    assert (texture.grad * direction).sum().item() == pytest.approx((step[0] - step[1]).item() / 2, rel=1e-9)  # linear


def test_baking_gives_back_what_was_photographed(ball):
    cameras = Cameras.orbit(26, azimuth=[*(45.0 * i for i in range(8))] * 3 + [0.0, 0.0], width=96, height=96,
                            elevation=[0.0] * 8 + [45.0] * 8 + [-45.0] * 8 + [89.0, -89.0])
    truth = painted(ball)
    color, alpha = render_texture(truth, texture_rays(ball, cameras, 3), torch.zeros(3))  # on black: premultiplied
    pictures = torch.cat([color / alpha.clamp_min(1e-4), alpha], -1)
    baked = bake_texture(ball, pictures, cameras, 256)
    texels, _, _ = texel_points(ball, 256)
    error = (baked - truth)[tuple(texels.T)].abs().amax(-1)
    assert error.mean() < 0.02 and error.quantile(0.99) < 0.08
    wrong = bake_texture(ball, pictures.roll(1, 0), cameras, 256)  # control: pictures of other cameras
    assert (wrong - truth)[tuple(texels.T)].abs().amax(-1).mean() > 0.1
    with pytest.raises(ValueError, match="no view sees"):
        bake_texture(ball, pictures[:1], Cameras.look_at((0, 0, 0), (0, 0, 1), width=96, height=96), 64)


def test_half_transparent_rims_do_not_bleed_into_the_texture(ball):
    """The same pictures with half the alpha bake the same texture, and what shows through is not mixed in."""
    cameras = Cameras.orbit(4, width=64, height=64)
    color, alpha = render_texture(torch.full((64, 64, 3), 0.2), texture_rays(ball, cameras, 3), torch.zeros(3))
    rgba = torch.cat([torch.where(alpha > 0, color / alpha.clamp_min(1e-4), torch.ones(3)), 0.8 * alpha], -1)
    texels, _, _ = texel_points(ball, 64)
    baked = bake_texture(ball, rgba, cameras, 64)[tuple(texels.T)]
    assert (baked - 0.2).abs().max() < 0.02
    with pytest.raises(ValueError, match="images: got shape"):
        bake_texture(ball, rgba[..., :3], cameras, 64)


def test_the_wall_of_a_hollow_is_left_out():
    """A thick shell has two surfaces; the inner one is seen by nobody. Control: a second ball outside stays."""
    r = grid(40).norm(dim=-1)
    vertices, faces = extract_mesh(torch.where((r > 0.2) & (r < 0.35), 2.0, 0.0))
    assert np.linalg.norm(vertices, axis=1).min() > 0.3
    two = 2 - torch.minimum((grid(40) - 0.2).norm(dim=-1), (grid(40) + 0.2).norm(dim=-1)) / 0.15
    vertices, _ = extract_mesh(two)
    assert (vertices.sum(1) > 0.3).any() and (vertices.sum(1) < -0.3).any()


def test_a_closed_surface_stays_closed(ball):
    from gsgen_lib.systems.dreamgaussian_sample import Textured

    assert trimesh.Trimesh(ball.vertices, ball.faces, process=False).is_watertight
    assert trimesh.Trimesh(ball.vertices, ball.faces, process=False).volume > 0  # normals point outwards
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        Textured(ball, painted(ball)).save(f"{folder}/ball.glb")
        loaded = trimesh.load(f"{folder}/ball.glb", force="mesh")
    loaded.merge_vertices(merge_tex=True, merge_norm=True)
    assert loaded.is_watertight


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def glb(ball, tmp_path_factory):
    texture = (painted(ball).clamp(0, 1) * 255).round().byte().numpy()
    rgba = np.concatenate([texture, np.full((256, 256, 1), 255, np.uint8)], -1)
    mesh = Mesh(ball.vertices, ball.faces, ball.uv, materials=[Material(texture=rgba)])
    path = tmp_path_factory.mktemp("glb") / "ball.glb"
    save_glb(mesh, path)
    return path, mesh


def test_the_file_loads_with_its_texture(glb):
    path, mesh = glb
    scene = trimesh.load(path)
    (part,) = scene.geometry.values()
    assert part.visual.material.baseColorTexture.size == (256, 256)
    cameras = Cameras.orbit(2, width=64, height=64)
    assert np.abs(render_mesh(load_mesh(path), cameras).rgba - render_mesh(mesh, cameras).rgba).max() < 0.02


def test_the_khronos_validator_finds_no_error(glb, tmp_path):
    """Needs node and the npm package gltf-validator, found through NODE_PATH or installed here if npm can."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    script = ("const v = require('gltf-validator'), fs = require('fs');"
              "v.validateBytes(new Uint8Array(fs.readFileSync(process.argv[1])))"
              ".then(r => console.log(JSON.stringify(r.issues)));")
    command = ["node", "-e", script, str(glb[0])]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    if run.returncode and shutil.which("npm"):
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "gltf-validator"], cwd=tmp_path, capture_output=True, timeout=120)
        run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path,
                             env=os.environ | {"NODE_PATH": str(tmp_path / "node_modules")})
    if run.returncode:
        pytest.skip("the npm package gltf-validator is neither installed nor to be had")
    issues = json.loads(run.stdout)
    assert issues["numErrors"] == 0 and issues["numWarnings"] == 0, issues


@pytest.mark.parametrize("cap", [5000, 500, 100])
def test_simplifying_reaches_the_number_asked_for(cap):
    """One pass of the simplifier stops at some thousand faces here."""
    scene = Gaussians.random(300, generator=torch.Generator().manual_seed(0))
    faces = extract_mesh(density_field(scene, 48), 0.7, max_faces=cap)[1]
    assert cap / 2 < len(faces) <= cap


def test_numbers_that_are_not_finite_are_named():
    scene = Gaussians.random(5, generator=torch.Generator().manual_seed(0))
    scene.scales[0, 0] = float("nan")
    with pytest.raises(ValueError, match="gaussians: scales holds numbers that are not finite"):
        density_field(scene, 8)
    field = torch.ones(4, 4, 4)
    field[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="field: got 1 values that are not finite"):
        extract_mesh(field, 0.5)
    with pytest.raises(ValueError, match="max_faces, keep_share: got 0, 0.05"):
        extract_mesh(torch.ones(4, 4, 4), 0.5, max_faces=0)

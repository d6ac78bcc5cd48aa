"""Gaussians, Cameras and spherical harmonics against closed forms, scipy and brute force."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.special import sph_harm_y

from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians, quat_multiply, quat_to_rotmat, rotmat_to_quat
from gsgen_lib.scene.sh import eval_sh, num_sh_bases, rgb_to_sh, rotate_sh, sh_basis


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def random_rotation(seed=0):
    return torch.from_numpy(Rotation.random(random_state=seed).as_matrix()).float()


# ---- quaternions ---------------------------------------------------------------------------------------------------
def test_quaternions_equal_scipy():
    q = torch.randn(200, 4, generator=gen(), dtype=torch.float64)
    want = Rotation.from_quat(q.numpy()[:, [1, 2, 3, 0]]).as_matrix()
    torch.testing.assert_close(quat_to_rotmat(q), torch.from_numpy(want))
    p = torch.randn(200, 4, generator=gen(1), dtype=torch.float64)
    product = (Rotation.from_quat(q.numpy()[:, [1, 2, 3, 0]]) * Rotation.from_quat(p.numpy()[:, [1, 2, 3, 0]])).as_matrix()
    torch.testing.assert_close(quat_to_rotmat(quat_multiply(q, p)), torch.from_numpy(product))


def test_rotmat_to_quat_inverts_also_for_half_turns():
    half_turns = torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0.6, 0.8, 0], [1e-9, 0, 0.6, 0.8]])
    q = torch.cat([torch.nn.functional.normalize(torch.randn(100, 4, generator=gen()), dim=-1), half_turns]).double()
    R = quat_to_rotmat(q)
    torch.testing.assert_close(quat_to_rotmat(rotmat_to_quat(R)), R, atol=1e-12, rtol=0)


# ---- spherical harmonics ---------------------------------------------------------------------------------------------
def test_sh_basis_equals_scipy_real_harmonics():
    d = torch.nn.functional.normalize(torch.randn(50, 3, generator=gen(), dtype=torch.float64), dim=-1).numpy()
    theta, phi = np.arccos(d[:, 2]), np.arctan2(d[:, 1], d[:, 0])
    want = []
    for l in range(4):  # noqa: E741
        for m in range(-l, l + 1):
            Y = sph_harm_y(l, abs(m), theta, phi)  # includes the Condon-Shortley phase, as 3DGS does for odd m
            want.append(Y.real if m == 0 else math.sqrt(2) * (Y.real if m > 0 else Y.imag))
    torch.testing.assert_close(sh_basis(torch.from_numpy(d), 3), torch.from_numpy(np.stack(want, -1)))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_sh_basis_equals_gsplat(degree):
    impl = pytest.importorskip("gsplat.cuda._torch_impl")
    c = torch.randn(40, num_sh_bases(degree), 3, generator=gen())
    d = torch.randn(40, 3, generator=gen(1))
    want = (impl._spherical_harmonics(degree, d, c) + 0.5).clamp_min(0)
    torch.testing.assert_close(eval_sh(c, d), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_rotated_sh_is_the_rotated_function(degree):
    c = 0.3 * torch.randn(7, num_sh_bases(degree), 3, generator=gen())
    d = torch.nn.functional.normalize(torch.randn(7, 3, generator=gen(1)), dim=-1)
    R = random_rotation(3)
    torch.testing.assert_close(eval_sh(rotate_sh(c, R), d @ R.T), eval_sh(c, d), atol=1e-5, rtol=0)
    if degree:  # negative control: rotating the wrong way is another function
        assert (eval_sh(rotate_sh(c, R.T), d @ R.T) - eval_sh(c, d)).abs().max() > 1e-2


def test_eval_sh_clips_below_only_and_refuses_wrong_shapes():
    c = rgb_to_sh(torch.tensor([[-1.0, 0.3, 2.0]]))
    torch.testing.assert_close(eval_sh(c, torch.tensor([0.0, 1.0, 0.0])), torch.tensor([0.0, 0.3, 2.0]))
    with pytest.raises(ValueError, match="wanted 1, 4, 9 or 16"):
        eval_sh(torch.zeros(5, 3), torch.ones(3))
    with pytest.raises(ValueError, match="degree: got 4"):
        sh_basis(torch.ones(3), 4)


# ---- Gaussians ---------------------------------------------------------------------------------------------------------
def test_covariance_has_the_axes_and_lengths_it_was_given():
    g = Gaussians.random(20, generator=gen()).to(torch.float64)
    values, vectors = torch.linalg.eigh(g.covariances())
    torch.testing.assert_close(values.sqrt(), g.scales.sort(-1).values, rtol=1e-6, atol=1e-9)
    R = torch.from_numpy(Rotation.from_quat(g.quats.numpy()[:, [1, 2, 3, 0]]).as_matrix())
    for i in range(20):  # the eigenvector of the largest eigenvalue is the column of R with the largest scale
        assert abs(float(vectors[i, :, 2] @ R[i, :, g.scales[i].argmax()])) > 1 - 1e-9


def test_transform_moves_points_covariances_and_colours():
    g = Gaussians.random(10, sh_degree=3, generator=gen())
    R, t, s = random_rotation(1), torch.tensor([0.3, -0.2, 0.1]), 1.7
    moved = g.transform(R, t, s)
    torch.testing.assert_close(moved.means, s * (R @ g.means.T).T + t, atol=1e-6, rtol=0)
    torch.testing.assert_close(moved.covariances(), s * s * R @ g.covariances() @ R.T, atol=1e-7, rtol=1e-4)
    d = torch.nn.functional.normalize(torch.randn(10, 3, generator=gen(2)), dim=-1)
    torch.testing.assert_close(eval_sh(moved.colors, d @ R.T), eval_sh(g.colors, d), atol=1e-5, rtol=0)
    for bad, message in ((2 * torch.eye(3), "no rotation"), (torch.diag(torch.tensor([1.0, 1, -1])), "no rotation")):
        with pytest.raises(ValueError, match=message):
            g.transform(rotation=bad)
    with pytest.raises(ValueError, match="scale: got -1"):
        g.transform(scale=-1)


def test_batches_cat_select_index():
    batch = Gaussians.random(6, batch=(4,), generator=gen())
    assert batch.batch_shape == (4,) and batch[1].batch_shape == () and batch[1:3].batch_shape == (2,)
    torch.testing.assert_close(batch[2].means, batch.means[2])
    with pytest.raises(IndexError, match="batch dimensions"):
        batch[0, 1]
    with pytest.raises(IndexError, match="select"):
        batch[0][0]
    one = batch[0]
    both = Gaussians.cat([one, batch[1].select(torch.tensor([0, 5]))])
    assert both.num == 8 and torch.equal(both.means[7], batch[1].means[5])
    assert torch.equal(Gaussians.stack([batch[0], batch[1]]).quats, batch.quats[:2])
    with pytest.raises(ValueError, match="different kinds"):
        Gaussians.cat([one, Gaussians.random(2, sh_degree=1, generator=gen())])
    with pytest.raises(ValueError, match="empty list"):
        Gaussians.cat([])
    assert Gaussians.random(0).num == 0


@pytest.mark.parametrize("field,value,error,message", [
    ("means", torch.zeros(5, 2), ValueError, r"means: got shape \(5, 2\)"),
    ("quats", torch.zeros(5, 3), ValueError, r"quats: got shape \(5, 3\), wanted \(5, 4\)"),
    ("scales", torch.zeros(4, 3), ValueError, r"scales: got shape \(4, 3\)"),
    ("opacities", torch.zeros(5, 1), ValueError, r"opacities: got shape \(5, 1\), wanted \(5,\)"),
    ("colors", torch.zeros(5, 5, 3), ValueError, r"colors: got shape \(5, 5, 3\)"),
    ("colors", torch.zeros(5, 3, dtype=torch.int64), TypeError, "colors: got dtype torch.int64"),
    ("colors", torch.zeros(5, 3, dtype=torch.float64), ValueError, "colors: got torch.float64"),
    ("means", [[0.0, 0, 0]], TypeError, "means: got list"),
])
def test_wrong_fields_are_named(field, value, error, message):
    good = dict(means=torch.zeros(5, 3), quats=torch.ones(5, 4), scales=torch.ones(5, 3), opacities=torch.ones(5),
                colors=torch.ones(5, 3))
    Gaussians(**good)
    with pytest.raises(error, match=message):
        Gaussians(**{**good, field: value})


@pytest.mark.parametrize("field,value,message", [
    ("means", float("nan"), r"means: got 3 non-finite values"), ("scales", -0.1, "scales: got a minimum of -0.1"),
    ("opacities", 1.5, r"opacities: got values in"), ("quats", 0.0, "quats: got a quaternion of length 0"),
    ("colors", float("inf"), "colors: got 3 non-finite")])
def test_wrong_values_are_named(field, value, message):
    g = Gaussians.random(5, generator=gen())
    assert g.validate() is g
    getattr(g, field)[2] = value
    with pytest.raises(ValueError, match=message):
        g.validate()


# ---- Cameras -----------------------------------------------------------------------------------------------------------
def test_rays_go_through_the_pixels_that_points_project_to():
    cams = Cameras.orbit(3, elevation=[-30.0, 10.0, 80.0], fov=50.0, width=20, height=14)
    origins, directions = cams.rays()
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(3, 14, 20))
    points = origins + 2.3 * directions  # (V, H, W, 3)
    cam = torch.einsum("vij,vhwj->vhwi", cams.viewmats[:, :3, :3], points) + cams.viewmats[:, None, None, :3, 3]
    uv = torch.einsum("vij,vhwj->vhwi", cams.Ks, cam / cam[..., 2:])
    want = torch.stack(torch.meshgrid(torch.arange(20) + 0.5, torch.arange(14) + 0.5, indexing="xy"), -1)
    torch.testing.assert_close(uv[..., :2], want.expand(3, -1, -1, -1), atol=1e-3, rtol=0)


def test_plucker_is_the_same_for_every_point_of_the_line():
    cams = Cameras.orbit(2, width=5, height=5)
    o, d = cams.rays()
    torch.testing.assert_close(torch.cat([torch.linalg.cross(o + 0.7 * d, d), d], -1), cams.plucker(), atol=1e-6, rtol=0)


def test_orbit_conventions():
    cams = Cameras.orbit(4, radius=2.0, elevation=0.0)
    torch.testing.assert_close(cams.centers, torch.tensor([[0.0, 0, 2], [2, 0, 0], [0, 0, -2], [-2, 0, 0]]), atol=1e-6, rtol=0)
    see = lambda cam, p: (cam.viewmats[0] @ torch.tensor([*p, 1.0]))[:3]
    assert see(cams[0], (0.1, 0, 0))[0] > 0.09 and see(cams[0], (0, 0.1, 0))[1] < -0.09  # +x right, +y up in the image
    assert see(cams[1], (0, 0, 0.1))[0] < -0.09  # from +x the front (+z) lies to the left
    for e in (90.0, -90.0):  # at the poles: still a rotation, still looking at the origin
        cam = Cameras.orbit(3, elevation=e)
        R = cam.viewmats[:, :3, :3]
        torch.testing.assert_close(R @ R.transpose(1, 2), torch.eye(3).expand(3, 3, 3), atol=1e-6, rtol=0)
        torch.testing.assert_close(torch.linalg.det(R), torch.ones(3))
        torch.testing.assert_close(cam.viewmats[:, :3, 3], torch.tensor([[0.0, 0, 1.8]]).expand(3, 3), atol=1e-6, rtol=0)


def test_look_at_equals_orbit_and_fov_is_vertical():
    a = Cameras.orbit(5, elevation=25.0, fov=35.0, width=48, height=32)
    b = Cameras.look_at(a.centers, fov=35.0, width=48, height=32)
    torch.testing.assert_close(a.viewmats, b.viewmats, atol=1e-6, rtol=0)
    top = 1.8 * math.tan(math.radians(35 / 2))  # a point at the upper edge of the image plane through the origin
    cam = Cameras.orbit(1, elevation=0.0, fov=35.0, width=48, height=32)
    p = cam.Ks[0] @ (cam.viewmats[0] @ torch.tensor([0, top, 0, 1.0]))[:3]
    assert abs(float(p[1] / p[2])) < 1e-4
    with pytest.raises(ValueError, match="up: got"):
        Cameras.look_at((0.0, 2.0, 0.0))
    with pytest.raises(ValueError, match="eye: got"):
        Cameras.look_at((0.0, 0.0, 0.0))


def test_cameras_index_cat_stack_resize():
    cams = Cameras.orbit(6, width=8, height=4)
    assert len(cams[2]) == 1 and len(cams[[0, 5]]) == 2 and len(Cameras.cat([cams, cams[:2]])) == 8
    assert Cameras.stack([cams, cams]).batch_shape == (2,)
    assert torch.equal(Cameras.stack([cams, cams])[1:3].viewmats[1], cams.viewmats[1:3])
    big = cams.resize(16, 12)
    torch.testing.assert_close(big.Ks[0, :2], cams.Ks[0, :2] * torch.tensor([[2.0], [3.0]]))
    with pytest.raises(IndexError):
        cams[6]


@pytest.mark.parametrize("kwargs,message", [
    (dict(n=0), "n: got 0"), (dict(n=3, radius=-1), "radius: got -1"), (dict(n=3, fov=180), "fov: got 180"),
    (dict(n=3, elevation=95), "elevation: got 95"), (dict(n=3, width=0), "width: got 0"),
    (dict(n=3, elevation=[1.0, 2.0]), "elevation: got"), (dict(n=2, azimuth=[0.0, float("nan")]), "azimuth: got"),
    (dict(n=2, height=3.5), "height: got 3.5")])
def test_wrong_camera_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Cameras.orbit(**kwargs)


def test_cameras_check_shapes():
    with pytest.raises(ValueError, match=r"viewmats: got shape \(4, 4\)"):
        Cameras(torch.eye(4), torch.eye(3)[None], 8, 8)
    with pytest.raises(ValueError, match="Ks: got shape"):
        Cameras(torch.eye(4).expand(2, 4, 4), torch.eye(3)[None], 8, 8)
    with pytest.raises(TypeError, match="viewmats: got"):
        Cameras(np.eye(4)[None], torch.eye(3)[None], 8, 8)

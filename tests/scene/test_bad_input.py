"""Cameras and Gaussians: input that could slip through, other number types, and what each function promises."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians, quat_to_rotmat, rotmat_to_quat


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- Cameras -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kwargs,message", [
    (dict(eye=(0, 0, 2), up=(0, 0, 0)), "up: got the zero vector"), (dict(eye=(0, math.nan, 2)), "eye: got .* finite"),
    (dict(eye=(0, 0, 2), target=(math.inf, 0, 0)), "target: got .* finite"), (dict(eye=(0, 2)), r"eye: got shape \(2,\)"),
    (dict(eye=2.0), r"eye: got shape \(\)"), (dict(eye=(0, 0, 2), target=(0, 0)), r"target: got shape \(2,\)"),
    (dict(eye=(0, 0, 2), up=(0, math.nan, 0)), "up: got .* finite"),
    (dict(eye=torch.ones(2, 3), target=torch.zeros(3, 3)), r"target, up: got shapes \(3, 3\), \(3,\)")])
def test_look_at_names_what_is_wrong(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Cameras.look_at(**kwargs)


def test_default_dtype_does_not_matter():
    want = Cameras.orbit(3, azimuth=[0, 10, 20]), Cameras.orbit(5), Cameras.look_at((0.0, 1, 2))
    torch.set_default_dtype(torch.float64)
    try:
        got = Cameras.orbit(3, azimuth=[0, 10, 20]), Cameras.orbit(5), Cameras.look_at((0.0, 1, 2))
        got[0].resize(32, 32).validate().rays()
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(got, want, strict=True):
        assert a.viewmats.dtype == a.Ks.dtype == torch.float32
        torch.testing.assert_close(a.viewmats, b.viewmats, atol=1e-6, rtol=0)
        assert torch.equal(a.Ks, b.Ks)


def test_whole_numbers_of_numpy_and_torch():
    cams = Cameras.orbit(np.int64(4), width=np.int64(64), height=np.int32(48))
    assert type(cams.width) is int and (cams.width, cams.height) == (64, 48)
    assert torch.equal(cams[np.int64(2)].viewmats, cams.viewmats[2:3])
    assert torch.equal(cams[torch.tensor(2)].viewmats, cams.viewmats[2:3])
    for wrong in (True, 64.0, np.float64(64), "64", 0):
        with pytest.raises(ValueError, match="width: got"):
            Cameras.orbit(4, width=wrong)


def test_negative_indices_count_from_the_end():
    cams = Cameras.orbit(6)
    assert torch.equal(cams[-1].viewmats, cams.viewmats[5:]) and torch.equal(cams[-6].viewmats, cams.viewmats[:1])
    with pytest.raises(IndexError):
        cams[-7]


def test_stack_and_cat_keep_each_sets_intrinsics_and_refuse_other_sizes():
    wide, narrow = Cameras.orbit(3, fov=60.0), Cameras.orbit(3, fov=30.0)
    assert torch.equal(Cameras.stack([wide, narrow]).Ks, torch.stack([wide.Ks, narrow.Ks]))
    assert torch.equal(Cameras.cat([wide, narrow]).Ks, torch.cat([wide.Ks, narrow.Ks]))
    small = Cameras.orbit(3, width=32, height=32)
    for join in (Cameras.stack, Cameras.cat):
        with pytest.raises(ValueError, match="sets: got .*image sizes"):
            join([wide, small])
        with pytest.raises(ValueError, match="sets: got an empty list"):
            join([])
    with pytest.raises(ValueError, match="view counts"):
        Cameras.stack([wide, wide[:2]])


def test_intrinsics_and_extrinsics_are_of_one_kind():
    cams = Cameras.orbit(2)
    with pytest.raises(ValueError, match="Ks: got torch.float64 on cpu, wanted torch.float32"):
        Cameras(cams.viewmats, cams.Ks.double(), 64, 64)
    with pytest.raises(ValueError, match="Ks: got torch.float32 on meta"):
        Cameras(cams.viewmats, cams.Ks.to("meta"), 64, 64)


def changed(field, index, value):
    cams = Cameras.stack([Cameras.orbit(3)] * 2)
    getattr(cams, field)[index] = value
    return cams


@pytest.mark.parametrize("cams,message", [
    (changed("viewmats", (1, 2, 0, 0), 1.7), "viewmats: got a 3x3 part"), (changed("viewmats", (0, 0, 3, 2), 0.5), "last row"),
    (changed("viewmats", (0, 0, slice(0, 1)), -Cameras.orbit(3).viewmats[0, :1]), "viewmats: got a 3x3 part"),  # a mirror
    (changed("viewmats", (0, 1, 0, 3), math.nan), "viewmats: got 1 non-finite"),
    (changed("Ks", (1, 0, 0, 0), 0.0), "focal"), (changed("Ks", (0, 2, 1, 1), -9.0), "focal")])
def test_validate_names_wrong_numbers(cams, message):
    with pytest.raises(ValueError, match=message):
        cams.validate()


def test_validate_leaves_gradients_alone():
    cams = Cameras.orbit(2, elevation=[-90.0, 90.0])
    W = cams.viewmats.clone().requires_grad_()
    same = Cameras(W, cams.Ks, 64, 64).validate()
    same.centers.sum().backward()
    assert W.grad is not None and same.viewmats is W


# ---- Gaussians ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype,tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float64, 1e-9)])
def test_scenes_of_every_precision_turn(dtype, tolerance):
    R = torch.from_numpy(Rotation.random(random_state=4).as_matrix())
    g, t = Gaussians.random(20, sh_degree=2, generator=gen()).to(dtype), torch.tensor([0.1, 0.2, -0.3])
    moved, want = g.transform(R, t, 0.5), g.to(torch.float64).transform(R, t.double(), 0.5)
    assert moved.means.dtype == moved.quats.dtype == moved.colors.dtype == dtype
    for name in ("means", "scales", "colors"):
        got = getattr(moved, name).double()
        torch.testing.assert_close(got, getattr(want, name), atol=4 * tolerance, rtol=4 * tolerance)
    torch.testing.assert_close(quat_to_rotmat(moved.quats.double()), quat_to_rotmat(want.quats), atol=4 * tolerance, rtol=0)
    g.transform(R.to(dtype))  # a rotation that was itself rounded
    with pytest.raises(ValueError, match="no rotation"):
        g.transform((1.1 * R).to(dtype))


@pytest.mark.parametrize("kwargs,message", [
    (dict(translation=torch.tensor([0.0, math.nan, 0])), "translation: got .* finite"),
    (dict(translation=torch.tensor([math.inf, 0, 0])), "translation: got .* finite"),
    (dict(translation=torch.zeros(2)), "translation: got shapes"), (dict(rotation=torch.full((3, 3), math.nan)), "no rotation"),
    (dict(scale=math.inf), "scale: got inf"), (dict(scale=math.nan), "scale: got nan"), (dict(scale=0), "scale: got 0")])
def test_transform_names_what_is_wrong(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Gaussians.random(3).transform(**kwargs)


def test_quaternions_of_matrices_have_one_sign():
    q = torch.nn.functional.normalize(torch.randn(500, 4, generator=gen()), dim=-1)
    back = rotmat_to_quat(quat_to_rotmat(q))
    assert (q[:, 0] < 0).sum() > 100 and (back[:, 0] >= 0).all()
    torch.testing.assert_close(back, torch.where(q[:, :1] < 0, -q, q), atol=1e-5, rtol=0)


def test_random_balls_are_uniform_in_volume_and_take_their_arguments():
    g = Gaussians.random(20000, radius=2.0, scale=0.1, opacity=0.3, generator=gen())
    distance = g.means.norm(dim=-1) / 2
    for r in (0.3, 0.5, 0.8):  # the share within r of the radius is r cubed
        assert abs((distance < r).float().mean().item() - r**3) < 4 * math.sqrt(0.25 / 20000)
    assert distance.max() <= 1 + 1e-6
    assert abs(g.opacities.median().item() - 0.3) < 0.01 and abs(g.scales.median().item() - 0.1) < 0.002
    assert abs(Gaussians.random(20000, opacity=0.6, generator=gen()).opacities.median().item() - 0.6) < 0.01

"""Spherical harmonics: colour that depends on the viewing direction.

Problem. A surface may look different from different sides. 3D Gaussian splatting stores, per Gaussian and
colour channel, the K = (L+1)^2 coefficients c_lm of a function on the sphere of directions:

    colour(d) = max( sum_lm c_lm Y_lm(d) + 1/2, 0 )            coeffs = c, directions = d (unit vector)

Y_lm are the *real* spherical harmonics with the sign convention of the original 3DGS code and gsplat
(band 1 is -y, z, -x). With L = 0 the colour is constant: Y_00 = 1/(2 sqrt(pi)).

Rotating a scene by R rotates the functions: f'(d) = f(R^T d). Each band l maps to itself by a
(2l+1)x(2l+1) matrix D_l(R), found here by solving Y_l(d) D_l = Y_l(R^T d) on a few fixed directions.

Taught in notebook 01. Source: Kerbl et al. 2023 (3D Gaussian Splatting), sections 5 and 7.1; Sloan 2008 for the basis.
"""

import math

import torch
from torch import Tensor

SH_C0 = 0.28209479177387814  # Y_00 = 1 / (2 sqrt(pi))


def num_sh_bases(degree: int) -> int:
    """Number of coefficients K = (degree + 1)^2 of a degree 0..3 expansion.

    >>> [num_sh_bases(d) for d in range(4)]
    [1, 4, 9, 16]
    """
    if degree not in (0, 1, 2, 3):
        raise ValueError(f"degree: got {degree!r}, wanted 0, 1, 2 or 3")
    return (degree + 1) ** 2


def sh_degree(num_bases: int) -> int:
    """Degree L of an expansion with K = (L+1)^2 coefficients.

    >>> sh_degree(9)
    2
    """
    if num_bases not in (1, 4, 9, 16):
        raise ValueError(f"number of SH coefficients: got {num_bases}, wanted 1, 4, 9 or 16")
    return math.isqrt(num_bases) - 1


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """Real SH basis values at unit directions.

    directions: (..., 3) unit vectors; degree: 0..3. Returns (..., K) with K = (degree + 1)^2.

    >>> sh_basis(torch.tensor([0.0, 0.0, 1.0]), 1)
    tensor([0.2821, -0.0000, 0.4886, -0.0000])
    """
    num_sh_bases(degree)
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, SH_C0)]
    if degree >= 1:
        c1 = 0.4886025119029199  # sqrt(3 / (4 pi))
        basis += [-c1 * y, c1 * z, -c1 * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        c2 = 1.0925484305920792  # sqrt(15 / (4 pi))
        basis += [c2 * x * y, -c2 * y * z, 0.31539156525252005 * (2 * zz - xx - yy), -c2 * x * z,
                  0.5462742152960396 * (xx - yy)]
    if degree >= 3:
        basis += [-0.5900435899266435 * y * (3 * xx - yy), 2.890611442640554 * x * y * z,
                  -0.4570457994644658 * y * (4 * zz - xx - yy),
                  0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
                  -0.4570457994644658 * x * (4 * zz - xx - yy), 1.445305721320277 * z * (xx - yy),
                  -0.5900435899266435 * x * (xx - 3 * yy)]
    return torch.stack(basis, -1)


def eval_sh(coeffs: Tensor, directions: Tensor) -> Tensor:
    """Colour seen from a direction: max(sum_k coeffs_k Y_k(direction) + 1/2, 0).

    coeffs: (..., K, 3), K in {1, 4, 9, 16}; directions: (..., 3), pointing from the camera to the
    Gaussian, any length > 0 (normalised here). Returns colours (..., 3) >= 0, not clipped above.

    >>> eval_sh(rgb_to_sh(torch.tensor([0.2, 0.5, 1.0]))[None], torch.tensor([0.0, 0.0, 2.0]))
    tensor([0.2000, 0.5000, 1.0000])
    """
    if coeffs.ndim < 2 or coeffs.shape[-1] != 3:
        raise ValueError(f"coeffs: got shape {tuple(coeffs.shape)}, wanted (..., K, 3)")
    degree = sh_degree(coeffs.shape[-2])
    basis = sh_basis(torch.nn.functional.normalize(directions, dim=-1), degree)  # (..., K)
    return ((basis[..., None] * coeffs).sum(-2) + 0.5).clamp_min(0.0)


def rgb_to_sh(rgb: Tensor) -> Tensor:
    """Degree-0 coefficient that shows the colour `rgb` from everywhere: (rgb - 1/2) / Y_00. Any shape."""
    return (rgb - 0.5) / SH_C0


def rotate_sh(coeffs: Tensor, rotation: Tensor) -> Tensor:
    """Coefficients of the rotated colour function f'(d) = f(R^T d).

    coeffs: (..., K, 3); rotation: R (3, 3), orthonormal with determinant +1. Returns (..., K, 3).

    >>> c = torch.randn(5, 16, 3, generator=torch.Generator().manual_seed(0))
    >>> torch.allclose(rotate_sh(c, torch.eye(3)), c, atol=1e-5)
    True
    """
    degree = sh_degree(coeffs.shape[-2])
    # A Fibonacci spiral: 32 directions in general position, enough to pin down 16 unknowns.
    i = torch.arange(32, dtype=torch.float64)
    z, phi = 1 - (2 * i + 1) / 32, i * math.pi * (3 - math.sqrt(5))
    dirs = torch.stack([(1 - z * z).sqrt() * phi.cos(), (1 - z * z).sqrt() * phi.sin(), z], -1)
    R = rotation.detach().to("cpu", torch.float64)
    here, there = sh_basis(dirs, degree), sh_basis(dirs @ R, degree)  # rows: d and R^T d
    out = []
    for degree_l in range(degree + 1):
        band = slice(degree_l**2, (degree_l + 1) ** 2)
        D = torch.linalg.lstsq(here[:, band], there[:, band]).solution.to(coeffs)  # (2l+1, 2l+1)
        out.append(torch.einsum("ij,...jc->...ic", D, coeffs[..., band, :]))
    return torch.cat(out, -2)

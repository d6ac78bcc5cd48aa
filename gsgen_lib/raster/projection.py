"""Projection: from 3D Gaussians to 2D Gaussians on the image (EWA splatting), in PyTorch.

A Gaussian with mean mu and covariance Sigma is seen by a camera W (world to camera) with focal lengths f:

    t = R_w mu + t_w                         camera-space mean, depth z = t_z
    mean2d = (fx x/z + cx, fy y/z + cy)
    cov2d  = J R_w Sigma R_w^T J^T + eps2d I          J = d mean2d / d t, the Jacobian of the projection at t
    conic  = cov2d^-1 = (A, B, C)            sigma(p) = (A dx^2 + C dy^2) / 2 + B dx dy,   (dx, dy) = p - mean2d

The linearisation J is poor far outside the image, so x/z and y/z are clamped there, in J only. A Gaussian is
culled when it cannot change any pixel by 1/255 (or lies outside near..far).

Taught in notebook 01. Source: Zwicker et al. 2002 (EWA splatting, TVCG), eq. 29, 31; Kerbl et al. 2023, eq. 5;
gsplat (Ye et al. 2024), whose clamps and culling tests are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians

# The numbers of the contract, in one place for every engine.
NEAR, FAR = 0.01, 1e10
EPS2D = 0.3  # pixels^2: a splat is never thinner than about half a pixel
ALPHA_MIN = 1.0 / 255.0  # weaker contributions are skipped
MAX_ALPHA = 0.999  # gsplat 1.5.3; its release 1.6.0 has 0.99
T_MIN = 1e-4  # a pixel is finished when its transmittance would fall to this
MAX_EXTENT = 3.33  # standard deviations; exp(-3.33^2 / 2) = 1 / 255.8


@dataclass
class Projected:
    """2D Gaussians of V views: means2d (..., V, N, 2), conics (..., V, N, 3) = (A, B, C), depths, opacities
    (..., V, N), radii (..., V, N, 2) int32 (0 = culled)."""

    means2d: Tensor
    conics: Tensor
    depths: Tensor
    opacities: Tensor
    radii: Tensor


def project(gaussians: Gaussians, cameras: Cameras, antialiased: bool = False, near: float = NEAR, far: float = FAR,
            eps2d: float = EPS2D, radius_clip: float = 0.0) -> Projected:
    """Project N Gaussians into V views. Both arguments of the same batch shape.

    >>> one = Gaussians.random(1, generator=torch.Generator().manual_seed(0))
    >>> project(one, Cameras.orbit(3)).conics.shape
    torch.Size([3, 1, 3])
    """
    W, H = cameras.width, cameras.height
    dtype = gaussians.means.dtype
    if gaussians.means.device.type != "mps":  # which has no float64
        # a needle's determinant a c - b^2 loses its digits in float32, and gradients divide by it
        gaussians, cameras = gaussians.to(torch.float64), cameras.to(torch.float64)
    R, t = cameras.viewmats[..., :, :3, :3], cameras.viewmats[..., :, :3, 3]  # (..., V, 3, 3), (..., V, 3)
    mean_c = torch.einsum("...vij,...nj->...vni", R, gaussians.means) + t[..., :, None, :]  # (..., V, N, 3)
    depths = mean_c[..., 2]
    in_front = (depths >= near) & (depths <= far)
    # Culled Gaussians get a harmless depth, so that no inf or NaN enters the graph (0 * inf is NaN).
    z = torch.where(in_front, depths, torch.ones_like(depths))
    x, y = mean_c[..., 0], mean_c[..., 1]
    fx, fy = cameras.Ks[..., :, 0, 0, None], cameras.Ks[..., :, 1, 1, None]  # (..., V, 1)
    cx, cy = cameras.Ks[..., :, 0, 2, None], cameras.Ks[..., :, 1, 2, None]
    means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)  # (..., V, N, 2)

    margin_x, margin_y = 0.3 * 0.5 * W / fx, 0.3 * 0.5 * H / fy
    x_over_z = torch.clamp(x / z, min=-(cx / fx + margin_x), max=(W - cx) / fx + margin_x)
    y_over_z = torch.clamp(y / z, min=-(cy / fy + margin_y), max=(H - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    J = torch.stack([torch.stack([fx / z, zero, -fx * x_over_z / z], -1),
                     torch.stack([zero, fy / z, -fy * y_over_z / z], -1)], -2)  # (..., V, N, 2, 3)
    JR = J @ R[..., :, None, :, :]
    cov = JR @ gaussians.covariances()[..., None, :, :, :] @ JR.transpose(-1, -2)  # (..., V, N, 2, 2)

    a, b, c = cov[..., 0, 0] + eps2d, cov[..., 0, 1], cov[..., 1, 1] + eps2d
    det = a * c - b * b
    keep = in_front & (det > 0)
    det = torch.where(keep, det, torch.ones_like(det))
    conics = torch.stack([c, -b, a], -1) / det[..., None]

    opacities = gaussians.opacities[..., None, :].expand_as(z)
    if antialiased:  # the blur by eps2d spreads the splat; keep its total mass
        det_orig = cov[..., 0, 0] * cov[..., 1, 1] - cov[..., 0, 1] ** 2
        ratio = torch.where(det_orig > 0, det_orig / det, torch.ones_like(det))
        opacities = opacities * torch.where(det_orig > 0, ratio.sqrt(), torch.zeros_like(det))

    with torch.no_grad():
        keep = keep & (opacities >= ALPHA_MIN)
        extent = (2 * torch.log(255 * opacities.clamp_min(ALPHA_MIN))).sqrt().clamp_max(MAX_EXTENT)
        big = torch.tensor(2.0**30, dtype=z.dtype, device=z.device)  # clamp before the cast to integers
        rx = torch.minimum((extent * a.clamp_min(0).sqrt()).ceil(), big)
        ry = torch.minimum((extent * c.clamp_min(0).sqrt()).ceil(), big)
        u, v = means2d.unbind(-1)
        keep = keep & ((rx > radius_clip) | (ry > radius_clip))
        keep = keep & (u + rx > 0) & (u - rx < W) & (v + ry > 0) & (v - ry < H)
        radii = torch.stack([rx, ry], -1).nan_to_num(0).to(torch.int32) * keep[..., None]
    return Projected(means2d.to(dtype), conics.to(dtype), depths.to(dtype), opacities.to(dtype), radii)

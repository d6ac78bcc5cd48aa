"""Pinhole cameras, several per scene, in the conventions of OpenCV and gsplat.

    X_cam = W X_world          viewmats = W (4x4, world to camera; x right, y down, z forward)
    u = fx X/Z + cx            Ks = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], in pixels
    v = fy Y/Z + cy            no skew; the centre of the top left pixel lies at (u, v) = (0.5, 0.5)

The world is right-handed with y up, and an object's front faces +z. `Cameras.orbit` puts cameras on a circle
around the object: azimuth 0 looks at the front, growing azimuth moves the camera towards +x.

Leading dimensions of the tensors are scenes of a batch, as in `Gaussians`; V counts the views of one scene.

Taught in notebooks 00 and 01. Source: Hartley & Zisserman 2004, chapter 6.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cameras:
    """V pinhole cameras of one image size, or a batch of such sets.

    viewmats: (..., V, 4, 4) world to camera; Ks: (..., V, 3, 3); width, height: pixels, >= 1.
    ValueError / TypeError name the field that is wrong. Shapes, dtypes and devices are checked when cameras are
    made; numbers by `validate()`, since on a GPU reading them waits for all work before.

    >>> cams = Cameras.orbit(8, elevation=20.0, width=64, height=64)
    >>> len(cams), cams.centers.shape, cams[2:4].viewmats.shape
    (8, torch.Size([8, 3]), torch.Size([2, 4, 4]))
    """

    viewmats: Tensor
    Ks: Tensor
    width: int
    height: int

    def __post_init__(self):
        for name, tail in (("viewmats", (4, 4)), ("Ks", (3, 3))):
            value = getattr(self, name)
            if not isinstance(value, Tensor) or not value.is_floating_point():
                got = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"{name}: got {got}, wanted a floating-point torch.Tensor")
            if value.ndim < 3 or tuple(value.shape[-2:]) != tail:
                raise ValueError(f"{name}: got shape {tuple(value.shape)}, wanted (..., V, {tail[0]}, {tail[1]})")
        if self.viewmats.shape[:-2] != self.Ks.shape[:-2]:
            raise ValueError(f"Ks: got shape {tuple(self.Ks.shape)}, wanted {tuple(self.viewmats.shape[:-2]) + (3, 3)} "
                             f"to match viewmats {tuple(self.viewmats.shape)}")
        if self.Ks.device != self.viewmats.device or self.Ks.dtype != self.viewmats.dtype:
            raise ValueError(f"Ks: got {self.Ks.dtype} on {self.Ks.device}, wanted {self.viewmats.dtype} on "
                             f"{self.viewmats.device} like viewmats")
        for name in ("width", "height"):
            object.__setattr__(self, name, _count(name, getattr(self, name)))  # frozen: np.int64(64) becomes 64

    # ---- making ------------------------------------------------------------------------------------------
    @staticmethod
    def look_at(eye, target=(0.0, 0.0, 0.0), up=(0.0, 1.0, 0.0), fov: float = 40.0, width: int = 64,
                height: int = 64) -> Cameras:
        """Cameras at `eye` looking at `target`.

        eye: (..., V, 3) or (3,) for one camera; target, up: broadcastable to eye; fov: vertical field of view in
        degrees, in (0, 180). Raises ValueError for other shapes, numbers that are not finite, when eye equals target,
        and when up is zero or parallel to the view direction.

        >>> Cameras.look_at((0.0, 0.0, 2.0)).viewmats[0, 2, 3]  # the origin lies 2 in front of the camera
        tensor(2.)
        """
        eye = torch.as_tensor(eye, dtype=torch.float32)
        target = torch.as_tensor(target, dtype=torch.float32, device=eye.device)
        up = torch.as_tensor(up, dtype=torch.float32, device=eye.device)
        for name, x in (("eye", eye), ("target", target), ("up", up)):
            if x.ndim < 1 or x.shape[-1] != 3:
                raise ValueError(f"{name}: got shape {tuple(x.shape)}, wanted (..., 3)")
            if not torch.isfinite(x).all():
                raise ValueError(f"{name}: got {x.tolist()}, wanted finite numbers")
        eye = eye[None] if eye.ndim == 1 else eye
        try:
            target, up = target.expand_as(eye), up.expand_as(eye)
        except RuntimeError:
            raise ValueError(f"target, up: got shapes {tuple(target.shape)}, {tuple(up.shape)}, wanted ones that "
                             f"broadcast to eye, {tuple(eye.shape)}") from None
        forward = target - eye
        if (forward.norm(dim=-1) < 1e-8).any():
            raise ValueError("eye: got a camera at its target, wanted a distance > 0")
        if (up.norm(dim=-1) == 0).any():
            raise ValueError("up: got the zero vector, wanted a direction")
        right = torch.linalg.cross(forward, up)
        if (right.norm(dim=-1) < 1e-6 * forward.norm(dim=-1) * up.norm(dim=-1)).any():
            raise ValueError("up: got a direction parallel to the view, wanted one that differs")
        return _from_frame(eye, right, forward, fov, width, height)

    @staticmethod
    def orbit(n: int, radius: float = 1.8, elevation=15.0, fov: float = 40.0, width: int = 64, height: int = 64,
              azimuth=None) -> Cameras:
        """n cameras evenly around the y axis, looking at the origin; azimuth 0 sees the front (+z).

        radius: distance, > 0; elevation: degrees above the horizon in [-90, 90], one number or n of them; fov:
        vertical field of view in degrees; azimuth: n angles in degrees instead of 0, 360/n, 2*360/n, ...
        The poles are fine: "right" is always the direction of growing azimuth.

        >>> Cameras.orbit(4, radius=2.0, elevation=0.0).centers.round(decimals=4).abs()
        tensor([[0., 0., 2.],
                [2., 0., 0.],
                [0., 0., 2.],
                [2., 0., 0.]])
        """
        n = _count("n", n)
        if not 0 < radius < math.inf:
            raise ValueError(f"radius: got {radius}, wanted a positive number")
        az = torch.arange(n) * (360.0 / n) if azimuth is None else torch.as_tensor(azimuth, dtype=torch.float32)
        el = torch.as_tensor(elevation, dtype=torch.float32)
        for name, x in (("azimuth", az), ("elevation", el)):
            if x.ndim > 1 or (x.ndim == 1 and len(x) != n) or not torch.isfinite(x).all():
                raise ValueError(f"{name}: got {x.tolist()}, wanted one finite number or {n} of them")
        if (el.abs() > 90).any():
            raise ValueError(f"elevation: got {el.tolist()}, wanted degrees in [-90, 90]")
        a, e = torch.deg2rad(az.expand(n).double()), torch.deg2rad(el.expand(n).double())
        eye = radius * torch.stack([e.cos() * a.sin(), e.sin(), e.cos() * a.cos()], -1)
        right = torch.stack([a.cos(), torch.zeros_like(a), -a.sin()], -1)  # d eye / d azimuth
        return _from_frame(eye, right, -eye, fov, width, height)

    # ---- what it is ----------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return self.viewmats.shape[-3]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading dimensions before the views: () for the cameras of one scene."""
        return tuple(self.viewmats.shape[:-3])

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.viewmats.device

    def validate(self) -> Cameras:
        """Check every number; returns self, so that it can be chained. Gradients are left alone.

        Raises ValueError naming the field: non-finite numbers, a viewmat that is no rigid motion (rotation R with
        R R^T = I to 1e-3 and determinant +1, last row 0 0 0 1), a focal length <= 0.

        >>> len(Cameras.orbit(3).validate())
        3
        """
        W, K = self.viewmats.detach().double(), self.Ks.detach().double()
        for name, x in (("viewmats", W), ("Ks", K)):
            if not torch.isfinite(x).all():
                raise ValueError(f"{name}: got {int((~torch.isfinite(x)).sum())} non-finite values, wanted finite numbers")
        R, last = W[..., :3, :3], torch.tensor([0.0, 0.0, 0.0, 1.0]).to(W)
        off = (R @ R.transpose(-1, -2) - torch.eye(3).to(W)).abs().amax((-1, -2))
        if (off > 1e-3).any() or (torch.linalg.det(R) < 0).any():
            raise ValueError("viewmats: got a 3x3 part that is no rotation, wanted R R^T = I with determinant +1")
        if ((W[..., 3, :] - last).abs() > 1e-3).any():
            raise ValueError("viewmats: got a last row other than 0 0 0 1, wanted world-to-camera matrices")
        if (K[..., 0, 0] <= 0).any() or (K[..., 1, 1] <= 0).any():
            raise ValueError("Ks: got a focal length fx or fy <= 0, wanted pixels > 0")
        return self

    @property
    def centers(self) -> Tensor:
        """Camera positions in the world, (..., V, 3): c = -R^T t."""
        R, t = self.viewmats[..., :3, :3], self.viewmats[..., :3, 3]
        return -(R.transpose(-1, -2) @ t[..., None])[..., 0]

    def through_pixels(self) -> Tensor:
        """Through each pixel centre, in the camera's frame: K^-1 (u, v, 1), (..., V, H, W, 3). Its z is 1, so that times a depth
        along the optical axis it is the point there.

        >>> Cameras.orbit(1, width=3, height=3).through_pixels()[0, 1, 1]
        tensor([0., 0., 1.])
        """
        opts = dict(device=self.device, dtype=self.viewmats.dtype)
        u = torch.arange(self.width, **opts) + 0.5
        v = torch.arange(self.height, **opts) + 0.5
        K = self.Ks[..., None, None, :, :]  # (..., V, 1, 1, 3, 3)
        y = (v[:, None] - K[..., 1, 2]) / K[..., 1, 1]  # (..., V, H, 1)
        x = (u[None, :] - K[..., 0, 2] - K[..., 0, 1] * y) / K[..., 0, 0]  # (..., V, H, W)
        return torch.stack([x, y.expand_as(x), torch.ones_like(x)], -1)

    def rays(self) -> tuple[Tensor, Tensor]:
        """Through each pixel centre: origins and unit directions in the world, both (..., V, H, W, 3).

        >>> origins, directions = Cameras.orbit(2, width=6, height=4).rays()
        >>> directions.shape
        torch.Size([2, 4, 6, 3])
        """
        d = torch.einsum("...ji,...hwj->...hwi", self.viewmats[..., :3, :3], self.through_pixels())  # R^T d
        d = torch.nn.functional.normalize(d, dim=-1)
        return self.centers[..., None, None, :].expand_as(d), d

    def plucker(self) -> Tensor:
        """Plücker coordinates (o x d, d) of every pixel's ray, (..., V, H, W, 6): the line, whatever point o on it.

        >>> Cameras.orbit(3, width=8, height=8).plucker().shape
        torch.Size([3, 8, 8, 6])
        """
        o, d = self.rays()
        return torch.cat([torch.linalg.cross(o, d), d], -1)

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Where points (..., P, 3) of the world appear: pixels (..., V, P, 2), x then y, and depths along the optical axis
        (..., V, P). Behind a camera, where the depth is not positive, the pixels mean nothing.

        >>> pixels, depths = Cameras.orbit(2, radius=2.0, width=8, height=8).project(torch.zeros(1, 3))
        >>> pixels[:, 0].tolist(), depths[:, 0].tolist()
        ([[4.0, 4.0], [4.0, 4.0]], [2.0, 2.0])
        """
        R, t = self.viewmats[..., :3, :3], self.viewmats[..., :3, 3]
        at = torch.einsum("...vij,...pj->...vpi", R, points) + t[..., None, :]
        uvw = torch.einsum("...vij,...vpj->...vpi", self.Ks, at)
        return uvw[..., :2] / uvw[..., 2:].clamp_min(1e-6), at[..., 2]

    # ---- moving ----------------------------------------------------------------------------------------------
    def to(self, *args, **kwargs) -> Cameras:
        """As `Tensor.to`."""
        return Cameras(self.viewmats.to(*args, **kwargs), self.Ks.to(*args, **kwargs), self.width, self.height)

    def __getitem__(self, index) -> Cameras:
        """Pick views: an int keeps a set of one; slices, lists and masks over V as usual."""
        if isinstance(index, Integral) or (isinstance(index, Tensor) and index.ndim == 0):
            index = operator.index(index)
            if not -len(self) <= index < len(self):
                raise IndexError(f"view {index} of {len(self)} views")
            index = [index]
        lead = (slice(None),) * len(self.batch_shape)
        return Cameras(self.viewmats[(*lead, index)], self.Ks[(*lead, index)], self.width, self.height)

    @staticmethod
    def cat(sets: list[Cameras]) -> Cameras:
        """The views of several camera sets in one; sizes must agree."""
        if not sets:
            raise ValueError("sets: got an empty list, wanted at least one Cameras")
        if len({(c.width, c.height) for c in sets}) > 1:
            raise ValueError(f"sets: got image sizes {sorted({(c.width, c.height) for c in sets})}, wanted one")
        return Cameras(torch.cat([c.viewmats for c in sets], -3), torch.cat([c.Ks for c in sets], -3),
                       sets[0].width, sets[0].height)

    @staticmethod
    def stack(sets: list[Cameras]) -> Cameras:
        """A batch (B, V) of B camera sets with equal V and image size."""
        if not sets:
            raise ValueError("sets: got an empty list, wanted at least one Cameras")
        if len({(len(c), c.width, c.height) for c in sets}) > 1:
            raise ValueError("sets: got different view counts or image sizes, wanted one")
        return Cameras(torch.stack([c.viewmats for c in sets]), torch.stack([c.Ks for c in sets]),
                       sets[0].width, sets[0].height)

    def resize(self, width: int, height: int) -> Cameras:
        """The same views with another pixel grid: fx, cx scale with the width, fy, cy with the height."""
        s = torch.tensor([width / self.width, height / self.height, 1.0]).to(self.Ks)
        return Cameras(self.viewmats, self.Ks * s[:, None], width, height)


def _count(name: str, value) -> int:
    """A whole number >= 1, also from numpy, as int."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}: got {value!r}, wanted an int >= 1")
    return int(value)


def _from_frame(eye: Tensor, right: Tensor, forward: Tensor, fov: float, width: int, height: int) -> Cameras:
    """Cameras at `eye` (..., V, 3) from (unnormalised) right and forward directions, as float32."""
    if not 0 < fov < 180:
        raise ValueError(f"fov: got {fov}, wanted degrees in (0, 180)")
    width, height = _count("width", width), _count("height", height)
    normalize = torch.nn.functional.normalize
    z = normalize(forward.double(), dim=-1)
    x = normalize(right.double(), dim=-1)
    y = torch.linalg.cross(z, x)  # down
    R = torch.stack([x, y, z], -2)  # rows are the camera axes in the world, (..., V, 3, 3)
    W = torch.zeros(*R.shape[:-2], 4, 4, dtype=torch.float64, device=eye.device)
    W[..., :3, :3] = R
    W[..., :3, 3] = -(R @ eye.double()[..., None])[..., 0]
    W[..., 3, 3] = 1
    f = 0.5 * height / math.tan(math.radians(fov) / 2)
    K = torch.tensor([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]], dtype=torch.float32,
                     device=eye.device)
    return Cameras(W.float(), K.expand(*R.shape[:-2], 3, 3).clone(), width, height)

"""A scene: N anisotropic 3D Gaussians, in activated form.

Each Gaussian i is a soft ellipsoid exp(-1/2 (x - mu)^T Sigma^-1 (x - mu)) with a colour and an opacity:

    Sigma = (R S)(R S)^T          R = rotation of the unit quaternion quats[i] = (w, x, y, z)
    mu    = means[i]              S = diag(scales[i])      (standard deviations, world units)

"Activated" means that the numbers are what the renderer uses: scales are positive lengths, opacities lie in
[0, 1], colours are RGB (or spherical-harmonic coefficients). Whoever predicts or optimises a scene owns the
raw parameters (log-scales, logits) behind them. Leading dimensions are scenes of a batch.

Taught in notebooks 00 and 01. Source: Kerbl et al. 2023, section 4, eq. 6.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from gsgen_lib.scene.sh import rotate_sh, sh_degree


def quat_to_rotmat(quats: Tensor) -> Tensor:
    """Rotation matrices of quaternions (w, x, y, z), normalised here. (..., 4) -> (..., 3, 3).

    >>> quat_to_rotmat(torch.tensor([2.0, 0.0, 0.0, 0.0]))
    tensor([[1., 0., 0.],
            [0., 1., 0.],
            [0., 0., 1.]])
    """
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    return torch.stack([
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ], -1).reshape(*quats.shape[:-1], 3, 3)  # (..., 9) -> (..., 3, 3)


def rotmat_to_quat(rotation: Tensor) -> Tensor:
    """Unit quaternions (w, x, y, z) with w >= 0 of rotation matrices. (..., 3, 3) -> (..., 4).

    The four columns of `candidates` are the quaternion scaled by each of its entries in turn; the one with
    the largest entry is the numerically safe choice (Shepperd 1978).

    >>> rotmat_to_quat(torch.eye(3))
    tensor([1., 0., 0., 0.])
    """
    r = rotation
    a, b, c = r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]
    diag = torch.stack([1 + a + b + c, 1 + a - b - c, 1 - a + b - c, 1 - a - b + c], -1)  # 4 (w², x², y², z²)
    wx, wy, wz = r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]
    xy, xz, yz = r[..., 0, 1] + r[..., 1, 0], r[..., 0, 2] + r[..., 2, 0], r[..., 1, 2] + r[..., 2, 1]
    candidates = torch.stack([
        torch.stack([diag[..., 0], wx, wy, wz], -1), torch.stack([wx, diag[..., 1], xy, xz], -1),
        torch.stack([wy, xy, diag[..., 2], yz], -1), torch.stack([wz, xz, yz, diag[..., 3]], -1)], -2)
    best = diag.argmax(-1)[..., None, None].expand(*diag.shape[:-1], 1, 4)
    q = torch.nn.functional.normalize(candidates.gather(-2, best).squeeze(-2), dim=-1)
    return torch.where(q[..., :1] < 0, -q, q)


def quat_multiply(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product: the rotation b first, then a. (..., 4) x (..., 4) -> (..., 4), all (w, x, y, z)."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack([
        aw * bw - ax * bx - ay * by - az * bz, aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx, aw * bz + ax * by - ay * bx + az * bw], -1)


@dataclass(frozen=True)
class Gaussians:
    """N Gaussians, or a batch of scenes of N Gaussians each.

    means: (..., N, 3) world positions; quats: (..., N, 4) wxyz, any length > 0; scales: (..., N, 3) > 0, standard
    deviations in world units; opacities: (..., N) in [0, 1]; colors: (..., N, 3) RGB, or (..., N, K, 3)
    spherical-harmonic coefficients with K = 1, 4, 9 or 16 (see `gsgen_lib.scene.sh`).

    Shapes, dtypes and devices are checked when a scene is made: ValueError / TypeError name the field.
    Values are checked by `validate()`, since that reads every number.

    >>> g = Gaussians.random(100, generator=torch.Generator().manual_seed(0))
    >>> g.num, g.batch_shape, g.sh_degree is None
    (100, (), True)
    >>> Gaussians.cat([g, g]).num
    200
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            if not isinstance(value, Tensor):
                raise TypeError(f"{f.name}: got {type(value).__name__}, wanted a torch.Tensor")
            if not value.is_floating_point():
                raise TypeError(f"{f.name}: got dtype {value.dtype}, wanted a floating-point tensor")
            if value.device != self.means.device or value.dtype != self.means.dtype:
                raise ValueError(f"{f.name}: got {value.dtype} on {value.device}, wanted {self.means.dtype} on "
                                 f"{self.means.device} like means")
        if self.means.ndim < 2 or self.means.shape[-1] != 3:
            raise ValueError(f"means: got shape {tuple(self.means.shape)}, wanted (..., N, 3)")
        lead = tuple(self.means.shape[:-1])  # (..., N)
        for name, tail in (("quats", (4,)), ("scales", (3,)), ("opacities", ())):
            shape = tuple(getattr(self, name).shape)
            if shape != lead + tail:
                raise ValueError(f"{name}: got shape {shape}, wanted {lead + tail} to match means {lead + (3,)}")
        shape = tuple(self.colors.shape)
        is_rgb = shape == lead + (3,)
        is_sh = len(shape) == len(lead) + 2 and shape[:-2] == lead and shape[-2] in (1, 4, 9, 16) and shape[-1] == 3
        if not (is_rgb or is_sh):
            raise ValueError(f"colors: got shape {shape}, wanted {lead + (3,)} (RGB) or {lead + ('K', 3)} with "
                             "K = 1, 4, 9 or 16 (spherical harmonics)")

    # ---- what it is -------------------------------------------------------------------------------------
    @property
    def num(self) -> int:
        """N, Gaussians per scene."""
        return self.means.shape[-2]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading dimensions: () for one scene, (B,) for a batch."""
        return tuple(self.means.shape[:-2])

    @property
    def sh_degree(self) -> int | None:
        """Degree of the spherical harmonics in `colors`, or None where `colors` is plain RGB."""
        return None if self.colors.ndim == self.means.ndim else sh_degree(self.colors.shape[-2])

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.means.device

    def covariances(self) -> Tensor:
        """Sigma = (R S)(R S)^T, shape (..., N, 3, 3). Kerbl et al. 2023, eq. 6."""
        RS = quat_to_rotmat(self.quats) * self.scales[..., None, :]
        return RS @ RS.transpose(-1, -2)

    def validate(self) -> Gaussians:
        """Check every value; returns self, so that it can be chained.

        Raises ValueError naming the field: non-finite numbers, scales < 0, opacities outside [0, 1], zero quats.
        """
        for f in fields(self):
            value = getattr(self, f.name)
            bad = ~torch.isfinite(value)
            if bad.any():
                raise ValueError(f"{f.name}: got {int(bad.sum())} non-finite values (first at index "
                                 f"{tuple(bad.nonzero()[0].tolist())}), wanted finite numbers")
        if (self.scales < 0).any():
            raise ValueError(f"scales: got a minimum of {self.scales.min().item():.4g}, wanted >= 0")
        if ((self.opacities < 0) | (self.opacities > 1)).any():
            raise ValueError(f"opacities: got values in [{self.opacities.min().item():.4g}, "
                             f"{self.opacities.max().item():.4g}], wanted [0, 1]")
        if (self.quats.norm(dim=-1) == 0).any():
            raise ValueError("quats: got a quaternion of length 0, wanted length > 0")
        return self

    # ---- making and moving ------------------------------------------------------------------------------
    def map(self, fn) -> Gaussians:
        """The same scene with `fn` applied to each tensor."""
        return Gaussians(*(fn(getattr(self, f.name)) for f in fields(self)))

    def to(self, *args, **kwargs) -> Gaussians:
        """As `Tensor.to`: another device or floating dtype."""
        return self.map(lambda x: x.to(*args, **kwargs))

    def detach(self) -> Gaussians:
        """Without autograd history."""
        return self.map(Tensor.detach)

    def requires_grad_(self) -> Gaussians:
        """Ask autograd for gradients with respect to every tensor (in place)."""
        return self.map(lambda x: x.requires_grad_())

    def __getitem__(self, index) -> Gaussians:
        """Pick scenes of a batch: `batch[0]`, `batch[2:5]`. To pick Gaussians within a scene use `select`."""
        if not self.batch_shape:
            raise IndexError("this is one scene without batch dimensions; use select(...) to pick Gaussians")
        try:  # on the batch dimensions alone, so that an index never reaches into N
            torch.empty(()).expand(self.batch_shape)[index]
        except IndexError as error:
            raise IndexError(f"index {index!r}: {error}; only the batch dimensions {self.batch_shape} can be indexed") from None
        return self.map(lambda x: x[index])

    def select(self, index: Tensor) -> Gaussians:
        """Pick Gaussians of one scene: a boolean mask (N,), an index tensor (M,) or a slice."""
        if self.batch_shape:
            raise ValueError(f"select: got a batch {self.batch_shape}, wanted one scene without batch dimensions")
        return self.map(lambda x: x[index])

    @staticmethod
    def cat(scenes: list[Gaussians]) -> Gaussians:
        """All Gaussians of several scenes in one. Colours must be of one kind (RGB, or the same SH degree)."""
        if not scenes:
            raise ValueError("scenes: got an empty list, wanted at least one Gaussians")
        kinds = {s.sh_degree for s in scenes}
        if len(kinds) > 1:
            raise ValueError(f"scenes: got colors of different kinds (SH degree {sorted(map(str, kinds))}), wanted one")
        batches = {s.batch_shape for s in scenes}
        if len(batches) > 1:
            raise ValueError(f"scenes: got batch shapes {sorted(batches)}, wanted one")
        d = len(scenes[0].batch_shape)  # the Gaussian axis
        return Gaussians(*(torch.cat([getattr(s, f.name) for s in scenes], d) for f in fields(Gaussians)))

    @staticmethod
    def stack(scenes: list[Gaussians]) -> Gaussians:
        """A batch of scenes with equal N: (N, .) -> (B, N, .)."""
        if not scenes:
            raise ValueError("scenes: got an empty list, wanted at least one Gaussians")
        if len({s.colors.shape for s in scenes}) > 1:
            raise ValueError(f"scenes: got color shapes {sorted({tuple(s.colors.shape) for s in scenes})}, wanted one")
        return Gaussians(*(torch.stack([getattr(s, f.name) for s in scenes]) for f in fields(Gaussians)))

    def transform(self, rotation: Tensor | None = None, translation: Tensor | None = None,
                  scale: float = 1.0) -> Gaussians:
        """Move the scene: x -> scale * R x + t. Quaternions and spherical harmonics turn with it.

        rotation: (3, 3) orthonormal with determinant +1; translation: (3,); scale: > 0.
        Raises ValueError when `rotation` is no rotation, `translation` not finite or `scale` not positive.

        >>> g = Gaussians.random(3, generator=torch.Generator().manual_seed(0))
        >>> moved = g.transform(translation=torch.tensor([1.0, 0.0, 0.0]))
        >>> torch.allclose(moved.means - g.means, torch.tensor([1.0, 0.0, 0.0]))
        True
        """
        R = torch.eye(3) if rotation is None else torch.as_tensor(rotation)
        t = torch.zeros(3) if translation is None else torch.as_tensor(translation)
        if R.shape != (3, 3) or t.shape != (3,):
            raise ValueError(f"rotation, translation: got shapes {tuple(R.shape)}, {tuple(t.shape)}, wanted (3, 3), (3,)")
        # Checked as it came: rounded to a half-precision scene's numbers, a true rotation would look like none.
        slack = max(1e-4, 4 * torch.finfo(R.dtype).eps) if R.is_floating_point() else 1e-4
        R = R.to(self.device, torch.float64)
        if not torch.allclose(R @ R.T, torch.eye(3).to(R), atol=slack) or torch.det(R) < 0:
            raise ValueError("rotation: got a matrix that is no rotation, wanted R R^T = I with determinant +1")
        if not torch.isfinite(t).all():
            raise ValueError(f"translation: got {t.tolist()}, wanted finite numbers")
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale: got {scale}, wanted a positive number")
        q = rotmat_to_quat(R).to(self.quats).expand_as(self.quats)
        colors = self.colors if self.sh_degree in (None, 0) else rotate_sh(self.colors, R)
        means = scale * self.means @ R.T.to(self.means) + t.to(self.means)
        return replace(self, means=means, quats=quat_multiply(q, self.quats),
                       scales=self.scales * scale, colors=colors)

    @staticmethod
    def random(n: int, radius: float = 0.5, scale: float = 0.03, opacity: float = 0.7, sh_degree: int | None = None,
               batch: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Gaussians:
        """A ball of n random Gaussians: uniform positions in a ball, random rotations, colours and sizes.

        radius: of the ball; scale: mean standard deviation; opacity: mean opacity; sh_degree: None for RGB;
        batch: leading dimensions. On the device of `generator` (CPU without one).
        """
        if n < 0:
            raise ValueError(f"n: got {n}, wanted >= 0")
        device = generator.device if generator is not None else torch.device("cpu")
        kw = dict(generator=generator, device=device)
        direction = torch.nn.functional.normalize(torch.randn(*batch, n, 3, **kw), dim=-1)
        means = radius * direction * torch.rand(*batch, n, 1, **kw) ** (1 / 3)  # uniform in volume
        quats = torch.randn(*batch, n, 4, **kw)
        scales = scale * torch.exp(0.5 * torch.randn(*batch, n, 3, **kw))
        opacities = (opacity + 0.2 * torch.randn(*batch, n, **kw)).clamp(0.02, 0.98)
        rgb = torch.rand(*batch, n, 3, **kw)
        if sh_degree is None:
            return Gaussians(means, quats, scales, opacities, rgb)
        from gsgen_lib.scene.sh import num_sh_bases, rgb_to_sh
        rest = 0.2 * torch.randn(*batch, n, num_sh_bases(sh_degree) - 1, 3, **kw)
        return Gaussians(means, quats, scales, opacities, torch.cat([rgb_to_sh(rgb)[..., None, :], rest], -2))

"""rasterize(): Gaussians + cameras -> images. One contract, three engines.

    pixel = sum_i T_i alpha_i c_i + T_end background        T_i = prod_{j<i} (1 - alpha_j)
    alpha_i = min(MAX_ALPHA, opacity_i exp(-sigma_i(pixel)))

over the Gaussians sorted by depth. The engines agree in value and in gradient (tests/raster):

    reference   pure PyTorch, the textbook of notebook 01; any device, float32 or float64
    numba       compiled loops over pixels, with hand-written derivatives; the default on the CPU
    gsplat      the CUDA kernels of the gsplat library; the default on CUDA

This file checks arguments, brings batches to one shape, and adds what is common to all engines: the background,
spherical harmonics, expected depth.

Source: Kerbl et al. 2023, section 4 and 6; Ye et al. 2024 (gsplat), whose conventions and defaults are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gsgen_lib.raster.projection import EPS2D, FAR, NEAR
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.scene.sh import eval_sh

ENGINES = ("reference", "numba", "gsplat")


@dataclass
class RenderInfo:
    """What densification wants to know about one call of `rasterize`.

    engine: which one ran; radii: (..., V, N, 2) int32, half the size in pixels of each Gaussian's bounding box, 0 where
    it was culled; grad_norm2d: (..., V, N), the norm of dL/d(2D mean) in 1/pixels of the latest backward pass,
    None before it; contribution: (..., V, N, 2), L1 and L2 against the `target` with each Gaussian less the same without it,
    summed over pixels and channels (`raster.contribution`), None where there is no target, and before the backward pass.
    """

    engine: str
    radii: Tensor
    grad_norm2d: Tensor | None = None
    contribution: Tensor | None = None

    @property
    def visible(self) -> Tensor:
        """(..., V, N) bool: not culled by any test (depth, size, opacity, image border)."""
        return (self.radii > 0).all(-1)


@dataclass
class Render:
    """The images of one call: rgb (..., V, H, W, 3), alpha and depth (..., V, H, W, 1), and `info`."""

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    info: RenderInfo


def rasterize(gaussians: Gaussians, cameras: Cameras, background=None, engine: str = "auto", *,
              antialiased: bool = False, depth_mode: str = "ED", near: float = NEAR, far: float = FAR,
              eps2d: float = EPS2D, radius_clip: float = 0.0, check: bool = True, target: Tensor | None = None) -> Render:
    """Render every camera's view of the scene, differentiably.

    gaussians, cameras: of the same batch shape, or one of them without batch (shared by all scenes).
    background: None (black), three numbers, or a tensor that broadcasts to (..., V, 3). For a batch of scenes say which
    is meant: (B, 1, 3) for each scene, (1, V, 3) for each view.
    engine: "auto" takes gsplat on CUDA and numba on the CPU; "reference", "numba" or "gsplat" insist on one.
    antialiased: lower the opacity of splats smaller than a pixel (gsplat's "antialiased" mode).
    depth_mode: "ED" expected depth sum(w z) / max(alpha, 1e-10), or "D" the plain sum(w z); z along the optical axis.
    near, far: Gaussians with camera depth outside [near, far] are culled; near > 0.
    eps2d: added to the diagonal of the 2D covariance, pixels squared; radius_clip: cull splats with both radii
    at or below it, pixels.
    check: refuse non-finite numbers and opacities outside [0, 1] in gaussians, cameras and background. On CUDA
    this waits for the GPU. Without it non-finite numbers give black or non-finite pixels, but never a crash.
    target: pictures (..., V, H, W, 3) to which the backward pass (of any loss) compares the renders with and without each
    Gaussian, see `info.contribution`; no gradient reaches it.

    Gradients reach means, quats, scales, opacities, colors, background and viewmats; not Ks, which must have no skew.
    (gsplat inverts viewmats as a 4x4 matrix to find the camera centre for SH: there the gradient of viewmats agrees with
    the other engines along rigid motions only.) `info.grad_norm2d` is
    filled in by the backward pass.

    Raises ValueError or TypeError naming the argument; RuntimeError when the engine asked for cannot run here.

    >>> g = Gaussians.random(50, generator=torch.Generator().manual_seed(0))
    >>> out = rasterize(g, Cameras.orbit(2, width=32, height=24), background=(1.0, 1.0, 1.0))
    >>> out.rgb.shape, out.alpha.shape, out.info.engine
    (torch.Size([2, 24, 32, 3]), torch.Size([2, 24, 32, 1]), 'numba')
    """
    if not isinstance(gaussians, Gaussians) or not isinstance(cameras, Cameras):
        raise TypeError(f"gaussians, cameras: got {type(gaussians).__name__}, {type(cameras).__name__}, "
                        "wanted Gaussians, Cameras")
    if depth_mode not in ("D", "ED"):
        raise ValueError(f"depth_mode: got {depth_mode!r}, wanted 'D' or 'ED'")
    for name, value, ok in (("near", near, 0 < near < far), ("eps2d", eps2d, 0 <= eps2d < float("inf")),
                            ("radius_clip", radius_clip, radius_clip >= 0)):
        if not ok:
            raise ValueError(f"{name}: got {value} (far = {far}), wanted near in (0, far), eps2d and radius_clip >= 0")
    if gaussians.device != cameras.device:
        raise ValueError(f"cameras: got device {cameras.device}, wanted {gaussians.device} like the gaussians")

    if gaussians.means.dtype in (torch.float16, torch.bfloat16):  # networks under autocast
        gaussians = gaussians.to(torch.float32)
    cameras = cameras.to(gaussians.means.dtype)
    cameras = Cameras(cameras.viewmats, cameras.Ks.detach(), cameras.width, cameras.height)
    batch = _common_batch(gaussians.batch_shape, cameras.batch_shape)
    background = _as_background(background, gaussians.means, batch + (len(cameras), 3))
    if target is not None:
        wanted = (*batch, len(cameras), cameras.height, cameras.width, 3)
        if not isinstance(target, Tensor) or target.shape != wanted or not bool(target.isfinite().all()):
            raise ValueError(f"target: got {tuple(getattr(target, 'shape', ()))}, wanted {wanted}, finite numbers")
    if check:
        _check_values(gaussians, cameras, background)
    engine = choose_engine(engine, gaussians.means)
    g, cams = _flatten(gaussians, cameras, batch)  # (B, N, ...), (B, V, ...)

    if g.sh_degree is None:
        colors = g.colors[:, None]  # (B, 1, N, 3), shared by the views
    elif engine == "gsplat" and target is None:
        colors = g.colors  # it has a kernel of its own for spherical harmonics
    else:
        directions = g.means[:, None] - cams.centers[:, :, None]  # (B, V, N, 3)
        colors = eval_sh(g.colors[:, None], directions)  # (B, V, N, 3)

    if engine == "numba":
        from gsgen_lib.raster.numba_engine import render
    elif engine == "gsplat":
        from gsgen_lib.raster.gsplat_engine import render
    else:
        from gsgen_lib.raster.reference import render
    aim, behind = (None if x is None or target is None else x.detach().to(g.means).reshape(-1, *x.shape[len(batch):])
                   for x in (target, background))
    rgb, alpha, depth, info = render(g, cams, colors, aim, behind, antialiased=antialiased, near=near, far=far, eps2d=eps2d,
                                     radius_clip=radius_clip)

    def unflatten(x):  # (B, V, ...) -> (..., V, ...)
        return x.reshape(*batch, *x.shape[1:])

    info.radii = unflatten(info.radii)
    info.contribution = None if info.contribution is None else unflatten(info.contribution)
    rgb, alpha, depth = unflatten(rgb), unflatten(alpha), unflatten(depth)
    if background is not None:
        rgb = rgb + (1.0 - alpha) * background[..., None, None, :]
    if depth_mode == "ED":
        depth = depth / alpha.clamp_min(1e-10)
    return Render(rgb, alpha, depth, info)


def choose_engine(engine: str, like: Tensor) -> str:
    """The engine that "auto" means for tensors like `like`; any other name is checked and returned.

    CUDA: gsplat, or the reference with a warning that says why gsplat cannot run. CPU: numba for float32, the
    reference for float64.

    >>> choose_engine("auto", torch.zeros(1)), choose_engine("auto", torch.zeros(1, dtype=torch.float64))
    ('numba', 'reference')
    """
    if engine == "auto":
        if like.device.type == "cuda":
            from gsgen_lib.raster.gsplat_engine import why_not_gsplat
            reason = why_not_gsplat()
            if reason is None:
                return "gsplat"
            import warnings
            warnings.warn(f"rasterize: gsplat cannot run here ({reason}); using the slower PyTorch reference on "
                          "the GPU instead", stacklevel=3)
            return "reference"
        return "numba" if like.device.type == "cpu" and like.dtype == torch.float32 else "reference"
    if engine not in ENGINES:
        raise ValueError(f"engine: got {engine!r}, wanted 'auto', {', '.join(map(repr, ENGINES))}")
    if engine == "numba" and (like.device.type != "cpu" or like.dtype != torch.float32):
        raise ValueError(f"engine: 'numba' wants float32 tensors on the CPU, got {like.dtype} on {like.device}")
    if engine == "gsplat":
        from gsgen_lib.raster.gsplat_engine import why_not_gsplat
        if like.device.type != "cuda" or like.dtype != torch.float32:
            raise ValueError(f"engine: 'gsplat' wants float32 tensors on CUDA, got {like.dtype} on {like.device}")
        if (reason := why_not_gsplat()) is not None:
            raise RuntimeError(f"engine: 'gsplat' cannot run here: {reason}. engine='auto' falls back by itself")
    return engine


def _common_batch(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    if a and b and a != b:
        raise ValueError(f"cameras: got batch shape {b}, wanted {a} like the gaussians (or none)")
    return a or b


def _as_background(background, like: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    if background is None:
        return None
    background = torch.as_tensor(background).to(like)
    if len(shape) > 2 and background.ndim == 2 and len(background) > 1:
        raise ValueError(f"background: got shape {tuple(background.shape)} for a batch of scenes, wanted (B, 1, 3) for each "
                         "scene or (1, V, 3) for each view")
    try:
        return background.expand(shape)
    except RuntimeError:
        raise ValueError(f"background: got shape {tuple(background.shape)}, wanted one that broadcasts to {shape}") from None


def _check_values(g: Gaussians, cams: Cameras, background: Tensor | None) -> None:
    tensors = {"means": g.means, "quats": g.quats, "scales": g.scales, "opacities": g.opacities, "colors": g.colors,
               "viewmats": cams.viewmats, "Ks": cams.Ks}
    if background is not None:
        tensors["background"] = background
    # A sum is finite only if all its terms are (and may overflow even so): one cheap pass, and the search by name
    # only when it says that something may be wrong.
    if bool((cams.Ks[..., 0, 1] != 0).any()):
        raise ValueError(f"Ks: got skew {cams.Ks[..., 0, 1].abs().max().item():.3g}, wanted 0: rectify the photos first")
    sums = torch.stack([x.detach().sum() for x in tensors.values()])
    low, high = torch.aminmax(g.opacities.detach()) if g.opacities.numel() else (sums.new_zeros(()),) * 2
    if bool(torch.isfinite(sums).all() & (low >= 0) & (high <= 1)):
        return
    for name, x in tensors.items():
        if not torch.isfinite(x).all():
            raise ValueError(f"{name}: got {int((~torch.isfinite(x)).sum())} non-finite values of {x.numel()}, "
                             "wanted finite numbers")
    if not (low >= 0 and high <= 1):
        raise ValueError(f"opacities: got values in [{low.item():.4g}, {high.item():.4g}], wanted [0, 1]")


def _flatten(g: Gaussians, cams: Cameras, batch: tuple[int, ...]) -> tuple[Gaussians, Cameras]:
    """Give both the full batch shape, then make it one dimension B."""
    count = 1
    for size in batch:
        count *= size
    lead_g, lead_c = len(g.batch_shape), len(cams.batch_shape)
    g = g.map(lambda x: x.expand(*batch, *x.shape[lead_g:]).reshape(count, *x.shape[lead_g:]))
    viewmats, Ks = (x.expand(*batch, *x.shape[lead_c:]).reshape(count, *x.shape[lead_c:])
                    for x in (cams.viewmats, cams.Ks))
    return g, Cameras(viewmats, Ks, cams.width, cams.height)

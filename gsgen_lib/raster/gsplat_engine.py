"""The gsplat engine: the same contract on CUDA, through the kernels of the gsplat library (Apache-2.0).

gsplat is imported only here and only when it is wanted. Its PyPI release compiles its CUDA kernels with nvcc at the
first use, which takes minutes once per machine. `why_not_gsplat` says in words why it cannot run, so that
`rasterize(engine="auto")` can fall back and tell the user.

Source: Ye et al. 2024, gsplat: an open-source library for Gaussian splatting.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from gsgen_lib.raster.api import RenderInfo
from gsgen_lib.raster.contribution import contributions_of_pairs
from gsgen_lib.raster.reference import alpha_at
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians


@functools.lru_cache(maxsize=1)
def why_not_gsplat() -> str | None:
    """None where gsplat works; otherwise the reason as a sentence fragment. Tried once per process.

    The first call on a machine with CUDA may compile gsplat's kernels (minutes), then renders one Gaussian.
    """
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    try:
        import gsplat
    except Exception as error:  # a broken install must not break the fallback
        return f"gsplat cannot be imported ({type(error).__name__}: {error}); try: pip install gsplat"
    try:
        one = torch.ones(1, 3, device="cuda")
        viewmats = torch.eye(4, device="cuda")[None]
        viewmats[0, 2, 3] = 3.0
        Ks = torch.tensor([[[8.0, 0, 4], [0, 8, 4], [0, 0, 1]]], device="cuda")
        image, _, _ = gsplat.rasterization(0 * one, torch.tensor([[1.0, 0, 0, 0]], device="cuda"), 0.5 * one, one[:, 0],
                                           one, viewmats, Ks, 8, 8)
    except Exception as error:
        return (f"gsplat {getattr(gsplat, '__version__', '')} fails on a test splat with torch {torch.__version__} "
                f"({type(error).__name__}: {str(error)[:200]}); its kernels need nvcc to compile")
    return None if bool(image.isfinite().all() & (image.max() > 0.5)) else "gsplat renders a test splat wrongly"


def render(g: Gaussians, cams: Cameras, colors: Tensor, target: Tensor | None = None, background: Tensor | None = None, *,
           antialiased: bool, near: float, far: float, eps2d: float,
           radius_clip: float) -> tuple[Tensor, Tensor, Tensor, RenderInfo]:
    """As `reference.render`, for CUDA tensors. colors: RGB (B, 1 or V, N, 3), or, without a target, SH (B, N, K, 3) of g
    unchanged."""
    import gsplat

    sh_degree = g.sh_degree if target is None else None
    if sh_degree is None:
        colors = colors.expand(-1, len(cams), -1, -1)  # (B, V, N, 3)
    image, alpha, meta = gsplat.rasterization(
        g.means, g.quats, g.scales, g.opacities, colors, cams.viewmats, cams.Ks, cams.width, cams.height,
        near_plane=near, far_plane=far, radius_clip=radius_clip, eps2d=eps2d, sh_degree=sh_degree, packed=False,
        render_mode="RGB+D", rasterize_mode="antialiased" if antialiased else "classic")
    radii = meta["radii"]
    if radii.ndim == alpha.ndim - 2:  # releases before 1.5 gave one radius per splat
        radii = radii[..., None].expand(*radii.shape, 2)
    info = RenderInfo("gsplat", radii)
    if meta["means2d"].requires_grad:
        def keep_norm(grad: Tensor | None) -> None:
            if grad is not None:
                info.grad_norm2d = grad.detach().norm(dim=-1).reshape(info.radii.shape[:-1])
        meta["means2d"].register_hook(keep_norm)
    if target is not None:
        info.contribution = _contributions(meta, colors, target, background)
    return image[..., :3], alpha, image[..., 3:4], info


@torch.no_grad()
def _contributions(meta: dict, colors: Tensor, target: Tensor, background: Tensor | None) -> Tensor:
    """(B, V, N, 2), from gsplat's lists of the Gaussians that each pixel composited."""
    from gsplat.cuda._wrapper import rasterize_to_indices_in_range

    B, V, H, W = target.shape[:4]
    size, ends = meta["tile_size"], meta["isect_offsets"].flatten()
    ends = torch.cat([ends, ends.new_tensor([len(meta["flatten_ids"])])])
    rounds = -(-int(ends.diff().max()) // size**2)  # in each a tile takes as many Gaussians as it has pixels
    ids, pixels, images = rasterize_to_indices_in_range(
        0, rounds, target.new_ones(B, V, H, W), meta["means2d"], meta["conics"], meta["opacities"], W, H, size,
        meta["isect_offsets"], meta["flatten_ids"])
    N = meta["means2d"].shape[-2]
    at = images * N + ids  # (K,) into B V N
    means, conics, opacities = (meta[k].reshape(-1, *meta[k].shape[3:])[at] for k in ("means2d", "conics", "opacities"))
    dx, dy = pixels % W + 0.5 - means[:, 0], pixels // W + 0.5 - means[:, 1]
    alpha = alpha_at(dx, dy, conics, opacities)
    behind = target.new_zeros(B, V, 3) if background is None else background
    behind = behind[:, :, None, None].expand(target.shape).reshape(-1, 3)
    found = contributions_of_pairs(images * (H * W) + pixels, at, alpha, colors.expand(B, V, N, 3).reshape(-1, 3), behind,
                                   target.reshape(-1, 3))
    return found.reshape(B, V, N, 2).to(target)

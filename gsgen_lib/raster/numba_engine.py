"""The numba engine, part 3: the order of work, and the bridge to autograd.

    project (numba_projection)  ->  sort by depth, bin into tiles, composite (numba_composite)
    composite backward          ->  project backward

Each step is a list of chunks that a few threads work off (numba_setup). Everything is float32 on the CPU; sizes:
B scenes, V views, M = B V images, N Gaussians, K (Gaussian, tile) entries.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gsgen_lib.raster import numba_composite as nc
from gsgen_lib.raster import numba_projection as npj
from gsgen_lib.raster.api import RenderInfo
from gsgen_lib.raster.numba_setup import chunks, run_parallel
from gsgen_lib.raster.projection import ALPHA_MIN, MAX_ALPHA, MAX_EXTENT, T_MIN
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians

# Pieces per step: enough to keep threads busy, large enough to be worth a call (about 10 microseconds). They do not
# depend on the number of threads, so neither do sums.
CHUNKS, LEAST_GAUSSIANS, LEAST_TILES = 16, 256, 8
LIMITS = tuple(np.float32(x) for x in (ALPHA_MIN, MAX_ALPHA, T_MIN))


def render(g: Gaussians, cams: Cameras, colors: Tensor, target: Tensor | None, background: Tensor | None,
           **options) -> tuple[Tensor, Tensor, Tensor, RenderInfo]:
    """As `reference.render`: g (B, N, ...), cams (B, V, ...), colors (B, 1 or V, N, 3) -> rgb, alpha, depth, info."""
    info = RenderInfo("numba", None)
    rgb, alpha, depth = _Rasterize.apply(g.means, g.quats, g.scales, g.opacities, colors, cams.viewmats, cams.Ks,
                                         cams.width, cams.height, target, background, options, info)
    return rgb, alpha, depth, info


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, quats, scales, opacities, colors, viewmats, Ks, width, height, target, background, options, info):
        inputs = [_numpy(x) for x in (means, quats, scales, opacities, colors, viewmats, Ks)]
        state = _forward(*inputs, width, height, **options)
        B, V = viewmats.shape[:2]
        N = means.shape[1]
        info.radii = torch.from_numpy(state["radii"]).reshape(B, V, N, 2)
        # Saved so that autograd notices when the caller changes an input in place, and frees all of it after backward.
        ctx.save_for_backward(means, quats, scales, opacities, colors, viewmats, Ks,
                              *(torch.from_numpy(x) for x in state.values()))
        ctx.names, ctx.options, ctx.info = tuple(state), options, info
        ctx.target, ctx.background = (None if x is None else _numpy(x).reshape(B * V, *x.shape[2:])
                                      for x in (target, background))
        ctx.set_materialize_grads(False)
        rgb = torch.from_numpy(state["rgb"]).reshape(B, V, height, width, 3)
        alpha = torch.from_numpy(state["alpha"]).reshape(B, V, height, width, 1)
        depth = torch.from_numpy(state["depth"]).reshape(B, V, height, width, 1)
        # Copies, because the caller may change the images in place and the backward pass needs them as they are.
        return rgb.clone(), alpha.clone(), depth.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, v_rgb, v_alpha, v_depth):
        saved = [_numpy(x) for x in ctx.saved_tensors]
        inputs, state = saved[:7], dict(zip(ctx.names, saved[7:], strict=True))
        grads = _backward(inputs, state, v_rgb, v_alpha, v_depth, ctx.target, ctx.background, ctx.options)
        *grads, grad_norm2d, contribution = [torch.from_numpy(x) for x in grads]
        ctx.info.grad_norm2d = grad_norm2d.reshape(ctx.info.radii.shape[:-1])
        if ctx.target is not None:
            ctx.info.contribution = contribution.reshape(ctx.info.radii.shape)
        return (*grads, None, None, None, None, None, None, None)


def _numpy(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().numpy())


def _forward(means, quats, scales, opacities, colors, viewmats, Ks, width, height, antialiased, near, far, eps2d,
             radius_clip) -> dict:
    """Render all images; returns them with everything that the backward pass needs."""
    B, N, V = means.shape[0], means.shape[1], viewmats.shape[1]
    M = B * V
    tiles_x, tiles_y = -(-width // nc.TILE_W), -(-height // nc.TILE_H)
    tiles = tiles_x * tiles_y

    attr = np.empty((B, V, N, npj.ATTR), np.float32)
    radii = np.empty((B, V, N, 2), np.int32)
    run_parallel(npj.project_forward, [
        (a, b, means, quats, scales, opacities, colors, viewmats, Ks, float(width), float(height), float(near), float(far),
         float(eps2d), float(radius_clip), ALPHA_MIN, MAX_EXTENT, antialiased, attr, radii)
        for a, b in chunks(B * N, CHUNKS, LEAST_GAUSSIANS)])
    attr, radii = attr.reshape(M, N, npj.ATTR), radii.reshape(M, N, 2)

    # Depth order of each image, then room for its (Gaussian, tile) entries: an upper bound from the bounding boxes.
    order = np.empty((M, N), np.int32)
    visible = np.zeros(M, np.int64)

    def sort(m: int) -> None:
        visible[m] = nc.sort_by_depth(attr[m], order[m])

    run_parallel(sort, [(m,) for m in range(M)])
    first = np.zeros((M, N), np.int64)
    count = np.zeros((M, N), np.int32)
    total = 0
    for m in range(M):
        total = nc.count_candidates(attr[m], radii[m], order[m], visible[m], tiles_x, tiles_y, first[m], total)
    entry_tile, entry_rows, entry_gaussian = (np.empty(total, np.int32) for _ in range(3))

    # Counting sort into tiles, in parallel: histogram per chunk, running offsets, scatter.
    pieces = [(m, a, b) for m in range(M) for a, b in chunks(int(visible[m]), max(1, CHUNKS // M), LEAST_GAUSSIANS)]
    histogram = np.zeros((len(pieces), tiles), np.int64)
    run_parallel(nc.bin_tiles, [
        (a, b, attr[m], radii[m], order[m], tiles_x, tiles_y, first[m], count[m], entry_tile, entry_rows, entry_gaussian,
         histogram[i], ALPHA_MIN) for i, (m, a, b) in enumerate(pieces)])
    tile_range, position = _tile_ranges(histogram, [m for m, _, _ in pieces], M)
    entries = np.empty(tile_range[-1], np.int64)
    run_parallel(nc.scatter_to_tiles, [
        (a, b, order[m], first[m], count[m], entry_tile, position[i], entries) for i, (m, a, b) in enumerate(pieces)])

    rgb = np.empty((M, height, width, 3), np.float32)
    depth, alpha = (np.empty((M, height, width), np.float32) for _ in range(2))
    used = np.empty(M * tiles, np.int64)
    run_parallel(nc.composite_forward, [
        (a, b, attr, entries, tile_range, entry_gaussian, entry_rows, rgb, depth, alpha, used, *LIMITS)
        for a, b in chunks(M * tiles, 2 * CHUNKS, LEAST_TILES)])
    return dict(attr=attr, radii=radii, first=first, count=count, entries=entries, tile_range=tile_range,
                entry_gaussian=entry_gaussian, entry_rows=entry_rows, rgb=rgb, depth=depth, alpha=alpha, used=used)


def _tile_ranges(histogram: np.ndarray, image_of: list[int], M: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each (image, tile) list begins, (M tiles + 1,), and where each chunk writes into it, like `histogram`."""
    tiles = histogram.shape[1]
    per_image = np.zeros((M, tiles), np.int64)
    within = np.empty_like(histogram)  # entries of earlier chunks of the same image
    for i, m in enumerate(image_of):
        within[i] = per_image[m]
        per_image[m] += histogram[i]
    tile_range = np.concatenate([[0], np.cumsum(per_image.reshape(-1))])
    starts = tile_range[:-1].reshape(M, tiles)
    position = within + starts[image_of] if len(image_of) else within
    return tile_range, position


def _backward(inputs, state, v_rgb, v_alpha, v_depth, target, background, options) -> tuple[np.ndarray, ...]:
    """Gradients of means, quats, scales, opacities, colors, viewmats, the norms of those of the 2D means, and contributions."""
    means, quats, scales, opacities, colors, viewmats, Ks = inputs
    B, N, V = means.shape[0], means.shape[1], viewmats.shape[1]
    M, H, W = state["depth"].shape

    def image_grad(v: Tensor | None, like: np.ndarray) -> np.ndarray:
        return np.zeros_like(like) if v is None else _numpy(v.float()).reshape(like.shape)

    v_rgb, v_alpha, v_depth = (image_grad(v, state[k]) for v, k in ((v_rgb, "rgb"), (v_alpha, "alpha"), (v_depth, "depth")))
    entry_gaussian, entry_rows = state["entry_gaussian"], state["entry_rows"]
    columns = nc.GRADS + (0 if target is None else nc.CONTRIBUTIONS)
    grads = np.empty((len(entry_gaussian), columns), np.float32)
    if target is not None:
        background = np.zeros((M, 3), np.float32) if background is None else background
    run_parallel(nc.composite_backward, [
        (a, b, state["attr"], state["entries"], state["tile_range"], entry_gaussian, entry_rows, state["used"],
         state["rgb"], state["depth"], state["alpha"], v_rgb, v_depth, v_alpha, target, background, grads,
         *LIMITS)
        for a, b in chunks(len(state["used"]), 2 * CHUNKS, LEAST_TILES)])

    v_means, v_quats, v_scales, v_opacities = (np.empty_like(x) for x in (means, quats, scales, opacities))
    v_colors = np.zeros_like(colors)  # summed over the views that share it
    pieces = chunks(B * N, CHUNKS, LEAST_GAUSSIANS)
    v_views = np.zeros((len(pieces), B, V, 3, 4))
    grad_norm2d = np.zeros((B, V, N), np.float32)
    attr, first, count = (state[k].reshape(B, V, N, *state[k].shape[2:]) for k in ("attr", "first", "count"))
    run_parallel(npj.project_backward, [
        (a, b, means, quats, scales, opacities, viewmats, Ks, float(W), float(H), float(options["eps2d"]),
         options["antialiased"], attr, grads, first, count, v_means, v_quats, v_scales, v_opacities, v_colors, v_views, i,
         grad_norm2d) for i, (a, b) in enumerate(pieces)])
    v_viewmats = np.zeros_like(viewmats)
    v_viewmats[..., :3, :] = v_views.sum(0)
    contribution = np.zeros((M, N, 2), np.float32)
    if target is not None:
        run_parallel(nc.sum_contributions, [(a, b, grads, state["first"], state["count"], contribution)
                                            for a, b in chunks(M * N, CHUNKS, LEAST_GAUSSIANS)])
    return v_means, v_quats, v_scales, v_opacities, v_colors, v_viewmats, grad_norm2d, contribution

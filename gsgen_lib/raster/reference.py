"""The reference engine: the rasterizer in plain PyTorch, derivatives by autograd.

For every 16x16 tile: take the Gaussians whose bounding box touches it, in depth order, and composite

    sigma = (A dx^2 + C dy^2) / 2 + B dx dy           dx, dy = pixel centre - mean2d
    alpha = min(MAX_ALPHA, opacity exp(-sigma)), 0 where alpha < 1/255
    T_i   = prod_{j<i} (1 - alpha_j)                  transmittance in front of Gaussian i
    rgb   = sum_i T_i alpha_i c_i                     depth = sum_i T_i alpha_i z_i,  alpha_out = 1 - T_end

A pixel stops before the Gaussian that would bring T to T_MIN or below. Tiles are there for memory only: a Gaussian
is compared with 256 pixels at a time instead of all of them.

Notebook 01 builds this function. Source: Kerbl et al. 2023, eq. 3 and section 6; constants from gsplat.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gsgen_lib.raster.api import RenderInfo
from gsgen_lib.raster.contribution import contributions_of_pairs
from gsgen_lib.raster.projection import ALPHA_MIN, MAX_ALPHA, T_MIN, project
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians

TILE = 16


def alpha_at(dx: Tensor, dy: Tensor, conics: Tensor, opacities: Tensor) -> Tensor:
    """alpha of 2D Gaussians at offsets dx, dy (..., M) from their means, 0 where too faint; conics (M, 3), opacities (M,).

    >>> alpha_at(torch.zeros(1), torch.zeros(1), torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([0.25]))
    tensor([0.2500])
    """
    A, B, C = conics.unbind(-1)
    sigma = 0.5 * (A * dx * dx + C * dy * dy) + B * dx * dy
    alpha = (opacities * torch.exp(-sigma.clamp_min(0))).clamp_max(MAX_ALPHA)
    return torch.where((alpha >= ALPHA_MIN) & (sigma >= 0), alpha, torch.zeros_like(alpha))


def alphas(pixels: Tensor, means2d: Tensor, conics: Tensor, opacities: Tensor) -> Tensor:
    """Of M depth-sorted 2D Gaussians at P pixel centres, (P, M), 0 where a Gaussian is too faint or the pixel was finished.

    pixels: (P, 2); means2d: (M, 2); conics: (M, 3); opacities: (M,).
    """
    dx, dy = (pixels[:, None, :] - means2d).unbind(-1)  # (P, M)
    alpha = alpha_at(dx, dy, conics, opacities)
    with torch.no_grad():  # which Gaussians come before the pixel is finished
        alive = torch.cumprod(1 - alpha, 1) > T_MIN
    return torch.where(alive, alpha, torch.zeros_like(alpha))


def composite(pixels: Tensor, means2d: Tensor, conics: Tensor, opacities: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha-composite M depth-sorted 2D Gaussians at P pixel centres.

    pixels, means2d, conics, opacities: as in `alphas`; features: (M, F), colours and whatever else is blended. Returns the
    blended features (P, F) and the transmittance left, T_end (P,).

    >>> pix, mean, conic = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0, 1.0]])
    >>> composite(pix, mean, conic, torch.tensor([0.25]), torch.tensor([[1.0, 0.0, 0.0]]))
    (tensor([[0.2500, 0.0000, 0.0000]]), tensor([0.7500]))
    """
    alpha = alphas(pixels, means2d, conics, opacities)
    T_after = torch.cumprod(1 - alpha, 1)  # (P, M), never below T_MIN
    T_before = torch.cat([torch.ones_like(T_after[:, :1]), T_after[:, :-1]], 1)
    return (T_before * alpha) @ features, T_after[:, -1]


def render(g: Gaussians, cams: Cameras, colors: Tensor, target: Tensor | None = None, background: Tensor | None = None,
           **options) -> tuple[Tensor, Tensor, Tensor, RenderInfo]:
    """All views of a batch of scenes. g: (B, N, ...); cams: (B, V, ...); colors: (B, 1 or V, N, 3).

    target (B, V, H, W, 3) and background (B, V, 3), None for black: for contributions alone, which are there at once. Returns
    rgb (B, V, H, W, 3) on black, alpha and summed depth (B, V, H, W, 1), info. `options`: see `project`.
    """
    p = project(g, cams, **options)
    info = RenderInfo("reference", p.radii)
    others = (p.conics, p.opacities, colors)
    if torch.is_grad_enabled() and not p.means2d.requires_grad and any(x.requires_grad for x in others):
        p = replace(p, means2d=p.means2d.detach().requires_grad_())  # info.grad_norm2d wants its gradient all the same
    if p.means2d.requires_grad:
        def keep_norm(grad: Tensor | None) -> None:
            if grad is not None:
                info.grad_norm2d = grad.detach().norm(dim=-1).reshape(info.radii.shape[:-1])
        p.means2d.register_hook(keep_norm)
    features = torch.cat([colors.expand(*p.depths.shape, 3), p.depths[..., None]], -1)  # (B, V, N, 4)

    B, V, H, W = *p.depths.shape[:2], cams.height, cams.width
    images, worth = [], p.depths.new_zeros(B, V, p.depths.shape[2], 2)
    for b in range(B):
        for v in range(V):
            visible = (p.radii[b, v] > 0).all(-1).nonzero()[:, 0]
            order = visible[torch.argsort(p.depths[b, v, visible].detach(), stable=True)]
            one = [x[b, v, order] for x in (p.means2d, p.conics, p.opacities, features)]
            images.append(_render_image(*one, p.radii[b, v, order], H, W))
            if target is not None:
                black = target.new_zeros(3) if background is None else background[b, v]
                worth[b, v, order] = _contributions(*one, p.radii[b, v, order], target[b, v], black).to(worth)
    if target is not None:
        info.contribution = worth
    image = torch.stack(images) if images else p.depths.new_zeros(0, H, W, 5)
    image = image.reshape(B, V, H, W, 5)
    # Sums over nothing: they add 0, and keep a gradient (of zeros) where no Gaussian is visible at all.
    image = image + sum(x[..., :0].sum() for x in (p.means2d, p.conics, p.opacities, features))
    return image[..., :3], 1 - image[..., 4:], image[..., 3:4], info


def _render_image(means2d: Tensor, conics: Tensor, opacities: Tensor, features: Tensor, radii: Tensor, H: int, W: int):
    """One image from depth-sorted Gaussians: (H, W, 5) = blended rgb and depth, transmittance."""
    rows = []
    for y0 in range(0, H, TILE):
        row = []
        for x0 in range(0, W, TILE):
            i, pixels, size = _tile(means2d, radii, x0, y0, H, W)
            if len(i) == 0:
                out = torch.cat([means2d.new_zeros(*size, 4), means2d.new_ones(*size, 1)], -1)
            else:
                blended, T_end = composite(pixels, means2d[i], conics[i], opacities[i], features[i])
                out = torch.cat([blended, T_end[:, None]], 1).reshape(*size, 5)
            row.append(out)
        rows.append(torch.cat(row, 1))
    return torch.cat(rows, 0)


def _tile(means2d: Tensor, radii: Tensor, x0: int, y0: int, H: int, W: int) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Which Gaussians touch a tile, its pixel centres (P, 2), and how many rows and columns it has."""
    y1, x1 = min(y0 + TILE, H), min(x0 + TILE, W)
    low, high = means2d.detach() - radii, means2d.detach() + radii  # bounding boxes, (M, 2)
    touches = (low[:, 0] < x1) & (high[:, 0] > x0) & (low[:, 1] < y1) & (high[:, 1] > y0)
    ys = torch.arange(y0, y1, device=radii.device, dtype=means2d.dtype) + 0.5
    xs = torch.arange(x0, x1, device=radii.device, dtype=means2d.dtype) + 0.5
    return touches.nonzero()[:, 0], torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1).reshape(-1, 2), (len(ys), len(xs))


@torch.no_grad()
def _contributions(means2d: Tensor, conics: Tensor, opacities: Tensor, features: Tensor, radii: Tensor, target: Tensor,
                   background: Tensor) -> Tensor:
    """Of depth-sorted Gaussians to the losses of one image, (M, 2)."""
    H, W = target.shape[:2]
    found = torch.zeros(len(means2d), 2, dtype=torch.float64, device=target.device)
    for y0 in range(0, H, TILE):
        for x0 in range(0, W, TILE):
            i, pixels, size = _tile(means2d, radii, x0, y0, H, W)
            alpha = alphas(pixels, means2d[i], conics[i], opacities[i])  # (P, M)
            pixel, which = alpha.nonzero().unbind(1)  # by pixel, then by depth
            aim = target[y0:y0 + size[0], x0:x0 + size[1]].reshape(-1, 3)
            found[i] += contributions_of_pairs(pixel, which, alpha[pixel, which], features[i, :3], background.expand_as(aim), aim)
    return found

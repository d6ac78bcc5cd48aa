"""What other views say about a pixel: the plane sweep and the visual hull, as features.

Problem. A network that sees four pictures with attention alone must discover stereo by itself, and in hours on a CPU it does
not. But for known cameras the question "how deep is this pixel?" can be asked directly. Along the ray of a pixel take D points,

    p_k = o + t_k d,    t_k evenly from |o| - REACH to |o| + REACH

and look each of them up in every other view (bilinear):

    inside_k  = min over other views of alpha(p_k)                       no silhouette cuts the point away: the visual hull
    differs_k = min over other views of mean |rgb(p_k) - rgb(pixel)|     some view sees the same colour there: the plane sweep
    depth     = the first t at which inside crosses 1/2                  where the ray enters the hull, `refine`d near it

A point outside of a picture counts as empty there, since the course's views have the whole object in frame. With one view only
there is nothing to ask: the depth is that of the point nearest to the origin, as it is for rays that miss the hull. Colours are
looked up straight, so pixels at the rim of an object differ a little from any. Taught in notebook 05. Sources: plane sweeps:
Collins, "A space-sweep approach to true multi-image matching", 1996; visual hull: Laurentini, 1994.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from gsgen_lib.scene.cameras import Cameras

REACH = 0.87  # half the diagonal of the unit cube: no part of an object is farther from the origin
AWAY = 1.8  # the distance of most of the course's cameras: a depth less this much is around 0


def check_depths(depths: int) -> None:
    """ValueError for fewer points on a ray than its two ends.

    >>> check_depths(1)
    Traceback (most recent call last):
    ValueError: config.depths: got 1, wanted at least 2
    """
    if depths < 2:
        raise ValueError(f"config.depths: got {depths}, wanted at least 2")


def look_up(pictures: Tensor, cameras: Cameras, points: Tensor) -> Tensor:
    """Bilinear values of pictures (B, V, H, W, C) at points (B, P, 3) of the world: (B, V, P, C), 0 outside of a picture.

    >>> picture = torch.rand(1, 1, 9, 9, 2)  # its middle pixel shows the origin
    >>> camera = Cameras.stack([Cameras.orbit(1, width=9, height=9)])
    >>> torch.allclose(look_up(picture, camera, torch.zeros(1, 1, 3))[0, 0, 0], picture[0, 0, 4, 4], atol=1e-5)
    True
    """
    b, v, h, w, c = pictures.shape
    at = cameras.project(points)[0] * 2 / points.new_tensor([w, h]) - 1  # [-1, 1], as grid_sample counts
    found = F.grid_sample(pictures.reshape(b * v, h, w, c).movedim(-1, 1), at.reshape(b * v, 1, -1, 2), align_corners=False)
    return found.reshape(b, v, c, -1).movedim(2, -1)


@torch.no_grad()
def sweep(rgba: Tensor, cameras: Cameras, depths: int = 24, size: int = 32) -> tuple[Tensor, Tensor]:
    """The questions of the header, for every view of B objects.

    rgba: (B, V, H, W, 4) straight alpha in [0, 1]; cameras: batch (B,), V views; asked on a grid of size x size pixels per
    view. Returns features (B, V, size, size, 2 depths): inside, then 1 - differs where inside; and depths along the
    unit rays, (B, V, size, size, 1).

    >>> cameras = Cameras.stack([Cameras.orbit(4, width=16, height=16)])
    >>> features, depth = sweep(torch.ones(1, 4, 16, 16, 4), cameras, 5, 8)
    >>> features.shape, depth.shape
    (torch.Size([1, 4, 8, 8, 10]), torch.Size([1, 4, 8, 8, 1]))
    """
    b, v = rgba.shape[:2]
    few = cameras.resize(size, size)
    o, d = few.rays()  # (B, V, s, s, 3)
    middle = -(o * d).sum(-1, keepdim=True)  # the point of each ray nearest to the origin
    if v == 1:
        return rgba.new_zeros(b, v, size, size, 2 * depths), middle
    o, d = (x.reshape(b, v, -1, 3) for x in (o, d))  # (B, V, P, 3), P = s s
    steps = torch.linspace(-REACH, REACH, depths, device=rgba.device)
    t = o.norm(dim=-1, keepdim=True) + steps  # (B, V, P, D)
    small = F.interpolate(rgba.reshape(-1, *rgba.shape[2:]).movedim(-1, 1), size=(size, size), mode="area").movedim(1, -1)
    own = small[..., :3].reshape(b, v, -1, 1, 3)
    inside, alike = [], []
    for i in range(v):
        points = (o[:, i, :, None] + t[:, i, :, :, None] * d[:, i, :, None]).reshape(b, -1, 3)  # (B, P D, 3)
        rest = [j for j in range(v) if j != i]
        there = replace(cameras, viewmats=cameras.viewmats[:, rest], Ks=cameras.Ks[:, rest])
        found = look_up(rgba[:, rest], there, points).reshape(b, v - 1, -1, depths, 4)  # (B, V - 1, P, D, 4)
        within = found[..., 3].amin(1)  # (B, P, D)
        differs = (found[..., :3] - own[:, i, None]).abs().mean(-1).amin(1)
        inside.append(within)
        alike.append(within * (1 - differs))
    inside, alike = torch.stack(inside, 1), torch.stack(alike, 1)  # (B, V, P, D)
    depth = first_crossing(inside, t).reshape(b, v, size, size, 1)
    nothing = (inside.amax(-1) < 0.5).reshape(b, v, size, size, 1)
    return torch.cat([inside, alike], -1).reshape(b, v, size, size, -1), torch.where(nothing, middle, depth)


@torch.no_grad()
def refine(alpha: Tensor, cameras: Cameras, depth: Tensor, reach: float, points: int = 8) -> Tensor:
    """Where rays enter the hull, asked again for every pixel at `points` places around a first answer.

    alpha (B, V, S, S, 1); cameras of S x S pixels, batch (B,); depth (B, V, S, S, 1) along the unit rays; reach: how far before
    and behind it. A ray that meets the hull at none of these places keeps its depth.

    >>> cameras = Cameras.stack([Cameras.orbit(4, width=8, height=8)])
    >>> alpha = torch.zeros(1, 4, 8, 8, 1)
    >>> alpha[:, :, 2:6, 2:6] = 1  # four square silhouettes: the hull is a box
    >>> depth = sweep(alpha.expand(-1, -1, -1, -1, 4), cameras, 5, 8)[1]
    >>> bool(refine(alpha, cameras, depth, 0.5)[0, 0, 4, 4] < 1.6)  # before the middle, 1.8
    True
    """
    b, v, s = alpha.shape[:3]
    if v == 1:
        return depth
    o, d = cameras.rays()
    t = depth + torch.linspace(-reach, reach, points, device=alpha.device)  # (B, V, S, S, K)
    inside = []
    for i in range(v):
        at = (o[:, i, ..., None, :] + t[:, i, ..., None] * d[:, i, ..., None, :]).reshape(b, -1, 3)
        rest = [j for j in range(v) if j != i]
        there = replace(cameras, viewmats=cameras.viewmats[:, rest], Ks=cameras.Ks[:, rest])
        inside.append(look_up(alpha[:, rest], there, at)[..., 0].amin(1).reshape(b, s, s, points))
    inside = torch.stack(inside, 1)
    return torch.where(inside.amax(-1, keepdim=True) < 0.5, depth, first_crossing(inside, t)[..., None])


def hull_features(rgba: Tensor, cameras: Cameras, depths: int) -> tuple[Tensor, Tensor]:
    """`sweep` at half size and `refine` for every pixel, as a network reads them.

    rgba (B, V, S, S, 4); cameras of S x S pixels, batch (B,). Returns features (B V, 2 depths + 1, S / 2, S / 2), around 0: sweep
    and coarse depth; and the depth for each pixel, (B, V, S, S, 1), looked for within three halves of the sweep's step.

    >>> cameras = Cameras.stack([Cameras.orbit(4, width=8, height=8)])
    >>> features, depth = hull_features(torch.ones(1, 4, 8, 8, 4), cameras, 5)
    >>> features.shape, depth.shape
    (torch.Size([4, 11, 4, 4]), torch.Size([1, 4, 8, 8, 1]))
    """
    features, coarse = sweep(rgba, cameras, depths, rgba.shape[2] // 2)
    depth = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    depth = refine(rgba[..., 3:], cameras, depth, 3 * REACH / (depths - 1))
    known = torch.cat([2 * features - 1, coarse - AWAY], -1)
    return known.flatten(0, 1).movedim(-1, 1), depth


def first_crossing(inside: Tensor, t: Tensor, level: float = 0.5) -> Tensor:
    """The first t at which `inside` reaches the level, by straight interpolation; both (..., D) -> (...,). Where it never does,
    the last t.

    >>> first_crossing(torch.tensor([0.0, 0.2, 0.7, 0.1, 0.9]), torch.arange(5.0))
    tensor(1.6000)
    """
    above = inside >= level
    k = torch.where(above.any(-1), above.int().argmax(-1), inside.shape[-1] - 1)[..., None]
    before = (k - 1).clamp_min(0)
    a, b = inside.gather(-1, before), inside.gather(-1, k)
    share = torch.where((k > 0) & (b > a), (level - a) / (b - a).clamp_min(1e-6), torch.ones_like(a)).clamp(0, 1)
    at, then = t.expand_as(inside).gather(-1, before), t.expand_as(inside).gather(-1, k)
    return (at + share * (then - at))[..., 0]

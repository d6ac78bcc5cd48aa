"""Which cells of a grid a surface passes through, from points on it.

Problem. A sparse model says first where an object is. The truth for that is one bit for each of R^3 cells of the unit cube:

    occupied(x, y, z) = 1 if some point of the surface lies in cell (x, y, z),     cell = floor((p + 1/2) R)

Objects ship with 2,048 points, too few to meet every cell at R = 32: their distance is about the width of a cell. But each point
knows its normal, so it stands for a small disc (a surfel) in the tangent plane, whose radius is `REACH` times the distance to its
6th nearest neighbour. Points are put on these discs, closer together than cells are wide; they leave a curved surface by less
than a cell.

Used by `gsgen_lib.systems.sparse_voxels`. Taught in notebook 09.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cells_of", "disc_points", "occupancy"]

NEIGHBOUR, REACH = 6, 0.6  # against 300,000 points of nine meshes: IoU .84 at R = 32; .55 without discs, .75 at 1.0
ON_DISC = 19  # points on a disc


def cells_of(positions: Tensor, resolution: int) -> Tensor:
    """The cell (x, y, z) of each position (..., 3) in [-1/2, 1/2]^3, int64; what lies outside counts to the nearest cell.

    >>> cells_of(torch.tensor([[-0.5, 0.0, 0.49], [0.5, 9.0, 0.0]]), 4)
    tensor([[0, 2, 3],
            [3, 3, 2]])
    """
    if not isinstance(resolution, int) or isinstance(resolution, bool) or resolution < 1:
        raise ValueError(f"resolution: got {resolution!r}, wanted a whole number >= 1")
    return ((positions + 0.5) * resolution).floor().long().clamp(0, resolution - 1)


def disc_points(positions: Tensor, normals: Tensor) -> Tensor:
    """Points (P, ON_DISC, 3) on the discs that P points (P, 3) with normals (P, 3) stand for; the first is the point itself.

    >>> plane = torch.cartesian_prod(torch.linspace(0, 1, 9), torch.linspace(0, 1, 9), torch.zeros(1))
    >>> found = disc_points(plane, torch.tensor([0.0, 0.0, 1.0]).expand(81, 3))
    >>> found.shape, bool((found[..., 2] == 0).all())
    (torch.Size([81, 19, 3]), True)
    """
    if positions.ndim != 2 or positions.shape[1] != 3 or normals.shape != positions.shape:
        raise ValueError(f"positions, normals: got {tuple(positions.shape)} and {tuple(normals.shape)}, wanted (P, 3) twice")
    count = min(NEIGHBOUR + 1, len(positions))
    radius = REACH * torch.cdist(positions, positions).topk(count, dim=1, largest=False).values[:, -1]  # (P,)
    n = F.normalize(normals, dim=-1)
    aside = torch.where(n[:, :1].abs() < 0.7, n.new_tensor([1.0, 0, 0]), n.new_tensor([0, 1.0, 0]))  # not along n
    u = F.normalize(torch.linalg.cross(n, aside), dim=-1)
    v = torch.linalg.cross(n, u)
    k = torch.arange(ON_DISC, device=positions.device)
    r, angle = (k / (ON_DISC - 1)).sqrt(), k * (math.pi * (3 - math.sqrt(5)))  # a sunflower: even over the disc
    x, y = (r * angle.cos())[:, None], (r * angle.sin())[:, None]
    return positions[:, None] + radius[:, None, None] * (x * u[:, None] + y * v[:, None])


def occupancy(points: Tensor, resolution: int, discs: bool = True) -> Tensor:
    """Bits (R, R, R), indexed [x, y, z], of surface points (P, 6 or more): position in [-1/2, 1/2]^3, normal, anything else.

    discs: points stand for discs, else for themselves alone. ValueError naming what does not fit.

    >>> points = torch.tensor([[0.1, 0.1, 0.1, 0.0, 1.0, 0.0]])
    >>> occupancy(points, 2).nonzero()
    tensor([[1, 1, 1]])
    """
    if points.ndim != 2 or points.shape[1] < 6 or not len(points):
        raise ValueError(f"points: got shape {tuple(points.shape)}, wanted (P, 6 or more) with P > 0")
    if not bool(points[:, :6].isfinite().all()):
        raise ValueError("points: got positions or normals that are not finite numbers")
    positions = points[:, :3]
    if discs:
        positions = disc_points(positions, points[:, 3:6]).reshape(-1, 3)
    x, y, z = cells_of(positions, resolution).unbind(-1)
    grid = torch.zeros(resolution, resolution, resolution, dtype=torch.bool, device=points.device)
    grid[x, y, z] = True
    return grid

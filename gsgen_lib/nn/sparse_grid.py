"""The active voxels of a batch of objects, one list for all.

    grid (B, R, R, R) of bits   <->   coords (T, 3), T = n_1 + ... + n_B, and lengths (n_1, ..., n_B)

Voxels of an object stand in the order of the 2 x 2 x 2 cells that they belong to, and within a cell in the order of their slot
0 to 7. So a cell is a run of the list, and `to_cells` turns T rows into one row a cell: 8 times fewer tokens for a transformer at
most, with the 8 places side by side and zeros where a voxel is empty. `from_cells` takes them apart again.

Below, dense latents of a grid as tokens, blocks of places together.

Sources: TRELLIS (2412.01506) section 3.2, which packs by sparse convolutions. Taught in notebook 09.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Voxels", "from_structure_tokens", "structure_places", "structure_tokens"]


@dataclass(frozen=True)
class Voxels:
    """coords (T, 3) int64, x, y, z of each active voxel in [0, R), in the order of the header; lengths: voxels of each object;
    resolution: R, even. ValueError for anything else; `from_grid` brings bits into that order.

    >>> grid = torch.zeros(2, 4, 4, 4, dtype=torch.bool)
    >>> grid[0, 1, 2, 3] = grid[1, 0, 0, 0] = grid[1, 0, 0, 1] = True
    >>> voxels = Voxels.from_grid(grid)
    >>> voxels.coords.tolist(), voxels.lengths, bool((voxels.grid() == grid).all())
    ([[1, 2, 3], [0, 0, 0], [0, 0, 1]], (1, 2), True)
    """

    coords: Tensor
    lengths: tuple[int, ...]
    resolution: int

    def __post_init__(self):
        if self.coords.ndim != 2 or self.coords.shape[1] != 3 or self.coords.dtype != torch.int64:
            raise ValueError(f"coords: got {tuple(self.coords.shape)} {self.coords.dtype}, wanted (T, 3) int64")
        if min(self.lengths, default=0) < 0 or sum(self.lengths) != len(self.coords):
            raise ValueError(f"lengths: got {self.lengths}, wanted numbers >= 0 that add up to {len(self.coords)} voxels")
        if not isinstance(self.resolution, int) or self.resolution < 2 or self.resolution % 2:
            raise ValueError(f"resolution: got {self.resolution!r}, wanted an even number >= 2")
        if not bool(((self.coords >= 0) & (self.coords < self.resolution)).all()):
            raise ValueError(f"coords: got {self.coords.min()} to {self.coords.max()}, wanted 0 to {self.resolution - 1}")
        key = _key(torch.cat([self.objects[:, None], self.coords], 1), self.resolution)
        if not bool((key[1:] > key[:-1]).all()):
            raise ValueError("coords: got voxels twice, or not by cell and slot, wanted the order of Voxels.from_grid")

    @staticmethod
    def from_grid(grid: Tensor) -> Voxels:
        """The active voxels of bits (B, R, R, R). ValueError for another shape or kind."""
        if grid.ndim != 4 or grid.dtype != torch.bool or len(set(grid.shape[1:])) != 1 or grid.shape[1] % 2:
            raise ValueError(f"grid: got {tuple(grid.shape)} {grid.dtype}, wanted (B, R, R, R) of bool, R even")
        r = grid.shape[1]
        found = grid.nonzero()  # (T, 4): object, x, y, z
        lengths = tuple(torch.bincount(found[:, 0], minlength=len(grid)).tolist())
        return Voxels(found[torch.argsort(_key(found, r))][:, 1:], lengths, r)

    @property
    def objects(self) -> Tensor:
        """Which object each voxel belongs to, (T,)."""
        each = torch.arange(len(self.lengths), device=self.coords.device)
        return each.repeat_interleave(torch.tensor(self.lengths, device=self.coords.device))

    def grid(self) -> Tensor:
        """Bits (B, R, R, R)."""
        bits = torch.zeros(len(self.lengths), *[self.resolution] * 3, dtype=torch.bool, device=self.coords.device)
        bits[(self.objects, *self.coords.unbind(-1))] = True
        return bits

    def centres(self) -> Tensor:
        """Middles of the voxels in the world, (T, 3)."""
        return (self.coords + 0.5) / self.resolution - 0.5

    def __getitem__(self, b: int) -> Voxels:
        """Object b alone."""
        coords = self.coords.split(self.lengths)[b]
        return Voxels(coords, (len(coords),), self.resolution)

    def to(self, device) -> Voxels:
        """On another device."""
        return Voxels(self.coords.to(device), self.lengths, self.resolution)

    def cells(self) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
        """The 2 x 2 x 2 cells with an active voxel: which cell each voxel is in (T,), its slot (T,), the cells' coordinates on
        the grid of R / 2 (M, 3), and how many cells each object has."""
        b, r = self.objects, self.resolution
        key = _key(torch.cat([b[:, None], self.coords], 1), r)
        parents, cell = torch.unique_consecutive(key // 8, return_inverse=True)  # in order already
        half = r // 2
        object_of = parents // half**3
        lengths = tuple(torch.bincount(object_of, minlength=len(self.lengths)).tolist())
        at = parents % half**3
        coords = torch.stack([at // half**2, at // half % half, at % half], -1)
        return cell, key % 8, coords, lengths

    def to_cells(self, values: Tensor) -> Tensor:
        """Rows of voxels (T, C) as rows of cells (M, 8 C + 8): the 8 slots side by side, 0 where empty, then which are active.

        >>> voxels = Voxels.from_grid(torch.ones(1, 2, 2, 2, dtype=torch.bool))
        >>> voxels.to_cells(torch.arange(8.0)[:, None])[0].tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
        """
        if values.ndim != 2 or len(values) != len(self.coords):
            raise ValueError(f"values: got shape {tuple(values.shape)}, wanted ({len(self.coords)}, C), a row for each voxel")
        cell, slot, coords, _ = self.cells()
        rows = values.new_zeros(len(coords), 8, values.shape[1]).index_put((cell, slot), values)
        active = values.new_zeros(len(coords), 8).index_put((cell, slot), values.new_ones(len(cell)))
        return torch.cat([rows.flatten(1), active], 1)

    def from_cells(self, rows: Tensor) -> Tensor:
        """The inverse of `to_cells`: rows of cells (M, 8 C) as rows of voxels (T, C).

        >>> voxels = Voxels.from_grid(torch.rand(2, 4, 4, 4) < 0.3)
        >>> x = torch.randn(len(voxels.coords), 3)
        >>> torch.equal(voxels.from_cells(voxels.to_cells(x)[:, :24]), x)
        True
        """
        cell, slot, coords, _ = self.cells()
        if rows.ndim != 2 or len(rows) != len(coords) or rows.shape[1] % 8:
            raise ValueError(f"rows: got shape {tuple(rows.shape)}, wanted ({len(coords)}, 8 C), a row for each cell")
        return rows.unflatten(1, (8, -1))[cell, slot]


def structure_places(side: int, count: int, device=None) -> tuple[Tensor, tuple[int, ...]]:
    """Places (count side^3, 3) of the tokens of so many structures, and how many each has.

    >>> structure_places(2, 1)[0].tolist()[:3], structure_places(2, 3)[1]
    ([[0, 0, 0], [0, 0, 1], [0, 1, 0]], (8, 8, 8))
    """
    axis = torch.arange(side, device=device)
    return torch.cartesian_prod(axis, axis, axis).repeat(count, 1), (side**3,) * count


def structure_tokens(z: Tensor, side: int) -> Tensor:
    """Dense latents (B, C, r, r, r) as tokens (B side^3, (r / side)^3 C): the places of a block side by side, channels last.

    >>> z = torch.randn(2, 8, 4, 4, 4)
    >>> structure_tokens(z, 2).shape, torch.equal(from_structure_tokens(structure_tokens(z, 2), 2, 8), z)
    (torch.Size([16, 64]), True)
    """
    p = z.shape[2] // side
    z = z.unflatten(4, (side, p)).unflatten(3, (side, p)).unflatten(2, (side, p))  # (B, C, s, p, s, p, s, p)
    return z.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(0, 3)


def from_structure_tokens(tokens: Tensor, side: int, channels: int) -> Tensor:
    """The inverse of `structure_tokens`."""
    p = round((tokens.shape[1] / channels) ** (1 / 3))
    z = tokens.unflatten(0, (-1, side, side, side)).unflatten(4, (p, p, p, channels))
    return z.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6).flatten(4, 5).flatten(2, 3)


def _key(found: Tensor, r: int) -> Tensor:
    """Sorts (T, 4), object, x, y, z, by object, cell and slot; the last three bits are the slot."""
    b, x, y, z = found.unbind(-1)
    half = r // 2
    cell = ((b * half + x // 2) * half + y // 2) * half + z // 2
    return 8 * cell + 4 * (x % 2) + 2 * (y % 2) + z % 2

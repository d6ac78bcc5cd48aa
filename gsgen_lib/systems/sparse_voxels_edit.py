"""Editing a scene of sparse voxels: what is not touched stays, to the bit.

Problem. Latents of a vector or of pixels are entangled: change one and the whole object changes. Here a scene says where it is,
and what is there, place by place:

    Asset = active voxels, a latent each, and the numbers of the K Gaussians that were decoded from it

So an edit takes voxels away, puts voxels of another scene in, or draws some anew while others are held (the known road of
`sparse_voxels_flow`):

    remove      the voxels in a box                                           nothing is drawn
    merge       two scenes; where both have a voxel, the first one's stays    nothing is drawn
    restyle     latents of the voxels in a box, or of all, are drawn again    structure stays
    repaint     structure and latents in a box are drawn again

The decoder's attention lets every voxel hear all others, so decoding an edited scene anew would change all of its Gaussians a
little. Therefore numbers that were decoded are kept with their voxel, and only those of new latents are decoded.

Source: TRELLIS (2412.01506) section 3.4 (repainting after RePaint, 2201.09865). Taught in notebook 09.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gsgen_lib.nn.sparse_grid import Voxels
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.sparse_voxels import NUMBERS, gaussians_of
from gsgen_lib.systems.sparse_voxels_flow import Given, SparseVoxels

__all__ = ["Asset", "Box", "draw_asset", "encoded", "inside", "merge", "remove", "repaint", "restyle"]

Box = tuple[tuple[float, float, float], tuple[float, float, float]]  # lowest and highest corner, in the world


@dataclass(frozen=True)
class Asset:
    """One scene: voxels of one object; latents (T, latent); raw (T, K, 14), the numbers of the Gaussians of each voxel."""

    voxels: Voxels
    latents: Tensor
    raw: Tensor

    def __post_init__(self):
        n = len(self.voxels.coords)
        if len(self.voxels.lengths) != 1 or len(self.latents) != n or len(self.raw) != n:
            raise ValueError(f"voxels, latents, raw: got {len(self.voxels.lengths)} objects with {n} voxels, {len(self.latents)} "
                             f"and {len(self.raw)} rows, wanted one object and a row for each of its voxels")
        if self.latents.ndim != 2 or self.raw.ndim != 3 or self.raw.shape[2] != NUMBERS:
            raise ValueError(f"latents, raw: got {tuple(self.latents.shape)} and {tuple(self.raw.shape)}, wanted (T, C) and "
                             f"(T, K, {NUMBERS})")

    @property
    def gaussians(self) -> Gaussians:
        """K Gaussians for each voxel, in their order."""
        return gaussians_of(self.voxels, self.raw)[0]


def inside(voxels: Voxels, box: Box) -> Tensor:
    """Which voxels have their centre in the box, (T,) bool. ValueError for a box whose corners are no numbers or not in order.

    >>> voxels = Voxels.from_grid(torch.ones(1, 2, 2, 2, dtype=torch.bool))
    >>> int(inside(voxels, ((-0.5, -0.5, -0.5), (0.0, 0.5, 0.5))).sum())
    4
    """
    try:
        low, high = (torch.as_tensor(corner, dtype=torch.float32) for corner in box)
    except (TypeError, ValueError) as error:
        raise ValueError(f"box: got {box!r}, wanted two corners (x, y, z), the lowest and the highest") from error
    if low.shape != (3,) or high.shape != (3,) or not bool((low < high).all()):  # also false for nan
        raise ValueError(f"box: got {box}, wanted two corners (x, y, z), the lowest and the highest")
    centres = voxels.centres()
    return ((centres >= low.to(centres)) & (centres <= high.to(centres))).all(-1)


def rows(asset: Asset, which: Tensor) -> Asset:
    """Some voxels of a scene, which (T,) bool. ValueError if none is left."""
    if not bool(which.any()):
        raise ValueError("which: no voxel would be left, wanted at least one")
    coords = asset.voxels.coords[which]
    return Asset(Voxels(coords, (len(coords),), asset.voxels.resolution), asset.latents[which], asset.raw[which])


def remove(asset: Asset, box: Box) -> Asset:
    """Without the voxels in the box. ValueError if none would be left."""
    return rows(asset, ~inside(asset.voxels, box))


def merge(first: Asset, second: Asset) -> Asset:
    """Both scenes in one; where both have a voxel, that of the first. ValueError where they are of different kinds."""
    if first.voxels.resolution != second.voxels.resolution or first.raw.shape[1:] != second.raw.shape[1:]:
        raise ValueError(f"second: got R = {second.voxels.resolution} and {tuple(second.raw.shape[1:])} numbers a voxel, wanted "
                         f"those of the first, {first.voxels.resolution} and {tuple(first.raw.shape[1:])}")
    taken = first.voxels.grid()[0]
    free = ~taken[tuple(second.voxels.coords.unbind(-1))]
    more = Asset(Voxels(second.voxels.coords[free], (int(free.sum()),), second.voxels.resolution), second.latents[free],
                 second.raw[free])
    voxels = Voxels.from_grid(first.voxels.grid() | more.voxels.grid())
    return _placed(voxels, [first, more])


def _placed(voxels: Voxels, parts: list[Asset]) -> Asset:
    """The rows of scenes that share no voxel, in the order of `voxels`, which are theirs together."""
    n, r, one = len(voxels.coords), voxels.resolution, parts[0]
    number = torch.full((r, r, r), -1, dtype=torch.long, device=voxels.coords.device)
    number[tuple(voxels.coords.unbind(-1))] = torch.arange(n, device=number.device)
    latents, raw = one.latents.new_zeros(n, *one.latents.shape[1:]), one.raw.new_zeros(n, *one.raw.shape[1:])
    for part in parts:
        at = number[tuple(part.voxels.coords.unbind(-1))]
        latents[at], raw[at] = part.latents, part.raw
    return Asset(voxels, latents, raw)


@torch.no_grad()
def draw_asset(sampler: SparseVoxels, given: Given, generator: torch.Generator | None = None, **settings) -> Asset:
    """One scene for `given` of one; settings: of `draw_latents`, the structure is drawn with those of `draw_structure`."""
    if len(given.seen) != 1:
        raise ValueError(f"given: got {len(given.seen)} scenes, wanted one")
    voxels = Voxels.from_grid(sampler.draw_structure(given, generator=generator))
    z = sampler.draw_latents(voxels, given, generator=generator, **settings)
    return Asset(voxels, z, sampler.appearance.decode(voxels, z))


@torch.no_grad()
def encoded(sampler: SparseVoxels, voxels: Voxels, features: Tensor) -> Asset:
    """A true object, of its voxels and their features (`sparse_voxels.voxel_features`)."""
    z = sampler.appearance.encode(voxels, features)[0]
    return Asset(voxels, z, sampler.appearance.decode(voxels, z))


def _fits(sampler: SparseVoxels, asset: Asset) -> None:
    k = sampler.appearance.config.gaussians
    if asset.raw.shape[1] != k:
        raise ValueError(f"asset: has {asset.raw.shape[1]} Gaussians for a voxel, wanted the sampler's {k}")


@torch.no_grad()
def restyle(sampler: SparseVoxels, asset: Asset, given: Given, box: Box | None = None, generator: torch.Generator | None = None,
            **settings) -> Asset:
    """The same voxels; latents of those in the box (all, if there is none) are drawn for `given`, of one scene."""
    _fits(sampler, asset)
    new = inside(asset.voxels, ((-1.0,) * 3, (1.0,) * 3) if box is None else box)
    z = sampler.draw_latents(asset.voxels, given, values=asset.latents, known=~new, generator=generator, **settings)
    raw = torch.where(new[:, None, None], sampler.appearance.decode(asset.voxels, z), asset.raw)
    return replace(asset, latents=z, raw=raw)


@torch.no_grad()
def repaint(sampler: SparseVoxels, asset: Asset, given: Given, box: Box, generator: torch.Generator | None = None,
            **settings) -> Asset:
    """What is in the box is drawn again, structure and latents, for `given`, of one scene; the rest is held and stays to the bit.

    A structure latent speaks for 4^3 voxels: those that the box touches are drawn, and of the bits only those in the box are
    taken. settings: of `draw_latents`, as above. ValueError if no voxel would be left.
    """
    _fits(sampler, asset)
    net, old = sampler.structure, asset.voxels.grid()
    r, c = net.config.resolution, net.config.cells
    every = Voxels.from_grid(torch.ones(1, r, r, r, dtype=torch.bool, device=old.device))
    region = torch.zeros(r, r, r, dtype=torch.bool, device=old.device)
    region[tuple(every.coords[inside(every, box)].unbind(-1))] = True
    touched = region.reshape(c, 4, c, 4, c, 4).any(5).any(3).any(1)
    mu = net.encode(old)[0]
    known = ~touched.expand(mu.shape)
    new = sampler.draw_structure(given, values=mu, known=known, generator=generator)
    voxels = Voxels.from_grid(torch.where(region, new, old))
    if not len(voxels.coords):
        raise ValueError("box: holds all voxels, and none was drawn in it")
    outside = ~inside(asset.voxels, box)
    kept = rows(asset, outside) if bool(outside.any()) else None
    fresh = inside(voxels, box)
    placed = _placed(voxels, [kept]) if kept is not None else None
    values = placed.latents if placed is not None else asset.latents.new_zeros(len(fresh), asset.latents.shape[1])
    z = sampler.draw_latents(voxels, given, values=values, known=~fresh, generator=generator, **settings)
    raw = sampler.appearance.decode(voxels, z)
    if placed is not None:
        raw = torch.where(fresh[:, None, None], raw, placed.raw)
    return Asset(voxels, z, raw)

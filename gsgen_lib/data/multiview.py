"""Batches for multi-view learning: some views go in, some are to be predicted.

From every object of a batch we draw views without repetition,

    I = (i_1 .. i_m)  input views,      T = (t_1 .. t_k)  target views,      I and T disjoint,

with m and k fixed or drawn per batch from a range (a batch needs equal shapes). Inputs may be four
views at right angles, as reconstruction networks like LGM and GRM expect them. Pictures have straight
alpha and are laid on a background b, white or a random colour per object:

    image = alpha * rgb + (1 - alpha) * b

A random background punishes a model that paints the background instead of leaving it empty.

Everything lies in memory (`ViewSet`), so a batch is one indexing operation and worker processes are
not needed. The order of the objects and a seed per batch come from `generator=`: the same generator
gives the same batches, with any number of workers.

Used by every notebook that trains on objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from gsgen_lib.data.view_sets import ViewSet, load_views, toy_views
from gsgen_lib.scene.cameras import Cameras

__all__ = ["Batch", "MultiView", "ViewSet", "drawn_from", "load_views", "loader", "orthogonal_sets", "toy_views"]

INPUTS = ("random", "orthogonal", "front", "ring", "around")


@dataclass(frozen=True)
class Batch:
    """B objects with V = m + k views each, the m inputs first.

    images (B, V, H, W, 3) in [0, 1] on `background` (B, 1, 3), one colour for all views of an object as
    `rasterize` takes it, or (B, V, H, W, 4) with straight alpha if background is None; alphas (B, V, H, W, 1);
    cameras with batch (B,); points (B, P, 9): position, normal, colour; captions, ids: lists of B
    strings; indices (B,) into the set, views (B, V) of the object.
    """

    images: Tensor
    alphas: Tensor
    cameras: Cameras
    points: Tensor
    background: Tensor | None
    captions: list[str]
    ids: list[str]
    indices: Tensor
    views: Tensor
    n_inputs: int

    @property
    def inputs(self) -> tuple[Tensor, Cameras]:
        """(images (B, m, H, W, C), cameras) that a model is given."""
        return self.images[:, : self.n_inputs], self.cameras[: self.n_inputs]

    @property
    def targets(self) -> tuple[Tensor, Cameras]:
        """(images (B, k, H, W, C), cameras) that a model is asked for."""
        return self.images[:, self.n_inputs :], self.cameras[self.n_inputs :]

    def to(self, device) -> Batch:
        """All tensors on `device`.

        >>> data = MultiView(toy_views(1, seed=0, size=8, views=8, points=8))
        >>> data[0].to("cpu").images.device
        device(type='cpu')
        """
        return replace(
            self,
            background=None if self.background is None else self.background.to(device),
            **{k: getattr(self, k).to(device) for k in ("images", "alphas", "cameras", "points", "indices", "views")},
        )


class MultiView(Dataset):
    """Cuts batches from a ViewSet.

    views_in, views_out: how many input and target views, a number or a range (low, high) from which
    each batch draws; inputs: "random" views, "orthogonal" (four at equal elevation and azimuths a,
    a + 90, a + 180, a + 270, a random), "front" (the same with a = 0), "ring" (any of the views that belong
    to such fours), or "around" (the ring where the objects have one, else any view); overlap: targets may
    repeat inputs; background: "white", "random", a colour (r, g, b), or None for RGBA.
    Raises ValueError naming the argument, among others if the objects have too few views.

    >>> data = MultiView(toy_views(3, seed=0, size=16, views=8, points=32), views_in=2, views_out=(1, 3))
    >>> batch = data.batch([0, 2], torch.Generator().manual_seed(0))
    >>> batch.inputs[0].shape, 1 <= batch.targets[0].shape[1] <= 3
    (torch.Size([2, 2, 16, 16, 3]), True)
    """

    def __init__(self, views: ViewSet, views_in=4, views_out=4, inputs: str = "random", overlap: bool = False,
                 background="white"):
        self.set, self.overlap, self.background = views, overlap, _check_background(background)
        self.views_in, self.views_out = _as_range("views_in", views_in), _as_range("views_out", views_out, least=0)
        if inputs not in INPUTS:
            raise ValueError(f"inputs: wanted one of {INPUTS}, got {inputs!r}")
        if inputs == "around":
            inputs = "ring" if len(orthogonal_sets(views.cameras)) else "random"
        self.fours = None
        if inputs != "random":
            if inputs != "ring" and self.views_in != (4, 4):
                raise ValueError(f"views_in: inputs={inputs!r} are 4 views, got {views_in}")
            self.fours = orthogonal_sets(views.cameras, front_only=inputs == "front")
            if not len(self.fours):
                raise ValueError(f"inputs: got {inputs!r}, but these objects share no four views at right angles")
        self.ring = self.fours.unique() if inputs == "ring" else None  # (R,)
        if self.ring is not None and self.views_in[1] > len(self.ring):
            raise ValueError(f"views_in: got {views_in}, but the ring has {len(self.ring)} views")
        have = views.images.shape[1]
        need = max(self.views_in[1], self.views_out[1]) if overlap else self.views_in[1] + self.views_out[1]
        if need > have:
            raise ValueError(f"views_in + views_out: got {views_in} + {views_out}, but the objects have {have} views")

    def __len__(self) -> int:
        return len(self.set)

    def __getitem__(self, key) -> Batch:
        """A batch from (positions, seed), as the loader's sampler makes them; an int is a batch of that one object."""
        positions, seed = ([key], key) if isinstance(key, int) else key
        return self.batch(positions, torch.Generator().manual_seed(seed))

    def batch(self, positions, generator: torch.Generator) -> Batch:
        """The objects at `positions`, with views and background drawn from `generator`."""
        index = torch.as_tensor(positions, dtype=torch.long)
        b, have = len(index), self.set.images.shape[1]
        ranges = self.views_in, self.views_out
        m, k = (int(torch.randint(low, high + 1, (), generator=generator)) for low, high in ranges)
        order = torch.rand(b, have, generator=generator).argsort(dim=1)  # a random permutation of the views per object
        if self.ring is not None:
            first = self.ring[torch.rand(b, len(self.ring), generator=generator).argsort(dim=1)[:, :m]]
        elif self.fours is None:
            first = order[:, :m]
        else:
            first = self.fours[torch.randint(len(self.fours), (b,), generator=generator)]  # (B, 4)
        if self.overlap:
            rest = torch.rand(b, have, generator=generator).argsort(dim=1)
        else:  # keep the random order, without what is an input already
            rest = order[~(order[:, :, None] == first[:, None]).any(dim=2)].view(b, have - m)
        views = torch.cat([first, rest[:, :k]], dim=1)  # (B, V)
        rgba = self.set.images[index[:, None], views].float().div_(255)  # (B, V, H, W, 4)
        rgb, alpha = rgba[..., :3], rgba[..., 3:]
        background = None
        if self.background == "random":
            background = torch.rand(b, 1, 3, generator=generator)  # (B, 1, 3): one for all views
        elif self.background is not None:
            background = torch.tensor(self.background).expand(b, 1, 3).clone()
        images = rgba if background is None else torch.lerp(background[:, :, None, None], rgb, alpha)
        every = self.set.cameras  # batch (N,)
        cameras = replace(every, viewmats=every.viewmats[index[:, None], views], Ks=every.Ks[index[:, None], views])
        meta = [self.set.meta[i] for i in index.tolist()]
        return Batch(images, alpha, cameras, self.set.points[index], background, [e["caption"] for e in meta],
                     [e["id"] for e in meta], index, views, m)


def drawn_from(source: ViewSet | Callable, views_in=4, views_out=4, **choices) -> Callable[[int, torch.Generator], Batch]:
    """draw(count, generator) -> `Batch` of random objects, for training; arguments after the first as of `MultiView`.

    source: a set in memory, or draw(count, generator) -> ViewSet, such as `shards.from_shards` makes.

    >>> draw = drawn_from(toy_views(3, seed=0, size=16, views=8, points=32), 2, 1)
    >>> draw(5, torch.Generator().manual_seed(0)).images.shape
    torch.Size([5, 3, 16, 16, 3])
    """
    if not isinstance(source, ViewSet):
        return lambda count, generator: MultiView(source(count, generator), views_in, views_out, **choices).batch(
            range(count), generator)
    plan = MultiView(source, views_in, views_out, **choices)
    return lambda count, generator: plan.batch(torch.randint(len(source), (count,), generator=generator), generator)


def loader(views: ViewSet, batch_size: int, generator: torch.Generator, shuffle: bool = True, drop_last: bool = False,
           num_workers: int = 0, **choices) -> DataLoader:
    """A DataLoader of `Batch`es; `choices` are those of `MultiView`. One pass sees every object once.

    The data are in memory and a batch costs milliseconds (`gsgen bench toys`), so num_workers=0 is the
    right number nearly always; workers are started by spawn, because a process that has run our CPU
    rasterizer must not be forked.

    >>> shapes = toy_views(3, seed=0, size=16, views=8, points=32)
    >>> [len(b.ids) for b in loader(shapes, 2, torch.Generator().manual_seed(0), views_in=1, views_out=2)]
    [2, 1]
    """
    if batch_size < 1 or num_workers < 0:
        raise ValueError(f"batch_size >= 1 and num_workers >= 0 wanted, got {batch_size} and {num_workers}")
    if drop_last and batch_size > len(views):
        raise ValueError(f"batch_size: {batch_size} with drop_last leaves nothing of {len(views)} objects")
    sampler = _Batches(len(views), batch_size, generator, shuffle, drop_last)
    spawn = "spawn" if num_workers else None
    return DataLoader(MultiView(views, **choices), batch_size=None, sampler=sampler, num_workers=num_workers,
                      multiprocessing_context=spawn, persistent_workers=bool(num_workers))


class _Batches(Sampler):
    """Yields (positions, seed): all randomness of a batch is decided here, in the main process."""

    def __init__(self, n, batch_size, generator, shuffle, drop_last):
        self.n, self.batch_size, self.generator = n, batch_size, generator
        self.shuffle, self.drop_last = shuffle, drop_last

    def __len__(self) -> int:
        return self.n // self.batch_size if self.drop_last else -(-self.n // self.batch_size)

    def __iter__(self) -> Iterator[tuple[list[int], int]]:
        order = torch.randperm(self.n, generator=self.generator) if self.shuffle else torch.arange(self.n)
        for i in range(len(self)):
            seed = int(torch.randint(2**62, (), generator=self.generator))
            yield order[i * self.batch_size : (i + 1) * self.batch_size].tolist(), seed


def orthogonal_sets(cameras: Cameras, front_only: bool = False, tolerance: float = 0.5) -> Tensor:
    """All ordered choices (K, 4) of views at one elevation and azimuths a, a + 90, a + 180, a + 270.

    cameras: batch (N,); only views that stand at the same place for all N objects count. front_only
    keeps a = 0. tolerance in degrees.

    >>> orthogonal_sets(Cameras.stack([Cameras.orbit(8)])).tolist()[:2]
    [[0, 2, 4, 6], [1, 3, 5, 7]]
    """
    centers = cameras.centers.double()  # (N, V, 3)
    spread = (centers - centers[:1]).norm(dim=-1).amax(dim=0)  # (V,)
    x, y, z = centers[0].unbind(-1)
    azimuth, elevation = torch.rad2deg(torch.atan2(x, z)), torch.rad2deg(torch.atan2(y, torch.hypot(x, z)))
    fixed = (spread < 1e-4).nonzero()[:, 0].tolist()
    found = []
    for start in fixed:
        if front_only and abs(float(azimuth[start])) > tolerance:
            continue
        four = []
        for turn in (0, 90, 180, 270):
            off = (azimuth - azimuth[start] - turn + 180) % 360 - 180
            level = (elevation - elevation[start]).abs() < tolerance
            four += [i for i in fixed if abs(float(off[i])) < tolerance and level[i]][:1]
        if len(four) == 4:
            found.append(four)
    return torch.tensor(found, dtype=torch.long).reshape(-1, 4)


def _as_range(name: str, value, least: int = 1) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, list | tuple) and len(value) == 2 else (0, -1)
    low, high = (value, value) if isinstance(value, int) else pair
    if not (isinstance(low, int) and isinstance(high, int) and least <= low <= high):
        raise ValueError(f"{name}: wanted a number >= {least} or a range (low, high), got {value!r}")
    return low, high


def _check_background(background):
    if background is None or background == "random":
        return background
    color = (1.0, 1.0, 1.0) if background == "white" else background
    if not isinstance(color, list | tuple) or len(color) != 3 or not all(0 <= c <= 1 for c in color):
        raise ValueError(f"background: wanted 'white', 'random', None or 3 numbers in [0, 1], got {background!r}")
    return tuple(float(c) for c in color)

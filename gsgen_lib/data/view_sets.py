"""Many objects with their views, in memory: real objects, toys, or your own, in one form.

A `ViewSet` holds N objects of V views each as bytes (a 64-pixel object with 24 views takes 0.4 MB),
with a camera per view, surface points, captions and facts. It comes from

    load_views("train")            the shipped objects, or any folder in their format
    toy_views(1000, seed=0)        toys, rendered now, or read back from a folder if they lie there

Only one split is loaded at a time, and "train" is the default: to see a test object one has to
write "test". Batches are cut from a ViewSet by `gsgen_lib.data.multiview`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gsgen_lib.data.objects import INDEX, SPLITS, ObjectViews, list_objects, load_object, object_cameras, save_object
from gsgen_lib.data.prerender import FOV, RADIUS, id_generator, view_angles, visible_sample
from gsgen_lib.data.raycast import render_mesh
from gsgen_lib.data.toys import Toy, make_toy, sample_toy
from gsgen_lib.scene.cameras import Cameras


@dataclass(frozen=True)
class ViewSet:
    """N objects in memory.

    images (N, V, H, W, 4) uint8, straight alpha; cameras with batch (N,) and V views; points
    (N, P, 9) float32: position, normal, colour; meta: N entries of objects.json (id, caption,
    split, ...). Raises ValueError naming what does not fit together.

    >>> shapes = toy_views(2, seed=0, size=16, views=4, points=64)
    >>> shapes.images.shape, shapes.points.shape, len(shapes), shapes[1:].captions == shapes.captions[1:]
    (torch.Size([2, 4, 16, 16, 4]), torch.Size([2, 64, 9]), 2, True)
    """

    images: Tensor
    cameras: Cameras
    points: Tensor
    meta: list[dict]

    def __post_init__(self):
        n, v, h, w = self.images.shape[:4] if self.images.ndim == 5 else (0, 0, 0, 0)
        if not n or self.images.shape[4] != 4 or self.images.dtype != torch.uint8:
            raise ValueError("images: wanted (N, V, H, W, 4) uint8 with N > 0, "
                             f"got {tuple(self.images.shape)} {self.images.dtype}")
        got = (*self.cameras.batch_shape, len(self.cameras), self.cameras.height, self.cameras.width)
        if got != (n, v, h, w):
            raise ValueError(f"cameras: wanted batch, views, height, width {(n, v, h, w)} as the images, got {got}")
        if self.points.ndim != 3 or self.points.shape[0] != n or self.points.shape[2] != 9:
            raise ValueError(f"points: wanted ({n}, P, 9), got {tuple(self.points.shape)}")
        if len(self.meta) != n:
            raise ValueError(f"meta: wanted {n} entries, got {len(self.meta)}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index) -> ViewSet:
        """Some of the objects: a slice, a list of positions or a mask. An int keeps a set of one."""
        where = np.arange(len(self))[[index] if isinstance(index, int) else index]
        return replace(self, images=self.images[where], points=self.points[where], meta=[self.meta[i] for i in where],
                       cameras=replace(self.cameras, viewmats=self.cameras.viewmats[where], Ks=self.cameras.Ks[where]))

    @property
    def captions(self) -> list[str]:
        """One caption per object."""
        return [m["caption"] for m in self.meta]

    @property
    def ids(self) -> list[str]:
        """One id per object."""
        return [m["id"] for m in self.meta]


def load_views(split: str = "train", root: str | Path | None = None, limit: int | None = None,
               category: str | None = None, progress: bool = True) -> ViewSet:
    """The objects of one split of a folder in the format of `gsgen_lib.data.objects`.

    root: the folder, default the shipped data; limit: only the first so many; category: only these.
    Refuses (ValueError) an unknown split, a selection without objects, objects whose number or size
    of views differ, and a folder in which a file of this split also belongs to another split.
    FileNotFoundError or ValueError name a missing or damaged file.

    >>> real = load_views("val", limit=2, progress=False)
    >>> real.images.shape, {m["split"] for m in real.meta}
    (torch.Size([2, 24, 64, 64, 4]), {'val'})
    """
    from tqdm import tqdm

    if split not in SPLITS:  # None would mean all splits to `list_objects`
        raise ValueError(f"split: wanted one of {SPLITS}, got {split!r}")
    entries = list_objects(split, category, root)[:limit]
    if not entries:
        raise ValueError(f"no object with split {split!r} and category {category!r} in {root or 'the shipped data'}")
    others = {e["files"]["views"]["sha256"]: e["id"] for s in SPLITS if s != split for e in list_objects(s, root=root)}
    for e in entries:
        twin = others.get(e["files"]["views"]["sha256"])
        if twin is not None:
            raise ValueError(f"{INDEX}: {e['id']!r} of split {split!r} has the pictures of {twin!r} in another split")
    return _stack([load_object(e["id"], root) for e in tqdm(entries, desc=f"load {split}", disable=not progress)])


def toy_views(n: int, seed: int, size: int = 64, views: int = 24, split: str = "train", family: str | None = None,
              points: int = 2048, folder: str | Path | None = None, progress: bool = True, first: int = 0) -> ViewSet:
    """n toys, photographed like the shipped objects (`prerender`), about 0.2 s each with 24 views of 64 pixels.

    Toy i depends on (seed, split, family, i) alone: a longer list begins with the shorter one, and goes on where another that
    starts at `first` begins. split: "train" and
    "val" hold different toys without held-out combinations, "test" only held-out ones. `folder`
    keeps them on disk in the format of `gsgen_lib.data.objects` and reads back what is there already.
    meta holds family and attributes; `toy_of(meta)` makes the toy again. Raises ValueError naming
    the argument, or a file in `folder` that is damaged.

    >>> toy_views(1, seed=3, size=16, views=2, points=64, split="test").meta[0]["split"]
    'test'
    """
    from tqdm import tqdm

    if split not in SPLITS:
        raise ValueError(f"split: wanted one of {SPLITS}, got {split!r}")
    if n < 1 or size < 1 or views < 1 or points < 1 or seed < 0 or first < 0:
        raise ValueError("n, size, views, points: wanted >= 1, seed, first >= 0, got "
                         f"{(n, size, views, points, seed, first)}")
    known = {}
    if folder is not None and (Path(folder) / INDEX).is_file():
        known = {e["id"]: e for e in list_objects(split, root=folder)}
    made = []
    for i in tqdm(range(first, first + n), desc=f"toys {split}", disable=not progress):
        id = f"toy_{family or 'any'}_{split}_{seed}_{size}px_{views}x{points}_{i:06d}"
        if id in known:
            made.append(load_object(id, folder))
            continue
        generator = np.random.default_rng([seed, SPLITS.index(split), i])
        toy = sample_toy(generator, family, split="test" if split == "test" else "train")
        one = photograph_toy(toy, id, split, size, views, points)
        if folder is not None:
            save_object(folder, one.meta, one.images, one.points, one.normals, one.colors)
        made.append(one)
    return _stack(made)


def photograph_toy(toy: Toy, id: str, split: str = "train", size: int = 64, views: int = 24,
                   points: int = 2048) -> ObjectViews:
    """One toy as an `ObjectViews`: `views` pictures and `points` surface points, cameras as for real objects.

    >>> one = photograph_toy(sample_toy(np.random.default_rng(0), "fish"), "fish_0", size=16, views=4, points=32)
    >>> one.images.shape, one.meta["family"]
    ((4, 16, 16, 4), 'fish')
    """
    generator = id_generator(id)
    elevation, azimuth = view_angles(views, generator)
    meta = {"id": id, "name": f"Toy {toy.family}", "category": toy.family, "caption": toy.caption, "split": split,
            "family": toy.family, "attributes": dict(toy.attributes), "licence": "CC0-1.0", "creator": "procedural",
            "source": "gsgen_lib.data.toys", "size": size, "radius": RADIUS, "fov": FOV, "elevation": elevation,
            "azimuth": azimuth}
    cameras = object_cameras(meta)
    images = np.uint8(np.round(render_mesh(toy.mesh, cameras).rgba * 255))
    images[images[..., 3] == 0] = 0
    cloud = visible_sample(toy.mesh, cameras.centers.numpy().astype(np.float64), points, generator)
    return ObjectViews(id, images, cameras, *cloud, meta)


def toy_of(meta: dict) -> Toy:
    """The toy behind an entry of a toy set, with mesh and posterior.

    >>> meta = toy_views(1, seed=0, size=16, views=1, points=16).meta[0]
    >>> toy_of(meta).caption == meta["caption"]
    True
    """
    if "attributes" not in meta or "family" not in meta:
        raise ValueError(f"meta: {meta.get('id')!r} is no toy, it has no 'family' and 'attributes'")
    return make_toy(meta["family"], meta["attributes"])


def _stack(objects: list[ObjectViews]) -> ViewSet:
    """Objects of equal shape -> one ViewSet."""
    first = objects[0]
    for one in objects:
        if one.images.shape != first.images.shape or one.points.shape != first.points.shape:
            raise ValueError(f"{one.id!r}: images {one.images.shape}, points {one.points.shape}, but {first.id!r} has "
                             f"{first.images.shape}, {first.points.shape}: one set holds objects of one shape")
    cloud = [np.concatenate([one.points, one.normals, one.colors], axis=1) for one in objects]  # (P, 9)
    return ViewSet(
        images=torch.from_numpy(np.stack([one.images for one in objects])),
        cameras=Cameras.stack([one.cameras for one in objects]),
        points=torch.from_numpy(np.stack(cloud).astype(np.float32)),
        meta=[one.meta for one in objects],
    )

"""Training sets too large for memory: objects in tar files (WebDataset), read as a stream.

    gsgen data shard shards/train --source train            the shipped training objects
    gsgen data shard shards/mine --source my_objects        a folder that `gsgen data render` made
    gsgen data shard shards/toys --source toys --count 4000 --size 128

`write_views` writes any sets of views, filmed ones (`data.captures`) among them. A folder of shards holds 000000.tar, 000001.tar,
... and index.json, which says of each how many objects it has and its sha256. An object in a tar file is

    KEY.views.png        its V views below one another, RGBA          KEY.meta.json       an entry of objects.json
    KEY.viewmats.npy     world to camera (V, 4, 4)                    KEY.intrinsics.npy   (V, 3, 3)
    KEY.points.npy       position, normal, colour (P, 9)

A disk likes to be read in order and a training wants no order at all. So each process takes its share of the shards, in a new
order at each pass, and draws from a buffer of `buffer` objects that the stream refills:

    pass e: shards permuted by (seed, e), every n-th is ours -> objects in file order -> buffer -> a random one of the buffer

The smaller the buffer, the less is shuffled. `from_shards` gives a training what it asks for, draw(count, generator) -> ViewSet;
`multiview.drawn_from` makes batches of that or of a set in memory. (After an interruption a stream goes on at another place: only
trainings from memory take the same steps as if there had been none.)

A shard is read whole and compared with its sha256 before anything of it is used; arrays are read with pickle switched off. Used
by notebook 08.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from itertools import count as counting
from pathlib import Path

import numpy as np
import torch

from gsgen_lib.data.objects import write_atomic
from gsgen_lib.data.view_sets import ViewSet, load_views, toy_views
from gsgen_lib.scene.cameras import Cameras

INDEX, UNFINISHED = "index.json", "unfinished.json"
NAME = re.compile(r"\d{6}\.tar")
TOY_SEED = 5_000_000
CHUNK = 64  # toys rendered at a time


def write_shards(out: Path, source: str = "train", count: int | None = None, size: int = 64, per_shard: int = 64,
                 seed: int = 0) -> int:
    """Write a training set as shards; an unfinished folder is begun again, a finished one is refused.

    out: folder; source: a split of the shipped objects (train, val), "toys", or a folder of objects with split "train"; count:
    objects, all if not given (toys need it); size: pixels of toys; per_shard: objects in a tar file; seed: of the toys, and of
    the order in which objects are written. Returns 0.
    """
    if per_shard < 1 or count is not None and count < 1:
        raise ValueError(f"per_shard, count: got {per_shard}, {count}, wanted at least 1")
    if source == "toys":
        if count is None:
            raise ValueError("count: wanted a number of toys")
        sets = (toy_views(min(CHUNK, count - first), TOY_SEED + seed, size, first=first) for first in range(0, count, CHUNK))
    elif source == "test":
        raise ValueError("source: got 'test', which nothing learns from; wanted train, val, toys or a folder")
    else:
        if size != 64:
            raise ValueError(f"size: got {size}, but only toys are rendered anew; objects keep the size that they have")
        views = load_views(source, limit=count) if source in ("train", "val") else load_views("train", source, count)
        sets = [views[torch.randperm(len(views), generator=torch.Generator().manual_seed(seed)).tolist()]]
    index = write_views(out, sets, per_shard)
    (h, w), v = index["size"], index["views"]
    print(f"{out}: {index['objects']} objects of {v} views of {w} x {h} pixels in {len(index['shards'])} shards")
    return 0


def write_views(out: str | Path, sets: Iterable[ViewSet], per_shard: int = 64) -> dict:
    """Write sets of views of equal shape as shards; returns the index. A folder that was left unfinished is begun again.

    Raises ValueError for a finished folder, for one with tar files of somebody else, and for sets that differ in shape.
    """
    import webdataset

    out = Path(out)
    if (out / INDEX).is_file():
        raise ValueError(f"out: {out} holds a finished set; delete it, or take another folder")
    out.mkdir(parents=True, exist_ok=True)
    ours = _left_over(out)
    strange = sorted(p.name for p in out.glob("*.tar") if p.name not in ours)
    if strange:
        raise ValueError(f"out: {out} holds {strange[0]}, which is not of an unfinished set; take another folder")
    for name in ours:
        (out / name).unlink(missing_ok=True)
    objects, shards, written, shape = _alike(sets), {}, 0, None
    while (first := next(objects, None)) is not None:
        name = f"{len(shards):06d}.tar"
        write_atomic(out / UNFINISHED, json.dumps([*shards, name]).encode())  # before there is such a file
        before = written
        with (out / name).open("wb") as file:
            with webdataset.TarWriter(file, mtime=0.0) as writer:
                for views, k in chain([first], islice(objects, per_shard - 1)):
                    writer.write({"__key__": f"{written:08d}", **_packed(views, k)})
                    written, shape = written + 1, _shape(views)
        shards[name] = {"objects": written - before, "sha256": hashlib.sha256((out / name).read_bytes()).hexdigest()}
    if shape is None:
        raise ValueError("sets: got no objects, wanted at least one")
    index = {"objects": written, "views": shape[0], "size": list(shape[1:3]), "points": shape[3], "shards": shards}
    write_atomic(out / INDEX, (json.dumps(index) + "\n").encode())
    (out / UNFINISHED).unlink()
    return index


def _shape(views: ViewSet) -> tuple[int, int, int, int]:
    """Views, height, width, points."""
    return (*views.images.shape[1:4], views.points.shape[1])


def _alike(sets: Iterable[ViewSet]) -> Iterator[tuple[ViewSet, int]]:
    """(set, number) of each object; ValueError where shapes differ."""
    shape = None
    for views in sets:
        shape = shape or _shape(views)
        if _shape(views) != shape:
            raise ValueError(f"sets: got views, height, width, points {_shape(views)}, wanted {shape} as before")
        yield from ((views, k) for k in range(len(views)))


def _left_over(out: Path) -> list[str]:
    """The shards that an interrupted writing has begun."""
    try:
        names = json.loads((out / UNFINISHED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise ValueError(f"{out / UNFINISHED}: not JSON; delete it and the tar files beside it") from error
    if not isinstance(names, list) or not all(isinstance(name, str) and NAME.fullmatch(name) for name in names):
        raise ValueError(f"{out / UNFINISHED}: names other things than shards; delete it")
    return names


def _packed(views: ViewSet, i: int) -> dict[str, bytes]:
    from PIL import Image

    def array(x):
        file = io.BytesIO()
        np.save(file, np.ascontiguousarray(x), allow_pickle=False)
        return file.getvalue()

    png = io.BytesIO()
    Image.fromarray(views.images[i].flatten(0, 1).numpy()).save(png, "PNG")  # (V H, W, 4)
    return {"views.png": png.getvalue(), "viewmats.npy": array(views.cameras.viewmats[i].numpy()),
            "intrinsics.npy": array(views.cameras.Ks[i].numpy()), "points.npy": array(views.points[i].numpy()),
            "meta.json": json.dumps(views.meta[i]).encode()}


def read_index(folder: str | Path) -> dict:
    """index.json of a folder of shards; FileNotFoundError or ValueError where it is not whole, or names other files."""
    file = Path(folder) / INDEX
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; gsgen data shard writes a folder of shards, and this file last")
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        (h, w), shards = index["size"], index["shards"]
        numbers = [h, w, index["objects"], index["views"], index["points"], *(one["objects"] for one in shards.values())]
        whole = all(isinstance(x, int) and not isinstance(x, bool) and x > 0 for x in numbers)
        named = all(NAME.fullmatch(name) and re.fullmatch(r"[0-9a-f]{64}", one["sha256"]) for name, one in shards.items())
        whole = whole and named and bool(shards) and sum(one["objects"] for one in shards.values()) == index["objects"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file}: not an index of shards ({type(error).__name__}: {str(error)[:200]})") from error
    if not whole:
        raise ValueError(f"{file}: wanted positive numbers 'objects', 'views', 'points', 'size', and 'shards': names like "
                         "000000.tar with their 'objects', which sum to all, and 'sha256'")
    for name in shards:
        if not (Path(folder) / name).is_file():
            raise FileNotFoundError(f"{Path(folder) / name}: missing, though {INDEX} names it")
    return index


def stream(folder: str | Path, seed: int = 0, buffer: int = 512, process: int = 0, processes: int = 1) -> Iterator[ViewSet]:
    """Objects of a folder of shards, one at a time, without end; each process has its own.

    Raises ValueError for fewer shards than processes, or naming a damaged shard.
    """
    index = read_index(folder)
    if not 0 <= process < processes:
        raise ValueError(f"process, processes: got {process}, {processes}, wanted 0 <= process < processes")
    if len(index["shards"]) < processes:
        raise ValueError(f"{folder}: has {len(index['shards'])} shards, wanted at least one for each of {processes} processes; "
                         "write them with a smaller --per-shard")
    if buffer < 1:
        raise ValueError(f"buffer: got {buffer}, wanted at least 1")
    for turn in counting():
        shards = sorted(index["shards"])
        random.Random(f"{seed} {turn}").shuffle(shards)  # the same order for all processes
        waiting, pick = [], random.Random(f"{seed} {turn} {process}")
        for name in shards[process::processes]:
            for one in read_shard(Path(folder) / name, index):
                waiting.append(one)
                if len(waiting) >= buffer:
                    yield waiting.pop(pick.randrange(len(waiting)))
        while waiting:
            yield waiting.pop(pick.randrange(len(waiting)))


def read_shard(file: Path, index: dict) -> Iterator[ViewSet]:
    """The objects of one shard, in order. ValueError for a file whose sha256 is not that of the index, before anything is read,
    and for objects that do not fit it."""
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    content, wanted = file.read_bytes(), index["shards"][file.name]
    if hashlib.sha256(content).hexdigest() != wanted["sha256"]:
        raise ValueError(f"{file}: damaged, its sha256 is not the one in {INDEX}; write the set again")
    members = (member | {"__url__": str(file)} for member in tar_file_iterator(io.BytesIO(content)))
    found = 0
    for sample in group_by_keys(members):
        found += 1
        yield _unpacked(sample, index)
    if found != wanted["objects"]:
        raise ValueError(f"{file}: holds {found} objects, {INDEX} says {wanted['objects']}")


def _unpacked(sample: dict, index: dict) -> ViewSet:
    from PIL import Image

    where = f"{sample.get('__url__')}: object {sample.get('__key__')}"
    try:
        (h, w), v = index["size"], index["views"]
        sheet = np.array(Image.open(io.BytesIO(sample["views.png"]), formats=["PNG"]))
        arrays = [np.load(io.BytesIO(sample[f"{name}.npy"]), allow_pickle=False) for name in ("viewmats", "intrinsics", "points")]
        shapes = [(v, 4, 4), (v, 3, 3), (index["points"], 9)]
        if [x.shape for x in arrays] != shapes or any(x.dtype != np.float32 for x in arrays) or sheet.shape != (v * h, w, 4):
            raise ValueError(f"arrays {[x.shape for x in arrays]}, views {sheet.shape}, wanted {shapes} float32, {(v * h, w, 4)}")
        if not all(np.isfinite(x).all() for x in arrays):
            raise ValueError("numbers that are not finite")
        viewmats, Ks, points = (torch.from_numpy(x)[None] for x in arrays)
        meta = json.loads(sample["meta.json"])
        if not isinstance(meta, dict) or not all(isinstance(meta.get(key), str) for key in ("id", "caption", "split")):
            raise ValueError("meta.json: wanted id, caption and split")
        cameras = Cameras(viewmats, Ks, w, h).validate()
        return ViewSet(torch.from_numpy(sheet).reshape(1, v, h, w, 4), cameras, points, [meta])
    except Exception as error:  # of Pillow, numpy, json, or what does not fit together
        raise ValueError(f"{where}: damaged ({type(error).__name__}: {str(error)[:200]})") from error


def joined(parts: list[ViewSet]) -> ViewSet:
    """Several sets of equal views as one.

    >>> a, b = (toy_views(1, k, 8, 2, points=4, progress=False) for k in range(2))
    >>> joined([a, b]).ids == a.ids + b.ids
    True
    """
    first = parts[0].cameras
    cameras = Cameras(torch.cat([p.cameras.viewmats for p in parts]), torch.cat([p.cameras.Ks for p in parts]), first.width,
                      first.height)
    return ViewSet(torch.cat([p.images for p in parts]), cameras, torch.cat([p.points for p in parts]),
                   [m for p in parts for m in p.meta])


def from_shards(folder: str | Path, buffer: int = 512) -> Callable[[int, torch.Generator], ViewSet]:
    """draw(count, generator): the next objects of the stream of this process. The stream begins at the first call, at a place
    that its generator tells, so that an interrupted training does not see the first objects again and again."""
    read_index(folder)
    streams: list[Iterator[ViewSet]] = []

    def draw(count: int, generator: torch.Generator) -> ViewSet:
        if not streams:
            distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
            place = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
            streams.append(stream(folder, _shared_seed(generator), buffer, *place))
        return joined([next(streams[0]) for _ in range(count)])

    return draw


def _shared_seed(generator: torch.Generator) -> int:
    """A seed that all processes agree on: that of the first, whose shards' order the others follow."""
    seed = torch.tensor([generator.initial_seed()])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        if torch.distributed.get_backend() == "nccl":
            seed = seed.cuda()
        torch.distributed.broadcast(seed, 0)
    return int(seed)

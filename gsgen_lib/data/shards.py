"""Training sets too large for memory: objects in tar files (WebDataset), read as a stream.

    gsgen data shard --source train --out shards/train          the shipped training objects
    gsgen data shard --source my_objects --out shards/mine      a folder that `gsgen data render` made
    gsgen data shard --source toys --count 4000 --size 128 --out shards/toys

A folder of shards holds index.json and 000000.tar, 000001.tar, ... . An object in a tar file is

    KEY.views.png        its V views below one another, RGBA          KEY.meta.json       an entry of objects.json
    KEY.viewmats.npy     world to camera (V, 4, 4)                    KEY.intrinsics.npy   (V, 3, 3)
    KEY.points.npy       position, normal, colour (P, 9)

A disk likes to be read in order and a training wants no order at all. So each process takes its share of the shards, in a new
order at each pass, and draws from a buffer of `buffer` objects that the stream refills:

    pass e: shards permuted by (seed, e), every n-th is ours -> objects in file order -> buffer -> a random one of the buffer

The smaller the buffer, the less is shuffled. `from_shards` gives a training what it asks for, draw(count, generator) -> ViewSet;
`multiview.drawn_from` makes batches of that or of a set in memory. (After an interruption a stream goes on at another place: only
trainings from memory take the same steps as if there had been none.)

Arrays are read with pickle switched off. Used by notebook 08.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from itertools import count as counting
from pathlib import Path

import numpy as np
import torch

from gsgen_lib.data.view_sets import ViewSet, load_views, toy_views
from gsgen_lib.scene.cameras import Cameras

INDEX = "index.json"
TOY_SEED = 5_000_000
CHUNK = 64  # toys rendered at a time


def write_shards(out: Path, source: str = "train", count: int | None = None, size: int = 64, per_shard: int = 64,
                 seed: int = 0) -> int:
    """Write a training set as shards; an unfinished folder is begun again, a finished one is refused.

    out: folder; source: a split of the shipped objects (train, val), "toys", or a folder of objects with split "train"; count:
    objects, all if not given (toys need it); size: pixels of toys; per_shard: objects in a tar file; seed: of the toys, and of
    the order in which objects are written. Returns 0.
    """
    import webdataset

    if per_shard < 1 or count is not None and count < 1:
        raise ValueError(f"per_shard, count: got {per_shard}, {count}, wanted at least 1")
    if source == "toys":
        if count is None:
            raise ValueError("count: wanted a number of toys")
        sets = (toy_views(min(CHUNK, count - first), TOY_SEED + seed, size, first=first) for first in range(0, count, CHUNK))
    elif source == "test":
        raise ValueError("source: got 'test', which nothing learns from; wanted train, val, toys or a folder")
    else:
        views = load_views(source, limit=count) if source in ("train", "val") else load_views("train", source, count)
        sets = iter([views[torch.randperm(len(views), generator=torch.Generator().manual_seed(seed)).tolist()]])
    out = Path(out)
    if (out / INDEX).is_file():
        raise ValueError(f"out: {out} holds a finished set; delete it, or take another folder")
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("[0-9]" * 6 + ".tar"):
        old.unlink()
    written, sizes = 0, set()
    with webdataset.ShardWriter(str(out / "%06d.tar").replace("\\", "/"), maxcount=per_shard, verbose=0, mtime=0.0) as writer:
        for views in sets:
            sizes.add(tuple(views.images.shape[1:4]))
            for i in range(len(views)):
                writer.write({"__key__": f"{written:08d}", **_packed(views, i)})
                written += 1
    shards = sorted(p.name for p in out.glob("*.tar"))
    v, h, w = sizes.pop()
    index = {"objects": written, "views": v, "size": [h, w], "shards": shards}
    (out / INDEX).write_text(json.dumps(index) + "\n", encoding="utf-8")
    print(f"{out}: {written} objects of {v} views of {w} x {h} pixels in {len(shards)} shards")
    return 0


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
    """index.json of a folder of shards; FileNotFoundError or ValueError where it is not whole."""
    file = Path(folder) / INDEX
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; gsgen data shard writes a folder of shards, and this file last")
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        (h, w), shards, whole = index["size"], index["shards"], (index["objects"], index["views"])
        ok = all(isinstance(x, int) and x > 0 for x in (h, w, *whole)) and shards and all(isinstance(s, str) for s in shards)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file}: not an index of shards ({type(error).__name__}: {error})") from error
    if not ok:
        raise ValueError(f"{file}: wanted positive numbers 'objects', 'views', 'size' and a list 'shards'")
    for name in shards:
        if not (Path(folder) / name).is_file():
            raise FileNotFoundError(f"{Path(folder) / name}: missing, though {INDEX} names it")
    return index


def stream(folder: str | Path, seed: int = 0, buffer: int = 512, process: int = 0, processes: int = 1) -> Iterator[ViewSet]:
    """Objects of a folder of shards, one at a time, without end; each process has its own.

    Raises ValueError for fewer shards than processes, or naming a damaged shard.
    """
    import webdataset

    index = read_index(folder)
    if len(index["shards"]) < processes:
        raise ValueError(f"{folder}: has {len(index['shards'])} shards, wanted at least one for each of {processes} processes; "
                         "write them with a smaller --per-shard")
    if buffer < 1:
        raise ValueError(f"buffer: got {buffer}, wanted at least 1")
    for turn in counting():
        shards = list(index["shards"])
        random.Random(f"{seed} {turn}").shuffle(shards)  # the same order for all processes
        mine = [str(Path(folder) / name).replace("\\", "/") for name in shards[process::processes]]
        files = webdataset.WebDataset(mine, shardshuffle=False, nodesplitter=lambda urls: urls, workersplitter=lambda urls: urls)
        waiting, pick = [], random.Random(f"{seed} {turn} {process}")
        samples = iter(files)
        while True:
            try:
                waiting.append(_unpacked(next(samples), index))
            except StopIteration:
                break
            except ValueError:
                raise
            except Exception as error:  # of tarfile, of the file system
                raise ValueError(f"{folder}: a shard is damaged ({type(error).__name__}: {str(error)[:200]})") from error
            if len(waiting) >= buffer:
                yield waiting.pop(pick.randrange(len(waiting)))
        while waiting:
            yield waiting.pop(pick.randrange(len(waiting)))


def _unpacked(sample: dict, index: dict) -> ViewSet:
    from PIL import Image

    where = f"{sample.get('__url__')}: object {sample.get('__key__')}"
    try:
        (h, w), v = index["size"], index["views"]
        sheet = np.array(Image.open(io.BytesIO(sample["views.png"])))
        arrays = [torch.from_numpy(np.load(io.BytesIO(sample[f"{name}.npy"]), allow_pickle=False))
                  for name in ("viewmats", "intrinsics", "points")]
        viewmats, Ks, points = (x[None].float() for x in arrays)
        images = torch.from_numpy(sheet).reshape(1, v, h, w, 4)
        return ViewSet(images, Cameras(viewmats, Ks, w, h), points, [json.loads(sample["meta.json"])])
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

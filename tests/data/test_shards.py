"""Objects in tar files: written, read back, shuffled, shared among processes; and what is refused."""

import hashlib
import io
import itertools
import json
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from gsgen_lib.data import shards
from gsgen_lib.data.multiview import MultiView, drawn_from
from gsgen_lib.data.shards import from_shards, joined, read_index, read_shard, stream, write_shards, write_views
from gsgen_lib.data.view_sets import load_views, toy_views


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("shards")
    toys(out / "objects")
    assert write_shards(out / "shards", str(out / "objects"), per_shard=4) == 0
    return out / "shards"


def toys(folder=None):
    return toy_views(20, 0, 16, 8, points=16, folder=folder, progress=False)


def first(folder, n, **more):
    return list(itertools.islice(stream(folder, **more), n))


def test_what_is_read_is_what_was_written(folder):
    index = read_index(folder)
    assert index["objects"] == 20 and len(index["shards"]) == 5 and index["size"] == [16, 16]
    views = load_views("train", folder.parent / "objects", progress=False)
    true = {views.ids[k]: views[[k]] for k in range(20)}
    found = first(folder, 20)
    assert {one.ids[0] for one in found} == set(true)
    for one in found:
        other = true[one.ids[0]]
        assert torch.equal(one.images, other.images) and torch.equal(one.points, other.points) and one.meta == other.meta
        assert torch.equal(one.cameras.viewmats, other.cameras.viewmats) and torch.equal(one.cameras.Ks, other.cameras.Ks)


def test_webdataset_itself_reads_them(folder):
    import webdataset

    files = [str(folder / name) for name in read_index(folder)["shards"]]
    samples = list(webdataset.WebDataset(files, shardshuffle=False))
    assert len(samples) == 20 and {"views.png", "viewmats.npy", "intrinsics.npy", "points.npy", "meta.json"} <= set(samples[0])


def test_each_pass_has_all_objects_in_another_order(folder):
    ids = [one.ids[0] for one in first(folder, 40, buffer=8)]
    assert len(set(ids[:20])) == 20 and set(ids[20:]) == set(ids[:20]) and ids[:20] != ids[20:]
    assert ids == [one.ids[0] for one in first(folder, 40, buffer=8)]  # the same seed, the same order
    assert ids != [one.ids[0] for one in first(folder, 40, buffer=8, seed=1)]


def test_a_larger_buffer_shuffles_more(folder):
    import webdataset

    files = [str(folder / name) for name in read_index(folder)["shards"]]
    place = {json.loads(sample["meta.json"])["id"]: i for i, sample in enumerate(webdataset.WebDataset(files, shardshuffle=False))}

    def near(buffer):  # how often two neighbours in the stream were neighbours in a file
        places = [place[one.ids[0]] for one in first(folder, 400, buffer=buffer)]
        return np.mean([b == a + 1 for a, b in itertools.pairwise(places)])

    assert near(1) > 0.7 and near(20) < 0.2


def test_processes_share_the_objects(folder):
    parts = [[one.ids[0] for one in first(folder, n, process=p, processes=2, buffer=3)] for p, n in ((0, 12), (1, 8))]
    assert len(set(parts[0]) | set(parts[1])) == 20 and not set(parts[0]) & set(parts[1])
    with pytest.raises(ValueError, match="5 shards, wanted at least one for each of 6 processes"):
        next(stream(folder, processes=6))


def test_batches_of_shards_and_of_memory(folder):
    for source in (toy_views(3, 0, 16, 8, points=16, progress=False), from_shards(folder, buffer=4)):
        draw = drawn_from(source, 4, 2, inputs="orthogonal", background=None)
        batch = draw(5, torch.Generator().manual_seed(0))
        assert batch.images.shape == (5, 6, 16, 16, 4) and batch.n_inputs == 4
    begun = [from_shards(folder)(4, torch.Generator().manual_seed(k)).ids for k in (0, 0, 1)]
    assert begun[0] == begun[1] != begun[2]
    views, generator = toy_views(9, 0, 16, 8, points=16, progress=False), torch.Generator().manual_seed(3)
    again = MultiView(views, 2, 3).batch(torch.randint(9, (4,), generator=generator), generator)
    assert torch.equal(again.images, drawn_from(views, 2, 3)(4, torch.Generator().manual_seed(3)).images)


def test_each_process_of_a_training_streams_its_own_share(folder, monkeypatch):
    seen, told = [], []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    monkeypatch.setattr(torch.distributed, "broadcast", lambda seed, first: told.append(first) or seed.fill_(7))
    for rank, count in ((0, 12), (1, 8)):  # their generators differ, the order of the shards must not
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        seen.append(set(from_shards(folder, buffer=3)(count, torch.Generator().manual_seed(rank)).ids))
    assert told == [0, 0] and len(seen[0] | seen[1]) == 20 and not seen[0] & seen[1]


def test_joined_keeps_the_order():
    a, b = (toy_views(2, k, 16, 3, points=4, progress=False) for k in range(2))
    both = joined([a, b])
    assert both.ids == a.ids + b.ids and torch.equal(both.cameras.viewmats[2:], b.cameras.viewmats)


def test_a_shipped_split_and_a_folder(tmp_path):
    write_shards(tmp_path / "a", "val", count=3)
    assert {one.meta[0]["split"] for one in first(tmp_path / "a", 3)} == {"val"}
    write_shards(tmp_path / "b", "toys", count=2, size=8)
    index = read_index(tmp_path / "b")
    digest = hashlib.sha256((tmp_path / "b" / "000000.tar").read_bytes()).hexdigest()
    assert index == {"objects": 2, "views": 24, "size": [8, 8], "points": 2048,
                     "shards": {"000000.tar": {"objects": 2, "sha256": digest}}}
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["000000.tar", "index.json"]
    with pytest.raises(ValueError, match="finished set"):
        write_shards(tmp_path / "b", "val", count=1)


class Stop(Exception):
    pass


def test_an_interrupted_writing_begins_again_and_touches_nothing_else(tmp_path):
    def until(n):
        yield toys()[:n]
        raise Stop

    with pytest.raises(Stop):
        write_views(tmp_path / "a", until(5), per_shard=2)
    assert sorted(p.name for p in (tmp_path / "a").glob("*")) == ["000000.tar", "000001.tar", "000002.tar", "unfinished.json"]
    with pytest.raises(FileNotFoundError, match="index.json"):
        next(stream(tmp_path / "a"))
    index = write_views(tmp_path / "a", [toys()[:3]], per_shard=2)
    assert sorted(p.name for p in (tmp_path / "a").glob("*")) == ["000000.tar", "000001.tar", "index.json"]
    assert [one["objects"] for one in index["shards"].values()] == [2, 1]
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "202401.tar").write_bytes(b"mine")
    with pytest.raises(ValueError, match="202401.tar, which is not of an unfinished set"):
        write_views(tmp_path / "c", [toys()[:1]])
    assert (tmp_path / "c" / "202401.tar").read_bytes() == b"mine"
    odd = tmp_path / "50%done %06d"
    assert write_views(odd, [toys()[:1]])["objects"] == 1 and next(stream(odd)) is not None


def test_sets_that_differ_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got views, height, width, points \(4, 16, 16, 16\), wanted \(8, 16, 16, 16\)"):
        write_views(tmp_path / "a", [toys()[:1], toy_views(1, 0, 16, 4, points=16, progress=False)])
    with pytest.raises(ValueError, match="got no objects"):
        write_views(tmp_path / "b", [])
    with pytest.raises(ValueError, match="size: got 32, but only toys"):
        write_shards(tmp_path / "c", "val", count=1, size=32)


def test_toys_of_several_chunks_are_different(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "CHUNK", 2)
    write_shards(tmp_path / "a", "toys", count=5, size=8)
    ids = [one.ids[0] for one in first(tmp_path / "a", 5)]
    assert len(set(ids)) == 5


def test_objects_are_written_in_random_order(folder):
    views = load_views("train", folder.parent / "objects", progress=False)
    written = [one.ids[0] for name in sorted(read_index(folder)["shards"]) for one in read_shard(folder / name, read_index(folder))]
    assert sorted(written) == sorted(views.ids) and written != views.ids


def test_the_seed_permutes_the_shards(folder):
    """With a buffer of one, objects come in the order of files, so the first one tells which shard came first."""
    begun = {first(folder, 1, seed=seed, buffer=1)[0].ids[0] for seed in range(12)}
    assert len(begun) >= 3


def test_wrong_input_is_named(tmp_path, folder):
    with pytest.raises(ValueError, match="count: wanted a number of toys"):
        write_shards(tmp_path / "a", "toys")
    with pytest.raises(ValueError, match="source: got 'test'"):
        write_shards(tmp_path / "a", "test")
    with pytest.raises(ValueError, match="per_shard"):
        write_shards(tmp_path / "a", "val", per_shard=0)
    with pytest.raises(FileNotFoundError, match="index.json"):
        from_shards(tmp_path / "nothing")
    with pytest.raises(ValueError, match="buffer"):
        next(stream(folder, buffer=0))


def broken_copy(folder, out, change, honest=True):
    """One shard, one of whose files `change`(name, content) has changed; honest: with the index of what there is now."""
    out.mkdir()
    index, objects = read_index(folder), set()
    with tarfile.open(folder / "000000.tar") as old, tarfile.open(out / "000000.tar", "w") as new:
        for member in old.getmembers():
            content = change(member.name, old.extractfile(member).read())
            if content is not None:
                objects.add(member.name.split(".")[0])
                member.size = len(content)
                new.addfile(member, io.BytesIO(content))
    own = index["shards"]["000000.tar"]
    if honest:
        own = {"objects": len(objects), "sha256": hashlib.sha256((out / "000000.tar").read_bytes()).hexdigest()}
    (out / "index.json").write_text(json.dumps(index | {"objects": own["objects"], "shards": {"000000.tar": own}}))


class Bomb:
    """Unpickled, it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def array(x):
    file = io.BytesIO()
    np.save(file, x, allow_pickle=True)
    return file.getvalue()


def only(ending, make):
    return lambda name, content: make(content) if name.endswith(ending) else content


def sheet(content, change):
    file = io.BytesIO()
    Image.fromarray(change(np.array(Image.open(io.BytesIO(content))))).save(file, "PNG")
    return file.getvalue()


DAMAGES = {
    "cut": only("png", lambda x: x[:60]),
    "missing": lambda name, content: None if name.endswith("intrinsics.npy") else content,
    "meta": only("json", lambda x: b"{"),
    "no caption": only("json", lambda x: b"{}"),
    "a list": only("json", lambda x: b"[]"),
    "not finite": only("points.npy", lambda x: array(np.full((16, 9), np.nan, np.float32))),
    "no rotation": only("viewmats.npy", lambda x: array(np.full((8, 4, 4), 7, np.float32))),
    "no lens": only("intrinsics.npy", lambda x: array(np.zeros((8, 3, 3), np.float32))),
    "other points": only("points.npy", lambda x: array(np.zeros((5, 9), np.float32))),
    "whole numbers": only("points.npy", lambda x: array(np.zeros((16, 9), np.int64))),
    "side by side": only("png", lambda x: sheet(x, lambda a: a.reshape(8, 16, 16, 4).swapaxes(0, 1).reshape(16, 128, 4))),
    "postscript": only("png", lambda x: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 128\n"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_objects_are_refused(tmp_path, folder, damage):
    broken_copy(folder, tmp_path / "b", DAMAGES[damage])
    with pytest.raises(ValueError, match=r"000000.tar: object 0000000\d: damaged"):
        next(stream(tmp_path / "b"))


def test_nothing_is_unpickled(tmp_path, folder):
    bomb = array(np.array([Bomb(tmp_path / "boom")], dtype=object))
    broken_copy(folder, tmp_path / "b", only("points.npy", lambda x: bomb))
    with pytest.raises(ValueError, match="damaged"):
        next(stream(tmp_path / "b"))
    assert not (tmp_path / "boom").exists()
    np.load(io.BytesIO(bomb), allow_pickle=True)  # negative control: it is a bomb
    assert (tmp_path / "boom").exists()


@pytest.mark.parametrize("hurt", ["last object gone", "a byte", "zeros"])
def test_a_shard_that_is_not_the_one_written_is_refused_whole(tmp_path, folder, hurt):
    broken_copy(folder, tmp_path / "b", lambda name, content: content, honest=False)
    shutil.copy(folder / "000000.tar", tmp_path / "b" / "000000.tar")
    assert next(stream(tmp_path / "b")) is not None
    tar = tmp_path / "b" / "000000.tar"
    content = bytearray(tar.read_bytes())
    if hurt == "last object gone":
        shutil.rmtree(tmp_path / "b")
        broken_copy(folder, tmp_path / "b", lambda name, x: None if name.startswith("00000003") else x, honest=False)
    elif hurt == "a byte":
        content[len(content) // 2] ^= 1
    else:
        content[len(content) // 2 : len(content) // 2 + 512] = bytes(512)
    if hurt != "last object gone":
        tar.write_bytes(content)
    with pytest.raises(ValueError, match="000000.tar: damaged, its sha256"):
        next(stream(tmp_path / "b"))


def test_an_index_that_lies_about_its_objects_is_refused(tmp_path, folder):
    broken_copy(folder, tmp_path / "b", lambda name, content: content)
    index = json.loads((tmp_path / "b" / "index.json").read_text())
    index["objects"] = index["shards"]["000000.tar"]["objects"] = 5
    (tmp_path / "b" / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="holds 4 objects, index.json says 5"):
        list(itertools.islice(stream(tmp_path / "b"), 6))


@pytest.mark.parametrize("name", ["pipe:touch PWNED; cat 000000.tar #", "../s/000000.tar", "/etc/passwd", "000000.tar\n", "a.tar"])
def test_other_names_than_those_of_shards_are_refused(tmp_path, folder, name, monkeypatch):
    broken_copy(folder, tmp_path / "b", lambda name, content: content)
    index = json.loads((tmp_path / "b" / "index.json").read_text())
    index["shards"] = {name: index["shards"]["000000.tar"]}
    (tmp_path / "b" / "index.json").write_text(json.dumps(index))
    monkeypatch.chdir(tmp_path / "b")
    with pytest.raises(ValueError, match="index.json: wanted"):
        next(stream("."))
    assert not (tmp_path / "b" / "PWNED").exists()


def test_damaged_folders_are_refused(tmp_path, folder):
    broken_copy(folder, tmp_path / "b", lambda name, content: content)
    (tmp_path / "b" / "000000.tar").unlink()
    with pytest.raises(FileNotFoundError, match="000000.tar: missing"):
        next(stream(tmp_path / "b"))
    for text in ("[]", "{", "[" * 100_000, '{"objects": 0, "views": 1, "size": [1, 1], "points": 1, "shards": {}}'):
        (tmp_path / "b" / "index.json").write_text(text)
        with pytest.raises(ValueError, match="index.json"):
            next(stream(tmp_path / "b"))
    for process, processes in ((7, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="process, processes: got"):
            next(stream(folder, process=process, processes=processes))


def test_filmed_objects_become_shards(tmp_path):
    """Sets of any origin: `write_views` keeps what `data.captures.view_set` makes."""
    views = toy_views(2, 0, 16, 5, points=16, progress=False)
    views = replace(views, meta=[{"id": m["id"], "caption": "filmed", "split": "train"} for m in views.meta])
    write_views(tmp_path / "a", [views])
    assert {one.captions[0] for one in first(tmp_path / "a", 2)} == {"filmed"}

"""Objects in tar files: written, read back, shuffled, shared among processes; and what is refused."""

import io
import itertools
import json
import tarfile

import numpy as np
import pytest
import torch

from gsgen_lib.data.multiview import MultiView, drawn_from
from gsgen_lib.data.shards import from_shards, joined, read_index, stream, write_shards
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
    assert read_index(tmp_path / "b") == {"objects": 2, "views": 24, "size": [8, 8], "shards": ["000000.tar"]}
    with pytest.raises(ValueError, match="finished set"):
        write_shards(tmp_path / "b", "val", count=1)
    (tmp_path / "b" / "index.json").unlink()  # as if it had been interrupted
    (tmp_path / "b" / "000007.tar").write_bytes(b"half")
    (tmp_path / "b" / "letters.tar").write_bytes(b"mine")
    write_shards(tmp_path / "b", "val", count=1)
    assert read_index(tmp_path / "b")["objects"] == 1
    assert sorted(p.name for p in (tmp_path / "b").glob("*.tar")) == ["000000.tar", "letters.tar"]


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


def broken_copy(folder, out, change):
    """One shard, one of whose files `change`(name, content) has changed."""
    out.mkdir()
    with tarfile.open(folder / "000000.tar") as old, tarfile.open(out / "000000.tar", "w") as new:
        for member in old.getmembers():
            content = change(member.name, old.extractfile(member).read())
            if content is not None:
                member.size = len(content)
                new.addfile(member, io.BytesIO(content))
    (out / "index.json").write_text(json.dumps(read_index(folder) | {"shards": ["000000.tar"]}))


def pickled(name, content):
    if not name.endswith("points.npy"):
        return content
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return file.getvalue()


DAMAGES = {"pickle": pickled, "cut": lambda name, content: content[:60] if name.endswith("png") else content,
           "missing": lambda name, content: None if name.endswith("intrinsics.npy") else content,
           "meta": lambda name, content: b"{" if name.endswith("json") else content}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_objects_are_refused(tmp_path, folder, damage):
    broken_copy(folder, tmp_path / "b", DAMAGES[damage])
    with pytest.raises(ValueError, match=r"000000.tar: object 0000000\d: damaged"):
        next(stream(tmp_path / "b"))


def test_damaged_folders_are_refused(tmp_path, folder):
    broken_copy(folder, tmp_path / "b", lambda name, content: content)
    assert next(stream(tmp_path / "b")) is not None
    tar = tmp_path / "b" / "000000.tar"
    tar.write_bytes(b"\x00" * 100 + tar.read_bytes()[100:])
    with pytest.raises(ValueError, match="damaged"):
        list(itertools.islice(stream(tmp_path / "b"), 8))
    tar.unlink()
    with pytest.raises(FileNotFoundError, match="000000.tar: missing"):
        next(stream(tmp_path / "b"))
    for text in ("[]", "{", '{"objects": 0, "views": 1, "size": [1, 1], "shards": []}'):
        (tmp_path / "b" / "index.json").write_text(text)
        with pytest.raises(ValueError, match="index.json"):
            next(stream(tmp_path / "b"))

"""What lies in data/: complete, undamaged, credited, split as listed, and consistent with itself."""

import json
import re
from collections import Counter

import numpy as np
import pytest
import torch

from gsgen_lib.data import data_root
from gsgen_lib.data.data_docs import LICENCES, write_credits, write_data_card
from gsgen_lib.data.meshes import load_mesh
from gsgen_lib.data.objects import list_objects, load_object, mesh_path, object_cameras
from gsgen_lib.data.raycast import render_mesh

ENTRIES = list_objects()
SELECTION = json.loads((data_root() / "selection.json").read_text(encoding="utf-8"))
ROOT = data_root()


@pytest.fixture(scope="module")
def objects():
    return {e["id"]: load_object(e["id"]) for e in ENTRIES}  # checks every SHA-256 of views and points


def test_counts_and_splits():
    count = Counter(e["split"] for e in ENTRIES)
    assert len(ENTRIES) >= 360
    for split, share in (("train", 0.8), ("val", 0.08), ("test", 0.12)):
        assert abs(count[split] / len(ENTRIES) - share) < 0.02
    by_category = {}
    for e in ENTRIES:
        by_category.setdefault(e["category"], []).append(e["split"])
    for category, splits in by_category.items():
        assert len(splits) < 5 or set(splits) == {"train", "val", "test"}, category


def test_the_index_follows_the_fixed_list():
    kept = {f["id"]: f for f in SELECTION["kept"].values()}
    assert kept.keys() == {e["id"] for e in ENTRIES}
    assert (
        len(SELECTION["kept"]) + len(SELECTION["dropped"]) == 820
        and not SELECTION["kept"].keys() & SELECTION["dropped"].keys()
    )
    assert all(len(reason) > 5 for reason in SELECTION["dropped"].values())
    for e in ENTRIES:
        fixed = kept[e["id"]]
        assert [e[k] for k in ("name", "category", "split")] == [fixed[k] for k in ("name", "category", "split")]
        assert ("mesh" in e["files"]) == fixed.get("mesh", False)


def test_every_object_is_whole(objects):
    for id, o in objects.items():
        assert o.images.shape == (24, 64, 64, 4) and len(o.points) == len(o.normals) == len(o.colors) >= 2048, id
        alpha = o.images[..., 3]
        assert ((alpha > 127).mean((1, 2)) > 0.004).all(), f"{id}: a view shows next to nothing"
        assert not o.images[alpha == 0].any() and (alpha[:, [0, -1], [0, -1]] == 0).all(), id
        assert np.abs(o.points).max() <= 0.5 and np.linalg.norm(o.points, axis=1).max() <= 0.6 + 1e-4, id
        assert max(np.abs(o.points).max() / 0.5, np.linalg.norm(o.points, axis=1).max() / 0.6) > 0.9, (
            f"{id}: smaller than it should be"
        )
        assert o.meta["azimuth"][:8] == [45.0 * i for i in range(8)] and set(o.meta["elevation"][:8]) == {15.0}
        assert (
            all(-20 <= x <= 70 for x in o.meta["elevation"])
            and len(set(zip(o.meta["azimuth"], o.meta["elevation"], strict=True))) == 24
        )
        assert np.abs(np.linalg.norm(o.normals, axis=1) - 1).max() < 1e-5, id
        assert re.fullmatch(r"an? [A-Za-z' ]+", o.meta["caption"]), o.meta["caption"]


def _agreement(o, azimuth):
    """Median over points of the colour difference to the pixels they fall on, where they can be seen."""
    cameras = object_cameras(o.meta | {"azimuth": azimuth})
    points = torch.tensor(o.points)
    facing = (
        torch.einsum(
            "vnx,nx->vn",
            torch.nn.functional.normalize(cameras.centers[:, None] - points, dim=-1),
            torch.tensor(o.normals),
        )
        > 0.5
    )
    x = torch.einsum("vij,nj->vni", cameras.viewmats[:, :3, :3], points) + cameras.viewmats[:, None, :3, 3]
    u = torch.einsum("vij,vnj->vni", cameras.Ks, x)
    u = (u[..., :2] / u[..., 2:]).long().clamp(0, 63).numpy()
    pixels = o.images[np.arange(24)[:, None], u[..., 1], u[..., 0]] / 255.0
    difference = np.abs(pixels[..., :3] - o.colors).max(-1)
    return np.median(difference[facing.numpy()]), (pixels[..., 3] > 0)[facing.numpy()].mean()


def test_points_pictures_and_cameras_agree(objects):
    good, wrong = [], []
    for o in list(objects.values())[::8]:
        difference, inside = _agreement(o, o.meta["azimuth"])
        assert inside > 0.93, f"{o.id}: {inside:.3f} of the points fall on the object"
        good.append(difference)
        wrong.append(_agreement(o, [a + 90 for a in o.meta["azimuth"]])[0])
    assert np.mean(good) < 0.06
    assert np.mean(wrong) > 1.5 * np.mean(good)  # the check can fail


def test_no_test_object_looks_like_a_training_object(objects):
    small = {
        id: (o.images[:8].astype(np.float32).reshape(8, 16, 4, 16, 4, 4).mean((2, 4)) / 255).ravel()
        for id, o in objects.items()
    }
    train = [e["id"] for e in ENTRIES if e["split"] == "train"]
    table = np.stack([small[i] for i in train])
    for e in ENTRIES:
        if e["split"] != "train":
            distance = np.sqrt(((table - small[e["id"]]) ** 2).mean(1))
            assert distance.min() > 0.02, f"{e['id']} ({e['split']}) is nearly {train[distance.argmin()]} (train)"


def test_meshes_are_cc0_and_render_like_the_pictures(objects):
    entries = [e for e in ENTRIES if "mesh" in e["files"]]
    count = Counter(e["split"] for e in entries)
    assert 24 <= len(entries) <= 28 and count["test"] >= 12 and count["train"] >= 4 and count["val"] >= 4
    psnr = []
    for e in entries:
        assert e["licence"] == "CC0-1.0"
        mesh, o = load_mesh(mesh_path(e["id"])), objects[e["id"]]
        assert np.abs(mesh.vertices).max() <= 0.5 + 1e-5 and np.linalg.norm(mesh.vertices, axis=1).max() <= 0.6 + 1e-5
        a, b = render_mesh(mesh, o.cameras[[1, 12]], 4).rgba, o.images[[1, 12]] / 255
        a, b = (x[..., :3] * x[..., 3:] + 1 - x[..., 3:] for x in (a, b))
        psnr.append(-10 * np.log10(((a - b) ** 2).mean()))
        assert psnr[-1] > 30, f"{e['id']}: {psnr[-1]:.1f} dB"
    assert np.mean(psnr) > 35


def test_files_are_the_listed_ones_and_small():
    listed = {f["path"] for e in ENTRIES for f in e["files"].values()}
    there = {
        p.relative_to(ROOT).as_posix()
        for folder in ("objects", "meshes")
        for p in (ROOT / folder).rglob("*")
        if p.is_file()
    }
    assert listed == there
    total = sum(f["bytes"] for e in ENTRIES for f in e["files"].values())
    assert total == sum((ROOT / p).stat().st_size for p in listed) and total < 40e6
    assert sum(e["files"]["mesh"]["bytes"] for e in ENTRIES if "mesh" in e["files"]) < 14e6


def test_credits_are_complete(tmp_path):
    text = (ROOT / "CREDITS.md").read_text(encoding="utf-8")
    sections = {licence: text.split(title)[1].split("\n## ")[0] for licence, (title, _) in LICENCES.items()}
    for e in ENTRIES:
        row = next(line for line in sections[e["licence"]].splitlines() if line.startswith(f"| `{e['id']}` |"))
        model = e["source"].split("furniture libraries 1.8, ")[1].replace(".sh3f", "")
        assert [cell.strip() for cell in row.strip("|").split("|")][1:] == [e["name"], e["creator"], model]
    for licence, library in (
        ("CC0-1.0", "BlendSwap-CC-0"),
        ("CC-BY-3.0", "Scopia"),
        ("CC-BY-3.0", "BlendSwap-CC-BY"),
        ("CC-BY-3.0-US", "KatorLegaz"),
    ):
        assert all(
            e["licence"] == licence or "winchester" in e["id"] for e in ENTRIES if f", {library}.sh3f" in e["source"]
        )
    assert [e["licence"] for e in ENTRIES if "winchester" in e["id"]] == ["CC-BY-3.0"] * 2
    write_credits(tmp_path, ENTRIES)
    assert (tmp_path / "CREDITS.md").read_text(encoding="utf-8") == text


def test_data_card_is_up_to_date(tmp_path):
    for folder in ("objects.json", ENTRIES[0]["files"]["points"]["path"]):
        (tmp_path / folder).parent.mkdir(exist_ok=True)
        (tmp_path / folder).write_bytes((ROOT / folder).read_bytes())
    write_data_card(tmp_path, ENTRIES)
    assert (tmp_path / "DATA.md").read_text(encoding="utf-8") == (ROOT / "DATA.md").read_text(encoding="utf-8")


def test_no_brand_names():
    text = " ".join(json.dumps([e["id"], e["name"], e["caption"]]) for e in ENTRIES)
    words = set(re.findall(r"[a-z0-9]+", text.lower()))
    brands = (
        "seat leon peugeot renault scenic yamaha chevrolet vw volkswagen beetle daf rubik rubiks ipad iphone apple "
        "kitchenaid nikon playstation ps4 converse mercedes ford"
    )
    assert not words & set(brands.split())

"""CO3D and RealEstate10K: sets that we write in these layouts by rendering, read back, rendered again; and what is refused."""

import gzip
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from gsgen_lib.data.captures import Capture, lifted, moved, view_set
from gsgen_lib.data.co3d import list_co3d, load_co3d
from gsgen_lib.data.raycast import render_mesh
from gsgen_lib.data.realestate import load_realestate
from gsgen_lib.data.shards import write_views
from gsgen_lib.data.toys import sample_toy
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems.autoreconstructor_training import train_autoreconstructor
from tests.data.test_posed import odd_cameras

W, H, V, S = 150, 110, 6, 40
FLIP = np.diag([-1.0, -1.0, 1.0])


@pytest.fixture(scope="module")
def toy():
    mesh, cameras = sample_toy(np.random.default_rng(4), "house").mesh, odd_cameras(W, H, (-10.0, 0.0, 20.0, 30.0, 10.0, 5.0))
    return mesh, cameras, render_mesh(mesh, cameras)


def other_world(cameras, scale=7.0):
    """The cameras as they stand in a world that is turned, moved and larger: world to camera (V, 4, 4), float64."""
    from scipy.spatial.transform import Rotation

    G = Rotation.from_euler("xyz", [10, 70, -5], degrees=True).as_matrix()
    move = np.array([3.0, -2.0, 5.0])  # x_file = scale G x + move
    Ws = cameras.viewmats.double().numpy().copy()
    R = Ws[:, :3, :3] @ G.T
    Ws[:, :3, 3] = scale * Ws[:, :3, 3] - np.einsum("vij,j->vi", R, move)
    Ws[:, :3, :3] = R
    return Ws


def write_co3d(root, toy, kind="ndc_isotropic", scale=7.0, jgz=True, adjust=0.5):
    """ROOT/apple/... as CO3D has it; returns the entries."""
    _, cameras, found = toy
    folder, entries = root / "apple" / "110_13051_23361", []
    for name in ("images", "masks", "depths"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    half = np.array([W, H]) / 2
    unit = np.full(2, half.min()) if kind == "ndc_isotropic" else half
    for i, (M, K) in enumerate(zip(other_world(cameras, scale), cameras.Ks.double().numpy(), strict=True)):
        rgba, name = found.rgba[i], f"frame{i + 1:06d}"
        rgb = rgba[..., :3] * rgba[..., 3:] + 0.2 * (1 - rgba[..., 3:])  # a background
        Image.fromarray(np.uint8(np.round(255 * rgb))).save(folder / "images" / f"{name}.png")
        Image.fromarray(np.uint8(np.round(255 * rgba[..., 3]))).save(folder / "masks" / f"{name}.png")
        depth = np.where(rgba[..., 3] > 0.5, np.nan_to_num(found.depth[i], posinf=0.0).reshape(H, W), 0) * scale / adjust
        Image.fromarray(depth.astype(np.float16).view(np.uint16)).save(folder / "depths" / f"{name}.geometric.png")
        local = f"apple/{folder.name}"
        entries.append({
            "sequence_name": folder.name, "frame_number": i + 1, "frame_timestamp": i / 10,
            "image": {"path": f"{local}/images/{name}.png", "size": [H, W]},
            "mask": {"path": f"{local}/masks/{name}.png", "mass": 1.0},
            "depth": {"path": f"{local}/depths/{name}.geometric.png", "scale_adjustment": adjust, "mask_path": None},
            "viewpoint": {"R": (FLIP @ M[:3, :3]).T.tolist(), "T": (FLIP @ M[:3, 3]).tolist(),
                          "focal_length": (K[[0, 1], [0, 1]] / unit).tolist(), "intrinsics_format": kind,
                          "principal_point": ((half - K[:2, 2]) / unit).tolist()}})
    if jgz:
        save_entries(root, entries)
    return entries


def save_entries(root, entries):
    with gzip.open(root / "apple" / "frame_annotations.jgz", "wt") as file:
        json.dump(entries, file)


def write_realestate(root, toy):
    _, cameras, found = toy
    (root / "cameras").mkdir()
    (root / "frames" / "0a1b").mkdir(parents=True)
    lines = ["https://www.youtube.com/watch?v=0"]
    for i, (M, K) in enumerate(zip(other_world(cameras), cameras.Ks.double().numpy(), strict=True)):
        rgba, time = found.rgba[i], 1_000_000 + 33_000 * i
        rgb = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
        Image.fromarray(np.uint8(np.round(255 * rgb))).save(root / "frames" / "0a1b" / f"{time}.png")
        lens = (K[0, 0] / W, K[1, 1] / H, K[0, 2] / W, K[1, 2] / H, 0, 0)
        lines.append(" ".join([str(time), *(f"{x:.9f}" for x in (*lens, *M[:3].reshape(-1)))]))
    (root / "cameras" / "0a1b.txt").write_text("\n".join(lines) + "\n")
    return root / "cameras" / "0a1b.txt", root / "frames" / "0a1b"


def off(toy, capture: Capture, shift=0.0, colors=False) -> float:
    """How far the captured pictures are from those that the true object gives for the captured cameras, brought back into its
    world by their centres alone: mean difference of alpha, or of colours on white."""
    mesh, cameras, _ = toy
    ours, theirs = capture.cameras.centers.double(), cameras.centers.double()
    a, b = ours - ours.mean(0), theirs - theirs.mean(0)
    U, s, Vt = torch.linalg.svd(a.T @ b)
    D = torch.diag(torch.tensor([1.0, 1, torch.det(U @ Vt)], dtype=torch.float64))
    turn, grow = U @ D @ Vt, (s * D.diagonal()).sum() / b.square().sum()  # Umeyama: ours = grow turn theirs + move
    move = ours.mean(0) - grow * turn @ theirs.mean(0)
    there = capture.cameras.viewmats.double().clone()  # x_cam = R (grow turn x + move) + t, divided by grow
    there[:, :3, 3] = (there[:, :3, :3] @ move + there[:, :3, 3]) / grow
    there[:, :3, :3] = there[:, :3, :3] @ turn
    Ks = capture.cameras.Ks.clone()
    Ks[:, :2, 2] += shift
    again = render_mesh(mesh, Cameras(there.float(), Ks, S, S)).rgba
    if colors:
        white = again[..., :3] * again[..., 3:] + 1 - again[..., 3:]
        return float(np.abs(white - capture.images[..., :3].numpy()).mean())
    return float(np.abs(again[..., 3] - capture.images[..., 3].numpy()).mean())


@pytest.mark.parametrize("kind", ["ndc_isotropic", "ndc_norm_image_bounds"])
def test_co3d_cameras_see_what_the_pictures_show(tmp_path, toy, kind):
    write_co3d(tmp_path, toy, kind)
    capture = load_co3d(tmp_path, "apple", "110_13051_23361", S)
    assert capture.images.shape == (V, S, S, 4) and capture.depths.shape == (V, S, S, 1)
    assert off(toy, capture) < 0.01
    assert off(toy, capture, shift=0.5) > 0.02  # negative control: half a pixel
    Ks = capture.cameras.Ks
    assert torch.allclose(Ks[:, :2, 2], torch.full((V, 2), S / 2))
    assert torch.allclose(Ks[:, 0, 0] / Ks[:, 1, 1], toy[1].Ks[:, 0, 0] / toy[1].Ks[:, 1, 1], rtol=1e-5)


def test_co3d_depths_are_in_the_units_of_the_cameras(tmp_path, toy):
    write_co3d(tmp_path, toy, adjust=0.25)
    capture = load_co3d(tmp_path, "apple", "110_13051_23361", S)
    seen = (capture.images[..., 3] > 0.99) & (capture.depths[..., 0] > 0)
    points = lifted(capture)
    spread = (points[seen].quantile(0.99, 0) - points[seen].quantile(0.01, 0)).max()
    assert spread == pytest.approx(1.0, abs=0.05)  # the unit cube
    assert agree(capture) < 0.02
    for factor in (1.1, 0.95):  # negative control: depths of other units than the cameras'
        assert agree(Capture(capture.images, capture.cameras, factor * capture.depths, capture.names, 1.0)) > 0.03


def agree(capture: Capture) -> float:
    """How far the depths of two frames disagree on points that both see: the least 30 % (others are hidden)."""
    seen = (capture.images[0, ..., 3] > 0.99) & (capture.depths[0, ..., 0] > 0)
    at, depth = capture.cameras.project(lifted(capture)[0][seen])
    x, y = at[1].floor().long().unbind(-1)
    ok = (x >= 0) & (x < S) & (y >= 0) & (y < S)
    there = capture.depths[1, y[ok], x[ok], 0]
    assert int((there > 0).sum()) > 50
    return float((depth[1][ok] - there)[there > 0].abs().quantile(0.3))


def test_co3d_upright_and_choices(tmp_path, toy):
    write_co3d(tmp_path, toy)
    assert list_co3d(tmp_path, "apple") == {"110_13051_23361": V}
    capture = load_co3d(tmp_path, "apple", "110_13051_23361", S, frames=3, masked=False)
    assert capture.names == [f"apple/110_13051_23361/images/frame00000{i}.png" for i in (1, 3, 6)]
    assert bool((capture.images[..., 3] == 1).all())
    up = -capture.cameras.viewmats[:, 1, :3].mean(0)
    assert torch.allclose(up / up.norm(), torch.tensor([0.0, 1.0, 0.0]), atol=1e-5)
    plain = load_co3d(tmp_path, "apple", "110_13051_23361", S, unit_cube=False)
    assert plain.scale == 1.0 and torch.pdist(plain.cameras.centers).max() > 10


def test_co3d_depths_that_cannot_be_trusted_are_unknown(tmp_path, toy):
    entries = write_co3d(tmp_path, toy)
    whole = load_co3d(tmp_path, "apple", "110_13051_23361", S).depths
    for entry in entries:
        local = entry["depth"]["mask_path"] = entry["depth"]["path"].replace(".geometric", ".mask")
        sure = np.zeros((H, W), np.uint8)
        sure[:, : W // 2] = 255
        Image.fromarray(sure).save(tmp_path / local)
    save_entries(tmp_path, entries)
    half = load_co3d(tmp_path, "apple", "110_13051_23361", S).depths
    known, all_known = half > 0, whole > 0  # depths themselves change: the unit of the scene is measured with them
    assert not (known & ~all_known).any() and 0.2 < known.sum() / all_known.sum() < 0.8
    Image.fromarray(sure[:5]).save(tmp_path / local)
    with pytest.raises(ValueError, match=f"frame {len(entries)}: the mask of its depth has {W} x 5"):
        load_co3d(tmp_path, "apple", "110_13051_23361", S)


def test_co3d_without_depths_uses_the_cameras(tmp_path, toy):
    entries = write_co3d(tmp_path, toy)
    for entry in entries:
        entry["depth"] = None
    save_entries(tmp_path, entries)
    capture = load_co3d(tmp_path, "apple", "110_13051_23361", S)
    assert capture.depths is None and capture.cameras.centers.norm(dim=1).mean() < 4
    with pytest.raises(ValueError, match="without depths"):
        lifted(capture)


BROKEN = {
    "image.path": lambda e: e["image"].pop("path"),
    "inside the collection": lambda e: e["image"].update(path="../../etc/passwd"),
    "no photo": lambda e: e["mask"].update(path="apple/none.png"),
    "viewpoint.R": lambda e: e["viewpoint"].update(R=[[1, 0, 0]]),
    "a rotation": lambda e: e["viewpoint"].update(R=[[2, 0, 0], [0, 1, 0], [0, 0, 1]]),
    "viewpoint.T": lambda e: e["viewpoint"].update(T=[0, float("nan"), 0]),
    "intrinsics_format": lambda e: e["viewpoint"].update(intrinsics_format="pixels"),
    "positive numbers": lambda e: e["viewpoint"].update(focal_length=[-1, 2]),
    "principal point": lambda e: e["viewpoint"].update(principal_point=[3, 0]),
    "scale_adjustment": lambda e: e["depth"].update(scale_adjustment="much"),
    "viewpoint' is missing": lambda e: e.pop("viewpoint"),
}


@pytest.mark.parametrize("said", BROKEN)
def test_co3d_names_file_frame_and_field(tmp_path, toy, said):
    entries = write_co3d(tmp_path, toy)
    BROKEN[said](entries[2])
    save_entries(tmp_path, entries)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as refused:
        load_co3d(tmp_path, "apple", "110_13051_23361", S)
    assert "frame_annotations.jgz" in str(refused.value) and "frame 3" in str(refused.value)


def test_co3d_damaged_files_are_named(tmp_path, toy):
    write_co3d(tmp_path, toy)
    with pytest.raises(ValueError, match="has no sequence 'x'"):
        load_co3d(tmp_path, "apple", "x")
    with pytest.raises(ValueError, match="asked for 99 frames"):
        load_co3d(tmp_path, "apple", "110_13051_23361", frames=99)
    with pytest.raises(FileNotFoundError, match="pear.*frame_annotations.jgz"):
        load_co3d(tmp_path, "pear", "x")
    depth = tmp_path / "apple/110_13051_23361/depths/frame000002.geometric.png"
    depth.write_bytes(depth.read_bytes()[:50])
    with pytest.raises(ValueError, match="frame000002.geometric.png: cannot be read"):
        load_co3d(tmp_path, "apple", "110_13051_23361", S)
    mask = tmp_path / "apple/110_13051_23361/masks/frame000001.png"
    Image.new("L", (9, 9)).save(mask)
    with pytest.raises(ValueError, match="frame 1: mask or depth has 9 x 9"):
        load_co3d(tmp_path, "apple", "110_13051_23361", S)
    (tmp_path / "apple" / "frame_annotations.jgz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="frame_annotations.jgz: not a gzipped JSON"):
        load_co3d(tmp_path, "apple", "110_13051_23361", S)


def test_realestate_cameras_see_what_the_pictures_show(tmp_path, toy):
    capture = load_realestate(*write_realestate(tmp_path, toy), S)
    assert torch.pdist(capture.cameras.centers).max() == pytest.approx(1.0, rel=1e-4) and capture.depths is None
    assert off(toy, capture, colors=True) < 0.01
    assert off(toy, capture, 0.5, colors=True) > 0.02  # negative control: half a pixel


def test_realestate_names_file_and_line(tmp_path, toy):
    file, frames = write_realestate(tmp_path, toy)
    good = file.read_text().splitlines()
    for line, said in ((good[3] + " 7", "18 finite numbers"), (good[3].replace(good[3].split()[1], "x", 1), "18 finite"),
                       ("abc " + good[3].split(maxsplit=1)[1], "a time"), ("77 " + good[3].split(maxsplit=1)[1], "no photo"),
                       (" ".join([*good[3].split()[:5], "0.1", *good[3].split()[6:]]), "distorted"),
                       (" ".join([good[3].split()[0], "-1", *good[3].split()[2:]]), "positive")):
        file.write_text("\n".join([*good[:3], line, *good[4:]]))
        with pytest.raises((ValueError, FileNotFoundError), match=said) as refused:
            load_realestate(file, frames, S)
        assert "0a1b.txt, line 4" in str(refused.value)
    file.write_text("\n".join(good[1:]))
    with pytest.raises(ValueError, match="address of a video"):
        load_realestate(file, frames, S)
    file.write_text("\n".join(good[:2]))
    with pytest.raises(ValueError, match="stand at one place"):
        load_realestate(file, frames, S)
    assert load_realestate(file, frames, S, baseline=None).scale == 1.0


def test_captures_become_a_view_set(tmp_path, toy):
    write_co3d(tmp_path, toy)
    one = load_co3d(tmp_path, "apple", "110_13051_23361", S)
    both = view_set([one, one], ["a house", "another"], points=64, generator=torch.Generator().manual_seed(0))
    assert both.images.shape == (2, V, S, S, 4) and both.captions == ["a house", "another"]
    assert both.points[0, :, :3].abs().max() < 0.8 and torch.allclose(both.points[0, :, 3:6].norm(dim=1), torch.ones(64))
    with pytest.raises(ValueError, match="one shape"):
        view_set([one], ["a", "b"])
    small = load_co3d(tmp_path, "apple", "110_13051_23361", 16)
    with pytest.raises(ValueError, match="one shape"):
        view_set([one, small], ["a", "b"])


def test_points_of_a_view_set_are_on_the_object_face_their_camera_and_have_its_colour(tmp_path, toy):
    """Each point, projected into the frame whose camera its normal points at, falls on a covered pixel of its colour and depth."""
    write_co3d(tmp_path, toy)
    one = load_co3d(tmp_path, "apple", "110_13051_23361", S)
    points = view_set([one], ["a house"], points=200, generator=torch.Generator().manual_seed(0)).points[0]
    at, depth = one.cameras.project(points[:, :3])  # (V, P, 2)
    towards = torch.nn.functional.normalize(one.cameras.centers[:, None] - points[:, :3], dim=2)
    v = (towards * points[:, 3:6]).sum(2).argmax(0)  # the camera that saw it
    assert (towards[v, torch.arange(200)] * points[:, 3:6]).sum(1).min() > 0.999
    x, y = at[v, torch.arange(200)].floor().long().T
    assert (one.images[v, y, x, 3] > 0.5).all()
    torch.testing.assert_close(points[:, 6:], one.images[v, y, x, :3], atol=1e-6, rtol=0)
    torch.testing.assert_close(depth[v, torch.arange(200)], one.depths[v, y, x, 0], atol=1e-4, rtol=1e-3)


def test_frames_come_in_the_order_of_their_numbers(tmp_path, toy):
    entries = write_co3d(tmp_path, toy)
    names = load_co3d(tmp_path, "apple", "110_13051_23361", S).names
    save_entries(tmp_path, [entries[k] for k in np.random.default_rng(0).permutation(len(entries))])
    assert load_co3d(tmp_path, "apple", "110_13051_23361", S).names == names == sorted(names)


@pytest.mark.parametrize("path", ["../secret.png", "..\\..\\secret.png", "apple/..\\../secret.png", "/tmp/secret.png", "C:\\secret.png"])
@pytest.mark.parametrize("kind", ["image", "mask", "depth", "depth mask"])
def test_co3d_reads_nothing_outside_of_its_folder(tmp_path, toy, path, kind):
    Image.new("RGB", (150, 110), "red").save(tmp_path / "secret.png")
    root = tmp_path / "a" / "b"
    root.mkdir(parents=True)
    entries = write_co3d(root, toy)
    entries[0][kind.split()[0]]["mask_path" if " " in kind else "path"] = path
    save_entries(root, entries)
    with pytest.raises(ValueError, match="wanted a path inside the collection"):
        load_co3d(root, "apple", "110_13051_23361", S)


WRONG_NUMBERS = {
    "a number": lambda e: e["viewpoint"].update(T=5), "a text": lambda e: e["viewpoint"].update(T="123"),
    "truths": lambda e: e["viewpoint"].update(T=[True, False, True]), "one huge": lambda e: e["viewpoint"].update(T=[10**400, 0, 0]),
    "rows": lambda e: e["viewpoint"].update(R=[1, 2, 3]), "lens": lambda e: e["viewpoint"].update(focal_length=3),
    "too far": lambda e: e["viewpoint"].update(T=[1e300, 0, 0]), "too long": lambda e: e["viewpoint"].update(focal_length=[1e300, 1]),
    "no scale": lambda e: e["depth"].update(scale_adjustment=0), "turned": lambda e: e["depth"].update(scale_adjustment=-1),
}


@pytest.mark.parametrize("wrong", WRONG_NUMBERS)
def test_co3d_numbers_that_are_none_are_refused_with_the_file(tmp_path, toy, wrong):
    entries = write_co3d(tmp_path, toy)
    WRONG_NUMBERS[wrong](entries[1])
    save_entries(tmp_path, entries)
    with pytest.raises(ValueError, match="frame_annotations.jgz: 110_13051_23361"):
        load_co3d(tmp_path, "apple", "110_13051_23361", S)


def test_co3d_depths_of_8_bits_are_refused(tmp_path, toy):
    write_co3d(tmp_path, toy)
    file = tmp_path / "apple/110_13051_23361/depths/frame000002.geometric.png"
    Image.open(file).point(lambda v: v / 256).convert("L").save(file)
    with pytest.raises(ValueError, match="frame000002.geometric.png: wanted one 16-bit number a pixel"):
        load_co3d(tmp_path, "apple", "110_13051_23361", S)


def test_co3d_annotations_that_are_no_gzip_inside_are_refused(tmp_path, toy):
    write_co3d(tmp_path, toy)
    file = tmp_path / "apple" / "frame_annotations.jgz"
    content = gzip.compress(gzip.decompress(file.read_bytes()))  # without a name in its head, which may be anything
    for place in range(20, len(content) - 8, max(1, len(content) // 40)):
        hurt = bytearray(content)
        hurt[place] ^= 0xFF
        file.write_bytes(hurt)
        os.utime(file, (place, place))  # what was read before is kept by time
        with pytest.raises(ValueError, match="frame_annotations.jgz"):
            load_co3d(tmp_path, "apple", "110_13051_23361", S)
    file.write_bytes(gzip.compress(b"[" * 100_000))
    with pytest.raises(ValueError, match="frame_annotations.jgz: not a gzipped JSON"):
        load_co3d(tmp_path, "apple", "110_13051_23361", S)


def test_worlds_without_a_unit_are_refused(tmp_path, toy):
    file, frames = write_realestate(tmp_path, toy)
    for baseline in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="baseline: got"):
            load_realestate(file, frames, S, baseline=baseline)
    capture = load_realestate(file, frames, S)
    for scale in (0.0, -1.0, float("nan"), 1e300):
        with pytest.raises(ValueError, match="scale: got|viewmats: got"):
            moved(capture, scale, np.zeros(3))
    for size in (0, 2.5, True):
        with pytest.raises(ValueError, match="size: got"):
            load_realestate(file, frames, size)
    for images in (capture.images * 255, capture.images * float("nan")):
        with pytest.raises(ValueError, match="outside 0 to 1"):
            view_set([replace(capture, images=images)], ["a room"])
    with pytest.raises(ValueError, match="split: got 'tests'"):
        view_set([capture], ["a room"], split="tests")


def test_captures_become_shards_and_a_training(tmp_path, toy):
    """From CO3D's files to a step of the AutoReconstructor: no ring, eight frames are enough."""
    write_co3d(tmp_path, toy)
    capture = load_co3d(tmp_path, "apple", "110_13051_23361", 32)
    write_views(tmp_path / "shards", [view_set([capture] * 2, ["a house", "a hut"], points=16,
                                               generator=torch.Generator().manual_seed(0))])
    card = train_autoreconstructor(tmp_path / "var", preset="tiny", shards=str(tmp_path / "shards"), device="cpu")
    assert card["name"] == "autoreconstructor" and list((tmp_path / "var").glob("samples_*.png"))

"""Posed photos: rendered, written as transforms.json or COLMAP text, read back; and what must be refused."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from gsgen_lib.data.posed import fit_unit_cube, load_colmap, load_transforms, save_colmap, save_transforms
from gsgen_lib.data.posed_files import check_rigid
from gsgen_lib.data.raycast import render_mesh
from gsgen_lib.data.toys import sample_toy
from gsgen_lib.scene.cameras import Cameras

FORMATS = pytest.mark.parametrize("save, load", [(save_transforms, load_transforms), (save_colmap, load_colmap)],
                                  ids=["transforms", "colmap"])


def odd_cameras(width=40, height=30, elevation=(-20.0, 0.0, 30.0, 60.0, 10.0)):
    """Views from all around with unequal focal lengths and a principal point off the middle."""
    cameras = Cameras.orbit(len(elevation), radius=1.7, elevation=list(elevation), width=width, height=height)
    Ks = cameras.Ks.clone()
    Ks[:, 0, 0] *= 1.1
    Ks[:, 0, 2] += 2.3
    Ks[:, 1, 2] -= 1.7
    return Cameras(cameras.viewmats, Ks, width, height)


@pytest.fixture(scope="module")
def scene():
    toy = sample_toy(np.random.default_rng(4), "house")
    cameras = odd_cameras()
    rgba = torch.from_numpy(render_mesh(toy.mesh, cameras).rgba)
    return toy.mesh, cameras, (rgba * 255).round() / 255


def on_white(rgba):
    return rgba[..., 3:] * rgba[..., :3] + 1 - rgba[..., 3:]


@FORMATS
def test_round_trip_of_cameras_and_pictures(tmp_path, scene, save, load):
    mesh, cameras, rgba = scene
    save(tmp_path, rgba, cameras)
    photos = load(tmp_path, background=None)
    assert (photos.cameras.viewmats - cameras.viewmats).abs().max() < 1e-5
    assert (photos.cameras.Ks - cameras.Ks).abs().max() < 1e-5 * 40
    assert (photos.cameras.width, photos.cameras.height) == (40, 30) and len(photos.names) == 5
    assert torch.allclose(photos.images, rgba, atol=1e-6)
    again = render_mesh(mesh, photos.cameras).rgba  # the same pictures come out of the loaded cameras
    assert np.mean(np.abs(again - rgba.numpy()).max(-1) > 1.5 / 255) < 2e-3
    shifted = Cameras(photos.cameras.viewmats, photos.cameras.Ks.clone(), 40, 30)
    shifted.Ks[:, :2, 2] += 0.5  # negative control: the centre of a pixel half a pixel off
    wrong = render_mesh(mesh, shifted).rgba
    assert np.mean(np.abs(wrong - rgba.numpy()).max(-1) > 1.5 / 255) > 2e-2
    assert torch.allclose(load(tmp_path).images, on_white(rgba), atol=1e-6)


def test_transforms_by_hand(tmp_path):
    """A camera written down in NeRF's words: z up, standing at y = -2, looking along +y."""
    c2w = [[1, 0, 0, 0], [0, 0, -1, -2], [0, 1, 0, 0.5], [0, 0, 0, 1]]  # columns: right, up, backward, position
    content = {"camera_angle_x": math.pi / 2, "frames": [{"file_path": "./a", "transform_matrix": c2w}]}
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    Image.new("RGB", (8, 6), (255, 0, 0)).save(tmp_path / "a.png")
    cameras = load_transforms(tmp_path / "transforms.json").cameras
    # z up becomes y up: (x, y, z) -> (x, z, -y), so the camera stands at z = +2, half a unit up, and looks along -z
    assert torch.allclose(cameras.centers[0], torch.tensor([0, 0.5, 2.0]), atol=1e-6)
    assert torch.allclose(cameras.viewmats[0, :3, :3], torch.diag(torch.tensor([1.0, -1, -1])), atol=1e-6)
    assert torch.allclose(cameras.Ks[0], torch.tensor([[4.0, 0, 4], [0, 4, 3], [0, 0, 1]]))
    kept = load_transforms(tmp_path, up="y").cameras
    assert torch.allclose(kept.centers[0], torch.tensor([0, -2, 0.5]), atol=1e-6)


def test_colmap_by_hand(tmp_path):
    """Two views of one SIMPLE_PINHOLE camera as COLMAP writes them: comments, a name with a space, empty lines."""
    (tmp_path / "images").mkdir()
    for name in ("b view.png", "a.png"):
        Image.new("RGB", (8, 6), (0, 0, 255)).save(tmp_path / "images" / name)
    turn = Rotation.from_euler("xyz", [0.3, -0.2, 0.5])
    x, y, z, w = turn.as_quat()
    (tmp_path / "cameras.txt").write_text("# Camera list\n# CAMERA_ID, MODEL\n7 SIMPLE_PINHOLE 8 6 9.5 4.5 2.5\n")
    (tmp_path / "images.txt").write_text(
        f"# Image list\n3 1 0 0 0 0.1 0.2 3 7 b view.png\n\n1 {w} {x} {y} {z} 1 2 3 7 a.png\n4.5 2.5 -1 1 1 5\n")
    (tmp_path / "points3D.txt").write_text("5 0.25 -0.5 1 255 51 0 0.7 1 0 3 1\n")
    photos = load_colmap(tmp_path)
    assert photos.names == ["a.png", "b view.png"]
    assert torch.allclose(photos.cameras.viewmats[0, :3, :3], torch.from_numpy(turn.as_matrix()).float(), atol=1e-6)
    assert torch.allclose(photos.cameras.viewmats[:, :3, 3], torch.tensor([[1, 2, 3], [0.1, 0.2, 3]]))
    assert torch.allclose(photos.cameras.Ks[0], torch.tensor([[9.5, 0, 4.5], [0, 9.5, 2.5], [0, 0, 1]]))
    assert torch.allclose(photos.points, torch.tensor([[0.25, -0.5, 1, 1, 0.2, 0]]))
    flipped = load_colmap(tmp_path, up="-y")
    assert torch.allclose(flipped.points[0, :3], torch.tensor([0.25, 0.5, -1]))
    assert torch.allclose(project(flipped.cameras, flipped.points), project(photos.cameras, photos.points), atol=1e-5)


def project(cameras, points):
    x = cameras.viewmats[:, :3, :3] @ points[:, :3].T + cameras.viewmats[:, :3, 3:]  # (V, 3, P)
    x = cameras.Ks @ x
    return x[:, :2] / x[:, 2:]


# --- units ----------------------------------------------------------------------------------------------------


@FORMATS
def test_unit_cube_undoes_any_scale_and_shift(tmp_path, scene, save, load):
    """A rig moved and magnified comes back to the standard distance, with the same pictures."""
    mesh, _, _ = scene
    cameras = Cameras.orbit(6, elevation=[10.0, 20, 30, 10, 20, 30], width=24, height=24)
    far = cameras.viewmats.clone()
    far[:, :3, 3] = 7 * cameras.viewmats[:, :3, 3] - far[:, :3, :3] @ torch.tensor([5.0, -3.0, 40.0])
    save(tmp_path, torch.from_numpy(render_mesh(mesh, cameras).rgba), Cameras(far, cameras.Ks, 24, 24))
    photos = load(tmp_path, unit_cube=True)
    assert (photos.cameras.viewmats - cameras.viewmats).abs().max() < 2e-4
    assert photos.scale == pytest.approx(1 / 7, rel=1e-4)
    assert photos.center == pytest.approx((5, -3, 40), abs=1e-3)
    plain = load(tmp_path)
    assert plain.scale == 1 and torch.allclose(plain.cameras.viewmats, far, atol=1e-4)


def test_unit_cube_from_points_keeps_the_pixels(tmp_path, scene):
    _, cameras, rgba = scene
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(4000, 6, generator=generator)
    points[:, :3] = (points[:, :3] - 0.5) * torch.tensor([4.0, 2.0, 1.0]) + torch.tensor([1.0, 2.0, 3.0])
    points[:10, :3] = 500.0  # a few strays must not count
    save_colmap(tmp_path, rgba, cameras, points)
    plain, photos = load_colmap(tmp_path), load_colmap(tmp_path, unit_cube=True)
    assert torch.allclose(plain.points, points, atol=1 / 255)
    low, high = photos.points[10:, :3].amin(0), photos.points[10:, :3].amax(0)
    assert (low[0], high[0]) == (pytest.approx(-0.5, abs=0.02), pytest.approx(0.5, abs=0.02))
    assert low.min() > -0.52 and high.max() < 0.52
    moved = photos.scale * (plain.points[:, :3] - torch.tensor(photos.center))
    assert torch.allclose(moved, photos.points[:, :3], atol=1e-4)
    depth = (plain.cameras.viewmats @ torch.cat([plain.points[:, :3], torch.ones(4000, 1)], 1).T)[:, 2]  # (V, P)
    before, after = (project(p.cameras, p.points).transpose(1, 2)[depth > 0.5] for p in (plain, photos))
    assert len(before) > 4000 and torch.allclose(before, after, rtol=1e-4, atol=1e-2)
    with pytest.raises(ValueError, match="parallel"):
        fit_unit_cube(Cameras.look_at([[0.0, 0, 2], [1.0, 0, 2]], [[0.0, 0, 0], [1.0, 0, 0]]))


# --- sizes -------------------------------------------------------------------------------------------------------


@FORMATS
def test_resizing_scales_the_intrinsics_with_the_pictures(tmp_path, scene, save, load):
    mesh, cameras, rgba = scene
    save(tmp_path, rgba, cameras)
    small = load(tmp_path, size=(20, 15))
    assert small.images.shape == (5, 15, 20, 3)
    assert torch.allclose(small.cameras.Ks, cameras.resize(20, 15).Ks, atol=1e-4)
    there = on_white(torch.from_numpy(render_mesh(mesh, small.cameras).rgba))
    assert (there - small.images).abs().mean() < 0.02
    shifted = Cameras(small.cameras.viewmats, small.cameras.Ks.clone(), 20, 15)
    shifted.Ks[:, :2, 2] += 1.0  # negative control: one pixel off
    assert (on_white(torch.from_numpy(render_mesh(mesh, shifted).rgba)) - small.images).abs().mean() > 0.03


@FORMATS
def test_photos_that_were_scaled_since_and_mixed_sizes(tmp_path, scene, save, load):
    _, cameras, rgba = scene
    save(tmp_path, rgba, cameras)
    files = sorted((tmp_path / "images").iterdir())
    for file in files:  # half size: intrinsics must follow
        Image.open(file).resize((20, 15)).save(file)
    assert torch.allclose(load(tmp_path).cameras.Ks, cameras.resize(20, 15).Ks, atol=1e-4)
    Image.open(files[2]).resize((40, 30)).save(files[2])
    with pytest.raises(ValueError, match="2 sizes.*size="):
        load(tmp_path)
    both = load(tmp_path, size=(40, 30))
    assert torch.allclose(both.cameras.Ks, cameras.Ks, atol=1e-4) and both.images.shape == (5, 30, 40, 3)
    Image.open(files[1]).resize((20, 30)).save(files[1])  # another shape of picture: not what the file says
    with pytest.raises(ValueError, match="20 x 30 pixels"):
        load(tmp_path)


# --- what is refused ------------------------------------------------------------------------------------------


def edit(frames=None, drop=None, **fields):
    def change(content):
        content.update(fields)
        content["frames"][1].update(frames or {})
        content["frames"][1].pop(drop, None)
    return change


@pytest.mark.parametrize("change, words", [
    (edit(drop="transform_matrix"), r"frames\[1\].*transform_matrix"),
    (edit(frames={"transform_matrix": [[1, 0], [0, 1]]}), r"frames\[1\].*transform_matrix"),
    (edit(frames={"transform_matrix": (2 * np.eye(4)).tolist()}), r"frames\[1\].*rotation"),
    (edit(frames={"transform_matrix": np.diag([1.0, 1, -1, 1]).tolist()}), r"frames\[1\].*rotation"),
    (edit(frames={"transform_matrix": np.full((4, 4), np.nan).tolist()}), r"frames\[1\].*rotation"),
    (edit(frames={"fl_x": -3}), r"frames\[1\].*'fl_x'"),
    (edit(frames={"fl_x": "wide"}), r"frames\[1\].*'fl_x'"),
    (edit(frames={"w": 0}), r"frames\[1\].*'w'"),
    (edit(drop="file_path"), r"frames\[1\].*file_path"),
    (edit(camera_model="OPENCV_FISHEYE"), "OPENCV_FISHEYE"),
    (edit(camera_model="OPENCV", k1=0.1), "OPENCV with k1"),
    (edit(camera_model="OPENCV", distortion_params=[0.0, 0.1, 0, 0]), "OPENCV with distortion_params"),
    (edit(frames={"k2": 0.1}), r"frames\[1\].*k2"),
])
def test_transforms_errors_name_frame_and_field(tmp_path, scene, change, words):
    _, cameras, rgba = scene
    file = save_transforms(tmp_path, rgba, cameras)
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words) as error:
        load_transforms(tmp_path)
    assert "transforms.json" in str(error.value)


def test_transforms_without_distortion_by_another_name_is_fine(tmp_path, scene):
    _, cameras, rgba = scene
    file = save_transforms(tmp_path, rgba, cameras)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"camera_model": "OPENCV", "k1": 0.0, "p2": 0,
                                                                  "distortion_params": [0.0, 0, 0, 0]}))
    assert len(load_transforms(tmp_path).cameras) == 5


def test_files_that_are_missing_or_no_such_thing(tmp_path, scene):
    _, cameras, rgba = scene
    with pytest.raises(FileNotFoundError, match="transforms.json"):
        load_transforms(tmp_path)
    with pytest.raises(FileNotFoundError, match="cameras.txt"):
        load_colmap(tmp_path)
    (tmp_path / "cameras.bin").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match="model_converter"):
        load_colmap(tmp_path)
    for text in ("{", "[]", '{"frames": []}', '{"frames": {}}'):
        (tmp_path / "transforms.json").write_text(text)
        with pytest.raises(ValueError, match="transforms.json"):
            load_transforms(tmp_path)
    (tmp_path / "transforms.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="transforms.json"):
        load_transforms(tmp_path)
    for save, load in ((save_transforms, load_transforms), (save_colmap, load_colmap)):
        folder = tmp_path / save.__name__
        save(folder, rgba, cameras)
        (folder / "images" / "0003.png").write_bytes((folder / "images" / "0003.png").read_bytes()[:60])
        with pytest.raises(ValueError, match="0003.png"):
            load(folder)
        (folder / "images" / "0003.png").unlink()
        with pytest.raises(FileNotFoundError, match="0003.png"):
            load(folder)


@pytest.mark.parametrize("file, line, text, words", [
    ("cameras.txt", 1, "1 SIMPLE_RADIAL 40 30 50 20 15 0.1", "cameras.txt, line 2: camera model SIMPLE_RADIAL"),
    ("cameras.txt", 1, "1 PINHOLE 40 30 50 20 15", "cameras.txt, line 2: wanted 4"),
    ("cameras.txt", 1, "1 PINHOLE 40", "cameras.txt, line 2: wanted CAMERA_ID"),
    ("cameras.txt", 1, "1 PINHOLE 40 30 nan 50 20 15", "cameras.txt, line 2"),
    ("cameras.txt", 1, "1 PINHOLE 40 30 -50 50 20 15", "cameras.txt, line 2: wanted a positive focal"),
    ("cameras.txt", 2, "1 PINHOLE 40 30 50 50 20 15", "cameras.txt, line 3: camera 1 is there twice"),
    ("images.txt", 3, "1 1 0 0 0 0 0 2 2 0001.png", "images.txt, line 4: image 1,.*twice"),
    ("images.txt", 3, "2 1 0 0 0 0 0 2 2 0000.png", "images.txt, line 4: image 2, 0000.png, is there twice"),
    ("images.txt", 2, "9 1 0 0 0 0 0 2 2 a name.png", "images.txt, line 3: a second line about an image"),
    ("images.txt", 3, "2 1 0 0 0 0 0 2 99 0001.png", "images.txt, line 4: camera 99"),
    ("images.txt", 3, "2 3 0 0 0 0 0 2 2 0001.png", "images.txt, line 4: wanted a unit quaternion"),
    ("images.txt", 3, "2 1 0 0 0 0 0 0001.png", "images.txt, line 4: wanted IMAGE_ID"),
    ("images.txt", 3, "2 1 0 0 x 0 0 2 2 0001.png", "images.txt, line 4: wanted 7"),
    ("points3D.txt", 2, "2 0 0 inf 1 2 3 0", "points3D.txt, line 3: wanted 6"),
    ("points3D.txt", 2, "2 0 0 0 1", "points3D.txt, line 3: wanted POINT3D_ID"),
])
def test_colmap_errors_name_file_and_line(tmp_path, scene, file, line, text, words):
    _, cameras, rgba = scene
    path = save_colmap(tmp_path, rgba, cameras, torch.rand(4, 6, generator=torch.Generator().manual_seed(0))) / file
    lines = path.read_text().splitlines()
    lines[line] = text
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=words):
        load_colmap(tmp_path)


@pytest.mark.parametrize("odd", [False, True])
def test_colmap_without_its_empty_lines_is_refused_not_halved(tmp_path, scene, odd):
    """Editors strip empty lines: then every second image would be taken for the points of the one before."""
    _, cameras, rgba = scene
    file = save_colmap(tmp_path, rgba, cameras) / "images.txt"
    lines = [line for line in file.read_text().splitlines() if line]
    file.write_text("\n".join(lines[:-1] if odd else lines) + "\n")
    with pytest.raises(ValueError, match="images.txt, line 3: .*POINTS2D"):
        load_colmap(tmp_path)


def test_points_beside_an_image_are_skipped(tmp_path, scene):
    _, cameras, rgba = scene
    file = save_colmap(tmp_path, rgba, cameras) / "images.txt"
    lines = file.read_text().splitlines()
    for i in range(2, 11, 2):  # 4 to 8 points each: as many words as a header has, and more
        lines[i] = " ".join(f"{k + 0.5} 12.25 {-1 if k % 2 else k}" for k in range(3 + i // 2))
    file.write_text("\n".join(lines) + "\n")
    assert torch.allclose(load_colmap(tmp_path).cameras.viewmats, cameras.viewmats, atol=1e-5)


@FORMATS
def test_wrong_arguments_are_named(tmp_path, scene, save, load):
    _, cameras, rgba = scene
    with pytest.raises(ValueError, match="images"):
        save(tmp_path, rgba[:3], cameras)
    with pytest.raises(ValueError, match="images"):
        save(tmp_path, rgba[..., :2], cameras)
    with pytest.raises(TypeError, match="images.*uint8"):
        save(tmp_path, (rgba * 255).byte(), cameras)
    for bad in (rgba * 255, rgba - 1, rgba * math.nan):
        with pytest.raises(ValueError, match="images.*wanted"):
            save(tmp_path, bad, cameras)
    assert not (tmp_path / "images").exists()
    skewed = Cameras(cameras.viewmats, cameras.Ks + torch.tensor([[0, 0.5, 0], [0, 0, 0], [0, 0, 0]]), 40, 30)
    with pytest.raises(ValueError, match="skew"):
        save(tmp_path, rgba, skewed)
    save(tmp_path, rgba, cameras)
    with pytest.raises(ValueError, match="up"):
        load(tmp_path, up="x")
    with pytest.raises(ValueError, match="background"):
        load(tmp_path, background="black")


def test_an_opening_angle_of_half_a_turn_is_refused(tmp_path):
    from PIL import Image
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for field, other in (("camera_angle_x", {}), ("camera_angle_y", {"camera_angle_x": 1.0})):
        frames = [{"file_path": "a.png", "transform_matrix": torch.eye(4).tolist()}]
        (tmp_path / "transforms.json").write_text(json.dumps({**other, field: 3.5, "frames": frames}))
        with pytest.raises(ValueError, match=field):
            load_transforms(tmp_path / "transforms.json")


def write_transforms(folder, pictures, **fields):
    """One identity camera per picture, named p0.png, ..."""
    frames = [{"file_path": f"p{i}.tif", "transform_matrix": np.eye(4).tolist()} for i in range(len(pictures))]
    for i, picture in enumerate(pictures):
        picture.save(folder / f"p{i}.tif")
    (folder / "transforms.json").write_text(json.dumps({"camera_angle_x": 1.0, **fields, "frames": frames}))
    return folder


def test_photos_of_16_bits_keep_their_brightness_and_32_bits_are_refused(tmp_path):
    grey = np.array([[0, 30000], [45000, 65535]], np.uint16)
    images = load_transforms(write_transforms(tmp_path, [Image.fromarray(grey)])).images
    assert np.abs(images[0].numpy() - grey[..., None] / 65535).max() < 0.51 / 255
    for dtype, mode in ((np.int32, "I"), (np.float32, "F")):
        with pytest.raises(ValueError, match=f"p0.tif.*mode {mode} "):
            load_transforms(write_transforms(tmp_path, [Image.fromarray(grey.astype(dtype))]))


def test_rounded_rotations_become_exact_ones():
    """Files hold few digits; scipy's nearest rotation is the oracle."""
    exact = Rotation.from_euler("xyz", [20, -35, 70], degrees=True).as_matrix()
    rounded = np.eye(4)
    rounded[:3, :3] = exact.round(4)
    mended = check_rigid(rounded, "here")[:3, :3]
    assert np.abs(mended @ mended.T - np.eye(3)).max() < 1e-12 < np.abs(rounded[:3, :3] @ rounded[:3, :3].T - np.eye(3)).max()
    np.testing.assert_allclose(mended, Rotation.from_matrix(rounded[:3, :3]).as_matrix(), atol=1e-4)
    np.testing.assert_allclose(mended, exact, atol=2e-4)

"""Photos with known cameras: reading and writing transforms.json (NeRF, nerfstudio) and COLMAP text models.

Both describe the pinhole camera of `gsgen_lib.scene.cameras`, with different axes:

    transforms.json   camera to world C, OpenGL axes (x right, y up, z backward), world usually z up
    COLMAP            world to camera as unit quaternion (w, x, y, z) and translation, OpenCV axes, world as it comes
    here              world to camera W, OpenCV axes (x right, y down, z forward), world y up

    W = (G C F)^-1,  F = diag(1, -1, -1, 1) flips the camera's axes, G turns the file's "up" to +y.

Pixels: COLMAP, instant-ngp and nerfstudio put the centre of the top left pixel at (0.5, 0.5), as we do, so
principal points are taken over unchanged. Without cx, cy the principal point is the middle, (w/2, h/2).

Lenses: only pinholes. A model with distortion is refused with its name: undistort the photos first
(`colmap image_undistorter`, `ns-process-data`). One `Cameras` has one image size: photos of several sizes
are refused, unless `size=` asks for all of them to be resized.

Shown in notebook 01. Formats: the documentation of COLMAP ("Output Format") and nerfstudio ("Data conventions").
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gsgen_lib.data.posed_files import (
    as_pixels,
    check_rigid,
    find_picture,
    pose_matrix,
    read_intrinsics,
    read_lines,
    read_numbers,
    read_picture,
    read_text,
    save_pictures,
)
from gsgen_lib.scene.cameras import Cameras

FLIP = np.diag([1.0, -1.0, -1.0, 1.0])
UP = {  # the rotation G that turns this direction of the file's world to our +y
    "y": np.eye(3),
    "z": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "-y": np.diag([1.0, -1.0, -1.0]),
}
SEEN = 1.8 * math.tan(math.radians(20))  # half of what the standard data camera sees at the origin


@dataclass(frozen=True)
class PosedPhotos:
    """V photos and their cameras.

    images (V, H, W, 3) float in [0, 1], or (V, H, W, 4) with straight alpha; cameras, V views; names, file
    names; points (P, 6) position and colour, or None. World coordinates here are scale * (G x_file - center).
    """

    images: Tensor
    cameras: Cameras
    names: list[str]
    points: Tensor | None = None
    scale: float = 1.0
    center: tuple[float, float, float] = (0.0, 0.0, 0.0)


def load_transforms(path: str | Path, size: tuple[int, int] | None = None, up: str = "z", unit_cube: bool = False,
                    background: str | None = "white") -> PosedPhotos:
    """Read a transforms.json (or the folder that holds one) and its photos.

    Intrinsics fl_x, fl_y, cx, cy, w, h or camera_angle_x (radians), for the file or per frame; if the photos
    are smaller or larger than w x h says, the intrinsics are scaled with them. size = (width, height) resizes
    all photos; up: "z" (usual for this format), "y" or "-y" of the file's world becomes our +y; unit_cube: move
    and scale the scene into [-0.5, 0.5]^3 (see `fit_unit_cube`); background: "white" or None for RGBA.
    Raises FileNotFoundError or ValueError naming file and field.

    >>> import tempfile
    >>> folder, cameras = tempfile.mkdtemp(), Cameras.orbit(3, width=8, height=6)
    >>> _ = save_transforms(folder, torch.rand(3, 6, 8, 3, generator=torch.Generator().manual_seed(0)), cameras)
    >>> photos = load_transforms(folder)
    >>> photos.images.shape, torch.allclose(photos.cameras.viewmats, cameras.viewmats, atol=1e-5)
    (torch.Size([3, 6, 8, 3]), True)
    """
    path = Path(path)
    path = path / "transforms.json" if path.is_dir() else path
    try:
        content = json.loads(read_text(path))
        frames = content["frames"]
        if not isinstance(frames, list) or not frames:
            raise ValueError("'frames' is no list with at least one frame")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a transforms.json ({type(error).__name__}: {error})") from error
    pictures, Ks, viewmats, names = [], [], [], []
    for i, frame in enumerate(frames):
        where = f"{path}: frames[{i}]"
        if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
            raise ValueError(f"{where}: field 'file_path' is missing")
        file = find_picture(path.parent, frame["file_path"], where)
        picture = read_picture(file)
        pictures.append(picture)
        Ks.append(read_intrinsics({**content, **frame}, picture.size, where))
        try:
            c2w = np.array(frame["transform_matrix"], dtype=np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: field 'transform_matrix': wanted 4 rows of 4 numbers ({error!r})") from error
        if c2w.shape == (3, 4):
            c2w = np.concatenate([c2w, [[0, 0, 0, 1]]])
        if c2w.shape != (4, 4):
            raise ValueError(f"{where}: field 'transform_matrix': wanted 4 x 4 numbers, got shape {c2w.shape}")
        viewmats.append(np.linalg.inv(check_rigid(c2w, f"{where}: field 'transform_matrix'") @ FLIP))
        names.append(frame["file_path"])
    return _assemble(pictures, Ks, viewmats, names, None, size, up, unit_cube, background, path)


def load_colmap(folder: str | Path, images: str | Path | None = None, size: tuple[int, int] | None = None,
                up: str = "y", unit_cube: bool = False, background: str | None = "white") -> PosedPhotos:
    """Read a COLMAP text model: cameras.txt, images.txt, points3D.txt in `folder` or its sparse/0 or sparse.

    images: the folder of the photos, default `folder`/images. Camera models SIMPLE_PINHOLE and PINHOLE;
    others are refused by name. Views come sorted by name; points (P, 6) hold position and colour in [0, 1].
    The other arguments as in `load_transforms`; COLMAP's world has no fixed up direction (often "-y").
    Raises FileNotFoundError or ValueError naming file and line.

    >>> import tempfile
    >>> folder, cameras = tempfile.mkdtemp(), Cameras.orbit(3, width=8, height=6)
    >>> _ = save_colmap(folder, torch.ones(3, 6, 8, 3), cameras, points=torch.ones(5, 6))
    >>> photos = load_colmap(folder)
    >>> photos.points.shape, torch.allclose(photos.cameras.Ks, cameras.Ks)
    (torch.Size([5, 6]), True)
    """
    folder = Path(folder)
    places = [folder, folder / "sparse" / "0", folder / "sparse"]
    model = next((f for f in places if (f / "cameras.txt").is_file()), None)
    if model is None:
        binary = any(folder.rglob("cameras.bin"))
        hint = "; a binary model is here: colmap model_converter --output_type TXT makes text of it" if binary else ""
        raise FileNotFoundError(f"{folder}: no cameras.txt in it, in sparse/0 or in sparse{hint}")
    photo_folder = Path(images) if images is not None else folder / "images"

    lenses = {}  # camera id -> the fields that `read_intrinsics` wants
    for where, (id, kind, w, h, *params) in read_lines(model / "cameras.txt", "CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]"):
        if kind not in ("SIMPLE_PINHOLE", "PINHOLE"):
            raise ValueError(f"{where}: camera model {kind} is not supported, only SIMPLE_PINHOLE and PINHOLE are: "
                             "undistort the photos first (colmap image_undistorter)")
        p = read_numbers(params, where, 4 if kind == "PINHOLE" else 3)
        fx, fy, cx, cy = p if kind == "PINHOLE" else (p[0], *p)
        w, h = read_numbers([w, h], where, 2)
        if min(fx, fy, w, h) <= 0:
            raise ValueError(f"{where}: wanted a positive focal length, width and height, got {fx, fy, w, h}")
        if id in lenses:
            raise ValueError(f"{where}: camera {id} is there twice")
        lenses[id] = {"fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "w": w, "h": h}

    views = []  # (name, quaternion and translation, camera id, where)
    # each image takes two lines; the second one, the points found in it, may be empty
    rows = read_lines(model / "images.txt", "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME", skip_next=True, maxsplit=9)
    known = set()
    for where, (id, *pose, camera, name) in rows:
        if ("image", id) in known or ("name", name) in known:
            raise ValueError(f"{where}: image {id}, {name}, is there twice (ids and names belong to one image each)")
        known |= {("image", id), ("name", name)}
        if camera not in lenses:
            raise ValueError(f"{where}: camera {camera} is not in cameras.txt")
        views.append((name, read_numbers(pose, where, 7), camera, where))
    if not views:
        raise ValueError(f"{model / 'images.txt'}: holds no image")

    points = None
    if (model / "points3D.txt").is_file():
        lines = read_lines(model / "points3D.txt", "POINT3D_ID X Y Z R G B ERROR")
        rows = [read_numbers(words[1:7], where, 6) for where, words in lines]
        points = np.array(rows, dtype=np.float64).reshape(-1, 6) / [1, 1, 1, 255, 255, 255]

    pictures, Ks, viewmats = [], [], []
    views.sort()
    for name, pose, camera, where in views:
        picture = read_picture(find_picture(photo_folder, name, where))
        Ks.append(read_intrinsics(lenses[camera], picture.size, where))
        viewmats.append(pose_matrix(pose, where))
        pictures.append(picture)
    names = [name for name, *_ in views]
    return _assemble(pictures, Ks, viewmats, names, points, size, up, unit_cube, background, model)


def fit_unit_cube(cameras: Cameras, points: Tensor | None = None) -> tuple[float, np.ndarray]:
    """(scale, center) such that scale * (x - center) brings the scene into [-0.5, 0.5]^3.

    With at least 100 points: the box that holds 98% of them in each coordinate becomes the cube. Otherwise from
    the cameras alone: the centre is the point nearest to all optical axes, and what half of the cameras see
    around it gets the size that the standard data camera sees. Raises ValueError for parallel axes.

    >>> scale, center = fit_unit_cube(Cameras.orbit(8, radius=3.6))
    >>> round(scale, 4), np.abs(center).max() < 1e-5
    (0.5, np.True_)
    """
    if points is not None and len(points) >= 100:
        low, high = np.quantile(points[:, :3].double().numpy(), [0.01, 0.99], axis=0)
        return float(1 / max((high - low).max(), 1e-12)), (low + high) / 2
    eye, axis = cameras.centers.double().numpy(), cameras.viewmats[:, 2, :3].double().numpy()
    across = np.eye(3) - axis[:, :, None] * axis[:, None, :]  # (V, 3, 3): removes the part along the axis
    normal = across.sum(0)  # sum_v P_v (x - eye_v) = 0
    if np.linalg.eigvalsh(normal)[0] < 1e-6 * len(eye):
        raise ValueError("cameras: the optical axes are parallel, nothing tells where the scene is; fit by hand")
    center = np.linalg.solve(normal, np.einsum("vij,vj->i", across, eye))
    Ks = cameras.Ks.double().numpy()
    half = np.minimum(cameras.width / Ks[:, 0, 0], cameras.height / Ks[:, 1, 1]) / 2  # tan of half the narrower view
    return float(SEEN / np.median(np.linalg.norm(eye - center, axis=1) * half)), center


def _assemble(pictures, Ks, viewmats, names, points, size, up, unit_cube, background, where) -> PosedPhotos:
    """World axes and units, resizing, background: what both formats share."""
    if up not in UP:
        raise ValueError(f"up: wanted one of {tuple(UP)}, got {up!r}")
    images, Ks = as_pixels(pictures, Ks, size, background, where)
    W, turn = np.stack(viewmats), np.eye(4)  # W: world to camera, float64
    turn[:3, :3] = UP[up]
    W = W @ turn.T  # x_cam = W x_file = W G^T x_ours
    if points is not None:
        points = np.concatenate([points[:, :3] @ UP[up].T, points[:, 3:]], axis=1)

    def make(W):
        return Cameras(torch.from_numpy(W).float(), torch.from_numpy(Ks).float(), images.shape[2], images.shape[1])

    cloud = None if points is None else torch.from_numpy(points)
    scale, center = fit_unit_cube(make(W), cloud) if unit_cube else (1.0, np.zeros(3))
    W[:, :3, 3] = scale * (W[:, :3, 3] + W[:, :3, :3] @ center)  # keeps the pixels where they are
    if cloud is not None:
        cloud[:, :3] = scale * (cloud[:, :3] - torch.from_numpy(center))
        cloud = cloud.float()
    return PosedPhotos(images, make(W), names, cloud, scale, tuple(map(float, center)))


# --- writing -------------------------------------------------------------------------------------------------


def save_transforms(folder: str | Path, images: Tensor, cameras: Cameras, up: str = "z") -> Path:
    """Write photos (V, H, W, 3 or 4) in [0, 1] as PNG and a transforms.json; returns its path.

    up: the axis of the written world that our +y becomes. Raises ValueError (TypeError for images that
    are no floats) naming the argument.
    """
    if up not in UP:
        raise ValueError(f"up: wanted one of {tuple(UP)}, got {up!r}")
    folder, turn = Path(folder), np.eye(4)
    turn[:3, :3] = UP[up].T
    frames = []
    Ks, viewmats = cameras.Ks.double().cpu().numpy(), cameras.viewmats.double().cpu().numpy()
    for W, K, name in zip(viewmats, Ks, save_pictures(folder, images, cameras), strict=True):
        lens = {"fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2], "w": cameras.width, "h": cameras.height}
        c2w = turn @ np.linalg.inv(W) @ FLIP
        frames.append({"file_path": f"images/{name}", **lens, "transform_matrix": c2w.tolist()})
    angle = 2 * math.atan(cameras.width / (2 * frames[0]["fl_x"]))  # for readers that know only this
    content = {"camera_model": "PINHOLE", "camera_angle_x": angle, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return folder / "transforms.json"


def save_colmap(folder: str | Path, images: Tensor, cameras: Cameras, points: Tensor | None = None) -> Path:
    """Write photos (V, H, W, 3 or 4) as PNG and a COLMAP text model into folder/sparse/0; returns that folder.

    points (P, 6): position and colour in [0, 1]. The world is written as it is, y up. Raises ValueError
    (TypeError for images that are no floats) naming the argument.
    """
    from scipy.spatial.transform import Rotation

    if points is not None and (points.ndim != 2 or points.shape[1] != 6):
        raise ValueError(f"points: wanted (P, 6), got {tuple(points.shape)}")
    if points is not None and not (points.isfinite().all() and (points[:, 3:] == points[:, 3:].clamp(0, 1)).all()):
        raise ValueError("points: wanted finite positions and colours in [0, 1]")
    model = Path(folder) / "sparse" / "0"
    model.mkdir(parents=True, exist_ok=True)
    lenses, poses = ["# CAMERA_ID MODEL WIDTH HEIGHT fx fy cx cy"], ["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME"]
    Ks, viewmats = cameras.Ks.double().cpu().numpy(), cameras.viewmats.double().cpu().numpy()
    names = save_pictures(Path(folder), images, cameras)
    for i, (W, K, name) in enumerate(zip(viewmats, Ks, names, strict=True), start=1):
        lens = " ".join(repr(float(x)) for x in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
        lenses.append(f"{i} PINHOLE {cameras.width} {cameras.height} {lens}")
        x, y, z, w = Rotation.from_matrix(W[:3, :3]).as_quat()
        pose = " ".join(repr(float(v)) for v in (w, x, y, z, *W[:3, 3]))
        poses += [f"{i} {pose} {i} {name}", ""]
    cloud = ["# POINT3D_ID X Y Z R G B ERROR TRACK[]"]
    for i, p in enumerate([] if points is None else points.double().tolist(), start=1):
        rgb = " ".join(str(round(255 * c)) for c in p[3:])
        cloud.append(f"{i} {p[0]!r} {p[1]!r} {p[2]!r} {rgb} 0")
    for name, lines in (("cameras.txt", lenses), ("images.txt", poses), ("points3D.txt", cloud)):
        (model / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return model

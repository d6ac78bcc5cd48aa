"""What reading transforms.json and COLMAP models has in common: pictures, numbers, checks that name the place.

`where` is always "file: field" or "file, line n", put in front of every error message. Used by `gsgen_lib.data.posed`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gsgen_lib.data.bits import to_8_bits
from gsgen_lib.scene.cameras import Cameras

SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".webp", ".JPG", ".PNG")
DISTORTION = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")


def read_text(path: Path) -> str:
    """The content of a text file; FileNotFoundError or ValueError name it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error})") from error


def read_lines(path: Path, fields: str, skip_next: bool = False, maxsplit: int = -1) -> Iterator[tuple[str, list[str]]]:
    """(where, words) of the lines that hold data, in COLMAP's way: "#" starts a comment.

    fields: what a line must hold at least (a field that ends in [] may be empty); skip_next: leave out
    the line after each one, even if it is empty; maxsplit: the last word keeps its spaces.
    """
    least = sum(not f.endswith("[]") for f in fields.split())
    lines = iter(enumerate(read_text(path).splitlines(), start=1))
    for number, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where, words = f"{path}, line {number}", line.strip().split(maxsplit=maxsplit)
        if len(words) < least:
            raise ValueError(f"{where}: wanted {fields}, got {line.strip()[:80]!r}")
        yield where, words
        if skip_next:
            number, skipped = next(lines, (number + 1, ""))
            if _is_image_header(skipped):
                raise ValueError(f"{path}, line {number}: a second line about an image where its POINTS2D belong; each "
                                 "image takes two lines, and the second stays, empty, where no points were found")


def _is_image_header(line: str) -> bool:
    """Whether a line is IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, rather than POINTS2D: triples of numbers.

    >>> _is_image_header("2 1 0 0 0 0 0 2 1 b.png"), _is_image_header("1.5 2.5 -1 3.5 4.5 7"), _is_image_header("")
    (True, False, False)
    """
    words = line.split(maxsplit=9)
    if len(words) < 10 or line.lstrip().startswith("#"):
        return False
    try:
        [float(w) for w in words[:9]]
    except ValueError:
        return False
    try:  # POINTS2D hold nothing but numbers, three by three
        return len([float(w) for w in line.split()]) % 3 > 0
    except ValueError:
        return True


def read_numbers(words, where: str, n: int) -> list[float]:
    """Exactly n finite numbers, of a list of numbers or of texts."""
    try:
        if not isinstance(words, list | tuple) or any(isinstance(w, bool) for w in words):
            raise TypeError
        numbers = [float(w) for w in words]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) != n or not all(math.isfinite(x) for x in numbers):
        got = " ".join(map(str, words)) if isinstance(words, list | tuple) else repr(words)
        raise ValueError(f"{where}: wanted {n} finite numbers, got {got[:200]!r}")
    return numbers


def find_picture(folder: Path, name: str, where: str) -> Path:
    """folder/name; the suffix may be missing, as in NeRF's own files."""
    for suffix in SUFFIXES:
        file = folder / (name.replace("\\", "/") + suffix)
        if file.is_file():
            return file
    raise FileNotFoundError(f"{where}: there is no photo {folder / name}")


def read_picture(file: Path):
    """A PIL image, RGB or RGBA, fully decoded."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            image.load()
            image = to_8_bits(image)
            has_alpha = "A" in image.getbands() or "transparency" in image.info
            return image.convert("RGBA" if has_alpha else "RGB")
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(f"{file}: cannot be read as a picture ({type(error).__name__}: {error})") from error


def read_intrinsics(fields: dict, actual: tuple[int, int], where: str) -> np.ndarray:
    """K (3, 3) for a photo of `actual` = (width, height) pixels from the fields of a transforms.json."""
    model = fields.get("camera_model", "PINHOLE")
    bent = [k for k in DISTORTION if fields.get(k)]
    listed = fields.get("distortion_params")  # nerfstudio's other way to write them
    if listed and any(listed if isinstance(listed, list) else [listed]):
        bent.append("distortion_params")
    if model not in ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "PERSPECTIVE") or bent or fields.get("is_fisheye"):
        raise ValueError(f"{where}: camera model {model}{' with ' + ', '.join(bent) if bent else ''} is not supported, "
                         "only pinholes without distortion are: undistort the photos first")

    def get(name, default=None):
        if name not in fields:
            return default
        value = read_numbers([fields[name]], f"{where}: field {name!r}", 1)[0]
        if value <= 0 and name not in ("cx", "cy"):
            raise ValueError(f"{where}: field {name!r}: wanted a positive number, got {fields[name]!r}")
        return value

    w, h = get("w", actual[0]), get("h", actual[1])
    fx, angle = get("fl_x"), get("camera_angle_x")
    if fx is None:
        if angle is None or angle >= math.pi:
            raise ValueError(f"{where}: wanted field 'fl_x' or 'camera_angle_x' (radians, below pi), got {angle}")
        fx = w / 2 / math.tan(angle / 2)
    angle_y = get("camera_angle_y")
    if angle_y is not None and angle_y >= math.pi:
        raise ValueError(f"{where}: field 'camera_angle_y': wanted radians below pi, got {angle_y}")
    fy = get("fl_y", fx if angle_y is None or "fl_x" in fields else h / 2 / math.tan(angle_y / 2))
    sx, sy = actual[0] / w, actual[1] / h  # the photos may have been scaled since
    if abs(sx * h - actual[1]) > 1.5 and abs(sy * w - actual[0]) > 1.5:
        raise ValueError(f"{where}: the photo has {actual[0]} x {actual[1]} pixels, but w x h says {w:g} x {h:g}")
    cx, cy = get("cx", w / 2), get("cy", h / 2)
    return np.array([[fx * sx, 0, cx * sx], [0, fy * sy, cy * sy], [0, 0, 1]])


def check_rigid(matrix: np.ndarray, where: str) -> np.ndarray:
    """The same (4, 4), if it is a rotation (determinant +1) and a translation."""
    r = matrix[:3, :3]
    ok = np.isfinite(matrix).all() and np.abs(matrix[3] - [0, 0, 0, 1]).max() < 1e-6
    if not ok or np.abs(r @ r.T - np.eye(3)).max() > 1e-3 or np.linalg.det(r) < 0:
        raise ValueError(f"{where}: wanted a rotation and a translation, got {matrix.tolist()}")
    u, _, vt = np.linalg.svd(r)  # files hold few digits: take the nearest rotation
    return np.block([[u @ vt, matrix[:3, 3:]], [matrix[3:]]])


def pose_matrix(pose: list[float], where: str) -> np.ndarray:
    """World to camera (4, 4) from COLMAP's QW QX QY QZ TX TY TZ."""
    from scipy.spatial.transform import Rotation

    w, x, y, z = pose[:4]
    norm = math.sqrt(w * w + x * x + y * y + z * z)
    if not 0.99 < norm < 1.01:
        raise ValueError(f"{where}: wanted a unit quaternion QW QX QY QZ, got one of length {norm:g}")
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = Rotation.from_quat([x, y, z, w]).as_matrix(), pose[4:]
    return matrix


def as_pixels(pictures: list, Ks: list[np.ndarray], size, background, where) -> tuple[Tensor, np.ndarray]:
    """Pictures of one size as (V, H, W, C) and their intrinsics (V, 3, 3), resized if `size` = (width, height)."""
    from PIL import Image

    sizes = sorted({p.size for p in pictures})
    if size is None and len(sizes) > 1:
        raise ValueError(f"{where}: photos have {len(sizes)} sizes, {sizes[0]} to {sizes[-1]}, and Cameras has one: "
                         "pass size=(width, height) to resize all")
    if background not in ("white", None):
        raise ValueError(f"background: wanted 'white' or None, got {background!r}")
    arrays, out = [], []
    for picture, K in zip(pictures, Ks, strict=True):
        w, h = size or picture.size
        out.append(np.diag([w / picture.size[0], h / picture.size[1], 1.0]) @ K)
        picture = picture.convert("RGBA")
        if (w, h) != picture.size:  # Pillow weighs colours by alpha when it resizes RGBA
            picture = picture.resize((w, h), Image.Resampling.LANCZOS)
        arrays.append(np.asarray(picture))
    rgba = torch.from_numpy(np.stack(arrays)).float() / 255  # (V, H, W, 4)
    images = rgba if background is None else rgba[..., 3:] * rgba[..., :3] + (1 - rgba[..., 3:])
    return images, np.stack(out)


def save_pictures(folder: Path, images: Tensor, cameras: Cameras) -> list[str]:
    """Write float images (V, H, W, 3 or 4) in [0, 1] to folder/images as PNG; returns their names."""
    from PIL import Image

    from gsgen_lib.metrics import check_images

    want = (len(cameras), cameras.height, cameras.width)
    if cameras.batch_shape or images.ndim != 4 or tuple(images.shape[:3]) != want or images.shape[3] not in (3, 4):
        raise ValueError(f"images: wanted {(*want, '3 or 4')} as the cameras say, got {tuple(images.shape)}")
    check_images("images", images, channels=images.shape[3])
    skew = cameras.Ks[:, 0, 1].abs().max() / cameras.Ks[:, 0, 0].min()
    if skew > 1e-6:
        raise ValueError("cameras: these formats hold no skew (Ks[..., 0, 1])")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names = [f"{i:04d}.png" for i in range(len(images))]
    for image, name in zip((images.clamp(0, 1) * 255).round().byte().cpu().numpy(), names, strict=True):
        Image.fromarray(image).save(folder / "images" / name)
    return names

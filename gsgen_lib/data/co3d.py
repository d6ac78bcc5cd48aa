"""CO3D, filmed objects of fifty categories with cameras, masks and depths, as its authors lay it out on disk.

    ROOT/CATEGORY/frame_annotations.jgz                 a gzipped JSON list with an entry for each frame
    ROOT/CATEGORY/SEQUENCE/images, masks, depths        what the entries' paths name, from ROOT on

An entry's viewpoint has PyTorch3D's axes and units. For a row x of the world,

    x_cam = x R + T,  x to the left, y up, z forward:            W = diag(-1, -1, 1, 1) [R^T | T]
    lens in half picture widths and heights, or, "ndc_isotropic", in halves of the smaller of the two:
                                                                 f_pixels = f half,  c_pixels = size / 2 - p half

A depth is a half float whose 16 bits are stored as a whole number, times `scale_adjustment`; in the units of the cameras.

Source: the data types and loaders of CO3D's repository describe the format; all code and text here are our own. The collection
is large and has its own licence; nothing of it ships. Used by notebook 08.
"""

from __future__ import annotations

import functools
import gzip
import json
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import torch
from torch import Tensor

from gsgen_lib.data.captures import (
    Capture,
    check_size,
    cut_square,
    evenly,
    lens_of,
    lifted,
    moved,
    rgba_of,
    square_around,
    upright,
)
from gsgen_lib.data.posed import fit_unit_cube
from gsgen_lib.data.posed_files import check_rigid, find_picture, read_numbers, read_picture

FORMATS = ("ndc_isotropic", "ndc_norm_image_bounds")  # ways to write a lens
LEAST_DEPTHS = 100  # points, below which cameras alone tell where an object is


def list_co3d(root: str | Path, category: str) -> dict[str, int]:
    """Sequences of a category, and how many frames each has."""
    counts: dict[str, int] = {}
    for entry in _annotations(Path(root) / category / "frame_annotations.jgz"):
        counts[entry["sequence_name"]] = counts.get(entry["sequence_name"], 0) + 1
    return counts


def load_co3d(root: str | Path, category: str, sequence: str, size: int = 128, frames: int | None = None,
              masked: bool = True, unit_cube: bool = True) -> Capture:
    """One object of CO3D. frames: so many, evenly spaced, None for all; masked: alpha is the mask, else 1; unit_cube: move and
    scale the object into [-0.5, 0.5]^3.

    Raises FileNotFoundError or ValueError naming the file, and the field or frame.
    """
    check_size(size)
    root, file = Path(root), Path(root) / category / "frame_annotations.jgz"
    entries = [e for e in _annotations(file) if e["sequence_name"] == sequence]
    if not entries:
        raise ValueError(f"{file}: has no sequence {sequence!r}; it has {', '.join(sorted(list_co3d(root, category))[:5])}, ...")
    entries = evenly(sorted(entries, key=lambda e: e["frame_number"]), frames, file)
    images, depths, Ks, viewmats = [], [], [], []
    for entry in entries:
        where = f"{file}: {sequence}, frame {entry['frame_number']}"
        picture = read_picture(find_picture(root, _path(entry, "image", where), where)).convert("RGB")
        K, W = _viewpoint(entry, picture.size, where)
        box = square_around(K, picture.size, where)
        alpha = None
        if masked:
            mask = read_picture(find_picture(root, _path(entry, "mask", where), where)).convert("L")
            alpha = cut_square(mask, picture.size, box, size, where)
        images.append(rgba_of(cut_square(picture, picture.size, box, size, where), alpha))
        depths.append(_depth(root, entry, picture.size, box, size, where))
        Ks.append(lens_of(K, box, size))
        viewmats.append(W)
    known = any(d is not None for d in depths)
    depth = torch.stack([torch.zeros(size, size, 1) if d is None else d for d in depths]) if known else None
    capture = upright(images, Ks, viewmats, depth, [_path(e, "image", str(file)) for e in entries], size,
                      f"{file}: {sequence}")
    if not unit_cube:
        return capture
    points = None
    if depth is not None:
        seen = lifted(capture)[(capture.images[..., 3] > 0.5) & (capture.depths[..., 0] > 0)]
        points = seen if len(seen) >= LEAST_DEPTHS else None
    return moved(capture, *fit_unit_cube(capture.cameras, points))


@functools.lru_cache(maxsize=4)
def _read_annotations(file: Path, changed: tuple[int, int]) -> list[dict]:
    try:
        with gzip.open(file, "rt", encoding="utf-8") as text:
            entries = json.load(text)
    except (OSError, EOFError, ValueError, zlib.error, RecursionError) as error:
        raise ValueError(f"{file}: not a gzipped JSON list ({type(error).__name__}: {error})") from error
    whole = isinstance(entries, list) and all(isinstance(e, dict) and isinstance(e.get("sequence_name"), str)
                                              and isinstance(e.get("frame_number"), int) for e in entries)
    if not whole:
        raise ValueError(f"{file}: wanted a list of frames with 'sequence_name' and 'frame_number'")
    return entries


def _annotations(file: Path) -> list[dict]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; CO3D has one in the folder of each category")
    facts = file.stat()
    return _read_annotations(file, (facts.st_mtime_ns, facts.st_size))


def _path(entry: dict, kind: str, where: str, field: str = "path") -> str:
    part = entry.get(kind)
    if not isinstance(part, dict) or not isinstance(part.get(field), str):
        raise ValueError(f"{where}: field '{kind}.{field}' is missing")
    plain = part[field].replace("\\", "/")  # as it will be looked up
    if PurePosixPath(plain).is_absolute() or PureWindowsPath(plain).drive or ".." in PurePosixPath(plain).parts:
        raise ValueError(f"{where}: field '{kind}.{field}': wanted a path inside the collection, got {part[field]!r}")
    return plain


def _viewpoint(entry: dict, size: tuple[int, int], where: str) -> tuple[np.ndarray, np.ndarray]:
    """K (3, 3) in pixels and world to camera (4, 4) in OpenCV axes, of a frame of `size` = (width, height) pixels."""
    view = entry.get("viewpoint")
    if not isinstance(view, dict):
        raise ValueError(f"{where}: field 'viewpoint' is missing")
    kind = view.get("intrinsics_format", "ndc_norm_image_bounds")
    if kind not in FORMATS:
        raise ValueError(f"{where}: field 'viewpoint.intrinsics_format': got {kind!r}, wanted one of {', '.join(FORMATS)}")
    f, p, T = (read_numbers(view.get(name) or [], f"{where}: field 'viewpoint.{name}'", n)
               for name, n in (("focal_length", 2), ("principal_point", 2), ("T", 3)))
    rows = view.get("R")
    if not isinstance(rows, list) or len(rows) != 3:
        raise ValueError(f"{where}: field 'viewpoint.R': wanted 3 rows of 3 numbers, got {rows!r}")
    R = np.array([read_numbers(row, f"{where}: field 'viewpoint.R'", 3) for row in rows])
    if min(f) <= 0:
        raise ValueError(f"{where}: field 'viewpoint.focal_length': wanted positive numbers, got {f}")
    half = np.array(size) / 2
    unit = np.full(2, half.min()) if kind == "ndc_isotropic" else half
    K = np.eye(3)
    K[0, 0], K[1, 1] = np.array(f) * unit
    K[:2, 2] = half - np.array(p) * unit  # its x points left, its y up
    W = np.eye(4)
    W[:3, :3], W[:3, 3] = R.T, T  # x R + T for rows is R^T x + T for columns
    return K, np.diag([-1.0, -1.0, 1.0, 1.0]) @ check_rigid(W, f"{where}: field 'viewpoint'")


def _depth(root: Path, entry: dict, size: tuple[int, int], box, out: int, where: str) -> Tensor | None:
    """Depth (out, out, 1), 0 where unknown, or None where the frame has none."""
    from PIL import Image

    if not entry.get("depth"):
        return None
    file = find_picture(root, _path(entry, "depth", where), where)
    (factor,) = read_numbers([entry["depth"].get("scale_adjustment", 1.0)], f"{where}: field 'depth.scale_adjustment'", 1)
    if factor <= 0:
        raise ValueError(f"{where}: field 'depth.scale_adjustment': wanted a number above 0, got {factor}")
    try:
        with Image.open(file) as image:
            mode, bits = image.mode, np.asarray(image)
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(f"{file}: cannot be read as a picture ({type(error).__name__}: {error})") from error
    if bits.ndim != 2 or not mode.startswith("I;16"):
        raise ValueError(f"{file}: wanted one 16-bit number a pixel, got shape {bits.shape}, mode {mode}")
    bits = bits.astype(np.uint16)
    depth = bits.view(np.float16).astype(np.float32) * factor
    depth = np.where(np.isfinite(depth) & (depth > 0), depth, 0)
    if entry["depth"].get("mask_path"):  # where the measured depth can be trusted
        sure = np.asarray(read_picture(find_picture(root, _path(entry, "depth", where, "mask_path"), where)).convert("L")) > 0
        if sure.shape != depth.shape:
            raise ValueError(f"{where}: the mask of its depth has {sure.shape[1]} x {sure.shape[0]} pixels, the depth "
                             f"{depth.shape[1]} x {depth.shape[0]}")
        depth = np.where(sure, depth, 0)
    cut = cut_square(Image.fromarray(depth), size, box, out, where, nearest=True)
    return torch.from_numpy(np.array(cut))[..., None]

"""Objects on disk: 24 small pictures from all around, a cloud of surface points, a line of facts.

A folder holds an index and two files per object:

    objects.json            facts of every object (below) and the SHA-256 of its files
    objects/ID.webp         the views, RGBA uint8, side by side in one lossless WebP sheet
    objects/ID.npz          surface points: positions (n, 3) uint16, normals (n, 3) int8, colors (n, 3) uint8
    meshes/ID.glb           the mesh itself, for some objects

An entry of objects.json: id, name, category, caption, split (train, val, test), licence, creator, source,
and how it was photographed: size (pixels), radius, fov (degrees), elevation and azimuth (one angle in
degrees per view, azimuth 0 = front, as in `Cameras.orbit`), so nobody has to guess a camera.

Quantisation: position = q / 65535 - 0.5 in each coordinate, normal = q / 127 (renormalised), colour =
q / 255. Points come in random order: the first k of them are again a uniform sample.

The files are only data: pictures decode through Pillow, arrays through numpy with pickle switched off,
and what does not match its SHA-256 is refused. Used in every notebook that shows real objects.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gsgen_lib.data import data_root
from gsgen_lib.scene.cameras import Cameras

INDEX = "objects.json"
SPLITS = ("train", "val", "test")
SHEET_COLUMNS = 6
WEBP_LIMIT = 16383  # pixels a side
FIELDS = {"name": str, "category": str, "caption": str, "split": str, "size": int, "radius": (int, float),
          "fov": (int, float), "elevation": list, "azimuth": list}  # what an entry must hold, beside id and files


@dataclass(frozen=True)
class ObjectViews:
    """One object as read from disk.

    id; images (V, H, W, 4) uint8, straight alpha; cameras (V views); points (n, 3), normals (n, 3) unit,
    colors (n, 3) in [0, 1], all float32; meta, its entry of objects.json (name, caption, split, ...).
    """

    id: str
    images: np.ndarray
    cameras: Cameras
    points: np.ndarray
    normals: np.ndarray
    colors: np.ndarray
    meta: dict


def list_objects(split: str | None = None, category: str | None = None, root: str | Path | None = None) -> list[dict]:
    """Entries of objects.json, in its order, of one split or category or all. root: default `data_root()`.

    Raises FileNotFoundError without an index, ValueError if it is damaged or `split` is unknown.

    >>> {entry["split"] for entry in list_objects("test")}
    {'test'}
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"split: wanted one of {SPLITS}, got {split!r}")
    root = Path(root) if root is not None else data_root()
    entries = _read_index(root)
    return [dict(e) for e in entries.values() if split in (None, e["split"]) and category in (None, e["category"])]


def load_object(id: str, root: str | Path | None = None, check: bool = True) -> ObjectViews:
    """Read one object by its id from a folder (default: the shipped data). check: compare SHA-256.

    Raises KeyError for an unknown id; FileNotFoundError or ValueError naming the file that is missing
    or damaged.

    >>> example = load_object(list_objects("train")[0]["id"])
    >>> example.images.shape, example.images.dtype, len(example.cameras), example.points.shape
    ((24, 64, 64, 4), dtype('uint8'), 24, (2048, 3))
    """
    from PIL import Image

    root = Path(root) if root is not None else data_root()
    entries = _read_index(root)
    if id not in entries:
        close = [k for k in entries if id.split("_")[0] in k][:5]
        raise KeyError(f"{id!r}: no such object in {root / INDEX} ({len(entries)} objects" +
                       (f"; similar: {', '.join(close)})" if close else ")"))
    meta = dict(entries[id])
    n, size = len(meta["azimuth"]), meta["size"]
    file = root / meta["files"]["views"]["path"]
    try:
        sheet = np.asarray(Image.open(io.BytesIO(_read_file(file, meta["files"]["views"], check))))
        images = _cut_sheet(sheet, n, size)
        file = root / meta["files"]["points"]["path"]
        with np.load(io.BytesIO(_read_file(file, meta["files"]["points"], check)), allow_pickle=False) as npz:
            arrays = [npz[key] for key in ("positions", "normals", "colors")]
        for array, dtype in zip(arrays, (np.uint16, np.int8, np.uint8), strict=True):
            if array.dtype != dtype or array.ndim != 2 or array.shape != (len(arrays[0]), 3):
                raise ValueError(f"wanted (n, 3) {np.dtype(dtype)}, got {array.shape} {array.dtype}")
    except (FileNotFoundError, DamagedFile):
        raise
    except Exception as error:
        raise DamagedFile(f"{file}: damaged ({type(error).__name__}: {error})") from error
    positions, normals, colors = (a.astype(np.float32) for a in arrays)
    return ObjectViews(id=id, images=images, cameras=object_cameras(meta), points=positions / 65535 - 0.5,
                       normals=normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6),
                       colors=colors / 255, meta=meta)


class DamagedFile(ValueError):
    """A data file whose content is not what the index says."""


def object_cameras(meta: dict) -> Cameras:
    """The cameras of an entry of objects.json.

    >>> meta = dict(azimuth=[0, 90], elevation=[15, 15], radius=1.8, fov=40.0, size=64)
    >>> object_cameras(meta).centers.shape
    torch.Size([2, 3])
    """
    return Cameras.orbit(len(meta["azimuth"]), radius=meta["radius"], elevation=meta["elevation"], fov=meta["fov"],
                         width=meta["size"], height=meta["size"], azimuth=meta["azimuth"])


def mesh_path(id: str, root: str | Path | None = None) -> Path:
    """Where the .glb of an object lies. Raises KeyError if the object is unknown or ships without one.

    >>> mesh_path([e for e in list_objects("test") if "mesh" in e["files"]][0]["id"]).suffix
    '.glb'
    """
    root = Path(root) if root is not None else data_root()
    entry = _read_index(root).get(id)
    if entry is None or "mesh" not in entry["files"]:
        raise KeyError(f"{id!r}: {'no such object' if entry is None else 'ships without a mesh'}")
    return root / entry["files"]["mesh"]["path"]


# --- writing ---------------------------------------------------------------------------------


def save_object(root: str | Path, meta: dict, images, points, normals, colors, glb: bytes | None = None) -> dict:
    """Write one object and its entry in objects.json; returns the entry.

    meta: the facts of the header docstring, without `files`; images (V, s, s, 4) uint8; points, normals,
    colors (n, 3) floats. Every file is written under a temporary name and then renamed, the index
    last: an interruption leaves either the whole object or none of it. Raises ValueError naming the
    argument that does not fit.

    >>> import tempfile
    >>> angles = dict(azimuth=[0.0, 180.0], elevation=[15.0, 15.0], radius=1.8, fov=40.0, size=8)
    >>> facts = dict(id="cube", name="Cube", category="cube", caption="a red cube", split="train")
    >>> folder, up = tempfile.mkdtemp(), np.tile([0.0, 1.0, 0.0], (5, 1))
    >>> entry = save_object(folder, facts | angles, np.zeros((2, 8, 8, 4), np.uint8), up / 2, up, up)
    >>> load_object("cube", folder).points[0].tolist()
    [7.62939453125e-06, 0.5, 7.62939453125e-06]
    """
    from PIL import Image

    root, id = Path(root), meta["id"]
    for key in FIELDS:
        if key not in meta:
            raise ValueError(f"meta: {key!r} is missing")
    if not id or any(not (c.islower() or c.isdigit() or c in "_-") for c in id):
        raise ValueError(f"meta['id']: wanted lower-case letters, digits, _ and -, got {id!r}")
    images, size = np.array(images), meta["size"]
    check_sheet(size, len(meta["azimuth"]))
    if images.shape != (len(meta["azimuth"]), size, size, 4) or images.dtype != np.uint8:
        raise ValueError(f"images: wanted ({len(meta['azimuth'])}, {size}, {size}, 4) uint8, "
                         f"got {images.shape} {images.dtype}")
    points, normals, colors = (np.asarray(x, dtype=np.float64) for x in (points, normals, colors))
    for name, x, low, high in (("points", points, -0.5, 0.5), ("normals", normals, -1, 1), ("colors", colors, 0, 1)):
        if x.shape != (len(points), 3) or not (x.min() >= low - 1e-5 and x.max() <= high + 1e-5):
            raise ValueError(f"{name}: wanted (n, 3) within [{low}, {high}], got {x.shape} in [{x.min()}, {x.max()}]")
    images[images[..., 3] == 0] = 0
    sheet = io.BytesIO()
    Image.fromarray(_lay_sheet(images)).save(sheet, format="WEBP", lossless=True, quality=100, method=5, exact=True)
    cloud = io.BytesIO()
    np.savez_compressed(cloud, positions=np.uint16(np.clip(np.round((points + 0.5) * 65535), 0, 65535)),
                        normals=np.int8(np.round(normals * 127)),
                        colors=np.uint8(np.clip(np.round(colors * 255), 0, 255)))
    contents = {"views": (f"objects/{id}.webp", sheet.getvalue()), "points": (f"objects/{id}.npz", cloud.getvalue())}
    if glb is not None:
        contents["mesh"] = (f"meshes/{id}.glb", glb)
    files = {}
    for kind, (path, content) in contents.items():
        write_atomic(root / path, content)
        files[kind] = {"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    entry = meta | {"files": files}
    entries = dict(_read_index(root)) if (root / INDEX).is_file() else {}
    entries[id] = entry
    write_index(root, entries.values())
    return entry


def check_sheet(size: int, views: int) -> None:
    """Raises ValueError if `views` pictures of `size` pixels make a sheet too large for WebP.

    >>> check_sheet(4096, 24)
    Traceback (most recent call last):
    ValueError: size, views: 24 views of 4096 pixels make a sheet of 24576 x 16384, WebP holds 16383 a side
    """
    columns = max(1, min(SHEET_COLUMNS, views))
    width, height = columns * size, -(-views // columns) * size
    if max(width, height) > WEBP_LIMIT:
        raise ValueError(f"size, views: {views} views of {size} pixels make a sheet of {width} x {height}, "
                         f"WebP holds {WEBP_LIMIT} a side")


def write_index(root: str | Path, entries) -> None:
    """Write objects.json: one entry per line, sorted by id. `entries` as `list_objects` returns them."""
    lines = [json.dumps(e, ensure_ascii=False) for e in sorted(entries, key=lambda e: e["id"])]
    write_atomic(Path(root) / INDEX, ("[\n" + ",\n".join(lines) + "\n]\n").encode())


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that it is at no time half there: under another name first, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    os.replace(temporary, path)


# --- details ---------------------------------------------------------------------------------


def _read_index(root: Path) -> dict[str, dict]:
    file = root / INDEX
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; is {root} a folder of objects?")
    stat = file.stat()
    return _parse_index(str(file), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=8)
def _parse_index(file: str, mtime: int, size: int) -> dict[str, dict]:
    """Parsed once per state of the file."""
    try:
        entries = json.loads(Path(file).read_text(encoding="utf-8"))
        for e in entries:
            _check_entry(e)
        return {e["id"]: e for e in entries}
    except Exception as error:
        raise DamagedFile(f"{file}: damaged ({type(error).__name__}: {error})") from error


def _check_entry(entry: dict) -> None:
    """Raises KeyError or ValueError if an entry of the index lacks a field or holds something else in it."""
    for key, kind in {"id": str, **FIELDS, "files": dict}.items():
        if not isinstance(entry[key], kind) or not (entry[key] or key in ("name", "caption")):
            raise ValueError(f"{entry['id']!r}: field {key!r}: got {entry[key]!r}")
    for kind in {"views", "points", *entry["files"]}:
        file = entry["files"][kind]
        if not (isinstance(file["path"], str) and isinstance(file["bytes"], int) and isinstance(file["sha256"], str)):
            raise ValueError(f"{entry['id']!r}: field 'files', {kind!r}: got {file!r}")
    angles = entry["elevation"] + entry["azimuth"]
    if len(entry["elevation"]) != len(entry["azimuth"]) or not all(isinstance(a, (int, float)) for a in angles):
        raise ValueError(f"{entry['id']!r}: 'elevation' and 'azimuth': wanted one number per view")


def _read_file(file: Path, facts: dict, check: bool) -> bytes:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: missing, although {INDEX} lists it")
    content = file.read_bytes()
    if check and hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise DamagedFile(f"{file}: damaged, its SHA-256 is not the one in {INDEX} "
                          f"({len(content)} bytes, wanted {facts['bytes']})")
    return content


def _lay_sheet(images: np.ndarray) -> np.ndarray:
    """(V, s, s, 4) -> one picture, row by row; unused places stay empty."""
    v, s = images.shape[:2]
    columns = min(SHEET_COLUMNS, v)
    rows = -(-v // columns)
    padded = np.zeros((rows * columns, s, s, 4), np.uint8)
    padded[:v] = images
    # (rows, columns, s, s, 4) -> (rows, s, columns, s, 4) -> (rows s, columns s, 4)
    return padded.reshape(rows, columns, s, s, 4).transpose(0, 2, 1, 3, 4).reshape(rows * s, columns * s, 4)


def _cut_sheet(sheet: np.ndarray, v: int, s: int) -> np.ndarray:
    """The inverse of `_lay_sheet`."""
    columns = min(SHEET_COLUMNS, v)
    rows = -(-v // columns)
    if sheet.shape != (rows * s, columns * s, 4):
        raise ValueError(f"wanted a sheet of {(rows * s, columns * s, 4)}, got {sheet.shape}")
    return sheet.reshape(rows, s, columns, s, 4).transpose(0, 2, 1, 3, 4).reshape(-1, s, s, 4)[:v].copy()

"""Frames of one object or room with known cameras, and what it takes to make them fit the course.

`co3d` and `realestate` read two large public collections into a `Capture`. Their pixels and units do not fit yet:

    principal point   networks here expect it in the middle. The largest square around it that lies in the picture is cut out and
                      scaled to size x size: K[0, 0] * size / side, and size / 2 for the principal point
    units             cameras that were found from pictures alone have no metre: x -> scale (x - center) for the world's points;
                      depths, which are measured along the optical axis, are multiplied by `scale` as well
    up                +y becomes the mean of the cameras' own "up": people hold them upright

Used by notebook 08.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gsgen_lib.data.objects import SPLITS
from gsgen_lib.data.view_sets import ViewSet
from gsgen_lib.scene.cameras import Cameras


@dataclass(frozen=True)
class Capture:
    """V frames of one object or room: images (V, S, S, 4) in [0, 1], straight alpha (1 where there is no mask); cameras;
    depths (V, S, S, 1) along the optical axis, 0 where unknown, or None; names of the frames; scale: what the file's units were
    multiplied by."""

    images: Tensor
    cameras: Cameras
    depths: Tensor | None
    names: list[str]
    scale: float


def evenly(entries: list, count: int | None, file: Path) -> list:
    """`count` of the frames, evenly spaced, the first and the last among them; None for all.

    >>> evenly(list("abcde"), 3, Path("a.txt"))
    ['a', 'c', 'e']
    """
    if count is None:
        return entries
    if not isinstance(count, int) or not 1 <= count <= len(entries):
        raise ValueError(f"{file}: asked for {count} frames, wanted 1 to {len(entries)}")
    return [entries[round(i)] for i in np.linspace(0, len(entries) - 1, count)]


def check_size(size: int) -> None:
    """ValueError for a size of pictures that is no whole number above 0."""
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"size: got {size!r}, wanted a whole number of pixels above 0")


def square_around(K: np.ndarray, size: tuple[int, int], where: str) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the largest square around the principal point that lies in the picture."""
    (cx, cy), (w, h) = K[:2, 2], size
    half = min(cx, w - cx, cy, h - cy)
    if half < 1:
        raise ValueError(f"{where}: the principal point ({cx:.1f}, {cy:.1f}) is not in the picture of {w} x {h} pixels")
    return cx - half, cy - half, cx + half, cy + half


def lens_of(K: np.ndarray, box, size: int) -> np.ndarray:
    """K after `box` was cut out and scaled to size x size."""
    scale = size / (box[2] - box[0])
    return np.array([[K[0, 0] * scale, 0, size / 2], [0, K[1, 1] * scale, size / 2], [0, 0, 1]])


def cut_square(picture, size: tuple[int, int], box, out: int, where: str, nearest: bool = False):
    """`box` of a Pillow picture, which must have `size`, scaled to out x out pixels."""
    from PIL import Image

    if picture.size != size:
        raise ValueError(f"{where}: mask or depth has {picture.size[0]} x {picture.size[1]} pixels, the image "
                         f"{size[0]} x {size[1]}")
    return picture.resize((out, out), Image.Resampling.NEAREST if nearest else Image.Resampling.BOX, box=box)


def rgba_of(rgb, alpha) -> Tensor:
    """(S, S, 4) in [0, 1] of Pillow pictures; alpha 1 where there is none."""
    rgb = torch.from_numpy(np.asarray(rgb).copy()).float() / 255
    if alpha is None:
        return torch.cat([rgb, torch.ones_like(rgb[..., :1])], -1)
    return torch.cat([rgb, torch.from_numpy(np.asarray(alpha).copy()).float()[..., None] / 255], -1)


def upright(images, Ks, viewmats, depths, names, size: int, where: str) -> Capture:
    """A capture of frames: pictures (S, S, 4), K (3, 3), world to camera (4, 4) each; depths (V, S, S, 1) or None. The world is
    turned so that the mean "up" of its cameras is +y. ValueError, beginning with `where`, for cameras that are not finite."""
    W = np.stack(viewmats)
    up = -W[:, 1, :3].mean(0)  # y of a camera points down
    if np.linalg.norm(up) > 1e-6:
        y = up / np.linalg.norm(up)
        z = np.cross(np.eye(3)[np.abs(y).argmin()], y)
        z /= np.linalg.norm(z)
        turn = np.eye(4)
        turn[:3, :3] = np.stack([np.cross(y, z), y, z])  # rows: our axes in the file's world
        W = W @ turn.T  # x_cam = W x_file, x_file = G^T x_ours
    cameras = Cameras(torch.from_numpy(W).float(), torch.from_numpy(np.stack(Ks)).float(), size, size)
    try:
        cameras.validate()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return Capture(torch.stack(images), cameras, depths, names, 1.0)


def moved(capture: Capture, scale: float, center) -> Capture:
    """The same pictures of a world whose points are scale * (x - center); depths grow with it. ValueError for a scale that is not
    a number above 0, or that makes cameras that are not finite."""
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale: got {scale}, wanted a number above 0")
    W = capture.cameras.viewmats.double().clone()
    at = torch.as_tensor(np.asarray(center, float))
    W[:, :3, 3] = scale * (W[:, :3, 3] + W[:, :3, :3] @ at)
    depths = None if capture.depths is None else capture.depths * scale
    cameras = replace(capture.cameras, viewmats=W.float()).validate()
    return replace(capture, cameras=cameras, depths=depths, scale=capture.scale * scale)


def lifted(capture: Capture) -> Tensor:
    """World points (V, S, S, 3) that the depths show; those of depth 0 mean nothing. ValueError where there are no depths."""
    if capture.depths is None:
        raise ValueError("capture: got one without depths")
    W, local = capture.cameras.viewmats, capture.depths * capture.cameras.through_pixels()  # (V, S, S, 3)
    return (local - W[:, None, None, :3, 3]) @ W[:, None, :3, :3]  # R^T (p - t) for rows p


def view_set(captures: list[Capture], captions: list[str], split: str = "train", points: int = 2048,
             generator: torch.Generator | None = None) -> ViewSet:
    """Captures of equal size and number of frames as one `ViewSet`, for training; its points are drawn from the depths (normals
    towards the camera that saw them), or are 0 where there are none."""
    sizes = sorted({tuple(c.images.shape[:3]) for c in captures})
    if len(sizes) != 1 or len(captions) != len(captures):
        raise ValueError(f"captures, captions: got {len(captures)} of shapes {sizes} and {len(captions)} captions, wanted "
                         "captures of one shape (V, S, S) and a caption for each")
    clouds = []
    for capture in captures:
        cloud = torch.zeros(points, 9)
        if capture.depths is not None:
            v, y, x = ((capture.images[..., 3] > 0.5) & (capture.depths[..., 0] > 0)).nonzero(as_tuple=True)
            if len(v):
                some = torch.randint(len(v), (points,), generator=generator)
                v, y, x = v[some], y[some], x[some]
                at = lifted(capture)[v, y, x]
                towards = torch.nn.functional.normalize(capture.cameras.centers[v] - at, dim=1)
                cloud = torch.cat([at, towards, capture.images[v, y, x, :3]], 1)
        clouds.append(cloud)
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, wanted one of {', '.join(SPLITS)}")
    for capture in captures:
        if not bool(((capture.images >= 0) & (capture.images <= 1)).all()):  # NaN fails, too
            raise ValueError("captures: got pictures with numbers outside 0 to 1")
    images = torch.stack([(c.images * 255).round().to(torch.uint8) for c in captures])
    meta = [{"id": f"{i:05d} {c.names[0]}", "caption": caption, "split": split}
            for i, (c, caption) in enumerate(zip(captures, captions, strict=True))]
    return ViewSet(images, Cameras.stack([c.cameras for c in captures]), torch.stack(clouds), meta)

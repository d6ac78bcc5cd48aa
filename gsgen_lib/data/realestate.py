"""RealEstate10K, films of rooms with cameras, as its users lay it out on disk.

    CAMERAS/ID.txt                 the address of the film, then a line for each frame:
                                   time in microseconds, fx fy cx cy, 0 0, world to camera 3 x 4 by rows
    FRAMES/ID/TIME.png or .jpg     the frames, which everybody takes from the films themselves

Focal lengths and the principal point are shares of width and height; axes are OpenCV's. Source: the description on the data set's
page; all code and text here are our own. Nothing of it ships. Used by notebook 08.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from gsgen_lib.data.captures import Capture, check_size, cut_square, evenly, lens_of, moved, rgba_of, square_around, upright
from gsgen_lib.data.posed_files import check_rigid, find_picture, read_numbers, read_picture, read_text


def load_realestate(cameras: str | Path, frames_folder: str | Path, size: int = 128, frames: int | None = None,
                    baseline: float | None = 1.0) -> Capture:
    """One room of RealEstate10K: its camera file CAMERAS/ID.txt and the folder FRAMES/ID with its frames. frames: so many, evenly
    spaced, None for all; baseline: the distance that its farthest two cameras get, None for the file's units.

    Raises FileNotFoundError or ValueError naming the file and the line.
    """
    check_size(size)
    if baseline is not None and not (math.isfinite(baseline) and baseline > 0):
        raise ValueError(f"baseline: got {baseline}, wanted a number above 0, or None for the file's units")
    file, folder = Path(cameras), Path(frames_folder)
    lines = [(i, line.split()) for i, line in enumerate(read_text(file).splitlines(), start=1) if line.strip()]
    if len(lines) < 2 or not lines[0][1][0].startswith("http"):
        raise ValueError(f"{file}: wanted the address of a video, and then a line for each frame")
    images, Ks, viewmats, names = [], [], [], []
    for number, words in evenly(lines[1:], frames, file):
        where = f"{file}, line {number}"
        values = read_numbers(words[1:], where, 18)
        if not words[0].isdigit():
            raise ValueError(f"{where}: wanted a time in microseconds first, got {words[0]!r}")
        fx, fy, cx, cy = values[:4]
        if any(values[4:6]):
            raise ValueError(f"{where}: wanted 0 0 after the lens, got {values[4]}, {values[5]}: distorted frames are not read")
        if min(fx, fy) <= 0:
            raise ValueError(f"{where}: wanted positive focal lengths, got {fx}, {fy}")
        picture = read_picture(find_picture(folder, words[0], where)).convert("RGB")
        w, h = picture.size
        K = np.array([[fx * w, 0, cx * w], [0, fy * h, cy * h], [0, 0, 1]])
        box = square_around(K, picture.size, where)
        images.append(rgba_of(cut_square(picture, picture.size, box, size, where), None))
        Ks.append(lens_of(K, box, size))
        viewmats.append(check_rigid(np.vstack([np.reshape(values[6:], (3, 4)), [0, 0, 0, 1]]), where))
        names.append(words[0])
    capture = upright(images, Ks, viewmats, None, names, size, str(file))
    if baseline is None:
        return capture
    apart = torch.pdist(capture.cameras.centers.double()).max().item() if len(names) > 1 else 0.0
    if not apart > 1e-9:
        raise ValueError(f"{file}: all cameras stand at one place, so there is no unit; pass baseline=None")
    return moved(capture, baseline / apart, np.zeros(3))

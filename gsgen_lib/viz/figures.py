"""Rows and grids of images: one figure, one message.

Three helpers cover what the notebooks show: `film_strip` (one thing from several sides, or over
time), `image_grid` (many things at once), `compare` (rows of targets, results and error maps).
Pixels are drawn as squares, never smoothed: at 64 x 64 a blurred display would flatter us.

Used in every notebook; the static twin of everything that moves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from gsgen_lib.viz.picture import COLOR_MAP, INK, Picture, as_images, new_figure, style, to_numpy


def film_strip(images, labels: Sequence[str] | None = None, title: str | None = None,
               alt: str | None = None, n: int = 8, cell: float = 1.25) -> Picture:
    """A row of up to `n` images, evenly picked when there are more, first one included.

    images: see `as_images`, (N, H, W, 3 or 4). labels: one text per image, shown below it.
    title: the message of the figure. alt: what it shows; made from title and labels if left out.
    cell: width of one image in inches.

    >>> import torch
    >>> film_strip(torch.rand(3, 8, 8, 3), labels=["0°", "120°", "240°"], title="a cloud").alt
    'a cloud: 3 images in a row: 0°, 120°, 240°'
    """
    frames = as_images(images)
    _check_count("labels", labels, len(frames))
    picked = pick_evenly(len(frames), n)
    chosen = [labels[i] for i in picked] if labels is not None else None
    alt = alt or _describe(title, f"{len(picked)} images in a row", chosen)
    return _grid(frames[picked], len(picked), chosen, title, alt, cell)


def image_grid(images, columns: int = 8, labels: Sequence[str] | None = None,
               title: str | None = None, alt: str | None = None, cell: float = 1.0) -> Picture:
    """All images, row by row, `columns` to a row. Arguments as in `film_strip`.

    >>> import torch
    >>> image_grid(torch.rand(5, 8, 8, 3), columns=3).alt
    '5 images in 2 rows'
    """
    frames = as_images(images)
    _check_count("labels", labels, len(frames))
    if columns < 1:
        raise ValueError(f"columns: got {columns}, wanted at least 1")
    columns = min(columns, len(frames))
    rows = math.ceil(len(frames) / columns)
    alt = alt or _describe(title, f"{len(frames)} images in {rows} rows", labels)
    return _grid(frames, columns, labels, title, alt, cell)


def compare(rows: Mapping[str, object], columns: Sequence[str] | None = None,
            captions: Mapping[str, Sequence[str]] | None = None, title: str | None = None,
            alt: str | None = None, limits: Mapping[str, tuple[float, float]] | None = None,
            cell: float = 1.25) -> Picture:
    """Named rows of images under each other, column by column the same thing.

    rows: name -> images (N, H, W, 3 or 4), or maps of one quantity (N, H, W) such as depth or
    error, which get a colour map and a colour bar; put the unit into the name ("error (0 to 1)").
    NaN in a map means "no value here" and stays white (depth of the background).
    columns: N texts above the columns. captions: row name -> N texts below its images (scores).
    limits: row name -> (low, high) of a map's colours; by default the row's own extremes.

    >>> import torch
    >>> a, b = torch.rand(3, 8, 8, 3), torch.rand(3, 8, 8, 3)
    >>> compare({"target": a, "render": b, "error": (a - b).abs().mean(-1)}).alt
    '3 columns; rows from top to bottom: target, render, error'
    """
    if not rows:
        raise ValueError("rows: got none, wanted at least one name with images")
    captions, limits = captions or {}, limits or {}
    for name, given in (("captions", captions), ("limits", limits)):
        if unknown := set(given) - set(rows):
            raise ValueError(f"{name}: got {sorted(unknown)}, wanted names of rows: {list(rows)}")
    panels = {name: _panel(name, values) for name, values in rows.items()}
    counts = {name: len(panel) for name, panel in panels.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"rows: got different numbers of images, {counts}")
    count = next(iter(counts.values()))
    _check_count("columns", columns, count)
    for name, texts in captions.items():
        _check_count(f"captions[{name!r}]", texts, count)
    alt = alt or _describe(title, f"{count} columns; rows from top to bottom: {', '.join(rows)}", None)

    ratio = max(panel.shape[1] / panel.shape[2] for panel in panels.values())
    caption_height = 0.2 * len(captions)
    with style():
        figure = new_figure(cell * count + 0.9, cell * ratio * len(rows) + 0.45 + caption_height)
        if title:
            figure.suptitle(title)
        axes = figure.subplots(len(rows), count, squeeze=False)
        for (name, panel), line in zip(panels.items(), axes, strict=True):
            if panel.ndim == 4:  # colours
                for image, axis in zip(panel, line, strict=True):
                    axis.imshow(image, interpolation="nearest")
            else:  # one quantity
                low, high = limits.get(name, (np.nanmin(panel), np.nanmax(panel)))
                for image, axis in zip(panel, line, strict=True):
                    drawn = axis.imshow(image, interpolation="nearest", cmap=COLOR_MAP, vmin=low, vmax=high)
                # Beside the last image, outside its axes: so all columns keep one width.
                bar = figure.colorbar(drawn, cax=line[-1].inset_axes([1.05, 0.05, 0.06, 0.9]))
                bar.outline.set_visible(False)
            line[0].set_ylabel(name, color=INK)
            for axis, text in zip(line, captions.get(name, [""] * count), strict=True):
                _bare(axis, text)
        if columns is not None:
            for axis, text in zip(axes[0], columns, strict=True):
                axis.set_title(text)
    return Picture(figure, alt)


def pick_evenly(count: int, n: int) -> list[int]:
    """Indices of at most n of `count` frames at equal steps, the first among them.

    >>> pick_evenly(36, 4), pick_evenly(3, 8)
    ([0, 9, 18, 27], [0, 1, 2])
    """
    if n < 1:
        raise ValueError(f"n: got {n}, wanted at least 1")
    return [i * count // n for i in range(n)] if count > n else list(range(count))


def _grid(frames: np.ndarray, columns: int, labels, title, alt: str, cell: float) -> Picture:
    rows = math.ceil(len(frames) / columns)
    ratio = frames.shape[1] / frames.shape[2]
    text = (0.2 if labels is not None else 0.02) * rows + (0.3 if title else 0)
    # Texts need room even below tiny images.
    with style():
        figure = new_figure(cell * columns, cell * ratio * rows + text)
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
        if title:
            figure.suptitle(title)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for i, axis in enumerate(axes):
            if i >= len(frames):
                axis.axis("off")
                continue
            axis.imshow(frames[i], interpolation="nearest")
            _bare(axis, labels[i] if labels is not None else "")
    return Picture(figure, alt)


def _panel(name: str, values) -> np.ndarray:
    """(N, H, W, 3) float images, or (N, H, W) maps; a last axis of 1 counts as a map."""
    if isinstance(values, (list, tuple)):
        return as_images(values, f"rows[{name!r}]")
    array = to_numpy(values, f"rows[{name!r}]", nan=True)
    one_channel = array.ndim == 4 and array.shape[-1] == 1
    if one_channel:
        array = array[..., 0]  # (N, H, W, 1) -> (N, H, W)
    if one_channel or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        if np.isnan(array).all():
            raise ValueError(f"rows[{name!r}]: holds no value but NaN")
        return array.astype(np.float32)
    return as_images(array, f"rows[{name!r}]")


def _bare(axis, label: str) -> None:
    """No ticks, no grid, no frame: an image with a text below."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    if label:
        axis.set_xlabel(label, fontsize=8, labelpad=2)


def _check_count(name: str, texts, count: int) -> None:
    if texts is not None and len(texts) != count:
        raise ValueError(f"{name}: got {len(texts)} texts, wanted {count}, one per image")


def _describe(title, what: str, labels) -> str:
    text = f"{title}: {what}" if title else what
    return f"{text}: {', '.join(labels)}" if labels is not None else text

"""One look for all figures, and pictures that carry their own description.

Problem. A figure in a notebook should look the same everywhere, be readable by people who
confuse red and green, and say in words what it shows, for screen readers. Here are the colours,
the matplotlib settings, and `Picture`: a figure as PNG bytes together with its alt text.

Colours: Okabe and Ito's eight (jfly.uni-koeln.de/color), in an order whose first members also
differ in lightness. Maps of one quantity use "cividis" (Nunez et al., PLOS ONE 2018), made to
look alike with and without colour-vision deficiency.

Used in every notebook. No display is needed: figures are plain `matplotlib.figure.Figure`
objects, pyplot's backend is left alone.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import torch

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#F0E442")
COLOR_MAP = "cividis"
INK, FAINT = "#222222", "#8A8A8A"
DPI = 110

SETTINGS = {
    "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9, "figure.titlesize": 11,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT, "axes.titlecolor": INK,
    "xtick.color": INK, "ytick.color": INK, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
    "axes.grid": True, "grid.color": "#E6E6E6", "grid.linewidth": 0.7, "axes.axisbelow": True,
    "lines.linewidth": 1.6, "legend.frameon": False, "legend.fontsize": 8,
    "figure.facecolor": "white", "savefig.facecolor": "white", "figure.dpi": DPI,
}  # fmt: skip


def style():
    """The course's matplotlib settings, as a context: `with viz.style(): plt.plot(...)`.

    >>> with style():
    ...     import matplotlib
    ...     matplotlib.rcParams["axes.spines.top"]
    False
    """
    import matplotlib
    from cycler import cycler

    return matplotlib.rc_context(SETTINGS | {"axes.prop_cycle": cycler(color=COLORS)})


def new_figure(width: float, height: float):
    """An empty figure of width x height inches. Call inside `style()`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


class Picture:
    """PNG bytes with alt text; shows itself in a notebook, and `save` writes it to a file.

    figure: a matplotlib Figure, or PNG bytes. alt: what the picture shows, one sentence.
    In Jupyter the alt text goes into the output's metadata and, as plain text, beside the image.

    >>> from matplotlib.figure import Figure
    >>> Picture(Figure(figsize=(1, 1), dpi=50), alt="an empty square").png[1:4]
    b'PNG'
    """

    def __init__(self, figure, alt: str):
        if not alt or not alt.strip():
            raise ValueError("alt: got an empty text, wanted a sentence that says what is shown")
        self.alt = alt
        if isinstance(figure, bytes):
            if not figure.startswith(b"\x89PNG"):
                raise ValueError("figure: got bytes that are not a PNG file")
            self.figure, self.png = None, figure
            return
        self.figure = figure
        buffer = io.BytesIO()
        # No time stamp or version in the file: the same figure gives the same bytes.
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        self.png = buffer.getvalue()

    def save(self, path) -> Path:
        """Write the PNG file; returns its path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.png)
        return path

    def __repr__(self) -> str:
        return f"Picture({self.alt!r}, {len(self.png) / 1024:.0f} kB)"

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = {"image/png": base64.b64encode(self.png).decode(), "text/plain": self.alt}
        return data, {"image/png": {"alt": self.alt}}


def show_alt(figure, alt: str) -> Picture:
    """Turn a matplotlib figure of your own into a `Picture` with alt text.

    A figure made with pyplot is closed, so that Jupyter does not show it a second time.

    >>> from matplotlib.figure import Figure
    >>> show_alt(Figure(figsize=(1, 1)), "an empty square").alt
    'an empty square'
    """
    picture = Picture(figure, alt)
    import sys

    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None and getattr(figure, "number", None) is not None:
        pyplot.close(figure)
    return picture


def as_images(images, name: str = "images") -> np.ndarray:
    """Any batch of images as float32 numpy (N, H, W, 3) in [0, 1], on white.

    images: tensor or array (N, H, W, C) or (H, W, C), or a list of (H, W, C); C = 3, or 4 for
    straight alpha, which is composited on white. uint8 counts as 0..255. Values outside [0, 1] are
    clipped, as a screen does. Raises ValueError for other shapes and non-finite values.

    >>> as_images(torch.zeros(2, 4, 4, 4)).mean()       # transparent is white
    np.float32(1.0)
    """
    if isinstance(images, (list, tuple)):
        parts = [as_images(image, f"{name}[{i}]") for i, image in enumerate(images)]
        if not parts:
            raise ValueError(f"{name}: got an empty list, wanted at least one image")
        if len({part.shape[1:] for part in parts}) > 1:
            raise ValueError(f"{name}: got images of different sizes, wanted one size")
        return np.concatenate(parts)
    array = to_numpy(images, name)
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or array.shape[-1] not in (3, 4) or array.size == 0:
        raise ValueError(f"{name}: got shape {array.shape}, wanted (N, H, W, 3) or (N, H, W, 4), N >= 1")
    if array.dtype == np.uint8:
        array = array / np.float32(255)
    array = array.astype(np.float32).clip(0, 1)
    if array.shape[-1] == 4:
        array = array[..., :3] * array[..., 3:] + (1 - array[..., 3:])
    return array


def to_numpy(values, name: str, nan: bool = False) -> np.ndarray:
    """A tensor or array as numpy on the CPU; ValueError for non-finite numbers (nan: allow NaN)."""
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name}: got {type(values).__name__} of {array.dtype}, wanted numbers")
    if not (np.isfinite(array) | (nan & np.isnan(array))).all():
        raise ValueError(f"{name}: holds non-finite values")
    return array

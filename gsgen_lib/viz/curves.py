"""Training curves: what was logged, against the step.

A log is a list of dicts, one per logged step, or a JSONL file with one such object a line:

    {"step": 100, "loss": 0.042, "psnr": 24.1}

`training_curves` draws a log, one panel per quantity. `LiveCurves` redraws one output while
training runs in front of a person, and draws once, at the end, where nobody watches (the course's
runners set TQDM_DISABLE=1), so that committed notebooks hold one final figure and no flicker.

Used in every notebook that trains.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from gsgen_lib.viz.picture import Picture, new_figure, style

NOISY, WINDOW = 200, 21  # from so many points on, the mean of 21 neighbours is drawn over a thin line
UNITS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lr": "learning rate", "loss": "loss", "l1": "L1 loss",
         "lpips": "LPIPS(alex)", "gaussians": "number of Gaussians", "seconds": "time (s)"}  # fmt: skip


def read_log(log) -> list[dict]:
    """The records of a log: a list of dicts as it is, or read from a JSONL file.

    Every record needs a "step"; values are numbers. A last line cut off by a stopped run is left
    out; any other broken line raises ValueError with its number. Raises FileNotFoundError.

    >>> read_log([{"step": 0, "loss": 1.0}])
    [{'step': 0, 'loss': 1.0}]
    """
    if isinstance(log, (str, Path)):
        path = Path(log)
        if not path.is_file():
            raise FileNotFoundError(f"log: no file {path}")
        text = path.read_text(encoding="utf-8")
        lines = [(i, line) for i, line in enumerate(text.splitlines(), start=1) if line.strip()]
        records = []
        for i, line in lines:
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                if i == lines[-1][0] and not text.endswith("\n"):
                    break  # the writer was stopped in the middle of this line
                raise ValueError(f"log: line {i} of {path} is not JSON ({error})") from None
    else:
        records = list(log)
    for i, record in enumerate(records):
        if not isinstance(record, Mapping) or "step" not in record:
            raise ValueError(f"log: record {i} is {record!r}, wanted a dict with a 'step'")
    return records


def training_curves(log, keys: Sequence[str] | None = None, title: str | None = None,
                    alt: str | None = None, log_scale: Sequence[str] = ("loss", "l1", "lr")) -> Picture:
    """One panel per quantity, its value against the step.

    log: a list of dicts, a JSONL file, or {run name: log} to draw several runs in each panel.
    keys: which quantities, in order; by default every numeric one that some record has.
    log_scale: quantities whose name starts with one of these get a logarithmic axis, provided
    that all values are positive. Numbers may be Python's, numpy's or tensors without dimensions; other entries of a
    record are not drawn. Values that are missing or not finite leave a gap. From 200 points
    on, every value is a thin line, and the mean of 21 neighbours a thick one over it.

    >>> log = [{"step": i, "loss": 0.9 ** i, "psnr": 10.0 + i} for i in range(20)]
    >>> training_curves(log).alt
    'training curves over 20 logged steps: loss falls from 1 to 0.135; psnr rises from 10 to 29'
    """
    logs = log if isinstance(log, Mapping) else {"": log}
    runs = {name: [_numbers(record) for record in read_log(one)] for name, one in logs.items()}
    found = dict.fromkeys(k for run in runs.values() for record in run for k in record if k != "step")
    if keys is None:
        keys = list(found)
    if unknown := [key for key in keys if key not in found]:
        raise ValueError(f"keys: got {unknown}, wanted some of {list(found)}")
    if not keys:
        raise ValueError("log: holds no numbers to draw, wanted records like {'step': 0, 'loss': 1.0}")
    alt = alt or _describe(runs, keys, title)

    columns = min(len(keys), 3)
    rows = math.ceil(len(keys) / columns)
    with style():
        figure = new_figure(2.9 * columns + 0.3, 2.1 * rows + (0.3 if title else 0))
        if title:
            figure.suptitle(title)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes[len(keys):]:
            axis.axis("off")
        for key, axis in zip(keys, axes, strict=False):  # an empty panel may be left
            values = []
            for name, run in runs.items():
                steps = [r["step"] for r in run if key in r]
                ys = [float(r[key]) for r in run if key in r]
                ys = [y if math.isfinite(y) else math.nan for y in ys]
                values += ys
                # A few points are dots: a line through them would suggest more than was measured.
                line, = axis.plot(steps, ys, label=name, marker="o" if len(ys) < 12 else None, markersize=3)
                if len(ys) >= NOISY and any(not y.is_integer() for y in ys if math.isfinite(y)):
                    line.set(linewidth=0.6, alpha=0.5)
                    axis.plot(*_running_mean(steps, ys), color=line.get_color())
            if key.startswith(tuple(log_scale)) and values and min(values) > 0:
                _plain_log_axis(axis)
            axis.set_title(_label(key), loc="left")
            axis.margins(x=0.02)
        for axis in axes[max(0, len(keys) - columns) : len(keys)]:
            axis.set_xlabel("step")
        if len(runs) > 1:
            axes[0].legend()
    return Picture(figure, alt)


class LiveCurves:
    """Curves that grow while training runs: `update` with each record, `close` at the end.

    every: seconds between two redraws. Where nobody watches (no notebook, or TQDM_DISABLE=1) it
    draws nothing until `close`, which shows the final figure once and returns it.
    The other arguments are those of `training_curves`.

    >>> with LiveCurves(title="a fit") as curves:
    ...     for step in range(3):
    ...         curves.update({"step": step, "loss": 1.0 / (step + 1)})
    >>> len(curves.log)
    3
    """

    def __init__(self, every: float = 2.0, **options):
        self.log: list[dict] = []
        self.every = every
        self.options = options
        self.live = in_notebook() and os.environ.get("TQDM_DISABLE", "0") in ("", "0")
        self._handle = None
        self._next = time.monotonic() + every

    def update(self, record: dict) -> None:
        """Add a record {"step": ..., name: value, ...}; redraws if it is time to."""
        self.log.append(dict(record))
        if self.live and time.monotonic() >= self._next:
            self._draw()

    def close(self) -> Picture | None:
        """Show the final figure (in a notebook) and return it; None if nothing was logged."""
        return self._draw(show=in_notebook()) if self.log else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def _draw(self, show: bool = True) -> Picture:
        started = time.monotonic()
        picture = training_curves(self.log, **self.options)
        if show:
            from IPython.display import display

            if self._handle is None:
                self._handle = display(picture, display_id=True)
            else:
                self._handle.update(picture)
        # Drawing takes time too: it shall not eat more than about a tenth of the training.
        now = time.monotonic()
        self._next = now + max(self.every, 10 * (now - started))
        return picture


def in_notebook() -> bool:
    """True inside a Jupyter kernel.

    >>> in_notebook()
    False
    """
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None


def _numbers(record: Mapping) -> dict[str, float]:
    """The numbers of a record, numpy's and tensors' among them, as Python's."""
    out = {"step": record["step"]}
    for key, value in record.items():
        if getattr(value, "ndim", None) == 0:  # a numpy scalar or array, or a tensor, that holds one number
            value = value.item()
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            out[key] = value
    return out


def _running_mean(steps: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """Mean of every WINDOW neighbours, at the middle one's step; the ends are left out."""
    half = WINDOW // 2
    means = [sum(values[i - half : i + half + 1]) / WINDOW for i in range(half, len(values) - half)]
    return steps[half : len(steps) - half], means


def _plain_log_axis(axis) -> None:
    """Logarithmic, labelled 0.01, 0.02, 0.05, 0.1 instead of powers of ten."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter("{x:g}")


def _label(key: str) -> str:
    return UNITS.get(key, key.replace("_", " "))


def _describe(runs: dict[str, list[dict]], keys: Sequence[str], title: str | None) -> str:
    texts = []
    for name, run in runs.items():
        for key in keys:
            values = [float(r[key]) for r in run if key in r]
            if not values:
                continue
            verb = "stays at" if values[0] == values[-1] else "falls" if values[-1] < values[0] else "rises"
            first, last = (f"{v:,.0f}" if abs(v) >= 1000 else f"{v:.3g}" for v in (values[0], values[-1]))
            change = first if verb == "stays at" else f"from {first} to {last}"
            texts.append(f"{name + ': ' if name else ''}{key} {verb} {change}")
    steps = max(len(run) for run in runs.values())
    return f"{title or 'training curves'} over {steps} logged steps: {'; '.join(texts)}"

"""The map of the course: its lessons in order, what goes in, what comes out, and how long one object takes.

Problem. A reader wants to know where a lesson leads before starting it. `LESSONS` is the plan, one
line per lesson. What exists is never written down here: `written` looks into the notebooks folder.
`course_map` draws both, with a ladder of times beside it: seconds to make one new object, on a
logarithmic axis, as the papers report them, on GPUs of their own. What this course measures on its
small models is another matter, and the last lesson's subject.

Sources of the times, from the abstract where nothing else is said: DreamGaussian, Tang et al. 2024 (2 minutes
from one image to a textured mesh); LGM, Tang et al. 2024 (within 5 seconds, the four views made by a
diffusion model included); GRM, Xu et al. 2024 (around 0.1 s, the views given); Henderson et al. 2024 (0.2 s);
VAR, Liao et al. 2025 (2.7 s for one sample, in its experiments); TRELLIS, Xiang et al. 2024 (about 10 s, in the paper).

Shown in notebook 00.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gsgen_lib.viz.picture import COLORS, FAINT, INK, Picture, new_figure, style

# Name -> colour. Three of them are ways to make a new object: optimise it against pictures, predict it
# in one pass of a network, or sample it from a learned distribution.
GROUPS = {
    "groundwork": COLORS[6],
    "optimise": COLORS[4],
    "predict": COLORS[2],
    "sample": COLORS[0],
    "compare": COLORS[6],
}


@dataclass(frozen=True)
class Lesson:
    """One lesson of the plan.

    number: two digits, as its notebook's name begins; goes_in, comes_out: a few words; group: a key of
    GROUPS; times: ((seconds, name), ...) that papers report for one object on one GPU, or empty.
    """

    number: str
    title: str
    goes_in: str
    comes_out: str
    group: str
    times: tuple[tuple[float, str], ...] = ()


LESSONS = (
    Lesson("00", "Start here", "points on a surface", "a splat file that turns", "groundwork"),
    Lesson("01", "Gaussians and rendering", "photos with cameras", "a fitted scene", "groundwork"),
    Lesson("02", "Diffusion", "noise and a caption", "a picture", "groundwork"),
    Lesson("03", "Score distillation", "a caption, a denoiser", "Gaussians", "optimise"),
    Lesson("04", "From splats to mesh", "Gaussians", "a textured mesh", "optimise",
           ((120.0, "DreamGaussian"),)),
    Lesson("05", "Feed-forward: LGM, GRM", "four views", "Gaussians", "predict",
           ((5.0, "LGM"), (0.1, "GRM"))),
    Lesson("06", "Splat VAE", "several views", "a latent, and splats", "sample"),
    Lesson("07", "Latent diffusion", "noise, or a view", "a scene", "sample", ((0.2, "Henderson et al."),)),
    Lesson("08", "One image, many worlds", "one image", "many scenes that fit it", "sample", ((2.7, "VAR"),)),
    Lesson("09", "Sparse voxels and flow", "a caption or an image", "voxels, then Gaussians", "sample",
           ((10.0, "TRELLIS"),)),
    Lesson("10", "Octree density: DeG", "a latent and a budget", "Gaussians where they count", "sample"),
    Lesson("11", "VecSeq", "a set of latents", "a sequence to generate", "sample"),
    Lesson("12", "The arena", "all of the above", "seconds against quality", "compare"),
)

def written(folder: str | Path | None = None) -> dict[str, str]:
    """The lessons that exist: {number: file name} of the notebooks NN_name.ipynb in `folder`.

    folder: default the repository's `notebooks/`; a folder that is absent holds none.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "07_latent_diffusion.ipynb").write_text("{}")
    ...     written(folder)
    {'07': '07_latent_diffusion.ipynb'}
    """
    folder = Path(folder) if folder is not None else Path(__file__).resolve().parents[2] / "notebooks"
    return {path.name[:2]: path.name for path in sorted(folder.glob("*.ipynb")) if re.match(r"\d\d_", path.name)}


def course_map(folder: str | Path | None = None) -> Picture:
    """Draw the plan: filled numbers are lessons that exist in `folder`, hollow ones are to come.

    >>> course_map("nowhere").alt[:66]
    'map of the course, 13 lessons from 00 Start here to 12 The arena; '
    """
    here = written(folder)
    with style():
        figure = new_figure(9.4, 4.8)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.0, 1))
        for axis in (left, right):
            axis.set_ylim(len(LESSONS) - 0.4, -0.7)
            axis.set_yticks([])
            for side in axis.spines.values():
                side.set_visible(False)
        _draw_table(left, here)
        _draw_ladder(right)
    existing = ", ".join(lesson.number for lesson in LESSONS if lesson.number in here) or "none"
    times = "; ".join(f"{name} {duration(s)}" for lesson in LESSONS for s, name in lesson.times)
    return Picture(figure, f"map of the course, {len(LESSONS)} lessons from 00 Start here to 12 The arena; "
                           f"in this repository now: {existing}; seconds per object reported by papers: {times}")


def duration(seconds: float) -> str:
    """A time in the unit that people use.

    >>> duration(0.2), duration(5.0), duration(120.0)
    ('0.2 s', '5 s', '2 min')
    """
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"


def _draw_table(axis, here: dict[str, str]) -> None:
    """A row per lesson: number, title, what goes in, what comes out."""
    axis.set_xlim(0, 10)
    axis.set_xticks([])
    axis.grid(False)
    for x, text in ((0.9, "lesson"), (4.3, "goes in"), (6.95, "comes out")):
        axis.text(x, -0.75, text, color=FAINT, va="bottom")
    for y, lesson in enumerate(LESSONS):
        color = GROUPS[lesson.group]
        exists = lesson.number in here
        if y and lesson.group != LESSONS[y - 1].group:
            axis.axhline(y - 0.5, color=FAINT, linewidth=0.6)
        axis.text(0.35, y, lesson.number, ha="center", va="center", weight="bold", color="white" if exists else color,
                  bbox={"boxstyle": "round,pad=0.25", "facecolor": color if exists else "white", "edgecolor": color})
        axis.text(0.9, y, lesson.title, va="center", weight="bold" if exists else "normal")
        axis.text(4.3, y, lesson.goes_in, va="center")
        axis.text(6.95, y, lesson.comes_out, va="center")


def _draw_ladder(axis) -> None:
    """Reported seconds per object on a logarithmic axis, in the row of the lesson that teaches it."""
    axis.set_xscale("log")
    axis.set_xlim(0.05, 1200)
    axis.set_xticks([0.1, 1, 10, 60, 600], ["0.1 s", "1 s", "10 s", "1 min", "10 min"])
    axis.minorticks_off()
    axis.tick_params(length=0)
    axis.set_xlabel("time for one new object, as its paper reports")
    for y, lesson in enumerate(LESSONS):
        color = GROUPS[lesson.group]
        if y and lesson.group != LESSONS[y - 1].group:
            axis.axhline(y - 0.5, color=FAINT, linewidth=0.6)
        first = next(i for i, other in enumerate(LESSONS) if other.group == lesson.group)
        if y == first and lesson.group in list(GROUPS)[1:-1]:
            axis.text(1100, y, lesson.group, color=color, ha="right", va="center", style="italic")
        for seconds, name in lesson.times:
            axis.plot(seconds, y, "o", color=color, markersize=7)
            # Left of the dot where the right edge is near.
            x, side = (7, "left") if seconds < 60 else (-7, "right")
            axis.annotate(f"{name}  {duration(seconds)}", (seconds, y), (x, 0), ha=side, va="center",
                          textcoords="offset points", color=INK, fontsize=8)

"""`gsgen view scene.ply`: look at a splat file in any browser, without Jupyter or a server.

Writes two files beside the scene (or into `out`):

    scene.html    a page with the largest Gaussians as ellipsoids and all centres as points, to turn
                  with the mouse; plotly's JavaScript is inside, so the page works offline
    scene.webp    a turntable made by the course's rasterizer, also inside the page

Used in notebook 00.
"""

from __future__ import annotations

import html
import sys
import webbrowser
from pathlib import Path

from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.scene.ply import load_ply
from gsgen_lib.scene.sh import SH_C0

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{name}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto; padding: 0 1em }}
h1 {{ font-size: 1.3em; margin: 0 }}
.views {{ display: flex; flex-wrap: wrap; gap: 24px; align-items: flex-start }}
figure {{ margin: 1em 0 }}
figcaption {{ color: #555; max-width: 32em }}
</style>
</head>
<body>
<h1>{name}</h1>
<p>{facts}</p>
<div class="views">
<figure>{turntable}<figcaption>Rendered: one turn around the scene.</figcaption></figure>
<figure>{plot}<figcaption>Drag to turn, scroll to zoom. {caption}</figcaption></figure>
</div>
</body>
</html>
"""


def view_scene(path: Path, /, out: Path | None = None, size: int = 320, frames: int = 36,
               ellipsoids: int = 1000, engine: str = "auto", open: bool = False) -> int:
    """Write a page (.html) and a turntable (.webp) that show a 3DGS .ply file, and print their paths.

    Args:
        path: the scene, a PLY file in the 3DGS layout.
        out: folder for the two files; by default the scene's own.
        size: width and height of the turntable, pixels.
        frames: pictures in one turn.
        ellipsoids: how many of the largest Gaussians the page draws as solids.
        engine: rasterizer: auto, reference, numba or gsplat.
        open: show the page in the default browser.

    Returns the exit code: 1, with one line on stderr, when the file or an option is bad.
    """
    try:
        page, turn = write_view(path, out, size, frames, ellipsoids, engine)
    except (ValueError, OSError) as error:  # a bad file or option: one line, no traceback
        print(f"gsgen view: {error}", file=sys.stderr)
        return 1
    for file in (page, turn):
        print(f"{file}  ({file.stat().st_size / 1024:,.0f} kB)")
    if open:
        webbrowser.open(page.resolve().as_uri())
    return 0


def write_view(path: Path, out: Path | None = None, size: int = 320, frames: int = 36,
               ellipsoids: int = 1000, engine: str = "auto") -> tuple[Path, Path]:
    """What `view_scene` does, as a function: returns the paths of the page and the turntable.

    Raises FileNotFoundError or ValueError for a missing, damaged or empty scene.
    """
    from gsgen_lib.viz.animations import turntable

    path = Path(path)
    scene = load_ply(path)
    if scene.num == 0:
        raise ValueError(f"{path}: holds no Gaussians")
    out = path.parent if out is None else Path(out)
    out.mkdir(parents=True, exist_ok=True)
    scene, moved = framed(scene)
    turn = turntable(scene, out / f"{path.stem}.webp", n=frames, size=size, engine=engine,
                     alt=f"{path.stem} turning once around")
    turn.width = size
    figure = _figure(scene, ellipsoids, size=480)
    kind = "RGB colours" if scene.sh_degree is None else f"spherical harmonics of degree {scene.sh_degree}"
    facts = f"{scene.num:,} Gaussians, {kind}{'; ' + moved if moved else ''}"
    caption = ("The buttons switch between the largest Gaussians as solid ellipsoids "
               "and the centres of all as points.")
    page = out / f"{path.stem}.html"
    page.write_text(PAGE.format(
        name=html.escape(path.name), facts=html.escape(facts), turntable=turn.html(), caption=caption,
        plot=figure.to_html(include_plotlyjs=True, full_html=False,
                            config={"displayModeBar": False, "scrollZoom": True})), encoding="utf-8")
    return page, turn.path


def framed(scene: Gaussians) -> tuple[Gaussians, str]:
    """The scene moved and scaled to fit the course's camera, and what was done ("" if nothing).

    Scenes of the course lie in [-0.5, 0.5]^3 and stay as they are; others are centred at the median
    and scaled so that 95% of the centres lie within 0.5 of it (a few far floaters do not count).

    >>> import torch
    >>> scene = Gaussians.random(100, radius=5.0, generator=torch.Generator().manual_seed(0))
    >>> small, what = framed(scene)
    >>> bool(small.means.norm(dim=-1).quantile(0.9) < 0.5), what.startswith("shown at")
    (True, True)
    """
    if bool((scene.means.abs() <= 0.6).all()) and bool(scene.means.norm(dim=-1).max() > 0.2):
        return scene, ""
    center = scene.means.median(dim=0).values
    distances = (scene.means - center).norm(dim=-1).sort().values
    reach = distances[int(0.95 * (len(distances) - 1))].item()
    scale = 0.5 / reach if reach > 1e-6 else 1.0
    moved = scene.transform(translation=-scale * center, scale=scale)
    return moved, f"shown at {scale:.3g} times its size, centred"


def _figure(scene: Gaussians, n: int, size: int, most_points: int = 20_000):
    """Plotly figure with two traces, ellipsoids and centres, and a button for each."""
    import numpy as np
    import plotly.graph_objects as go

    from gsgen_lib.viz.ellipsoid_plot import ellipsoid_figure, hex_colors

    figure = ellipsoid_figure(scene, n, size=size)
    step = -(-scene.num // most_points)  # every step-th centre, so that any scene stays light
    x, y, z = scene.means[::step].T.numpy().astype(np.float32)
    rgb = scene.colors if scene.sh_degree is None else 0.5 + SH_C0 * scene.colors[:, 0]
    colors = hex_colors(rgb[::step].clamp(0, 1).numpy())
    figure.add_trace(go.Scatter3d(x=x, y=y, z=z, mode="markers", visible=False, hoverinfo="skip",
                                  marker={"size": 2.5, "color": colors}))
    solids = figure.layout.title.text
    points = f"{len(x):,} of {scene.num:,} centres"
    figure.update_layout(updatemenus=[{
        "type": "buttons", "direction": "right", "x": 0.5, "y": 0, "xanchor": "center", "yanchor": "top",
        "buttons": [
            {"label": "ellipsoids", "method": "update", "args": [{"visible": [True, False]}, {"title.text": solids}]},
            {"label": "centres", "method": "update", "args": [{"visible": [False, True]}, {"title.text": points}]},
        ]}], margin={"l": 0, "r": 0, "t": 30, "b": 50}, height=size + 60)
    return figure

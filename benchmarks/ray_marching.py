"""What splatting saves against ray marching the same Gaussians: gsgen bench ray_marching [--json].

The code that marches is the lesson's own: the two cells of notebook 01 that define `march_rays`, `tiles_of` and `march`
run here. Each validation object that ships with a mesh is fitted from 24 views, with each of three seeds; one held-out
view is then drawn in every way. Time is processor time, summed over threads, best of five, without the time of
`tiles_of`, which every way but the library's needs alike; quality is PSNR to the true view.
"""

import math
import time
from dataclasses import replace
from functools import partial

import numba
import numpy as np
import torch

from gsgen_lib import Cameras, rasterize
from gsgen_lib.data.meshes import load_mesh
from gsgen_lib.data.objects import list_objects, mesh_path
from gsgen_lib.data.raycast import render_mesh
from gsgen_lib.metrics import bootstrap_ci, psnr
from gsgen_lib.raster.projection import ALPHA_MIN, EPS2D, MAX_ALPHA, T_MIN, project
from gsgen_lib.systems.fitting import FitConfig, fit
from tools import notebook_source

WHITE = (1.0, 1.0, 1.0)
SPLATS, LOOP = "splatting, the library's engine, tiles included", "splatting, the lesson's loop"
ASKS_ALL = "marching, 128, every sample asks all"


def lesson_march():
    """The functions `tiles_of` and `march` of notebook 01, made from its source."""
    names = {"math": math, "np": np, "numba": numba, "torch": torch, "replace": replace, "project": project,
             "ALPHA_MIN": ALPHA_MIN, "EPS2D": EPS2D, "MAX_ALPHA": MAX_ALPHA, "T_MIN": T_MIN}
    path = notebook_source.SOURCES / "01_gaussians_and_rendering.py"
    cells = path.read_text(encoding="utf-8").split("\n# %%")
    for start in ("def march_rays(", "def march("):
        code = next(cell for cell in cells if f"\n{start}" in cell).split("\n", 1)[1]
        exec(compile(code, str(path), "exec"), names)
    return names["tiles_of"], names["march"]


def timed(draw):
    """The picture (H, W, 3) in [0, 1] and the fastest of five runs, ms of processor time, after one to warm up."""
    times = []
    for _ in range(6):
        start = time.process_time()
        image = draw()
        times.append(time.process_time() - start)
    return image.clamp(0, 1), 1000 * min(times[1:])


def main(split: str = "val", objects: int = 0, seeds: int = 3, steps: int = 600, size: int = 128) -> dict:
    """Compare on every object of `split` that has a mesh (or the first `objects` of them)."""
    tiles_of, march = lesson_march()
    ids = [o["id"] for o in list_objects(split) if "mesh" in o["files"]]
    ids = ids[:objects] if objects else ids
    cams = Cameras.orbit(25, elevation=torch.linspace(-10, 50, 25)[torch.arange(25) * 7 % 25], width=size, height=size)
    seat = cams[12:13]
    train = torch.arange(25) != 12
    ways = {SPLATS: lambda g, tiles: rasterize(g, seat, WHITE).rgb[0], LOOP: lambda g, tiles: march(tiles, seat, 0)}
    ways |= {f"marching, {n} samples": lambda g, tiles, n=n: march(tiles, seat, n) for n in (16, 32, 64, 128)}
    ways[ASKS_ALL] = lambda g, tiles: march(tiles, seat, 128, skip=False)
    ms, db = ({name: np.zeros((seeds, len(ids))) for name in ways} for _ in range(2))
    for column, object_id in enumerate(ids):
        views = torch.as_tensor(render_mesh(load_mesh(mesh_path(object_id)), cams).rgba)
        photo = views[12, ..., :3] * views[12, ..., 3:] + 1 - views[12, ..., 3:]
        for seed in range(seeds):
            scene = fit(views[train], cams[train], config=FitConfig(steps=steps), progress=False,
                        generator=torch.Generator().manual_seed(seed)).gaussians
            tiles = tiles_of(scene, seat)
            for name, draw in ways.items():
                image, ms[name][seed, column] = timed(partial(draw, scene, tiles))
                db[name][seed, column] = psnr(image, photo).item()
    rows = []
    for name in ways:
        ratio, low, high = bootstrap_ci(ms[name] / ms[LOOP], np.random.default_rng(0))
        rows.append({"way": name, "processor ms": round(ms[name].mean(), 1), "PSNR": round(db[name].mean(), 2),
                     "times the loop's splatting": round(ratio, 2), "interval": f"{low:.2f} to {high:.2f}"})
    skipping, asked, most = (float((ms[a] / ms[b]).mean()) for a, b in (
        ("marching, 128 samples", LOOP), (ASKS_ALL, LOOP), (ASKS_ALL, SPLATS)))
    loss = float((db[SPLATS] - db["marching, 128 samples"]).mean())
    bars = [{"id": "marching 128 / splatting, same loop", "value": round(skipping, 2), "bar": 1, "ok": skipping > 1},
            {"id": "every sample asks all / splatting, same loop", "value": round(asked, 1), "bar": 5, "ok": asked > 5},
            {"id": "every sample asks all / the library's engine", "value": round(most, 1), "bar": 10, "ok": most > 10},
            {"id": "PSNR lost by marching 128, dB", "value": round(loss, 2), "bar": 0.25, "ok": loss <= 0.25}]
    note = (f"{len(ids)} {split} objects x {seeds} seeds, {size}², fits of {steps} steps; PSNR: mean over pictures of "
            "per-picture PSNR; intervals: 95 % bootstrap over seeds and objects.")
    return {"name": "ray_marching", "rows": rows, "bars": bars, "note": note}

"""What splatting saves against ray marching the same Gaussians: gsgen bench ray_marching [--json].

The code that marches is the lesson's own: the two cells of notebook 01 that define `march_rays` and `march` run here.
Each validation object that ships with a mesh is fitted from 24 views, with each of three seeds; one held-out view is
then drawn in every way. Time is processor time, summed over threads, best of three; quality is PSNR to the true view.
"""

import math
import time
from dataclasses import replace

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
SPLATS, LOOP = "splatting, the library's engine", "splatting, the lesson's loop"


def lesson_march():
    """The function `march` of notebook 01, made from its source."""
    names = {"math": math, "np": np, "numba": numba, "torch": torch, "replace": replace, "project": project,
             "ALPHA_MIN": ALPHA_MIN, "EPS2D": EPS2D, "MAX_ALPHA": MAX_ALPHA, "T_MIN": T_MIN}
    path = notebook_source.SOURCES / "01_gaussians_and_rendering.py"
    cells = path.read_text(encoding="utf-8").split("\n# %%")
    for start in ("def march_rays(", "def march("):
        code = next(cell for cell in cells if f"\n{start}" in cell).split("\n", 1)[1]
        body = code.split("\n\n\ndef cpu_milliseconds(")[0]  # what follows draws the lesson's own scene
        exec(compile(body, str(path), "exec"), names)
    return names["march"]


def timed(draw):
    """The picture (H, W, 3) in [0, 1] and the fastest of three runs, ms of processor time, after one to warm up."""
    times = []
    for _ in range(4):
        start = time.process_time()
        image = draw()
        times.append(time.process_time() - start)
    return image.clamp(0, 1), 1000 * min(times[1:])


def main(split: str = "val", objects: int = 0, seeds: int = 3, steps: int = 600, size: int = 128) -> dict:
    """Compare on every object of `split` that has a mesh (or the first `objects` of them)."""
    march = lesson_march()
    ids = [o["id"] for o in list_objects(split) if "mesh" in o["files"]]
    ids = ids[:objects] if objects else ids
    cams = Cameras.orbit(25, elevation=torch.linspace(-10, 50, 25)[torch.arange(25) * 7 % 25], width=size, height=size)
    seat = cams[12:13]
    train = torch.arange(25) != 12
    ways = {SPLATS: lambda g: rasterize(g, seat, WHITE).rgb[0], LOOP: lambda g: march(g, seat[0], 0)}
    ways |= {f"marching, {n} samples": lambda g, n=n: march(g, seat[0], n) for n in (16, 32, 64, 128)}
    ways["marching, 128, every sample asks all"] = lambda g: march(g, seat[0], 128, skip=False)
    ms, db = ({name: np.zeros((seeds, len(ids))) for name in ways} for _ in range(2))
    for column, object_id in enumerate(ids):
        views = torch.as_tensor(render_mesh(load_mesh(mesh_path(object_id)), cams).rgba)
        photo = views[12, ..., :3] * views[12, ..., 3:] + 1 - views[12, ..., 3:]
        for seed in range(seeds):
            scene = fit(views[train], cams[train], config=FitConfig(steps=steps), progress=False,
                        generator=torch.Generator().manual_seed(seed)).gaussians
            for name, draw in ways.items():
                image, ms[name][seed, column] = timed(lambda: draw(scene))
                db[name][seed, column] = psnr(image, photo).item()
    rows = []
    for name in ways:
        ratio, low, high = bootstrap_ci(ms[name] / ms[LOOP], np.random.default_rng(0))
        rows.append({"way": name, "processor ms": round(ms[name].mean(), 1), "PSNR": round(db[name].mean(), 2),
                     "times the loop's splatting": round(ratio, 2), "interval": f"{low:.2f} to {high:.2f}"})
    loop = float((ms["marching, 128 samples"] / ms[LOOP]).mean())
    asked = float((ms["marching, 128, every sample asks all"] / ms[SPLATS]).mean())
    loss = float((db[SPLATS] - db["marching, 128 samples"]).mean())
    bars = [{"id": "marching 128 / splatting, same loop", "value": round(loop, 2), "bar": 1, "ok": loop > 1},
            {"id": "marching, every sample asks / the library's splatting", "value": round(asked, 1), "bar": 10, "ok": asked > 10},
            {"id": "PSNR lost by marching 128, dB", "value": round(loss, 2), "bar": 0.25, "ok": loss <= 0.25}]
    note = (f"{len(ids)} {split} objects x {seeds} seeds, {size}², fits of {steps} steps; PSNR: mean over pictures of "
            "per-picture PSNR; intervals: 95 % bootstrap over seeds and objects.")
    return {"name": "ray_marching", "rows": rows, "bars": bars, "note": note}

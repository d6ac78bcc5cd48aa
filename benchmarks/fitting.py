"""Fitting Gaussians to real held-out objects: gsgen bench fitting [--json].

For every test object that ships with a mesh: 24 training and 8 held-out views at 128², rendered from the mesh (4x4 rays
a pixel); fit with the default settings; PSNR of the held-out views on white (mean over views of per-view PSNR), whole
image and foreground box, alpha IoU, and seconds of the fit alone. Every object is reported.
"""

import sys
import time

import torch

from gsgen_lib import Cameras, rasterize
from gsgen_lib.data.meshes import load_mesh
from gsgen_lib.data.objects import list_objects, mesh_path
from gsgen_lib.data.raycast import render_mesh
from gsgen_lib.metrics import alpha_iou, bootstrap_ci, box_psnr, psnr
from gsgen_lib.systems.fitting import FitConfig, fit

SIZE = 128


def cameras(views: int = 32) -> Cameras:
    """Directions of a Fibonacci spiral between elevation -20 and 70 degrees."""
    i = torch.arange(views)
    low, high = torch.sin(torch.deg2rad(torch.tensor([-20.0, 70.0])))
    elevation = torch.rad2deg(torch.asin(low + (high - low) * (i + 0.5) / views))
    return Cameras.orbit(views, elevation=elevation, azimuth=i * 137.50776 % 360, width=SIZE, height=SIZE)


def main(split: str = "test", objects: int = 0, seed: int = 0, steps: int = FitConfig.steps) -> dict:
    """Fit every object of `split` that has a mesh (or the first `objects` of them)."""
    import numpy as np

    ids = [o["id"] for o in list_objects(split) if "mesh" in o["files"]]
    ids = ids[:objects] if objects else ids
    cams = cameras()
    held_out = torch.arange(len(cams)) % 4 == 1
    train, test = (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]
    rows = []
    fit_small_to_compile(cams)
    for name in ids:
        images = torch.as_tensor(render_mesh(load_mesh(mesh_path(name)), cams, supersample=4).rgba)
        start = time.perf_counter()
        result = fit(images[train], cams[train], config=FitConfig(steps=steps), progress=False,
                     generator=torch.Generator().manual_seed(seed))
        seconds = time.perf_counter() - start
        out = rasterize(result.gaussians, cams[test], (1.0, 1.0, 1.0))
        alpha = images[test][..., 3:]
        target = images[test][..., :3] * alpha + 1 - alpha
        rgb = out.rgb.clamp(0, 1)
        rows.append({"object": name, "PSNR": round(psnr(rgb, target).item(), 2),
                     "box PSNR": round(box_psnr(rgb, target, alpha).item(), 2),
                     "alpha IoU": round(alpha_iou(out.alpha.clamp(0, 1), alpha).item(), 3),
                     "Gaussians": result.gaussians.num, "seconds": round(seconds, 1)})
        print(rows[-1], flush=True, file=sys.stderr)
    scores = [r["PSNR"] for r in rows]
    mean = sum(scores) / len(scores)
    _, low, high = bootstrap_ci(scores, generator=np.random.default_rng(0))
    rows.append({"object": f"mean of {len(scores)} (95 % interval {low:.1f} to {high:.1f})", "PSNR": round(mean, 2)})
    slowest = max(r["seconds"] for r in rows[:-1])
    bars = [{"id": f"mean held-out PSNR, dB, {len(scores)} {split} objects", "value": round(mean, 2), "bar": 30,
             "ok": mean >= 30},
            {"id": "objects", "value": len(scores), "bar": 10, "ok": len(scores) >= 10},
            {"id": "slowest fit, s", "value": slowest, "bar": 60, "ok": slowest <= 60}]
    note = ("PSNR: mean over the 8 held-out views of per-view PSNR on white; box: within the object's bounding box; alpha IoU: "
            "overlap of the silhouettes, fitted and true, over their union. Seconds: the fit alone.")
    return {"name": "fitting", "rows": rows, "bars": bars, "note": note}


def fit_small_to_compile(cams: Cameras) -> None:
    """Compile the kernels before anything is timed."""
    fit(torch.rand(2, SIZE, SIZE, 4), cams[:2], config=FitConfig(steps=2, init=50), progress=False)

"""The gsplat engine on CUDA: gsgen bench raster_gpu [--json]. Needs a GPU.

How much `rasterize` adds to a bare `gsplat.rasterization` call doing the same work (colours, alpha, summed depth on a
white background), forward + backward, both in one run and taking turns; median of many calls. Once without value checks,
as hot loops use it, and once with them.
"""

import statistics
import time

import torch

from gsgen_lib import Cameras, Gaussians, rasterize

SIZES = {"4k, 64²": (4000, 64), "16k, 128²": (16000, 128), "64k, 256²": (64000, 256), "500k, 1024²": (500_000, 1024)}


def main(repeats: int = 100) -> dict:
    """Measure everything. repeats: timed calls of each kind."""
    if not torch.cuda.is_available():
        raise SystemExit("gsgen bench raster_gpu: needs a CUDA device; PyTorch sees none here")
    import gsplat

    rows, bars = [], []
    for name, (n, size) in SIZES.items():
        scene = Gaussians.random(n, scale=0.01, generator=torch.Generator().manual_seed(0)).to("cuda").requires_grad_()
        cams = Cameras.orbit(1, width=size, height=size).to("cuda")
        white = torch.ones(1, 3, device="cuda")

        def bare():
            image, alpha, _ = gsplat.rasterization(
                scene.means, scene.quats, scene.scales, scene.opacities, scene.colors, cams.viewmats, cams.Ks, size, size,
                packed=False, render_mode="RGB+D")
            rgb = image[..., :3] + (1 - alpha) * white[..., None, None, :]
            (rgb.square().mean() + alpha.mean() + 0.1 * image[..., 3].mean()).backward()

        def ours(check):
            out = rasterize(scene, cams, white, "gsplat", depth_mode="D", check=check)
            (out.rgb.square().mean() + out.alpha.mean() + 0.1 * out.depth.mean()).backward()

        kinds = {"bare": bare, "ours": lambda: ours(False), "ours, checked": lambda: ours(True)}
        times = {k: [] for k in kinds}
        for i in range(repeats + 5):
            for k, f in kinds.items():
                torch.cuda.synchronize()
                start = time.perf_counter()
                f()
                torch.cuda.synchronize()
                if i >= 5:
                    times[k].append(time.perf_counter() - start)
        t = {k: statistics.median(v) for k, v in times.items()}
        added = t["ours"] / t["bare"] - 1
        rows.append({"case": name, **{f"{k} ms": round(1e3 * v, 3) for k, v in t.items()}, "added": f"{100 * added:.1f} %"})
        bars.append({"id": f"added by the engine, {name}, %", "value": round(100 * added, 1), "bar": 5, "ok": added <= 0.05})
    return {"name": "raster_gpu", "rows": rows, "bars": bars}

"""Speed and memory of the CPU rasterizer: gsgen bench raster [--json].

The scene is a ball of N random Gaussians whose size gives a mean radius of 4.4 pixels, opacities around 0.7, on white,
with a loss on colour, alpha and depth. Forward + backward are timed together. The baseline is our own tiled PyTorch,
the `reference` engine, in the same run. Each time is the median of repeated calls, the engines taking turns, so that a
busy machine slows both.

torch's OpenMP threads wait actively for a short time only (GOMP_SPINCOUNT, set in gsgen_lib/__init__.py). Run this with
OMP_WAIT_POLICY=active or =passive to see the others: a long wait takes a core from our engine's threads; no wait slows the
PyTorch baseline with its many small operations, and so would flatter us.

"SIMD limit": how long the arithmetic of the Gaussian-pixel pairs that really matter (alpha >= 1/255, pixel not yet
finished) would take if every vector lane did nothing else; it is estimated by running the two compositing kernels on one
tile whose pairs all matter, hot in cache.
"""

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch

from gsgen_lib import Cameras, Gaussians, rasterize
from gsgen_lib.raster import numba_composite as nc
from gsgen_lib.raster.numba_engine import LIMITS
from gsgen_lib.raster.numba_setup import set_num_threads
from gsgen_lib.raster.projection import project

SIZES = {"1k, 64²": (1000, 64, 10.0), "4k, 64²": (4000, 64, 16.0), "16k, 128²": (16000, 128, 25.0),
         "64k, 256²": (64000, 256, 28.0)}  # name: (N, pixels, wanted speed-up over tiled PyTorch)
RADIUS = 4.4  # mean radius in pixels


def scene(n: int, size: int, batch=(), seed: int = 0):
    """A ball of n Gaussians and one camera, the Gaussians scaled until their mean radius is RADIUS pixels."""
    cams = Cameras.orbit(1, width=size, height=size)
    low, high = 1e-4, 0.3
    for _ in range(20):
        mid = math.sqrt(low * high)
        g = Gaussians.random(n, scale=mid, generator=torch.Generator().manual_seed(seed))
        radii = project(g, cams).radii.float()
        radius = radii[radii > 0].mean().item()
        low, high = (mid, high) if radius < RADIUS else (low, mid)
    return Gaussians.random(n, scale=mid, batch=batch, generator=torch.Generator().manual_seed(seed)), cams


def step(g: Gaussians, cams: Cameras, engine: str):
    """One forward and backward pass with respect to everything."""
    leaves = [x.detach().requires_grad_() for x in (g.means, g.quats, g.scales, g.opacities, g.colors)]
    out = rasterize(Gaussians(*leaves), cams, (1.0, 1.0, 1.0), engine)
    (out.rgb.square().mean() + out.alpha.mean() + 0.1 * out.depth.mean()).backward()
    return out


def medians(functions: dict, seconds: float, least: int = 3) -> dict:
    """Median seconds per call of several functions, taking turns for about `seconds`."""
    times = {name: [] for name in functions}
    for f in functions.values():
        f()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < least:
        for name, f in functions.items():
            t = time.perf_counter()
            f()
            times[name].append(time.perf_counter() - t)
    return {name: statistics.median(x) for name, x in times.items()}


def pairs_needed(g: Gaussians, cams: Cameras) -> int:
    """Gaussian-pixel pairs with alpha >= 1/255 in pixels that are not yet finished."""
    p = project(g, cams)
    order = torch.argsort(p.depths[0])
    H, W = cams.height, cams.width
    ys, xs = np.mgrid[0:H, 0:W] + 0.5
    T, count = np.ones((H, W)), 0
    mean, conic, opacity, radii = (x[0, order].numpy().astype(float) for x in (p.means2d, p.conics, p.opacities, p.radii))
    for (u, v), (A, B, C), o, (rx, ry) in zip(mean, conic, opacity, radii, strict=True):
        if rx == 0:
            continue
        x0, x1, y0, y1 = max(int(u - rx), 0), min(int(u + rx) + 1, W), max(int(v - ry), 0), min(int(v + ry) + 1, H)
        dx, dy = xs[y0:y1, x0:x1] - u, ys[y0:y1, x0:x1] - v
        alpha = np.minimum(0.999, o * np.exp(-0.5 * (A * dx * dx + C * dy * dy) - B * dx * dy))
        T_box = T[y0:y1, x0:x1]
        hit = (alpha >= 1 / 255) & (T_box > 0)
        count += int(hit.sum())
        after = T_box * (1 - alpha)
        T_box[:] = np.where(hit, np.where(after > 1e-4, after, 0), T_box)
    return count


def simd_seconds_per_pair() -> float:
    """Forward + backward compositing time per pair on one thread, when every lane of every row matters."""
    M = 64
    attr = np.zeros((1, M, 12), np.float32)
    attr[0, :, :2], attr[0, :, 2], attr[0, :, 4], attr[0, :, 5], attr[0, :, 6:10] = 4, 1e-3, 1e-3, 0.02, 0.5
    entries, gaussian = np.arange(M), np.arange(M, dtype=np.int32)
    rows, tile_range, used = np.full(M, nc.TILE_H, np.int32), np.array([0, M]), np.zeros(1, np.int64)
    rgb = np.zeros((1, nc.TILE_H, nc.TILE_W, 3), np.float32)
    depth, alpha = np.zeros((2, 1, nc.TILE_H, nc.TILE_W), np.float32)
    grads = np.zeros((M, nc.GRADS), np.float32)

    def both():
        nc.composite_forward(0, 1, attr, entries, tile_range, gaussian, rows, rgb, depth, alpha, used, *LIMITS)
        nc.composite_backward(0, 1, attr, entries, tile_range, gaussian, rows, used, rgb, depth, alpha, rgb, depth, alpha,
                              grads, *LIMITS)

    both()
    best = min(_timed(both) for _ in range(300))
    return best / (M * nc.PIXELS)


def _timed(f) -> float:
    t = time.perf_counter()
    f()
    return time.perf_counter() - t


def peak_memory_mib() -> float:
    """Peak resident memory that a render with backward adds at 64k, 256², measured in a process of its own."""
    g, _ = scene(64000, 256)
    scale = g.scales.mean().item() / math.exp(0.125)  # `Gaussians.random` draws log-normal scales, sigma 1/2
    code = ("import resource, torch, importlib.util as u\n"
            "from gsgen_lib import Cameras, Gaussians\n"
            f"s = u.spec_from_file_location('b', {__file__!r}); b = u.module_from_spec(s); s.loader.exec_module(b)\n"
            "b.step(*b.scene(100, 256), 'numba')\n"  # compile, import
            f"g = Gaussians.random(64000, scale={scale!r}, generator=torch.Generator().manual_seed(0))\n"
            "c = Cameras.orbit(1, width=256, height=256)\n"
            "import threading, time\n"
            "rss = lambda: int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()\n"
            "base, peak, stop = rss(), [0], []\n"
            "def watch():\n"
            "    while not stop:\n"
            "        peak[0] = max(peak[0], rss()); time.sleep(1e-3)\n"
            "w = threading.Thread(target=watch); w.start()\n"
            "for _ in range(5): b.step(g, c, 'numba')\n"
            "stop.append(1); w.join(); print((peak[0] - base) / 2**20)\n")
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def first_call_seconds() -> tuple[float, float]:
    """Seconds of the first render + backward in a new process: with an empty cache, and with a filled one."""
    code = ("import time, torch; from gsgen_lib import *\n"
            "g = Gaussians.random(50, generator=torch.Generator().manual_seed(0)); g.requires_grad_(); c = Cameras.orbit(1)\n"
            "t = time.perf_counter(); rasterize(g, c).rgb.sum().backward(); print(time.perf_counter() - t)\n")
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "NUMBA_CACHE_DIR": cache}
        return tuple(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                                          env=env).stdout) for _ in range(2))


def main(seconds: float = 4.0) -> dict:
    """Measure everything. seconds: how long each comparison repeats."""
    rows, bars = [], []
    lane = simd_seconds_per_pair()
    threads = torch.get_num_threads()
    for name, (n, size, wanted) in SIZES.items():
        g, cams = scene(n, size)
        t = medians({e: (lambda e=e: step(g, cams, e)) for e in ("numba", "reference")}, seconds)
        ratio = t["reference"] / t["numba"]
        needed = pairs_needed(g, cams)
        limit = lane * needed / threads
        rows.append({"case": name, "numba ms": round(1e3 * t["numba"], 2), "PyTorch tiles ms": round(1e3 * t["reference"], 1),
                     "speed-up": round(ratio, 1), "pairs needed": needed, "SIMD limit ms": round(1e3 * limit, 2),
                     "SIMD limit / numba": round(limit / t["numba"], 3)})
        bars.append({"id": f"speed-up {name}", "value": round(ratio, 1), "bar": wanted, "ok": ratio >= wanted})

    g, cams = scene(4000, 64, batch=(16,))
    t = medians({"batch": lambda: step(g, cams, "numba"),
                 "loop": lambda: [step(g[i], cams, "numba") for i in range(16)]}, seconds)
    rows.append({"case": "16 x (4k, 64²) in one call", "numba ms": round(1e3 * t["batch"], 1)})
    rows.append({"case": "16 x (4k, 64²) in a loop", "numba ms": round(1e3 * t["loop"], 1)})
    ratio = t["loop"] / t["batch"]
    bars.append({"id": "batch of 16 against a loop", "value": round(ratio, 2), "bar": 1.5, "ok": ratio >= 1.5})

    g, cams = scene(64000, 256)

    def with_threads(n):
        set_num_threads(n)
        step(g, cams, "numba")
    t = medians({1: lambda: with_threads(1), 2: lambda: with_threads(2)}, seconds)
    set_num_threads(None)
    bars.append({"id": "2 threads against 1 (64k, 256²)", "value": round(t[1] / t[2], 2), "bar": 1.7, "ok": t[1] / t[2] >= 1.7})

    peak = peak_memory_mib()
    cold, cached = first_call_seconds()
    bars += [{"id": "peak memory MiB (64k, 256²)", "value": round(peak), "bar": 200, "ok": peak <= 200},
             {"id": "cold compile s", "value": round(cold, 1), "bar": 30, "ok": cold <= 30},
             {"id": "cached first call s", "value": round(cached, 2), "bar": 1, "ok": cached <= 1}]
    note = ("Forward and backward, one image, best of several runs. Pairs needed: Gaussian-pixel pairs that change the picture "
            "(alpha >= 1/255, pixel not yet opaque). SIMD limit: the time their arithmetic alone would take on all cores.")
    return {"name": "raster", "rows": rows, "bars": bars, "note": note}

"""How long does it take to make a toy, to picture it, to know its posterior, and to cut a batch?

    gsgen bench toys [--count 20]

Medians of calls in this process. A view is 64 x 64 pixels with 2 x 2 rays per pixel, as everywhere.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from gsgen_lib.data.multiview import MultiView
from gsgen_lib.data.raycast import render_mesh
from gsgen_lib.data.toys import FAMILIES, sample_toy
from gsgen_lib.data.view_sets import photograph_toy, toy_views
from gsgen_lib.scene.cameras import Cameras


def main(count: int = 20) -> dict:
    """Milliseconds per toy, view, posterior and batch.

    Args:
        count: toys per family; the median counts.
    """
    ring = Cameras.orbit(8)
    rows, makes, views = [], [], []
    for family in FAMILIES:
        toys = [sample_toy(np.random.default_rng(seed), family) for seed in range(count)]
        make = [timed(lambda s=seed, f=family: sample_toy(np.random.default_rng(s), f)) for seed in range(count)]
        view = [timed(lambda t=toy: render_mesh(t.mesh, ring)) / 8 for toy in toys]
        posterior = [timed(lambda t=toy: t.posterior((60, 15))) for toy in toys[: count // 2]]
        makes, views = makes + make, views + view
        rows.append({"family": family, "triangles": int(np.median([len(t.mesh.faces) for t in toys])),
                     "make, ms": statistics.median(make), "64 px view, ms": statistics.median(view),
                     "posterior, ms": statistics.median(posterior)})
    whole = [timed(lambda i=i, t=toy: photograph_toy(t, f"bench_{i}")) for i, toy in enumerate(toys[:5])]
    rows.append({"family": "24 views and 2,048 points of one toy", "64 px view, ms": statistics.median(whole) / 24})
    shapes = MultiView(toy_views(16, seed=0, views=8, points=2048, progress=False))
    generator = torch.Generator().manual_seed(0)
    batch = [timed(lambda: shapes.batch(range(16), generator)) for _ in range(20)]
    note = (f"A batch of 16 objects with 4 + 4 views at 64 px: {statistics.median(batch):.1f} ms. "
            f"Medians of all families: toy {statistics.median(makes):.1f} ms, view {statistics.median(views):.1f} ms.")
    bars = [bar("make a toy, ms", statistics.median(makes), 10.0),
            bar("64 px view, ms", statistics.median(views), 10.0)]
    return {"name": "toys", "rows": rows, "bars": bars, "note": note}


def timed(call) -> float:
    """Milliseconds of one call."""
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def bar(name: str, value: float, limit: float) -> dict:
    """value <= limit."""
    return {"id": name, "value": value, "bar": limit, "ok": value <= limit}

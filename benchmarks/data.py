"""How fast is the mesh renderer, and how large is the shipped data?

    gsgen bench data [--views 24] [--repeats 3]

Every shipped mesh is rendered from its own cameras by `gsgen_lib.data.raycast.render_mesh`, which gives colour,
opacity, depth and normals; the time includes preparing the mesh (Embree's tree, mipmaps), shared by its
views. Of `repeats` runs the fastest counts.
"""

from __future__ import annotations

import statistics
import time

from gsgen_lib.data.meshes import load_mesh
from gsgen_lib.data.objects import SPLITS, list_objects, mesh_path, object_cameras
from gsgen_lib.data.raycast import render_mesh

BAR_MS, BAR_MB = 5.0, 40.0  # "about 5 ms" per 64 x 64 view; megabytes of objects in data/


def main(views: int = 24, repeats: int = 3) -> dict:
    """Time the renderer on the shipped meshes and add up the files.

    Args:
        views: how many of an object's 24 views.
        repeats: runs per mesh; the fastest counts.
    """
    entries = list_objects()
    rows, per_view = [], {}
    meshes = [(e, load_mesh(mesh_path(e["id"]))) for e in entries if "mesh" in e["files"]]
    for size, supersample in ((64, 1), (64, 2), (64, 4), (128, 2)):
        times = []
        for e, mesh in meshes:
            cameras = object_cameras(e)[:views].resize(size, size)
            fastest = min(_seconds(mesh, cameras, supersample) for _ in range(repeats))
            times.append(fastest / len(cameras))
        per_view[size, supersample] = 1000 * statistics.median(times)
        rows.append({
            "what": f"view of {size} x {size}, {supersample}x{supersample} rays per pixel",
            "median, ms": per_view[size, supersample],
            "fastest, ms": 1000 * min(times), "slowest, ms": 1000 * max(times),
        })
    for kind, name in (("views", "views"), ("points", "surface points"), ("mesh", "meshes")):
        some = [e for e in entries if kind in e["files"]]
        megabytes = sum(e["files"][kind]["bytes"] for e in some) / 1e6
        rows.append({"what": f"shipped {name}", "files": len(some), "MB": megabytes}
                    | {split: sum(e["split"] == split for e in some) for split in SPLITS})
    total = sum(f["bytes"] for e in entries for f in e["files"].values()) / 1e6
    usual = per_view[64, 2]
    bars = [{"id": "mesh renderer, ms per 64x64 view", "value": usual, "bar": BAR_MS, "ok": usual <= BAR_MS},
            {"id": "shipped objects, MB", "value": total, "bar": BAR_MB, "ok": total <= BAR_MB}]
    note = f"Renderer: {len(meshes)} shipped meshes, {views} views each, one thread, fastest of {repeats} runs."
    return {"name": "data", "rows": rows, "bars": bars, "note": note}


def _seconds(mesh, cameras, supersample) -> float:
    started = time.perf_counter()
    render_mesh(mesh, cameras, supersample)
    return time.perf_counter() - started

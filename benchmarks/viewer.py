"""How many frames per second does `OrbitViewer` show?

    gsgen bench viewer [--scene scene.ply] [--seconds 5]

A Jupyter kernel is started as a notebook would, a viewer is shown in it, and this process plays
the browser: it sends the message that a drag sends, waits until the new image has arrived, and
sends the next. So a frame counts everything but the drawing of 128 x 128 pixels by the browser:
message in, rasterize, PNG, message out. The stages are timed beside it, in this process.
Without --scene it shows a toy robot covered with 6,000 flat splats.
"""

from __future__ import annotations

import queue
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from gsgen_lib import Cameras, Gaussians, load_ply, save_ply

BAR = 15.0  # frames per second at 128 x 128 on two CPU cores
IN_KERNEL = """
from gsgen_lib import load_ply
from gsgen_lib.viz import OrbitViewer
viewer = OrbitViewer(load_ply({path!r}), size={size}, drag={drag})
viewer
"""


def main(scene: Path | None = None, sizes: tuple[int, ...] = (64, 128, 256), seconds: float = 5.0) -> dict:
    """Measure frames per second, through a real kernel.

    Args:
        scene: a 3DGS .ply file; by default a toy robot of 6,000 Gaussians.
        sizes: image sizes in pixels.
        seconds: how long to turn the scene for each row.
    """
    gaussians = load_ply(scene) if scene else toy_splats(6000)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = save_ply(gaussians, Path(folder) / "scene.ply")
        for size in sizes:
            stages = time_stages(gaussians, size)
            for drag in (True, False):
                times = time_in_kernel(path, size, drag, seconds)
                middle = statistics.median(times)
                rows.append({
                    "pixels": size, "by": "mouse" if drag else "slider", "raster, ms": stages["raster"],
                    "PNG, ms": stages["png"], "PNG, kB": stages["kB"], "frame, ms": 1000 * middle,
                    "95%, ms": 1000 * sorted(times)[int(0.95 * len(times))], "frames/s": 1 / middle,
                })
    slowest = min((row["frames/s"] for row in rows if row["pixels"] == 128), default=0.0)
    bars = [{"id": "viewer frames/s at 128x128", "value": slowest, "bar": BAR, "ok": slowest >= BAR}]
    note = (f"{gaussians.num:,} Gaussians. raster, PNG: medians in one process; frame: median time from a "
            "drag message to a Jupyter kernel until its image is back; 95%: of frames are faster.")
    return {"name": "viewer", "rows": rows, "bars": bars, "note": note}


def time_stages(gaussians: Gaussians, size: int, repeats: int = 20) -> dict[str, float]:
    """Median milliseconds of rasterizing and of encoding one frame, in this process."""
    from gsgen_lib.viz.animations import render_frames
    from gsgen_lib.viz.orbit_viewer import encode_png

    cameras = Cameras.orbit(repeats, width=size, height=size)
    render_frames(gaussians, cameras[0])  # compile
    raster, encode = [], []
    for i in range(repeats):
        started = time.perf_counter()
        image = render_frames(gaussians, cameras[i])[0]
        rendered = time.perf_counter()
        png = encode_png(image)
        raster.append(rendered - started)
        encode.append(time.perf_counter() - rendered)
    return {"raster": 1000 * statistics.median(raster), "png": 1000 * statistics.median(encode),
            "kB": len(png) / 1000}


def time_in_kernel(path: Path, size: int, drag: bool, seconds: float) -> list[float]:
    """Seconds from each drag message to the image it causes, in a fresh Jupyter kernel."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3", stderr=subprocess.DEVNULL)
    try:
        client.execute(IN_KERNEL.format(path=str(path), size=size, drag=drag))
        opened = {}  # widget model name -> comm id
        while True:
            message = client.get_iopub_msg(timeout=120)
            content = message["content"]
            if message["msg_type"] == "error":
                raise RuntimeError("\n".join(content["traceback"]))
            if message["msg_type"] == "comm_open":
                state = content["data"]["state"]
                opened.setdefault(state.get("description") or state["_model_name"], content["comm_id"])
            if message["msg_type"] == "status" and content["execution_state"] == "idle":
                break
        picture = opened["AnyModel" if drag else "ImageModel"]
        target = picture if drag else opened["azimuth °"]
        times: list[float] = []
        until, step = time.perf_counter() + seconds, 0
        while time.perf_counter() < until or len(times) < 10:
            step += 1
            azimuth = (7 * step) % 360 - 180
            state = {"azimuth": azimuth, "elevation": step % 60} if drag else {"value": azimuth}
            started = time.perf_counter()
            send(client, target, state)
            wait_for_image(client, picture)
            if step > 3:  # the first ones warm up
                times.append(time.perf_counter() - started)
        return times
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def send(client, comm_id: str, state: dict) -> None:
    """What the browser sends when a widget's state changes there."""
    data = {"method": "update", "state": state, "buffer_paths": []}
    client.shell_channel.send(client.session.msg("comm_msg", {"comm_id": comm_id, "data": data}))


def wait_for_image(client, comm_id: str) -> None:
    """Until the kernel has sent new PNG bytes to the picture."""
    while True:
        try:
            message = client.get_iopub_msg(timeout=60)
        except queue.Empty:
            raise RuntimeError("no image came back within 60 s") from None
        if message["msg_type"] == "comm_msg" and message["content"]["comm_id"] == comm_id:
            if any(bytes(buffer).startswith(b"\x89PNG") for buffer in message["buffers"]):
                return


def toy_splats(n: int) -> Gaussians:
    """A toy robot covered with n flat Gaussians that lie in its surface."""
    from gsgen_lib.data.raycast import sample_surface
    from gsgen_lib.data.toys import sample_toy

    generator = np.random.default_rng(0)
    mesh = sample_toy(generator, "robot").mesh
    points, normals, colors = (torch.as_tensor(x).float() for x in sample_surface(mesh, n, generator))
    # The shortest rotation from +z to the normal: quaternion (1 + n_z, z x n), normalised.
    z = torch.tensor([0.0, 0.0, 1.0]).expand_as(normals)
    quats = torch.cat([1 + normals[:, 2:], torch.linalg.cross(z, normals)], dim=1)
    quats[quats.norm(dim=1) < 1e-4] = torch.tensor([0.0, 1.0, 0.0, 0.0])  # n = -z: half a turn
    scales = torch.tensor([1.0, 1.0, 0.15]).expand(n, 3) / n**0.5
    return Gaussians(points, quats, scales.clone(), torch.full((n,), 0.9), colors.clamp(0, 1))

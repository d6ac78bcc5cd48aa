"""How long does each score take for a pair of images, and for a pair of point sets?

    gsgen bench metrics [--size 128]

Median of repeated calls in this process, images of random numbers. LPIPS is LPIPS(alex).
"""

from __future__ import annotations

import torch

from gsgen_lib import metrics
from gsgen_lib.bench import median_seconds


def main(size: int = 128, batch: int = 8, points: int = 2048, repeats: int = 15) -> dict:
    """Milliseconds per pair.

    Args:
        size: width and height of the images, pixels.
        batch: images in the second column's batch.
        points: points in each set for the Chamfer distance.
        repeats: timed calls; the median counts.
    """
    generator = torch.Generator().manual_seed(0)
    pair = torch.rand(2, batch, size, size, 3, generator=generator)
    rows = []
    for score, name in ((metrics.psnr, "PSNR"), (metrics.ssim, "SSIM"), (metrics.lpips, metrics.lpips_name())):
        rows.append({"score": f"{name}, {size} x {size}",
                     "one pair, ms": 1000 * median_seconds(lambda s=score: s(pair[0, :1], pair[1, :1]), repeats),
                     f"per pair, batch of {batch}, ms":
                         1000 * median_seconds(lambda s=score: s(pair[0], pair[1]), repeats) / batch})
    a, b = torch.rand(2, points, 3, generator=generator)
    rows.append({"score": f"Chamfer, {points} points",
                 "one pair, ms": 1000 * median_seconds(lambda: metrics.chamfer(a, b), repeats)})
    return {"name": "metrics", "rows": rows, "bars": []}

"""Do features know an object from another side? Retrieval over the validation objects, and milliseconds.

    gsgen bench image_features [--sizes 64 128]

Query: one view of an object on white; gallery: another view (from one other camera) of every validation
object; right if the nearest by Euclidean distance is the same object. Mean over all ordered pairs of the
8 views at elevation 15 degrees, of objects and queries. Chance is 1 / number of objects.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from gsgen_lib.data.objects import list_objects, load_object
from gsgen_lib.image_features import features_name, image_features

RING = 8  # the first eight views go once around at elevation 15


def main(sizes: tuple[int, ...] = (64, 96, 128, 160, 224), repeats: int = 5) -> dict:
    """Retrieval accuracy and milliseconds per image.

    Args:
        sizes: what the images are resized to before MobileNetV2.
        repeats: timed passes over 8 images; the median counts.
    """
    views = validation_views()
    n, v = views.shape[:2]
    rows = [{"features": f"raw pixels, {views.shape[2]} x {views.shape[2]}",
             "same object found": retrieval(views.flatten(2))}]
    for size in sizes:
        found = retrieval(image_features(views.flatten(0, 1), size=size).unflatten(0, (n, v)))
        rows.append({"features": features_name(size=size), "same object found": found,
                     "ms per image": milliseconds(views[0], size, repeats)})
    return {"name": "image_features", "rows": rows, "bars": []}


def validation_views() -> Tensor:
    """The ring of views of every validation object on white, (35, 8, 64, 64, 3)."""
    rgba = torch.stack([torch.from_numpy(load_object(e["id"]).images[:RING]) for e in list_objects("val")]) / 255
    return rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]


def retrieval(features: Tensor) -> float:
    """Share of queries whose nearest neighbour in another view is the same object. features: (objects, views, D)."""
    n, v = features.shape[:2]
    hits = [torch.cdist(features[:, i], features[:, j]).argmin(1) == torch.arange(n)
            for i in range(v) for j in range(v) if i != j]
    return torch.stack(hits).float().mean().item()


def milliseconds(images: Tensor, size: int, repeats: int) -> float:
    """Median time per image of one batch."""
    times = []
    for _ in range(repeats + 1):  # the first warms up
        started = time.perf_counter()
        image_features(images, size=size)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[1:]) / len(images)

"""How good is a reconstruction from a few views? Always the same questions, and cheap answers beside it.

Protocol: inputs are the four views around the object at right angles, front first (`front_views`); it is judged on `OTHERS` of
the views that stand anywhere (numbers 8 and up); which, follows from the object's id. PSNR is the mean over pictures of the PSNR
of each, on white, for the whole picture and for the box around the object; with the overlap of the silhouettes (IoU).

What any method must beat, from the same inputs:

    white          nothing at all
    nearest        the input view whose camera is nearest, as it is
    hull           every voxel that no silhouette cuts away, coloured with the mean of the inputs that see it
    splats         one of fixed size for each pixel that shows the object, where its ray enters the hull

Taught in notebook 05; used by `gsgen bench feedforward` and, for later systems, by their benches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.data.multiview import orthogonal_sets
from gsgen_lib.data.prerender import id_generator
from gsgen_lib.data.view_sets import ViewSet
from gsgen_lib.metrics import alpha_iou, box_psnr, psnr
from gsgen_lib.nn.cross_view import look_up, sweep
from gsgen_lib.perceptual import lpips
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.fitting import inside_silhouettes

OTHERS = 8


def front_views(views: ViewSet) -> list[int]:
    """The places of the four input views: azimuth 0, 90, 180, 270.

    >>> from gsgen_lib.data.view_sets import toy_views
    >>> front_views(toy_views(1, 0, 8, 8, points=8))
    [0, 2, 4, 6]
    """
    return orthogonal_sets(views.cameras, front_only=True)[0].tolist()


def cases(views: ViewSet, count: int | tuple[int, ...] = 4, seed: int = 0):
    """For each object: (rgba of the inputs (m, S, S, 4) in [0, 1], their cameras, rgba of the others (8, S, S, 4), theirs).

    count: of the inputs: 1 (the front), 2 (front and right), 4, or 8 around; or their places in this ring of eight, front 0,
    right 2, back 4. The others are the same for every count.
    """
    four, every = front_views(views), range(views.images.shape[1])
    around = [i for i in every if i < 8] if count == 8 else four
    given = list(count) if isinstance(count, tuple | list) else {1: four[:1], 2: four[:2], 4: four, 8: around}.get(count)
    if not given or not all(i in range(8) for i in given) or len(set(given)) < len(given):
        raise ValueError(f"count: got {count}, wanted 1, 2, 4 or 8, or different places, 0 to 7")
    if len(every) < 8 + OTHERS:
        raise ValueError(f"views: got {len(every)} of each object, wanted 8 around and at least {OTHERS} others")
    for i in range(len(views)):
        rest = [j for j in every if j >= 8]
        rest = [rest[k] for k in id_generator(f"{views.ids[i]} {seed}").permutation(len(rest))[:OTHERS]]
        cameras = Cameras(views.cameras.viewmats[i], views.cameras.Ks[i], views.cameras.width, views.cameras.height)
        rgba = views.images[i].float() / 255
        yield rgba[given], cameras[given], rgba[rest], cameras[rest]


@torch.no_grad()
def evaluate(reconstruct: Callable, views: ViewSet, count: int | tuple[int, ...] = 4, seed: int = 0, device: str = "cpu",
             perceptual: bool = False) -> list[dict]:
    """Scores of each object: {"psnr", "box", "iou"}, and "lpips" if `perceptual`, over its other views.

    reconstruct(rgba (m, S, S, 4), cameras) -> Gaussians, or a function cameras -> (rgb (V, S, S, 3), alpha (V, S, S, 1)).
    """
    scores = []
    for rgba, cameras, truth, there in cases(views, count, seed):
        found = reconstruct(rgba.to(device), cameras.to(device))
        if isinstance(found, Gaussians):
            out = rasterize(found, there.to(device), (1.0, 1.0, 1.0))
            rgb, alpha = out.rgb.clamp(0, 1).cpu(), out.alpha.cpu()
        else:
            rgb, alpha = (x.cpu() for x in found(there.to(device)))
        scores.append(score(rgb, alpha, truth))
        if perceptual:
            scores[-1]["lpips"] = lpips(rgb, on_background(truth, torch.ones(3))).item()
    return scores


def score(rgb: Tensor, alpha: Tensor, truth: Tensor) -> dict:
    """Pictures (V, S, S, 3) on white and alpha (V, S, S, 1) against truth (V, S, S, 4).

    >>> score(torch.ones(2, 8, 8, 3), torch.ones(2, 8, 8, 1), torch.ones(2, 8, 8, 4))["iou"]
    1.0
    """
    white = on_background(truth, torch.ones(3))
    return {"psnr": psnr(rgb, white).item(), "box": box_psnr(rgb, white, truth[..., 3:]).item(),
            "iou": alpha_iou(alpha, truth[..., 3:]).item()}


# ---- what any method must beat -------------------------------------------------------------------------------------


def white_picture(rgba: Tensor, cameras: Cameras) -> Callable:
    """Nothing at all."""
    s = rgba.shape[1]
    return lambda there: (torch.ones(len(there), s, s, 3), torch.zeros(len(there), s, s, 1))


def nearest_input(rgba: Tensor, cameras: Cameras) -> Callable:
    """The input view whose camera stands nearest."""

    def views(there):
        rows = torch.cdist(there.centers, cameras.centers).argmin(1)
        return on_background(rgba[rows], torch.ones(3)), rgba[rows, ..., 3:]

    return views


def coloured_hull(rgba: Tensor, cameras: Cameras, resolution: int = 64) -> Gaussians:
    """The visual hull as a Gaussian for each voxel at its surface, coloured with the mean of the inputs that see it.

    A view sees a voxel if no other voxel of the hull lies before it on the ray, by more than two voxels. Width and opacity are
    those that score best on the validation objects: the rasterizer widens every splat by half a pixel.
    """
    axis = (torch.arange(resolution) + 0.5) / resolution - 0.5
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).to(rgba)  # (R, R, R, 3)
    full = inside_silhouettes(points.reshape(-1, 3), rgba[..., 3], cameras).reshape(points.shape[:3])
    padded = torch.nn.functional.pad(full, (1,) * 6)
    deep = full.clone()
    for axis_number in range(3):
        for step in (-1, 1):
            deep &= padded.roll(step, axis_number)[1:-1, 1:-1, 1:-1]
    shell = points[full & ~deep]  # (P, 3)
    if not len(shell):
        shell = points.new_zeros(1, 3)
    one = Gaussians(shell, shell.new_tensor([1.0, 0, 0, 0]).repeat(len(shell), 1), torch.full_like(shell, 0.15 / resolution),
                    shell.new_full((len(shell),), 0.65), torch.zeros_like(shell))
    depth = rasterize(one, cameras).depth  # (V, S, S, 1), along the optical axis
    batch = Cameras.stack([cameras])
    dimmed = rgba[..., :3] * rgba[..., 3:]  # interpolated like this, rims do not darken
    seen = look_up(torch.cat([dimmed, rgba[..., 3:], depth], -1)[None], batch, shell[None])[0]  # (V, P, 5)
    sees = (cameras.project(shell)[1] < seen[..., 4] + 2 / resolution).float()  # (V, P)
    weight = sees * seen[..., 3]
    color = (sees[..., None] * seen[..., :3]).sum(0) / weight.sum(0)[:, None].clamp_min(1e-6)
    mean = seen[..., :3].sum(0) / seen[..., 3:4].sum(0).clamp_min(1e-6)
    color = torch.where(weight.sum(0)[:, None] > 0.05, color, mean)
    return Gaussians(one.means, one.quats, one.scales, one.opacities, color.clamp(0, 1))


def hull_splats(rgba: Tensor, cameras: Cameras) -> Gaussians:
    """A splat for each pixel that shows the object, a pixel wide, where its ray enters the hull."""
    s = rgba.shape[1]
    depth = sweep(rgba[None], Cameras.stack([cameras]), 48, s)[1][0]  # (V, S, S, 1)
    origin, ray = cameras.rays()
    shown = rgba[..., 3] > 0.5
    means = (origin + depth * ray)[shown]
    width = depth[shown] / cameras.Ks[:, 0, 0].mean()  # of a pixel there
    return Gaussians(means, means.new_tensor([1.0, 0, 0, 0]).repeat(len(means), 1), 0.12 * width.expand(-1, 3).contiguous(),
                     means.new_full((len(means),), 0.65), rgba[..., :3][shown])


BASELINES = {"white": white_picture, "nearest input": nearest_input, "coloured hull": coloured_hull,
             "splats at the hull": hull_splats}

"""One picture, many scenes: how different are they, where, and is one of them right?

    in 3D         Chamfer distance of the centres of two scenes, each drawn with the probability of its opacity, so that what is
                  seen counts and fog does not
    to the eye    LPIPS of two renders, from the camera of the picture (the seen side) and from behind (the unseen side)

Both are means over all pairs of the samples of one picture. Samples of a good sampler agree on the seen side and differ on the
other, as much as the true scenes differ that have the same picture (toys tell: hidden attributes are drawn with known odds).

    best of k     of k samples the one whose renders are nearest to the truth, by PSNR over other views: it rises with k for any
                  spread, so it stands beside the mean over samples

    unseen        pixels of another view that show what the picture does not. A view with the truth in all other pixels
                  (`truth_but`) is scored there alone, by scores that need a whole picture

    reliance      how much worse a network gets when each scene is given the code of another one: 0 for a code that says nothing

Taught in notebook 08; used by `gsgen bench var`. Source: 2508.21542, section 4; the reliance is ours.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from gsgen_lib.data.meshes import Mesh
from gsgen_lib.metrics import chamfer
from gsgen_lib.perceptual import lpips
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians


def seen_points(scene: Gaussians, count: int = 1000, generator: torch.Generator | None = None) -> Tensor:
    """`count` centres of one scene, drawn with the probability of their opacity, with repetition: (count, 3).

    >>> scene = Gaussians.random(9, generator=torch.Generator().manual_seed(0))
    >>> seen_points(scene, 5, torch.Generator().manual_seed(0)).shape
    torch.Size([5, 3])
    """
    if scene.batch_shape:
        raise ValueError(f"scene: got batch {tuple(scene.batch_shape)}, wanted one scene")
    if not bool((scene.opacities > 0).any() & (scene.opacities >= 0).all()):  # NaN fails, too
        raise ValueError("scene: got no Gaussian with opacity above 0, or opacities that are no numbers, wanted some")
    if count < 1:
        raise ValueError(f"count: got {count}, wanted at least 1")
    pick = torch.multinomial(scene.opacities.double().cpu(), count, True, generator=generator)
    return scene.means[pick.to(scene.device)]


@torch.no_grad()
def diversity(scenes: Gaussians, seen: Cameras, unseen: Cameras, generator: torch.Generator | None = None) -> dict[str, float]:
    """Of K >= 2 scenes, batch (K,): {"chamfer", "seen", "unseen"}, means over pairs: distance of centres, LPIPS from the cameras
    `seen` and from those `unseen`."""
    k = scenes.batch_shape[0] if len(scenes.batch_shape) == 1 else 0
    if k < 2:
        raise ValueError(f"scenes: got batch {tuple(scenes.batch_shape)}, wanted (K,) with at least two scenes")
    clouds = [seen_points(scenes[i], generator=generator) for i in range(k)]
    found = {"chamfer": _mean_of_pairs(clouds, lambda a, b: chamfer(a, b).item())}
    for name, cameras in (("seen", seen), ("unseen", unseen)):
        pictures = rasterize(scenes, Cameras.stack([cameras] * k), (1.0, 1.0, 1.0)).rgb.clamp(0, 1)  # (K, V, S, S, 3)
        found[name] = _mean_of_pairs(list(pictures), lambda a, b: lpips(a, b).item())
    return found


def _mean_of_pairs(things: list, distance) -> float:
    pairs = [distance(a, b) for a, b in combinations(things, 2)]
    return sum(pairs) / len(pairs)


def unseen_pixels(mesh: Mesh, picture: Cameras, there: Cameras) -> Tensor:
    """Pixels of the cameras `there` (V,) whose ray meets a surface that the camera `picture` (1,) does not see: (V, H, W) bool.

    >>> square = Mesh([[-1, -1, 0], [1, -1, 0], [0, 1, 0]], [[0, 1, 2]])
    >>> front, back = (Cameras.orbit(1, azimuth=[a], elevation=0.0, width=3, height=3) for a in (0.0, 180.0))
    >>> unseen_pixels(square, front, front).any().item(), unseen_pixels(square, front, back)[0, 1, 1].item()
    (False, True)
    """
    from gsgen_lib.data.raycast import first_hits, visible_points

    if picture.batch_shape or there.batch_shape or len(picture) != 1:
        raise ValueError(f"picture, there: got {len(picture)} and {len(there)} cameras, batches {tuple(picture.batch_shape)}, "
                         f"{tuple(there.batch_shape)}, wanted one camera and a set, without batch")
    face, b = first_hits(mesh, there)  # (V, H W), (V, H W, 3)
    hit = face >= 0
    corners = mesh.vertices[mesh.faces[face[hit]]].astype(np.float32)  # (N, 3, 3)
    points = np.einsum("nc,ncx->nx", b[hit], corners)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
    toward = np.concatenate([c.expand(int(n), 3) for c, n in zip(there.centers.cpu(), hit.sum(1), strict=True)]) - points
    normals *= np.where((toward * normals).sum(1, keepdims=True) < 0, -1, 1)  # of the side that `there` looks at
    eye = picture.centers.cpu().numpy()
    facing = ((eye - points) * normals).sum(1) > 0  # a thin sheet has two sides
    found = np.zeros(hit.shape, bool)
    found[hit] = ~(facing & visible_points(mesh, points, normals, eye)[0])
    return torch.from_numpy(found).reshape(len(there), there.height, there.width)


def truth_but(pictures: Tensor, truth: Tensor, where: Tensor) -> Tensor:
    """`pictures` (V, H, W, 3) in the pixels `where` (V, H, W), the truth in all others."""
    return torch.where(where[..., None], pictures, truth)


def best_of(scores: Tensor, k: int) -> float:
    """Mean over objects of the best of k samples: the expectation over which k of the n samples are taken. scores (objects, n).

    The i-th best of n is the best of k drawn ones with probability C(n - i, k - 1) / C(n, k).

    >>> [round(best_of(torch.tensor([[1.0, 2.0, 3.0]]), k), 6) for k in (1, 3)]
    [2.0, 3.0]
    """
    from math import comb

    if scores.ndim != 2 or not bool(torch.isfinite(scores).all()):
        raise ValueError(f"scores: got shape {tuple(scores.shape)}, wanted (objects, n), finite numbers")
    n = scores.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k: got {k}, wanted 1 to {n}, the samples")
    weight = torch.tensor([comb(n - i, k - 1) / comb(n, k) for i in range(1, n + 1)], dtype=torch.float64)
    return (scores.double().sort(1, descending=True).values @ weight).mean().item()

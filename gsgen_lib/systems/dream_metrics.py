"""Is a generated object what was asked for, from all sides? Its renders, asked of the prompt scorer (see `prior_metrics.top1`).

    fronts        in how large a share of 24 azimuths the judge sees a front: of those within 30 degrees of the front (`hits`:
                  an object without any front has none), of those 60 degrees and more away (`false`: Janus), and of all;
                  and how much front and back differ to its eye (`contrast`: none for an object with two fronts, or two backs)
    sharpness     variance of the Laplacian of the grey picture: fine detail, and noise

Each has its neighbour: true toys of the same caption, rendered and scored in the same way. Used by notebooks 03 and 04 and
by `gsgen bench sds`.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.data.raycast import render_mesh
from gsgen_lib.data.toy_words import NOUNS, make_caption
from gsgen_lib.data.toys import parse_caption, sample_attributes, sample_toy
from gsgen_lib.metrics import check_images
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems.prompt_scorer import Scorer

AROUND, TURNS, ELEVATION = 8, 24, 15.0


def around(count: int = AROUND, size: int = 64, elevation: float = ELEVATION) -> Cameras:
    """`count` cameras at even azimuths, the first in front."""
    return Cameras.orbit(count, azimuth=[360.0 * i / count for i in range(count)], elevation=elevation, width=size, height=size)


def true_toy(caption: str, generator: np.random.Generator, cameras: Cameras) -> Tensor:
    """Renders (V, H, W, 3) on white of a toy with this caption; what the caption does not say is drawn.

    >>> true_toy("a red mug", np.random.default_rng(0), around(2, 16)).shape
    torch.Size([2, 16, 16, 3])
    """
    family, said = parse_caption(caption)
    toy = sample_toy(generator, family, "all", **said)
    return on_background(torch.from_numpy(render_mesh(toy.mesh, cameras).rgba), torch.ones(len(cameras), 3))


@torch.no_grad()
def caption_score(judge: Scorer, pictures: Tensor, caption: str) -> float:
    """Mean cosine between pictures (V, H, W, 3) in [0, 1] and their caption."""
    check_images("pictures", pictures)
    return (judge.embed_mirrored(pictures) @ judge.embed_prompts([caption]).T).mean().item()


@torch.no_grad()
def fronts(judge: Scorer, pictures: Tensor, caption: str) -> dict:
    """Which of V pictures (V, H, W, 3), taken at even azimuths from the front on, look like a front.

    Returns {"all", "hits", "false"}: shares that the judge calls a front view, of all, of those up to 30 degrees from the
    front, of those 60 degrees and more from it; and "contrast": by how much more the pictures within 45 degrees of the front
    look like a front rather than a back than those within 45 degrees of the back do. 0 for an object that is alike on both
    sides, whatever its sides are called. ValueError for fewer than four pictures.
    """
    check_images("pictures", pictures)
    if len(pictures) < 4:
        raise ValueError(f"pictures: got {len(pictures)}, wanted 4 or more at even azimuths")
    called = torch.tensor([word == "front view" for word in judge.view(pictures, [caption] * len(pictures))]).float()
    front, back = judge.similarity(pictures, [f"{caption}, front view", f"{caption}, back view"]).cpu().T  # (V,) each
    turn = 360 * torch.arange(len(pictures)) / len(pictures)
    away = torch.minimum(turn, 360 - turn)
    contrast = (front - back)[away <= 45].mean() - (front - back)[away >= 135].mean()
    return {"all": called.mean().item(), "hits": called[away <= 30].mean().item(), "false": called[away >= 60].mean().item(),
            "contrast": contrast.item()}


def sharpness(pictures: Tensor) -> Tensor:
    """Variance of the Laplacian of grey pictures (V, H, W, 3): (V,).

    >>> flat, edge = torch.full((1, 8, 8, 3), 0.5), torch.zeros(1, 8, 8, 3)
    >>> edge[:, :, 4:] = 1.0
    >>> sharpness(flat).item(), sharpness(edge).item() > 0.1
    (0.0, True)
    """
    grey = (pictures @ pictures.new_tensor([0.299, 0.587, 0.114]))[:, None]  # (V, 1, H, W)
    kernel = pictures.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0.0]])[None, None]
    return F.conv2d(grey, kernel).flatten(1).var(1)


def saturation(pictures: Tensor) -> float:
    """Saturation in HSV, (max - min) / max over colours, its mean over pixels (..., 3) weighted by max, so that nearly black
    ones, whose saturation is chance, do not count: mean(max - min) / mean(max). Background pixels count too.

    >>> saturation(torch.tensor([[1.0, 0.5, 0.5], [0.0, 0.0, 0.0]]))
    0.5
    """
    high, low = pictures.amax(-1), pictures.amin(-1)
    return ((high - low).sum() / high.sum().clamp_min(1e-6)).item()


def clipped(pictures: Tensor) -> float:
    """Share of colour values at the ends of [0, 1]."""
    return ((pictures <= 0.002) | (pictures >= 0.998)).float().mean().item()


def prompts_24(seed: int = 0) -> tuple[list[str], list[str]]:
    """12 captions of toys with combinations of the training stream, and 12 with held-out ones; families in turn.

    >>> seen, held_out = prompts_24()
    >>> len(set(seen)), len(set(held_out)), parse_caption(seen[0])[0]
    (12, 12, 'mug')
    """
    generator = np.random.default_rng(seed)
    kinds = []
    for split in ("train", "test"):
        kinds.append([])
        for i in range(12):
            family = NOUNS[(i + (6 if split == "test" else 0)) % len(NOUNS)]
            kinds[-1].append(make_caption(*sample_attributes(generator, family, split)))
    return kinds[0], kinds[1]

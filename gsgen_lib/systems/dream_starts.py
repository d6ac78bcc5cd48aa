"""3D priors for score distillation: where a dream begins.

Problem. DreamGaussian begins with a grey ball, and finds out in hundreds of steps what a model of 3D scenes knows at once: where
the object is, and about which colour. GaussianDreamer begins with a scene that a 3D model draws from the same words, and distils
only what that one lacks. Two of our models draw scenes:

    `from_latents`    a sample of the latent diffusion (`splat_diffusion`), from words
    `from_views`      the prior paints four views together, the feed-forward network lifts them: text -> 4 views -> Gaussians,
                      with no optimisation at all

`grown` adds to a scene what GaussianDreamer calls noisy growing: copies beside the surface, of nearly its colour, since a drawn
scene has few Gaussians where it is thin and none where it is wrong.

Shown in notebook 08. Sources: GaussianDreamer (2310.08529) section 3.3; LGM (2402.05054) section 3.1.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.dreamgaussian_sample import off_background, without_specks
from gsgen_lib.systems.feed_forward import FeedForward, most_opaque
from gsgen_lib.systems.prior import Prior, set_prompts
from gsgen_lib.systems.splat_diffusion import SplatDiffusion

ELEVATIONS = (0.0, 15.0, 30.0, 45.0)  # degrees

@torch.no_grad()
def from_latents(sampler: SplatDiffusion, caption: str, count: int = 2000, guidance_scale: float = 2.0,
                 generator: torch.Generator | None = None) -> Gaussians:
    """A scene drawn from words: its `count` most opaque Gaussians."""
    scene = sampler.sample([caption], guidance_scale=guidance_scale, generator=generator)
    return most_opaque(scene, count)[0]


@torch.no_grad()
def from_views(prior: Prior, network: FeedForward, caption: str, count: int = 2000, guidance_scale: float = 3.0,
               generator: torch.Generator | None = None) -> tuple[Gaussians, Tensor]:
    """Words -> four views at right angles, painted together -> Gaussians, the `count` most opaque; and the views with their
    alpha, (4, S, S, 4). The prior paints plain backgrounds, which are found by their colour (`cut_out`, a guess).

    The prior does not say from how high it looks: of `ELEVATIONS` the one counts whose scene comes nearest to the four pictures
    again. Nor does it say which way a front view faces, up to 45 degrees: the scene may be turned by as much."""
    size = network.config.size
    views = prior.sample(set_prompts(caption), views=4, guidance_scale=guidance_scale, generator=generator)
    if views.shape[1] != size:
        views = F.interpolate(views.movedim(-1, 1), (size, size), mode="bilinear", antialias=True).movedim(1, -1)
    rgba = cut_out(views.clamp(0, 1))
    scene = lifted(network, rgba)[0]
    return most_opaque(scene.map(lambda x: x[None]), count)[0], rgba


@torch.no_grad()
def lifted(network: FeedForward, rgba: Tensor) -> tuple[Gaussians, float]:
    """The scene of four views at right angles (4, S, S, 4), taken from one of `ELEVATIONS`, and which one explains them best."""
    found, size, white = [], network.config.size, on_background(rgba, torch.ones(3))
    for elevation in ELEVATIONS:
        cameras = Cameras.orbit(4, elevation=elevation, width=size, height=size).to(rgba.device)
        scene = network.reconstruct(rgba, cameras)
        off = (rasterize(scene, cameras, (1.0, 1.0, 1.0)).rgb.clamp(0, 1) - white).square().mean().item()
        found.append((off, elevation, scene))
    _, elevation, scene = min(found, key=lambda one: one[:2])
    return scene, elevation


def cut_out(views: Tensor) -> Tensor:
    """Alpha for opaque pictures (V, S, S, 3) of one object on plain backgrounds, a guess: `off_background`, without dust.

    Returns (V, S, S, 4); colours of half covered pixels have the background taken out.

    >>> views = torch.ones(1, 16, 16, 3)
    >>> views[:, 4:12, 4:12] = 0.2
    >>> cut_out(views)[0, [0, 8], 8].tolist()[1][3], cut_out(views)[..., 3].sum().item()
    (1.0, 64.0)
    """
    from scipy.ndimage import binary_dilation

    found = []
    for view in views:
        alpha, color, _ = off_background(view.cpu().numpy())
        if (alpha > 0.5).any():  # no dust around the object
            alpha = alpha * binary_dilation(without_specks(alpha > 0.5, 0.02), np.ones((3, 3)))
        alpha, color = (torch.from_numpy(np.ascontiguousarray(x)).to(view) for x in (alpha[..., None], color))
        rgb = (view - (1 - alpha) * color) / alpha.clamp_min(1e-3)
        found.append(torch.cat([torch.where(alpha > 0, rgb.clamp(0, 1), 1.0), alpha], -1))
    return torch.stack(found)


def grown(scene: Gaussians, share: float = 0.5, spread: float = 0.02, colors: float = 0.1,
          generator: torch.Generator | None = None) -> Gaussians:
    """The scene, and `share` times as many copies of its Gaussians, moved by N(0, spread^2) and with colours changed by up to
    `colors`; copies have half the opacity.

    >>> scene = Gaussians.random(10, generator=torch.Generator().manual_seed(0))
    >>> grown(scene, generator=torch.Generator().manual_seed(0)).num
    15
    """
    if scene.batch_shape or scene.sh_degree is not None:
        raise ValueError(f"scene: got batch {scene.batch_shape}, SH degree {scene.sh_degree}, wanted one scene with RGB colors")
    if not all(math.isfinite(x) and x >= 0 for x in (share, spread, colors)):
        raise ValueError(f"share, spread, colors: got {share}, {spread}, {colors}, wanted numbers >= 0")
    more = scene.select(torch.randint(scene.num, (round(share * scene.num),), generator=generator).to(scene.device))
    off = spread * torch.randn(more.means.shape, generator=generator).to(scene.means)
    tint = colors * (2 * torch.rand(more.colors.shape, generator=generator) - 1).to(scene.colors)
    copies = Gaussians(more.means + off, more.quats, more.scales, 0.5 * more.opacities, (more.colors + tint).clamp(0, 1))
    return Gaussians.cat([scene, copies])

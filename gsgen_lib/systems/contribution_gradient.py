"""The losses of the octree density, and the gradient that knows what each anchor is worth.

    grad E[L] = E[ sum_j d_j grad log q(x_j) ],      d_j = L({x}) - L({x} without x_j)

`Worth` stands between the Gaussians and the rasterizer and changes nothing on the way there. On the way back it is called when
the rasterizer has found the contributions of its Gaussians, and hands their tamed sums to log q(x_j) as gradient: so one call of
backward() trains the attributes by the pictures' derivatives, and the density by what pictures would lose.

Taught in notebook 10. Source: DeG (2605.16355), section on the render loss contribution gradient, and its released code; see
`systems.octree_density` for the three stages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gsgen_lib.metrics import ssim
from gsgen_lib.nn.octree import entropy, masses
from gsgen_lib.nn.point_sets import farthest_points
from gsgen_lib.options import check_options
from gsgen_lib.perceptual import lpips
from gsgen_lib.point_features import point_features
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.octree_density import PLACE, DensityConfig, gaussians_of, unit_of
from gsgen_lib.systems.splat_vae import kl_to_normal

__all__ = ["How", "Worth", "appearance_loss", "structure_loss", "tamed", "worth_of_anchors"]


@dataclass(frozen=True)
class How:
    """How an anchor's worth is found and tamed. exact: leave-one-out, else the first-order o dL/do; background: is part of what
    lies behind; clamp: anchors that harm count as worth nothing; clip: quantile of |d| above which all are worth the same, 1 for
    none; centre: less the mean."""

    exact: bool = True
    background: bool = True
    clamp: bool = True
    clip: float = 0.9
    centre: bool = True

    def __post_init__(self):
        check_options(self, "how")
        if not 0 < self.clip <= 1:
            raise ValueError(f"how.clip: got {self.clip}, wanted a quantile in (0, 1]")


def tamed(d: Tensor, how: How = How()) -> Tensor:
    """Worths d (B, P) of the anchors of each object, post-processed in the order of the card.

    >>> tamed(torch.tensor([[-3.0, -1.0, 0.5, -1.0]]), How(clip=0.5)).tolist()
    [[-0.25, -0.25, 0.75, -0.25]]
    """
    if how.clamp:
        d = d.clamp(max=0)
    if how.clip < 1:
        most = d.abs().float().quantile(how.clip, dim=1, keepdim=True).to(d)
        d = torch.maximum(torch.minimum(d, most), -most)
    return d - d.mean(1, keepdim=True) if how.centre else d


def worth_of_anchors(contribution: Tensor, anchors: int, pixels: int) -> Tensor:
    """(B, P): changes of the mean L1 of each object's pictures if an anchor's Gaussians were not there, one at a time, summed.

    contribution: (B, V, N, 2) of `Render.info`, N = P K, those of an anchor together; pixels: of a picture.
    """
    l1 = contribution[..., 0].sum(1) / (3 * pixels * contribution.shape[1])  # (B, N)
    return l1.unflatten(1, (anchors, -1)).sum(-1)


class Worth(torch.autograd.Function):
    """means, opacities (B, N) unchanged; on the way back, worths as the gradient of log_q (B, P).

    seen: {"info": of the render} once there is one, "pixels", "how". The gradient is that of the mean over objects, as the loss.
    """

    @staticmethod
    def forward(ctx, means, opacities, log_q, seen):
        """Both as they are."""
        ctx.seen, ctx.anchors = seen, log_q.shape[1]
        ctx.save_for_backward(opacities)
        return means.view_as(means), opacities.view_as(opacities)

    @staticmethod
    def backward(ctx, for_means, for_opacities):
        """Both gradients as they come, and the tamed worths."""
        how, objects = ctx.seen["how"], len(for_means)
        if how.exact:
            d = worth_of_anchors(ctx.seen["info"].contribution, ctx.anchors, ctx.seen["pixels"])
        else:  # the gradient is of the mean over objects
            d = objects * (ctx.saved_tensors[0] * for_opacities).unflatten(1, (ctx.anchors, -1)).sum(-1)
        ctx.seen["worth"] = d
        return for_means, for_opacities, tamed(d, how).to(for_means) / objects, None


# ---- losses --------------------------------------------------------------------------------------------------------


def _step(model, config: DensityConfig, points: Tensor, rgba: Tensor, cameras: Cameras, tokens: int, count: int, generator,
          structure_points: int, **more) -> tuple[dict, Tensor]:
    """What the network finds, and KL(p | q) of the surface points it is asked about, (,)."""
    features = point_features(points[..., :3], points[..., 3:6], rgba, cameras, config.names)
    queries = farthest_points(points[..., :3], tokens)
    noise = torch.randn(len(points), tokens, config.latent, generator=generator).to(points)
    some = points[..., :3]
    if structure_points < some.shape[1]:
        some = some[:, torch.randperm(some.shape[1], generator=generator)[:structure_points].to(some.device)]
    found = model(points, features, queries, noise, some, count, generator=generator, **more)
    return found, -found["log_q"].mean() - entropy(masses(some, config.depth)[1]) / len(points)


def structure_loss(model, config: DensityConfig, points: Tensor, rgba: Tensor, cameras: Cameras, tokens: int,
                   generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Stage 1, for surface points (B, P, 9) and the views they are read from, (B, V, S, S, 4): {"loss", "structure", "kl"};
    structure: KL(p | q) to the leaves of the points."""
    found, structure = _step(model, config, points, rgba, cameras, tokens, 0, generator, points.shape[1])
    kl = kl_of(config, found)
    return {"loss": structure + config.kl_structure * kl, "structure": structure.detach(), "kl": kl.detach()}


def appearance_loss(model, config: DensityConfig, points: Tensor, rgba: Tensor, cameras: Cameras, tokens: int, count: int,
                    truth: Tensor, there: Cameras, generator: torch.Generator | None = None, how: How | None = None,
                    places: Tensor | None = None, structure_points: int = 512) -> dict[str, Tensor]:
    """Stages 2 and 3: {"loss", "psnr", "structure", "kl"}. truth (B, J, S, S, 4), straight alpha, of cameras `there`; count: P
    anchors; how: the density learns from the pictures (stage 3), not so if None; places (B, count, 3): anchors that are given
    instead of drawn; structure_points: surface points of an object that are asked about in this step."""
    found, structure = _step(model, config, points, rgba, cameras, tokens, count, generator, structure_points,
                             learn=how is not None, places=places)
    points_at = found["anchors"].points
    unit = unit_of(config, points_at)
    scene = gaussians_of(points_at, unit, found["numbers"])
    background = torch.rand(len(truth), 1, 3, generator=generator).to(truth)
    wanted = torch.lerp(background[:, :, None, None], truth[..., :3], truth[..., 3:])
    out = _rendered(scene, there, background, wanted, found["anchors"].log_q, how)
    loss = (out[0] - wanted).abs().mean() + (out[1] - truth[..., 3:]).abs().mean()
    if config.weight_ssim:
        loss = loss + config.weight_ssim * (1 - ssim(out[0], wanted, validate=False))
    if config.weight_lpips:
        loss = loss + config.weight_lpips * lpips(out[0].flatten(0, 1).clamp(0, 1), wanted.flatten(0, 1), validate=False)
    kl = kl_of(config, found)
    loss = loss + config.weight_volume * scene.scales.prod(-1).mean() + config.weight_opacity * (1 - scene.opacities).mean() \
        + config.weight_sphere * sphere(scene, points_at, unit) \
        + config.weight_structure * structure + config.kl_appearance * kl
    off = (out[0] - wanted).square().mean().detach()
    return {"loss": loss, "psnr": -10 * torch.log10(off.clamp_min(1e-9)), "structure": structure.detach(), "kl": kl.detach()}


def kl_of(config: DensityConfig, found: dict) -> Tensor:
    """KL to the standard normal of the numbers of a code that the network chooses, per number."""
    free = slice(PLACE if config.placed else 0, None)
    return kl_to_normal(found["mu"][..., free], found["logvar"][..., free])


def sphere(scene: Gaussians, points: Tensor, unit: Tensor) -> Tensor:
    """The regulariser: squared distance of the middle of an anchor's Gaussians from it, and of each beyond one unit; means."""
    off = scene.means.unflatten(1, (points.shape[1], -1)) - points[:, :, None]  # (B, P, K, 3)
    beyond = ((off.square().sum(-1) + 1e-12).sqrt() - unit[..., None]).clamp_min(0)
    return off.mean(2).square().sum(-1).mean() + beyond.square().mean()


def _rendered(scene: Gaussians, cameras: Cameras, background: Tensor, wanted: Tensor, log_q: Tensor,
              how: How | None) -> tuple[Tensor, Tensor]:
    """rgb (B, J, S, S, 3) on the background and alpha, whose backward pass tells log_q what anchors are worth."""
    if how is None:
        out = rasterize(scene, cameras, background, check=False)
        return out.rgb, out.alpha
    seen = {"pixels": cameras.width * cameras.height, "how": how}
    means, opacities = Worth.apply(scene.means, scene.opacities, log_q, seen)
    scene = replace(scene, means=means, opacities=opacities)
    if how.background or not how.exact:
        out = rasterize(scene, cameras, background, check=False, target=wanted if how.exact else None)
        seen["info"] = out.info
        return out.rgb, out.alpha
    behind = background[:, :, None, None]  # left out: on black, against what is wanted less the background that is seen
    with torch.no_grad():
        seen_through = (1 - rasterize(scene, cameras, None, check=False).alpha) * behind
    out = rasterize(scene, cameras, None, check=False, target=wanted - seen_through)
    seen["info"] = out.info
    return out.rgb + (1 - out.alpha) * behind, out.alpha

"""Gaussians from posed images: per-scene optimisation, with densification and pruning.

Problem. Given V images I_v with known cameras, find the scene whose renders equal them:

    min over theta of   mean_v  (1 - lambda) |R_v - I_v| + lambda (1 - SSIM(R_v, I_v)),      lambda = 0.2

R_v = rasterize(scene(theta), camera_v); |.| is the mean absolute difference over pixels and channels. theta are raw
parameters behind the activated scene, each with a learning rate of its own:

    means     as they are, rate decays exponentially      opacities = sigmoid(logit)
    scales    = exp(log-scale)                             colors    = as they are (plain RGB)
    quats     as they are (normalised when rendered)

Where an image carries alpha, render and target get the same random background in every step: what is empty must then
be transparent, not just white.

Gradient descent moves Gaussians but makes none. Where the 2D mean is pulled hard, the scene lacks detail; so every
`densify_every` steps a Gaussian whose 2D-mean gradient (averaged over the views that saw it) is among the largest is
cloned if it is small, or split into two smaller ones, drawn from it, if it is large. Transparent ones are removed.

Notebook 01 watches this happen. Source: Kerbl et al. 2023, sections 5 and 7, algorithm 1. Differences: the gradient
threshold is a quantile (the paper's constant belongs to one image size and loss), a cap on N replaces the periodic
reset of opacities, random points inside all silhouettes replace structure from motion, a clone is an exact copy (as in
the released code; the paper moves it along the gradient), and only transparent Gaussians are removed, not large ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm.auto import tqdm

from gsgen_lib.metrics import ssim
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians, quat_to_rotmat

NAMES = ("means", "quats", "scales", "opacities", "colors")


@dataclass
class FitConfig:
    """Numbers of the optimisation. Lengths are in world units, for objects inside [-0.5, 0.5]^3.

    steps: gradient steps; batch: views per step; init: Gaussians at the start; max_gaussians: cap on N;
    lr_*: Adam learning rates; lr_means decays to lr_means * final_decay; lambda_ssim: weight of 1 - SSIM;
    densify_from, densify_until: as fractions of steps; densify_every: steps; densify_quantile: share of Gaussians
    that is *not* grown; split_scale: larger ones are split, smaller ones cloned; prune_opacity: below it they go.
    """

    steps: int = 1500
    batch: int = 1
    init: int = 2500
    max_gaussians: int = 8000
    lr_means: float = 2e-3
    final_decay: float = 0.02
    lr_quats: float = 5e-3
    lr_scales: float = 1e-2
    lr_opacities: float = 5e-2
    lr_colors: float = 1e-2
    lambda_ssim: float = 0.2
    densify_from: float = 0.1
    densify_until: float = 0.6
    densify_every: int = 75
    densify_quantile: float = 0.85
    split_scale: float = 0.02
    prune_opacity: float = 0.02


@dataclass
class FitResult:
    """gaussians: the fitted scene (detached); log: one dict per step; snapshots: [(step, Gaussians)]."""

    gaussians: Gaussians
    log: list[dict] = field(default_factory=list)
    snapshots: list[tuple[int, Gaussians]] = field(default_factory=list)


def fit(images: Tensor, cameras: Cameras, init: Gaussians | None = None, config: FitConfig = FitConfig(),
        generator: torch.Generator | None = None, densify: bool = True, snapshot_every: int = 0, engine: str = "auto",
        progress: bool = True) -> FitResult:
    """Optimise a scene until its renders equal the images.

    images: (V, H, W, 3) RGB, taken as seen on white, or (V, H, W, 4) with straight alpha; floats in [0, 1]; cameras: V
    of them, V >= 1, of the same size and device; init: a scene to start from, else random points (`initial_scene`).
    All three are taken as float32.
    generator: for everything random, on the CPU; densify: grow and prune; snapshot_every: keep the scene every so many
    steps (0: never).

    Raises TypeError or ValueError naming the argument: shapes, sizes or ranges that do not fit together, images that
    are transparent everywhere, more Gaussians at the start than the cap.

    >>> g = Gaussians.random(20, scale=0.1, generator=torch.Generator().manual_seed(0))
    >>> cams = Cameras.orbit(4, width=24, height=24)
    >>> images = rasterize(g, cams, background=(1.0, 1.0, 1.0)).rgb.clamp(0, 1)
    >>> result = fit(images, cams, config=FitConfig(steps=30, init=100), progress=False,
    ...              generator=torch.Generator().manual_seed(0))
    >>> result.log[-1]["loss"] < result.log[0]["loss"]
    True
    """
    _check(images, cameras, config)
    if init is None and config.init > config.max_gaussians:
        raise ValueError(f"config.init: got {config.init}, wanted at most config.max_gaussians = {config.max_gaussians}")
    c, device = config, images.device
    images, cameras = images.float(), cameras.to(torch.float32)
    scene = initial_scene(images, cameras, c.init, generator) if init is None else init.detach().to(torch.float32)
    if scene.batch_shape or scene.sh_degree is not None:
        raise ValueError(f"init: got batch {scene.batch_shape}, SH degree {scene.sh_degree}, wanted one scene with RGB colors")
    if not 1 <= scene.num <= c.max_gaussians:
        raise ValueError(f"init: got {scene.num} Gaussians, wanted 1 to config.max_gaussians = {c.max_gaussians}")
    raw, adam = raw_and_adam(scene, c)
    pull, seen = (torch.zeros(scene.num, device=device) for _ in range(2))  # sum of 2D gradients, and of views
    result = FitResult(scene)

    quiet = {} if progress else {"disable": True}  # left out, so that TQDM_DISABLE=1 can still silence it
    for step in tqdm(range(c.steps), desc="fit", leave=False, **quiet):
        adam.param_groups[0]["lr"] = c.lr_means * c.final_decay ** (step / c.steps)
        views = torch.randperm(len(cameras), generator=generator)[:c.batch].to(device)
        target, background = _on_background(images[views], generator)
        out = rasterize(to_scene(raw), cameras[views], background, engine)
        l1 = (out.rgb - target).abs().mean()
        loss = (1 - c.lambda_ssim) * l1
        if c.lambda_ssim:
            loss = loss + c.lambda_ssim * (1 - ssim(out.rgb, target, validate=False))
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()

        with torch.no_grad():
            pull += out.info.grad_norm2d.sum(0)
            seen += out.info.visible.sum(0)
        grow = densify and c.densify_from <= step / c.steps <= c.densify_until
        if grow and (step + 1) % c.densify_every == 0:
            raw = densify_and_prune(raw, adam, pull / seen.clamp_min(1), c, generator)
            pull, seen = (torch.zeros(len(raw["means"]), device=device) for _ in range(2))
        result.log.append(dict(step=step, loss=loss.item(), l1=l1.item(), gaussians=len(raw["means"])))
        if snapshot_every and (step + 1) % snapshot_every == 0:
            result.snapshots.append((step + 1, snapshot(raw)))
    result.gaussians = to_scene(raw).detach()
    return result


def raw_and_adam(scene: Gaussians, c: FitConfig) -> tuple[dict[str, Tensor], torch.optim.Adam]:
    """The numbers of a scene as leaf tensors, and an optimiser with a rate for each kind (c.lr_means, c.lr_quats, ...)."""
    raw = {k: v.clone().requires_grad_() for k, v in to_raw(scene).items()}
    return raw, torch.optim.Adam([dict(params=[raw[k]], lr=getattr(c, f"lr_{k}"), name=k) for k in NAMES], eps=1e-15)


def snapshot(raw: dict[str, Tensor]) -> Gaussians:
    """The scene as it is now: the optimiser, which changes tensors in place, does not reach it."""
    return to_scene({name: value.detach().clone() for name, value in raw.items()})


def to_scene(raw: dict[str, Tensor]) -> Gaussians:
    """Activate: exp for scales, sigmoid for opacities. raw: tensors of N rows named like the fields of Gaussians."""
    return Gaussians(raw["means"], raw["quats"], raw["scales"].exp(), torch.sigmoid(raw["opacities"]), raw["colors"])


def to_raw(scene: Gaussians) -> dict[str, Tensor]:
    """The inverse of `to_scene`; opacities are kept 1e-4 away from 0 and 1, scales above 1e-6."""
    return dict(means=scene.means, quats=scene.quats, scales=scene.scales.clamp_min(1e-6).log(),
                opacities=torch.logit(scene.opacities.clamp(1e-4, 1 - 1e-4)), colors=scene.colors)


def initial_scene(images: Tensor, cameras: Cameras, n: int, generator: torch.Generator | None = None) -> Gaussians:
    """n >= 4 grey Gaussians at random places of the cube [-0.5, 0.5]^3, inside every silhouette where images have alpha.

    Silhouettes so thin that 800 n random points do not hit them n times give fewer, and all of the cube if not even 4.
    Their size is 0.7 times the mean distance to the three nearest neighbours (that kept within 0.001 to 0.1), so that
    together they fill the space.
    """
    device = images.device
    points = cube = (torch.rand(40 * n, 3, generator=generator) - 0.5).to(device)
    if images.shape[-1] == 4:
        points = cube[inside_silhouettes(cube, images[..., 3], cameras)]
        for _ in range(19):
            if len(points) >= n:
                break
            more = (torch.rand(40 * n, 3, generator=generator) - 0.5).to(device)
            points = torch.cat([points, more[inside_silhouettes(more, images[..., 3], cameras)]])
    points = (points if len(points) >= 4 else cube)[:n]
    distance = torch.cdist(points, points).topk(4, largest=False).values[:, 1:].mean(-1)  # (n,), itself left out
    count = len(points)
    quats = torch.tensor([1.0, 0, 0, 0], device=device).repeat(count, 1)
    return Gaussians(points, quats, distance[:, None].clamp(1e-3, 0.1).repeat(1, 3) * 0.7,
                     torch.full((count,), 0.3, device=device), torch.full((count, 3), 0.5, device=device))


def inside_silhouettes(points: Tensor, alphas: Tensor, cameras: Cameras, threshold: float = 0.5) -> Tensor:
    """The visual hull test: which points project into alpha > threshold in every view that has them in frame.

    points: (P, 3); alphas: (V, H, W). Returns (P,) bool. (Laurentini 1994.)
    """
    V, H, W = alphas.shape
    pixels, depths = cameras.project(points)  # (V, P, 2), (V, P)
    u, v = pixels.floor().long().unbind(-1)
    in_frame = (depths > 0) & (u >= 0) & (u < W) & (v >= 0) & (v < H)
    filled = alphas[torch.arange(V, device=points.device)[:, None], v.clamp(0, H - 1), u.clamp(0, W - 1)] > threshold
    return (filled | ~in_frame).all(0) & in_frame.any(0)


def densify_and_prune(raw: dict[str, Tensor], adam: torch.optim.Adam, pull: Tensor, c: FitConfig,
                      generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Grow where the 2D-mean gradient is large, drop what is transparent. Kerbl et al. 2023, algorithm 1.

    pull: (N,) mean norm of the 2D-mean gradient, N >= 1. The most opaque Gaussian always stays. Returns new leaf
    tensors, already given to `adam`; Gaussians that stay keep their Adam moments, new ones start at zero.
    """
    with torch.no_grad():
        alive = torch.sigmoid(raw["opacities"]) > c.prune_opacity
        alive[raw["opacities"].argmax()] = True  # a scene never becomes empty: it could not grow again
        room = max(0, c.max_gaussians - int(alive.sum()))
        threshold = torch.quantile(pull, c.densify_quantile)
        chosen = (alive & (pull > threshold)).nonzero()[:, 0]
        chosen = chosen[pull[chosen].argsort(descending=True)][:room]
        large = raw["scales"][chosen].exp().amax(-1) > c.split_scale
        clone, split = chosen[~large], chosen[large]

        keep = alive.clone()
        keep[split] = False  # a split Gaussian is replaced by two
        twins = split.repeat(2)
        sources = torch.cat([keep.nonzero()[:, 0], clone, twins])
        old = int(keep.sum())
        fresh = {k: raw[k][sources].clone() for k in NAMES}
        if len(twins):
            offset = torch.randn(len(twins), 3, generator=generator).to(pull) * raw["scales"][twins].exp()
            R = quat_to_rotmat(raw["quats"][twins])
            fresh["means"][-len(twins):] += (R @ offset[..., None])[..., 0]
            fresh["scales"][-len(twins):] -= math.log(1.6)
    for group in adam.param_groups:
        name = group["name"]
        state = adam.state.pop(group["params"][0], None)
        new = fresh[name].requires_grad_()
        group["params"] = [new]
        if state is not None:
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = state[moment][sources]
                state[moment][old:] = 0
            adam.state[new] = state
    return fresh


def _on_background(images: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Targets (v, H, W, 3) and the background (3,) to render on: random for RGBA images, white for RGB ones."""
    if images.shape[-1] == 3:
        return images, torch.ones(3, device=images.device)
    background = torch.rand(3, generator=generator).to(images.device)
    return images[..., :3] * images[..., 3:] + (1 - images[..., 3:]) * background, background


def _check(images: Tensor, cameras: Cameras, c: FitConfig) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"images: got {type(images).__name__}, wanted a torch.Tensor of floats in [0, 1]")
    if cameras.batch_shape:
        raise ValueError(f"cameras: got batch shape {cameras.batch_shape}, wanted the views of one scene")
    if len(cameras) == 0:
        raise ValueError("cameras: got no views, wanted at least one")
    wanted = (len(cameras), cameras.height, cameras.width)
    if images.ndim != 4 or tuple(images.shape[:3]) != wanted or images.shape[3] not in (3, 4):
        raise ValueError(f"images: got shape {tuple(images.shape)}, wanted {wanted + ('3 or 4',)} to match the cameras")
    if not images.is_floating_point() or not torch.isfinite(images).all() or images.min() < 0 or images.max() > 1:
        raise ValueError("images: wanted finite floats in [0, 1]")
    if images.shape[3] == 4 and not images[..., 3].any():
        raise ValueError("images: got alpha 0 everywhere, wanted at least one pixel that shows the object")
    if cameras.device != images.device:
        raise ValueError(f"cameras: got {cameras.device}, wanted {images.device} like images")
    cameras.validate()
    for name, least in (("steps", 1), ("batch", 1), ("init", 4), ("max_gaussians", 1), ("densify_every", 1)):
        if getattr(c, name) < least:
            raise ValueError(f"config.{name}: got {getattr(c, name)}, wanted >= {least}")
    if c.lambda_ssim and min(cameras.width, cameras.height) < 11:
        raise ValueError(f"cameras: got {cameras.width}x{cameras.height} images, wanted >= 11 pixels for SSIM "
                         "(or config.lambda_ssim = 0)")

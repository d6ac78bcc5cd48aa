"""gsgen train feedforward: toys and real training objects, inputs and truths, augmentation.

    gsgen train feedforward --backbone unet|transformer --preset tiny|experiment|cpu|gpu

A batch holds as many toys as real objects. Its inputs are four views at right angles in `FOURS` of the batches, else 1, 2, 3, 4,
6 or 8 views from anywhere, so that one network serves any number; the truths are the inputs and five other views.

Inputs that a generator paints do not agree with each other, nor with their cameras. So that the network forgives both, the views
after the first are sometimes (`augment`) bent, or their cameras turned (after LGM section 3.3; its warp moves the knots of a
grid, each for itself, and is gentler):

    grid warp      8 to 16 strips along each axis, each wider or narrower by up to `strength`
    orbit jitter   a camera turned about the object by up to 18 degrees around the y axis, 9 around its own right axis

Half of the objects are mirrored, pictures and cameras alike: twice the objects.

Taught in notebook 05. Source: LGM (2402.05054).
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gsgen_lib import pretrained
from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.data.multiview import MultiView, drawn_from, load_views, toy_views
from gsgen_lib.data.shards import from_shards, read_index, stream
from gsgen_lib.data.view_sets import ViewSet
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems.feed_forward import FeedForward, FeedForwardConfig, load_feed_forward, most_opaque, reconstruction_loss
from gsgen_lib.training import TrainConfig, first_alone, seeded, train

FOURS = 0.7
TOY_SEED = 6_000_000
PRESETS = {
    "tiny": dict(model=dict(size=32, widths=(16, 24, 32), width=48, layers=2, heads=4, depths=8), toys=8, real=8, steps=5,
                 batch=2, lr=1e-3),
    "experiment": dict(model=dict(widths=(32, 64, 96), depths=16, passes=1), toys=300, real=None, steps=700, batch=4, lr=1.5e-3),
    "cpu": dict(model={}, toys=1200, real=None, steps=9_000, batch=4, lr=1e-3),
    "gpu": dict(model=dict(size=128, widths=(96, 192, 288), width=384, layers=12, budget=6144), toys=4000, real=None,
                steps=60_000, batch=16, lr=5e-4),
}


def grid_warp(images: Tensor, strength: float = 0.5, generator: torch.Generator | None = None) -> Tensor:
    """Pictures (N, H, W, 4), straight alpha, each bent along both axes by 8 to 16 strips of random width.

    >>> x = 0.5 + 0.5 * torch.rand(2, 16, 16, 4)  # where alpha is next to 0 a colour means nothing
    >>> torch.allclose(grid_warp(x, 0.0), x, atol=1e-5)
    True
    """
    n, h, w, _ = images.shape
    grid = torch.stack(torch.meshgrid(*[_pixel_centres(k) for k in (h, w)], indexing="ij"), -1).repeat(n, 1, 1, 1)  # y, x
    for axis, size in ((0, h), (1, w)):
        knots = int(torch.randint(8, 17, (1,), generator=generator))
        strips = 1 + strength * (2 * torch.rand(n, knots, generator=generator) - 1)
        edges = F.pad(strips.cumsum(1), (1, 0)) / strips.sum(1, keepdim=True) * 2 - 1  # (N, K + 1) in [-1, 1]
        place = (_pixel_centres(size) + 1) / 2 * knots  # (size,)
        k = place.floor().long().clamp(max=knots - 1)
        moved = torch.lerp(edges[:, k], edges[:, k + 1], (place - k).expand(n, -1))  # (N, size)
        grid[..., axis] = moved[:, :, None] if axis == 0 else moved[:, None]
    alpha = images[..., 3:]
    x = torch.cat([images[..., :3] * alpha, alpha], -1).movedim(-1, 1)  # colours times alpha, so that rims do not darken
    bent = F.grid_sample(x, grid.flip(-1).to(images), padding_mode="border", align_corners=False).movedim(1, -1)
    return torch.cat([bent[..., :3] / bent[..., 3:].clamp_min(1e-4), bent[..., 3:]], -1)


def _pixel_centres(size: int) -> Tensor:
    return (torch.arange(size) + 0.5) / size * 2 - 1


def orbit_jitter(cameras: Cameras, around: float = 0.1 * math.pi, over: float = 0.05 * math.pi,
                 generator: torch.Generator | None = None) -> Cameras:
    """Cameras turned about the origin by random angles up to `around` (about y) and `over` (about their own right axis), radians.

    >>> near = orbit_jitter(Cameras.orbit(3), generator=torch.Generator().manual_seed(0)).centers.norm(dim=-1)
    >>> torch.allclose(near, torch.full((3,), 1.8), atol=1e-5)
    True
    """
    W = cameras.viewmats
    a, b = ((2 * torch.rand(W.shape[:-2], generator=generator) - 1).to(W) * most for most in (around, over))
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    about_y = torch.stack([a.cos(), zero, a.sin(), zero, one, zero, -a.sin(), zero, a.cos()], -1).unflatten(-1, (3, 3))
    about_x = torch.stack([one, zero, zero, zero, b.cos(), -b.sin(), zero, b.sin(), b.cos()], -1).unflatten(-1, (3, 3))
    R, t = W[..., :3, :3], W[..., :3, 3:]
    turned = torch.cat([about_x @ R @ about_y, t], -1)  # x_cam = Rx R Ry x + t: it still looks at the origin, from elsewhere
    return replace(cameras, viewmats=torch.cat([turned, W[..., 3:, :]], -2))


def augmented(rgba: Tensor, cameras: Cameras, chance: float, generator: torch.Generator | None = None) -> tuple[Tensor, Cameras]:
    """Inputs (B, V, S, S, 4) and cameras of which those after the first view of an object are bent, or turned, each with this
    chance for the object."""
    b, v = rgba.shape[:2]
    bend, turn = (torch.rand(b, generator=generator) < chance for _ in range(2))
    rgba, W = rgba.clone(), cameras.viewmats.clone()
    if v > 1 and bend.any():
        rgba[bend, 1:] = grid_warp(rgba[bend, 1:].flatten(0, 1), 0.5, generator).unflatten(0, (-1, v - 1))
    if v > 1 and turn.any():
        W[turn, 1:] = orbit_jitter(replace(cameras, viewmats=W[turn, 1:], Ks=cameras.Ks[turn, 1:]), generator=generator).viewmats
    return rgba, replace(cameras, viewmats=W)


def mirrored(rgba: Tensor, cameras: Cameras, which: Tensor) -> tuple[Tensor, Cameras]:
    """Objects `which` (B,) of rgba (B, V, H, W, C) and their cameras, reflected at the plane x = 0.

    A world point (x, y, z) moves to (-x, y, z) and is seen at the mirrored column: W -> M W M with M = diag(-1, 1, 1, 1), and the
    principal point moves to the width less itself.

    >>> cameras = Cameras.stack([Cameras.orbit(3, width=8, height=8)])
    >>> _, there = mirrored(torch.rand(1, 3, 8, 8, 4), cameras, torch.tensor([True]))
    >>> x, y = cameras.project(torch.tensor([[[0.2, 0.1, 0.3]]]))[0][0, :, 0].T
    >>> u, v = there.project(torch.tensor([[[-0.2, 0.1, 0.3]]]))[0][0, :, 0].T
    >>> torch.allclose(u, 8 - x, atol=1e-5), torch.allclose(v, y, atol=1e-5)
    (True, True)
    """
    M = torch.ones(4, 4)
    M[0, 1:] = M[1:, 0] = -1  # diag(-1, 1, 1, 1) on both sides turns these signs
    W = torch.where(which[:, None, None, None], cameras.viewmats * M.to(cameras.viewmats), cameras.viewmats)
    Ks = cameras.Ks.clone()
    Ks[which, :, 0, 2] = cameras.width - Ks[which, :, 0, 2]
    return torch.where(which[:, None, None, None, None], rgba.flip(3), rgba), replace(cameras, viewmats=W, Ks=Ks)


def batches(sets: list, batch: int, chance: float):
    """draw_batch for `training.train`, of equal shares of the sets, each in memory or streamed (`multiview.drawn_from`): truth
    (B, V, S, S, 4), inputs first; viewmats and Ks (B, V, ...); inputs (B, m, S, S, 4), bent or not; their viewmats, turned or
    not; m."""
    if batch % len(sets):
        raise ValueError(f"batch: got {batch}, wanted a multiple of the number of sets, {len(sets)}")
    plans = {}
    for count, how in ((4, "orthogonal"), *[(n, "random") for n in (1, 2, 3, 4, 6, 8)]):
        plans[count, how] = [drawn_from(one, count, 5, inputs=how, background=None) for one in sets]

    def draw_batch(generator):
        if float(torch.rand(1, generator=generator)) < FOURS:
            plan = plans[4, "orthogonal"]
        else:
            plan = plans[(1, 2, 3, 4, 6, 8)[int(torch.randint(6, (1,), generator=generator))], "random"]
        share = batch // len(plan)
        drawn = [draw(share, generator) for draw in plan]
        rgba = torch.cat([d.images for d in drawn])
        cameras = replace(drawn[0].cameras, viewmats=torch.cat([d.cameras.viewmats for d in drawn]),
                          Ks=torch.cat([d.cameras.Ks for d in drawn]))
        rgba, cameras = mirrored(rgba, cameras, torch.rand(batch, generator=generator) < 0.5)
        count = drawn[0].n_inputs
        inputs, turned = augmented(rgba[:, :count], cameras[:count], chance, generator)
        return rgba, cameras.viewmats, cameras.Ks, inputs, turned.viewmats, count

    return draw_batch


def train_feed_forward(out: Path | None = None, backbone: str = "unet", preset: str = "cpu", steps: int | None = None,
                       augment: float = 0.2, geometry: bool = True, passes: int | None = None, start: str | None = None,
                       shards: str | None = None, seed: int = 0, minutes: float | None = None,
                       device: str | None = None) -> dict:
    """Train one backbone; returns its card.

    out: folder, runs/feedforward_BACKBONE if not given; a training that was interrupted goes on. augment: chance that an object's
    inputs are bent, and that their cameras are turned; geometry: hull and sweep; passes: corrections, the preset's
    if not given; start: a shipped network or a folder, of the same options except passes, whose weights it begins with;
    shards: folders of `gsgen data shard`, divided by commas, to learn from instead; minutes: stop after so many, resumable.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset: got {preset!r}, wanted one of {', '.join(PRESETS)}")
    if not 0 <= augment <= 1:
        raise ValueError(f"augment: got {augment}, wanted 0 to 1")
    p, out = PRESETS[preset], Path(out or f"runs/feedforward_{backbone}")
    more = {} if passes is None else {"passes": passes}
    config = FeedForwardConfig(backbone=backbone, geometry=geometry, **p["model"] | more)
    plan = TrainConfig(steps=p["steps"] if steps is None else steps, lr=p["lr"], warmup=200, weight_decay=0.05, ema_decay=0.999,
                       checkpoint_every=250, seed=seed, precision="bf16")
    model, before = seeded(lambda: FeedForward(config), seed), {}
    if start is not None:
        other, before = load_feed_forward(start), pretrained.beginning(start)
        same = other.config if not passes or not other.config.passes else replace(other.config, passes=passes)
        if same != config:  # the same weights correct, however often
            raise ValueError(f"start: got a network of {other.config}, wanted {config}")
        model.load_state_dict(other.state_dict())

    sources, shown = training_objects(p, config.size, seed, out.parent, shards)

    def loss_fn(network, data, generator):
        rgba, viewmats, Ks, inputs, turned, count = data
        cameras = Cameras(viewmats, Ks, config.size, config.size)
        given = Cameras(turned, Ks[:, :count], config.size, config.size)
        return reconstruction_loss(network, config, rgba, cameras, inputs, given)

    facts = {"network": asdict(config), "augment": augment, "start": before.get("sha256"), "shards": shards}
    result = train(model, loss_fn, batches(sources, p["batch"], augment), plan, out, sheet_of(shown, config), minutes, device,
                   facts=facts)
    if result.step < plan.steps:
        print(f"feedforward {backbone}: step {result.step} of {plan.steps}; call again to go on")
        return {}
    said = {"steps": steps, "augment": None if augment == 0.2 else augment, "passes": passes, "start": start,
            "shards": shards, "seed": seed or None}
    return pretrained.save_network(model, out / "model", {
        "name": f"feedforward_{backbone}", "seed": seed, "hours": round(result.seconds / 3600, 2), "steps": result.step,
        "command": f"gsgen train feedforward --backbone {backbone} --preset {preset}{options(said)}"
                   f"{'' if geometry else ' --no-geometry'}", "loss": result.log[-1]["loss"]}, before)


def options(given: dict) -> str:
    """Options of a command line, those that are None left out.

    >>> options({"steps": 5, "weight_kl": None})
    ' --steps 5'
    """
    return "".join(f" --{name.replace('_', '-')} {value}" for name, value in given.items() if value is not None)


def training_objects(preset: dict, size: int, seed: int, folder: Path, shards: str | None = None) -> tuple[list, ViewSet]:
    """What a training learns from, for `multiview.drawn_from`, and some of it to look at.

    The real training objects and preset["toys"] toys, of size x size pixels; the toys are kept in `folder`. Real objects ship at
    64 pixels: for larger sizes there are toys alone, unless `shards` names folders of `gsgen data shard`, divided by commas, from
    which a batch takes equal shares instead.
    """
    if shards is not None:
        folders = [name.strip() for name in shards.split(",")]
        for name in folders:
            high, wide = read_index(name)["size"]
            if (high, wide) != (size, size):
                raise ValueError(f"shards: {name} holds pictures of {wide} x {high} pixels, wanted {size} x {size}")
        return [from_shards(name) for name in folders], next(stream(folders[0], buffer=1))
    real = load_views("train", limit=preset["real"])
    with first_alone():
        toys = toy_views(preset["toys"], TOY_SEED + seed, size, folder=folder / f"toys_{size}_{preset['toys']}")
    if size > real.images.shape[2]:
        print(f"real objects ship at {real.images.shape[2]} pixels: learning from toys alone (gsgen data build --size {size} and "
              "gsgen data shard make larger ones)")
        return [toys], toys
    real = real if size == real.images.shape[2] else smaller(real, size)
    return [real, toys], real


def smaller(views: ViewSet, size: int) -> ViewSet:
    """A view set with pictures of size x size pixels, no more than it has."""
    n, v = views.images.shape[:2]
    if size > min(views.images.shape[2:4]):
        raise ValueError(f"size: got {size}, wanted at most that of the pictures, {tuple(views.images.shape[2:4])}")
    x = views.images.flatten(0, 1).movedim(-1, 1).float()
    x = torch.cat([x[:, :3] * x[:, 3:] / 255, x[:, 3:]], 1)  # scaled with premultiplied colours
    x = F.interpolate(x, size=(size, size), mode="area")
    x = torch.cat([(x[:, :3] / x[:, 3:].clamp_min(1e-3) * 255).clamp(0, 255), x[:, 3:]], 1)
    x = x.round().to(torch.uint8).movedim(1, -1).unflatten(0, (n, v))
    return replace(views, images=x, cameras=views.cameras.resize(size, size))


def sheet_of(views: ViewSet, config: FeedForwardConfig):
    """sheet(model) for `training.train`: truth and reconstruction of two objects, the four inputs and four other views."""
    from gsgen_lib.systems.autoencoder_training import grid

    some = MultiView(views, 4, 4, "orthogonal", background=None).batch([0, len(views) // 2], torch.Generator().manual_seed(0))

    @torch.no_grad()
    def sheet(model):
        device = next(model.parameters()).device
        rgba, cameras = some.images.to(device), some.cameras.to(device)
        scenes = most_opaque(model(rgba[:, :4], cameras[:4]), 4 * config.budget)
        got = rasterize(scenes, cameras, (1.0, 1.0, 1.0)).rgb.clamp(0, 1).cpu()
        truth = on_background(rgba, torch.ones(3)).cpu()
        return grid(torch.stack([truth, got], 1).flatten(0, 2), 8)

    return sheet

"""gsgen train var: the Variational AutoReconstructor, on toys and real training objects.

    gsgen train var --preset tiny|experiment|cpu|gpu

A batch holds as many toys as real objects: one picture of the ring of eight around each, slightly from above (no pose is read, so
the network must know where up is; captures, which have no ring, give any of theirs), and four other views from anywhere. The
pictures of an object all change their colours in the same way, at random (`recoloured`); half of the real objects are mirrored
(of toys the side to which a tail lies has odds that shall stay). In `KEPT` of the scenes skips are kept, else 0.

Two stages: the second goes on from the first with LPIPS in its loss. (LPIPS compares textures, and at first there are none.)

Taught in notebook 08. Source: 2508.21542 section 3.2.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from gsgen_lib import pretrained
from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.data.multiview import MultiView, drawn_from
from gsgen_lib.data.view_sets import ViewSet
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems.autoencoder_training import grid
from gsgen_lib.systems.autoreconstructor import AutoReconstructor, AutoReconstructorConfig, var_loss
from gsgen_lib.systems.feed_forward_training import mirrored, options, training_objects
from gsgen_lib.training import TrainConfig, seeded, train

KEPT = 0.5
OTHERS = 4  # views beside the picture itself
PRESETS = {
    "tiny": dict(model=dict(size=32, widths=(8, 16, 24, 32), budget=512), toys=8, real=8, steps=4, fine_steps=2, batch=2,
                 lr=1e-3),
    "experiment": dict(model=dict(widths=(24, 32, 48, 64)), toys=300, real=None, steps=1000, fine_steps=400, batch=4, lr=2e-3),
    "cpu": dict(model={}, toys=1200, real=None, steps=9_000, fine_steps=3_000, batch=8, lr=1e-3),
    "gpu": dict(model=dict(size=128, widths=(64, 128, 192, 256), budget=12_288), toys=4000, real=None, steps=60_000,
                fine_steps=20_000, batch=32, lr=5e-4),
}


def recoloured(rgba: Tensor, generator: torch.Generator | None = None, hue: float = 0.3, saturation: float = 0.3,
               gain: float = 0.2) -> Tensor:
    """Pictures (B, ..., 4) whose colours change at random, in the same way for all pictures of an object.

    Colours are turned about the grey axis by up to `hue` radians, grey is mixed in or taken away by up to a share of
    `saturation`, and all is multiplied by 1 +- `gain`; what leaves [0, 1] is cut.

    >>> x = torch.rand(2, 3, 8, 8, 4)
    >>> torch.equal(recoloured(x, hue=0.0, saturation=0.0, gain=0.0)[..., 3], x[..., 3])
    True
    """
    b = len(rgba)
    a, s, g = ((2 * torch.rand(b, 1, 1, generator=generator) - 1) * most for most in (hue, saturation, gain))
    axis = math.sqrt(1 / 3)
    cross = torch.tensor([[0, -axis, axis], [axis, 0, -axis], [-axis, axis, 0]])  # v x . for v = (1, 1, 1) / sqrt(3)
    grey = torch.full((3, 3), 1 / 3)
    turn = a.cos() * torch.eye(3) + a.sin() * cross + (1 - a.cos()) * grey  # Rodrigues
    change = (1 + g) * ((1 + s) * turn - s * grey)  # (B, 3, 3)
    change = change.to(rgba).reshape(b, *[1] * (rgba.ndim - 2), 3, 3)
    rgb = (change @ rgba[..., :3, None])[..., 0].clamp(0, 1)
    return torch.cat([rgb, rgba[..., 3:]], -1)


def batches(sets: list, batch: int, kept: float = KEPT):
    """draw_batch for `training.train`: truth (B, 1 + OTHERS, S, S, 4), the picture first; viewmats, Ks; weights of skips (B,).
    sets: of real objects and of toys, from which a batch takes equal shares; each in memory or streamed."""
    if not sets:
        raise ValueError("sets: got none, wanted at least one")
    plans = [drawn_from(one, 1, OTHERS, inputs="around", background=None) for one in sets]
    if batch % len(plans):
        raise ValueError(f"batch: got {batch}, wanted a multiple of the number of sets, {len(plans)}")

    def draw_batch(generator):
        drawn = [draw(batch // len(plans), generator) for draw in plans]
        rgba = torch.cat([d.images for d in drawn])
        cameras = replace(drawn[0].cameras, viewmats=torch.cat([d.cameras.viewmats for d in drawn]),
                          Ks=torch.cat([d.cameras.Ks for d in drawn]))
        real = torch.tensor([not name.startswith("toy_") for d in drawn for name in d.ids])
        turn = (torch.rand(batch, generator=generator) < 0.5) & real
        rgba, cameras = mirrored(recoloured(rgba, generator), cameras, turn)
        return rgba, cameras.viewmats, cameras.Ks, (torch.rand(batch, generator=generator) < kept).float()

    return draw_batch


def train_autoreconstructor(out: Path | None = None, preset: str = "cpu", steps: int | None = None, fine_steps: int | None = None,
                            skips: bool = True, gaussians: int = 2, variational: bool = True, weight_ssim: float = 0.2,
                            weight_lpips: float = 0.01, weight_kl: float = 5e-4, kept: float = KEPT,
                            shards: str | None = None, seed: int = 0, minutes: float | None = None,
                            device: str | None = None) -> dict:
    """Train the VAR; returns its card, {} if `minutes` ended it before its last step.

    out: folder, runs/autoreconstructor if not given; a training that was interrupted goes on. steps, fine_steps: of the first
    and of the second stage. skips, gaussians, variational, the weights: the comparisons of notebook 08; kept: share of the scenes
    of which skips are kept, 1 for the mistake; shards: folders of `gsgen data shard`, divided by commas, to learn from instead.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset: got {preset!r}, wanted one of {', '.join(PRESETS)}")
    if not 0 <= kept <= 1:
        raise ValueError(f"kept: got {kept}, wanted 0 to 1")
    for name, weight in (("weight_ssim", weight_ssim), ("weight_lpips", weight_lpips), ("weight_kl", weight_kl)):
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"{name}: got {weight}, wanted a number >= 0")
    p, out = PRESETS[preset], Path(out or "runs/autoreconstructor")
    if min(p["steps"] if steps is None else steps, p["fine_steps"] if fine_steps is None else fine_steps) < 1:
        raise ValueError(f"steps, fine_steps: got {steps}, {fine_steps}, wanted at least 1 each")
    config = AutoReconstructorConfig(skips=skips, gaussians=gaussians, variational=variational, weight_ssim=weight_ssim,
                                     weight_kl=weight_kl, **p["model"])
    model = seeded(lambda: AutoReconstructor(config), seed)
    sources, shown = training_objects(p, config.size, seed, out.parent, shards)
    draw, seconds, started = batches(sources, p["batch"], kept), 0.0, time.perf_counter()
    stages = ((out / "first", p["steps"] if steps is None else steps, p["lr"], 0.0, seed),
              (out, p["fine_steps"] if fine_steps is None else fine_steps, p["lr"] / 3, weight_lpips, seed + 1))  # other batches
    for folder, count, lr, lpips, own_seed in stages:
        plan = TrainConfig(steps=count, lr=lr, warmup=200, weight_decay=0.05, ema_decay=0.999, checkpoint_every=250,
                           seed=own_seed, precision="bf16")

        def loss_fn(network, data, generator, lpips=lpips):
            rgba, viewmats, Ks, keep = data
            return var_loss(network, config, rgba, Cameras(viewmats, Ks, config.size, config.size), keep, lpips, generator)

        facts = {"network": asdict(config), "kept": kept, "lpips": lpips, "shards": shards,
                 "after": None if folder.name == "first" else stages[0][1]}  # steps of the stage before
        left = None if minutes is None else minutes - (time.perf_counter() - started) / 60  # for this stage
        result = train(model, loss_fn, draw, plan, folder, sheet_of(shown, config), left, device, facts=facts)
        seconds += result.seconds
        if result.step < plan.steps:
            print(f"var: {folder.name}, step {result.step} of {plan.steps}; call again to go on")
            return {}
    defaults = {"gaussians": 2, "weight_ssim": 0.2, "weight_lpips": 0.01, "weight_kl": 5e-4, "kept": KEPT, "seed": 0}
    given = dict(gaussians=gaussians, weight_ssim=weight_ssim, weight_lpips=weight_lpips, weight_kl=weight_kl, kept=kept,
                 seed=seed)
    said = {k: v if v != defaults[k] else None for k, v in given.items()}
    said = {"steps": steps, "fine_steps": fine_steps, "shards": shards} | said
    flags = f"{'' if skips else ' --no-skips'}{'' if variational else ' --no-variational'}"
    return pretrained.save_network(model, out / "model", {
        "name": "autoreconstructor", "seed": seed, "hours": round(seconds / 3600, 2), "loss": result.log[-1]["loss"],
        "command": f"gsgen train var --preset {preset}{options(said)}{flags}"})


def sheet_of(views: ViewSet, config: AutoReconstructorConfig):
    """sheet(model) for `training.train`: for two objects the picture and up to seven other views: truth, with skips, without."""
    others = min(7, views.images.shape[1] - 1)
    some = MultiView(views, 1, others, "around", background=None).batch([0, len(views) // 2], torch.Generator().manual_seed(0))

    @torch.no_grad()
    def sheet(model):
        device = next(model.parameters()).device
        rgba, cameras = some.images.to(device), some.cameras.to(device)
        mu, _, _, skips = model.encode(rgba[:, 0])
        rows = [on_background(rgba, torch.ones(3)).cpu()]
        for keep in (1.0, 0.0):
            scenes = model.splats(model.decode(mu, cameras[:1], skips, keep))
            rows.append(rasterize(scenes, cameras, (1.0, 1.0, 1.0)).rgb.clamp(0, 1).cpu())
        return grid(torch.stack(rows, 1).flatten(0, 2), 1 + others)

    return sheet

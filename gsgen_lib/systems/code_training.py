"""gsgen train codes: diffusion over the codes of a trained AutoReconstructor.

    gsgen train codes --preset tiny|experiment|cpu|gpu

The same objects as `gsgen train var`, photographed from the ring of eight: the picture is one of them, and what is drawn is its
own code or (`BEHIND` of the scenes) that of the picture from the opposite side. What is known of the picture is dropped in
`DROPPED` of the scenes. In the second stage `MASKED` of the scenes lose half of the patches of their picture first.

Taught in notebook 08. Source: 2508.21542 section 3.3.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from gsgen_lib import pretrained
from gsgen_lib.data.view_sets import ViewSet
from gsgen_lib.raster import rasterize
from gsgen_lib.systems.autoencoder_training import grid
from gsgen_lib.systems.autoreconstructor import AutoReconstructor, load_autoreconstructor
from gsgen_lib.systems.autoreconstructor_diffusion import CodeDenoiser, CodeDiffusionConfig, OneImage, Seen, code_loss, patches
from gsgen_lib.systems.autoreconstructor_training import recoloured
from gsgen_lib.systems.feed_forward_training import options, training_objects
from gsgen_lib.training import TrainConfig, seeded, train

BEHIND, DROPPED, MASKED = 0.5, 0.2, 0.5
RING = 8  # views around an object, at equal angles
PRESETS = {
    "tiny": dict(model=dict(widths=(8, 16), embed=16), toys=8, real=8, steps=4, masked_steps=2, batch=2, lr=1e-3),
    "experiment": dict(model=dict(widths=(48, 64)), toys=300, real=None, steps=1500, masked_steps=500, batch=16, lr=1e-3),
    "cpu": dict(model={}, toys=1200, real=None, steps=12_000, masked_steps=4_000, batch=16, lr=7e-4),
    "gpu": dict(model=dict(widths=(128, 192)), toys=4000, real=None, steps=60_000, masked_steps=20_000, batch=128, lr=5e-4),
}


def batches(sets: list[ViewSet], batch: int, cells: int, masked: float):
    """draw_batch for `training.train`, of real objects, which may be mirrored, and toys, or of toys alone: pictures (B, S, S, 4);
    the pictures whose codes are drawn, they themselves or from the opposite side; which are (B,); masks (B, 1, cells, cells); of
    which nothing is known (B,)."""

    def draw_batch(generator):
        pictures, behind = [], torch.rand(batch, generator=generator) < BEHIND
        for k in range(batch):
            views = sets[k % len(sets)]
            i, v = (int(torch.randint(n, (), generator=generator)) for n in (len(views), RING))
            pair = views.images[i, [v, (v + RING // 2 * int(behind[k])) % RING]]
            turned = len(sets) > 1 and k % 2 == 0 and float(torch.rand((), generator=generator)) < 0.5
            pictures.append(pair.flip(2) if turned else pair)  # mirrored at the plane through the camera's axis
        pairs = recoloured(torch.stack(pictures).float() / 255, generator)  # (B, 2, S, S, 4)
        mask = (torch.rand(batch, 1, cells, cells, generator=generator) < 0.5).float()
        whole = torch.rand(batch, generator=generator) >= masked
        mask = torch.where(whole[:, None, None, None], 1.0, mask)
        return pairs[:, 0], pairs[:, 1], behind.float(), mask, torch.rand(batch, generator=generator) < DROPPED

    return draw_batch


def train_codes(out: Path | None = None, preset: str = "cpu", steps: int | None = None, masked_steps: int | None = None,
                autoreconstructor: str = "autoreconstructor", seed: int = 0, minutes: float | None = None,
                device: str | None = None) -> dict:
    """Train the denoiser; returns its card, {} if `minutes` ended it before its last step.

    out: folder, runs/code_diffusion if not given; a training that was interrupted goes on. steps, masked_steps: of the first and
    of the second stage; autoreconstructor: a shipped one, or a folder with a card.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset: got {preset!r}, wanted one of {', '.join(PRESETS)}")
    p, out, autoreconstructor = PRESETS[preset], Path(out or "runs/code_diffusion"), str(autoreconstructor)
    if min(p["steps"] if steps is None else steps, p["masked_steps"] if masked_steps is None else masked_steps) < 1:
        raise ValueError(f"steps, masked_steps: got {steps}, {masked_steps}, wanted at least 1 each")
    var = load_autoreconstructor(autoreconstructor)
    digest = pretrained.read_card(pretrained.checked_folder(autoreconstructor))["sha256"]["model.safetensors"]
    v = var.config
    config = CodeDiffusionConfig(latent=v.latent, cells=v.size // 8, features=v.widths[-1], **p["model"])
    model = seeded(lambda: CodeDenoiser(config), seed)
    sets, shown = training_objects(p, v.size, seed, out.parent)
    set_scales(model, var, batches(sets, 64, config.cells, 0.0), seed)
    var.to("cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda")

    def loss_fn(network, data, generator):
        picture, aim, behind, mask, drop = data
        with torch.no_grad(), torch.autocast(picture.device.type, enabled=False):  # as it will be asked
            mu, logvar, _, _ = var.encode(aim)
            seen = Seen(var.encode(patches(picture, mask))[2], mask, behind).dropped(drop)
        h = var.drawn(mu, logvar, torch.randn(mu.shape, generator=generator).to(mu))
        return code_loss(network, model, model.scale(h), seen, generator)

    seconds, started = 0.0, time.perf_counter()
    stages = ((out / "first", p["steps"] if steps is None else steps, p["lr"], 0.0, seed),
              (out, p["masked_steps"] if masked_steps is None else masked_steps, p["lr"] / 3, MASKED, seed + 1))  # other batches
    for folder, count, lr, masked, own_seed in stages:
        plan = TrainConfig(steps=count, lr=lr, warmup=200, weight_decay=0.01, ema_decay=0.999, checkpoint_every=500,
                           seed=own_seed, precision="bf16")
        facts = {"network": asdict(config), "autoreconstructor": digest, "masked": masked,
                 "after": None if folder.name == "first" else stages[0][1]}  # steps of the stage before
        left = None if minutes is None else minutes - (time.perf_counter() - started) / 60  # for this stage
        result = train(model, loss_fn, batches(sets, p["batch"], config.cells, masked), plan, folder, sheet_of(var, shown),
                       left, device, facts=facts)
        seconds += result.seconds
        if result.step < plan.steps:
            print(f"codes: {folder.name}, step {result.step} of {plan.steps}; call again to go on")
            return {}
    said = {"steps": steps, "masked_steps": masked_steps, "seed": seed or None,
            "autoreconstructor": None if autoreconstructor == "autoreconstructor" else autoreconstructor}
    return pretrained.save_network(model, out / "model", {
        "name": "code_diffusion", "seed": seed, "hours": round(seconds / 3600, 2), "loss": result.log[-1]["loss"],
        "command": f"gsgen train codes --preset {preset}{options(said)}", "autoreconstructor": autoreconstructor,
        "autoreconstructor_sha256": digest})


@torch.no_grad()
def set_scales(model: CodeDenoiser, var: AutoReconstructor, draw_batch, seed: int) -> None:
    """Mean and spread of codes, and spread of features, measured on a few batches, in place."""
    found = [var.encode(draw_batch(torch.Generator().manual_seed(seed * 1000 + k))[0])[:3] for k in range(8)]
    mu, logvar, features = (torch.cat(one) for one in zip(*found, strict=True))
    model.mean.copy_(mu.mean((0, 2, 3)).half())
    more = logvar.exp().mean((0, 2, 3)) if var.config.variational else 0.0
    model.std.copy_((mu.var((0, 2, 3)) + more).sqrt().half())
    model.feature_std.copy_(features.std().half())


def sheet_of(var: AutoReconstructor, views: ViewSet):
    """sheet(model) for `training.train`: for two objects four views: truth; a sample; a sample with a second set from behind."""
    from gsgen_lib.data.captioned_views import on_background

    some = [0, len(views) // 2]

    @torch.no_grad()
    def sheet(model):
        device = next(model.parameters()).device
        copy = CodeDenoiser(model.config)
        copy.load_state_dict(model.state_dict())
        sampler, rows = OneImage(var.to(device), copy.to(device)), []
        for i in some:
            four = [0, 2, 4, 6]
            rgba = views.images[i, four].float().to(device) / 255
            cameras = replace(views.cameras, viewmats=views.cameras.viewmats[i], Ks=views.cameras.Ks[i])[four].to(device)
            rows.append(on_background(rgba, torch.ones(3)).cpu())
            for behind in (False, True):
                scene = sampler.sample(rgba[:1], cameras[:1], 1, behind=behind, generator=torch.Generator().manual_seed(0))[0]
                rows.append(rasterize(scene, cameras, (1.0, 1.0, 1.0)).rgb.clamp(0, 1).cpu())
        return grid(torch.cat(rows), 4)

    return sheet

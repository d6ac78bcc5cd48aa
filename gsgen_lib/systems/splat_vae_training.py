"""gsgen train vae: the splat autoencoder, on toys and real training objects.

    gsgen train vae --factor 4|8|16 --preset tiny|experiment|cpu|gpu

The same objects, views and mirrored copies as `gsgen train feedforward`; its inputs are never bent: a latent must hold what is
there. Taught in notebook 06. Source: 2406.13099 section 3.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

from gsgen_lib import pretrained
from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.data.multiview import MultiView
from gsgen_lib.data.view_sets import ViewSet
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems.autoencoder_training import grid
from gsgen_lib.systems.feed_forward_training import batches, options, training_objects
from gsgen_lib.systems.splat_vae import SplatVAE, SplatVAEConfig, encoder, load_splat_vae, vae_loss
from gsgen_lib.training import TrainConfig, seeded, train

PRESETS = {
    "tiny": dict(model=dict(size=32, widths=(16, 24, 32, 32), depths=8), toys=8, real=8, steps=5, batch=2, lr=1e-3),
    "experiment": dict(model=dict(widths=(32, 64, 96, 96), depths=16), toys=300, real=None, steps=700, batch=4, lr=1.5e-3),
    "cpu": dict(model={}, toys=1200, real=None, steps=7_000, batch=4, lr=1.5e-3),
    "gpu": dict(model=dict(size=128, widths=(96, 192, 288, 288), budget=6144), toys=4000, real=None, steps=60_000, batch=16,
                lr=5e-4),
}


def train_splat_vae(out: Path | None = None, factor: int = 8, preset: str = "cpu", steps: int | None = None, mix: bool = True,
                    geometry: bool = True, latent: int | None = None, weight_kl: float = 5e-4, decoder_of: str | None = None,
                    passes: int = 0, shards: str | None = None, seed: int = 0, minutes: float | None = None,
                    device: str | None = None) -> dict:
    """Train one autoencoder; returns its card, {} if `minutes` ended it before its last step.

    out: folder, runs/splat_vae_F if not given; a training that was interrupted goes on. mix, geometry, weight_kl: the comparisons
    of notebook 06; latent: channels, 6 if not given; decoder_of: a shipped autoencoder or a folder with one, of the same options,
    fewer passes excepted, whose decoder is trained on while its encoder, and so its latents, stay; passes: corrections of what is
    decoded; shards: folders of `gsgen data shard`, divided by commas, to learn from instead.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset: got {preset!r}, wanted one of {', '.join(PRESETS)}")
    p, out = PRESETS[preset], Path(out or f"runs/splat_vae_{factor}")
    more = {} if latent is None else {"latent": latent}
    config = SplatVAEConfig(factor=factor, mix=mix, geometry=geometry, weight_kl=weight_kl, passes=passes, **p["model"], **more)
    plan = TrainConfig(steps=p["steps"] if steps is None else steps, lr=p["lr"], warmup=200, weight_decay=0.05, ema_decay=0.999,
                       checkpoint_every=250, seed=seed, precision="bf16")
    model, before = seeded(lambda: SplatVAE(config), seed), {}
    if decoder_of is not None:
        before = go_on_with(model, decoder_of)

    sources, shown = training_objects(p, config.size, seed, out.parent, shards)

    def loss_fn(network, data, generator):
        rgba, viewmats, Ks, _, _, count = data
        return vae_loss(network, config, rgba, Cameras(viewmats, Ks, config.size, config.size), count, generator)

    facts = {"network": asdict(config), "start": before.get("sha256"), "shards": shards}
    result = train(model, loss_fn, batches(sources, p["batch"], 0.0), plan, out, sheet_of(shown, config), minutes, device,
                   facts=facts)
    if result.step < plan.steps:
        print(f"vae {factor}: step {result.step} of {plan.steps}; call again to go on")
        return {}
    said = {"steps": steps, "latent": latent, "weight_kl": None if weight_kl == 5e-4 else weight_kl, "decoder-of": decoder_of,
            "passes": passes or None, "shards": shards, "seed": seed or None}
    flags = f"{'' if mix else ' --no-mix'}{'' if geometry else ' --no-geometry'}"
    return pretrained.save_network(model, out / "model", {
        "name": f"splat_vae_{factor}", "seed": seed, "hours": round(result.seconds / 3600, 2), "steps": result.step,
        "command": f"gsgen train vae --factor {factor} --preset {preset}{options(said)}{flags}", "loss": result.log[-1]["loss"]},
        before)


def go_on_with(model: SplatVAE, name: str) -> dict:
    """The weights of another autoencoder for the model, whose encoder will not learn; what its card says of its training.
    ValueError where options differ; it may have fewer passes: ours start anew if it has none."""
    other, c = load_splat_vae(name), model.config
    same = replace(other.config, passes=c.passes, widths=c.widths) == c and other.config.channels == c.channels
    if not same or other.config.passes > c.passes:
        raise ValueError(f"decoder_of: got an autoencoder of {other.config}, wanted {c}")
    model.load_state_dict(model.state_dict() | other.state_dict())
    for part in encoder(model):
        part.requires_grad_(False)
    return pretrained.beginning(name)


def sheet_of(views: ViewSet, config: SplatVAEConfig):
    """sheet(model) for `training.train`: rows of truth, paint and render of two objects, the four inputs and four other views."""
    some = MultiView(views, 4, 4, "orthogonal", background=None).batch([0, len(views) // 2], torch.Generator().manual_seed(0))

    @torch.no_grad()
    def sheet(model):
        device = next(model.parameters()).device
        rgba, cameras = some.images.to(device), some.cameras.to(device)
        mu, _ = model.encode(rgba[:, :4], cameras[:4])
        painted = torch.ones_like(rgba)
        painted[:, :4] = model.decode(mu, cameras[:4])[1]
        got = rasterize(model.splats(mu, cameras[:4]), cameras, (1.0, 1.0, 1.0)).rgb.clamp(0, 1).cpu()
        truth, painted = (on_background(x, torch.ones(3)).cpu() for x in (rgba, painted))
        return grid(torch.stack([truth, painted, got], 1).flatten(0, 2), 8)

    return sheet

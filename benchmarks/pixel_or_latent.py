"""Pixels or latents? The same pictures, text encoder, schedule and seconds: gsgen bench pixel_or_latent [--json].

    pixel    U-Net on 3 x 64 x 64 pictures, three levels
    latent   U-Net on 4 x 16 x 16 latents of the shipped prior's autoencoder, two levels (the shipped prior's U-Net)

Both have about 2.5 million weights, and share the shipped prior's text encoder, frozen. Each is given as many steps as fit
into `minutes`, found by timing a few; its learning rate rises and falls over just these. Then each draws one sample for
each held-out prompt.

What the comparison leaves out: the autoencoder was trained before, on more objects (its card says for how long), and serves
every later model. What it leaves in: the autoencoder's errors; a third row scores true renders that went through it and
back, the best that the latent arm could do.
"""

import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gsgen_lib.data.captioned_views import on_background, training_views
from gsgen_lib.diffusion import ddim_sample, guided
from gsgen_lib.image_features import features_name
from gsgen_lib.metrics import bootstrap_ci
from gsgen_lib.systems.prior import load_prior
from gsgen_lib.systems.prior_metrics import draw_all, held_out_prompts, picture_scores
from gsgen_lib.systems.prior_networks import TextAndUNet, make_unet
from gsgen_lib.systems.prior_training import (
    ATTENTION,
    encode_views,
    object_colors,
    train_diffusion,
)
from gsgen_lib.systems.prompt_scorer import load_scorer, tokenize
from gsgen_lib.training import seeded

TOY_SEED = 1_500_000


def pixels_of(views, colors):
    """The pictures as "latents": (M, 1, 3, H, W) fp16 of variance one, and the scale that was divided by."""
    own = colors[views.owners, 0]
    x = torch.cat([(on_background(views.images[rows], own[rows]) * 2 - 1).movedim(-1, 1)
                   for rows in torch.arange(len(views)).split(500)])
    scale = x[:1000].std().item()
    return (x / scale)[:, None].half(), scale


def steps_in(minutes, fit) -> int:
    """How many steps fit(steps) takes in `minutes`, from the time of 16, less that of 4 (the first are slow)."""
    seconds = []
    for steps in (4, 16):
        start = time.perf_counter()
        fit(steps)
        seconds.append(time.perf_counter() - start)
    return max(8, round(60 * minutes / ((seconds[1] - seconds[0]) / 12)))


def sampler(model, tokenizer, shape, decode, abar, steps, guidance_scale):
    """draw(prompts, generator) -> pictures, by DDIM with guidance."""

    @torch.no_grad()
    def draw(prompts, generator):
        noise = torch.randn(len(prompts), *shape, generator=generator)
        tokens, empty = tokenize(tokenizer, prompts), tokenize(tokenizer, [""] * len(prompts))
        denoise = guided(lambda x, t, ids: model(x, t, ids), tokens, empty, guidance_scale)
        return decode(ddim_sample(denoise, noise, abar, steps, prediction="v"))

    return draw


def main(minutes: float = 10.0, toys: int = 400, seeds: int = 3, captions: int = 100, batch: int = 16,
         steps: int = 20, guidance_scale: float = 3.0, prior: str = "prior", scorer: str = "prompt_scorer") -> dict:
    """Train both arms for `minutes` each and seed, then score their samples. prior, scorer: shipped names or folders."""
    prior, judge = load_prior(prior), load_scorer(scorer)
    abar, scores = prior.alphas_cumprod, {}
    for seed in range(seeds):
        views = training_views(toys, np.random.default_rng(TOY_SEED + seed))
        asked = held_out_prompts(captions, seed)
        colors = object_colors(views, 1, seed)  # both arms see every view on the same background
        pixels, scale = pixels_of(views, colors)
        arms = {"pixel": ((32, 64, 96), 1, pixels, lambda x, scale=scale: (x.movedim(1, -1) * scale / 2 + 0.5).clamp(0, 1)),
                "latent": ((64, 96), ATTENTION, encode_views(prior.vae, views, colors), prior.decode)}
        for name, (channels, attention, data, decode) in arms.items():
            shape = tuple(data.shape[2:])

            def fit(steps, channels=channels, shape=shape, attention=attention, data=data):
                unet = seeded(partial(make_unet, channels, shape[-1], shape[0], attention), seed)
                model = TextAndUNet(unet, prior.text_encoder)
                with tempfile.TemporaryDirectory() as folder:
                    train_diffusion(views, data, model, prior.tokenizer, Path(folder), steps, batch, seed)
                return model

            count = steps_in(minutes, fit)
            start = time.perf_counter()
            model = fit(count)
            trained = (time.perf_counter() - start) / 60
            start = time.perf_counter()
            pictures = draw_all(sampler(model, prior.tokenizer, shape, decode, abar, steps, guidance_scale), asked.prompts, seed)
            drawn = (time.perf_counter() - start) / captions
            found = picture_scores(pictures, asked, judge, seed=seed)
            found |= {"steps trained": count, "minutes trained": trained, "seconds per sample": drawn,
                      "million weights": sum(p.numel() for p in model.unet.parameters()) / 1e6}
            scores.setdefault(name, []).append(found)
        with torch.no_grad():
            again = torch.cat([prior.decode(prior.encode_image(x)) for x in asked.truth.split(25)])
        scores.setdefault("true renders, encoded and decoded", []).append(picture_scores(again, asked, judge, seed=seed))
        scores.setdefault("true renders", []).append(picture_scores(asked.truth, asked, judge, seed=seed))
    rows = [{"arm": name, **{key: _mean(runs, key) for key in runs[0] if key not in ("pictures", "among", "kid_error")}}
            for name, runs in scores.items()]
    apart = np.array([a["kid"] - b["kid"] for a, b in zip(scores["pixel"], scores["latent"], strict=True)])
    mean, low, high = bootstrap_ci(apart, np.random.default_rng(0)) if seeds > 1 else (apart[0],) * 3
    rows.append({"arm": "KID, pixel less latent, paired by seed", "kid": f"{mean:.3g} ({low:.3g} to {high:.3g})"})
    bars = [{"id": "KID, pixel less latent: lower end of the interval", "value": round(float(low), 3), "bar": 0,
             "ok": bool(low > 0)}]
    note = (f"{minutes} minutes of training per arm and seed, {seeds} seeds, {toys} toys, batch {batch}, {captions} held-out "
            f"prompts, DDIM {steps} steps, guidance {guidance_scale}; {features_name()}; judge: {judge.name}.")
    return {"name": "pixel_or_latent", "rows": rows, "bars": bars, "note": note}


def _mean(runs: list[dict], key: str) -> str:
    values = np.array([float(run[key]) for run in runs])
    if len(values) == 1:
        return f"{values[0]:.3g}"
    mean, low, high = bootstrap_ci(values, np.random.default_rng(0))
    return f"{mean:.3g} ({low:.3g} to {high:.3g})"

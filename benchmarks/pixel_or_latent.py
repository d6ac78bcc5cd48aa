"""Pixels or latents? The same data, text encoder, schedule and seconds: gsgen bench pixel_or_latent [--json].

    pixel    U-Net on 3 x 64 x 64 pictures, three levels
    latent   U-Net on 4 x 16 x 16 latents of the shipped prior's autoencoder, two levels (the shipped prior's U-Net)

Both have about 2.7 million weights in U-Net and text encoder, and are trained for the same wall-clock time on the same
toys. Then each draws one sample for each of the held-out prompts. The autoencoder's own training is not counted; its
card says how long it took, and once trained it serves every later model. The latent arm's samples contain the
autoencoder's errors; so a third row scores true renders that went through the autoencoder and back.
"""

import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gsgen_lib.data.captioned_views import on_background, random_backgrounds, training_views
from gsgen_lib.diffusion import ddim_sample, guided
from gsgen_lib.image_features import features_name
from gsgen_lib.metrics import bootstrap_ci
from gsgen_lib.systems.prior import load_prior
from gsgen_lib.systems.prior_metrics import draw_all, held_out_prompts, picture_scores
from gsgen_lib.systems.prior_networks import TextAndUNet, make_text_encoder, make_unet
from gsgen_lib.systems.prior_training import ATTENTION, encode_views, prompt_tokenizer, train_diffusion
from gsgen_lib.systems.prompt_scorer import load_scorer, tokenize
from gsgen_lib.training import seeded

TOY_SEED = 1_500_000


def pixels_of(views, seed):
    """The pictures as "latents": (M, 1, 3, H, W) fp16 of variance one, and the scale that was divided by."""
    colors = random_backgrounds(int(views.owners.max()) + 1, torch.Generator().manual_seed(seed))[views.owners]
    x = torch.cat([(on_background(views.images[rows], colors[rows]) * 2 - 1).movedim(-1, 1)
                   for rows in torch.arange(len(views)).split(500)])
    scale = x[:1000].std().item()
    return (x / scale)[:, None].half(), scale


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
        tokenizer, asked = prompt_tokenizer(views), held_out_prompts(captions, seed)
        pixels, scale = pixels_of(views, seed)
        arms = {"pixel": ((32, 64, 96), 1, pixels, lambda x, scale=scale: (x.movedim(1, -1) * scale / 2 + 0.5).clamp(0, 1)),
                "latent": ((64, 96), ATTENTION, encode_views(prior.vae, views, 1, seed), prior.decode)}
        for name, (channels, attention, data, decode) in arms.items():
            shape = tuple(data.shape[2:])
            model = seeded(partial(_model, channels, shape, attention, len(tokenizer)), seed)
            with tempfile.TemporaryDirectory() as folder:
                done = train_diffusion(views, data, model, tokenizer, Path(folder), 20_000, batch, seed, minutes)
            start = time.perf_counter()
            pictures = draw_all(sampler(model, tokenizer, shape, decode, abar, steps, guidance_scale), asked.prompts, seed)
            found = picture_scores(pictures, asked, judge, seed=seed)
            found |= {"steps trained": done.step, "seconds per sample": (time.perf_counter() - start) / captions,
                      "million weights": sum(p.numel() for p in model.parameters()) / 1e6}
            scores.setdefault(name, []).append(found)
        with torch.no_grad():
            again = torch.cat([prior.decode(prior.encode_image(x)) for x in asked.truth.split(25)])
        scores.setdefault("true renders, encoded and decoded", []).append(picture_scores(again, asked, judge, seed=seed))
        scores.setdefault("true renders", []).append(picture_scores(asked.truth, asked, judge, seed=seed))
    rows = [{"arm": name, **{key: _mean(runs, key) for key in runs[0] if key not in ("pictures", "among", "kid_error")}}
            for name, runs in scores.items()]
    kid = {name: np.mean([r["kid"] for r in scores[name]]) for name in ("pixel", "latent")}
    bars = [{"id": "KID, pixel / latent", "value": round(kid["pixel"] / max(kid["latent"], 1e-9), 2), "bar": 1,
             "ok": bool(kid["pixel"] > kid["latent"])}]
    note = (f"{minutes} minutes of training per arm and seed, {seeds} seeds, {toys} toys, batch {batch}, {captions} held-out "
            f"prompts, DDIM {steps} steps, guidance {guidance_scale}; {features_name()}; judge: {judge.name}. Rows after the "
            "arms are what a perfect model would score.")
    return {"name": "pixel_or_latent", "rows": rows, "bars": bars, "note": note}


def _model(channels, shape, attention, vocabulary):
    return TextAndUNet(make_unet(channels, shape[-1], shape[0], attention), make_text_encoder(vocabulary))


def _mean(runs: list[dict], key: str) -> str:
    values = np.array([float(run[key]) for run in runs])
    if len(values) == 1:
        return f"{values[0]:.3g}"
    mean, low, high = bootstrap_ci(values, np.random.default_rng(0))
    return f"{mean:.3g} ({low:.3g} to {high:.3g})"

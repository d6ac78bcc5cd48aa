"""Samplers, prior and prompt scorer: gsgen bench diffusion [--json].

1. Distance against steps on points of the plane, with an exact denoiser: what remains is the sampler's own error, and the
   chance in the points. Sliced Wasserstein distance to fresh data, and, as the floor, of data to fresh data. DDIM is run
   on three schedules, since a flow is DDIM at the noise levels abar = (1 - t)^2 / ((1 - t)^2 + t^2): how much of its lead
   is the straight road, how much the choice of levels?
2. The shipped prior on captions that training never had: one sample each, no selection. Is the sample's own caption
   ranked first among 50 by the prompt scorer (and among 7 that differ in one word), is its view word the best of four, and
   how far are the samples from true renders of other held-out toys (KID), with true renders of the same captions as the
   floor? Between the two: true renders that went through the autoencoder and back, what a perfect painter of latents would
   score. The control: the same samples under the captions of others. And once more without `view_guidance`, and for other
   random numbers: the strength was chosen on seeds 1 to 3, so seeds 4 and 5 count beside 0.
3. The shipped prompt scorer on true renders of held-out toys.

Intervals are 95 %: exact binomial for shares, bootstrap over seeds for distances.
"""

import math
import time

import numpy as np
import torch
from scipy.stats import binomtest

from gsgen_lib.data.captioned_views import toy_views
from gsgen_lib.diffusion import (
    GaussianMixture,
    alphas_cumprod_of,
    cosine_betas,
    ddim_sample,
    ddpm_sample,
    flow_sample,
    linear_betas,
)
from gsgen_lib.distributions import sliced_wasserstein
from gsgen_lib.image_features import features_name
from gsgen_lib.metrics import bootstrap_ci
from gsgen_lib.pretrained import folder_of
from gsgen_lib.systems.prior import load_prior
from gsgen_lib.systems.prior_metrics import draw_all, held_out_prompts, picture_scores
from gsgen_lib.systems.prompt_scorer import load_scorer
from gsgen_lib.systems.scorer_training import scorer_metrics

STEPS = (1, 2, 3, 5, 8, 12, 20, 50, 100, 300, 1000)
MISSED = {  # beginnings of bars -> why, and what was tried
    "right view word":
        "View words: seeds 4 and 5 give .86 and .86, the mean of three is .847. The judge itself finds .90 of the words "
        "on true renders, and .83 once they went through our autoencoder. Tried: 50,000 steps; larger batches of hard "
        "words; a contrastive term (no effect); a decoder with a discriminator; a reward from a view classifier (+.04, "
        "ships); a stronger one (+.03, but own captions -.06); the view word made louder in sampling (+.02 to +.05, "
        "ships).",
}


def ring(modes: int = 8, radius: float = 1.5, std: float = 0.08) -> GaussianMixture:
    """Eight narrow Gaussians on a circle, standard deviation about one."""
    angles = 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes
    means = radius * torch.stack([angles.cos(), angles.sin()], 1)
    return GaussianMixture(means, torch.full((modes,), std, dtype=torch.float64), torch.ones(modes, dtype=torch.float64))


def steps_rows(seeds: int, points: int) -> tuple[list[dict], dict]:
    """Table of distances, and for each sampler the calls of the denoiser at which it first comes within twice the floor."""
    data = ring()
    linear, cosine = (alphas_cumprod_of(betas()).double() for betas in (linear_betas, cosine_betas))
    t = (torch.arange(1000, dtype=torch.float64) + 1) / 1001  # noise levels of a flow in evenly spaced steps
    even = (1 - t) ** 2 / ((1 - t) ** 2 + t**2)

    def on(sample, abar):
        return lambda z, n, g: sample(data.denoiser(abar), z, abar, n, **({"generator": g} if sample is ddpm_sample else {}))

    samplers = {
        "DDPM, linear": on(ddpm_sample, linear),
        "DDIM, linear": on(ddim_sample, linear),
        "DDIM, cosine": on(ddim_sample, cosine),
        "DDIM, the flow's levels": on(ddim_sample, even),
        "flow, Euler": lambda z, n, g: flow_sample(data.velocity, z, n),
        "flow, Heun (at most)": lambda z, n, g: flow_sample(data.velocity, z, max(1, (n + 1) // 2), method="heun"),
    }
    distance = {name: np.zeros((seeds, len(STEPS))) for name in samplers}
    floor = np.zeros(seeds)
    for seed in range(seeds):
        g = torch.Generator().manual_seed(seed)
        truth = data.sample(points, g)

        def far(x, truth=truth, seed=seed):
            return float(sliced_wasserstein(x, truth, 64, generator=torch.Generator().manual_seed(seed)))

        floor[seed] = np.mean([far(data.sample(points, g)) for _ in range(10)])
        for name, draw in samplers.items():
            for k, n in enumerate(STEPS):
                noise = torch.randn(points, 2, generator=g, dtype=torch.float64)
                distance[name][seed, k] = far(draw(noise, n, g))
    rows = []
    for k, n in enumerate(STEPS):
        row = {"calls of the denoiser": n}
        for name in samplers:
            mean, low, high = bootstrap_ci(distance[name][:, k], np.random.default_rng(0))
            row[name] = f"{mean:.3f} ({low:.3f} to {high:.3f})"
        rows.append(row)
    rows.append({"calls of the denoiser": "floor: data", **{name: f"{floor.mean():.3f}" for name in samplers}})
    first = {name: calls_to(d.mean(0), 2 * floor.mean()) for name, d in distance.items()}
    rows.append({"calls of the denoiser": "to twice the floor", **{name: f"{n:.1f}" for name, n in first.items()}})
    return rows, first


def calls_to(distance: np.ndarray, goal: float) -> float:
    """The number of calls at which a falling curve over STEPS first meets the goal, interpolated in both logarithms."""
    below = np.flatnonzero(distance <= goal)
    if not len(below):
        return math.inf
    k = below[0]
    if k == 0:
        return float(STEPS[0])
    share = math.log(distance[k - 1] / goal) / math.log(distance[k - 1] / distance[k])
    return math.exp(math.log(STEPS[k - 1]) + share * math.log(STEPS[k] / STEPS[k - 1]))


def share_of(value: float, count: int) -> str:
    """A share of `count` pictures with its exact binomial interval."""
    low, high = binomtest(round(value * count), count).proportion_ci(method="exact")
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def main(captions: int = 100, seed: int = 0, seeds: int = 3, points: int = 4000, steps: int = 30,
         guidance_scale: float = 3.0, view_guidance: float = 1.0, prior: str = "prior", scorer: str = "prompt_scorer") -> dict:
    """Run all three parts. prior, scorer: shipped names or folders; the last options are the sampler's."""
    rows, first = steps_rows(seeds, points)
    judge, painter = load_scorer(scorer), load_prior(prior)
    asked = held_out_prompts(captions, seed)

    def drawn(prompts, first, louder=view_guidance):
        settings = dict(steps=steps, guidance_scale=guidance_scale, view_guidance=louder)
        return draw_all(lambda some, g: painter.sample(some, generator=g, **settings), prompts, first)

    start = time.perf_counter()
    pictures = drawn(asked.prompts, seed)
    seconds = (time.perf_counter() - start) / captions
    with torch.no_grad():  # as a perfect painter of latents would draw them
        again = torch.cat([painter.decode(painter.encode_image(x)) for x in asked.truth.split(25)])
    scores = {"samples": picture_scores(pictures, asked, judge, seed=seed),
              "samples, view guidance 0": picture_scores(drawn(asked.prompts, seed, 0.0), asked, judge, seed=seed),
              "samples, captions shuffled": picture_scores(pictures.roll(4, 0), asked, judge, seed=seed),
              "true renders, encoded and decoded": picture_scores(again, asked, judge, seed=seed),
              "true renders": picture_scores(asked.truth, asked, judge, seed=seed)}
    for other in (seed + 4, seed + 5):
        again = held_out_prompts(captions, other)
        scores[f"samples, seed {other}"] = picture_scores(drawn(again.prompts, 1000 * other), again, judge, seed=seed)
    table = [{"pictures": name, f"own caption first of {x['among']}": share_of(x["own_first"], captions),
              "first of 7, one word apart": share_of(x["near_first"], captions),
              "right view word": share_of(x["view_word"], captions),
              "KID to true renders": "as above" if "shuffled" in name else f"{x['kid']:.3f} ± {x['kid_error']:.3f}"}
             for name, x in scores.items()]
    tests = scorer_metrics(judge, toy_views(200, np.random.default_rng(5_000_000 + seed), "test"), seed)
    size = sum(f.stat().st_size for f in folder_of(prior).rglob("*.safetensors")) / 1e6 if prior == "prior" else math.nan
    calls = first["DDPM, linear"], first["flow, Euler"]
    top, view = scores["samples"]["own_first"], scores["samples"]["view_word"]
    bars = [{"id": "own caption first of 50, share of samples", "value": top, "bar": 0.85, "ok": top >= 0.85},
            {"id": "right view word, share of samples", "value": view, "bar": 0.85, "ok": view >= 0.85},
            {"id": "scorer: top 1 of 50 on true renders", "value": tests["top1"], "bar": 0.95, "ok": tests["top1"] >= 0.95},
            {"id": "prior, MB of weights", "value": round(size, 2), "bar": 8, "ok": size <= 8},
            {"id": "2D: DDPM calls / flow calls to twice the floor", "value": round(calls[0] / calls[1], 1), "bar": 1,
             "ok": calls[0] > calls[1]}]
    note = (f"Judge: {judge.name}, views right on {tests['view_accuracy']:.1%} of {tests['pictures']} true renders; what it "
            f"mixes up: {tests['confusions']}. Painter: {painter.name}, DDIM {steps} steps, guidance {guidance_scale}, view "
            f"guidance {view_guidance}, "
            f"{seconds:.2f} s per sample; {captions} held-out captions, {features_name()}. 2D: ring of eight Gaussians, "
            f"{points} points, {seeds} seeds.")
    return {"name": "diffusion", "rows": rows + table, "bars": bars, "note": note}

"""Where dreams begin: gsgen bench starts [--json].

Score distillation from a ball, as DreamGaussian does it; from a sample of the latent diffusion; and from four painted views that
the feed-forward network lifted. Each for STEPS steps, of the same words, with the same random numbers. The prompt scorer looks
every EVERY steps: after how many steps, and seconds, is the score reached that the ball has in the end?

A start that is good is spoiled by steps at high noise, which ask for anything that fits the words; so from a start the times go
from HIGH of 1000 down to 20 instead of from 980. Whether the shorter range alone helps, two controls tell: the ball with it, and
the sample of the latent diffusion without.
"""

import time
from dataclasses import replace

import numpy as np
import torch

from gsgen_lib.bench import bar, interval
from gsgen_lib.raster import rasterize
from gsgen_lib.systems.dream_metrics import around, caption_score, prompts_24
from gsgen_lib.systems.dream_starts import from_latents, from_views, grown
from gsgen_lib.systems.dreamgaussian import DreamConfig, dream
from gsgen_lib.systems.feed_forward import load_feed_forward
from gsgen_lib.systems.prior import load_prior
from gsgen_lib.systems.prompt_scorer import load_scorer
from gsgen_lib.systems.splat_diffusion import load_splat_diffusion

STEPS, EVERY, HIGH = 160, 20, 300
# name -> (what it begins with, highest of 1000 times)
BEGINNINGS = {"ball": ("ball", 980), "ball, short range": ("ball", HIGH), "latent diffusion": ("latents", HIGH),
              "latent diffusion, full range": ("latents", 980), "four views, lifted": ("views", HIGH)}
NEVER = 2 * STEPS  # steps of a dream that does not arrive, so that medians can be taken


def gen(seed=0):
    """A generator of that seed."""
    return torch.Generator().manual_seed(seed)


def some(count: int) -> list[str]:
    """The first `count` of the 24 prompts: one that training may have seen, one that it has not, and so on."""
    if not 1 <= count <= 24:
        raise ValueError(f"captions: got {count}, wanted 1 to 24")
    return [caption for pair in zip(*prompts_24(), strict=True) for caption in pair][:count]


def begun(kind: str, caption: str, prior, latent, network, seed: int):
    """The scene to begin with, None for the ball."""
    g = gen(seed)
    if kind == "latents":
        return grown(from_latents(latent, caption, generator=g), generator=g)
    if kind == "views":
        return grown(from_views(prior, network, caption, generator=g)[0], generator=g)
    return None


def arrival(curve: list[tuple[int, float]], goal: float) -> float:
    """The first step at which a curve of (step, score) is at the goal, NEVER if it is not.

    >>> arrival([(0, 0.2), (20, 0.6), (40, 0.5)], 0.5), arrival([(0, 0.2)], 0.5)
    (20, 320)
    """
    return next((step for step, score in curve if score >= goal), NEVER)


def starts(captions: list[str], seeds: int, bars: list) -> list[dict]:
    """Rows of each beginning, over captions and seeds; bars for claim 9."""
    prior, judge, latent, network = load_prior(), load_scorer(), load_splat_diffusion(), load_feed_forward()
    dream(prior, captions[0], replace(DreamConfig(), steps=2), generator=gen(), progress=False)  # compiles; not timed
    found = {name: [] for name in BEGINNINGS}
    for caption in captions:
        for seed in range(seeds):
            goal = None
            for name, (kind, high) in BEGINNINGS.items():
                start = time.perf_counter()
                scene = begun(kind, caption, prior, latent, network, seed)
                first = time.perf_counter() - start
                start = time.perf_counter()
                result = dream(prior, caption, replace(DreamConfig(), steps=STEPS, high=high), init=scene, generator=gen(seed),
                               snapshot_every=EVERY, progress=False)
                second = (time.perf_counter() - start) / STEPS
                scenes = ([(0, scene)] if scene is not None else []) + result.snapshots
                curve = [(step, caption_score(judge, rasterize(s, around(8), (1.0, 1.0, 1.0)).rgb.clamp(0, 1), caption))
                         for step, s in scenes]
                goal = curve[-1][1] if goal is None else goal  # what the first, the ball, has in the end
                steps = arrival(curve, goal)
                found[name].append({"steps": steps, "seconds": first + steps * second, "first": first, "begin": curve[0][1],
                                    "end": curve[-1][1]})
    rows = []
    for name, runs in found.items():
        steps, seconds = (np.median([r[key] for r in runs]) for key in ("steps", "seconds"))
        never = sum(r["steps"] == NEVER for r in runs)
        rows.append({"what": f"dreams from {name}", "steps to the ball's end": f"{steps:.0f}", "seconds to it": f"{seconds:.1f}",
                     "reached": f"{len(runs) - never} of {len(runs)}",
                     "seconds before the first step": f"{np.mean([r['first'] for r in runs]):.1f}",
                     "score, start": interval([r["begin"] for r in runs], 3) if BEGINNINGS[name][0] != "ball" else "",
                     "score, end": interval([r["end"] for r in runs], 3)})
    ball = {key: np.median([r[key] for r in found["ball"]]) for key in ("steps", "seconds")}
    for name in ("latent diffusion", "four views, lifted"):
        for key, own in ball.items():
            ratio = np.median([r[key] for r in found[name]]) / own
            bars.append(bar(f"9: {key} to the score of the ball, {name} / ball", ratio, 0.5, most=True))
    return rows


def main(captions: int = 6, seeds: int = 3) -> dict:
    """captions: of 24 prompts, every other one of a combination that no training saw; seeds: of each."""
    if seeds < 1:
        raise ValueError(f"seeds: got {seeds}, wanted at least 1")
    bars = []
    rows = starts(some(captions), seeds, bars)
    return {"name": "starts", "rows": rows, "bars": bars,
            "note": f"Scores are of the prompt scorer, over eight views. A dream that never arrives counts as {NEVER} steps."}

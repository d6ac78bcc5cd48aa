"""One picture, many worlds: gsgen bench var [--part 0] [--json].

1. One front view of objects that no training saw, `samples` scenes each: the Variational AutoReconstructor (code at its mean,
   with skips at 1, 0.5 and 0; codes drawn), diffusion over its codes, with a second set from behind, the latent diffusion of
   notebook 07, and the feed-forward network, a regression. PSNR over eight other views, in three bins by the angle from the
   picture; LPIPS; KID of the views of one sample each to true views of validation objects; best of k.
2. Arms of the AutoReconstructor (preset "experiment", `seeds` each): as shipped, no skips, skips never zeroed, one Gaussian for a
   pixel, no variational sampling, no SSIM, no LPIPS, and three weights of the KL. Reliance: dB lost where each scene gets the
   code of another. Codes that are drawn, too: without variational sampling nothing was learned of them.
3. Diversity of the samples of one picture: distance of opaque centres, LPIPS on the seen and on the unseen side; beside it true
   toys that have this very picture (their hidden attributes drawn again), through the autoencoder of notebook 06.
4. Guidance from 0 to 4: diversity on the unseen side against PSNR of the seen.
5. Where dreams begin: score distillation for STEPS steps from a ball, from a sample of the latent diffusion, and from four
   painted views that the feed-forward network lifted; steps and seconds until the prompt scorer gives what the ball has in the
   end.
6. Seconds of a sample and of a render.

part: 1 to 6, or 0 for all. Means with 95 % intervals: bootstrap over objects, for arms over seeds and objects. PSNR is the mean
over pictures of that of each, on white.
"""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from gsgen_lib.bench import bar, interval
from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.data.multiview import load_views, toy_views
from gsgen_lib.distributions import kid
from gsgen_lib.image_features import features_name, image_features
from gsgen_lib.metrics import bootstrap_ci, psnr
from gsgen_lib.perceptual import lpips, lpips_name
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.autoreconstructor import AutoReconstructor, load_autoreconstructor
from gsgen_lib.systems.autoreconstructor_diffusion import OneImage, load_one_image
from gsgen_lib.systems.autoreconstructor_training import train_autoreconstructor
from gsgen_lib.systems.dream_metrics import around, caption_score, prompts_24
from gsgen_lib.systems.dream_starts import from_latents, from_views, grown
from gsgen_lib.systems.dreamgaussian import DreamConfig, dream
from gsgen_lib.systems.feed_forward import load_feed_forward
from gsgen_lib.systems.feed_forward_metrics import cases
from gsgen_lib.systems.one_image_metrics import best_of, diversity
from gsgen_lib.systems.prior import load_prior
from gsgen_lib.systems.prompt_scorer import load_scorer
from gsgen_lib.systems.splat_diffusion import SplatDiffusion, load_splat_diffusion
from gsgen_lib.systems.splat_diffusion_metrics import hidden_toys

TOY_SEED = 8_000_000  # the toys of bench feedforward
ARMS = {"as shipped": {}, "no skips": {"skips": False}, "skips never zeroed": {"kept": 1.0}, "one Gaussian": {"gaussians": 1},
        "no variational sampling": {"variational": False}, "no SSIM": {"weight_ssim": 0.0}, "no LPIPS": {"weight_lpips": 0.0},
        "KL x 0.01": {"weight_kl": 5e-6}, "KL x 20": {"weight_kl": 1e-2}}
BINS = {"near": (0, 60), "side": (60, 120), "far": (120, 181)}  # degrees from the picture's camera
STEPS, EVERY = 160, 20
SECOND = "code diffusion, second set from behind"


def gen(seed=0):
    """A generator of that seed."""
    return torch.Generator().manual_seed(seed)


def pictures(scene: Gaussians, cameras: Cameras) -> torch.Tensor:
    """(V, S, S, 3) on white of one scene."""
    return rasterize(scene, cameras, (1.0, 1.0, 1.0)).rgb.clamp(0, 1)


def sides(camera: Cameras, there: Cameras) -> torch.Tensor:
    """Degrees between the picture's camera and others, seen from the origin."""
    a, b = (torch.nn.functional.normalize(c.centers, dim=1) for c in (camera, there))
    return torch.rad2deg((a * b).sum(1).clamp(-1, 1).arccos())


# ---- 1 · quality ---------------------------------------------------------------------------------------------------


def methods(one: OneImage, latent: SplatDiffusion, regression) -> dict:
    """name -> (rgba, camera, count, generator) -> list of scenes; those with one answer give one, whatever count is."""
    var = one.var

    def drawn(rgba, camera, count, g):
        return [var.reconstruct(rgba, camera, noise=torch.randn(var.config.latent, *[var.config.size // 8] * 2, generator=g))
                for _ in range(count)]

    def split(scenes):
        return [scenes[i] for i in range(scenes.batch_shape[0])]

    return {
        "feed-forward, a regression": lambda rgba, camera, n, g: [regression.reconstruct(rgba, camera)],
        **{f"VAR, skips {keep:g}": lambda rgba, camera, n, g, keep=keep: [var.reconstruct(rgba, camera, keep)]
           for keep in (1.0, 0.5, 0.0)},
        "VAR, codes drawn": drawn,
        "code diffusion": lambda rgba, camera, n, g: split(one.sample(rgba, camera, n, generator=g)),
        SECOND: lambda rgba, camera, n, g: split(one.sample(rgba, camera, n, behind=True, generator=g)),
        "latent diffusion of notebook 07": lambda rgba, camera, n, g: split(
            latent.sample([""] * n, rgba[None].expand(n, -1, -1, -1, -1), (0,), guidance_scale=1.0, generator=g)),
    }


def judged(make, views, samples: int) -> dict:
    """Scores of one method on one front view of each object: "psnr" (objects, n), "lpips" (objects,) and BINS of the first
    sample, and two of its views of each object."""
    found = {"psnr": [], "lpips": [], "views": [], **{name: [] for name in BINS}}
    for i, (rgba, camera, truth, there) in enumerate(cases(views, 1)):
        white = on_background(truth, torch.ones(3))
        rendered = [pictures(scene, there) for scene in make(rgba, camera, samples, gen(i))]
        each = torch.stack([psnr(x, white, "none") for x in rendered])  # (n, 8)
        found["psnr"].append(each.mean(1))
        found["lpips"].append(lpips(rendered[0], white).item())
        found["views"].append(rendered[0][:2])
        away = sides(camera, there)
        for name, (low, high) in BINS.items():
            inside = (away >= low) & (away < high)
            found[name].append(each[0, inside].mean().item() if inside.any() else float("nan"))
    return found | {"psnr": torch.stack(found["psnr"]), "views": torch.cat(found["views"])}


def quality(one, latent, sets: dict, samples: int, bars: list) -> list[dict]:
    """Part 1."""
    rows, every = [], methods(one, latent, load_feed_forward())
    true = on_background(torch.cat([c[2][:2] for c in cases(load_views("val"), 1)]), torch.ones(3))
    reference = image_features(true)
    for what, views in sets.items():
        far, mean = {}, {}
        for name, make in every.items():
            found = judged(make, views, samples)
            n = found["psnr"].shape[1]
            far[name], mean[name] = np.array(found["far"]), found["psnr"].mean(1).numpy()
            row = {"objects": what, "what": name, "PSNR": interval(found["psnr"][:, 0].tolist()),
                   **{f"PSNR, {b}": f"{np.nanmean(found[b]):.2f}" for b in BINS}, "LPIPS": interval(found["lpips"], 3)}
            if n > 1:
                row |= {f"best of {k}": f"{best_of(found['psnr'], k):.2f}" for k in (1, 5, 20) if k <= n}
            if what == "real":
                row["KID"] = f"{kid(image_features(found['views']), reference, features=features_name()).value:.3f}"
            rows.append(row)
        gain = far[SECOND] - far["code diffusion"]
        ok = ~np.isnan(gain)
        rows.append({"objects": what, "what": "gain of the second set, far side", "PSNR": interval(gain[ok].tolist())})
        lost = mean["VAR, skips 1"] - mean["VAR, skips 0"]
        bars.append(bar(f"19: dB of skips, {what}, lower end", bootstrap_ci(lost, np.random.default_rng(0))[1], 0))
    return rows


# ---- 2 · arms ------------------------------------------------------------------------------------------------------


def reliance(var: AutoReconstructor, views) -> list[float]:
    """dB lost in each object's other views where it gets the code of the next object, skips stay."""
    every = list(cases(views, 1))
    with torch.no_grad():
        codes = [var.encode(rgba) for rgba, *_ in every]
        lost = []
        for i, (_, camera, truth, there) in enumerate(every):
            white, at = on_background(truth, torch.ones(3)), Cameras.stack([camera])
            own, other = (var.splats(var.decode(codes[j][0], at, codes[i][3]))[0] for j in (i, (i + 1) % len(every)))
            lost.append((psnr(pictures(own, there), white) - psnr(pictures(other, there), white)).item())
    return lost


def arms(folder: Path, seeds: int, views, bars: list) -> list[dict]:
    """Part 2."""
    rows, found = [], {}
    for arm, settings in ARMS.items():
        runs = found.setdefault(arm, {"psnr": [], "lpips": [], "drawn": [], "none": [], "reliance": []})
        for seed in range(seeds):
            out = folder / f"var_{arm.replace(' ', '_').replace('.', '')}_{seed}"
            if not (out / "model" / "card.json").is_file():
                train_autoreconstructor(out, preset="experiment", seed=seed, **settings)
            var = load_autoreconstructor(out / "model")
            shape, side = var.config.latent, var.config.size // 8
            scores = {
                "psnr": judged(lambda rgba, camera, n, g, var=var: [var.reconstruct(rgba, camera)], views, 1),
                "none": judged(lambda rgba, camera, n, g, var=var: [var.reconstruct(rgba, camera, 0.0)], views, 1),
                "drawn": judged(lambda rgba, camera, n, g, var=var, shape=shape, side=side: [
                    var.reconstruct(rgba, camera, noise=torch.randn(shape, side, side, generator=g))], views, 1)}
            for key, score in scores.items():
                runs[key].append(score["psnr"][:, 0].numpy())
            runs["lpips"].append(scores["psnr"]["lpips"])
            runs["reliance"].append(reliance(var, views))
        rows.append({"what": f"small, {arm}", "PSNR": interval(runs["psnr"]), "LPIPS": interval(runs["lpips"], 3),
                     "PSNR, code drawn": interval(runs["drawn"]), "PSNR, skips off": interval(runs["none"]),
                     "dB lost with another's code": interval(runs["reliance"])})

    def ahead(claim, key, arm, name):
        gain = np.array(found["as shipped"][key]) - np.array(found[arm][key])
        low = bootstrap_ci(gain, np.random.default_rng(0))[1]
        bars.append(bar(f"{claim}: {name} lost where {arm}, lower end", low, 0))

    ahead(19, "psnr", "no skips", "dB")
    ahead(23, "drawn", "no variational sampling", "dB of drawn codes")
    ahead(23, "reliance", "skips never zeroed", "reliance on the code")
    for arm in ("no SSIM", "no LPIPS"):
        gain = np.array(found[arm]["lpips"]) - np.array(found["as shipped"]["lpips"])
        bars.append(bar(f"25: LPIPS higher where {arm}, lower end", bootstrap_ci(gain, np.random.default_rng(0))[1], 0))
    return rows


# ---- 3, 4 · diversity ----------------------------------------------------------------------------------------------


def spread(one, latent, count: int, samples: int, bars: list) -> list[dict]:
    """Part 3: toys whose front hides an attribute."""
    front, back = (Cameras.orbit(1, azimuth=[a], elevation=[15.0]) for a in (0.0, 180.0))
    every = methods(one, latent, None)
    names = ("VAR, codes drawn", "code diffusion", SECOND, "latent diffusion of notebook 07")
    found = {name: [] for name in ("true toys, encoded and decoded", *names)}
    for i, case in enumerate(hidden_toys(count)):
        g = gen(i)
        again = [case.toy.with_attributes(**dict(zip(case.toy.odds, case.combinations[k], strict=True)))
                 for k in torch.multinomial(case.odds, samples, True, generator=g).tolist()]
        rgba = torch.stack([_render(toy, latent) for toy in again])
        many = Cameras.stack([latent.cameras] * samples)
        with torch.no_grad():
            scenes = latent.vae.splats(latent.vae.encode(rgba, many)[0], many)
        found["true toys, encoded and decoded"].append(diversity(scenes, front, back, g))
        for name in names:
            scenes = every[name](case.rgba[:1], latent.cameras[[0]], samples, g)
            found[name].append(diversity(Gaussians.stack(scenes), front, back, g))
    rows = [{"what": f"diversity: {name}",
             **{key: interval([f[key] for f in rows_of], 4) for key in ("chamfer", "seen", "unseen")}}
            for name, rows_of in found.items()]
    mean = {name: np.mean([f["unseen"] for f in rows_of]) for name, rows_of in found.items()}
    bars.append(bar("21: LPIPS between samples, unseen side, latent diffusion / true toys",
                    mean["latent diffusion of notebook 07"] / max(mean["true toys, encoded and decoded"], 1e-9), 0.5))
    bars.append(bar("21: LPIPS between samples, unseen side, code diffusion / latent diffusion (structural warning)",
                    mean["code diffusion"] / mean["latent diffusion of notebook 07"], 0.5, most=True))
    return rows


def _render(toy, latent) -> torch.Tensor:
    from gsgen_lib.data.raycast import render_mesh

    return torch.from_numpy(render_mesh(toy.mesh, latent.cameras).rgba).float()


def guidance(one, latent, count: int, samples: int) -> list[dict]:
    """Part 4."""
    front, back = (Cameras.orbit(1, azimuth=[a], elevation=[15.0]) for a in (0.0, 180.0))
    rows, toys = [], hidden_toys(count, seed=2)
    for scale in (0.0, 0.5, 1.0, 2.0, 4.0):
        for name in ("code diffusion", SECOND, "latent diffusion of notebook 07"):
            unseen, near = [], []
            for i, case in enumerate(toys):
                rgba, camera = case.rgba[:1], latent.cameras[[0]]
                if name.startswith("latent"):
                    scenes = latent.sample([""] * samples, rgba[None].expand(samples, -1, -1, -1, -1), (0,), guidance_scale=scale,
                                           generator=gen(i))
                else:
                    scenes = one.sample(rgba, camera, samples, behind=name == SECOND, guidance_scale=scale, generator=gen(i))
                unseen.append(diversity(scenes, front, back, gen(i))["unseen"])
                near.append(psnr(pictures(scenes[0], camera), on_background(rgba, torch.ones(3))).item())
            rows.append({"what": f"guidance {scale:g}: {name}", "unseen": interval(unseen, 4),
                         "PSNR, the picture": interval(near)})
    return rows


# ---- 5 · where dreams begin ----------------------------------------------------------------------------------------


def starts(captions: list[str], seeds: int, bars: list) -> list[dict]:
    """Part 5."""
    prior, judge, latent, network = load_prior(), load_scorer(), load_splat_diffusion(), load_feed_forward()
    found = {name: [] for name in ("ball", "latent diffusion", "four views, lifted")}
    for caption in captions:
        for seed in range(seeds):
            goal = None
            for name, runs in found.items():
                start = time.perf_counter()
                scene, g = None, gen(seed)
                if name == "latent diffusion":
                    scene = grown(from_latents(latent, caption, generator=g), generator=g)
                elif name == "four views, lifted":
                    scene = grown(from_views(prior, network, caption, generator=g)[0], generator=g)
                first = time.perf_counter() - start
                config = replace(DreamConfig(), steps=STEPS, high=980 if scene is None else 300)
                start = time.perf_counter()
                result = dream(prior, caption, config, init=scene, generator=gen(seed), snapshot_every=EVERY, progress=False)
                second = (time.perf_counter() - start) / STEPS
                curve = [(0, scene)] if scene is not None else []
                curve = [(step, caption_score(judge, pictures(s, around(8)), caption)) for step, s in curve + result.snapshots]
                goal = curve[-1][1] if goal is None else goal  # what the ball has in the end
                steps = next((step for step, score in curve if score >= goal), float("inf"))
                runs.append({"steps": steps, "seconds": first + steps * second, "first": first, "begin": curve[0][1],
                             "end": curve[-1][1]})
    rows = []
    for name, runs in found.items():
        reached = [r for r in runs if np.isfinite(r["steps"])]
        steps, seconds = (np.median([r[key] for r in runs]) for key in ("steps", "seconds"))
        rows.append({"what": f"dreams from {name}", "steps to the ball's end": f"{steps:.0f}", "seconds to it": f"{seconds:.1f}",
                     "reached": f"{len(reached)} of {len(runs)}",
                     "seconds before the first step": f"{np.mean([r['first'] for r in runs]):.1f}",
                     "score, start": interval([r["begin"] for r in runs], 3) if name != "ball" else "",
                     "score, end": interval([r["end"] for r in runs], 3)})
    for name in list(found)[1:]:
        ratio = np.median([r["steps"] for r in found[name]]) / STEPS
        bars.append(bar(f"9: steps to the score of the ball, {name} / ball", ratio, 0.5, most=True))
    return rows


# ---- 6 · time ------------------------------------------------------------------------------------------------------


def speed(one, latent) -> list[dict]:
    """Part 6: medians of five, beside the paper's on a GPU."""
    camera = latent.cameras[[0]]
    rgba = torch.rand(1, *[one.var.config.size] * 2, 4, generator=gen())

    def seconds(call):
        call()
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        return f"{np.median(taken):.3f}"

    scene = one.sample(rgba, camera, generator=gen())[0]
    return [{"what": "VAR, mean code", "seconds": seconds(lambda: one.var.reconstruct(rgba, camera))},
            {"what": "code diffusion, 50 steps", "seconds": seconds(lambda: one.sample(rgba, camera, generator=gen())),
             "the paper's, one GPU": "2.7"},
            {"what": f"render, {scene.num} Gaussians, 64 x 64", "seconds": seconds(lambda: pictures(scene, camera)),
             "the paper's, one GPU": "0.029"}]


def main(part: int = 0, objects: int = 0, toys: int = 48, hidden: int = 28, samples: int = 20, seeds: int = 3,
         folder: str = "runs/bench_var", network: str = "code_diffusion") -> dict:
    """part: 1 to 6, or 0 for all; objects: of the real test split, 0 for all; network: a shipped name or a folder."""
    if part not in range(7):
        raise ValueError(f"part: got {part}, wanted 0 to 6")
    rows, bars = [], []
    real = load_views("test", limit=objects or None)
    one, latent = load_one_image(network), load_splat_diffusion()
    sets = {"real": real, "toys": toy_views(toys, TOY_SEED, 64, split="test")}
    parts = {1: lambda: quality(one, latent, sets, samples, bars), 2: lambda: arms(Path(folder), seeds, real, bars),
             3: lambda: spread(one, latent, hidden, min(10, samples), bars),
             4: lambda: guidance(one, latent, min(12, hidden), min(6, samples)),
             5: lambda: starts(prompts_24()[0][:6], seeds, bars), 6: lambda: speed(one, latent)}
    for number, run in parts.items():
        if part in (0, number):
            rows += run()
    note = (f"PSNR on white, mean over pictures of that of each. {features_name()}; {lpips_name()}. Seconds with torch on "
            f"{torch.get_num_threads()} threads. Samples are not selected, except where 'best of' says so.")
    return {"name": "var", "rows": rows, "bars": bars, "note": note}

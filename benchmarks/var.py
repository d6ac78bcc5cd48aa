"""One picture, many worlds: gsgen bench var [--part 0] [--json].

1. One front view of objects that no training saw, `samples` scenes each: the Variational AutoReconstructor (code at its mean,
   with skips at 1, 0.5 and 0; codes drawn), diffusion over its codes, without skips, with a second set from behind (from as many
   Gaussians as without), the latent diffusion of notebook 07, and the feed-forward network given one view (it was trained with
   four; the fair regression is in part 2). PSNR over eight other views, PSNR and LPIPS in three bins by the angle from the
   picture; KID of the views of one sample each to true views of validation objects, beside other true views; best of k.
2. Arms of the AutoReconstructor (preset "experiment", STEPS, `seeds` each): as shipped, no skips, skips never zeroed, 1 Gaussian
   for a pixel, no variational sampling (a regression with the same backbone), no SSIM, no LPIPS, and three weights of the KL.
   Reliance: dB lost where each scene gets the code of another. Disturbed: codes with noise of half the spread that codes of
   different objects have. For two arms a diffusion over their codes is trained as well, and one sample is scored.
3. What the picture does not show, on toys whose front hides an attribute: PSNR, LPIPS and gradient energy (over the true) of the
   pixels that show an unseen surface. And the diversity of the samples of one picture: distance of opaque centres, LPIPS on the
   seen and on the unseen side; beside it true toys that have this very picture (their hidden attributes drawn again), through the
   autoencoder of notebook 06.
4. Guidance from 0 to 4: diversity on the unseen side against PSNR of the seen.
5. Where dreams begin: gsgen bench starts.
6. Seconds of a sample and of a render.

Networks of arms are trained in --folder and their scores kept in benchmarks/results/arms/var, a file each, with the commit that
trained it; what is there is read, unless --train-again.

part: 1 to 6, or 0 for all. Means with 95 % intervals: bootstrap over objects, for arms over seeds and objects. PSNR is the mean
over pictures of that of each, on white.
"""

from pathlib import Path

import numpy as np
import torch

from gsgen_lib import bench
from gsgen_lib.bench import ROOT, bar, interval, kept, median_seconds
from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.data.multiview import load_views, toy_views
from gsgen_lib.distributions import kid
from gsgen_lib.image_features import features_name, image_features
from gsgen_lib.metrics import bootstrap_ci, psnr
from gsgen_lib.perceptual import lpips, lpips_name
from gsgen_lib.pretrained import read_card
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.autoreconstructor import AutoReconstructor, load_autoreconstructor
from gsgen_lib.systems.autoreconstructor_diffusion import OneImage, load_one_image
from gsgen_lib.systems.autoreconstructor_training import train_autoreconstructor
from gsgen_lib.systems.code_training import train_codes
from gsgen_lib.systems.feed_forward import load_feed_forward, most_opaque
from gsgen_lib.systems.feed_forward_metrics import cases
from gsgen_lib.systems.one_image_metrics import best_of, diversity, truth_but, unseen_pixels
from gsgen_lib.systems.splat_diffusion import SplatDiffusion, load_splat_diffusion
from gsgen_lib.systems.splat_diffusion_metrics import gradient_energy, hidden_toys

TOY_SEED = 8_000_000  # the toys of bench feedforward
ARMS = {"as shipped": {}, "no skips": {"skips": False}, "skips never zeroed": {"kept": 1.0}, "one Gaussian": {"gaussians": 1},
        "no variational sampling": {"variational": False}, "no SSIM": {"weight_ssim": 0.0}, "no LPIPS": {"weight_lpips": 0.0},
        "KL x 0.01": {"weight_kl": 5e-6}, "KL x 20": {"weight_kl": 1e-2}}
STEPS, CODE_STEPS = dict(steps=600, fine_steps=250), dict(steps=1000, masked_steps=300)
KEPT = ROOT / "benchmarks" / "results" / "arms" / "var"
OVER = ("as shipped", "no variational sampling")  # arms whose codes get a diffusion of their own
BINS = {"near": (0, 60), "side": (60, 120), "far": (120, 181)}  # degrees from the picture's camera
CODES, BARE, SECOND = "code diffusion", "code diffusion, skips 0", "code diffusion, second set from behind"
LATENT = "latent diffusion of notebook 07"


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

    def second(rgba, camera, n, g):  # as many Gaussians as one set has
        scenes = one.sample(rgba, camera, n, behind=True, generator=g)
        return split(most_opaque(scenes, min(scenes.num, one.var.config.budget)))

    return {
        "feed-forward, one view of four": lambda rgba, camera, n, g: [regression.reconstruct(rgba, camera)],
        **{f"VAR, skips {keep:g}": lambda rgba, camera, n, g, keep=keep: [var.reconstruct(rgba, camera, keep)]
           for keep in (1.0, 0.5, 0.0)},
        "VAR, codes drawn": drawn,
        CODES: lambda rgba, camera, n, g: split(one.sample(rgba, camera, n, generator=g)),
        BARE: lambda rgba, camera, n, g: split(one.sample(rgba, camera, n, keep=0.0, generator=g)),
        SECOND: second,
        LATENT: lambda rgba, camera, n, g: split(
            latent.sample([""] * n, rgba[None].expand(n, -1, -1, -1, -1), (0,), guidance_scale=1.0, generator=g)),
    }


def judged(make, views, samples: int) -> dict:
    """Scores of one method on one front view of each object: "psnr" (objects, n), "num" Gaussians; of the first sample "lpips",
    "psnr, BIN" and "lpips, BIN" (objects,), nan where an object has no view there, and the first of its "views"."""
    found = {"psnr": [], "lpips": [], "views": [], **{f"{key}, {name}": [] for key in ("psnr", "lpips") for name in BINS}}
    for i, (rgba, camera, truth, there) in enumerate(cases(views, 1)):
        white = on_background(truth, torch.ones(3))
        rendered = [pictures(scene, there) for scene in make(rgba, camera, samples, gen(i))]
        each = torch.stack([psnr(x, white, "none") for x in rendered])  # (n, 8)
        first = {"psnr": each[0], "lpips": lpips(rendered[0], white, "none")}
        found["psnr"].append(each.mean(1))
        found["lpips"].append(first["lpips"].mean().item())
        found["views"].append(rendered[0][:1])
        away = sides(camera, there)
        for name, (low, high) in BINS.items():
            inside = (away >= low) & (away < high)
            for key, values in first.items():
                found[f"{key}, {name}"].append(values[inside].mean().item() if inside.any() else float("nan"))
    return found | {"psnr": torch.stack(found["psnr"]), "views": torch.cat(found["views"])}


def ahead(bars: list, name: str, better, worse, limit: float = 0.0) -> None:
    """A bar for the lower end of the interval of `better` - `worse`, (objects,) or (seeds, objects), those with nan left out."""
    gain = np.atleast_2d(np.asarray(better, float) - np.asarray(worse, float))
    gain = gain[:, ~np.isnan(gain).any(0)]
    bars.append(bar(f"{name}, lower end", bootstrap_ci(gain, np.random.default_rng(0))[1], limit))


def quality(one, latent, sets: dict, samples: int, bars: list) -> list[dict]:
    """Part 1."""
    rows, every = [], methods(one, latent, load_feed_forward())

    def one_view(views):  # of each object, so that pictures are independent
        return image_features(on_background(torch.cat([c[2][:1] for c in cases(views, 1)]), torch.ones(3)))

    reference = one_view(load_views("val"))

    def apart(features):
        return "{0.value:.3f} +- {0.std:.3f}".format(kid(features, reference, features=features_name()))

    for what, views in sets.items():
        all_found = {name: judged(make, views, samples) for name, make in every.items()}
        for name, found in all_found.items():
            n = found["psnr"].shape[1]
            row = {"objects": what, "what": name, "PSNR": interval(found["psnr"][:, 0].tolist()),
                   **{f"PSNR, {b}": f"{np.nanmean(found[f'psnr, {b}']):.2f}" for b in BINS},
                   "LPIPS": interval(found["lpips"], 3),
                   **{f"LPIPS, {b}": f"{np.nanmean(found[f'lpips, {b}']):.3f}" for b in BINS}}
            if n > 1:
                row |= {f"best of {k}": f"{best_of(found['psnr'], k):.2f}" for k in (1, 5, 20) if k <= n}
            if what == "real":
                row["KID"] = apart(image_features(found["views"]))
            rows.append(row)
        if what == "real":
            rows.append({"objects": what, "what": "other true views", "KID": apart(one_view(views))})
        for key, name in (("psnr, far", "PSNR, far"), ("psnr, near", "PSNR, near")):
            gain = np.array(all_found[SECOND][key]) - np.array(all_found[CODES][key])
            rows.append({"objects": what, "what": "gain of the second set", name: interval(gain[~np.isnan(gain)].tolist())})
        ahead(bars, f"19: dB of skips, {what}", *(all_found[f"VAR, skips {keep}"]["psnr"][:, 0] for keep in (1, 0)))
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


def arm_of(folder: Path, arm: str, seed: int, views) -> dict:
    """One arm of part 2, trained in `folder` unless it is there: of each object "KIND" (PSNR), "KIND, lpips", "KIND, lpips, far",
    "KIND, psnr, far" for each kind of code, None where an object has no such view; "reliance"; "command", "hours"."""
    out = folder / f"var_{slug(arm)}_{seed}"
    if not (out / "model" / "card.json").is_file():
        train_autoreconstructor(out, preset="experiment", seed=seed, **STEPS, **ARMS[arm])
    var = load_autoreconstructor(out / "model")
    shape, side = var.config.latent, var.config.size // 8
    scores = {
        "mean code": judged(lambda rgba, camera, n, g: [var.reconstruct(rgba, camera)], views, 1),
        "skips off": judged(lambda rgba, camera, n, g: [var.reconstruct(rgba, camera, 0.0)], views, 1),
        "code drawn": judged(lambda rgba, camera, n, g: [
            var.reconstruct(rgba, camera, noise=torch.randn(shape, side, side, generator=g))], views, 1),
        "code disturbed": judged(disturbed(var, views), views, 1)}
    if arm in OVER:
        over = folder / f"codes_{slug(arm)}_{seed}"
        if not (over / "model" / "card.json").is_file():
            train_codes(over, preset="experiment", autoreconstructor=str(out / "model"), seed=seed, **CODE_STEPS)
        one = load_one_image(over / "model", autoreconstructor=out / "model")
        scores["one diffusion sample"] = judged(lambda rgba, camera, n, g: [one.sample(rgba, camera, generator=g)[0]], views, 1)
    found = {"reliance": reliance(var, views)}
    for key, score in scores.items():
        found[key] = score["psnr"][:, 0].tolist()
        found |= {f"{key}, {what}": score[what] for what in ("lpips", "lpips, far", "psnr, far")}
    card = read_card(out / "model")
    return {key: [None if x != x else round(x, 5) for x in values] for key, values in found.items()} | {
        key: card[key] for key in ("command", "hours", "commit", "machine")}


def slug(arm: str) -> str:
    """The name of an arm in the name of a file.

    >>> slug("KL x 0.01")
    'KL_x_001'
    """
    return arm.replace(" ", "_").replace(".", "")


def arms(folder: Path, seeds: int, again: bool, views, bars: list) -> list[dict]:
    """Part 2."""
    rows, found = [], {}
    every = {(arm, seed): kept(KEPT / f"{slug(arm)}_{seed}.json", lambda a=arm, s=seed: arm_of(folder, a, s, views), again)
             for seed in range(seeds) for arm in ARMS}
    for arm in ARMS:
        some = [every[arm, seed] for seed in range(seeds)]
        lists = [key for key, value in some[0].items() if isinstance(value, list)]
        runs = found[arm] = {key: np.array([one[key] for one in some], float) for key in lists}
        row = {"what": f"small, {arm}", "PSNR": interval(runs["mean code"]), "LPIPS": interval(runs["mean code, lpips"], 3),
               "LPIPS, far": f"{np.nanmean(runs['mean code, lpips, far']):.3f}"}
        row |= {f"PSNR, {key}": interval(runs[key]) for key in ("code drawn", "code disturbed", "skips off")}
        row["dB lost with another's code"] = interval(runs["reliance"])
        if arm in OVER:
            row |= {"PSNR, one diffusion sample": interval(runs["one diffusion sample"]),
                    "its LPIPS, far": f"{np.nanmean(runs['one diffusion sample, lpips, far']):.3f}"}
        rows.append(row)

    full, regression = found["as shipped"], found["no variational sampling"]
    ahead(bars, "19: dB lost where no skips", full["mean code"], found["no skips"]["mean code"])
    ahead(bars, "20: LPIPS on the far side that one diffusion sample has less than a regression",
          regression["mean code, lpips, far"], full["one diffusion sample, lpips, far"])
    ahead(bars, "23: dB of one diffusion sample lost where no variational sampling", full["one diffusion sample"],
          regression["one diffusion sample"])
    ahead(bars, "23: dB of a disturbed code lost where no variational sampling",
          np.array(full["code disturbed"]) - full["mean code"], np.array(regression["code disturbed"]) - regression["mean code"])
    ahead(bars, "19: reliance on the code lost where skips are never zeroed", full["reliance"],
          found["skips never zeroed"]["reliance"])
    for arm in ("no SSIM", "no LPIPS"):
        ahead(bars, f"25: LPIPS higher where {arm}", found[arm]["mean code, lpips"], full["mean code, lpips"])
    return rows


def disturbed(var: AutoReconstructor, views):
    """A method of `judged`: the mean code, and noise of half the spread that codes of different objects have, in each number."""
    with torch.no_grad():
        spread = torch.cat([var.encode(rgba)[0] for rgba, *_ in cases(views, 1)]).std(0)

    @torch.no_grad()
    def make(rgba, camera, n, g):
        mu, _, _, skips = var.encode(rgba)
        h = mu + 0.5 * spread * torch.randn(mu.shape, generator=g)
        return [var.splats(var.decode(h, Cameras.stack([camera]), skips))[0]]

    return make


# ---- 3, 4 · diversity ----------------------------------------------------------------------------------------------


def hidden_side(one, latent, count: int, bars: list) -> list[dict]:
    """Part 3: one sample each, in the pixels of three other views that show what the front view does not."""
    rows, found, front, there = [], {}, latent.cameras[[0]], latent.cameras[1:]
    toys = hidden_toys(count)
    where = [unseen_pixels(case.toy.mesh, front, there) for case in toys]
    for name, make in methods(one, latent, load_feed_forward()).items():
        scores = {"psnr": [], "lpips": [], "energy": []}
        for i, (case, pixels) in enumerate(zip(toys, where, strict=True)):
            truth = on_background(case.rgba[1:], torch.ones(3))
            shown = pictures(make(case.rgba[:1], front, 1, gen(i))[0], there)
            scores["psnr"].append(psnr(shown[pixels][None, None], truth[pixels][None, None]).item())
            scores["lpips"].append(lpips(truth_but(shown, truth, pixels), truth).item())
            energy, true = (gradient_energy(x, pixels) for x in (shown, truth))
            scores["energy"].append((energy.nansum() / true.nansum()).item())
        found[name] = scores
        rows.append({"what": f"unseen pixels: {name}", "PSNR": interval(scores["psnr"]), "LPIPS": interval(scores["lpips"], 3),
                     "gradient energy over true": interval(scores["energy"])})
    for name in (CODES, LATENT):
        ahead(bars, f"20: gradient energy over true, unseen pixels, {name} above VAR at its mean", found[name]["energy"],
              found["VAR, skips 1"]["energy"])
    return rows


def spread(one, latent, count: int, samples: int, bars: list) -> list[dict]:
    """Part 3, diversity: toys whose front hides an attribute."""
    front, back = (Cameras.orbit(1, azimuth=[a], elevation=[15.0]) for a in (0.0, 180.0))
    every = methods(one, latent, None)
    names = ("VAR, codes drawn", CODES, BARE, SECOND, LATENT)
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
                    mean[LATENT] / max(mean["true toys, encoded and decoded"], 1e-9), 0.5))
    bars.append(bar("21, structural warning: LPIPS between samples, unseen side, code diffusion without skips / latent diffusion",
                    mean[BARE] / mean[LATENT], 0.5, most=True))
    return rows


def _render(toy, latent) -> torch.Tensor:
    from gsgen_lib.data.raycast import render_mesh

    return torch.from_numpy(render_mesh(toy.mesh, latent.cameras).rgba).float()


def guidance(one, latent, count: int, samples: int) -> list[dict]:
    """Part 4."""
    front, back = (Cameras.orbit(1, azimuth=[a], elevation=[15.0]) for a in (0.0, 180.0))
    rows, toys = [], hidden_toys(count, seed=2)
    for scale in (0.0, 0.5, 1.0, 2.0, 4.0):
        for name in (CODES, BARE, LATENT):
            unseen, near = [], []
            for i, case in enumerate(toys):
                rgba, camera = case.rgba[:1], latent.cameras[[0]]
                if name == LATENT:
                    scenes = latent.sample([""] * samples, rgba[None].expand(samples, -1, -1, -1, -1), (0,), guidance_scale=scale,
                                           generator=gen(i))
                else:
                    scenes = one.sample(rgba, camera, samples, keep=float(name == CODES), guidance_scale=scale, generator=gen(i))
                unseen.append(diversity(scenes, front, back, gen(i))["unseen"])
                near.append(psnr(pictures(scenes[0], camera), on_background(rgba, torch.ones(3))).item())
            rows.append({"what": f"guidance {scale:g}: {name}", "unseen": interval(unseen, 4),
                         "PSNR, the picture": interval(near)})
    return rows


# ---- 6 · time ------------------------------------------------------------------------------------------------------


def speed(one, latent) -> list[dict]:
    """Part 6: medians of five, beside the paper's on a GPU."""
    camera = latent.cameras[[0]]
    rgba = torch.rand(1, *[one.var.config.size] * 2, 4, generator=gen())

    def seconds(call):
        return f"{median_seconds(call):.3f}"

    scene = one.sample(rgba, camera, generator=gen())[0]
    return [{"what": "VAR, mean code", "seconds": seconds(lambda: one.var.reconstruct(rgba, camera))},
            {"what": "code diffusion, 50 steps", "seconds": seconds(lambda: one.sample(rgba, camera, generator=gen())),
             "the paper's, one GPU": "2.7"},
            {"what": f"render, {scene.num} Gaussians, 64 x 64", "seconds": seconds(lambda: pictures(scene, camera)),
             "the paper's, one GPU": "0.029"}]


def main(part: int = 0, objects: int = 0, toys: int = 48, hidden: int = 28, samples: int = 20, seeds: int = 3,
         train_again: bool = False, folder: str = "runs/bench_var", network: str = "code_diffusion") -> dict:
    """part: 1 to 6, or 0 for all; objects: of the real test split, 0 for all; train_again: arms whose scores are kept, too;
    network: a shipped name or a folder."""
    if part not in range(7):
        raise ValueError(f"part: got {part}, wanted 0 to 6")
    for name, value in (("toys", toys), ("hidden", hidden), ("samples", samples), ("seeds", seeds)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, wanted at least 1")
    rows, bars = [], []
    real = load_views("test", limit=objects or None)
    one, latent = load_one_image(network), load_splat_diffusion()
    sets = {"real": real, "toys": toy_views(toys, TOY_SEED, 64, split="test")}
    starts = bench.load("starts")
    parts = {1: lambda: quality(one, latent, sets, samples, bars), 2: lambda: arms(Path(folder), seeds, train_again, real, bars),
             3: lambda: hidden_side(one, latent, hidden, bars) + spread(one, latent, hidden, min(10, samples), bars),
             4: lambda: guidance(one, latent, min(12, hidden), min(6, samples)),
             5: lambda: starts.starts(starts.some(6), seeds, bars), 6: lambda: speed(one, latent)}
    for number, run in parts.items():
        if part in (0, number):
            rows += run()
    note = (f"PSNR on white, mean over pictures of that of each. {features_name()}; {lpips_name()}. Seconds with torch on "
            f"{torch.get_num_threads()} threads. Samples are not selected, except where 'best of' says so.")
    return {"name": "var", "rows": rows, "bars": bars, "note": note}

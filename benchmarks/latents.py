"""Splat latents and diffusion over them: gsgen bench latents [--json].

1. The shipped autoencoder, f = 8, on the questions of `gsgen bench feedforward`: what is lost against the network that keeps
   its pictures, and how many numbers are left, counted on the tensors.
2. Arms of the autoencoder (preset "experiment", `seeds` each): as shipped, f = 4, f = 16, without mixing of the views, without
   hull and sweep; beside them feed-forward networks of the same preset.
3. Seconds of one scene, from noise to Gaussians; beside it one denoising step of the same network on 12 channels, and on
   pictures, of 64 x 64, with all its attention and without it, and the products of each.
4. Scenes of nothing given: KID of their renders to true renders of other objects, beside true against true, and decoded
   N(0, 1) latents.
5. Words: is the own caption ranked first of 50 by the prompt scorer, over four views? 100 captions, held-out combinations.
6. Views given: the input views against the autoencoder's, and PSNR on other views for 1, 2 and 3 of them.
7. The true posterior: toys whose front hides an attribute (`splat_diffusion_metrics`), `samples` scenes each; the same for a
   regression with the same backbone (with --no-arms: the denoiser's first step, its guess of the mean); LPIPS, gradient energy
   and KID on the back, for both.
8. Arms of the denoiser (preset "experiment"): v, eps, x0 at equal steps, KID.
9. Guidance: own caption first against the spread of scenes of one caption (Chamfer distance of opaque centres).
10. What latents know: family of a toy from its 5 nearest neighbours, in latents and in pixels.

Means with 95 % intervals: bootstrap over objects, for arms over seeds. Trained arms are kept in --folder.
"""

import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.data.multiview import load_views, toy_views
from gsgen_lib.distributions import kid
from gsgen_lib.image_features import features_name, image_features
from gsgen_lib.metrics import bootstrap_ci, chamfer, psnr
from gsgen_lib.nn.multiview import MultiViewUNet
from gsgen_lib.perceptual import lpips, lpips_name
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems.feed_forward import load_feed_forward
from gsgen_lib.systems.feed_forward_metrics import BASELINES, cases, evaluate
from gsgen_lib.systems.feed_forward_training import train_feed_forward
from gsgen_lib.systems.prompt_scorer import load_scorer, rank_of_own
from gsgen_lib.systems.splat_diffusion import VIEWS, SplatDiffusion, load_splat_diffusion
from gsgen_lib.systems.splat_diffusion_metrics import back_camera, frequencies, gradient_energy, hidden_toys
from gsgen_lib.systems.splat_diffusion_training import real_scenes, scene_views, train_splat_diffusion
from gsgen_lib.systems.splat_vae import load_splat_vae
from gsgen_lib.systems.splat_vae_training import train_splat_vae

TOY_SEED, SCENE_SEED = 8_000_000, 8_500_000  # the toys of bench feedforward; toys for true renders
BARS = {"toys": 24.5, "real": 21.0}
VAE_ARMS = {"as shipped": {}, "f = 4": {"factor": 4}, "f = 16": {"factor": 16}, "views not mixed": {"mix": False},
            "no hull, no sweep": {"geometry": False}}
KINDS = ("v", "eps", "x0")
REGRESSION_STEPS = 3_000


def gen(seed=0):
    """A generator of that seed."""
    return torch.Generator().manual_seed(seed)


def interval(values, digits: int = 2) -> str:
    """Mean and 95 % interval of some numbers."""
    mean, low, high = bootstrap_ci(np.array(values, float), np.random.default_rng(0))
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def bar(bars: list, id: str, value: float, limit: float, most: bool = False, digits: int = 3) -> None:
    """Append a bar: value >= limit, or <= where `most`."""
    ok = value <= limit if most else value >= limit
    bars.append({"id": id, "value": round(float(value), digits), "bar": limit, "ok": bool(ok)})


def of(scores, key):
    """Mean of one number over objects."""
    return float(np.mean([s[key] for s in scores]))


def render(scenes, cameras) -> torch.Tensor:
    """Pictures on white (B V, S, S, 3) of scenes of batch (B,) from one set of cameras."""
    every = Cameras.stack([cameras] * scenes.batch_shape[0])
    return rasterize(scenes, every, (1.0, 1.0, 1.0)).rgb.clamp(0, 1).flatten(0, 1)


def autoencoder(sets: dict, bars: list) -> list[dict]:
    """Part 1."""
    rows, forward, vae = [], load_feed_forward(), load_splat_vae()
    rgba, cameras, _, _ = next(cases(sets["real"]))
    z = vae.encode(rgba[None], Cameras.stack([cameras]))[0]
    numbers = 12 * vae.decode(z, Cameras.stack([cameras]))[0].num / z.numel()
    for what, views in sets.items():
        base, hull, found = (evaluate(f, views) for f in (forward.reconstruct, BASELINES["coloured hull"], vae.reconstruct))
        for name, scores in (("autoencoder, f = 8", found), ("feed-forward, unet", base), ("coloured hull", hull)):
            rows.append({"objects": what, "what": name, "PSNR": interval([s["psnr"] for s in scores]),
                         "box PSNR": interval([s["box"] for s in scores]), "alpha IoU": interval([s["iou"] for s in scores], 3)})
        rows[-3] |= {"below feed-forward, dB": f"{of(base, 'psnr') - of(found, 'psnr'):.2f}", "numbers, latents": z.numel(),
                     "splats to latents": f"{numbers:.0f}x", "pictures to latents": f"{rgba[..., :3].numel() / z.numel():.0f}x"}
        bar(bars, f"f = 8, {what}: PSNR", of(found, "psnr"), BARS[what])
        if what == "real":
            bar(bars, "f = 8, real: dB above the coloured hull", of(found, "psnr") - of(hull, "psnr"), 2.5)
    bar(bars, "f = 8: numbers of the splats over numbers of the latents", numbers, 128)
    return rows


def autoencoder_arms(folder: Path, seeds: int, real, bars: list) -> list[dict]:
    """Part 2."""
    found, numbers = {}, {}
    for arm, settings in {"feed-forward, no bottleneck": None, **VAE_ARMS}.items():
        for seed in range(seeds):
            out = folder / f"vae_{arm.replace(' ', '_').replace(',', '')}_{seed}"
            if not (out / "model" / "card.json").is_file():
                if settings is None:
                    train_feed_forward(out, preset="experiment", augment=0.0, seed=seed)
                else:
                    train_splat_vae(out, preset="experiment", seed=seed, **settings)
            network = load_feed_forward(out / "model") if settings is None else load_splat_vae(out / "model")
            found.setdefault(arm, []).append(of(evaluate(network.reconstruct, real), "psnr"))
        if settings is not None:
            c = network.config
            numbers[arm] = f"{VIEWS * c.latent * (c.size // c.factor) ** 2}"
    rows = [{"objects": "real", "what": f"small, {arm}", "PSNR": interval(values), "numbers, latents": numbers.get(arm, "")}
            for arm, values in found.items()]
    for arm in ("views not mixed", "no hull, no sweep"):
        apart = np.array(found["as shipped"]) - np.array(found[arm])
        low = bootstrap_ci(apart, np.random.default_rng(0))[1] if seeds > 1 else apart[0]
        bar(bars, f"small autoencoder: dB lost where {arm}, lower end", low, 0)
    return rows


def speed(sampler: SplatDiffusion, bars: list, steps: int = 25) -> list[dict]:
    """Part 3."""
    d, given = sampler.denoiser.config, sampler.condition(["a red mug"])

    def seconds(call, times):
        call()
        taken = []
        for _ in range(times):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        return float(np.median(taken))

    def products(call):
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops() / 2e9

    scene = seconds(lambda: sampler.decode(sampler.draw(given, steps, generator=gen())), 5)
    decoding = seconds(lambda: sampler.decode(torch.zeros(1, VIEWS, d.latent, d.cells, d.cells)), 5)
    rows = [{"what": f"latents, {steps} steps with guidance, decoded", "seconds, scene": f"{scene:.3f}",
             "seconds, decoding": f"{decoding:.3f}"}]
    embed, words = torch.zeros(2 * VIEWS, d.embed), torch.zeros(2, 24, d.words)
    for name, channels, size, talk in (("latents", d.latent, d.cells, True), ("12 channels", 12, 64, False),
                                       ("pictures", 3, 64, False), ("12 channels", 12, 64, True)):
        unet = MultiViewUNet(2 * channels + 7, channels, d.widths, (talk, talk), 1, d.embed, d.words).eval()
        x = torch.randn(2 * VIEWS, 2 * channels + 7, size, size)  # with guidance: two in one call

        def call(unet=unet, x=x):
            with torch.no_grad():
                unet(x, VIEWS, embed, words)

        one = seconds(call, 9 if size < 64 else 2)
        whole = steps * one + (decoding if name == "latents" else 0)
        kind = f"{name}, {size} x {size}, {'with' if talk else 'without'} attention"
        rows.append({"what": kind, "seconds, step": f"{one:.4f}", "seconds, scene": f"{whole:.2f}",
                     "billion products, step": f"{products(call):.2f}",
                     "million numbers in the widest layer": f"{2 * VIEWS * d.widths[0] * size**2 / 1e6:.2f}"})
        if size == 64 and not talk:
            bar(bars, f"{kind}: seconds of a scene over that of latents", whole / scene, 20, digits=1)
    bar(bars, "one scene, seconds", scene, 0.5, most=True)
    return rows


def unconditional(sampler: SplatDiffusion, count: int, bars: list) -> list[dict]:
    """Part 4."""
    cameras, draws = sampler.cameras, []
    for first in range(0, count, 20):
        draws.append(sampler.draw(sampler.nothing(20), guidance_scale=1.0, generator=gen(first)))
    z = torch.cat(draws)[:count]
    mixed = int(round(0.1 * count))  # as in training: one real object in ten
    truth = [on_background(torch.cat([scene_views(count - mixed, SCENE_SEED + k, progress=False).images,
                                      real_scenes("val").images[k * mixed:(k + 1) * mixed]]).flatten(0, 1), torch.ones(3))
             for k in (0, 1)]
    noise = sampler.denoiser.unscale(torch.randn(z.shape, generator=gen(1)))
    again = [rasterize(sampler.vae.reconstruct(scene, cameras), cameras, (1.0, 1.0, 1.0)).rgb.clamp(0, 1)
             for scene in (scene_views(count - mixed, SCENE_SEED, progress=False).images.float() / 255)]
    sets = {"samples": torch.cat([render(sampler.decode(part), cameras) for part in z.split(20)]),
            "true scenes, encoded and decoded": torch.cat(again),
            "decoded N(0, 1)": torch.cat([render(sampler.decode(part), cameras) for part in noise.split(20)]),
            "true renders (floor)": truth[0]}
    reference = image_features(truth[1])
    apart = {name: kid(image_features(pictures), reference, features=features_name()) for name, pictures in sets.items()}
    bar(bars, "KID of decoded N(0, 1) over KID of samples", apart["decoded N(0, 1)"].value / apart["samples"].value, 3, digits=1)
    return [{"what": f"nothing given: {name}", "KID": f"{d.value:.3f} +- {1.96 * d.std:.3f}"} for name, d in apart.items()]


def words(sampler: SplatDiffusion, scorer, captions: list[str], guidance_scale: float, seed: int = 0) -> dict:
    """Part 5: how often the own caption comes first of 50, over four views; and the scenes."""
    parts = [sampler.draw(sampler.condition(captions[i:i + 20]), guidance_scale=guidance_scale, generator=gen(seed + i))
             for i in range(0, len(captions), 20)]
    pictures = torch.cat([render(sampler.decode(z), sampler.cameras) for z in parts])  # (4 P, S, S, 3)
    return {"first": first_of(pictures, captions, scorer), "pictures": pictures}


def first_of(pictures, captions, scorer) -> float:
    """Share of scenes whose own caption is ranked first, by the mean vector of their four views."""

    class FourViews:
        def embed_mirrored(self, scenes):
            return scorer.embed_mirrored(pictures).unflatten(0, (-1, VIEWS)).mean(1)

        def embed_prompts(self, prompts):
            return scorer.embed_prompts(prompts)

    others = min(49, len(set(captions)) - 1)
    return float((rank_of_own(FourViews(), pictures[::VIEWS], captions, others, gen()) == 0).float().mean())


def views_given(sampler: SplatDiffusion, views, bars: list) -> list[dict]:
    """Part 6, for real objects: PSNR of the given views, and of others, one sample each."""
    rows, cameras = [], sampler.cameras
    four = views.images[:, [0, 2, 4, 6]].float() / 255
    captions = [""] * len(views)
    truth = on_background(four, torch.ones(3))
    vae = torch.stack([rasterize(sampler.vae.reconstruct(x, cameras), cameras, (1.0, 1.0, 1.0)).rgb.clamp(0, 1) for x in four])
    best = psnr(vae[:, 0], truth[:, 0]).item()
    for places in ((0,), (0, 2), (0, 1, 3)):
        scenes = [sampler.sample(captions[i:i + 16], four[i:i + 16, list(places)], places, generator=gen(i))
                  for i in range(0, len(views), 16)]
        got = torch.cat([render(s, cameras) for s in scenes]).unflatten(0, (-1, VIEWS))
        rest = [v for v in range(VIEWS) if v not in places]
        given = psnr(got[:, list(places)].flatten(0, 1), truth[:, list(places)].flatten(0, 1)).item()
        rows.append({"objects": "real", "what": f"{len(places)} views given", "PSNR, given views": f"{given:.2f}",
                     "PSNR, hidden views": f"{psnr(got[:, rest].flatten(0, 1), truth[:, rest].flatten(0, 1)).item():.2f}",
                     "PSNR, autoencoder, front": f"{best:.2f}"})
        if places == (0,):
            bar(bars, "one view given: dB below the autoencoder on it", best - given, 2.0, most=True)
    return rows


def posterior(sampler: SplatDiffusion, regression: SplatDiffusion, count: int, samples: int, bars: list) -> list[dict]:
    """Part 7."""
    every, back = hidden_toys(count), back_camera()
    read, mean_read, sampled, means, true, right = [], [], [], [], [], 0
    for i, case in enumerate(every):
        front = case.rgba[None, :1]
        told = sampler.condition([""], front, (0,))
        z = sampler.draw(told[[0] * samples], generator=gen(i), guidance_scale=1.0)
        pictures = render(sampler.decode(z), back)
        read.append(case.read(pictures))
        z = regression.draw(told, steps=1, guidance_scale=1.0, noise=torch.zeros_like(z[:1]))
        mean = render(regression.decode(z), back)
        mean_read.append(case.read(mean).expand(samples))
        sampled.append(pictures[:1])
        means.append(mean)
        true.append(case.pictures[[case.true]])
        again = rasterize(sampler.vae.reconstruct(case.rgba, sampler.cameras), back, (1.0, 1.0, 1.0)).rgb.clamp(0, 1)
        right += int(case.read(again)[0]) == case.true
    sampled, means, true = torch.cat(sampled), torch.cat(means), torch.cat(true)
    rows, reference = [], image_features(true)
    for name, pictures, found in (("samples", sampled, read), ("regression", means, mean_read), ("truth", true, None)):
        row = {"what": f"the back, from the front: {name}", "LPIPS": interval(lpips(pictures, true, "none").tolist(), 3),
               "gradient energy over true": f"{gradient_energy(pictures).mean() / gradient_energy(true).mean():.2f}",
               "KID": str(kid(image_features(pictures), reference, features=features_name()))}
        if found is not None:
            apart = frequencies(every, found, gen())
            row |= {"TV, pooled": f"{apart['pooled']:.3f}", "TV, by chance": f"{apart['pooled, by chance']:.3f}",
                    "TV, one toy": f"{apart['each']:.3f}", "TV, one toy, by chance": f"{apart['each, by chance']:.3f}"}
            if name == "samples":
                bar(bars, "total variation of hidden attributes, pooled", apart["pooled"], 0.15, most=True)
        rows.append(row)
    rows.append({"what": f"reader right on true scenes through the autoencoder: {right / count:.2f} of {count}"})
    return rows


def trained_regression(folder: Path) -> SplatDiffusion:
    """The same backbone as the shipped denoiser, trained to answer with the mean; trained here where it is not there yet."""
    out = folder / "regression"
    if not (out / "model" / "card.json").is_file():
        with torch.enable_grad():
            train_splat_diffusion(out, preset="cpu", regression=True, steps=REGRESSION_STEPS)
    return load_splat_diffusion(out / "model")


def kinds(folder: Path, seeds: int, bars: list) -> list[dict]:
    """Part 8."""
    truth = image_features(on_background(scene_views(100, SCENE_SEED + 9, progress=False).images.flatten(0, 1), torch.ones(3)))
    found = {}
    for kind in KINDS:
        for seed in range(seeds):
            out = folder / f"denoiser_{kind}_{seed}"
            if not (out / "model" / "card.json").is_file():
                train_splat_diffusion(out, preset="experiment", prediction=kind, seed=seed)
            sampler = load_splat_diffusion(out / "model")
            z = [sampler.draw(sampler.nothing(20), guidance_scale=1.0, generator=gen(i)) for i in range(5)]
            pictures = torch.cat([render(sampler.decode(part), sampler.cameras) for part in z])
            found.setdefault(kind, []).append(kid(image_features(pictures), truth, features=features_name()).value)
    return [{"what": f"small denoiser, predicts {kind}", "KID": interval(values, 3)} for kind, values in found.items()]


def guidance(sampler: SplatDiffusion, scorer, captions: list[str]) -> list[dict]:
    """Part 9."""
    rows = []
    for scale in (0.0, 1.0, 2.0, 4.0, 8.0):
        apart = []
        for i, caption in enumerate(captions[:8]):
            scenes = sampler.decode(sampler.draw(sampler.condition([caption])[[0] * 4], guidance_scale=scale, generator=gen(i)))
            clouds = [s.means[s.opacities > 0.5] for s in (scenes[k] for k in range(4))]
            apart += [chamfer(a, b).item() for n, a in enumerate(clouds) for b in clouds[n + 1:] if len(a) and len(b)]
        first = words(sampler, scorer, captions, scale)["first"]
        rows.append({"what": f"guidance {scale:g}", "own caption first of 50": f"{first:.2f}",
                     "Chamfer between scenes of a caption": interval(apart, 4)})
    return rows


def neighbours(sampler: SplatDiffusion, views) -> list[dict]:
    """Part 10: leave one out."""
    rgba = views.images.float() / 255
    z = torch.cat([sampler.vae.encode(part, Cameras.stack([sampler.cameras] * len(part)))[0] for part in rgba.split(32)])
    names = [m["family"] for m in views.meta]
    labels = torch.tensor([sorted(set(names)).index(n) for n in names])
    rows = []
    for what, x in (("latents", sampler.denoiser.scale(z)), ("pixels", on_background(rgba, torch.ones(3)))):
        x = x.flatten(1)
        order = torch.cdist(x, x).fill_diagonal_(float("inf")).topk(5, largest=False).indices
        share = (labels[order].mode(1).values == labels).float().mean()
        rows.append({"what": f"family from 5 neighbours in {what} ({x.shape[1]} numbers)", "right": f"{share:.2f}"})
    return rows


def main(objects: int = 0, toys: int = 70, captions: int = 100, scenes: int = 100, hidden: int = 112, samples: int = 16,
         seeds: int = 3, arms: bool = True, guidance_scale: float = 2.0, folder: str = "runs/bench_latents",
         diffusion: str = "splat_diffusion") -> dict:
    """objects: of the real test split, 0 for all; arms: train or load the small networks, `seeds` each, in `folder`; diffusion: a
    shipped name or a folder."""
    sets = {"real": load_views("test", limit=objects or None), "toys": toy_views(toys, TOY_SEED, 64, split="test")}
    sampler, scorer, bars = load_splat_diffusion(diffusion), load_scorer(), []
    asked = scene_views(captions, SCENE_SEED + 5, split="test", progress=False)
    with torch.no_grad():
        rows = autoencoder(sets, bars)
        rows += speed(sampler, bars)
        rows += unconditional(sampler, scenes, bars)
        found = words(sampler, scorer, asked.captions, guidance_scale)["first"]
        truth = first_of(on_background(asked.images.flatten(0, 1), torch.ones(3)), asked.captions, scorer)
        rows.append({"what": f"words, guidance {guidance_scale:g}", "own caption first of 50": f"{found:.2f}"})
        rows.append({"what": "words: true renders of these captions", "own caption first of 50": f"{truth:.2f}"})
        bar(bars, "own caption first of 50", found, 0.75)
        rows += views_given(sampler, sets["real"], bars)
        rows += posterior(sampler, trained_regression(Path(folder)) if arms else sampler, hidden, samples, bars)
        rows += guidance(sampler, scorer, asked.captions)
        rows += neighbours(sampler, scene_views(280, SCENE_SEED + 7, progress=False))
    if arms:
        rows += autoencoder_arms(Path(folder), seeds, sets["real"], bars)
        rows += kinds(Path(folder), seeds, bars)
    note = (f"PSNR on white, mean over pictures of that of each. {features_name()}; {lpips_name()}; judge: {scorer.name}. "
            f"Seconds with torch on {torch.get_num_threads()} threads. One sample for each question, no selection.")
    return {"name": "latents", "rows": rows, "bars": bars, "note": note}

"""Score distillation and DreamGaussian: gsgen bench sds [--part 0] [--json].

1. Points, with an exact denoiser (two clusters): the gradient against its formula; how wide a distilled cluster is, and how far
   from a mode points end, with falling and with random noise levels; where guidance carries them. Claims 2 to 5.
2. Pictures, distilled into latents without 3D: saturation and clipped values against guidance (claim 5), and interval score
   matching against score distillation, sharpness beside the cosine to the caption (claim 10). Twelve captions at a time.
3. Objects: 12 prompts of combinations that the prior was trained on, 12 of held-out ones; one seed each, no selection. Stage 1,
   mesh, stage 2, timed. Top 1: share of renders from 8 azimuths whose own caption the judge ranks first among 50. Fronts: share
   of 24 azimuths that the judge calls a front view, over that of true toys of the caption. All of them in one contact sheet,
   docs/images/dreamgaussian_24.png (claim 8).
4. Six objects, three seeds each, 200 steps: with and without view words (claim 6); densification by the pull of the gradient, at
   random, none but as many Gaussians from the start (claim 7).

part: 1 to 4, or 0 for all. Finished objects are kept in `folder` and not made again. Intervals are 95 %, bootstrap over seeds, or
over prompts in part 3.
"""

import hashlib
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from gsgen_lib import viz
from gsgen_lib.diffusion import GaussianMixture, alphas_cumprod_of, ddpm_sample, guide, guided, linear_betas, q_sample
from gsgen_lib.metrics import bootstrap_ci
from gsgen_lib.pretrained import folder_of, read_card
from gsgen_lib.raster import rasterize
from gsgen_lib.systems.dream_metrics import around, caption_score, clipped, fronts, prompts_24, saturation, sharpness, true_toy
from gsgen_lib.systems.dreamgaussian import DreamConfig, dream
from gsgen_lib.systems.dreamgaussian_sample import refined, render_mesh_at, to_mesh
from gsgen_lib.systems.prior import load_prior
from gsgen_lib.systems.prior_metrics import top1
from gsgen_lib.systems.prompt_scorer import load_scorer
from gsgen_lib.systems.score_distillation import (
    annealed_time,
    distillation_loss,
    ism_gradient,
    random_time,
    sds_gradient,
    sds_loss,
)
from gsgen_lib.systems.texture_refinement import RefineConfig
from gsgen_lib.training import load_state, save_state

ABAR = alphas_cumprod_of(linear_betas()).double()
TWO = GaussianMixture(torch.tensor([[-1.0, 0], [1, 0]]).double(), torch.full((2,), 0.2).double(), torch.ones(2).double())
SEEDS = 3
MISSED = {  # beginnings of bars -> why
    "6: front views without words / with":
        "The Janus problem does not show as more fronts: without view words our small prior paints no front at all, but "
        "the same mean side all around (rows of claim 6: the contrast of front and back is about 0 without words, and "
        "that of true toys with them).",
}
KINDS = ("all", "hits", "false", "contrast")


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def digest(*things) -> str:
    """Eight letters that stand for settings or weights: what was kept of others is not taken."""
    return hashlib.sha256(repr(things).encode()).hexdigest()[:8]


def spread(values) -> str:
    """Mean and its interval."""
    mean, low, high = bootstrap_ci(np.asarray(values, float), np.random.default_rng(0))
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def row(claim: str, what: str, value: str) -> dict:
    return {"claim": claim, "what": what, "value": value}


def bar(name: str, value: float, goal: float, ok: bool) -> dict:
    return {"id": name, "value": round(float(value), 7 if abs(value) < 1e-3 else 3), "bar": goal, "ok": bool(ok)}


# ---- 1 · points ----------------------------------------------------------------------------------------------------


def distil(seed: int, scale: float = 1.0, annealed: bool = True, weight: str = "x0", told=TWO, points: int = 300) -> torch.Tensor:
    """Points (P, 2) after 400 steps along the SDS gradient."""
    g, plain, told = gen(seed), TWO.denoiser(ABAR), told.denoiser(ABAR)
    x = torch.randn(points, 2, generator=g, dtype=torch.float64)
    for k in range(400):
        t = torch.tensor(annealed_time(k, 400)) if annealed else random_time(points, g)
        eps = torch.randn(x.shape, generator=g, dtype=torch.float64)
        x = x - 0.2 * sds_gradient(lambda x_t, t: guide(plain(x_t, t), told(x_t, t), scale), x, t, eps, ABAR, weight)
    return x


def width_and_distance(x: torch.Tensor) -> tuple[float, float]:
    """Width of a cluster over that of the data's, and rms distance to the nearest mode."""
    nearest = torch.cdist(x, TWO.means).argmin(1)
    off = x - TWO.means[nearest]
    within = np.mean([(o - o.mean(0)).square().mean().sqrt().item() for o in (off[nearest == m] for m in (0, 1))])
    return within / 0.2, off.square().sum(1).mean().sqrt().item()


def points_part() -> tuple[list, list]:
    worst = 0.0
    for seed in range(SEEDS):
        x, eps = torch.randn(2, 50, 2, generator=gen(seed), dtype=torch.float64)
        t = torch.randint(1000, (50,), generator=gen(seed))
        x.requires_grad_()
        sds_loss(TWO.denoiser(ABAR), x, t, eps, ABAR).backward()
        a = ABAR[t][:, None]
        wanted = (1 - a) * (TWO.denoiser(ABAR)(q_sample(x.detach(), eps, ABAR[t]), t) - eps) / 50
        worst = max(worst, float((x.grad - wanted).abs().max() / wanted.abs().max()))
    rows = [row("2", "autograd against w (eps_hat - eps) / B, largest difference / largest value", f"{worst:.1e}")]
    noises = [torch.randn(1000, 2, generator=gen(s), dtype=torch.float64) for s in range(SEEDS)]
    drawn = [width_and_distance(ddpm_sample(TWO.denoiser(ABAR), noise, ABAR, 200, generator=gen(s + 10)))
             for s, noise in enumerate(noises)]
    falls, random = ([width_and_distance(distil(s, annealed=a)) for s in range(SEEDS)] for a in (True, False))
    rows += [row("3", f"width of a cluster / that of the data, {name}", spread([w for w, _ in found]))
             for name, found in (("DDPM", drawn), ("SDS, t falls", falls))]
    rows += [row("4", f"rms distance to the nearest mode, SDS, t {name}", spread([d for _, d in found]))
             for name, found in (("falls", falls), ("random", random))]
    right, far = TWO.given(torch.tensor([0, 1]), 1), {}
    for annealed in (True, False):
        for s in (1, 7.5, 25, 100):
            far[annealed, s] = [distil(k, s, annealed, "sigma2", right).norm(dim=1).mean().item() for k in range(SEEDS)]
        rows.append(row("5", f"distance from 0 at guidance 1, 7.5, 25, 100 (data: 1), t {'falls' if annealed else 'random'}",
                        "; ".join(spread(far[annealed, s]) for s in (1, 7.5, 25, 100))))
    (width, distance), away, wide = np.mean(falls, 0), np.mean(random, 0)[1], np.mean(drawn, 0)[0]
    beyond = np.mean(far[False, 100]) / np.mean(far[False, 1])
    bars = [bar("2: SDS gradient, relative error", worst, 1e-5, worst <= 1e-5),
            bar("3: width of a cluster, SDS / DDPM", width / wide, 0.8, width <= 0.8 * wide),
            bar("4: distance to a mode, t random / falls", away / distance, 3, away >= 3 * distance),
            bar("5: distance at guidance 100 / 1, t random", beyond, 3, beyond >= 3)]
    return rows, bars


# ---- 2 · pictures --------------------------------------------------------------------------------------------------


def paint(prior, captions: list[str], kind: str, scale: float, seed: int, steps: int = 80, interval: int = 60) -> torch.Tensor:
    """Front views (P, H, W, 3) whose latents were distilled by "sds" or "ism", with falling t."""
    g, abar = gen(seed), prior.alphas_cumprod.to(prior.device)
    told = prior.encode_prompt([f"{c}, front view" for c in captions])
    empty = prior.encode_prompt([""]).expand_as(told)
    ask, plain = guided(prior.predict_eps, told, empty, scale), lambda x, t: prior.predict_eps(x, t, empty)
    z = (0.1 * torch.randn(len(captions), *prior.latent_shape, generator=g)).to(prior.device).requires_grad_()
    adam = torch.optim.Adam([z], lr=0.02, betas=(0.9, 0.99))
    for k in range(steps):
        t = annealed_time(k, steps)
        if kind == "sds":
            gradient = sds_gradient(ask, z, torch.tensor(t), torch.randn(z.shape, generator=g).to(z), abar)
        else:
            gradient = ism_gradient(ask, plain, z, max(t, interval), interval, abar, 2, "sigma2")
        adam.zero_grad()
        distillation_loss(z, gradient).backward()
        adam.step()
    return prior.decode(z.detach()).cpu()


def pictures_part(prior, judge) -> tuple[list, list]:
    captions, rows, marks = prompts_24()[0], [], {}
    runs = [("sds", s) for s in (1, 10, 30, 100)] + [("ism", s) for s in (1.5, 3, 7.5)]
    for kind, scale in runs:
        found = []
        for seed in range(SEEDS):
            x = paint(prior, captions, kind, scale, seed)
            fit = np.mean([caption_score(judge, x[i:i + 1].to(prior.device), c) for i, c in enumerate(captions)])
            found.append((saturation(x), clipped(x), 1000 * sharpness(x).mean().item(), fit))
        marks[kind, scale] = np.mean(found, 0)
        rows.append(row("5" if kind == "sds" else "10", f"pictures, {kind.upper()} at guidance {scale}: saturation; values "
                        "clipped; sharpness x 1000; cosine to the caption",
                        "; ".join(spread(v) for v in zip(*found, strict=True))))
    base = marks["sds", 10]
    fair = [m for (kind, _), m in marks.items() if kind == "ism" and m[3] >= base[3] - 0.02]  # "at equal score"
    best = max((m[2] for m in fair), default=0.0)
    burnt = [marks["sds", s][0] for s in (10, 30, 100)]
    return rows, [bar("5: saturation at guidance 100 / 10, pictures", burnt[2] / burnt[0], 1.05, burnt[2] >= 1.05 * burnt[0]),
                  bar("10: sharpness, sharpest ISM whose cosine is at most .02 lower / SDS at 10", best / base[2], 1.2,
                      best >= 1.2 * base[2])]


# ---- 3 · objects ---------------------------------------------------------------------------------------------------


def renders(scene, count: int = 24) -> torch.Tensor:
    return rasterize(scene, around(count), (1.0, 1.0, 1.0)).rgb.clamp(0, 1)


def one_object(prior, judge, caption: str, rivals: list[str], folder: Path) -> dict:
    """Make one object; its scores, and thumbnails (24, H, W, 3) of the refined mesh and (8, ...) of the Gaussians. Kept."""
    file, device = folder / f"{caption.replace(' ', '_')}_{digest(DreamConfig(), RefineConfig())}.pt", prior.device
    if file.is_file():
        return load_state(file, ("seconds", "thumbnails", "refined_scores"))
    start = time.perf_counter()
    scene = dream(prior, caption, generator=gen(0)).gaussians.to("cpu")
    first = time.perf_counter() - start
    baked = to_mesh(scene)
    final = refined(prior, caption, baked, generator=gen(0))
    second = time.perf_counter() - start - first
    ring = around(24)
    pictures = {"gaussians": renders(scene), "baked": render_mesh_at(baked, ring), "refined": render_mesh_at(final, ring)}
    truth = true_toy(caption, np.random.default_rng(0), ring)
    found = {"seconds": [first, second], "thumbnails": pictures["refined"].half(), "gaussians": pictures["gaussians"][::3].half(),
             "truth_fronts": fronts(judge, truth.to(device), caption),
             "truth_top1": top1(judge, truth[::3].to(device), caption, rivals)}
    for name, x in pictures.items():
        found[name + "_scores"] = {"top1": top1(judge, x[::3].to(device), caption, rivals), "sharp": sharpness(x).mean().item(),
                                   "cosine": caption_score(judge, x.to(device), caption), **fronts(judge, x.to(device), caption)}
    folder.mkdir(parents=True, exist_ok=True)
    save_state(file, found)
    return found


def rivals_of(caption: str) -> list[str]:
    """49 captions of other toys, the same for every run."""
    seen, held_out = prompts_24(1)
    more = [c for seed in range(2, 5) for c in sum(prompts_24(seed), [])]
    return [c for c in dict.fromkeys(seen + held_out + more) if c != caption][:49]


def objects_part(prior, judge, folder: Path, sheet: Path | None) -> tuple[list, list]:
    seen, held_out = prompts_24()
    made = {c: one_object(prior, judge, c, rivals_of(c), folder) for c in seen + held_out}
    rows, share = [], {}
    for name, captions in (("seen", seen), ("held out", held_out)):
        some = [made[c] for c in captions]
        share[name] = np.mean([m["refined_scores"]["top1"] for m in some])
        for stage in ("gaussians", "baked", "refined"):
            each = [m[stage + "_scores"] for m in some]
            marks = [[e["top1"], e["cosine"], 1000 * e["sharp"], e["contrast"]] for e in each]
            rows.append(row("8", f"{name}, {stage}: top 1 of 50; cosine; sharpness x 1000; contrast of front and back",
                            "; ".join(spread(v) for v in zip(*marks, strict=True))))
        marks = [[m["truth_top1"], m["truth_fronts"]["contrast"]] for m in some]
        rows.append(row("8", f"{name}, true toys: top 1 of 50; contrast of front and back",
                        "; ".join(spread(v) for v in zip(*marks, strict=True))))
    every = list(made.values())
    sharp = np.mean([m["refined_scores"]["sharp"] for m in every]) / np.mean([m["baked_scores"]["sharp"] for m in every])
    fit = np.mean([m["refined_scores"]["cosine"] - m["baked_scores"]["cosine"] for m in every])
    called, true = (np.mean([m[k]["all"] for m in every]) for k in ("refined_scores", "truth_fronts"))
    rows.append(row("6", "24 prompts: share of 24 azimuths called front view, objects; true toys", f"{called:.3f}; {true:.3f}"))
    slow = np.max([m["seconds"] for m in every], 0)
    rows.append(row("8", "seconds, stage 1; mesh and stage 2", "; ".join(spread(s) for s in zip(*[m["seconds"] for m in every],
                                                                                                strict=True))))
    if sheet is not None:
        pictures = torch.cat([made[c]["thumbnails"][[2, 10]].float() for c in seen + held_out])  # 30 and 150 degrees
        words = [w for c in seen + held_out for w in (textwrap.fill(c.removeprefix("an ").removeprefix("a "), 18), "")]
        sheet.parent.mkdir(parents=True, exist_ok=True)
        sheet.write_bytes(viz.image_grid(pictures, columns=8, labels=words, cell=1.15).png)
    bars = [bar("stage 1, slowest, s", slow[0], 90, slow[0] <= 90),
            bar("mesh and stage 2, slowest, s", slow[1], 60, slow[1] <= 60),
            bar("top 1 of 50, seen combinations", share["seen"], 0.75, share["seen"] >= 0.75),
            bar("top 1 of 50, held-out combinations", share["held out"], 0.55, share["held out"] >= 0.55),
            bar("6: front views with view words, objects / true toys", called / true, 1.3, called <= 1.3 * true),
            bar("8: sharpness, refined / baked", sharp, 1.2, sharp >= 1.2),
            bar("8: cosine, refined - baked", fit, 0, fit >= 0)]
    return rows, bars


# ---- 4 · ablations -------------------------------------------------------------------------------------------------


def one_ablation(prior, judge, caption: str, seed: int, name: str, config: DreamConfig, folder: Path) -> dict:
    """Scores of one run of stage 1. Kept."""
    file = folder / f"{caption.replace(' ', '_')}_{seed}_{name}_{digest(config)}.pt"
    if not file.is_file():
        scene = dream(prior, caption, config, generator=gen(seed)).gaussians.to("cpu")
        x = renders(scene).to(prior.device)
        found = {"count": scene.num, "cosine": caption_score(judge, x, caption), "sharp": sharpness(x).mean().item(),
                 **fronts(judge, x, caption)}
        folder.mkdir(parents=True, exist_ok=True)
        save_state(file, found)
    return load_state(file, ("count", "cosine", "sharp", "contrast"))


def ablations_part(prior, judge, folder: Path) -> tuple[list, list]:
    captions, base, rows = prompts_24()[0][:6], DreamConfig(steps=200), []
    plans = {"words": base, "no_words": replace(base, view_prompts=False), "random": replace(base, densify="random")}
    truth = [fronts(judge, true_toy(c, np.random.default_rng(0), around(24)).to(prior.device), c) for c in captions]
    found = {}
    for name, config in plans.items():
        found[name] = [[one_ablation(prior, judge, c, s, name, config, folder) for c in captions] for s in range(SEEDS)]
    many = [[replace(base, densify="none", init=r["count"]) for r in run] for run in found["words"]]  # equal final number
    found["none"] = [[one_ablation(prior, judge, c, s, "none", own, folder) for c, own in zip(captions, configs, strict=True)]
                     for s, configs in enumerate(many)]

    def over_seeds(name, key):
        return [np.mean([r[key] for r in run]) for run in found[name]]

    for name, label in (("words", "with view words"), ("no_words", "without")):
        rows.append(row("6", f"6 prompts, {label}: share of 24 azimuths called front; of the hits; of the false; contrast",
                        "; ".join(spread(over_seeds(name, k)) for k in KINDS)))
    rows.append(row("6", "6 prompts, true toys: the same", "; ".join(f"{np.mean([t[k] for t in truth]):.3f}" for k in KINDS)))
    for name, label in (("words", "by the gradient"), ("random", "at random"), ("none", "none, as many from the start")):
        rows.append(row("7", f"densification {label}: cosine; sharpness x 1000; Gaussians", "; ".join(
            spread(factor * np.array(over_seeds(name, key))) for key, factor in (("cosine", 1), ("sharp", 1000), ("count", 1)))))
    front, with_words = (np.mean(over_seeds("words", k)) for k in ("all", "contrast"))
    front_without, without = (np.mean(over_seeds("no_words", k)) for k in ("all", "contrast"))
    front_true, true = (np.mean([t[k] for t in truth]) for k in ("all", "contrast"))
    gain = np.mean(over_seeds("words", "cosine")) - np.mean(over_seeds("random", "cosine"))
    return rows, [bar("6: front views with words / true toys, 6 prompts", front / front_true, 1.3, front <= 1.3 * front_true),
                  bar("6: front views without words / with", front_without / max(front, 1e-6), 1.3, front_without >= 1.3 * front),
                  bar("6: contrast of front and back with words / true toys", with_words / true, 0.5, with_words >= 0.5 * true),
                  bar("6: contrast without words / with", without / with_words, 0.5, without <= 0.5 * with_words),
                  bar("7: cosine, densified by the gradient - at random", gain, 0, gain >= 0)]


def main(part: int = 0, folder: str = "runs/bench_sds", prior: str = "prior",
         sheet: str = "docs/images/dreamgaussian_24.png") -> dict:
    """Run all parts or one. prior: a shipped name or a folder; sheet: where the contact sheet goes, "" for nowhere."""
    if part not in range(5):
        raise ValueError(f"part: got {part}, wanted 0 to 4")
    judge = load_scorer()
    painter = load_prior(prior)
    place = Path(folder) / digest(read_card(folder_of("prior") if prior == "prior" else Path(prior))["sha256"])
    parts = {1: points_part, 2: lambda: pictures_part(painter, judge),
             3: lambda: objects_part(painter, judge, place / "objects", Path(sheet) if sheet else None),
             4: lambda: ablations_part(painter, judge, place / "ablations")}
    rows, bars = [], []
    for number, run in parts.items():
        if part in (0, number):
            more, held = run()
            rows, bars = rows + more, bars + held
    note = (f"Judge: {judge.name}, which learned from other toys and views than the prior. {SEEDS} seeds; the 24 prompts "
            "one seed each, no selection. A front view is what the judge calls one; 'hits' lie within 30 degrees of the front, "
            "'false' 60 degrees and more away. Contrast: by how much more the front looks like a front than the back does, 0 "
            "for an object alike on both sides.")
    return {"name": "sds", "rows": rows, "bars": bars, "note": note}

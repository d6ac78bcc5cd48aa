"""Octree density, and what one Gaussian is worth: gsgen bench density [--part 0] [--json].

1. The contribution of a Gaussian. Largest relative error against rendering again without each, in float64, on black, white and
   random backgrounds; extra time of a backward pass; on fitted test objects (128 x 128, default settings of notebook 01),
   held-out PSNR of what is left when all but a half, a quarter and an eighth of the Gaussians are thrown away by contribution (in
   20 rounds, in one), by opacity and by chance, without training again; and for all Gaussians of an anchor thrown away at once,
   the correlation of what that costs with the sum of their contributions, on decoded test objects.
2. Samples. KL(p | q) of test objects' surface points for the network before and after stage 1 and as shipped; whether counts of
   leaves match P q (largest of all z-scores), and their variance, each way to hand them on.
3. Does it pay that density learns from pictures? From one network after stage 2 (preset "experiment", `seeds` each): stage 3, the
   same steps without contributions, and with anchors that are points of the true surface. Box PSNR at P / 8 to 2 P anchors,
   differences paired over test objects and seeds.
4. As shipped: PSNR against budget from one code, and against tokens; at equal Gaussians beside sparse voxels and the splat
   autoencoder; seconds.
5. Arms of stage 3 (first order, no clamp, no clip, background left out) and of the network (K, depth, sphere, constant unit).

Means with 95 % intervals: bootstrap over objects, for arms over seeds and objects. PSNR is the mean over pictures of that of
each, on white; box: in the box around the object. Networks of arms are trained in --folder, their scores kept in
benchmarks/results/arms/density; what is there is read, unless --train-again.
"""

from pathlib import Path

import numpy as np
import torch

from gsgen_lib import bench
from gsgen_lib.bench import ROOT, bar, interval, kept, median_seconds
from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.data.meshes import load_mesh
from gsgen_lib.data.multiview import load_views, toy_views
from gsgen_lib.data.objects import list_objects, mesh_path
from gsgen_lib.data.raycast import render_mesh
from gsgen_lib.data.view_sets import ViewSet
from gsgen_lib.metrics import psnr
from gsgen_lib.nn.octree import WAYS, Nodes, entropy, masses
from gsgen_lib.pretrained import read_card
from gsgen_lib.raster import rasterize
from gsgen_lib.raster.contribution import contributions, most_worth
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.feed_forward import most_opaque
from gsgen_lib.systems.feed_forward_metrics import cases, evaluate
from gsgen_lib.systems.fitting import fit
from gsgen_lib.systems.octree_density import OctreeDensity, load_octree_density
from gsgen_lib.systems.octree_density_training import PARTS, train_density

TOY_SEED = 8_000_000  # the toys of bench feedforward
AROUND = 8
COUNTS = (32, 64, 128, 256, 512, 1024)  # anchors; trained between 64 and 512
KEPT = ROOT / "benchmarks" / "results" / "arms" / "density"
JOINT = {"stage 3": {}, "the same steps, no contributions": {"worth": "none"},
         "points of the surface": {"worth": "none", "anchors": "surface"}}
TAMED = {"first order": {"worth": "first-order"}, "no clamp": {"clamp": False}, "no clip": {"clip": 1.0},
         "background left out": {"background": False}}
NETWORKS = {"K = 2": {"gaussians": 2}, "K = 8": {"gaussians": 8}, "L = 4": {"depth": 4}, "L = 5": {"depth": 5},
            "no sphere": {"weight_sphere": 0.0}, "constant unit": {"spaced": False}}
WHITE = (1.0, 1.0, 1.0)
MISSED: dict[str, str] = {}  # beginnings of bars -> why, and what was tried


def gen(seed=0):
    """A generator of that seed."""
    return torch.Generator().manual_seed(seed)


# ---- 1 · contributions ---------------------------------------------------------------------------------------------


def exactness(scenes: int = 3, count: int = 20, size: int = 24) -> dict[str, float]:
    """Largest |found - by rendering again| over the largest of those, by background, in float64."""
    worst = {}
    for name in ("black", "white", "random"):
        worst[name] = 0.0
        for seed in range(scenes):
            g = Gaussians.random(count, scale=0.1, generator=gen(seed)).to(torch.float64)
            cameras = Cameras.orbit(2, width=size, height=size).to(torch.float64)
            behind = {"black": torch.zeros(3), "white": torch.ones(3)}.get(name, torch.rand(3, generator=gen(seed))).double()
            target = torch.rand(2, size, size, 3, generator=gen(seed + 50), dtype=torch.float64)

            def losses(scene, cameras=cameras, behind=behind, target=target):
                off = rasterize(scene, cameras, behind, "reference").rgb - target
                return torch.stack([off.abs().sum((1, 2, 3)), off.square().sum((1, 2, 3))], -1)  # (V, 2)

            whole, everyone = losses(g), torch.arange(count)
            want = torch.stack([whole - losses(g.select(everyone != j)) for j in range(count)], 1)  # (V, N, 2)
            found = contributions(g, cameras, target, behind, "reference")
            worst[name] = max(worst[name], ((found - want).abs() / want.abs().amax()).max().item())
    return worst


def extra_time(times: int = 15) -> float:
    """Forward and backward with contributions over the same without: median of so many pairs, 4,096 Gaussians, 4 views of 64 x
    64, 8 scenes: what a training step asks for."""
    g = Gaussians.stack([Gaussians.random(4096, scale=0.02, generator=gen(k)) for k in range(8)])
    cameras = Cameras.stack([Cameras.orbit(4)] * 8)
    target = torch.rand(8, 4, 64, 64, 3, generator=gen())

    def step(target=None):
        free = g.map(lambda x: x.clone().requires_grad_())
        rasterize(free, cameras, (1.0, 1.0, 1.0), check=False, target=target).rgb.square().sum().backward()

    ratios = [median_seconds(lambda: step(target), 3) / median_seconds(step, 3) for _ in range(times)]
    return float(np.median(ratios))


def fitted(objects: int):
    """(scene, training cameras and pictures, held-out cameras and pictures) of real test objects, on white."""
    cams = bench.load("fitting").cameras()
    held = torch.arange(len(cams)) % 4 == 1
    for one in [o["id"] for o in list_objects("test") if "mesh" in o["files"]][:objects or None]:
        images = torch.as_tensor(render_mesh(load_mesh(mesh_path(one)), cams, supersample=4).rgba)
        scene = fit(images[~held], cams[~held], generator=gen(), progress=False).gaussians
        white = on_background(images, torch.ones(3))
        yield scene, cams[~held], white[~held], cams[held], white[held]


def pruning(objects: int, bars: list) -> list[dict]:
    """What is left of fitted objects, by three orders."""
    rows, found = [], {}
    for scene, cameras, pictures, other, truth in fitted(objects):
        for part in (1, 2, 4, 8):
            count = scene.num // part
            left = {"contribution": most_worth(scene, cameras, pictures, count, WHITE),
                    "contribution, one round": most_worth(scene, cameras, pictures, count, WHITE, 1),
                    "opacity": scene.select(scene.opacities.argsort(descending=True)[:count]),
                    "chance": scene.select(torch.randperm(scene.num, generator=gen())[:count])}
            for name, some in left.items():
                found.setdefault((part, name), []).append(psnr(rasterize(some, other, WHITE).rgb.clamp(0, 1), truth).item())
    for part in (1, 2, 4, 8):
        rows.append({"what": f"held-out PSNR, 1 / {part} of the Gaussians of {len(found[1, 'chance'])} fitted objects",
                     **{name: interval(found[part, name]) for _, name in found if _ == part}})
        if part > 1:
            better = np.array(found[part, "contribution"]) - found[part, "opacity"]
            rows[-1]["contribution - opacity"] = interval(better)
            bars.append(bar(f"dB that contribution is ahead of opacity, 1 / {part} left, lower end", _low(better), 0.0))
    return rows


def groups(model: OctreeDensity, views: ViewSet, count: int) -> list[dict]:
    """An anchor's K Gaussians at once, against the sum of their contributions, for 24 anchors of each object, judged views."""
    k, together, single = model.config.gaussians, [], []
    for (rgba, cameras, truth, there), points in zip(cases(views, AROUND), views.points, strict=True):
        scene = decoded(model, points, rgba, cameras, count)
        white = on_background(truth, torch.ones(3))

        def loss(g, there=there, white=white):
            return (rasterize(g, there, WHITE).rgb.double() - white).abs().sum().item()

        one = contributions(scene, there, white, WHITE)[..., 0].sum(0).unflatten(0, (count, k)).sum(1)  # (P,)
        whole, number = loss(scene), torch.arange(scene.num) // k
        for j in torch.randperm(count, generator=gen())[:24].tolist():
            together.append(whole - loss(scene.select(number != j)))
            single.append(one[j].item())
    correlation = np.corrcoef(together, single)[0, 1]
    return [{"what": f"all {k} Gaussians of an anchor at once, against the sum of their contributions, P = {count}",
             "correlation": f"{correlation:.3f}", "sum over joint": f"{np.sum(single) / np.sum(together):.3f}"}]


# ---- 2 · samples ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def divergence(model: OctreeDensity, views: ViewSet) -> list[float]:
    """KL(p | q) of each object, nats."""
    found = []
    for i, (rgba, cameras, _, _) in enumerate(cases(views, AROUND)):
        points = views.points[i:i + 1]
        mu, _ = model.encode(points, (rgba[None], Cameras.stack([cameras])))
        cross = -model.log_q(model.context(mu), points[..., :3]).item()
        found.append(cross - entropy(masses(points[..., :3], model.config.depth)[1]).item())
    return found


@torch.no_grad()
def leaf_counts(model: OctreeDensity, views: ViewSet, bars: list, count: int = 256, times: int = 200) -> list[dict]:
    """Counts of the leaves at level 3 over many draws of one test object's density: mean against P q, and variance."""
    rgba, cameras, _, _ = next(iter(cases(views, AROUND)))
    context = model.context(model.encode(views.points[:1], (rgba[None], Cameras.stack([cameras])))[0])
    chance, rows, spread, zero = torch.ones(1), [], {}, torch.zeros(1, dtype=torch.int64)
    at = Nodes(zero, zero.new_zeros(1, 3), zero)
    for _ in range(3):  # q of all 512 nodes at level 3, level by level
        chance = (chance[:, None] * model.density(context.tokens, at, context.places).exp()).flatten()
        at = at.children(torch.arange(len(at.level)).repeat_interleave(8), torch.arange(8).repeat(len(at.level)))
    number = at.place @ torch.tensor([64, 8, 1])
    q = torch.zeros(512, dtype=torch.float64).index_add(0, number, chance.double())
    for how in WAYS:
        counts = torch.zeros(times, 512, dtype=torch.float64)
        for k in range(times):
            leaf = ((model.anchors(context, count, how, gen(k)).points[0] + 0.5) * 8).long().clamp(0, 7)
            counts[k] = torch.bincount(leaf @ torch.tensor([64, 8, 1]), minlength=512)
        often = q >= q.topk(64).values[-1]  # the likeliest nodes
        z = (counts.mean(0) - count * q)[often] / (counts.var(0)[often] / times).clamp_min(1e-4).sqrt()
        spread[how] = counts.var(0).sum().item()
        rows.append({"what": f"counts of {int(often.sum())} nodes of level 3, {times} draws of {count}, {how}",
                     "largest |z| of the mean": f"{z.abs().max():.2f}", "variance, summed": f"{spread[how]:.1f}"})
        bars.append(bar(f"largest |z| of counts, {how}", z.abs().max().item(), 4.5, most=True))
    bars.append(bar("variance of counts, residual over systematic", spread["residual"] / spread["systematic"], 1.0))
    bars.append(bar("variance of counts, iid over residual", spread["iid"] / spread["residual"], 1.0))
    return rows


# ---- 3, 5 · arms ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def decoded(model: OctreeDensity, points, rgba, cameras: Cameras, count: int, seed: int = 0, tokens: int | None = None,
            surface: bool = False) -> Gaussians:
    """The scene of one object from its pictures; surface: anchors are points of the surface, a random choice."""
    mu, _ = model.encode(points[None], (rgba[None], Cameras.stack([cameras])), tokens)
    if not surface:
        return model.decode(mu, count * model.config.gaussians, gen(seed))[0]
    some = torch.randint(len(points), (count,), generator=gen(seed))
    return model.splats(model.context(mu), points[None, some, :3])[0]


def scores(model: OctreeDensity, views: ViewSet, counts=COUNTS, surface: bool = False) -> dict[str, list[float]]:
    """{"P, box" and "P": PSNR of each object}."""
    found = {}
    for count in counts:
        points = iter(views.points)
        each = evaluate(lambda rgba, cameras, points=points, count=count: decoded(model, next(points), rgba, cameras, count,
                                                                                 surface=surface), views, AROUND)
        found |= {f"{count}, box": [round(s["box"], 4) for s in each], str(count): [round(s["psnr"], 4) for s in each]}
    return found


def arm(name: str, options: dict, seed: int, folder: Path, views: ViewSet, again: bool) -> dict:
    """Scores of one arm: its network trained in `folder` from the one after stage 2 (or anew, if its network is another)."""

    def make():
        own, tag = name in NETWORKS, f"{name.replace(' ', '_').replace('=', '').replace(',', '')}_{seed}"
        base = tag if own else f"base_{seed}"
        first, second, third = (folder / f"{stage}_{of}" for stage, of in zip(PARTS, (base, base, tag), strict=True))
        train_density(first, "structure", "experiment", seed=seed, **(options if own else {}))
        train_density(second, "appearance", "experiment", seed=seed, start=str(first / "model"))
        card = train_density(third, "joint", "experiment", seed=seed, start=str(second / "model"), **({} if own else options))
        model = load_octree_density(third / "model")
        return scores(model, views, surface="anchors" in options) | {
            "command": f"gsgen bench density --part {5 if name in TAMED or own else 3}", "hours": card["hours"],
            "commit": card["commit"], "machine": card["machine"]}

    return kept(KEPT / f"{name.replace(' ', '_').replace(',', '')}_{seed}.json", make, again)


def _low(values) -> float:
    from gsgen_lib.metrics import bootstrap_ci
    return bootstrap_ci(np.asarray(values, float), np.random.default_rng(0))[1]


def arms(which: dict, folder: Path, seeds: int, again: bool, views: ViewSet, bars: list) -> list[dict]:
    """Parts 3 and 5: box PSNR by anchors, and differences to stage 3."""
    every = JOINT | which
    found = {name: [arm(name, options, seed, folder, views, again) for seed in range(seeds)] for name, options in every.items()
             if name == "stage 3" or name in which or which is JOINT}
    rows = []
    for name, of in found.items():
        table = {f"P = {count}": np.array([one[f"{count}, box"] for one in of]) for count in COUNTS}
        rows.append({"arm": name, **{key: interval(x) for key, x in table.items()}})
        if name != "stage 3":
            ahead = {f"P = {count}": np.array([a[f"{count}, box"] for a in found["stage 3"]]) - [b[f"{count}, box"] for b in of]
                     for count in COUNTS}
            rows.append({"arm": f"stage 3 less: {name}", **{key: interval(x) for key, x in ahead.items()}})
            if which is JOINT:
                low, high = ahead["P = 64"], ahead["P = 512"]
                bars.append(bar(f"30: dB of stage 3 at P = 64 over: {name}", low.mean(), 0.5))
                bars.append(bar(f"30: lower end of it, over: {name}", _low(low), 0.0))
                bars.append(bar(f"30: dB of stage 3 at P = 512 over: {name}, upper end", -_low(-high), 0.0))
    return rows


# ---- 4 · as shipped ------------------------------------------------------------------------------------------------


def shipped(model: OctreeDensity, sets: dict[str, ViewSet], bars: list) -> list[dict]:
    """Budgets, tokens, other systems at equal Gaussians, seconds."""
    from gsgen_lib.systems.sparse_voxels_flow import load_sparse_voxels
    from gsgen_lib.systems.splat_vae import load_splat_vae

    voxels, vae, rebuilt = load_sparse_voxels(), load_splat_vae(), bench.load("voxels").rebuilt
    rows, k = [], model.config.gaussians
    for what, views in sets.items():
        by = scores(model, views, (*COUNTS, 2048))
        means = [np.mean(by[str(count)]) for count in (*COUNTS, 2048)]
        rows.append({"objects": what, "what": "PSNR from one code",
                     **{f"{k * count} Gaussians": interval(by[str(count)]) for count in (*COUNTS, 2048)}})
        rows.append({"objects": what, "what": "box PSNR from one code",
                     **{f"{k * count} Gaussians": interval(by[f"{count}, box"]) for count in (*COUNTS, 2048)}})
        bars.append(bar(f"31: smallest gain from one budget to the next, dB, {what}", min(np.diff(means)), 0.0))
        same = {"octree density": [], "sparse voxels": [], "splat autoencoder": []}
        for (rgba, cameras, truth, there), points in zip(cases(views, AROUND), views.points, strict=True):
            scene = rebuilt(voxels, points, rgba, cameras)
            few = most_opaque(vae.reconstruct(rgba[::2], cameras[::2]).map(lambda x: x[None]), scene.num)[0]
            own = decoded(model, points, rgba, cameras, round(scene.num / k))
            for name, g in (("octree density", own), ("sparse voxels", scene), ("splat autoencoder", few)):
                same[name].append(psnr(rasterize(g, there, WHITE).rgb.clamp(0, 1),
                                       on_background(truth, torch.ones(3))).item())
        for name in ("sparse voxels", "splat autoencoder"):
            ahead = np.array(same["octree density"]) - same[name]
            rows.append({"objects": what, "what": f"at equal Gaussians: octree density less {name}", "PSNR": interval(ahead)})
            bars.append(bar(f"dB ahead of {name} at equal Gaussians, {what}", ahead.mean(), 0.0))
        rows.append({"objects": what, "what": "at equal Gaussians", **{name: interval(x) for name, x in same.items()}})
        few_tokens = {}
        for tokens in (16, 32, 64, 128, 192):
            points = iter(views.points)
            few_tokens[f"{tokens} tokens"] = interval([s["psnr"] for s in evaluate(
                lambda rgba, cameras, points=points, tokens=tokens: decoded(model, next(points), rgba, cameras, 512,
                tokens=tokens), views, AROUND)])
        rows.append({"objects": what, "what": f"33: PSNR, {512 * k} Gaussians", **few_tokens})
    rgba, cameras, _, _ = next(iter(cases(sets["real"], AROUND)))
    seconds = median_seconds(lambda: decoded(model, sets["real"].points[0], rgba, cameras, 512))
    rows.append({"what": f"encode and decode, {512 * k} Gaussians", "seconds": f"{seconds:.3f}"})
    bars.append(bar("seconds, encode and decode", seconds, 1.0, most=True))
    return rows


def main(part: int = 0, objects: int = 0, toys: int = 48, seeds: int = 3, train_again: bool = False,
         folder: str = "runs/bench_density", network: str = "octree_density") -> dict:
    """part: 1 to 5, or 0 for all; objects: of the real test split, 0 for all; network: a shipped name or a folder."""
    if part not in range(6):
        raise ValueError(f"part: got {part}, wanted 0 to 5")
    for name, value in (("toys", toys), ("seeds", seeds)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, wanted at least 1")
    rows, bars = [], []
    real = load_views("test", limit=objects or None, progress=False)

    def contribution():
        worst = exactness()
        rows.append({"what": "29: largest relative error of a contribution, float64",
                     **{k: f"{v:.1e}" for k, v in worst.items()}})
        bars.append(bar("29: relative error against rendering again", max(worst.values()), 1e-10, most=True, digits=14))
        ratio = extra_time()
        rows.append({"what": "29: time of a training step's render with contributions over without", "ratio": f"{ratio:.3f}"})
        bars.append(bar("29: extra time", ratio - 1, 0.15, most=True))
        some = real[list(range(min(12, len(real))))]
        for count in (64, 512):
            rows.extend(groups(load_octree_density(network), some, count))
        rows.extend(pruning(objects, bars))

    def samples():
        model = load_octree_density(network)
        apart, even = divergence(model, real), replace_density(model)
        rows.append({"what": "KL(p | q), nats, test objects", "even density": interval(divergence(even, real)),
                     "as shipped": interval(apart)})
        bars.append(bar("KL(p | q) as shipped over that of an even density", np.mean(apart) / np.mean(divergence(even, real)),
                        0.5, most=True))
        rows.extend(leaf_counts(model, real, bars))

    run = {1: contribution, 2: samples, 3: lambda: rows.extend(arms(JOINT, Path(folder), seeds, train_again, real, bars)),
           4: lambda: rows.extend(shipped(load_octree_density(network),
                                          {"real": real, "toys": toy_views(toys, TOY_SEED, 64, split="test")}, bars)),
           5: lambda: rows.extend(arms(TAMED | NETWORKS, Path(folder), seeds, train_again, real, bars))}
    for number, call in run.items():
        if part in (0, number):
            call()
    note = (f"PSNR on white, mean over pictures. Seconds with torch on {torch.get_num_threads()} threads. Shipped network: "
            f"{read_card(ROOT / 'data/checkpoints' / network).get('command', '?') if network == 'octree_density' else network}.")
    return {"name": "density", "rows": rows, "bars": bars, "note": note}


def replace_density(model: OctreeDensity) -> OctreeDensity:
    """The same network whose density is even: the last layer of it is 0."""
    from copy import deepcopy
    even = deepcopy(model)
    torch.nn.init.zeros_(even.density.head.weight)
    torch.nn.init.zeros_(even.density.head.bias)
    return even

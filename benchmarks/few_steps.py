"""How many steps a sampler needs, and how a structure autoencoder is taught: gsgen bench few_steps [--json].

1. Points on four real objects, half of them to learn from: sliced Wasserstein distance of drawn points to the other half, after
   4 to 120 steps of flow, DDIM and DDPM, and of the half that was learned from (the floor). `seeds` each.
2. The same for structure latents of voxels (preset "experiment", ARM_STEPS steps, `seeds` each), nothing given, along their 32
   principal directions; truth and floor are latents of training objects, half real ones, half toys.
3. Structure autoencoders with Dice alone and with cross-entropy (preset "experiment", ARM_STEPS steps, `seeds` each): IoU.

Means, 95 % intervals by bootstrap over seeds and objects. Networks of parts 2 and 3 are trained in --folder and the scores of all
kept in benchmarks/results/arms/voxels, with the commit that trained them; what is there is read, unless --train-again.
"""

import shutil
from pathlib import Path

import numpy as np
import torch

from gsgen_lib import pretrained
from gsgen_lib.bench import ROOT, bar, interval, kept
from gsgen_lib.data.multiview import load_views, toy_views
from gsgen_lib.data.view_sets import ViewSet
from gsgen_lib.distributions import sliced_wasserstein
from gsgen_lib.nn.sparse_grid import structure_tokens
from gsgen_lib.systems.feed_forward_training import training_objects
from gsgen_lib.systems.few_steps import METHODS, draw, principal, steps_for, train_points
from gsgen_lib.systems.prior import load_prior
from gsgen_lib.systems.sparse_voxels import iou, load_structure
from gsgen_lib.systems.sparse_voxels_flow import Given, load_flow, structure_asker
from gsgen_lib.systems.sparse_voxels_training import PRESETS, grids_of, kept_latents, latents_of, train_voxels

TOY_SEED = 8_000_000  # the toys of bench feedforward
AT = (4, 8, 12, 16, 24, 30, 60, 120)  # steps
POINTS = ("chair_01", "horse_02", "teddy_bear", "biplane")
ARM_STEPS = 1_000
LATENTS = 128  # drawn for each point of a curve
CARD = ("command", "hours", "commit", "machine")  # what is kept of the card of an arm
KEPT = ROOT / "benchmarks" / "results" / "arms" / "voxels"
MISSED = {  # beginnings of bars -> why, and what was tried
    "27: points: steps of DDPM over the 12 of flow":
        "On points the 12 steps of the flow are worth nearly four times as many of DDPM, and twice as many of DDIM. Five times "
        "holds where more is asked for: what the flow has after 24 steps neither has after 120. Networks are small and equal; "
        "larger ones were not tried.",
}


def gen(seed=0):
    """A generator of that seed."""
    return torch.Generator().manual_seed(seed)


def point_curves(name: str, seed: int) -> dict:
    """Part 1 on points of one object: {method: {steps: distance}} and "floor", that of half of the points to the others."""
    views = load_views("train")
    points = views.points[views.ids.index(name)][:, :3]
    points = (points - points.mean(0)) / points.std()
    half = torch.randperm(len(points), generator=gen(seed))
    held, seen = points[half[:len(points) // 2]], points[half[len(points) // 2:]]

    def apart(x):
        return sliced_wasserstein(x, held, generator=gen()).value

    nets = {ddpm: train_points(seen, ddpm, seed=seed) for ddpm in (False, True)}
    noise = torch.randn(2048, 3, generator=gen(seed))
    found = {m: {str(n): apart(draw(nets[m != "flow"], m, noise, n, generator=gen(seed))) for n in AT} for m in METHODS}
    return found | {"floor": apart(seen)}


def latent_curves(folder: Path, seed: int, again: bool) -> dict:
    """Part 2 on structure latents, as `point_curves`; networks are trained in `folder` unless they are there."""
    nets, sha = {}, pretrained.read_card(pretrained.checked_folder("voxel_structure"))["sha256"]["model.safetensors"]
    for ddpm in (False, True):
        out = folder / f"structure_{'ddpm' if ddpm else 'flow'}_{seed}"
        card = trained(out, again, part="structure-flow", ddpm=ddpm, seed=seed)
        nets[ddpm] = load_flow(out / "model")
        if card["autoencoder_sha256"] != sha or nets[ddpm].config.ddpm != ddpm:
            raise ValueError(f"{out}: holds a network of another kind or autoencoder; delete it")
    p = PRESETS["experiment"]
    sets, _ = training_objects(p, p["size"], seed, folder)
    latents = kept_latents(folder / f"latents_structure-flow_{sha[:8]}_{p['toys']}_{seed}.safetensors",
                           lambda: latents_of(load_structure(), sets, p["resolution"]), sha)
    many, real = len(latents["mu"]), 2 * len(sets[0])
    pick = torch.cat([torch.randperm(n, generator=gen(seed))[:2 * LATENTS] + low for n, low in ((real, 0), (many - real, real))])
    mu, logvar = (latents[key][pick].float() for key in ("mu", "logvar"))
    z, side = mu + (0.5 * logvar).exp() * torch.randn(mu.shape, generator=gen(seed)), nets[False].config.reach  # as in training
    truth = nets[False].scale(structure_tokens(z, side)).unflatten(0, (len(pick), -1)).flatten(1)  # half real, half toys
    lines = principal(truth)
    order = torch.randperm(len(truth), generator=gen(seed + 1))
    one, other = (truth[part] @ lines for part in order.chunk(2))

    def apart(x):
        return sliced_wasserstein(x, one, generator=gen()).value

    words = load_prior().encode_prompt([""]).expand(LATENTS, -1, -1)
    size = nets[False].config.size
    given = Given(words, torch.zeros(LATENTS, size, size, 4), torch.zeros(LATENTS))
    noise = torch.randn(LATENTS, side**3, nets[False].config.numbers, generator=gen(seed))
    found = {}
    for method in METHODS:
        ask = structure_asker(nets[method != "flow"], given)
        found[method] = {str(n): apart(draw(ask, method, noise, n, 3.0, gen(seed)).flatten(1) @ lines) for n in AT}
    return found | {"floor": apart(other)} | {key: card[key] for key in CARD}


def trained(out: Path, again: bool, **settings) -> dict:
    """The card of a network of preset "experiment" that is trained in `out`, ARM_STEPS steps, unless it is there or `again`."""
    if again:
        shutil.rmtree(out, ignore_errors=True)
    if not (out / "model" / "card.json").is_file():
        with torch.enable_grad():
            train_voxels(out, preset="experiment", steps=ARM_STEPS, **settings)
    return pretrained.read_card(out / "model")


def steps(part: int, folder: Path, seeds: int, again: bool, bars: list) -> list[dict]:
    """Parts 1 and 2, or one of them."""
    rows = []
    for number, what, names, make in (
            (1, "points", POINTS, lambda name, seed: point_curves(name, seed)),
            (2, "structure latents", ("",), lambda name, seed: latent_curves(folder, seed, again))):
        if part not in (0, number):
            continue
        found = [kept(KEPT / f"{what.replace(' ', '_')}_{name}{'_' * bool(name)}{seed}.json",
                      lambda n=name, s=seed, make=make: make(n, s), again) for name in names for seed in range(seeds)]
        mean = {m: {n: float(np.mean([f[m][str(n)] for f in found])) for n in AT} for m in METHODS}
        for method in METHODS:
            rows.append({"what": f"{what}, {method}", **{f"{n} steps": f"{mean[method][n]:.3f}" for n in AT},
                         "true ones (floor)": interval([f["floor"] for f in found], 3)})
        wanted = mean["flow"][12]
        for method in ("ddpm", "ddim"):
            needs = steps_for(mean[method], wanted)
            rows.append({"what": f"{what}: steps that {method} needs for what flow has after 12",
                         "steps": f"{needs:.0f}" if needs < 1e9 else f"more than {AT[-1]}"})
            if method == "ddpm":
                times = min(needs, AT[-1]) / 12
                bars.append(bar(f"27: {what}: steps of DDPM over the 12 of flow, at equal distance", times, 5))
    return rows


def structure_arm(out: Path, dice_alone: bool, seed: int, again: bool, sets: dict[str, ViewSet]) -> dict:
    """One network of part 3: {"toys", "real": IoU of each object, and what its card says}."""
    card = trained(out, again, part="structure", dice_alone=dice_alone, seed=seed)
    vae, found = load_structure(out / "model"), {}
    if vae.config.dice_alone != dice_alone:
        raise ValueError(f"{out}: holds a network of another kind; delete it")
    for what, views in sets.items():
        grids = grids_of(views, vae.config.resolution)
        found[what] = [round(x, 5) for part in grids.split(16) for x in iou(vae.decode(vae.encode(part)[0]) > 0, part).tolist()]
    return found | {key: card[key] for key in CARD}


def structure_arms(folder: Path, seeds: int, again: bool, sets: dict[str, ViewSet]) -> list[dict]:
    """Part 3."""
    rows = []
    for name, dice_alone in (("Dice and cross-entropy", False), ("Dice alone, as in the paper", True)):
        found = []
        for seed in range(seeds):
            file = f"structure_{'dice' if dice_alone else 'both'}_{seed}"
            found.append(kept(KEPT / f"{file}.json",
                              lambda n=file, s=seed, d=dice_alone: structure_arm(folder / n, d, s, again, sets), again))
        rows.append({"what": f"small structure autoencoder, {name}",
                     **{f"IoU, {what}": interval([f[what] for f in found], 3) for what in sets}})
    return rows


def main(part: int = 0, seeds: int = 3, train_again: bool = False, objects: int = 0, toys: int = 70,
         folder: str = "runs/bench_voxels") -> dict:
    """part: 1 to 3, 0 for all; train_again: train in `folder` what has kept scores, too; objects: of the test split, 0: all."""
    if part not in range(4):
        raise ValueError(f"part: got {part}, wanted 0 to 3")
    if seeds < 1:
        raise ValueError(f"seeds: got {seeds}, wanted at least 1")
    sets = {"toys": toy_views(toys, TOY_SEED, 64, split="test"), "real": load_views("test", limit=objects or None)}
    bars = []
    with torch.no_grad():
        rows = steps(part, Path(folder), seeds, train_again, bars)
        if part in (0, 3):
            rows += structure_arms(Path(folder), seeds, train_again, sets)
    return {"name": "few_steps", "rows": rows, "bars": bars}

"""Sparse voxels and rectified flow: gsgen bench voxels [--json].

1. How much of a grid is occupied, at R = 16, 32 and 64, on toys and real training objects.
2. The shipped autoencoders on test objects. Structure: IoU of decoded bits with the true ones. Appearance, from eight views, on
   the questions of `gsgen bench feedforward`: PSNR of eight other views, beside the splat autoencoder of notebook 06 from four
   views, with all its Gaussians and with as many as there are here; and from 1, 2, 4 and 8 views (true voxels are given).
3. Time: one scene from noise to Gaussians; one step of the appearance flow on the cells that are active, on all cells of the
   grid, and on a batch that is packed, or padded to its longest, with products and tokens of each.
4. Scenes: KID of their renders with nothing given, beside true scenes through the autoencoder and other true renders; own caption
   first of 50 by the prompt scorer, 100 captions of held-out combinations; one picture given: PSNR of it and of other views.
5. Editing: toys drawn again in another colour, all voxels kept; half of their space repainted, the rest kept. Is what was kept
   the same to the bit? Which of both captions does the prompt scorer hear in the new one?
6. How many steps: gsgen bench few_steps.

Means with 95 % intervals: bootstrap over objects.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gsgen_lib import bench
from gsgen_lib.bench import bar, interval, median_seconds
from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.data.multiview import load_views, toy_views
from gsgen_lib.data.occupancy import occupancy
from gsgen_lib.data.view_sets import ViewSet
from gsgen_lib.distributions import kid
from gsgen_lib.image_features import features_name, image_features
from gsgen_lib.metrics import psnr
from gsgen_lib.nn.sparse_grid import Voxels
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems.feed_forward import most_opaque
from gsgen_lib.systems.feed_forward_metrics import cases, evaluate
from gsgen_lib.systems.prompt_scorer import load_scorer
from gsgen_lib.systems.sparse_voxels import iou, voxel_features
from gsgen_lib.systems.sparse_voxels_edit import encoded, inside, repaint, restyle
from gsgen_lib.systems.sparse_voxels_flow import SparseVoxels, load_sparse_voxels
from gsgen_lib.systems.sparse_voxels_training import AROUND, grids_of
from gsgen_lib.systems.splat_diffusion import scene_cameras
from gsgen_lib.systems.splat_diffusion_metrics import captions_first
from gsgen_lib.systems.splat_diffusion_training import scene_views
from gsgen_lib.systems.splat_vae import load_splat_vae

TOY_SEED, SCENE_SEED = 8_000_000, 8_500_000  # the toys of bench feedforward, and of bench latents
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange")
MISSED: dict[str, str] = {}  # beginnings of bars -> why, and what was tried


def gen(seed=0):
    """A generator of that seed."""
    return torch.Generator().manual_seed(seed)


def white(rgba):
    """On white."""
    return on_background(rgba, torch.ones(3))


def look(scene, cameras) -> torch.Tensor:
    """Pictures on white (V, S, S, 3) of one scene."""
    return rasterize(scene, cameras, (1.0, 1.0, 1.0)).rgb.clamp(0, 1)


# ---- 1, 2 · how empty, and the autoencoders ------------------------------------------------------------------------


def emptiness(sets: dict[str, ViewSet], bars: list) -> list[dict]:
    """Part 1."""
    rows = []
    for what, views in sets.items():
        share = {r: [occupancy(points, r).float().mean().item() for points in views.points] for r in (16, 32, 64)}
        rows.append({"objects": what, "what": f"occupied share of the grid, {len(views)} objects",
                     **{f"R = {r}": interval(x, 4) for r, x in share.items()}})
        for low, high in ((16, 32), (32, 64)):
            ratio = np.mean(share[low]) / np.mean(share[high])
            bars.append(bar(f"26: occupied share, {what}, R = {low} over R = {high}", ratio, 1.5))
    return rows


def at(views: ViewSet, i: int) -> Cameras:
    """The ring of eight cameras around object i."""
    return replace(views.cameras, viewmats=views.cameras.viewmats[i, :AROUND], Ks=views.cameras.Ks[i, :AROUND])


def rebuilt(sampler: SparseVoxels, points, rgba, cameras):
    """The Gaussians of a true object: its voxels, their latents from some pictures, decoded."""
    voxels = Voxels.from_grid(occupancy(points, sampler.appearance.config.resolution)[None])
    return encoded(sampler, voxels, voxel_features(voxels, rgba[None], Cameras.stack([cameras]))).gaussians


def autoencoders(sampler: SparseVoxels, sets: dict[str, ViewSet], bars: list) -> list[dict]:
    """Part 2."""
    rows, vae = [], load_splat_vae()
    for what, views in sets.items():
        grids = grids_of(views, sampler.structure.config.resolution)
        same = torch.cat([iou(sampler.structure.decode(sampler.structure.encode(part)[0]) > 0, part)
                          for part in grids.split(16)]).tolist()
        rows.append({"objects": what, "what": "structure, decoded", "IoU": interval(same, 3)})
        if what == "toys":
            bars.append(bar("IoU of structures, toys", np.mean(same), 0.85))
        counts, scores = {}, {}
        for count in (1, 2, 4, 8):
            some = iter(views.points)

            def build(rgba, cameras, some=some, what=what):
                scene = rebuilt(sampler, next(some), rgba, cameras)
                counts.setdefault(what, []).append(scene.num)
                return scene

            counts.pop(what, None)
            scores[count] = evaluate(build, views, count)
        for count, found in scores.items():
            rows.append({"objects": what, "what": f"voxels, from {count} views", "PSNR": interval([s["psnr"] for s in found]),
                         "box PSNR": interval([s["box"] for s in found]), "alpha IoU": interval([s["iou"] for s in found], 3),
                         "Gaussians": f"{np.mean(counts[what]):.0f}"})
        budget = iter(counts[what])
        same_number = evaluate(lambda rgba, cameras, budget=budget: _few(vae.reconstruct(rgba, cameras), next(budget)), views)
        for name, found in (("splat autoencoder, as many Gaussians", same_number),
                            ("splat autoencoder, all of its Gaussians", evaluate(vae.reconstruct, views))):
            rows.append({"objects": what, "what": name, "PSNR": interval([s["psnr"] for s in found]),
                         "box PSNR": interval([s["box"] for s in found]), "alpha IoU": interval([s["iou"] for s in found], 3)})
        below = np.mean([s["psnr"] for s in same_number]) - np.mean([s["psnr"] for s in scores[8]])
        bars.append(bar(f"dB below the splat autoencoder at equal Gaussians, {what}", below, 1.5, most=True))
    return rows


def _few(scene, count: int):
    return most_opaque(scene.map(lambda x: x[None]), count)[0]


# ---- 3 · time ------------------------------------------------------------------------------------------------------


def speed(sampler: SparseVoxels, views: ViewSet, bars: list) -> list[dict]:
    """Part 3."""
    whole = median_seconds(lambda: sampler.sample(["a red chair"], generator=gen()))
    rows = [{"what": "one scene, 12 + 12 steps with guidance, Gaussians ready", "seconds": f"{whole:.2f}"}]
    bars.append(bar("one scene, seconds", whole, 3.0, most=True))
    net, r = sampler.flow_appearance, sampler.appearance.config.resolution
    grids = grids_of(views, r)[:8]

    def flow_call(lengths):
        total = sum(lengths)
        x, extra = torch.zeros(total, net.config.numbers), torch.zeros(total, net.config.extra)
        given = sampler.condition([""] * len(lengths))
        return (x, extra, torch.zeros(total, 3), lengths, torch.full((len(lengths),), 0.5), given)

    cells = Voxels.from_grid(grids).cells()[3]  # cells of each object
    asked = {"the active cells of one object": (sorted(cells)[len(cells) // 2],), "all cells of its grid": ((r // 2) ** 3,),
             "eight objects, packed": cells, "eight objects, padded to the longest": (max(cells),) * len(cells)}
    taken = {}
    with torch.no_grad():
        for name, lengths in asked.items():
            call = flow_call(lengths)
            taken[name] = median_seconds(lambda call=call: net(*call), 3)
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # whose products are counted
                net(*call)
            rows.append({"what": f"one step of the appearance flow: {name}", "seconds": f"{taken[name]:.3f}",
                         "tokens": sum(lengths), "billion products": f"{counter.get_total_flops() / 2e9:.2f}"})
    sparse, dense, packed, padded = taken.values()
    bars.append(bar("seconds of a step on the whole grid over one on active cells", dense / sparse, 2))
    bars.append(bar("seconds of a padded batch over a packed one", padded / packed, 1))
    return rows


# ---- 4 · scenes ----------------------------------------------------------------------------------------------------


def scenes(sampler: SparseVoxels, scorer, count: int, asked: ViewSet, real: ViewSet, bars: list) -> list[dict]:
    """Part 4."""
    cameras, rows = scene_cameras(), []

    def drawn(captions, pictures=None, scale=3.0):
        found = []
        for i in range(0, len(captions), 10):
            some = None if pictures is None else pictures[i:i + 10]
            found += sampler.sample(captions[i:i + 10], some, guidance_scale=scale, generator=gen(i))
        return found

    one = torch.arange(count) % len(cameras)  # which view of a scene is looked at, so that pictures are independent
    mixed = min(count // 2, 17)  # of 35 validation objects
    true = [(toy_views(count - mixed, SCENE_SEED + k, 64, AROUND, progress=False),
             load_views("val")[list(range(k * mixed, (k + 1) * mixed))]) for k in (0, 1)]
    again = [look(rebuilt(sampler, v.points[i], v.images[i, :AROUND].float() / 255, at(v, i)), cameras)
             for v in true[0] for i in range(len(v))]
    seen = [torch.cat([white(v.images[:, :AROUND:2].float() / 255) for v in pair]) for pair in true]  # the ring's four
    free = [look(s, cameras) for s in drawn([""] * count, scale=1.0)]
    reference = image_features(seen[1][torch.arange(count), one])
    for name, pictures in (("samples", torch.stack(free)), ("true scenes, encoded and decoded", torch.stack(again)),
                           ("true renders (floor)", seen[0])):
        apart = kid(image_features(pictures[torch.arange(count), one]), reference, features=features_name())
        rows.append({"what": f"nothing given: {name}", "KID": f"{apart.value:.3f} +- {1.96 * apart.std:.3f}"})

    pictures = torch.cat([look(s, cameras) for s in drawn(asked.captions)])
    first = captions_first(scorer, pictures, asked.captions)
    truth = captions_first(scorer, white(asked.images.flatten(0, 1).float() / 255), asked.captions)
    rows += [{"what": "words, guidance 3", "own caption first of 50": f"{first:.2f}"},
             {"what": "words: true renders of these captions", "own caption first of 50": f"{truth:.2f}"}]
    bars.append(bar("own caption first of 50", first, 0.7))

    found = {"front": [], "others": []}
    fronts = torch.stack([rgba[0] for rgba, *_ in cases(real, 1)])
    for scene, (rgba, camera, target, there) in zip(drawn([""] * len(real), fronts, 2.0), cases(real, 1), strict=True):
        found["front"].append(psnr(look(scene, camera), white(rgba)).item())
        found["others"].append(psnr(look(scene, there), white(target), "none").mean().item())
    rows.append({"objects": "real", "what": "one picture given, one sample", "PSNR": interval(found["others"]),
                 "PSNR, the picture": interval(found["front"])})
    return rows


# ---- 5 · editing ---------------------------------------------------------------------------------------------------


def editing(sampler: SparseVoxels, scorer, count: int, bars: list) -> list[dict]:
    """Part 5."""
    views = toy_views(4 * count, SCENE_SEED + 11, 64, AROUND, progress=False)
    cameras, box, rows = scene_cameras(), ((-0.5,) * 3, (0.5, 0.5, 0.0)), []
    same, near, heard = [], [], {"all drawn again": [], "half repainted": []}
    for i, caption in enumerate(views.captions):
        old = next((c for c in COLOURS if f" {c} " in f" {caption} "), None)
        if old is None or len(same) == count:
            continue
        new = COLOURS[(COLOURS.index(old) + 1) % len(COLOURS)]
        said = f" {caption} ".replace(f" {old} ", f" {new} ").strip()
        voxels = Voxels.from_grid(occupancy(views.points[i], sampler.appearance.config.resolution)[None])
        features = voxel_features(voxels, views.images[i:i + 1, :AROUND].float() / 255, Cameras.stack([at(views, i)]))
        asset = encoded(sampler, voxels, features)
        given = sampler.condition([said])
        painted = restyle(sampler, asset, given, generator=gen(i), guidance_scale=3.0)
        half = repaint(sampler, asset, given, box, generator=gen(i), guidance_scale=3.0)
        old_rows, new_rows = ~inside(asset.voxels, box), ~inside(half.voxels, box)
        same.append(torch.equal(painted.voxels.coords, asset.voxels.coords)
                    and torch.equal(asset.voxels.coords[old_rows], half.voxels.coords[new_rows])
                    and torch.equal(asset.raw[old_rows], half.raw[new_rows]))
        near.append(iou(half.voxels.grid(), asset.voxels.grid()).item())
        for name, scene in (("all drawn again", painted), ("half repainted", half)):
            both = scorer.similarity(look(scene.gaussians, cameras), [caption, said]).mean(0)  # (2,)
            heard[name].append(float(both[1] > both[0]))
        before = scorer.similarity(look(asset.gaussians, cameras), [caption, said]).mean(0)
        heard.setdefault("before", []).append(float(before[1] > before[0]))
    rows.append({"what": f"editing, {len(same)} toys: kept voxels and their Gaussians the same to the bit",
                 "share": f"{np.mean(same):.2f}"})
    for name, found in heard.items():
        rows.append({"what": f"editing: caption with the other colour is heard, {name}", "share": interval(found)})
    rows.append({"what": "editing: IoU of the repainted structure with the old one", "IoU": interval(near, 3)})
    bars.append(bar("28: kept voxels the same to the bit", np.mean(same), 1.0))
    bars.append(bar("28: the other colour is heard where all latents are drawn again", np.mean(heard["all drawn again"]), 0.75))
    return rows


def main(objects: int = 0, toys: int = 70, captions: int = 100, scenes_drawn: int = 100, edits: int = 40, seeds: int = 3,
         arms: bool = True, train_again: bool = False, networks: str = "") -> dict:
    """objects: of the real test split, 0 for all; arms: with part 6, `seeds` and `train_again` are its options; networks: folder
    with voxel_structure/model and so on, else the shipped ones."""
    if seeds < 1:
        raise ValueError(f"seeds: got {seeds}, wanted at least 1")
    names = ("structure", "appearance", "structure_flow", "appearance_flow")
    paths = [str(Path(networks) / f"voxel_{n}" / "model") if networks else f"voxel_{n}" for n in names]
    sampler, scorer, bars = load_sparse_voxels("cpu", *paths), load_scorer(), []
    sets = {"toys": toy_views(toys, TOY_SEED, 64, split="test"), "real": load_views("test", limit=objects or None)}
    asked = scene_views(captions, SCENE_SEED + 5, split="test", progress=False)
    with torch.no_grad():
        rows = emptiness({"toys": toy_views(toys, TOY_SEED + 1, 64, AROUND), "real": load_views("train")}, bars)
        rows += autoencoders(sampler, sets, bars)
        rows += speed(sampler, sets["toys"], bars)
        rows += scenes(sampler, scorer, scenes_drawn, asked, sets["real"], bars)
        rows += editing(sampler, scorer, edits, bars)
    if arms:
        more = bench.load("few_steps").main(0, seeds, train_again, objects, toys)
        rows, bars = rows + more["rows"], bars + more["bars"]
    note = (f"PSNR on white, mean over pictures of that of each. {features_name()}; judge: {scorer.name}. Seconds with torch on "
            f"{torch.get_num_threads()} threads. One sample for each question, no selection.")
    return {"name": "voxels", "rows": rows, "bars": bars, "note": note}

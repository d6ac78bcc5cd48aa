"""gsgen train density: three stages, each a training of its own that begins where the one before ended.

    gsgen train density                        all three: runs/octree_density/structure, appearance, joint, and model
    gsgen train density --part joint --start FOLDER     one of them, from a network that is there

Objects are those of `gsgen train vae`: toys and real training objects, equal shares of a batch, half of them mirrored. Their
points read the eight views around an object, Gaussians are judged on four of all its views. How many anchors (`count`) and
tokens (`tokens`) a step has is drawn for each step, evenly on a line of logarithms, so that the network serves any number; in
stage 3 the range of anchors is wider where there is time for it.

Arms of notebook 10: --worth none (stage 3 without what pictures say about places), --worth first-order, --anchors surface
(anchors are points of the true surface), and what `How` can be.

Taught in notebook 10. Source: DeG (2605.16355), released code; see `systems.octree_density`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from gsgen_lib import pretrained
from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.data.view_sets import ViewSet
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems.contribution_gradient import How, appearance_loss, structure_loss
from gsgen_lib.systems.feed_forward_training import mirrored, options, training_objects
from gsgen_lib.systems.octree_density import DensityConfig, OctreeDensity, load_octree_density
from gsgen_lib.systems.sparse_voxels_training import AROUND, drawn, some_views
from gsgen_lib.training import TrainConfig, seeded, train

PARTS = ("structure", "appearance", "joint")
WORTHS = ("exact", "first-order", "none")
JUDGED = 4  # views that Gaussians are compared with
SMALL = dict(width=96, layers=(2, 1, 2, 3))
PRESETS = {
    "tiny": dict(network=dict(depth=3, tokens=8, width=24, heads=2, layers=(1, 1, 1, 1)), size=32, count=((8, 16), (8, 16)),
                 tokens=(4, 8), toys=6, real=6, steps=(4, 4, 4), batch=2, lr=1e-3),
    "experiment": dict(network=dict(tokens=64) | SMALL, size=64, count=((64, 512), (64, 512)), tokens=(32, 64), toys=300,
                       real=None, steps=(800, 1_200, 600), batch=4, lr=1e-3),
    "cpu": dict(network=dict(tokens=128), size=64, count=((64, 512), (64, 1024)), tokens=(32, 128), toys=1200, real=None,
                steps=(4_000, 10_000, 4_000), batch=8, lr=7e-4),
    "gpu": dict(network=dict(depth=7, tokens=512, width=288, heads=8, layers=(6, 4, 4, 8), gaussians=8), size=128,
                count=((256, 4096), (256, 8192)), tokens=(128, 512), toys=4000, real=None, steps=(40_000, 80_000, 40_000),
batch=32, lr=3e-4), }


def log_even(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number from low to high, even on a line of logarithms.

    >>> log_even(5, 5, torch.Generator().manual_seed(0))
    5
    """
    share = float(torch.rand(1, generator=generator))
    return round(math.exp(math.log(low) + share * (math.log(high) - math.log(low))))


def batches(sets: list[ViewSet], batch: int, counts: tuple[int, int], tokens: tuple[int, int], places: bool = False):
    """draw_batch for `training.train`: points (B, P, 9), rgba (B, AROUND + JUDGED, S, S, 4), viewmats, Ks, tokens, count, and if
    places: anchors on the surface (B, count, 3), else None."""

    def draw_batch(generator):
        parts, points = [], []
        for views, rows in zip(sets, drawn([len(s) for s in sets], batch, generator), strict=True):
            judged = torch.rand(len(rows), views.images.shape[1], generator=generator).argsort(1)[:, :JUDGED]
            parts.append(some_views(views, rows, torch.cat([torch.arange(AROUND).expand(len(rows), -1), judged], 1)))
            points.append(views.points[rows])
        rgba, points, first = torch.cat([p for p, _ in parts]), torch.cat(points).clone(), parts[0][1]
        cameras = replace(first, viewmats=torch.cat([c.viewmats for _, c in parts]), Ks=torch.cat([c.Ks for _, c in parts]))
        turn = torch.rand(batch, generator=generator) < 0.5
        rgba, cameras = mirrored(rgba, cameras, turn)
        for axis in (0, 3):  # x of place and of normal
            points[turn, :, axis] *= -1
        m, count = log_even(*tokens, generator), log_even(*counts, generator)
        at = None
        if places:
            at = torch.stack([p[torch.randint(len(p), (count,), generator=generator), :3] for p in points])
        return points, rgba, cameras.viewmats, cameras.Ks, m, count, at

    return draw_batch


def train_density(out: Path | None = None, part: str = "all", preset: str = "cpu", steps: int | None = None,
                  start: str | None = None, worth: str = "exact", anchors: str = "density", background: bool = True,
                  clamp: bool = True, clip: float = 0.9, depth: int | None = None, gaussians: int | None = None,
                  weight_sphere: float | None = None, weight_structure: float | None = None, spaced: bool = True,
                  placed: bool = True, seed: int = 0, minutes: float | None = None, device: str | None = None) -> dict:
    """Train one of the PARTS, or all; returns the card of the last, {} if `minutes` (of each) ended it before its last step.

    out: folder, runs/octree_density if not given; a training that was interrupted goes on. start: the network that part
    "appearance" or "joint" begins with, a shipped name or a folder. worth, background, clamp, clip: of stage 3, see `How`, "none"
    for the same stage without; anchors: "surface" for points of the surface instead of samples; depth, gaussians, weights,
    spaced, placed: of the network, see `DensityConfig`, where it begins.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset: got {preset!r}, wanted one of {', '.join(PRESETS)}")
    if part not in ("all", *PARTS):
        raise ValueError(f"part: got {part!r}, wanted all or one of {', '.join(PARTS)}")
    if worth not in WORTHS or anchors not in ("density", "surface"):
        raise ValueError(f"worth, anchors: got {worth!r}, {anchors!r}, wanted one of {', '.join(WORTHS)}, density or surface")
    if anchors == "surface" and worth != "none":
        raise ValueError("worth: got anchors on the surface, which no density drew, wanted 'none'")
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise ValueError(f"steps: got {steps!r}, wanted a whole number >= 1")
    if (start is None) != (part in ("all", "structure")):
        raise ValueError(f"start: got {start!r} for part {part!r}, wanted a network to begin with for appearance and joint alone")
    p, out = PRESETS[preset], Path(out or "runs/octree_density")
    how = None if worth == "none" else How(worth == "exact", background, clamp, clip)
    said = {"steps": steps, "start": start, "worth": None if worth == "exact" else worth,
            "anchors": None if anchors == "density" else anchors, "clip": None if clip == 0.9 else clip, "depth": depth,
            "gaussians": gaussians, "weight_sphere": weight_sphere, "weight_structure": weight_structure, "seed": seed or None}
    switches = (("background", background), ("clamp", clamp), ("spaced", spaced), ("placed", placed))
    flags = "".join(f" --no-{name}" for name, on in switches if not on)
    changed = {"depth": depth, "gaussians": gaussians, "weight_sphere": weight_sphere, "weight_structure": weight_structure,
               "spaced": None if spaced else False, "placed": None if placed else False}
    new = DensityConfig(**p["network"] | {k: v for k, v in changed.items() if v is not None})
    sets, shown = training_objects(p, p["size"], seed, out.parent)
    card, command = {}, f"gsgen train density --part {part} --preset {preset}{options(said)}{flags}"
    for stage in PARTS if part == "all" else (part,):
        last = stage == PARTS[-1] or part != "all"
        folder = out / stage if part == "all" else out
        kept = out / "model" if last else folder / "model"
        card = _stage(stage, p, sets, shown, folder, kept, new, start, steps, how, anchors == "surface", seed, minutes, device,
                      command)
        if not card:
            print(f"{stage}: not at its last step; call again to go on")
            return {}
        start = str(kept)
    return card


def _stage(stage: str, p: dict, sets: list[ViewSet], shown: ViewSet, folder: Path, kept: Path, config: DensityConfig,
           start: str | None, steps: int | None, how: How | None, surface: bool, seed: int, minutes: float | None,
           device: str | None, command: str) -> dict:
    """One training, its network saved in `kept`; the card, {} if it has not ended, or what is there if it has."""
    if (kept / "card.json").is_file():
        return pretrained.read_card(pretrained.checked_folder(kept))
    before = None
    if start is None:
        model = seeded(lambda: OctreeDensity(config), seed)
    else:
        before, model = pretrained.beginning(start), load_octree_density(start).requires_grad_(True)
        config = model.config
    number = PARTS.index(stage)
    count = p["steps"][number] if steps is None else steps
    plan = TrainConfig(steps=count, lr=p["lr"] / (5 if stage == "joint" else 1), warmup=min(200, max(1, count // 5)),
                       weight_decay=0.01, ema_decay=0.999, checkpoint_every=250, seed=seed + 1_000 * number, precision="bf16")

    def loss_fn(network, data, generator):
        points, rgba, viewmats, Ks, tokens, anchors, places = data
        cameras = Cameras(viewmats, Ks, p["size"], p["size"])
        read = rgba[:, :AROUND], cameras[:AROUND]
        if stage == "structure":
            return structure_loss(network, config, points, *read, tokens, generator)
        return appearance_loss(network, config, points, *read, tokens, anchors, rgba[:, AROUND:], cameras[AROUND:], generator,
                               how if stage == "joint" else None, places)

    counts = p["count"][max(number - 1, 0)]
    draw = batches(sets, p["batch"], counts, p["tokens"], surface)
    facts = {"network": asdict(config), "stage": stage, "how": None if how is None else asdict(how), "surface": surface,
             "begins": before and before["sha256"]}
    sheet = None if stage == "structure" else sheet_of(shown, counts[1])
    result = train(model, loss_fn, draw, plan, folder, sheet, minutes, device, facts=facts)
    if result.step < plan.steps:
        return {}
    scores = {key: round(result.log[-1][key], 5) for key in ("loss", "psnr", "structure") if key in result.log[-1]}
    return pretrained.save_network(model, kept, {
        "name": "octree_density", "seed": seed, "hours": round(result.seconds / 3600, 2), "steps": result.step, **scores,
        "command": command}, before)


def sheet_of(views: ViewSet, count: int):
    """sheet(model) for `training.train`: truth and `count` anchors of two objects, eight views."""
    from gsgen_lib.systems.autoencoder_training import grid

    some = torch.tensor([0, len(views) // 2])
    rgba, cameras = some_views(views, some, torch.arange(AROUND).expand(2, -1))

    @torch.no_grad()
    def sheet(model) -> Tensor:
        device = next(model.parameters()).device
        at, there = rgba.to(device), cameras.to(device)
        mu, _ = model.encode(views.points[some].to(device), (at, there))
        scene = model.decode(mu, count * model.config.gaussians, torch.Generator().manual_seed(0))
        got = rasterize(scene, there, (1.0, 1.0, 1.0)).rgb.clamp(0, 1).cpu()
        return grid(torch.stack([on_background(rgba, torch.ones(3)), got], 1).flatten(0, 2), AROUND)

    return sheet

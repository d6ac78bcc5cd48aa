"""gsgen train voxels: the four networks of a sparse scene, one after the other.

    gsgen train voxels --part structure          bits <-> dense latents
    gsgen train voxels --part appearance         pictures at active voxels <-> latents -> Gaussians
    gsgen train voxels --part structure-flow     draws the first's latents       (needs --structure)
    gsgen train voxels --part appearance-flow    draws the second's              (needs --appearance)

Objects are those of `gsgen train vae`: toys and real training objects, equal shares of a batch, half of them mirrored. (For the
flows real objects alone: to which side a toy's tail lies has odds that shall stay.) Bits come from surface points, features from
the eight views around an object, and the appearance is judged on five of all its views. Flows learn from latents that were made
before; in a batch words are dropped in `NO_WORDS` of the scenes, and the front is given in `SEEN` of them.

Taught in notebook 09. Source: TRELLIS (2412.01506) section 3 and appendix A.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gsgen_lib import pretrained
from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.data.occupancy import occupancy
from gsgen_lib.data.view_sets import ViewSet
from gsgen_lib.nn.sparse_grid import Voxels, structure_places, structure_tokens
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems.feed_forward_training import mirrored, options, training_objects
from gsgen_lib.systems.sparse_voxels import (
    AppearanceConfig,
    AppearanceVAE,
    StructureConfig,
    StructureVAE,
    appearance_loss,
    gaussians_of,
    load_appearance,
    load_structure,
    padded,
    structure_loss,
    voxel_features,
)
from gsgen_lib.systems.sparse_voxels_flow import FlowConfig, Given, VoxelFlow, voxel_flow_loss
from gsgen_lib.training import TrainConfig, first_alone, seeded, train

PARTS = ("structure", "appearance", "structure-flow", "appearance-flow")
AROUND, JUDGED = 8, 5  # views that voxels read, and that their Gaussians are compared with
NO_WORDS, SEEN = 0.2, 0.5
PRESETS = {
    "tiny": dict(resolution=16, size=32, widths=(8, 8), width=24, layers=1, flow=dict(width=24, heads=2, layers=1), block=2,
                 toys=6, real=6, steps=(4, 3, 4, 4), batch=(2, 2, 2, 2), lr=1e-3),
    "experiment": dict(resolution=32, size=64, widths=(16, 32), width=96, layers=2, flow=dict(width=120, layers=4), block=2,
                       toys=300, real=None, steps=(1_000, 600, 1_500, 1_000), batch=(4, 4, 8, 4), lr=1e-3),
    "cpu": dict(resolution=32, size=64, widths=(32, 64), width=144, layers=3, flow=dict(width=168, layers=6), block=2, toys=1200,
                real=None, steps=(6_000, 2_500, 8_000, 2_000), batch=(8, 8, 16, 8), lr=7e-4),
    "gpu": dict(resolution=64, size=128, widths=(64, 128), width=288, layers=6, flow=dict(width=480, heads=8, layers=12), block=1,
                toys=4000, real=None, steps=(40_000, 60_000, 80_000, 80_000), batch=(32, 32, 64, 32), lr=3e-4),
}


def grids_of(views: ViewSet, resolution: int) -> Tensor:
    """Bits (N, R, R, R) of all objects, from their surface points."""
    return torch.stack([occupancy(points, resolution) for points in views.points])


def drawn(counts: list[int], batch: int, generator: torch.Generator) -> list[Tensor]:
    """Which objects of each of the sets are in a batch: equal shares.

    >>> [len(rows) for rows in drawn([5, 7], 4, torch.Generator().manual_seed(0))]
    [2, 2]
    """
    if batch % len(counts):
        raise ValueError(f"batch: got {batch}, wanted a multiple of the number of sets, {len(counts)}")
    return [torch.randint(n, (batch // len(counts),), generator=generator) for n in counts]


def structure_batches(grids: list[Tensor], batch: int):
    """draw_batch for `training.train`: bits (B, R, R, R), half of them mirrored at x = 0."""

    def draw_batch(generator):
        found = torch.cat([g[rows] for g, rows in zip(grids, drawn([len(g) for g in grids], batch, generator), strict=True)])
        turn = torch.rand(batch, generator=generator) < 0.5
        return (torch.where(turn[:, None, None, None], found.flip(1), found),)

    return draw_batch


def some_views(views: ViewSet, rows: Tensor, which: Tensor) -> tuple[Tensor, Cameras]:
    """Pictures (B, V, S, S, 4) in [0, 1] and cameras of objects (B,), views (B, V)."""
    at = rows[:, None]
    cameras = replace(views.cameras, viewmats=views.cameras.viewmats[at, which], Ks=views.cameras.Ks[at, which])
    return views.images[at, which].float() / 255, cameras


def appearance_batches(sets: list[ViewSet], grids: list[Tensor], batch: int):
    """draw_batch for `training.train`: coords, lengths, features (T, FEATURES), truth (B, JUDGED, S, S, 4), viewmats, Ks."""

    def draw_batch(generator):
        rows = drawn([len(s) for s in sets], batch, generator)
        bits = torch.cat([g[r] for g, r in zip(grids, rows, strict=True)])
        parts = []
        for views, r in zip(sets, rows, strict=True):
            have = views.images.shape[1]
            judged = torch.rand(len(r), have, generator=generator).argsort(1)[:, :JUDGED]
            parts.append(some_views(views, r, torch.cat([torch.arange(AROUND).expand(len(r), -1), judged], 1)))
        rgba = torch.cat([p for p, _ in parts])
        first = parts[0][1]
        cameras = replace(first, viewmats=torch.cat([c.viewmats for _, c in parts]), Ks=torch.cat([c.Ks for _, c in parts]))
        turn = torch.rand(batch, generator=generator) < 0.5
        rgba, cameras = mirrored(rgba, cameras, turn)
        voxels = Voxels.from_grid(torch.where(turn[:, None, None, None], bits.flip(1), bits))
        features = voxel_features(voxels, rgba[:, :AROUND], cameras[:AROUND])
        return voxels.coords, voxels.lengths, features, rgba[:, AROUND:], cameras.viewmats[:, AROUND:], cameras.Ks[:, AROUND:]

    return draw_batch


# ---- latents for the flows -----------------------------------------------------------------------------------------


@torch.no_grad()
def latents_of(vae, sets: list[ViewSet], resolution: int, batch: int = 8) -> dict[str, Tensor]:
    """What the flows learn from: latents of all objects, real ones also mirrored, in half precision: of a `StructureVAE` mu,
    logvar (N, 8, r, r, r); of an `AppearanceVAE` mu, logvar (T, 8), coords (T, 3), lengths (N,). front: (N, S, S, 4) bytes;
    caption: (N,) numbers of the objects, in the order of the sets, which says whose words they are."""
    from tqdm import tqdm

    found, first = [], 0
    for k, views in enumerate(sets):
        for turn in ((False, True) if k == 0 and len(sets) > 1 else (False,)):
            for start in tqdm(range(0, len(views), batch), desc="latents", mininterval=5):
                some = torch.arange(start, min(start + batch, len(views)))
                grid = grids_of(views[some.tolist()], resolution)
                rgba, cameras = some_views(views, some, torch.arange(AROUND).expand(len(some), -1))
                if turn:
                    grid = grid.flip(1)
                    rgba, cameras = mirrored(rgba, cameras, torch.ones(len(some), dtype=torch.bool))
                front = (rgba[:, 0] * 255).round().to(torch.uint8)
                if isinstance(vae, StructureVAE):
                    mu, logvar = vae.encode(grid)
                    more = {}
                else:
                    voxels = Voxels.from_grid(grid)
                    mu, logvar = vae.encode(voxels, voxel_features(voxels, rgba, cameras))
                    more = {"coords": voxels.coords.to(torch.uint8), "lengths": torch.tensor(voxels.lengths)}
                found.append({"mu": mu.half(), "logvar": logvar.half(), "front": front, "caption": first + some, **more})
        first += len(views)
    return {key: torch.cat([part[key] for part in found]) for key in found[0]}


def kept_latents(path: Path, make, autoencoder: str) -> dict[str, Tensor]:
    """The tensors of the file `path`, made (`make()`) and written there if there is none. ValueError for a file that is damaged
    or of another autoencoder, whose sha256 `autoencoder` is."""
    if not path.is_file():
        found = {k: v.contiguous() for k, v in make().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(found, path.with_suffix(".part"), {"autoencoder": autoencoder, "sha256": _digest(found)})
        path.with_suffix(".part").replace(path)
    try:
        with safe_open(path, "pt") as file:
            found, facts = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()
        wrong = "of another autoencoder" if facts["autoencoder"] != autoencoder else None
        wrong = wrong or (None if facts["sha256"] == _digest(found) else "damaged")
    except Exception as error:  # of the reader, or a name that is not there
        wrong = type(error).__name__
    if wrong:
        raise ValueError(f"{path}: not whole latents of this autoencoder ({wrong}); delete it")
    return found


def _digest(found: dict[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(found):
        total.update(json.dumps([name, list(found[name].shape)]).encode() + found[name].contiguous().numpy().tobytes())
    return total.hexdigest()


def flow_batches(found: dict[str, Tensor], words: Tensor, real: int, batch: int, resolution: int, flow: VoxelFlow):
    """draw_batch for `training.train`, half of a batch from the first `real` scenes, if there are any: scaled tokens, extra,
    places, lengths, words, picture, seen, active, as `voxel_flow_loss` takes them. words (objects + 1, L, D): the last are of
    ""."""
    dense, many = "lengths" not in found, len(found["front"])
    if not dense:
        ends = found["lengths"].cumsum(0)

    def draw_batch(generator):
        pools = [(0, real), (real, many)] if 0 < real < many else [(0, many)]
        picked = drawn([high - low for low, high in pools], batch, generator)
        i = torch.cat([low + rows for (low, _), rows in zip(pools, picked, strict=True)])

        def sampled(mu, logvar):
            mu, logvar = mu.float(), logvar.float()
            return mu + (0.5 * logvar).exp() * torch.randn(mu.shape, generator=generator)

        if dense:
            z = sampled(found["mu"][i], found["logvar"][i])
            places, lengths = structure_places(flow.config.reach, batch)
            x = flow.scale(structure_tokens(z, flow.config.reach))
            extra, active = x[:, :0], torch.ones_like(x)
        else:
            rows = torch.cat([torch.arange(int(ends[k] - found["lengths"][k]), int(ends[k])) for k in i])
            voxels = Voxels(found["coords"][rows].long(), tuple(found["lengths"][i].tolist()), resolution)
            cells = voxels.to_cells(sampled(found["mu"][rows], found["logvar"][rows]))
            x, extra = flow.scale(cells[:, :-8]), cells[:, -8:]
            active = extra.repeat_interleave(x.shape[1] // 8, 1)
            _, _, places, lengths = voxels.cells()
        drop = torch.rand(batch, generator=generator) < NO_WORDS
        said = words[torch.where(drop, len(words) - 1, found["caption"][i])].float()
        seen = (torch.rand(batch, generator=generator) < SEEN).float()
        return x, extra, places, lengths, said, found["front"][i].float() / 255, seen, active

    return draw_batch


def set_scales(flow: VoxelFlow, found: dict[str, Tensor]) -> None:
    """Mean and spread of the tokens' numbers, in place; of places or voxels, as often as a token has such."""
    mu, logvar = (found[k].float() for k in ("mu", "logvar"))
    over = (0, 2, 3, 4) if mu.ndim == 5 else (0,)
    mean, std = mu.mean(over), (mu.var(over) + logvar.exp().mean(over)).sqrt()
    times = flow.config.numbers // len(mean)
    flow.mean.copy_(mean.repeat(times).half())
    flow.std.copy_(std.repeat(times).half())


# ---- the four trainings --------------------------------------------------------------------------------------------


def train_voxels(out: Path | None = None, part: str = "structure", preset: str = "cpu", steps: int | None = None,
                 structure: str = "voxel_structure", appearance: str = "voxel_appearance", gaussians: int = 2,
                 dice_alone: bool = False, ddpm: bool = False, seed: int = 0, minutes: float | None = None,
                 device: str | None = None) -> dict:
    """Train one of the PARTS; returns its card, {} if `minutes` ended it before its last step.

    out: folder, runs/voxel_PART if not given; a training that was interrupted goes on. structure, appearance: shipped
    autoencoders or folders, for the flows; gaussians: of a voxel; dice_alone, ddpm (of a flow): the comparisons of notebook 09.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset: got {preset!r}, wanted one of {', '.join(PRESETS)}")
    if part not in PARTS:
        raise ValueError(f"part: got {part!r}, wanted one of {', '.join(PARTS)}")
    for option, given, takes in (("gaussians", gaussians != 2, part == "appearance"),
                                 ("dice_alone", dice_alone, part == "structure"), ("ddpm", ddpm, part.endswith("flow"))):
        if given and not takes:
            raise ValueError(f"{option}: is no option of part {part!r}")
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise ValueError(f"steps: got {steps!r}, wanted a whole number >= 1")
    p, name = PRESETS[preset], f"voxel_{part.replace('-', '_')}"
    out, r = Path(out or f"runs/{name}"), p["resolution"]
    batch, count = p["batch"][PARTS.index(part)], p["steps"][PARTS.index(part)] if steps is None else steps
    sets, shown = training_objects(p, p["size"], seed, out.parent)
    facts, said, sheet = {}, {}, None
    if part == "structure":
        config = StructureConfig(resolution=r, widths=p["widths"], dice_alone=dice_alone)
        model = seeded(lambda: StructureVAE(config), seed)
        draw = structure_batches([grids_of(one, r) for one in sets], batch)

        def loss_fn(network, data, generator):
            return structure_loss(network, config, data[0], generator)
    elif part == "appearance":
        config = AppearanceConfig(resolution=r, width=p["width"], layers=p["layers"], gaussians=gaussians)
        model = seeded(lambda: AppearanceVAE(config), seed)
        draw, sheet = appearance_batches(sets, [grids_of(one, r) for one in sets], batch), sheet_of(shown, config)

        def loss_fn(network, data, generator):
            coords, lengths, features, truth, viewmats, Ks = data
            cameras = Cameras(viewmats, Ks, p["size"], p["size"])
            return appearance_loss(network, config, Voxels(coords, lengths, r), features, truth, cameras, generator)
    else:
        model, draw, facts = _flow(part, p, sets, out, structure if part == "structure-flow" else appearance, ddpm, seed, batch)
        config, said = model.config, {part.split("-")[0]: facts.pop("named")}

        def loss_fn(network, data, generator):
            x, extra, places, lengths, words, picture, seen, active = data
            return voxel_flow_loss(network, x, extra, places, lengths, Given(words, picture, seen), active, generator, ddpm)

    plan = TrainConfig(steps=count, lr=p["lr"], warmup=min(200, max(1, count // 5)), weight_decay=0.01, ema_decay=0.999,
                       checkpoint_every=250, seed=seed, precision="bf16")
    result = train(model, loss_fn, draw, plan, out, sheet, minutes, device, facts={"network": asdict(config), **facts})
    if result.step < plan.steps:
        print(f"{part}: step {result.step} of {plan.steps}; call again to go on")
        return {}
    said |= {"steps": steps, "gaussians": None if gaussians == 2 else gaussians, "seed": seed or None}
    flag = " --dice-alone" if dice_alone else " --ddpm" if ddpm else ""
    scores = {key: result.log[-1][key] for key in ("loss", "iou", "psnr") if key in result.log[-1]}
    return pretrained.save_network(model, out / "model", {
        "name": name, "seed": seed, "hours": round(result.seconds / 3600, 2), "steps": result.step, **scores, **facts,
        "command": f"gsgen train voxels --part {part} --preset {preset}{options(said)}{flag}"})


def _flow(part: str, p: dict, sets: list[ViewSet], out: Path, autoencoder: str, ddpm: bool,
          seed: int, batch: int) -> tuple[VoxelFlow, object, dict]:
    """A new flow, its draw_batch, and which autoencoder it belongs to."""
    from gsgen_lib.systems.prior import load_prior

    vae = (load_structure if part == "structure-flow" else load_appearance)(autoencoder)
    sha = pretrained.read_card(pretrained.checked_folder(autoencoder))["sha256"]["model.safetensors"]
    if vae.config.resolution != p["resolution"]:
        raise ValueError(f"{part.split('-')[0]}: got an autoencoder of R = {vae.config.resolution}, wanted {p['resolution']}")
    tokens = dict(numbers=vae.config.latent * p["block"] ** 3, reach=p["resolution"] // 4 // p["block"]) \
        if part == "structure-flow" else dict(numbers=8 * vae.config.latent, extra=8, reach=p["resolution"] // 2)
    with first_alone():
        found = kept_latents(out.parent / f"latents_{part}_{sha[:8]}_{p['toys']}_{seed}.safetensors",
                             lambda: latents_of(vae, sets, p["resolution"]), sha)
    captions = [c for one in sets for c in one.captions] + [""]
    prior = load_prior()
    words = torch.cat([prior.encode_prompt(captions[i:i + 256]) for i in range(0, len(captions), 256)]).half()
    config = FlowConfig(words=words.shape[-1], size=p["size"], ddpm=ddpm, **tokens, **p["flow"])
    flow = seeded(lambda: VoxelFlow(config), seed)
    set_scales(flow, found)
    at = seeded(lambda: VoxelFlow(config), seed)  # scales batches on the CPU
    set_scales(at, found)
    real = 2 * len(sets[0]) if len(sets) > 1 else 0
    draw = flow_batches(found, words, real, batch, p["resolution"], at)
    named = None if str(autoencoder) == f"voxel_{part.split('-')[0]}" else autoencoder
    return flow, draw, {"autoencoder_sha256": sha, "named": named}


def sheet_of(views: ViewSet, config: AppearanceConfig):
    """sheet(model) for `training.train`: truth and Gaussians of two objects, eight views."""
    from gsgen_lib.systems.autoencoder_training import grid

    some = torch.tensor([0, len(views) // 2])
    rgba, cameras = some_views(views, some, torch.arange(AROUND).expand(2, -1))
    voxels = Voxels.from_grid(grids_of(views[some.tolist()], config.resolution))

    @torch.no_grad()
    def sheet(model):
        device = next(model.parameters()).device
        at, there = voxels.to(device), cameras.to(device)
        z = model.encode(at, voxel_features(at, rgba.to(device), there))[0]
        got = rasterize(padded(gaussians_of(at, model.decode(at, z))), there, (1.0, 1.0, 1.0)).rgb.clamp(0, 1).cpu()
        return grid(torch.stack([on_background(rgba, torch.ones(3)), got], 1).flatten(0, 2), AROUND)

    return sheet

"""gsgen train diffusion: scenes become latents once, then the denoiser learns from latents alone.

    gsgen train diffusion --preset tiny|experiment|cpu|gpu

Scenes are toys, four views each, and the real training objects with their mirror images (toys are not mirrored: the side to
which a cat's tail lies has odds that shall be learned). Kept for every scene: mean and log variance of its latents, and, for
each of the `WAYS` in which views may be given, the latents of these views encoded alone.

Taught in notebook 07. Source: 2406.13099 section 3.3.
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
from gsgen_lib.data.captioned_views import names_heldout
from gsgen_lib.data.multiview import load_views, toy_views
from gsgen_lib.data.view_sets import ViewSet
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems.autoencoder_training import grid
from gsgen_lib.systems.feed_forward_training import options, smaller
from gsgen_lib.systems.splat_diffusion import (
    VIEWS,
    Condition,
    SplatDenoiser,
    SplatDiffusion,
    SplatDiffusionConfig,
    diffusion_loss,
    load_splat_diffusion,
    scene_cameras,
)
from gsgen_lib.systems.splat_vae import SplatVAE, encoder_digest, load_splat_vae
from gsgen_lib.training import TrainConfig, first_alone, seeded, train

TOY_SEED = 7_000_000
SHARD = 1_000  # toys, two minutes of rendering and encoding
SHIPPED = 64  # pixels of the real objects
WAYS = {"none": 0.45, "front": 0.3, "one": 0.05, "two": 0.1, "three": 0.1}  # which views are given, and how often
NO_WORDS, NO_WORDS_SEEN = 0.15, 0.6  # how often words are dropped: where no view is given, and where some are
REAL_SHARE = 0.1
PRESETS = {
    "tiny": dict(model=dict(widths=(16, 24), embed=32), toys=12, real=4, steps=5, batch=4, lr=1e-3),
    "experiment": dict(model=dict(widths=(64, 96)), toys=3_000, real=None, steps=2_500, batch=16, lr=1e-3),
    "cpu": dict(model={}, toys=12_000, real=None, steps=18_000, batch=16, lr=5e-4),
    "gpu": dict(model=dict(widths=(192, 288)), toys=12_000, real=None, steps=100_000, batch=128, lr=3e-4),
}


def scene_views(toys: int, seed: int, size: int = 64, split: str = "train", progress: bool = True, first: int = 0) -> ViewSet:
    """New toys from the four cameras of `scene_cameras`; first: number of the first one of those that belong to the seed.

    >>> views = scene_views(1, 0, 8, progress=False)
    >>> torch.allclose(views.cameras.centers[0], scene_cameras(8).centers, atol=1e-5), views.images.shape
    (True, torch.Size([1, 4, 8, 8, 4]))
    """
    return toy_views(toys, seed, size, VIEWS, split, points=16, progress=progress, first=first)


def real_scenes(split: str = "train", size: int = 64, limit: int | None = None) -> ViewSet:
    """The real objects of a split from the same four cameras; of "train", none whose caption is a held-out toy's."""
    views = load_views(split, limit=limit)
    if split == "train":
        views = views[[not names_heldout(caption) for caption in views.captions]]
    around = [0, 2, 4, 6]  # of the ring of eight
    four = replace(views, images=views.images[:, around], cameras=views.cameras[around])
    return four if size == four.images.shape[2] else smaller(four, size)


def mirrored_scenes(views: ViewSet) -> ViewSet:
    """Scenes reflected at the plane x = 0, seen from the same four cameras: right and left change places.

    >>> views = scene_views(1, 0, 8, progress=False)
    >>> bool((mirrored_scenes(views).images[0, 1] == views.images[0, 3].flip(1)).all())
    True
    """
    return replace(views, images=views.images[:, [0, 3, 2, 1]].flip(3))


@torch.no_grad()
def encode_scenes(vae: SplatVAE, views: ViewSet, generator: torch.Generator, batch: int = 32, progress: bool = True) -> dict:
    """What training needs of N scenes, half precision on the CPU: mu, logvar (N, V, C, h, w); known (N, W, V) for the W `WAYS`;
    alone (N, W, V, C, h, w), the means of the views given, encoded without the others."""
    from tqdm import tqdm

    device, found = next(vae.parameters()).device, []
    for first in tqdm(range(0, len(views), batch), desc="encode", disable=not progress, mininterval=5):
        rgba = (views.images[first:first + batch].float() / 255).to(device)
        b, cameras = len(rgba), scene_cameras(vae.config.size).to(device)
        mu, logvar = vae.encode(rgba, Cameras.stack([cameras] * b))
        known = ways(b, generator).to(device)  # (b, W, V)
        alone = torch.zeros(*known.shape, *mu.shape[2:], device=device)
        for way in range(known.shape[1]):
            count = int(known[0, way].sum())
            if not count:
                continue
            rows = known[:, way].nonzero()[:, 1].reshape(b, count)  # which views
            every = torch.arange(b, device=device)[:, None]
            some = Cameras.stack([cameras[r.tolist()] for r in rows])
            alone[every, way, rows] = vae.encode(rgba[every, rows], some)[0]
        found.append({"mu": mu, "logvar": logvar, "known": known, "alone": alone})
    return {k: torch.cat([f[k].to(torch.float16).cpu() for f in found]) for k in found[0]}


def ways(count: int, generator: torch.Generator) -> Tensor:
    """Which views are given in each of the `WAYS`, for `count` scenes: (count, W, V) of 0 and 1.

    >>> ways(1, torch.Generator().manual_seed(0)).sum(-1).tolist()
    [[0.0, 1.0, 1.0, 2.0, 3.0]]
    """
    known = torch.zeros(count, len(WAYS), VIEWS)
    known[:, 1, 0] = 1
    for way, number in ((2, 1), (3, 2), (4, 3)):
        known[:, way].scatter_(1, torch.rand(count, VIEWS, generator=generator).argsort(1)[:, :number], 1.0)
    return known


def scene_latents(path: Path, vae: SplatVAE, preset: dict, seed: int) -> tuple[dict, list[str]]:
    """Latents and captions of the training scenes, toys first; from the file `path`, made and written there if there is none.

    Made `SHARD` toys at a time, each kept in a file of its own until all are there: an interruption loses one at most.
    """
    if not path.is_file():
        size, toys = vae.config.size, preset["toys"]
        makers = [lambda k=k: scene_views(min(SHARD, toys - k), TOY_SEED + seed, size, first=k) for k in range(0, toys, SHARD)]
        if size <= SHIPPED:  # larger pictures of real objects do not ship: toys alone
            makers += [lambda: real_scenes("train", size, preset["real"]),
                       lambda: mirrored_scenes(real_scenes("train", size, preset["real"]))]
        shards = [path.with_name(f"{path.stem}.{i:03d}.safetensors") for i in range(len(makers))]
        for i, (make, shard) in enumerate(zip(makers, shards, strict=True)):
            if not shard.is_file():
                views = make()
                save_latents(shard, encode_scenes(vae, views, torch.Generator().manual_seed(seed * 1_000 + i)), views.captions)
        parts = [load_latents(shard, vae) for shard in shards]
        save_latents(path, {k: torch.cat([found[k] for found, _ in parts]) for k in parts[0][0]}, sum((c for _, c in parts), []))
        for shard in shards:
            shard.unlink()
    return load_latents(path, vae)


def save_latents(path: Path, found: dict, captions: list[str]) -> None:
    """What `encode_scenes` found of the scenes of these captions, with its digest; renamed into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(found, path.with_suffix(".part"), {"captions": json.dumps(captions), "sha256": _digest(found)})
    path.with_suffix(".part").replace(path)


def load_latents(path: Path, vae: SplatVAE) -> tuple[dict, list[str]]:
    """What `save_latents` wrote; ValueError for a file that is damaged, or not of this autoencoder's shape."""
    v = vae.config
    one = (VIEWS, v.latent, v.size // v.factor, v.size // v.factor)
    try:
        with safe_open(path, "pt") as file:
            found, facts = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()
            captions, digest = json.loads(facts["captions"]), facts["sha256"]
        n = len(captions)
        shapes = {"mu": (n, *one), "logvar": (n, *one), "known": (n, len(WAYS), VIEWS), "alone": (n, len(WAYS), *one)}
        wrong = next((k for k, shape in shapes.items() if found[k].shape != shape or not bool(found[k].isfinite().all())), None)
        wrong = wrong or (None if _digest(found) == digest else "sha256")
    except Exception as error:  # of the reader, of json, or a name that is not there
        wrong = type(error).__name__
    if wrong:
        raise ValueError(f"{path}: not whole latents of scenes ({wrong}); delete it")
    return found, captions


def _digest(found: dict) -> str:
    total = hashlib.sha256()
    for name in sorted(found):
        total.update(found[name].contiguous().numpy().tobytes())
    return total.hexdigest()


def batches(found: dict, captions: list[str], encode_prompt, denoiser: SplatDenoiser, toys: int, batch: int,
            no_views: bool = False, real_share: float = REAL_SHARE):
    """draw_batch for `training.train`: (scaled latents drawn from their posteriors, words, given views, which)."""
    different = list(dict.fromkeys(["", *captions]))
    words = torch.cat([encode_prompt(different[i:i + 256]) for i in range(0, len(different), 256)]).to(torch.float16)
    row_of = {caption: i for i, caption in enumerate(different)}
    rows = torch.tensor([row_of[c] for c in captions])
    chances = torch.tensor([1.0, 0, 0, 0, 0] if no_views else list(WAYS.values()))

    def draw_batch(generator):
        real = torch.rand(batch, generator=generator) < (real_share if toys < len(captions) else 0)
        pick = torch.rand(batch, generator=generator)
        i = torch.where(real, toys + (pick * (len(captions) - toys)).long(), (pick * toys).long())
        mu, logvar = (found[k][i].float() for k in ("mu", "logvar"))
        z = mu + (0.5 * logvar).exp() * torch.randn(mu.shape, generator=generator)
        way = torch.multinomial(chances, batch, True, generator=generator)
        known, alone = found["known"][i, way].float(), found["alone"][i, way].float()
        drop = torch.rand(batch, generator=generator) < torch.where(way == 0, NO_WORDS, NO_WORDS_SEEN)
        words_of = words[torch.where(drop, 0, rows[i])].float()
        alone = denoiser.scale(alone) * known[:, :, None, None, None]
        return denoiser.scale(z), words_of, alone, known

    return draw_batch


def train_splat_diffusion(out: Path | None = None, preset: str = "cpu", steps: int | None = None, prediction: str = "v",
                          regression: bool = False, autoencoder: str = "splat_vae_8", real_share: float = REAL_SHARE,
                          start: str | None = None, toys: int | None = None, seed: int = 0, minutes: float | None = None,
                          device: str | None = None) -> dict:
    """Train the denoiser; returns its card, {} if `minutes` ended it before its last step.

    out: folder, runs/splat_diffusion if not given; a training that was interrupted goes on. prediction: v, eps or x0;
    regression: the comparison without diffusion (`diffusion_loss`), which predicts x0; autoencoder: a shipped one, or a folder
    with a card; real_share: of real objects among the scenes of a batch; start: a shipped denoiser or a folder, of the same
    options (a regression may start from any prediction), whose weights it begins with; toys: how many, else those of the preset.
    """
    from gsgen_lib.systems.prior import load_prior

    if preset not in PRESETS:
        raise ValueError(f"preset: got {preset!r}, wanted one of {', '.join(PRESETS)}")
    p = PRESETS[preset] | ({} if toys is None else {"toys": toys})
    out = Path(out or f"runs/splat_{'regression' if regression else 'diffusion'}")
    prediction = "x0" if regression else prediction
    vae, prior = load_splat_vae(autoencoder), load_prior()
    digest = encoder_digest(vae)
    vae.to("cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda")
    v = vae.config
    if toys is not None and (not isinstance(toys, int) or toys < 1):
        raise ValueError(f"toys: got {toys!r}, wanted a whole number >= 1")
    if not 0 <= real_share <= 1:
        raise ValueError(f"real_share: got {real_share}, wanted 0 to 1")
    config = SplatDiffusionConfig(latent=v.latent, cells=v.size // v.factor, prediction=prediction, **p["model"])
    steps_of = p["steps"] if steps is None else steps
    plan = TrainConfig(steps=steps_of, lr=p["lr"], warmup=min(500, steps_of // 5), weight_decay=0.01, ema_decay=0.9995,
                       checkpoint_every=500, seed=seed, precision="bf16")
    with first_alone():
        found, captions = scene_latents(out.parent / f"latents_{digest[:8]}_{p['toys']}_{seed}.safetensors", vae, p, seed)
    model = seeded(lambda: SplatDenoiser(config), seed)
    numbers = found["mu"].float()
    model.mean.copy_(numbers.mean((0, 1, 3, 4)).half())
    model.std.copy_(numbers.std((0, 1, 3, 4)).half())
    before = {}
    if start is not None:
        other, before = load_splat_diffusion(start, autoencoder=autoencoder).denoiser, pretrained.beginning(start)
        if replace(other.config, prediction=config.prediction if regression else other.config.prediction) != config:
            raise ValueError(f"start: got a network of {other.config}, wanted {config}")
        model.load_state_dict(other.state_dict())
    cameras = scene_cameras(v.size)
    draw = batches(found, captions, prior.encode_prompt, seeded(lambda: _copy(model), 0), p["toys"], p["batch"],
                   real_share=real_share)

    def loss_fn(network, data, generator):
        z, words, alone, known = data
        return diffusion_loss(network, model, z, Condition(words, alone, known), cameras.to(z.device), generator, regression)

    sheet = None if regression else sheet_of(vae, prior.encode_prompt)
    facts = {"network": asdict(config), "regression": regression, "encoder": digest, "real_share": real_share,
             "start": before.get("sha256")}
    result = train(model, loss_fn, draw, plan, out, sheet, minutes, device, facts=facts)
    if result.step < plan.steps:
        print(f"diffusion: step {result.step} of {plan.steps}; call again to go on")
        return {}
    said = {"steps": steps, "toys": toys, "prediction": None if prediction == "v" or regression else prediction,
            "seed": seed or None, "autoencoder": None if autoencoder == "splat_vae_8" else autoencoder, "start": start,
            "real_share": None if real_share == REAL_SHARE else real_share}
    return pretrained.save_network(model, out / "model", {
        "name": "splat_regression" if regression else "splat_diffusion", "seed": seed,
        "command": f"gsgen train diffusion --preset {preset}{options(said)}{' --regression' if regression else ''}",
        "hours": round(result.seconds / 3600, 2), "steps": result.step, "loss": result.log[-1]["loss"],
        "autoencoder": autoencoder, "encoder_sha256": digest}, before)


def _copy(model: SplatDenoiser) -> SplatDenoiser:
    """A denoiser on the CPU with the same scales, for batches that are drawn there."""
    other = SplatDenoiser(model.config)
    other.load_state_dict(model.state_dict())
    return other


def sheet_of(vae: SplatVAE, encode_prompt):
    """sheet(model) for `training.train`: eight scenes from the same noise, four views each: two of nothing, six of words."""
    captions = ["", "", "a red mug", "a blue car", "a tall green lamp", "a yellow fish", "a purple house", "a teal robot"]

    @torch.no_grad()
    def sheet(model):
        device = next(model.parameters()).device
        sampler = SplatDiffusion(vae.to(device), _copy(model).to(device), encode_prompt)
        scenes = sampler.sample(captions, generator=torch.Generator().manual_seed(0))
        views = rasterize(scenes, Cameras.stack([sampler.cameras] * len(captions)), (1.0, 1.0, 1.0)).rgb.clamp(0, 1).cpu()
        return grid(views.flatten(0, 1), 8)

    return sheet

"""Training the prior: an autoencoder, a text encoder, and a diffusion model of latents. gsgen train prior.

Stage 1, autoencoder (AutoencoderKL of diffusers), 64 x 64 x 3 -> 16 x 16 x 4: `autoencoder_training`.

Stage 2, text encoder (CLIPTextModel): learns beside pictures, with the loss of `prompt_scorer` and an image tower that is
thrown away afterwards. A diffusion loss alone teaches words slowly, since most of what it has to explain is not in the
caption.

Stage 3, U-Net (UNet2DConditionModel), with the text encoder frozen as in Stable Diffusion:

    z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps,   loss = | v_theta(z_t, t, text) - v |^2,   t uniform

v = sqrt(abar) eps - sqrt(1 - abar) z. The schedule ends in pure noise (zero terminal SNR), since the pictures have plain
backgrounds: with a trace of signal left at the end, the network would read off the mean colour there that sampling
never gives it (2305.08891). One prompt in ten is empty, for guidance. In `SETS` of the steps the batch consists of
sets of four views at right angles, and self-attention runs across them (MVDream, 2308.16512, section 3.1, where the
share is 70 % sets and 30 % single pictures).

Stage 4, the decoder alone, to be sharp, and patient with latents that are not quite clean: `autoencoder_training`.

Stage 5, the U-Net again, so that samples show the view that is named: `prior_reward`.

Latents are made once, each view on `COPIES` backgrounds: what the encoder costs is paid once. Everything is resumable.
Taught in notebook 02.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gsgen_lib import pretrained
from gsgen_lib.data.captioned_views import (
    PAINTER,
    VIEW_WORDS,
    CaptionedViews,
    draw_rows,
    draw_sets,
    kept,
    on_background,
    random_backgrounds,
    training_views,
)
from gsgen_lib.diffusion import q_sample, velocity
from gsgen_lib.systems.autoencoder_training import encode, grid, train_autoencoder, train_decoder
from gsgen_lib.systems.prior import Prior, load_prior, set_prompts
from gsgen_lib.systems.prior_metrics import draw_all, held_out_prompts, picture_scores
from gsgen_lib.systems.prior_networks import (
    TextAndPictures,
    TextAndUNet,
    as_pipeline,
    make_scheduler,
    make_text_encoder,
    make_unet,
)
from gsgen_lib.systems.prior_reward import train_reward, train_view_classifier
from gsgen_lib.systems.prompt_scorer import as_made, load_scorer, token_memory
from gsgen_lib.systems.scorer_training import both_losses, contrastive_batches, prompt_tokenizer
from gsgen_lib.training import TrainConfig, first_alone, is_first, seeded, train

PRESETS = {
    "tiny": dict(toys=8, real=(), channels=(16, 32), vae=dict(channels=(16, 16, 16), steps=150, batch=8, lr=1e-3),
                 decoder=120, text=dict(steps=40, batch=8), steps=300, batch=16, view=dict(steps=60, batch=32),
                 reward=dict(steps=5, batch=4)),
    "cpu": dict(toys=2000, real=PAINTER, channels=(64, 96), vae=dict(channels=(32, 48, 64), steps=10000, batch=8, lr=4e-4),
                decoder=4500, text=dict(steps=2000, batch=64), steps=50000, batch=16, view=dict(steps=3500, batch=96),
                reward=dict(steps=500, batch=8)),
    "gpu": dict(toys=5000, real=(), size=128, channels=(128, 192),
                vae=dict(channels=(64, 96, 128), steps=20_000, batch=32, lr=4e-4), decoder=8000, text=dict(steps=4000, batch=256),
                steps=100_000, batch=128, view=dict(steps=4000, batch=256), reward=dict(steps=500, batch=64)),
}
TOY_SEED = 1_000_000
SETS, DROP, COPIES = 0.3, 0.1, 3
ATTENTION = 1  # self-attention at the 8 x 8 level only; at 16 x 16 there are four times as many tokens


def object_colors(views: CaptionedViews, copies: int, seed: int) -> Tensor:
    """Backgrounds (objects, copies, 3), the same for all views of an object, as views of one set must have: white first,
    then random colours; a single one is random."""
    owners = int(views.owners.max()) + 1
    colors = random_backgrounds(owners * copies, torch.Generator().manual_seed(seed), 0.0).reshape(owners, copies, 3)
    if copies > 1:
        colors[:, 0] = 1.0
    return colors


def encode_views(vae, views: CaptionedViews, colors: Tensor) -> Tensor:
    """Latents (M, copies, C, h, w) fp16 of every view on each of its object's `object_colors` (objects, copies, 3)."""
    from tqdm import tqdm

    parts = []
    for rows in tqdm(torch.arange(len(views)).split(128), desc="latents", mininterval=5):
        pictures = on_background(views.images[rows][:, None], colors[views.owners[rows]])  # (b, copies, H, W, 3)
        parts.append(encode(vae, pictures.flatten(0, 1)).half().unflatten(0, (len(rows), colors.shape[1])))
    return torch.cat(parts)


# ---- stage 2 -------------------------------------------------------------------------------------------------------


def train_text_encoder(views: CaptionedViews, tokenizer, folder: Path, steps: int, batch: int, seed: int, minutes=None,
                       device=None):
    """Stage 2; returns the CLIPTextModel, and the training's result."""
    model = seeded(lambda: TextAndPictures(make_text_encoder(len(tokenizer))), seed)
    config = TrainConfig(steps=steps, lr=1e-3, warmup=min(200, steps // 4), weight_decay=0.05, ema_decay=0.998,
                         checkpoint_every=250, seed=seed)
    draw_batch = contrastive_batches(views, token_memory(tokenizer), batch)
    result = train(model, both_losses, draw_batch, config, folder, None, minutes, device)
    return model.text_encoder, result


# ---- stage 3 -------------------------------------------------------------------------------------------------------


def diffusion_task(views: CaptionedViews, latents: Tensor, tokens, batch: int):
    """What stages 3 and 5 learn from latents (M, copies, C, h, w) of the views: draw_batch and loss_fn of `train`."""
    alphas_cumprod = make_scheduler().alphas_cumprod.float()

    def draw_batch(generator):
        together = bool(torch.rand(1, generator=generator) < SETS)
        rows = draw_sets(views, batch // 4, generator).flatten() if together else draw_rows(views, batch, generator)
        draws = batch // 4 if together else batch
        copy = torch.randint(latents.shape[1], (draws,), generator=generator)
        dropped = torch.rand(draws, generator=generator) < DROP
        if together:  # the views of a set share background and fate of the prompt
            copy, dropped = copy.repeat_interleave(4), dropped.repeat_interleave(4)
        sides = together | (torch.rand(len(rows), generator=generator) < 0.5)
        prompts = ["" if d else views.prompt(int(r), bool(s)) for r, d, s in zip(rows, dropped, sides, strict=True)]
        return latents[rows, copy].float(), tokens(prompts), 4 if together else 1

    def loss_fn(network, data, generator):
        z, ids, count = data
        eps = torch.randn(z.shape, generator=generator).to(z)
        # the views of a set share t, as they are denoised together
        t = torch.randint(len(alphas_cumprod), (len(z) // count,), generator=generator).repeat_interleave(count)
        abar = alphas_cumprod[t].to(z)
        prediction = network(q_sample(z, eps, abar), t.to(z.device), ids, count)
        return F.mse_loss(prediction.float(), velocity(z, eps, abar))

    return draw_batch, loss_fn


def train_diffusion(views: CaptionedViews, latents: Tensor, model: TextAndUNet, tokenizer, folder: Path, steps: int, batch: int,
                    seed: int, minutes=None, device=None, sheet=None):
    """Stage 3: train `model` in place; returns the training's result."""
    draw_batch, loss_fn = diffusion_task(views, latents, token_memory(tokenizer), batch)
    config = TrainConfig(steps=steps, lr=1e-3, warmup=min(500, steps // 4), weight_decay=0.01, ema_decay=0.9995,
                         checkpoint_every=500, seed=seed)
    return train(model, loss_fn, draw_batch, config, folder, sheet, minutes, device)


def sample_sheet(views: CaptionedViews, vae, tokenizer):
    """A function model -> picture: six captions, each from four sides alone (left) and as a set (right)."""
    captions = list(dict.fromkeys(views.captions))
    captions = captions[:: max(1, len(captions) // 6)][:6]
    singles = [f"{c}, {w}" for c in captions for w in VIEW_WORDS]
    four = [p for c in captions for p in set_prompts(c)]

    def sheet(model):
        prior = Prior(as_pipeline(model, vae.to(next(model.parameters()).device), tokenizer), "in training")
        pictures = [prior.sample(singles, 20, generator=torch.Generator().manual_seed(0)),
                    prior.sample(four, 20, views=4, generator=torch.Generator().manual_seed(0))]
        model.unet.requires_grad_(True)  # Prior froze it
        return torch.cat([grid(p.cpu(), 4) for p in pictures], 1)

    return sheet


# ---- all of it -----------------------------------------------------------------------------------------------------


def train_prior(out: Path = Path("runs/prior"), preset: str = "cpu", steps: int | None = None, seed: int = 0,
                minutes: float | None = None, device: str | None = None, views: CaptionedViews | None = None) -> dict:
    """Train the prior; out/model is then a diffusers pipeline folder with a card. Resumable at every stage.

    preset: "tiny" (a minute, for tests), "cpu" (about eight hours on two cores) or "gpu" (128 x 128 pixels, of toys alone:
    real objects ship at 64); steps: of the diffusion model, instead of the preset's; minutes: stop the running stage early (call
    again to go on); views: pictures to use instead of the preset's; device: "cpu" keeps off the GPU. Returns the card.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset: got {preset!r}, wanted one of {', '.join(PRESETS)}")
    p, out, start = PRESETS[preset], Path(out), time.perf_counter()
    if views is None:
        toys = np.random.default_rng(TOY_SEED + seed)
        with first_alone():
            views = kept(out / "views.safetensors", lambda: training_views(p["toys"], toys, p["real"], p.get("size", 64)))
    vae, first = train_autoencoder(views, out / "autoencoder", **p["vae"], seed=seed, minutes=minutes, device=device)
    if first.step < p["vae"]["steps"]:
        print(f"autoencoder: step {first.step} of {p['vae']['steps']}; call again to go on")
        return {}
    with first_alone():
        latents = kept_latents(out / "latents.safetensors", vae, views, seed)
    tokenizer = prompt_tokenizer(views)
    text_encoder, second = train_text_encoder(views, tokenizer, out / "text_encoder", **p["text"], seed=seed, minutes=minutes,
                                              device=device)
    if second.step < p["text"]["steps"]:
        print(f"text encoder: step {second.step} of {p['text']['steps']}; call again to go on")
        return {}
    unet = seeded(lambda: make_unet(tuple(p["channels"]), latents.shape[-1], latents.shape[2], ATTENTION), seed)
    model = TextAndUNet(unet, text_encoder)
    third = train_diffusion(views, latents, model, tokenizer, out / "diffusion", steps or p["steps"], p["batch"], seed,
                             minutes, device, sample_sheet(views, vae, tokenizer))
    if third.step < (steps or p["steps"]):
        print(f"diffusion: step {third.step} of {steps or p['steps']}; call again to go on")
        return {}
    last = train_decoder(vae, views, out / "decoder", p["decoder"], p["vae"]["batch"], p["vae"]["lr"] / 2, seed, minutes, device)
    if last.step < p["decoder"]:
        print(f"decoder: step {last.step} of {p['decoder']}; call again to go on")
        return {}
    teacher, fifth = train_view_classifier(views, latents, text_encoder, token_memory(tokenizer), out / "view_classifier",
                                           **p["view"], seed=seed, minutes=minutes, device=device)
    if fifth.step < p["view"]["steps"]:
        print(f"view classifier: step {fifth.step} of {p['view']['steps']}; call again to go on")
        return {}
    task = diffusion_task(views, latents, token_memory(tokenizer), p["reward"]["batch"])
    sixth = train_reward(model, teacher, latents, token_memory(tokenizer), task, out / "view_reward", **p["reward"], seed=seed,
                         minutes=minutes, device=device)
    if sixth.step < p["reward"]["steps"]:
        print(f"view reward: step {sixth.step} of {p['reward']['steps']}; call again to go on")
        return {}
    if not is_first():
        return {}
    pipeline = as_pipeline(model, vae, tokenizer)
    stages = {"autoencoder": first, "text encoder": second, "diffusion": third, "decoder": last, "view classifier": fifth,
              "view reward": sixth}
    hours = round(sum(stage.seconds for stage in stages.values()) / 3600, 2)
    facts = {"name": "prior", "command": f"gsgen train prior --preset {preset}" + (f" --steps {steps}" if steps else ""),
             "seed": seed, "hours": hours,
             "steps": {name: stage.step for name, stage in stages.items()},
             "seconds_in_all": round(time.perf_counter() - start),
             "loss": {name: stage.log[-1]["loss"] for name, stage in stages.items() if stage.log}}
    card = save_prior(pipeline, out / "model", facts)
    if preset != "tiny" and (pretrained.folder_of("prompt_scorer") / "card.json").is_file():  # of the files, in half precision
        card = pretrained.write_card(out / "model", card | {"metrics": card_metrics(load_prior(out / "model"), seed)})
    return card


def card_metrics(prior: Prior, seed: int = 0) -> dict:
    """What the card says of the finished prior: `picture_scores` of 100 samples, and of true renders beside them."""
    asked, judge = held_out_prompts(100, seed), load_scorer()
    pictures = draw_all(lambda prompts, g: prior.sample(prompts, generator=g), asked.prompts, seed)
    return {"samples": picture_scores(pictures, asked, judge, seed=seed),
            "true_renders": picture_scores(asked.truth, asked, judge, seed=seed)}


def kept_latents(path: Path, vae, views: CaptionedViews, seed: int) -> Tensor:
    """`encode_views`, kept in a file so that a resumed training need not encode again; made anew for another autoencoder.
    ValueError for a damaged file, and for one of other pictures or another seed: then the stages after it are, too."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    parts = {"autoencoder": vae.state_dict().values(), "views": (views.images, views.owners, torch.tensor(seed))}
    made_from = {name: hashlib.sha256(b"".join(x.detach().cpu().contiguous().numpy().tobytes() for x in tensors)).hexdigest()
                 for name, tensors in parts.items()}
    if path.is_file():
        try:
            with safe_open(path, "pt") as file:
                z, found = file.get_tensor("latents"), file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged ({error}); delete it to make it anew") from error
        if found.get("views") != made_from["views"]:
            raise ValueError(f"{path}: holds latents of {len(z)} other views, wanted those of these {len(views)}; change folder")
        if found.get("autoencoder") == made_from["autoencoder"]:
            return z
    z = encode_views(vae, views, object_colors(views, COPIES, seed))
    save_file({"latents": z}, path.with_suffix(".part"), made_from)
    path.with_suffix(".part").replace(path)  # an interruption leaves no half file
    return z


def save_prior(pipeline, folder: Path, facts: dict) -> dict:
    """Write a pipeline as fp16 safetensors with its card; the parameters are counted. Returns the card."""
    for part in (pipeline.vae, pipeline.unet, pipeline.text_encoder):
        part.half()
    as_made(pipeline.tokenizer)
    pipeline.save_pretrained(folder, safe_serialization=True)
    for part in (pipeline.vae, pipeline.unet, pipeline.text_encoder):
        part.float()
    counts = {n: sum(v.numel() for v in getattr(pipeline, n).parameters()) for n in ("vae", "unet", "text_encoder")}
    return pretrained.write_card(folder, {**facts, "parameters": counts})

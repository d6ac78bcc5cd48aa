"""From a prompt or one picture to Gaussians (DreamGaussian, stage 1).

Gaussians in a ball are rendered from random directions; score distillation moves them:

    x = render(theta, camera) on a random plain background,   z = encode(x)
    gradient on z: w(t) (eps_hat(z_t, t, caption + view) - eps),   t falls from noisy to clean

    every `densify_every` steps: the Gaussians whose 2D means the gradient of the whole loss pulls hardest are cloned or
    split, transparent ones removed. The threshold is a quantile: its size depends on guidance and loss.

Gaussians like to become fog: a veil that suits any background. So each ray shall be stopped wholly or not at all:

    loss += `weight_opaque` mean alpha (1 - alpha)

With a picture (its alpha is the mask) the front view is also compared with it directly:

    loss += `weight_rgb` |render - picture|^2 + `weight_mask` |alpha - mask|^2         at azimuth 0

Stage 2, the texture of a mesh made from them, is in `texture_refinement`.

Taught in notebooks 03 and 04. Source: DreamGaussian (2309.16653), section 3; its numbers belong to 512 pixels and Stable
Diffusion, and are scaled here to 64 pixels and the course's prior. Left out: renders that grow from 128 to 512 pixels (64 are few
enough), and the pruning of too large Gaussians. Added: `weight_opaque`, and `view_guided`, without which most objects here are
alike from all sides.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.diffusion import guided
from gsgen_lib.metrics import check_images
from gsgen_lib.options import check_options
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.fitting import NAMES, FitResult, densify_and_prune, raw_and_adam, snapshot, to_scene
from gsgen_lib.systems.prior import Prior, set_prompts
from gsgen_lib.systems.score_distillation import WEIGHTS, ViewPrompts, annealed_time, random_time, sds_loss, view_guided
from gsgen_lib.training import load_state, save_state

DENSIFY = ("gradient", "random", "none")


@dataclass(frozen=True)
class DreamConfig:
    """Stage 1. steps: of Adam; views: pictures per step (a multiple of 4 where multi_view); size: pixels; init: Gaussians
    at the start, in a ball of `radius`; guidance_scale, weight: of score distillation; annealed: t falls, clipped to
    low ... high, else it is drawn from that range; view_prompts: say the view, else the caption alone; view_guidance: how much
    louder than the other words, 0 for as loud (`view_guided`); multi_view: denoise four views at right angles together;
    elevations: range of the cameras, degrees; lr_*: rates of Adam; weight_*: of the loss terms; densify: by the pull of the
    gradient, at random, or none; the last five: of `densify_and_prune`."""

    steps: int = 400
    views: int = 4
    size: int = 64
    init: int = 1000
    radius: float = 0.4
    guidance_scale: float = 10.0
    weight: str = "sigma2"
    annealed: bool = True
    low: int = 20
    high: int = 980
    view_prompts: bool = True
    view_guidance: float = 10.0
    multi_view: bool = False
    elevations: tuple[float, float] = (-10.0, 50.0)
    lr_means: float = 5e-3
    lr_colors: float = 2e-2
    lr_opacities: float = 5e-2
    lr_scales: float = 1e-2
    lr_quats: float = 5e-3
    weight_opaque: float = 1000.0
    weight_rgb: float = 2000.0
    weight_mask: float = 200.0
    densify: str = "gradient"
    densify_every: int = 50
    densify_quantile: float = 0.85
    split_scale: float = 0.03
    prune_opacity: float = 0.02
    max_gaussians: int = 4000


def ball(n: int, radius: float, generator: torch.Generator | None = None) -> Gaussians:
    """n >= 4 grey Gaussians, uniform in a ball, opacity 0.1, as large as the distance to their neighbours.

    >>> ball(100, 0.4, torch.Generator().manual_seed(0)).means.norm(dim=1).max() <= 0.4
    tensor(True)
    """
    direction = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=1)
    means = radius * torch.rand(n, 1, generator=generator) ** (1 / 3) * direction
    distance = torch.cdist(means, means).topk(4, largest=False).values[:, 1:].mean(1)
    return Gaussians(means, torch.tensor([1.0, 0, 0, 0]).repeat(n, 1), distance[:, None].repeat(1, 3),
                     torch.full((n,), 0.1), torch.full((n, 3), 0.5))


def dream(prior: Prior, caption: str, config: DreamConfig = DreamConfig(), init: Gaussians | None = None,
          picture: Tensor | None = None, elevation: float = 15.0, generator: torch.Generator | None = None,
          folder: str | Path | None = None, snapshot_every: int = 0, progress: bool = True) -> FitResult:
    """Stage 1: distil the prior into Gaussians that look like `caption` from all sides.

    caption: without view word; init: Gaussians to start from instead of a ball; picture: (H, W, 4) in [0, 1], straight
    alpha, of the front, taken by the standard camera at `elevation` degrees; generator: for all that is random, on the
    CPU; folder: a checkpoint is kept there every 50 steps, and an interrupted run of the same arguments goes on from it
    (snapshots are those of this call).

    Raises ValueError naming the argument: a configuration that does not fit together, a picture without alpha, a
    checkpoint of another run.
    """
    c = _checked(config, picture, init, len(prior.alphas_cumprod))
    if not -90 <= elevation <= 90:
        raise ValueError(f"elevation: got {elevation}, wanted -90 to 90 degrees")
    device = prior.device
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    scene_given = None if init is None else _digest(*(getattr(init, k) for k in NAMES))  # c.init is a number
    run = {"caption": caption, "picture": _digest(picture), "scene": scene_given,
           "elevation": elevation, "generator": _digest(generator.get_state()), "prior": _fingerprint(prior), **asdict(c)}
    run["elevations"] = list(c.elevations)
    prompts = ViewPrompts(prior, caption)
    together = prior.encode_prompt(set_prompts(caption)) if c.multi_view else None

    def ask(x_t, t, words):
        return prior.predict_eps(x_t, t, words, 4 if c.multi_view else 1)

    scene = (ball(c.init, c.radius, generator) if init is None else init.detach().to(torch.float32)).to(device)
    raw, adam = raw_and_adam(scene, c)
    pull, seen = (torch.zeros(scene.num, device=device) for _ in range(2))  # sum of 2D gradients, and of views
    result, first = FitResult(scene), 0
    path = None if folder is None else Path(folder) / "dream.pt"
    if path is not None and path.is_file():
        first, raw, pull, seen, result.log = _resume(path, run, adam, generator, device)

    bar = tqdm(range(first, c.steps), desc="dream", leave=False, **({} if progress else {"disable": True}))
    for step in bar:
        adam.param_groups[0]["lr"] = c.lr_means * 0.02 ** (step / c.steps)
        azimuths, elevations = directions(c, generator)
        cameras = Cameras.orbit(c.views, azimuth=azimuths, elevation=elevations, width=c.size, height=c.size).to(device)
        background = torch.rand(3, generator=generator).to(device)
        out = rasterize(to_scene(raw), cameras, background)
        z = prior.encode_image(out.rgb.clamp(0, 1))  # (V, C, h, w)
        text = _text(prompts, together, c, azimuths, elevations)
        if c.view_prompts and c.view_guidance:
            denoise = view_guided(ask, text, prompts.features if together is None else together, prompts.empty, c.guidance_scale,
                                  c.view_guidance)
        else:
            denoise = guided(ask, text, prompts.empty.expand_as(text), c.guidance_scale)
        t = torch.tensor(annealed_time(step, c.steps, c.low, c.high, len(prior.alphas_cumprod)) if c.annealed
                         else int(random_time(1, generator, c.low, c.high)))
        eps = torch.randn(z.shape, generator=generator).to(z)
        loss = sds_loss(denoise, z, t, eps, prior.alphas_cumprod, c.weight)
        loss = loss + c.weight_opaque * (out.alpha * (1 - out.alpha)).mean()
        if picture is not None:
            loss = loss + _reference_loss(raw, picture.to(device), elevation, background, c)
        if not math.isfinite(loss.item()):  # before it reaches the scene, or a checkpoint
            raise ValueError(f"prior, config: the loss of step {step} (t = {int(t)}) is {loss.item()}, wanted a finite number")
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        with torch.no_grad():
            raw["colors"].clamp_(0, 1)
            now, here = out.info.grad_norm2d.sum(0), out.info.visible.sum(0)
            pull += now
            seen += here
        result.log.append(dict(step=step, t=int(t), loss=loss.item(), gaussians=len(raw["means"]),
                               pull=float((now / here.clamp_min(1)).mean())))
        if (step + 1) % c.densify_every == 0 and step + 1 < c.steps:
            if c.densify != "none":
                score = pull / seen.clamp_min(1) if c.densify == "gradient" else torch.rand(
                    len(pull), generator=generator).to(device)
                raw = densify_and_prune(raw, adam, score, c, generator)
            pull, seen = (torch.zeros(len(raw["means"]), device=device) for _ in range(2))
        if snapshot_every and (step + 1) % snapshot_every == 0:
            result.snapshots.append((step + 1, snapshot(raw)))
        if path is not None and (step + 1) % 50 == 0:
            _save(path, run, step + 1, raw, adam, pull, seen, generator, result.log)
    result.gaussians = to_scene(raw).detach()
    return result


def directions(c: DreamConfig, generator: torch.Generator | None = None) -> tuple[list[float], list[float]]:
    """Azimuths and elevations in degrees of one step's cameras; sets of four at right angles where c.multi_view.

    >>> azimuths, elevations = directions(DreamConfig(multi_view=True), torch.Generator().manual_seed(0))
    >>> round(azimuths[1] - azimuths[0]), len(set(elevations))
    (90, 1)
    """
    low, high = c.elevations
    count = c.views // 4 if c.multi_view else c.views
    turn = 360 * torch.rand(count, generator=generator) - 180
    rise = low + (high - low) * torch.rand(count, generator=generator)
    if c.multi_view:  # the set's front view lies within 45 degrees of the front, as in training
        turn = (turn[:, None] / 4 + 90 * torch.arange(4)).flatten()
        rise = rise.repeat_interleave(4)
    return turn.tolist(), rise.tolist()


def _text(prompts: ViewPrompts, together: Tensor | None, c: DreamConfig, azimuths, elevations) -> Tensor:
    """Text features (V, L, D) of one step's views."""
    if together is not None:
        return together.repeat(c.views // 4, 1, 1)
    return prompts(azimuths, elevations) if c.view_prompts else prompts.plain.expand(c.views, -1, -1)


def _reference_loss(raw, picture: Tensor, elevation: float, background: Tensor, c: DreamConfig) -> Tensor:
    """How far the front view is from the picture (H, W, 4), in colour on the same background, and in alpha."""
    height, width, _ = picture.shape
    camera = Cameras.orbit(1, elevation=elevation, width=width, height=height).to(picture.device)
    out = rasterize(to_scene(raw), camera, background)
    off = out.rgb[0] - on_background(picture, background)
    return c.weight_rgb * off.square().mean() + c.weight_mask * (out.alpha[0] - picture[..., 3:]).square().mean()


# ---- keeping a run -------------------------------------------------------------------------------------------------


def _save(path: Path, run: dict, step: int, raw, adam, pull, seen, generator, log) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"run": run, "step": step, "raw": {k: v.detach() for k, v in raw.items()}, "adam": adam.state_dict(),
             "pull": pull, "seen": seen, "generator": generator.get_state(), "log": log}
    save_state(path, state)


def _digest(*tensors) -> str | None:
    """A hash of the bytes of tensors; None for None."""
    if tensors == (None,):
        return None
    parts = (str(tuple(x.shape)).encode() + x.detach().cpu().numpy().tobytes() for x in tensors)
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _fingerprint(prior) -> str:
    """Name, and two sums over each of a prior's weights: a retrained one is another."""
    parts = [getattr(prior, name) for name in ("unet", "vae", "text_encoder") if hasattr(prior, name)]
    sums = [torch.stack([p.double().sum(), p.double().square().sum()]).cpu() for part in parts for p in part.parameters()]
    return f"{getattr(prior, 'name', '')} {_digest(*sums) if sums else None}"


def _resume(path: Path, run: dict, adam, generator, device):
    """(step, raw, pull, seen, log) of an interrupted run; Adam and the generator are set."""
    state = load_state(path, ("run", "step", "raw", "adam", "pull", "seen", "generator", "log"))
    saved, raw = state["run"], state["raw"]
    whole = isinstance(saved, dict) and isinstance(raw, dict) and set(raw) == set(NAMES) and isinstance(state["log"], list)
    counts = {len(x) for x in (*raw.values(), state["pull"], state["seen"])} if whole else set()
    if len(counts) != 1 or state["step"] != len(state["log"]):
        raise ValueError(f"{path}: damaged (its parts do not fit together); delete it to start again")
    different = [k for k in run if saved.get(k) != run[k]]
    if different:
        name = different[0]
        raise ValueError(f"{path}: belongs to a run with {name}={saved.get(name)!r}, wanted {run[name]!r}; take another folder")
    raw = {k: v.to(device).requires_grad_() for k, v in raw.items()}
    for group in adam.param_groups:
        group["params"] = [raw[group["name"]]]
    try:
        adam.load_state_dict(state["adam"])
        generator.set_state(state["generator"])
        moments = [adam.state[raw[k]][m].shape == raw[k].shape for k in NAMES for m in ("exp_avg", "exp_avg_sq")]
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged ({type(error).__name__}); delete it to start again") from error
    if not all(moments):
        raise ValueError(f"{path}: damaged (moments of another scene); delete it to start again")
    return state["step"], raw, state["pull"].to(device), state["seen"].to(device), state["log"]


def _checked(c: DreamConfig, picture, init: Gaussians | None, train_steps: int) -> DreamConfig:
    check_options(c, "config", ("steps", "views", "radius", "densify_every", "split_scale"))
    if c.densify not in DENSIFY:
        raise ValueError(f"config.densify: got {c.densify!r}, wanted one of {', '.join(DENSIFY)}")
    if c.weight not in WEIGHTS:
        raise ValueError(f"config.weight: got {c.weight!r}, wanted one of {', '.join(WEIGHTS)}")
    if c.multi_view and (c.views % 4 or not c.view_prompts):
        raise ValueError(f"config.views, view_prompts: got {c.views}, {c.view_prompts}, wanted a multiple of 4 and True "
                         "since multi_view is set")
    for name, least in (("init", 4), ("size", 4)):
        if getattr(c, name) < least:
            raise ValueError(f"config.{name}: got {getattr(c, name)}, wanted >= {least}")
    if not 0 <= c.low < c.high < train_steps:
        raise ValueError(f"config.low, high: got {c.low}, {c.high}, wanted 0 <= low < high < {train_steps}")
    if not -90 <= c.elevations[0] <= c.elevations[1] <= 90:
        raise ValueError(f"config.elevations: got {c.elevations}, wanted -90 <= first <= second <= 90")
    for name in ("densify_quantile", "prune_opacity"):
        if getattr(c, name) > 1:
            raise ValueError(f"config.{name}: got {getattr(c, name)}, wanted 0 to 1")
    if picture is not None:
        check_images("picture", picture, 4)
        if picture.ndim != 3:
            raise ValueError(f"picture: got shape {tuple(picture.shape)}, wanted (H, W, 4): one picture with alpha")
    if init is not None and (init.batch_shape or init.sh_degree is not None or init.num < 1):
        raise ValueError(f"init: got batch {init.batch_shape}, SH degree {init.sh_degree}, {init.num} Gaussians, wanted one "
                         "scene with RGB colors")
    count, source = (c.init, "config.init") if init is None else (init.num, "init")
    if count > c.max_gaussians:
        raise ValueError(f"{source}: got {count} Gaussians, wanted at most config.max_gaussians = {c.max_gaussians}")
    return c

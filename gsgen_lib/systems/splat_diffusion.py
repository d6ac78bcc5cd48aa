"""Latent diffusion over splat scenes: one network for nothing given, words, one view, a few views.

Problem. Reconstruction answers with one scene, the mean of all that fit what it sees; where several scenes fit, that mean is a
blur. A diffusion model over the latents of `SplatVAE` draws scenes instead. For V = 4 views at right angles,

    z (V, 6, 8, 8) = encoder(all four views)                                  what is drawn
    c (V, 6, 8, 8) = encoder(the given views, alone), 0 elsewhere             what it may know
    z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps                               `diffusion.q_sample`
    v = network(z_t, t; c, which views are given, rays, words)                 L = |v - (sqrt(abar_t) eps - sqrt(1 - abar_t) z)|^2

"Alone" matters: in the joint encoding views hear each other, so even the front's latent knows the back. Were it given instead
of c, the network would learn to read the answer off it, and fail when there is no back to encode (the leak). So a given view's
latent z is drawn as well, with c beside it.

The network is the U-Net of `nn.multiview`, whose attention runs over all pixels of all four latents and over the words. In
training words are sometimes dropped, and 0, 1 or more views are given (`splat_diffusion_training`), so one network serves all
uses; guidance moves away from "nothing given". Latents are centred and scaled per channel first (`mean`, `std`).

Source: 2406.13099 section 3.3; classifier-free guidance 2207.12598. Taught in notebook 07.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsgen_lib import pretrained
from gsgen_lib.diffusion import alphas_cumprod_of, cosine_betas, ddim_sample, ddpm_sample, guided, q_sample, velocity
from gsgen_lib.nn.multiview import MultiViewUNet, check_widths
from gsgen_lib.options import check_options
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.feed_forward import check_views
from gsgen_lib.systems.splat_vae import SplatVAE

PREDICTIONS = ("v", "eps", "x0")
VIEWS, ELEVATION = 4, 15.0  # the cameras of every scene


def scene_cameras(size: int = 64) -> Cameras:
    """The four cameras of every scene that is drawn: azimuth 0, 90, 180, 270, elevation 15 degrees.

    >>> len(scene_cameras())
    4
    """
    return Cameras.orbit(VIEWS, elevation=ELEVATION, width=size, height=size)


@dataclass(frozen=True)
class SplatDiffusionConfig:
    """latent: channels; cells: of a latent's side; widths: of the U-Net at cells and cells / 2; embed: width of the time; words:
    width of the text features; prediction: of PREDICTIONS; train_steps: T."""

    latent: int = 6
    cells: int = 8
    widths: tuple[int, int] = (96, 144)
    embed: int = 256
    words: int = 96
    prediction: str = "v"
    train_steps: int = 1000

    def __post_init__(self):
        check_options(self, "config", ("latent", "cells", "embed", "words", "train_steps"))
        check_widths(self.widths)
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"config.prediction: got {self.prediction!r}, wanted one of {', '.join(PREDICTIONS)}")
        if self.cells % 2:
            raise ValueError(f"config.cells: got {self.cells}, wanted an even number")


@dataclass(frozen=True)
class Condition:
    """What is given for B scenes: words (B, L, D); views (B, V, C, h, w), latents of the given views encoded alone, 0 elsewhere;
    known (B, V), 1 where a view is given.

    >>> Condition(torch.zeros(2, 5, 96), torch.zeros(2, 4, 6, 8, 8), torch.zeros(2, 4))[[0, 0, 1]].known.shape
    torch.Size([3, 4])
    """

    words: Tensor
    views: Tensor
    known: Tensor

    def __getitem__(self, rows) -> Condition:
        return Condition(self.words[rows], self.views[rows], self.known[rows])

    def joined(self, other: Condition) -> Condition:
        """The scenes of both, ours first."""
        return Condition(*(torch.cat(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))


class SplatDenoiser(nn.Module):
    """Noisy latents, a time and a condition -> prediction.

    Buffers: mean, std (C,) of the training latents; alphas_cumprod (T,), which follows from train_steps and is not saved.

    >>> model = SplatDenoiser(SplatDiffusionConfig(widths=(8, 16)))
    >>> given = Condition(torch.zeros(2, 5, 96), torch.zeros(2, 4, 6, 8, 8), torch.zeros(2, 4))
    >>> model(torch.randn(2, 4, 6, 8, 8), torch.tensor([10, 900]), given, scene_cameras()).shape
    torch.Size([2, 4, 6, 8, 8])
    """

    def __init__(self, config: SplatDiffusionConfig = SplatDiffusionConfig()):
        super().__init__()
        self.config = c = config
        self.time = nn.Sequential(nn.Linear(64, c.embed), nn.SiLU(), nn.Linear(c.embed, c.embed))
        self.phrase = nn.Linear(c.words, c.embed)
        self.unet = MultiViewUNet(2 * c.latent + 1 + 6, c.latent, c.widths, (True, True), 1, c.embed, c.words)
        nn.init.zeros_(self.unet.leave[-1].weight)
        nn.init.zeros_(self.unet.leave[-1].bias)
        self.register_buffer("mean", torch.zeros(c.latent))
        self.register_buffer("std", torch.ones(c.latent))
        self.register_buffer("alphas_cumprod", alphas_cumprod_of(cosine_betas(c.train_steps)).float(), False)

    def forward(self, x: Tensor, t: Tensor, given: Condition, cameras: Cameras) -> Tensor:
        """x (B, V, C, h, w) noisy, scaled latents; t (B,) whole numbers; cameras: V views, one set for all -> like x."""
        b, v, _, h, w = x.shape
        rays = cameras.resize(w, h).plucker().movedim(-1, 1).to(x)  # (V, 6, h, w)
        mask = given.known.to(x)[:, :, None, None, None].expand(b, v, 1, h, w)
        y = torch.cat([x, given.views.to(x), mask, rays.expand(b, v, 6, h, w)], 2).flatten(0, 1)
        embedding = self.time(waves(t).to(x)) + self.phrase(given.words.to(x).mean(1))  # (B, embed)
        y = self.unet(y, v, embedding.repeat_interleave(v, 0), given.words.to(x))
        return y.unflatten(0, (b, v)).to(x.dtype)

    def scale(self, z: Tensor) -> Tensor:
        """Latents of the autoencoder (..., C, h, w) -> centred, of variance about 1."""
        return (z - self.mean[:, None, None]) / self.std[:, None, None]

    def unscale(self, z: Tensor) -> Tensor:
        """The inverse of `scale`."""
        return z * self.std[:, None, None] + self.mean[:, None, None]


def waves(t: Tensor, width: int = 64) -> Tensor:
    """Times (B,) as cosines and sines of `width` / 2 frequencies from 1 down to nearly 1/10000: (B, width).

    >>> waves(torch.tensor([0]))[0, [0, 32]]
    tensor([1., 0.])
    """
    at = t[:, None].float() * torch.exp(-math.log(10_000) * torch.arange(width // 2, device=t.device) / (width // 2))
    return torch.cat([at.cos(), at.sin()], -1)


def diffusion_loss(model: nn.Module, net: SplatDenoiser, z: Tensor, given: Condition, cameras: Cameras,
                   generator: torch.Generator | None = None, regression: bool = False) -> dict[str, Tensor]:
    """The loss of the header, or that of eps or x0, for scaled latents z (B, V, C, h, w).

    model: `net` or its wrapper for several GPUs. The generator lives on the CPU. regression: no diffusion, but the same network
    asked for z itself (x0) from the condition alone, at x = 0 and the last time: its best answer is the mean of all z that fit.
    Such a network answers `draw(..., steps=1, guidance_scale=1.0, noise=0)`. Returns {"loss"}.
    """
    if regression:
        last = torch.full((len(z),), net.config.train_steps - 1, device=z.device)
        return {"loss": F.mse_loss(model(torch.zeros_like(z), last, given, cameras).float(), z)}
    t = torch.randint(net.config.train_steps, (len(z),), generator=generator).to(z.device)
    eps = torch.randn(z.shape, generator=generator).to(z)
    abar = net.alphas_cumprod[t]
    target = {"v": lambda: velocity(z, eps, abar), "eps": lambda: eps, "x0": lambda: z}[net.config.prediction]()
    return {"loss": F.mse_loss(model(q_sample(z, eps, abar), t, given, cameras).float(), target)}


class SplatDiffusion:
    """Autoencoder, denoiser and text encoder as one sampler.

    vae, denoiser: of equal latents; encode_prompt: B strings -> (B, L, words), `Prior.encode_prompt`. ValueError where the two
    networks do not fit.
    """

    def __init__(self, vae: SplatVAE, denoiser: SplatDenoiser, encode_prompt: Callable[[list[str]], Tensor]):
        v, d = vae.config, denoiser.config
        if (v.latent, v.size // v.factor) != (d.latent, d.cells):
            raise ValueError(f"denoiser: draws latents of {d.latent} x {d.cells} x {d.cells}, wanted those of the autoencoder, "
                             f"{v.latent} x {v.size // v.factor} x {v.size // v.factor}")
        self.vae, self.denoiser = (m.eval().requires_grad_(False) for m in (vae, denoiser))
        self.encode_prompt, self.cameras = encode_prompt, scene_cameras(v.size).to(denoiser.mean.device)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.denoiser.mean.device

    @torch.no_grad()
    def condition(self, captions: list[str], rgba: Tensor | None = None, places: tuple[int, ...] = ()) -> Condition:
        """What the sampler is told of B scenes: captions, "" for none; rgba (B, m, S, S, 4) of the views at `places` (0 front, 1
        right, 2 back, 3 left). Only these views are encoded. ValueError naming what does not fit."""
        d, b = self.denoiser.config, len(captions)
        if isinstance(captions, str) or not b or not all(isinstance(c, str) for c in captions):
            raise ValueError(f"captions: got {captions!r}, wanted a list of strings, \"\" for none")
        views = torch.zeros(b, VIEWS, d.latent, d.cells, d.cells, device=self.device)
        known = torch.zeros(b, VIEWS, device=self.device)
        whole = all(isinstance(p, int) and 0 <= p < VIEWS for p in places) and len(set(places)) == len(places)
        if (rgba is None) != (not places) or not whole:
            raise ValueError(f"places: got {places}, wanted different ones of 0 to {VIEWS - 1}, one for each view given")
        if rgba is not None:
            s, there = self.vae.config.size, self.cameras[list(places)]
            if not isinstance(rgba, Tensor) or rgba.shape != (b, len(places), s, s, 4):
                raise ValueError(f"rgba: got shape {tuple(getattr(rgba, 'shape', ()))}, wanted ({b}, {len(places)}, {s}, {s}, 4)")
            rgba = rgba.to(self.device)
            for one in rgba:
                check_views(one, there, s)
            views[:, list(places)] = self.denoiser.scale(self.vae.encode(rgba, Cameras.stack([there] * b))[0])
            known[:, list(places)] = 1
        return Condition(self.encode_prompt(captions).to(self.device), views, known)

    @torch.no_grad()
    def draw(self, given: Condition, steps: int = 25, guidance_scale: float = 2.0, sampler: str = "ddim", eta: float = 0.0,
             spacing: str = "trailing", noise: Tensor | None = None, generator: torch.Generator | None = None,
             interval: tuple[float, float] = (0.0, math.inf)) -> Tensor:
        """Latents (B, V, C, h, w), one scene for each of the conditions.

        interval: times of `train_steps` at which guidance acts, low <= t <= high. At others a step asks the network once, not
        twice, which saves up to a third of the time (Kynkaanniemi et al. 2404.07724).

        spacing: of the steps (`diffusion.timesteps`); a network that predicts eps should not start at the very last time, where
        next to nothing of a scene is left and its error is divided by that: "leading".

        noise: to start from; where None, drawn where the generator lives. "ddpm" and eta > 0 draw more on the way: their
        generator must live on the device of the sampler. ValueError naming what does not fit.
        """
        if sampler not in ("ddim", "ddpm"):
            raise ValueError(f"sampler: got {sampler!r}, wanted ddim or ddpm")
        if eta and sampler == "ddpm":
            raise ValueError(f"eta: got {eta} for ddpm, which has no such choice; wanted 0")
        if not math.isfinite(guidance_scale):
            raise ValueError(f"guidance_scale: got {guidance_scale}, wanted a finite number")
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps: got {steps!r}, wanted a whole number >= 1")
        d, b = self.denoiser.config, len(given.known)
        shape = (b, VIEWS, d.latent, d.cells, d.cells)
        if not b or given.views.shape != shape or given.known.shape != (b, VIEWS) or len(given.words) != b:
            got = ", ".join(str(tuple(x.shape)) for x in vars(given).values())
            raise ValueError(f"given: got words, views, known {got}, wanted (B, L, {d.words}), (B, *{shape[1:]}), (B, {VIEWS})")
        if noise is None:
            noise = torch.randn(shape, generator=generator, device=generator.device if generator is not None else None)
        if noise.shape != shape:
            raise ValueError(f"noise: got shape {tuple(noise.shape)}, wanted {shape}")
        every = given.joined(self.nothing(b))

        def model(x, t, rows):
            return self.denoiser(x, t.expand(len(x)), every[rows], self.cameras)

        rows = torch.arange(b, device=self.device)
        denoise = guided(model, rows, rows + b, guidance_scale, interval=interval)
        settings = dict(steps=steps, prediction=d.prediction, spacing=spacing, generator=generator)
        if sampler == "ddpm":
            z = ddpm_sample(denoise, noise.to(self.device), self.denoiser.alphas_cumprod, **settings)
        else:
            z = ddim_sample(denoise, noise.to(self.device), self.denoiser.alphas_cumprod, eta=eta, **settings)
        return self.denoiser.unscale(z)

    @torch.no_grad()
    def mean(self, given: Condition, draws: int = 8, generator: torch.Generator | None = None) -> Tensor:
        """The denoiser's guess of the mean of all scenes that fit, (B, V, C, h, w): one step from the last time, where only the
        condition is known, averaged over `draws` of the noise."""
        rows = torch.arange(len(given.known), device=self.device).repeat(draws)
        return self.draw(given[rows], 1, 1.0, generator=generator).unflatten(0, (draws, -1)).mean(0)

    def nothing(self, count: int) -> Condition:
        """No words and no view, `count` times: what guidance moves away from."""
        return self.condition([""] * count)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Gaussians:
        """Latents (B, V, C, h, w) -> Gaussians of batch (B,)."""
        return self.vae.splats(latents, Cameras.stack([self.cameras] * len(latents)))

    def sample(self, captions: list[str], rgba: Tensor | None = None, places: tuple[int, ...] = (), **settings) -> Gaussians:
        """`condition`, `draw` (settings) and `decode`: one scene for each caption."""
        return self.decode(self.draw(self.condition(captions, rgba, places), **settings))


def load_splat_diffusion(name: str | Path = "splat_diffusion", device: str = "cpu",
                         autoencoder: str | Path | None = None) -> SplatDiffusion:
    """The shipped sampler, or the denoiser in a folder, with an autoencoder, where None the one that its card names, and the
    prior's text encoder.

    Raises what `pretrained.load_network` raises, and ValueError where that autoencoder's encoder is not the one whose latents
    it learned.
    """
    from gsgen_lib.systems.prior import load_prior
    from gsgen_lib.systems.splat_vae import encoder_digest, load_splat_vae

    denoiser = pretrained.load_network(name, SplatDenoiser, SplatDiffusionConfig, device)
    card = pretrained.read_card(pretrained.checked_folder(name))
    autoencoder = autoencoder or card.get("autoencoder", "splat_vae_8")
    vae = load_splat_vae(autoencoder, device)
    digest = encoder_digest(vae)
    if card.get("encoder_sha256") != digest:
        raise ValueError(f"{autoencoder}: sha256 of its encoder is {digest[:12]}..., but {name} learned with "
                         f"{str(card.get('encoder_sha256'))[:12]}...")
    return SplatDiffusion(vae, denoiser, load_prior(device=device).encode_prompt)

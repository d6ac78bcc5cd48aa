"""Diffusion over the codes of the Variational AutoReconstructor: one picture in, as many scenes out as are asked for.

Problem. The code h of a picture can be computed; to *draw* scenes that fit a picture, a denoiser learns the codes given what the
encoder knows of the picture, here its features c (channels beside the noisy code):

    h ~ N(mu(picture), sigma(picture)^2)                                     a sample of the posterior, not its mean
    h_t = sqrt(abar_t) h + sqrt(1 - abar_t) eps                              L = |eps - network(h_t, t; c)|^2

In a share of the scenes c is dropped (all 0), so that there is a prediction without it; in a last phase half of the scenes lose
half of their picture, in patches: such a scene must be completed.

Guidance, as everywhere in this course:  eps = eps_0 + s (eps_c - eps_0),  s = 1 plain, s > 1 nearer to the picture, less varied.
(The paper says that a larger weight gives more diverse scenes: its weight points the other way, towards eps_0.)

What to expect. h was encoded from the very picture that c is of. Once c is known, little of h is left to draw, and nothing in it
was ever told what the far side looks like: the losses only ask for a scene that renders right *on average*. So

    p(h | picture) is close to N(mu, sigma^2),     one sample is about as good as the mean, and samples differ little

and `gsgen bench var` measures by how much, beside latents that do hold the far side (`splat_diffusion`).

The first open question of the paper: a second Splatter Image. With `behind` the same network draws, from the features of the
picture, the code that a picture *from behind* would have; it is decoded for the opposite camera, without skips, and both sets of
Gaussians are one scene.

Taught in notebook 08. Source: 2508.21542, section 3.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsgen_lib import pretrained
from gsgen_lib.diffusion import alphas_cumprod_of, ddim_sample, guided, q_sample, scaled_linear_betas
from gsgen_lib.nn.multiview import MultiViewUNet, check_widths
from gsgen_lib.options import check_options
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.autoreconstructor import AutoReconstructor, check_keep
from gsgen_lib.systems.feed_forward import check_views
from gsgen_lib.systems.splat_diffusion import waves


@dataclass(frozen=True)
class CodeDiffusionConfig:
    """latent, cells: of a code (latent, cells, cells); features: channels of c; widths: of the U-Net at cells and cells / 2;
    embed: width of the time; train_steps: T."""

    latent: int = 4
    cells: int = 8
    features: int = 80
    widths: tuple[int, int] = (64, 96)
    embed: int = 128
    train_steps: int = 1000

    def __post_init__(self):
        check_options(self, "config", ("latent", "cells", "features", "embed", "train_steps"))
        check_widths(self.widths)
        if self.cells % 2:
            raise ValueError(f"config.cells: got {self.cells}, wanted an even number")


@dataclass(frozen=True)
class Seen:
    """What is known of B scenes: features (B, F, h, w) of the picture; mask (B, 1, h, w): 1 where it was shown; behind (B,): 1 to
    draw the code of a picture from behind, 0 for that of the picture itself.

    >>> Seen(torch.zeros(2, 8, 4, 4), torch.ones(2, 1, 4, 4), torch.zeros(2))[[0, 0, 1]].behind.shape
    torch.Size([3])
    """

    features: Tensor
    mask: Tensor
    behind: Tensor

    def __getitem__(self, rows) -> Seen:
        return Seen(self.features[rows], self.mask[rows], self.behind[rows])

    def dropped(self, which: Tensor) -> Seen:
        """Nothing is known of the scenes `which` (B,), but from where the code is."""
        stays = (~which).to(self.features)[:, None, None, None]
        return replace(self, features=self.features * stays, mask=self.mask * stays)


class CodeDenoiser(nn.Module):
    """Noisy codes, a time and what is seen -> noise.

    Buffers: mean, std (latent,) of the training codes; feature_std: of the features; alphas_cumprod (T,), not saved.

    >>> model = CodeDenoiser(CodeDiffusionConfig(features=8, widths=(8, 16), embed=16))
    >>> seen = Seen(torch.zeros(2, 8, 8, 8), torch.ones(2, 1, 8, 8), torch.zeros(2))
    >>> model(torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), seen).shape
    torch.Size([2, 4, 8, 8])
    """

    def __init__(self, config: CodeDiffusionConfig = CodeDiffusionConfig()):
        super().__init__()
        self.config = c = config
        self.time = nn.Sequential(nn.Linear(64, c.embed), nn.SiLU(), nn.Linear(c.embed, c.embed))
        self.side = nn.Embedding(2, c.embed)
        self.unet = MultiViewUNet(c.latent + c.features + 1, c.latent, c.widths, (True, True), 1, c.embed)
        nn.init.zeros_(self.unet.leave[-1].weight)
        nn.init.zeros_(self.unet.leave[-1].bias)
        self.register_buffer("mean", torch.zeros(c.latent))
        self.register_buffer("std", torch.ones(c.latent))
        self.register_buffer("feature_std", torch.ones(()))
        self.register_buffer("alphas_cumprod", alphas_cumprod_of(scaled_linear_betas(c.train_steps)).float(), False)

    def forward(self, x: Tensor, t: Tensor, seen: Seen) -> Tensor:
        """x (B, latent, h, w) noisy, scaled codes; t (B,) whole numbers -> like x."""
        y = torch.cat([x, seen.features.to(x) / self.feature_std, seen.mask.to(x)], 1)
        embedding = self.time(waves(t).to(x)) + self.side(seen.behind.long())  # (B, embed)
        return self.unet(y, 1, embedding).to(x.dtype)

    def scale(self, h: Tensor) -> Tensor:
        """Codes (..., latent, h, w) -> centred, of variance about 1."""
        return (h - self.mean[:, None, None]) / self.std[:, None, None]

    def unscale(self, h: Tensor) -> Tensor:
        """The inverse of `scale`."""
        return h * self.std[:, None, None] + self.mean[:, None, None]


def code_loss(model: nn.Module, net: CodeDenoiser, h: Tensor, seen: Seen, generator: torch.Generator | None = None) -> dict:
    """The loss of the header for scaled codes h (B, latent, h, w): {"loss"}.

    model: `net` or its wrapper for several GPUs. The generator lives on the CPU.
    """
    t = torch.randint(net.config.train_steps, (len(h),), generator=generator).to(h.device)
    eps = torch.randn(h.shape, generator=generator).to(h)
    return {"loss": F.mse_loss(model(q_sample(h, eps, net.alphas_cumprod[t]), t, seen).float(), eps)}


def patches(rgba: Tensor, mask: Tensor) -> Tensor:
    """Pictures (B, S, S, 4) of which the patches with mask (B, 1, h, w) = 0 are empty: white, alpha 0.

    >>> left = torch.tensor([[[[1.0, 0.0]]]])
    >>> patches(torch.zeros(1, 1, 4, 4), left)[0, 0, :, 0]  # colour: the right half is white
    tensor([0., 0., 1., 1.])
    """
    shown = F.interpolate(mask, rgba.shape[1:3], mode="nearest").movedim(1, -1)
    empty = rgba.new_tensor([1.0, 1.0, 1.0, 0.0])
    return rgba * shown + empty * (1 - shown)


def opposite(cameras: Cameras) -> Cameras:
    """The cameras turned by 180 degrees about the y axis.

    >>> there = opposite(Cameras.orbit(1)).centers
    >>> torch.allclose(there, Cameras.orbit(1, azimuth=[180.0]).centers, atol=1e-6)
    True
    """
    turn = torch.tensor([-1.0, 1.0, -1.0, 1.0]).to(cameras.viewmats)  # x_cam = W R x
    return replace(cameras, viewmats=cameras.viewmats * turn)


class OneImage:
    """Encoder, decoder and denoiser as one sampler. ValueError where the two networks do not fit."""

    def __init__(self, var: AutoReconstructor, denoiser: CodeDenoiser):
        v, d = var.config, denoiser.config
        if (v.latent, v.size // 8, v.widths[-1]) != (d.latent, d.cells, d.features):
            raise ValueError(f"denoiser: draws codes of {d.latent} x {d.cells} x {d.cells} from {d.features} features, wanted "
                             f"{v.latent} x {v.size // 8} x {v.size // 8} and {v.widths[-1]}, as the AutoReconstructor has them")
        self.var, self.denoiser = (m.eval().requires_grad_(False) for m in (var, denoiser))

    @torch.no_grad()
    def seen(self, rgba: Tensor, mask: Tensor | None = None, behind: bool = False) -> Seen:
        """Of pictures (B, S, S, 4), of which only the patches with mask (B, 1, S/8, S/8) = 1 are shown; None: all."""
        cells = self.denoiser.config.cells
        mask = rgba.new_ones(len(rgba), 1, cells, cells) if mask is None else mask
        if mask.shape != (len(rgba), 1, cells, cells):
            raise ValueError(f"mask: got shape {tuple(mask.shape)}, wanted ({len(rgba)}, 1, {cells}, {cells})")
        mask = mask.to(rgba)  # it may be of truth values
        features = self.var.encode(patches(rgba, mask))[2]
        return Seen(features, mask, rgba.new_full((len(rgba),), float(behind)))

    @torch.no_grad()
    def draw(self, seen: Seen, steps: int = 50, guidance_scale: float = 1.0, eta: float = 0.0, noise: Tensor | None = None,
             generator: torch.Generator | None = None) -> Tensor:
        """Codes (B, latent, h, w), one for each scene. noise: to start from; where None, drawn where the generator lives (for
        eta > 0 that must be the device of the weights)."""
        if not math.isfinite(guidance_scale):
            raise ValueError(f"guidance_scale: got {guidance_scale}, wanted a finite number")
        d, b = self.denoiser.config, len(seen.behind)
        shape = (b, d.latent, d.cells, d.cells)
        if noise is None:
            noise = torch.randn(shape, generator=generator, device=generator.device if generator is not None else None)
        if noise.shape != shape or not bool(torch.isfinite(noise).all()):
            raise ValueError(f"noise: got shape {tuple(noise.shape)}, wanted {shape}, finite numbers")
        nothing = seen.dropped(torch.ones(b, dtype=torch.bool, device=seen.mask.device))
        every = Seen(*(torch.cat(pair) for pair in zip(vars(seen).values(), vars(nothing).values(), strict=True)))
        rows = torch.arange(b, device=seen.mask.device)
        denoise = guided(lambda x, t, rows: self.denoiser(x, t.expand(len(x)), every[rows]), rows, rows + b, guidance_scale)
        h = ddim_sample(denoise, noise.to(self.denoiser.mean), self.denoiser.alphas_cumprod, steps, "eps", eta=eta,
                        generator=generator)
        return self.denoiser.unscale(h)

    @torch.no_grad()
    def sample(self, rgba: Tensor, cameras: Cameras, count: int = 1, keep: float = 1.0, behind: bool = False,
               mask: Tensor | None = None, generator: torch.Generator | None = None, **settings) -> Gaussians:
        """`count` scenes, batch (count,), that fit one picture: rgba (1, S, S, 4) and its camera.

        keep: weight of the skips; behind: with a second Splatter Image, as seen from behind, from noise of its own; mask,
        settings: of `seen`, `draw`.
        """
        check_views(rgba, cameras, self.var.config.size)
        check_keep(keep)
        if len(rgba) != 1 or count < 1:
            raise ValueError(f"rgba, count: got {len(rgba)} pictures, {count} scenes, wanted one picture and at least one scene")
        told, there = self.seen(rgba, mask), Cameras.stack([cameras] * count)
        shown = rgba if mask is None else patches(rgba, told.mask)  # skips must not show what is hidden
        skips = [skip.expand(count, -1, -1, -1) for skip in self.var.encode(shown)[3]]
        h = self.draw(told[[0] * count], generator=generator, **settings)
        scenes = self.var.splats(self.var.decode(h, there, skips, keep))
        if not behind:
            return scenes
        settings.pop("noise", None)
        h = self.draw(self.seen(rgba, mask, behind=True)[[0] * count], generator=generator, **settings)
        return Gaussians.cat([scenes, self.var.splats(self.var.decode(h, opposite(there)))])


def load_one_image(name: str | Path = "code_diffusion", device: str = "cpu",
                   autoreconstructor: str | Path | None = None) -> OneImage:
    """The shipped sampler, or the denoiser in a folder, with an AutoReconstructor: where None the one that its card names.

    Raises what `pretrained.load_network` raises, and ValueError where that one is not the one whose codes it learned.
    """
    from gsgen_lib.systems.autoreconstructor import load_autoreconstructor

    denoiser = pretrained.load_network(name, CodeDenoiser, CodeDiffusionConfig, device)
    card = pretrained.read_card(pretrained.checked_folder(name))
    autoreconstructor = autoreconstructor or card.get("autoreconstructor", "autoreconstructor")
    if not isinstance(autoreconstructor, str | Path):
        raise ValueError(f"{name}: its card names {autoreconstructor!r} as the AutoReconstructor, wanted a text")
    found = str(pretrained.read_card(pretrained.checked_folder(autoreconstructor))["sha256"].get("model.safetensors"))
    if card.get("autoreconstructor_sha256") != found:
        raise ValueError(f"{autoreconstructor}: sha256 of its weights is {found[:12]}..., but {name} learned with "
                         f"{str(card.get('autoreconstructor_sha256'))[:12]}...")
    return OneImage(load_autoreconstructor(autoreconstructor, device), denoiser)

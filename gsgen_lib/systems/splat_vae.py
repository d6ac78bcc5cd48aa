"""A whole splat scene in a few hundred numbers: the variational autoencoder of "Sampling 3D Gaussian Scenes in Seconds".

Problem. A diffusion model over tens of thousands of Gaussians is slow, and Gaussians in any order mean the same scene. So scenes
are first compressed. An encoder reads V posed pictures, each with its rays, and writes a small latent picture for each view:

    mu, log sigma^2 = encoder(pictures, rays)             (V, 6, S/f, S/f) each,    z = mu + sigma eps

a decoder turns the latents, with the rays of the same cameras, into 12 numbers for each pixel, a Gaussian:

    depth 1, opacity 1, scales 3, quaternion 4, colour 3                            (`feed_forward.pixel_splats`)

For f = 8 a view of 64 x 64 pixels and 12 numbers becomes 8 x 8 x 6: 128 times fewer. Pictures hold 3 numbers a pixel: 32 times.
After each block of encoder and decoder the views are mixed, pixel by pixel, by a small residual network (`MixViews`); without it
(`mix=False`, which leaves out the attention too) views meet only in what ours adds:

The decoder sees no pixel and no silhouette of the inputs, only latents. So it first paints its own,

    paint (V, S, S, 4) = first half of the decoder(z),        start = where a pixel's ray enters the hull of the painted alphas

and then asks of them what `FeedForward` asks of its inputs: the plane sweep and the hull, and, `passes` times, how the scene
fails to render to what was painted (`pixel_splats.corrected`). With `geometry=False` neither encoder nor decoder asks for a
hull, and rays start at their middles: the comparison that shows what this is worth.

    L = |rgb - rgb*|^2 + |alpha - alpha*|^2 + `weight_lpips` LPIPS                  rendered, inputs and other views
      + `weight_paint` |paint - inputs|^2 + `weight_kl` KL( N(mu, sigma^2) | N(0, 1) )

and, where there are passes, `FIRST` times the first line, without LPIPS, for the scene before them.

Taught in notebook 06. Source: 2406.13099, sections 3.1 and 3.2. Also ours: the alpha term, and attention at the coarsest level.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsgen_lib import pretrained
from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.nn.cross_view import AWAY, check_depths, hull_features
from gsgen_lib.nn.multiview import HALF, CrossViewAttention, ResBlock, check_widths, start_linear
from gsgen_lib.options import check_options
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.feed_forward import FIRST, check_views, most_opaque, picture_loss, pictures_with_rays
from gsgen_lib.systems.pixel_splats import HIDDEN, corrected, correction_layers, pixel_splats


@dataclass(frozen=True)
class SplatVAEConfig:
    """size: pixels of the pictures; factor: f, 4, 8 or 16; latent: channels; widths: channels at size / 2, / 4, / 8, / 16; mix:
    mix the views; geometry: hull and sweep, with `depths` points on each ray; passes: corrections of the decoded scene;
    weights: of the loss; budget: Gaussians rendered, times views."""

    size: int = 64
    factor: int = 8
    latent: int = 6
    widths: tuple[int, int, int, int] = (48, 96, 144, 112)
    mix: bool = True
    geometry: bool = True
    depths: int = 24
    passes: int = 0
    weight_kl: float = 5e-4
    weight_lpips: float = 0.05
    weight_paint: float = 1.0
    budget: int = 1536

    def __post_init__(self):
        check_options(self, "config", ("size", "latent", "depths", "budget"))
        check_widths(self.widths)
        check_depths(self.depths)
        if self.factor not in (4, 8, 16):
            raise ValueError(f"config.factor: got {self.factor}, wanted 4, 8 or 16")
        if self.size % self.factor:
            raise ValueError(f"config.size: got {self.size}, wanted a multiple of factor = {self.factor}")

    @property
    def channels(self) -> list[int]:
        """Widths at size / 2, size / 4, ..., size / factor."""
        return list(self.widths[: int(math.log2(self.factor))])


class MixViews(nn.Module):
    """Every pixel hears what the same pixel of all views holds: x_v + MLP(x_v, mean over views). (B V, C, H, W) -> the same; any
    number of views, in any order; starts as the identity.

    >>> x = torch.randn(6, 8, 2, 2)
    >>> torch.equal(MixViews(8)(x, 3), x)
    True
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(min(8, channels), channels)
        self.hear, self.say = nn.Conv2d(2 * channels, channels, 1), nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.say.weight)
        nn.init.zeros_(self.say.bias)

    def forward(self, x: Tensor, views: int) -> Tensor:
        y = self.norm(x)
        mean = y.unflatten(0, (-1, views)).mean(1, keepdim=True).expand(-1, views, -1, -1, -1).flatten(0, 1)
        return x + HALF * self.say(F.silu(self.hear(torch.cat([y, mean], 1))))


class Level(nn.Module):
    """A residual block, and the views mixed after it: (B V, in, H, W) -> (B V, out, H, W).

    >>> Level(4, 8, mix=True)(torch.randn(6, 4, 2, 2), 3).shape
    torch.Size([6, 8, 2, 2])
    """

    def __init__(self, channels: int, out: int, mix: bool):
        super().__init__()
        self.block, self.mix = ResBlock(channels, out), MixViews(out) if mix else None

    def forward(self, x: Tensor, views: int) -> Tensor:
        x = self.block(x)
        return x if self.mix is None else self.mix(x, views)


class SplatVAE(nn.Module):
    """`encode` pictures to latents, `decode` latents to Gaussians; both need the cameras.

    >>> vae = SplatVAE(SplatVAEConfig(size=16, widths=(8, 16, 16, 16), depths=4))
    >>> cameras = Cameras.stack([Cameras.orbit(4, width=16, height=16)])
    >>> mu, logvar = vae.encode(torch.rand(1, 4, 16, 16, 4), cameras)
    >>> scenes, painted = vae.decode(mu, cameras)
    >>> mu.shape, scenes.num, painted.shape
    (torch.Size([1, 4, 6, 2, 2]), 1024, torch.Size([1, 4, 16, 16, 4]))
    """

    def __init__(self, config: SplatVAEConfig = SplatVAEConfig()):
        super().__init__()
        self.config, widths = config, config.channels
        extra, fine, coarse = 2 * config.depths + 1 if config.geometry else 0, widths[0], widths[-1]
        self.enter = nn.Conv2d(4 * 10 + extra, fine, 3, 1, 1)
        self.down = nn.ModuleList([Level(fine, fine, config.mix)])
        for width, after in zip(widths, widths[1:], strict=False):
            self.down += [nn.Conv2d(width, after, 3, 2, 1), Level(after, after, config.mix)]
        self.down_talk = CrossViewAttention(coarse) if config.mix else None
        self.down_end = Level(coarse, coarse, config.mix)
        self.moments = nn.Conv2d(coarse, 2 * config.latent, 1)

        self.begin = nn.Conv2d(config.latent + 6, coarse, 3, 1, 1)
        self.up_begin = Level(coarse, coarse, config.mix)
        self.up_talk = CrossViewAttention(coarse) if config.mix else None
        self.up = nn.ModuleList([Level(coarse, coarse, config.mix)])
        for width, after in zip(widths[::-1], widths[::-1][1:], strict=False):
            self.up += [nn.Conv2d(width, after, 3, 1, 1), Level(after, after, config.mix)]
        self.paint = nn.Sequential(nn.GroupNorm(8, fine), nn.SiLU(), nn.Conv2d(fine, 4 * 4, 3, 1, 1))
        self.ask = nn.Conv2d(fine + 4 * 6 + extra, fine, 3, 1, 1)
        self.last = nn.ModuleList([Level(fine, fine, config.mix), Level(fine, fine, config.mix)])
        self.leave = nn.Sequential(nn.GroupNorm(8, fine), nn.SiLU(), nn.Conv2d(fine, HIDDEN, 3, 1, 1))
        self.fine = nn.Sequential(nn.Conv2d(16 + 11, 32, 3, 1, 1), nn.SiLU(), nn.Conv2d(32, 12, 3, 1, 1))
        start_linear(self)
        if config.passes:
            self.correct, self.change, self.remember = correction_layers(12)
        with torch.no_grad():  # as in FeedForward: the untrained corrections are small
            self.fine[-1].weight.mul_(0.1)
            self.fine[-1].bias.zero_()

    def forward(self, rgba: Tensor, cameras: Cameras, noise: Tensor) -> tuple[list[Gaussians], Tensor, Tensor, Tensor]:
        """One step of training: scenes after 0, 1, ... passes, paint, mu, logvar; noise, like mu, standard normal."""
        mu, logvar = self.encode(rgba, cameras)
        return *self.decode(mu + (0.5 * logvar).exp() * noise, cameras, True), mu, logvar

    def encode(self, rgba: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents, (B, V, latent, S / f, S / f) each, of rgba (B, V, S, S, 4), straight alpha in
        [0, 1], and cameras of batch (B,)."""
        b, v, s = *rgba.shape[:2], self.config.size
        if rgba.shape[2:] != (s, s, 4) or cameras.viewmats.shape[:2] != (b, v) or (cameras.width, cameras.height) != (s, s):
            raise ValueError(f"rgba, cameras: got {tuple(rgba.shape)} and {tuple(cameras.viewmats.shape[:-2])} cameras of "
                             f"{cameras.width} x {cameras.height}, wanted (B, V, {s}, {s}, 4), (B, V) and {s} x {s}")
        with torch.autocast(rgba.device.type, enabled=False):
            x = F.pixel_unshuffle(pictures_with_rays(rgba, cameras), 2)
            if self.config.geometry:
                x = torch.cat([x, hull_features(rgba, cameras, self.config.depths)[0]], 1)
        x = self.enter(x)
        for layer in self.down:
            x = layer(x, v) if isinstance(layer, Level) else layer(x)
        x = x if self.down_talk is None else self.down_talk(x, v)
        mu, logvar = self.moments(self.down_end(x, v)).float().unflatten(0, (b, v)).chunk(2, 2)
        return mu, logvar.clamp(-20, 10)

    def decode(self, z: Tensor, cameras: Cameras, every: bool = False) -> tuple[Gaussians | list[Gaussians], Tensor]:
        """V S^2 Gaussians per object of latents (B, V, latent, S / f, S / f), batch (B,), and what was painted on the way (B, V,
        S, S, 4) in [0, 1]. every: the scenes after 0, 1, ... passes, instead of the last alone."""
        b, v = z.shape[:2]
        s, f = self.config.size, self.config.factor
        one = (self.config.latent, s // f, s // f)
        if z.shape[2:] != one or cameras.viewmats.shape[:2] != (b, v) or (cameras.width, cameras.height) != (s, s):
            raise ValueError(f"z, cameras: got {tuple(z.shape)} and {tuple(cameras.viewmats.shape[:-2])} cameras of "
                             f"{cameras.width} x {cameras.height}, wanted (B, V, {', '.join(map(str, one))}), (B, V), {s} x {s}")
        with torch.autocast(z.device.type, enabled=False):
            origin, ray = cameras.rays()
            plucker = cameras.plucker().flatten(0, 1).movedim(-1, 1)
            coarse = cameras.resize(s // f, s // f).plucker().flatten(0, 1).movedim(-1, 1)
        x = self.up_begin(self.begin(torch.cat([z.flatten(0, 1), coarse], 1)), v)
        x = x if self.up_talk is None else self.up_talk(x, v)
        for layer in self.up:
            x = layer(x, v) if isinstance(layer, Level) else layer(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        painted = torch.sigmoid(F.pixel_shuffle(self.paint(x), 2).float()).movedim(1, -1).unflatten(0, (b, v))  # (B, V, S, S, 4)
        known, start = [], -(origin * ray).sum(-1, keepdim=True)  # the middle of each ray
        with torch.autocast(z.device.type, enabled=False):
            if self.config.geometry:
                features, start = hull_features(painted.detach(), cameras, self.config.depths)
                known = [features]
        x = self.ask(torch.cat([x, F.pixel_unshuffle(plucker, 2), *known], 1))
        for layer in self.last:
            x = layer(x, v)
        seen = torch.cat([2 * painted - 1, start - AWAY], -1).flatten(0, 1).movedim(-1, 1)  # (B V, 5, S, S)
        hidden = self.leave(x)  # (B V, HIDDEN, S / 2, S / 2)
        raw = self.fine(torch.cat([F.pixel_shuffle(hidden, 2), plucker, seen], 1)).float()
        raw = raw.movedim(1, -1).unflatten(0, (b, v))  # (B, V, S, S, 12)
        pixels = (painted[..., :3], painted[..., 3:], origin, ray, start)
        layers = (self.correct, self.change, self.remember) if self.config.passes else ()
        raws = corrected(layers, self.config.passes, hidden, raw, pixels, painted.detach(), cameras)
        scenes = [pixel_splats(r, *pixels) for r in (raws if every else raws[-1:])]
        return (scenes if every else scenes[0]), painted

    def splats(self, z: Tensor, cameras: Cameras) -> Gaussians:
        """The Gaussians of `decode` that are rendered in training, the most opaque, `budget` times views; colours in [0, 1]."""
        scenes = most_opaque(self.decode(z, cameras)[0], self.config.budget * z.shape[1])
        return replace(scenes, colors=scenes.colors.clamp(0, 1))

    @torch.no_grad()
    def reconstruct(self, rgba: Tensor, cameras: Cameras) -> Gaussians:
        """One object through the bottleneck and back, without noise: rgba (V, S, S, 4), their cameras -> Gaussians. Raises what
        `check_views` raises."""
        check_views(rgba, cameras, self.config.size)
        batch = Cameras.stack([cameras])
        return self.splats(self.encode(rgba[None], batch)[0], batch)[0]


def vae_loss(model, config: SplatVAEConfig, truth: Tensor, cameras: Cameras, count: int,
             generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """The loss of the header: truth (B, V, S, S, 4), cameras of batch (B,), the first `count` views are encoded.

    model: a `SplatVAE` or its wrapper for several GPUs. Returns {"loss", "psnr", "kl", "paint"}; psnr: of the views that were
    not given; kl: nats per number of a latent.
    """
    given, there = truth[:, :count], cameras[:count]
    cells = config.size // config.factor
    noise = torch.randn(len(truth), count, config.latent, cells, cells, generator=generator).to(truth)
    scenes, painted, mu, logvar = model(given, there, noise)
    first, last = (most_opaque(scene, config.budget * count) for scene in (scenes[0], scenes[-1]))
    out = picture_loss(last, truth, cameras, count, config.weight_lpips)
    if len(scenes) > 1:
        out["loss"] = out["loss"] + FIRST * picture_loss(first, truth, cameras, count, 0.0)["loss"]
    white, alpha = torch.ones(3), given[..., 3:]
    paint = (on_background(painted, white) - on_background(given, white)).square().mean()
    paint = paint + (painted[..., 3:] - alpha).square().mean()
    kl = kl_to_normal(mu, logvar)
    loss = out["loss"] + config.weight_paint * paint + config.weight_kl * kl
    return {"loss": loss, "psnr": out["psnr"], "kl": kl.detach(), "paint": paint.detach()}


def kl_to_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL( N(mu, sigma^2) | N(0, 1) ) per number, its mean.

    >>> kl_to_normal(torch.ones(3), torch.zeros(3))
    tensor(0.5000)
    """
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar).mean()


def compression(config: SplatVAEConfig) -> dict[str, float]:
    """How many numbers of a view become one: of its Gaussians (12 a pixel), and of its picture (3).

    >>> compression(SplatVAEConfig())
    {'splats': 128.0, 'pictures': 32.0}
    """
    kept = config.latent / config.factor**2
    return {"splats": 12 / kept, "pictures": 3 / kept}


def encoder(vae: SplatVAE) -> list[nn.Module]:
    """The parts that `encode` uses: latents depend on these alone."""
    parts = (vae.enter, vae.down, vae.down_talk, vae.down_end, vae.moments)
    return [part for part in parts if part is not None]


def encoder_digest(vae: SplatVAE) -> str:
    """SHA-256 of the encoder's weights, in half precision as they ship.

    >>> vae = SplatVAE(SplatVAEConfig(size=16, widths=(8, 16, 16, 16), depths=4))
    >>> before = encoder_digest(vae)
    >>> _ = vae.begin.weight.data.fill_(0)  # of the decoder
    >>> encoder_digest(vae) == before
    True
    """
    found = hashlib.sha256()
    for part in encoder(vae):
        for weight in part.state_dict().values():
            same = weight.to("cpu", torch.float16) + 0  # -0 becomes 0: averages of unchanged weights lose its sign
            found.update(same.contiguous().numpy().tobytes())
    return found.hexdigest()


def load_splat_vae(name: str | Path = "splat_vae_8", device: str = "cpu") -> SplatVAE:
    """A shipped network of that name, or one in a folder; raises what `pretrained.load_network` raises."""
    return pretrained.load_network(name, SplatVAE, SplatVAEConfig, device)

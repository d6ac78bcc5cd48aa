"""A whole splat scene in a few hundred numbers: the variational autoencoder of "Sampling 3D Gaussian Scenes in Seconds".

Problem. A diffusion model over tens of thousands of Gaussians is slow, and Gaussians in any order mean the same scene. So scenes
are first compressed. An encoder reads V posed pictures, each with its rays, and writes a small latent picture for each view:

    mu, log sigma^2 = encoder(pictures, rays)             (V, 6, H/f, W/f) each,    z = mu + sigma eps

a decoder turns the latents, with the rays of the same cameras, into one Gaussian for each pixel:

    depth t = NEAR + (FAR - NEAR) sigmoid(d),  mean = o + t ray,  opacity = sigmoid,  color = sigmoid,  quats = normalised,
    scales = t * pixel * exp(s)                            12 numbers a pixel: 1 + 1 + 3 + 4 + 3

For f = 8 a view of 64 x 64 pixels and 12 numbers becomes 8 x 8 x 6: 128 times fewer. Pictures hold 3 numbers a pixel: 32 times.
After each block of encoder and decoder the views are mixed, pixel by pixel, by a small residual network (`MixViews`); without it
each view would be alone with its own depth.

    L = |rgb - rgb*|^2 + |alpha - alpha*|^2 + `weight_lpips` LPIPS + `weight_kl` KL( N(mu, sigma^2) | N(0, 1) )

over the input views and others. The decoder sees no pixel and no silhouette of the inputs, only latents: what is not in them, it
must imagine. Taught in notebook 06. Source: 2406.13099, sections 3.1 and 3.2; ours adds the alpha term, and attention across
views at the coarsest level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.nn.multiview import HALF, CrossViewAttention, ResBlock
from gsgen_lib.options import check_options
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians

NEAR, FAR = 1.8 - 0.87, 1.8 + 0.87  # depths along a ray that an object in the unit cube can have


@dataclass(frozen=True)
class SplatVAEConfig:
    """size: pixels of the pictures; factor: f, 4, 8 or 16; latent: channels; widths: channels at size, size / 2, ... down to
    size / f (the last is repeated where there are fewer); mix: mix the views; weight_kl, weight_lpips: of the loss; budget:
    Gaussians rendered per view."""

    size: int = 64
    factor: int = 8
    latent: int = 6
    widths: tuple[int, int, int, int] = (24, 64, 96, 160)
    mix: bool = True
    weight_kl: float = 1e-5
    weight_lpips: float = 0.05
    budget: int = 1536

    def __post_init__(self):
        check_options(self, "config", ("size", "latent", "budget"))
        if self.factor not in (4, 8, 16):
            raise ValueError(f"config.factor: got {self.factor}, wanted 4, 8 or 16")
        if self.size % self.factor:
            raise ValueError(f"config.size: got {self.size}, wanted a multiple of factor = {self.factor}")

    @property
    def channels(self) -> list[int]:
        """Widths at size, size / 2, ..., size / factor."""
        levels = int(math.log2(self.factor)) + 1
        return [self.widths[min(k, len(self.widths) - 1)] for k in range(levels)]


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
    """A residual block, and the views mixed after it: (B V, in, H, W) -> (B V, out, H, W)."""

    def __init__(self, channels: int, out: int, mix: bool):
        super().__init__()
        self.block, self.mix = ResBlock(channels, out), MixViews(out) if mix else None

    def forward(self, x: Tensor, views: int) -> Tensor:
        x = self.block(x)
        return x if self.mix is None else self.mix(x, views)


class SplatVAE(nn.Module):
    """`encode` pictures to latents, `decode` latents to Gaussians; both need the cameras.

    >>> vae = SplatVAE(SplatVAEConfig(size=16, widths=(8, 16, 16, 16)))
    >>> cameras = Cameras.stack([Cameras.orbit(4, width=16, height=16)])
    >>> mu, logvar = vae.encode(torch.rand(1, 4, 16, 16, 4), cameras)
    >>> mu.shape, vae.decode(mu, cameras).num
    (torch.Size([1, 4, 6, 2, 2]), 1024)
    """

    def __init__(self, config: SplatVAEConfig = SplatVAEConfig()):
        super().__init__()
        self.config, widths = config, config.channels
        self.enter = nn.Conv2d(10, widths[0], 3, 1, 1)
        self.down, self.up, now = nn.ModuleList(), nn.ModuleList(), widths[0]
        for k, width in enumerate(widths):
            self.down.append(Level(now, width, config.mix))
            now = width
            if k + 1 < len(widths):
                self.down.append(nn.Conv2d(now, now, 3, 2, 1))
        self.down_talk = CrossViewAttention(now) if config.mix else None
        self.moments = nn.Sequential(Level(now, now, config.mix), nn.Conv2d(now, 2 * config.latent, 1))
        self.begin = nn.Conv2d(config.latent + 6, now, 3, 1, 1)
        self.up_talk = CrossViewAttention(now) if config.mix else None
        self.look = nn.ModuleList()  # each level is told its rays again
        for k in reversed(range(len(widths))):
            self.look.append(nn.Conv2d(6, now, 1))
            self.up.append(Level(now, widths[k], config.mix))
            now = widths[k]
        self.leave = nn.Sequential(nn.GroupNorm(8, now), nn.SiLU(), nn.Conv2d(now, 12, 3, 1, 1))

    def encode(self, rgba: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents, (B, V, latent, S / f, S / f) each, of rgba (B, V, S, S, 4) and cameras of batch
        (B,)."""
        b, v, s = rgba.shape[:3]
        rgb, alpha = on_background(rgba, torch.ones(3)), rgba[..., 3:]
        x = torch.cat([2 * rgb - 1, 2 * alpha - 1, cameras.plucker()], -1).reshape(b * v, s, s, 10).movedim(-1, 1)
        x = self.enter(x)
        for layer in self.down:
            x = layer(x, v) if isinstance(layer, Level) else layer(x)
        x = x if self.down_talk is None else self.down_talk(x, v)
        x = self.moments[1](self.moments[0](x, v))
        mu, logvar = x.unflatten(0, (b, v)).chunk(2, 2)
        return mu.float(), logvar.float().clamp(-30, 20)

    def decode(self, z: Tensor, cameras: Cameras) -> Gaussians:
        """V S^2 Gaussians per object of latents (B, V, latent, S / f, S / f)."""
        b, v = z.shape[:2]
        s = self.config.size

        def rays_at(size):
            return cameras.resize(size, size).plucker().reshape(b * v, size, size, 6).movedim(-1, 1)

        size = s // self.config.factor
        x = self.begin(torch.cat([z.flatten(0, 1), rays_at(size)], 1))
        x = x if self.up_talk is None else self.up_talk(x, v)
        for k, (level, look) in enumerate(zip(self.up, self.look, strict=True)):
            if k:
                x, size = F.interpolate(x, scale_factor=2.0, mode="nearest"), 2 * size
            x = level(x + look(rays_at(size)), v)
        return self.splats(self.leave(x).float().unflatten(0, (b, v)).movedim(2, -1), cameras)

    def splats(self, raw: Tensor, cameras: Cameras) -> Gaussians:
        """The equations of the header, for raw (B, V, S, S, 12): depth, opacity, colour 3, quaternion 4, scales 3."""
        d, o, c, q, s = raw.split((1, 1, 3, 4, 3), -1)
        origin, ray = cameras.rays()
        t = NEAR + (FAR - NEAR) * torch.sigmoid(d)
        pixel = 1 / cameras.Ks[..., 0, 0][..., None, None, None]  # the width of a pixel at distance 1
        quats = F.normalize(q + q.new_tensor([1.0, 0, 0, 0]), dim=-1)
        parts = (origin + t * ray, quats, t * pixel * torch.exp(s - 0.5), torch.sigmoid(o - 2)[..., 0], torch.sigmoid(c))
        return Gaussians(*(part.flatten(1, 3) for part in parts))


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

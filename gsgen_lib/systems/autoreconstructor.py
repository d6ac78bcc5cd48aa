"""One picture, and a whole scene in a small code: the Variational AutoReconstructor of "Complete Gaussian Splats from a Single
Image".

Problem. A picture shows one side. To draw the other side at random we first need a code of whole scenes that can be learned from
pictures alone, without any splats to copy. So a variational autoencoder reads one picture and must answer with a scene that
renders to this picture *and to others of the same object*:

    mu, log sigma^2 (4, S/8, S/8), skips = encoder(picture),           h = mu + sigma eps
    M = 2 Gaussians for each pixel, 15 numbers each = decoder(h, `keep` * skips)

      opacity 1    sigmoid(o)
      depth 1      near + (far - near) sigmoid(d)                      along the optical axis, in the camera's frame
      offset 3     mean = depth * (x, y, 1) + offset                   (x, y, 1): through the pixel
      scales 3     depth / focal * WIDTH exp(2 tanh(s / 2))            so many pixels wide, wherever it stands
      quaternion 4 normalised (1, 0, 0, 0) + q
      colour 3     sigmoid(c)

No pose is read: everything is said in the frame of the camera, and turned into the world at the end, quaternions too. A Gaussian
of a pixel may leave its ray by `offset`; so the side that is not seen can be covered.

Skips carry the encoder's first features past the code into the last layers of the decoder, since 256 numbers hold no fine
texture. They could carry everything, and the code would go dead. So in training all skips of a scene are set to 0 at random
(`keep`); later they may be weighted by 1, 0.5 or 0.

    L = .8 |rgb - rgb*|^2 + .2 (1 - SSIM) + .01 LPIPS + `weight_kl` KL( N(mu, sigma^2) | N(0, 1) )
      + `weight_alpha` |alpha - alpha*|^2

over the picture itself and other views. LPIPS comes in a second stage; its weight is set in `autoreconstructor_training`.

Taught in notebook 08. Source: 2508.21542, section 3.2; Splatter Image (2312.13150) section 3. Ours: the alpha term, the tanh.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsgen_lib import pretrained
from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.metrics import ssim
from gsgen_lib.nn.multiview import CrossViewAttention, ResBlock, check_widths, start_linear
from gsgen_lib.options import check_options
from gsgen_lib.perceptual import lpips
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians, quat_multiply, rotmat_to_quat
from gsgen_lib.systems.feed_forward import check_views, most_opaque
from gsgen_lib.systems.splat_vae import kl_to_normal

WIDTH = 0.8  # pixels; the rasterizer adds about half a pixel to every splat
FIRST_OPACITY = 0.24  # of all Gaussians of a pixel together: the more there are, the fainter is each
# numbers of one Gaussian, in the order of the head: name -> (how many, gain of the first weights, first bias)
HEAD = {"opacity": (1, 1.0, None), "depth": (1, 0.3, 0.0), "offset": (3, 0.03, 0.0), "scales": (3, 0.1, 0.0),
        "quats": (4, 0.1, 0.0), "color": (3, 5.0, 0.0)}
NUMBERS = sum(count for count, _, _ in HEAD.values())


@dataclass(frozen=True)
class AutoReconstructorConfig:
    """size: pixels of a picture; latent: channels; widths: channels at size, / 2, / 4, / 8; gaussians: M for each pixel; skips:
    whether there are any; variational: whether h is drawn in training, else h = mu and no KL; near, far: depths; weights: of the
    loss; budget: Gaussians that are rendered, the most opaque."""

    size: int = 64
    latent: int = 4
    widths: tuple[int, int, int, int] = (32, 48, 64, 80)
    gaussians: int = 2
    skips: bool = True
    variational: bool = True
    near: float = 0.9
    far: float = 2.7
    weight_l2: float = 0.8
    weight_ssim: float = 0.2
    weight_kl: float = 5e-4
    weight_alpha: float = 0.5
    budget: int = 3072

    def __post_init__(self):
        check_options(self, "config", ("size", "latent", "gaussians", "near", "budget"))
        check_widths(self.widths)
        if self.size % 8:
            raise ValueError(f"config.size: got {self.size}, wanted a multiple of 8")
        if self.far <= self.near:
            raise ValueError(f"config.far: got {self.far}, wanted more than near = {self.near}")


class AutoReconstructor(nn.Module):
    """`encode` a picture to a code, `decode` a code to a scene.

    >>> var = AutoReconstructor(AutoReconstructorConfig(size=16, widths=(8, 8, 16, 16)))
    >>> cameras = Cameras.stack([Cameras.orbit(1, width=16, height=16)])
    >>> mu, logvar, features, skips = var.encode(torch.rand(1, 16, 16, 4))
    >>> mu.shape, features.shape, var.decode(mu, cameras, skips).num
    (torch.Size([1, 4, 2, 2]), torch.Size([1, 16, 2, 2]), 512)
    """

    def __init__(self, config: AutoReconstructorConfig = AutoReconstructorConfig()):
        super().__init__()
        self.config, w = config, config.widths
        self.enter = nn.Conv2d(4, w[0], 3, 1, 1)
        self.down = nn.ModuleList([ResBlock(w[0], w[0])])
        for width, after in zip(w, w[1:], strict=False):
            self.down += [nn.Conv2d(width, after, 3, 2, 1), ResBlock(after, after)]
        self.down_talk, self.down_end = CrossViewAttention(w[-1]), ResBlock(w[-1], w[-1])
        self.moments = nn.Conv2d(w[-1], 2 * config.latent, 1)

        self.begin = nn.Conv2d(config.latent, w[-1], 3, 1, 1)
        self.up_begin, self.up_talk = ResBlock(w[-1], w[-1]), CrossViewAttention(w[-1])
        self.up = nn.ModuleList([ResBlock(w[-1], w[-1])])
        for width, after in zip(w[::-1], w[::-1][1:], strict=False):
            self.up += [nn.Conv2d(width, after, 3, 1, 1), ResBlock(after, after)]
        self.carry = nn.ModuleList([nn.Conv2d(c, c, 1) for c in w[:2]]) if config.skips else None
        self.last = ResBlock(w[0], w[0])
        self.leave = nn.Sequential(nn.GroupNorm(8, w[0]), nn.SiLU(), nn.Conv2d(w[0], NUMBERS * config.gaussians, 3, 1, 1))
        start_linear(self)
        each = FIRST_OPACITY / config.gaussians
        counts = [count for count, _, _ in HEAD.values()] * config.gaussians
        with torch.no_grad():
            for i, (weight, bias) in enumerate(zip(self.leave[-1].weight.split(counts), self.leave[-1].bias.split(counts),
                                                   strict=True)):
                _, gain, first = list(HEAD.values())[i % len(HEAD)]
                weight.mul_(gain)
                bias.fill_(math.log(each / (1 - each)) if first is None else first)

    def forward(self, rgba: Tensor, cameras: Cameras, noise: Tensor, keep: Tensor) -> tuple[Gaussians, Tensor, Tensor]:
        """One step of training: scenes, mu, logvar; noise like mu, standard normal; keep (B,): weight of each object's skips."""
        mu, logvar, _, skips = self.encode(rgba)
        return self.decode(self.drawn(mu, logvar, noise), cameras, skips, keep), mu, logvar

    def drawn(self, mu: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
        """A code of N(mu, sigma^2); mu itself where nothing was learned of sigma (`variational` is False)."""
        return mu + (0.5 * logvar).exp() * noise if self.config.variational else mu

    def encode(self, rgba: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Of pictures (B, S, S, 4), straight alpha in [0, 1]: mean and log variance of the code, (B, latent, S/8, S/8) each; the
        features before them (B, widths[-1], S/8, S/8); skips (B, widths[0], S, S) and (B, widths[1], S/2, S/2), [] for none."""
        s = self.config.size
        if rgba.ndim != 4 or rgba.shape[1:] != (s, s, 4):
            raise ValueError(f"rgba: got shape {tuple(rgba.shape)}, wanted (B, {s}, {s}, 4)")
        x = torch.cat([2 * on_background(rgba, torch.ones(3)) - 1, 2 * rgba[..., 3:] - 1], -1).movedim(-1, 1)
        x, found = self.enter(x), []
        for layer in self.down:
            x = layer(x)
            found += [x] if isinstance(layer, ResBlock) else []
        x = self.down_end(self.down_talk(x, 1))
        mu, logvar = self.moments(x).float().chunk(2, 1)
        return mu, logvar.clamp(-20, 10), x.float(), found[:2] if self.config.skips else []

    def decode(self, h: Tensor, cameras: Cameras, skips: list[Tensor] | tuple = (), keep: float | Tensor = 1.0) -> Gaussians:
        """M S^2 Gaussians in the world, batch (B,), of codes h (B, latent, S/8, S/8) of pictures taken by cameras of batch (B,),
        one each. skips: of `encode`, () for none; keep: their weight, a number or (B,)."""
        b, s = len(h), self.config.size
        one = (self.config.latent, s // 8, s // 8)
        if h.shape[1:] != one or cameras.viewmats.shape[:2] != (b, 1) or (cameras.width, cameras.height) != (s, s):
            raise ValueError(f"h, cameras: got {tuple(h.shape)} and {tuple(cameras.viewmats.shape[:-2])} cameras of "
                             f"{cameras.width} x {cameras.height}, wanted (B, {', '.join(map(str, one))}), (B, 1), {s} x {s}")
        sizes = [(b, w, s // 2**k, s // 2**k) for k, w in enumerate(self.config.widths[:2])]
        if len(skips) and [tuple(skip.shape) for skip in skips] != sizes:
            raise ValueError(f"skips: got shapes {[tuple(skip.shape) for skip in skips]}, wanted {sizes}, or () for none")
        keep = torch.as_tensor(keep, dtype=h.dtype, device=h.device)
        if keep.shape not in ((), (b,)):
            raise ValueError(f"keep: got shape {tuple(keep.shape)}, wanted a number or ({b},)")
        keep = keep.expand(b)[:, None, None, None]
        x = self.up_talk(self.up_begin(self.begin(h)), 1)
        for layer in self.up:
            x = layer(x) if isinstance(layer, ResBlock) else layer(F.interpolate(x, scale_factor=2.0, mode="nearest"))
            for skip, carry in zip(skips, self.carry or (), strict=False):
                if isinstance(layer, nn.Conv2d) and skip.shape == x.shape:
                    x = x + keep * carry(skip)
        raw = self.leave(self.last(x)).float().movedim(1, -1).unflatten(-1, (self.config.gaussians, NUMBERS))  # (B, S, S, M, 15)
        with torch.autocast(h.device.type, enabled=False):  # rays in half precision would miss their pixels
            return splatter(raw, cameras, self.config.near, self.config.far)

    def splats(self, scenes: Gaussians) -> Gaussians:
        """Those that are rendered in training: the `budget` most opaque of each scene."""
        return most_opaque(scenes, self.config.budget)

    @torch.no_grad()
    def reconstruct(self, rgba: Tensor, cameras: Cameras, keep: float = 1.0, noise: Tensor | None = None) -> Gaussians:
        """One object from one picture: rgba (1, S, S, 4) and its camera -> Gaussians. noise: like a code (latent, S/8, S/8),
        standard normal, for a draw from N(mu, sigma^2); none for mu. Raises what `check_views` raises."""
        check_views(rgba, cameras, self.config.size)
        if len(rgba) != 1:
            raise ValueError(f"rgba: got {len(rgba)} pictures, wanted one")
        check_keep(keep)
        one = (self.config.latent, self.config.size // 8, self.config.size // 8)
        if noise is not None and (noise.shape != one or not bool(torch.isfinite(noise).all())):
            raise ValueError(f"noise: got shape {tuple(noise.shape)}, wanted {one}, finite numbers")
        mu, logvar, _, skips = self.encode(rgba)
        h = mu if noise is None else self.drawn(mu, logvar, noise)
        return self.splats(self.decode(h, Cameras.stack([cameras]), skips, keep))[0]


def check_keep(keep: float) -> None:
    """ValueError for a weight of the skips that is no finite number.

    >>> check_keep(float("nan"))
    Traceback (most recent call last):
    ValueError: keep: got nan, wanted a finite number
    """
    if not isinstance(keep, int | float) or not math.isfinite(keep):
        raise ValueError(f"keep: got {keep!r}, wanted a finite number")


def splatter(raw: Tensor, cameras: Cameras, near: float, far: float) -> Gaussians:
    """The table of the header: raw (B, S, S, M, 15), cameras of batch (B,), one each -> M S^2 Gaussians, batch (B,).

    >>> cameras = Cameras.stack([Cameras.orbit(1, width=8, height=8)])
    >>> some = splatter(torch.zeros(1, 8, 8, 1, 15), cameras, 0.8, 2.8)
    >>> depth = cameras.project(some.means)[1]  # the middle of near and far
    >>> torch.allclose(depth, torch.full_like(depth, 1.8))
    True
    """
    o, d, offset, s, q, c = raw.split([count for count, _, _ in HEAD.values()], -1)
    K, W = cameras.Ks[:, 0], cameras.viewmats[:, 0]  # (B, 3, 3), (B, 4, 4)
    through = cameras.through_pixels()[:, 0, :, :, None]  # (B, S, S, 1, 3)
    depth = near + (far - near) * torch.sigmoid(d)  # (B, S, S, M, 1)
    means = (depth * through + offset).flatten(1, 3)  # (B, N, 3), camera
    R, t = W[:, :3, :3], W[:, :3, 3]
    means = (means - t[:, None]) @ R  # R^T (p - t) for rows p
    turn = rotmat_to_quat(R.transpose(1, 2))[:, None]  # (B, 1, 4)
    quats = F.normalize(q + q.new_tensor([1.0, 0, 0, 0]), dim=-1).flatten(1, 3)
    scales = depth / K[:, 0, 0, None, None, None, None] * WIDTH * torch.exp(2 * torch.tanh(s / 2))
    return Gaussians(means, quat_multiply(turn.expand_as(quats), quats), scales.flatten(1, 3),
                     torch.sigmoid(o)[..., 0].flatten(1, 3), torch.sigmoid(c).flatten(1, 3))


def var_loss(model, config: AutoReconstructorConfig, truth: Tensor, cameras: Cameras, keep: Tensor, weight_lpips: float = 0.0,
             generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """The loss of the header: truth (B, V, S, S, 4), cameras of batch (B,); the first view of each object is the picture.

    model: an `AutoReconstructor` or its wrapper for several GPUs; keep (B,): weight of each object's skips. The generator lives
    on the CPU. Returns {"loss", "psnr", "kl"}; psnr: of the other views; kl: nats per number of the code.
    """
    cells = config.size // 8
    noise = torch.randn(len(truth), config.latent, cells, cells, generator=generator).to(truth)
    scenes, mu, logvar = model(truth[:, 0], cameras[:1], noise, keep)
    out = rasterize(most_opaque(scenes, config.budget), cameras, (1.0, 1.0, 1.0), check=False)
    white = on_background(truth, torch.ones(3))
    off = (out.rgb - white).square()
    kl = kl_to_normal(mu, logvar)
    loss = config.weight_l2 * off.mean() + config.weight_alpha * (out.alpha - truth[..., 3:]).square().mean()
    if config.weight_ssim:
        loss = loss + config.weight_ssim * (1 - ssim(out.rgb, white, validate=False))
    if config.variational:
        loss = loss + config.weight_kl * kl
    if weight_lpips:
        loss = loss + weight_lpips * lpips(out.rgb.flatten(0, 1).clamp(0, 1), white.flatten(0, 1), validate=False)
    return {"loss": loss, "psnr": -10 * torch.log10(off[:, 1:].mean().detach().clamp_min(1e-9)), "kl": kl.detach()}


def load_autoreconstructor(name: str | Path = "autoreconstructor", device: str = "cpu") -> AutoReconstructor:
    """A shipped network of that name, or one in a folder; raises what `pretrained.load_network` raises."""
    return pretrained.load_network(name, AutoReconstructor, AutoReconstructorConfig, device)

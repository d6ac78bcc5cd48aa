"""A few posed pictures become Gaussians in one pass of a network (LGM, GRM).

Problem. Optimisation needs seconds to minutes for each object, and invents nothing. A network that has seen many objects
predicts, for each pixel of each input view, one Gaussian on that pixel's ray (`pixel_splats`):

    t_0   = where the ray enters the visual hull of the inputs' silhouettes             `nn.cross_view`
    raw   = network(pictures, rays, hull and sweep)            LGM, "unet": attention across views at its coarse levels
                                                               GRM, "transformer": attention across views everywhere
    raw  += correct(how its scene fails at the inputs)         `passes` times, `pixel_splats.corrected`

A pixel that shows background starts transparent, one that shows the object nearly opaque, with its own colour: the untrained
network is already a crude reconstruction. With `geometry=False` the network sees pictures and rays only and starts at the middle
of each ray: the comparison that shows what the hull and the sweep are worth.

Loss, over inputs and novel views, on white (LGM section 3.3), of the last scene, and, without LPIPS, `FIRST` times that of the
scene before any correction:

    L = |rgb - rgb*|^2 + |alpha - alpha*|^2 + `weight_lpips` LPIPS

Only the most opaque Gaussians of an object are rendered, `budget` times its views: most pixels show background.

Sources: LGM (2402.05054) section 3; GRM (2403.14621) section 3. Scaled here to 64 pixels, 3.6 M parameters and 2 cores; added:
the hull, the sweep and the corrections. Taught in notebook 05.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsgen_lib import pretrained
from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.nn.cross_view import AWAY, check_depths, hull_features
from gsgen_lib.nn.multiview import MultiViewUNet, attend, check_widths
from gsgen_lib.options import check_options
from gsgen_lib.perceptual import lpips
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.pixel_splats import HIDDEN, corrected, correction_layers, pixel_splats

BACKBONES = ("unet", "transformer")
FIRST = 0.3


@dataclass(frozen=True)
class FeedForwardConfig:
    """backbone: of BACKBONES; size: pixels of the inputs, a multiple of 16; widths: channels of the U-Net at size / 2, / 4, / 8;
    width, layers, heads: of the transformer; geometry: hull and sweep as inputs, and the start of the depth; depths: points on
    each ray of the sweep; passes: of the corrections; budget: Gaussians rendered, times views; weight_lpips: of the loss."""

    backbone: str = "unet"
    size: int = 64
    widths: tuple[int, int, int] = (48, 96, 144)
    width: int = 192
    layers: int = 6
    heads: int = 6
    geometry: bool = True
    depths: int = 24
    passes: int = 3
    budget: int = 1536
    weight_lpips: float = 0.05

    def __post_init__(self):
        check_options(self, "config", ("size", "width", "layers", "heads", "depths", "budget"))
        check_widths(self.widths)
        check_depths(self.depths)
        if self.backbone not in BACKBONES:
            raise ValueError(f"config.backbone: got {self.backbone!r}, wanted one of {', '.join(BACKBONES)}")
        if self.size % 16 or self.width % self.heads:
            raise ValueError(f"config.size, width: got {self.size}, {self.width}, wanted multiples of 16 and of heads, "
                             f"{self.heads}")
        if self.backbone == "transformer" and (self.size > 32 and self.size % 32 or self.width // 2 % max(1, self.heads // 2)):
            raise ValueError(f"config.size, width: got {self.size}, {self.width}, wanted for windows of 8 a multiple of 32, and "
                             f"half the width a multiple of half the heads, {self.heads // 2}")


class FeedForward(nn.Module):
    """Pictures with cameras -> Gaussians. Call `reconstruct`, or `forward` for training.

    >>> config = FeedForwardConfig(size=16, widths=(16, 16, 16), depths=4)
    >>> cameras = Cameras.stack([Cameras.orbit(4, width=16, height=16)])
    >>> FeedForward(config)(torch.rand(1, 4, 16, 16, 4), cameras).num  # 4 views of 256 pixels
    1024
    """

    def __init__(self, config: FeedForwardConfig = FeedForwardConfig()):
        super().__init__()
        self.config = c = config
        extra = 2 * c.depths + 1 if c.geometry else 0  # at half size
        if c.backbone == "unet":
            self.network = MultiViewUNet(40 + extra, HIDDEN, c.widths, (False, False, True), 1)
        else:
            self.network = Transformer(40 + extra, HIDDEN, c)
        numbers = 14 if c.backbone == "unet" else 12
        self.fine = nn.Sequential(nn.Conv2d(16 + 11, 32, 3, 1, 1), nn.SiLU(), nn.Conv2d(32, numbers, 3, 1, 1))
        if c.passes:
            self.correct, self.change, self.remember = correction_layers(numbers)
        with torch.no_grad():  # the untrained network changes little
            self.fine[-1].weight.mul_(0.1)
            self.fine[-1].bias.zero_()

    def forward(self, rgba: Tensor, cameras: Cameras, every: bool = False) -> Gaussians | list[Gaussians]:
        """rgba (B, V, S, S, 4) straight alpha in [0, 1]; cameras of batch (B,), V views -> V S^2 Gaussians each, batch (B,).

        every: the scenes after 0, 1, ... `passes` corrections, instead of the last alone.
        """
        b, v, s = rgba.shape[:3]
        with torch.autocast(rgba.device.type, enabled=False):  # rays in half precision would miss their pixels
            flat = pictures_with_rays(rgba, cameras)  # (B V, 10, S, S)
            origin, ray = cameras.rays()
            start = -(origin * ray).sum(-1, keepdim=True)  # (B, V, S, S, 1), the middle of the ray
            x = F.pixel_unshuffle(flat, 2)  # (B V, 40, S/2, S/2)
            if self.config.geometry:
                known, start = hull_features(rgba, cameras, self.config.depths)
                x = torch.cat([x, known], 1)
        hidden = self.network(x, v)  # (B V, 64, S/2, S/2)
        first = (start - AWAY).reshape(b * v, 1, s, s)
        raw = self.fine(torch.cat([F.pixel_shuffle(hidden, 2), flat, first], 1)).float()
        raw = raw.movedim(1, -1).unflatten(0, (b, v))  # (B, V, S, S, 14 or 12)
        alpha = rgba[..., 3:]
        own = torch.where(alpha > 0, rgba[..., :3], 1.0)  # a pixel at the rim has the object's colour, not one mixed with white
        pixels = (own, alpha, origin, ray, start)
        layers = (self.correct, self.change, self.remember) if self.config.passes else ()
        scenes = [pixel_splats(r, *pixels) for r in corrected(layers, self.config.passes, hidden, raw, pixels, rgba, cameras)]
        return scenes if every else scenes[-1]

    @torch.no_grad()
    def reconstruct(self, rgba: Tensor, cameras: Cameras) -> Gaussians:
        """One object: rgba (V, S, S, 4), 1 to 8 views, and their cameras -> Gaussians, as many as are rendered in training, with
        colours in [0, 1]. Raises what `check_views` raises."""
        check_views(rgba, cameras, self.config.size)
        scene = most_opaque(self(rgba[None], Cameras.stack([cameras])), self.config.budget * len(rgba))[0]
        return replace(scene, colors=scene.colors.clamp(0, 1))


def check_views(rgba: Tensor, cameras: Cameras, size: int) -> None:
    """ValueError naming what does not fit of pictures (V, size, size, 4), 1 to 8 of them, straight alpha in [0, 1], and as many
    cameras.

    >>> check_views(255 * torch.ones(4, 8, 8, 4), Cameras.orbit(4, width=8, height=8), 8)
    Traceback (most recent call last):
    ValueError: rgba: got numbers from 255 to 255, wanted 0 to 1
    """
    if not isinstance(rgba, Tensor) or rgba.dtype != torch.float32:
        raise ValueError(f"rgba: got {rgba.dtype if isinstance(rgba, Tensor) else type(rgba).__name__}, wanted torch.float32")
    if rgba.ndim != 4 or rgba.shape[1:] != (size, size, 4) or not 1 <= len(rgba) <= 8:
        raise ValueError(f"rgba: got shape {tuple(rgba.shape)}, wanted (1 to 8, {size}, {size}, 4)")
    low, high = rgba.min().item(), rgba.max().item()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN fails, too
        raise ValueError(f"rgba: got numbers from {low:g} to {high:g}, wanted 0 to 1")
    if cameras.batch_shape:
        raise ValueError(f"cameras: got a batch {tuple(cameras.batch_shape)} of sets, wanted one set, that of one object")
    if len(cameras) != len(rgba) or (cameras.width, cameras.height) != (size, size):
        raise ValueError(f"cameras: got {len(cameras)} of {cameras.width} x {cameras.height}, wanted {len(rgba)} of {size} x "
                         f"{size}")
    if cameras.viewmats.device != rgba.device:
        raise ValueError(f"cameras: got them on {cameras.viewmats.device}, wanted {rgba.device}, where rgba is")


def pictures_with_rays(rgba: Tensor, cameras: Cameras) -> Tensor:
    """What the networks read: colour on white and alpha, both in [-1, 1], and Plücker rays. rgba (B, V, S, S, 4), cameras of
    batch (B,) -> (B V, 10, S, S).

    >>> pictures_with_rays(torch.ones(1, 4, 8, 8, 4), Cameras.stack([Cameras.orbit(4, width=8, height=8)])).shape
    torch.Size([4, 10, 8, 8])
    """
    read = torch.cat([2 * on_background(rgba, torch.ones(3)) - 1, 2 * rgba[..., 3:] - 1, cameras.plucker()], -1)
    return read.flatten(0, 1).movedim(-1, 1)


class Transformer(nn.Module):
    """(B V, in, H, W) -> (B V, out, H, W): patches of 4 x 4 become tokens, those of all views attend to one another (GRM); then
    two steps up, each by a factor of 2, with attention inside windows of 8 x 8 between them.

    >>> Transformer(5, 7, FeedForwardConfig(width=24, layers=1, heads=2))(torch.randn(6, 5, 8, 8), 3).shape
    torch.Size([6, 7, 8, 8])
    """

    def __init__(self, channels: int, out: int, config: FeedForwardConfig):
        super().__init__()
        w = config.width
        self.enter = nn.Conv2d(channels, w, 4, 4)
        self.layers = nn.ModuleList(TransformerLayer(w, config.heads) for _ in range(config.layers))
        self.up = nn.Conv2d(w, 4 * (w // 2), 1)
        self.window = TransformerLayer(w // 2, max(1, config.heads // 2))
        self.leave = nn.Sequential(nn.GroupNorm(1, w // 2), nn.Conv2d(w // 2, 4 * out, 1))

    def forward(self, x: Tensor, views: int) -> Tensor:
        x = self.enter(x)  # (B V, w, h, h'), h = H / 4
        n, w, h, h2 = x.shape
        tokens = x.reshape(n // views, views, w, h * h2).movedim(2, -1).reshape(n // views, -1, w)  # rays tell where a token is
        for layer in self.layers:
            tokens = layer(tokens)
        x = tokens.reshape(n // views, views, h * h2, w).movedim(-1, 2).reshape(n, w, h, h2)
        x = F.pixel_shuffle(self.up(x), 2)  # (B V, w / 2, 2 h, 2 h')
        side = min(8, 2 * h)
        a, b = 2 * h // side, 2 * h2 // side
        windows = x.reshape(n, -1, a, side, b, side).permute(0, 2, 4, 3, 5, 1).reshape(n * a * b, side * side, -1)
        windows = self.window(windows).reshape(n, a, b, side, side, -1)
        x = windows.permute(0, 5, 1, 3, 2, 4).reshape(n, -1, 2 * h, 2 * h2)
        return F.pixel_shuffle(self.leave(x), 2)


class TransformerLayer(nn.Module):
    """Attention and a two-layer network, each behind a norm and with a skip: (B, T, C) -> the same.

    >>> TransformerLayer(8, 2)(torch.randn(1, 5, 8)).shape
    torch.Size([1, 5, 8])
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2, self.heads = nn.LayerNorm(width), nn.LayerNorm(width), heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(attend(self.qkv(self.norm1(x)), self.heads))
        return x + self.mlp(self.norm2(x))


def most_opaque(scenes: Gaussians, count: int) -> Gaussians:
    """The `count` most opaque Gaussians of each scene of a batch (B,); all, if there are fewer.

    >>> some = Gaussians.stack([Gaussians.random(9, generator=torch.Generator().manual_seed(0))])
    >>> most_opaque(some, 4).opacities.shape
    torch.Size([1, 4])
    """
    if count >= scenes.num:
        return scenes
    best = scenes.opacities.topk(count, dim=1, sorted=False).indices  # (B, count)
    return scenes.map(lambda x: x.gather(1, best.reshape(*best.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])))


def reconstruction_loss(model, config: FeedForwardConfig, truth: Tensor, cameras: Cameras, inputs: Tensor,
                        given: Cameras) -> dict[str, Tensor]:
    """The loss of the header.

    model(rgba, cameras) -> Gaussians, a `FeedForward` or its wrapper for several GPUs; truth (B, V, S, S, 4) and cameras hold the
    true views, those of the inputs first; inputs (B, m, S, S, 4) and given: what the model gets, bent or not.
    Returns {"loss", "psnr"}; psnr: of the mean squared error of the views that were not given, for the log.
    """
    count = inputs.shape[1]
    scenes = [most_opaque(scene, config.budget * count) for scene in model(inputs, given, True)]
    out = picture_loss(scenes[-1], truth, cameras, count, config.weight_lpips)
    if len(scenes) > 1:
        out["loss"] = out["loss"] + FIRST * picture_loss(scenes[0], truth, cameras, count, 0.0)["loss"]
    return out


def picture_loss(scenes: Gaussians, truth: Tensor, cameras: Cameras, count: int, weight_lpips: float) -> dict[str, Tensor]:
    """The loss of the header for scenes of batch (B,), against truth (B, V, S, S, 4) of which the first `count` were given."""
    out = rasterize(scenes, cameras, (1.0, 1.0, 1.0), check=False)
    alpha = truth[..., 3:]
    white = on_background(truth, torch.ones(3))
    off = (out.rgb - white).square()
    loss = off.mean() + (out.alpha - alpha).square().mean()
    if weight_lpips:
        loss = loss + weight_lpips * lpips(out.rgb.flatten(0, 1).clamp(0, 1), white.flatten(0, 1), validate=False)
    return {"loss": loss, "psnr": -10 * torch.log10(off[:, count:].mean().detach().clamp_min(1e-9))}


def load_feed_forward(name: str | Path = "feedforward_unet", device: str = "cpu") -> FeedForward:
    """A shipped network of that name, or one in a folder; raises what `pretrained.load_network` raises."""
    return pretrained.load_network(name, FeedForward, FeedForwardConfig, device)

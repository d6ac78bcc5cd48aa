"""Where first, then what: a scene as active voxels with a small latent each (TRELLIS).

Problem. A dense grid of latents is mostly empty space: of 32^3 cells an object's surface meets some 8 %, of 64^3 half of that. So
a scene is written in two parts, each with an autoencoder of its own.

1. Structure: the bits of the R^3 grid (`data.occupancy`), R = 32, through 3D convolutions to a dense latent of (R / 4)^3 x 8
   numbers and back to logits; a voxel is active where its logit is above 0.

    L = 1 - 2 sum(p y) / (sum p + sum y) + cross-entropy(p, y) + `weight_kl` KL,     p = sigmoid(logits), y the bits

   (Dice alone, the paper's loss, has a slope that vanishes where p is sure and wrong: it got stuck at an IoU of .7 on two toys
   that both terms learn by heart.)

2. Appearance: each active voxel reads the pictures in which it is seen (`voxel_features`), and a transformer over the voxels of
   the object, packed in cells of 2^3, makes of it a latent of 8 numbers; a second one makes K Gaussians of each:

    mean = centre + tanh(a + a_k) 0.75 / R,      a_k: the K places of a Hammersley set inside of the voxel
    scales = 9e-4 + softplus(s) / R,   opacity = sigmoid(o + 1),   color = sigmoid(r),   quats = normalised (1, 0, 0, 0) + q

   Whatever the logits, no Gaussian leaves its voxel by more than half a voxel: what one latent says stays where it is.

    L = |rgb - rgb*| + |alpha - alpha*| + `weight_ssim` (1 - SSIM) + `weight_lpips` LPIPS + `weight_kl` KL
        + `weight_volume` mean(product of scales) + `weight_opacity` mean (1 - opacity)^2,      on a random background

What draws such scenes: `sparse_voxels_flow`; what edits them: `sparse_voxels_edit`. Taught in notebook 09.
Source: 2412.01506 sections 3.1 and 3.2; ours: R = 32, colours at 8 places instead of DINOv2 features, cross-entropy, alpha term.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsgen_lib import pretrained
from gsgen_lib.metrics import ssim
from gsgen_lib.nn.conv3d import Block3d
from gsgen_lib.nn.cross_view import look_up
from gsgen_lib.nn.multiview import check_widths
from gsgen_lib.nn.packed import PackedBlock, place_waves
from gsgen_lib.nn.sparse_grid import Voxels
from gsgen_lib.options import check_options
from gsgen_lib.perceptual import lpips
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.splat_vae import kl_to_normal

NUMBERS = 14  # of a Gaussian: offset 3, opacity 1, scales 3, quaternion 4, colour 3
REACH = 0.75  # how far a Gaussian may be from the centre of its voxel, in voxels
SMALLEST = 9e-4
FEATURES = 8 * 4 + 1


# ---- structure -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StructureConfig:
    """resolution: R, a multiple of 4; latent: channels; widths: channels at R / 2 and R / 4; weight_kl: of the loss; dice_alone:
    the comparison without cross-entropy."""

    resolution: int = 32
    latent: int = 8
    widths: tuple[int, int] = (32, 64)
    weight_kl: float = 1e-3
    dice_alone: bool = False

    def __post_init__(self):
        check_options(self, "config", ("resolution", "latent"))
        check_widths(self.widths)
        if self.resolution % 4:
            raise ValueError(f"config.resolution: got {self.resolution}, wanted a multiple of 4")

    @property
    def cells(self) -> int:
        """Of a latent's side."""
        return self.resolution // 4


class StructureVAE(nn.Module):
    """`encode` bits (B, R, R, R) to mu, logvar (B, latent, R/4, R/4, R/4); `decode` such latents to logits (B, R, R, R).

    >>> vae = StructureVAE(StructureConfig(resolution=8, widths=(8, 8)))
    >>> mu, logvar = vae.encode(torch.rand(2, 8, 8, 8) < 0.2)
    >>> mu.shape, vae.decode(mu).shape
    (torch.Size([2, 8, 2, 2, 2]), torch.Size([2, 8, 8, 8]))
    """

    def __init__(self, config: StructureConfig = StructureConfig()):
        super().__init__()
        self.config, (fine, coarse) = config, config.widths
        self.down = nn.Sequential(nn.Conv3d(8, fine, 3, 1, 1), Block3d(fine), nn.Conv3d(fine, coarse, 3, 2, 1), Block3d(coarse),
                                  Block3d(coarse), nn.GroupNorm(8, coarse), nn.SiLU(), nn.Conv3d(coarse, 2 * config.latent, 1))
        self.up = nn.Sequential(nn.Conv3d(config.latent, coarse, 3, 1, 1), Block3d(coarse), Block3d(coarse),
                                nn.Upsample(scale_factor=2), nn.Conv3d(coarse, fine, 3, 1, 1), Block3d(fine), Block3d(fine),
                                nn.GroupNorm(8, fine), nn.SiLU(), nn.Conv3d(fine, 8, 3, 1, 1))

    def forward(self, grid: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of training: logits, mu, logvar; noise like mu, standard normal."""
        mu, logvar = self.encode(grid)
        return self.decode(mu + (0.5 * logvar).exp() * noise), mu, logvar

    def encode(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents of bits (B, R, R, R), bool. ValueError for another shape or kind."""
        r = self.config.resolution
        if grid.ndim != 4 or grid.shape[1:] != (r, r, r) or grid.dtype != torch.bool:
            raise ValueError(f"grid: got {tuple(grid.shape)} {grid.dtype}, wanted (B, {r}, {r}, {r}) of bool")
        x = grid.to(self.up[0].weight.dtype).reshape(-1, r // 2, 2, r // 2, 2, r // 2, 2)
        x = 2 * x.permute(0, 2, 4, 6, 1, 3, 5).flatten(1, 3) - 1  # (B, 8, R/2, R/2, R/2): 2^3 voxels to a place
        mu, logvar = self.down(x).float().chunk(2, 1)
        return mu, logvar.clamp(-20, 10)

    def decode(self, z: Tensor) -> Tensor:
        """Logits (B, R, R, R) of latents (B, latent, R/4, R/4, R/4)."""
        c, half = self.config, self.config.resolution // 2
        if z.ndim != 5 or z.shape[1:] != (c.latent, c.cells, c.cells, c.cells):
            raise ValueError(f"z: got {tuple(z.shape)}, wanted (B, {c.latent}, {c.cells}, {c.cells}, {c.cells})")
        x = self.up(z).float().reshape(-1, 2, 2, 2, half, half, half)
        return x.permute(0, 4, 1, 5, 2, 6, 3).reshape(-1, 2 * half, 2 * half, 2 * half)


def structure_loss(model, config: StructureConfig, grid: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """The loss of part 1 for bits (B, R, R, R): {"loss", "iou", "kl"}; model: a `StructureVAE` or its wrapper."""
    noise = torch.randn(len(grid), config.latent, *[config.cells] * 3, generator=generator).to(grid.device)
    logits, mu, logvar = model(grid, noise)
    y, p = grid.float(), torch.sigmoid(logits)
    dice = 1 - (2 * (p * y).sum((1, 2, 3)) + 1) / (p.sum((1, 2, 3)) + y.sum((1, 2, 3)) + 1)
    loss = dice.mean() + config.weight_kl * kl_to_normal(mu, logvar)
    if not config.dice_alone:
        loss = loss + F.binary_cross_entropy_with_logits(logits, y)
    return {"loss": loss, "iou": iou(logits > 0, grid).mean(), "kl": kl_to_normal(mu, logvar).detach()}


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of bits (B, R, R, R): (B,); 1 for two empty grids.

    >>> iou(torch.tensor([[[[True, False]]]]), torch.tensor([[[[True, True]]]]))
    tensor([0.5000])
    """
    if a.shape != b.shape or a.ndim != 4 or a.dtype != torch.bool or b.dtype != torch.bool:
        raise ValueError(f"a, b: got {tuple(a.shape)} {a.dtype}, {tuple(b.shape)} {b.dtype}, wanted (B, R, R, R) of bool, twice")
    both, any_ = (a & b).flatten(1).sum(1), (a | b).flatten(1).sum(1)
    return torch.where(any_ == 0, 1.0, both / any_.clamp_min(1))


# ---- appearance ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AppearanceConfig:
    """resolution: R; latent: numbers of a voxel; width, a multiple of 6 and of heads; layers of encoder and of decoder;
    gaussians: K of a voxel; weights: of the loss."""

    resolution: int = 32
    latent: int = 8
    width: int = 144
    heads: int = 4
    layers: int = 3
    gaussians: int = 2
    weight_kl: float = 1e-6
    weight_lpips: float = 0.2
    weight_ssim: float = 0.2
    weight_volume: float = 1e4
    weight_opacity: float = 1e-3

    def __post_init__(self):
        check_options(self, "config", ("resolution", "latent", "width", "heads", "layers", "gaussians"))
        if self.width % 6 or self.width % self.heads or self.resolution % 2:
            raise ValueError(f"config.width, resolution: got {self.width} and {self.resolution}, wanted a multiple of 6 and of "
                             f"{self.heads} heads, and an even number")


@torch.no_grad()
def voxel_features(voxels: Voxels, rgba: Tensor, cameras: Cameras) -> Tensor:
    """What the pictures show at each active voxel: (T, FEATURES), at 8 places in it colour - 1/2 and whether any view sees it,
    then in what share of the views the voxel is seen.

    rgba (B, V, S, S, 4), straight alpha; cameras of batch (B,). A view sees a voxel if no other active one lies before it: on a
    grid of R x R pixels the nearest centre of each is kept, and what is more than two voxels behind it is hidden.
    """
    if rgba.ndim != 5 or rgba.shape[4] != 4 or rgba.shape[2] != rgba.shape[3] or not rgba.is_floating_point() \
            or not bool(((rgba >= 0) & (rgba <= 1)).all()):  # also false for nan
        raise ValueError(f"rgba: got {tuple(rgba.shape)} {rgba.dtype}, wanted (B, V, S, S, 4), floats in [0, 1]")
    b, v, s = rgba.shape[:3]
    r = voxels.resolution
    if len(voxels.lengths) != b or cameras.viewmats.shape[:2] != (b, v) or (cameras.width, cameras.height) != (s, s):
        raise ValueError(f"voxels, rgba, cameras: got {len(voxels.lengths)} objects, {tuple(rgba.shape)} and cameras "
                         f"{tuple(cameras.viewmats.shape[:-2])} of {cameras.width} x {cameras.height}, wanted the same B, V, S")
    corners = torch.cartesian_prod(*[torch.tensor([-0.25, 0.25], device=rgba.device)] * 3) / r
    found = []
    for i, centres in enumerate(voxels.centres().split(voxels.lengths)):
        there = Cameras(cameras.viewmats[i:i + 1], cameras.Ks[i:i + 1], s, s)
        at, depth = (x[0] for x in there.resize(r, r).project(centres[None]))  # (V, n, 2), (V, n)
        pixel = at.floor().long().clamp(0, r - 1)
        pixel = pixel[..., 1] * r + pixel[..., 0]
        near = torch.full((v, r * r), float("inf"), device=rgba.device).scatter_reduce(1, pixel, depth, "amin")
        seen = depth <= near.gather(1, pixel) + 2 / r  # (V, n)
        points = (centres[:, None] + corners).reshape(1, -1, 3)
        colour = look_up(rgba[i:i + 1], there, points)[0].unflatten(1, (-1, 8))  # (V, n, 8, 4)
        weight = colour[..., 3:] * seen[..., None, None]
        total = weight.sum(0)  # (n, 8, 1)
        mean = (weight * colour[..., :3]).sum(0) / total.clamp_min(1e-4)
        any_ = (total > 0.1).float()
        found.append(torch.cat([torch.cat([(mean - 0.5) * any_, any_], -1).flatten(1), seen.float().mean(0)[:, None]], 1))
    return torch.cat(found)


def hammersley(count: int) -> Tensor:
    """(count, 3) even places in [-1, 1]^3: k / count and the digits of k mirrored at the point, in base 2 and 3.

    >>> hammersley(2)
    tensor([[-0.5000, -1.0000, -1.0000],
            [ 0.5000,  0.0000, -0.3333]])
    """
    def mirrored(k, base):
        value, scale = 0.0, 1.0
        while k:
            scale /= base
            value += scale * (k % base)
            k //= base
        return value

    return 2 * torch.tensor([[(k + 0.5) / count, mirrored(k, 2), mirrored(k, 3)] for k in range(count)]) - 1


class AppearanceVAE(nn.Module):
    """`encode` features (T, FEATURES) of voxels to mu, logvar (T, latent); `decode` latents to the numbers of their Gaussians.

    >>> vae = AppearanceVAE(AppearanceConfig(resolution=4, width=12, heads=2, layers=1))
    >>> voxels = Voxels.from_grid(torch.rand(2, 4, 4, 4) < 0.5)
    >>> mu, _ = vae.encode(voxels, torch.rand(len(voxels.coords), FEATURES))
    >>> vae.decode(voxels, mu).shape == (len(voxels.coords), 2, NUMBERS), len(vae.splats(voxels, mu))
    (True, 2)
    """

    def __init__(self, config: AppearanceConfig = AppearanceConfig()):
        super().__init__()
        self.config, w = config, config.width
        self.read, self.begin = nn.Linear(8 * FEATURES + 8, w), nn.Linear(8 * config.latent + 8, w)
        self.encoder = nn.ModuleList([PackedBlock(w, config.heads) for _ in range(config.layers)])
        self.decoder = nn.ModuleList([PackedBlock(w, config.heads) for _ in range(config.layers)])
        self.moments = nn.Sequential(nn.LayerNorm(w), nn.Linear(w, 8 * 2 * config.latent))
        self.leave = nn.Sequential(nn.LayerNorm(w), nn.Linear(w, 8 * config.gaussians * NUMBERS))
        nn.init.zeros_(self.leave[-1].weight)
        nn.init.zeros_(self.leave[-1].bias)

    def forward(self, voxels: Voxels, features: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of training: numbers of Gaussians (T, K, NUMBERS), mu, logvar."""
        mu, logvar = self.encode(voxels, features)
        return self.decode(voxels, mu + (0.5 * logvar).exp() * noise), mu, logvar

    def encode(self, voxels: Voxels, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, (T, latent) each."""
        x = self._through(self.encoder, voxels, self.read(voxels.to_cells(self._checked(voxels, features, FEATURES))))
        mu, logvar = voxels.from_cells(self.moments(x)).float().chunk(2, -1)
        return mu, logvar.clamp(-20, 10)

    def decode(self, voxels: Voxels, z: Tensor) -> Tensor:
        """Numbers of the Gaussians of each voxel, (T, K, NUMBERS), of latents (T, latent)."""
        x = self.begin(voxels.to_cells(self._checked(voxels, z, self.config.latent)))
        raw = voxels.from_cells(self.leave(self._through(self.decoder, voxels, x)))
        return raw.float().unflatten(1, (self.config.gaussians, NUMBERS))

    def splats(self, voxels: Voxels, z: Tensor) -> list[Gaussians]:
        """The Gaussians of each object, K for each of its voxels."""
        return gaussians_of(voxels, self.decode(voxels, z))

    def _checked(self, voxels: Voxels, rows: Tensor, width: int) -> Tensor:
        count, r = len(voxels.coords), self.config.resolution
        if voxels.resolution != r or rows.shape != (count, width):
            raise ValueError(f"voxels, values: got {count} of R = {voxels.resolution}, {tuple(rows.shape)}, wanted R = {r} and "
                             f"({count}, {width})")
        return rows

    def _through(self, blocks: nn.ModuleList, voxels: Voxels, x: Tensor) -> Tensor:
        _, _, coords, lengths = voxels.cells()
        x = x + place_waves(coords, x.shape[1], self.config.resolution / 2).to(x)
        for block in blocks:
            x = block(x, lengths)
        return x


def gaussians_of(voxels: Voxels, raw: Tensor) -> list[Gaussians]:
    """The equations of part 2: raw (T, K, NUMBERS) -> the Gaussians of each object; those of a voxel stay together."""
    a, o, s, q, c = raw.split((3, 1, 3, 4, 3), -1)  # (T, K, .)
    inside = torch.atanh(hammersley(raw.shape[1]).to(raw) / (2 * REACH))  # places of [-1/2, 1/2] voxels, before tanh
    means = voxels.centres()[:, None] + torch.tanh(a + inside) * (REACH / voxels.resolution)
    parts = (means, F.normalize(q + q.new_tensor([1.0, 0, 0, 0]), dim=-1), SMALLEST + F.softplus(s - 1) / voxels.resolution,
             torch.sigmoid(o + 1)[..., 0], torch.sigmoid(c))
    return [Gaussians(*(x.flatten(0, 1) for x in one)) for one in zip(*(p.split(voxels.lengths) for p in parts), strict=True)]


def padded(scenes: list[Gaussians]) -> Gaussians:
    """Scenes of different sizes as a batch: the shorter ones end in Gaussians of opacity 0.

    >>> few = [Gaussians.random(n, generator=torch.Generator().manual_seed(n)) for n in (2, 5)]
    >>> batch = padded(few)
    >>> batch.means.shape, batch.opacities[0, 2:].tolist()
    (torch.Size([2, 5, 3]), [0.0, 0.0, 0.0])
    """
    most = max(scene.num for scene in scenes)

    def longer(x: Tensor, value: float) -> Tensor:
        return torch.cat([x, x.new_full((most - len(x), *x.shape[1:]), value)])

    return Gaussians.stack([Gaussians(longer(g.means, 0.0), longer(g.quats, 0.5), longer(g.scales, SMALLEST),
                                      longer(g.opacities, 0.0), longer(g.colors, 0.0)) for g in scenes])


def appearance_loss(model, config: AppearanceConfig, voxels: Voxels, features: Tensor, truth: Tensor, cameras: Cameras,
                    generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """The loss of part 2: truth (B, V, S, S, 4), straight alpha, of cameras of batch (B,); {"loss", "psnr", "kl"}."""
    noise = torch.randn(len(voxels.coords), config.latent, generator=generator).to(truth)
    raw, mu, logvar = model(voxels, features, noise)
    scenes = padded(gaussians_of(voxels, raw))
    background = torch.rand(len(truth), 1, 3, generator=generator).to(truth)
    out = rasterize(scenes, cameras, background, check=False)
    rgb, alpha = truth[..., :3], truth[..., 3:]
    wanted = torch.lerp(background[:, :, None, None], rgb, alpha)
    loss = (out.rgb - wanted).abs().mean() + (out.alpha - alpha).abs().mean()
    if config.weight_ssim:
        loss = loss + config.weight_ssim * (1 - ssim(out.rgb, wanted, validate=False))
    if config.weight_lpips:
        loss = loss + config.weight_lpips * lpips(out.rgb.flatten(0, 1).clamp(0, 1), wanted.flatten(0, 1), validate=False)
    kl, real = kl_to_normal(mu, logvar), scenes.opacities > 0
    volume = (scenes.scales.prod(-1) * real).sum() / real.sum()
    clear = ((1 - scenes.opacities).square() * real).sum() / real.sum()
    loss = loss + config.weight_kl * kl + config.weight_volume * volume + config.weight_opacity * clear
    off = (out.rgb - wanted).square().mean().detach()
    return {"loss": loss, "psnr": -10 * torch.log10(off.clamp_min(1e-9)), "kl": kl.detach()}


def load_structure(name: str | Path = "voxel_structure", device: str = "cpu") -> StructureVAE:
    """A shipped network of that name, or one in a folder; raises what `pretrained.load_network` raises."""
    return pretrained.load_network(name, StructureVAE, StructureConfig, device)


def load_appearance(name: str | Path = "voxel_appearance", device: str = "cpu") -> AppearanceVAE:
    """A shipped network of that name, or one in a folder; raises what `pretrained.load_network` raises."""
    return pretrained.load_network(name, AppearanceVAE, AppearanceConfig, device)

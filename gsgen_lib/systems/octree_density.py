"""Gaussians as samples of a density that learns where they are worth most (DeG).

Problem. Pixels, voxels and latents of views fix how many Gaussians there are and where. Here they are drawn: from a code Z of an
object comes a density q(x | Z) on an octree (`nn.octree`), P anchors are drawn from it, and a transformer makes K Gaussians of
each. P is free: one code gives 256 Gaussians or 8,192. Three trainings, one after the other:

1. Structure.     L = H(p, q) + `kl_structure` KL(Z),      p: points of the surface, area-uniform. Where is anything?
2. Appearance.    L = |rgb - rgb*| + |alpha - alpha*| + .2 (1 - SSIM) + .2 LPIPS + `regularisers` + .001 H(p, q) + 1e-4 KL(Z).
                  Anchors are drawn without gradient. What does it look like?
3. Joint.         The same, and the density learns from the pictures. Sampling has no derivative, but

    grad E[L] = E[ sum_j d_j grad log q(x_j) ],   d_j = L with anchor j - L without it:  negative where it helps

   (REINFORCE with a baseline of its own for each sample: L without j does not depend on x_j. So it is exact for samples that are
   drawn one by one; with the comb of `nn.octree` they are not, and it is exact for sums over anchors alone, close for others, as
   in the released code.) d_j is the sum over its K Gaussians of what the rasterizer's backward pass finds
   (`raster.contribution`, L1 alone), and is tamed for each object, in this order: min(d, 0); |d| at most its 0.9 quantile; less
   the mean over anchors. It becomes the gradient of log q(x_j) (`Worth`).

    u = distance to the 4 nearest anchors,   offset = u s .75 tanh(r + atanh((2 h_k - 1) / 1.5)),   s = softplus(r_s + .54)
    scales^2 = (u softplus(r - .43))^2 + .0009^2, opacity = sigmoid(r - 2.2), color = sigmoid(r), quats = (1,0,0,0) + r/10

A token of the code is one of the surface points that lie farthest apart; its first three numbers say where (`placed`), and near
things hear more of it (`PackedBlock`). After stage 1 of preset "experiment" KL(p | q) was 2.9 nats; 3.6 without (--no-placed).

`regularisers`: volume (1), 1 - opacity (.001), and sphere (100): the K Gaussians of an anchor have their middle there, and none
is farther away than the next anchors. Taught in notebook 10. Source: DeG (2605.16355), released code. Ours: u (theirs is .05
whatever P), places and nearness, the alpha term, the form of the sphere, P random in stage 2 as well, and background in the
contribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsgen_lib import pretrained
from gsgen_lib.nn.octree import Anchors, DensityNet, check_depth, log_q, sample
from gsgen_lib.nn.packed import PackedBlock, place_waves
from gsgen_lib.nn.point_sets import farthest_points, spacing
from gsgen_lib.options import check_options
from gsgen_lib.point_features import point_features, width_of
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.sparse_voxels import hammersley

NUMBERS = 15  # of a Gaussian: offset 3 and its reach 1, scales 3, opacity 1, quaternion 4, colour 3
SMALLEST = 9e-4
PLACE, SPREAD, SURE = 3, 0.25, -12.0  # numbers that say where a token lies, in units of SPREAD, with this log variance
FINEST = 64.0  # the shortest wave of a place is 4 / FINEST: surface points and anchors


@dataclass(frozen=True)
class DensityConfig:
    """depth: L levels; tokens: M of a code, unless said; latent: numbers of a token; width, a multiple of 6 and of heads; layers
    of encoder, of what both decoders read, of density and of attributes; gaussians: K of an anchor; placed: a token says where it
    lies; spaced: offsets and sizes in units of the distance between anchors, else of .05; features: maps that points read, by +;
    weights: of the losses."""

    depth: int = 6
    tokens: int = 96
    latent: int = 16
    width: int = 144
    heads: int = 4
    layers: tuple[int, int, int, int] = (3, 2, 2, 4)
    gaussians: int = 4
    spaced: bool = True
    placed: bool = True
    features: str = "rgb+mobilenet"
    weight_ssim: float = 0.2
    weight_lpips: float = 0.2
    weight_volume: float = 1.0
    weight_opacity: float = 1e-3
    weight_sphere: float = 100.0
    weight_structure: float = 1e-3
    kl_structure: float = 0.01
    kl_appearance: float = 1e-4

    def __post_init__(self):
        check_options(self, "config", ("depth", "tokens", "latent", "width", "heads", "gaussians"))
        width_of(self.names)
        check_depth(self.depth)
        if self.width % 6 or self.width % self.heads:
            raise ValueError(f"config.width: got {self.width}, wanted a multiple of 6 and of {self.heads} heads")

    @property
    def names(self) -> tuple[str, ...]:
        """The maps that points read, as `point_features` takes them."""
        return tuple(self.features.split("+"))


class Context(NamedTuple):
    """What decoders read of a code: tokens (B, M, width), places (B, M, 3) or None."""

    tokens: Tensor
    places: Tensor | None


class OctreeDensity(nn.Module):
    """`encode` surface points and pictures to a code; `decode` the code to as many Gaussians as wanted.

    >>> from gsgen_lib.data.view_sets import toy_views
    >>> toy = toy_views(1, seed=0, size=32, views=4, points=256, progress=False)
    >>> model = OctreeDensity(DensityConfig(depth=3, tokens=8, width=24, heads=2, layers=(1, 1, 1, 1)))
    >>> mu, logvar = model.encode(toy.points, (toy.images / 255, toy.cameras))
    >>> mu.shape, [model.decode(mu, budget=n).num for n in (64, 256)]
    (torch.Size([1, 8, 16]), [64, 256])
    """

    def __init__(self, config: DensityConfig = DensityConfig()):
        super().__init__()
        self.config, w, heads = config, config.width, config.heads
        encoder, trunk, density, attributes = config.layers
        self.read = nn.Linear(width_of(config.names) + 3, w)  # features and normal of a point
        near, own = config.placed, config.latent - PLACE * config.placed  # numbers that the network is free to choose
        self.encoder = nn.ModuleList([PackedBlock(w, heads, 0, w, near) for _ in range(encoder)])
        self.moments = nn.Sequential(nn.LayerNorm(w), nn.Linear(w, 2 * own))
        self.begin = nn.Linear(own, w)
        self.trunk = nn.ModuleList([PackedBlock(w, heads, 0, 0, near) for _ in range(trunk)])
        self.density = DensityNet(config.depth, w, heads, density, near)
        self.enter = nn.Linear(w + 1, w)
        self.attributes = nn.ModuleList([PackedBlock(w, heads, 0, w, near) for _ in range(attributes)])
        self.leave = nn.Sequential(nn.LayerNorm(w), nn.Linear(w, config.gaussians * NUMBERS))
        nn.init.zeros_(self.leave[-1].weight)
        nn.init.zeros_(self.leave[-1].bias)

    # ---- code ----

    def encode(self, points: Tensor, views: tuple[Tensor, Cameras], tokens: int | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log variance (B, M, latent) of the code of objects.

        points (B, P, >= 6): places and normals on the surface, as `ViewSet.points`; views: rgba (B, V, S, S, 4), straight alpha
        in [0, 1], and cameras of batch (B,); tokens: M <= P, the config's if not given. ValueError for anything else.
        """
        tokens = self.config.tokens if tokens is None else tokens
        if points.ndim != 3 or points.shape[2] < 6 or not bool(points.isfinite().all()):
            raise ValueError(f"points: got {tuple(points.shape)}, wanted (B, P, 6 or more), finite")
        if not isinstance(tokens, int) or not 1 <= tokens <= points.shape[1]:
            raise ValueError(f"tokens: got {tokens!r}, wanted 1 to {points.shape[1]}, one for each point at most")
        features = point_features(points[..., :3], points[..., 3:6], *views, self.config.names)
        return self.encode_features(points, features, farthest_points(points[..., :3], tokens))

    def encode_features(self, points: Tensor, features: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The same from features (B, P, F) of the points, and numbers (B, M) of those that become tokens."""
        x = self.read(torch.cat([features, points[..., 3:6]], -1)) + waves(points[..., :3], self.config.width)  # (B, P, width)
        rows = queries[..., None].expand(-1, -1, x.shape[2])
        places = points[..., :3].gather(1, rows[..., :3])  # (B, M, 3)
        y = through(self.encoder, x.gather(1, rows), places, x, points[..., :3])
        mu, logvar = (found.float() for found in self.moments(y).chunk(2, -1))
        logvar = logvar.clamp(-20, 10)
        if self.config.placed:
            mu, logvar = torch.cat([places / SPREAD, mu], -1), torch.cat([torch.full_like(places, SURE), logvar], -1)
        return mu, logvar

    def context(self, z: Tensor) -> Context:
        """What both decoders read of a code (B, M, latent)."""
        if z.ndim != 3 or z.shape[2] != self.config.latent or not z.shape[1]:
            raise ValueError(f"z: got {tuple(z.shape)}, wanted (B, M, {self.config.latent}), M >= 1")
        if not self.config.placed:
            return Context(through(self.trunk, self.begin(z)), None)
        places = z[..., :PLACE] * SPREAD
        return Context(through(self.trunk, self.begin(z[..., PLACE:]) + waves(places, self.config.width), places), places)

    # ---- places ----

    def anchors(self, context: Context, count: int, how: str = "systematic", generator: torch.Generator | None = None) -> Anchors:
        """P = `count` anchors of each object, and log q of each."""
        return sample(lambda nodes: self.density(context.tokens, nodes, context.places), self.config.depth, len(context.tokens),
                      count, how, generator, context.tokens.device)

    def log_q(self, context: Context, points: Tensor) -> Tensor:
        """(B,) mean of log q of the leaves that hold points (B, P, 3)."""
        return log_q(lambda nodes: self.density(context.tokens, nodes, context.places), points, self.config.depth)

    # ---- Gaussians ----

    def splats(self, context: Context, points: Tensor) -> Gaussians:
        """(B, P K) Gaussians of anchors (B, P, 3), those of an anchor together."""
        return gaussians_of(points, unit_of(self.config, points), self.numbers(context, points))

    def numbers(self, context: Context, points: Tensor) -> Tensor:
        """(B, P, K, NUMBERS), what the equations of the header call r."""
        near = (spacing(points).clamp(0.002, 1.0) / 0.05).log()[..., None]
        x = self.enter(torch.cat([waves(points, self.config.width), near], -1).to(context.tokens))
        return self.leave(through(self.attributes, x, points, *context)).float().unflatten(-1, (self.config.gaussians, NUMBERS))

    def decode(self, latent: Tensor, budget: int, generator: torch.Generator | None = None, how: str = "systematic") -> Gaussians:
        """N = `budget` Gaussians of each code (B, M, latent): (B, N). ValueError for a budget that is no multiple of K."""
        k = self.config.gaussians
        if not isinstance(budget, int) or budget < k or budget % k:
            raise ValueError(f"budget: got {budget!r}, wanted a multiple of {k}, the Gaussians of an anchor")
        context = self.context(latent)
        return self.splats(context, self.anchors(context, budget // k, how, generator).points)

    def forward(self, points: Tensor, features: Tensor, queries: Tensor, noise: Tensor, some: Tensor, count: int = 0,
                learn: bool = False, generator: torch.Generator | None = None, places: Tensor | None = None) -> dict:
        """One step of training: mu, logvar, log_q (B,) of points `some` (B, p, 3) in the mean, and where count > 0 `anchors` and
        `numbers` of as many, drawn, or given as places (B, count, 3). learn: gradients reach their log q."""
        mu, logvar = self.encode_features(points, features, queries)
        context = self.context(mu + (0.5 * logvar).exp() * noise)
        found = {"mu": mu, "logvar": logvar, "log_q": self.log_q(context, some)}
        if count:
            with torch.set_grad_enabled(learn and torch.is_grad_enabled()):
                drawn = self.anchors(context, count, generator=generator) if places is None else Anchors(places, places[..., 0])
            found |= {"anchors": drawn, "numbers": self.numbers(context, drawn.points)}
        return found


def unit_of(config: DensityConfig, points: Tensor) -> Tensor:
    """(B, P) of anchors (B, P, 3)."""
    return spacing(points).clamp(0.005, 0.2) if config.spaced else points.new_full(points.shape[:2], 0.05)


def waves(points: Tensor, width: int) -> Tensor:
    """Places (B, P, 3) in [-1/2, 1/2]^3 as (B, P, width) cosines and sines."""
    return place_waves(points.flatten(0, 1) * FINEST, width, FINEST / 2).unflatten(0, points.shape[:2])


def through(blocks: nn.ModuleList, x: Tensor, places: Tensor | None = None, context: Tensor | None = None,
            there: Tensor | None = None) -> Tensor:
    """x (B, n, width), at places (B, n, 3), through transformer blocks that also read context (B, m, width), at `there`."""
    b, n = x.shape[:2]
    more = (None, None, None) if context is None else (None, context.flatten(0, 1), (context.shape[1],) * b)
    x, at = x.flatten(0, 1), tuple(p.flatten(0, 1) for p in (places, there) if p is not None)
    for block in blocks:
        x = block(x, (n,) * b, *more, at)
    return x.unflatten(0, (b, n))


def gaussians_of(points: Tensor, unit: Tensor, numbers: Tensor) -> Gaussians:
    """The equations of the header: anchors (B, P, 3), unit (B, P), r (B, P, K, NUMBERS) -> (B, P K) Gaussians."""
    o, s, r, a, q, c = numbers.split((3, 1, 3, 1, 4, 3), -1)
    unit = unit[..., None, None]
    means = points[..., None, :] + offsets(unit, o, s)
    scales = ((unit * F.softplus(r - 0.43)).square() + SMALLEST**2).sqrt()  # new: half a unit
    quats = F.normalize(0.1 * q + q.new_tensor([1.0, 0, 0, 0]), dim=-1)
    parts = (means, quats, scales, torch.sigmoid(a - 2.2)[..., 0], torch.sigmoid(c))
    return Gaussians(*(x.flatten(1, 2) for x in parts))


def offsets(unit: Tensor, o: Tensor, s: Tensor) -> Tensor:
    """(B, P, K, 3) of r (B, P, K, 3) and of reaches (B, P, K, 1): new, the K points of a Hammersley set in a cube of one unit."""
    spread = torch.atanh(hammersley(o.shape[2]).to(o) / 1.5)
    return unit * F.softplus(s + 0.54) * 0.75 * torch.tanh(o + spread)  # softplus(.54) = 1


def load_octree_density(name: str | Path = "octree_density", device: str = "cpu") -> OctreeDensity:
    """A shipped network of that name, or one in a folder; raises what `pretrained.load_network` raises."""
    return pretrained.load_network(name, OctreeDensity, DensityConfig, device)

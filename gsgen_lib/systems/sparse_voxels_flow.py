"""Two rectified flows draw a sparse scene: first where, then what.

    structure    noise (8, R/4, R/4, R/4)  -> latent -> bits               R = 32: 64 tokens, of 2^3 places and 8 numbers each
    appearance   noise (T, 8) on the active voxels -> latents -> Gaussians      tokens: the cells of 2^3 voxels

Both are the same transformer over packed tokens (`nn.packed`), asked at x_t = (1 - t) x_0 + t eps for the velocity eps - x_0
(`diffusion.flow`). It reads words and patches of one picture, the front of the object; in training each is left out at random, so
that one network serves nothing given, words, a picture, and guidance. Training times are logit-normal (1, 1), dense where there
is much noise; the sampler takes few Euler steps, at times t' = shift t / (1 + (shift - 1) t).

What is known can be kept: `known` numbers get the velocity of their own straight road, noise - value, so after any number of
steps they are what they were, and the rest is drawn to fit (`sparse_voxels_edit`).

Source: TRELLIS (2412.01506) section 3.3 and appendix A.3. Ours: patches of the picture instead of DINOv2 features; the known
road. Taught in notebook 09.
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
from gsgen_lib.diffusion import flow_sample, guide
from gsgen_lib.nn.packed import PackedBlock, of_each, place_waves
from gsgen_lib.nn.sparse_grid import Voxels, from_structure_tokens, structure_places, structure_tokens
from gsgen_lib.options import check_options
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.few_steps import noised
from gsgen_lib.systems.sparse_voxels import AppearanceVAE, StructureVAE
from gsgen_lib.systems.splat_diffusion import waves

PATCH = 8


@dataclass(frozen=True)
class FlowConfig:
    """numbers: of a token, noised and drawn; extra: of a token, known; reach: of places, for their waves; width, a multiple of 6
    and of heads; layers; words: width of text features; size: pixels of the picture, a multiple of 8; ddpm: the comparison of
    `few_steps`, which says eps on DDPM's schedule instead of a velocity."""

    numbers: int = 8
    extra: int = 0
    reach: int = 8
    width: int = 192
    heads: int = 4
    layers: int = 6
    words: int = 96
    size: int = 64
    ddpm: bool = False

    def __post_init__(self):
        check_options(self, "config", ("numbers", "reach", "width", "heads", "layers", "words", "size"))
        if self.width % 6 or self.width % self.heads:
            raise ValueError(f"config.width: got {self.width}, wanted a multiple of 6 and of {self.heads} heads")
        if self.size % PATCH:
            raise ValueError(f"config.size: got {self.size}, wanted a multiple of {PATCH}")


@dataclass(frozen=True)
class Given:
    """What B scenes are told: words (B, L, D); picture (B, S, S, 4), straight alpha, the front; seen (B,), 1 where it is given.

    >>> Given(torch.zeros(2, 5, 96), torch.zeros(2, 64, 64, 4), torch.tensor([1.0, 0.0]))[[1, 1, 0]].seen.tolist()
    [0.0, 0.0, 1.0]
    """

    words: Tensor
    picture: Tensor
    seen: Tensor

    def __getitem__(self, rows) -> Given:
        return Given(self.words[rows], self.picture[rows], self.seen[rows])

    def joined(self, other: Given) -> Given:
        """The scenes of both, ours first."""
        return Given(*(torch.cat(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))


class VoxelFlow(nn.Module):
    """Noisy tokens, times and what is given -> velocities.

    Buffers: mean, std (numbers,) of the tokens of training, see `scale`.

    >>> flow = VoxelFlow(FlowConfig(width=12, heads=2, layers=1))
    >>> given = Given(torch.zeros(2, 5, 96), torch.zeros(2, 64, 64, 4), torch.zeros(2))
    >>> flow(torch.randn(7, 8), torch.zeros(7, 0), torch.zeros(7, 3), (3, 4), torch.tensor([0.1, 0.9]), given).shape
    torch.Size([7, 8])
    """

    def __init__(self, config: FlowConfig = FlowConfig()):
        super().__init__()
        self.config = c = config
        self.time = nn.Sequential(nn.Linear(64, c.width), nn.SiLU(), nn.Linear(c.width, c.width))
        self.phrase, self.word = nn.Linear(c.words, c.width), nn.Linear(c.words, c.width)
        self.look = nn.Sequential(nn.Conv2d(4, 48, 4, 4), nn.SiLU(), nn.Conv2d(48, 96, 3, 1, 1), nn.SiLU(),
                                  nn.Conv2d(96, c.width, 2, 2))  # (B, width, S / 8, S / 8)
        self.where = nn.Parameter(0.02 * torch.randn((c.size // PATCH) ** 2, c.width))
        self.unseen = nn.Parameter(0.02 * torch.randn((c.size // PATCH) ** 2, c.width))  # instead of a picture that is not given
        self.enter = nn.Linear(c.numbers + c.extra, c.width)
        self.blocks = nn.ModuleList([PackedBlock(c.width, c.heads, c.width, c.width) for _ in range(c.layers)])
        self.norm, self.leave = nn.LayerNorm(c.width), nn.Linear(c.width, c.numbers)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        self.register_buffer("mean", torch.zeros(c.numbers))
        self.register_buffer("std", torch.ones(c.numbers))

    def forward(self, x: Tensor, extra: Tensor, places: Tensor, lengths: tuple[int, ...], t: Tensor, given: Given) -> Tensor:
        """x (T, numbers) noisy and scaled; extra (T, extra); places (T, 3); lengths: tokens of each object; t (B,) in [0, 1]."""
        c = self.config
        picture = 2 * _premultiplied(given.picture).movedim(-1, 1).to(x) - 1
        patches = self.look(picture).flatten(2).mT + self.where  # (B, P, width)
        patches = torch.where(given.seen[:, None, None] > 0, patches, self.unseen.to(patches))
        context = torch.cat([self.word(given.words.to(x)), patches], 1)  # (B, L + P, width)
        embedding = self.time(waves(1000 * t).to(x)) + self.phrase(given.words.to(x).mean(1)) + patches.mean(1)
        y = self.enter(torch.cat([x, extra.to(x)], 1)) + place_waves(places, c.width, c.reach).to(x)
        for block in self.blocks:
            y = block(y, lengths, embedding, context.flatten(0, 1), (context.shape[1],) * len(context))
        return self.leave(self.norm(y)).to(x.dtype)

    def scale(self, z: Tensor) -> Tensor:
        """Tokens (T, numbers) of an autoencoder -> centred, of variance about 1."""
        return (z - self.mean) / self.std

    def unscale(self, z: Tensor) -> Tensor:
        """The inverse of `scale`."""
        return z * self.std + self.mean


def _premultiplied(picture: Tensor) -> Tensor:
    return torch.cat([picture[..., :3] * picture[..., 3:], picture[..., 3:]], -1)


def voxel_flow_loss(model, x: Tensor, extra: Tensor, places: Tensor, lengths: tuple[int, ...], given: Given, active: Tensor,
                    generator: torch.Generator | None = None, ddpm: bool = False) -> dict[str, Tensor]:
    """mean |velocity - (eps - x_0)|^2 over the numbers that are `active` (T, numbers), of scaled tokens x (T, numbers): {"loss"}.
    The others are 0 in x and get no noise: they say nothing. model: a `VoxelFlow` or its wrapper for several GPUs; ddpm: eps on
    DDPM's schedule is wanted, at even times."""
    x = x * active
    t = torch.rand(len(lengths), generator=generator).to(x) if ddpm else \
        torch.sigmoid(1 + torch.randn(len(lengths), generator=generator)).to(x)
    eps = torch.randn(x.shape, generator=generator).to(x) * active
    x_t, wanted = noised(x, of_each(t, lengths), eps, ddpm)
    off = model(x_t, extra, places, lengths, t, given).float() - wanted
    return {"loss": (off.square() * active).sum() / active.sum()}


def structure_asker(net: VoxelFlow, given: Given) -> Callable:
    """ask(x (B, side^3, numbers) scaled tokens of structures, t (B,)) -> like x, for `few_steps.draw`; given: what they are
    told."""
    places, lengths = structure_places(net.config.reach, len(given.seen), net.mean.device)

    def ask(x: Tensor, t: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        return net(rows, rows[:, :0], places, lengths, t, given).unflatten(0, (len(x), -1))

    return ask


class SparseVoxels:
    """Both autoencoders, both flows and a text encoder as one sampler. ValueError where the networks do not fit."""

    def __init__(self, structure: StructureVAE, appearance: AppearanceVAE, flow_structure: VoxelFlow, flow_appearance: VoxelFlow,
                 encode_prompt: Callable[[list[str]], Tensor]):
        s, a = structure.config, appearance.config
        block = max(1, s.cells // flow_structure.config.reach)  # places of a token's side
        for name, flow, wanted in (("flow_structure", flow_structure, (s.latent * block**3, 0)),
                                   ("flow_appearance", flow_appearance, (8 * a.latent, 8))):
            if (flow.config.numbers, flow.config.extra) != wanted:
                raise ValueError(f"{name}: draws tokens of {flow.config.numbers} numbers and knows {flow.config.extra}, wanted "
                                 f"{wanted[0]} and {wanted[1]}")
            if flow.config.ddpm:
                raise ValueError(f"{name}: says eps (config.ddpm), wanted one that says velocities")
        if s.resolution != a.resolution:
            raise ValueError(f"appearance: got R = {a.resolution}, wanted that of structure, {s.resolution}")
        f, g = flow_structure.config, flow_appearance.config
        if (f.size, f.words) != (g.size, g.words) or s.cells % f.reach:
            raise ValueError(f"flows: got pictures of {f.size} and {g.size} pixels, words of {f.words} and {g.words} numbers, "
                             f"wanted the same; and reach = {f.reach}, wanted a divisor of {s.cells}")
        self.structure, self.appearance = structure.eval().requires_grad_(False), appearance.eval().requires_grad_(False)
        self.flow_structure, self.flow_appearance = (m.eval().requires_grad_(False) for m in (flow_structure, flow_appearance))
        self.encode_prompt = encode_prompt

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.flow_structure.mean.device

    @torch.no_grad()
    def condition(self, captions: list[str], pictures: Tensor | None = None) -> Given:
        """What B scenes are told: captions, "" for none; pictures (B, S, S, 4), straight alpha in [0, 1], of their fronts."""
        if not isinstance(captions, list | tuple) or not captions or not all(isinstance(c, str) for c in captions):
            raise ValueError(f"captions: got {captions!r}, wanted a list of strings, \"\" for none")
        s, b = self.flow_structure.config.size, len(captions)
        if pictures is not None:
            if not isinstance(pictures, Tensor) or pictures.shape != (b, s, s, 4):
                raise ValueError(f"pictures: got shape {tuple(getattr(pictures, 'shape', ()))}, wanted ({b}, {s}, {s}, 4)")
            if not bool(((pictures >= 0) & (pictures <= 1)).all()):  # also false for nan
                raise ValueError("pictures: got values outside of [0, 1], or that are no numbers")
        seen = torch.full((b,), float(pictures is not None))
        pictures = torch.zeros(b, s, s, 4) if pictures is None else pictures
        return Given(*(x.to(self.device) for x in (self.encode_prompt(captions), pictures, seen)))

    @torch.no_grad()
    def draw_structure(self, given: Given, steps: int = 12, guidance_scale: float = 3.0, shift: float = 3.0,
                       interval: tuple[float, float] = (0.0, 1.0), noise: Tensor | None = None, values: Tensor | None = None,
                       known: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Bits (B, R, R, R), one scene for each of `given`; each has one voxel at least, the likeliest.

        values, known (B, latent, R/4, R/4, R/4): latents, and where they are known (bool) and stay. interval: times at which
        guidance acts. noise: to start from; else drawn where the generator lives.
        """
        c, b, net = self.structure.config, len(given.seen), self.flow_structure
        shape = (b, c.latent, c.cells, c.cells, c.cells)
        noise, values, known = _start(shape, shape, noise, values, known, generator)
        side = net.config.reach
        places, lengths = structure_places(side, b, self.device)

        def tokens(x):
            return structure_tokens(x.to(self.device), side)

        kept = None if known is None else (net.scale(tokens(values)), tokens(known))
        z = self._follow(net, tokens(noise), places[:, :0], places, lengths, given, steps, guidance_scale, shift, interval, kept)
        z = from_structure_tokens(net.unscale(z), side, c.latent)
        logits = self.structure.decode(z).flatten(1)
        best = F.one_hot(logits.argmax(1), logits.shape[1]).bool()
        return ((logits > 0) | best).unflatten(1, (c.resolution,) * 3)

    @torch.no_grad()
    def draw_latents(self, voxels: Voxels, given: Given, steps: int = 12, guidance_scale: float = 2.0, shift: float = 1.0,
                     interval: tuple[float, float] = (0.0, 1.0), noise: Tensor | None = None, values: Tensor | None = None,
                     known: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Latents (T, latent) of the active voxels of B scenes. values (T, latent), known (T,) bool: latents that stay; the other
        arguments as those of `draw_structure`, noise (T, latent)."""
        c, net, count = self.appearance.config, self.flow_appearance, len(voxels.coords)
        if voxels.resolution != c.resolution or len(voxels.lengths) != len(given.seen):
            raise ValueError(f"voxels: got {len(voxels.lengths)} objects of R = {voxels.resolution}, wanted {len(given.seen)} of "
                             f"R = {c.resolution}")
        noise, values, known = _start((count, c.latent), (count,), noise, values, known, generator)
        noise = noise.to(self.device)
        voxels = voxels.to(self.device)
        _, _, places, lengths = voxels.cells()
        width = 8 * c.latent
        rows = voxels.to_cells(noise)
        kept = None
        if known is not None:
            every = known.to(self.device)[:, None].expand(-1, c.latent).float()
            kept = (net.scale(voxels.to_cells(values.to(self.device))[:, :width]), voxels.to_cells(every)[:, :width] > 0)
        z = self._follow(net, rows[:, :width], rows[:, width:], places, lengths, given, steps, guidance_scale, shift, interval,
                         kept)
        z = voxels.from_cells(net.unscale(z))
        return z if known is None else torch.where(known.to(self.device)[:, None], values.to(self.device), z)

    def _follow(self, net, noise, extra, places, lengths, given, steps, guidance_scale, shift, interval, kept) -> Tensor:
        """Tokens at t = 0. Guidance moves away from nothing given; kept: scaled values, and where they stay. Slots without a
        voxel are 0 all the way, as in training."""
        low, high = interval
        if not low <= high or not math.isfinite(guidance_scale):
            raise ValueError(f"interval, guidance_scale: got {interval}, {guidance_scale}, wanted low <= high, a finite number")
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps: got {steps!r}, wanted a whole number >= 1")
        both = given.joined(self.condition([""] * len(lengths)))
        empty = None if not extra.shape[1] else extra.repeat_interleave(noise.shape[1] // extra.shape[1], 1) == 0

        def velocity(x, t):
            if guidance_scale == 1 or not low <= float(t) <= high:
                v = net(x, extra, places, lengths, t.expand(len(lengths)), given)
            else:
                twice = [torch.cat([y, y]) for y in (x, extra, places)]
                c, u = net(*twice, lengths * 2, t.expand(2 * len(lengths)), both).chunk(2)
                v = guide(u, c, guidance_scale)
            v = v if empty is None else torch.where(empty, 0.0, v)
            return v if kept is None else torch.where(kept[1], noise - kept[0], v)

        return flow_sample(velocity, noise, steps, shift)

    @torch.no_grad()
    def sample(self, captions: list[str], pictures: Tensor | None = None, steps: int = 12, guidance_scale: float = 3.0,
               generator: torch.Generator | None = None) -> list[Gaussians]:
        """One scene for each caption: structure, latents, Gaussians; their numbers differ.

        Its guidance is that of the structure; the latents' is two thirds of it.
        """
        given = self.condition(captions, pictures)
        voxels = Voxels.from_grid(self.draw_structure(given, steps, guidance_scale, generator=generator))
        z = self.draw_latents(voxels, given, steps, 1 + (guidance_scale - 1) * 2 / 3, generator=generator)
        return self.appearance.splats(voxels, z)


def _start(shape: tuple[int, ...], known_shape: tuple[int, ...], noise, values, known, generator) -> tuple:
    """Noise to start from, drawn where the generator lives if there is none, and what is known, checked."""
    for name, x, wanted in (("noise", noise, shape), ("values", values, shape), ("known", known, known_shape)):
        bits = name == "known"
        if x is not None and (not isinstance(x, Tensor) or x.shape != wanted or (x.dtype == torch.bool) != bits
                              or not bool(x.isfinite().all())):
            raise ValueError(f"{name}: got {tuple(getattr(x, 'shape', ()))} {getattr(x, 'dtype', type(x))}, wanted {wanted} of "
                             f"{'bool' if bits else 'finite numbers'}")
    if (values is None) != (known is None):
        raise ValueError("values, known: got one of them, wanted both, or neither")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"generator: got {generator!r}, wanted a torch.Generator or None")
    if noise is None:
        noise = torch.randn(shape, generator=generator, device=generator.device if generator is not None else None)
    return noise.float(), values if values is None else values.float(), known


def load_flow(name: str | Path, device: str = "cpu") -> VoxelFlow:
    """A shipped network of that name, or one in a folder; raises what `pretrained.load_network` raises."""
    return pretrained.load_network(name, VoxelFlow, FlowConfig, device)


def load_sparse_voxels(device: str = "cpu", structure: str | Path = "voxel_structure",
                       appearance: str | Path = "voxel_appearance", flow_structure: str | Path = "voxel_structure_flow",
                       flow_appearance: str | Path = "voxel_appearance_flow") -> SparseVoxels:
    """The whole sampler, of shipped networks or folders. ValueError where a flow was trained on another autoencoder."""
    from gsgen_lib.systems.prior import load_prior
    from gsgen_lib.systems.sparse_voxels import load_appearance, load_structure

    for flow, vae in ((flow_structure, structure), (flow_appearance, appearance)):
        said = pretrained.read_card(pretrained.checked_folder(flow)).get("autoencoder_sha256")
        got = pretrained.read_card(pretrained.checked_folder(vae))["sha256"].get("model.safetensors")
        if not said or said != got:
            raise ValueError(f"{flow}: was trained on another autoencoder than {vae}")
    prior = load_prior()
    return SparseVoxels(load_structure(structure, device), load_appearance(appearance, device), load_flow(flow_structure, device),
                        load_flow(flow_appearance, device), prior.encode_prompt)

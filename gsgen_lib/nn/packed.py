"""Transformers over sets of different sizes, packed one after the other.

Problem. Objects have different numbers of active voxels. Padded to the largest, a batch computes much for nothing; so all tokens
of a batch stand in one list, (T, C) with T = n_1 + n_2 + ..., and `lengths` says where each object ends. Everything that treats
tokens alone runs over the list at once; attention runs object by object, so that no object hears another.

    adaptive norm:   x + gate(e) * f( (1 + scale(e)) norm(x) + shift(e) ),     e: time and condition of the token's object

The gates start at 0, so a new network is the identity plus its last layer (DiT's adaLN-Zero). A token may also read a context,
words or patches of a picture, by cross-attention; of the context of its own object alone.

Sources: DiT (2212.09748) section 3.2; TRELLIS (2412.01506) section 3.2 and appendix A.3. Taught in notebook 09.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REACHES = (0.05, 0.4)  # of new attention to what is near, in the world: shortest and longest

__all__ = ["PackedBlock", "attend_packed", "of_each", "place_waves"]


def of_each(values: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """A row for each object (B, ...) as a row for each token (T, ...).

    >>> of_each(torch.tensor([7, 8]), (1, 2)).tolist()
    [7, 8, 8]
    """
    return values.repeat_interleave(torch.tensor(lengths, device=values.device), 0)


def place_waves(places: Tensor, width: int, reach: float = 64.0) -> Tensor:
    """Places (T, 3), numbers of about -reach to reach, as cosines and sines: (T, width); width a multiple of 6. The longest wave
    is 4 `reach`, the shortest 4.

    >>> place_waves(torch.zeros(1, 3), 12)[0].tolist()
    [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    """
    if width % 6:
        raise ValueError(f"width: got {width}, wanted a multiple of 6")
    waves = width // 6
    turns = torch.linspace(math.log(1 / (4 * reach)), math.log(1 / 4), waves, device=places.device).exp()
    at = 2 * math.pi * places[..., None].float() * turns  # (T, 3, waves)
    return torch.stack([at.cos(), at.sin()], -1).flatten(-3)


def attend_packed(q: Tensor, k: Tensor, v: Tensor, heads: int, lengths: tuple[int, ...],
                  others: tuple[int, ...] | None = None, near: tuple[Tensor, Tensor, Tensor] | None = None) -> Tensor:
    """Attention of each object's tokens q (T, C) over its own k, v (T', C), whose lengths are `others` (as those of q if not
    given): (T, C).

    near: places x (T, 3) and p (T', 3), and slopes s > 0, (heads,) or (T, heads): the nearer the more, by -s |x - p|^2 before the
    softmax; then the result is (T, C + 3 heads): after it, for each head, sqrt(s) (mean of p - x), by the weights of the softmax.

    >>> x = torch.randn(5, 8)
    >>> together = attend_packed(x, x, x, 2, (2, 3))
    >>> torch.allclose(together[:2], attend_packed(x[:2], x[:2], x[:2], 2, (2,)))
    True
    """
    others, width = lengths if others is None else others, q.shape[1] // heads
    if q.device.type == "cpu" and torch.is_grad_enabled() or near is not None:  # places need all digits
        kind, (q, k, v) = q.dtype, (x.float() for x in (q, k, v))
        with torch.autocast(q.device.type, enabled=False):  # half precision on a CPU: backward four times slower
            if near is not None:
                q, k, v = with_places(q, k, v, heads, *near)
            found = attend_packed_as(q, k, v, heads, lengths, others, width)
            if near is not None:
                found, where = found.unflatten(1, (heads, -1)).split((width, 4), -1)
                where = (where[..., :3] - near[0][:, None]) * near[2].expand(len(q), heads)[..., None].sqrt()
                found = torch.cat([found.flatten(1), where.flatten(1)], 1)
        return found.to(kind)
    return attend_packed_as(q, k, v, heads, lengths, others, width)


def with_places(q: Tensor, k: Tensor, v: Tensor, heads: int, x: Tensor, p: Tensor, slope: Tensor) -> tuple[Tensor, ...]:
    """q, k, v with four numbers more in each head, so that q k / sqrt(width) falls by slope |x - p|^2 (up to a number that is the
    same for all p): q gets sqrt(width) slope (2 x, -1), k gets (p, |p|^2), v gets (p, 0)."""
    q, k, v = (one.unflatten(1, (heads, -1)) for one in (q, k, v))  # (T, heads, C / heads)
    slope = (slope.expand(len(q), heads) * q.shape[2] ** 0.5)[..., None]
    more_q = torch.cat([2 * x, -torch.ones_like(x[:, :1])], 1)[:, None] * slope
    more_k = torch.cat([p, p.square().sum(1, keepdim=True)], 1)[:, None].expand(-1, heads, -1)
    more_v = torch.cat([p, torch.zeros_like(p[:, :1])], 1)[:, None].expand(-1, heads, -1)
    return tuple(torch.cat([one, more.to(one)], 2).flatten(1) for one, more in ((q, more_q), (k, more_k), (v, more_v)))


def attend_packed_as(q: Tensor, k: Tensor, v: Tensor, heads: int, lengths: tuple[int, ...], others: tuple[int, ...],
                     width: int) -> Tensor:
    """`attend_packed` in the precision that is given: objects of equal lengths in one call, others one by one. width: of a head,
    by whose root products are divided."""
    ask = partial(F.scaled_dot_product_attention, scale=width**-0.5)
    if len(set(lengths)) == len(set(others)) == 1 and len(lengths) == len(others):
        def together(x, n):
            return x.unflatten(0, (len(lengths), n)).unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, heads, n, C / heads)

        found = ask(*(together(x, n[0]) for x, n in ((q, lengths), (k, others), (v, others))))
        return found.transpose(1, 2).flatten(2).flatten(0, 1)

    def heads_first(x):
        return x.unflatten(-1, (heads, -1)).transpose(0, 1)[None]  # (1, heads, n, C / heads)

    parts = [ask(*map(heads_first, part))[0].transpose(0, 1).flatten(1)
             for part in zip(q.split(lengths), k.split(others), v.split(others), strict=True)]
    return torch.cat(parts)


def reach_slopes(heads: int) -> Tensor:
    """Logarithms (heads,) of slopes of new attention to what is near: 1 / (2 reach^2), reaches even on a line of logarithms.

    >>> (0.5 / reach_slopes(3).exp()).sqrt()
    tensor([0.0500, 0.1414, 0.4000])
    """
    reach = torch.linspace(math.log(REACHES[0]), math.log(REACHES[1]), heads)
    return math.log(0.5) - 2 * reach


class PackedBlock(nn.Module):
    """Attention, a look at the context, and a two-layer network: tokens (T, C) -> (T, C).

    embed: width of the vector (B, embed) of each object that shifts, scales and gates, 0 for plain norms; context: of the
    tokens (L, context), packed with lengths of their own, that are read as well, 0 for none; near: tokens hear more of those that
    are near, each head over a reach of its own, learned from `REACHES`, and where these lie; then `places` (T, 3) and (L, 3) are
    to be given.

    >>> block = PackedBlock(8, 2, embed=4, context=6)
    >>> x = torch.randn(5, 8)
    >>> torch.equal(block(x, (2, 3), torch.randn(2, 4), torch.randn(4, 6), (1, 3)), x)  # new gates are closed
    True
    """

    def __init__(self, width: int, heads: int, embed: int = 0, context: int = 0, near: bool = False):
        super().__init__()
        self.slopes = nn.Parameter(reach_slopes(heads).expand(2, -1).clone()) if near else None  # logarithms: of self, of context
        self.heads, adaptive = heads, bool(embed)
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=not adaptive) for _ in range(2))
        heard = width + 3 * heads * near
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(heard, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.adapt = nn.Linear(embed, 6 * width) if adaptive else None
        if adaptive:
            nn.init.zeros_(self.adapt.weight)
            nn.init.zeros_(self.adapt.bias)
        self.norm3 = nn.LayerNorm(width) if context else None
        self.ask, self.read = (nn.Linear(width, width), nn.Linear(context, 2 * width)) if context else (None, None)
        self.tell = nn.Linear(heard, width) if context else None
        if context:
            nn.init.zeros_(self.tell.weight)
            nn.init.zeros_(self.tell.bias)

    def forward(self, x: Tensor, lengths: tuple[int, ...], embedding: Tensor | None = None, context: Tensor | None = None,
                context_lengths: tuple[int, ...] | None = None, places: tuple[Tensor, ...] | None = None) -> Tensor:
        if self.adapt is None:
            shift1 = scale1 = shift2 = scale2 = 0.0
            gate1 = gate2 = 1.0
        else:
            each = of_each(self.adapt(F.silu(embedding)), lengths)
            shift1, scale1, gate1, shift2, scale2, gate2 = each.chunk(6, -1)
        near, across = (None, None) if self.slopes is None else ((places[0], places[0], self.slopes[0].exp()),
                                                                 (places[0], places[-1], self.slopes[1].exp()))
        q, k, v = self.qkv(self.norm1(x) * (1 + scale1) + shift1).chunk(3, -1)
        x = x + gate1 * self.out(attend_packed(q, k, v, self.heads, lengths, near=near))
        if self.read is not None:
            k, v = self.read(context).chunk(2, -1)
            x = x + self.tell(attend_packed(self.ask(self.norm3(x)), k, v, self.heads, lengths, context_lengths, across))
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)

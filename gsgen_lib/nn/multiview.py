"""A U-Net for several views of one object at once, and the attention that lets them talk.

Every view runs through the same convolutions; at coarse levels all pixels of all views of an object are tokens of one
self-attention. The sums of residual blocks are scaled by sqrt(1/2), so that depth does not grow the variance (LGM). Views are
folded into the batch: (B V, C, H, W), V neighbours belong together.

Sources: LGM (2402.05054) section 3.2; MVDream (2308.16512). Taught in notebook 05.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HALF = math.sqrt(0.5)


def check_widths(widths: tuple[int, ...]) -> None:
    """ValueError for channels that group norm cannot split into 8 groups.

    >>> check_widths((48, 20))
    Traceback (most recent call last):
    ValueError: config.widths: got (48, 20), wanted whole multiples of 8
    """
    if any(not isinstance(width, int) or width < 8 or width % 8 for width in widths):
        raise ValueError(f"config.widths: got {widths}, wanted whole multiples of 8")


class ResBlock(nn.Module):
    """Two 3 x 3 convolutions with group norm, and a skip: (B, in, H, W) -> (B, out, H, W).

    embed: width of a vector (B, embed) that shifts the channels between the two, 0 for none.

    >>> ResBlock(8, 16)(torch.randn(2, 8, 4, 4)).shape
    torch.Size([2, 16, 4, 4])
    """

    def __init__(self, channels: int, out: int, embed: int = 0):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(min(8, channels), channels), nn.Conv2d(channels, out, 3, 1, 1)
        self.norm2, self.conv2 = nn.GroupNorm(min(8, out), out), nn.Conv2d(out, out, 3, 1, 1)
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()
        self.shift = nn.Linear(embed, out) if embed else None

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        if self.shift is not None:
            y = y + self.shift(F.silu(embedding))[:, :, None, None]
        return HALF * (self.skip(x) + self.conv2(F.silu(self.norm2(y))))


def start_linear(network: nn.Module, block: type = ResBlock) -> None:
    """New initial weights, in place: residual branches add nothing yet, and the convolutions between them keep the variance of
    what they carry (torch's default divides it by three at each). Convolutions that are all 0 stay so. From torch's generator.

    block: the class of the residual blocks, with convolutions conv1 and conv2.

    >>> one = ResBlock(8, 8)
    >>> start_linear(one)
    >>> x = torch.randn(1, 8, 4, 4)
    >>> torch.allclose(one(x), HALF * x)
    True
    """
    blocks = [m for m in network.modules() if isinstance(m, block)]
    inside = {id(conv) for one in blocks for conv in (one.conv1, one.conv2)}
    for one in blocks:
        nn.init.zeros_(one.conv2.weight)
        nn.init.zeros_(one.conv2.bias)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and id(module) not in inside and bool((module.weight != 0).any()):
            nn.init.normal_(module.weight, 0.0, module.weight[0].numel() ** -0.5)  # fan-in
            nn.init.zeros_(module.bias)


def attend(qkv: Tensor, heads: int, more: Tensor | None = None) -> Tensor:
    """Self-attention of tokens, given as queries, keys and values side by side: (B, T, 3 C) -> (B, T, C).

    more: keys and values (B, L, 2 C) of other tokens that are read, too, words for instance.

    >>> attend(torch.randn(2, 5, 24), 2, torch.randn(2, 3, 16)).shape
    torch.Size([2, 5, 8])
    """
    q, k, v = qkv.chunk(3, -1)
    if more is not None:
        k, v = (torch.cat(pair, 1) for pair in zip((k, v), more.chunk(2, -1), strict=True))
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, T, C / heads)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class CrossViewAttention(nn.Module):
    """Self-attention over all pixels of all views of an object: (B V, C, H, W) -> the same; starts as the identity.

    context: width of tokens (B, L, context), words for instance, that every pixel reads as well; 0 for none.

    >>> x = torch.randn(6, 16, 4, 4)
    >>> torch.equal(CrossViewAttention(16)(x, 3), x)
    True
    """

    def __init__(self, channels: int, heads: int = 4, context: int = 0):
        super().__init__()
        self.read = nn.Linear(context, 2 * channels) if context else None
        self.norm, self.heads = nn.GroupNorm(min(8, channels), channels), heads
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, views: int, context: Tensor | None = None) -> Tensor:
        n, c, h, w = x.shape
        more = None if self.read is None else self.read(context)
        tokens = self.norm(x).reshape(n // views, views, c, h * w).movedim(2, -1).reshape(n // views, views * h * w, c)
        y = self.out(attend(self.qkv(tokens), self.heads, more)).reshape(n // views, views, h * w, c)
        return x + HALF * y.movedim(-1, 2).reshape(n, c, h, w)


class MultiViewUNet(nn.Module):
    """(B V, in, H, W) -> (B V, out, H, W): widths[k] channels at H / 2^k; attention across views where `attend` says so.

    embed: width of a vector (B V, embed) that shifts each block's channels, such as a time; context: of tokens (B, L, context)
    that attention reads as well; 0 for none.

    >>> unet = MultiViewUNet(5, 7, (16, 32), attend=(False, True))
    >>> unet(torch.randn(6, 5, 8, 8), 3).shape
    torch.Size([6, 7, 8, 8])
    """

    def __init__(self, channels: int, out: int, widths: tuple[int, ...], attend: tuple[bool, ...], blocks: int = 2,
                 embed: int = 0, context: int = 0):
        super().__init__()
        self.enter = nn.Conv2d(channels, widths[0], 3, 1, 1)
        self.down, self.up, kept, now = nn.ModuleList(), nn.ModuleList(), [widths[0]], widths[0]
        for k, (width, talk) in enumerate(zip(widths, attend, strict=True)):
            for _ in range(blocks):
                self.down.append(_Stage(now, width, talk, embed, context))
                now = width
                kept.append(now)
            if k + 1 < len(widths):
                self.down.append(nn.Conv2d(now, now, 3, 2, 1))
                kept.append(now)
        self.middle = _Stage(now, now, attend[-1], embed, context)
        for k in reversed(range(len(widths))):
            for _ in range(blocks + 1):
                self.up.append(_Stage(now + kept.pop(), widths[k], attend[k], embed, context))
                now = widths[k]
            if k:
                self.up.append(nn.Conv2d(now, now, 3, 1, 1))
        self.leave = nn.Sequential(nn.GroupNorm(8, now), nn.SiLU(), nn.Conv2d(now, out, 3, 1, 1))

    def forward(self, x: Tensor, views: int, embedding: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        kept = [self.enter(x)]
        for layer in self.down:
            kept.append(layer(kept[-1], views, embedding, context) if isinstance(layer, _Stage) else layer(kept[-1]))
        x = self.middle(kept[-1], views, embedding, context)
        for layer in self.up:
            if isinstance(layer, _Stage):
                x = layer(torch.cat([x, kept.pop()], 1), views, embedding, context)
            else:
                x = layer(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.leave(x)


class _Stage(nn.Module):
    """A residual block, and attention across views after it where `talk`."""

    def __init__(self, channels: int, out: int, talk: bool, embed: int, context: int):
        super().__init__()
        self.block, self.talk = ResBlock(channels, out, embed), CrossViewAttention(out, 4, context) if talk else None

    def forward(self, x: Tensor, views: int, embedding: Tensor | None, context: Tensor | None) -> Tensor:
        x = self.block(x, embedding)
        return x if self.talk is None else self.talk(x, views, context)

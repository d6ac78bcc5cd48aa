"""A density on an octree: which eighth, and which eighth of that, down to a leaf.

The cube [-1/2, 1/2]^3 is cut in 8, each part in 8 again, L times. At every node on the way down a
density is one choice among 8:

    log q(x) = sum_{l=1..L} log softmax( f(node_{l-1}(x), l) )[ child_l(x) ]    (+ L log 8: in a leaf it is flat)

child = dx + 2 dy + 4 dz. Only nodes that are asked are computed: of 64^3 leaves a surface touches a few thousand.

From points of a surface, each of equal mass, comes the mass m of every child below every node that holds some (`masses`), and

    H(p, q) = - sum_nodes sum_child m log softmax(f)[child]  =  - mean over points of log q(leaf of x)
    KL(p | q) = H(p, q) - H(p),      H(p) the same with m / sum m instead of softmax(f): what no f can lower

Samples go down with whole counts (`sample`): the root gets P, a node with n hands them on to its children (`allocate`), a leaf
with n puts n points anywhere inside. Three ways to hand on n with probabilities q; in all of them a child gets n q on average:

    iid           every one by itself:                                           variance n q (1 - q)
    residual      floor(n q) for sure, the others by themselves
    systematic    u, u + 1/n, u + 2/n, ... on the line of the cumulated q, u anywhere in [0, 1/n): floor(n q) or one more

Taught in notebook 10. Sources: DeG (2605.16355), released code; systematic and residual: Douc and Cappe, "Comparison of
resampling schemes for particle filtering", 2005.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsgen_lib.nn.packed import attend_packed, place_waves, reach_slopes

WAYS = ("systematic", "residual", "iid")

__all__ = ["WAYS", "Anchors", "DensityNet", "Nodes", "allocate", "entropy", "log_q", "masses", "sample"]


@dataclass(frozen=True)
class Nodes:
    """T nodes of a batch of octrees, those of an object together, objects in order: level (T,), 0 for the root; place (T, 3), the
    node among 2^level along each axis; object (T,)."""

    level: Tensor
    place: Tensor
    object: Tensor

    def lengths(self, objects: int) -> tuple[int, ...]:
        """Nodes of each object."""
        return tuple(torch.bincount(self.object, minlength=objects).tolist())

    def centres(self) -> Tensor:
        """(T, 3) in the world."""
        return (self.place + 0.5) / 2.0 ** self.level[:, None] - 0.5

    def children(self, which: Tensor, child: Tensor) -> Nodes:
        """Child number child (K,) in 0..7 of nodes which (K,), in the order given."""
        bits = child[:, None] >> torch.arange(3, device=child.device) & 1
        return Nodes(self.level[which] + 1, 2 * self.place[which] + bits, self.object[which])


def masses(points: Tensor, depth: int) -> tuple[Nodes, Tensor]:
    """The nodes above the leaves that hold some of points (B, P, 3), and the mass (T, 8) in each of their children, as a share of
    the object's. Points outside of the cube count in the nearest leaf.

    >>> nodes, m = masses(torch.tensor([[[-0.4, -0.4, -0.4], [0.4, -0.4, -0.4]]]), 1)
    >>> nodes.place.tolist(), m.tolist()
    ([[0, 0, 0]], [[0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    """
    if points.ndim != 3 or points.shape[2] != 3 or not points.shape[1] or not bool(points.isfinite().all()):
        raise ValueError(f"points: got {tuple(points.shape)}, wanted (B, P, 3), P >= 1, finite")
    check_depth(depth)
    b, p = points.shape[:2]
    leaf = ((points + 0.5) * 2**depth).floor().long().clamp(0, 2**depth - 1).flatten(0, 1)  # (B P, 3)
    own = torch.arange(b, device=points.device).repeat_interleave(p)
    bits = torch.tensor([1, 2, 4], device=points.device)
    keys, found = [], []
    for level in range(depth):
        at = leaf >> (depth - 1 - level)  # the child of level + 1 that holds the point
        child, parent = ((at & 1) * bits).sum(1), at >> 1
        key = (own * depth + level) << 48 | parent[:, 0] << 32 | parent[:, 1] << 16 | parent[:, 2]
        key, row = key.unique(return_inverse=True)
        m = torch.zeros(len(key) * 8, device=points.device)
        found.append(m.index_add(0, 8 * row + child, torch.full((b * p,), 1 / p, device=points.device)).unflatten(0, (-1, 8)))
        keys.append(key)
    key, order = torch.cat(keys).sort()
    place = torch.stack([key >> 32 & 0xFFFF, key >> 16 & 0xFFFF, key & 0xFFFF], 1)
    return Nodes((key >> 48) % depth, place, (key >> 48) // depth), torch.cat(found)[order]


def entropy(m: Tensor) -> Tensor:
    """H(p) of masses (T, 8) of one object, or the sum over objects: what cross-entropy cannot go below.

    >>> round(entropy(torch.tensor([[0.5, 0.5, 0, 0, 0, 0, 0, 0]])).item(), 4)  # ln 2
    0.6931
    """
    return torch.special.entr(m).sum() - torch.special.entr(m.sum(1)).sum()


class DensityNet(nn.Module):
    """f: `forward(context (B, M, width), nodes)` -> log-probabilities (T, 8) of the children.

    A node asks the tokens of its object by cross-attention, in `layers` rounds; it does not hear other nodes, so its answer does
    not depend on which others are asked. near: it asks tokens that are near more, over reaches of its level that are learned;
    then `places` (B, M, 3) of the tokens are to be given. One network for all levels: the level shifts, scales and gates (adaLN).
    New, it is even.

    >>> net = DensityNet(depth=3, width=12, heads=2, layers=1)
    >>> nodes, _ = masses(torch.rand(2, 5, 3) - 0.5, 3)
    >>> torch.allclose(net(torch.randn(2, 4, 12), nodes).exp(), torch.full((len(nodes.level), 8), 1 / 8))
    True
    """

    def __init__(self, depth: int, width: int, heads: int, layers: int, near: bool = False):
        super().__init__()
        check_depth(depth)
        self.depth, self.heads, self.width = depth, heads, width
        self.enter, self.level = nn.Linear(width, width), nn.Embedding(depth, width)
        slopes = [(reach_slopes(heads) + 2 * math.log(0.4 * 2**level)).clamp(max=math.log(200.0)) for level in range(depth)]
        self.slopes = nn.Parameter(torch.stack(slopes)) if near else None  # logarithms; reaches of an eighth of a node to one
        self.blocks = nn.ModuleList([nn.ModuleDict({
            "ask": nn.Linear(width, width), "read": nn.Linear(width, 2 * width), "tell": nn.Linear(width + 3 * heads * near,
            width), "mlp": nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)),
            "adapt": nn.Linear(width, 6 * width)}) for _ in range(layers)])
        for block in self.blocks:
            nn.init.zeros_(block["adapt"].weight)
            nn.init.zeros_(block["adapt"].bias)
            block["adapt"].bias.data[4 * width:] = 1.0  # the gates of a new network are open; its last layer is not
        self.head = nn.Linear(width, 8)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, context: Tensor, nodes: Nodes, places: Tensor | None = None) -> Tensor:
        lengths, tokens = nodes.lengths(len(context)), (context.shape[1],) * len(context)
        at = nodes.centres()
        near = None if self.slopes is None else (at, places.flatten(0, 1), self.slopes.exp()[nodes.level])
        waves = place_waves(at * 2**self.depth, self.width, 2 ** (self.depth - 1))
        x = self.enter(waves.to(context))
        for block in self.blocks:
            each = block["adapt"](F.silu(self.level.weight))[nodes.level]  # (T, 6 width)
            shift1, scale1, shift2, scale2, gate1, gate2 = each.chunk(6, -1)
            k, v = block["read"](context).flatten(0, 1).chunk(2, -1)
            asked = block["ask"](F.layer_norm(x, x.shape[1:]) * (1 + scale1) + shift1)
            x = x + gate1 * block["tell"](attend_packed(asked, k, v, self.heads, lengths, tokens, near))
            x = x + gate2 * block["mlp"](F.layer_norm(x, x.shape[1:]) * (1 + scale2) + shift2)
        return self.head(F.layer_norm(x, x.shape[1:])).float().log_softmax(-1)


# ---- samples -------------------------------------------------------------------------------------------------------


def allocate(n: Tensor, q: Tensor, how: str = "systematic", generator: torch.Generator | None = None) -> Tensor:
    """Hand n (T,) whole numbers on to 8 children each, with probabilities q (T, 8): counts (T, 8) that add up to n.

    >>> allocate(torch.tensor([4]), torch.tensor([[0.5, 0.25, 0.25, 0, 0, 0, 0, 0]])).tolist()  # nothing is left to chance
    [[2, 1, 1, 0, 0, 0, 0, 0]]
    """
    if how not in WAYS:
        raise ValueError(f"how: got {how!r}, wanted one of {', '.join(WAYS)}")
    if n.ndim != 1 or q.shape != (len(n), 8) or n.dtype != torch.int64 or not bool((n >= 0).all()):
        raise ValueError(f"n, q: got {tuple(n.shape)} {n.dtype}, {tuple(q.shape)}, wanted (T,) int64 >= 0 and (T, 8)")
    q = q.double() / q.double().sum(1, keepdim=True)
    if how == "systematic":
        line = (q.cumsum(1) * n[:, None]).clamp(max=n[:, None])  # where each child ends, in steps of 1 / n
        below = (line - _uniform(len(n), generator, q)[:, None]).ceil()  # points u + i before that end
        below[:, -1] = n.double()
        return torch.diff(below.clamp(min=0), dim=1, prepend=below.new_zeros(len(n), 1)).long()
    sure = (q * n[:, None] + 1e-9).floor() if how == "residual" else torch.zeros_like(q)
    left = n - sure.sum(1).long()
    q = (q * n[:, None] - sure).clamp_min(0) + (left == 0)[:, None] / 8  # where none is left q plays no part
    owner = torch.arange(len(n), device=n.device).repeat_interleave(left)
    line = (q / q.sum(1, keepdim=True)).cumsum(1)[owner]
    child = (_uniform(len(owner), generator, q)[:, None] >= line).sum(1).clamp(max=7)
    return sure.long() + torch.bincount(8 * owner + child, minlength=8 * len(n)).view(-1, 8)


@dataclass(frozen=True)
class Anchors:
    """points (B, P, 3), anywhere in their leaves; log_q (B, P), the logarithm of the probability of the leaf."""

    points: Tensor
    log_q: Tensor


def sample(ask: Callable[[Nodes], Tensor], depth: int, objects: int, count: int, how: str = "systematic",
           generator: torch.Generator | None = None, device: str | torch.device = "cpu") -> Anchors:
    """P = `count` anchors for each of `objects`: one call of ask(nodes) -> log-probabilities (T, 8) for each of `depth` levels,
    of the nodes that hold anchors. Gradients reach log_q. ValueError for a wrong `how` or count.

    >>> even = lambda nodes: torch.full((len(nodes.level), 8), 1 / 8).log()
    >>> anchors = sample(even, 2, 1, 64, generator=torch.Generator().manual_seed(0))
    >>> masses(anchors.points, 2)[1].unique().tolist()  # 64 leaves, one each: 8 below each of 8 nodes
    [0.015625, 0.125]
    """
    if not isinstance(count, int) or count < 1 or objects < 1:
        raise ValueError(f"count, objects: got {count!r} and {objects}, wanted whole numbers >= 1")
    check_depth(depth)
    own = torch.arange(objects, device=device)
    nodes, n = Nodes(torch.zeros_like(own), own.new_zeros(objects, 3), own), torch.full_like(own, count)
    log = torch.zeros(objects, device=device)
    for _ in range(depth):
        found = ask(nodes)
        counts = allocate(n, found.detach().exp(), how, generator)
        which, child = counts.nonzero(as_tuple=True)
        log = log[which] + found[which, child]
        nodes, n = nodes.children(which, child), counts[which, child]
    leaf = torch.arange(len(n), device=n.device).repeat_interleave(n)  # (B P,): objects in order, P each
    inside = _uniform(3 * len(leaf), generator, log).view(-1, 3)
    points = ((nodes.place[leaf] + inside) / 2**depth - 0.5).float()
    return Anchors(points.unflatten(0, (objects, count)), log[leaf].unflatten(0, (objects, count)))


def log_q(ask: Callable[[Nodes], Tensor], points: Tensor, depth: int) -> Tensor:
    """The mean over points (B, P, 3) of each object of log q of their leaves, (B,).

    >>> even = lambda nodes: torch.full((len(nodes.level), 8), 1 / 8).log()
    >>> log_q(even, torch.rand(1, 9, 3) - 0.5, 2) / torch.tensor(8.0).log()
    tensor([-2.])
    """
    nodes, m = masses(points, depth)
    each = (m * ask(nodes)).sum(1)
    return each.new_zeros(len(points)).index_add(0, nodes.object, each)


def check_depth(depth: int) -> None:
    """ValueError for a number of levels that is not 1 to 15."""
    if not isinstance(depth, int) or not 1 <= depth <= 15:
        raise ValueError(f"depth: got {depth!r}, wanted 1 to 15 levels")


def _uniform(count: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.rand(count, generator=generator, dtype=torch.float64, device=device).to(like.device)

"""The octree: masses and entropies against sums over leaves, allocations against their means and variances, samples against q."""

import itertools
import math
from collections import Counter

import pytest
import torch

from gsgen_lib.nn.octree import WAYS, DensityNet, Nodes, allocate, entropy, log_q, masses, sample

DEPTH = 3


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def points_of(objects=2, count=40, seed=0):
    return torch.rand(objects, count, 3, generator=gen(seed)) - 0.5


def leaf_of(point, depth=DEPTH):
    """(x, y, z) of the leaf, by division."""
    return tuple(min(2**depth - 1, max(0, math.floor((x + 0.5) * 2**depth))) for x in point.tolist())


def some_ask(seed=1, depth=DEPTH):
    """ask(nodes), uneven and the same for the same node, whatever else is asked: of a table."""
    table = torch.randn(depth, 2**depth, 2**depth, 2**depth, 8, generator=gen(seed)).log_softmax(-1)
    return lambda nodes: table[nodes.level, nodes.place[:, 0], nodes.place[:, 1], nodes.place[:, 2]]


def log_q_of(ask, leaf, depth=DEPTH):
    """log q of one leaf, walked down by hand."""
    total, zero = 0.0, torch.zeros(1, dtype=torch.int64)
    for level in range(depth):
        at = [c >> (depth - level) for c in leaf]
        dx, dy, dz = ((c >> (depth - 1 - level)) & 1 for c in leaf)
        total += ask(Nodes(zero + level, torch.tensor([at]), zero))[0, dx + 2 * dy + 4 * dz].item()
    return total


# ---- masses --------------------------------------------------------------------------------------------------------


def test_masses_count_points():
    points = points_of()
    nodes, m = masses(points, DEPTH)
    want = Counter()
    for b, cloud in enumerate(points):
        for point in cloud:
            x, y, z = leaf_of(point)
            for level in range(DEPTH):
                up = DEPTH - level
                child = (x >> up - 1 & 1) + 2 * (y >> up - 1 & 1) + 4 * (z >> up - 1 & 1)
                want[b, level, x >> up, y >> up, z >> up, child] += 1 / points.shape[1]
    got = {(b, level, *place, child): m[i, child].item()
           for i, (b, level, place) in enumerate(zip(nodes.object.tolist(), nodes.level.tolist(), nodes.place.tolist(), strict=True))
           for child in range(8) if m[i, child] > 0}
    assert got.keys() == want.keys() and got == pytest.approx(dict(want), abs=1e-6)
    assert nodes.object.tolist() == sorted(nodes.object.tolist())  # those of an object together


def test_entropy_is_that_of_the_leaves():
    points = points_of(1, 300)
    shares = torch.tensor(list(Counter(leaf_of(p) for p in points[0]).values())) / 300
    assert entropy(masses(points, DEPTH)[1]).item() == pytest.approx(-(shares * shares.log()).sum().item(), abs=1e-5)


def test_cross_entropy_is_the_mean_over_points_and_over_masses():
    points, ask = points_of(), some_ask()
    want = [sum(log_q_of(ask, leaf_of(p)) for p in cloud) / len(cloud) for cloud in points]
    assert log_q(ask, points, DEPTH).tolist() == pytest.approx(want, abs=1e-5)


def test_divergence_is_zero_for_the_points_own_density_and_positive_for_others():
    points = points_of(1, 60)
    nodes, m = masses(points, DEPTH)
    own = (m / m.sum(1, keepdim=True)).log()
    place = {(level, *at): i for i, (level, at) in enumerate(zip(nodes.level.tolist(), nodes.place.tolist(), strict=True))}

    def ask(asked):
        return own[[place[level, *at] for level, at in zip(asked.level.tolist(), asked.place.tolist(), strict=True)]].clamp_min(-50)

    def apart(ask):
        return (-log_q(ask, points, DEPTH).sum() - entropy(m)).item()

    assert apart(ask) == pytest.approx(0, abs=1e-5) and apart(some_ask()) > 0.5


def test_points_on_and_beyond_the_border_have_a_leaf():
    nodes, m = masses(torch.tensor([[[0.5, 0.5, 0.5], [-0.5, -0.5, -0.5], [0.7, 0.0, 0.0]]]), 2)
    assert nodes.place.max() == 1 and m[nodes.level == 0].sum().item() == pytest.approx(1)


@pytest.mark.parametrize("points, depth, says", [
    (torch.zeros(3, 3), 2, "points: got"), (torch.zeros(1, 0, 3), 2, "points: got"),
    (torch.full((1, 2, 3), float("nan")), 2, "points: got"), (torch.zeros(1, 2, 3), 0, "depth: got 0"),
    (torch.zeros(1, 2, 3), 2.0, "depth: got 2.0"), (torch.zeros(1, 2, 3), 16, "depth: got 16")])
def test_masses_refuse(points, depth, says):
    with pytest.raises(ValueError, match=says):
        masses(points, depth)


# ---- allocation ----------------------------------------------------------------------------------------------------


Q = torch.tensor([0.31, 0.17, 0.13, 0.11, 0.1, 0.09, 0.06, 0.03])
N, TIMES = 13, 20_000


@pytest.fixture(scope="module")
def counts():
    """Of each way, (TIMES, 8)."""
    n = torch.full((TIMES,), N)
    return {how: allocate(n, Q.expand(TIMES, 8), how, gen(3)).double() for how in WAYS}


@pytest.mark.parametrize("how", WAYS)
def test_counts_add_up_and_are_right_on_average(counts, how):
    got = counts[how]
    assert (got.sum(1) == N).all() and (got >= 0).all()
    error = (got.mean(0) - N * Q.double()) / (got.std(0) / TIMES**0.5)
    assert error.abs().max() < 4.5


def test_variances_are_those_of_the_header_and_in_order(counts):
    q, variance = Q.double(), {how: counts[how].var(0) for how in WAYS}
    part = N * q - (N * q).floor()
    sure = (N * q).floor().sum()
    rest = part / part.sum()
    wanted = {"iid": N * q * (1 - q), "residual": (N - sure) * rest * (1 - rest), "systematic": part * (1 - part)}
    for how in WAYS:
        assert torch.allclose(variance[how], wanted[how], rtol=0.06, atol=0.004), how
    total = {how: v.sum() for how, v in variance.items()}
    assert 1.2 * total["systematic"] < total["residual"] and 1.2 * total["residual"] < total["iid"]


def test_systematic_gives_the_whole_part_or_one_more(counts):
    low = (N * Q.double()).floor()
    assert ((counts["systematic"] == low) | (counts["systematic"] == low + 1)).all()
    assert (counts["residual"] >= low).all() and (counts["iid"] < low).any()


@pytest.mark.parametrize("how", WAYS)
def test_nothing_goes_where_no_mass_is(how):
    q = torch.zeros(1, 8)
    q[0, 5] = 1.0
    assert allocate(torch.tensor([7]), q, how, gen()).tolist() == [[0, 0, 0, 0, 0, 7, 0, 0]]
    assert allocate(torch.tensor([0]), q, how, gen()).sum() == 0


def test_allocate_refuses():
    for n, q, how, says in ((torch.tensor([1]), torch.ones(1, 8), "best", "how: got 'best'"),
                            (torch.tensor([1.0]), torch.ones(1, 8), "iid", "n, q: got"),
                            (torch.tensor([-1]), torch.ones(1, 8), "iid", "n, q: got"),
                            (torch.tensor([1]), torch.ones(2, 8), "iid", "n, q: got")):
        with pytest.raises(ValueError, match=says):
            allocate(n, q, how)


# ---- samples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", WAYS)
def test_leaves_get_their_share(how):
    """Counts of 64 leaves over 300 draws of 40: mean P q; and log_q is that of the leaf."""
    ask, count, times = some_ask(depth=2), 40, 300
    found = [sample(ask, 2, 1, count, how, gen(k)) for k in range(times)]
    leaves = list(itertools.product(range(4), repeat=3))
    q = torch.tensor([log_q_of(ask, leaf, 2) for leaf in leaves]).double().exp()
    assert q.sum().item() == pytest.approx(1, abs=1e-5)
    number = {leaf: i for i, leaf in enumerate(leaves)}
    counts = torch.zeros(times, 64, dtype=torch.float64)
    for k, anchors in enumerate(found):
        at = [number[leaf_of(p, 2)] for p in anchors.points[0]]
        assert anchors.log_q[0].exp().tolist() == pytest.approx(q[at].tolist(), rel=1e-4)
        counts[k] = torch.bincount(torch.tensor(at), minlength=64)
    spread = (counts.var(0) / times).clamp_min(1e-4).sqrt()
    assert ((counts.mean(0) - count * q) / spread).abs().max() < 4.5


def test_leaf_counts_spread_in_order():
    ask = some_ask(depth=2)
    spread = {}
    for how in WAYS:
        rows = []
        for k in range(200):
            leaf = ((sample(ask, 2, 1, 64, how, gen(k)).points[0] + 0.5) * 4).long()
            rows.append(torch.bincount(leaf @ torch.tensor([1, 4, 16]), minlength=64))
        spread[how] = torch.stack(rows).double().var(0).sum()
    assert 1.1 * spread["systematic"] < spread["residual"] and 1.1 * spread["residual"] < spread["iid"]


def test_points_are_anywhere_in_their_leaves():
    even = lambda nodes: torch.full((len(nodes.level), 8), 1 / 8).log()  # noqa: E731
    inside = ((sample(even, 2, 2, 2000, generator=gen()).points + 0.5) * 4) % 1
    assert inside.mean((0, 1)).tolist() == pytest.approx([0.5] * 3, abs=0.02)
    assert inside.var((0, 1)).tolist() == pytest.approx([1 / 12] * 3, abs=0.005)
    sorted_ = inside.flatten().sort().values  # Kolmogorov and Smirnov: 1.63 / sqrt(n) is passed by 99 %
    assert (sorted_ - (torch.arange(len(sorted_)) + 0.5) / len(sorted_)).abs().max() < 1.63 / len(sorted_) ** 0.5


def test_objects_do_not_mix_and_order_is_kept():
    ask = some_ask()

    def other(nodes):  # object 1 lies in one leaf
        here = ask(nodes).clone()
        only = torch.full((8,), -60.0)
        only[3] = 0.0
        here[nodes.object == 1] = only
        return here

    anchors = sample(other, DEPTH, 3, 20, generator=gen())
    assert {leaf_of(p) for p in anchors.points[1]} == {(7, 7, 0)} and anchors.log_q[1].abs().max() < 1e-5
    assert len({leaf_of(p) for p in anchors.points[0]}) > 10


def test_the_generator_decides():
    a, b, c = (sample(some_ask(), DEPTH, 2, 30, generator=gen(k)).points for k in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_sample_refuses():
    for count in (0, 2.0):
        with pytest.raises(ValueError, match="count, objects: got"):
            sample(some_ask(), DEPTH, 1, count)


@pytest.mark.parametrize("baseline", [True, False])
def test_what_each_is_worth_gives_the_gradient_of_the_mean(baseline):
    """All 8^3 draws of three independent samples of one level, for a loss of the whole set: the estimator's mean is the exact
    gradient, with the loss of the others as baseline and without. Control: with the sign of d turned, it is not."""
    logits = torch.randn(8, generator=gen(2), dtype=torch.float64, requires_grad=True)
    value = torch.randn(8, generator=gen(3), dtype=torch.float64)

    def loss(draws):
        return (0.3 - sum(value[i] for i in draws)).square() + len(set(draws))

    draws = list(itertools.product(range(8), repeat=3))
    p = logits.softmax(0)
    exact, = torch.autograd.grad(sum(p[a] * p[b] * p[c] * loss((a, b, c)) for a, b, c in draws), logits)
    log, found, wrong = logits.log_softmax(0), 0.0, 0.0
    for draw in draws:
        chance = p[list(draw)].prod().detach()
        for j in range(3):
            rest = loss(draw[:j] + draw[j + 1:]) if baseline else 0.0
            found = found + chance * (loss(draw) - rest) * log[draw[j]]
            wrong = wrong + chance * (rest - loss(draw)) * log[draw[j]]
    assert torch.allclose(torch.autograd.grad(found, logits, retain_graph=True)[0], exact, atol=1e-12)
    if baseline:
        assert (torch.autograd.grad(wrong, logits)[0] - exact).abs().max() > 0.01


# ---- the network ---------------------------------------------------------------------------------------------------


def test_a_node_does_not_hear_other_nodes_nor_other_objects():
    net = DensityNet(DEPTH, 24, 2, 2)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, 0, 0.2, generator=gen(4))
    context, (nodes, _) = torch.randn(2, 5, 24, generator=gen()), masses(points_of(), DEPTH)
    all_, some = net(context, nodes), torch.arange(0, len(nodes.level), 3)
    few = net(context, Nodes(nodes.level[some], nodes.place[some], nodes.object[some]))
    assert torch.allclose(all_[some], few, atol=1e-5)
    changed = context.clone()
    changed[0] += 1
    again = net(changed, nodes)
    assert torch.allclose(again[nodes.object == 1], all_[nodes.object == 1], atol=1e-5)
    assert (again[nodes.object == 0] - all_[nodes.object == 0]).abs().min(1).values.median() > 1e-3
    assert torch.allclose(all_.exp().sum(1), torch.ones(len(all_)), atol=1e-5)


def test_level_and_place_are_heard():
    net = DensityNet(DEPTH, 24, 2, 1)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, 0, 0.3, generator=gen(4))
    context, zero = torch.randn(1, 5, 24, generator=gen()), torch.zeros(2, dtype=torch.int64)
    by_place = net(context, Nodes(zero + 1, torch.tensor([[0, 0, 0], [1, 0, 0]]), zero))
    assert (by_place[0] - by_place[1]).abs().max() > 0.01
    with torch.no_grad():
        net.enter.weight.zero_()  # deaf to places
    by_level = net(context, Nodes(torch.tensor([0, 2]), torch.zeros(2, 3, dtype=torch.int64), zero))
    assert (by_level[0] - by_level[1]).abs().max() > 0.01


def test_the_density_learns_a_distribution():
    """By its cross-entropy alone: from even to within .2 of what can be had, on two sets of points that a token tells apart."""
    points = torch.stack([torch.randn(400, 3, generator=gen(k)) * 0.08 + torch.tensor([0.2 - 0.4 * k, 0.1, 0.0]) for k in (0, 1)])
    torch.manual_seed(0)
    net, context = DensityNet(2, 24, 2, 1), torch.randn(2, 1, 24, generator=gen(7))
    least = entropy(masses(points, 2)[1]) / 2
    optimizer = torch.optim.AdamW(net.parameters(), 0.01)

    def apart():
        return -log_q(lambda nodes: net(context, nodes), points, 2).mean() - least

    before = apart().item()
    for _ in range(120):
        optimizer.zero_grad()
        loss = apart()
        loss.backward()
        optimizer.step()
    assert before > 1 and -1e-4 < apart().item() < 0.2

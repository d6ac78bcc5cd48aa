"""Flow, DDIM and DDPM on data whose answer is known in closed form, and the points that a small network learns."""

import math

import pytest
import torch

from gsgen_lib.systems.few_steps import ABAR, METHODS, PointNet, draw, noised, principal, steps_for, train_points

MEAN, STD = 2.0, 0.5  # of Gaussian data, for which the best answer of a network is known


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def exact(method):
    """E[wanted | x_t] for data N(MEAN, STD^2): linear in x_t."""
    def ask(x, t):
        if method == "flow":
            a, b = 1 - t[:, None], t[:, None]
        else:
            a = ABAR[(t * 1000).long()][:, None].sqrt()
            b = (1 - a**2).sqrt()
        share = (x - a * MEAN) / (a**2 * STD**2 + b**2)  # of the deviation
        x0, eps = MEAN + a * STD**2 * share, b * share
        return eps - x0 if method == "flow" else eps
    return ask


@pytest.mark.parametrize("method", METHODS)
def test_many_steps_draw_what_the_data_are(method):
    found = draw(exact(method), method, torch.randn(20_000, 1, generator=gen()), 250, generator=gen(1))
    assert found.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert found.std().item() == pytest.approx(STD, rel=0.03)


def test_ancestral_steps_are_too_narrow_when_few_and_a_flow_is_nearer():
    """What the lesson claims, without any network."""
    noise = torch.randn(20_000, 1, generator=gen())
    off = {m: abs(draw(exact(m), m, noise, 12, generator=gen(1)).std().item() - STD) for m in METHODS}
    assert off["flow"] < off["ddim"] < off["ddpm"]


def test_each_step_asks_once_and_at_times_that_training_knows():
    for method in METHODS:
        asked = []
        draw(lambda x, t, asked=asked: asked.append(t) or torch.zeros_like(x), method, torch.zeros(2, 3), 5, generator=gen())
        assert len(asked) == 5 and all(t.shape == (2,) and bool(((t >= 0) & (t <= 1)).all()) for t in asked)
    steps = [int(t[0] * 1000) for t in asked]  # of ddpm
    assert steps == [999, 799, 599, 399, 199]
    for step, t in zip(steps, asked, strict=True):  # what a network hears at t is what it heard in training
        x0, eps = torch.randn(2, 3, generator=gen()), torch.randn(2, 3, generator=gen(1))
        a = math.prod(1 - (1e-4 + (0.02 - 1e-4) * k / 999) for k in range(step + 1))
        torch.testing.assert_close(noised(x0, t, eps, True)[0], a**0.5 * x0 + (1 - a) ** 0.5 * eps, atol=1e-5, rtol=1e-4)


def test_what_a_network_shall_say():
    x0, eps, t = torch.randn(4, 3, generator=gen()), torch.randn(4, 3, generator=gen(1)), torch.tensor([0.0, 0.3, 0.7, 1.0])
    x_t, wanted = noised(x0, t, eps, False)
    torch.testing.assert_close(x_t, x0 + t[:, None] * wanted)  # a straight road
    torch.testing.assert_close(x_t[[0, 3]], torch.stack([x0[0], eps[3]]))
    assert torch.equal(noised(x0, t, eps, True)[1], eps)


@pytest.mark.parametrize("ddpm", [False, True])
def test_a_small_network_learns_two_heaps(ddpm):
    heaps = torch.tensor([[1.5, 0.0], [-1.5, 0.5]])
    points = heaps.repeat(200, 1) + 0.2 * torch.randn(400, 2, generator=gen())
    method = "ddim" if ddpm else "flow"

    def near(steps, batch):
        net = train_points(points, ddpm, steps, batch)
        return torch.cdist(draw(net, method, torch.randn(400, 2, generator=gen()), 40), heaps).min(1)

    found = near(1000, 256)
    assert (found.values < 0.8).float().mean() > 0.8
    assert 0.3 < (found.indices == 0).float().mean() < 0.7
    assert (near(1, 1).values < 0.8).float().mean() < 0.5


def test_training_is_that_of_its_seed():
    points = torch.randn(50, 3, generator=gen())
    nets = [train_points(points, False, 3, 8, seed) for seed in (0, 0, 1)]
    weights = [torch.cat([p.flatten() for p in net.parameters()]) for net in nets]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_principal_directions_are_eigenvectors_of_the_covariance():
    x = torch.randn(200, 6, generator=gen()) @ torch.diag(torch.tensor([5.0, 3.0, 1.0, 0.5, 0.2, 0.1])) + 7
    lines = principal(x, 2)
    values, vectors = torch.linalg.eigh(torch.cov(x.T))
    torch.testing.assert_close((lines.T @ vectors[:, [-1, -2]]).abs(), torch.eye(2), atol=1e-3, rtol=0)


def test_steps_for_a_distance():
    assert steps_for({8: 0.3, 4: 0.2, 60: 0.1}, 0.2) == 4 and steps_for({4: 0.3}, 0.2) == math.inf
    for wanted in (0.5, 0.3, 0.2):  # on a curve that is a power of the steps it is that power, whatever was measured
        assert steps_for({n: 2 / n**0.7 for n in (3, 8, 12, 60)}, wanted) == pytest.approx((2 / wanted) ** (1 / 0.7))


@pytest.mark.parametrize("call, said", [
    (lambda: draw(PointNet(2), "euler", torch.zeros(1, 2), 3), "method: got 'euler', wanted one of flow"),
    (lambda: train_points(torch.zeros(3), False), "points: got shape"),
    (lambda: train_points(torch.full((3, 2), float("nan")), False), "points: got shape"),
    (lambda: train_points(torch.zeros(3, 2), False, steps=0), "steps, batch: got 0"),
    (lambda: noised(torch.zeros(1, 2), torch.tensor([1.5]), torch.zeros(1, 2), False), "t: got"),
])
def test_bad_input_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_the_rate_falls_while_points_are_learned(monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def remember(self, *words, **more):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *words, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", remember)
    train_points(torch.randn(20, 2, generator=gen()), False, 10, 4)
    assert rates == pytest.approx([1e-3 * (1 + math.cos(math.pi * k / 10)) for k in range(10)])

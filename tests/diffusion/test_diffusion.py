"""Noising, the four names of one prediction, flows, guidance, EMA: identities and edges."""

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, norm
from torch import nn
from torch.testing import assert_close

from gsgen_lib import diffusion as D

KINDS = ("eps", "x0", "v", "score")
PAIRS = list(permutations(KINDS, 2))
abars = st.floats(1e-6, 1 - 1e-6)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def pair(shape=(3, 4), seed=0, dtype=torch.float64):
    """Random x0 and eps."""
    return torch.randn(2, *shape, generator=gen(seed), dtype=dtype).unbind()


def named(x0, eps, abar):
    """x_t and the true value of each kind, from the definitions."""
    signal, noise = abar**0.5, (1 - abar) ** 0.5
    return signal * x0 + noise * eps, {"eps": eps, "x0": x0, "v": signal * eps - noise * x0, "score": -eps / noise}


# ------------------------------------------------------------------------------------------- noising

def test_velocity_is_the_derivative_along_the_rotation():
    """x_t = cos(angle) x0 + sin(angle) eps with cos(angle)^2 = abar; v = d x_t / d angle, by autograd."""
    x0, eps = torch.randn(2, 5, 3, generator=gen(), dtype=torch.float64)
    angle = torch.rand(5, generator=gen(1), dtype=torch.float64) * torch.pi / 2

    def road(a):
        return a.cos()[:, None] * x0 + a.sin()[:, None] * eps

    _, v = torch.func.jvp(road, (angle,), (torch.ones_like(angle),))
    assert_close(D.velocity(x0, eps, angle.cos() ** 2), v)
    assert (D.velocity(eps, x0, angle.cos() ** 2) - v).abs().max() > 0.1


def test_noising_keeps_the_variance_and_is_seen_by_each_item():
    x0, eps = pair((4, 2, 3))
    abar = torch.tensor([0.0, 0.3, 0.9, 1.0], dtype=torch.float64)
    x_t = D.q_sample(x0, eps, abar)
    assert_close(x_t, torch.stack([a**0.5 * x + (1 - a) ** 0.5 * e for x, e, a in zip(x0, eps, abar, strict=True)]))
    assert torch.equal(x_t[0], eps[0]) and torch.equal(x_t[3], x0[3])
    x0, eps = pair((200_000,))
    assert D.q_sample(x0, eps, 0.3).var().item() == pytest.approx(1, abs=0.02)
    assert (D.q_sample(x0, eps, 0.3) * x0).mean().item() == pytest.approx(0.3**0.5, abs=0.02)  # and its sign
    assert (D.q_sample(x0, eps, 0.3) * eps).mean().item() == pytest.approx(0.7**0.5, abs=0.02)


# ------------------------------------------------------------------------------------------- convert

@pytest.mark.parametrize("source,target", [*PAIRS, *((k, k) for k in KINDS)])
@settings(max_examples=25, deadline=None)
@given(abar=abars, seed=st.integers(0, 1000))
def test_convert_gives_the_definition_and_comes_back(source, target, abar, seed):
    x_t, true = named(*pair(seed=seed), abar)
    got = D.convert(true[source], x_t, abar, source, target)
    scale = 1e-14 / min(abar, 1 - abar)  # two roots may cancel
    assert_close(got, true[target], rtol=0, atol=10 * scale * true[target].abs().max().item() + 10 * scale)
    back = D.convert(got, x_t, abar, target, source)
    assert_close(back, true[source], rtol=0, atol=10 * scale * true[source].abs().max().item() + 10 * scale)


@pytest.mark.parametrize("source,target", PAIRS)
@settings(max_examples=10, deadline=None)
@given(abar=st.lists(abars, min_size=3, max_size=3))
def test_convert_takes_one_abar_for_each_item(source, target, abar):
    abar = torch.tensor(abar, dtype=torch.float64)
    x_t, true = named(*pair((3, 2, 2)), abar.reshape(-1, 1, 1))
    got = D.convert(true[source], x_t, abar, source, target)
    each = [D.convert(true[source][i:i + 1], x_t[i:i + 1], abar[i], source, target) for i in range(3)]
    assert torch.equal(got, torch.cat(each))


# at abar = 0 x_t is eps, at 1 it is x0; what x_t and the prediction do not tell is refused
UNDETERMINED = {0.0: {("eps", "x0"), ("eps", "v"), ("score", "x0"), ("score", "v")},
                1.0: {("x0", "eps"), ("x0", "v"), ("x0", "score"), ("v", "score"), ("eps", "score")}}


@pytest.mark.parametrize("abar", [0.0, 1.0])
@pytest.mark.parametrize("source,target", PAIRS)
def test_convert_at_the_ends(source, target, abar):
    x0, eps = pair()
    x_t = D.q_sample(x0, eps, abar)
    true = {"eps": eps, "x0": x0, "v": eps if abar else -x0, "score": torch.full_like(eps, 9.0) if abar else -eps}
    if (source, target) in UNDETERMINED[abar]:
        for a in (abar, torch.tensor([0.5, abar, 0.5])):
            with pytest.raises(ValueError, match="not determined"):
                D.convert(true[source], x_t, a, source, target)
    elif abar and source == "score":  # a finite score and no noise: eps is 0 on average
        got = D.convert(true["score"], x_t, abar, source, target)
        assert torch.equal(got, x0 if target == "x0" else torch.zeros_like(eps))
    else:
        assert_close(D.convert(true[source], x_t, abar, source, target), true[target])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_precision_of_the_data_is_kept_and_half_precision_keeps_its_noise(dtype):
    x0, eps = (x.to(dtype) for x in pair((4, 50)))
    abar = torch.tensor([0.9999, 0.6, 0.5, 1e-4])  # 0.9999 rounds to 1 in half precision
    x_t = D.q_sample(x0, eps, abar)
    assert x_t.dtype == dtype
    exact, true = named(x0.double(), eps.double(), abar.double()[:, None])
    coarse = 4 * torch.finfo(dtype).eps
    assert_close(x_t.double(), exact, rtol=coarse, atol=coarse + 1e-7)
    assert (D.q_sample(0 * x0, eps, abar)[0].abs() > 0).all()
    for kind in ("x0", "eps"):
        got = D.convert(true["v"].to(dtype), exact.to(dtype), abar, "v", kind)
        assert got.dtype == dtype
        assert_close(got.double(), true[kind], rtol=2 * coarse, atol=2 * coarse + 1e-6)
    step = D.ddpm_step(x_t[:1], x0[:1], 0.9998, 0.9999, eps[:1])
    assert step.dtype == dtype and bool(torch.isfinite(step).all())
    assert D.ddim_step(x_t, x0, eps, 0.5, 0.75, 0.5, eps).dtype == D.flow_sample(lambda x, t: x, x0, 2).dtype == dtype


# --------------------------------------------------------------------------------------- samplers

@settings(max_examples=40, deadline=None)
@given(levels=st.tuples(st.floats(1e-4, 0.999), st.floats(1e-4, 0.999)).map(sorted))
def test_one_step_has_the_posterior_that_bayes_gives(levels):
    """q(x_s | x_t, x0) from the joint Gaussian of x_s and x_t, which is how far DDPM may stray at every step."""
    a, b = levels
    if b - a < 1e-6:
        return
    x0, x_t = pair()
    gain = (a / b) ** 0.5 * (1 - b) / (1 - a)  # Cov(x_s, x_t) / Var(x_t)
    mean = b**0.5 * x0 + gain * (x_t - a**0.5 * x0)
    variance = (1 - b) - gain * (a / b) ** 0.5 * (1 - b)
    zero, one = torch.zeros_like(x0), torch.ones_like(x0)
    assert_close(D.ddpm_step(x_t, x0, a, b, zero), mean, rtol=1e-9, atol=1e-9)
    assert_close(D.ddpm_step(x_t, x0, a, b, one) - mean, variance**0.5 * one, rtol=1e-6, atol=1e-7)
    eps = D.convert(x0, x_t, a, "x0", "eps")
    assert_close(D.ddim_step(x_t, x0, eps, a, b, 1.0, zero), mean, rtol=1e-6, atol=1e-7)  # eta = 1 is DDPM
    assert_close(D.ddim_step(x_t, x0, eps, a, b, 1.0, one), D.ddpm_step(x_t, x0, a, b, one), rtol=1e-6, atol=1e-7)
    there = D.ddim_step(x_t, x0, eps, a, b)
    assert_close(D.ddim_step(there, x0, eps, b, a), x_t, rtol=1e-9, atol=1e-9)  # eta = 0 runs backwards


def test_full_noise_from_no_signal_survives_rounding():
    """At abar_t = 0 and eta = 1 nothing is left for eps: 1 - abar_s - sigma^2 is 0, or just below it."""
    x = torch.ones(999, 2)
    b = torch.linspace(0.001, 0.999, 999)
    stepped = D.ddim_step(x, 0 * x, x, torch.zeros(999), b, 1.0, 0 * x)
    assert stepped.abs().max() < 1e-3 and bool(torch.isfinite(stepped).all())


def test_samplers_ask_at_the_times_and_levels_they_say():
    """One picture, one noise: a denoiser that knows both sees exactly q_sample at each time, in both directions."""
    abar, (x0, eps), asked = torch.linspace(0.99, 0.05, 10).double(), pair(), []

    def at(t):
        return D.q_sample(x0, eps, abar[t])

    def knows(x, t):
        assert t.ndim == 0 and t.dtype == torch.int64
        asked.append(int(t))
        assert_close(x, x0 if inverting and len(asked) == 1 else at(t))
        return eps

    for spacing, want in (("trailing", [9, 7, 5, 3, 1]), ("leading", [8, 6, 4, 2, 0])):
        asked.clear()
        inverting = False
        assert_close(D.ddim_sample(knows, at(want[0]), abar, 5, spacing=spacing), x0)  # the last step goes to 1
        assert asked == want
        asked.clear()
        inverting = True
        assert_close(D.ddim_invert(knows, x0, abar, 5, spacing=spacing), at(want[0]))
        assert asked == [0, *want[:0:-1]]


def test_ancestral_sampling_asks_at_every_time_and_repeats():
    abar, x, asked = torch.linspace(0.99, 0.05, 10), torch.ones(2, 3), []

    def model(x, t):
        asked.append(int(t))
        return x

    same = [D.ddpm_sample(model, x, abar, generator=gen(1)) for _ in range(2)]
    assert asked == 2 * [*range(9, -1, -1)] and torch.equal(*same)
    asked.clear()
    D.ddpm_sample(model, x, abar, 2, spacing="leading")
    assert asked == [5, 0]
    assert torch.equal(D.ddpm_sample(lambda x, t: torch.full_like(x, 7.0), x, abar, 3, "x0"), 7 * x)  # it ends on x0
    assert x.equal(torch.ones(2, 3))  # nothing is written into the input


def test_noise_on_the_way_has_the_precision_of_the_data():
    abar, x = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64), torch.randn(2, 3, generator=gen()).double()
    z = [torch.randn(2, 3, dtype=torch.float64, generator=g) for g in [gen(4)] for _ in range(3)]
    by_hand, at = x, [0.2, 0.5, 0.9, 1.0]
    for a, b, noise in zip(at, at[1:], z):
        x0 = D.convert(0.3 * by_hand, by_hand, a, "eps", "x0")
        by_hand = D.ddim_step(by_hand, x0, 0.3 * by_hand, a, b, 0.7, noise)
    assert_close(D.ddim_sample(lambda x, t: 0.3 * x, x, abar, 3, eta=0.7, generator=gen(4)), by_hand, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------- flows

def test_road_and_loss_of_flow():
    x0, eps = pair((5, 2, 2))
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    x_t = D.interpolate(x0, eps, t)
    assert torch.equal(x_t[0], x0[0]) and torch.equal(x_t[-1], eps[-1])
    slope = 2 * (D.interpolate(x0, eps, 0.75) - D.interpolate(x0, eps, 0.25))  # dx/dt of a straight road
    assert D.flow_loss(lambda x, at: slope, x0, t, eps).max() < 1e-25
    loss = D.flow_loss(lambda x, at: slope + at.reshape(-1, 1, 1), x0, t, eps)  # off by t: (B,), mean over each item
    assert_close(loss, t**2)
    assert D.flow_loss(lambda x, at: -slope, x0, t, eps).min() > 0.1  # negative control
    assert_close(D.flow_loss(lambda x, at: x, x0, t, eps), (x_t - slope).square().mean((1, 2)))  # asked at x_t


def test_flow_follows_the_velocity_to_the_data():
    data, noise = pair()
    ask = []

    def velocity(x, t):
        ask.append(t.item())
        return noise - data

    for method, calls in (("euler", 4), ("heun", 7)):
        ask.clear()
        assert_close(D.flow_sample(velocity, noise, 4, method=method), data)
        assert len(ask) == calls and min(ask) > 0
    ask.clear()
    D.flow_sample(velocity, noise, 4, shift=3.0)
    assert ask == pytest.approx([1, 0.9, 0.75, 0.5])


def test_training_times_are_logit_normal():
    for mean, std in ((0.0, 1.0), (-0.5, 1.5)):
        t = D.logit_normal_times(20_000, mean, std, gen()).double()
        assert t.shape == (20_000,) and 0 < t.min() and t.max() < 1
        assert kstest(torch.logit(t).numpy(), norm(mean, std).cdf).pvalue > 1e-4
        assert kstest(torch.logit(t).numpy(), norm(mean + 0.1, std).cdf).pvalue < 1e-4  # negative control
    assert torch.equal(D.logit_normal_times(5, generator=gen(3)), D.logit_normal_times(5, generator=gen(3)))


@settings(max_examples=50, deadline=None)
@given(t=st.floats(0, 1), a=st.floats(0.1, 10), b=st.floats(0.1, 10))
def test_shifts_multiply_the_odds_of_noise(t, a, b):
    t = torch.tensor(t, dtype=torch.float64)
    shifted = D.shift_times(t, a)
    assert_close(shifted * (1 - t), a * t * (1 - shifted), rtol=1e-9, atol=1e-12)  # t' / (1 - t') = a t / (1 - t)
    assert_close(D.shift_times(shifted, b), D.shift_times(t, a * b), rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------------------------- guidance

def test_guidance_form():
    u, c = pair((3, 20))
    for scale, want in ((0, u), (1, c), (2, 2 * c - u), (7.5, 7.5 * c - 6.5 * u)):
        assert_close(D.guide(u, c, scale), want)
    full, half = D.guide(u, c, 5.0, 1.0), D.guide(u, c, 5.0, 0.5)
    assert_close(full.std(1), c.std(1))
    assert_close(half, (full + D.guide(u, c, 5.0)) / 2)
    assert_close(full / full.norm(), D.guide(u, c, 5.0) * (full / D.guide(u, c, 5.0)).mean(1, True) / full.norm())


def test_guided_denoiser_calls_in_one_batch_within_the_interval_only():
    calls = []

    def model(x, t, c):
        calls.append((x.shape, t.shape, c if isinstance(c, str) else tuple(c.shape)))
        if isinstance(c, str):
            return x * 0 + (5.0 if c == "a toy" else 1.0)
        return x + c[:, None] + (t[:, None] if t.ndim else t)

    x, c, u = torch.zeros(2, 3), torch.tensor([10.0, 20.0]), torch.tensor([1.0, 2.0])
    denoise = D.guided(model, c, u, 3.0, interval=(200, 600))
    both = u + 3 * (c - u)
    for t, want, size in ((100, c + 100, 2), (200, both + 200, 4), (600, both + 600, 4), (601, c + 601, 2)):
        for time in (torch.tensor(t), torch.full((2,), t)):
            calls.clear()
            assert_close(denoise(x, time), want[:, None].expand(2, 3))
            assert len(calls) == 1 and calls[0][0] == (size, 3) and calls[0][1] in ((), (size,))
    assert_close(D.guided(model, "a toy", "", 3.0)(x, 5), torch.full((2, 3), 13.0))  # 1 + 3 * 4, in two calls
    calls.clear()
    assert_close(D.guided(model, c, u, 1.0)(x, 0), c[:, None].expand(2, 3))
    assert len(calls) == 1 and calls[0][0] == (2, 3)  # the unconditional half is not computed for nothing
    v = torch.randn(2, 3, generator=gen())
    rescaled = D.guided(lambda x, t, c: c[:, None] * v.repeat(len(c) // 2, 1), c, u, 3.0, rescale=0.7)(x, 0)
    assert_close(rescaled, D.guide(u[:, None] * v, c[:, None] * v, 3.0, 0.7))
    in_two_calls = D.guided(lambda x, t, c: (3.0 if c == "a toy" else 1.0) * v, "a toy", "", 3.0, rescale=0.7)(x, 0)
    assert_close(in_two_calls, D.guide(v, 3 * v, 3.0, 0.7))
    v = (4 * v).round() / 4  # no rounding below
    still = D.guide(1.5 * v, v, 3.0, 1.0)  # u + 3 (c - u) = 0 has no standard deviation to scale
    assert_close(still, torch.zeros(2, 3))


# --------------------------------------------------------------------------------------------- EMA

def small_net():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
    with torch.no_grad():
        net[0].weight.fill_(1.0)
    return net


def test_ema_averages_weights_and_copies_buffers():
    net = small_net()
    ema, want = D.EMA(net, decay=0.25), 1.0
    for n in range(1, 8):
        with torch.no_grad():
            net[0].weight.fill_(n)
            net[1].running_mean.fill_(n)
            net[1].num_batches_tracked.fill_(n)
        ema.update(net)
        decay = min(0.25, (1 + n) / (10 + n))
        want = decay * want + (1 - decay) * n
        assert ema.shadow["0.weight"].mean().item() == pytest.approx(want, rel=1e-6)
        assert ema.shadow["1.running_mean"].tolist() == [n, n] and ema.shadow["1.num_batches_tracked"] == n
    with pytest.raises(KeyError), ema.applied(net) as held:  # the own weights come back even after an error
        assert held is net and net[0].weight.mean().item() == pytest.approx(want)
        raise KeyError
    assert net[0].weight.mean() == 7
    ema.update(net)
    assert ema.shadow["0.weight"].requires_grad is False
    ema.copy_to(net)
    assert net[0].weight.mean().item() == pytest.approx(0.75 * 7 + 0.25 * want)
    before = ema.shadow["0.weight"].clone()
    with torch.no_grad():
        net[0].weight.fill_(100.0)
    assert torch.equal(before, ema.shadow["0.weight"])  # a copy, not the module's own memory


def test_ema_goes_on_where_it_was_saved():
    net = small_net()
    one = D.EMA(net, 0.9)
    one.update(net)
    two = D.EMA(net, 0.5)
    two.load_state_dict(one.state_dict())
    with torch.no_grad():
        net[0].weight.fill_(3.0)
    one.update(net)
    two.update(net)
    assert two.updates == 2 and two.decay == 0.9 and torch.equal(one.shadow["0.weight"], two.shadow["0.weight"])
    with pytest.raises(KeyError, match="state"):
        two.load_state_dict(D.EMA(nn.Linear(2, 2)).state_dict())
    damaged = {**one.state_dict(), "shadow": {k: v + 1 for k, v in one.shadow.items()}}
    damaged["shadow"]["1.bias"] = torch.zeros(1)  # would broadcast
    with pytest.raises(ValueError, match="1.bias"):
        two.load_state_dict(damaged)
    assert torch.equal(one.shadow["0.weight"], two.shadow["0.weight"])  # refused whole, not half loaded


def test_ema_of_half_precision_weights_does_not_stand_still():
    net = nn.Linear(4, 4).to(torch.bfloat16)
    with torch.no_grad():
        net.weight.fill_(1.0)
    ema = D.EMA(net, 0.999)
    ema.updates = 100_000  # past the ramp
    with torch.no_grad():
        net.weight.fill_(1.5)
    for _ in range(1000):
        ema.update(net)
    assert ema.shadow["weight"].mean().item() == pytest.approx(1.5 - 0.5 * 0.999**1000, abs=1e-3)
    ema.copy_to(net)
    assert net.weight.dtype == torch.bfloat16


def test_ema_of_shared_weights_is_one_average():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    net[1].weight = net[0].weight
    with torch.no_grad():
        net[0].weight.fill_(0.0)
    ema = D.EMA(net, 0.1)
    with torch.no_grad():
        net[0].weight.fill_(1.0)
    ema.update(net)
    assert torch.equal(ema.shadow["0.weight"], ema.shadow["1.weight"])
    ema.copy_to(net)
    assert_close(net[1].weight.detach(), torch.full((2, 2), 0.9))

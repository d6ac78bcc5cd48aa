"""Distances between sets against loops, closed forms, scipy and torchmetrics."""

import itertools
import math

import numpy as np
import pytest
import scipy
import torch
from torchmetrics.image.kid import KernelInceptionDistance

from gsgen_lib import distributions as d
from gsgen_lib.distributions import energy_distance, fid, kid, precision_recall, sliced_wasserstein


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def loops_mmd(x, y):
    """The unbiased estimate, pair by pair, in plain Python floats."""
    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    x, y = x.tolist(), y.tolist()
    within = [sum(kernel(a, b) for a, b in itertools.permutations(s, 2)) / (len(s) * (len(s) - 1)) for s in (x, y)]
    return sum(within) - 2 * sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))


# --------------------------------------------------------------------------------------------- KID


def test_kid_equals_loops_over_pairs_and_leaving_one_out():
    x, y = normal(7, 5), 0.7 * normal(9, 5, seed=1) + 0.3
    result = kid(x, y, features="points")
    assert result.value == pytest.approx(loops_mmd(x, y), rel=1e-12)
    variance = 0
    for s, other, first in ((x, y, True), (y, x, False)):
        kept = [torch.cat([s[:i], s[i + 1 :]]) for i in range(len(s))]
        left_out = np.array([loops_mmd(r, other) if first else loops_mmd(other, r) for r in kept])
        variance += (len(s) - 1) / len(s) * ((left_out - left_out.mean()) ** 2).sum()
    assert result.std == pytest.approx(math.sqrt(variance), rel=1e-10)


def test_kid_equals_torchmetrics_on_the_whole_set():
    x, y = normal(60, 12), normal(60, 12, seed=1) * 1.3 + 0.2
    peer = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=1, subset_size=60)
    peer.update(x, real=True)
    peer.update(y, real=False)
    expected = peer.compute()[0].item()
    assert expected > 0.1
    assert kid(x, y, features="points").value == pytest.approx(expected, rel=1e-6)  # the peer answers in float32
    one = kid(x, y, features="points", subsets=1, generator=torch.Generator().manual_seed(0))
    assert one.value == pytest.approx(expected, rel=1e-6) and math.isnan(one.std)


def test_kid_is_unbiased_and_its_error_is_that_of_repeated_draws():
    # In one dimension k = sum_c binomial(3, c) x^c y^c, so the true value is a sum over moments:
    # 3 (m1 - m1')^2 + 3 (m2 - m2')^2 + (m3 - m3')^2, for N(0, 1) against N(s, 1):
    s = 0.4
    truth = 3 * s**2 + 3 * s**4 + (s**3 + 3 * s) ** 2
    draws = [kid(normal(30, 1, seed=2 * i), normal(20, 1, seed=2 * i + 1) + s, features="points") for i in range(800)]
    values = np.array([r.value for r in draws])
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean() - truth) < 3.5 * error
    # negative control: with the pairs i = i left in, the bias is many errors
    biased = [((x @ x.T + 1) ** 3).mean() + ((y @ y.T + 1) ** 3).mean() - 2 * ((x @ y.T + 1) ** 3).mean()
              for x, y in ((normal(30, 1, seed=2 * i), normal(20, 1, seed=2 * i + 1) + s) for i in range(800))]
    assert np.mean(biased) - truth > 6 * error
    claimed = math.sqrt(np.mean([r.std**2 for r in draws]))
    assert claimed == pytest.approx(values.std(), rel=0.25)


def test_kid_subsets_are_reproducible_and_spread():
    x, y = normal(80, 6), normal(50, 6, seed=1)

    def run(seed):
        return kid(x, y, features="points", subsets=20, subset_size=30, generator=torch.Generator().manual_seed(seed))

    assert run(0) == run(0) != run(1)
    assert run(0).std > 0 and run(0).name == "KID, points, 80 against 50, 20 subsets of 30"
    many = kid(x, y, features="points", subsets=400, subset_size=30, generator=torch.Generator().manual_seed(0))
    assert abs(many.value - kid(x, y, features="points").value) < 4 * many.std / math.sqrt(400)


def test_work_in_pieces_changes_nothing(monkeypatch):
    x, y = normal(40, 3), normal(29, 3, seed=1) + 0.2
    calls = [lambda: kid(x, y, features="f"), lambda: energy_distance(x, y),
             lambda: precision_recall(x, y, features="f")]
    whole = [call() for call in calls]
    monkeypatch.setattr(d, "CHUNK", 7)
    pieces = [call() for call in calls]
    assert pieces[0].value == pytest.approx(whole[0].value, rel=1e-12)
    assert pieces[0].std == pytest.approx(whole[0].std, rel=1e-12)
    assert pieces[1].value == pytest.approx(whole[1].value, rel=1e-12) and pieces[2] == whole[2]


def test_float64_inside_and_no_gradient():
    x = (normal(50, 400) + 3).float()
    y = (normal(50, 400, seed=1) + 3).float().requires_grad_()
    assert kid(x, y, features="f") == kid(x.double(), y.double(), features="f")
    single = x @ x.T  # negative control: float32 would show
    assert not torch.equal(single.double(), x.double() @ x.double().T)
    for other in (fid(x, y, features="f"), energy_distance(x, y), sliced_wasserstein(x, y, 9, generator=None)):
        assert isinstance(other.value, float)


# --------------------------------------------------------------------------------------------- FID


@pytest.mark.parametrize(("n", "m"), [(200, 150), (6, 9), (9, 200)])
def test_fid_equals_the_formula_with_a_matrix_root(n, m):
    x, y = normal(n, 8) @ normal(8, 8, seed=2), normal(m, 8, seed=1) + 0.5
    sx, sy = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    eigenvalues = scipy.linalg.eigvals(sx @ sy).real.clip(0)
    means = ((x.mean(0) - y.mean(0)) ** 2).sum().item()
    expected = means + np.trace(sx) + np.trace(sy) - 2 * np.sqrt(eigenvalues).sum()
    # roots of eigenvalues that should be 0 cost the oracle half its digits where a covariance is singular
    assert fid(x, y, features="f").value == pytest.approx(expected, rel=1e-9 if min(n, m) > 8 else 1e-5)
    assert fid(x, x, features="f").value == pytest.approx(0, abs=1e-9)


def test_fid_of_stretched_gaussians_is_the_closed_form_and_its_bias_shows():
    scales = torch.tensor([3.0, 0.5])
    value = fid(normal(40_000, 2), normal(40_000, 2, seed=1) * scales, features="f").value
    assert value == pytest.approx(((scales - 1) ** 2).sum().item(), rel=0.03)
    small = fid(normal(30, 64), normal(30, 64, seed=1), features="f").value  # equal distributions, few samples
    assert small > 10 and abs(kid(normal(30, 64), normal(30, 64, seed=1), features="f").value) < 0.2


# ------------------------------------------------------------------------------------------- points


def test_sliced_wasserstein_in_one_dimension_is_transport():
    rng = np.random.default_rng(0)
    for n, m in ((50, 50), (30, 41), (1, 7), (12, 18)):
        x, y = rng.normal(size=n), rng.normal(size=m) * 2 + 1
        if n == 30:
            x, y = x.round(1), y.round(1)  # ties
        a, b = torch.tensor(x)[:, None], torch.tensor(y)[:, None]
        ours = sliced_wasserstein(a, b, 3, generator=torch.Generator().manual_seed(0), p=1)
        assert ours.value == pytest.approx(scipy.stats.wasserstein_distance(x, y), rel=1e-12)
        # p = 2: repeat both to a common size, sort, pair
        size = math.lcm(n, m)
        sorted_pairs = np.sort(np.repeat(x, size // n)) - np.sort(np.repeat(y, size // m))
        ours = sliced_wasserstein(a, b, 3, generator=None, p=2)
        assert ours.value == pytest.approx(math.sqrt((sorted_pairs**2).mean()), rel=1e-12)
        assert ours.std == pytest.approx(0, abs=1e-7)  # every line is the same line


@pytest.mark.parametrize("p", [1, 2])
def test_sliced_wasserstein_of_a_shift(p):
    a = normal(64, 3)
    shift = torch.tensor([1.0, -2.0, 2.0])  # length 3; u.shift is uniform on [-3, 3] in three dimensions
    expected = {1: 1.5, 2: math.sqrt(3)}[p]
    results = [sliced_wasserstein(a, a[torch.randperm(64, generator=torch.Generator().manual_seed(i))] + shift, 256,
                                  generator=torch.Generator().manual_seed(i), p=p) for i in range(60)]
    values = np.array([r.value for r in results])
    assert abs(values.mean() - expected) < 4 * values.std() / math.sqrt(60)
    assert np.mean([r.std for r in results]) == pytest.approx(values.std(), rel=0.3)
    assert sliced_wasserstein(a, a.flip(0), generator=None, p=p).value == 0
    assert results[0].name == f"SW{p}, points, 64 against 64, 256 lines"


def test_sliced_wasserstein_along_the_given_lines():
    """Two dimensions, unequal sizes, against scipy along each of the same directions."""
    a, b = normal(20, 2), normal(33, 2, seed=1) * torch.tensor([3.0, 1.0])
    lines = torch.randn(2, 100, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    lines = lines / lines.norm(dim=0)
    expected = np.mean([scipy.stats.wasserstein_distance((a @ u).numpy(), (b @ u).numpy()) for u in lines.T])
    ours = sliced_wasserstein(a, b, 100, generator=torch.Generator().manual_seed(5), p=1)
    assert ours.value == pytest.approx(expected, rel=1e-12)


def test_energy_distance_against_scipy_and_loops():
    x, y = normal(25, 1), normal(40, 1, seed=1) + 1
    expected = scipy.stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert energy_distance(x, y).value == pytest.approx(expected, rel=1e-10)
    x, y = normal(6, 3), normal(5, 3, seed=1) + 1

    def mean(s, t):
        return np.mean([math.dist(p, q) for p in s.tolist() for q in t.tolist()])

    assert energy_distance(x, y).value ** 2 == pytest.approx(2 * mean(x, y) - mean(x, x) - mean(y, y), rel=1e-12)
    assert energy_distance(x, x.flip(0)).value == pytest.approx(0, abs=1e-7)


def test_precision_and_recall_against_loops_and_by_meaning():
    g = torch.Generator().manual_seed(0)  # two overlapping squares
    x, y, k = torch.rand(25, 2, generator=g), torch.rand(30, 2, generator=g) + torch.tensor([0.5, 0.1]), 3

    def covered(samples, balls):
        radii = [sorted(math.dist(p, q) for q in balls)[k] for p in balls]
        return np.mean([any(math.dist(s, p) <= r for p, r in zip(balls, radii, strict=True)) for s in samples])

    ours = precision_recall(x, y, k, features="f")
    assert (ours.precision, ours.recall) == (covered(x.tolist(), y.tolist()), covered(y.tolist(), x.tolist()))
    assert all(0.2 < share < 0.9 for share in (ours.precision, ours.recall))  # neither end of the scale
    assert precision_recall(x, x, k, features="f").precision == 1

    two_modes = torch.cat([normal(150, 2), normal(150, 2, seed=1) + 30])
    one_mode, far = normal(150, 2, seed=2), normal(150, 2, seed=3) + 300
    missing = precision_recall(one_mode, two_modes, features="f")
    assert missing.precision > 0.9 and 0.35 < missing.recall <= 0.5
    implausible = precision_recall(torch.cat([two_modes + 0.01, far]), two_modes, features="f")
    assert implausible.recall > 0.95 and implausible.precision == pytest.approx(2 / 3, abs=0.01)


# ---------------------------------------------------------------------------------- names and errors


def test_results_carry_the_name_of_their_features():
    x = normal(10, 2)
    for result in (kid(x, x, features="net A"), fid(x, x, features="net A"), precision_recall(x, x, features="net A"),
                   energy_distance(x, x, features="net A"),
                   sliced_wasserstein(x, x, features="net A", generator=None)):
        assert "net A, 10 against 10" in result.name and str(result).startswith(result.name + ": ")
    for score in (kid, fid, precision_recall):
        with pytest.raises(TypeError, match="features"):
            score(x, x)  # nobody may forget to say
        with pytest.raises(TypeError, match="features: got ''"):
            score(x, x, features="")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: kid(x, x.numpy(), features="f"), TypeError, "features_b: got ndarray"),
        (lambda x: kid(x.long(), x, features="f"), TypeError, "features_a: got torch.int64"),
        (lambda x: kid(x[0], x, features="f"), ValueError, r"features_a: got shape \(3,\), wanted \(N, D\)"),
        (lambda x: kid(x, x[:2], features="f"), ValueError, r"features_b: got shape \(2, 3\).*N >= 3"),
        (lambda x: kid(x, x[:, :2], features="f"), ValueError, "features_b: got D = 2"),
        (lambda x: kid(x, x / 0, features="f"), ValueError, "features_b: holds non-finite"),
        (lambda x: kid(x, x, features="f", subsets=0), ValueError, "subsets: got 0"),
        (lambda x: kid(x, x, features="f", subsets=2, subset_size=11), ValueError, "subset_size: got 11.*2 to 10"),
        (lambda x: kid(x, x, features="f", subset_size=5), ValueError, "subset_size: got 5 without subsets"),
        (lambda x: kid(x, x, features="f", subsets=2, generator=3), TypeError, "generator: got 3"),
        (lambda x: fid(x[:1], x, features="f"), ValueError, "features_a: got shape"),
        (lambda x: sliced_wasserstein(x, x, 0, generator=None), ValueError, "projections: got 0"),
        (lambda x: sliced_wasserstein(x, x, p=3, generator=None), ValueError, "p: got 3"),
        (lambda x: sliced_wasserstein(x, x[:0], generator=None), ValueError, "b: got shape"),
        (lambda x: sliced_wasserstein(x, x, generator=np.random.default_rng(0)), TypeError, "generator"),
        (lambda x: energy_distance(x, x * float("nan")), ValueError, "b: holds non-finite"),
        (lambda x: precision_recall(x, x[:3], features="f"), ValueError, r"real: got shape \(3, 3\).*N >= 4"),
        (lambda x: precision_recall(x, x, 0, features="f"), ValueError, "k: got 0"),
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call(normal(10, 3))

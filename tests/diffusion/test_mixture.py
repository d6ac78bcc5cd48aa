"""The mixture's answers are exact, and every sampler that is given them draws from the mixture.

Independent oracles: autograd, scipy's densities and ODE solver, Monte-Carlo posteriors, closed forms of Gaussians.
"""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.stats import chisquare, multivariate_normal
from torch.testing import assert_close

from gsgen_lib import diffusion as D

MEANS = torch.tensor([[-3.0, 0.0], [0.0, 2.5], [2.0, -2.0], [3.5, 2.0]], dtype=torch.float64)
MIX = D.GaussianMixture(MEANS, torch.tensor([0.3, 0.45, 0.25, 0.4], dtype=torch.float64),
                        torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64))
LABELS = torch.tensor([0, 1, 1, 0])
LEVELS = [(0.999, 0.04), (0.8, 0.6), (0.3, 0.95), (0.25, 0.75), (0.0, 1.0)]  # (alpha, sigma) of diffusion and of flows
T = 2048
SMOOTH = torch.cos(torch.pi / 2 * 0.95 * torch.arange(1, T + 1).double() / T) ** 2  # abar of T steps, ends at 0.006
LINEAR = D.alphas_cumprod_of(D.linear_betas()).double()


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def points(n=40, seed=0, scale=2.0):
    return scale * torch.randn(n, 2, generator=gen(seed), dtype=torch.float64)


# --------------------------------------------------------------------------------- exact answers

@pytest.mark.parametrize("alpha,sigma", [(1.0, 0.0), *LEVELS])
def test_density_equals_scipy(alpha, sigma):
    x = points()
    want = sum(w * multivariate_normal(alpha * m, (alpha * s) ** 2 + sigma**2).pdf(x.numpy())
               for m, s, w in zip(MIX.means.numpy(), MIX.stds.tolist(), MIX.weights.tolist(), strict=True))
    assert_close(MIX.log_prob(x, alpha, sigma).exp(), torch.from_numpy(want), rtol=1e-9, atol=1e-280)


@pytest.mark.parametrize("alpha,sigma", LEVELS)
def test_predictions_equal_autograd_of_the_density(alpha, sigma):
    x = points().requires_grad_()
    score, = torch.autograd.grad(MIX.log_prob(x, alpha, sigma).sum(), x)
    x = x.detach()
    assert_close(MIX.score(x, alpha, sigma), score, rtol=1e-9, atol=1e-10)
    assert_close(MIX.eps(x, alpha, sigma), -sigma * score, rtol=1e-9, atol=1e-10)
    assert_close(alpha * MIX.x0(x, alpha, sigma), x + sigma**2 * score, rtol=1e-8, atol=1e-9)  # Tweedie
    if alpha + sigma == 1:
        assert_close(MIX.velocity(x, sigma), MIX.eps(x, alpha, sigma) - MIX.x0(x, alpha, sigma))
        assert_close(MIX.velocity(x, sigma), (x - MIX.x0(x, alpha, sigma)) / sigma, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("alpha,sigma", [(0.8, 0.6), (0.25, 0.75)])
def test_predictions_are_posterior_means(alpha, sigma):
    """Draw data, weigh them by how well they explain x_t: no formula of the posterior is used."""
    data = MIX.sample(400_000, gen()).numpy()
    for x in (alpha * MIX.sample(6, gen(1)) + sigma * points(6, 2, 1.0)).numpy():
        weight = np.exp(-((x - alpha * data) ** 2).sum(1) / (2 * sigma**2))
        weight /= weight.sum()
        for kind, value in (("x0", data), ("eps", (x - alpha * data) / sigma)):
            mean = weight @ value
            error = np.sqrt(weight**2 @ (value - mean) ** 2)  # standard error of the weighted mean
            got = getattr(MIX, kind)(torch.from_numpy(x)[None], alpha, sigma)[0].numpy()
            assert (np.abs(got - mean) < 5 * error + 1e-6).all() and (error < 0.05).all(), (kind, got, mean, error)


def test_a_level_for_each_item_and_every_kind_of_denoiser():
    x, t = points(3), torch.tensor([0, 700, 999])
    for kind in ("eps", "x0", "v", "score"):
        denoise = MIX.denoiser(LINEAR, kind)
        assert_close(denoise(x, t), torch.cat([denoise(x[i:i + 1], t[i]) for i in range(3)]), rtol=1e-12, atol=0)
        want = D.convert(MIX.denoiser(LINEAR)(x, t), x, LINEAR[t], "eps", kind)
        assert_close(denoise(x, t), want, rtol=1e-8, atol=1e-8)
    assert_close(MIX.velocity(x, torch.tensor([0.2, 0.5, 1.0]))[1:2], MIX.velocity(x[1:2], 0.5))
    end = MIX.denoiser(torch.tensor([0.5, 0.0]), "v")(x, torch.tensor(1))  # no signal: v = -x0, the mean of the data
    assert_close(end, -(MIX.weights @ MIX.means).expand(3, 2))
    point = D.GaussianMixture(MEANS[:2], torch.zeros(2).double(), torch.ones(2))
    with pytest.raises(ValueError, match="sigma: got 0"):
        point.log_prob(x)


# ---------------------------------------------------------------------------- samplers draw from it

def components(x):
    return torch.cdist(x, MEANS).argmin(1)


def sliced_distance(a, b, slices=32):
    """Mean Wasserstein-1 distance of projections of two point sets of equal size."""
    angle = torch.arange(slices).double() * torch.pi / slices
    lines = torch.stack([angle.cos(), angle.sin()])  # (2, slices)
    return ((a @ lines).sort(0).values - (b @ lines).sort(0).values).abs().mean().item()


N = 3000
SAMPLERS = {
    "ddpm, all steps": lambda z: D.ddpm_sample(MIX.denoiser(LINEAR), z, LINEAR, generator=gen(8)),
    "ddim": lambda z: D.ddim_sample(MIX.denoiser(LINEAR), z, LINEAR, 200),
    "ddim, eta 1": lambda z: D.ddim_sample(MIX.denoiser(LINEAR), z, LINEAR, 400, eta=1.0, generator=gen(8)),
    "flow, euler": lambda z: D.flow_sample(MIX.velocity, z, 150),
    "flow, heun": lambda z: D.flow_sample(MIX.velocity, z, 40, method="heun"),
    "flow, heun, shifted": lambda z: D.flow_sample(MIX.velocity, z, 60, shift=2.0, method="heun"),
    "the mixture itself": lambda z: MIX.sample(len(z), gen(8)),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_draws_from_the_mixture(name):
    x = SAMPLERS[name](points(N, 7, 1.0))
    k = components(x)
    counts = k.bincount(minlength=4).numpy()
    assert chisquare(counts, N * MIX.weights.numpy()).pvalue > 1e-4, counts
    for i in range(4):
        own = x[k == i]
        std = (own - MEANS[i]).square().mean().sqrt()  # of 2 len(own) numbers
        assert abs(std / MIX.stds[i] - 1) < 4 / math.sqrt(4 * len(own)) + 0.02, (i, std)
        assert ((own.mean(0) - MEANS[i]).abs() < 4 * MIX.stds[i] / math.sqrt(len(own)) + 0.01).all()
    truth = sliced_distance(x, MIX.sample(N, gen(9)))
    wrong = D.GaussianMixture(MEANS, MIX.stds, MIX.weights.flip(0)).sample(N, gen(9))  # negative control
    assert truth < 0.12 and sliced_distance(x, wrong) > 5 * truth
    assert chisquare(components(wrong).bincount(minlength=4).numpy(), N * MIX.weights.numpy()).pvalue < 1e-4


def test_negative_control_a_biased_denoiser_is_noticed():
    z, exact = points(N, 7, 1.0), MIX.denoiser(LINEAR)
    x = D.ddim_sample(lambda x, t: 0.93 * exact(x, t), z, LINEAR, 100)
    own = x[components(x) == 2] - MEANS[2]
    assert abs(own.square().mean().sqrt() / MIX.stds[2] - 1) > 0.1


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "score"])
def test_every_prediction_gives_the_same_trajectory(kind):
    z, denoise = points(20, 3, 1.0), MIX.denoiser(LINEAR, kind)
    for sample in (lambda f, kind: D.ddim_sample(f, z, LINEAR, 30, kind),
                   lambda f, kind: D.ddim_sample(f, z, LINEAR, 30, kind, eta=0.7, generator=gen(1)),
                   lambda f, kind: D.ddpm_sample(f, z, LINEAR, 30, kind, generator=gen(1)),
                   lambda f, kind: D.ddim_invert(f, 3 * z, LINEAR, 30, kind)):
        assert_close(sample(denoise, kind), sample(MIX.denoiser(LINEAR), "eps"), rtol=1e-7, atol=1e-7)


# -------------------------------------------------------------------------------------- order of error

def distance(a, b):
    return (a - b).norm().item()


def order(error, steps):
    """By which power of the steps the error falls, and the errors."""
    errors = [error(n) for n in steps]
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0], errors


@pytest.fixture(scope="module")
def noise():
    return points(12, 4, 1.0)


@pytest.fixture(scope="module")
def diffused(noise):
    """End of the probability-flow ODE: with y = x / alpha and s = sigma / alpha, dy/ds = eps."""
    def slope(s, y):
        alpha = 1 / math.sqrt(1 + s * s)
        return MIX.eps(alpha * torch.from_numpy(y).reshape(-1, 2), alpha, s * alpha).numpy().ravel()

    a = SMOOTH[-1].item()
    end = solve_ivp(slope, (math.sqrt((1 - a) / a), 0), noise.numpy().ravel() / math.sqrt(a), rtol=1e-10, atol=1e-10)
    return torch.from_numpy(end.y[:, -1]).reshape(-1, 2)


@pytest.fixture(scope="module")
def flowed(noise):
    def slope(t, x):
        return MIX.velocity(torch.from_numpy(x).reshape(-1, 2), t).numpy().ravel()

    end = solve_ivp(slope, (1, 0), noise.numpy().ravel(), rtol=1e-10, atol=1e-10)
    return torch.from_numpy(end.y[:, -1]).reshape(-1, 2)


def test_ddim_is_of_first_order(noise, diffused):
    denoise = MIX.denoiser(SMOOTH)
    slope, errors = order(lambda n: distance(D.ddim_sample(denoise, noise, SMOOTH, n), diffused), [64, 128, 256, 512])
    assert 0.9 < slope < 1.1 and errors[-1] < 0.1, (slope, errors)


@pytest.mark.parametrize("method,shift,low,high", [("euler", 1.0, 0.9, 1.1), ("euler", 2.0, 0.9, 1.1),
                                                   ("heun", 1.0, 1.8, 2.2), ("heun", 2.0, 1.8, 2.2)])
def test_flow_orders(noise, flowed, method, shift, low, high):
    steps = [64, 128, 256]
    slope, errors = order(lambda n: distance(D.flow_sample(MIX.velocity, noise, n, shift, method), flowed), steps)
    assert low < slope < high, (slope, errors)


def test_deterministic_samplers_reach_the_closed_form_of_one_gaussian():
    """The flow of one Gaussian keeps each point's place within it: (x - mean) / std."""
    z, one = points(10, 5, 1.0), D.GaussianMixture(MEANS[1:2], MIX.stds[1:2], torch.ones(1))
    place = (z - SMOOTH[-1].sqrt() * MEANS[1]) / (SMOOTH[-1] * MIX.stds[1] ** 2 + 1 - SMOOTH[-1]).sqrt()
    assert_close(D.ddim_sample(one.denoiser(SMOOTH), z, SMOOTH, 512), MEANS[1] + MIX.stds[1] * place, rtol=0, atol=5e-3)
    assert_close(D.flow_sample(one.velocity, z, 100, method="heun"), MEANS[1] + MIX.stds[1] * z, rtol=0, atol=5e-4)
    noise = D.ddim_invert(one.denoiser(SMOOTH), MEANS[1] + MIX.stds[1] * place, SMOOTH, 512)
    assert_close(noise, z, rtol=0, atol=2e-2)
    assert (noise - place).abs().max() > 0.1  # negative control: the little signal left in z is seen


def test_inversion_error_falls_with_the_steps():
    x, denoise = MIX.sample(12, gen(6)), MIX.denoiser(SMOOTH)

    def there_and_back(n):
        return D.ddim_sample(denoise, D.ddim_invert(denoise, x, SMOOTH, n), SMOOTH, n)

    slope, errors = order(lambda n: distance(there_and_back(n), x), [64, 128, 256, 512])
    assert 0.85 < slope < 1.1 and errors == sorted(errors, reverse=True) and errors[-1] < 0.5, (slope, errors)


# ------------------------------------------------------------------------------------------- guidance

def network(x, t, labels):
    """Each item's own exact eps: of its label's mixture, or without a condition where the label is -1."""
    mixtures = {-1: MIX, 0: MIX.given(LABELS, 0), 1: MIX.given(LABELS, 1)}
    out = torch.empty_like(x)
    for label in labels.unique().tolist():
        out[labels == label] = mixtures[label].denoiser(LINEAR)(x[labels == label], t)
    return out


def test_guidance_1_samples_the_conditional_mixture():
    z = points(N, 7, 1.0)
    cond, none = torch.full((N,), 1), torch.full((N,), -1)
    x = D.ddim_sample(D.guided(network, cond, none, 1.0), z, LINEAR, 100)
    given = MIX.given(LABELS, 1)
    assert_close(given.weights, torch.tensor([4 / 7, 3 / 7]).double())
    counts = components(x).bincount(minlength=4).numpy()
    assert counts[[0, 3]].sum() == 0 and chisquare(counts[[1, 2]], N * given.weights.numpy()).pvalue > 1e-4
    truth = sliced_distance(x, given.sample(N, gen(9)))
    assert truth < 0.12 and sliced_distance(x, MIX.sample(N, gen(9))) > 5 * truth
    free = D.ddim_sample(D.guided(network, cond, none, 0.0), z, LINEAR, 100)  # 0: the condition is not heard
    assert_close(free, D.ddim_sample(MIX.denoiser(LINEAR), z, LINEAR, 100))


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5, 6.0])
def test_guidance_of_gaussians_has_a_closed_form(scale):
    """u = N(0, S^2), c = N(m, s^2), guided by w. Equal widths: mean w m. Equal means: width s (s / S)^(w - 1)."""
    z, m, start = points(6, 7, 1.0), torch.tensor([[1.0, -0.5]]).double(), SMOOTH[-1]

    def sample(mean, S, s):
        u = D.GaussianMixture(0 * m, torch.tensor([S]).double(), torch.ones(1)).denoiser(SMOOTH)
        c = D.GaussianMixture(mean, torch.tensor([s]).double(), torch.ones(1)).denoiser(SMOOTH)

        def model(x, t, conditioned):
            return torch.where(conditioned[:, None] > 0, c(x, t), u(x, t))

        return D.ddim_sample(D.guided(model, torch.ones(6), torch.zeros(6), scale), z, SMOOTH, 400)

    place = (z - start.sqrt() * scale * m) / (start * 0.5**2 + 1 - start).sqrt()
    assert_close(sample(m, 0.5, 0.5), scale * m + 0.5 * place, rtol=0, atol=2e-2)
    S, s, ratio = 1.5, 0.5, (1 - start) / start  # ratio: (sigma / alpha)^2 at the start
    shrink = (S**2 / (S**2 + ratio)) ** ((1 - scale) / 2) * (s**2 / (s**2 + ratio)) ** (scale / 2) / start.sqrt()
    assert_close(sample(0 * m, S, s), shrink * z, rtol=0, atol=2e-2)
    assert shrink == pytest.approx(s * (s / S) ** (scale - 1), rel=0.05)

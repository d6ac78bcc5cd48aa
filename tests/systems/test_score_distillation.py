"""Score distillation on denoisers that are exact, and on a tiny Stable Diffusion whose weights must stay untouched."""

import numpy as np
import pytest
import torch

from gsgen_lib.data.captioned_views import VIEW_WORDS, view_word
from gsgen_lib.diffusion import (
    GaussianMixture,
    alphas_cumprod_of,
    ddim_invert,
    ddpm_sample,
    guide,
    linear_betas,
    q_sample,
)
from gsgen_lib.training import seeded
from gsgen_lib.systems.score_distillation import (
    WEIGHTS,
    ViewPrompts,
    annealed_time,
    distillation_loss,
    ism_gradient,
    ism_loss,
    random_time,
    sds_gradient,
    sds_loss,
    view_guided,
    view_shares,
)

ABAR = alphas_cumprod_of(linear_betas()).double()
TWO = GaussianMixture(torch.tensor([[-1.0, 0], [1, 0]]).double(), torch.full((2,), 0.2).double(), torch.ones(2).double())


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


class Network(torch.nn.Module):
    """A denoiser with weights and a Jacobian that is far from the identity."""

    def __init__(self):
        super().__init__()
        self.net = seeded(lambda: torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double(), 0)

    def forward(self, x_t, t):
        return self.net(x_t) * 3


class Cut:
    """A prior whose prompts have room for one letter."""

    def encode_prompt(self, prompts):
        return torch.tensor([[[float(ord(p[:1] or " "))]] for p in prompts])


# ---- the gradient --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", WEIGHTS)
def test_autograd_equals_the_formula_and_never_enters_the_network(weight):
    network = Network()
    x = torch.randn(4, 3, generator=gen(), dtype=torch.float64).requires_grad_()
    eps, t = torch.randn(4, 3, generator=gen(1), dtype=torch.float64), torch.tensor([10, 300, 600, 900])
    sds_loss(network, x, t, eps, ABAR, weight).backward()
    a = ABAR[t][:, None]
    w = {"sigma2": 1 - a, "one": torch.ones_like(a), "sigma": (1 - a) ** 0.5, "x0": ((1 - a) / a) ** 0.5}[weight]
    x_t = a**0.5 * x + (1 - a) ** 0.5 * eps
    torch.testing.assert_close(x.grad, (w * (network(x_t, t) - eps) / 4).detach(), rtol=1e-9, atol=1e-12)
    assert all(p.grad is None for p in network.parameters())


def test_it_is_not_the_gradient_of_the_squared_error():
    """Negative control: backpropagating |eps_hat - eps|^2 / 2 brings in the network's Jacobian."""
    network = Network()
    x, eps = (torch.randn(4, 3, generator=gen(s), dtype=torch.float64).requires_grad_(s == 0) for s in (0, 1))
    t = torch.tensor(400)
    naive = 0.5 * (network(q_sample(x, eps, ABAR[t]), t) - eps).square().sum() / 4
    naive.backward()
    wrong = x.grad.clone()
    cosine = torch.cosine_similarity(wrong.flatten(), sds_gradient(network, x, t, eps, ABAR, "one").flatten(), 0)
    assert cosine < 0.9


def test_the_gradient_carries_no_graph():
    """Nor is one built on the way: the network is asked with gradients off, and its input does not require one."""
    asked = []

    def predict(x_t, t):
        asked.append((torch.is_grad_enabled(), x_t.requires_grad))
        return x_t

    x = torch.randn(2, 3, generator=gen(), dtype=torch.float64).requires_grad_()
    assert not sds_gradient(predict, x, torch.tensor(500), torch.zeros_like(x), ABAR).requires_grad
    assert not ism_gradient(predict, predict, x, 500, 50, ABAR).requires_grad
    assert set(asked) == {(False, False)}


def test_chain_rule_through_a_renderer():
    """theta -> x = A theta: the gradient on theta is A^T g / B."""
    a = torch.randn(6, 2, generator=gen(), dtype=torch.float64)
    theta = torch.randn(2, generator=gen(1), dtype=torch.float64).requires_grad_()
    eps = torch.randn(2, 3, generator=gen(2), dtype=torch.float64)
    x = (a @ theta).reshape(2, 3)
    sds_loss(Network(), x, torch.tensor(500), eps, ABAR).backward()  # another network: only shapes matter here
    network = Network()
    theta.grad = None
    x = (a @ theta).reshape(2, 3)
    sds_loss(network, x, torch.tensor(500), eps, ABAR).backward()
    g = sds_gradient(network, x, torch.tensor(500), eps, ABAR)
    torch.testing.assert_close(theta.grad, a.T @ g.flatten() / 2)


def test_mean_gradient_is_the_slope_of_the_noised_density():
    """E_eps[eps_hat - eps] = E[eps_hat] = -sqrt(1 - abar) E[score(x_t)]: for one Gaussian it is linear, in closed form."""
    one = GaussianMixture(torch.zeros(1, 2).double(), torch.full((1,), 0.5).double(), torch.ones(1).double())
    t, x = torch.tensor(500), torch.tensor([[1.0, -2.0]]).double()
    eps = torch.randn(200_000, 2, generator=gen(), dtype=torch.float64)
    g = sds_gradient(one.denoiser(ABAR), x.expand_as(eps), t, eps, ABAR, "one").mean(0)
    a = ABAR[t]
    expected = (1 - a) ** 0.5 * a**0.5 * x[0] / (a * 0.25 + 1 - a)
    torch.testing.assert_close(g, expected, atol=0.01, rtol=0)


# ---- what it does: the card's toy --------------------------------------------------------------------------------------


def distil(scale=1.0, annealed=True, weight="x0", steps=400, lr=0.2, points=300, seed=0, caption=None):
    """Points in the plane pulled by SDS, plain gradient descent."""
    g = gen(seed)
    x = torch.randn(points, 2, generator=g, dtype=torch.float64)
    plain, told = TWO.denoiser(ABAR), (caption or TWO).denoiser(ABAR)

    def predict(x_t, t):
        return guide(plain(x_t, t), told(x_t, t), scale)

    for k in range(steps):
        t = torch.tensor(annealed_time(k, steps)) if annealed else random_time(points, g)
        x = x - lr * sds_gradient(predict, x, t, torch.randn(x.shape, generator=g, dtype=torch.float64), ABAR, weight)
    return x


def within_and_rms(x):
    """Standard deviation within a mode over the data's, and rms distance to the nearest mode."""
    nearest = torch.cdist(x, TWO.means).argmin(1)
    off = x - TWO.means[nearest]
    within = torch.stack([(o - o.mean(0)).square().mean().sqrt() for o in (off[nearest == 0], off[nearest == 1])])
    return (within.mean() / 0.2).item(), off.square().sum(1).mean().sqrt().item()


@pytest.mark.parametrize("seed", range(3))
def test_sampling_covers_a_mode_and_distillation_seeks_it(seed):
    noise = torch.randn(1000, 2, generator=gen(seed), dtype=torch.float64)
    covered = within_and_rms(ddpm_sample(TWO.denoiser(ABAR), noise, ABAR, 200, generator=gen(seed + 10)))[0]
    sought = within_and_rms(distil(seed=seed))[0]
    assert 0.85 < covered < 1.1 and sought < 0.7


@pytest.mark.parametrize("seed", range(3))
def test_annealing_finds_modes_where_random_times_stay_between_them(seed):
    annealed, random = within_and_rms(distil(seed=seed))[1], within_and_rms(distil(annealed=False, seed=seed))[1]
    assert annealed < 0.2 and random > 3 * annealed


def test_large_guidance_overshoots_monotonically():
    right = TWO.given(torch.tensor([0, 1]), 1)  # the caption "right" means the mode at (1, 0)
    scales, radii = (1, 7.5, 25, 100), {}
    for annealed in (False, True):
        radii[annealed] = [distil(scale=s, annealed=annealed, weight="sigma2", lr=0.2, caption=right).norm(dim=1).mean().item()
                           for s in scales]
    assert radii[False] == pytest.approx([1.0, 3.1, 6.3, 14.6], rel=0.1)  # data have radius 1
    assert max(radii[True]) < 1.4 and radii[True] == sorted(radii[True])  # falling t calls them back


# ---- interval score matching ---------------------------------------------------------------------------------------------


def test_inversion_inside_ism_is_the_librarys():
    """A `plain` that records what it was asked; the last question is at x_s, the noise level of ddim_invert's way."""
    asked = []

    def plain(x_t, t):
        asked.append((int(t), x_t.clone()))
        return TWO.denoiser(ABAR)(x_t, t)

    x = torch.randn(5, 2, generator=gen(), dtype=torch.float64)
    ism_gradient(plain, plain, x, 499, 100, ABAR, inversion_steps=4)
    assert [t for t, _ in asked] == [0, 100, 200, 299, 399, 499]
    fine = ddim_invert(TWO.denoiser(ABAR), x, ABAR[:400], 400)  # many small steps to the level of t = 399
    coarse = []
    ism_gradient(TWO.denoiser(ABAR), lambda x_t, t: coarse.append(x_t) or TWO.denoiser(ABAR)(x_t, t), x, 499, 100, ABAR,
                 inversion_steps=200)
    torch.testing.assert_close(coarse[-1], fine, atol=0.06, rtol=0)
    assert (asked[-2][1] - fine).abs().max() > 0.1  # four steps are coarse


def test_the_last_step_of_ism_goes_to_the_level_of_t():
    """With a constant answer of the plain network every level is known in closed form."""
    e, asked = torch.tensor([0.3, -0.7]).double(), []
    x = torch.randn(5, 2, generator=gen(), dtype=torch.float64)

    def told(x_t, t):
        asked.append((int(t), x_t))
        return x_t * 0 + 2.0

    for weight, w in (("one", 1.0), ("sigma2", 1 - ABAR[600]), ("x0", ((1 - ABAR[600]) / ABAR[600]).sqrt())):
        found = ism_gradient(told, lambda x_t, t: e.expand_as(x_t), x, 600, 150, ABAR, weight=weight)
        torch.testing.assert_close(found, (w * (2.0 - e)).expand(5, 2))
    t, x_t = asked[0]
    assert t == 600
    torch.testing.assert_close(x_t, ABAR[600].sqrt() * x + (1 - ABAR[600]).sqrt() * e)


def test_no_weight_of_a_stable_diffusion_gets_a_gradient(tmp_path):
    """The very classes, with weights that could learn: the gradient on the latents is w (eps_hat - eps) / B, and stops there."""
    from tests.systems.test_prior import tiny_stable_diffusion

    from gsgen_lib.systems.prior import load_prior

    prior = load_prior(tiny_stable_diffusion(tmp_path))
    prior.unet.requires_grad_(True)
    z, eps = torch.randn(2, 2, 4, 8, 8, generator=gen())
    z.requires_grad_()
    text, t = prior.encode_prompt(["a red mug", "mug"]), torch.tensor(300)
    sds_loss(lambda z_t, t: prior.predict(z_t, t, text), z, t, eps, prior.alphas_cumprod).backward()
    a = prior.alphas_cumprod[300]
    with torch.no_grad():
        wanted = (1 - a) * (prior.predict(a.sqrt() * z + (1 - a).sqrt() * eps, t, text) - eps) / 2
    torch.testing.assert_close(z.grad, wanted, rtol=1e-5, atol=1e-7)
    assert all(p.grad is None for p in prior.unet.parameters())


def test_ism_says_nothing_without_a_caption_and_small_steps():
    """Along its own ODE the prediction hardly changes over a small interval; a caption's does at any."""
    x = torch.randn(50, 2, generator=gen(), dtype=torch.float64)
    plain, right = TWO.denoiser(ABAR), TWO.given(torch.tensor([0, 1]), 1).denoiser(ABAR)
    quiet = ism_gradient(plain, plain, x, 500, 1, ABAR, 100).norm(dim=1).mean()
    told = ism_gradient(right, plain, x, 500, 1, ABAR, 100).norm(dim=1).mean()
    assert quiet < 0.02 * told


def test_ism_draws_no_noise_and_sds_does():
    x = torch.randn(20, 2, generator=gen(), dtype=torch.float64)
    plain, right = TWO.denoiser(ABAR), TWO.given(torch.tensor([0, 1]), 1).denoiser(ABAR)
    a, b = (ism_gradient(right, plain, x, 500, 50, ABAR) for _ in range(2))
    assert torch.equal(a, b)
    sds = [sds_gradient(right, x, torch.tensor(100), torch.randn(20, 2, generator=gen(s)).double(), ABAR) for s in (0, 1)]
    assert (sds[0] - sds[1]).abs().max() > 0.02
    x.requires_grad_()
    ism_loss(right, plain, x, 500, 50, ABAR).backward()
    torch.testing.assert_close(x.grad, a / 20)


# ---- times, views, errors ------------------------------------------------------------------------------------------------


def test_times():
    assert [annealed_time(s, 50) for s in (0, 25, 49)] == [980, 500, 20]
    times = [annealed_time(s, 300) for s in range(300)]
    assert times == sorted(times, reverse=True)
    drawn = random_time(5000, gen())
    assert drawn.min() >= 20 and drawn.max() < 980 and abs(drawn.double().mean() - 499.5) < 15


def test_view_shares_are_continuous_and_agree_with_the_words():
    for azimuth in np.linspace(-400, 400, 321):
        for elevation in (-20.0, 30.0, 59.0, 61.0, 90.0):
            shares = view_shares(azimuth, elevation)
            assert sum(shares) == pytest.approx(1) and min(shares) >= 0
            near = view_shares(azimuth + 0.5, elevation)
            assert max(abs(a - b) for a, b in zip(shares, near, strict=True)) < 0.02
            turn = abs((azimuth + 180) % 360 - 180)
            hard = view_shares(azimuth, elevation, width=0)
            if min(abs(turn - 45), abs(turn - 135), abs(elevation - 60)) > 1:
                assert VIEW_WORDS[int(np.argmax(hard))] == view_word(azimuth, elevation) and max(hard) == 1
            if min(abs(turn - 45), abs(turn - 135), abs(elevation - 60)) > 15:
                assert shares == pytest.approx(hard)


def test_view_prompts_mix_features():
    class Words:
        def encode_prompt(self, prompts):
            return torch.tensor([[[float(len(p))]] for p in prompts])

    mixed = ViewPrompts(Words(), "a red mug")
    lengths = [len(f"a red mug, {w}") for w in VIEW_WORDS]
    out = mixed([0.0, 45.0, 180.0, 10.0], [0.0, 0.0, 0.0, 90.0]).flatten().tolist()
    assert out == pytest.approx([lengths[0], (lengths[0] + lengths[1]) / 2, lengths[2], lengths[3]])


def test_the_view_word_is_louder_than_the_caption():
    """Against the formula written out, with a network that is not linear in its features; two views, one between two words."""
    words, empty = torch.randn(4, 3, 2, generator=gen(), dtype=torch.float64), torch.zeros(1, 3, 2, dtype=torch.float64)
    text, x = torch.stack([words[2], 0.25 * words[0] + 0.75 * words[1]]), torch.randn(2, 5, generator=gen(1), dtype=torch.float64)
    matrix = torch.randn(6, 5, generator=gen(2), dtype=torch.float64)

    def model(x_t, t, features):
        assert t == 7 and len(features) == len(x_t)
        return (x_t * (features.flatten(1) @ matrix)).tanh()

    found = view_guided(model, text, words, empty, 3.0, 5.0)(x, 7)
    rest = ((1, 1, 0, 1), (0.75, 0.25, 1, 1))  # what the two views leave of each word
    for k, others in enumerate(sum(r * w for r, w in zip(shares, words, strict=True)) / 3 for shares in rest):
        eps = {name: model(x[k:k + 1], 7, f[None]) for name, f in (("", empty[0]), ("own", text[k]), ("others", others))}
        by_hand = eps[""] + 3.0 * (eps["own"] - eps[""]) + 5.0 * (eps["own"] - eps["others"])
        torch.testing.assert_close(found[k:k + 1], by_hand)
    plain = view_guided(model, text, words, empty, 3.0, 0.0)(x, 7)
    torch.testing.assert_close(plain, guide(model(x, 7, empty.expand_as(text)), model(x, 7, text), 3.0))
    with pytest.raises(ValueError, match="words: got shape"):
        view_guided(model, text, words[:, :2], empty, 3.0, 5.0)


@pytest.mark.parametrize("call,message", [
    (lambda: distillation_loss(torch.zeros(2, 3), torch.zeros(3, 2)), "gradient: got shape"),
    (lambda: sds_gradient(Network(), torch.zeros(1, 3).double(), torch.tensor(0), torch.zeros(1, 3).double(), ABAR, "two"),
     "weight: got 'two'"),
    (lambda: sds_gradient(Network(), torch.zeros(1, 3), torch.tensor(0), torch.zeros(1, 3), torch.zeros(1)), "no signal is left"),
    (lambda: ism_gradient(Network(), Network(), torch.zeros(1, 3).double(), 10, 20, ABAR), "interval, t: got 20, 10"),
    (lambda: ism_gradient(Network(), Network(), torch.zeros(1, 3).double(), 100, 20, ABAR, weight="x"), "weight: got 'x'"),
    (lambda: annealed_time(10, 10), "step: got 10"),
    (lambda: ism_gradient(Network(), Network(), torch.zeros(1, 3).double(), 100, 20, ABAR, 0), "inversion_steps: got 0"),
    (lambda: sds_gradient(Network(), torch.zeros(1, 3).double(), torch.tensor(-1), torch.zeros(1, 3).double(), ABAR), r"t: got \[-1\]"),
    (lambda: sds_gradient(Network(), torch.zeros(1, 3).double(), torch.tensor(1000), torch.zeros(1, 3).double(), ABAR), r"t: got \[1000\]"),
    (lambda: view_shares(0, 0, width=91), "width: got 91"),
    (lambda: ViewPrompts(Cut(), "a mug"), "caption: 'a mug' is so long"),
])
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""Schedules, steps and whole trajectories equal those of diffusers on random input; so do rescaling and EMA."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from gsgen_lib import diffusion as D

pytest.importorskip("diffusers")
from diffusers import (DDIMInverseScheduler, DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler,  # noqa: E402
                       FlowMatchHeunDiscreteScheduler)

LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}  # of latent diffusion
SCHEDULES = {"linear": (D.linear_betas, {"beta_schedule": "linear"}),
             "scaled linear": (D.scaled_linear_betas, LATENT),
             "cosine": (D.cosine_betas, {"beta_schedule": "squaredcos_cap_v2"})}
KINDS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}  # our names, theirs
SHAPE = (3, 2, 4, 5)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def theirs(kind, schedule="scaled linear", **options):
    return kind(**{**SCHEDULES[schedule][1], "clip_sample": False, **options})


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=gen(seed))


def network(seed=0):
    """A random linear function of x that changes with t: asked at a wrong time it answers differently."""
    mix, bias = randn(5, 5, seed=seed) / 5**0.5, randn(5, seed=seed + 1)

    def predict(x, t):
        t = torch.as_tensor(t).float()
        return 0.5 * x @ mix * torch.cos(t / 137) + bias * torch.sin(t / 71)

    return predict


def assert_near(ours, peer, tolerance=1e-5):
    """Equal to 1e-5, absolute, or relative to the largest number where that is above 1."""
    assert ours.shape == peer.shape and bool(torch.isfinite(peer).all())
    assert_close(ours, peer, rtol=0, atol=tolerance * max(1.0, peer.abs().max().item()))


# ---------------------------------------------------------------------------------------- schedules

@pytest.mark.parametrize("T", [1000, 40])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name, T):
    betas, options = SCHEDULES[name]
    ours, peer = betas(T), DDIMScheduler(num_train_timesteps=T, **options)
    assert_near(ours, peer.betas, 1e-6)
    assert_near(D.alphas_cumprod_of(ours), peer.alphas_cumprod, 1e-6)
    exact = np.cumprod(1 - ours.double().numpy())
    assert_close(D.alphas_cumprod_of(ours), torch.from_numpy(exact).float(), rtol=1e-6, atol=0)
    assert_near(D.betas_of(D.alphas_cumprod_of(ours)), ours, 1e-5)
    zero = D.zero_terminal_snr(D.alphas_cumprod_of(ours))
    assert_near(zero, DDIMScheduler(num_train_timesteps=T, rescale_betas_zero_snr=True, **options).alphas_cumprod)
    assert zero[-1] == 0 and ours.dtype == zero.dtype == torch.float32
    others = [n for n in SCHEDULES if n != name]  # negative control
    assert all((betas(T) - SCHEDULES[n][0](T)).abs().max() > 1e-3 for n in others)


def test_cosine_schedule_follows_the_formula():
    abar = D.alphas_cumprod_of(D.cosine_betas(500)).double()
    f = torch.cos((torch.arange(501) / 500 + 0.008) / 1.008 * torch.pi / 2).double() ** 2
    assert_close(abar[:-1], (f[1:] / f[0])[:-1], rtol=1e-4, atol=1e-7)
    assert D.cosine_betas(500, max_beta=0.3).max() == pytest.approx(0.3)


@pytest.mark.parametrize("name", SCHEDULES)
def test_noising_velocity_and_snr(name):
    from diffusers.training_utils import compute_snr

    peer = theirs(DDPMScheduler, name)
    abar, t = D.alphas_cumprod_of(SCHEDULES[name][0]()), torch.tensor([0, 500, 999])
    x0, eps = randn(*SHAPE), randn(*SHAPE, seed=1)
    x_t = D.q_sample(x0, eps, abar[t])
    assert_near(x_t, peer.add_noise(x0, eps, t))
    velocity = peer.get_velocity(x0, eps, t)
    assert_near(D.convert(eps, x_t, abar[t], "eps", "v")[:2], velocity[:2])  # v from eps alone divides by sqrt(abar)
    x0_back, eps_back = (D.convert(velocity, x_t, abar[t], "v", kind) for kind in ("x0", "eps"))
    assert_near(x0_back, x0)
    assert_near(eps_back, eps)
    assert_close(D.snr(abar)[t].log(), compute_snr(peer, t).log(), rtol=1e-3, atol=1e-3)


def test_times():
    for T in (1000, 250, 7):
        for spacing in ("trailing", "leading", "linspace"):
            peer = DDIMScheduler(num_train_timesteps=T, timestep_spacing=spacing)
            for n in {1, 2, 3, 4, 7, *range(5, T + 1, 9), *range(48, T, 48), 61, 103, T}:
                if n > T:
                    continue
                peer.set_timesteps(n)
                ours, want = D.timesteps(T, n, spacing), peer.timesteps
                if len(want) == n + 1 and want[-1] == -1:  # rounding in diffusers: a time that no schedule has
                    want = want[:-1]
                if spacing == "linspace" and n == 1:  # theirs would take noise for an almost clean picture
                    want = torch.tensor([T - 1])
                assert ours.dtype == torch.int64 and torch.equal(ours, want), (T, spacing, n)


# -------------------------------------------------------------------------------------------- steps

@pytest.mark.parametrize("kind", KINDS)
def test_ddpm_steps(kind):
    peer = theirs(DDPMScheduler, prediction_type=KINDS[kind])
    abar, x, guess = peer.alphas_cumprod, randn(*SHAPE), randn(*SHAPE, seed=1)
    for t in (999, 500, 37, 1, 0):
        noise = torch.randn(SHAPE, generator=gen(2))
        a, b = abar[t], abar[t - 1] if t else 1.0
        ours = D.ddpm_step(x, D.convert(guess, x, a, kind, "x0"), a, b, noise)
        want = peer.step(guess, t, x, generator=gen(2)).prev_sample
        assert_near(ours, want)
        other = D.ddpm_step(x, D.convert(guess, x, a, kind, "x0"), a, abar[t - 2] if t > 1 else abar[t], noise)
        assert (other - want).abs().max() > 1e-4  # negative control: a step to another level


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_ddim_steps(kind, eta):
    """At any step length: theirs is always T // n, ours goes to the next time visited."""
    peer = theirs(DDIMScheduler, prediction_type=KINDS[kind])
    abar, x, guess, noise = peer.alphas_cumprod, randn(*SHAPE), randn(*SHAPE, seed=1), randn(*SHAPE, seed=2)
    for n in (1, 7, 30, 1000):
        peer.set_timesteps(n)
        for t in (999, 640, 33, 0):
            s = t - 1000 // n
            a, b = abar[t], abar[s] if s >= 0 else 1.0
            x0, eps = (D.convert(guess, x, a, kind, target) for target in ("x0", "eps"))
            want = peer.step(guess, t, x, eta=eta, variance_noise=noise if eta else None).prev_sample
            ours = D.ddim_step(x, x0, eps, a, b, eta, noise)
            assert_near(ours, want)
            assert (D.ddim_step(x, x0, -eps, a, b, eta, noise) - want).abs().max() > 1e-3 or b == 1.0  # negative control


# ------------------------------------------------------------------------------------- trajectories

def run(peer, model, x, **options):
    for t in peer.timesteps:
        x = peer.step(model(x, t), t, x, **options).prev_sample
    return x


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("kind", KINDS)
def test_ddpm_trajectories(kind, spacing):
    x, model = randn(*SHAPE, seed=5), network()
    for schedule, n in (("linear", 20), ("scaled linear", 48)):
        peer = theirs(DDPMScheduler, schedule, prediction_type=KINDS[kind], timestep_spacing=spacing)
        peer.set_timesteps(n)
        abar = D.alphas_cumprod_of(SCHEDULES[schedule][0]())
        ours = D.ddpm_sample(model, x, abar, n, kind, spacing, gen(3))
        assert_near(ours, run(peer, model, x, generator=gen(3)))
        assert (ours - D.ddpm_sample(model, x, abar, n, kind, spacing, gen(4))).abs().max() > 1e-2  # negative control


def test_ddpm_takes_every_step_by_default():
    peer = theirs(DDPMScheduler, "cosine", prediction_type="v_prediction", num_train_timesteps=150)
    x, model = randn(*SHAPE), network()
    ours = D.ddpm_sample(model, x, D.alphas_cumprod_of(D.cosine_betas(150)), prediction="v", generator=gen(3))
    assert_near(ours, run(peer, model, x, generator=gen(3)))
    fewer = D.ddpm_sample(model, x, D.alphas_cumprod_of(D.cosine_betas(150)), 75, "v", generator=gen(3))
    assert (fewer - ours).abs().max() > 1e-2  # negative control


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("kind", KINDS)
def test_ddim_trajectories(kind, spacing, eta):
    x, model = randn(*SHAPE, seed=5), network()
    for schedule, n in (("linear", 50), ("scaled linear", 10)):  # n divides T: both step to the next time visited
        peer = theirs(DDIMScheduler, schedule, prediction_type=KINDS[kind], timestep_spacing=spacing)
        peer.set_timesteps(n)
        abar = D.alphas_cumprod_of(SCHEDULES[schedule][0]())
        ours = D.ddim_sample(model, x, abar, n, kind, eta, spacing, gen(3))
        assert_near(ours, run(peer, model, x, eta=eta, generator=gen(3)))
        wrong = D.ddim_sample(lambda x, t: model(x, t - 1), x, abar, n, kind, eta, spacing, gen(3))  # negative control
        assert (ours - wrong).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["x0", "v"])
def test_zero_terminal_snr_trajectories(kind):
    peer = theirs(DDIMScheduler, prediction_type=KINDS[kind], timestep_spacing="trailing", rescale_betas_zero_snr=True)
    peer.set_timesteps(25)
    abar, x, model = D.zero_terminal_snr(D.alphas_cumprod_of(D.scaled_linear_betas())), randn(*SHAPE), network()
    assert_near(D.ddim_sample(model, x, abar, 25, kind), run(peer, model, x))
    with pytest.raises(ValueError, match="no signal at abar = 0"):
        D.ddim_sample(model, x, abar, 25, "eps")


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_ddim_inversion(spacing):
    """The steps are equal. Their pipelines ask the network at the noisier end of each, ours is asked at the cleaner."""
    peer = theirs(DDIMInverseScheduler, "linear", timestep_spacing=spacing)
    peer.set_timesteps(20)
    x, model, abar = randn(*SHAPE), network(), D.alphas_cumprod_of(D.linear_betas())
    times, asked = iter(peer.timesteps), []

    def asked_as_theirs(x, t):
        asked.append(int(t))
        return model(x, next(times))

    assert_near(D.ddim_invert(asked_as_theirs, x, abar, 20, spacing=spacing), run(peer, model, x))
    assert asked == [0, *peer.timesteps[:-1].tolist()]
    wrong = D.ddim_invert(model, x, abar, 20, spacing=spacing)  # negative control
    assert (wrong - run(peer, model, x)).abs().max() > 1e-3


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_flow_euler_trajectories(shift):
    x, model = randn(*SHAPE), network()
    for n in (1, 4, 30):
        peer = FlowMatchEulerDiscreteScheduler(shift=shift)
        peer.set_timesteps(sigmas=np.linspace(1, 1 / n, n))
        assert_near(D.flow_times(n, shift), peer.sigmas, 1e-6)
        ours = D.flow_sample(lambda x, t: model(x, 1000 * t), x, n, shift)
        assert_near(ours, run(peer, model, x))
        if n > 1:  # negative control: with one step no shift can matter
            other = D.flow_sample(lambda x, t: model(x, 1000 * t), x, n, shift + 0.5)
            assert (other - ours).abs().max() > 1e-3


def test_flow_noising_and_times_of_training():
    peer = FlowMatchEulerDiscreteScheduler(shift=3.0)
    x0, eps, k = randn(*SHAPE), randn(*SHAPE, seed=1), torch.tensor([10, 500, 990])
    assert_near(D.interpolate(x0, eps, peer.sigmas[k]), peer.scale_noise(x0, peer.timesteps[k], eps))
    assert_near(D.shift_times(torch.linspace(1, 0.001, 1000), 3.0), peer.sigmas, 1e-6)
    swapped = D.interpolate(eps, x0, peer.sigmas[k])  # negative controls
    assert (swapped - peer.scale_noise(x0, peer.timesteps[k], eps)).abs().max() > 0.1
    assert (D.shift_times(torch.linspace(1, 0.001, 1000), 2.9) - peer.sigmas).abs().max() > 1e-3


def test_flow_heun_trajectory():
    peer = FlowMatchHeunDiscreteScheduler(num_train_timesteps=12)
    peer.set_timesteps(12)
    x, model = randn(*SHAPE), network()
    ours = D.flow_sample(lambda x, t: model(x, 12 * t), x, 12, method="heun")
    assert_near(ours, run(peer, model, x))
    assert (ours - D.flow_sample(lambda x, t: model(x, 12 * t), x, 12)).abs().max() > 1e-3  # negative control: Euler


# -------------------------------------------------------------------------------- guidance and EMA

@pytest.mark.parametrize("amount", [0.0, 0.3, 1.0])
def test_rescaled_guidance(amount):
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    u, c = randn(*SHAPE), 2 * randn(*SHAPE, seed=1) + 1
    want = rescale_noise_cfg(u + 7.5 * (c - u), c, guidance_rescale=amount)
    assert_near(D.guide(u, c, 7.5, amount), want)
    assert (want - (u + 7.5 * (c - u))).abs().max() > 0.5 or amount == 0  # negative control: it does something


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_ema(decay):
    from diffusers.training_utils import EMAModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    start, ours, peer = copy.deepcopy(net), D.EMA(net, decay), EMAModel(net.parameters(), decay=decay)
    peer.step(net.parameters())  # their first step copies the weights
    for step in range(60):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=gen(step)))
        ours.update(net)
        peer.step(net.parameters())
    ours.copy_to(net)
    for mine, other, first in zip(net.parameters(), peer.shadow_params, start.parameters(), strict=True):
        assert_near(mine, other)
        assert (mine - first).abs().max() > 0.01

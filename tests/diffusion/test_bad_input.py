"""Every public function names the argument that is wrong, what came, and what was wanted."""

import math

import pytest
import torch
from torch import nn

from gsgen_lib import diffusion as D

X, Y, ONE = torch.zeros(3, 2), torch.zeros(3, 3), torch.ones(1)
ABAR, MIX = torch.linspace(0.99, 0.1, 20), D.GaussianMixture(torch.zeros(2, 2), torch.ones(2), torch.ones(2))
ZERO = lambda x, t: torch.zeros_like(x)  # noqa: E731
BAD = {
    "steps: got 0": lambda: D.linear_betas(0),
    "steps: got 2.5": lambda: D.cosine_betas(2.5),
    "start, end: got 0.5, 0.1": lambda: D.scaled_linear_betas(10, 0.5, 0.1),
    "start, end: got 0.1, 1": lambda: D.linear_betas(10, 0.1, 1.0),
    "start, end: got 0, 0.1": lambda: D.linear_betas(10, 0, 0.1),
    "offset, max_beta: got -1": lambda: D.cosine_betas(10, offset=-1),
    "offset, max_beta: got 0.008, 2": lambda: D.cosine_betas(10, max_beta=2),
    r"betas: got shape \(1, 2\)": lambda: D.alphas_cumprod_of(torch.tensor([[0.1, 0.2]])),
    r"betas: got shape \(0,\)": lambda: D.alphas_cumprod_of(torch.zeros(0)),
    r"betas: got shape \(2,\).*\[0, 1\]": lambda: D.alphas_cumprod_of(torch.tensor([0.1, math.nan])),
    r"alphas_cumprod: got shape \(2,\).*falling numbers in": lambda: D.betas_of(torch.tensor([0.1, 0.2])),
    r"alphas_cumprod: got shape \(3,\).*falling numbers in": lambda: D.betas_of(torch.tensor([1.2, 0.9, 0.2])),
    r"alphas_cumprod: got shape \(2,\).*T >= 2": lambda: D.zero_terminal_snr(torch.tensor([0.2, 0.9])),
    r"alphas_cumprod: got shape \(1,\).*T >= 2": lambda: D.zero_terminal_snr(ONE),
    r"eps: got shape \(3, 3\)": lambda: D.q_sample(X, Y, 0.5),
    "abar: got .1.5": lambda: D.q_sample(X, X, 1.5),
    "abar: got .-0.5": lambda: D.q_sample(X, X, torch.tensor([0.5, 0.5, -0.5]).flip(0)),
    "abar: got .nan": lambda: D.convert(X, X, math.nan, "eps", "x0"),
    r"values: got shape \(2,\)": lambda: D.q_sample(X, X, torch.tensor([0.5, 0.5])),
    r"values: got shape \(3, 1\)": lambda: D.q_sample(X, X, torch.full((3, 1), 0.5)),
    "x: got dtype torch.uint8": lambda: D.q_sample(X.byte(), X.byte(), 0.5),
    "source: got 'noise'": lambda: D.convert(X, X, 0.5, "noise", "x0"),
    "target: got 'epsilon'": lambda: D.convert(X, X, 0.5, "eps", "epsilon"),
    r"prediction: got shape \(3, 3\)": lambda: D.convert(Y, X, 0.5, "eps", "x0"),
    "steps: got 21, wanted 1 to 20": lambda: D.timesteps(20, 21),
    "steps: got 0, wanted 1 to 20": lambda: D.ddpm_sample(ZERO, X, ABAR, 0),
    "spacing: got 'even'": lambda: D.timesteps(20, 5, "even"),
    "abar_t, abar_s: got 0.5.*, 0.25": lambda: D.ddpm_step(X, X, 0.5, 0.25, X),
    "abar_t, abar_s: got 1.0, 1.0": lambda: D.ddpm_step(X, X, 1.0, 1.0, X),
    "abar_t, abar_s: got 0.0, 0.0": lambda: D.ddpm_step(X, X, 0.0, 0.0, X),
    "abar_t, abar_s: got 0.75, 0.5": lambda: D.ddim_step(X, X, X, 0.75, 0.5, 1.0, X),
    "noise: got None": lambda: D.ddim_step(X, X, X, 0.5, 0.75, 1.0),
    "eta: got -1": lambda: D.ddim_sample(ZERO, X, ABAR, 5, eta=-1.0),
    "eta: got 2": lambda: D.ddim_step(X, X, X, 0.5, 0.75, 2.0, X),
    r"alphas_cumprod: got shape \(20,\).*betas rise": lambda: D.ddim_sample(ZERO, X, 1 - ABAR, 5),
    r"alphas_cumprod: got shape \(20, 1\)": lambda: D.ddim_invert(ZERO, X, ABAR[:, None], 5),
    "source: got 'velocity'": lambda: D.ddpm_sample(ZERO, X, ABAR, 5, "velocity"),
    r"eps: got shape \(3, 3\), wanted that of x0": lambda: D.interpolate(X, Y, 0.5),
    "t: got .1.5": lambda: D.interpolate(X, X, 1.5),
    "t: got .-1": lambda: D.flow_loss(ZERO, X, torch.tensor([-1.0, 0.0, 1.0]), X),
    "shift: got 0": lambda: D.shift_times(ONE, 0),
    "steps: got 0, wanted at least 1": lambda: D.flow_times(0),
    "std: got 0": lambda: D.logit_normal_times(3, std=0),
    "method: got 'rk4'": lambda: D.flow_sample(ZERO, X, method="rk4"),
    r"cond: got shape \(3, 3\)": lambda: D.guide(X, Y, 2.0),
    "amount: got 1.5": lambda: D.guide(X, X, 2.0, 1.5),
    r"mixed, cond: got shapes \(3, 2\), \(3, 3\)": lambda: D.rescale_guidance(X, Y, 0.5),
    r"mixed, cond: got shapes \(3, 1\)": lambda: D.rescale_guidance(X[:, :1], X[:, :1], 0.5),
    r"uncond: got shape \(1, 2\)": lambda: D.guided(ZERO, X, X[:1], 2.0),
    r"interval: got \(1, 0\)": lambda: D.guided(ZERO, X, X, 2.0, interval=(1, 0)),
    "decay: got 1": lambda: D.EMA(nn.Linear(1, 1), 1.0),
    r"means: got shape \(2,\)": lambda: D.GaussianMixture(torch.zeros(2), torch.ones(2), torch.ones(2)),
    "stds: got": lambda: D.GaussianMixture(X, torch.tensor([1.0, -1.0, 1.0]), torch.ones(3)),
    "weights: got .1.0, 1.0., wanted 3": lambda: D.GaussianMixture(X, torch.ones(3), torch.ones(2)),
    "stds: got .1.0, nan, 1.0.": lambda: D.GaussianMixture(X, torch.tensor([1.0, math.nan, 1.0]), torch.ones(3)),
    r"alphas_cumprod: got shape \(3,\), wanted": lambda: D.ddim_sample(ZERO, X, torch.tensor([0.9, 0.5, 0.6]), 2),
    "weights: got no positive weight": lambda: D.GaussianMixture(X, torch.ones(3), torch.zeros(3)),
    r"x: got shape \(3, 3\)": lambda: MIX.score(Y, 0.6, 0.8),
    "label: got 5": lambda: MIX.given(torch.tensor([0, 1]), 5),
    r"labels: got shape \(3,\)": lambda: MIX.given(torch.tensor([0, 1, 1]), 1),
    "prediction: got 'velocity'": lambda: MIX.denoiser(ABAR, "velocity"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()

"""The diffusion core on a CUDA device gives what it gives on the CPU."""

import torch
from torch.testing import assert_close

from gsgen_lib import diffusion as D

DEVICE = "cuda"


def answers(device):
    """Every sampler, a loss and a guided denoiser, of the same mixture from the same noise."""
    gen = torch.Generator().manual_seed(0)
    means, noise, eps = (torch.randn(n, 2, generator=gen, dtype=torch.float64).to(device) for n in (3, 8, 8))
    mix = D.GaussianMixture(means, torch.tensor([0.2, 0.3, 0.4]).to(means), torch.ones(3).to(means))
    abar, t = D.alphas_cumprod_of(D.linear_betas()).to(device), torch.linspace(0.1, 1, 8).to(noise)
    denoise = mix.denoiser(abar)
    one = torch.ones(8).to(noise)
    guided = D.guided(lambda x, t, c: c[:, None] * denoise(x, t), one, 0 * one, 2.0)
    found = {"ddim": D.ddim_sample(denoise, noise, abar, 20),
             "ddpm": D.ddpm_sample(mix.denoiser(abar, "x0"), noise, abar, 1, "x0"),  # one step: no noise
             "invert": D.ddim_invert(mix.denoiser(abar, "v"), noise, abar, 20, "v"),
             "flow": D.flow_sample(mix.velocity, noise, 10, shift=2.0, method="heun"),
             "loss": D.flow_loss(mix.velocity, noise, t, eps),
             "guided": D.ddim_sample(guided, noise, abar, 20),
             "q_sample": D.q_sample(noise, eps, abar[[0, 5, 10, 50, 100, 500, 900, 999]])}
    assert all(x.device.type == device and x.dtype == torch.float64 for x in found.values())
    drawn = D.ddpm_sample(denoise, noise.float(), abar, 5, generator=torch.Generator(device).manual_seed(0))
    assert drawn.device.type == device and bool(torch.isfinite(drawn).all())
    times = D.logit_normal_times(5, generator=torch.Generator(device).manual_seed(0), device=device)
    assert times.device.type == mix.sample(4).device.type == device
    return {name: x.cpu() for name, x in found.items()}


def test_devices_agree():
    assert_close(answers(DEVICE), answers("cpu"), rtol=1e-8, atol=1e-8)


def test_ema_follows_a_module_to_the_device():
    net = torch.nn.Linear(2, 2)
    ema = D.EMA(net, 0.5)
    net.to(DEVICE)
    ema.update(net)
    with ema.applied(net):
        assert net.weight.device.type == DEVICE

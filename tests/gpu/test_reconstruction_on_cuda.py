"""Feed-forward, autoencoder and scene diffusion on a CUDA device give what they give on the CPU."""

import torch
from torch.testing import assert_close

from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems.feed_forward import BACKBONES, FeedForward, FeedForwardConfig, reconstruction_loss
from gsgen_lib.systems.splat_diffusion import SplatDenoiser, SplatDiffusion, SplatDiffusionConfig
from gsgen_lib.systems.splat_vae import SplatVAE, SplatVAEConfig, vae_loss
from gsgen_lib.training import seeded

DEVICE = "cuda"
CAMERAS = Cameras.stack([Cameras.orbit(4, width=32, height=32)] * 2)


def pictures():
    """Discs with soft rims, (2, 4, 32, 32, 4)."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 32)] * 2, indexing="ij")
    alpha = torch.sigmoid(20 * (0.6 - (x * x + y * y).sqrt()))
    color = torch.rand(2, 4, 1, 1, 3, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 32, 32, -1)
    return torch.cat([color, alpha[None, None, ..., None].expand(2, 4, -1, -1, -1)], -1)


def test_reconstructions_agree():
    for backbone in BACKBONES:
        config = FeedForwardConfig(backbone=backbone, size=32, widths=(16, 24, 32), width=48, layers=2, heads=4, depths=8, passes=1)
        model = seeded(lambda config=config: FeedForward(config), 0).eval()
        with torch.no_grad():
            wanted = model(pictures(), CAMERAS, every=True)[0]
            found = model.to(DEVICE)(pictures().to(DEVICE), CAMERAS.to(DEVICE), every=True)[0].to("cpu")
        assert_close(found.means, wanted.means, atol=1e-3, rtol=1e-3)
        assert_close(found.colors, wanted.colors, atol=1e-3, rtol=1e-3)
        rgba, cameras = pictures().to(DEVICE), CAMERAS.to(DEVICE)
        loss = reconstruction_loss(model, config, rgba, cameras, rgba[:, :2], cameras[:2])["loss"]
        loss.backward()
        assert bool(torch.isfinite(loss)) and model.change.weight.grad.abs().sum() > 0


def test_autoencoders_and_samplers_agree():
    config = SplatVAEConfig(size=32, widths=(16, 16, 16, 16), depths=6)
    vae = seeded(lambda: SplatVAE(config), 0).eval()
    net = seeded(lambda: SplatDenoiser(SplatDiffusionConfig(cells=4, widths=(16, 24), embed=32)), 0)
    torch.nn.init.normal_(net.unet.leave[-1].weight, std=0.1, generator=torch.Generator().manual_seed(0))

    def words(prompts):
        return torch.ones(len(prompts), 3, 96) * torch.tensor([float(len(p)) for p in prompts])[:, None, None] / 20

    found = []
    for device in ("cpu", DEVICE):
        sampler = SplatDiffusion(vae.to(device), net.to(device), words)
        given = sampler.condition(["a mug", ""], pictures()[:, :1], (0,))
        z = sampler.draw(given, 4, generator=torch.Generator().manual_seed(0))
        found.append((z.cpu(), sampler.decode(z).to("cpu").colors))
    for a, b in zip(*found, strict=True):
        assert_close(a, b, atol=2e-2, rtol=2e-2)
    vae.requires_grad_(True)
    loss = vae_loss(vae, config, pictures().to(DEVICE), CAMERAS.to(DEVICE), 4, torch.Generator().manual_seed(0))["loss"]
    loss.backward()
    assert bool(torch.isfinite(loss))


def test_generators_of_either_side_and_the_baselines_work():
    from gsgen_lib.data.multiview import toy_views
    from gsgen_lib.systems.feed_forward_metrics import BASELINES, evaluate

    toys = toy_views(1, 51, 32, 16, points=16, progress=False)
    for reconstruct in BASELINES.values():
        here, there = (evaluate(reconstruct, toys, device=device)[0] for device in ("cpu", DEVICE))
        assert abs(here["psnr"] - there["psnr"]) < 0.1
    vae = seeded(lambda: SplatVAE(SplatVAEConfig(size=32, widths=(16, 16, 16, 16), depths=6)), 0).eval().to(DEVICE)
    net = seeded(lambda: SplatDenoiser(SplatDiffusionConfig(cells=4, widths=(16, 24), embed=32)), 0).to(DEVICE)
    sampler = SplatDiffusion(vae, net, lambda prompts: torch.zeros(len(prompts), 3, 96))
    for more in ({}, {"sampler": "ddpm"}, {"eta": 1.0}):
        a, b = (sampler.draw(sampler.nothing(1), 3, generator=torch.Generator(DEVICE).manual_seed(0), **more) for _ in range(2))
        assert torch.equal(a, b) and bool(torch.isfinite(a).all())

"""The AutoReconstructor and its diffusion on a GPU: the same numbers as on the CPU."""

import torch

from gsgen_lib.data.multiview import MultiView, toy_views
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems.autoreconstructor import AutoReconstructor, AutoReconstructorConfig, var_loss
from gsgen_lib.systems.autoreconstructor_diffusion import CodeDenoiser, CodeDiffusionConfig, OneImage, code_loss
from gsgen_lib.systems.autoreconstructor_training import train_autoreconstructor
from gsgen_lib.systems.code_training import train_codes
from gsgen_lib.training import seeded

S = 32


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def networks(device):
    var = seeded(lambda: AutoReconstructor(AutoReconstructorConfig(size=S, widths=(8, 16, 16, 24), budget=600)), 0).eval().to(device)
    config = CodeDiffusionConfig(cells=4, features=24, widths=(16, 16), embed=16)
    denoiser = seeded(lambda: CodeDenoiser(config), 0)
    torch.nn.init.normal_(denoiser.unet.leave[-1].weight, std=0.1, generator=gen())
    return OneImage(var, denoiser.to(device))


def test_loss_and_samples_are_those_of_the_cpu():
    batch = MultiView(toy_views(2, 0, S, 8, points=16, progress=False), 1, 3, background=None).batch(range(2), gen())
    found = {}
    for device in ("cpu", "cuda"):
        one, here = networks(device), batch.to(device)
        loss = var_loss(one.var, one.var.config, here.images, here.cameras, torch.ones(2, device=device), 0.01, gen())["loss"]
        camera = Cameras(here.cameras.viewmats[0, :1], here.cameras.Ks[0, :1], S, S)
        scenes = one.sample(here.images[0, :1], camera, 2, behind=True, steps=4, generator=gen())
        view = rasterize(scenes, Cameras.stack([camera] * 2), (1.0, 1.0, 1.0)).rgb
        codes = code_loss(one.denoiser, one.denoiser, torch.randn(2, 4, 4, 4, generator=gen()).to(device),
                          one.seen(here.images[:, 0]), gen())["loss"]
        found[device] = [loss.item(), codes.item(), view.cpu()]
    torch.testing.assert_close(found["cuda"][0], found["cpu"][0], rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(found["cuda"][1], found["cpu"][1], rtol=1e-2, atol=1e-3)
    assert (found["cuda"][2] - found["cpu"][2]).abs().mean() < 0.02


def test_both_trainings_run(tmp_path):
    train_autoreconstructor(tmp_path / "var", preset="tiny")
    card = train_codes(tmp_path / "codes", preset="tiny", autoreconstructor=str(tmp_path / "var" / "model"))
    assert card["name"] == "code_diffusion"

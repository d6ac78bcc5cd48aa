"""The octree density on the GPU: the same code and worths as on the CPU, any budget, a training step of each stage."""

import pytest
import torch

from gsgen_lib.data.view_sets import toy_views
from gsgen_lib.systems.contribution_gradient import How, appearance_loss, structure_loss
from gsgen_lib.systems.octree_density import DensityConfig, OctreeDensity
from gsgen_lib.training import seeded

CONFIG = DensityConfig(depth=4, tokens=16, width=24, heads=2, layers=(1, 1, 1, 1))


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def toys():
    return toy_views(2, 3, 32, 12, points=256, progress=False)


def test_codes_and_gaussians_agree_with_the_cpu(toys):
    model = seeded(lambda: OctreeDensity(CONFIG), 0)
    found = {}
    for device in ("cpu", "cuda"):
        own = model.to(device)
        with torch.no_grad():
            z = own.encode(toys.points.to(device), ((toys.images[:, :8] / 255).to(device), toys.cameras[:8].to(device)))[0]
            found[device] = z.cpu(), [own.decode(z, n, gen())[0] for n in (32, 512)]
    assert torch.allclose(found["cpu"][0], found["cuda"][0], atol=2e-3)
    for a, b in zip(found["cpu"][1], found["cuda"][1], strict=True):
        assert b.device.type == "cuda" and a.num == b.num
        assert ((a.means - b.means.cpu()).norm(dim=1) < 1e-2).float().mean() > 0.9  # a tooth at a border may fall on either side


@pytest.mark.parametrize("how", [None, How()])
def test_steps_of_training_run_there_and_reach_the_density(toys, how):
    model = seeded(lambda: OctreeDensity(CONFIG), 0).cuda()
    rgba, cameras, points = (toys.images / 255).cuda(), toys.cameras.to("cuda"), toys.points.cuda()
    structure_loss(model, CONFIG, points, rgba[:, :8], cameras[:8], 8, gen())["loss"].backward()
    model.zero_grad()
    found = appearance_loss(model, CONFIG, points, rgba[:, :8], cameras[:8], 8, 10, rgba[:, 8:], cameras[8:], gen(), how)
    found["loss"].backward()
    assert torch.isfinite(found["loss"]) and model.density.head.weight.grad.abs().sum() > 0

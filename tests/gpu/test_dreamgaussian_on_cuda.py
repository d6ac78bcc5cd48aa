"""Both stages of DreamGaussian on a CUDA device, with the shipped prior, beside the CPU."""

from dataclasses import replace

import torch

from gsgen_lib.mesh import extract_mesh, grid_points, unwrap
from gsgen_lib.pretrained import load_or_train
from gsgen_lib.systems.dreamgaussian import DreamConfig, dream
from gsgen_lib.systems.dreamgaussian_sample import to_mesh
from gsgen_lib.systems.texture_refinement import RefineConfig, refine

PROMPT = "a blue clock"


def gen():
    return torch.Generator().manual_seed(0)


def test_one_step_moves_the_gaussians_as_on_the_cpu():
    """The same cameras and noise, drawn on the CPU; the first step of Adam only knows the gradient's sign, so most must agree."""
    a, b = (dream(load_or_train("prior", device=device), PROMPT, DreamConfig(steps=1), generator=gen(), progress=False).gaussians.to("cpu")
            for device in ("cpu", "cuda"))
    for name in ("means", "colors", "opacities"):
        near = (getattr(a, name) - getattr(b, name)).abs() < 1e-4
        assert near.float().mean() > 0.95, name


def test_a_dream_grows_resumes_and_becomes_a_mesh(tmp_path):
    prior = load_or_train("prior", device="cuda")
    config = replace(DreamConfig(), steps=120, views=2)
    found = dream(prior, PROMPT, config, generator=gen(), folder=tmp_path, progress=False)
    assert found.gaussians.means.device.type == "cuda" and found.gaussians.num > config.init
    again = dream(prior, PROMPT, config, generator=gen(), folder=tmp_path, progress=False)  # from step 100 on
    assert [row["step"] for row in again.log] == list(range(120))
    assert len(to_mesh(found.gaussians).mesh.faces) > 100


def test_refining_gives_a_texture_on_the_device():
    r = torch.stack(torch.meshgrid(*[grid_points(24)] * 3, indexing="ij")).norm(dim=0)
    mesh = unwrap(*extract_mesh(2 - r / 0.3, max_faces=400), 64)
    grey = torch.full((64, 64, 3), 0.5)
    few = RefineConfig(steps=4, views=2, every=2)
    a, b = (refine(load_or_train("prior", device=device), PROMPT, mesh, grey, few, 64, gen(), progress=False)
            for device in ("cpu", "cuda"))
    assert b.device.type == "cuda" and bool(torch.isfinite(b).all())
    assert ((a - b.cpu()).abs() < 0.02).float().mean() > 0.9

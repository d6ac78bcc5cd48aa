"""The default engine on a CUDA device, and the doctor's word on it."""

import torch

from gsgen_lib import Cameras, Gaussians, rasterize
from gsgen_lib.doctor import examine


def test_default_engine_on_cuda_draws_what_the_reference_draws():
    scene = Gaussians.random(64, generator=torch.Generator().manual_seed(0)).to("cuda")
    cameras = Cameras.orbit(2, width=32, height=32).to("cuda")
    drawn = rasterize(scene, cameras)
    assert drawn.rgb.is_cuda and drawn.info.engine == "gsplat"
    reference = rasterize(scene, cameras, engine="reference")
    assert (drawn.rgb - reference.rgb).abs().max() < 1e-3


def test_doctor_names_the_device():
    device = next(finding for finding in examine() if finding.name == "device")
    assert device.status == "ok" and "cuda" in device.detail

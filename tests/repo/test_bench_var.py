"""gsgen bench var: what its parts count, with scenes whose answers are known."""

import numpy as np
import pytest
import torch

from gsgen_lib import bench
from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.data.multiview import toy_views
from gsgen_lib.metrics import psnr
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.autoreconstructor import AutoReconstructor, AutoReconstructorConfig
from gsgen_lib.systems.autoreconstructor_diffusion import CodeDenoiser, CodeDiffusionConfig, OneImage
from gsgen_lib.systems.dreamgaussian import FitResult
from gsgen_lib.systems.feed_forward_metrics import cases
from gsgen_lib.systems.splat_diffusion import load_splat_diffusion
from gsgen_lib.training import seeded

var = bench.load("var")


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def toys():
    return toy_views(2, 5, 64, 24, points=8, progress=False)


@pytest.fixture(scope="module")
def one():
    small = seeded(lambda: AutoReconstructor(AutoReconstructorConfig(widths=(8, 8, 16, 16), budget=500)), 0).eval()
    return OneImage(small, CodeDenoiser(CodeDiffusionConfig(features=16, widths=(8, 8), embed=8)))


def test_angles_between_cameras():
    there = Cameras.orbit(4, azimuth=[0.0, 90.0, 180.0, 45.0], elevation=[0.0] * 4)
    torch.testing.assert_close(var.sides(there[[0]], there), torch.tensor([0.0, 90.0, 180.0, 45.0]), atol=0.05, rtol=0)
    assert [low for low, _ in var.BINS.values()] == [0, 60, 120]


def test_scores_are_those_of_the_first_sample_in_bins(toys):
    """Two samples, one of them nothing: its PSNR is that of white."""
    empty = Gaussians.random(3, generator=gen())
    empty.opacities.zero_()
    scene = Gaussians.random(50, generator=gen())
    found = var.judged(lambda rgba, camera, n, g: [scene, empty][:n], toys, 2)
    for i, (_, camera, truth, there) in enumerate(cases(toys, 1)):
        white = on_background(truth, torch.ones(3))
        each = psnr(var.pictures(scene, there), white, "none")
        assert found["psnr"][i, 0].item() == pytest.approx(each.mean().item(), abs=1e-4)
        assert found["psnr"][i, 1].item() == pytest.approx(psnr(torch.ones_like(white), white).item(), abs=1e-4)
        away = var.sides(camera, there)
        for name, (low, high) in var.BINS.items():
            inside = (away >= low) & (away < high)
            wanted = each[inside].mean().item() if inside.any() else float("nan")
            assert found[name][i] == pytest.approx(wanted, abs=1e-4, nan_ok=True)
    assert found["views"].shape == (4, 64, 64, 3)


def test_reliance_is_0_for_a_decoder_that_ignores_its_code(toys, one):
    told = var.reliance(one.var, toys)
    deaf = seeded(lambda: AutoReconstructor(one.var.config), 0).eval()
    deaf.begin.weight.data.zero_()
    assert np.abs(var.reliance(deaf, toys)).max() < 1e-6 < np.abs(told).max()


def test_dreams_are_counted_from_their_start(monkeypatch):
    """The ball reaches 0.6 at step 160; another start has it at once, or at step 60, or never."""
    curves = {"ball": [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.6], "latent": [0.7] * 9, "views": [0.2, 0.3, 0.5, 0.65] + [0.4] * 5}
    ask = {}

    def dream(prior, caption, config, init=None, **more):
        kind = "ball" if init is None else init
        ask["now"] = iter(curves[kind])
        assert config.high == (980 if init is None else 300) and config.steps == var.STEPS
        return FitResult(None, snapshots=[(step, kind) for step in range(20, 161, 20)])

    for name in ("load_prior", "load_scorer", "load_splat_diffusion", "load_feed_forward"):
        monkeypatch.setattr(var, name, lambda *words: None)
    monkeypatch.setattr(var, "dream", dream)
    monkeypatch.setattr(var, "from_latents", lambda *words, **more: "latent")
    monkeypatch.setattr(var, "from_views", lambda *words, **more: ("views", None))
    monkeypatch.setattr(var, "grown", lambda scene, **more: scene)
    monkeypatch.setattr(var, "pictures", lambda scene, cameras: None)
    monkeypatch.setattr(var, "caption_score", lambda judge, x, caption: next(ask["now"]))
    bars = []
    rows = {row["what"]: row for row in var.starts(["a mug"], 2, bars)}
    assert rows["dreams from ball"]["steps to the ball's end"] == "160"
    assert rows["dreams from latent diffusion"]["steps to the ball's end"] == "0"
    assert rows["dreams from four views, lifted"]["steps to the ball's end"] == "60"
    assert [round(b["value"], 3) for b in bars] == [0.0, 0.375] and all(b["ok"] for b in bars)
    curves["views"] = [0.2] * 9
    assert {row["what"]: row for row in var.starts(["a mug"], 1, [])}["dreams from four views, lifted"]["reached"] == "0 of 1"


def test_diversity_guidance_and_time_have_a_row_for_each(one):
    latent, bars = load_splat_diffusion(), []
    rows = var.spread(one, latent, 1, 2, bars)
    assert len(rows) == 5 and len(bars) == 2 and all({"chamfer", "seen", "unseen"} <= set(row) for row in rows)
    assert len(var.guidance(one, latent, 1, 2)) == 15
    assert all(float(row["seconds"]) >= 0 for row in var.speed(one, latent))

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
from gsgen_lib.perceptual import lpips
from gsgen_lib.systems.dream_metrics import prompts_24
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
            assert found[f"psnr, {name}"][i] == pytest.approx(wanted, abs=1e-4, nan_ok=True)
            wanted = lpips(var.pictures(scene, there)[inside], white[inside]).item() if inside.any() else float("nan")
            assert found[f"lpips, {name}"][i] == pytest.approx(wanted, abs=1e-4, nan_ok=True)
    assert found["views"].shape == (2, 64, 64, 3)


def test_reliance_is_0_for_a_decoder_that_ignores_its_code(toys, one):
    told = var.reliance(one.var, toys)
    deaf = seeded(lambda: AutoReconstructor(one.var.config), 0).eval()
    deaf.begin.weight.data.zero_()
    assert np.abs(var.reliance(deaf, toys)).max() < 1e-6 < np.abs(told).max()


def test_a_bar_for_the_difference_leaves_out_objects_without_a_number():
    bars = []
    var.ahead(bars, "gain", [[2.0, np.nan, 3.0]], [[1.0, 1.0, 2.0]])
    var.ahead(bars, "loss", [1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    assert [(b["value"], b["ok"]) for b in bars] == [(1.0, True), (-1.0, False)]


def test_disturbed_codes_move_by_half_the_spread_of_objects(toys, one, monkeypatch):
    """The codes that are decoded differ from the mean by 0.5 * spread * noise, and by nothing for objects that are all alike."""
    asked = []
    monkeypatch.setattr(one.var, "decode", lambda h, *more: asked.append(h) or one.var.__class__.decode(one.var, h, *more))
    every = [rgba for rgba, *_ in cases(toys, 1)]
    spread = torch.cat([one.var.encode(rgba)[0] for rgba in every]).std(0)
    rgba, camera, *_ = next(iter(cases(toys, 1)))
    var.disturbed(one.var, toys)(rgba, camera, 1, gen(3))
    noise = torch.randn(1, 4, 8, 8, generator=gen(3))
    torch.testing.assert_close(asked[0], one.var.encode(rgba)[0] + 0.5 * spread * noise)
    alike = toys.__class__(**{**vars(toys), "images": toys.images[[0, 0]]})
    var.disturbed(one.var, alike)(rgba, camera, 1, gen(3))
    torch.testing.assert_close(asked[1], one.var.encode(rgba)[0], atol=1e-6, rtol=0)


def test_dreams_are_counted_from_their_start(monkeypatch):
    """The ball reaches 0.6 at step 160; another start has it at once, or at step 60, or never."""
    starts = bench.load("starts")
    curves = {"ball": [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.6], "latent": [0.7] * 9, "views": [0.2, 0.3, 0.5, 0.65] + [0.4] * 5}
    ask, highs, seeds, clock = {}, [], [], [0.0]

    def wait(seconds, answer):
        clock[0] += seconds
        return answer

    def dream(prior, caption, config, init=None, generator=None, **more):
        kind = "ball" if init is None else init
        ask["now"] = iter(curves[kind])
        clock[0] += config.steps / 2
        if config.steps == starts.STEPS:
            highs.append(config.high)
            seeds.append(generator.initial_seed())
        return FitResult(None, snapshots=[(step, kind) for step in range(20, 161, 20)])

    for name in ("load_prior", "load_scorer", "load_splat_diffusion", "load_feed_forward"):
        monkeypatch.setattr(starts, name, lambda *words: None)
    monkeypatch.setattr(starts, "dream", dream)
    monkeypatch.setattr(starts, "from_latents", lambda *words, **more: wait(3, "latent"))
    monkeypatch.setattr(starts, "from_views", lambda *words, **more: wait(7, ("views", None)))
    monkeypatch.setattr(starts.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(starts, "grown", lambda scene, **more: scene)
    monkeypatch.setattr(starts, "rasterize", lambda *words: type("Out", (), {"rgb": torch.zeros(1)}))
    monkeypatch.setattr(starts, "caption_score", lambda judge, x, caption: next(ask["now"]))
    bars = []
    rows = {row["what"]: row for row in starts.starts(["a mug"], 2, bars)}
    assert highs == [980, 300, 300, 980, 300] * 2 and seeds == [0] * 5 + [1] * 5
    taken = {name: row["seconds to it"] for name, row in rows.items()}  # half a second a step, and what comes before
    assert taken["dreams from ball"] == "80.0" and taken["dreams from latent diffusion"] == "3.0"
    assert taken["dreams from four views, lifted"] == "37.0"
    assert rows["dreams from ball"]["steps to the ball's end"] == "160"
    assert rows["dreams from latent diffusion"]["steps to the ball's end"] == "0"
    assert rows["dreams from four views, lifted"]["steps to the ball's end"] == "60"
    assert [round(b["value"], 3) for b in bars if "steps" in b["id"]] == [0.0, 0.375] and len(bars) == 4
    curves["views"], bars = [0.2] * 9, []
    rows = {row["what"]: row for row in starts.starts(["a mug"], 1, bars)}
    assert rows["dreams from four views, lifted"]["reached"] == "0 of 1"
    assert [b["value"] for b in bars if "steps" in b["id"] and "views" in b["id"]] == [2.0]
    curves["ball"] = [0.6] * 8  # from step 20 on: ratios are of its own steps
    starts.starts(["a mug"], 1, bars := [])
    assert [b["value"] for b in bars if "steps" in b["id"] and "latent" in b["id"]] == [0.0]
    assert [b["value"] for b in bars if "steps" in b["id"] and "views" in b["id"]] == [320 / 20]


def test_prompts_alternate_between_seen_and_unseen():
    starts = bench.load("starts")
    seen, unseen = prompts_24()
    assert starts.some(3) == [seen[0], unseen[0], seen[1]] and len(starts.some(24)) == 24


def test_diversity_guidance_and_time_have_a_row_for_each(one):
    latent, bars = load_splat_diffusion(), []
    rows = var.spread(one, latent, 1, 2, bars)
    assert len(rows) == 6 and len(bars) == 2 and all({"chamfer", "seen", "unseen"} <= set(row) for row in rows)
    rows = var.hidden_side(one, latent, 1, bars)
    assert len(rows) == len(var.methods(one, latent, None)) and len(bars) == 4
    assert len(var.guidance(one, latent, 1, 2)) == 15
    assert all(float(row["seconds"]) >= 0 for row in var.speed(one, latent))


class Recorded:
    """A sampler that notes how it was asked, and answers with random scenes."""

    def __init__(self):
        self.asked, self.cameras, self.vae = [], load_splat_diffusion().cameras, load_splat_diffusion().vae

    def sample(self, *words, **settings):
        self.asked.append(settings)
        return Gaussians.stack([Gaussians.random(20, generator=gen(k)) for k in range(2)])


def test_guidance_and_skips_are_those_of_the_row(monkeypatch):
    one, latent = Recorded(), Recorded()
    rows = var.guidance(one, latent, 1, 2)
    scales = [0.0, 0.5, 1.0, 2.0, 4.0]
    assert [a["guidance_scale"] for a in latent.asked] == scales
    assert [a["guidance_scale"] for a in one.asked] == [s for s in scales for _ in range(2)]
    assert [a["keep"] for a in one.asked] == [1.0, 0.0] * 5 and not any("behind" in a for a in one.asked)
    assert [row["what"].split(":")[0] for row in rows] == [f"guidance {s:g}" for s in scales for _ in range(3)]


def test_seen_is_the_side_of_the_picture_and_unseen_the_other(monkeypatch, one):
    sides = []
    monkeypatch.setattr(var, "diversity", lambda scenes, seen, unseen, g: sides.append(
        (seen.centers[0, 2].item() > 1, unseen.centers[0, 2].item() < -1)) or {"chamfer": 1.0, "seen": 1.0, "unseen": 1.0})
    latent = load_splat_diffusion()
    var.spread(one, latent, 1, 2, [])
    var.guidance(one, latent, 1, 2)
    assert len(sides) == 6 + 15 and set(sides) == {(True, True)} and latent.cameras.centers[0, 2] > 1


def test_hidden_sides_are_scored_where_they_are(monkeypatch, one):
    monkeypatch.setattr(var, "truth_but", lambda shown, truth, where: truth)
    rows = var.hidden_side(one, load_splat_diffusion(), 1, [])
    assert {row["LPIPS"] for row in rows} == {"0.000 (0.000 to 0.000)"}


def test_bars_of_the_arms(monkeypatch, tmp_path):
    """Fake networks of known scores: each bar is the difference that its name says."""
    table = {"as shipped": 20.0, "no skips": 18.5, "no variational sampling": 19.0}
    kinds = {"mean": 0.0, "off": -2.0, "drawn": -0.5, "disturbed": -1.0, "sample": -0.25}

    class Fake:
        def __init__(self, folder):
            name = str(folder)
            self.arm = next((a for a in var.ARMS if f"_{a.replace(' ', '_').replace('.', '')}_" in name), None)
            self.config = AutoReconstructorConfig()

        def reconstruct(self, rgba, camera, keep=1.0, noise=None):
            return self.arm, "drawn" if noise is not None else "off" if keep == 0 else "mean"

        def sample(self, rgba, camera, generator=None):
            return [(self.arm, "sample")]

    def judged(make, views, samples):
        arm, kind = make(None, None, 1, gen())[0]
        value = table.get(arm, 20.0) + (3 if arm == "no variational sampling" and kind == "disturbed" else 1) * kinds[kind]
        lpips = 0.1 + 0.02 * (arm in ("no SSIM", "no LPIPS", "no variational sampling")) - 0.03 * (kind == "sample")
        return {"psnr": torch.full((2, 1), value), "lpips": [lpips] * 2, "lpips, far": [lpips] * 2, "psnr, far": [value] * 2}

    monkeypatch.setattr(var, "judged", judged)
    monkeypatch.setattr(var, "load_autoreconstructor", Fake)
    monkeypatch.setattr(var, "load_one_image", lambda folder, autoreconstructor: Fake(autoreconstructor))
    monkeypatch.setattr(var, "disturbed", lambda net, views: lambda *words: [(net.arm, "disturbed")])
    monkeypatch.setattr(var, "reliance", lambda net, views: [0.5, 0.5] if net.arm == "skips never zeroed" else [4.0, 4.0])
    trained = []
    monkeypatch.setattr(var, "train_autoreconstructor", lambda out, preset, seed, **settings: trained.append((seed, settings)))
    monkeypatch.setattr(var, "train_codes", lambda out, preset, autoreconstructor, **more: trained.append((0, autoreconstructor)))
    monkeypatch.setattr(var, "read_card", lambda folder: dict(command="gsgen", hours=0.1, commit="c", machine="m"))
    monkeypatch.setattr(var, "KEPT", tmp_path / "kept")
    bars = []
    rows = var.arms(tmp_path, 2, False, None, bars)
    assert len(rows) == len(var.ARMS) and len(trained) == 2 * (len(var.ARMS) + 2)
    assert [settings for seed, settings in trained if seed == 1] == [var.STEPS | more for more in var.ARMS.values()]
    assert var.arms(tmp_path, 2, False, None, []) == rows and len(trained) == 2 * (len(var.ARMS) + 2)  # read, not trained again
    found = {b["id"].split(", lower")[0]: b["value"] for b in bars}
    assert found == {
        "19: dB lost where no skips": 1.5,
        "20: LPIPS on the far side that one diffusion sample has less than a regression": 0.05,
        "23: dB of one diffusion sample lost where no variational sampling": 1.0,
        "23: dB of a disturbed code lost where no variational sampling": 2.0,
        "19: reliance on the code lost where skips are never zeroed": 3.5,
        "25: LPIPS higher where no SSIM": 0.02, "25: LPIPS higher where no LPIPS": 0.02}

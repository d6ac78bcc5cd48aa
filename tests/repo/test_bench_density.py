"""gsgen bench density: what its parts count, with scenes and networks whose answers are known."""

import copy
import json

import numpy as np
import pytest
import torch

from gsgen_lib import bench
from gsgen_lib.data.multiview import toy_views
from gsgen_lib.metrics import psnr
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.feed_forward_metrics import cases
from gsgen_lib.systems.octree_density import DensityConfig, OctreeDensity
from gsgen_lib.training import seeded

density = bench.load("density")
WHITE = (1.0, 1.0, 1.0)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def toys():
    return toy_views(2, 5, 32, 24, points=128, progress=False)


@pytest.fixture(scope="module")
def model():
    config = DensityConfig(depth=3, tokens=8, width=24, heads=2, layers=(1, 1, 1, 1), gaussians=2)
    return seeded(lambda: OctreeDensity(config), 0).requires_grad_(False)


def test_contributions_are_exact_and_a_wrong_one_shows(monkeypatch):
    assert max(density.exactness(scenes=1, count=6, size=12).values()) < 1e-10
    right = density.contributions
    monkeypatch.setattr(density, "contributions", lambda *args: right(*args[:3], torch.zeros(3).double(), *args[4:]))
    wrong = density.exactness(scenes=1, count=6, size=12)
    assert wrong["black"] < 1e-10 < 1e-2 < wrong["white"]


def test_extra_time_is_a_ratio_of_neighbours(monkeypatch):
    clock = iter([2.0, 1.0, 3.0, 2.0, 1.1, 1.0])
    monkeypatch.setattr(density, "median_seconds", lambda call, times: next(clock))
    assert density.extra_time(3) == 1.5


def test_pruning_leaves_as_many_by_every_order(monkeypatch):
    g = Gaussians.random(16, scale=0.1, generator=gen())
    cameras = Cameras.orbit(4, width=24, height=24)
    truth = (rasterize(g, cameras, WHITE).rgb + 0.01 * torch.randn(4, 24, 24, 3, generator=gen())).clamp(0, 1)
    monkeypatch.setattr(density, "fitted", lambda objects: iter([(g, cameras, truth, cameras, truth)] * 2))
    left = []
    monkeypatch.setattr(density, "rasterize", lambda scene, *more: (left.append(scene.num), rasterize(scene, *more))[1])
    bars, rows = [], []
    rows = density.pruning(0, bars)
    assert left == [16] * 4 + [8] * 4 + [4] * 4 + [2] * 4 + ([16] * 4 + [8] * 4 + [4] * 4 + [2] * 4)
    assert [row["what"].split(" of")[0] for row in rows] == [f"held-out PSNR, 1 / {k}" for k in (1, 2, 4, 8)]
    opaque = g.select(g.opacities.argsort(descending=True)[:8])
    assert rows[1]["opacity"].startswith(f"{psnr(rasterize(opaque, cameras, WHITE).rgb.clamp(0, 1), truth).item():.2f}")
    assert len(bars) == 3 and all(b["ok"] for b in bars)  # worth of a scene to its own picture cannot lose


def test_a_group_of_gaussians_that_do_not_overlap_is_the_sum_of_them(model, toys, monkeypatch):
    """One Gaussian an anchor counts: then joint and sum are the same and correlate fully."""
    def alone(model, points, rgba, cameras, count, **more):
        g = Gaussians.random(count * 2, scale=0.05, generator=gen())
        g.opacities[1::2] = 1e-6  # the second of each pair is not there
        return g

    monkeypatch.setattr(density, "decoded", alone)
    row = density.groups(model, toys, 30)[0]
    assert row["correlation"] == "1.000" and row["sum over joint"] == "1.000"


def test_divergence_of_an_even_density_is_that_of_the_leaves(model, toys):
    even = density.replace_density(model)
    for apart, points in zip(density.divergence(even, toys), toys.points, strict=True):
        leaf = ((points[:, :3] + 0.5) * 8).long().clamp(0, 7) @ torch.tensor([64, 8, 1])
        share = torch.bincount(leaf, minlength=512) / len(points)
        assert apart == pytest.approx((3 * np.log(8) - torch.special.entr(share).sum().item()), abs=1e-4)


def test_leaf_counts_know_a_density_that_is_not_sampled(model, toys, monkeypatch):
    bars, likely = [], torch.tensor([2.5, 1.5, 0.5, 0, 0, 0, 0, 0])  # a few nodes get most
    model = copy.deepcopy(model)
    model.density.head.bias.copy_(likely)
    rows = density.leaf_counts(model, toys, bars, count=512, times=60)
    assert len(rows) == 3 and all(b["ok"] for b in bars)
    right = model.anchors

    def other(context, count, how, generator):  # always in the first half
        anchors = right(context, count, how, generator)
        anchors.points[..., 0] = -anchors.points[..., 0].abs()
        return anchors

    monkeypatch.setattr(model, "anchors", other)
    density.leaf_counts(model, toys, bars := [], count=512, times=60)
    assert not any(b["ok"] for b in bars[:3])


def test_scores_ask_the_questions_of_the_other_benches(model, toys, monkeypatch):
    found = density.scores(model, toys, (8, 16))
    assert set(found) == {"8", "8, box", "16", "16, box"} and all(len(x) == 2 for x in found.values())
    for value, (rgba, cameras, truth, there), points in zip(found["8"], cases(toys, 8), toys.points, strict=True):
        scene = density.decoded(model, points, rgba, cameras, 8)
        white = truth[..., :3] * truth[..., 3:] + 1 - truth[..., 3:]
        assert scene.num == 16 and value == pytest.approx(psnr(rasterize(scene, there, WHITE).rgb.clamp(0, 1), white).item(), abs=1e-3)
    on = density.decoded(model, toys.points[0], *next(iter(cases(toys, 8)))[:2], 8, surface=True).means.unflatten(0, (8, 2)).mean(1)
    assert (on[:, None] - toys.points[0, :, :3]).norm(dim=-1).amin(1).max() < 0.2


def test_arms_are_paired_and_kept(toys, monkeypatch, tmp_path):
    calls = []

    def scored(name, options, seed, folder, views, again):
        calls.append((name, seed))
        gain = {"stage 3": 1.0}.get(name, 0.0)
        return {f"{c}, box": [10 + i + seed + gain for i in range(3)] for c in density.COUNTS}

    monkeypatch.setattr(density, "arm", scored)
    bars = []
    rows = density.arms(density.JOINT, tmp_path, 2, False, toys, bars)
    assert calls == [(name, seed) for name in density.JOINT for seed in range(2)]
    less = [row for row in rows if row["arm"].startswith("stage 3 less")]
    assert len(less) == 2 and all(row["P = 64"] == "1.00 (1.00 to 1.00)" for row in less)
    assert [b["value"] for b in bars] == [1.0, 1.0, 1.0] * 2
    calls.clear()
    assert len(density.arms(density.TAMED, tmp_path, 1, False, toys, bars)) == 1 + 2 * len(density.TAMED)
    assert [name for name, _ in calls] == ["stage 3", *density.TAMED]


def test_an_arm_is_trained_from_its_base_once(toys, monkeypatch, tmp_path):
    trained = []
    monkeypatch.setattr(density, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(density, "train_density", lambda out, part, preset, **more: trained.append((out.name, part, more)) or {
        "hours": 0.1, "commit": "c", "machine": "m"})
    monkeypatch.setattr(density, "load_octree_density", lambda folder: folder)
    monkeypatch.setattr(density, "scores", lambda model, views, surface=False: {"64": [1.0], "surface": surface})
    found = density.arm("points of the surface", {"worth": "none", "anchors": "surface"}, 1, tmp_path, toys, False)
    assert [(name, part) for name, part, _ in trained] == [("structure_base_1", "structure"), ("appearance_base_1", "appearance"),
                                                           ("joint_points_of_the_surface_1", "joint")]
    assert trained[2][2]["anchors"] == "surface" and "anchors" not in trained[0][2] and found["surface"] is True
    assert json.loads((tmp_path / "kept" / "points_of_the_surface_1.json").read_text())["hours"] == 0.1
    density.arm("K = 2", {"gaussians": 2}, 0, tmp_path, toys, False)
    assert trained[3][0] == "structure_K__2_0" and trained[3][2]["gaussians"] == 2 and "gaussians" not in trained[5][2]
    count = len(trained)
    density.arm("K = 2", {"gaussians": 2}, 0, tmp_path, toys, False)
    assert len(trained) == count  # kept


@pytest.mark.parametrize("change, says", [(dict(part=6), "part: got 6"), (dict(seeds=0), "seeds: got 0"), (dict(toys=0), "toys: got 0")])
def test_options_that_do_not_fit_are_named(change, says):
    with pytest.raises(ValueError, match=says):
        density.main(**change)

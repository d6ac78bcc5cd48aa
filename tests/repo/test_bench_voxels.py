"""gsgen bench voxels and few_steps: what their parts count, with networks and curves whose answers are known."""

import json

import pytest
import torch

from gsgen_lib import bench
from gsgen_lib.data.multiview import toy_views
from gsgen_lib.data.occupancy import occupancy
from gsgen_lib.metrics import psnr
from gsgen_lib.nn.sparse_grid import Voxels
from gsgen_lib.systems.feed_forward_metrics import cases
from gsgen_lib.systems.prompt_scorer import load_scorer
from gsgen_lib.systems.sparse_voxels import AppearanceConfig, AppearanceVAE, StructureConfig, StructureVAE
from gsgen_lib.systems.sparse_voxels_flow import FlowConfig, SparseVoxels, VoxelFlow
from gsgen_lib.training import seeded

voxels, few_steps = bench.load("voxels"), bench.load("few_steps")
R = 16


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def toys():
    return toy_views(2, 5, 64, 24, progress=False)


@pytest.fixture(scope="module")
def sampler():
    small = dict(width=24, heads=2, layers=1)

    def make():
        return SparseVoxels(StructureVAE(StructureConfig(resolution=R, widths=(8, 8))),
                            AppearanceVAE(AppearanceConfig(resolution=R, width=24, heads=2, layers=1)),
                            VoxelFlow(FlowConfig(numbers=64, reach=2, **small)),
                            VoxelFlow(FlowConfig(numbers=64, extra=8, reach=8, **small)),
                            lambda captions: torch.zeros(len(captions), 5, 96))

    return seeded(make, 0)


def test_occupied_shares_are_counted(toys):
    bars = []
    row = voxels.emptiness({"toys": toys}, bars)[0]
    share = {r: sum(int(occupancy(p, r).sum()) for p in toys.points) / (2 * r**3) for r in (16, 32, 64)}
    assert all(row[f"R = {r}"].startswith(f"{s:.4f} ") for r, s in share.items())
    assert [b["value"] for b in bars] == [pytest.approx(share[16] / share[32], abs=1e-3),
                                          pytest.approx(share[32] / share[64], abs=1e-3)]


def test_autoencoders_are_asked_on_the_same_questions(toys, sampler, monkeypatch):
    """A structure that is decoded as it was has IoU 1; the splat autoencoder gets as many Gaussians as there are voxels times K."""
    grids = torch.stack([occupancy(p, R) for p in toys.points])
    monkeypatch.setattr(sampler.structure, "decode", lambda z: torch.where(grids, 1.0, -1.0))
    asked = []
    monkeypatch.setattr(voxels, "most_opaque", lambda scenes, count: asked.append(count) or scenes)
    bars = []
    with torch.no_grad():
        rows = voxels.autoencoders(sampler, {"toys": toys}, bars)
    assert rows[0]["IoU"].startswith("1.000") and len(rows) == 1 + 4 + 2
    assert asked == [2 * int(g.sum()) for g in grids]
    psnr = {row["what"]: float(row["PSNR"].split()[0]) for row in rows[1:]}
    below = psnr["splat autoencoder, as many Gaussians"] - psnr["voxels, from 8 views"]
    assert bars[0]["value"] == 1.0 and bars[1]["value"] == pytest.approx(below, abs=0.011)


def test_time_is_taken_on_the_tokens_that_it_names(toys, sampler, monkeypatch):
    clock = iter([1.0, 2.0, 8.0, 3.0, 4.5])  # whole, sparse, dense, packed, padded
    monkeypatch.setattr(voxels, "median_seconds", lambda call, times=5: (call(), next(clock))[1])
    rows = voxels.speed(sampler, toys, bars := [])
    cells = Voxels.from_grid(torch.stack([occupancy(p, R) for p in toys.points])).cells()[3]
    assert [row.get("tokens") for row in rows] == [None, sorted(cells)[1], (R // 2) ** 3, sum(cells), 2 * max(cells)]
    assert [b["value"] for b in bars] == [1.0, 4.0, 1.5]
    products = [float(row["billion products"]) for row in rows[1:]]
    assert products[0] < products[1] and products[2] <= products[3]


def test_what_was_kept_is_compared_to_the_bit(sampler, monkeypatch):
    with torch.no_grad():
        bars = []
        rows = voxels.editing(sampler, load_scorer(), 2, bars)
        assert bars[0]["value"] == 1.0 and "2 toys" in rows[0]["what"]
        whole = voxels.repaint

        def decoded_anew(sampler, asset, given, box, **settings):
            found = whole(sampler, asset, given, box, **settings)
            return found.__class__(found.voxels, found.latents, found.raw + 1e-6)

        monkeypatch.setattr(voxels, "repaint", decoded_anew)
        voxels.editing(sampler, load_scorer(), 2, bars := [])
    assert bars[0]["value"] == 0.0


def test_the_other_colour_is_asked_for_and_listened_to(sampler, monkeypatch):
    asked, told = [], []

    class Judge:
        def similarity(self, pictures, prompts):
            asked.append(prompts)
            return torch.tensor([[0.2, 0.8]]).expand(len(pictures), -1)

    condition = sampler.condition
    monkeypatch.setattr(sampler, "condition", lambda captions: told.append(captions) or condition(captions))
    with torch.no_grad():
        rows = voxels.editing(sampler, Judge(), 2, bars := [])
    new = {prompts[1] for prompts in asked}
    for old, said in asked:
        changed = [(a, b) for a, b in zip(old.split(), said.split(), strict=True) if a != b]
        assert changed and all(a in voxels.COLOURS and b in voxels.COLOURS for a, b in changed)
    assert {c for one in told for c in one if c} == new
    assert bars[1]["value"] == 1.0 and all(row["share"].startswith("1.0") for row in rows[1:4])


def test_scenes_are_asked_for_as_their_rows_say(toys, sampler, monkeypatch):
    asked, compared, ranked = [], [], []
    sample, kid, first = sampler.sample, voxels.kid, voxels.captions_first

    def remember(captions, pictures=None, **more):
        asked.append((captions, pictures is not None, more["guidance_scale"]))
        return sample(captions, pictures, steps=1, **more)

    monkeypatch.setattr(sampler, "sample", remember)
    monkeypatch.setattr(voxels, "kid", lambda a, b, features: compared.append((a, b)) or kid(a, b, features=features))
    monkeypatch.setattr(voxels, "captions_first", lambda judge, x, captions: ranked.append(x) or first(judge, x, captions))
    with torch.no_grad():
        rows = voxels.scenes(sampler, load_scorer(), 4, toys[[0, 1]], toys, bars := [])
    assert asked == [([""] * 4, False, 1.0), (toys.captions, False, 3.0), ([""] * 2, True, 2.0)]
    assert all(torch.equal(b, compared[0][1]) and not torch.equal(a, b) for a, b in compared) and len(compared) == 3
    true = voxels.white(toys.images.flatten(0, 1).float() / 255)
    assert not torch.equal(ranked[0], true) and torch.equal(ranked[1], true)
    assert bars[0]["value"] == pytest.approx(float(rows[3]["own caption first of 50"]), abs=0.01)
    scene = sample([""] * 2, torch.stack([rgba[0] for rgba, *_ in cases(toys, 1)]), steps=1, guidance_scale=2.0, generator=gen())
    near = [psnr(voxels.look(s, at), voxels.white(rgba)).item() for s, (rgba, at, *_) in zip(scene, cases(toys, 1), strict=True)]
    assert float(rows[-1]["PSNR, the picture"].split()[0]) == pytest.approx(sum(near) / 2, abs=0.011)


def test_steps_that_ddpm_needs_are_read_off_the_mean_curve(monkeypatch, tmp_path):
    at = [str(n) for n in few_steps.AT]

    def curves(path, make, again):
        shift = 0.01 * int(path.stem[-1])  # seeds differ, means count
        flow = dict(zip(at, [0.5, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2], strict=True))
        ddpm = dict(zip(at, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4 + shift, 0.2, 0.1], strict=True))
        return {"flow": flow, "ddim": {n: 0.3 for n in at}, "ddpm": ddpm, "floor": 0.1}

    monkeypatch.setattr(few_steps, "kept", curves)
    rows = few_steps.steps(0, tmp_path, 2, False, bars := [])
    assert [b["value"] for b in bars] == [5.0, 5.0] and all(b["ok"] for b in bars)
    told = {row["what"]: row["steps"] for row in rows if "that" in row["what"]}
    assert told["points: steps that ddim needs for what flow has after 12"] == "more than 120"
    assert told["structure latents: steps that ddpm needs for what flow has after 12"] == "60"
    assert len(few_steps.steps(1, tmp_path, 2, False, [])) == len(rows) / 2 == 5


def test_curves_of_points_use_one_half_to_learn_and_the_other_to_judge(monkeypatch):
    learned, asked = [], []

    def remember(points, ddpm, seed):
        learned.append(points)
        return lambda x, t: asked.append(ddpm) or torch.zeros_like(x)

    monkeypatch.setattr(few_steps, "train_points", remember)
    monkeypatch.setattr(few_steps, "AT", (2, 3))
    found = few_steps.point_curves(few_steps.POINTS[0], 0)
    assert len(learned) == 2 and torch.equal(*learned) and len(learned[0]) == 1024
    assert set(found) == {"flow", "ddim", "ddpm", "floor"} and set(found["flow"]) == {"2", "3"}
    assert asked == [False] * 5 + [True] * 10  # flow, then ddim and ddpm, 2 + 3 steps each
    assert found["floor"] < 0.2 < found["flow"]["2"]  # a flow that stands still draws noise


def test_structure_arms_are_scored_on_both_sets(toys, monkeypatch, tmp_path):
    class Same:
        def __init__(self, folder):
            self.good = "both" in str(folder)
            self.config = StructureConfig(resolution=R, dice_alone=not self.good)

        def encode(self, grid):
            return grid, grid

        def decode(self, z):
            return torch.where(z, 1.0, -1.0) if self.good else -torch.ones(z.shape)

    trained = []
    monkeypatch.setattr(few_steps, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(few_steps, "load_structure", Same)

    def train(out, preset, steps, part, dice_alone, seed):
        (out / "model").mkdir(parents=True)
        card = {"sha256": {"a": "b"}, "command": "c", "hours": 0.1, "commit": "of then", "machine": "m"}
        (out / "model" / "card.json").write_text(json.dumps(card))
        trained.append((part, preset, steps, dice_alone, seed))

    monkeypatch.setattr(few_steps, "train_voxels", train)
    rows = few_steps.structure_arms(tmp_path, 2, False, {"toys": toys})
    assert [row["IoU, toys"].split()[0] for row in rows] == ["1.000", "0.000"]
    assert trained == [("structure", "experiment", few_steps.ARM_STEPS, dice, seed) for dice in (False, True) for seed in (0, 1)]
    assert few_steps.structure_arms(tmp_path, 2, False, {"toys": toys}) == rows and len(trained) == 4
    few_steps.structure_arms(tmp_path, 2, True, {"toys": toys})  # again
    assert len(trained) == 8
    assert json.loads((tmp_path / "kept" / "structure_dice_1.json").read_text())["commit"] == "of then"
    monkeypatch.setattr(few_steps, "load_structure", lambda folder: Same("both"))
    with pytest.raises(ValueError, match="network of another kind"):
        few_steps.structure_arm(tmp_path / "structure_dice_0", True, 0, False, {"toys": toys})


def test_curves_of_latents_come_from_the_network_of_each_method(monkeypatch, tmp_path):
    """Two flows that know the answer, one for each road: the right one arrives at the truth's mean, which has a known distance."""
    monkeypatch.setattr(few_steps, "AT", (2,))
    monkeypatch.setattr(few_steps, "LATENTS", 4)
    config = {ddpm: FlowConfig(numbers=64, reach=4, width=24, heads=2, layers=1, ddpm=ddpm) for ddpm in (False, True)}
    nets = {ddpm: VoxelFlow(c).requires_grad_(False) for ddpm, c in config.items()}
    asked, cards = [], []
    for ddpm, net in nets.items():
        monkeypatch.setattr(net, "forward", lambda x, extra, places, lengths, t, given, d=ddpm: asked.append(
            (d, len(lengths), bool(given.seen.any()))) or torch.zeros_like(x))

    def card(out, again, **settings):
        cards.append(settings)
        return {"autoencoder_sha256": few_steps.pretrained.read_card(few_steps.pretrained.folder_of("voxel_structure"))[
            "sha256"]["model.safetensors"], "command": "c", "hours": 1, "commit": "k", "machine": "m"}

    small = toys_as_sets = [toy_views(6, 5, 64, 8, progress=False), toy_views(9, 6, 64, 8, progress=False)]
    monkeypatch.setattr(few_steps, "trained", card)
    monkeypatch.setattr(few_steps, "load_flow", lambda folder: nets["ddpm" in str(folder)])
    monkeypatch.setattr(few_steps, "training_objects", lambda *words: (small, toys_as_sets[0]))
    found = few_steps.latent_curves(tmp_path, 0, False)
    assert [(c["part"], c["ddpm"]) for c in cards] == [("structure-flow", False), ("structure-flow", True)]
    assert asked == [(False, 4, False)] * 2 + [(True, 4, False)] * 4  # flow, then ddim and ddpm; no picture is shown
    assert found["command"] == "c" and found["commit"] == "k" and set(found["flow"]) == {"2"}
    assert 0 < found["floor"] and found["flow"]["2"] > 0
    monkeypatch.setattr(few_steps, "load_flow", lambda folder: nets[False])
    with pytest.raises(ValueError, match="network of another kind"):
        few_steps.latent_curves(tmp_path, 0, False)

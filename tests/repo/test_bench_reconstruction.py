"""What the reconstruction benches count, on cases whose answer is known."""

import numpy as np
import pytest
import torch

from gsgen_lib import bench
from gsgen_lib.data.multiview import toy_views
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems.feed_forward_metrics import BASELINES, cases, evaluate
from gsgen_lib.systems.splat_diffusion_metrics import hidden_toys

forward, latents = bench.load("feedforward"), bench.load("latents")


@pytest.fixture(scope="module")
def toys():
    return toy_views(2, 41, 32, 16, points=32, progress=False)


class Known:
    """A network that answers with the coloured hull."""

    def reconstruct(self, rgba, cameras):
        return BASELINES["coloured hull"](rgba, cameras, 24)


def test_thin_parts_are_what_no_square_of_five_fits_into():
    alpha = torch.zeros(3, 20, 20)
    alpha[0, 4:12, 4:12] = 1  # solid
    alpha[0, 7:9, 12:18] = 1  # with a spike two wide
    alpha[1, 2:18, 9:13] = 1  # a pole four wide
    alpha[2, :6, :6] = 1  # solid at the rim
    found = forward.thin_parts(torch.cat([torch.zeros(3, 20, 20, 3), alpha[..., None]], -1))
    solid = alpha.numpy() > 0.5
    for v in range(3):
        kept = np.zeros((20, 20), bool)
        for y in range(16):
            for x in range(16):
                if solid[v, y:y + 5, x:x + 5].all():
                    kept[y:y + 5, x:x + 5] = True
        assert (found[v].numpy() == (solid[v] & ~kept)).all()
    assert found[0].sum() == 12 and found[1].sum() == 64 and not found[2].any()


def test_thin_rows_count_pixels(toys):
    rows = forward.thin_rows(Known(), toys, "toys")
    found = {"thin": [], "other": []}
    for rgba, cameras, truth, there in cases(toys, 4):
        alpha = forward.rasterize(Known().reconstruct(rgba, cameras), there).alpha[..., 0] > 0.5
        thin = forward.thin_parts(truth)
        found["thin"].append(alpha[thin]), found["other"].append(alpha[(truth[..., 3] > 0.5) & ~thin])
    for name, parts in found.items():
        assert rows[0][f"silhouette found, {name}"] == f"{torch.cat(parts).float().mean():.3f}"


def test_a_fit_is_timed_until_it_is_as_good_and_not_before(toys, monkeypatch):
    easy = forward.fit_times(Known(), toys, 1, (20,))[0]
    assert easy["_4"] > 0 and (" s" in easy["fit of 4 views"]) and float(easy["best PSNR, 16"]) > 5

    class Plan:  # a plan of 40 steps is as good as the network at 20 and later, one of 80 steps at 70
        def __init__(self, steps):
            good = 20 if steps == 40 else 70
            self.snapshots = [(step, 6.0 if step >= good else 4.0) for step in range(10, steps + 1, 10)]

    with monkeypatch.context() as known:
        known.setattr(forward, "fit", lambda pictures, at, config, **more: Plan(config.steps))
        known.setattr(forward, "score_of", lambda scene, truth, there: scene if isinstance(scene, float) else 5.0)
        known.setattr(forward, "early", lambda *args: 1e-9)  # seconds of a step, below any that is measured
        row = forward.fit_times(Known(), toys, 1, (80, 40))[0]
        assert row["_4"] == pytest.approx(20e-9) and row["_16"] == pytest.approx(20e-9)
        assert row["best PSNR, 4"] == "6.00" and row["PSNR"] == "5.00"

    class Perfect:
        def reconstruct(self, rgba, cameras):
            return None

    score_of = forward.score_of
    monkeypatch.setattr(forward, "score_of", lambda scene, *asked: 99.0 if scene is None else score_of(scene, *asked))
    never = forward.fit_times(Perfect(), toys, 1, (10, 20))[0]
    assert never["fit of 4 views"].startswith("never in") and never["PSNR"] == "99.00"


def test_bent_inputs_leave_the_first_view(toys):
    asked = []

    class Spy:
        def reconstruct(self, rgba, cameras):
            asked.append((rgba, cameras))

    rgba, cameras, _, _ = next(cases(toys))
    forward.bent(Spy(), True, 0)(rgba, cameras)
    forward.bent(Spy(), False, 0)(rgba, cameras)
    (harmed, turned), (clean, there) = asked
    assert torch.equal(clean, rgba) and torch.equal(there.viewmats, cameras.viewmats)
    assert torch.equal(harmed[0], rgba[0]) and torch.equal(turned.viewmats[0], cameras.viewmats[0])
    assert (harmed[1:] != rgba[1:]).any() and (turned.viewmats[1:] != cameras.viewmats[1:]).any()


def test_rows_hold_the_means_of_their_objects(toys):
    scores = evaluate(Known().reconstruct, toys)
    row = forward.scored("toys", "hull", scores)
    for name, key in (("PSNR", "psnr"), ("box PSNR", "box"), ("alpha IoU", "iou")):
        assert row[name].split()[0] == f"{np.mean([s[key] for s in scores]):.{3 if key == 'iou' else 2}f}"


class Told:
    """A sampler whose latents are the row of a table: what it draws is known."""

    device = torch.device("cpu")
    cameras = Cameras.orbit(4, width=32, height=32)


def test_the_posterior_of_a_sampler_that_knows_the_odds_holds_and_of_one_that_does_not_fails(monkeypatch):
    every = hidden_toys(14, size=32)
    monkeypatch.setattr(latents, "hidden_toys", lambda count, seed=0: every)
    monkeypatch.setattr(latents, "back_camera", lambda: None)
    monkeypatch.setattr(latents, "rasterize", lambda scene, cameras, background: scene)
    monkeypatch.setattr(latents, "render", lambda scenes, cameras: scenes)
    state = {}

    class Rendered:
        def __init__(self, rgb):
            self.rgb = rgb

    class Sampler(Told):
        def __init__(self, fair):
            self.fair, self.vae = fair, self
            self.at = -1

        def condition(self, captions, rgba, places):
            self.at += 1
            assert torch.equal(rgba[0], every[self.at].rgba[:1]) and places == (0,)
            state["case"] = every[self.at]
            return torch.zeros(1, 1)

        def draw(self, told, generator, guidance_scale):
            case = state["case"]
            if self.fair:
                return torch.multinomial(case.odds, len(told), True, generator=generator)
            return torch.full((len(told),), int(case.odds.argmax()))

        def decode(self, z):
            return state["case"].pictures[z.long()]

        def reconstruct(self, rgba, cameras):
            return Rendered(state["case"].pictures[[state["case"].true]])

    def bars_of(fair, samples=200):
        bars = []
        mean = Sampler(fair)

        def mean_row(toys, reference):
            return latents.mean_backs(mean, lambda told: torch.zeros(1), toys, samples, reference)

        rows = latents.posterior(Sampler(fair), mean_row, 14, samples, bars)
        return {b["id"]: b for b in bars}, rows

    fair, rows = bars_of(True)
    assert all(b["ok"] for b in fair.values()) and len(fair) == 3
    assert fair["reader of hidden attributes right on true scenes through the autoencoder"]["value"] == 1
    assert [r["what"].split(": ")[-1] for r in rows[:3]] == ["samples", "regression", "truth"]
    unfair, _ = bars_of(False)
    assert not unfair["total variation of hidden attributes, pooled"]["ok"]
    assert not unfair["total variation, one toy, less that of fair draws"]["ok"]

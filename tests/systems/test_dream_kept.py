"""What a run of DreamGaussian keeps, and refuses to go on from; what the command hands to the run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems import dreamgaussian, dreamgaussian_sample
from gsgen_lib.systems.dreamgaussian import dream
from gsgen_lib.systems.dreamgaussian_sample import Textured, made_here, sample_dreamgaussian
from gsgen_lib.systems.fitting import FitResult
from gsgen_lib.training import load_state, save_state
from tests.systems.test_dreamgaussian import FEW, OneColour, gen

LONG = replace(FEW, steps=60, init=20, size=8, densify_every=100)


@pytest.fixture
def kept(tmp_path):
    """A folder with the checkpoint of step 50 of LONG."""
    prior = OneColour()
    prior.fail_at = 55
    with pytest.raises(KeyboardInterrupt):
        dream(prior, "x", LONG, generator=gen(), folder=tmp_path, progress=False)
    assert load_state(tmp_path / "dream.pt", ("step",))["step"] == 50
    return tmp_path


@pytest.mark.parametrize("name,value", [
    ("run", None), ("raw", None), ("adam", {}), ("adam", None), ("generator", None), ("generator", torch.zeros(3, dtype=torch.uint8)),
    ("pull", torch.zeros(3)), ("step", 49), ("step", "50"), ("step", 1000), ("log", None), ("log", []),
])
def test_a_checkpoint_whose_parts_do_not_fit_is_refused(kept, name, value):
    state = load_state(kept / "dream.pt", ())
    save_state(kept / "dream.pt", {**state, name: value})
    with pytest.raises(ValueError, match="dream.pt: damaged"):
        dream(OneColour(), "x", LONG, generator=gen(), folder=kept, progress=False)


def test_moments_and_numbers_that_are_missing_are_noticed(kept):
    state = load_state(kept / "dream.pt", ())
    adam = {**state["adam"], "state": {}}
    for change in ({"adam": adam}, {"raw": {k: v for k, v in state["raw"].items() if k != "quats"}},
                   {"raw": {**state["raw"], "means": state["raw"]["means"][1:]}}):
        save_state(kept / "dream.pt", {**state, **change})
        with pytest.raises(ValueError, match="dream.pt: damaged"):
            dream(OneColour(), "x", LONG, generator=gen(), folder=kept, progress=False)


def test_a_flipped_bit_is_noticed(kept):
    """Control: the file as it was is taken."""
    path = kept / "dream.pt"
    whole = path.read_bytes()
    means = load_state(path, ())["raw"]["means"].numpy().tobytes()
    place = whole.index(means[:32]) + 3
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1:])
    with pytest.raises(ValueError, match="dream.pt: damaged"):
        dream(OneColour(), "x", LONG, generator=gen(), folder=kept, progress=False)
    path.write_bytes(whole)
    assert len(dream(OneColour(), "x", LONG, generator=gen(), folder=kept, progress=False).log) == 60


def test_numpy_numbers_are_kept_as_numbers(tmp_path):
    config = replace(LONG, lr_means=np.float64(5e-3), elevations=(np.float64(-10), np.float64(50)))
    first = dream(OneColour(), "x", config, elevation=np.float64(15), generator=gen(), folder=tmp_path, progress=False)
    again = dream(OneColour(), "x", config, elevation=15.0, generator=gen(), folder=tmp_path, progress=False)
    assert torch.equal(first.gaussians.means, again.gaussians.means)
    save_state(tmp_path / "x.pt", {"a": np.arange(3), "b": (np.int64(2), [np.float32(0.5)])})
    assert load_state(tmp_path / "x.pt", ()) == {"a": [0, 1, 2], "b": (2, [0.5])}


class Sick(OneColour):
    """Answers NaN once, at the given call."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def predict_eps(self, *arguments, **named):
        answer = super().predict_eps(*arguments, **named)
        return answer * float("nan") if len(self.asked) == self.call else answer


@pytest.mark.parametrize("call", [50, 56, 60])
def test_nan_reaches_neither_the_result_nor_a_checkpoint(tmp_path, call):
    """The run stops and says where; with a sound prior it goes on from the last whole checkpoint, if there is one."""
    with pytest.raises(ValueError, match=f"the loss of step {call - 1} .* is nan"):
        dream(Sick(call), "x", LONG, generator=gen(), folder=tmp_path, progress=False)
    assert (tmp_path / "dream.pt").is_file() == (call > 50)
    found = dream(OneColour(), "x", LONG, generator=gen(), folder=tmp_path, progress=False).gaussians
    assert torch.equal(found.means, dream(OneColour(), "x", LONG, generator=gen(), progress=False).gaussians.means)


def test_a_prior_with_other_weights_is_another():
    def prior(last):
        part = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        for i, p in enumerate(part.parameters()):
            torch.nn.init.constant_(p, 1.0 if i < 3 else last)
        made = OneColour()
        made.name, made.vae = "p", part
        return dreamgaussian._fingerprint(made)

    assert prior(1.0) == prior(1.0) != prior(1.5)


def test_times_are_those_of_the_priors_own_schedule():
    """A schedule of 100 steps is walked from its noisy end to its clean one."""
    prior = OneColour()
    prior.alphas_cumprod = prior.alphas_cumprod[::10]
    dream(prior, "x", replace(LONG, steps=20, low=2, high=95), generator=gen(), progress=False)
    times = [t for t, _, _ in prior.asked]
    assert times[0] == 95 and times[-1] == 5 and all(a >= b for a, b in zip(times, times[1:], strict=False))


# ---- the command


def test_the_command_hands_over_what_it_was_given(tmp_path, monkeypatch):
    """Picture, elevation, guessed caption, seed; the refined mesh is the one that ends in mesh.glb."""
    seen = {}

    def fake_dream(painter, caption, config, **more):
        seen.update(more, caption=caption)
        return FitResult(Gaussians.random(200, generator=gen()))

    grey = Textured(None, torch.full((4, 4, 3), 0.5))
    monkeypatch.setattr(dreamgaussian_sample, "dream", fake_dream)
    monkeypatch.setattr(dreamgaussian_sample, "guess_caption", lambda picture, judge: "a red mug")
    monkeypatch.setattr(dreamgaussian_sample, "to_mesh", lambda scene: grey)
    monkeypatch.setattr(dreamgaussian_sample, "refined", lambda *a, **k: Textured("refined", grey.texture))
    saved = {}
    monkeypatch.setattr(Textured, "save", lambda self, path: saved.update({path.name: self.mesh}))
    stop = RuntimeError("far enough")

    def render(textured, cameras):
        raise stop

    monkeypatch.setattr(dreamgaussian_sample, "render_mesh_at", render)
    picture = np.zeros((20, 20, 4), np.uint8)
    picture[5:15, 5:15] = (200, 10, 10, 255)
    Image.fromarray(picture).save(tmp_path / "x.png")
    with pytest.raises(RuntimeError, match="far enough"):
        sample_dreamgaussian("", tmp_path / "x.png", tmp_path / "out", seed=7, elevation=33.0, device="cpu")
    assert seen["caption"] == "a red mug" and seen["elevation"] == 33.0 and seen["picture"].shape == (64, 64, 4)
    assert seen["picture"][32, 32, 0] > 0.7 and seen["generator"].initial_seed() == 7
    assert saved == {"mesh_baked.glb": None, "mesh.glb": "refined"}


def test_the_words_of_a_prior_made_here_are_known_wherever_it_lies(tmp_path):
    from gsgen_lib.pretrained import folder_of

    assert made_here(str(folder_of("prior"))) and not made_here(str(tmp_path))
    with pytest.raises(ValueError, match="'xyzzy' is no word"):
        sample_dreamgaussian("a xyzzy", prior=str(folder_of("prior")), out=tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_a_device_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="device: got 'cuda', but torch finds no CUDA"):
        sample_dreamgaussian("a red mug", device="cuda", out=tmp_path)

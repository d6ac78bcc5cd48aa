"""The code makes such models: tiny trainings fall below stated baselines, ship as they are loaded, and resume."""

import json

import numpy as np
import pytest
import torch

from gsgen_lib import pretrained
from gsgen_lib.data.captioned_views import draw_pictures, draw_rows, toy_views
from gsgen_lib.systems import autoencoder_training, prior_training, scorer_training
from gsgen_lib.systems.prior import load_prior
from gsgen_lib.systems.prior_networks import EncodeDecode, make_autoencoder
from gsgen_lib.systems.prompt_scorer import load_scorer, rank_of_own
from gsgen_lib.training import seeded


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def views():
    return toy_views(6, np.random.default_rng(11))


@pytest.fixture(scope="module")
def trained(views, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    return folder, prior_training.train_prior(folder, "tiny", views=views, device="cpu")


def rows_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_autoencoder_beats_the_median_picture(trained, views):
    """Baseline: each picture replaced by the median of all, the best guess in L1 that does not look at it."""
    prior = load_prior(trained[0] / "model")
    pictures = draw_pictures(views, draw_rows(views, 24, gen()), gen(1))[0]
    with torch.no_grad():
        error = (prior.decode(prior.encode_image(pictures)) - pictures).abs().mean((1, 2, 3))
    blind = (pictures - pictures.median(0).values).abs().mean((1, 2, 3))
    assert error.mean() < 0.8 * blind.mean()
    losses = [row["loss"] for row in rows_of(trained[0] / "autoencoder")]
    assert losses[-1] < 0.8 * losses[0]


def test_the_decoder_learns_to_decode_noisy_latents_and_the_encoder_stays(trained, views):
    """Baseline: the same decoder before."""
    models = []
    for stage in ("autoencoder", "decoder"):
        models.append(EncodeDecode(make_autoencoder((16, 16, 16))).eval())
        shadow = torch.load(trained[0] / stage / "checkpoint.pt", weights_only=True)["ema"]["shadow"]
        models[-1].load_state_dict({name: value for name, value in shadow.items() if not name.startswith("judge")})
    before, after = (model.state_dict() for model in models)
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "post_quant_conv"}
    x = draw_pictures(views, draw_rows(views, 24, gen()), gen(1))[0].movedim(-1, 1) * 2 - 1
    errors = []
    for model in models:
        model.noise = autoencoder_training.NOISE / load_prior(trained[0] / "model").scaling
        with torch.no_grad():
            errors.append((model(x, gen(2))[0] - x).abs().mean().item())
    assert errors[1] < 0.95 * errors[0]


def test_a_linear_start_learns_faster_than_the_librarys_own(views):
    """The same autoencoder, data and steps; the control starts from diffusers' initial weights."""
    pictures = draw_pictures(views, draw_rows(views, 16, gen()), gen(1))[0]
    x = pictures.movedim(-1, 1) * 2 - 1

    def error(fresh):
        model = seeded(lambda: EncodeDecode(make_autoencoder((16, 16, 16))), 0)
        if fresh:  # a new one of the same class, as the library makes it
            model.vae = seeded(lambda: type(model.vae).from_config(model.vae.config), 0)
        optimizer, generator = torch.optim.Adam(model.parameters(), 1e-3), gen(2)
        for _ in range(40):
            loss = (model(x, generator)[0] - x).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    assert error(fresh=False) < 0.7 * error(fresh=True)


def test_the_diffusion_model_beats_the_best_linear_guess(trained):
    """Latents and noise have variance 1, so v and x_t are uncorrelated and the best linear guess of v is 0: loss 1."""
    losses = [row["loss"] for row in rows_of(trained[0] / "diffusion")]
    assert losses[-1] < 0.8


def test_the_text_encoder_learns_beside_pictures_and_is_then_frozen(trained):
    losses = [row["loss"] for row in rows_of(trained[0] / "text_encoder")]
    assert losses[-1] < 0.95 * (np.log(8) + np.log(7))  # chance: one of 8 pictures, one of 7 prompts
    kept = torch.load(trained[0] / "text_encoder/checkpoint.pt", weights_only=True)["ema"]["shadow"]
    after = torch.load(trained[0] / "diffusion/checkpoint.pt", weights_only=True)["model"]
    names = [name for name in kept if name.startswith("text_encoder.")]
    assert names and all(torch.equal(kept[name], after[name]) for name in names)


def test_the_folder_is_a_diffusers_pipeline_with_a_card(trained):
    folder, card = trained
    assert pretrained.checked_folder(folder / "model") and card["name"] == "prior"
    assert card["command"] == "gsgen train prior --preset tiny"
    tiny = prior_training.PRESETS["tiny"]
    assert card["steps"] == {"autoencoder": tiny["vae"]["steps"], "text encoder": tiny["text"]["steps"],
                             "diffusion": tiny["steps"], "decoder": tiny["decoder"], "view classifier": tiny["view"]["steps"],
                             "view reward": tiny["reward"]["steps"]}
    prior = load_prior(folder / "model")
    assert prior.prediction == "v" and prior.alphas_cumprod[-1] == 0  # zero terminal SNR
    a = prior.sample(["a red mug, front view"] * 2, 2, generator=gen())
    assert a.shape == (2, 64, 64, 3) and (a[0] - a[1]).abs().max() > 0
    samples = sorted(p.name for p in (folder / "diffusion").glob("samples_*.png"))
    assert samples[-1] == f"samples_{prior_training.PRESETS['tiny']['steps']:06d}.png"


def test_calling_again_trains_nothing_anew(trained, views):
    folder, card = trained
    before = (folder / "diffusion/checkpoint.pt").read_bytes()
    again = prior_training.train_prior(folder, "tiny", views=views, device="cpu")
    assert (folder / "diffusion/checkpoint.pt").read_bytes() == before
    assert again["sha256"] == card["sha256"]  # the same weights, to the bit
    with pytest.raises(ValueError, match="holds latents of 60 other views, wanted those of these 10"):
        prior_training.train_prior(folder, "tiny", views=toy_views(1, np.random.default_rng(0)), device="cpu")
    with pytest.raises(ValueError, match="preset: got 'huge'"):
        prior_training.train_prior(folder, "huge")


def test_latents_are_kept_and_made_anew_for_another_autoencoder_only(tmp_path):
    path, (a, b) = tmp_path / "latents.safetensors", [seeded(lambda: make_autoencoder((16, 16, 16)), s) for s in (0, 1)]
    few, others = (toy_views(1, np.random.default_rng(s)) for s in (0, 1))
    assert len(few) == len(others)
    last = prior_training.kept_latents(path, a, few, 0)
    found, written = prior_training.kept_latents(path, b, few, 0), path.stat().st_mtime_ns
    assert not torch.equal(found, last)
    assert torch.equal(prior_training.kept_latents(path, b, few, 0), found) and path.stat().st_mtime_ns == written
    for views, seed in ((others, 0), (few, 1)):
        with pytest.raises(ValueError, match="holds latents of 10 other views"):
            prior_training.kept_latents(path, b, views, seed)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="latents.safetensors: damaged"):
        prior_training.kept_latents(path, b, few, 0)


def test_the_scorer_learns_to_tell_its_toys_apart(views, tmp_path):
    """Baseline: chance, one in six; an untrained judge is the control."""
    card = scorer_training.train_scorer(tmp_path, "tiny", views=views, device="cpu")
    scorer = load_scorer(tmp_path / "model")
    one_each = torch.arange(0, len(views), 10)
    pictures = torch.cat([draw_pictures(views, one_each, gen(s))[0] for s in range(4)])
    captions = [views.captions[int(i)] for i in one_each] * 4

    def first(judge):
        return (rank_of_own(judge, pictures, captions, 5, gen()) == 0).float().mean().item()

    assert first(scorer) > 0.5
    assert rows_of(tmp_path)[-1]["loss"] < rows_of(tmp_path)[0]["loss"]
    assert 0 <= card["metrics"]["top1"] <= 1 and card["metrics"]["pictures"] == 400


def test_a_prior_of_another_size(tmp_path, monkeypatch):
    """The preset "gpu" paints 128 x 128; here with 32 x 32, from its own toys, through every stage and back from the folder."""
    small = dict(toys=6, real=(), size=32, channels=(16, 32), vae=dict(channels=(16, 16, 16), steps=3, batch=4, lr=1e-3), decoder=2,
                 text=dict(steps=2, batch=4), steps=3, batch=4, view=dict(steps=2, batch=4), reward=dict(steps=1, batch=4))
    monkeypatch.setitem(prior_training.PRESETS, "tiny", small)
    prior_training.train_prior(tmp_path, "tiny", device="cpu")
    prior = load_prior(tmp_path / "model")
    assert prior.size == 32 and prior.latent_shape == (4, 8, 8)
    assert prior.sample(["a red mug, front view"], 2, generator=torch.Generator().manual_seed(0)).shape == (1, 32, 32, 3)

"""Stage 5 of the prior: the differentiable sampler against the library's, the teacher on latents whose view is known, the reward."""

import numpy as np
import pytest
import torch

from gsgen_lib.data.captioned_views import VIEW_WORDS, prompt_of, toy_views
from gsgen_lib.data.toys import heldout_combinations, parse_caption
from gsgen_lib.diffusion import ddim_sample
from gsgen_lib.systems import prior_reward
from gsgen_lib.systems.prior_networks import TextAndUNet, make_scheduler, make_text_encoder, make_unet
from gsgen_lib.systems.prior_reward import (
    ViewClassifier,
    drawn_with_gradient,
    train_reward,
    train_view_classifier,
    with_noise,
    words_of,
)
from gsgen_lib.systems.prior_training import diffusion_task
from gsgen_lib.systems.prompt_scorer import token_memory
from gsgen_lib.systems.scorer_training import prompt_tokenizer
from gsgen_lib.training import seeded

ABAR = make_scheduler().alphas_cumprod.float()
VOCABULARY = 2000  # more than any tokenizer here has


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def views():
    return toy_views(8, np.random.default_rng(3), size=8)


@pytest.fixture(scope="module")
def tokens(views):
    return token_memory(prompt_tokenizer(views))


def wave(x, t, text):
    """A network (B, 2) that depends on everything; text (B, 1)."""
    return (x * (1 + t / 1000) + text).sin()


def test_it_draws_what_the_sampler_draws():
    noise, cond, uncond = torch.randn(3, 5, 2, generator=gen())[:, :, :2]
    mine = drawn_with_gradient(wave, noise, cond[:, :1], uncond[:, :1], ABAR, steps=7, through=3, guidance_scale=2.0)
    c, u = (lambda x, t, text=text[:, :1]: wave(x, t, text) for text in (cond, uncond))
    theirs = ddim_sample(lambda x, t: 2 * c(x, t) - u(x, t), noise, ABAR, 7, prediction="v")
    assert (mine - theirs).abs().max() < 1e-5 and mine.abs().max() > 0.1


@pytest.mark.parametrize("through", [1, 3, 6])
def test_the_gradient_flows_through_the_last_steps_only(through):
    """Oracle: differences of the same samples, where only the calls of the last steps use the moved weight."""
    noise, text = torch.randn(4, 2, generator=gen(1)).double(), torch.zeros(4, 1).double()
    steps, weight = 6, torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def draw(early, late):
        calls = []

        def predict(x, t, c):
            calls.append(int(t))
            return (x * (late if len(calls) > steps - through else early)).sin()

        return drawn_with_gradient(predict, noise, text, text, ABAR.double(), steps, through, 2.0).square().sum()

    draw(weight, weight).backward()
    with torch.no_grad():
        h = 1e-5
        wanted = (draw(0.7, 0.7 + h) - draw(0.7, 0.7 - h)) / (2 * h)
    assert weight.grad == pytest.approx(wanted.item(), rel=1e-4) and abs(wanted) > 1e-3


def test_noise_is_of_a_random_strength():
    z = with_noise(torch.zeros(2000, 4, 4, 4), 0.4, gen())
    strength = z.std((1, 2, 3))
    assert strength.min() < 0.02 and 0.35 < strength.max() < 0.5 and abs(strength.mean() - 0.2) < 0.02


def told_latents(views, shuffled=False):
    """Latents (M, 1, 4, 16, 16) whose channel k is bright where the word is VIEW_WORDS[k]."""
    words = words_of(views)
    words = words[torch.randperm(len(words), generator=gen())] if shuffled else words
    return torch.eye(4)[words][:, None, :, None, None].expand(-1, 1, 4, 16, 16) + 0.1 * torch.randn(
        len(views), 1, 4, 16, 16, generator=gen(1))


def test_words_of_are_those_of_the_prompts(views):
    for i, word in enumerate(words_of(views).tolist()):
        assert views.prompt(i) == prompt_of(views.captions[i], float(views.azimuths[i]), float(views.elevations[i]))
        assert views.prompt(i).endswith(VIEW_WORDS[word])


@pytest.fixture(scope="module")
def teacher(views, tokens, tmp_path_factory):
    text_encoder = seeded(lambda: make_text_encoder(VOCABULARY), 0)
    return train_view_classifier(views, told_latents(views), text_encoder, tokens, tmp_path_factory.mktemp("t"), 60, 32, 0,
                                 device="cpu")


def test_the_teacher_learns_the_view_and_not_from_chance(teacher, views, tokens, tmp_path):
    """Judged on fresh noise. Control: latents with the views' words dealt out anew say nothing of new ones."""
    network, result = teacher
    again = told_latents(views)[:, 0] + 0.1 * torch.randn(len(views), 4, 16, 16, generator=gen(7))
    right = (network(again, tokens(views.captions)).argmax(1) == words_of(views)).float().mean()
    assert right > 0.95 and result.log[-1]["loss"] < result.log[0]["loss"]
    other = train_view_classifier(views, told_latents(views, shuffled=True), seeded(lambda: make_text_encoder(VOCABULARY), 0), tokens,
                                  tmp_path, 60, 32, 0, device="cpu")[0]
    assert (other(again, tokens(views.captions)).argmax(1) == words_of(views)).float().mean() < 0.6


def test_the_reward_makes_samples_show_their_word(teacher, views, tokens, tmp_path, monkeypatch):
    """Share of samples that the teacher reads as asked, before and after; text encoder and teacher stay as they were."""
    network = teacher[0]
    model = TextAndUNet(seeded(lambda: make_unet((16, 32)), 1), seeded(lambda: make_text_encoder(VOCABULARY), 0))
    monkeypatch.setattr(prior_reward, "REWARD", 1.0)
    monkeypatch.setattr(prior_reward, "DRAWN", 3)
    monkeypatch.setattr(prior_reward, "THROUGH", 2)
    noise, captions = torch.randn(32, 4, 16, 16, generator=gen(9)), [f"{c}, {w}" for c in views.captions[::10] for w in VIEW_WORDS]

    @torch.no_grad()
    def read():
        """How surely the teacher reads the word that was asked for."""
        z = drawn_with_gradient(lambda x, t, text: model(x, t.expand(len(x)), text), noise, tokens(captions), tokens([""] * 32), ABAR, 3, 3)
        odds = network(z, tokens([c.rsplit(", ", 1)[0] for c in captions])).log_softmax(1)
        return odds[torch.arange(32), torch.arange(32) % 4].mean().item()

    before = read()
    held = [p.clone() for part in (network, model.text_encoder) for p in part.parameters()]
    asked = []

    def remember(prompts):
        asked.append(prompts)
        return tokens(prompts)

    result = train_reward(model, network, told_latents(views), remember, diffusion_task(views, told_latents(views), tokens, 4),
                          tmp_path, 25, 8, 0, device="cpu", lr=3e-3)
    assert set(result.log[-1]) >= {"loss", "diffusion", "view", "right"}
    after = [p for part in (network, model.text_encoder) for p in part.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(held, after, strict=True))
    assert read() > before + 0.3
    prompts = [p for group in asked[0::3] for p in group]  # prompts, empty ones, captions
    assert all(p == "" for group in asked[1::3] for p in group)
    words = [p.rsplit(", ", 1)[1] for p in prompts]
    share = np.mean([w in ("front view", "back view") for w in words])
    assert 0.65 < share < 0.85 and set(words) == set(VIEW_WORDS)
    combinations = heldout_combinations()
    for prompt in prompts:
        family, found = parse_caption(prompt.rsplit(", ", 1)[0])
        assert (family, found["color"], found["pattern"]) not in combinations


def test_the_classifier_reads_the_caption():
    """The same latents under two captions give two answers."""
    network = seeded(lambda: ViewClassifier(make_text_encoder(VOCABULARY)), 0).eval()
    z = torch.randn(1, 4, 16, 16, generator=gen())
    ids = torch.randint(3, 290, (2, 24), generator=gen())
    a, b = network(z.expand(2, -1, -1, -1), ids)
    assert (a - b).abs().max() > 1e-3


def test_what_the_reward_is_made_of(views, tokens, tmp_path, monkeypatch):
    """The teacher reads the caption without view word, and noisy latents; both terms count; samples are drawn with guidance."""
    seen, scales, drawn = [], [], []

    class Spy(torch.nn.Module):
        def forward(self, z, ids):
            seen.append((z.detach(), ids))
            return z.mean((2, 3))

    whole = prior_reward.drawn_with_gradient

    def draw(*arguments):
        drawn.append(whole(*arguments))
        return drawn[-1]

    original = prior_reward.guided
    monkeypatch.setattr(prior_reward, "guided", lambda model, c, u, s: scales.append(s) or original(model, c, u, s))
    monkeypatch.setattr(prior_reward, "drawn_with_gradient", draw)
    monkeypatch.setattr(prior_reward, "DRAWN", 2)
    monkeypatch.setattr(prior_reward, "THROUGH", 1)
    model = TextAndUNet(seeded(lambda: make_unet((16, 32)), 1), seeded(lambda: make_text_encoder(VOCABULARY), 0))
    asked = []

    def remember(prompts):
        asked.append(prompts)
        return tokens(prompts)

    log = train_reward(model, Spy(), told_latents(views), remember, diffusion_task(views, told_latents(views), tokens, 4), tmp_path, 2,
                       4, 0, device="cpu").log[-1]
    captions = asked[2::3]
    assert all(torch.equal(ids, tokens(c)) for (_, ids), c in zip(seen, captions, strict=True))
    assert not any("view" in c for group in captions for c in group)
    assert set(scales) == {prior_reward.GUIDANCE}
    off = torch.cat([(z - d.detach()).std((1, 2, 3)) for (z, _), d in zip(seen, drawn, strict=True)])
    assert 0.005 < off.mean() < prior_reward.NOISE / 2 and off.max() < 1.3 * prior_reward.NOISE / 2
    assert log["loss"] == pytest.approx(log["diffusion"] + prior_reward.REWARD * log["view"], rel=1e-4)

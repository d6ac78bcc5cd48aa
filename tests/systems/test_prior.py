"""The prior: one interface for a tiny Stable Diffusion and a big one; equal to diffusers' own pipeline."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gsgen_lib.data.captioned_views import toy_views
from gsgen_lib.diffusion import convert, ddim_sample
from gsgen_lib.systems.prior import Prior, load_prior, set_prompts, views_together
from gsgen_lib.systems.prior_networks import EncodeDecode, make_autoencoder, make_scheduler, make_unet
from gsgen_lib.perceptual import lpips
from gsgen_lib.systems.autoencoder_training import EncodeDecodeJudge, autoencoder_loss, decoder_loss, grid
from gsgen_lib.systems.prior_training import train_diffusion
from gsgen_lib.systems.scorer_training import prompt_tokenizer
from gsgen_lib.systems.prompt_scorer import tokenize
from gsgen_lib.training import seeded


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny_stable_diffusion(folder, prediction_type="epsilon"):
    """A Stable Diffusion pipeline of the very classes, random and small, written to disk as the real ones are."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from gsgen_lib.systems.prompt_scorer import make_tokenizer

    tokenizer = make_tokenizer(["a photo of a red mug, front view"], 560, 77)

    def parts():
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32, attention_head_dim=8)
        vae = AutoencoderKL(block_out_channels=(32, 64), latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 2,
                            up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1)
        text = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=37,
                                            num_hidden_layers=2, num_attention_heads=4, bos_token_id=len(tokenizer) - 2,
                                            eos_token_id=len(tokenizer) - 1, pad_token_id=len(tokenizer) - 1))
        return unet, vae, text

    unet, vae, text = seeded(parts, 0)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                              set_alpha_to_one=True, steps_offset=1, timestep_spacing="trailing",
                              prediction_type=prediction_type)
    StableDiffusionPipeline(vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
                            safety_checker=None, feature_extractor=None,
                            requires_safety_checker=False).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module", params=["epsilon", "v_prediction", "sample"])
def prior(request, tmp_path_factory):
    return load_prior(tiny_stable_diffusion(tmp_path_factory.mktemp("sd"), request.param))


def test_shapes_and_names(prior):
    assert prior.size == 16 and prior.latent_shape == (4, 8, 8) and len(prior.alphas_cumprod) == 1000
    text = prior.encode_prompt(["a red mug", ""])
    z = prior.encode_image(torch.rand(2, 16, 16, 3, generator=gen()))
    eps = prior.predict_eps(z, 500, text)
    assert text.shape == (2, 77, 32) and z.shape == eps.shape == (2, 4, 8, 8)
    picture = prior.decode(z)
    assert picture.shape == (2, 16, 16, 3) and picture.min() >= 0 and picture.max() <= 1


def test_sampling_equals_diffusers_own_pipeline(prior):
    """Same noise, same prompts, same steps: StableDiffusionPipeline.__call__ is the oracle."""
    prompts = ["a red mug, front view", "mug"]
    ours = prior.sample(prompts, steps=8, guidance_scale=4.0, view_guidance=0.0, generator=gen(3))
    noise = torch.randn(2, *prior.latent_shape, generator=gen(3))
    theirs = prior.pipeline(prompts, latents=noise, num_inference_steps=8, guidance_scale=4.0, height=16, width=16,
                            output_type="pt").images.movedim(1, -1)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)
    plain = prior.sample(prompts, steps=8, guidance_scale=1.0, view_guidance=0.0, generator=gen(3))
    assert (plain - theirs).abs().max() > 1e-3  # guidance is not lost


@pytest.mark.parametrize("ours,theirs", [
    ({"negative": "a mug, back view"}, {"negative_prompt": ["a mug, back view"] * 2}),
    ({"rescale": 0.7}, {"guidance_rescale": 0.7}), ({"eta": 0.8}, {"eta": 0.8}),
])
def test_options_of_sampling_equal_those_of_diffusers(prior, ours, theirs):
    prompts, same, g = ["a red mug, front view", "mug"], dict(guidance_scale=4.0), gen(3)
    noise = torch.randn(2, *prior.latent_shape, generator=g)  # g then draws what eta asks for
    wanted = prior.pipeline(prompts, latents=noise, num_inference_steps=8, height=16, width=16, output_type="pt", generator=g,
                            **same, **theirs).images.movedim(1, -1)
    found = prior.sample(prompts, 8, generator=gen(3), view_guidance=0.0, **same, **ours)
    torch.testing.assert_close(found, wanted, atol=3e-4, rtol=0)
    without = prior.sample(prompts, 8, generator=gen(3), view_guidance=0.0, **same)
    assert (without - wanted).abs().max() > 1e-3  # the option does something


@pytest.mark.parametrize("a", [0.0, 1.0, 2.5])
def test_the_view_word_is_louder_by_its_difference_to_the_bare_caption(prior, a):
    """Three answers, asked one by one and added up by hand; a prompt without a view word stays as it was."""
    prompts, bare, s = ["a red mug, back view", "mug"], ["a red mug", "mug"], 4.0
    c, p, u = (prior.encode_prompt(text) for text in (prompts, bare, ["", ""]))

    def by_hand(x, t):
        with torch.no_grad():
            with_it, without, nothing = (prior.predict(x, t, text) for text in (c, p, u))
        return (s + a) * with_it - a * without + (1 - s) * nothing

    noise = torch.randn(2, *prior.latent_shape, generator=gen(3))
    wanted = prior.decode(ddim_sample(by_hand, noise, prior.alphas_cumprod, 8, prior.prediction)).detach()
    found = prior.sample(prompts, 8, s, view_guidance=a, generator=gen(3))
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=0)
    plain = prior.sample(prompts, 8, s, view_guidance=0.0, generator=gen(3))
    assert ((found - plain)[0].abs().max() > 1e-3) == (a > 0)
    torch.testing.assert_close(found[1], plain[1], atol=2e-4, rtol=0)

def test_views_are_drawn_together_when_asked(prior):
    prompts = set_prompts("a red mug")
    alone, together, other = (prior.sample(p, 3, views=v, generator=gen(3)) for p, v in (
        (prompts, 1), (prompts, 4), (prompts[:3] + ["a lamp"], 4)))
    assert (alone - together).abs().max() > 1e-3 and (together[0] - other[0]).abs().max() > 1e-4
    first = prior.sample(prompts[:3] + ["a lamp"], 3, generator=gen(3))[0]
    torch.testing.assert_close(first, alone[0])  # alone, a view does not care what its neighbour is


def test_pictures_become_the_mean_of_their_latents(prior):
    pictures = torch.rand(2, 16, 16, 3, generator=gen())
    wanted = prior.vae.encode(pictures.movedim(-1, 1) * 2 - 1).latent_dist.mean * prior.vae.config.scaling_factor
    torch.testing.assert_close(prior.encode_image(pictures), wanted)


def test_predicted_noise_is_the_networks_own_answer_converted(prior):
    z, text, t = torch.randn(3, *prior.latent_shape, generator=gen()), prior.encode_prompt(["a", "b", "c"]), torch.tensor(
        [10, 400, 900])
    raw = prior.unet(z, t, encoder_hidden_states=text).sample
    abar = prior.alphas_cumprod[t]
    torch.testing.assert_close(prior.predict_eps(z, t, text), convert(raw, z, abar, prior.prediction, "eps"))
    if prior.prediction == "v":
        by_hand = (1 - abar).sqrt()[:, None, None, None] * z + abar.sqrt()[:, None, None, None] * raw
        torch.testing.assert_close(prior.predict_eps(z, t, text), by_hand)


def test_gradients_reach_the_picture_and_never_a_weight(prior):
    picture = torch.rand(1, 16, 16, 3, generator=gen()).requires_grad_()
    prior.decode(prior.encode_image(picture)).sum().backward()
    assert picture.grad.abs().sum() > 0
    z = prior.encode_image(picture)
    assert not prior.predict_eps(z, 5, prior.encode_prompt([""])).requires_grad
    weights = [*prior.unet.parameters(), *prior.vae.parameters(), *prior.text_encoder.parameters()]
    assert all(w.grad is None and not w.requires_grad for w in weights)


def test_views_see_each_other_only_when_asked(prior):
    z, text = torch.randn(4, *prior.latent_shape, generator=gen()), prior.encode_prompt(list("abcd"))
    changed = z.clone()
    changed[1] += 1.0
    for views, touched in ((1, {1}), (2, {0, 1}), (4, {0, 1, 2, 3})):
        difference = (prior.predict_eps(z, 300, text, views) - prior.predict_eps(changed, 300, text, views)).abs()
        assert {i for i in range(4) if difference[i].max() > 1e-6} == touched
    order = torch.tensor([2, 0, 3, 1])  # no view is special: permuting the views permutes the answer
    torch.testing.assert_close(prior.predict_eps(z[order], 300, text[order], 4), prior.predict_eps(z, 300, text, 4)[order],
                               atol=1e-4, rtol=1e-3)
    before = prior.predict_eps(z, 300, text)
    with pytest.raises(RuntimeError):
        prior.predict_eps(z[:3], 300, text[:3], 2)
    torch.testing.assert_close(prior.predict_eps(z, 300, text), before)  # put back even after an error


def test_the_same_seed_the_same_picture(prior):
    a, b, c = (prior.sample(["mug"], 3, generator=gen(s)) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    a, b = (prior.sample(["mug"], 3, sampler="ddpm", generator=gen(1)) for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize("call,message", [
    (lambda p: p.encode_prompt("a mug"), "prompts: got 'a mug', wanted a list"),
    (lambda p: p.encode_image(torch.rand(1, 3, 16, 16)), "images: got shape"),
    (lambda p: p.encode_image(torch.rand(1, 15, 16, 3)), "multiples of 2"),
    (lambda p: p.predict_eps(torch.zeros(1, 4, 8, 8), 1000, p.encode_prompt(["a"])), r"t: got \[1000\], wanted .* to 999"),
    (lambda p: p.predict_eps(torch.zeros(1, 4, 8, 8), -1, p.encode_prompt(["a"])), r"t: got \[-1\]"),
    (lambda p: p.predict_eps(torch.zeros(1, 4, 8, 8), 0.5, p.encode_prompt(["a"])), r"t: got \[0.5\]"),
    (lambda p: p.predict_eps(torch.zeros(2, 4, 8, 8), 1, p.encode_prompt(["a"])), "text: got 1 prompts, wanted 2"),
    (lambda p: p.sample([]), "prompts: got 0"),
    (lambda p: p.sample(["a"] * 6, views=4), "multiple of views = 4"),
    (lambda p: p.sample(["a"], sampler="euler"), "sampler: got 'euler'"),
])
def test_bad_input_is_named(prior, call, message):
    with pytest.raises(ValueError, match=message):
        call(prior)


def test_whole_numbers_are_no_picture(prior):
    with pytest.raises(TypeError, match="images: got torch.uint8, wanted a floating-point"):
        prior.encode_image(torch.zeros(1, 16, 16, 3, dtype=torch.uint8))


def test_a_path_named_like_a_checkpoint_is_the_path_of_the_shipped_one(monkeypatch, tmp_path):
    """`load_prior(Path("prior"))` means the same as `load_prior("prior")`: the checkpoint below the data folder."""
    monkeypatch.setattr("gsgen_lib.pretrained.data_root", lambda: tmp_path)
    for name in ("prior", Path("prior")):
        with pytest.raises(FileNotFoundError, match=str(tmp_path)):
            load_prior(name)


def test_what_is_no_prior_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no pipeline folder"):
        load_prior(tmp_path / "nowhere")
    folder = tiny_stable_diffusion(tmp_path / "sd")
    index = json.loads((folder / "model_index.json").read_text())
    file = folder / "scheduler/scheduler_config.json"
    file.write_text(file.read_text().replace('"epsilon"', '"flow_prediction"'))
    with pytest.raises(ValueError, match="flow_prediction"):
        load_prior(folder)
    assert index["_class_name"] == "StableDiffusionPipeline"
    with pytest.raises(ValueError, match="lacks vae, unet"):
        Prior(object(), "nothing")


def test_prompts_of_a_set_name_four_different_views():
    assert len(set(set_prompts("a red mug"))) == 4 and set_prompts("x")[0] == "x, front view"


def test_attention_sits_at_the_coarsest_levels():
    config = make_unet((16, 32, 32), attention=1).config
    assert config.down_block_types == ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D")
    assert config.up_block_types == ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D")


def test_views_must_be_positive():
    with pytest.raises(ValueError, match="views: got 0"), views_together(make_unet((16, 32)), 0):
        pass


def test_the_prompt_reaches_the_unet_beside_attention_too():
    """With cross-attention silenced, the pooled prompt still changes the answer; without `add_embedding` nothing does."""
    unet = seeded(lambda: make_unet((16, 32)), 0).eval()
    x, (a, b) = torch.randn(1, 4, 16, 16, generator=gen()), torch.randn(2, 1, 24, 96, generator=gen(1))
    with torch.no_grad():
        for name, module in unet.named_modules():
            if name.endswith("attn2"):
                module.to_out[0].weight.zero_()
        assert (unet(x, 500, a).sample - unet(x, 500, b).sample).abs().max() > 1e-3
        unet.add_embedding.norm2.weight.zero_()
        assert (unet(x, 500, a).sample - unet(x, 500, b).sample).abs().max() == 0


def test_noise_on_latents_has_a_random_strength_up_to_the_one_given():
    """Mean and variance of what is added, over many pictures: sigma^2 / 3 where the strength is uniform in [0, sigma]."""
    from types import SimpleNamespace

    class Mirror:  # an autoencoder whose latents are zeros and whose decoder shows them
        def encode(self, x, return_dict):
            return [SimpleNamespace(mean=torch.zeros_like(x), std=torch.zeros_like(x), logvar=x)]

        def decode(self, z, return_dict):
            return [z]

    model = EncodeDecode(Mirror(), noise=0.6)
    added = model(torch.zeros(2000, 4, 8, 8), gen())[0]
    strength = added.std((1, 2, 3))
    assert strength.max() < 0.7 and strength.min() < 0.01
    assert abs(strength.mean() - 0.3) < 0.02 and abs(added.var() - 0.12) < 0.01
    model.noise = 0.0
    assert (model(torch.zeros(2, 4, 8, 8), gen())[0] == 0).all()


def test_autoencoder_loss_adds_up():
    vae = seeded(lambda: make_autoencoder((16, 16, 16)), 0)
    pictures = torch.rand(2, 64, 64, 3, generator=gen())
    parts = autoencoder_loss(EncodeDecode(vae), pictures, gen(1))
    assert parts["loss"].item() == pytest.approx((parts["l1"] + 0.3 * parts["lpips"] + 1e-6 * parts["kl"]).item(), rel=1e-5)
    z = vae.encode(pictures.movedim(-1, 1) * 2 - 1).latent_dist
    by_hand = 0.5 * (z.mean**2 + z.var - 1 - z.var.log()).sum((1, 2, 3)).mean()  # KL to N(0, I)
    assert parts["kl"].item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_decoder_and_judge_learn_from_their_own_losses():
    """Each weight's gradient is that of its own loss, written out here; the encoder gets none."""
    model = seeded(lambda: EncodeDecodeJudge(make_autoencoder((16, 16, 16)), 0.2), 0)
    pictures = torch.rand(2, 64, 64, 3, generator=gen())
    x = pictures.movedim(-1, 1) * 2 - 1
    decoded = model(x, gen(1))[0]
    judged = (1 - model.judge(x)).clamp_min(0).mean() + (1 + model.judge(decoded)).clamp_min(0).mean()
    seen = (decoded.movedim(1, -1) / 2 + 0.5).clamp(0, 1)
    fooled = (decoded - x).abs().mean() + 0.3 * lpips(seen, pictures) - 0.1 * model.judge(decoded).mean()
    parts = {name: [p for n, p in model.named_parameters() if n.startswith(name)] for name in ("judge", "vae.decoder")}
    wanted = (torch.autograd.grad(judged, parts["judge"], retain_graph=True), torch.autograd.grad(fooled, parts["vae.decoder"]))
    found = decoder_loss(model, pictures, gen(1))
    found["loss"].backward()
    for own, grads in zip(parts.values(), wanted, strict=True):
        for p, g in zip(own, grads, strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-7)
    assert found["judged"].item() == pytest.approx(judged.item(), rel=1e-5)
    assert all(p.grad is None for p in model.vae.encoder.parameters())


class Listener(torch.nn.Module):
    """Notes what training hands to the network."""

    def __init__(self):
        super().__init__()
        self.scale, self.heard = torch.nn.Parameter(torch.zeros(())), []

    def forward(self, x_t, t, tokens, views=1):
        self.heard.append((x_t.detach(), t, tokens, views))
        return self.scale * x_t


def test_training_draws_what_its_header_says(tmp_path):
    views = toy_views(4, np.random.default_rng(1), size=8)
    tokenizer, network = prompt_tokenizer(views), Listener()
    row, copy = torch.arange(len(views)).reshape(-1, 1, 1, 1, 1), torch.arange(3).reshape(1, 3, 1, 1, 1)
    latents = (64 * row + 16 * copy + 16).expand(-1, 3, 1, 4, 4).half()  # says which view, and which copy
    train_diffusion(views, latents, network, tokenizer, tmp_path, steps=300, batch=8, seed=0, device="cpu")
    together = [h for h in network.heard if h[3] == 4]
    assert len(network.heard) == 300 and 0.2 < len(together) / 300 < 0.4  # SETS = 0.3
    empty, all_prompts = tokenize(tokenizer, [""])[0], torch.cat([h[2] for h in network.heard])
    assert 0.06 < (all_prompts == empty).all(1).float().mean() < 0.14  # DROP = 0.1
    for _, t, tokens, _ in together:
        assert (t.reshape(2, 4) == t.reshape(2, 4)[:, :1]).all()  # a set has one noise level
        dropped = (tokens == empty).all(1).reshape(2, 4)
        assert (dropped.all(1) | ~dropped.any(1)).all()  # and keeps or loses its prompts together
        for four in tokens.reshape(2, 4, -1)[~dropped.all(1)]:
            said = [tokenizer.decode(ids, skip_special_tokens=True).split(" , ")[1] for ids in four]
            assert said == ["front view", "right side view", "back view", "left side view"]
    alphas_cumprod, copies = make_scheduler().alphas_cumprod, []
    for x_t, t, tokens, count in network.heard:
        if t.max() < 400:  # little enough noise to read view and copy off the latents
            z = (x_t / alphas_cumprod[t].sqrt()[:, None, None, None]).mean((1, 2, 3))
            rows, copy = (z / 64).floor().long(), ((z % 64) / 16).round().long() - 1
            copies += copy.tolist()
            own = tokenize(tokenizer, [views.prompt(int(r), True) for r in rows]), tokenize(tokenizer, [views.prompt(int(r)) for r in rows])
            assert ((tokens == own[0]).all(1) | ((tokens == own[1]).all(1) & (count == 1)) | (tokens == empty).all(1)).all()
            if count == 4:  # one background for a set
                assert (copy.reshape(2, 4) == copy.reshape(2, 4)[:, :1]).all()
    assert set(copies) == {0, 1, 2} and len(copies) > 50
    t = torch.cat([h[1] for h in network.heard])
    assert t.min() < 20 and t.max() > 980 and abs(t.float().mean() - 499.5) < 30  # uniform
    alone = torch.cat([h[1] for h in network.heard if h[3] == 1])
    assert (alone[1:] != alone[:-1]).float().mean() > 0.9


def test_grid_places_pictures_in_reading_order():
    pictures = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 2, 2, 3)
    assert grid(pictures, 3)[::2, ::2, 0].tolist() == [[0, 1, 2], [3, 4, 5]]

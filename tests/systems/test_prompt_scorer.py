"""The judge: its loss against loops, ranks against sorting, CLIP behind the same interface."""

import math

import numpy as np
import pytest
import torch

from gsgen_lib.systems.prompt_scorer import (
    PromptScorer,
    Scorer,
    ScorerConfig,
    contrastive_loss,
    load_scorer,
    make_tokenizer,
    near_miss_loss,
    rank_of_own,
    save_scorer,
    tokenize,
)
from gsgen_lib.training import seeded


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def test_loss_against_loops_in_double_precision():
    u, w = (torch.nn.functional.normalize(torch.randn(5, 3, generator=gen(s)).double(), dim=-1) for s in (0, 1))
    prompts, scale = ["a", "b", "a", "c", "b"], 1.3
    total = 0.0
    for first, second in ((u, w), (w, u)):
        for i in range(5):
            logits = [math.exp(scale) * float(first[i] @ second[j]) for j in range(5)]
            log_sum = math.log(sum(math.exp(v) for v in logits))
            mine = [j for j in range(5) if prompts[j] == prompts[i]]
            total += sum(log_sum - logits[j] for j in mine) / len(mine) / 5 / 2
    assert contrastive_loss(u, w, prompts, torch.tensor(scale).double()).item() == pytest.approx(total, rel=1e-6)


def test_near_miss_loss_against_loops_in_double_precision():
    u = torch.nn.functional.normalize(torch.randn(4, 3, generator=gen(0)).double(), dim=-1)
    w = torch.nn.functional.normalize(torch.randn(4, 7, 3, generator=gen(1)).double(), dim=-1)
    total = 0.0
    for i in range(4):
        logits = [math.exp(1.3) * float(u[i] @ w[i, k]) for k in range(7)]
        total += (math.log(sum(math.exp(v) for v in logits)) - logits[0]) / 4  # the first is the own one
    assert near_miss_loss(u, w, torch.tensor(1.3).double()).item() == pytest.approx(total, rel=1e-6)


def test_ranks_against_sorting():
    scores = torch.rand(6, 6, generator=gen())
    scorer = Scorer("table", lambda images: torch.eye(6)[images[:, 0, 0, 0].long()], lambda prompts: torch.stack(
        [scores[:, int(p)] for p in prompts]))
    images = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 1, 1, 3)
    ranks = rank_of_own(scorer, images, [str(i) for i in range(6)], others=5)
    assert ranks.tolist() == [int((scores[i] > scores[i, i]).sum()) for i in range(6)]
    with pytest.raises(ValueError, match="got 6 different ones, wanted more than 6"):
        rank_of_own(scorer, images, [str(i) for i in range(6)], others=6)


def test_captions_are_judged_on_the_mirror_image_too():
    """The right corner speaks louder for the own caption than the left for another; the left alone would mislead."""
    judge = Scorer("left corner", lambda x: x[:, 0, 0], lambda prompts: torch.eye(3)[[int(p) for p in prompts]])
    images = torch.zeros(3, 2, 2, 3)
    for i in range(3):
        images[i, 0, 0, (i + 1) % 3], images[i, 0, 1, i] = 0.4, 1.0
    assert (judge.similarity(images, ["0", "1", "2"]).argmax(1) == torch.tensor([1, 2, 0])).all()
    for pictures in (images, images.flip(2)):
        assert rank_of_own(judge, pictures, ["0", "1", "2"], others=2).tolist() == [0, 0, 0]


def test_tokenizer_reads_any_text_and_keeps_its_words():
    tokenizer = make_tokenizer(["a red mug with white stripes, front view", "a tall teal robot, back view"] * 3)
    for text in ("a red mug, back view", "façade 日本 ??", ""):
        back = tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)
        assert back.replace(" ", "") == text.replace(" ", "")
    ids = tokenize(tokenizer, ["a red mug", "word " * 99])
    assert ids.shape == (2, 24) and ids.max() == len(tokenizer) - 1
    assert len(tokenizer("a red mug").input_ids) == 5  # known words are one token each


def test_the_answer_does_not_depend_on_padding():
    model = seeded(lambda: PromptScorer(ScorerConfig(vocabulary=50)), 0).eval()
    tokens = torch.tensor([[48, 3, 7, 49] + [49] * 20])
    words = torch.nn.functional.normalize(model.text_head(
        model.text(model.words(tokens[:, :4]) + model.places[:4])[:, 3]), dim=-1)  # the prompt alone, no padding at all
    torch.testing.assert_close(model.embed_tokens(tokens), words, atol=1e-5, rtol=1e-4)
    other = tokens.clone()
    other[0, 2] = 8
    assert (model.embed_tokens(other) - words).abs().max() > 1e-3


def test_saved_and_loaded_it_judges_alike(tmp_path):
    tokenizer = make_tokenizer(["a red mug, front view"])
    model = seeded(lambda: PromptScorer(ScorerConfig(vocabulary=len(tokenizer))), 0).eval()
    save_scorer(model, tokenizer, tmp_path)
    scorer, images = load_scorer(tmp_path), torch.rand(3, 64, 64, 3, generator=gen())
    direct = model.embed_images(images) @ model.embed_tokens(tokenize(tokenizer, ["a red mug", "mug"])).T
    torch.testing.assert_close(scorer.similarity(images, ["a red mug", "mug"]), direct, atol=5e-3, rtol=0)  # fp16
    both = (model.embed_images(images) + model.embed_images(images.flip(2))) / 2
    for pictures in (images, images.flip(2)):
        torch.testing.assert_close(scorer.embed_mirrored(pictures), both, atol=5e-3, rtol=0)
    assert (both - model.embed_images(images)).abs().max() > 1e-2
    assert scorer.view(images, ["a", "b", "c"])[0].endswith(" view")
    assert scorer.similarity(torch.rand(1, 100, 80, 3), ["mug"]).shape == (1, 1)
    for call, message in ((lambda: scorer.similarity(images[0], ["a"]), "images: got shape"),
                          (lambda: scorer.similarity(images, "a"), "prompts: got 'a'"),
                          (lambda: scorer.view(images, ["a"]), "captions: got 1, wanted 3")):
        with pytest.raises(ValueError, match=message):
            call()
    for call in (lambda: scorer.similarity(images.byte(), ["a"]), lambda: scorer.view(images.byte(), ["a", "b", "c"])):
        with pytest.raises(TypeError, match="images: got torch.uint8, wanted a floating-point"):
            call()


def test_clip_of_the_library_has_the_same_interface(tmp_path):
    """A random CLIP of transformers' own classes, saved as the hub's are; its own forward pass is the oracle."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    tokenizer = make_tokenizer(["a red mug"], length=77)
    end = len(tokenizer) - 1
    small = dict(hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4)
    model = seeded(lambda: CLIPModel(CLIPConfig(
        text_config=dict(vocab_size=len(tokenizer), bos_token_id=end - 1, eos_token_id=end, pad_token_id=end, **small),
        vision_config=dict(image_size=32, patch_size=8, **small), projection_dim=16)), 0).eval()
    model.save_pretrained(tmp_path)
    CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32), tokenizer).save_pretrained(tmp_path)
    scorer, images = load_scorer(tmp_path), torch.rand(2, 32, 32, 3, generator=gen())
    assert scorer.name.startswith("CLIP")
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    tokens = tokenizer(["a red mug", "mug"], padding=True, return_tensors="pt")
    out = model(pixel_values=((images - mean) / std).movedim(-1, 1), **tokens)
    torch.testing.assert_close(scorer.similarity(images, ["a red mug", "mug"]), out.image_embeds @ out.text_embeds.T,
                               atol=1e-4, rtol=0)
    y, x = torch.meshgrid(torch.linspace(0, 12, 80), torch.linspace(0, 9, 80), indexing="ij")
    large = torch.stack([0.5 + 0.5 * torch.sin(3 * x + k).cos() * torch.cos(y * k) for k in range(3)], -1)[None]
    pixels = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)(  # other sizes: as CLIP's own processor does
        np.asarray((large[0] * 255).round().byte()), return_tensors="pt").pixel_values
    wanted = model(pixel_values=pixels, **tokens).image_embeds
    torch.testing.assert_close(scorer.embed_images(large), wanted, atol=0.01, rtol=0)


def test_neither_folder_nor_hub(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder here"):
        load_scorer(str(tmp_path / "nowhere"))

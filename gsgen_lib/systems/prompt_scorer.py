"""Does this picture show what the prompt says? A small judge that learned from other pictures than the painter.

Two networks map pictures and prompts to unit vectors; training pulls a picture towards its own prompt
and away from the other prompts of the batch (contrastive learning, CLIP, 2103.00020 section 2.3):

    u_i = image_tower(x_i) / |.|,   w_j = text_tower(p_j) / |.|,   s_ij = exp(`log_scale`) u_i . w_j
    loss = 1/2 [ CE(s_i., i) + CE(s_.j, j) ] + CE( s of picture i with its own prompt and with near misses, own )

Where two prompts of a batch are equal, to the letter, both count as right (the target is spread over them). Near misses
are the own prompt with one word changed; prompts of other pictures differ in so much that a judge could pass by looking at the
noun and the colour alone. Pictures are renders of other toys than the prior's, and other views of the real training
objects, on random backgrounds, blurred and noised a little so that the judge looks at shape and colour rather than at
pixels. It answers: which of 50 captions fits best (asked of the picture and of its mirror image)? which view word?

The same interface takes CLIP from the hub: `load_scorer("openai/clip-vit-base-patch32")`. Every score says
who gave it (`scorer.name`). Taught in notebook 02.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsgen_lib.data.captioned_views import VIEW_WORDS
from gsgen_lib.metrics import check_images

__all__ = ["PromptScorer", "Scorer", "ScorerConfig", "contrastive_loss", "load_scorer", "make_tokenizer", "rank_of_own",
           "save_scorer", "token_memory", "tokenize"]


@dataclass(frozen=True)
class ScorerConfig:
    """vocabulary: tokens; channels: of the image tower at 32, 16, 8 and 4 pixels; width, layers, heads: of the text
    tower; length: tokens of a prompt; embed: size of the shared vectors."""

    vocabulary: int = 600
    channels: tuple[int, ...] = (32, 64, 128, 192)
    width: int = 96
    layers: int = 2
    heads: int = 4
    length: int = 24
    embed: int = 128


class _Residual(nn.Module):
    """Two 3x3 convolutions beside a 2x2 one; halves the resolution."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.main = nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.SiLU(),
                                  nn.Conv2d(after, after, 3, 1, 1), nn.GroupNorm(8, after))
        self.short = nn.Conv2d(before, after, 2, 2)
        nn.init.normal_(self.short.weight, 0.0, (4 * before) ** -0.5)  # keeps the variance of what it carries

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.main(x) + self.short(x))


class TwoTowers(nn.Module):
    """An image tower, and what every text tower beside it needs; who inherits it writes `embed_tokens`.

    >>> TwoTowers((8, 16, 24, 32), 128).embed_images(torch.rand(2, 64, 64, 3)).shape
    torch.Size([2, 128])
    """

    def __init__(self, channels: tuple[int, ...], embed: int):
        super().__init__()
        sizes = (3, *channels)
        self.blocks = nn.Sequential(*[_Residual(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)])
        self.image_head = nn.Linear(channels[-1] * 16, embed)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All that the loss needs: pictures (B, H, W, 3), tokens (B, T, L) of T prompts for each -> unit vectors (B, embed)
        and (B, T, embed), and `log_scale`."""
        texts = self.embed_tokens(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        return self.embed_images(images), texts, self.log_scale

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors (B, embed) of pictures (B, H, W, 3) in [0, 1]; other sizes than 64 are resized. Differentiable."""
        x = images.movedim(-1, 1) * 2 - 1  # (B, 3, H, W)
        if x.shape[-2:] != (64, 64):
            x = F.interpolate(x, (64, 64), mode="bilinear", antialias=True)
        x = F.adaptive_avg_pool2d(self.blocks(x), 4)  # (B, C, 4, 4): keeps where things are
        return F.normalize(self.image_head(x.flatten(1)), dim=-1)


class PromptScorer(TwoTowers):
    """The judge: a transformer of its own reads the prompts.

    >>> model = PromptScorer(ScorerConfig(vocabulary=10))
    >>> model.embed_images(torch.rand(2, 64, 64, 3)).shape, model.embed_tokens(torch.ones(3, 24, dtype=torch.long)).shape
    (torch.Size([2, 128]), torch.Size([3, 128]))
    """

    def __init__(self, config: ScorerConfig = ScorerConfig()):
        super().__init__(config.channels, config.embed)
        self.config = c = config
        self.words = nn.Embedding(c.vocabulary, c.width)
        self.places = nn.Parameter(torch.randn(c.length, c.width) * 0.02)
        layer = nn.TransformerEncoderLayer(c.width, c.heads, 2 * c.width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.text = nn.TransformerEncoder(layer, c.layers, enable_nested_tensor=False)
        self.text_head = nn.Linear(c.width, c.embed)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Unit vectors (B, embed) of token ids (B, length), padded with the end token, the largest id."""
        end = (tokens != tokens.max(1, keepdim=True).values).sum(1)  # place of the first end token
        tokens = tokens[:, :int(end.max()) + 1]  # the rest is padding in every prompt
        inside = torch.arange(tokens.shape[1], device=tokens.device) <= end[:, None]  # (B, L)
        x = self.text(self.words(tokens) + self.places[:tokens.shape[1]], src_key_padding_mask=~inside)
        return F.normalize(self.text_head(x[torch.arange(len(x)), end]), dim=-1)


def make_tokenizer(prompts: list[str], vocabulary: int = 600, length: int = 24):
    """A CLIPTokenizer whose byte pairs were learned on `prompts`; it reads any text, with the end token the last id.

    >>> tokenizer = make_tokenizer(["a red mug, front view"] * 2, vocabulary=300)
    >>> tokenizer.decode(tokenizer("a red mug").input_ids, skip_special_tokens=True)
    'a red mug'
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = CLIPTokenizer()._tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - 2 - len(alphabet), end_of_word_suffix="</w>",
                                  initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(sorted(set(prompts)), trainer)
    model = json.loads(learner.to_str())["model"]
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    pieces += [p for p, _ in sorted(model["vocab"].items(), key=lambda item: item[1]) if p not in set(pieces)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    merges = [tuple(m) if not isinstance(m, str) else tuple(m.split(" ")) for m in model["merges"]]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def as_made(tokenizer):
    """The tokenizer without the padding and cutting that its last call asked for, which it would save as its own.

    >>> tokenizer = make_tokenizer(["a red mug"])
    >>> _ = tokenize(tokenizer, ["a mug"])
    >>> as_made(tokenizer).backend_tokenizer.padding is None
    True
    """
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    return tokenizer


def tokenize(tokenizer, prompts: list[str]) -> Tensor:
    """Token ids (B, model_max_length) of B prompts; longer ones are cut."""
    return tokenizer(list(prompts), padding="max_length", truncation=True, max_length=tokenizer.model_max_length,
                     return_tensors="pt").input_ids


def token_memory(tokenizer) -> Callable[[list[str]], Tensor]:
    """`tokenize` that remembers: training asks for the same few thousand prompts a million times.

    >>> remember = token_memory(make_tokenizer(["a red mug"]))
    >>> bool((remember(["a", "b", "a"]) == tokenize(make_tokenizer(["a red mug"]), ["a", "b", "a"])).all())
    True
    """
    known: dict[str, Tensor] = {}

    def tokens(prompts: list[str]) -> Tensor:
        new = [p for p in dict.fromkeys(prompts) if p not in known]
        if new:
            known.update(zip(new, tokenize(tokenizer, new), strict=True))
        return torch.stack([known[p] for p in prompts])

    return tokens


def contrastive_loss(images: Tensor, texts: Tensor, prompts: list[str], log_scale: Tensor) -> Tensor:
    """The symmetric cross entropy of the header; images, texts (B, E) unit vectors of B pictures and their prompts.

    >>> eye = torch.eye(2)
    >>> bool(contrastive_loss(eye, eye, ["a", "b"], torch.tensor(5.0)) < 1e-6)
    True
    >>> contrastive_loss(eye, eye, ["a", "a"], torch.tensor(0.0))
    tensor(0.8133)
    """
    scores = scale_of(log_scale) * images @ texts.T  # (B, B)
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    ids = torch.tensor([number[p] for p in prompts], device=scores.device)
    same = (ids[:, None] == ids).float()
    same = same / same.sum(1, keepdim=True)  # symmetric: a row's sum is its group's size
    return (F.cross_entropy(scores, same) + F.cross_entropy(scores.T, same)) / 2


def near_miss_loss(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
    """Cross entropy of finding the own prompt, the first of T, among its near misses; images (B, E), texts (B, T, E).

    >>> near_miss_loss(torch.tensor([[1.0, 0.0]]), torch.eye(2)[None], torch.tensor(0.0))  # log(1 + exp(-1))
    tensor(0.3133)
    """
    scores = scale_of(log_scale) * (texts @ images[:, :, None])[..., 0]  # (B, T)
    return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device))


def scale_of(log_scale: Tensor) -> Tensor:
    """exp(log_scale), at most 100 as in CLIP."""
    return log_scale.clamp(max=math.log(100.0)).exp()


class Scorer:
    """What every judge offers, ours and CLIP: `similarity(images, prompts)`; name says who judges.

    embed_images, embed_prompts: functions that give unit vectors (B, E) and (P, E).
    """

    def __init__(self, name: str, embed_images, embed_prompts):
        self.name, self._embed_images, self.embed_prompts = name, embed_images, embed_prompts

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors (B, E) of pictures (B, H, W, 3), floats in [0, 1]; TypeError or ValueError for others."""
        check_images("images", images, values=False)
        if images.ndim != 4:
            raise ValueError(f"images: got shape {tuple(images.shape)}, wanted (B, H, W, 3)")
        return self._embed_images(images)

    def similarity(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Cosines (B, P) between pictures (B, H, W, 3) in [0, 1] and P prompts; differentiable in the pictures."""
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"prompts: got {prompts!r}, wanted a list of at least one string")
        return self.embed_images(images) @ self.embed_prompts(prompts).T

    def embed_mirrored(self, images: Tensor) -> Tensor:
        """Mean vectors (B, E) of pictures (B, H, W, 3) and their mirror images: a caption without view word knows no left."""
        there, mirrored = self.embed_images(torch.cat([images, images.flip(2)])).chunk(2)
        return (there + mirrored) / 2

    @torch.no_grad()
    def view(self, images: Tensor, captions: list[str]) -> list[str]:
        """The view word that fits each picture best, given its caption."""
        if len(captions) != len(images):
            raise ValueError(f"captions: got {len(captions)}, wanted {len(images)}, one for each picture")
        prompts = [f"{c}, {word}" for c in captions for word in VIEW_WORDS]
        words = self.embed_prompts(prompts).reshape(len(images), len(VIEW_WORDS), -1)  # (B * 4, E) -> (B, 4, E)
        best = (words @ self.embed_images(images)[:, :, None])[..., 0].argmax(1)
        return [VIEW_WORDS[i] for i in best.tolist()]


@torch.no_grad()
def rank_of_own(scorer: Scorer, images: Tensor, prompts: list[str], others: int = 49,
                generator: torch.Generator | None = None) -> Tensor:
    """How many of `others` wrong prompts beat a picture's own, (B,); 0 means it is ranked first.

    images (B, H, W, 3); prompts: B captions without view word, the i-th belongs to picture i (`embed_mirrored`).
    The wrong ones are drawn from the other different prompts of the list; ValueError where there are fewer than `others`.
    """
    different = list(dict.fromkeys(prompts))
    if len(different) <= others:
        raise ValueError(f"prompts: got {len(different)} different ones, wanted more than {others}")
    scores = scorer.embed_mirrored(images) @ scorer.embed_prompts(different).T  # (B, P)
    own = torch.tensor([different.index(p) for p in prompts], device=scores.device)
    rivals = draw_rivals(own, len(different), others, generator)
    return (scores.gather(1, rivals) >= scores.gather(1, own[:, None])).sum(1)


def draw_rivals(own: Tensor, total: int, others: int, generator: torch.Generator | None = None) -> Tensor:
    """For each of B places own (B,) among `total`, `others` different ones, none the own: (B, others), int64.

    ValueError where there are not that many.

    >>> sorted(draw_rivals(torch.tensor([2]), 4, 3)[0].tolist())
    [0, 1, 3]
    """
    if not 0 < others < total:
        raise ValueError(f"others: got {others}, wanted 1 to {total - 1}, since there are {total} to choose from")
    order = torch.rand(len(own), total, generator=generator).to(own.device)
    return order.scatter(1, own[:, None], 2.0).argsort(1)[:, :others]  # the own one comes last


def save_scorer(model: PromptScorer, tokenizer, folder: str | Path) -> None:
    """Write config.json, model.safetensors (fp16) and the tokenizer into `folder`."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(asdict(model.config), indent=1) + "\n", encoding="utf-8")
    as_made(tokenizer).save_pretrained(folder)


def load_scorer(name: str | Path = "prompt_scorer", device: str = "cpu") -> Scorer:
    """The shipped judge ("prompt_scorer"), one trained here (a folder), or a CLIP of the Hugging Face hub.

    Raises FileNotFoundError where there is neither such a folder nor a reachable hub; ValueError for a damaged checkpoint.
    """
    from transformers import CLIPTokenizer

    from gsgen_lib import pretrained

    folder = pretrained.checked_folder(name) if str(name) in pretrained.CHECKPOINTS else Path(name)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder.is_dir() else {}
    if "vocabulary" not in settings:  # not one of ours
        return _load_clip(str(name), device)
    from safetensors.torch import load_file

    model = PromptScorer(ScorerConfig(**settings | {"channels": tuple(settings["channels"])})).to(device).eval()
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    model.requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(folder)

    def embed_prompts(prompts: list[str]) -> Tensor:
        return model.embed_tokens(tokenize(tokenizer, prompts).to(device))

    return Scorer(f"prompt scorer ({name})", lambda images: model.embed_images(images.to(device)), embed_prompts)


def _load_clip(name: str, device: str) -> Scorer:
    """CLIP as a `Scorer`; pictures are resized and normalised as its processor says."""
    from transformers import CLIPModel, CLIPProcessor

    try:
        model = CLIPModel.from_pretrained(name, use_safetensors=True).to(device).eval().requires_grad_(False)
        processor = CLIPProcessor.from_pretrained(name)
    except (OSError, ConnectionError) as error:
        raise FileNotFoundError(f"name: {name!r} is no folder here, and no such CLIP could be fetched from the hub: "
                                f"{str(error).splitlines()[0][:200]}") from error
    side = model.config.vision_config.image_size
    mean, std = (torch.tensor(getattr(processor.image_processor, k), device=device)[:, None, None]
                 for k in ("image_mean", "image_std"))

    def embed_images(images: Tensor) -> Tensor:
        x = F.interpolate(images.to(device).movedim(-1, 1), (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        return F.normalize(_vector(model.get_image_features(pixel_values=(x - mean) / std)), dim=-1)

    def embed_prompts(prompts: list[str]) -> Tensor:
        tokens = processor.tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt").to(device)
        return F.normalize(_vector(model.get_text_features(**tokens)), dim=-1)

    return Scorer(f"CLIP ({name})", embed_images, embed_prompts)


def _vector(features) -> Tensor:
    """The projected vector (B, E); some releases of transformers wrap it."""
    return features if isinstance(features, Tensor) else features.pooler_output

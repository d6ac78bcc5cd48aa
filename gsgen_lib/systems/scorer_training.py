"""Training the prompt scorer, and asking how often it is right: gsgen train scorer.

Data: toys rendered for this purpose alone (another seed than the prior's), and views of the real training objects that the
prior does not learn from.
Each picture gets a random plain background and is shifted, scaled, blurred and noised a little; its prompt is
"caption, view word" or, one time in three, the caption alone. Beside it stand `MISSES` near misses (`near_misses`):
other view words, and the caption with one attribute changed, never to a combination that is held out: else the judge
would learn that such captions are always wrong. Loss: `contrastive_loss` + `near_miss_loss` of `prompt_scorer`.

The test: toys of combinations that training never has. For each picture, is its own caption ranked first among 50
captions (`top1`)? Is its view word the best of four (`view_accuracy`)? `confusions` says what differed where it failed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gsgen_lib import pretrained
from gsgen_lib.data.captioned_views import (
    JUDGE,
    VIEW_WORDS,
    CaptionedViews,
    draw_pictures,
    draw_rows,
    kept,
    on_background,
    random_backgrounds,
    toy_views,
    training_views,
    view_word,
)
from gsgen_lib.data.toy_words import (
    BUILDS,
    COLORS,
    PATTERN_COLORS,
    PATTERNS,
    combinations,
    make_caption,
    parse_caption,
    pattern_colors,
)
from gsgen_lib.systems.prompt_scorer import (
    PromptScorer,
    Scorer,
    ScorerConfig,
    contrastive_loss,
    draw_rivals,
    load_scorer,
    make_tokenizer,
    near_miss_loss,
    save_scorer,
    token_memory,
)
from gsgen_lib.training import TrainConfig, first_alone, is_first, seeded, train

PRESETS = {
    "tiny": dict(toys=12, steps=120, batch=16, real=()),
    "cpu": dict(toys=4000, steps=5000, batch=64, real=JUDGE),
    "gpu": dict(toys=4000, steps=8000, batch=512, real=JUDGE),
}
COMBINATIONS = {split: frozenset(combinations(split)) for split in ("train", "all")}
TOY_SEED = 2_000_000  # the prior's toys start at 1_000_000, the test's at 3_000_000


MISSES = 6


def near_misses(views: CaptionedViews, row: int, short: bool, captions: list[str], generator: torch.Generator) -> list[str]:
    """`MISSES` prompts that are nearly right for view `row`; short: without view word.

    captions: of real objects, from which the misses of a real object's caption are drawn; ValueError where none differs
    from it.

    >>> views = toy_views(1, np.random.default_rng(0), size=8)
    >>> views.prompt(0)
    'a tall grey snowman with yellow stripes, front view'
    >>> near_misses(views, 0, False, [], torch.Generator().manual_seed(0))[2:4]
    ['a tall grey snowman with yellow stripes, overhead view', 'a wide grey snowman with yellow stripes, front view']
    """
    caption = views.captions[row]
    word = view_word(float(views.azimuths[row]), float(views.elevations[row]))
    others = [] if short else [f"{caption}, {w}" for w in VIEW_WORDS if w != word]
    if views.real[row] and not set(captions) - {caption}:
        raise ValueError(f"captions: got {captions!r}, wanted one that differs from the real object's own, {caption!r}")
    changed = []
    while len(others) + len(changed) < MISSES:
        if views.real[row]:
            new = captions[int(torch.randint(len(captions), (1,), generator=generator))]
        else:
            new = one_attribute_changed(caption, generator)
        changed += [new] if new != caption else []
    return others + [c if short else f"{c}, {word}" for c in changed]


def one_attribute_changed(caption: str, generator: torch.Generator, split: str = "train") -> str:
    """A toy's caption with another colour, pattern, pattern colour or build, of a combination that the split has.

    >>> one_attribute_changed("a red mug with white dots", torch.Generator().manual_seed(1))
    'a red mug with white zigzags'
    """
    def pick(values, but):
        values = [v for v in values if v != but]
        return values[int(torch.randint(len(values), (1,), generator=generator))]

    family, found = parse_caption(caption)
    while True:
        new = dict(found)
        name = pick(("color", "pattern", "pattern_color", "build"), None if found["pattern_color"] else "pattern_color")
        new[name] = pick({"color": COLORS, "pattern": PATTERNS, "build": BUILDS, "pattern_color": PATTERN_COLORS}[name],
                         found[name])
        if new["pattern"] == "plain":
            new["pattern_color"] = None
        elif new["pattern_color"] not in pattern_colors(new["color"]):
            if name != "pattern":
                continue  # such a pattern would not stand out: no toy has it
            new["pattern_color"] = pick(pattern_colors(new["color"]), None)
        if (family, new["color"], new["pattern"]) in COMBINATIONS[split]:
            return make_caption(family, new)


def disturb(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to 4 pixels, scale by 0.85 to 1.15, blur and noise pictures (B, H, W, 3); the border is continued.

    >>> disturb(torch.rand(2, 64, 64, 3), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 64, 64, 3])
    """
    count, device = len(pictures), pictures.device
    x = pictures.movedim(-1, 1)
    draw = torch.rand(count, 5, generator=generator).to(device)
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / (0.85 + 0.3 * draw[:, 0])
    theta[:, :, 2] = (draw[:, 1:3] - 0.5) * 0.25
    x = F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), padding_mode="border", align_corners=False)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, soft, draw[:, 3, None, None, None])
    noise = torch.randn(x.shape, generator=generator).to(device) * 0.04 * draw[:, 4, None, None, None]
    return (x + noise).clamp(0, 1).movedim(1, -1)


def prompt_tokenizer(views: CaptionedViews):
    """A tokenizer that learned the prompts of the views, with and without sides."""
    return make_tokenizer([views.prompt(i, sides) for i in range(len(views)) for sides in (False, True)])


def contrastive_batches(views: CaptionedViews, tokens: Callable, batch: int) -> Callable:
    """draw(generator) -> disturbed pictures (B, H, W, 3), tokens (B, 1 + MISSES, L) of each one's prompt and its near
    misses, and the B prompts. tokens: from `token_memory`."""
    real_captions = sorted({c for c, real in zip(views.captions, views.real.tolist(), strict=True) if real})

    def draw(generator):
        rows = draw_rows(views, batch, generator)
        pictures = draw_pictures(views, rows, generator)[0]
        short = torch.rand(len(rows), generator=generator) < 1 / 3
        prompts = [views.captions[r] if s else views.prompt(r) for r, s in zip(rows.tolist(), short, strict=True)]
        misses = [near_misses(views, r, bool(s), real_captions, generator) for r, s in zip(rows.tolist(), short, strict=True)]
        texts = [text for own, near in zip(prompts, misses, strict=True) for text in (own, *near)]
        return disturb(pictures, generator), tokens(texts).unflatten(0, (len(rows), 1 + MISSES)), prompts

    return draw


def both_losses(model, data, generator) -> dict:
    """The loss of the header for a batch of `contrastive_batches`; model(pictures, tokens) as `PromptScorer`."""
    pictures, ids, prompts = data
    images, texts, log_scale = model(pictures, ids)
    apart, near = contrastive_loss(images, texts[:, 0], prompts, log_scale), near_miss_loss(images, texts, log_scale)
    return {"loss": apart + near, "contrastive": apart, "near misses": near}


def train_scorer(out: Path = Path("runs/prompt_scorer"), preset: str = "cpu", steps: int | None = None, seed: int = 0,
                 minutes: float | None = None, device: str | None = None, views: CaptionedViews | None = None) -> dict:
    """Train a prompt scorer; the finished model is out/model (config, weights, tokenizer, card). Resumable.

    preset: "tiny" (a minute, for tests), "cpu" or "gpu"; minutes: stop early (call again to go on); views: pictures to
    use instead of the preset's. Returns the card.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset: got {preset!r}, wanted one of {', '.join(PRESETS)}")
    p = PRESETS[preset]
    steps, out, start = steps or p["steps"], Path(out), time.perf_counter()
    if views is None:
        toys = np.random.default_rng(TOY_SEED + seed)
        with first_alone():
            views = kept(out / "views.safetensors", lambda: training_views(p["toys"], toys, p["real"]))
    tokenizer = prompt_tokenizer(views)
    draw_batch = contrastive_batches(views, token_memory(tokenizer), p["batch"])
    model = seeded(lambda: PromptScorer(ScorerConfig(vocabulary=len(tokenizer))), seed)
    config = TrainConfig(steps=steps, lr=1e-3, warmup=200, weight_decay=0.05, ema_decay=0.998, checkpoint_every=250,
                         seed=seed)
    result = train(model, both_losses, draw_batch, config, out, minutes=minutes, device=device)
    if not is_first():
        return {}
    save_scorer(model, tokenizer, out / "model")
    scorer = load_scorer(out / "model")
    tests = toy_views(40 if preset == "tiny" else 200, np.random.default_rng(3_000_000 + seed), "test")
    metrics = scorer_metrics(scorer, tests, seed)
    return pretrained.write_card(out / "model", {
        "name": "prompt_scorer", "command": f"gsgen train scorer --preset {preset}", "seed": seed, "steps": result.step,
        "hours": round(result.seconds / 3600, 2), "seconds_in_all": round(time.perf_counter() - start),
        "parameters": sum(v.numel() for v in model.parameters()), "metrics": metrics})


@torch.no_grad()
def scorer_metrics(scorer: Scorer, views: CaptionedViews, seed: int = 0, among: int = 50) -> dict:
    """{"top1", "view_accuracy", "pictures", "confusions"} of a judge on true renders of held-out toys.

    Each picture stands on a random plain background. Its rivals are among - 1 captions of other toys of the collection.
    """
    generator = torch.Generator().manual_seed(seed)
    backgrounds = random_backgrounds(len(views), generator)
    captions = list(dict.fromkeys(views.captions))
    words = torch.cat([scorer.embed_prompts(captions[i:i + 256]) for i in range(0, len(captions), 256)])
    right = seen = 0
    confusions: Counter = Counter()
    for start in range(0, len(views), 200):
        rows = torch.arange(start, min(start + 200, len(views)))
        pictures = on_background(views.images[rows], backgrounds[rows])
        scores = scorer.embed_mirrored(pictures) @ words.T  # (B, P)
        own = torch.tensor([captions.index(views.captions[int(i)]) for i in rows], device=scores.device)
        rivals = draw_rivals(own, len(captions), min(among, len(captions)) - 1, generator)
        best = rivals.gather(1, scores.gather(1, rivals).argmax(1, keepdim=True))  # (B, 1): the strongest rival
        beaten = (scores.gather(1, best) < scores.gather(1, own[:, None]))[:, 0]
        right += int(beaten.sum())
        confusions.update(" and ".join(difference(captions[own[k]], captions[best[k, 0]]))
                          for k in torch.nonzero(~beaten)[:, 0].tolist())
        guess = scorer.view(pictures, [views.captions[int(i)] for i in rows])
        truth = [view_word(float(views.azimuths[i]), float(views.elevations[i])) for i in rows]
        seen += sum(a == b for a, b in zip(guess, truth, strict=True))
    return {"top1": round(right / len(views), 4), "among": min(among, len(captions)), "pictures": len(views),
            "view_accuracy": round(seen / len(views), 4), "confusions": dict(confusions.most_common(8))}


def difference(caption: str, other: str) -> list[str]:
    """The attributes in which two captions of toys differ.

    >>> difference("a red mug", "a tall blue mug with black dots")
    ['color', 'pattern', 'pattern_color', 'build']
    """
    (family, a), (other_family, b) = parse_caption(caption), parse_caption(other)
    return ["family"] * (family != other_family) + [name for name in a if a[name] != b[name]]

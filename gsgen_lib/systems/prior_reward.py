"""Stage 5 of the prior: samples are to show the view that their prompt names.

Problem. The diffusion loss is a mean over all latents. What tells a front from a back, a face or a door, is a few of them: after
50,000 steps the U-Net still mixed up front and back, which a classifier of the same latents learns in minutes. So that classifier
becomes the teacher:

    f(z + noise, caption) -> front, side, back or overhead view                       learned from the training latents

Draw latents z_0 as a sampler does, DDIM with guidance, and let the gradient of f's cross entropy flow back through the last
`THROUGH` of `DRAWN` steps into the U-Net (DRaFT-K, 2309.17400):

    loss = |v_theta(z_t, t, text) - v|^2  +  `REWARD` CE( f(z_0 + noise, caption), word )

The first term, on the training latents as in stage 3, keeps what was learned. Captions of the second are drawn anew from the
training combinations; three quarters of the words are front and back, which are the hard ones. The classifier sees no picture of
the judge that measures the prior, and the judge none of this. Taught in notebook 02.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsgen_lib.data.captioned_views import VIEW_WORDS, CaptionedViews, view_word
from gsgen_lib.data.toy_words import NOUNS, make_caption
from gsgen_lib.data.toys import sample_attributes
from gsgen_lib.diffusion import ddim_sample, guided
from gsgen_lib.systems.prior_networks import WIDTH, TextAndUNet, make_scheduler
from gsgen_lib.training import TrainConfig, seeded, train

REWARD, NOISE = 0.05, 0.4  # NOISE: largest standard deviation on the latents that the classifier learns from; half of it here
DRAWN, THROUGH, GUIDANCE = 12, 5, 3.0


class ViewClassifier(nn.Module):
    """Latents (B, C, 16, 16) and pooled text features of captions (B, 96) -> logits of VIEW_WORDS (B, 4).

    text_encoder: the prior's; frozen.

    >>> from gsgen_lib.systems.prior_networks import make_text_encoder
    >>> ViewClassifier(make_text_encoder(300))(torch.zeros(2, 4, 16, 16), torch.ones(2, 24, dtype=torch.long)).shape
    torch.Size([2, 4])
    """

    def __init__(self, text_encoder, latent: int = 4, size: int = 16):
        super().__init__()

        def block(channels, wider, stride):
            return [nn.Conv2d(channels, wider, 3, stride, 1), nn.GroupNorm(8, wider), nn.SiLU()]

        self.text_encoder = text_encoder.requires_grad_(False)
        self.see = nn.Sequential(*block(latent, 48, 1), *block(48, 64, 1), *block(64, 96, 2), *block(96, 96, 1),
                                 *block(96, 128, 2), *block(128, 128, 1))  # (B, 128, size / 4, size / 4)
        self.read = nn.Linear(WIDTH, 2 * 128)  # what a caption makes of each channel: a factor and a shift
        self.say = nn.Sequential(nn.SiLU(), nn.Flatten(), nn.Linear(128 * (size // 4) ** 2, 256), nn.SiLU(),
                                 nn.Linear(256, len(VIEW_WORDS)))

    def forward(self, z: Tensor, tokens: Tensor) -> Tensor:
        factor, shift = self.read(self.text_encoder(tokens).pooler_output)[:, :, None, None].chunk(2, 1)
        return self.say(self.see(z) * (1 + factor) + shift)


def words_of(views: CaptionedViews) -> Tensor:
    """The place in VIEW_WORDS of each view's word, (M,).

    >>> from gsgen_lib.data.captioned_views import toy_views
    >>> words_of(toy_views(1, np.random.default_rng(0), size=8, sets=1, overhead=1)).tolist()
    [0, 1, 2, 1, 3]
    """
    return torch.tensor([VIEW_WORDS.index(view_word(float(a), float(e)))
                         for a, e in zip(views.azimuths, views.elevations, strict=True)])


def train_view_classifier(views: CaptionedViews, latents: Tensor, text_encoder, tokens: Callable, folder: Path, steps: int,
                          batch: int, seed: int, minutes=None, device=None):
    """The teacher, from latents (M, copies, C, h, w) of the views with noise; returns it, and the training's result."""
    if len(latents) != len(views):
        raise ValueError(f"latents: got {len(latents)}, wanted one for each of {len(views)} views")
    answers = words_of(views)
    model = seeded(lambda: ViewClassifier(text_encoder, latents.shape[2], latents.shape[-1]), seed)

    def draw_batch(generator):
        rows = torch.randint(len(views), (batch,), generator=generator)
        z = latents[rows, torch.randint(latents.shape[1], (batch,), generator=generator)].float()
        return z, tokens([views.captions[int(r)] for r in rows]), answers[rows]

    def loss_fn(network, data, generator):
        z, ids, answer = data
        logits = network(with_noise(z, NOISE, generator), ids)
        loss = F.cross_entropy(logits, answer, label_smoothing=0.05)
        return {"loss": loss, "right": (logits.argmax(1) == answer).float().mean()}

    config = TrainConfig(steps=steps, lr=2e-3, warmup=min(300, steps // 4), weight_decay=0.05, ema_decay=0.99,
                         checkpoint_every=250, seed=seed)
    result = train(model, loss_fn, draw_batch, config, folder, None, minutes, device)
    return model.eval().requires_grad_(False), result


def with_noise(z: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Latents with noise, its strength uniform in [0, most] for each of them.

    >>> with_noise(torch.zeros(1000, 1, 8, 8), 0.5, torch.Generator().manual_seed(0)).std((1, 2, 3)).max() < 0.75
    tensor(True)
    """
    strength = most * torch.rand(len(z), 1, 1, 1, generator=generator)
    return z + (strength * torch.randn(z.shape, generator=generator)).to(z)


def drawn_with_gradient(predict_v: Callable, noise: Tensor, cond, uncond, alphas_cumprod: Tensor, steps: int = DRAWN,
                        through: int = THROUGH, guidance_scale: float = GUIDANCE) -> Tensor:
    """Latents that DDIM draws from noise (B, C, h, w) with guidance, as `Prior.sample` does; a gradient flows through the last
    `through` steps only.

    predict_v(x_t, t, text) -> (B, ...); cond, uncond: texts, (B, ...) each.

    >>> w = torch.tensor(0.5, requires_grad=True)
    >>> z = drawn_with_gradient(lambda x, t, c: w * x, torch.ones(1, 1), *torch.zeros(2, 1, 1), make_scheduler().alphas_cumprod)
    >>> z.requires_grad
    True
    """
    denoise = guided(predict_v, cond, uncond, guidance_scale)
    return ddim_sample(denoise, noise, alphas_cumprod, steps, prediction="v", through=through)


def train_reward(model: TextAndUNet, teacher: ViewClassifier, latents: Tensor, tokens: Callable, diffusion, folder: Path,
                 steps: int, batch: int, seed: int, minutes=None, device=None, lr: float = 1e-4):
    """Stage 5: `model` in place; returns the training's result. diffusion: (draw_batch, loss_fn) of stage 3."""
    draw_training, diffusion_loss = diffusion
    alphas_cumprod = make_scheduler().alphas_cumprod.float()

    def draw_batch(generator):
        attributes = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        families = torch.randint(len(NOUNS), (batch,), generator=generator)
        captions = [make_caption(*sample_attributes(attributes, NOUNS[int(f)], "train")) for f in families]
        hard = torch.rand(batch, generator=generator) < 0.5  # then front or back, places 0 and 2; else any of the four
        words = torch.where(hard, 2 * torch.randint(2, (batch,), generator=generator),
                            torch.randint(4, (batch,), generator=generator))
        prompts = [f"{c}, {VIEW_WORDS[int(w)]}" for c, w in zip(captions, words, strict=True)]
        noise = torch.randn(batch, *latents.shape[2:], generator=generator)
        return draw_training(generator), noise, tokens(prompts), tokens([""] * batch), tokens(captions), words

    def loss_fn(network, data, generator):
        known, noise, ids, empty, captions, words = data
        teacher.to(noise.device)
        kept = diffusion_loss(network, known, generator)
        z = drawn_with_gradient(lambda x, t, text: network(x, t.expand(len(x)), text), noise, ids, empty, alphas_cumprod, DRAWN,
                                THROUGH)
        logits = teacher(with_noise(z, NOISE / 2, generator), captions)
        reward = F.cross_entropy(logits, words)
        return {"loss": kept + REWARD * reward, "diffusion": kept, "view": reward,
                "right": (logits.argmax(1) == words).float().mean()}

    config = TrainConfig(steps=steps, lr=lr, warmup=min(20, steps), weight_decay=0.0, ema_decay=0.99, checkpoint_every=50,
                         seed=seed)
    return train(model, loss_fn, draw_batch, config, folder, None, minutes, device)

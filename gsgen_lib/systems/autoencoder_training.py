"""The autoencoder of the prior: pictures into latents and back, first to be true, then to be sharp.

    pictures x (B, 64, 64, 3) -> encoder -> N(mean, var) -> z (B, 4, 16, 16) -> decoder D -> pictures

Stage 1, encoder and decoder together:

    loss = mean |x - D(z)| + `PERCEPTUAL` LPIPS(x, D(z)) + `KL` KL( N(mean, var) || N(0, I) ),   z ~ N(mean, var)

with the mean over pixels and channels, and the KL a sum over a picture's latents, averaged over pictures. Then
`scaling_factor` = 1 / std of the latents, so that diffusion sees unit variance.

Stage 4 (2 and 3 are in `prior_training`), the decoder alone. Where the latents leave something open, the mean error is smallest
for a compromise of all pictures they could mean, each pixel's median: a blur. So a second network looks at patches and says real
or made, and the decoder is also paid for being taken for real (hinge loss; d sees patches of 22 x 22 pixels):

    decoder         mean |x - D(z)| + `PERCEPTUAL` LPIPS(x, D(z)) - `ADVERSARIAL` mean d(D(z))
    discriminator   mean max(0, 1 - d(x)) + mean max(0, 1 + d(D(z)))

with noise of a random strength up to `NOISE` on the scaled latents: those of a sample are never quite clean, and a decoder that
has seen only clean ones paints what is left of the noise as patches of colour.

Source: latent diffusion (2112.10752), section 3.1 and appendix G. Taught in notebook 02.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsgen_lib.data.captioned_views import CaptionedViews, draw_pictures, draw_rows, on_background, random_backgrounds
from gsgen_lib.perceptual import lpips
from gsgen_lib.systems.prior_networks import EncodeDecode, make_autoencoder
from gsgen_lib.training import TrainConfig, seeded, train

PERCEPTUAL, KL, ADVERSARIAL = 0.3, 1e-6, 0.1
NOISE = 0.3


# ---- stage 1 -------------------------------------------------------------------------------------------------------


def compared(model: EncodeDecode, pictures: Tensor, generator: torch.Generator) -> tuple[dict, Tensor, Tensor]:
    """{"l1", "lpips", "kl"} of pictures (B, H, W, 3) in [0, 1]; the pictures, and what came back, (B, 3, H, W) in [-1, 1]."""
    x = pictures.movedim(-1, 1) * 2 - 1
    decoded, mean, logvar = model(x, generator)
    seen = (decoded.movedim(1, -1) / 2 + 0.5).clamp(0, 1)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum((1, 2, 3)).mean()
    return {"l1": (decoded - x).abs().mean(), "lpips": lpips(seen, pictures, validate=False), "kl": kl}, x, decoded


def autoencoder_loss(model: EncodeDecode, pictures: Tensor, generator: torch.Generator) -> dict:
    """The loss of stage 1 for pictures (B, H, W, 3) in [0, 1]; {"loss", "l1", "lpips", "kl"}."""
    parts = compared(model, pictures, generator)[0]
    return {"loss": parts["l1"] + PERCEPTUAL * parts["lpips"] + KL * parts["kl"], **parts}


def train_autoencoder(views: CaptionedViews, folder: Path, channels: tuple[int, ...], steps: int, batch: int, lr: float,
                      seed: int, minutes=None, device=None):
    """Stage 1; returns the AutoencoderKL with its scaling_factor set, and the training's result."""
    model = seeded(lambda: EncodeDecode(make_autoencoder(tuple(channels))), seed)
    result = pictures_to_pictures(model, autoencoder_loss, views, folder, steps, batch, lr, seed, minutes, device)
    pictures = draw_pictures(views, draw_rows(views, 256, torch.Generator().manual_seed(seed + 1)),
                             torch.Generator().manual_seed(seed + 2))[0]
    model.vae.register_to_config(scaling_factor=1.0)
    latents = encode(model.vae, pictures)
    model.vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return model.vae, result


def pictures_to_pictures(model: EncodeDecode, loss_fn, views: CaptionedViews, folder: Path, steps: int, batch: int, lr: float,
                         seed: int, minutes=None, device=None):
    """Train `model` on `loss_fn`; its sample sheets show pictures, and below them what comes back."""

    def draw_batch(generator):
        return draw_pictures(views, draw_rows(views, batch, generator), generator)[0]

    shown = torch.linspace(0, len(views) - 1, 16).long()
    truth = on_background(views.images[shown], random_backgrounds(16, torch.Generator().manual_seed(seed)))

    @torch.no_grad()
    def sheet(model):
        x = truth.movedim(-1, 1).to(next(model.parameters()).device) * 2 - 1
        again = model(x, torch.Generator().manual_seed(seed))[0].movedim(1, -1) / 2 + 0.5
        return grid(torch.cat([truth, again.cpu()]), 16)

    config = TrainConfig(steps=steps, lr=lr, warmup=50, weight_decay=0.0, ema_decay=0.998, checkpoint_every=250,
                         seed=seed)
    return train(model, loss_fn, draw_batch, config, folder, sheet, minutes, device)


@torch.no_grad()
def encode(vae, pictures: Tensor, chunk: int = 64) -> Tensor:
    """Scaled mean latents (B, C, h, w) of pictures (B, H, W, 3) in [0, 1], on the CPU."""
    device = next(vae.parameters()).device
    parts = [vae.encode(p.to(device).movedim(-1, 1) * 2 - 1).latent_dist.mean.cpu() for p in pictures.split(chunk)]
    return torch.cat(parts) * vae.config.scaling_factor


# ---- stage 4 -------------------------------------------------------------------------------------------------------


class EncodeDecodeJudge(EncodeDecode):
    """What stage 4 trains: an `EncodeDecode` whose encoder stays, and the discriminator d of patches."""

    def __init__(self, vae, noise: float):
        super().__init__(vae, noise)
        for part, learns in ((vae.encoder, False), (vae.quant_conv, False), (vae.post_quant_conv, True), (vae.decoder, True)):
            part.requires_grad_(learns)
        # Without normalisation: over a picture that is mostly plain background, it made halos around objects.
        self.judge = nn.Sequential(nn.Conv2d(3, 32, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 64, 4, 2, 1), nn.LeakyReLU(0.2),
                                   nn.Conv2d(64, 128, 4, 1, 1), nn.LeakyReLU(0.2), nn.Conv2d(128, 1, 1))  # -> (B, 1, 15, 15)


def decoder_loss(model: EncodeDecodeJudge, pictures: Tensor, generator: torch.Generator) -> dict:
    """Both losses of stage 4 in one, for pictures (B, H, W, 3) in [0, 1]: no weight gets a gradient from both."""
    parts, x, decoded = compared(model, pictures, generator)
    held = {name: value.detach() for name, value in model.judge.named_parameters()}
    fooled = -torch.func.functional_call(model.judge, held, (decoded,)).mean()  # moves the decoder only
    judged = F.relu(1 - model.judge(x)).mean() + F.relu(1 + model.judge(decoded.detach())).mean()
    loss = parts["l1"] + PERCEPTUAL * parts["lpips"] + ADVERSARIAL * fooled + judged
    return {"loss": loss, "l1": parts["l1"], "lpips": parts["lpips"], "fooled": fooled, "judged": judged}


def train_decoder(vae, views: CaptionedViews, folder: Path, steps: int, batch: int, lr: float, seed: int, minutes=None,
                  device=None):
    """Stage 4: the decoder of `vae` becomes sharp, and patient with noisy latents, in place; returns the training's result."""
    model = seeded(lambda: EncodeDecodeJudge(vae, NOISE / vae.config.scaling_factor), seed)
    return pictures_to_pictures(model, decoder_loss, views, folder, steps, batch, lr, seed, minutes, device)


def grid(pictures: Tensor, columns: int) -> Tensor:
    """Pictures (B, H, W, 3) side by side, `columns` to a row: (rows H, columns W, 3).

    >>> grid(torch.zeros(6, 4, 4, 3), 3).shape
    torch.Size([8, 12, 3])
    """
    count, h, w, _ = pictures.shape
    rows = pictures.reshape(count // columns, columns, h, w, 3)
    return rows.permute(0, 2, 1, 3, 4).reshape(count // columns * h, columns * w, 3)

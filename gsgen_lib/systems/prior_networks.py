"""The parts of the prior: autoencoder, U-Net, text encoder, noise schedule, in the classes of Stable Diffusion.

    pictures (B, 3, 64, 64) -> autoencoder -> latents (B, 4, 16, 16)         AutoencoderKL, 0.8 million weights
    prompt -> tokens (B, 24) -> text encoder -> features (B, 24, 96)         CLIPTextModel, 0.2 million
    noisy latents, time, features -> U-Net -> v (B, 4, 16, 16)               UNet2DConditionModel, 2.6 million

With these classes the trained parts are a `StableDiffusionPipeline`, and whatever runs Stable Diffusion runs them.
Source: latent diffusion (2112.10752), section 3. Taught in notebook 02; trained by `prior_training`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gsgen_lib.nn.multiview import start_linear
from gsgen_lib.systems.prior import views_together
from gsgen_lib.systems.prompt_scorer import TwoTowers

WIDTH, LENGTH = 96, 24  # of text features: channels, tokens


def make_autoencoder(channels: tuple[int, ...] = (32, 48, 64), latent: int = 4):
    """An AutoencoderKL that halves the picture once less than it has channels; weights from torch's generator.

    It starts as a nearly linear map (`start_linear`) and with little noise on its latents (log variance -8); from
    diffusers' own initial weights the same network learns much more slowly.

    >>> import torch
    >>> make_autoencoder((16, 16, 16)).encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean.shape
    torch.Size([1, 4, 16, 16])
    """
    from diffusers import AutoencoderKL
    from diffusers.models.resnet import ResnetBlock2D

    n = len(channels)
    vae = AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * n, up_block_types=("UpDecoderBlock2D",) * n,
                         block_out_channels=channels, layers_per_block=1, latent_channels=latent,
                         norm_num_groups=channels[0] // 2,  # one channel to a group would lose every plain colour
                         sample_size=64, mid_block_add_attention=False)
    start_linear(vae, ResnetBlock2D)
    with torch.no_grad():
        vae.quant_conv.bias[latent:] = -8.0
    return vae


def make_unet(channels: tuple[int, ...] = (64, 96), size: int = 16, latent: int = 4, attention: int | None = None):
    """A UNet2DConditionModel for latents (B, latent, size, size); attention: at how many of the coarsest levels.

    >>> import torch
    >>> unet = make_unet((16, 32))
    >>> unet(torch.zeros(2, 4, 16, 16), 5, torch.zeros(2, 24, 96)).sample.shape
    torch.Size([2, 4, 16, 16])
    """
    from diffusers import UNet2DConditionModel

    n = len(channels)
    with_text = [n - i <= (attention or n) for i in range(n)]
    return UNet2DConditionModel(
        sample_size=size, in_channels=latent, out_channels=latent, block_out_channels=channels, layers_per_block=1,
        down_block_types=tuple("CrossAttnDownBlock2D" if w else "DownBlock2D" for w in with_text),
        up_block_types=tuple("CrossAttnUpBlock2D" if w else "UpBlock2D" for w in reversed(with_text)),
        cross_attention_dim=WIDTH, attention_head_dim=4, norm_num_groups=16,  # diffusers: 4 is the number of heads
        addition_embed_type="text", addition_embed_type_num_heads=4)  # the pooled prompt joins the time in every block


def make_text_encoder(vocabulary: int):
    """A two-layer CLIPTextModel for prompts of 24 tokens.

    >>> import torch
    >>> make_text_encoder(300)(torch.ones(2, 24, dtype=torch.long))[0].shape
    torch.Size([2, 24, 96])
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    end = vocabulary - 1
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=LENGTH, bos_token_id=end - 1, eos_token_id=end, pad_token_id=end))


def make_scheduler():
    """Scaled-linear betas shifted to zero terminal SNR, v-prediction, trailing steps."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                         set_alpha_to_one=True, prediction_type="v_prediction", rescale_betas_zero_snr=True,
                         timestep_spacing="trailing", steps_offset=1)


class EncodeDecode(nn.Module):
    """What stage 1 trains: pictures -> latents -> pictures, with the posterior they were drawn from.

    noise: standard deviation of noise added to the latents of each picture, up to this, in their own units.
    """

    def __init__(self, vae, noise: float = 0.0):
        super().__init__()
        self.vae, self.noise = vae, noise

    def forward(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, 3, H, W) in [-1, 1] -> decoded (B, 3, H, W), mean and logvar (B, C, h, w)."""
        posterior = self.vae.encode(x, return_dict=False)[0]
        noise = torch.randn(posterior.mean.shape, generator=generator).to(x)
        strength = self.noise * torch.rand(len(x), 1, 1, 1, generator=generator).to(x)
        decoded = self.vae.decode(posterior.mean + (posterior.std + strength) * noise, return_dict=False)[0]
        return decoded, posterior.mean, posterior.logvar


class TextAndPictures(TwoTowers):
    """What stage 2 trains: the text encoder, beside an image tower that is thrown away afterwards.

    >>> import torch
    >>> model = TextAndPictures(make_text_encoder(300))
    >>> [x.shape for x in model(torch.rand(2, 64, 64, 3), torch.ones(2, 7, 24, dtype=torch.long))[:2]]
    [torch.Size([2, 128]), torch.Size([2, 7, 128])]
    """

    def __init__(self, text_encoder, channels: tuple[int, ...] = (32, 64, 128, 192), embed: int = 128):
        super().__init__(channels, embed)
        self.text_encoder, self.text_head = text_encoder, nn.Linear(WIDTH, embed)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Unit vectors (B, embed) of token ids (B, L), read at the end token, which has seen all the others."""
        return nn.functional.normalize(self.text_head(self.text_encoder(tokens).pooler_output), dim=-1)


class TextAndUNet(nn.Module):
    """What stage 3 trains, tokens -> features -> prediction; the text encoder is frozen, as in Stable Diffusion."""

    def __init__(self, unet, text_encoder):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder.requires_grad_(False)

    def forward(self, x_t: Tensor, t: Tensor, tokens: Tensor, views: int = 1) -> Tensor:
        with views_together(self.unet, views):
            return self.unet(x_t, t, encoder_hidden_states=self.text_encoder(tokens)[0]).sample


def as_pipeline(model: TextAndUNet, vae, tokenizer):
    """The trained parts as a StableDiffusionPipeline of diffusers."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(vae=vae, text_encoder=model.text_encoder, tokenizer=tokenizer, unet=model.unet,
                                   scheduler=make_scheduler(), safety_checker=None, feature_extractor=None,
                                   requires_safety_checker=False)

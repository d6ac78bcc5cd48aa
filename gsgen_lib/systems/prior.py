"""A text-to-image prior behind four functions: what a denoiser knows about pictures, lent to 3D.

    text  = prior.encode_prompt(["a red mug, side view"])         (B, L, D)
    z     = prior.encode_image(pictures)                          (B, C, h, w), differentiable
    eps   = prior.predict_eps(z_t, t, text)                       (B, C, h, w), whatever the network predicts
    image = prior.decode(z)                                       (B, H, W, 3)

The shipped prior is a small latent diffusion model of the course's objects (64 x 64 pixels, latents of
16 x 16 x 4), kept as a folder of the Stable Diffusion pipeline of diffusers: the classes are the same, the
numbers are smaller. So `load_prior` also takes a Stable Diffusion from the hub, or from a folder.

Four views at right angles can be drawn together (`views=4`): in every self-attention the tokens of the
four views of an object form one sequence, so that each view sees the others (MVDream, 2308.16512,
section 3.1). No weight is added; the view words of the prompts say which view is which.

Trained by `prior_training`; used by score distillation. Taught in notebook 02.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from gsgen_lib.data.captioned_views import without_view
from gsgen_lib.diffusion import contrasted, convert, ddim_sample, ddpm_sample, guided
from gsgen_lib.metrics import check_images

__all__ = ["Prior", "load_prior", "set_prompts", "views_together"]

NEEDED = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")


class Prior:
    """A Stable Diffusion pipeline as plain functions; no gradient reaches its weights.

    pipeline: a diffusers pipeline with vae, unet, text_encoder, tokenizer and scheduler; name: said in outputs.
    Attributes: alphas_cumprod (T,), prediction ("eps", "v" or "x0"), size (pixels), latent_shape (C, h, w), name.

    Raises ValueError where the pipeline lacks a part or predicts something unknown.
    """

    def __init__(self, pipeline, name: str):
        lacking = [part for part in NEEDED if getattr(pipeline, part, None) is None]
        if lacking:
            raise ValueError(f"pipeline: {name} lacks {', '.join(lacking)}; wanted one of Stable Diffusion's form")
        kinds = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
        kind = pipeline.scheduler.config.prediction_type
        if kind not in kinds:
            raise ValueError(f"pipeline: {name} predicts {kind!r}, wanted one of {', '.join(kinds)}")
        self.name, self.prediction = name, kinds[kind]
        self.vae, self.unet, self.text_encoder = (
            getattr(pipeline, part).eval().requires_grad_(False) for part in NEEDED[:3])
        self.tokenizer, self.scheduler = pipeline.tokenizer, pipeline.scheduler
        self.pipeline = pipeline
        self.alphas_cumprod = pipeline.scheduler.alphas_cumprod.float()
        self.scaling = self.vae.config.scaling_factor
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        h = self.unet.config.sample_size
        self.size, self.latent_shape = h * self.factor, (self.unet.config.in_channels, h, h)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the weights."""
        return next(self.unet.parameters()).dtype

    def to(self, device) -> Prior:
        """Move the weights; returns self."""
        for part in (self.vae, self.unet, self.text_encoder):
            part.to(device)
        return self

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Tensor:
        """Text features (B, L, D) of B prompts; "" is the unconditional one. Words beyond L tokens are cut."""
        if isinstance(prompts, str) or not all(isinstance(p, str) for p in prompts):
            raise ValueError(f"prompts: got {prompts!r}, wanted a list of strings")
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True,
                                return_tensors="pt").input_ids
        return self.text_encoder(tokens.to(self.device))[0]

    def encode_image(self, images: Tensor) -> Tensor:
        """Latents (B, C, h, w) of pictures (B, H, W, 3) in [0, 1]: the mean of the posterior, scaled; differentiable.

        H, W must be multiples of the autoencoder's factor. ValueError otherwise; TypeError for whole numbers.
        """
        check_images("images", images, values=False)
        if images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] % self.factor or images.shape[2] % self.factor:
            raise ValueError(f"images: got shape {tuple(images.shape)}, wanted (B, H, W, 3), H and W multiples of "
                             f"{self.factor}")
        x = images.movedim(-1, 1).to(self.dtype) * 2 - 1  # (B, 3, H, W) in [-1, 1]
        return self.vae.encode(x).latent_dist.mean * self.scaling

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, H, W, 3) in [0, 1] of latents (B, C, h, w); differentiable where not clipped."""
        x = self.vae.decode(latents.to(self.dtype) / self.scaling).sample  # (B, 3, H, W)
        return (x.movedim(1, -1).float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def predict_eps(self, x_t: Tensor, t, text: Tensor, views: int = 1) -> Tensor:
        """The network's guess of the noise in latents x_t (B, C, h, w) at step t, one number or (B,).

        text: (B, L, D) from `encode_prompt`; views: how many neighbours in the batch form one object.
        """
        t = torch.as_tensor(t, device=x_t.device)
        if t.is_floating_point() or bool(((t < 0) | (t >= len(self.alphas_cumprod))).any()):
            raise ValueError(f"t: got {t.flatten().tolist()[:4]}, wanted whole numbers from 0 to {len(self.alphas_cumprod) - 1}")
        guess = self.predict(x_t, t, text, views)
        return convert(guess, x_t, self.alphas_cumprod.to(x_t.device)[t], self.prediction, "eps")

    def predict(self, x_t: Tensor, t: Tensor, text: Tensor, views: int = 1) -> Tensor:
        """What the network itself predicts (`self.prediction`); arguments as in `predict_eps`."""
        if len(text) != len(x_t):
            raise ValueError(f"text: got {len(text)} prompts, wanted {len(x_t)}, one for each latent")
        with views_together(self.unet, views):
            return self.unet(x_t.to(self.dtype), t, encoder_hidden_states=text.to(self.dtype)).sample.to(x_t.dtype)

    @torch.no_grad()
    def sample(self, prompts: list[str], steps: int = 30, guidance_scale: float = 3.0, sampler: str = "ddim",
               views: int = 1, rescale: float = 0.0, negative: str = "", eta: float = 0.0, view_guidance: float = 1.0,
               generator: torch.Generator | None = None) -> Tensor:
        """Draw one picture for each prompt: (B, H, W, 3) in [0, 1].

        sampler: "ddim" or "ddpm"; views > 1: prompts come in groups of that many views of one object
        (`set_prompts`); rescale: of the guided prediction; negative: the prompt to move away from; view_guidance: how much
        louder than the rest a prompt's view word is made (`contrasted` with the same prompt without it), where there is one
        and views = 1.
        The generator lives on the CPU, so a seed gives the same starting noise on every device; what "ddpm" and eta > 0
        draw on the way comes from a generator of the device.
        """
        if not prompts or len(prompts) % views:
            raise ValueError(f"prompts: got {len(prompts)}, wanted a multiple of views = {views}, at least one")
        if sampler not in ("ddim", "ddpm"):
            raise ValueError(f"sampler: got {sampler!r}, wanted ddim or ddpm")
        noise = torch.randn(len(prompts), *self.latent_shape, generator=generator).to(self.device)
        cond, uncond = self.encode_prompt(prompts), self.encode_prompt([negative] * len(prompts))

        def model(x, t, text):
            return self.predict(x, t, text, views)

        bare = [without_view(prompt) for prompt in prompts]
        if view_guidance and views == 1 and bare != list(prompts):
            denoise = contrasted(model, cond, uncond, self.encode_prompt(bare), guidance_scale, view_guidance, rescale)
        else:
            denoise = guided(model, cond, uncond, guidance_scale, rescale)
        where = generator if generator is None or self.device.type == "cpu" else _generator_on(self.device, generator)
        settings = dict(prediction=self.prediction, generator=where)
        if sampler == "ddpm":
            return self.decode(ddpm_sample(denoise, noise, self.alphas_cumprod, steps, **settings))
        return self.decode(ddim_sample(denoise, noise, self.alphas_cumprod, steps, eta=eta, **settings))


def _generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator on a device, seeded by a draw of one on the CPU."""
    seed = int(torch.randint(2**62, (1,), generator=generator))
    return torch.Generator(device).manual_seed(seed)


def set_prompts(caption: str) -> list[str]:
    """The prompts of four views at right angles, in the order of `CaptionedViews.sets`.

    >>> set_prompts("a red mug")[1:3]
    ['a red mug, right side view', 'a red mug, back view']
    """
    from gsgen_lib.data.captioned_views import prompt_of

    return [prompt_of(caption, azimuth, 15.0, sides=True) for azimuth in (0, 90, 180, 270)]


class _SelfAttentionAcrossViews:
    """diffusers' attention, but self-attention runs over the tokens of `views` neighbours at once."""

    def __init__(self, views: int):
        from diffusers.models.attention_processor import AttnProcessor2_0

        self.views, self.inner = views, AttnProcessor2_0()

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        if encoder_hidden_states is not None:  # cross-attention to the text: each view has its own
            return self.inner(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        batch, tokens, channels = hidden_states.shape
        together = hidden_states.reshape(batch // self.views, self.views * tokens, channels)
        return self.inner(attn, together, None, *args, **kwargs).reshape(batch, tokens, channels)


@contextmanager
def views_together(unet, views: int):
    """Within the block, each `views` neighbours of a batch attend to one another; 1 changes nothing.

    ValueError at the first call whose batch is not a multiple of `views` (from the reshape).
    """
    if views < 1:
        raise ValueError(f"views: got {views}, wanted at least 1")
    if views == 1:
        yield unet
        return
    before = unet.attn_processors
    unet.set_attn_processor(_SelfAttentionAcrossViews(views))
    try:
        yield unet
    finally:
        unet.set_attn_processor(before)


def load_prior(name: str | Path = "prior", device: str = "cpu", dtype: torch.dtype = torch.float32) -> Prior:
    """The shipped prior ("prior"), a pipeline folder, or a Stable Diffusion of the Hugging Face hub.

    The shipped one is checked against its sha256 first. Raises FileNotFoundError where there is neither a folder of that
    name nor a reachable hub, ValueError for a damaged checkpoint.

        load_prior()                                                          # the course's objects, 64 x 64
        load_prior("stable-diffusion-v1-5/stable-diffusion-v1-5", "cuda", torch.float16)
    """
    from diffusers import DiffusionPipeline

    from gsgen_lib import pretrained

    name = str(name)
    source = pretrained.checked_folder(name) if name in pretrained.CHECKPOINTS else name
    settings = {} if name in pretrained.CHECKPOINTS else {"safety_checker": None, "requires_safety_checker": False}
    try:
        with _quiet():
            pipeline = DiffusionPipeline.from_pretrained(str(source), torch_dtype=dtype, use_safetensors=True,
                                                         local_files_only=Path(source).is_dir(), **settings)
    except (OSError, ConnectionError, ValueError) as error:
        raise FileNotFoundError(f"name: {source!r} is no pipeline folder, and no such model could be fetched from the "
                                f"hub: {str(error).splitlines()[0][:200]}") from error
    pipeline.set_progress_bar_config(disable=True)
    return Prior(pipeline, name).to(device)


@contextmanager
def _quiet():
    """Without the progress bars and notices of diffusers and transformers, which drown a notebook's own output."""
    import warnings

    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    both = (diffusers_logging, transformers_logging)
    levels, bars = [m.get_verbosity() for m in both], [m.is_progress_bar_enabled() for m in both]
    for module in both:
        module.set_verbosity_error()
        module.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for module, level, bar in zip(both, levels, bars, strict=True):
            module.set_verbosity(level)
            if bar:
                module.enable_progress_bar()

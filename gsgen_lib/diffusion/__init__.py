"""Generative mathematics without 3D: schedules, parameterisations, samplers, flows, guidance.

Everything here works on tensors of any shape (B, ...) and on any function (x_t, t) -> prediction.
`mixture` holds a denoiser that is exact, against which all of it is tested. Taught in notebook 02.
"""

from gsgen_lib.diffusion.ema import EMA
from gsgen_lib.diffusion.flow import (
    flow_loss,
    flow_sample,
    flow_times,
    interpolate,
    logit_normal_times,
    shift_times,
)
from gsgen_lib.diffusion.gaussian import convert, q_sample, velocity
from gsgen_lib.diffusion.guidance import contrasted, guide, guided, rescale_guidance
from gsgen_lib.diffusion.mixture import GaussianMixture
from gsgen_lib.diffusion.samplers import ddim_invert, ddim_sample, ddim_step, ddpm_sample, ddpm_step, timesteps
from gsgen_lib.diffusion.schedules import (
    alphas_cumprod_of,
    betas_of,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
    snr,
    zero_terminal_snr,
)

__all__ = [
    "EMA", "GaussianMixture", "alphas_cumprod_of", "betas_of", "contrasted", "convert", "cosine_betas", "ddim_invert",
    "ddim_sample", "ddim_step", "ddpm_sample", "ddpm_step", "flow_loss", "flow_sample", "flow_times", "guide", "guided",
    "interpolate", "linear_betas", "logit_normal_times", "q_sample", "rescale_guidance", "scaled_linear_betas",
    "shift_times", "snr", "timesteps", "velocity", "zero_terminal_snr",
]

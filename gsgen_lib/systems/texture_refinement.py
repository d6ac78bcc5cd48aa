"""A sharper texture for a mesh: render, noise, denoise, compare in pixels (DreamGaussian, stage 2).

The shape stays; only texels move. Every few steps new cameras are drawn, and for each render x

    z_0    = DDIM from t_s down to 0 of the noised latents of x                        SDEdit (2108.01073)
    target = x + decode(z_0) - decode(encode(x))
    loss   = | render(texture) - target |^2                                            in pixels, no score distillation

t_s falls, so that late targets keep more of what is there. There are few rounds of many views: repainting what was repainted,
again and again, grows speckles. So do texels that are finer than pixels, each with a step of Adam of its own: gradients are
smoothed in the texture first. DreamGaussian takes decode(z_0) itself for a target. A small autoencoder pales and redraws what
goes through it; in the difference of two pictures that both did, this is gone. Taught in notebook 04. Source:
DreamGaussian (2309.16653), section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from gsgen_lib.data.meshes import Mesh
from gsgen_lib.diffusion import convert, ddim_step, guided, q_sample
from gsgen_lib.mesh import render_texture, texture_rays
from gsgen_lib.options import check_options
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems.prior import Prior
from gsgen_lib.systems.score_distillation import ViewPrompts


@torch.no_grad()
def denoised(prior: Prior, pictures: Tensor, text: Tensor, start: int, steps: int, guidance_scale: float,
             generator: torch.Generator | None = None, views: int = 1) -> Tensor:
    """Pictures (V, H, W, 3) noised to level `start` and brought back in `steps` steps of DDIM (SDEdit): (V, H, W, 3).

    start: a step of the schedule at which signal is left, >= steps."""
    if not 1 <= steps <= start < len(prior.alphas_cumprod) or not prior.alphas_cumprod[start] > 0:
        raise ValueError(f"start, steps: got {start}, {steps}, wanted 1 <= steps <= start, and signal left at start")
    z = prior.encode_image(pictures)
    times = torch.linspace(start, 0, steps + 1).round().long().tolist()
    abar = prior.alphas_cumprod
    x = q_sample(z, torch.randn(z.shape, generator=generator).to(z), abar[start])
    empty = prior.encode_prompt([""]).expand_as(text)
    ask = guided(lambda x_t, t, words: prior.predict_eps(x_t, t, words, views), text, empty, guidance_scale)
    for now, then in zip(times[:-1], times[1:], strict=True):
        eps = ask(x, torch.tensor(now))
        level = abar[then] if then > 0 else torch.ones(())
        x = ddim_step(x, convert(eps, x, abar[now], "eps", "x0"), eps, abar[now], level)
    return prior.decode(x)


def smoothed(gradient: Tensor) -> Tensor:
    """Each texel of a gradient (S, S, 3) shares with its neighbours: two means over 3 x 3, that is weights 1 2 3 2 1 along
    rows and columns. (One mean alone would turn the sign of fine stripes, and Adam would climb along them.)

    >>> smoothed(torch.eye(5)[..., None])[2, 2, 0] * 81  # 3 * 3 + 2 * 2 * 2 + 2 * 1
    tensor(19.)
    """
    g = gradient.movedim(-1, 0)[None]  # (1, 3, S, S)
    for _ in range(2):
        g = F.avg_pool2d(g, 3, 1, 1, count_include_pad=False)
    return g[0].movedim(0, -1).contiguous()


@dataclass(frozen=True)
class RefineConfig:
    """Stage 2. steps: of Adam; views: pictures a target is drawn of, from new directions each time; every: steps for each
    target; strength: share of the schedule that is noised, for the first and the last target; denoise: steps of DDIM for each
    target; lr: of the texture; elevations: range of the cameras, degrees; supersample: rays per pixel and side."""

    steps: int = 60
    views: int = 16
    every: int = 30
    strength: tuple[float, float] = (0.35, 0.2)
    denoise: int = 5
    guidance_scale: float = 3.0
    lr: float = 0.02
    elevations: tuple[float, float] = (-10.0, 60.0)
    supersample: int = 3

    def __post_init__(self):
        check_options(self, "config", ("steps", "views", "every", "denoise", "supersample"))
        if not all(0 < s < 1 for s in self.strength):
            raise ValueError(f"config.strength: got {self.strength}, wanted two numbers between 0 and 1")
        if not -90 <= self.elevations[0] <= self.elevations[1] <= 90:
            raise ValueError(f"config.elevations: got {self.elevations}, wanted -90 <= first <= second <= 90")


def refine(prior: Prior, caption: str, mesh: Mesh, texture: Tensor, config: RefineConfig = RefineConfig(), size: int = 64,
           generator: torch.Generator | None = None, progress: bool = True) -> Tensor:
    """Stage 2: the texture (S, S, 3) of `mesh` after `steps` steps towards denoised renders; the geometry stays."""
    c, prompts, device = config, ViewPrompts(prior, caption), prior.device
    texture = texture.clone().to(device).requires_grad_()
    adam = torch.optim.Adam([texture], lr=c.lr)
    for step in tqdm(range(c.steps), desc="refine", leave=False, **({} if progress else {"disable": True})):
        if step % c.every == 0:
            share = step // c.every / max(1, (c.steps - 1) // c.every)  # 0 at the first target, 1 at the last
            start = round((c.strength[0] + (c.strength[1] - c.strength[0]) * share) * (len(prior.alphas_cumprod) - 1))
            azimuths = (360 * torch.rand(c.views, generator=generator)).tolist()
            low, high = c.elevations
            elevations = (low + (high - low) * torch.rand(c.views, generator=generator)).tolist()
            cameras = Cameras.orbit(c.views, azimuth=azimuths, elevation=elevations, width=size, height=size)
            rays = texture_rays(mesh, cameras, c.supersample).to(device)
            background = torch.rand(3, generator=generator).to(device)
            with torch.no_grad():
                seen = render_texture(texture, rays, background)[0]
            target = denoised(prior, seen, prompts(azimuths, elevations), start, c.denoise, c.guidance_scale, generator)
            target = (seen + target - prior.decode(prior.encode_image(seen))).clamp(0, 1)
        loss = (render_texture(texture, rays, background)[0] - target).square().mean()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        texture.grad = smoothed(texture.grad)
        adam.step()
        with torch.no_grad():
            texture.clamp_(0, 1)
    return texture.detach()

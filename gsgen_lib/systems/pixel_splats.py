"""Numbers for each pixel become Gaussians, and a small network that reads how these fail corrects the numbers.

A network writes `raw`, some numbers for each pixel of each posed view. With t_0 = `start`, the depth from which it begins,

    unet, LGM        : mean = o + t_0 d + OFFSET tanh(a),           a (3)        14 numbers
    along the ray    : mean = o + (t_0 + OFFSET tanh(a)) d,         a (1)        12 numbers, GRM
    opacity = sigmoid(b + 8 alpha - 7),   scales = 0.1 softplus(c - 2.7),   quats = normalised (1, 0, 0, 0) + q,
    color   = rgb + tanh(r) / 2

At raw = 0 a pixel that shows background is transparent, one that shows the object has opacity 0.73, its own colour and a third of
a pixel's width (the rasterizer adds half a pixel to every splat). What is learned are corrections.

One look is not enough: what a splat should be depends on the splats of other views that stand before it. So the scene is
rendered into the views it came from, and a second, small network reads how it fails there, `passes` times, with the same weights:

    g     = d/d raw of |rgb - pictures|^2 + |alpha - pictures' alpha|^2             for all of a, b, c, q, r
    raw  += correct(hidden, errors, sign(g) log(1 + |g| / rms(g)), raw)             a step of gradient descent, learned

Sources: LGM (2402.05054) section 3; GRM (2403.14621) section 3; corrections from gradients: G3R (2409.19405) section 3, without
gradients: ReSplat (2510.08575). Taught in notebook 05.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.nn.multiview import ResBlock
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians

OFFSET = 0.5
WIDTH = -2.7  # 0.1 softplus(-2.7) = 0.0065; a pixel of 64 is 0.02 wide at distance 1.8 under 40 degrees
HIDDEN = 64  # channels of the features that corrections read, and change


def pixel_splats(raw: Tensor, rgb: Tensor, alpha: Tensor, origin: Tensor, ray: Tensor, start: Tensor) -> Gaussians:
    """The equations of the header: one Gaussian for each pixel of each view.

    raw (B, V, S, S, 14): offset 3, opacity 1, scales 3, quaternion 4, colour 3; or 12, where the offset is one number along the
    ray; rgb and alpha (B, V, S, S, 3 and 1) of the pixels; origin, ray (B, V, S, S, 3); start (B, V, S, S, 1) along the ray.

    >>> zero = torch.zeros(1, 2, 4, 4, 14)
    >>> pixel_splats(zero, zero[..., :3], zero[..., :1], zero[..., :3], zero[..., :3], zero[..., :1]).num
    32
    """
    a, o, c, q, r = raw.split((raw.shape[-1] - 11, 1, 3, 4, 3), -1)
    means = origin + start * ray + OFFSET * torch.tanh(a) * (1 if a.shape[-1] == 3 else ray)
    opacities = torch.sigmoid(o + 8 * alpha - 7)[..., 0]
    quats = F.normalize(q + q.new_tensor([1.0, 0, 0, 0]), dim=-1)
    parts = (means, quats, 0.1 * F.softplus(c + WIDTH), opacities, rgb + 0.5 * torch.tanh(r))
    return Gaussians(*(part.flatten(1, 3) for part in parts))


def correction_layers(numbers: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The small network for so many numbers a pixel: what it reads -> 48 channels; these -> changes of raw, at first small,
    and of the hidden features.

    >>> sum(p.numel() for layer in correction_layers(12) for p in layer.parameters())
    74176
    """
    correct = nn.Sequential(nn.Conv2d(HIDDEN + 4 * (4 + 2 * numbers), 48, 1), ResBlock(48, 48))
    change, remember = nn.Conv2d(48, 4 * numbers, 3, 1, 1), nn.Conv2d(48, HIDDEN, 1)
    with torch.no_grad():
        change.weight.mul_(0.1)
        change.bias.zero_()
    return correct, change, remember


def corrected(layers: tuple[nn.Module, ...], passes: int, hidden: Tensor, raw: Tensor,
              pixels: tuple[Tensor, ...], rgba: Tensor, cameras: Cameras) -> list[Tensor]:
    """raw after 0, 1, ... `passes` corrections.

    layers: of `correction_layers`, () where there are no passes; hidden (B V, HIDDEN, S/2, S/2); raw (B, V, S, S, C); pixels:
    what `pixel_splats` takes besides raw; rgba (B, V, S, S, 4): the pictures that the scene should render to, seen by cameras
    of batch (B,).
    """
    every, shape = [raw], raw.shape[:2]
    for _ in range(passes):
        correct, change, remember = layers
        wrong = F.pixel_unshuffle(failing(raw, pixels, rgba, cameras).flatten(0, 1).movedim(-1, 1), 2)
        found = correct(torch.cat([hidden, wrong], 1))
        hidden = hidden + remember(found)
        raw = raw + F.pixel_shuffle(change(found), 2).float().movedim(1, -1).unflatten(0, shape)
        every.append(raw)
    return every


def failing(raw: Tensor, pixels: tuple[Tensor, ...], rgba: Tensor, cameras: Cameras) -> Tensor:
    """How the scene of raw (B, V, S, S, C) fails at its own views, without gradient: (B, V, S, S, 4 + 2 C): errors of colour and
    alpha, the compressed gradient of their squares by raw, and raw."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(rgba.device.type, enabled=False):
        raw, *pixels = (x.detach().clone() for x in (raw, *pixels))  # tensors of inference mode take no part in a gradient
        cameras = replace(cameras, viewmats=cameras.viewmats.clone(), Ks=cameras.Ks.clone())
        raw.requires_grad_()
        out = rasterize(pixel_splats(raw, *pixels), cameras, (1.0, 1.0, 1.0), check=False)
        errors = torch.cat([on_background(rgba, torch.ones(3)) - out.rgb, rgba[..., 3:] - out.alpha], -1)
        (g,) = torch.autograd.grad(errors.square().sum(), raw)
    g = g / (g.square().mean((2, 3), keepdim=True).sqrt() + 1e-6)  # rms over the pixels of a view, for each number
    return torch.cat([4 * errors.detach(), g.sign() * torch.log1p(g.abs()), raw.detach()], -1)

"""What the pictures say about a point of the surface: feature maps of several networks, looked up where the point is seen.

    feature(x) = sum_v seen_v(x) map_v(pi_v(x)) / sum_v seen_v(x)            pi_v: where view v shows x

The maps come from one of these, and several can be asked together:

    rgb         the colours themselves
    mobilenet   24 channels at a quarter of 128 x 128, of the MobileNetV2 that ships with the course
    dinov3      last layer of DINOv3, one vector a patch (meaning); from the hub, its licence must be accepted there
    flux        16 channels at an eighth, of the FLUX autoencoder (texture); from the hub, likewise

Both hub models are those of DeG (2605.16355), in smaller sizes or older versions where those are open. Without a network the
first two do. Taught in notebook 10.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from gsgen_lib.image_features import MEAN, SIZE, STD, load_weights, mobilenet_blocks
from gsgen_lib.nn.cross_view import look_up
from gsgen_lib.nn.point_sets import visible_points
from gsgen_lib.scene.cameras import Cameras

BACKENDS = {"rgb": 3, "mobilenet": 24, "dinov3": 384, "flux": 16}  # channels
HUB = {"dinov3": "facebook/dinov3-vits16-pretrain-lvd1689m", "flux": "black-forest-labs/FLUX.1-schnell"}
BLOCKS = 3  # of MobileNetV2: a quarter of the size, 24 channels

__all__ = ["BACKENDS", "feature_maps", "point_features", "width_of"]


def width_of(names: tuple[str, ...]) -> int:
    """Numbers of a point that `point_features` gives. ValueError for a name that is none of BACKENDS.

    >>> width_of(("rgb", "mobilenet"))
    28
    """
    wrong = [name for name in names if name not in BACKENDS]
    if wrong or not names:
        raise ValueError(f"names: got {names!r}, wanted some of {', '.join(BACKENDS)}")
    return sum(BACKENDS[name] for name in names) + 1


@torch.no_grad()
def feature_maps(pictures: Tensor, name: str, source: str | None = None) -> Tensor:
    """Maps (N, h, w, C) of pictures (N, S, S, 3) in [0, 1].

    source: for "dinov3" and "flux", a folder or hub name instead of HUB's. Raises ImportError or RuntimeError where a hub model
    cannot be had, and says what does instead.

    >>> feature_maps(torch.rand(2, 64, 64, 3), "mobilenet").shape
    torch.Size([2, 32, 32, 24])
    """
    width_of((name,))
    if pictures.ndim != 4 or pictures.shape[3] != 3 or not pictures.is_floating_point():
        raise ValueError(f"pictures: got {tuple(pictures.shape)} {pictures.dtype}, wanted (N, S, S, 3), floats")
    if name == "rgb":
        return pictures
    x = pictures.movedim(-1, 1)
    if name == "flux":
        vae = _flux(source or HUB["flux"], str(x.device))
        return vae.encode(2 * x.to(vae.dtype) - 1).latent_dist.mean.movedim(1, -1).float()
    mean, std = (x.new_tensor(c).view(1, 3, 1, 1) for c in (MEAN, STD))
    if name == "mobilenet":
        x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False)
        return mobilenet_blocks((x - mean) / std, load_weights(str(x.device)), BLOCKS).movedim(1, -1)
    net = _dinov3(source or HUB["dinov3"], str(x.device))
    side = -(-max(x.shape[-1], 224) // net.config.patch_size)
    x = F.interpolate(x, (side * net.config.patch_size,) * 2, mode="bilinear", align_corners=False)
    tokens = net(pixel_values=((x - mean) / std).to(net.dtype)).last_hidden_state[:, -side * side:]  # after class, registers
    return tokens.unflatten(1, (side, side)).float()


@torch.no_grad()
def point_features(points: Tensor, normals: Tensor, rgba: Tensor, cameras: Cameras, names: tuple[str, ...] = ("rgb", "mobilenet"),
                   sources: dict[str, str] | None = None) -> Tensor:
    """(B, P, width_of(names)): the mean over the views that see the point, map by map, then the share of views that do.

    points, normals (B, P, 3); rgba (B, V, S, S, 4), straight alpha in [0, 1]; cameras of batch (B,), V views. The maps see the
    pictures on grey. A point that no view shows has zeros. sources: see `feature_maps`, by name.

    >>> cameras = Cameras.stack([Cameras.orbit(2)])
    >>> at = torch.tensor([[[0.0, 0.0, 0.3]]])
    >>> point_features(at, at, torch.ones(1, 2, 64, 64, 4), cameras, ("rgb",))
    tensor([[[0.5000, 0.5000, 0.5000, 0.5000]]])
    """
    width_of(names)
    if rgba.ndim != 5 or rgba.shape[4] != 4 or rgba.shape[2] != rgba.shape[3] \
            or not bool(((rgba >= 0) & (rgba <= 1)).all()):  # also false for nan
        raise ValueError(f"rgba: got {tuple(rgba.shape)}, wanted (B, V, S, S, 4) in [0, 1]")
    b, v, s = rgba.shape[:3]
    if cameras.viewmats.shape[:2] != (b, v) or (cameras.width, cameras.height) != (s, s):
        raise ValueError(f"cameras: got {tuple(cameras.viewmats.shape[:2])} of {cameras.width} x {cameras.height}, wanted "
                         f"{(b, v)} of {s} x {s}")
    seen = visible_points(points, normals, cameras)[..., None].to(rgba)  # (B, V, P, 1)
    pictures = torch.lerp(torch.full_like(rgba[..., :3], 0.5), rgba[..., :3], rgba[..., 3:]).flatten(0, 1)
    found = []
    for name in names:
        maps = feature_maps(pictures, name, (sources or {}).get(name)).unflatten(0, (b, v))
        there = look_up(maps, cameras.resize(maps.shape[3], maps.shape[2]), points)  # (B, V, P, C)
        mean = (there * seen).sum(1) / seen.sum(1).clamp_min(1)
        found.append(mean - 0.5 * (seen.sum(1) > 0) if name == "rgb" else mean)
    return torch.cat([*found, seen.mean(1)], -1)


@lru_cache(maxsize=2)
def _dinov3(source: str, device: str):
    from transformers import AutoModel
    try:
        return AutoModel.from_pretrained(source, use_safetensors=True).eval().requires_grad_(False).to(device)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"dinov3: {source} could not be loaded ({str(error).splitlines()[0][:200]}); 'mobilenet' works "
                           "offline") from error


@lru_cache(maxsize=2)
def _flux(source: str, device: str):
    from pathlib import Path

    from diffusers import AutoencoderKL
    try:
        inside = {} if (Path(source) / "config.json").is_file() else {"subfolder": "vae"}
        return AutoencoderKL.from_pretrained(source, use_safetensors=True, **inside).eval().requires_grad_(False).to(device)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"flux: {source} could not be loaded ({str(error).splitlines()[0][:200]}); 'rgb' works "
                           "offline") from error

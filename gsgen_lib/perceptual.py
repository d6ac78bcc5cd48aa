"""LPIPS: how different two pictures look to a network that learned to see.

Problem. PSNR calls a slightly shifted picture terrible and a blurred one good; people say the
opposite. LPIPS compares the activations of an image classifier instead, weighted to agree with
human judgements. Lower is better, 0 for equal images.

    x      = (2 image - 1 - shift) / scale        image in [0, 1]; per-channel constants
    f_l    = ReLU output of convolution l         l = 1..5, AlexNet
    g_l    = f_l / (|f_l| + 1e-10)                unit length along channels, pixel by pixel
    LPIPS  = sum_l  mean_{h,w}  sum_c head_l[c] (g_l(pred) - g_l(target))[c]^2      (head = w^2 of Eq. 1)

The convolutions are torchvision's ImageNet AlexNet and the heads those of LPIPS v0.1; both were
converted once by `tools/convert_lpips.py` to `data/checkpoints/lpips_alex.safetensors`, whose
card (`lpips_alex.json`) names source, licences and sha256. Values depend on the backbone, so
print `lpips_name()` beside them: LPIPS(alex) and LPIPS(vgg) are different scores.

Taught in notebook 01_gaussians_and_rendering. Source: Zhang et al., "The unreasonable
effectiveness of deep features as a perceptual metric", CVPR 2018, Section 3.1, Eq. 1. The
heads were trained on patches of 64 x 64 pixels.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from gsgen_lib.data.weights import load_checked_weights

SHIFT = (-0.030, -0.088, -0.188)  # ImageNet mean and deviation, for images in [-1, 1]
SCALE = (0.458, 0.448, 0.450)
MIN_SIZE = 32  # pixels; below 31 the second pooling has no output, up to 46 the deepest maps are one pixel
# AlexNet's five convolutions: (stride, padding, max-pool before it).
CONVOLUTIONS = ((4, 2, False), (1, 2, True), (1, 1, True), (1, 1, False), (1, 1, False))
WEIGHT_SHAPES = {
    "conv1.weight": (64, 3, 11, 11), "conv1.bias": (64,), "head1": (64,),
    "conv2.weight": (192, 64, 5, 5), "conv2.bias": (192,), "head2": (192,),
    "conv3.weight": (384, 192, 3, 3), "conv3.bias": (384,), "head3": (384,),
    "conv4.weight": (256, 384, 3, 3), "conv4.bias": (256,), "head4": (256,),
    "conv5.weight": (256, 256, 3, 3), "conv5.bias": (256,), "head5": (256,),
}  # fmt: skip


def lpips(pred: Tensor, target: Tensor, reduction: str = "mean", backend: str = "builtin",
          validate: bool = True) -> Tensor:
    """Learned perceptual distance between images; 0 for equal ones, lower is better.

    pred, target: (..., H, W, 3) in [0, 1] with H, W >= 32. Returns (...,) with
    `reduction="none"`, or the mean over images. Differentiable with respect to both images.
    backend: "builtin" uses the weights shipped in `data/checkpoints`; "package" uses the `lpips`
    package, which downloads its own AlexNet at first use.
    validate=False skips the checks of range and finiteness (see `metrics.ssim`).
    Raises ValueError for wrong shapes, ranges, names; FileNotFoundError when weights are missing.
    (Zhang et al. 2018, Eq. 1.)

    >>> image = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    >>> lpips(image, image).item()
    0.0
    >>> lpips(image, image.flip(-2), reduction="none").shape
    torch.Size([2])
    """
    from gsgen_lib.metrics import _check_pair, _reduce  # here: metrics imports this module

    _check_pair(pred, target, values=validate)
    if backend not in ("builtin", "package"):
        raise ValueError(f"backend: got {backend!r}, wanted 'builtin' or 'package'")
    height, width = pred.shape[-3:-1]
    if min(height, width) < MIN_SIZE:
        raise ValueError(f"pred: got {height} x {width} pixels, wanted at least {MIN_SIZE} x "
                         f"{MIN_SIZE} for {lpips_name(backend)}; enlarge both images first")
    # (..., H, W, 3) -> (B, 3, H, W)
    p, t = (x.reshape(-1, height, width, 3).movedim(-1, 1) for x in (pred, target))
    if backend == "package":
        values = _package_model(str(p.device))(p.float(), t.float(), normalize=True).flatten()
    else:
        values = _alex_distance(p, t, load_weights(str(p.device), p.dtype))
    return _reduce(values.reshape(pred.shape[:-3]), reduction)


def lpips_name(backend: str = "builtin") -> str:
    """Name to print beside a value, with the backbone that made it.

    >>> lpips_name()
    'LPIPS(alex)'
    """
    return "LPIPS(alex)" if backend == "builtin" else "LPIPS(alex, lpips package)"


def _alex_distance(p: Tensor, t: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """LPIPS of image batches p, t (B, 3, H, W) in [0, 1] -> (B,)."""
    batch = p.shape[0]
    shift, scale = (p.new_tensor(c).view(1, 3, 1, 1) for c in (SHIFT, SCALE))
    x = (2 * torch.cat([p, t]) - 1 - shift) / scale  # both sides in one pass: (2B, 3, H, W)
    total = p.new_zeros(batch)
    for layer, (stride, padding, pool_before) in enumerate(CONVOLUTIONS, start=1):
        if pool_before:
            x = F.max_pool2d(x, kernel_size=3, stride=2)
        weight, bias = weights[f"conv{layer}.weight"], weights[f"conv{layer}.bias"]
        x = F.relu(F.conv2d(x, weight, bias, stride=stride, padding=padding))
        unit = x / (_channel_norm(x) + 1e-10)
        squared = (unit[:batch] - unit[batch:]).square()  # (B, C, h, w)
        total = total + torch.einsum("bchw,c->bhw", squared, weights[f"head{layer}"]).mean((1, 2))
    return total


def _channel_norm(x: Tensor) -> Tensor:
    """|x| along channels, (B, C, h, w) -> (B, 1, h, w), with gradient 0 where all are 0.

    Where every ReLU of a pixel is off, a plain sqrt(sum of squares) has an infinite slope;
    torch's norm defines the slope there as 0.
    """
    return torch.linalg.vector_norm(x, dim=1, keepdim=True)


# ----------------------------------------------------------------------------------- weights


@lru_cache(maxsize=4)
def load_weights(device: str = "cpu", dtype: torch.dtype = torch.float32,
                 path: str | None = None) -> dict[str, Tensor]:
    """The AlexNet convolutions and heads, checked against their card; loaded once.

    path: the .safetensors file, by default `data/checkpoints/lpips_alex.safetensors`; its card is
    the .json beside it. Raises FileNotFoundError when either is missing, ValueError when the
    file's sha256, names or shapes are not those expected.

    >>> load_weights()["conv1.weight"].shape
    torch.Size([64, 3, 11, 11])
    """
    weights = load_checked_weights("lpips_alex", WEIGHT_SHAPES, path)
    return {name: tensor.to(device=device, dtype=dtype) for name, tensor in weights.items()}


@lru_cache(maxsize=2)
def _package_model(device: str):
    """The `lpips` package's AlexNet model (downloads torchvision's AlexNet once)."""
    try:
        import lpips as package
    except ImportError as error:
        raise ImportError("backend='package' needs the lpips package: pip install lpips; "
                          "backend='builtin' works without it") from error
    return package.LPIPS(net="alex", verbose=False).eval().requires_grad_(False).to(device)

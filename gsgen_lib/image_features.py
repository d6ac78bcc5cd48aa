"""What a picture shows, as one vector: the features behind KID, FID, precision and recall.

Problem. Two sets of pictures cannot be compared pixel by pixel: no sample has a partner. So each
picture becomes the activations of an image classifier just before its last layer, and the two
clouds of vectors are compared (`gsgen_lib.distributions`).

    image in [0, 1] -> resize to 128 x 128 -> (x - MEAN) / STD -> MobileNetV2 -> mean over pixels

MobileNetV2 is 17 inverted residual blocks. A block with expansion t, stride s, channels c -> c':

    y = ReLU6(expand x)       1 x 1 convolution, c -> t c channels   (left out where t = 1)
    y = ReLU6(depthwise y)    3 x 3, each channel by itself, stride s
    y = project y             1 x 1, t c -> c' channels, no ReLU: it would lose information here
    x = x + y                 where s = 1 and c = c', else x = y

Batch normalisation is an affine map once training is over, so it is folded into the convolutions
(`tools/convert_mobilenet.py`): every convolution below has one weight and one bias.

A KID on these features is not a KID on Inception-v3, the network of the papers: print
`features_name()` beside every number and compare only numbers of one name. Inception-v3 is there as
backend="inception" for machines that can download it. `gsgen bench image_features` prints how well
the features find a validation object from another side, beside raw pixels, for several sizes: larger
is better there and costs time in proportion to the area; 128 is the compromise.

Taught in the notebooks that score samples. Source: Sandler et al., "MobileNetV2: inverted residuals
and linear bottlenecks", CVPR 2018, Table 2 and Section 3.3.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gsgen_lib.data.weights import load_checked_weights
from gsgen_lib.metrics import check_images

SIZE = 128  # pixels, what MobileNetV2 sees
MEAN = (0.485, 0.456, 0.406)  # of ImageNet, which the network was trained on
STD = (0.229, 0.224, 0.225)
STEM, HEAD = 32, 1280  # channels after the first and the last convolution
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
          (6, 320, 1, 1))  # (expansion t, channels c, blocks n, stride of the first block s), Table 2
INCEPTION_URL = ("https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
                 "weights-inception-2015-12-05-6726825d.pth")  # the TensorFlow network of FID, ported


def image_features(images: Tensor, backend: str = "mobilenet", size: int = SIZE,
                   batch_size: int = 64) -> Tensor:
    """One feature vector per image.

    images: (B, H, W, 3) in [0, 1], on white. Returns (B, 1280) for "mobilenet", (B, 2048) for
    "inception", float32 (or the dtype of the images, for mobilenet), on the images' device.
    backend: "mobilenet" uses the weights shipped in `data/checkpoints` and is differentiable with
    respect to the images; "inception" needs the packages torchmetrics and torch-fidelity and
    downloads 91 MB at first use; it rounds to uint8 as FID does, so it has no gradient.
    size: images are resized to size x size (bilinear, with antialiasing when made smaller);
    Inception-v3 does its own resizing and ignores it. batch_size: images per pass; bounds memory.
    Raises TypeError or ValueError naming the argument; FileNotFoundError when weights are missing.
    (Sandler et al. 2018, Table 2: the layer "avgpool 7x7".)

    >>> images = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    >>> image_features(images).shape
    torch.Size([3, 1280])
    """
    name = features_name(backend, size)  # checks both
    check_images("images", images)
    if images.ndim != 4:
        raise ValueError(f"images: got shape {tuple(images.shape)}, wanted (B, H, W, 3)")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size!r}, wanted an integer of at least 1")
    chunks = images.movedim(-1, 1).split(batch_size)  # (B, H, W, 3) -> pieces of (b, 3, H, W)
    if backend == "inception":
        model = _inception(str(images.device))
        with torch.no_grad():
            features = [model((x.clamp(0, 1) * 255).round().to(torch.uint8)) for x in chunks]
    else:
        dtype = images.dtype if images.dtype == torch.float64 else torch.float32
        weights = load_weights(str(images.device), dtype)
        features = [mobilenet_v2(_normalised(x.to(dtype), size), weights) for x in chunks]
    features = torch.cat(features)
    if not bool(features.isfinite().all()):
        raise RuntimeError(f"{name} gave non-finite features")
    return features


def features_name(backend: str = "mobilenet", size: int = SIZE) -> str:
    """Name of the features, to print beside every number made from them.

    Raises ValueError for an unknown backend or a size below 32.

    >>> features_name(), features_name("inception")
    ('MobileNetV2 at 128', 'Inception-v3')
    """
    if backend not in ("mobilenet", "inception"):
        raise ValueError(f"backend: got {backend!r}, wanted 'mobilenet' or 'inception'")
    if not isinstance(size, int) or size < 32:
        raise ValueError(f"size: got {size!r}, wanted an integer of at least 32 pixels")
    return f"MobileNetV2 at {size}" if backend == "mobilenet" else "Inception-v3"


# ------------------------------------------------------------------------------------ MobileNetV2


def blocks() -> list[tuple[str, int, int, int, int]]:
    """The 17 inverted residual blocks in order: (name, expansion, channels in, channels out, stride).

    >>> blocks()[0], blocks()[1]
    (('block1', 1, 32, 16, 1), ('block2', 6, 16, 24, 2))
    """
    table, channels = [], STEM
    for expansion, out, count, first_stride in STAGES:
        for i in range(count):
            stride = first_stride if i == 0 else 1
            table.append((f"block{len(table) + 1}", expansion, channels, out, stride))
            channels = out
    return table


def mobilenet_v2(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Pooled features of normalised images x, (B, 3, H, W) -> (B, 1280).

    weights: `load_weights()`. (Sandler et al. 2018, Table 2 up to the average pooling.)

    >>> mobilenet_v2(torch.zeros(1, 3, 64, 64), load_weights()).shape
    torch.Size([1, 1280])
    """

    x = mobilenet_blocks(x, weights, len(blocks()))
    x = F.relu6(_convolution(x, weights, "head"))  # (B, 1280, H / 32, W / 32)
    return x.mean((2, 3))


def mobilenet_blocks(x: Tensor, weights: dict[str, Tensor], count: int) -> Tensor:
    """The map after the stem and `count` of the 17 blocks: x (B, 3, H, W), normalised -> (B, C, h, w), which keeps places.

    >>> mobilenet_blocks(torch.zeros(1, 3, 64, 64), load_weights(), 3).shape
    torch.Size([1, 24, 16, 16])
    """
    x = F.relu6(_convolution(x, weights, "stem", stride=2))
    for name, expansion, channels, out, stride in blocks()[:count]:
        y = x
        if expansion > 1:
            y = F.relu6(_convolution(y, weights, f"{name}.expand"))
        y = F.relu6(_convolution(y, weights, f"{name}.depthwise", stride, groups=y.shape[1]))
        y = _convolution(y, weights, f"{name}.project")
        x = x + y if stride == 1 and channels == out else y
    return x


def _convolution(x: Tensor, weights: dict[str, Tensor], name: str, stride: int = 1, groups: int = 1) -> Tensor:
    weight = weights[f"{name}.weight"]
    padding = weight.shape[-1] // 2  # 3 x 3 -> 1, 1 x 1 -> 0
    return F.conv2d(x, weight, weights[f"{name}.bias"], stride, padding, groups=groups)


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor the network needs.

    >>> weight_shapes()["block2.depthwise.weight"], len(weight_shapes())
    ((96, 1, 3, 3), 104)
    """
    kernels = {"stem": (STEM, 3, 3, 3)}
    for name, expansion, channels, out, _ in blocks():
        hidden = expansion * channels
        if expansion > 1:
            kernels[f"{name}.expand"] = (hidden, channels, 1, 1)
        kernels[f"{name}.depthwise"] = (hidden, 1, 3, 3)
        kernels[f"{name}.project"] = (out, hidden, 1, 1)
    kernels["head"] = (HEAD, STAGES[-1][1], 1, 1)
    shapes = {f"{name}.weight": shape for name, shape in kernels.items()}
    return shapes | {f"{name}.bias": shape[:1] for name, shape in kernels.items()}


def _normalised(x: Tensor, size: int) -> Tensor:
    """(b, 3, H, W) in [0, 1] -> (b, 3, size, size) as the network expects it."""
    if x.shape[-2:] != (size, size):
        x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=True)
    mean, std = (x.new_tensor(c).view(1, 3, 1, 1) for c in (MEAN, STD))
    return (x - mean) / std


# ---------------------------------------------------------------------------------------- weights


@lru_cache(maxsize=4)
def load_weights(device: str = "cpu", dtype: torch.dtype = torch.float32,
                 path: str | None = None) -> dict[str, Tensor]:
    """The convolutions of MobileNetV2, checked against their card; loaded once.

    path: the .safetensors file, by default `data/checkpoints/mobilenet_v2.safetensors`; its card is
    the .json beside it. Raises FileNotFoundError when either is missing, ValueError when the
    file's sha256, names or shapes are not those expected.

    >>> load_weights()["stem.weight"].shape
    torch.Size([32, 3, 3, 3])
    """
    weights = load_checked_weights("mobilenet_v2", weight_shapes(), path)
    return {name: tensor.to(device=device, dtype=dtype) for name, tensor in weights.items()}


@lru_cache(maxsize=2)
def _inception(device: str):
    """FID's Inception-v3: uint8 (B, 3, H, W) -> (B, 2048). Downloaded once into torch's hub folder."""
    try:
        import torch_fidelity  # noqa: F401  (torchmetrics needs it, and says so less plainly)
        from torchmetrics.image.fid import NoTrainInceptionV3
    except ImportError as error:
        raise ImportError("backend='inception' needs pip install torchmetrics torch-fidelity; "
                          "backend='mobilenet' works without them") from error
    try:  # the hash in the file's name is checked, and nothing but tensors is read from it
        torch.hub.load_state_dict_from_url(INCEPTION_URL, map_location="cpu", check_hash=True,
                                           weights_only=True)
    except OSError as error:
        raise RuntimeError(f"backend='inception': {INCEPTION_URL} could not be downloaded ({error}); "
                           "backend='mobilenet' works offline") from error
    file = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_URL.rsplit("/", 1)[-1]
    model = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(file))
    return model.eval().requires_grad_(False).to(device)

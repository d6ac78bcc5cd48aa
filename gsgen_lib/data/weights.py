"""Weights that ship with the course as one file: NAME.safetensors and its card NAME.json, checked before use.

Used by `gsgen_lib.perceptual` (AlexNet and LPIPS heads) and `gsgen_lib.image_features` (MobileNetV2). Models of
several files are the business of `gsgen_lib.pretrained`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from torch import Tensor

from gsgen_lib.data import data_root


def load_checked_weights(name: str, shapes: dict[str, tuple[int, ...]], path: str | Path | None = None) -> dict[str, Tensor]:
    """The tensors of data/checkpoints/`name`.safetensors (or of the file `path`), as stored, on the CPU.

    shapes: name -> shape of every tensor that must be in it. The card is the .json beside the file. Raises
    FileNotFoundError when either is missing, ValueError when the file's sha256, names or shapes are not those expected.

    >>> load_checked_weights("mobilenet_v2", {})
    Traceback (most recent call last):
    ValueError: path: ...mobilenet_v2.safetensors holds {...}, wanted {}
    """
    from safetensors.torch import load

    path = Path(path) if path is not None else data_root() / "checkpoints" / f"{name}.safetensors"
    card = path.with_suffix(".json")
    for needed in (path, card):
        if not needed.is_file():
            raise FileNotFoundError(f"path: no file {needed}; it ships with the course in data/checkpoints, and a script "
                                    "tools/convert_....py rebuilds it")
    content = path.read_bytes()
    wanted, got = json.loads(card.read_text(encoding="utf-8"))["sha256"], hashlib.sha256(content).hexdigest()
    if got != wanted:
        raise ValueError(f"path: {path} is damaged, its sha256 is {got}, its card says {wanted}")
    weights = load(content)
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if found != shapes:
        raise ValueError(f"path: {path} holds {found}, wanted {shapes}")
    return weights

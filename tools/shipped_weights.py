"""What the scripts tools/convert_*.py share: bytes of known hash in, safetensors and card out.

They run once, by a maintainer; learners load the safetensors file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tools.repo_name import ROOT

CHECKPOINTS = ROOT / "data" / "checkpoints"


def checked(content: bytes, sha256: str, complaint: str) -> bytes:
    """`content`, if its hash is the one wanted; ValueError with the complaint and both hashes otherwise.

    >>> checked(b"weights", "00", "x.whl: not the wheel")
    Traceback (most recent call last):
    ValueError: x.whl: not the wheel, its sha256 is 9a12..., wanted 00
    """
    got = hashlib.sha256(content).hexdigest()
    if got != sha256:
        raise ValueError(f"{complaint}, its sha256 is {got}, wanted {sha256}")
    return content


def write(weights: dict, out: Path, facts: dict) -> int:
    """Write tensors to `out` and the card beside it: the facts, with file, bytes, sha256 and parameters. Bytes written."""
    from safetensors.torch import save

    content = save(weights)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(content)
    numbers = {"file": out.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(),
               "parameters": sum(tensor.numel() for tensor in weights.values())}
    # in the order of a card: what it is, the file, then the rest
    first = {key: facts[key] for key in ("name", "what", "used_by")}
    out.with_suffix(".json").write_text(json.dumps({**first, **numbers, **facts}, indent=2) + "\n", encoding="utf-8")
    return len(content)

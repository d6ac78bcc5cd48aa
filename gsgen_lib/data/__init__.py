"""Objects to look at and learn from: meshes, ray casting, shipped objects, toys, posed photos.

Import the module you need (`gsgen_lib.data.meshes`, `gsgen_lib.data.objects`, ...): this package
itself only knows where the shipped data lies.
"""

from __future__ import annotations

import os
from pathlib import Path


def data_root() -> Path:
    """The folder with the shipped data: the environment variable GSGEN_DATA, else `data/` of the repo.

    Raises FileNotFoundError, saying what to do, if the folder is absent.

    >>> (data_root() / "objects.json").name
    'objects.json'
    """
    override = os.environ.get("GSGEN_DATA")
    root = Path(override) if override else Path(__file__).resolve().parents[2] / "data"
    if not root.is_dir():
        source = "which GSGEN_DATA names" if override else "where a checkout of the repository keeps it"
        raise FileNotFoundError(
            f"{root}: no data folder here, {source}. Clone the repository (the data is part of it), set "
            "GSGEN_DATA to its data folder, or rebuild it with `gsgen data build SOURCE OUT`."
        )
    return root

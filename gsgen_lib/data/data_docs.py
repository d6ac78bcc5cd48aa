"""The two documents beside the shipped objects: CREDITS.md (who made what) and DATA.md (what is in the files).

Both are written by `gsgen data build` from objects.json, so they cannot drift from the data; a test compares.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

from gsgen_lib.data.objects import INDEX, SPLITS, write_atomic

LICENCES = {
    "CC0-1.0": ("CC0 1.0 Universal (public domain dedication)", "https://creativecommons.org/publicdomain/zero/1.0/"),
    "CC-BY-3.0": ("Creative Commons Attribution 3.0 Unported", "https://creativecommons.org/licenses/by/3.0/"),
    "CC-BY-3.0-US": ("Creative Commons Attribution 3.0 United States", "https://creativecommons.org/licenses/by/3.0/us/"),
}
_CREDITS = """# Credits for the shipped objects

The objects come from the furniture libraries of Sweet Home 3D 1.8 (https://www.sweethome3d.com, packaged by
Debian as `sweethome3d-furniture`): BlendSwap-CC-0 and BlendSwap-CC-BY (models of contributors of Blend Swap,
https://www.blendswap.com, converted by Emmanuel Puybaret / eTeks), Scopia (Copyright Scopia Visual Interfaces
Systems, s.l., http://www.scopia.es, and Emmanuel Puybaret / eTeks) and KatorLegaz (Copyright Andrew Kator and
Jennifer Legaz). "Model" is the number in the library's catalogue.

All of them were changed here: moved and scaled to unit size, some turned, rendered to small pictures with
our own shading, sampled to coloured surface points, renamed; the shipped meshes were re-encoded as GLB with
textures of at most 512 pixels a side. The creators endorse neither these changes nor this project.

The pictures, points and meshes keep the licence of their object: if you pass them on, pass on its credit.
Weights in `checkpoints/` that come from elsewhere have a card (`NAME.json`) with source and licence, and the
licence texts beside it (`NAME.LICENSES.txt`); models in the folders `checkpoints/NAME` were trained by this
project on renders of its toys and of the objects of the training split below.
This file was written by `gsgen data build` from `objects.json`.
"""
_CARD = """# The shipped objects

Written by `gsgen data build` ({command}). Read them with
`gsgen_lib.data.objects`: `list_objects(split)`, `load_object(id)`, `mesh_path(id)`.

## Files

| file | content |
|---|---|
| `objects.json` | one entry per line and object: id, name, category, caption, split, licence, creator, source, cameras, and path, size and SHA-256 of its files |
| `objects/ID.webp` | {views} views of {size} x {size} pixels, RGBA with straight alpha, lossless WebP, 6 views per row |
| `objects/ID.npz` | {points} surface points: `positions` uint16, `normals` int8, `colors` uint8, each ({points}, 3) |
| `meshes/ID.glb` | the mesh, for {n_meshes} objects under CC0 |
| `selection.json` | which of the 820 models of the libraries were kept, with what name and split, and why the others were not |
| `CREDITS.md` | licence, creator and source of every object |
| `checkpoints/NAME.safetensors` | weights from elsewhere (not made by the build); `NAME.json` holds source, licence and SHA-256, `NAME.LICENSES.txt` the licences |
| `checkpoints/NAME/` | a model trained by `gsgen train` (not made by the build); `card.json` holds command, seed, hours, scores, licence and SHA-256 |

Objects are centred, y up, the front towards +z, with max |coordinate| <= 0.5 and max norm <= 0.6. Cameras stand
at distance {radius} with a field of view of {fov} degrees and look at the origin: views 0 to 7 at elevation 15
and azimuth 0, 45, ..., 315 degrees (0 is the front, 90 looks from +x); the others at the angles in
`objects.json`, spread over elevations -20 to 70. Colours are sRGB; transparent pixels are (0, 0, 0, 0).
Position = q / 65535 - 0.5, normal = q / 127, colour = q / 255. Points are uniform by area over the surface
that the cameras see, in random order; colours include the renderer's fixed light (`gsgen_lib.data.raycast`).

Splits are by object and fixed. Models that share a texture or are variants of one another are in one split.
The test split is for evaluation only.
"""  # noqa: E501 (table rows cannot be wrapped)


def write_credits(root: str | Path, entries: list[dict]) -> None:
    """Write CREDITS.md: every object under its licence, with creator and source. Raises ValueError for an
    object without creator or with an unknown licence."""
    lines = [_CREDITS]
    for licence, (title, url) in LICENCES.items():
        of_licence = [e for e in entries if e["licence"] == licence]
        if of_licence:
            lines.append(f"\n## {title}\n\n{url} ({len(of_licence)} objects)\n")
            lines.append("| object | name | creator | source |\n|---|---|---|---|")
            lines += [f"| `{e['id']}` | {e['name']} | {e['creator']} | {_short(e['source'])} |" for e in of_licence]
    uncredited = [e["id"] for e in entries if e["licence"] not in LICENCES or not e["creator"]]
    if uncredited:
        raise ValueError(f"no creator or unknown licence: {uncredited}")
    write_atomic(Path(root) / "CREDITS.md", ("\n".join(lines) + "\n").encode())


def write_data_card(root: str | Path, entries: list[dict]) -> None:
    """Write DATA.md: format, counts, sizes and hashes of the objects in `root`. Raises ValueError if there are none."""
    if not entries:
        raise ValueError("entries: no objects")
    root, first = Path(root), entries[0]
    meshes = [e for e in entries if "mesh" in e["files"]]
    n_points = _points_of(root / first["files"]["points"]["path"])
    lines = [_CARD.format(command="from the Debian package `sweethome3d-furniture` 1.8",
                          views=len(first["azimuth"]), size=first["size"],
                          points=n_points, n_meshes=len(meshes), radius=first["radius"], fov=first["fov"])]
    lines += ["\n## Counts\n", "| category | " + " | ".join(SPLITS) + " | all |", "|---|" + "---|" * (len(SPLITS) + 1)]
    for category in sorted({e["category"] for e in entries}) + [None]:
        count = Counter(e["split"] for e in entries if category in (None, e["category"]))
        lines.append(f"| {category or 'all'} | " + " | ".join(str(count[s]) for s in SPLITS) + f" | {count.total()} |")
    count = Counter(e["split"] for e in meshes)
    lines.append(f"| with a mesh | {' | '.join(str(count[s]) for s in SPLITS)} | {len(meshes)} |")
    lines += ["\n| licence | objects |", "|---|---|"]
    count = Counter(e["licence"] for e in entries)
    lines += [f"| {title} | {count[key]} |" for key, (title, _) in LICENCES.items() if count[key]]
    lines += ["\n## Sizes and hashes\n", "| part | files | MB |", "|---|---|---|"]
    for kind, name in (("views", "views"), ("points", "surface points"), ("mesh", "meshes")):
        sizes = [e["files"][kind]["bytes"] for e in entries if kind in e["files"]]
        lines.append(f"| {name} | {len(sizes)} | {sum(sizes) / 1e6:.1f} |")
    digest = hashlib.sha256((root / INDEX).read_bytes()).hexdigest()
    lines.append(f"\nSHA-256 of `objects.json`, which holds the SHA-256 of every other file:\n\n    {digest}")
    write_atomic(root / "DATA.md", ("\n".join(lines) + "\n").encode())


def _short(source: str) -> str:
    """'Sweet Home 3D furniture libraries 1.8, Scopia.sh3f, model 3' -> 'Scopia, model 3'.

    >>> _short("Sweet Home 3D furniture libraries 1.8, Scopia.sh3f, model 3")
    'Scopia, model 3'
    """
    return source.split(", ", 1)[-1].replace(".sh3f", "")


def _points_of(file: Path) -> int:
    import numpy as np

    with np.load(file, allow_pickle=False) as npz:
        return len(npz["positions"])

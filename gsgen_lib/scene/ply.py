"""Gaussian scenes as PLY files, in the layout of the original 3DGS code that every viewer reads.

One vertex per Gaussian, float32 properties in this order:

    x y z  nx ny nz  f_dc_0..2  f_rest_0..(3(K-1)-1)  opacity  scale_0..2  rot_0..3

with raw parameters: opacity is a logit, scale a logarithm, rot a quaternion (w, x, y, z), f_dc the degree-0
spherical-harmonic coefficient, f_rest the others, *channel-major* (all red, then green, then blue). RGB colours
are written as degree 0. Opacities of exactly 0 and 1 and scales of 0 have infinite raw values; they are clamped
to 5e-7 from those ends (scales at 1e-9), which is below what an 8-bit image can show.

Reading and writing the PLY container is done by the `plyfile` library. Taught in notebook 00.
Source: the file format of Kerbl et al. 2023's released code.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.scene.sh import SH_C0, rgb_to_sh

OPACITY_EPS, SCALE_MIN = 5e-7, 1e-9


def _property_names(num_bases: int) -> list[str]:
    return (["x", "y", "z", "nx", "ny", "nz"] + [f"f_dc_{i}" for i in range(3)]
            + [f"f_rest_{i}" for i in range(3 * (num_bases - 1))]
            + ["opacity"] + [f"scale_{i}" for i in range(3)] + [f"rot_{i}" for i in range(4)])


def save_ply(gaussians: Gaussians, path: str | Path) -> Path:
    """Write one scene (no batch dimensions) as a binary little-endian 3DGS PLY. Returns the path.

    Raises ValueError for a batch, for invalid values (see `Gaussians.validate`) and for numbers that float32 cannot
    hold. The file appears whole or not at all (written beside and renamed).
    """
    from plyfile import PlyData, PlyElement

    if gaussians.batch_shape:
        raise ValueError(f"gaussians: got a batch of shape {gaussians.batch_shape}, wanted one scene")
    g = gaussians.detach().to("cpu", torch.float64).validate()
    sh = rgb_to_sh(g.colors)[:, None] if g.sh_degree is None else g.colors  # (N, K, 3)
    opacity = g.opacities.clamp(OPACITY_EPS, 1 - OPACITY_EPS)
    columns = torch.cat([
        g.means, torch.zeros_like(g.means), sh[:, 0],
        sh[:, 1:].transpose(1, 2).flatten(1),  # (N, K-1, 3) -> (N, 3, K-1) -> channel-major
        torch.logit(opacity)[:, None], g.scales.clamp_min(SCALE_MIN).log(), g.quats], 1).float().numpy()
    names = _property_names(sh.shape[1])
    table = np.empty(g.num, dtype=[(name, "<f4") for name in names])
    for i, name in enumerate(names):
        table[name] = columns[:, i]
    try:
        _decode(table, sh.shape[1])  # float32 has fewer numbers than float64: what cannot be read is not written
    except ValueError as error:
        raise ValueError(f"gaussians: do not fit into float32 ({error})") from error
    path = Path(path)
    partial = path.with_name(path.name + ".part")
    try:
        PlyData([PlyElement.describe(table, "vertex")], byte_order="<").write(str(partial))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def load_ply(path: str | Path, colors: str = "auto") -> Gaussians:
    """Read a 3DGS PLY as float32 Gaussians.

    colors: "sh" keeps (N, K, 3) coefficients; "rgb" wants a degree-0 file and gives (N, 3) colours;
    "auto" gives RGB for degree-0 files and SH otherwise. RGB from a file may lie outside [0, 1]: it is kept as is.
    Raises FileNotFoundError, or ValueError naming the file and what is wrong: not a PLY, truncated, a missing or
    wrongly typed property, an odd number of f_rest, non-finite values.

    >>> import tempfile; from pathlib import Path
    >>> g = Gaussians.random(5, sh_degree=1, generator=torch.Generator().manual_seed(0))
    >>> with tempfile.TemporaryDirectory() as d:
    ...     back = load_ply(save_ply(g, Path(d) / "scene.ply"))
    >>> torch.allclose(back.colors, g.colors, atol=1e-6)
    True
    """
    if colors not in ("auto", "sh", "rgb"):
        raise ValueError(f"colors: got {colors!r}, wanted 'auto', 'sh' or 'rgb'")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    vertices, found = _read_vertices(path)
    num_rest = sum(name.startswith("f_rest_") for name in found)
    if num_rest not in (0, 9, 24, 45):
        raise ValueError(f"{path}: got {num_rest} f_rest properties, wanted 0, 9, 24 or 45 (SH degree 0 to 3)")
    num_bases = 1 + num_rest // 3
    wanted = [n for n in _property_names(num_bases) if n not in ("nx", "ny", "nz")]  # normals are unused
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"{path}: properties {missing} are missing; is this a 3DGS scene, or a plain mesh or cloud?")
    for name in wanted:
        if found[name] not in ("f4", "f8"):
            raise ValueError(f"{path}: property {name} has type {found[name]}, wanted float")
    if colors == "rgb" and num_rest:
        raise ValueError(f"{path}: has spherical harmonics of degree > 0, wanted colors='sh' or 'auto'")
    try:
        g = _decode(vertices, num_bases)
    except ValueError as error:  # e.g. a scale of exp(1000), a zero quaternion
        raise ValueError(f"{path}: {error}") from error
    as_rgb = colors == "rgb" or (colors == "auto" and not num_rest)
    return replace(g, colors=g.colors[:, 0] * SH_C0 + 0.5) if as_rgb else g


def _read_vertices(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    """The vertex table of a PLY file as a structured array in memory, and the type of each property."""
    from plyfile import PlyData, PlyParseError

    try:
        # Through a memory map plyfile reads a binary table in one piece (without it, number by number). The copy
        # lets the map go when this function returns: Windows can neither replace nor delete a file that is mapped.
        vertex = PlyData.read(str(path))["vertex"]
        return np.array(vertex.data), {p.name: str(p.val_dtype) if not hasattr(p, "len_dtype") else "list"
                                       for p in vertex.properties}
    except (PlyParseError, KeyError, ValueError, UnicodeDecodeError, EOFError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path}: damaged, truncated or not a PLY file with vertices ({error})") from error


def _decode(table: np.ndarray, num_bases: int) -> Gaussians:
    """Valid float32 Gaussians with colors (N, K, 3) from a structured array of raw parameters.

    Raises ValueError for non-finite numbers, and for what `Gaussians.validate` refuses.
    """
    columns = {}
    for name in _property_names(num_bases):
        if name in ("nx", "ny", "nz"):
            continue
        columns[name] = np.asarray(table[name], dtype=np.float64)
        if bad := int((~np.isfinite(columns[name])).sum()):
            raise ValueError(f"property {name} has {bad} non-finite values")

    def stack(names: list[str]) -> torch.Tensor:
        return torch.from_numpy(np.stack([columns[n] for n in names], -1).reshape(len(table), len(names)))

    sh = stack([f"f_dc_{i}" for i in range(3)])[:, None]  # (N, 1, 3)
    if num_bases > 1:
        rest = stack([f"f_rest_{i}" for i in range(3 * (num_bases - 1))])
        sh = torch.cat([sh, rest.reshape(len(table), 3, num_bases - 1).transpose(1, 2)], 1)  # (N, K, 3)
    return Gaussians(means=stack(["x", "y", "z"]), quats=stack([f"rot_{i}" for i in range(4)]),
                     scales=stack([f"scale_{i}" for i in range(3)]).exp(),
                     opacities=torch.sigmoid(torch.from_numpy(columns["opacity"])), colors=sh).to(torch.float32).validate()

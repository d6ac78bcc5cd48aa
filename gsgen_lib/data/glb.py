"""Writing a textured mesh as .glb, the binary form of glTF 2.0, and the sRGB curve that this needs.

Image files and everything in this library hold sRGB values; glTF keeps colour factors and vertex colours in
linear light (glTF 2.0 specification, section 3.9.2), textures in sRGB:

    linear = srgb / 12.92                         for srgb <= 0.04045
    linear = ((srgb + 0.055) / 1.055)^2.4         above

`gsgen_lib.data.meshes` is the place to import from; reading is there.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gsgen_lib.data.meshes import Material, Mesh


def save_glb(mesh: Mesh, path: str | Path, max_texture: int | None = None, jpeg: bool = False) -> None:
    """Write a mesh as one binary glTF file that any viewer opens.

    Every material becomes a texture (plain colours a 1x1 one): trimesh writes colour factors as 8
    bits of linear light, which is too coarse for dark colours. `max_texture` shrinks larger
    textures to that many pixels a side; `jpeg` stores opaque ones as JPEG (lossy, smaller). Corner
    colours are written as vertex colours of untextured faces; beside a texture they are refused
    (ValueError).

    >>> import pathlib, tempfile
    >>> from gsgen_lib.data.meshes import Material, Mesh, load_mesh
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "red.glb"
    >>> red = Material(color=(1, 0, 0, 1))
    >>> save_glb(Mesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], materials=[red]), file)
    >>> load_mesh(file).materials[0].texture.tolist()
    [[[255, 0, 0, 255]]]
    """
    import trimesh
    from trimesh.visual.material import PBRMaterial

    scene = trimesh.Scene()
    for i, material in enumerate(mesh.materials):
        select = mesh.material_ids == i
        if not select.any():
            continue
        corner_xyz = mesh.vertices[mesh.faces[select]].reshape(-1, 3)  # (f, 3, 3) -> (3 f, 3)
        if mesh.colors is not None and material.texture is not None:
            raise ValueError("mesh: corner colours together with a texture cannot be written to GLB here")
        if mesh.colors is not None:
            values = mesh.colors[select].reshape(-1, 4) * material.color  # (f, 3, 4) -> (3 f, 4)
            values[:, :3] = srgb_to_linear(values[:, :3])
        else:
            values = mesh.uv[select].reshape(-1, 2)
        table, inverse = np.unique(np.concatenate([corner_xyz, values], axis=1), axis=0, return_inverse=True)
        part = trimesh.Trimesh(table[:, :3], inverse.reshape(-1, 3), process=False)
        if mesh.colors is not None:
            part.visual = trimesh.visual.ColorVisuals(part, vertex_colors=np.uint8(np.round(table[:, 3:] * 255)))
        else:
            image = _material_image(material, max_texture, jpeg)
            pbr = PBRMaterial(name=f"material_{i}", baseColorTexture=image, metallicFactor=0.0, roughnessFactor=1.0,
                              doubleSided=True, alphaMode="BLEND" if image.mode == "RGBA" else "OPAQUE")
            part.visual = trimesh.visual.TextureVisuals(uv=table[:, 3:], material=pbr)
        scene.add_geometry(part, node_name=f"part_{i:03d}", geom_name=f"part_{i:03d}")
    Path(path).write_bytes(scene.export(file_type="glb"))


def _material_image(material: Material, max_texture, jpeg):
    """Colour times texture as a PIL image, RGB if opaque."""
    from PIL import Image

    texels = np.full((1, 1, 4), 255, np.uint8) if material.texture is None else material.texture
    image = Image.fromarray(np.uint8(np.round(texels * material.color)))
    if max_texture is not None and max(image.size) > max_texture:
        scale = max_texture / max(image.size)
        image = image.resize([max(1, round(s * scale)) for s in image.size], Image.Resampling.BOX)
    if np.asarray(image)[..., 3].min() == 255:
        image = image.convert("RGB")
        if jpeg and min(image.size) >= 16:  # trimesh keeps the format of an image that was read as JPEG
            buffer = io.BytesIO()
            image.save(buffer, format="JPEG", quality=92)
            image = Image.open(buffer)
    return image


def srgb_to_linear(x):
    """sRGB values in [0, 1] -> linear light in [0, 1] (IEC 61966-2-1).

    >>> round(float(srgb_to_linear(0.5)), 4)
    0.214
    """
    x = np.asarray(x, dtype=np.float64)
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(x):
    """Linear light in [0, 1] -> sRGB values in [0, 1] (IEC 61966-2-1), the inverse of `srgb_to_linear`.

    >>> round(float(linear_to_srgb(0.214)), 2)
    0.5
    """
    x = np.asarray(x, dtype=np.float64)
    return np.where(x <= 0.0031308, x * 12.92, 1.055 * np.maximum(x, 1e-9) ** (1 / 2.4) - 0.055)

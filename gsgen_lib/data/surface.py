"""The colour of a point on a textured mesh: materials, textures at many sizes, light.

At a point with corner weights b of a face f:

    rgba = material.color * corner_colour(b) * texture(uv(b)),      rgb <- s(n_f) rgb

Light. s(n) = 0.60 n_x^2 + 0.95 n_y^2 + 0.78 n_z^2 multiplies the sRGB colour: faces turned up or down are
brightest, front and back a bit darker, the sides darkest. It depends on the surface alone, not on the
camera, and n and -n are lit alike (two-sided). So one point has one colour in all views, which Gaussians
with plain RGB colours can represent exactly; highlights and shadows are left out on purpose.

Textures. A 64-pixel view of a 1024-texel texture skips most texels, and which ones it hits changes from view to
view (sparkle). Each texture is therefore kept at all sizes h, h/2, h/4, ..., 1 (mipmaps, level 0 the full
one); a lookup with footprint w (a length on the surface) reads, bilinearly, the level

    l = round(log2(w * texels per unit of length on this face))

whose texels are about as large as the footprint. Texels are stored premultiplied by their alpha, so that
invisible ones do not bleed their colour into visible ones when they are averaged.

The loops are compiled by numba. Used by `gsgen_lib.data.raycast`. Source of mipmaps: Williams 1983.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gsgen_lib.raster.numba_setup import jit

LIGHT = np.array([0.60, 0.95, 0.78], dtype=np.float32)  # brightness of faces along x, y, z


class Surface(NamedTuple):
    """A mesh as arrays ready for lookups: per face, per material, and all texels in one list.

    start, height, width (materials, levels): where a texture's level begins in `texels` and how large it is.
    """

    normals: np.ndarray  # (F, 3) float32, by winding
    areas: np.ndarray  # (F,) float64
    light: np.ndarray  # (F,) float32, s(n)
    uv: np.ndarray  # (F, 3, 2) float32
    uv_density: np.ndarray  # (F,) float32, texture widths passed per unit of length on the face
    corner_colors: np.ndarray  # (F, 3, 4) float32, or (0, 3, 4) without
    material_ids: np.ndarray  # (F,) int32
    material_colors: np.ndarray  # (M, 4) float32
    levels: np.ndarray  # (M,) int32, number of mipmap levels, 0 without texture
    start: np.ndarray  # (M, L) int64
    height: np.ndarray  # (M, L) int64
    width: np.ndarray  # (M, L) int64
    texels: np.ndarray  # (T, 4) uint8, premultiplied


def prepare_surface(mesh) -> Surface:
    """Mesh -> Surface.

    >>> from gsgen_lib.data.meshes import Mesh
    >>> surface = prepare_surface(Mesh([[0, 0, 0], [2, 0, 0], [0, 1, 0]], [[0, 1, 2]]))
    >>> surface.areas.tolist(), surface.normals.tolist(), surface.levels.tolist()
    ([1.0], [[0.0, 0.0, 1.0]], [0])
    """
    corners = mesh.vertices[mesh.faces].astype(np.float64)  # (F, 3, 3)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    double_area = np.linalg.norm(cross, axis=1)
    normals = (cross / np.maximum(double_area, 1e-20)[:, None]).astype(np.float32)
    e1, e2 = mesh.uv[:, 1] - mesh.uv[:, 0], mesh.uv[:, 2] - mesh.uv[:, 0]
    uv_double_area = np.abs(e1[:, 0] * e2[:, 1] - e1[:, 1] * e2[:, 0])
    chains = [[] if m.texture is None else mipmaps(m.texture) for m in mesh.materials]
    tables = np.ones((3, len(chains), max(1, *(len(c) for c in chains))), np.int64)  # start, height, width
    texels, position = [np.zeros((1, 4), np.uint8)], 1
    for m, chain in enumerate(chains):
        for level, image in enumerate(chain):
            tables[:, m, level] = position, *image.shape[:2]
            texels.append(image.reshape(-1, 4))
            position += len(texels[-1])
    no_colors = np.zeros((0, 3, 4), np.float32)
    return Surface(
        normals=normals,
        areas=double_area / 2,
        light=normals**2 @ LIGHT,
        uv=mesh.uv,
        uv_density=np.sqrt(uv_double_area / np.maximum(double_area, 1e-20)).astype(np.float32),
        corner_colors=no_colors if mesh.colors is None else mesh.colors,
        material_ids=mesh.material_ids,
        material_colors=np.stack([m.color for m in mesh.materials]),
        levels=np.array([len(c) for c in chains], np.int32),
        start=tables[0], height=tables[1], width=tables[2],
        texels=np.concatenate(texels),
    )


def mipmaps(texture: np.ndarray) -> list[np.ndarray]:
    """(h, w, 4) uint8 with straight alpha -> premultiplied uint8 images, each half as large, down to 1 x 1.

    >>> [m.shape for m in mipmaps(np.zeros((4, 2, 4), np.uint8))]
    [(4, 2, 4), (2, 1, 4), (1, 1, 4)]
    """
    from PIL import Image

    image = texture.astype(np.float32)
    image[..., :3] *= image[..., 3:] / 255.0
    image = np.round(image).astype(np.uint8)
    chain = [image]
    while max(image.shape[:2]) > 1:
        h, w = (max(1, s // 2) for s in image.shape[:2])
        channels = [np.asarray(Image.fromarray(image[..., c]).resize((w, h), Image.Resampling.BOX)) for c in range(4)]
        image = np.stack(channels, axis=-1)
        chain.append(image)
    return chain


def surface_colors(surface: Surface, faces, weights, footprints, shaded: bool = True) -> np.ndarray:
    """Straight RGBA (N, 4) float32 at corner weights (N, 3) of faces (N,), averaged over footprints (N,).

    shaded: with the light s(n), or the bare material.

    >>> from gsgen_lib.data.meshes import Material, Mesh
    >>> red = Mesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], materials=[Material((1, 0, 0, 1))])
    >>> [round(float(c), 2) for c in surface_colors(prepare_surface(red), [0], [[0.5, 0.5, 0]], [0.0])[0]]
    [0.78, 0.0, 0.0, 1.0]
    """
    w = np.asarray(weights, np.float32)
    b1, b2 = np.ascontiguousarray(w[:, 1]), np.ascontiguousarray(w[:, 2])
    faces, footprints = np.ascontiguousarray(faces, np.int32), np.ascontiguousarray(footprints, np.float32)
    return colors_at(surface, faces, b1, b2, footprints, shaded)


@jit()
def colors_at(surface, faces, weights1, weights2, footprints, shaded):
    """As `surface_colors`, with the weights of the second and third corner; faces < 0 (misses) give zeros."""
    rgba = np.zeros((len(faces), 4), np.float32)
    (_, _, light, uv, uv_density, corner_colors, material_ids, material_colors,
     levels, start, height, width, texels) = surface
    for i in range(len(faces)):
        f, b1, b2 = faces[i], weights1[i], weights2[i]
        if f < 0:
            continue
        m, b0 = material_ids[f], 1 - b1 - b2
        for c in range(4):
            rgba[i, c] = material_colors[m, c]
            if len(corner_colors):
                rgba[i, c] *= b0 * corner_colors[f, 0, c] + b1 * corner_colors[f, 1, c] + b2 * corner_colors[f, 2, c]
        if levels[m] > 0:
            u = b0 * uv[f, 0, 0] + b1 * uv[f, 1, 0] + b2 * uv[f, 2, 0]
            v = b0 * uv[f, 0, 1] + b1 * uv[f, 1, 1] + b2 * uv[f, 2, 1]
            covered = footprints[i] * uv_density[f] * np.sqrt(height[m, 0] * width[m, 0])  # texels of the full size
            level = min(max(int(round(np.log2(max(covered, 1e-6)))), 0), levels[m] - 1)
            h, w, first = height[m, level], width[m, level], start[m, level]
            # the four texels around (u, v); v upwards; textures repeat outside [0, 1]
            x, y = (u - np.floor(u)) * w - 0.5, (1 - (v - np.floor(v))) * h - 0.5
            left, top = int(np.floor(x)), int(np.floor(y))
            fx, fy = x - left, y - top
            right, bottom = left + 1 if left + 1 < w else 0, top + 1 if top + 1 < h else 0
            left, top = left if left >= 0 else w - 1, top if top >= 0 else h - 1
            p, q = first + top * w + left, first + top * w + right
            s, t = first + bottom * w + left, first + bottom * w + right
            wp, wq, ws, wt = (1 - fx) * (1 - fy) / 255, fx * (1 - fy) / 255, (1 - fx) * fy / 255, fx * fy / 255
            alpha = wp * texels[p, 3] + wq * texels[q, 3] + ws * texels[s, 3] + wt * texels[t, 3]
            for c in range(3):
                value = wp * texels[p, c] + wq * texels[q, c] + ws * texels[s, c] + wt * texels[t, c]
                rgba[i, c] *= value / alpha if alpha > 0 else 0.0  # premultiplied -> straight
            rgba[i, 3] *= alpha
        if shaded:
            for c in range(3):
                rgba[i, c] *= light[f]
    return rgba

"""Building blocks of the toys: a few shapes, and a box of parts that becomes a mesh.

Every shape is a stack of rings of points joined by triangles ("loft"), or a flat outline filled
from its centre. From these two come all the others:

    lathe      rings (r sin a, y, r cos a) around the y axis, one per point (r, y) of a profile
    tube       circles carried along a curve in space
    slab       an outline in the x-y plane, thickened along z
    decal      an outline without thickness, to be draped over a surface z = f(x, y)

Texture coordinates are lengths along the surface divided by TILE, so that stripes and dots have
the same size on every part; textures repeat, and one tile of a pattern is one period of it.

Angles are in degrees; azimuth 0 is the front (+z) and grows towards +x, as for the cameras.
Used by `gsgen_lib.data.toys`, first seen in notebook 02.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gsgen_lib.data.meshes import Material, Mesh
from gsgen_lib.data.toy_paint import PALETTE

TILE = 0.25  # side of one texture tile in the toys' own units (a toy is about 1 across)


class Shape(NamedTuple):
    """Triangles without a colour: vertices (n, 3), faces (f, 3), uv (f, 3, 2)."""

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray


# --- shapes ----------------------------------------------------------------------------------


def loft(rings, uv) -> Shape:
    """Join m rings of n points each, (m, n, 3), by two triangles per cell; uv (m, n, 2).

    Rings run counter-clockwise seen from their far end, so that triangles face outwards.
    Triangles two corners of which coincide (at the poles of a sphere) are left out.

    >>> ring = np.array([[0, 0, 1], [1, 0, 0], [0, 0, -1], [-1, 0, 0], [0, 0, 1.0]])
    >>> len(loft([ring, ring + [0, 1, 0]], np.zeros((2, 5, 2))).faces)
    8
    """
    rings, uv = np.asarray(rings, dtype=np.float64), np.asarray(uv, dtype=np.float64)
    m, n = rings.shape[:2]
    i = (np.arange(m - 1)[:, None] * n + np.arange(n - 1)).ravel()  # lower left corner of every cell
    faces = np.concatenate([np.stack([i, i + 1, i + n], 1), np.stack([i + 1, i + n + 1, i + n], 1)])
    vertices = rings.reshape(-1, 3)  # (m, n, 3) -> (m n, 3)
    corner = vertices[faces]  # (f, 3, 3)
    edge = np.abs(corner - corner[:, [1, 2, 0]]).max(2).min(1)  # the shortest, per triangle
    faces = faces[edge > 1e-9]
    return Shape(vertices, faces, uv.reshape(-1, 2)[faces])


def lathe(profile, segments: int = 32, start: float = -180.0, sweep: float = 360.0) -> Shape:
    """Turn a profile of points (r, y), bottom to top along the outside, around the y axis.

    `start` and `sweep` (degrees of azimuth) cut a sector. The seam of a full turn lies at the back;
    the number of tiles around it is rounded to a whole number, so the pattern closes.

    >>> np.abs(lathe([(1, 0), (1, 2)]).vertices).max(0).round(3).tolist()
    [1.0, 2.0, 1.0]
    """
    profile = np.asarray(profile, dtype=np.float64)
    r, y = profile.T
    angle = np.radians(start + sweep * np.linspace(0, 1, segments + 1))
    ring = np.stack([np.sin(angle), np.zeros_like(angle), np.cos(angle)], -1)  # (n, 3)
    rings = r[:, None, None] * ring + y[:, None, None] * np.array([0.0, 1.0, 0.0])  # (m, n, 3)
    length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(r), np.diff(y)))])
    around = 2 * np.pi * r.max() / TILE
    tiles = max(1, round(around)) if sweep == 360.0 else around * sweep / 360
    u = np.broadcast_to(tiles * np.linspace(0, 1, segments + 1), (len(r), segments + 1))
    v = np.broadcast_to(length[:, None] / TILE, u.shape)
    return loft(rings, np.stack([u, v], -1))


@lru_cache(maxsize=256)  # a wheel comes four times
def cylinder(radius: float, height: float, top: float | None = None, segments: int = 24) -> Shape:
    """Closed cylinder or cone frustum from y = 0 to `height`; `top` is the radius there."""
    return lathe([(0, 0), (radius, 0), (radius if top is None else top, height), (0, height)], segments)


@lru_cache(maxsize=256)
def ellipsoid(rx: float, ry: float, rz: float, rings: int = 14, segments: int = 28) -> Shape:
    """Ellipsoid around the origin with half-axes rx, ry, rz.

    >>> np.abs(ellipsoid(1, 2, 3).vertices).max(0).tolist()
    [1.0, 2.0, 3.0]
    """
    latitude = np.pi * np.linspace(-0.5, 0.5, rings + 1)
    middle = (rx + ry) / 2  # so that the tiles are about square
    shape = lathe(np.stack([np.cos(latitude) * middle, np.sin(latitude) * middle], 1), segments)
    return Shape(shape.vertices * np.array([rx, ry, rz]) / middle, shape.faces, shape.uv)


@lru_cache(maxsize=256)
def box(width: float, height: float, depth: float, top=(1.0, 1.0)) -> Shape:
    """Box around the origin; `top` = (x, z) shrinks its upper face.

    >>> len(box(1, 1, 1).faces)
    12
    """
    corner = np.array([[x, y, z] for y in (-1, 1) for x, z in ((-1, 1), (1, 1), (1, -1), (-1, -1))]) * 0.5
    size = np.array([width, height, depth])
    vertices = corner * size
    vertices[4:, [0, 2]] *= top
    quads = np.array([[0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7], [4, 5, 6, 7], [3, 2, 1, 0]])
    across = np.array([0, 2, 0, 2, 0, 0])  # which axis u runs along, per face
    upward = np.array([1, 1, 1, 1, 2, 2])
    plain = corner * size / TILE
    uv = np.stack([np.stack([plain[q, a], plain[q, b]], -1) for q, a, b in zip(quads, across, upward, strict=True)])
    faces = quads[:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3)  # (6, 2, 3) -> (12, 3)
    return Shape(vertices, faces, uv[:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3, 2))


def _closed(outline) -> np.ndarray:
    """First corner repeated at the end, in counter-clockwise order."""
    x, y = np.asarray(outline, dtype=np.float64).T
    if x @ np.roll(y, -1) < y @ np.roll(x, -1):  # twice the signed area
        x, y = x[::-1], y[::-1]
    return np.stack([np.append(x, x[0]), np.append(y, y[0])], 1)


def decal(outline, rings: int = 1) -> Shape:
    """Fill an outline (n, 2), all of it visible from its middle, in the plane z = 0.

    `rings` > 1 cuts the triangles so that the decal can be draped over a curved surface. uv runs
    over the decal's bounding box, so a picture as texture fills it.

    >>> len(decal(circle(1.0, 6)).faces)
    6
    """
    outline = _closed(outline)
    middle = (outline.min(0) + outline.max(0)) / 2
    t = np.linspace(1, 0, rings + 1)[:, None, None]
    flat = middle + t * (outline - middle)  # (rings + 1, n + 1, 2)
    extent = outline.max(0) - outline.min(0)
    uv = (flat - outline.min(0)) / extent
    return loft(np.concatenate([flat, np.zeros_like(flat[..., :1])], -1), uv)


def slab(outline, depth: float) -> Shape:
    """An outline as for `decal`, thickened from z = -depth/2 to depth/2, texture in x and y.

    >>> slab(rectangle(1.0, 2.0), 0.5).vertices.max(0).tolist()
    [0.5, 1.0, 0.25]
    """
    outline = _closed(outline)
    middle = np.broadcast_to((outline.min(0) + outline.max(0)) / 2, outline.shape)
    flat = np.stack([middle, outline, outline, middle])  # back centre, back rim, front rim, front centre
    z = np.broadcast_to(np.array([-0.5, -0.5, 0.5, 0.5])[:, None, None] * depth, flat[..., :1].shape)
    return loft(np.concatenate([flat, z], -1), flat / TILE)


def tube(path, radius, segments: int = 12) -> Shape:
    """A closed tube along a curve (m, 3); radius is one number or m of them.

    >>> np.abs(tube([[0, 0, 0], [0, 1, 0]], 0.1).vertices).max(0).round(3).tolist()
    [0.1, 1.0, 0.1]
    """
    path = np.asarray(path, dtype=np.float64)
    radius = np.broadcast_to(np.asarray(radius, dtype=np.float64), len(path))
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    side = np.eye(3)[np.abs(tangent).max(0).argmin()]  # an axis that no part of the curve runs along
    angle = np.linspace(0, 2 * np.pi, segments + 1)[:, None]
    rings = []
    for p, t, r in zip(path, tangent, radius, strict=True):
        a = side - t * (side @ t)  # carry the same frame along the curve
        a /= np.linalg.norm(a)
        side = a
        rings.append(p + r * (np.cos(angle) * a + np.sin(angle) * np.cross(t, a)))
    rings = np.stack([np.broadcast_to(path[0], rings[0].shape), *rings, np.broadcast_to(path[-1], rings[0].shape)])
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(rings.mean(1), axis=0), axis=1))])
    u = np.broadcast_to(angle[:, 0] / (2 * np.pi), rings.shape[:2])
    return loft(rings, np.stack([u, np.broadcast_to(length[:, None] / TILE, u.shape)], -1))


@lru_cache(maxsize=256)
def ring(radius: float, thickness: float, segments: int = 32) -> Shape:
    """A torus around the y axis: `radius` to the middle of its tube, `thickness` of the tube."""
    angle = np.linspace(-np.pi, np.pi, 11)
    return lathe(np.stack([radius + thickness * np.cos(angle), thickness * np.sin(angle)], 1), segments)


# --- outlines, about centred -------------------------------------------------------


def circle(radius: float, corners: int = 24) -> np.ndarray:
    """Corners of a regular polygon (corners, 2); the first lies on +x."""
    a = 2 * np.pi * np.arange(corners) / corners
    return radius * np.stack([np.cos(a), np.sin(a)], 1)


def rectangle(width: float, height: float, cuts: int = 1) -> np.ndarray:
    """Outline of a rectangle, (4 cuts, 2); cut the sides to drape it over something round."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]) * np.array([width, height]) / 2
    t = np.arange(4 * cuts) / cuts
    return np.stack([np.interp(t, np.arange(5), corners[:, axis]) for axis in (0, 1)], 1)


def star(radius: float, points: int = 5, inner: float = 0.5) -> np.ndarray:
    """Corners of a star that stands on two of its points, (2 points, 2)."""
    r = radius * np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    a = np.pi / 2 + np.pi * np.arange(2 * points) / points
    return r[:, None] * np.stack([np.cos(a), np.sin(a)], 1)


def heart(radius: float, corners: int = 28) -> np.ndarray:
    """Outline of a heart about 2 radius wide, (corners, 2)."""
    t = 2 * np.pi * np.arange(corners) / corners
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return radius * np.stack([x, y + 2.5], 1)[::-1] / 16


# --- moving --------------------------------------------------------------------------------------


def place(shape: Shape, at=(0.0, 0.0, 0.0), turn=(0.0, 0.0, 0.0)) -> Shape:
    """Turn a shape by degrees about x, then y, then z, and move it.

    >>> place(cylinder(0.1, 1.0), turn=(90, 0, 0)).vertices[:, 2].max().round(3)  # y goes to z
    np.float64(1.0)
    """
    v = shape.vertices
    for axis, degrees in enumerate(turn):
        if degrees:
            c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
            j, k = (axis + 1) % 3, (axis + 2) % 3
            v = v.copy()
            v[:, j], v[:, k] = c * v[:, j] - s * v[:, k], s * v[:, j] + c * v[:, k]
    return Shape(v + np.asarray(at, dtype=np.float64), shape.faces, shape.uv)


def lathe_surface(profile, gap: float = 0.008):
    """The front of a lathe as z = f(x, y), `gap` above it: what a decal is draped over."""
    r, y = np.asarray(profile, dtype=np.float64).T
    return lambda px, py: np.sqrt(np.maximum(np.interp(py, y, r) ** 2 - px**2, 0)) + gap


def drape(shape: Shape, surface) -> Shape:
    """Lift a flat shape onto the surface z = surface(x, y): a label onto a mug."""
    v = shape.vertices.copy()
    v[:, 2] += surface(v[:, 0], v[:, 1])
    return Shape(v, shape.faces, shape.uv)


# --- the box of parts ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """How one kind of toy is built and what may vary.

    build(parts, a, main) adds all parts, given attributes `a` and the main paint `main`;
    proportions: name -> (low, high), drawn uniformly; variants: name -> equally likely values;
    hidden: name -> {value: probability}, drawn independently of everything else. The faces of a
    hidden attribute carry its name as their part name, and cannot be seen from the front.
    """

    build: Callable
    proportions: dict
    variants: dict
    hidden: dict


class Parts:
    """Collects shapes with a paint and a part name, and becomes one Mesh.

    >>> p = Parts()
    >>> p.add(box(1, 1, 1), "red", "body")
    >>> p.add(decal(circle(0.3)), "white", "front", at=(0, 0, 0.51))
    >>> mesh, part_ids, names = p.mesh()
    >>> names, len(mesh.materials), part_ids.tolist()[:2]
    (['body', 'front'], 2, [0, 0])
    """

    def __init__(self):
        self.shapes, self.material_of, self.part_of = [], [], []
        self.materials, self.names = {}, []

    def add(self, shape: Shape, paint, part: str = "body", at=(0.0, 0.0, 0.0), turn=(0.0, 0.0, 0.0)) -> None:
        """Put a shape in place. `paint` is a colour of PALETTE or a texture (h, w, 4) uint8."""
        key = paint if isinstance(paint, str) else id(paint)
        if key not in self.materials:
            color = np.append(np.array(PALETTE[paint]) / 255, 1.0) if isinstance(paint, str) else np.ones(4)
            self.materials[key] = Material(color, None if isinstance(paint, str) else paint)
        if part not in self.names:
            self.names.append(part)
        self.shapes.append(place(shape, at, turn))
        self.material_of.append(list(self.materials).index(key))
        self.part_of.append(self.names.index(part))

    def mesh(self) -> tuple[Mesh, np.ndarray, list[str]]:
        """(mesh as built, part id of every face (F,) int32, part names)."""
        first = np.cumsum([0] + [len(s.vertices) for s in self.shapes])
        counts = [len(s.faces) for s in self.shapes]
        mesh = Mesh(
            vertices=np.concatenate([s.vertices for s in self.shapes]),
            faces=np.concatenate([s.faces + i for s, i in zip(self.shapes, first[:-1], strict=True)]),
            uv=np.concatenate([s.uv for s in self.shapes]),
            material_ids=np.repeat(self.material_of, counts),
            materials=list(self.materials.values()),
        )
        return mesh, np.repeat(self.part_of, counts).astype(np.int32), list(self.names)

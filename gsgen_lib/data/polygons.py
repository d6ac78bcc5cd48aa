"""Cutting the polygons of an OBJ file into triangles.

OBJ faces may have any number of corners. Readers, trimesh among them, cut a polygon p0 p1 ... pn-1 into a
fan (p0, pi, pi+1), which is right only if every fan triangle turns the same way as the whole polygon:

    N = sum_i p_i x p_{i+1}     (Newell's normal, twice the area vector)
    fan is right   <=>   ((p_i - p_0) x (p_{i+1} - p_0)) . N >= 0   for all i

An L-shaped face, or a frame drawn as one outline that runs around its hole, fails this test: a fan would
fill the hole. Such polygons are cut by ear clipping instead (`mapbox_earcut`) in the plane across N.

Sources: Newell's method in Sutherland, Sproull & Schumacker 1974; ear clipping: Meisters 1975.
"""

from __future__ import annotations

import numpy as np


def triangulate_polygons(text: str) -> str:
    """OBJ text -> the same text in which every polygon that a fan would spoil is given as triangles.

    >>> arrow = "v 0 0 0\\nv 2 1 0\\nv 0 2 0\\nv 1 1 0\\nf 1 2 3 4\\nf 2 3 4\\n"   # concave at corner 4
    >>> print(triangulate_polygons(arrow).split("v 1 1 0")[1].strip())
    f 4 1 2
    f 4 2 3
    f 2 3 4
    """
    lines = text.replace("\\\r\n", " ").replace("\\\n", " ").splitlines()
    positions, polygons = [], {}  # polygons: number of corners -> [(line, corner indices)]
    for i, line in enumerate(lines):
        if line.startswith("v "):
            positions.append(line.split()[1:4])
        elif line.startswith("f "):
            tokens = line.split()[1:]
            if len(tokens) > 3:
                corners = [int(t.split("/", 1)[0]) for t in tokens]
                corners = [c - 1 if c > 0 else len(positions) + c for c in corners]  # negative: counted backwards
                polygons.setdefault(len(tokens), []).append((i, corners))
    positions = np.array(positions, dtype=np.float64).reshape(-1, 3)
    for group in polygons.values():
        p = positions[np.array([corners for _, corners in group])]  # (P, n, 3)
        edge = p[:, 1:] - p[:, :1]
        fan = np.cross(edge[:, :-1], edge[:, 1:])  # (P, n - 2, 3) area vectors of the fan's triangles
        normal = fan.sum(axis=1)
        turn = np.einsum("ptx,px->pt", fan, normal)
        spoiled = (turn < -1e-6 * np.einsum("px,px->p", normal, normal)[:, None]).any(axis=1)
        for k in np.flatnonzero(spoiled):
            i, tokens = group[k][0], lines[group[k][0]].split()[1:]
            triangles = _ear_clip(p[k], normal[k])
            if len(triangles):
                lines[i] = "\n".join("f " + " ".join(tokens[c] for c in t) for t in triangles)
    return "\n".join(lines) + "\n"


def _ear_clip(p: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Corners (n, 3) of one polygon -> triangles (t, 3) of corner numbers, turning like the polygon."""
    from mapbox_earcut import triangulate_float64

    drop = int(np.abs(normal).argmax())  # look along the axis in which the polygon is widest open
    plane = np.ascontiguousarray(np.delete(p, drop, axis=1))
    triangles = triangulate_float64(plane, np.array([len(p)], dtype=np.uint32)).reshape(-1, 3)
    a, b, c = (p[triangles[:, j]] for j in range(3))
    if np.einsum("tx,x->", np.cross(b - a, c - a), normal) < 0:
        triangles = triangles[:, ::-1]
    return triangles

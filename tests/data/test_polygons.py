"""Concave polygons of OBJ files: areas by the shoelace formula, holes stay open."""

import numpy as np
import pytest

from gsgen_lib.data.meshes import load_mesh
from gsgen_lib.data.polygons import triangulate_polygons


def area(mesh):
    p = mesh.vertices[mesh.faces].astype(np.float64)
    return np.linalg.norm(np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]), axis=1).sum() / 2


L_SHAPE = [(0, 0), (3, 0), (3, 1), (1, 1), (1, 3), (0, 3)]
STAR = [(np.cos(a) * r, np.sin(a) * r) for a, r in zip(np.arange(10) * np.pi / 5, [1, 0.3] * 5, strict=True)]
FRAME = [(0, 0), (4, 0), (4, 4), (0, 4), (0, 0), (1, 1), (1, 3), (3, 3), (3, 1), (1, 1)]  # runs around its hole
DART = [(0, 0), (2, 1), (0, 2), (0.5, 1)]


@pytest.mark.parametrize("outline, hole", [(L_SHAPE, (2, 2)), (STAR, (0.55, 0.35)), (FRAME, (2, 2)), (DART, (0.2, 1))])
@pytest.mark.parametrize("shift, plane", [(0, (0, 1, 2)), (1, (2, 0, 1)), (2, (1, 0, 2))])
def test_concave_polygons_keep_their_area_and_holes(tmp_path, outline, hole, shift, plane):
    x, y = np.array(outline).T
    wanted = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2  # shoelace
    rotated = outline[shift:] + outline[:shift]
    lines = ["v " + " ".join(str(np.array([u, v, 0.2 * u + 5])[list(plane)][k]) for k in range(3)) for u, v in rotated]
    file = tmp_path / "polygon.obj"
    file.write_text("\n".join(lines) + "\nf " + " ".join(str(i + 1) for i in range(len(outline))))
    mesh = load_mesh(file)
    tilt = np.sqrt(1 + 0.2**2)
    assert abs(area(mesh) - wanted * tilt) < 1e-5
    inverse = np.argsort(plane)
    p = mesh.vertices[mesh.faces][..., inverse][..., :2].astype(np.float64)
    w = np.linalg.solve(
        np.concatenate([p.transpose(0, 2, 1), np.ones((len(p), 1, 3))], 1) + 1e-12 * np.eye(3),
        np.broadcast_to([*hole, 1.0], (len(p), 3))[..., None],
    )[..., 0]
    assert not (w > 1e-6).all(1).any()  # no triangle covers the hole


def test_a_fan_would_have_spoiled_these_polygons():
    for outline in (L_SHAPE, STAR, FRAME, DART):
        q = np.array(outline, dtype=np.float64)
        x, y = q.T
        wanted = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
        fans = []
        for p in (np.roll(q, k, axis=0) for k in range(len(q))):
            e = p[1:] - p[0]
            fans.append(np.abs(e[:-1, 0] * e[1:, 1] - e[:-1, 1] * e[1:, 0]).sum() / 2)
        assert max(fans) > wanted + 0.1


def test_convex_polygons_and_other_lines_are_left_alone():
    text = "# hello\nmtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\ng one\nf 1//1 2//1 3//1 4//1\n"
    assert triangulate_polygons(text) == text


def test_polygon_corners_keep_their_texture_coordinates_and_relative_indices():
    dart = "".join(f"v {x} {y} 0\n" for x, y in DART)
    triangles = triangulate_polygons(dart + "f -4/1/7 -3/2/7 -2/3/7 -1/4/7\n").splitlines()[4:]
    assert len(triangles) == 2 and all(t.split()[0] == "f" and len(t.split()) == 4 for t in triangles)
    assert {c for t in triangles for c in t.split()[1:]} == {"-4/1/7", "-3/2/7", "-2/3/7", "-1/4/7"}

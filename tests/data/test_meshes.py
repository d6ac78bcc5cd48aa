"""Reading, normalising and writing meshes: small files made here, with known content."""

import dataclasses
import json
import struct

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gsgen_lib.data.glb import linear_to_srgb, save_glb, srgb_to_linear
from gsgen_lib.data.meshes import Material, Mesh, load_mesh, normalise, rotate

TRIANGLE = dict(vertices=[[0, 0, 0], [1, 0, 0], [0, 1, 0]], faces=[[0, 1, 2]])


@pytest.fixture
def texture(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "Wood.png")
    return image


# --- Mesh, normalise -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(vertices=[[0, 0, np.nan], [1, 0, 0], [0, 1, 0]]), "vertices: 1 non-finite"),
        (dict(vertices=[[0, 0], [1, 0], [0, 1]]), "vertices: wanted"),
        (dict(faces=[[0, 1, 3]]), "faces: indices 0..3"),
        (dict(faces=[[0, 1, -1]]), "faces: indices"),
        (dict(faces=np.zeros((0, 3))), "faces: wanted"),
        (dict(uv=np.zeros((1, 3, 3))), "uv: wanted"),
        (dict(material_ids=[1]), "material_ids: 1..1"),
        (dict(material_ids=[0, 0]), "material_ids: wanted"),
        (dict(colors=np.full((1, 3, 4), 2.0)), "colors: wanted"),
    ],
)
def test_mesh_names_the_field_that_does_not_fit(bad, message):
    with pytest.raises(ValueError, match=message):
        Mesh(**(TRIANGLE | bad))


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(color=(1, 1, 1)), "color"),
        (dict(color=(1, 1, 1, 2)), "color"),
        (dict(color=(1, 1, np.nan, 1)), "color"),
        (dict(texture=np.zeros((2, 2, 3), np.uint8)), "texture"),
        (dict(texture=np.zeros((2, 2, 4))), "texture"),
    ],
)
def test_material_names_the_field_that_does_not_fit(bad, message):
    with pytest.raises(ValueError, match=message):
        Material(**bad)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e4), st.floats(-1e3, 1e3))
def test_normalise_centres_and_touches_the_tighter_bound(seed, scale, shift):
    v = np.random.default_rng(seed).normal(size=(12, 3)) * scale * [1, 2, 0.5] + shift
    v[-1] = 1e9  # no face uses this vertex
    mesh = normalise(Mesh(v, np.arange(9).reshape(3, 3)))
    used = mesh.vertices[:9].astype(np.float64)
    np.testing.assert_allclose(used.min(0), -used.max(0), atol=2e-6)
    extent, radius = np.abs(used).max(), np.linalg.norm(used, axis=1).max()
    assert extent <= 0.5 + 1e-6 and radius <= 0.6 + 1e-6
    assert abs(extent - 0.5) < 1e-5 or abs(radius - 0.6) < 1e-5


def test_normalise_refuses_a_point_and_rotate_refuses_a_mirror():
    with pytest.raises(ValueError, match="coincide"):
        normalise(Mesh(np.ones((3, 3)), [[0, 1, 2]]))
    for matrix in (np.diag([1, 1, -1]), 2 * np.eye(3), np.eye(2)):
        with pytest.raises(ValueError, match="rotation"):
            rotate(Mesh(**TRIANGLE), matrix)


# --- OBJ -------------------------------------------------------------------------------------

OBJ = """mtllib things.mtl
v 0 0 0
v 1 0 0
v 1 1 0
v 0 1 0
v 0 0 1
vt 0 0
vt 1 0
vt 1 1
vt 0.25 0.75
usemtl wood
f 1/1 2/2 3/3
f 1/1 3/3 4/4
usemtl glass
f 1 2 5
usemtl old
f 2 3 5
"""
MTL = """newmtl wood
Kd 0.1 0.2 0.3
map_Kd {texture}
newmtl glass
Kd 0 0.5 1
d 0.25
newmtl old
Kd 1 0 0
Tr 0.4
"""


def write_obj(folder, texture="Wood.png", obj=OBJ):
    (folder / "things.mtl").write_text(MTL.format(texture=texture))
    (folder / "things.obj").write_text(obj)
    return folder / "things.obj"


@pytest.mark.parametrize("name", ["Wood.png", "wood.PNG", ".\\Wood.png", "C:\\Users\\someone\\Wood.png"])
def test_obj_with_materials(tmp_path, texture, name):
    mesh = load_mesh(write_obj(tmp_path, name))
    assert len(mesh.faces) == 4
    wood, glass, old = (
        next(i for i, m in enumerate(mesh.materials) if ok(m))
        for ok in (
            lambda m: m.texture is not None,
            lambda m: m.color[3] == 0.25,
            lambda m: abs(m.color[3] - 0.6) < 1e-6,
        )
    )
    np.testing.assert_array_equal(mesh.materials[wood].texture, texture)
    assert mesh.materials[wood].color.tolist() == [1, 1, 1, 1]  # Kd beside a texture is ignored
    np.testing.assert_allclose(mesh.materials[glass].color, [0, 0.5, 1, 0.25], atol=1 / 255)
    np.testing.assert_allclose(mesh.materials[old].color[:3], [1, 0, 0])
    assert (mesh.material_ids == wood).sum() == 2
    corners = {
        tuple(p): tuple(t)
        for p, t in zip(
            mesh.vertices[mesh.faces[mesh.material_ids == wood]].reshape(-1, 3).tolist(),
            mesh.uv[mesh.material_ids == wood].reshape(-1, 2).tolist(),
            strict=True,
        )
    }
    assert corners == {(0, 0, 0): (0, 0), (1, 0, 0): (1, 0), (1, 1, 0): (1, 1), (0, 1, 0): (0.25, 0.75)}


def test_obj_missing_or_broken_texture_is_named(tmp_path, texture):
    for name in ("gone.png", "broken.png"):
        (tmp_path / "broken.png").write_bytes((tmp_path / "Wood.png").read_bytes()[:60])
        file = write_obj(tmp_path, name)
        with pytest.raises(ValueError, match=f"things.obj: missing or unreadable: {name}"):
            load_mesh(file)
        with pytest.warns(UserWarning, match=name):
            assert len(load_mesh(file, on_missing="warn").faces) == 4
    (tmp_path / "things.mtl").unlink()
    with pytest.raises(ValueError, match="things.mtl"):
        load_mesh(tmp_path / "things.obj")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("empty.obj", b"", "empty.obj"),
        ("points.obj", b"v 0 0 0\nv 1 0 0\n", "no triangles"),
        ("nan.obj", b"v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "nan.obj"),
        ("range.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "range.obj"),
        ("noise.glb", bytes(range(256)) * 4, "noise.glb"),
        ("noise.ply", b"ply\nformat ascii 1.0\nelement vertex 3\n", "noise.ply"),
        ("noise.gltf", b"{]", "noise.gltf"),
        ("thing.stl", b"solid", "wanted one of .obj"),
    ],
)
def test_unreadable_files_are_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_mesh(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="gone"):
        load_mesh(tmp_path / "gone.obj")
    with pytest.raises(ValueError, match="on_missing"):
        load_mesh(tmp_path / name, on_missing="ignore")


def test_splats_are_no_mesh(tmp_path):
    trimesh.PointCloud(np.random.default_rng(0).random((5, 3))).export(tmp_path / "splats.ply")
    with pytest.raises(ValueError, match="splats.ply: holds no triangles"):
        load_mesh(tmp_path / "splats.ply")


# --- glTF ------------------------------------------------------------------------------------


def test_gltf_transforms_mirrors_and_factors(tmp_path):
    box = trimesh.creation.box(extents=(1, 1, 1))
    box.visual = trimesh.visual.TextureVisuals(
        material=trimesh.visual.material.PBRMaterial(baseColorFactor=[128, 64, 255, 128], alphaMode="BLEND")
    )
    scene = trimesh.Scene()
    turn = trimesh.transformations.rotation_matrix(np.pi / 2, [0, 1, 0])
    scene.graph.update("parent", scene.graph.base_frame, matrix=trimesh.transformations.translation_matrix([10, 0, 0]))
    scene.add_geometry(box, node_name="child", parent_node_name="parent", transform=turn @ np.diag([4, 2, -1, 1]))
    scene.export(tmp_path / "scene.glb")
    mesh = load_mesh(tmp_path / "scene.glb")
    np.testing.assert_allclose(mesh.vertices.min(0), [9.5, -1, -2], atol=1e-5)
    np.testing.assert_allclose(mesh.vertices.max(0), [10.5, 1, 2], atol=1e-5)
    p = mesh.vertices[mesh.faces].astype(np.float64) - [10, 0, 0]
    assert np.einsum("fx,fx->f", p[:, 0], np.cross(p[:, 1], p[:, 2])).sum() / 6 == pytest.approx(
        8
    )  # > 0: wound outwards
    (material,) = mesh.materials
    np.testing.assert_allclose(material.color, [0.737, 0.537, 1, 128 / 255], atol=0.002)  # linear -> sRGB


@pytest.mark.parametrize(
    "mode, cutoff, wanted",
    [
        (None, None, [255, 255, 255]),
        ("OPAQUE", None, [255, 255, 255]),
        ("MASK", None, [0, 255, 255]),
        ("MASK", 0.9, [0, 0, 255]),
        ("BLEND", None, [60, 200, 255]),
    ],
)
def test_gltf_alpha_modes(tmp_path, mode, cutoff, wanted):
    texture = np.full((1, 3, 4), 90, np.uint8)
    texture[0, :, 3] = [60, 200, 255]
    box = trimesh.creation.box()
    box.visual = trimesh.visual.TextureVisuals(
        uv=np.zeros((len(box.vertices), 2)),
        material=trimesh.visual.material.PBRMaterial(
            baseColorTexture=Image.fromarray(texture), alphaMode=mode, alphaCutoff=cutoff
        ),
    )
    box.export(tmp_path / "box.glb")
    assert load_mesh(tmp_path / "box.glb").materials[0].texture[0, :, 3].tolist() == wanted


def test_gltf_missing_texture_is_named(tmp_path, texture):
    box = trimesh.creation.box()
    box.visual = trimesh.visual.TextureVisuals(
        uv=np.zeros((len(box.vertices), 2)),
        material=trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(texture)),
    )
    files = box.export(file_type="gltf")
    header = json.loads(files["model.gltf"])
    header["images"] = [{"uri": "gone.png"}]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "model.gltf").write_text(json.dumps(header))
    with pytest.raises(ValueError, match="gone.png"):
        load_mesh(tmp_path / "model.gltf")


def test_glb_round_trip(tmp_path, texture):
    opaque = texture.copy()
    opaque[..., 3] = 255
    materials = [Material((1, 1, 1, 1), opaque), Material((1, 1, 1, 0.5), texture), Material((0.1, 0.03, 0.02, 1))]
    rng = np.random.default_rng(1)
    mesh = Mesh(
        rng.random((9, 3)),
        rng.integers(0, 9, (20, 3)),
        uv=rng.random((20, 3, 2)),
        material_ids=rng.integers(0, 3, 20),
        materials=materials,
    )
    save_glb(mesh, tmp_path / "mesh.glb")
    back = load_mesh(tmp_path / "mesh.glb")

    def soup(m):
        rows = [
            np.concatenate(
                [
                    m.vertices[f].ravel(),
                    (t if m.materials[i].texture.shape[0] > 1 else 0 * t).ravel(),
                    (m.materials[i].texture.reshape(-1, 4)[:1] / 255).ravel(),
                ]
            )
            for f, t, i in zip(m.faces, m.uv, m.material_ids, strict=True)
        ]
        return np.array(sorted(np.round(rows, 4).tolist()))

    def baked(material):
        texels = np.full((1, 1, 4), 255, np.uint8) if material.texture is None else material.texture
        return Material(texture=np.uint8(np.round(texels * material.color)))

    np.testing.assert_allclose(
        soup(back), soup(dataclasses.replace(mesh, materials=[baked(m) for m in materials])), atol=2e-4
    )
    assert struct.unpack("<4sII", (tmp_path / "mesh.glb").read_bytes()[:12])[:2] == (b"glTF", 2)
    truncated = tmp_path / "cut.glb"
    truncated.write_bytes((tmp_path / "mesh.glb").read_bytes()[:-200])
    with pytest.raises(ValueError, match="cut.glb"):
        load_mesh(truncated)


def test_glb_shrinks_textures_and_writes_corner_colours(tmp_path):
    big = np.full((300, 100, 4), 255, np.uint8)
    big[:150] = (200, 40, 10, 255)
    save_glb(
        Mesh(**TRIANGLE, materials=[Material((1, 1, 1, 1), big)]), tmp_path / "small.glb", max_texture=60, jpeg=True
    )
    small = load_mesh(tmp_path / "small.glb").materials[0].texture
    assert small.shape == (60, 20, 4) and np.abs(small[5, 5].astype(int) - [200, 40, 10, 255]).max() < 12
    colored = Mesh(
        **TRIANGLE, colors=[[[1, 0, 0, 1], [0.5, 0.5, 0.5, 1], [0, 0, 1, 0.5]]], materials=[Material((1, 1, 1, 1))]
    )
    save_glb(colored, tmp_path / "colored.glb")
    back = load_mesh(tmp_path / "colored.glb")
    wanted = {tuple(p): c for p, c in zip(colored.vertices.tolist(), colored.colors[0], strict=True)}
    for p, c in zip(back.vertices[back.faces[0]].tolist(), back.colors[0], strict=True):
        np.testing.assert_allclose(c, wanted[tuple(p)], atol=0.01)
    with pytest.raises(ValueError, match="corner colours"):
        save_glb(dataclasses.replace(colored, materials=[Material((1, 1, 1, 1), big)]), tmp_path / "no.glb")


# --- PLY, colours ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vertex", "face", None])
def test_ply_colours(tmp_path, kind):
    box = trimesh.creation.box()
    rng = np.random.default_rng(2)
    if kind == "vertex":
        box.visual.vertex_colors = rng.integers(0, 256, (8, 4), dtype=np.uint8)
    elif kind == "face":
        box.visual.face_colors = rng.integers(0, 256, (12, 4), dtype=np.uint8)
    box.export(tmp_path / "box.ply")
    mesh = load_mesh(tmp_path / "box.ply")
    if kind is None:
        assert mesh.colors is None and mesh.materials[0].color.tolist() == pytest.approx([0.8, 0.8, 0.8, 1])
        return
    color = (lambda f, c: box.visual.vertex_colors[c]) if kind == "vertex" else (lambda f, c: box.visual.face_colors[f])
    key = {tuple(np.round(v, 5)): i for i, v in enumerate(box.vertices)}
    for f in range(12):
        for c in range(3):
            np.testing.assert_allclose(
                mesh.colors[f, c] * 255, color(f, key[tuple(np.round(mesh.vertices[mesh.faces[f, c]], 5))]), atol=1e-3
            )


def test_srgb_curve():
    x = np.linspace(0, 1, 257)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(x)), x, atol=1e-6)
    np.testing.assert_allclose(srgb_to_linear([0, 0.04045, 0.5, 1]), [0, 0.0031308, 0.2140411, 1], atol=1e-6)

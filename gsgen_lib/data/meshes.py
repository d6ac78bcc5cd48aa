"""Textured triangle meshes: what they are here, reading, normalising (writing: `gsgen_lib.data.glb`).

A mesh is a list of triangles in space and, for every triangle, a material. At a point of the
surface with corner weights (b0, b1, b2) the colour is a product of three factors,

    rgba = material.color * texture(uv) * corner_colour,     uv = b0 uv0 + b1 uv1 + b2 uv2,

each of which may be absent (= white, opaque). The file formats say this in different words;
`load_mesh` translates .obj, .glb, .gltf and .ply (all parsed by trimesh) into one `Mesh`:

- all geometries of the scene are placed by their transforms and joined;
- colours are sRGB in [0, 1], as in image files. glTF keeps colour factors and vertex colours in
  linear light: they are converted to sRGB. Because sRGB is close to a power law, multiplying
  converted values equals converting the product to good accuracy.
- OBJ: `d` (or 1 - `Tr`) is the opacity of the material. `Kd` beside a texture is ignored: exporters write
  the material's former colour there although the texture already holds the full colour. Concave
  polygons are cut into triangles properly (`gsgen_lib.data.polygons`).
- glTF: alphaMode OPAQUE, MASK (cut at alphaCutoff) and BLEND are honoured.
- a texture that is missing or unreadable is an error (`on_missing="error"`) or a warning and a
  plain material (`"warn"`); a mesh without faces or with non-finite vertices is refused.

World convention: right-handed, y up, front towards +z, object inside [-0.5, 0.5]^3. `normalise`
moves and scales, it never rotates: files are expected y up, as OBJ and glTF are by custom.

Taught in notebook 00 (a real object) and used wherever images are made from meshes.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from gsgen_lib.data.bits import to_8_bits
from gsgen_lib.data.glb import linear_to_srgb, save_glb
from gsgen_lib.data.polygons import triangulate_polygons

__all__ = ["MESH_SUFFIXES", "Material", "Mesh", "load_mesh", "normalise", "rotate", "save_glb"]

MESH_SUFFIXES = (".obj", ".glb", ".gltf", ".ply")
DEFAULT_COLOR = (0.8, 0.8, 0.8, 1.0)  # of a mesh that names no colour at all
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tga", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Material:
    """What a surface looks like: a colour, optionally times a texture.

    `color` (4,) float32 sRGB + opacity in [0, 1]; `texture` (h, w, 4) uint8 RGBA or None, row 0 is
    the top of the image (v = 1), textures repeat outside [0, 1]. Raises ValueError naming the field.

    >>> Material(color=(1, 0, 0, 1)).color.tolist()
    [1.0, 0.0, 0.0, 1.0]
    """

    color: np.ndarray = field(default=DEFAULT_COLOR)
    texture: np.ndarray | None = None

    def __post_init__(self):
        color = np.asarray(self.color, dtype=np.float32)
        if color.shape != (4,) or not np.isfinite(color).all() or color.min() < 0 or color.max() > 1:
            raise ValueError(f"color: wanted 4 numbers (RGBA) in [0, 1], got {self.color!r}")
        object.__setattr__(self, "color", color)
        if self.texture is not None:
            t = np.asarray(self.texture)
            if t.ndim != 3 or t.shape[2] != 4 or t.dtype != np.uint8 or 0 in t.shape:
                raise ValueError(f"texture: wanted (h, w, 4) uint8, got {t.shape} {t.dtype}")
            object.__setattr__(self, "texture", t)


@dataclass(frozen=True)
class Mesh:
    """Triangles with materials, as numpy arrays.

    vertices (Nv, 3) float32; faces (F, 3) int32; uv (F, 3, 2) float32 per corner, v upwards (zeros
    where unused); material_ids (F,) int32; materials, a list; colors (F, 3, 4) float32 per corner
    in [0, 1], or None. uv, material_ids and materials may be left out. Raises ValueError naming
    the field that does not fit.

    >>> m = Mesh(vertices=[[0, 0, 0], [1, 0, 0], [0, 1, 0]], faces=[[0, 1, 2]])
    >>> m.uv.shape, m.material_ids.tolist(), len(m.materials)
    ((1, 3, 2), [0], 1)
    """

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray | None = None
    material_ids: np.ndarray | None = None
    materials: list[Material] = field(default_factory=lambda: [Material()])
    colors: np.ndarray | None = None

    def __post_init__(self):
        v = np.ascontiguousarray(self.vertices, dtype=np.float32)
        f = np.ascontiguousarray(self.faces, dtype=np.int32)
        if v.ndim != 2 or v.shape[1] != 3 or len(v) == 0:
            raise ValueError(f"vertices: wanted (Nv, 3) with Nv > 0, got {v.shape}")
        if not np.isfinite(v).all():
            raise ValueError(f"vertices: {int((~np.isfinite(v)).sum())} non-finite numbers")
        if f.ndim != 2 or f.shape[1] != 3 or len(f) == 0:
            raise ValueError(f"faces: wanted (F, 3) with F > 0, got {f.shape}")
        if f.min() < 0 or f.max() >= len(v):
            raise ValueError(f"faces: indices {f.min()}..{f.max()}, but there are {len(v)} vertices")
        n = len(f)
        uv = np.zeros((n, 3, 2)) if self.uv is None else self.uv
        uv = np.ascontiguousarray(uv, dtype=np.float32)
        if uv.shape != (n, 3, 2) or not np.isfinite(uv).all():
            raise ValueError(f"uv: wanted finite ({n}, 3, 2), got {uv.shape}")
        ids = np.zeros(n) if self.material_ids is None else self.material_ids
        ids = np.ascontiguousarray(ids, dtype=np.int32)
        if ids.shape != (n,):
            raise ValueError(f"material_ids: wanted ({n},), got {ids.shape}")
        if ids.min() < 0 or ids.max() >= len(self.materials):
            raise ValueError(f"material_ids: {ids.min()}..{ids.max()}, but there are {len(self.materials)} materials")
        values = dict(vertices=v, faces=f, uv=uv, material_ids=ids, materials=list(self.materials))
        if self.colors is not None:
            c = np.ascontiguousarray(self.colors, dtype=np.float32)
            if c.shape != (n, 3, 4) or not (c.min() >= 0 and c.max() <= 1):
                raise ValueError(f"colors: wanted ({n}, 3, 4) in [0, 1], got {c.shape}")
            values["colors"] = c
        for name, value in values.items():
            object.__setattr__(self, name, value)


def normalise(mesh: Mesh) -> Mesh:
    """Centre the bounding box at the origin and scale to the world's unit size.

    The scale is the largest for which max |coordinate| <= 0.5 and max vertex norm <= 0.6 (so that
    the object also fits the view of the standard camera seen along its diagonal). Only vertices
    that a face uses count. Raises ValueError for a mesh of zero extent.

    >>> m = normalise(Mesh([[0, 0, 0], [2, 0, 0], [0, 4, 0]], [[0, 1, 2]]))
    >>> m.vertices.tolist()
    [[-0.25, -0.5, 0.0], [0.25, -0.5, 0.0], [-0.25, 0.5, 0.0]]
    """
    used = mesh.vertices[np.unique(mesh.faces)].astype(np.float64)
    lo, hi = used.min(0), used.max(0)
    centre = (lo + hi) / 2
    extent = np.abs(used - centre).max()
    if not extent > 0:
        raise ValueError("mesh: all vertices coincide, there is nothing to scale")
    scale = min(0.5 / extent, 0.6 / np.linalg.norm(used - centre, axis=1).max())
    return replace(mesh, vertices=(mesh.vertices.astype(np.float64) - centre) * scale)


def rotate(mesh: Mesh, matrix) -> Mesh:
    """Turn a mesh about the origin by a 3x3 matrix R: x -> R x. Raises ValueError if R is no rotation.

    >>> quarter_turn = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]   # about y: +z goes to +x
    >>> rotate(Mesh([[0, 0, 1], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]]), quarter_turn).vertices[0].tolist()
    [1.0, 0.0, 0.0]
    """
    r = np.asarray(matrix, dtype=np.float64)
    if r.shape != (3, 3) or np.abs(r @ r.T - np.eye(3)).max() > 1e-3 or np.linalg.det(r) < 0:
        raise ValueError(f"matrix: wanted a 3x3 rotation, got {r.tolist()}")
    return replace(mesh, vertices=mesh.vertices.astype(np.float64) @ r.T)


# --- reading ---------------------------------------------------------------------------------


def load_mesh(path: str | Path, on_missing: str = "error") -> Mesh:
    """Read one .obj, .glb, .gltf or .ply file with materials, textures, transforms, transparency.

    Returned as the file has it: call `normalise` for the world's unit size. `on_missing` says what
    a missing or unreadable texture or .mtl does: "error" (default) or "warn". Raises
    FileNotFoundError, or ValueError naming the file and what is wrong with it.

    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "triangle.obj"
    >>> _ = file.write_text("v 0 0 0\\nv 1 0 0\\nv 0 1 0\\nf 1 2 3\\n")
    >>> load_mesh(file).faces.tolist()
    [[0, 1, 2]]
    """
    import trimesh

    path = Path(path)
    if on_missing not in ("error", "warn"):
        raise ValueError(f"on_missing: wanted 'error' or 'warn', got {on_missing!r}")
    if path.suffix.lower() not in MESH_SUFFIXES:
        raise ValueError(f"{path}: wanted one of {', '.join(MESH_SUFFIXES)}, got {path.suffix!r}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    resolver = _make_resolver(path)
    try:
        source, file_type = path, None
        if path.suffix.lower() == ".obj":
            text = triangulate_polygons(path.read_bytes().decode("utf-8", errors="replace"))
            source, file_type = io.BytesIO(text.encode()), "obj"
        scene = trimesh.load_scene(source, file_type=file_type, resolver=resolver, process=False)
        parts = [_read_part(scene.geometry[name], transform, path.suffix.lower())
                 for transform, name in (scene.graph[node] for node in sorted(scene.graph.nodes_geometry))
                 if isinstance(scene.geometry[name], trimesh.Trimesh) and len(scene.geometry[name].faces)]
    except Exception as error:  # parsers raise whatever they stumble over
        raise ValueError(f"{path}: cannot be read as a mesh ({type(error).__name__}: {error})") from error
    if resolver.failed:
        message = f"{path}: missing or unreadable: {', '.join(sorted(resolver.failed))}"
        if on_missing == "error":
            raise ValueError(message)
        warnings.warn(message, stacklevel=2)
    if not parts:
        raise ValueError(f"{path}: holds no triangles (a point cloud, a scene of splats or an empty file?)")
    try:
        return _join(parts)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _make_resolver(path: Path):
    """How trimesh asks for files named inside a mesh file. trimesh itself stays silent about what it
    misses, so remember it in `failed`; forgive back-slashes and wrong case (files from Windows)."""
    from PIL import Image
    from trimesh.resolvers import FilePathResolver

    class Resolver(FilePathResolver):
        failed: set = set()

        def get(self, name):
            wanted = str(name).strip().replace("\\", "/")
            try:
                here = Path(self.parent)
                if not (here / wanted).is_file():  # wrong case, or a path of the author's computer
                    folder = (here / wanted).parent if (here / wanted).parent.is_dir() else here
                    match = [f for f in folder.iterdir() if f.name.lower() == Path(wanted).name.lower() and f.is_file()]
                    wanted = match[0].relative_to(here).as_posix()
                data = super().get(wanted)
                if wanted.lower().endswith(_IMAGE_SUFFIXES):
                    Image.open(io.BytesIO(data)).load()
                return data
            except Exception:
                self.failed.add(wanted)
                raise

    resolver = Resolver(str(path))
    resolver.failed = set()
    return resolver


def _read_part(geometry, transform, suffix) -> dict:
    """One trimesh geometry -> arrays with its own material (trimesh keeps one material per geometry)."""
    visual, faces = geometry.visual, np.asarray(geometry.faces)
    vertices = np.asarray(geometry.vertices, dtype=np.float64) @ transform[:3, :3].T + transform[:3, 3]
    if np.linalg.det(transform[:3, :3]) < 0:  # a mirrored copy: keep triangles counter-clockwise outside
        faces = faces[:, ::-1]
    part = dict(vertices=vertices, faces=faces, uv=None, colors=None, material=Material())
    if visual.kind == "texture":
        part["material"] = _read_material(visual.material)
        if visual.uv is not None and len(visual.uv) == len(vertices):
            part["uv"] = np.nan_to_num(np.asarray(visual.uv, dtype=np.float32), posinf=0.0, neginf=0.0)[faces]
        vertex_colors = visual.vertex_attributes.get("color") if hasattr(visual, "vertex_attributes") else None
    elif visual.kind == "face":
        part["colors"] = np.repeat(visual.face_colors[:, None] / 255.0, 3, axis=1)
        vertex_colors = None
    else:
        vertex_colors = visual.vertex_colors if visual.kind == "vertex" else None
    if vertex_colors is not None:
        c = np.asarray(vertex_colors)
        c = c / 255.0 if c.dtype == np.uint8 else c.astype(np.float64)
        c = np.concatenate([c[:, :3], c[:, 3:4] if c.shape[1] > 3 else np.ones((len(c), 1))], axis=1)
        if suffix in (".glb", ".gltf"):
            c[:, :3] = linear_to_srgb(c[:, :3])
        part["colors"] = np.clip(c, 0, 1)[faces]
    if part["colors"] is not None and visual.kind != "texture":
        part["material"] = Material(color=(1, 1, 1, 1))
    return part


def _read_material(material) -> Material:
    """trimesh SimpleMaterial (OBJ, PLY) or PBRMaterial (glTF) -> Material."""
    if hasattr(material, "baseColorFactor"):
        factor, image = material.baseColorFactor, material.baseColorTexture
        color = np.ones(4) if factor is None else np.asarray(factor, dtype=np.float64) / 255.0
        color[:3] = linear_to_srgb(color[:3])
        mode, cutoff = material.alphaMode or "OPAQUE", material.alphaCutoff
    else:
        image, mode = material.image, "BLEND"
        color = np.asarray(material.diffuse, dtype=np.float64) / 255.0
        if image is not None:
            color[:3] = 1.0
        opacity = material.kwargs.get("d", [None])[-1]
        if opacity is None and "tr" in material.kwargs:
            opacity = 1.0 - float(material.kwargs["tr"][-1])
        color[3] = np.clip(1.0 if opacity is None else float(opacity), 0.0, 1.0)
    texture = None if image is None else np.array(to_8_bits(image).convert("RGBA"))
    if mode == "OPAQUE":
        color[3] = 1.0
        if texture is not None:
            texture[..., 3] = 255
    elif mode == "MASK" and texture is not None:
        texture[..., 3] = np.where(texture[..., 3] / 255.0 >= (0.5 if cutoff is None else cutoff), 255, 0)
    return Material(color=color, texture=texture)


def _join(parts: list[dict]) -> Mesh:
    """Several parts -> one Mesh."""
    starts = np.cumsum([0] + [len(p["vertices"]) for p in parts])[:-1]
    counts = [len(p["faces"]) for p in parts]
    colors = None
    if any(p["colors"] is not None for p in parts):
        colors = np.concatenate([np.ones((n, 3, 4)) if p["colors"] is None else p["colors"]
                                 for p, n in zip(parts, counts, strict=True)])
    return Mesh(
        vertices=np.concatenate([p["vertices"] for p in parts]),
        faces=np.concatenate([p["faces"] + s for p, s in zip(parts, starts, strict=True)]),
        uv=np.concatenate([np.zeros((n, 3, 2)) if p["uv"] is None else p["uv"]
                           for p, n in zip(parts, counts, strict=True)]),
        material_ids=np.repeat(np.arange(len(parts)), counts),
        materials=[p["material"] for p in parts],
        colors=colors,
    )

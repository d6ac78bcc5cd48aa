"""Images, depth and normals of a mesh by casting rays: how the training pictures are made.

For every pixel a ray x(t) = o + t d leaves the camera. Embree (through `embreex`) finds the first
triangle it meets and the corner weights there; colour and opacity come from the mesh's materials.
Where the surface is see-through (opacity a_i < 1) the ray goes on to the next surface, front to back:

    rgb = sum_i  s(n_i) c_i a_i T_i,      T_1 = 1,   T_{i+1} = T_i (1 - a_i),      alpha = 1 - prod_i (1 - a_i)

which is the same "over" compositing that splats use, and `layers` surfaces are followed.

where s(n) is a fixed light that depends on the surface alone (`gsgen_lib.data.surface`, which also reads the
textures). A ray is as wide as its pixel: at distance t it covers a length of about t / f, f the focal length in
pixels, and 1 / sqrt|cos| more where the surface is slanted (the same area); textures are averaged over this footprint. Edges are
smoothed by `supersample`^2 rays per pixel.

Used by notebooks 00 and 01 and by every data set. Sources: Moller & Trumbore 1997 (ray meets
triangle), Porter & Duff 1984 (over), Wald et al. 2014 (Embree).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gsgen_lib.data.meshes import Mesh
from gsgen_lib.data.surface import LIGHT, colors_at, prepare_surface, surface_colors
from gsgen_lib.raster.numba_setup import jit

__all__ = ["LIGHT", "MeshRender", "first_hits", "render_mesh", "sample_surface", "visible_points"]
STEP = 1e-4  # how far behind a see-through surface the ray goes on, in world units
GRAZING = 0.02  # |cos| below which a surface is seen edge-on, that is, not at all
OPAQUE = 1 - 1 / 512  # a ray that has met this much opacity stops


@dataclass(frozen=True)
class MeshRender:
    """rgba (V, H, W, 4) float32, straight alpha, sRGB in [0, 1], 0 where nothing is; depth (V, H, W)
    float32, camera z; normals (V, H, W, 3) float32, unit, world space, towards the camera.

    Depth and normals belong to the ray through the pixel's centre and to the surface at which its
    accumulated opacity reaches one half; both are 0 where it never does.
    """

    rgba: np.ndarray
    depth: np.ndarray
    normals: np.ndarray


def render_mesh(mesh: Mesh, cameras, supersample: int = 2, layers: int = 16) -> MeshRender:
    """Images of a mesh from V cameras (`gsgen_lib.scene.cameras.Cameras` without batch dimensions).

    supersample: rays per pixel and side, >= 1; layers: see-through surfaces followed at most, >= 1.
    About 5 ms per 64x64 view with supersample=2. Raises ValueError naming the argument.

    >>> from gsgen_lib.scene.cameras import Cameras
    >>> triangle = Mesh([[-1, -1, 0], [1, -1, 0], [0, 1, 0]], [[0, 1, 2]])
    >>> out = render_mesh(triangle, Cameras.orbit(2, elevation=0.0, width=5, height=5))
    >>> out.rgba.shape, [round(float(z), 3) for z in out.depth[:, 2, 2]]
    ((2, 5, 5, 4), [1.8, 1.8])
    """
    if supersample < 1 or layers < 1:
        raise ValueError(f"supersample and layers: wanted >= 1, got {supersample} and {layers}")
    if cameras.viewmats.ndim != 3:
        raise ValueError(f"cameras: wanted viewmats (V, 4, 4), got {tuple(cameras.viewmats.shape)}")
    embree, surface, s = _build_embree(mesh.vertices, mesh.faces), prepare_surface(mesh), supersample
    cameras = replace(cameras, viewmats=cameras.viewmats.detach().cpu().float(), Ks=cameras.Ks.detach().cpu().float())
    v, h, w = len(cameras), cameras.height, cameras.width
    rgba, depth, normals = (np.zeros((v, h, w, c), np.float32) for c in (4, 1, 3))
    sides = zip(mesh.vertices.min(axis=0), mesh.vertices.max(axis=0), strict=True)  # of the bounding box
    corners = np.stack(np.meshgrid(*sides), axis=-1).reshape(8, 3)
    for i in range(v):
        x0, x1, y0, y1 = _pixel_box(corners, cameras, i)  # the rest of the picture stays empty
        if x0 >= x1 or y0 >= y1:
            continue
        window = (i, slice(y0, y1), slice(x0, x1))
        part = _crop(cameras[i], x0, x1, y0, y1)
        fine = part.resize(s * part.width, s * part.height)
        color = _trace(embree, surface, *_numpy_rays(fine), 1.0 / float(fine.Ks[0, 1, 1]), layers)[0]
        color = color.reshape(part.height, s, part.width, s, 4)  # (h s w s, 4) -> (h, s, w, s, 4)
        color = color.sum(axis=1).sum(axis=2) / (s * s)  # -> (h, w, 4), premultiplied
        rgba[window][..., :3] = color[..., :3] / np.maximum(color[..., 3:], 1e-8)
        rgba[window][..., 3] = color[..., 3]
        o, d = _numpy_rays(part)
        _, distance, normal = _trace(embree, surface, o, d, 1.0 / float(part.Ks[0, 1, 1]), layers)
        depth[window] = (distance * (d @ part.viewmats[0, 2, :3].numpy())).reshape(part.height, part.width, 1)
        normals[window] = normal.reshape(part.height, part.width, 3)
    return MeshRender(np.clip(rgba, 0, 1), depth[..., 0], normals)


def sample_surface(mesh: Mesh, n: int, generator: np.random.Generator, shaded: bool = True):
    """n random points of the surface: points (n, 3), normals (n, 3), colors (n, 3), all float32.

    Uniform by area, thinned by opacity (a pane of opacity 0.2 gets a fifth of the points). Normals
    follow the winding of the triangles. Colours are sRGB in [0, 1] as `render_mesh` shows them, or
    without its light if shaded=False. Raises ValueError if there is no visible area to sample.

    >>> square = Mesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]])
    >>> points, normals, colors = sample_surface(square, 100, np.random.default_rng(0))
    >>> points.shape, normals[0].tolist(), bool((points[:, 2] == 0).all())
    ((100, 3), [0.0, 0.0, 1.0], True)
    """
    if n < 1:
        raise ValueError(f"n: wanted >= 1, got {n}")
    surface = prepare_surface(mesh)
    total = surface.areas.sum()
    if not total > 0:
        raise ValueError("mesh: its surface has no area")
    found, tries = [], 0
    while sum(len(f[0]) for f in found) < n:
        tries += 1
        if tries > 200:
            raise ValueError("mesh: nearly invisible, no opaque surface to sample")
        face = generator.choice(len(mesh.faces), size=max(n, 256), p=surface.areas / total)
        r1, r2 = np.sqrt(generator.random(len(face))), generator.random(len(face))
        b = np.stack([1 - r1, r1 * (1 - r2), r1 * r2], axis=1)  # uniform over a triangle
        rgba = surface_colors(surface, face, b, np.zeros(len(face)), shaded)
        keep = generator.random(len(face)) < rgba[:, 3]
        points = np.einsum("nc,ncx->nx", b[keep], mesh.vertices[mesh.faces[face[keep]]])
        found.append((points.astype(np.float32), surface.normals[face[keep]], rgba[keep, :3]))
    return tuple(np.concatenate(parts)[:n] for parts in zip(*found, strict=True))


def visible_points(mesh: Mesh, points: np.ndarray, normals: np.ndarray, eyes: np.ndarray) -> np.ndarray:
    """Which points (n, 3) on the surface each eye (E, 3) sees: (E, n) bool.

    A point is hidden if an opaque triangle lies between it and the eye (see-through materials and alpha
    textures hide nothing) or if its surface is seen edge-on. Points are lifted off their surface towards
    the eye along `normals`.

    >>> square = Mesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
    >>> eyes = np.array([[0.2, 0.2, 1.0], [0.2, 0.2, -1.0]])
    >>> behind = np.array([[0.2, 0.2, -0.5]])
    >>> visible_points(square, behind, np.array([[0, 0, 1.0]]), eyes).ravel().tolist()
    [False, True]
    """
    solid = np.array([m.color[3] > 0.95 and (m.texture is None or m.texture[..., 3].min() > 242)
                      for m in mesh.materials])[mesh.material_ids]
    eyes = np.asarray(eyes, dtype=np.float32)
    embree = _build_embree(mesh.vertices, mesh.faces[solid])
    seen = np.zeros((len(eyes), len(points)), dtype=bool)
    for i, eye in enumerate(eyes):
        to_eye = eye - points
        cosine = np.einsum("nx,nx->n", to_eye, normals) / np.linalg.norm(to_eye, axis=1)
        start = (points + 10 * STEP * np.where(cosine < 0, -1, 1)[:, None] * normals).astype(np.float32)
        way = (eye - start).astype(np.float32)
        far = np.linalg.norm(way, axis=1).astype(np.float32)
        hit = embree.run(start, np.ascontiguousarray(way / far[:, None]), far, query="OCCLUDED")
        seen[i] = (np.asarray(hit) < 0) & (np.abs(cosine) > GRAZING)
    return seen


# --- rays ------------------------------------------------------------------------------------


def first_hits(mesh: Mesh, cameras) -> tuple[np.ndarray, np.ndarray]:
    """Which triangle each pixel's ray meets first, and where: face (V, H W) int64, -1 for none, and barycentric
    coordinates of its corners (V, H W, 3) float32, 0 where there is none.

    >>> from gsgen_lib.scene.cameras import Cameras
    >>> square = Mesh([[-1, -1, 0], [1, -1, 0], [0, 1, 0]], [[0, 1, 2]])
    >>> face, b = first_hits(square, Cameras.orbit(1, elevation=0.0, width=3, height=3))
    >>> face[0, 4], round(float(b[0, 4].sum()), 5)
    (np.int64(0), 1.0)
    """
    embree = _build_embree(mesh.vertices, mesh.faces)
    faces, coordinates = [], []
    for i in range(len(cameras)):
        o, d = _numpy_rays(cameras[i:i + 1])
        hit = embree.run(o, d, output=True)
        face = hit["primID"].astype(np.int64)
        face[face >= len(mesh.faces)] = -1
        b = np.stack([1 - hit["u"] - hit["v"], hit["u"], hit["v"]], 1)
        b[face < 0] = 0
        faces.append(face)
        coordinates.append(b.astype(np.float32))
    return np.stack(faces), np.stack(coordinates)


def _numpy_rays(camera):
    """Origins and directions (H W, 3) float32 of one camera."""
    o, d = camera.rays()
    return tuple(np.ascontiguousarray(x.reshape(-1, 3).numpy(), dtype=np.float32) for x in (o, d))


def _pixel_box(corners, cameras, i):
    """Columns x0:x1 and rows y0:y1 of view i that a box with these corners (8, 3) can cover."""
    x = corners @ cameras.viewmats[i, :3, :3].numpy().T + cameras.viewmats[i, :3, 3].numpy()
    if x[:, 2].min() < 1e-3:  # the camera is beside or within the box
        return 0, cameras.width, 0, cameras.height
    u = x @ cameras.Ks[i].numpy().T
    u = u[:, :2] / u[:, 2:]
    (x0, y0), (x1, y1) = np.floor(u.min(axis=0)).astype(int), np.ceil(u.max(axis=0)).astype(int)
    return max(x0, 0), min(x1, cameras.width), max(y0, 0), min(y1, cameras.height)


def _crop(camera, x0, x1, y0, y1):
    """The camera that sees only that window of the picture."""
    Ks = camera.Ks.clone()
    Ks[:, 0, 2] -= x0
    Ks[:, 1, 2] -= y0
    return replace(camera, Ks=Ks, width=int(x1 - x0), height=int(y1 - y0))


def _build_embree(vertices, faces):
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    embree = EmbreeScene(robust=True)  # robust: no leaks between neighbouring triangles
    TriangleMesh(embree, np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.int32))
    return embree


def _trace(embree, surface, o, d, pixel_angle, layers):
    """Follow N rays: premultiplied rgba (N, 4), distance (N,) and normal (N, 3) at half opacity."""
    n = len(o)
    rgba, distance, normal = np.zeros((n, 4), np.float32), np.zeros(n, np.float32), np.zeros((n, 3), np.float32)
    alive, start, way, travelled = np.arange(n), o, d, np.zeros(n, np.float32)
    for _ in range(layers):
        hit = embree.run(start, way, output=True)
        face, t = hit["primID"], travelled + hit["tfar"]
        cosine, footprint = _slant(surface.normals, face, way, t, np.float32(pixel_angle))
        color = colors_at(surface, face, hit["u"], hit["v"], footprint, True)
        alive, travelled = _blend(surface.normals, alive, face, t, cosine, color, rgba, distance, normal)
        if not len(alive):
            break
        start, way = o[alive] + travelled[:, None] * d[alive], d[alive]
    return rgba, distance, normal


@jit()
def _slant(normals, face, way, t, pixel_angle):
    """Cosine between normal and ray, and the width of the ray where it hits: a round footprint of the same
    area as the true one, which is stretched by 1 / |cos|."""
    cosine, footprint = np.zeros_like(t), np.zeros_like(t)
    for i in range(len(face)):
        if face[i] >= 0:
            n = face[i]
            cosine[i] = normals[n, 0] * way[i, 0] + normals[n, 1] * way[i, 1] + normals[n, 2] * way[i, 2]
            footprint[i] = t[i] * pixel_angle / np.sqrt(max(abs(cosine[i]), 0.05))
    return cosine, footprint


@jit()
def _blend(normals, alive, face, t, cosine, color, rgba, distance, normal):
    """Add one layer to rgba, distance and normal. alive: the rays that were sent; returns those to be sent on,
    and how far along they are."""
    on, far, count = np.empty_like(alive), np.empty_like(t), 0
    for i in range(len(alive)):
        if face[i] < 0:
            continue
        ray = alive[i]
        before = rgba[ray, 3]
        weight = color[i, 3] * (1 - before)  # a_i T_i
        after = before + weight
        for c in range(3):
            rgba[ray, c] += weight * color[i, c]
        rgba[ray, 3] = after
        if before < 0.5 and after >= 0.5:
            distance[ray] = t[i]
            for c in range(3):
                normal[ray, c] = -normals[face[i], c] if cosine[i] > 0 else normals[face[i], c]
        if after < OPAQUE:
            on[count], far[count] = ray, t[i] + STEP
            count += 1
    return on[:count], far[:count]

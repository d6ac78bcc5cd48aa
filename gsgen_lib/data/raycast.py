"""Images, depth and normals of a mesh by casting rays: how the training pictures are made.

For every pixel a ray x(t) = o + t d leaves the camera. Embree (through `embreex`) finds the first
triangle it meets and the corner weights there; colour and opacity come from the mesh's materials.
Where the surface is see-through (opacity a_i < 1) the ray goes on to the next surface, front to back:

    rgb = sum_i  s(n_i) c_i a_i T_i,      T_1 = 1,   T_{i+1} = T_i (1 - a_i),      alpha = 1 - prod_i (1 - a_i)

which is the same "over" compositing that splats use. At most `layers` surfaces are followed.

Light. s(n) = 0.60 n_x^2 + 0.95 n_y^2 + 0.78 n_z^2 multiplies the sRGB colour: faces turned up or down
are brightest, front and back a bit darker, the sides darkest. It depends on the surface alone, not on
the camera, and n and -n are lit alike (two-sided). So one point has one colour in all views, which
Gaussians with plain RGB colours can represent exactly; highlights and shadows are left out on purpose.

Textures. A 64-pixel view of a 1024-texel texture skips most texels, and which ones it hits changes
from view to view (sparkle). Each texture is therefore kept at all sizes h, h/2, h/4, ... (mipmaps); a
hit reads, bilinearly, the size whose texels come nearest to the ray's footprint.
Edges are smoothed by `supersample`^2 rays per pixel.

Used by notebooks 00 and 01 and by every data set. Sources: Moller & Trumbore 1997 (ray meets triangle),
Porter & Duff 1984 (over), Williams 1983 (mipmaps), Wald et al. 2014 (Embree).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gsgen_lib.data.meshes import Mesh

LIGHT = np.array([0.60, 0.95, 0.78], dtype=np.float32)  # brightness of faces along x, y, z
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
    scene, s = _Scene(mesh), supersample
    cameras = replace(cameras, viewmats=cameras.viewmats.detach().cpu().float(), Ks=cameras.Ks.detach().cpu().float())
    v, h, w = len(cameras), cameras.height, cameras.width
    rgba, depth, normals = (np.zeros((v, h, w, c), np.float32) for c in (4, 1, 3))
    sides = zip(mesh.vertices.min(axis=0), mesh.vertices.max(axis=0))  # of the bounding box
    corners = np.stack(np.meshgrid(*sides), axis=-1).reshape(8, 3)
    for i in range(v):
        x0, x1, y0, y1 = _pixel_box(corners, cameras, i)  # the rest of the picture stays empty
        if x0 >= x1 or y0 >= y1:
            continue
        window = (i, slice(y0, y1), slice(x0, x1))
        part = _crop(cameras[i], x0, x1, y0, y1)
        fine = part.resize(s * part.width, s * part.height)
        color = _trace(scene, *_numpy_rays(fine), 1.0 / float(fine.Ks[0, 1, 1]), layers)[0]
        color = color.reshape(part.height, s, part.width, s, 4)  # (h s w s, 4) -> (h, s, w, s, 4)
        color = color.sum(axis=1).sum(axis=2) / (s * s)  # -> (h, w, 4), premultiplied
        rgba[window][..., :3] = color[..., :3] / np.maximum(color[..., 3:], 1e-8)
        rgba[window][..., 3] = color[..., 3]
        o, d = _numpy_rays(part)
        _, distance, normal = _trace(scene, o, d, 1.0 / float(part.Ks[0, 1, 1]), layers, geometry=True)
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
    surface = _Surface(mesh)
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
        rgba = surface.color(face, b.astype(np.float32), footprint=np.zeros(len(face), np.float32), shaded=shaded)
        keep = generator.random(len(face)) < rgba[:, 3]
        points = np.einsum("nc,ncx->nx", b[keep], mesh.vertices[mesh.faces[face[keep]]])
        found.append((points.astype(np.float32), surface.normals[face[keep]], rgba[keep, :3]))
    return tuple(np.concatenate(parts)[:n] for parts in zip(*found))


def visible_points(mesh: Mesh, points: np.ndarray, normals: np.ndarray, eyes: np.ndarray) -> np.ndarray:
    """Which points (n, 3) on the surface each eye (E, 3) sees: (E, n) bool.

    A point is hidden if an opaque triangle lies between it and the eye (see-through materials and alpha
    textures hide nothing) or if its surface is seen edge-on. Points are lifted off their surface towards the eye along `normals`.

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


class _Scene:
    """A mesh prepared for casting: Embree's tree and the surface colours."""

    def __init__(self, mesh):
        self.embree = _build_embree(mesh.vertices, mesh.faces)
        self.surface = _Surface(mesh)


def _trace(scene, o, d, pixel_angle, layers, geometry=False):
    """Follow N rays. geometry=False: premultiplied rgba (N, 4) and two zeros; geometry=True: also the
    distance (N,) and normal (N, 3) at half opacity, and rgba may be plain white (colours are skipped)."""
    n = len(o)
    rgba, distance, normal = np.zeros((n, 4), np.float32), np.zeros(n, np.float32), np.zeros((n, 3), np.float32)
    alive, travelled = np.arange(n), np.zeros(n, np.float32)  # rays still under way, and how far they are
    for _ in range(layers):
        start = o[alive] + travelled[:, None] * d[alive]
        hit = scene.embree.run(start, d[alive], output=True)
        met = np.flatnonzero(hit["primID"] >= 0)
        if not len(met):
            break
        alive, face, b1, b2 = alive[met], hit["primID"][met], hit["u"][met], hit["v"][met]
        t = travelled[met] + hit["tfar"][met]
        face_normal = scene.surface.normals[face]
        cosine = np.einsum("nx,nx->n", face_normal, d[alive])
        if geometry and scene.surface.opaque:
            color = np.ones((len(face), 4), np.float32)
        else:  # a round footprint of the same area as the true one, which is stretched by 1 / |cos|
            footprint = t * np.float32(pixel_angle) / np.sqrt(np.maximum(np.abs(cosine), 0.05))
            color = scene.surface.color(face, np.stack([1 - b1 - b2, b1, b2], axis=1), footprint)
        before = rgba[alive, 3]
        weight = color[:, 3] * (1 - before)  # a_i T_i
        after = before + weight
        color[:, :3] *= weight[:, None]
        color[:, 3] = weight
        rgba[alive] += color
        if geometry:
            half = (before < 0.5) & (after >= 0.5)
            distance[alive[half]] = t[half]
            normal[alive[half]] = np.where(cosine[half, None] > 0, -1, 1) * face_normal[half]
        go_on = after < OPAQUE
        alive, travelled = alive[go_on], t[go_on] + STEP
    return rgba, distance, normal


# --- colour of a surface point ---------------------------------------------------------------


class _Surface:
    """Normals, areas and colours of a mesh's faces. All textures with all their mipmaps lie in one
    list of texels; tables say where (material, level) begins and how large it is."""

    def __init__(self, mesh):
        corners = mesh.vertices[mesh.faces].astype(np.float64)  # (F, 3, 3)
        cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        double_area = np.linalg.norm(cross, axis=1)
        self.normals = (cross / np.maximum(double_area, 1e-20)[:, None]).astype(np.float32)
        self.areas = double_area / 2
        self.light = self.normals**2 @ LIGHT
        self.opaque = all(m.color[3] == 1 and (m.texture is None or m.texture[..., 3].min() == 255)
                          for m in mesh.materials) and (mesh.colors is None or mesh.colors[..., 3].min() == 1)
        self.uv, self.corner_colors, self.material_ids = mesh.uv, mesh.colors, mesh.material_ids
        self.material_colors = np.stack([m.color for m in mesh.materials])
        # texture coordinates passed per unit of length on the face
        e1, e2 = mesh.uv[:, 1] - mesh.uv[:, 0], mesh.uv[:, 2] - mesh.uv[:, 0]
        uv_double_area = np.abs(e1[:, 0] * e2[:, 1] - e1[:, 1] * e2[:, 0])
        self.uv_density = np.sqrt(uv_double_area / np.maximum(double_area, 1e-20)).astype(np.float32)
        self._build_mipmaps([m.texture for m in mesh.materials])

    def _build_mipmaps(self, textures):
        chains = [[] if t is None else _mipmaps(t) for t in textures]
        n_levels = max([len(c) for c in chains] + [1])
        self.start, self.height, self.width = (np.ones((len(chains), n_levels), np.int32) for _ in range(3))
        self.last_level = np.array([max(len(c) - 1, 0) for c in chains], np.int32)
        self.textured = np.array([len(c) > 0 for c in chains])
        texels, position = [], 0
        for m, chain in enumerate(chains):
            for level, image in enumerate(chain):
                self.start[m, level], (self.height[m, level], self.width[m, level]) = position, image.shape[:2]
                texels.append(image.reshape(-1, 4))
                position += len(texels[-1])
        self.texels = np.concatenate(texels).view(np.uint32)[:, 0] if texels else None  # RGBA in one integer

    def color(self, face, b, footprint, shaded=True):
        """Straight RGBA (N, 4) at corner weights b (N, 3) of faces (N,), averaged over `footprint` (N,)."""
        material = self.material_ids[face]
        rgba = self.material_colors[material].copy()
        if self.corner_colors is not None:
            rgba *= np.einsum("nc,ncx->nx", b, self.corner_colors[face])
        if self.texels is not None:
            t = np.flatnonzero(self.textured[material])
            uv = np.einsum("nc,ncx->nx", b[t], self.uv[face[t]])
            m = material[t]
            texels_per_uv = np.sqrt(self.height[m, 0] * self.width[m, 0])
            covered = footprint[t] * self.uv_density[face[t]] * texels_per_uv
            level = np.round(np.log2(np.maximum(covered, 1e-6))).astype(np.int32)
            texel = self._bilinear(m, np.clip(level, 0, self.last_level[m]), uv)
            texel[:, :3] /= np.maximum(texel[:, 3:], 1e-6)  # premultiplied -> straight
            rgba[t] *= texel
        if shaded:
            rgba[:, :3] *= self.light[face, None]
        return rgba

    def _bilinear(self, m, level, uv):
        """Premultiplied RGBA (N, 4) in [0, 1] of texture m (N,) at `level` (N,); repeats outside [0, 1]."""
        h, w, start = self.height[m, level], self.width[m, level], self.start[m, level]
        uv = uv - np.floor(uv)
        x, y = uv[:, 0] * w - np.float32(0.5), (1 - uv[:, 1]) * h - np.float32(0.5)
        x0, y0 = np.floor(x), np.floor(y)
        fx, fy = (x - x0)[:, None], (y - y0)[:, None]
        x0, y0 = x0.astype(np.int32) % w, y0.astype(np.int32) % h
        x1, y1 = (x0 + 1) % w, (y0 + 1) % h
        row0, row1 = start + y0 * w, start + y1 * w

        def texel(index):  # the 4 bytes of a texel are fetched as one integer, which is faster
            return self.texels[index].view(np.uint8).reshape(-1, 4).astype(np.float32)

        top = texel(row0 + x0) * (1 - fx) + texel(row0 + x1) * fx
        bottom = texel(row1 + x0) * (1 - fx) + texel(row1 + x1) * fx
        return (top * (1 - fy) + bottom * fy) / np.float32(255)


def _mipmaps(texture):
    """(h, w, 4) uint8 straight -> list of premultiplied uint8 images, each half the size, down to 1 x 1."""
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

"""From Gaussians to a textured triangle mesh, and back to pictures that are differentiable in the texture.

Problem. Editors, games and printers want triangles. Gaussians with opacities o_i, means mu_i and covariances Sigma_i
define a density, and its level set is a surface:

    d(p) = sum_i o_i exp( -1/2 (p - mu_i)^T Sigma_i^-1 (p - mu_i) )              surface: d(p) = `level`

evaluated on a grid in blocks, each with only the Gaussians that reach it (`density_field`). Marching cubes gives
triangles; specks are dropped and the rest simplified (`extract_mesh`); xatlas cuts the surface into charts that lie flat
in a texture (`unwrap`); each texel then takes its colour from the views that see it well, weighted by the squared
cosine between surface and ray (`bake_texture`).

A ray meets the fixed mesh at fixed texture coordinates, so a picture is an affine function of the texture:

    C(pixel) = mean over rays of bilinear(texture, uv(ray)), or background;     alpha = share of rays that hit

`texture_rays` finds uv once for each camera, `render_texture` reads the texture there: no gradient reaches the
geometry. Taught in notebook 04. Source: DreamGaussian (2309.16653), sections 3.2, 3.3 and its released code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gsgen_lib.data.meshes import Mesh
from gsgen_lib.data.raycast import visible_points
from gsgen_lib.metrics import check_images
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians, quat_to_rotmat

__all__ = ["EmptyField", "TextureRays", "bake_texture", "bake_weights", "density_field", "extract_mesh",
           "render_texture", "texture_rays", "unwrap"]

HALF = 0.55  # the grid covers [-HALF, HALF]^3
REACH = 5.0  # standard deviations; beyond, a Gaussian adds less than exp(-12.5) = 4e-6
CHUNK = 1000  # Gaussians at a time: 1,000 x 16^3 x 3 floats are 50 MB
MIN_OPACITY = 0.005
MIN_COSINE = 0.5  # of the angle between surface normal and ray, for baking


class EmptyField(ValueError):
    """The density never reaches the level: there is no surface."""


def grid_points(resolution: int) -> Tensor:
    """Coordinates of the grid along one axis: the centres of `resolution` cells of [-HALF, HALF].

    >>> grid_points(2)
    tensor([-0.2750,  0.2750])
    """
    return (torch.arange(resolution) + 0.5) / resolution * 2 * HALF - HALF


@torch.no_grad()
def density_field(gaussians: Gaussians, resolution: int = 96, block: int = 16) -> Tensor:
    """The density of the header on a grid, (R, R, R) float32, axes x, y, z, points `grid_points`.

    Gaussians of opacity <= 0.005 are left out. Each block of block^3 points looks only at Gaussians that come within
    REACH standard deviations of it. ValueError for a batch of scenes.

    >>> one = Gaussians.random(1, scale=0.2, generator=torch.Generator().manual_seed(0))
    >>> density_field(one, 8).shape
    torch.Size([8, 8, 8])
    """
    if gaussians.batch_shape:
        raise ValueError(f"gaussians: got a batch {gaussians.batch_shape}, wanted one scene")
    for name in ("means", "quats", "scales", "opacities"):
        if not bool(torch.isfinite(getattr(gaussians, name)).all()):
            raise ValueError(f"gaussians: {name} holds numbers that are not finite")
    if resolution < 2 or block < 1:
        raise ValueError(f"resolution, block: got {resolution}, {block}, wanted at least 2 and 1")
    g = gaussians.detach().to("cpu", torch.float32)
    g = g.select(g.opacities > MIN_OPACITY)
    axis = grid_points(resolution)
    field = torch.zeros(resolution, resolution, resolution)
    # |R^T (p - mu) / scales|^2 is the exponent; rows of `whiten` do both
    whiten = quat_to_rotmat(g.quats).transpose(-1, -2) / g.scales[:, :, None].clamp_min(1e-6)  # (N, 3, 3)
    reach = REACH * g.covariances().diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()  # (N, 3), half sides of the box
    starts = range(0, resolution, block)
    for i in starts:
        for j in starts:
            for k in starts:
                sides = [axis[s:s + block] for s in (i, j, k)]
                low, high = (torch.stack([side[e] for side in sides]) for e in (0, -1))
                near = ((g.means + reach >= low) & (g.means - reach <= high)).all(1)
                if not near.any():
                    continue
                p = torch.stack(torch.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 3)  # (P, 3)
                d = torch.zeros(len(p))
                for some in near.nonzero()[:, 0].split(CHUNK):
                    white = torch.einsum("nij,npj->npi", whiten[some], p - g.means[some, None])  # (n, P, 3)
                    d += (g.opacities[some, None] * torch.exp(-0.5 * white.square().sum(-1))).sum(0)
                field[i:i + block, j:j + block, k:k + block] = d.reshape([len(s) for s in sides])
    return field


def extract_mesh(field: Tensor, level: float = 1.0, max_faces: int = 20_000,
                 keep_share: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (Nv, 3) float32 in world units and faces (F, 3) int32 of the surface field = level, normals outwards.

    field: (R, R, R) as from `density_field`; a margin of zeros closes the surface at the border of the grid. Pieces
    with fewer than `keep_share` of the largest piece's faces are dropped; more than `max_faces` faces are simplified (to a tenth
    or so the surface stays closed; far below, thin parts tear). EmptyField where the field never reaches the level.

    >>> r = torch.stack(torch.meshgrid(*[grid_points(24)] * 3, indexing="ij")).norm(dim=0)
    >>> vertices, faces = extract_mesh(2 - r / 0.3)  # a ball of radius 0.3
    >>> bool((abs(np.linalg.norm(vertices, axis=1) - 0.3) < 0.01).all())
    True
    """
    from skimage.measure import marching_cubes

    if field.ndim != 3 or len(set(field.shape)) != 1:
        raise ValueError(f"field: got shape {tuple(field.shape)}, wanted (R, R, R)")
    if not level > 0:
        raise ValueError(f"level: got {level}, wanted > 0: outside the grid the density is 0")
    if max_faces < 4 or not 0 <= keep_share <= 1:
        raise ValueError(f"max_faces, keep_share: got {max_faces}, {keep_share}, wanted at least 4, and 0 to 1")
    if not bool(torch.isfinite(field).all()):
        raise ValueError(f"field: got {int((~torch.isfinite(field)).sum())} values that are not finite")
    values = np.pad(field.detach().cpu().numpy(), 1)
    if not values.max() > level:
        raise EmptyField(f"field: its largest density is {values.max():.3g}, below the level {level}: no surface. The "
                         "Gaussians are too transparent or too few")
    vertices, faces, _, _ = marching_cubes(values, level, gradient_direction="ascent")
    cell = 2 * HALF / field.shape[0]
    vertices = (vertices - 1 + 0.5) * cell - HALF  # the padding shifted by one cell
    vertices, faces = drop_small_pieces(*drop_cavities(vertices, faces), keep_share)
    for agg in (3, 3, 3, 4, 5, 6, 7):  # a larger one dares more, and can tear holes; one pass may stop before the goal
        if len(faces) > max_faces:
            from fast_simplification import simplify

            vertices, faces = simplify(vertices.astype(np.float32), faces.astype(np.int32), 1 - max_faces / len(faces), agg=agg)
            vertices, faces = drop_small_pieces(vertices, faces, keep_share)
    return vertices.astype(np.float32), faces.astype(np.int32)


def drop_small_pieces(vertices: np.ndarray, faces: np.ndarray, keep_share: float) -> tuple[np.ndarray, np.ndarray]:
    """Leave out connected pieces with fewer faces than `keep_share` of the largest's, and vertices no face uses."""
    piece = pieces_of(vertices, faces)
    size = np.bincount(piece)
    return only(vertices, faces, size[piece] >= keep_share * size.max())


def drop_cavities(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leave out closed pieces whose normals point inwards: walls of hollows that nobody sees. Their volume, the sum over
    triangles of a . (b x c) / 6, is negative."""
    piece = pieces_of(vertices, faces)
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    volume = np.bincount(piece, np.einsum("fi,fi->f", a, np.cross(b, c)) / 6)
    return only(vertices, faces, volume[piece] > 0) if (volume > 0).any() else (vertices, faces)


def pieces_of(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Which connected piece each face belongs to, (F,)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    a, b = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]]).T
    graph = coo_matrix((np.ones(len(a), bool), (a, b)), shape=(len(vertices),) * 2)
    return connected_components(graph, directed=False)[1][faces[:, 0]]


def only(vertices: np.ndarray, faces: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The faces where `kept` (F,), and the vertices they use."""
    used, corners = np.unique(faces[kept], return_inverse=True)
    return vertices[used], corners.reshape(-1, 3)


def unwrap(vertices: np.ndarray, faces: np.ndarray, size: int = 256) -> Mesh:
    """A mesh whose triangles lie flat and apart in the texture [0, 1]^2, by xatlas; v upwards.

    size: texels a side that the charts are packed for. The surface keeps its joined vertices: closed stays closed.

    >>> corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]]) - 0.2
    >>> unwrap(corners, np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])).uv.shape
    (4, 3, 2)
    """
    import xatlas

    atlas = xatlas.Atlas()
    atlas.add_mesh(np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.uint32))
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding = size, 2  # charts stand apart: bilinear lookups stay in their own
    atlas.generate(pack_options=packing)
    source, corners, uv = atlas[0]
    return Mesh(vertices, source[corners].astype(np.int32), uv[corners])  # uv by corner, so the vertices stay joined


def texel_points(mesh: Mesh, size: int):
    """Which texel of a size x size texture shows which point of the surface.

    Returns texels (T, 2) int (row, column), points (T, 3) and normals (T, 3) float32; row 0 is v = 1.
    """
    import trimesh

    # A texture is a flat picture of the surface: rays straight down on the triangles in the (u, v) plane.
    flat = np.concatenate([mesh.uv.reshape(-1, 2), np.zeros((3 * len(mesh.faces), 1))], 1)  # (3 F, 3)
    shape = trimesh.Trimesh(flat, np.arange(len(flat)).reshape(-1, 3), process=False)
    rows, columns = np.mgrid[:size, :size].reshape(2, -1)
    eyes = np.stack([(columns + 0.5) / size, 1 - (rows + 0.5) / size, np.ones(size * size)], 1)
    face = shape.ray.intersects_first(eyes, np.tile([0.0, 0.0, -1.0], (size * size, 1)))
    hit = face >= 0
    face, eyes = face[hit], eyes[hit]
    b = trimesh.triangles.points_to_barycentric(shape.triangles[face], np.c_[eyes[:, :2], np.zeros(hit.sum())])
    corners = mesh.vertices[mesh.faces[face]]  # (T, 3, 3)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    points = np.einsum("tc,tcx->tx", b, corners).astype(np.float32)
    return np.stack([rows[hit], columns[hit]], 1), points, normals.astype(np.float32)


def bake_weights(cosine: Tensor, visible: Tensor) -> Tensor:
    """How far a texel trusts a view: cos^2 where it is visible and cos > MIN_COSINE, else 0; any equal shapes.

    >>> bake_weights(torch.tensor([0.8, 0.8, 0.3]), torch.tensor([True, False, True]))
    tensor([0.6400, 0.0000, 0.0000])
    """
    return torch.where(visible & (cosine > MIN_COSINE), cosine.square(), torch.zeros_like(cosine))


@torch.no_grad()
def bake_texture(mesh: Mesh, images: Tensor, cameras: Cameras, size: int = 256) -> Tensor:
    """A texture (size, size, 3) in [0, 1] that makes the mesh look like the images (V, H, W, 4) of V cameras.

    images: straight alpha. Each texel is the mean of its colours, by `bake_weights` times alpha, where alpha > 1/2; texels that
    no view paints take the colour of the nearest one in the texture that is painted. ValueError where none is.
    """
    from scipy.ndimage import distance_transform_edt

    if images.ndim != 4 or images.shape[-1] != 4 or len(images) != len(cameras):
        raise ValueError(f"images: got shape {tuple(images.shape)}, wanted ({len(cameras)}, H, W, 4) with alpha")
    check_images("images", images, 4)
    if images.shape[1:3] != (cameras.height, cameras.width):
        raise ValueError(f"images: got {tuple(images.shape[1:3])} pixels, wanted those of the cameras, "
                         f"{(cameras.height, cameras.width)}")
    texels, points, normals = texel_points(mesh, size)
    p, n = torch.from_numpy(points), torch.from_numpy(normals)
    eyes = cameras.centers.float()  # (V, 3)
    seen = torch.from_numpy(visible_points(mesh, points, normals, eyes.numpy()))  # (V, T)
    premultiplied = torch.cat([images[..., :3] * images[..., 3:], images[..., 3:]], -1).movedim(-1, 1).float()  # (V, 4, H, W)
    pixels = cameras.project(p)[0]  # (V, T, 2)
    total, weights = torch.zeros(len(p), 3), torch.zeros(len(p), 1)
    for v in range(len(cameras)):
        cosine = (F.normalize(eyes[v] - p, dim=1) * n).sum(1)
        at = pixels[v] / torch.tensor([cameras.width, cameras.height]) * 2 - 1  # (T, 2) in [-1, 1]
        found = F.grid_sample(premultiplied[v:v + 1], at[None, None], padding_mode="border", align_corners=False)
        found = found[0, :, 0].T  # (T, 4)
        w = (bake_weights(cosine, seen[v]) * (found[:, 3] > 0.5))[:, None]
        total += w * found[:, :3]  # already times alpha
        weights += w * found[:, 3:]
    texture, known = np.zeros((size, size, 3), np.float32), np.zeros((size, size), bool)
    painted = weights[:, 0].numpy() > 0
    if not painted.any():
        raise ValueError("images, cameras: no view sees any part of the mesh at an angle that can be baked")
    rows, columns = texels[painted].T
    texture[rows, columns], known[rows, columns] = (total / weights.clamp_min(1e-8)).numpy()[painted].clip(0, 1), True
    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    return torch.from_numpy(texture[tuple(nearest)])


@dataclass(frozen=True)
class TextureRays:
    """uv (V, H, s, W, s, 2) float32, in grid_sample's [-1, 1]; hit (V, H, s, W, s) bool: s x s rays a pixel."""

    uv: Tensor
    hit: Tensor

    def to(self, device) -> TextureRays:
        """On another device."""
        return TextureRays(self.uv.to(device), self.hit.to(device))


def texture_rays(mesh: Mesh, cameras: Cameras, supersample: int = 2) -> TextureRays:
    """Where the rays of V cameras meet the mesh, in its texture. Done once: the geometry does not change."""
    from gsgen_lib.data.raycast import first_hits

    s, h, w = supersample, cameras.height, cameras.width
    fine = cameras.resize(s * w, s * h)
    face, b = first_hits(mesh, fine)  # (V, s H s W), (V, s H s W, 3)
    uv = torch.from_numpy(np.einsum("vrc,vrcx->vrx", b, mesh.uv[np.maximum(face, 0)]))
    uv = torch.stack([uv[..., 0] * 2 - 1, 1 - uv[..., 1] * 2], -1)  # row 0 of the texture is v = 1
    shape = (len(cameras), h, s, w, s)
    return TextureRays(uv.reshape(*shape, 2).float(), torch.from_numpy(face >= 0).reshape(shape))


def render_texture(texture: Tensor, rays: TextureRays, background: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (V, H, W, 3) and alpha (V, H, W, 1) of the mesh with this texture (S, S, 3); differentiable in it.

    background: (3,) or (V, 3).
    """
    v, h, s, w, _, _ = rays.uv.shape
    color = F.grid_sample(texture.movedim(-1, 0)[None].expand(v, -1, -1, -1), rays.uv.reshape(v, h * s, w * s, 2).to(texture),
                          padding_mode="border", align_corners=False)  # (V, 3, s H, s W)
    hit = rays.hit.reshape(v, 1, h * s, w * s).to(color)
    back = background.to(color).expand(v, 3)[:, :, None, None]
    picture = F.avg_pool2d(color * hit + back * (1 - hit), s)
    return picture.movedim(1, -1), F.avg_pool2d(hit, s).movedim(1, -1)

"""What a splat really is: the largest Gaussians of a scene drawn as solid ellipsoids.

A render hides its building blocks. Here the surface at `sigmas` standard deviations of each chosen
Gaussian is drawn as a closed mesh, in its own colour:

    x = mean + sigmas R S u          R = rotation of quats, S = diag(scales), u on the unit sphere

`ellipsoids` is a plotly figure to turn with the mouse; `ellipsoids_static` draws the same meshes
from one side next to the render, with matplotlib, and is shown first. Opacity is not drawn:
which Gaussians are chosen depends on it (opacity times the area of the two longest axes).

Taught in notebooks 00 and 01.
"""

from __future__ import annotations

import numpy as np
import torch

from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians, quat_to_rotmat
from gsgen_lib.scene.sh import SH_C0
from gsgen_lib.viz.animations import render_frames
from gsgen_lib.viz.picture import INK, Picture, new_figure, style


class EllipsoidView:
    """The plotly figure (`figure`) and its static twin (`static`); shows both, the twin first."""

    def __init__(self, figure, static: Picture):
        self.figure, self.static = figure, static

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.static)
        # Only plotly's data, not its 5 MB of JavaScript: JupyterLab, VS Code and Colab bring that.
        display({"application/vnd.plotly.v1+json": self.figure.to_plotly_json(),
                 "text/plain": self.static.alt}, raw=True)


def ellipsoids(gaussians: Gaussians, n: int = 200, sigmas: float = 1.5, size: int = 480,
               azimuth: float = 30.0, elevation: float = 15.0, engine: str = "auto") -> EllipsoidView:
    """The n largest Gaussians as ellipsoids, to turn with the mouse, with a static twin.

    gaussians: one scene. sigmas: where the surface lies, in standard deviations. size: pixels.
    azimuth, elevation: where one looks from at first, degrees (as `Cameras.orbit`).

    >>> scene = Gaussians.random(20, generator=torch.Generator().manual_seed(0))
    >>> view = ellipsoids(scene, n=8)
    >>> view.static.alt
    'the 8 largest of 20 Gaussians as solid ellipsoids at 1.5 standard deviations, next to the render'
    """
    static = ellipsoids_static(gaussians, n, sigmas, azimuth=azimuth, elevation=elevation, engine=engine)
    return EllipsoidView(ellipsoid_figure(gaussians, n, sigmas, size, azimuth, elevation), static)


def ellipsoid_figure(gaussians: Gaussians, n: int = 200, sigmas: float = 1.5, size: int = 480,
                     azimuth: float = 30.0, elevation: float = 15.0):
    """The plotly figure of `ellipsoids` alone: all ellipsoids in one mesh trace, y up."""
    import plotly.graph_objects as go

    vertices, faces, colors = ellipsoid_mesh(gaussians, n, sigmas)
    count = min(n, gaussians.num)
    x, y, z = vertices.T.astype(np.float32)
    i, j, k = faces.T.astype(np.uint32 if len(vertices) > 65535 else np.uint16)
    mesh = go.Mesh3d(
        x=x, y=y, z=z, i=i, j=j, k=k, vertexcolor=hex_colors(colors), hoverinfo="skip", flatshading=False,
        name=f"{count} largest", lighting={"ambient": 0.75, "diffuse": 0.45, "specular": 0.05},
        lightposition={"x": -5e4, "y": 1e5, "z": 1e5})
    figure = go.Figure(mesh)
    a, e = np.radians([azimuth, elevation])
    eye = 1.9 * np.array([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])
    hidden = {"visible": False}
    figure.update_layout(
        width=size, height=size, margin={"l": 0, "r": 0, "t": 30, "b": 0},
        title={"text": f"{count:,} of {gaussians.num:,} Gaussians, surfaces at {sigmas:g} σ",
               "font": {"size": 13, "color": INK}},
        scene={"xaxis": hidden, "yaxis": hidden, "zaxis": hidden, "aspectmode": "data",
               "camera": {"up": {"x": 0, "y": 1, "z": 0}, "eye": dict(zip("xyz", eye.tolist(), strict=True))}})
    return figure


def ellipsoids_static(gaussians: Gaussians, n: int = 200, sigmas: float = 1.5, size: int = 256,
                      azimuth: float = 30.0, elevation: float = 15.0, engine: str = "auto") -> Picture:
    """The render and the n largest Gaussians as shaded ellipsoids, from the same camera."""
    cameras = Cameras.orbit(1, azimuth=[azimuth], elevation=elevation, width=size, height=size)
    render = render_frames(gaussians, cameras, engine=engine)[0]
    polygons, shades = project_mesh(*ellipsoid_mesh(gaussians, n, sigmas), cameras)
    count = min(n, gaussians.num)
    with style():
        from matplotlib.collections import PolyCollection

        figure = new_figure(6.0, 3.2)
        left, right = figure.subplots(1, 2)
        left.imshow(render.numpy(), extent=(0, size, size, 0))
        left.set_title(f"rendered: {gaussians.num:,} Gaussians")
        # Edges in the face's colour close the hair-thin gaps between neighbouring triangles.
        right.add_collection(PolyCollection(polygons, facecolors=shades, edgecolors=shades, linewidths=0.2))
        right.set_title(f"the {count:,} largest, solid at {sigmas:g} σ")
        for axis in (left, right):
            axis.set(xlim=(0, size), ylim=(size, 0), aspect="equal")
            axis.axis("off")
    return Picture(figure, f"the {count:,} largest of {gaussians.num:,} Gaussians as solid ellipsoids at "
                           f"{sigmas:g} standard deviations, next to the render")


def largest(gaussians: Gaussians, n: int) -> torch.Tensor:
    """Indices of the n Gaussians with the largest opacity * (product of the two longest axes).

    >>> scene = Gaussians.random(9, generator=torch.Generator().manual_seed(0))
    >>> largest(scene, 3).shape, largest(scene, 50).shape
    (torch.Size([3]), torch.Size([9]))
    """
    if gaussians.batch_shape:
        raise ValueError(f"gaussians: got a batch of shape {gaussians.batch_shape}, wanted one scene")
    if n < 1:
        raise ValueError(f"n: got {n}, wanted at least 1")
    if gaussians.num == 0:
        raise ValueError("gaussians: got an empty scene, wanted at least one Gaussian")
    area = gaussians.scales.topk(2, dim=-1).values.prod(-1)  # (N, 3) -> (N,)
    return (gaussians.opacities * area).topk(min(n, gaussians.num)).indices


def ellipsoid_mesh(gaussians: Gaussians, n: int, sigmas: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All chosen ellipsoids in one mesh: vertices (Nv, 3), faces (F, 3), vertex colours (Nv, 3)."""
    import trimesh

    if not sigmas > 0:
        raise ValueError(f"sigmas: got {sigmas}, wanted a positive number")
    g = gaussians.detach().to("cpu", torch.float32)
    g = g.select(largest(g, n))
    sphere = trimesh.creation.icosphere(subdivisions=1)  # 42 vertices, 80 faces
    unit = torch.as_tensor(np.asarray(sphere.vertices), dtype=torch.float32)
    RS = quat_to_rotmat(g.quats) * g.scales[:, None, :]  # (M, 3, 3)
    vertices = g.means[:, None] + sigmas * unit @ RS.transpose(-1, -2)  # (M, 42, 3)
    offsets = len(unit) * np.arange(g.num)[:, None, None]
    faces = (np.asarray(sphere.faces)[None] + offsets).reshape(-1, 3)  # (M, 80, 3) -> (F, 3)
    rgb = g.colors if g.sh_degree is None else 0.5 + SH_C0 * g.colors[:, 0]
    colors = rgb.clamp(0, 1)[:, None].expand(-1, len(unit), -1)
    return vertices.reshape(-1, 3).numpy(), faces, colors.reshape(-1, 3).numpy()


def project_mesh(vertices, faces, colors, cameras: Cameras) -> tuple[np.ndarray, np.ndarray]:
    """Painter's algorithm: triangles that face the camera, far to near, and their shaded colours.

    Returns polygons (P, 3, 2) in pixels and colours (P, 3). Lit from the camera's left above.
    """
    view, K = cameras.viewmats[0].numpy(), cameras.Ks[0].numpy()
    points = vertices @ view[:3, :3].T + view[:3, 3]  # world -> camera
    corners = points[faces]  # (F, 3, 3)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-20
    facing = ((normals * corners.mean(1)).sum(-1) < 0) & (corners[..., 2].min(1) > 0.05)
    corners, normals, shade = corners[facing], normals[facing], colors[faces[facing]].mean(1)
    light = np.array([-0.4, -0.6, -0.7]) / np.linalg.norm([-0.4, -0.6, -0.7])  # y points down
    shade = shade * (0.55 + 0.45 * np.clip(normals @ light, 0, 1))[:, None]
    order = np.argsort(-corners[..., 2].mean(1))
    pixels = corners @ K.T
    return (pixels[..., :2] / pixels[..., 2:])[order], shade[order].clip(0, 1)


def hex_colors(colors: np.ndarray) -> list[str]:
    """RGB in [0, 1], (N, 3), as the strings that plotly wants.

    >>> hex_colors(np.array([[1.0, 0.5, 0.0]]))
    ['#ff8000']
    """
    levels = (colors * 255).round().astype(int)
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in levels]

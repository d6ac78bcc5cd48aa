"""A live viewer in the notebook: turn the scene, the rasterizer draws every frame.

    camera = orbit(azimuth, elevation, 100 radius / zoom)  ->  rasterize  ->  PNG  ->  browser

Each change of a slider or of the mouse draws one frame at once, inside the kernel. No thread and no
timer is needed to stay responsive: while the kernel draws, Jupyter's widget model in the browser
merges further changes into one, so what comes next is always the newest position and no backlog
builds up. At 128 x 128 a frame takes a few hundredths of a second on two CPU cores
(`gsgen bench viewer`).

The viewer needs a running kernel. Its static twin, a film strip, is shown first, for readers of a
printed or a GitHub page. Introduced in notebook 00.
"""

from __future__ import annotations

import io
from contextlib import contextmanager

import torch

from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.viz.animations import render_frames
from gsgen_lib.viz.figures import film_strip
from gsgen_lib.viz.picture import Picture

ZOOM = (50, 250)  # percent; the distance is 100 radius / zoom: from 3.6 to 0.72 at radius 1.8


class OrbitViewer:
    """Look at a scene from all sides, live, with sliders and (with anywidget) the mouse.

    gaussians: one scene. size: pixels of the square image; display: its width on the page, pixels.
    azimuth, elevation: where to start, whole degrees (`Cameras.orbit`); zoom: percent; radius: world
    units; fov: degrees; background: RGB in [0, 1]; engine: as in `rasterize`. drag: True
    wants the mouse (ImportError without anywidget), False leaves it out, "auto" takes it if it is there.

    As the last line of a notebook cell it shows itself. In code: `viewer.azimuth.value = 90` turns
    it, `viewer.picture.value` holds the PNG bytes, `viewer.show(other)` changes the scene.

    >>> scene = Gaussians.random(50, generator=torch.Generator().manual_seed(0))
    >>> viewer = OrbitViewer(scene, size=32)
    >>> before = viewer.picture.value
    >>> viewer.azimuth.value = 90
    >>> viewer.picture.value != before, viewer.frames
    (True, 2)
    """

    def __init__(self, gaussians: Gaussians, size: int = 128, display: int = 320, azimuth: int = 30,
                 elevation: int = 15, zoom: int = 100, radius: float = 1.8, fov: float = 40.0,
                 background=(1.0, 1.0, 1.0), engine: str = "auto", drag: bool | str = "auto"):
        import ipywidgets as widgets

        self.size, self.radius, self.fov = size, radius, fov
        self.background, self.engine = background, engine
        self.frames = 0  # drawn so far
        self._quiet = False
        # Whole degrees and percent: the browser's slider gives integers back unchanged. It rounds
        # other numbers and sends the result as if a hand had moved it, which fights with the mouse.
        layout = widgets.Layout(width=f"{max(display, 280)}px")
        self.azimuth = widgets.IntSlider(azimuth, min=-180, max=180, description="azimuth °", layout=layout)
        self.elevation = widgets.IntSlider(elevation, min=-90, max=90, description="elevation °", layout=layout)
        self.zoom = widgets.IntSlider(zoom, min=ZOOM[0], max=ZOOM[1], description="zoom %", layout=layout)
        self.sliders = {"azimuth": self.azimuth, "elevation": self.elevation, "zoom": self.zoom}
        self.position = {name: float(slider.value) for name, slider in self.sliders.items()}
        for slider in self.sliders.values():
            slider.observe(self._on_change, names="value")
        self.picture = self._make_picture(drag, display)
        self.show(gaussians)
        self.widget = widgets.VBox([self.picture, *self.sliders.values()])

    def camera(self) -> Cameras:
        """The camera of the present frame, one view."""
        return self._cameras([self.position["azimuth"]])

    def show(self, gaussians: Gaussians) -> None:
        """Put another scene before the camera, for instance the next step of a fit."""
        if not isinstance(gaussians, Gaussians):
            raise TypeError(f"gaussians: got {type(gaussians).__name__}, wanted Gaussians")
        if gaussians.batch_shape:
            raise ValueError(f"gaussians: got a batch of shape {gaussians.batch_shape}, wanted one scene")
        self.gaussians = gaussians.detach().validate()
        self._draw()

    def static(self, n: int = 6) -> Picture:
        """The static twin: n views around the scene, from the present one on."""
        angles = [self.position["azimuth"] + 360 * i / n for i in range(n)]
        images = render_frames(self.gaussians, self._cameras(angles), self.background, self.engine)
        labels = [f"{angle % 360:.0f}°" for angle in angles]
        return film_strip(images, labels, n=n, alt=f"a scene of {self.gaussians.num:,} Gaussians from {n} sides, "
                                                   f"at azimuths {', '.join(labels)}")

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.static())
        display(self.widget)

    # ---- from a change to a frame ---------------------------------------------------------------

    def _on_change(self, change) -> None:
        """A slider moved, by hand or from code."""
        if self._quiet:
            return
        self.position |= {n: float(s.value) for n, s in self.sliders.items() if s is change.owner}
        self._draw()

    def _on_drag(self, change) -> None:
        """The mouse set azimuth, elevation or zoom of the picture: one frame, the sliders follow.

        One move of the mouse changes two numbers and calls this twice, with both already set: the
        second call finds nothing left to do.
        """
        moved = {name: getattr(self.picture, name) for name in self.sliders}
        if self._quiet or moved == self.position:
            return
        self.position = moved
        with self._hold():
            for name, slider in self.sliders.items():
                slider.value = round(moved[name])
        self._draw()

    def _draw(self) -> None:
        image = render_frames(self.gaussians, self.camera(), self.background, self.engine)[0]
        png = encode_png(image)
        with self._hold(), self.picture.hold_sync():  # one message to the browser
            self.picture.value = png
            if self._drags:
                for name, value in self.position.items():
                    setattr(self.picture, name, value)
        self.frames += 1

    def _cameras(self, azimuths: list[float]) -> Cameras:
        return Cameras.orbit(len(azimuths), azimuth=azimuths, elevation=self.position["elevation"],
                             radius=100 * self.radius / self.position["zoom"], fov=self.fov,
                             width=self.size, height=self.size)

    @contextmanager
    def _hold(self):
        """Changes made inside come from the viewer itself and draw nothing."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def _make_picture(self, drag: bool | str, display: int):
        import ipywidgets as widgets

        alt = "the scene, seen from the azimuth and elevation that the sliders show"
        self._drags = False
        if drag in (True, "auto"):
            try:
                from gsgen_lib.viz.drag_image import DragImage
            except ImportError:
                if drag is True:
                    raise ImportError("drag=True needs anywidget: pip install anywidget; "
                                      "drag='auto' shows sliders without it") from None
            else:
                self._drags = True
                picture = DragImage(alt=alt, width=display)
                picture.observe(self._on_drag, names=list(self.sliders))
                return picture
        elif drag is not False:
            raise ValueError(f"drag: got {drag!r}, wanted True, False or 'auto'")
        return widgets.Image(format="png", width=display)


def encode_png(image: torch.Tensor) -> bytes:
    """An RGB image (H, W, 3) in [0, 1] as PNG: exact, and with light compression fast.

    >>> encode_png(torch.zeros(4, 4, 3))[:4]
    b'\\x89PNG'
    """
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((image * 255).round().byte().numpy()).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()

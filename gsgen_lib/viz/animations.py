"""Turntables: the scene turns once, as a small animated picture, beside its static twin.

Animated WebP is the format of choice: at 128 x 128 it takes a fraction of a GIF's bytes and keeps
all colours. A GIF is written if the file is called .gif. Neither needs JavaScript, but
GitHub's notebook page shows no embedded animation, so a film strip is always shown first.

Used in every notebook from 00 on.
"""

from __future__ import annotations

import base64
import html
from pathlib import Path

import torch

from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.viz.figures import film_strip
from gsgen_lib.viz.picture import Picture, as_images

FORMATS = {".webp": "image/webp", ".gif": "image/gif"}


class Animation:
    """An animated picture on disk with alt text and a film strip as static twin.

    path: the file; strip: a `Picture`; width: pixels on the page. Shows both in a notebook, the
    strip first; the animation's bytes are embedded, so the notebook needs no other file.
    """

    def __init__(self, path: Path, alt: str, strip: Picture, width: int):
        self.path, self.alt, self.strip, self.width = path, alt, strip, width

    def html(self) -> str:
        """An <img> element that holds the whole animation."""
        content = base64.b64encode(self.path.read_bytes()).decode()
        return (f'<img alt="{html.escape(self.alt)}" width="{self.width}" '
                f'src="data:{FORMATS[self.path.suffix]};base64,{content}">')

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        display(self.strip)
        display(HTML(self.html()))

    def __repr__(self) -> str:
        return f"Animation({str(self.path)!r}, {self.path.stat().st_size / 1024:.0f} kB)"


def turntable(gaussians: Gaussians, path, n: int = 36, size: int = 128, seconds: float = 3.0,
              elevation: float = 15.0, radius: float = 1.8, fov: float = 40.0,
              background=(1.0, 1.0, 1.0), engine: str = "auto", alt: str | None = None,
              labels: bool = True) -> Animation:
    """Render one turn around a scene and save it as animated WebP or GIF (by the path's suffix).

    gaussians: one scene. n: frames of the turn; size: pixels, square; seconds: of one turn.
    elevation, fov in degrees, radius in world units, as in `Cameras.orbit`; engine as in
    `rasterize`. Raises ValueError for a batch of scenes or an unknown suffix.

    >>> import tempfile
    >>> scene = Gaussians.random(50, generator=torch.Generator().manual_seed(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     turn = turntable(scene, Path(folder) / "turn.webp", n=4, size=32)
    ...     turn.alt, turn.path.stat().st_size > 100
    ('a scene of 50 Gaussians turning once around', True)
    """
    if gaussians.batch_shape:
        raise ValueError(f"gaussians: got a batch of shape {gaussians.batch_shape}, wanted one scene")
    cameras = Cameras.orbit(n, radius=radius, elevation=elevation, fov=fov, width=size, height=size)
    frames = render_frames(gaussians, cameras, background, engine)
    alt = alt or f"a scene of {gaussians.num:,} Gaussians turning once around"
    angles = [f"{round(360 * i / n)}°" for i in range(n)] if labels else None
    return save_animation(frames, path, seconds=seconds, alt=alt, labels=angles)


def save_animation(frames, path, seconds: float = 3.0, alt: str = "", labels=None,
                   strip_length: int = 6, quality: int = 80) -> Animation:
    """Save images as an endless animation and make its film strip.

    frames: (N, H, W, 3 or 4), see `as_images`; path: .webp or .gif; seconds: of one round;
    labels: N texts for the strip; quality: of WebP, 0 to 100. The strip is not saved
    (`animation.strip.save(...)` does).
    """
    from PIL import Image

    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"path: got {path.name!r}, wanted a name ending in .webp or .gif")
    if not seconds > 0:
        raise ValueError(f"seconds: got {seconds}, wanted a positive number")
    images = as_images(frames, "frames")
    alt = alt or f"an animation of {len(images)} frames"
    strip = film_strip(images, labels=labels, n=strip_length)  # describes itself: number and labels
    strip.alt = f"{alt}, {strip.alt}"
    pictures = [Image.fromarray((image * 255).round().astype("uint8")) for image in images]
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": quality, "method": 4} if path.suffix == ".webp" else {"optimize": True}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], loop=0,
                     duration=round(1000 * seconds / len(images)), **options)
    return Animation(path, alt, strip, width=max(images.shape[2], 192))


def render_frames(gaussians: Gaussians, cameras: Cameras, background=(1.0, 1.0, 1.0),
                  engine: str = "auto", chunk: int = 12) -> torch.Tensor:
    """RGB of all views, (V, H, W, 3) in [0, 1] on the CPU, without gradients, a few at a time."""
    from gsgen_lib.raster import rasterize

    cameras = cameras.to(gaussians.device)
    with torch.no_grad():
        parts = [rasterize(gaussians, cameras[i : i + chunk], background=background, engine=engine).rgb
                 for i in range(0, len(cameras), chunk)]
    return torch.cat(parts).clamp(0, 1).cpu()

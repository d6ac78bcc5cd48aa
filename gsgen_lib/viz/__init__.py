"""Pictures of scenes, batches and training: what the notebooks draw with.

    from gsgen_lib import viz
    viz.film_strip(images, labels=["0°", "90°"], alt="a mug from two sides")

Each name is imported when it is first used, so `import gsgen_lib.viz` is fast and needs neither
matplotlib nor plotly nor ipywidgets. What moves (turntables, ellipsoids, the viewer) shows a
static picture first, because GitHub and printed pages show nothing else.
"""

from __future__ import annotations

import importlib

_HOME = {  # public name -> module that defines it
    "Picture": "picture", "show_alt": "picture", "as_images": "picture",
    "style": "picture", "COLORS": "picture",
    "film_strip": "figures", "image_grid": "figures", "compare": "figures",
    "training_curves": "curves", "LiveCurves": "curves", "read_log": "curves",
    "turntable": "animations", "save_animation": "animations", "render_frames": "animations",
    "ellipsoids": "ellipsoid_plot", "ellipsoids_static": "ellipsoid_plot",
    "OrbitViewer": "orbit_viewer",
    "view_scene": "view",
}  # fmt: skip
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])

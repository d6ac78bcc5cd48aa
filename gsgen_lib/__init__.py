"""gsgen_lib: how 3D worlds are generated as Gaussian splats, from scratch.

    from gsgen_lib import Cameras, Gaussians, rasterize

The notebooks in `notebooks/` build everything here step by step; `gsgen doctor` tells what this machine can run.
Names are loaded when first used, so that `import gsgen_lib` is quick and works where torch is missing.
"""

import importlib
import os

# After an operation, torch's OpenMP threads keep a core busy for milliseconds in case there is more to do, and would take
# it from the rasterizer's own threads. A short wait leaves it to both. It is read
# when torch is first imported (GNU OpenMP on Linux; others ignore it), and what the user has set stays.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

_HOME = {"Cameras": "scene", "Gaussians": "scene", "load_ply": "scene", "save_ply": "scene", "Render": "raster",
         "rasterize": "raster"}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(f"gsgen_lib.{_HOME[name]}"), name)
    if name == "__version__":
        from importlib.metadata import version
        return version("gsgen-lib")
    raise AttributeError(f"module 'gsgen_lib' has no attribute {name!r}")

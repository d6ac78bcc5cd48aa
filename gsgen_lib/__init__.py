"""gsgen_lib: how 3D worlds are generated as Gaussian splats, from scratch.

    from gsgen_lib import Cameras, Gaussians, rasterize

The notebooks in `notebooks/` build everything here step by step; `gsgen doctor` tells what this machine can run.
"""

from gsgen_lib.raster import Render, rasterize
from gsgen_lib.scene import Cameras, Gaussians, load_ply, save_ply

__all__ = ["Cameras", "Gaussians", "Render", "load_ply", "rasterize", "save_ply"]

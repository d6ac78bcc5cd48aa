"""rasterize(): one contract, three engines."""
from gsgen_lib.raster.api import Render, rasterize

__all__ = ["Render", "rasterize"]

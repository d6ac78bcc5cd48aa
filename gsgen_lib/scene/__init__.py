"""The scene: Gaussians, Cameras, spherical harmonics, and the PLY format."""

from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.scene.ply import load_ply, save_ply

__all__ = ["Cameras", "Gaussians", "load_ply", "save_ply"]

"""Sparse voxels on a GPU: the same numbers as on the CPU, and all four trainings."""

import torch

from gsgen_lib.data.multiview import toy_views
from gsgen_lib.data.occupancy import occupancy
from gsgen_lib.nn.sparse_grid import Voxels
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems.sparse_voxels import AppearanceConfig, AppearanceVAE, StructureConfig, StructureVAE, padded, voxel_features
from gsgen_lib.systems.sparse_voxels_flow import FlowConfig, SparseVoxels, VoxelFlow
from gsgen_lib.systems.sparse_voxels_training import train_voxels
from gsgen_lib.training import seeded

R, S = 16, 32


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def sampler(device):
    small = dict(width=24, heads=2, layers=1, size=S)
    networks = seeded(lambda: [StructureVAE(StructureConfig(resolution=R, widths=(8, 8))),
                               AppearanceVAE(AppearanceConfig(resolution=R, width=24, heads=2, layers=1)),
                               VoxelFlow(FlowConfig(reach=4, **small)), VoxelFlow(FlowConfig(numbers=64, extra=8, **small))], 0)
    for network in networks:
        for i, weight in enumerate(network.parameters()):
            if not weight.any():
                torch.nn.init.normal_(weight, 0.0, 0.1, generator=gen(i))
    return SparseVoxels(*(n.to(device) for n in networks), lambda captions: torch.ones(len(captions), 5, 96))


def test_reading_decoding_and_drawing_are_those_of_the_cpu():
    toys, found = toy_views(2, 0, S, 8, progress=False), {}
    grid = torch.stack([occupancy(p, R) for p in toys.points])
    for device in ("cpu", "cuda"):
        one, cameras = sampler(device), toys.cameras.to(device)
        voxels = Voxels.from_grid(grid.to(device))
        features = voxel_features(voxels, toys.images.to(device).float() / 255, cameras)
        z = one.appearance.encode(voxels, features)[0]
        scenes = padded(one.appearance.splats(voxels, z))
        view = rasterize(scenes, Cameras.stack([Cameras(cameras.viewmats[i, :1], cameras.Ks[i, :1], S, S)
                                                for i in range(2)]), (1.0, 1.0, 1.0)).rgb
        given = one.condition(["x", "y"])
        drawn = one.draw_latents(voxels, given, 3, noise=torch.randn(len(z), 8, generator=gen()))
        logits = one.structure.decode(torch.randn(2, 8, 4, 4, 4, generator=gen()).to(device))
        found[device] = [x.cpu() for x in (features, z, view, drawn, logits)]
    for a, b in zip(found["cuda"], found["cpu"], strict=True):
        assert (a - b).abs().mean() < 0.02


def test_all_four_trainings_run(tmp_path):
    train_voxels(tmp_path / "s", "structure", "tiny")
    train_voxels(tmp_path / "a", "appearance", "tiny")
    train_voxels(tmp_path / "sf", "structure-flow", "tiny", structure=str(tmp_path / "s" / "model"))
    card = train_voxels(tmp_path / "af", "appearance-flow", "tiny", appearance=str(tmp_path / "a" / "model"))
    assert card["name"] == "voxel_appearance_flow"

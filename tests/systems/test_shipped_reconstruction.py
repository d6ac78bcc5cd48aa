"""The reconstruction networks that ship, on two validation objects: what they read must stay what they learned with."""

import numpy as np
import pytest

from gsgen_lib.data.multiview import load_views
from gsgen_lib.data.occupancy import occupancy
from gsgen_lib.nn.sparse_grid import Voxels
from gsgen_lib.pretrained import load_or_train
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems.feed_forward_metrics import BASELINES, evaluate
from gsgen_lib.systems.sparse_voxels import iou, voxel_features
from gsgen_lib.systems.sparse_voxels_training import grids_of


@pytest.mark.parametrize(("name", "lead"), [("feedforward_unet", 3.3), ("feedforward_transformer", 4.1), ("splat_vae_8", 4.4)])
def test_shipped_networks_are_as_good_as_they_were(name, lead):
    """So many dB above the best answer without a network: none has them that reads other rays, depths or colours."""
    views = load_views("val", limit=2, progress=False)
    ours, hull = (np.mean([s["psnr"] for s in evaluate(f, views)])
                  for f in (load_or_train(name).reconstruct, BASELINES["coloured hull"]))
    assert ours > hull + lead


def test_shipped_autoreconstructor_is_as_good_as_it_was():
    """One picture each; dB above the nearest input view shown everywhere."""
    views = load_views("val", limit=2, progress=False)
    ours, near = (np.mean([s["psnr"] for s in evaluate(f, views, 1)])
                  for f in (load_or_train("autoreconstructor").reconstruct, BASELINES["nearest input"]))
    assert ours > near + 4.0


def test_shipped_voxels_are_as_good_as_they_were():
    """IoU of structures; dB of appearance, from eight views, above the coloured hull of four."""
    views = load_views("val", limit=2, progress=False)
    grids, points = grids_of(views, 32), iter(views.points)
    structure, appearance = load_or_train("voxel_structure"), load_or_train("voxel_appearance")
    assert iou(structure.decode(structure.encode(grids)[0]) > 0, grids).min() > 0.93

    def rebuilt(rgba, cameras):
        voxels = Voxels.from_grid(occupancy(next(points), 32)[None])
        z = appearance.encode(voxels, voxel_features(voxels, rgba[None], Cameras.stack([cameras])))[0]
        return appearance.splats(voxels, z)[0]

    ours = np.mean([s["psnr"] for s in evaluate(rebuilt, views, 8)])
    assert ours > np.mean([s["psnr"] for s in evaluate(BASELINES["coloured hull"], views)]) + 3.3

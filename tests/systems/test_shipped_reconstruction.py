"""The reconstruction networks that ship, on two validation objects: what they read must stay what they learned with."""

import numpy as np
import pytest

from gsgen_lib.data.multiview import load_views
from gsgen_lib.pretrained import load_or_train
from gsgen_lib.systems.feed_forward_metrics import BASELINES, evaluate


@pytest.mark.parametrize(("name", "lead"), [("feedforward_unet", 3.3), ("feedforward_transformer", 4.1), ("splat_vae_8", 4.4)])
def test_shipped_networks_are_as_good_as_they_were(name, lead):
    """So many dB above the best answer without a network: none has them that reads other rays, depths or colours."""
    views = load_views("val", limit=2, progress=False)
    ours, hull = (np.mean([s["psnr"] for s in evaluate(f, views)])
                  for f in (load_or_train(name).reconstruct, BASELINES["coloured hull"]))
    assert ours > hull + lead

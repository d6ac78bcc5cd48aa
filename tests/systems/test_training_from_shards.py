"""Systems learn from a folder of shards as from memory."""

import pytest
import torch

from gsgen_lib.data.shards import write_shards
from gsgen_lib.pretrained import read_card
from gsgen_lib.systems.autoreconstructor_training import train_autoreconstructor
from gsgen_lib.systems.feed_forward_training import batches, train_feed_forward, training_objects
from gsgen_lib.systems.splat_vae_training import train_splat_vae

SYSTEMS = {"feedforward": train_feed_forward, "vae": train_splat_vae, "var": train_autoreconstructor}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("shards")
    write_shards(out, "toys", count=5, size=32, per_shard=2)
    return out


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_learns_from_shards(tmp_path, folder, system):
    card = SYSTEMS[system](tmp_path / system, preset="tiny", shards=str(folder), device="cpu")
    assert str(folder) in card["command"] and read_card(tmp_path / system / "model")["loss"] == card["loss"]
    with pytest.raises(ValueError, match="shards="):  # a training goes on with the data it began with
        SYSTEMS[system](tmp_path / system, preset="tiny", device="cpu")


def test_all_objects_of_a_batch_come_from_the_shards(folder):
    sources, shown = training_objects({}, 32, 0, folder, str(folder))
    rgba, viewmats, _, inputs, _, count = batches(sources, 4, 0.0)(torch.Generator().manual_seed(0))
    assert rgba.shape[0] == 4 and inputs.shape[1] == count and len(shown) == 1
    with pytest.raises(ValueError, match="32 x 32 pixels, wanted 64 x 64"):
        training_objects({}, 64, 0, folder, str(folder))

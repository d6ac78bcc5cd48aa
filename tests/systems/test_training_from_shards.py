"""Systems learn from a folder of shards as from memory."""

import pytest
import torch

from gsgen_lib.data.shards import write_shards
from gsgen_lib.data.view_sets import load_views
from gsgen_lib.pretrained import read_card
from gsgen_lib.systems import autoreconstructor_training, feed_forward_training, splat_vae_training
from gsgen_lib.systems.autoreconstructor import AutoReconstructor, AutoReconstructorConfig
from gsgen_lib.systems.autoreconstructor_training import train_autoreconstructor
from gsgen_lib.systems.feed_forward import FeedForward, FeedForwardConfig
from gsgen_lib.systems.feed_forward_training import batches, smaller, train_feed_forward, training_objects
from gsgen_lib.systems.splat_vae import SplatVAE, SplatVAEConfig
from gsgen_lib.systems.splat_vae_training import train_splat_vae

GPU = [(feed_forward_training, FeedForward, FeedForwardConfig), (splat_vae_training, SplatVAE, SplatVAEConfig),
       (autoreconstructor_training, AutoReconstructor, AutoReconstructorConfig)]
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
    both, _ = training_objects({}, 32, 0, folder, f"{folder}, {folder}")
    assert len(both) == 2
    with pytest.raises(ValueError, match="32 x 32 pixels, wanted 64 x 64"):
        training_objects({}, 64, 0, folder, str(folder))


def test_larger_pictures_than_ship_are_of_toys_alone(tmp_path, capsys):
    """The gpu presets learn from 128 x 128 pixels; real objects ship at 64."""
    sources, shown = training_objects(dict(real=2, toys=2), 96, 0, tmp_path)
    assert len(sources) == 1 and shown.images.shape[2] == 96 and "toys alone" in capsys.readouterr().out
    with pytest.raises(ValueError, match="at most that of the pictures"):
        smaller(load_views("val", limit=1, progress=False), 96)


@pytest.mark.parametrize("presets, network, config", GPU, ids=[presets.__name__.split(".")[-1] for presets, *_ in GPU])
def test_gpu_presets_are_networks_for_128_pixels(presets, network, config):
    made = network(config(**presets.PRESETS["gpu"]["model"]))
    assert made.config.size == 128 and 5e6 < sum(p.numel() for p in made.parameters()) < 5e7

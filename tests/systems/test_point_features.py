"""Features of surface points: what the views show there, the shipped network's map, and the hub's networks with weights of chance."""

import pytest
import torch

from gsgen_lib.data.view_sets import toy_views
from gsgen_lib.image_features import load_weights, mobilenet_blocks, mobilenet_v2
from gsgen_lib.nn.point_sets import visible_points
from gsgen_lib.point_features import feature_maps, point_features, width_of
from gsgen_lib.scene.cameras import Cameras


@pytest.fixture(scope="module")
def toys():
    return toy_views(2, 3, 64, 8, points=400, progress=False)


def test_colours_are_those_of_the_surface(toys):
    """The points carry their colour: what the pictures show there is near it."""
    found = point_features(toys.points[..., :3], toys.points[..., 3:6], toys.images / 255, toys.cameras, ("rgb",))
    assert found.shape == (2, 400, width_of(("rgb",)))
    seen = found[..., 3] > 0.2
    assert seen.float().mean() > 0.8
    off = (found[..., :3] + 0.5 - toys.points[..., 6:]).abs().mean(-1)
    assert off[seen].median() < 0.05
    shuffled = (found[:, torch.randperm(400, generator=torch.Generator().manual_seed(0)), :3] + 0.5 - toys.points[..., 6:]).abs()
    assert shuffled.mean(-1)[seen].median() > 2 * off[seen].median()


def test_unseen_points_have_zeros_and_the_share_is_counted():
    cameras = Cameras.stack([Cameras.orbit(4)])
    at = torch.tensor([[[0.0, 0.0, 0.3], [0.0, 0.3, 0.0]]])
    down = torch.tensor([[[0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]])
    found = point_features(at, down, torch.ones(1, 4, 64, 64, 4), cameras, ("rgb", "mobilenet"))
    assert found[0, 0, -1] == 0.25 and found[0, 0, :3].tolist() == [0.5] * 3 and not found[0, 1].any()


def test_hidden_pictures_are_not_read(toys):
    """A view that sees nothing of a point does not change it."""
    at, normal = toys.points[:1, :, :3], toys.points[:1, :, 3:6]
    rgba, camera = toys.images[:1] / 255, Cameras(toys.cameras.viewmats[:1], toys.cameras.Ks[:1], 64, 64)
    found = [point_features(at, normal, x, camera, ("rgb",))
             for x in (rgba, rgba * torch.tensor([0.0, 0, 0, 1]))]
    seen = visible_points(at, normal, camera)[0].any(0)
    assert torch.equal(found[0][0, ~seen], found[1][0, ~seen]) and not torch.equal(found[0][0, seen], found[1][0, seen])


def test_blocks_are_those_of_the_classifier():
    """All 17 and the head are `mobilenet_v2`; three are what `feature_maps` gives."""
    x, weights = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), load_weights()
    last = torch.nn.functional.relu6(torch.nn.functional.conv2d(mobilenet_blocks(x, weights, 17), weights["head.weight"],
                                                                weights["head.bias"]))
    assert torch.allclose(last.mean((2, 3)), mobilenet_v2(x, weights), atol=1e-5)
    assert not torch.allclose(mobilenet_blocks(x, weights, 3), mobilenet_blocks(x.flip(3), weights, 3), atol=1e-3)


def test_hub_networks_run_with_weights_of_chance(tmp_path, toys):
    """The very classes of the hub, tiny: their maps lie where the picture does, and colours reach them."""
    transformers, diffusers = pytest.importorskip("transformers"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    config = transformers.DINOv3ViTConfig(hidden_size=384, num_hidden_layers=1, num_attention_heads=6, intermediate_size=64,
                                          patch_size=16, image_size=224, num_register_tokens=4)
    transformers.DINOv3ViTModel(config).save_pretrained(tmp_path / "dino")
    diffusers.AutoencoderKL(block_out_channels=(8, 8, 8, 8), down_block_types=["DownEncoderBlock2D"] * 4,
                            up_block_types=["UpDecoderBlock2D"] * 4, latent_channels=16, norm_num_groups=4,
                            layers_per_block=1).save_pretrained(tmp_path / "flux")
    pictures = toys.images[0, :2, ..., :3] / 255
    for name, folder, shape in (("dinov3", "dino", (2, 14, 14, 384)), ("flux", "flux", (2, 8, 8, 16))):
        maps = feature_maps(pictures, name, str(tmp_path / folder))
        assert maps.shape == shape and maps.isfinite().all()
        changed = pictures.clone()
        changed[:, :8, :8] = 1 - changed[:, :8, :8]  # the corner at the top left
        away = (feature_maps(changed, name, str(tmp_path / folder)) - maps).abs().mean((0, 3))
        assert away[0, 0] > 2 * away[-1, -1]
    found = point_features(toys.points[..., :3], toys.points[..., 3:6], toys.images / 255, toys.cameras,
                           ("rgb", "dinov3", "flux"), {"dinov3": str(tmp_path / "dino"), "flux": str(tmp_path / "flux")})
    assert found.shape == (2, 400, 3 + 384 + 16 + 1) and found.isfinite().all()


def test_a_hub_that_cannot_be_reached_says_what_does_instead(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("dinov3", "flux"):
        with pytest.raises(RuntimeError, match=f"{name}: .* could not be loaded"):
            feature_maps(torch.zeros(1, 64, 64, 3), name, str(tmp_path / "nothing"))


@pytest.mark.parametrize("change, says", [
    (dict(names=()), "names: got"), (dict(names=("sift",)), "names: got"),
    (dict(rgba=torch.full((1, 2, 64, 64, 4), 2.0)), "rgba: got"), (dict(rgba=torch.zeros(1, 2, 64, 64, 3)), "rgba: got"),
    (dict(rgba=torch.full((1, 2, 64, 64, 4), float("nan"))), "rgba: got"), (dict(rgba=torch.zeros(1, 3, 64, 64, 4)), "cameras: got"),
    (dict(rgba=torch.zeros(1, 2, 32, 32, 4)), "cameras: got")])
def test_input_that_does_not_fit_is_named(change, says):
    given = dict(points=torch.zeros(1, 5, 3), normals=torch.zeros(1, 5, 3), rgba=torch.zeros(1, 2, 64, 64, 4),
                 cameras=Cameras.stack([Cameras.orbit(2)]), names=("rgb",))
    with pytest.raises(ValueError, match=says):
        point_features(**given | change)

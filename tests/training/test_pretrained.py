"""Shipped checkpoints: whole ones are loaded, anything else is refused with the reason."""

import json
import shutil
import types
from pathlib import Path

import pytest

from gsgen_lib import pretrained
from gsgen_lib.data.weights import load_checked_weights
from gsgen_lib.systems.prior import load_prior
from gsgen_lib.systems.prompt_scorer import load_scorer


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "model.bin.txt").write_text("weights")
    (tmp_path / "deep/config.json").write_text("{}")
    pretrained.write_card(tmp_path, {"name": "x", "hours": 1})
    return tmp_path


def test_a_whole_folder_passes_and_its_card_is_complete(folder):
    assert pretrained.checked_folder(folder) == folder
    assert set(pretrained.read_card(folder)["sha256"]) == {"model.bin.txt", "deep/config.json"}


@pytest.mark.parametrize("harm,message", [
    (lambda f: (f / "model.bin.txt").write_text("weightz"), "model.bin.txt: sha256 is .* damaged"),
    (lambda f: (f / "deep/config.json").unlink(), "config.json: missing"),
    (lambda f: (f / "extra.py").write_text("print()"), "extra.py: not named by card.json"),
    (lambda f: (f / "card.json").write_text("{"), "card.json: not JSON"),
    (lambda f: (f / "card.json").write_text("{}"), "names no files"),
    (lambda f: (f / "card.json").write_text('{"sha256": {}}'), "names no files"),
])
def test_harm_is_named(folder, harm, message):
    harm(folder)
    with pytest.raises(ValueError, match=message):
        pretrained.checked_folder(folder)


def test_no_card_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a checkpoint of the course"):
        pretrained.checked_folder(tmp_path)
    with pytest.raises(ValueError, match="name: got 'nothing', wanted one of prior"):
        pretrained.folder_of("nothing")


def test_load_or_train_trains_once_then_loads_and_refuses_damage(tmp_path, monkeypatch, capsys):
    calls = []

    def fake_train(out, preset):
        calls.append(preset)
        (Path(out) / "model").mkdir(parents=True)
        (Path(out) / "model/weights.json").write_text("[1]")
        pretrained.write_card(Path(out) / "model", {"name": "toy"})

    def fake_load(source):
        return json.loads((Path(source) / "weights.json").read_text())

    module = types.SimpleNamespace(load=fake_load, train=fake_train)
    monkeypatch.setitem(pretrained.CHECKPOINTS, "toy", ("toy_module", "load", "toy_module:train"))
    monkeypatch.setattr(pretrained.importlib, "import_module", lambda name: module)
    assert pretrained.load_or_train("toy", tmp_path / "run", preset="tiny") == [1]
    assert pretrained.load_or_train("toy", tmp_path / "run") == [1] and calls == ["tiny"]
    assert "training one (tiny preset)" in capsys.readouterr().out
    (tmp_path / "run/model/weights.json").write_text("[2]")
    with pytest.raises(ValueError, match="damaged"):
        pretrained.load_or_train("toy", tmp_path / "run")


def test_a_card_speaks_of_this_writing_and_never_of_itself(folder):
    card = pretrained.write_card(folder, pretrained.read_card(folder) | {"commit": "another", "hours": 2})  # written again
    assert card["commit"] != "another" and card["hours"] == 2 and "card.json" not in card["sha256"]
    assert pretrained.checked_folder(folder) == folder


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A data folder with copies of the shipped checkpoints, which may be harmed."""
    root = tmp_path / "data"
    for name in pretrained.CHECKPOINTS:
        if (pretrained.folder_of(name) / "card.json").is_file():
            shutil.copytree(pretrained.folder_of(name), root / "checkpoints" / name)
    monkeypatch.setattr(pretrained, "data_root", lambda: root)
    return root / "checkpoints"


@pytest.mark.parametrize("name,file", [("prompt_scorer", "model.safetensors"), ("prior", "unet/diffusion_pytorch_model.safetensors")])
def test_a_damaged_shipped_model_is_refused_by_name(shipped, name, file):
    pretrained.load_or_train(name)
    path = shipped / name / file
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    for load in (pretrained.load_or_train, load_scorer if name == "prompt_scorer" else load_prior):
        with pytest.raises(ValueError, match=f"{path.name}: sha256 is .* damaged"):
            load(name)


def test_the_shipped_one_comes_first_unless_a_folder_is_named_and_settings_are_passed_on(shipped, tmp_path, monkeypatch):
    asked = []
    module = types.SimpleNamespace(load=lambda source, **settings: asked.append((str(source), settings)))
    monkeypatch.setitem(pretrained.CHECKPOINTS, "prompt_scorer", ("toy_module", "load", "toy_module:train"))
    monkeypatch.setattr(pretrained.importlib, "import_module", lambda name: module)
    pretrained.load_or_train("prompt_scorer", device="here")
    own = tmp_path / "own"
    shutil.copytree(shipped / "prompt_scorer", own / "model")
    pretrained.load_or_train("prompt_scorer", own, device="there")
    assert asked == [("prompt_scorer", {"device": "here"}), (str(own / "model"), {"device": "there"})]


def test_weights_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"mobilenet_v2.safetensors holds .*, wanted \{\}"):
        load_checked_weights("mobilenet_v2", {})

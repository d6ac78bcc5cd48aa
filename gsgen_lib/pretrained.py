"""The checkpoints that ship with the course: where they lie, what they are, whether they are whole.

Each is a folder data/checkpoints/NAME of safetensors and JSON files with a card.json:

    {"name", "command", "seed", "hours", "metrics": {...}, "commit", "machine", "licence", "sha256": {file: hash}}

`load_or_train(name)` loads it, or, where it is absent, trains one here with the same command; a file whose
hash differs from the card's is refused, with the reason. Nothing is ever unpickled. Taught in notebook 02.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from gsgen_lib.data import data_root

__all__ = ["CHECKPOINTS", "checked_folder", "load_network", "load_or_train", "read_card", "save_network", "write_card"]

LICENCE = "MIT, as the code; learned from renders of the course's toys and of its real training objects (data/CREDITS.md)"
# name -> (module, function that loads it from the shipped folder, function that trains it into a folder, and its settings)
CHECKPOINTS: dict[str, tuple] = {
    "prior": ("gsgen_lib.systems.prior", "load_prior", "gsgen_lib.systems.prior_training:train_prior"),
    "prompt_scorer": ("gsgen_lib.systems.prompt_scorer", "load_scorer", "gsgen_lib.systems.scorer_training:train_scorer"),
    "feedforward_unet": ("gsgen_lib.systems.feed_forward", "load_feed_forward",
                         "gsgen_lib.systems.feed_forward_training:train_feed_forward", {"backbone": "unet"}),
    "feedforward_transformer": ("gsgen_lib.systems.feed_forward", "load_feed_forward",
                                "gsgen_lib.systems.feed_forward_training:train_feed_forward", {"backbone": "transformer"}),
    **{f"splat_vae_{f}": ("gsgen_lib.systems.splat_vae", "load_splat_vae",
                          "gsgen_lib.systems.splat_vae_training:train_splat_vae", {"factor": f}) for f in (4, 8, 16)},
    "splat_diffusion": ("gsgen_lib.systems.splat_diffusion", "load_splat_diffusion",
                        "gsgen_lib.systems.splat_diffusion_training:train_splat_diffusion"),
    "autoreconstructor": ("gsgen_lib.systems.autoreconstructor", "load_autoreconstructor",
                          "gsgen_lib.systems.autoreconstructor_training:train_autoreconstructor"),
    "code_diffusion": ("gsgen_lib.systems.autoreconstructor_diffusion", "load_one_image",
                       "gsgen_lib.systems.code_training:train_codes"),
    **{f"voxel_{part.replace('-', '_')}": ("gsgen_lib.systems." + module, loader,
                                           "gsgen_lib.systems.sparse_voxels_training:train_voxels", {"part": part})
       for part, module, loader in (("structure", "sparse_voxels", "load_structure"),
                                    ("appearance", "sparse_voxels", "load_appearance"),
                                    ("structure-flow", "sparse_voxels_flow", "load_flow"),
                                    ("appearance-flow", "sparse_voxels_flow", "load_flow"))},
    "octree_density": ("gsgen_lib.systems.octree_density", "load_octree_density",
                       "gsgen_lib.systems.octree_density_training:train_density"),
}


def folder_of(name: str) -> Path:
    """Where the checkpoint of that name belongs; ValueError for a name that no checkpoint has."""
    if name not in CHECKPOINTS:
        raise ValueError(f"name: got {name!r}, wanted one of {', '.join(CHECKPOINTS)}")
    return data_root() / "checkpoints" / name


def read_card(folder: str | Path) -> dict:
    """The card of a checkpoint folder; FileNotFoundError or ValueError where there is none or it is not one."""
    path = Path(folder) / "card.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no card here, so this is not a checkpoint of the course")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON") from error
    if not isinstance(card, dict) or not isinstance(card.get("sha256"), dict) or not card["sha256"]:
        raise ValueError(f"{path}: names no files under sha256")
    return card


def write_card(folder: str | Path, facts: dict) -> dict:
    """Write card.json: the facts given, commit, machine, licence, and the sha256 of every other file of the folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "model.json").write_text("{}")
    ...     sorted(write_card(folder, {"name": "test"})["sha256"])
    ['model.json']
    """
    from gsgen_lib import bench

    folder = Path(folder)
    where = {"commit": bench.commit(), "machine": bench.machine(), "licence": LICENCE}
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "card.json")
    card = {**facts, **where, "sha256": {p.relative_to(folder).as_posix(): _digest(p) for p in files}}
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return card


def checked_folder(name: str | Path) -> Path:
    """The folder of a shipped checkpoint (or any folder with a card), every file compared with its hash.

    Raises ValueError naming the first file that is missing, damaged or not in the card.
    """
    folder = folder_of(str(name)) if str(name) in CHECKPOINTS else Path(name)
    card = read_card(folder)
    for file, wanted in card["sha256"].items():
        path = folder / file
        if not path.is_file():
            raise ValueError(f"{path}: missing, though card.json names it")
        got = _digest(path)
        if got != wanted:
            raise ValueError(f"{path}: sha256 is {got[:12]}..., wanted {wanted[:12]}...: the file is damaged or another one")
    extra = [p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).as_posix() not in card["sha256"]]
    extra = [p for p in extra if p.name != "card.json"]
    if extra:
        raise ValueError(f"{extra[0]}: not named by card.json, so it is not loaded")
    return folder


def load_or_train(name: str, folder: str | Path | None = None, preset: str = "cpu", **settings):
    """The model `name`: the shipped one, or the one in `folder`, trained there first if there is none.

    folder: where a model trained here is kept (default: runs/NAME); settings: passed on to the loader (device, ...).
    Prints which of the two was taken. Raises ValueError for a damaged checkpoint: it is not retrained silently.
    """
    from gsgen_lib.training import first_alone

    shipped = folder_of(name)
    module, loader, trainer, *more = CHECKPOINTS[name]
    load = getattr(importlib.import_module(module), loader)
    if folder is None and (shipped / "card.json").is_file():
        card = read_card(shipped)
        print(f"{name}: shipped checkpoint, trained {card.get('hours', '?')} h with {card.get('command', '?')}")
        return load(name, **settings)
    folder = Path(folder) if folder else Path("runs") / name
    if not (folder / "model" / "card.json").is_file():
        module, function = trainer.split(":")
        print(f"{name}: no checkpoint in {folder}; training one ({preset} preset), resumable")
        getattr(importlib.import_module(module), function)(out=folder, preset=preset, **(more[0] if more else {}))
        with first_alone():  # of several processes the first writes the model: the others wait here until it has
            pass
    print(f"{name}: trained here, {folder / 'model'}")
    return load(checked_folder(folder / "model"), **settings)


def save_network(model, folder: str | Path, facts: dict, before: dict | None = None) -> dict:
    """Weights in half precision, config.json of `model.config`, a dataclass, and the card; returns the card.

    before: of `beginning`, where training went on from another checkpoint: kept as "start", and its hours are added to ours.
    Of several processes of a training the first alone writes; the others return {}. ValueError for weights that are not finite,
    or too large for half precision.
    """
    import torch
    from safetensors.torch import save_file

    from gsgen_lib.training import is_first

    folder, weights = Path(folder), {k: v.to(torch.float16).contiguous() for k, v in model.state_dict().items()}
    _check_finite(weights, "model")
    if not is_first():
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(asdict(model.config), indent=1) + "\n", encoding="utf-8")
    if before:
        facts = {"start": before} | facts | {"hours": round(facts["hours"] + before.get("hours", 0), 2)}
    return write_card(folder, facts | {"parameters": sum(p.numel() for p in model.parameters())})


def beginning(name: str | Path) -> dict:
    """What the card of a network that was trained on from another checkpoint keeps of that one, as "start": how it was made, and
    its hashes. Raises what `checked_folder` raises.

    >>> sorted(beginning("feedforward_unet"))
    ['command', 'hours', 'sha256', 'steps']
    """
    card = read_card(checked_folder(name))
    return {k: card[k] for k in ("command", "steps", "hours", "sha256", "start") if k in card}


def load_network(name: str | Path, network: Callable, config: type, device: str = "cpu"):
    """network(config) with the weights of a checkpoint, shipped or a folder of `save_network`, for use: no gradient reaches it.

    Raises what `checked_folder` raises, and ValueError where config.json or the weights are of another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = checked_folder(name)
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model = network(config(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}))
        weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
        _check_finite(weights, "model.safetensors")
        model.load_state_dict(weights)
    except (OSError, TypeError, ValueError, RuntimeError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{folder}: no {network.__name__} ({str(error).splitlines()[0][:200]})") from error
    return model.to(device).eval().requires_grad_(False)


def _check_finite(weights: dict, name: str) -> None:
    wrong = [key for key, value in weights.items() if not bool(value.isfinite().all())]
    if wrong:
        raise ValueError(f"{name}: weights of {wrong[0]} are not finite")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

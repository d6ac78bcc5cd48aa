"""Checkpoints of trainings: one file, written whole or not at all, never unpickled, refused where it does not fit.

Holds the weights, their average, the optimiser, the step, the log, and what decided all of it: the configuration of the loop and
the facts that a training names (options of its network, of its loss, its data). A training goes on only where these agree.

Used by `gsgen_lib.training`.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

FREE = ("steps", "checkpoint_every", "final_lr", "precision")  # may change when a training is resumed


def save_state(path: Path, state: dict) -> None:
    """Write tensors, numbers (numpy's too), texts, lists and dicts; renamed into place: an interruption leaves the old file."""
    torch.save(_plain(state), path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def _plain(value):
    """Numpy numbers and arrays, in dicts, lists and tuples, as Python's: others could be written, but not be read again."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(v) for v in value)
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def load_state(path: Path, names: tuple[str, ...]) -> dict:
    """What `save_state` wrote, on the CPU, never unpickled; ValueError for a damaged file, or where one of `names` is missing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_state(Path(folder) / "x.pt", {"step": 3})
    ...     load_state(Path(folder) / "x.pt", ("step",))
    {'step': 3}
    """
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()  # torch does not compare checksums
        state = None if wrong else torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{path}: damaged ({type(error).__name__}); delete it to start again") from error
    if wrong or not isinstance(state, dict):
        raise ValueError(f"{path}: damaged ({wrong or type(state).__name__}); delete it to start again")
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(f"{path}: damaged (without {missing[0]!r}); delete it to start again")
    return state


def write_checkpoint(folder: Path, step, seconds, model, ema, optimizer, config, log, since, facts) -> None:
    """One file, renamed into place, so that an interruption leaves the last whole checkpoint. FloatingPointError for weights that
    are not finite."""
    broken = _not_finite(model.state_dict())
    if broken:
        raise FloatingPointError(f"weights: {broken} is not finite at step {step}; the last whole checkpoint is kept")
    state = {"step": step, "seconds": seconds, "model": model.state_dict(), "ema": ema.state_dict(),
             "optimizer": optimizer.state_dict(), "config": asdict(config), "log": log, "since": since, "facts": facts}
    save_state(folder / "checkpoint.pt", state)
    text = "".join(json.dumps(row) + "\n" for row in log)
    (folder / "log.part").write_text(text, encoding="utf-8")
    os.replace(folder / "log.part", folder / "log.jsonl")


def _not_finite(weights: dict) -> str | None:
    """The name of a tensor that holds a number that is not finite, if there is one."""
    return next((k for k, v in weights.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())), None)


def read_checkpoint(path: Path, model, ema, optimizer, config, facts: dict) -> tuple[int, float, list, list]:
    """Load a checkpoint into model, average and optimiser; (steps taken, seconds spent, log, what is not in the log yet)."""
    state = load_state(path, ("config", "step", "seconds", "model", "ema", "optimizer", "log"))
    saved, step = state["config"], state["step"]
    state = {"since": [], "facts": {}} | state  # older ones have neither
    kinds = {"config": dict, "step": int, "seconds": float | int, "model": dict, "ema": dict, "optimizer": dict, "log": list,
             "since": list, "facts": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(state[name], kind)]
    wrong = wrong or ["model"] * bool(_not_finite(state["model"]))
    wrong = wrong or ["step"] * (step < 0) or ["seconds"] * (not math.isfinite(state["seconds"]))
    if wrong:
        raise ValueError(f"{path}: damaged ({wrong[0]} is {state[wrong[0]]!r:.40}); delete it to start again")
    if step > config.steps:
        raise ValueError(f"{path}: has taken {step} steps, wanted {config.steps}; take another folder or delete the checkpoint")
    wanted = asdict(config) | facts
    saved = {"processes": 1} | saved | state["facts"]
    known = {**wanted, **saved} if state["facts"] else {**asdict(config), "processes": 1}  # the oldest keep no facts
    different = [k for k in known if k not in FREE and saved.get(k) != wanted.get(k)]
    if different:
        name = different[0]
        raise ValueError(f"{path}: was trained with {name}={saved.get(name)!r}, wanted {wanted.get(name)!r}; "
                         "take another folder or delete the checkpoint")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        model.load_state_dict(state["model"])
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        model.load_state_dict(before)  # nothing half-loaded
        raise ValueError(f"{path}: holds another network than the one given: {str(error)[:200]}") from error
    return step, state["seconds"], state["log"], state["since"]

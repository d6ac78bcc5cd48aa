"""Two processes under `accelerate launch` take the steps of one with twice the batch, and go on after an interruption."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gsgen_lib.pretrained import checked_folder, load_network, save_network
from gsgen_lib.systems.splat_diffusion import SplatDenoiser, SplatDiffusionConfig
from gsgen_lib.training import load_state

ROOT = Path(__file__).resolve().parents[2]
TWO = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
       "--mixed_precision", "no", "--dynamo_backend", "no"]


def run(command, *words):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, *map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def two(folder, steps, minutes=-1.0, port=29_611):
    run([*TWO, "--main_process_port", str(port), "-m"], "tests.training.processes_script", folder, steps, minutes)
    return load_state(folder / "checkpoint.pt", ("model", "ema", "step", "log"))


@pytest.mark.slow
def test_two_processes_follow_one_with_twice_the_batch_and_resume(tmp_path):
    whole = two(tmp_path / "two", 120)
    run([sys.executable, "-m"], "tests.training.processes_script", tmp_path / "one", 120, -1.0, "one")
    one = load_state(tmp_path / "one" / "checkpoint.pt", ("model", "ema", "step", "log"))
    assert whole["step"] == one["step"] == 120
    curves = [[row["loss"] for row in found["log"]] for found in (whole, one)]
    torch.testing.assert_close(*map(torch.tensor, curves), rtol=1e-3, atol=1e-5)
    assert curves[0][-1] < curves[0][0] / 2  # something was learned
    for key, weight in one["model"].items():
        torch.testing.assert_close(whole["model"][key], weight, rtol=1e-3, atol=1e-4)
    # what is logged beside the loss is a mean over processes, too: the largest of 6 is below the largest of 12
    assert whole["log"][0]["largest"] < one["log"][0]["largest"]

    stopped = two(tmp_path / "resumed", 120, minutes=0.0)  # stops after its first step
    assert stopped["step"] < 120
    again = two(tmp_path / "resumed", 120)
    assert again["step"] == 120
    for key, weight in whole["model"].items():
        torch.testing.assert_close(again["model"][key], weight, rtol=1e-4, atol=1e-5)
    rows = [json.loads(line) for line in (tmp_path / "resumed" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows][-1] == 120 and len({row["step"] for row in rows}) == len(rows)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_stops_both(tmp_path):
    """Without waiting for each other, and before it is kept."""
    run([*TWO, "--main_process_port", "29613", "-m"], "tests.training.processes_script", tmp_path / "nan", 120, -1.0, "nan")
    said = {name: (tmp_path / "nan" / f"stopped_{name}.txt").read_text() for name in ("first", "second")}
    assert all("at step 3" in text for text in said.values()) and "nan" in said["second"] and "nan" not in said["first"]
    assert not (tmp_path / "nan" / "checkpoint.pt").exists()


def test_only_the_first_process_writes_a_network(tmp_path, monkeypatch):
    network = load_network("splat_diffusion", SplatDenoiser, SplatDiffusionConfig)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert save_network(network, tmp_path / "model", {"name": "x", "hours": 0.0}) == {} and not (tmp_path / "model").exists()
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    assert save_network(network, tmp_path / "model", {"name": "x", "hours": 0.0})["name"] == "x"


@pytest.mark.slow
def test_a_system_of_the_course_trains_with_two_processes(tmp_path):
    run([*TWO, "--main_process_port", "29612", "-m"], "gsgen_lib.cli", "train", "var", "--preset", "tiny", "--out", tmp_path / "v")
    assert checked_folder(tmp_path / "v" / "model").is_dir()
    assert load_state(tmp_path / "v" / "checkpoint.pt", ("step",))["step"] == 2

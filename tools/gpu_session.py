"""What to run on a machine with a GPU, in pieces that each end in time.

    python -m tools.gpu_session                     all steps
    python -m tools.gpu_session raster_gpu          some of them
    python -m tools.gpu_session --list

Runs the GPU tests, the GPU benchmarks and the trainings of what ships one after the other, each in a
process of its own that is ended when its budget is spent, and prints one JSON object: the machine, and
for each step its seconds, exit code and result (a benchmark's JSON, or the last lines printed). A
machine that has torch with CUDA but lacks other packages can have them on PYTHONPATH. Trained models
are also copied to the folder $OUT where that is set. The exit code is 1 if any step failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tools.repo_name import ROOT

BENCH, TRAIN = ("-m", "gsgen_lib.cli", "bench"), ("-m", "gsgen_lib.cli", "train")


@dataclass(frozen=True)
class Step:
    """Arguments for python, and the seconds that the step may take (below ten minutes)."""

    name: str
    arguments: tuple[str, ...]
    budget: int


STEPS = (
    Step("tests", ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"), 400),
    Step("raster_gpu", (*BENCH, "raster_gpu", "--json"), 400),
    # The trainings resume: run a step again, on the same machine, until its model is whole.
    Step("scorer", (*TRAIN, "scorer", "--preset", "gpu", "--minutes", "7"), 580),
    # What ships is of the size "cpu"; these train it on. ("gpu" is larger, for pictures of 128 x 128 pixels.)
    Step("prior", (*TRAIN, "prior", "--preset", "cpu", "--minutes", "4"), 580),
    Step("feedforward", (*TRAIN, "feedforward", "--preset", "cpu", "--start", "feedforward_unet", "--minutes", "6"), 580),
    Step("transformer", (*TRAIN, "feedforward", "--preset", "cpu", "--backbone", "transformer", "--start",
                         "feedforward_transformer", "--minutes", "6"), 580),
    Step("vae", (*TRAIN, "vae", "--preset", "cpu", "--decoder-of", "splat_vae_8", "--passes", "3", "--minutes", "6"), 580),
    Step("diffusion", (*TRAIN, "diffusion", "--preset", "cpu", "--start", "splat_diffusion", "--minutes", "6"), 580),
    Step("var", (*TRAIN, "var", "--preset", "cpu", "--minutes", "7"), 580),
    Step("var_128", (*TRAIN, "var", "--preset", "gpu", "--out", "runs/autoreconstructor_128", "--minutes", "4"), 580),
    Step("voxels", (*TRAIN, "voxels", "--preset", "cpu", "--part", "structure", "--minutes", "6"), 580),
    Step("voxel_colours", (*TRAIN, "voxels", "--preset", "cpu", "--part", "appearance", "--minutes", "6"), 580),
    Step("density", (*TRAIN, "density", "--preset", "cpu", "--minutes", "3"), 580),  # three stages, so many minutes each
)


def tail(text: str, lines: int = 15) -> str:
    """The last lines of a text."""
    return "\n".join(text.strip().splitlines()[-lines:])


def run_step(step: Step) -> dict:
    """Run one step within its budget; {"name", "seconds", "rc", "timed_out", "result"}.

    >>> step = Step("sum", ("-c", "print('[1]')"), 60)
    >>> {key: value for key, value in run_step(step).items() if key != "seconds"}
    {'name': 'sum', 'rc': 0, 'timed_out': False, 'result': [1]}
    """
    started = time.perf_counter()
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *step.arguments]
    try:
        run = subprocess.run(command, cwd=ROOT, env=environment, timeout=step.budget, capture_output=True, text=True)
        rc, output, timed_out = run.returncode, run.stdout, False
        if rc:
            output += run.stderr
    except subprocess.TimeoutExpired as stopped:
        rc, timed_out = 124, True
        output = "".join(part.decode(errors="replace") for part in (stopped.stdout, stopped.stderr) if part)
    try:
        result = json.loads(output.strip().splitlines()[-1])
    except (ValueError, IndexError):
        result = tail(output)
    seconds = round(time.perf_counter() - started, 1)
    return {"name": step.name, "seconds": seconds, "rc": rc, "timed_out": timed_out, "result": result}


def hand_back(runs: Path, out: Path) -> list[str]:
    """Copy every finished model of `runs` (a folder NAME/model with a card) to out/NAME; their names."""
    models = sorted(card.parent for card in runs.glob("*/model/card.json"))
    for model in models:
        shutil.copytree(model, out / model.parent.name, dirs_exist_ok=True)
    return [model.parent.name for model in models]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="steps; all if none is given")
    parser.add_argument("--list", action="store_true", help="name the steps and their budgets, and stop")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {step.name for step in STEPS}
    if unknown:
        parser.error(f"unknown steps {sorted(unknown)}, wanted some of {[step.name for step in STEPS]}")
    if arguments.list:
        print("\n".join(f"{step.name:<10} {step.budget} s  python {' '.join(step.arguments)}" for step in STEPS))
        return 0
    from gsgen_lib.bench import commit, machine

    chosen = [step for step in STEPS if not arguments.names or step.name in arguments.names]
    steps = [run_step(step) for step in chosen]
    if os.environ.get("OUT"):  # where a borrowed machine hands files back
        hand_back(ROOT / "runs", Path(os.environ["OUT"]))
    print(json.dumps({"machine": machine(), "commit": commit(), "steps": steps}))
    return 1 if any(step["rc"] for step in steps) else 0


if __name__ == "__main__":
    sys.exit(main())

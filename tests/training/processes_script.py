"""What `test_processes.py` starts: a small training, by one process with batches of two, or by two with a batch each.

    python -m tests.training.processes_script FOLDER STEPS MINUTES [one|nan]
"""

import sys
from pathlib import Path

import torch
from torch import nn

from gsgen_lib.training import TrainConfig, is_first, seeded, train

BATCH = 6


def half(generator):
    x = torch.rand(BATCH, 3, generator=generator)
    return x, (3 * x[:, :1] - x[:, 1:2] ** 2).sin()


def both(generator):
    """The batches that two processes would draw: a step's seed grows by this number from one process to the next."""
    seeds = [(generator.initial_seed() + process * 1_000_000_007) % 2**63 for process in range(2)]
    return tuple(torch.cat(parts) for parts in zip(*(half(torch.Generator().manual_seed(s)) for s in seeds), strict=True))


def loss(model, batch, generator):
    x, y = batch
    return {"loss": (model(x) - y).square().mean(), "largest": x.max()}


def broken(model, batch, generator):
    """Not finite in the second process alone, from its fourth step on."""
    found = loss(model, batch, generator)
    broken.calls += 1
    return found | {"loss": found["loss"] * float("nan")} if broken.calls > 3 and not is_first() else found


broken.calls = 0

if __name__ == "__main__":
    folder, steps, minutes = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1)), 0)
    config = TrainConfig(steps=steps, lr=0.02, warmup=5, checkpoint_every=20, ema_decay=0.9, seed=1)
    try:
        train(model, broken if "nan" in sys.argv else loss, both if "one" in sys.argv else half, config, folder, device="cpu",
              progress=False, minutes=None if minutes < 0 else minutes)
    except FloatingPointError as error:  # noted by each process for itself
        (Path(folder) / f"stopped_{'first' if is_first() else 'second'}.txt").write_text(str(error))

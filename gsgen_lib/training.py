"""One visible training loop, for every system of the course.

    for step in range(steps):
        batch = draw_batch(generator of this step)
        loss  = loss_fn(model, batch, generator of this step)
        loss.backward(); clip; AdamW step; EMA update

The learning rate rises linearly over `warmup` steps, then follows half a cosine down to
`final_lr * lr`. The random generator of a step is made from (seed, step, process), so a step's data do
not depend on what ran before: a training that was interrupted and resumed takes the same steps as one
that was not. A checkpoint (weights, average, optimiser, log) is written to one file, by renaming, so
that there is always a whole one; an interruption loses at most `checkpoint_every` steps.

Device, mixed precision and several processes are Accelerate's business: the same call runs on a CPU, on
one GPU, and under `accelerate launch --multi_gpu --num_processes n` (on CPUs, too): n processes, each
with a batch of its own, take the steps of one with a batch n times as large, and the log holds their
mean. (With precision "fp16" the gradient scaler starts anew after an interruption.)
Taught in notebook 02.
"""

from __future__ import annotations

import atexit
import gc
import json
import math
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, nn

from gsgen_lib.checkpoints import load_state, read_checkpoint, save_state, write_checkpoint
from gsgen_lib.diffusion.ema import EMA
from gsgen_lib.options import check_options

__all__ = ["TrainConfig", "TrainResult", "first_alone", "is_first", "learning_rate", "load_state", "save_state", "seeded",
           "step_generator", "train"]


@dataclass(frozen=True)
class TrainConfig:
    """steps: optimiser steps; lr: peak rate; warmup: steps; final_lr: as a share of lr; weight_decay: AdamW's;
    clip: largest gradient norm; ema_decay: of the averaged weights; checkpoint_every: steps; seed: of everything
    random; precision: "no", "bf16" or "fp16".

    >>> TrainConfig(steps=0)
    Traceback (most recent call last):
    ValueError: steps: got 0, wanted a whole number >= 1
    """

    steps: int
    lr: float = 1e-3
    warmup: int = 100
    final_lr: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    ema_decay: float = 0.999
    checkpoint_every: int = 500
    seed: int = 0
    precision: str = "no"

    def __post_init__(self):
        for name in ("steps", "checkpoint_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}, wanted a whole number >= 1")
        check_options(self, "config", ("lr", "clip"))
        if self.precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"precision: got {self.precision!r}, wanted no, bf16 or fp16")


@dataclass
class TrainResult:
    """step: optimiser steps taken in all; seconds: spent on them in all; log: [{"step", "loss", "lr", ...}];
    ema: the averaged weights, which the model holds now."""

    step: int
    seconds: float
    log: list[dict] = field(default_factory=list)
    ema: EMA | None = None


def seeded(make: Callable, seed: int):
    """make(), with torch's own generator seeded for it and put back: the initial weights of a network.

    >>> a, b = (seeded(lambda: nn.Linear(2, 2), 5) for _ in range(2))
    >>> bool((a.weight == b.weight).all())
    True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of a step: linear warm-up, then half a cosine from lr to final_lr * lr.

    >>> config = TrainConfig(steps=101, lr=1.0, warmup=1, final_lr=0.1)
    >>> [round(learning_rate(s, config), 2) for s in (0, 1, 51, 101)]
    [1.0, 1.0, 0.55, 0.1]
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    share = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * share)))


def step_generator(seed: int, step: int, process: int = 0) -> torch.Generator:
    """The generator (CPU) of one step of one process; the same whatever ran before.

    >>> a, b = (torch.rand(1, generator=step_generator(0, 7)) for _ in range(2))
    >>> bool(a == b)
    True
    """
    return torch.Generator().manual_seed(((seed * 1_000_003 + process) * 1_000_000_007 + step) % 2**63)


@contextmanager
def no_denormals():
    """Numbers below 1e-38 count as 0 on this thread: with them a CPU takes ten times as long, and attention has many.

    >>> with no_denormals():
    ...     float(torch.tensor(1e-38) * torch.tensor(0.1))
    0.0
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@no_denormals()
def train(model: nn.Module, loss_fn: Callable, draw_batch: Callable, config: TrainConfig, folder: str | Path,
          sheet: Callable | None = None, minutes: float | None = None, device: str | None = None,
          progress: bool = True, facts: dict | None = None) -> TrainResult:
    """Train `model` in place, resuming from `folder`/checkpoint.pt if there is one; it ends holding the average.

    loss_fn(model, batch, generator) -> scalar Tensor, or {"loss": scalar, name: number to log, ...};
    draw_batch(generator) -> anything; its tensors are moved to the device;
    sheet(model) -> (H, W, 3) picture in [0, 1], saved as samples_STEP.png beside each checkpoint, drawn with the
    averaged weights; minutes: stop early, with a checkpoint, when they are over; device: "cpu" keeps off the GPU; facts: what
    else decides what is learned (options of the network, of the loss), kept in the checkpoint.
    Writes checkpoint.pt and log.jsonl (which `viz.training_curves` draws). Raises ValueError for a checkpoint of
    another configuration, other facts, another network or more steps, and FloatingPointError when the loss, or its gradient, is
    not finite: then the last whole checkpoint is kept.

    >>> import tempfile
    >>> line = nn.Linear(1, 1)
    >>> draw = lambda generator: torch.rand(16, 1, generator=generator)
    >>> loss = lambda model, x, generator: (model(x) - 3 * x).square().mean()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = train(line, loss, draw, TrainConfig(steps=300, lr=0.1), folder, device="cpu", progress=False)
    >>> abs(line.weight.item() - 3) < 0.1, result.step
    (True, 300)
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import send_to_device
    from tqdm import tqdm

    if device not in (None, "cpu", "cuda") or device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: got {device!r}, wanted cpu, cuda where there is a GPU, or None for what there is")
    if minutes is not None and math.isnan(minutes):
        raise ValueError("minutes: got nan, wanted a number, or None for no limit")
    try:
        json.dumps(facts)
    except (TypeError, ValueError) as error:
        raise ValueError(f"facts: got {facts!r:.200}, wanted numbers, texts, lists and dicts of these ({error})") from error
    started_several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if started_several and device == "cpu" and torch.cuda.is_available():
        raise ValueError("device: got 'cpu' for one of several processes that use GPUs, wanted None (accelerate launch --cpu)")
    if not started_several:
        AcceleratorState._reset_state(reset_partial_state=True)  # else device and precision of the first training would stay
    accelerator = Accelerator(mixed_precision=config.precision, cpu=device == "cpu" or not torch.cuda.is_available())
    folder, several = Path(folder), accelerator.num_processes > 1
    facts = (facts or {}) | {"processes": accelerator.num_processes}  # each draws a batch of its own
    folder.mkdir(parents=True, exist_ok=True)
    if all(weight.ndim != 5 for weight in model.parameters()):  # of 3D convolutions, which know no such layout
        model.to(memory_format=torch.channels_last)  # in this layout convolutions take less time
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    model = accelerator.unwrap_model(prepared)
    ema, log, first, spent, since = EMA(model, config.ema_decay), [], 0, 0.0, []
    if (folder / "checkpoint.pt").is_file():
        first, spent, log, since = read_checkpoint(folder / "checkpoint.pt", model, ema, optimizer, config, facts)
    started, step = time.perf_counter(), first

    def checkpoint() -> None:
        if not accelerator.is_main_process:
            return
        seconds = spent + time.perf_counter() - started
        write_checkpoint(folder, step, seconds, model, ema, optimizer, config, log, since, facts)
        if sheet is not None:
            with ema.applied(model):
                model.eval()
                _save_picture(sheet(model), folder / f"samples_{step:06d}.png")
                model.train()

    if several:
        atexit.register(_leave)  # else the end of one process may tear down what another still waits for
    model.train()
    bar = tqdm(total=config.steps, initial=first, disable=not (progress and accelerator.is_main_process),
               mininterval=2, desc=folder.name)
    while step < config.steps:
        generator = step_generator(config.seed, step, accelerator.process_index)
        batch = send_to_device(draw_batch(generator), accelerator.device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        with accelerator.autocast():
            found = loss_fn(prepared, batch, generator)
        found = found if isinstance(found, dict) else {"loss": found}
        loss = found["loss"]
        if together(accelerator, not bool(torch.isfinite(loss))):  # all stop, or none
            raise FloatingPointError(f"loss: got {loss.item()} at step {step}; the last whole checkpoint is kept")
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), config.clip)
        if config.precision != "fp16" and together(accelerator, not bool(torch.isfinite(norm))):  # fp16 leaves such steps out
            raise FloatingPointError(f"gradient: got a norm of {float(norm)} at step {step}; the last whole checkpoint is kept")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(model)
        step += 1
        since.append({key: float(value.detach()) if isinstance(value, Tensor) else float(value)
                      for key, value in found.items()})
        bar.update()
        over = minutes is not None and together(accelerator, time.perf_counter() - started > 60 * minutes)
        if len(since) == 50 or step == config.steps or over:
            sums = torch.tensor([sum(row[key] for row in since) for key in since[0]], dtype=torch.float64)
            sums = accelerator.reduce(sums.float().to(accelerator.device), "mean").cpu() if several else sums
            means = dict(zip(since[0], (sums / len(since)).tolist(), strict=True))
            log.append({"step": step, **means, "lr": learning_rate(step - 1, config),
                        "seconds": round(spent + time.perf_counter() - started, 1)})
            bar.set_postfix(loss=f"{means['loss']:.4f}")
            since = []
        if step % config.checkpoint_every == 0 or step == config.steps or over:
            checkpoint()
        if over:
            break
    bar.close()
    ema.copy_to(model)
    model.to(memory_format=torch.contiguous_format).eval()
    return TrainResult(step, spent + time.perf_counter() - started, log, ema)


def _leave() -> None:
    """Leave the group of processes, if we still are in one, and wait until its threads are done: one that still frees a tensor of
    the last exchange when the interpreter has ended takes the process with it (SIGABRT)."""
    if torch.distributed.is_initialized():
        gc.collect()  # a model that several processes shared holds the group, too
        torch.distributed.destroy_process_group()
        time.sleep(0.3)


def together(accelerator, flag: bool) -> bool:
    """Whether any of the processes says so."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum"))


@contextmanager
def first_alone():
    """With several processes, the first runs this block alone; then the others do, and find what it left on disk.

    >>> with first_alone():
    ...     print("one process does not wait")
    one process does not wait
    """
    from accelerate import PartialState

    with PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=12)).main_process_first():
        yield


def is_first() -> bool:
    """Whether this process is the first of several, or the only one: it writes what is written once.

    >>> is_first()
    True
    """
    return not (torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank())


def _save_picture(picture: Tensor, path: Path) -> None:
    from PIL import Image

    array = (picture.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    Image.fromarray(array).save(path)

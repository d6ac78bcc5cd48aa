"""The loop against one written by hand, and what it leaves behind: modes, checkpoints, log, pictures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from gsgen_lib import training
from gsgen_lib.training import TrainConfig, learning_rate, seeded, step_generator, train

CONFIG = TrainConfig(steps=25, lr=0.02, warmup=4, weight_decay=0.3, clip=0.2, ema_decay=0.5, checkpoint_every=10, seed=3)


def make():
    return seeded(lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), 0)


def draw(generator):
    return torch.rand(8, 2, generator=generator)


def loss(model, x, generator):
    return (model(x) - 3 - torch.rand(8, 1, generator=generator)).square().mean()


def run(model, folder, config=CONFIG, loss_fn=loss, **more):
    return train(model, loss_fn, draw, config, folder, device="cpu", progress=False, **more)


def test_the_loop_is_the_one_of_its_header(tmp_path):
    """Clip, AdamW with its decay, the rate of each step, the average after the step: all by hand."""
    model, mine = make(), make()
    result = run(model, tmp_path)
    p = [v.detach().double() for v in mine.parameters()]
    m, v, average = [torch.zeros_like(x) for x in p], [torch.zeros_like(x) for x in p], [x.clone() for x in p]
    for step in range(25):
        generator = torch.Generator().manual_seed((3 * 1_000_003 * 1_000_000_007 + step) % 2**63)
        x = draw(generator)
        for own, value in zip(mine.parameters(), p, strict=True):
            own.data = value.float()
        grads = torch.autograd.grad(loss(mine, x, generator), list(mine.parameters()))
        size = sum(g.double().square().sum() for g in grads).sqrt()
        rate, k = learning_rate(step, CONFIG), step + 1
        for i, g in enumerate(grads):
            g = g.double() * min(1.0, 0.2 / (float(size) + 1e-6))
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g * g
            p[i] = p[i] * (1 - rate * 0.3) - rate * (m[i] / (1 - 0.9**k)) / ((v[i] / (1 - 0.999**k)).sqrt() + 1e-8)
            decay = min(0.5, (1 + k) / (10 + k))
            average[i] = decay * average[i] + (1 - decay) * p[i]
    for got, wanted in zip(model.parameters(), average, strict=True):
        torch.testing.assert_close(got.detach().double(), wanted, atol=2e-5, rtol=1e-4)
    raw = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.testing.assert_close(raw["model"]["0.weight"].double(), p[0], atol=2e-5, rtol=1e-4)
    assert raw["step"] == 25 and result.log[-1]["lr"] == learning_rate(24, CONFIG)  # the last step is kept, and told


def test_pictures_are_drawn_with_the_average_and_training_goes_on_as_it_was(tmp_path):
    model, modes, drawn = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1)).eval(), [], []

    def noted(model, x, generator):
        modes.append((model.training, model[0].weight.detach().clone()))
        return loss(model, x, generator)

    def sheet(model):
        drawn.append((model.training, model[0].weight.detach().clone()))
        return torch.tensor([-0.3, 0.5, 1.7]).expand(2, 2, 3)

    result = run(model, tmp_path, replace(CONFIG, steps=20), noted, sheet=sheet)
    assert all(mode for mode, _ in modes) and not any(mode for mode, _ in drawn) and not model.training
    assert torch.equal(drawn[1][1], result.ema.shadow["0.weight"])
    assert not torch.equal(drawn[0][1], modes[10][1])  # after 10 steps the average is not the network itself
    saved = np.asarray(Image.open(tmp_path / "samples_000020.png"))
    assert saved.shape == (2, 2, 3) and saved[0, 0].tolist() == [0, 128, 255]


def test_convolutions_train_in_the_fast_layout_and_leave_it(tmp_path):
    model, layouts = nn.Conv2d(3, 4, 3), []

    def noted(model, x, generator):
        layouts.append(model.weight.is_contiguous(memory_format=torch.channels_last))
        return model(torch.rand(1, 3, 4, 4, generator=generator)).square().mean()

    run(model, tmp_path, replace(CONFIG, steps=2), noted)
    assert layouts == [True, True] and model.weight.is_contiguous()


def test_time_is_counted_on_and_the_limit_is_in_minutes(tmp_path, monkeypatch):
    now = iter(range(0, 10**6, 10))  # each look at the clock takes ten seconds
    monkeypatch.setattr(training.time, "perf_counter", lambda: float(next(now)))
    first = run(make(), tmp_path, replace(CONFIG, steps=500), minutes=5.0)
    assert 5 < first.step < 40  # one look a step, and a few for the log
    second = run(make(), tmp_path, replace(CONFIG, steps=500), minutes=5.0)
    assert second.step > first.step and second.seconds > first.seconds + 250
    assert second.log[-1]["seconds"] > first.log[-1]["seconds"] + 250


def test_an_interrupted_save_leaves_the_last_whole_checkpoint(tmp_path, monkeypatch):
    run(make(), tmp_path, replace(CONFIG, steps=10))
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def power_cut(state, path):
        with open(path, "wb") as file:
            file.write(b"half a")
        raise OSError("power cut")

    monkeypatch.setattr(torch, "save", power_cut)
    with pytest.raises(OSError, match="power cut"):
        run(make(), tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


class Harm:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def test_a_checkpoint_is_never_unpickled(tmp_path):
    torch.save({"step": Harm(), "config": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="checkpoint.pt: damaged"):
        run(make(), tmp_path)


@pytest.mark.parametrize("change", [{"lr": 0.1}, {"warmup": 1}, {"weight_decay": 0.0}, {"clip": 9.0}, {"ema_decay": 0.9},
                                    {"seed": 4}])
def test_what_shapes_a_training_may_not_change_on_the_way(tmp_path, change):
    run(make(), tmp_path, replace(CONFIG, steps=2))
    name = next(iter(change))
    with pytest.raises(ValueError, match=f"was trained with {name}={getattr(CONFIG, name)}, wanted {change[name]}"):
        run(make(), tmp_path, replace(CONFIG, **change))


def test_what_only_says_how_long_may_change(tmp_path):
    run(make(), tmp_path, replace(CONFIG, steps=2))
    assert run(make(), tmp_path, replace(CONFIG, steps=4, checkpoint_every=1, final_lr=0.5, precision="bf16")).step == 4


def test_mixed_precision_holds_for_the_loss_too(tmp_path):
    kinds = []

    def noted(model, x, generator):
        kinds.append(((x @ x.T).dtype, model[0].weight.dtype))
        return loss(model, x, generator)

    for precision in ("no", "bf16"):
        run(make(), tmp_path / precision, replace(CONFIG, steps=1, precision=precision), noted)
    assert kinds == [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)]


def test_each_process_draws_its_own_batches(tmp_path, monkeypatch):
    seen = []

    def noted(model, x, generator):
        seen.append(x)
        return loss(model, x, generator)

    monkeypatch.setattr(Accelerator, "process_index", property(lambda self: 2))
    run(make(), tmp_path, replace(CONFIG, steps=1), noted)
    assert torch.equal(seen[0], draw(step_generator(3, 0, 2))) and not torch.equal(seen[0], draw(step_generator(3, 0, 0)))


def test_seeding_a_network_leaves_torchs_own_generator_alone():
    torch.rand(1)  # not where `make` itself would leave it
    before = torch.get_rng_state()
    make()
    assert torch.equal(torch.get_rng_state(), before)

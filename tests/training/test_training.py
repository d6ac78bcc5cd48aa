"""The loop: a resumed training equals an uninterrupted one, nothing half-written is loaded, mistakes are named."""

import json
import zipfile
from dataclasses import replace

import pytest
import torch
from torch import nn

from gsgen_lib.training import TrainConfig, learning_rate, load_state, save_state, seeded, step_generator, train
from gsgen_lib.viz.curves import read_log

CONFIG = TrainConfig(steps=60, lr=0.05, warmup=5, checkpoint_every=10, ema_decay=0.9)


def make():
    return seeded(lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), 0)


def draw(generator):
    return torch.rand(32, 2, generator=generator)


def loss(model, x, generator):
    noise = 0.1 * torch.randn(len(x), 1, generator=generator)
    return {"loss": (model(x) - x.prod(1, keepdim=True) - noise).square().mean(), "size": float(len(x))}


def run(model, folder, config=CONFIG, loss_fn=loss, **more):
    return train(model, loss_fn, draw, config, folder, device="cpu", progress=False, **more)


class Stop(Exception):
    pass


def stopping_at(step):
    calls = iter(range(10**6))

    def loss_fn(model, x, generator):
        if next(calls) == step:
            raise Stop
        return loss(model, x, generator)

    return loss_fn


def test_an_interrupted_and_resumed_training_ends_where_an_uninterrupted_one_does(tmp_path):
    whole, parts = make(), make()
    run(whole, tmp_path / "whole")
    with pytest.raises(Stop):
        run(parts, tmp_path / "parts", loss_fn=stopping_at(37))
    assert torch.load(tmp_path / "parts/checkpoint.pt", weights_only=True)["step"] == 30  # at most one interval is lost
    fresh = make()
    result = run(fresh, tmp_path / "parts")
    assert result.step == 60
    for a, b in zip(whole.parameters(), fresh.parameters()):
        assert torch.equal(a, b)
    other = make()  # and the seed does matter
    run(other, tmp_path / "other", replace(CONFIG, seed=1))
    assert not torch.equal(other[0].weight, whole[0].weight)


def test_the_loss_falls_and_the_log_tells(tmp_path):
    model = make()
    result = run(model, tmp_path, replace(CONFIG, steps=400))
    assert result.log[-1]["loss"] < 0.3 * result.log[0]["loss"] and result.log[-1]["size"] == 32
    assert read_log(tmp_path / "log.jsonl") == result.log and [row["step"] for row in result.log] == list(range(50, 401, 50))


def test_the_model_ends_holding_the_average_and_the_checkpoint_holds_both(tmp_path):
    model = make()
    result = run(model, tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert torch.equal(model[0].weight, result.ema.shadow["0.weight"])
    assert torch.equal(state["ema"]["shadow"]["0.weight"], model[0].weight)
    assert not torch.equal(state["model"]["0.weight"], model[0].weight)


def test_time_over_stops_with_a_checkpoint_and_pictures_are_saved(tmp_path):
    result = run(make(), tmp_path, minutes=0.0, sheet=lambda model: torch.rand(4, 6, 3))
    assert result.step == 1 and torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 1
    assert (tmp_path / "samples_000001.png").is_file()
    assert run(make(), tmp_path).step == 60


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"hello" + b[5:]])
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    run(make(), tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="checkpoint.pt: damaged"):
        run(make(), tmp_path)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    run(make(), tmp_path)
    with pytest.raises(ValueError, match="trained with lr=0.05, wanted 0.1"):
        run(make(), tmp_path, replace(CONFIG, lr=0.1))
    with pytest.raises(ValueError, match="holds another network"):
        run(nn.Linear(2, 1), tmp_path)
    assert run(make(), tmp_path, replace(CONFIG, steps=70)).step == 70  # longer is allowed


def test_another_number_of_processes_is_refused(tmp_path):
    """Each process draws a batch, so two would go on with twice the batch; a checkpoint that says nothing is of one."""
    run(make(), tmp_path)
    state = load_state(tmp_path / "checkpoint.pt", ("facts",))
    assert state["facts"] == {"processes": 1}
    save_state(tmp_path / "checkpoint.pt", state | {"facts": {"processes": 2}})
    with pytest.raises(ValueError, match="processes=2, wanted 1"):
        run(make(), tmp_path)
    save_state(tmp_path / "checkpoint.pt", state | {"facts": {}})
    assert run(make(), tmp_path).step == 60


def test_a_loss_that_is_not_finite_stops_before_it_harms(tmp_path):
    def broken(model, x, generator):
        return model(x).mean() * float("nan")

    model = make()
    before = model[0].weight.clone()
    with pytest.raises(FloatingPointError, match="nan at step 0"):
        run(model, tmp_path, loss_fn=broken)
    assert torch.equal(model[0].weight, before) and not (tmp_path / "checkpoint.pt").exists()


def test_gradients_are_clipped(tmp_path):
    """With AdamW only the direction would remain, so the norm is read where the loop left it."""
    seen = []

    class Steep(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return 1e4 * (self.w * torch.tensor([1.0, 2.0, 3.0])).sum() + 0 * x.sum()

    model = Steep()
    model.w.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad))
    run(model, tmp_path, replace(CONFIG, steps=1, clip=0.5), lambda m, x, g: m(x))
    assert abs(seen[0].norm().item() - 0.5) < 1e-4  # clipped in place afterwards


def test_learning_rate_against_the_formula():
    config = TrainConfig(steps=1000, lr=2.0, warmup=10, final_lr=0.1)
    assert [learning_rate(s, config) for s in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    for step in (10, 300, 505, 999):
        share = (step - 10) / 990
        cosine = torch.cos(torch.tensor(share, dtype=torch.float64) * torch.pi).item()
        assert learning_rate(step, config) == pytest.approx(0.2 + 1.8 * (1 + cosine) / 2)
    assert learning_rate(5000, config) == pytest.approx(0.2)


def test_generators_differ_by_seed_step_and_process():
    draws = {(s, t, p): torch.rand(1, generator=step_generator(s, t, p)).item()
             for s in range(3) for t in range(5) for p in range(2)}
    assert len(set(draws.values())) == len(draws)


@pytest.mark.parametrize("change,message", [
    ({"steps": 0}, "steps: got 0"), ({"steps": 1.5}, "steps: got 1.5"), ({"checkpoint_every": -1}, "checkpoint_every"),
    ({"lr": 0.0}, "lr: got 0.0"), ({"clip": -1.0}, "clip"), ({"precision": "fp8"}, "precision: got 'fp8'"),
])
def test_bad_configurations_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)
    assert json.dumps(CONFIG.__dict__)


def test_a_gradient_that_is_not_finite_stops_before_it_harms(tmp_path):
    """The root at 0 has a finite value and no finite slope."""
    calls = iter(range(10**6))

    def broken(model, x, generator):
        found = loss(model, x, generator)["loss"]
        return found + (0 * found).sqrt() if next(calls) == 20 else found

    with pytest.raises(FloatingPointError, match="gradient: got a norm of nan at step 20"):
        run(make(), tmp_path, loss_fn=broken)
    state = load_state(tmp_path / "checkpoint.pt", ("step", "model"))
    assert state["step"] == 20 and all(torch.isfinite(v).all() for v in state["model"].values())
    assert run(make(), tmp_path).step == 60  # goes on


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path):
    run(make(), tmp_path)
    state = load_state(tmp_path / "checkpoint.pt", ("model",))
    state["model"]["0.weight"][0, 0] = float("nan")
    save_state(tmp_path / "checkpoint.pt", state)
    with pytest.raises(ValueError, match="damaged .model is"):
        run(make(), tmp_path)

    class Spoiled(nn.Sequential):
        def forward(self, x):
            y = super().forward(x)
            with torch.no_grad():
                self[0].weight[0, 0] = float("inf")
            return y

    spoiled = seeded(lambda: Spoiled(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), 0)
    with pytest.raises(FloatingPointError):
        run(spoiled, tmp_path / "b", replace(CONFIG, steps=1))
    assert not (tmp_path / "b" / "checkpoint.pt").exists()


def test_facts_that_are_dropped_or_cannot_be_kept_are_refused(tmp_path):
    run(make(), tmp_path, replace(CONFIG, steps=10), facts={"shards": "a"})
    for facts, said in ((None, "shards='a', wanted None"), ({"shards": "a", "kept": 1}, "kept=None, wanted 1")):
        with pytest.raises(ValueError, match=said):
            run(make(), tmp_path, facts=facts)
    assert run(make(), tmp_path, facts={"shards": "a"}).step == 60
    state = load_state(tmp_path / "checkpoint.pt", ("facts",))
    for wrong in (None, ["a"]):
        save_state(tmp_path / "checkpoint.pt", state | {"facts": wrong})
        with pytest.raises(ValueError, match="damaged .facts is"):
            run(make(), tmp_path, facts={"shards": "a"})
    with pytest.raises(ValueError, match="facts: got"):
        run(make(), tmp_path / "b", facts={"folder": tmp_path})
    with pytest.raises(ValueError, match="minutes: got nan"):
        run(make(), tmp_path / "b", minutes=float("nan"))


def test_the_log_of_a_resumed_training_is_that_of_a_whole_one(tmp_path):
    """Also where a checkpoint lies between two rows of the log."""
    config = replace(CONFIG, steps=120, checkpoint_every=30)
    run(make(), tmp_path / "whole", config)
    with pytest.raises(Stop):
        run(make(), tmp_path / "parts", config, stopping_at(70))
    run(make(), tmp_path / "parts", config)
    whole, parts = (read_log(tmp_path / name / "log.jsonl") for name in ("whole", "parts"))
    assert [row["step"] for row in whole] == [50, 100, 120]
    assert [{k: row[k] for k in ("step", "loss", "lr")} for row in parts] == [{k: row[k] for k in ("step", "loss", "lr")} for row in whole]


def test_a_flipped_bit_in_a_checkpoint_is_noticed(tmp_path):
    """Somewhere in the numbers, where the file still opens."""
    run(make(), tmp_path, replace(CONFIG, steps=10))
    file = tmp_path / "checkpoint.pt"
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        largest = max((e for e in archive.infolist() if "/data/" in e.filename), key=lambda e: e.file_size)
    place = largest.header_offset + 30 + len(largest.filename) + largest.file_size // 2
    place += int.from_bytes(content[largest.header_offset + 28 : largest.header_offset + 30], "little")
    content[place] ^= 1
    file.write_bytes(content)
    torch.load(file, weights_only=True)  # negative control: torch takes it
    with pytest.raises(ValueError, match="damaged"):
        run(make(), tmp_path)

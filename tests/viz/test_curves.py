"""Training curves: what is drawn is what was logged, once where nobody watches."""

import json
import math

import IPython.display
import numpy as np
import pytest
import torch

from gsgen_lib import viz
from gsgen_lib.viz import curves

LOG = [{"step": 10 * i, "loss": 0.9**i, "psnr": 10.0 + i, "note": "text", "done": False} for i in range(20)]


def drawn(picture):
    """Title of each visible panel -> its lines as lists of [x, y]."""
    return {axis.get_title(loc="left"): [line.get_xydata().tolist() for line in axis.lines]
            for axis in picture.figure.axes if axis.axison}


def test_values_are_drawn_against_their_steps():
    lines = drawn(viz.training_curves(LOG))
    assert list(lines) == ["loss", "PSNR (dB)"]  # numbers only, in order, with the unit
    assert lines["loss"] == [[[r["step"], r["loss"]] for r in LOG]]
    assert lines["PSNR (dB)"] == [[[r["step"], r["psnr"]] for r in LOG]]


def test_keys_runs_and_gaps():
    sparse = [{"step": 0, "psnr": 5.0}, {"step": 1, "loss": 3.0}, {"step": 2, "psnr": math.inf}]
    picture = viz.training_curves({"a": LOG, "b": sparse}, keys=["psnr"])
    (a, b), = drawn(picture).values()
    assert len(a) == 20 and b[0] == [0, 5.0] and b[1][0] == 2 and math.isnan(b[1][1])
    assert [text.get_text() for text in picture.figure.axes[0].get_legend().texts] == ["a", "b"]
    assert "a: psnr rises from 10 to 29" in picture.alt


def test_loss_is_logarithmic_only_where_positive():
    positive, zero = viz.training_curves(LOG), viz.training_curves([{"step": 0, "loss": 0.0}])
    assert [axis.get_yscale() for axis in positive.figure.axes] == ["log", "linear"]
    assert zero.figure.axes[0].get_yscale() == "linear"


def test_long_logs_get_a_running_mean_counts_do_not():
    log = [{"step": 2 * i, "loss": 1.5 + (-1) ** i, "gaussians": 100 + i} for i in range(300)]
    viz.training_curves([*log, {"step": 600, "loss": math.inf, "gaussians": math.nan}])  # a gap is fine
    lines = drawn(viz.training_curves(log))
    assert len(lines["number of Gaussians"]) == 1
    raw, mean = lines["loss"]
    assert raw == [[r["step"], r["loss"]] for r in log]
    assert len(mean) == 280 and mean[0][0] == 20 and mean[-1][0] == 578
    assert mean[0][1] == pytest.approx(1.5 + 1 / 21) and mean[1][1] == pytest.approx(1.5 - 1 / 21)


def test_numbers_of_numpy_and_torch_are_drawn_like_pythons():
    kinds = [np.float64, np.float32, np.array, torch.tensor, lambda x: torch.tensor(x, requires_grad=True)]
    log = [{"step": np.int64(i), "loss": kind(0.5**i), "count": torch.tensor(i), "name": np.str_("a"), "ok": np.bool_(True)}
           for i, kind in enumerate(kinds)]
    panels = drawn(viz.training_curves(log))
    assert set(panels) == {"loss", "count"}  # neither words nor yes and no
    assert panels["loss"] == [[[i, 0.5**i] for i in range(5)]]
    assert panels["count"] == [[[i, i] for i in range(5)]]


def test_jsonl_file_with_a_cut_off_last_line(tmp_path):
    path = tmp_path / "log.jsonl"
    text = "".join(json.dumps(r) + "\n" for r in LOG)
    path.write_text(text + '{"step": 200, "lo')
    assert viz.read_log(path) == LOG
    assert viz.training_curves(path).png == viz.training_curves(LOG).png
    path.write_text(text.replace('"step": 50', '"step": 5 0'))
    with pytest.raises(ValueError, match="log: line 6 of .* is not JSON"):
        viz.read_log(path)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: viz.training_curves("nowhere.jsonl"), FileNotFoundError, "log: no file"),
        (lambda: viz.training_curves([{"loss": 1.0}]), ValueError, "record 0 .* 'step'"),
        (lambda: viz.training_curves([{"step": 1}]), ValueError, "holds no numbers"),
        (lambda: viz.training_curves([]), ValueError, "holds no numbers"),
        (lambda: viz.training_curves(LOG, keys=["lpips"]), ValueError, "keys: got .*lpips"),
    ],
)
def test_bad_logs_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


class Output:
    """Stands for one output area of a notebook: counts what is shown in it."""

    def __init__(self):
        self.shown, self.updates = 0, 0

    def display(self, picture, display_id):
        self.shown += 1
        return self

    def update(self, picture):
        self.updates += 1


@pytest.mark.parametrize("headless", [True, False])
def test_live_curves_draw_once_when_headless(monkeypatch, headless):
    output = Output()
    monkeypatch.setattr(curves, "in_notebook", lambda: True)
    monkeypatch.setattr(IPython.display, "display", output.display)
    monkeypatch.setenv("TQDM_DISABLE", "1" if headless else "0")
    with viz.LiveCurves(every=0.0) as live:
        monkeypatch.setattr(live, "_next", 0.0)
        for record in LOG[:3]:
            live.update(record)
            live._next = 0.0  # as if the time had passed
    assert output.shown == 1  # one output, whatever happens
    assert output.updates == (0 if headless else 3)
    assert live.log == LOG[:3]


def test_live_curves_outside_a_notebook_show_nothing_but_return_the_figure(monkeypatch):
    monkeypatch.setattr(IPython.display, "display", None)  # calling it would fail
    live = viz.LiveCurves()
    assert live.close() is None
    live.update({"step": 0, "loss": 1.0})
    assert "stays at 1" in live.close().alt

"""gsgen bench, BENCHMARKS.md and the GPU session, on a benchmark made for the test."""

import json
import sys

import pytest

from gsgen_lib import bench, cli
from tests.repo.conftest import ROOT
from tools import benchmarks_md, gpu_session

SCRIPT = '''
"""A benchmark for the tests."""

def main(size: int = 3) -> dict:
    """Count."""
    rows = [{"case": i, "seconds": 0.5 * i} for i in range(size)]
    return {"name": "toy", "rows": rows, "bars": [{"id": "rows", "value": size, "bar": 3, "ok": size >= 3}]}
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A folder of benchmarks that holds one."""
    (tmp_path / "toy.py").write_text(SCRIPT)
    (tmp_path / "_helper.py").write_text("")
    for name in ("scripts", "load"):
        function = getattr(bench, name)
        monkeypatch.setattr(function, "__defaults__", (tmp_path,))
    monkeypatch.setattr(bench.save, "__defaults__", (tmp_path / "results",))
    return tmp_path


def test_table_json_and_exit_code(toy, capsys):
    assert cli.main(["bench", "toy"]) == 0
    printed = capsys.readouterr().out
    assert "toy: measured" in printed and "toy: bars" in printed and "torch" in printed
    assert cli.main(["bench", "toy", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result) == ["name", "machine", "rows", "bars"] and result["bars"][0]["ok"] is True
    assert cli.main(["bench", "toy", "--json", "--size", "2"]) == 1  # the benchmark's own option; a bar broken
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2


def test_list_and_unknown_name(toy, capsys):
    assert cli.main(["bench", "--list"]) == 0
    assert capsys.readouterr().out == "toy\n"
    assert cli.main(["bench", "nothing"]) == 2
    assert "wanted one of: toy" in capsys.readouterr().err


def test_save_writes_commit_and_command(toy, capsys):
    assert cli.main(["bench", "toy", "--save", "--size", "4"]) == 0
    record = json.loads((toy / "results" / "toy.json").read_text())
    assert record["command"] == "gsgen bench toy --size 4"
    assert record["commit"] and record["machine"] == bench.machine()
    (text,) = [benchmarks_md.page([record])]
    assert "## toy" in text and "`gsgen bench toy --size 4`" in text and "| 3 | 1.5 |" in text
    assert "| rows | 4 | 3 | yes |" in text


@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        ({"name": "x", "machine": "m", "rows": []}, "lacks bars"),
        ({"name": "x", "machine": "m", "rows": [], "bars": [{"id": "a", "value": 1, "bar": 1}]}, "lacks ok"),
    ],
)
def test_contract_is_enforced(result, complaint):
    with pytest.raises(ValueError, match=complaint):
        bench.checked(result)


def test_page_is_in_step_with_the_results():
    text = benchmarks_md.page(benchmarks_md.read_results())
    assert (ROOT / "BENCHMARKS.md").read_text(encoding="utf-8") == text, "run `python -m tools.benchmarks_md`"


def test_every_saved_result_has_its_script_and_origin():
    for result in benchmarks_md.read_results():
        assert (ROOT / "benchmarks" / f"{result['name']}.py").is_file()
        assert set(bench.KEYS) | {"commit", "command"} <= set(result)
        assert result["command"].startswith(f"gsgen bench {result['name']}")
        bench.checked(result)


def test_gpu_session_steps_exist():
    for step in gpu_session.STEPS:
        if step.arguments[:3] == gpu_session.BENCH:
            assert step.arguments[3] in bench.scripts()
        elif step.arguments[:3] == gpu_session.TRAIN:
            assert f"train {step.arguments[3]}" in cli.COMMANDS
            assert step.arguments[4] == "--preset" and step.arguments[5] in ("cpu", "gpu")  # and it ends by itself, before its budget does
            assert 60 * float(step.arguments[step.arguments.index("--minutes") + 1]) < step.budget
        else:
            assert (ROOT / step.arguments[-1]).is_dir()


def test_gpu_session_ends_steps_in_time_and_reports(capsys, monkeypatch):
    assert all(step.budget < 600 for step in gpu_session.STEPS)
    sleeper = "print('hi', flush=True); import time; time.sleep(60)"
    slow = gpu_session.run_step(gpu_session.Step("slow", ("-c", sleeper), 2))
    assert slow["timed_out"] and slow["rc"] == 124 and "hi" in slow["result"]
    failed = gpu_session.run_step(gpu_session.Step("failed", ("-c", "1 / 0"), 60))
    assert failed["rc"] == 1 and "ZeroDivisionError" in failed["result"]
    monkeypatch.setattr(gpu_session, "STEPS", (gpu_session.Step("one", ("-c", "print('{\"a\": 1}')"), 60),))
    monkeypatch.setattr(sys, "argv", ["gpu_session"])
    assert gpu_session.main() == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["steps"][0]["result"] == {"a": 1} and summary["machine"]


def test_gpu_session_hands_finished_models_back(tmp_path):
    for name, whole in (("prior", True), ("scorer", False)):
        folder = tmp_path / "runs" / name / "model" / "unet"
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").write_text(name)
        if whole:
            (folder.parent / "card.json").write_text("{}")
    for _ in range(2):  # a second call writes over the first
        assert gpu_session.hand_back(tmp_path / "runs", tmp_path / "out") == ["prior"]
    assert (tmp_path / "out/prior/unet/weights.safetensors").read_text() == "prior"
    assert not (tmp_path / "out/scorer").exists()


def test_a_bar_that_does_not_hold_needs_a_reason():
    result = {"name": "x", "bars": [{"id": "toys: PSNR", "ok": False}, {"id": "real: PSNR", "ok": False}]}
    with pytest.raises(KeyError, match="'real: PSNR' does not hold, and MISSED says nothing"):
        benchmarks_md.reasons(result, {"toys": "too small."})
    assert benchmarks_md.reasons(result, {"toys": "a", "real": "b", "other": "c"}) == ["a", "b"]

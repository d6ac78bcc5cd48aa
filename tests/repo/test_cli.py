"""The gsgen command: lazy, helpful with wrong input, and the doctor that never crashes."""

import importlib
import json
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import pytest

import gsgen_lib
from gsgen_lib import cli, doctor
from tests.repo.conftest import ROOT


def test_usage_names_every_subcommand(capsys):
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"gsgen {words}" in printed for words in cli.COMMANDS)
    assert cli.main(["--help"]) == 0


def test_unknown_subcommand(capsys):
    assert cli.main(["dance"]) == 2
    assert "no command 'dance'" in capsys.readouterr().out
    assert cli.main(["data"]) == 2  # half a subcommand


def test_help_of_a_group_of_subcommands(capsys):
    for asked in (["data", "-h"], ["data", "--help"], ["train", "-h"]):
        assert cli.main(asked) == 0
        assert "gsgen data build" in capsys.readouterr().out
    assert cli.main(["dance", "-h"]) == 2


def test_without_tyro_the_doctor_works_and_the_others_say_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)  # import tyro raises ImportError
    assert cli.main(["view", "scene.ply"]) == 2
    assert "gsgen view: this installation lacks something: tyro" in capsys.readouterr().err
    assert cli.main(["doctor"]) == 1
    assert "FAIL  tyro" in capsys.readouterr().out


def test_entry_point():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, function = project["scripts"]["gsgen"].split(":")
    assert getattr(importlib.import_module(module), function) is cli.main


@pytest.mark.parametrize("words", cli.COMMANDS)
def test_every_subcommand_is_a_documented_function_with_help(words, capsys):
    assert cli.function_of(words).__doc__
    with pytest.raises(SystemExit) as stop:
        cli.main([*words.split(), "--help"])
    assert stop.value.code == 0
    assert f"gsgen {words}" in capsys.readouterr().out


def test_subcommands_are_imported_only_when_asked_for():
    code = "import sys, gsgen_lib.cli as c; c.main(['--help']); "
    code += "print([m for m in sys.modules if 'tyro' in m or 'doctor' in m])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "[]", run.stdout + run.stderr


def test_missing_part_is_said(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "doctor", ("gsgen_lib.nowhere", "doctor", ""))
    assert cli.main(["doctor"]) == 2
    assert "lacks something" in capsys.readouterr().err


def greet(name: str, times: int = 1) -> str:
    """Greet somebody."""
    if times < 1:
        raise ValueError(f"times: got {times}, wanted at least 1")
    print(f"hello {name} " * times)
    return "not an exit code"


def test_arguments_without_default_are_positional_and_wrong_input_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "greet", (__name__, "greet", "greet"))
    monkeypatch.setattr(cli, "function_of", lambda words: greet)
    assert cli.main(["greet", "you", "--times", "2"]) == 0
    assert capsys.readouterr().out.strip() == "hello you hello you"
    assert cli.main(["greet", "you", "--times", "0"]) == 2
    assert capsys.readouterr().err == "gsgen greet: times: got 0, wanted at least 1\n"


def test_doctor_is_content_here(capsys):
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "This machine can run the course." in printed
    for name in ("Python", "torch", "device", "rasterizer", "compile cache", "data"):
        assert name in printed
    assert str(ROOT) not in printed  # the notebooks show this: no paths of the machine


@pytest.mark.parametrize(
    ("broken", "finding"),
    [("torch", "device"), ("gsgen_lib.raster", "rasterizer"), ("gsgen_lib.data", "data"), ("torch", "rasterizer")],
)
def test_doctor_survives_what_is_missing(broken, finding, monkeypatch, capsys):
    """A module that does not import becomes a line that says so and exit code 1."""
    real = importlib.import_module

    def refuse(name, *more):
        if name == broken or (broken == "gsgen_lib.raster" and name == "gsgen_lib"):
            raise ImportError(f"no {name} here")
        return real(name, *more)

    monkeypatch.setattr(doctor.importlib, "import_module", refuse)
    assert doctor.doctor() == 1
    (line,) = [ln for ln in capsys.readouterr().out.splitlines() if ln.startswith("FAIL") and f" {finding} " in ln]
    assert "here" in line


def test_doctor_names_missing_packages(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "REQUIRED", ("numpy", "no-such-package"))
    monkeypatch.setattr(doctor, "OPTIONAL", {"no-such-thing": "nothing"})
    assert doctor.doctor() == 1
    printed = capsys.readouterr().out
    assert "FAIL  no-such-package" in printed and "note  no-such-thing" in printed


def test_doctor_names_missing_data(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("GSGEN_DATA", str(tmp_path / "nowhere"))
    assert doctor.doctor() == 1
    assert "FAIL  data" in capsys.readouterr().out


@pytest.mark.parametrize("listed,mark", [("REQUIRED", "FAIL"), ("OPTIONAL", "note")])
def test_doctor_imports_what_is_installed(listed, mark, monkeypatch, capsys):
    """A package whose files are there but broken is not reported as fine."""
    real = importlib.import_module

    def refuse(name, *more):
        if name == "plyfile":
            raise OSError("undefined symbol: xyz\nmore lines")
        return real(name, *more)

    monkeypatch.setattr(doctor, "REQUIRED", ())
    monkeypatch.setattr(doctor, "OPTIONAL", {})
    monkeypatch.setattr(doctor, listed, ("plyfile",) if listed == "REQUIRED" else {"plyfile": "scenes"})
    monkeypatch.setattr(doctor.importlib, "import_module", refuse)
    assert doctor.doctor() == (1 if mark == "FAIL" else 0)
    (line,) = [ln for ln in capsys.readouterr().out.splitlines() if " plyfile " in ln]
    assert line.startswith(mark) and "does not import: OSError: undefined symbol: xyz" in line


def test_doctor_looks_at_every_library_the_command_line_needs():
    assert {"embreex", "tyro", "torch", "numba"} <= set(doctor.REQUIRED)


def test_doctor_refuses_a_folder_without_the_data(monkeypatch, tmp_path):
    monkeypatch.setenv("GSGEN_DATA", str(tmp_path))
    assert doctor._data().status == "problem" and "0 entries but no objects.json" in doctor._data().detail
    (tmp_path / "objects.json").write_text("{}")
    assert doctor._data().status == "ok"


@pytest.mark.parametrize("engine", ["numba", "reference", "gsplat"])
def test_doctor_names_the_engine_that_drew(engine, monkeypatch):
    drawn = SimpleNamespace(info=SimpleNamespace(engine=engine))
    monkeypatch.setattr(gsgen_lib, "rasterize", lambda *a, **k: drawn)
    assert doctor._engine().detail.startswith(engine + ":")


def test_doctor_without_a_writable_cache(monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda *a: False)
    assert doctor._compile_cache().status == "note"


def test_peak_memory_grows():
    before = doctor.peak_memory_mb()
    block = bytearray(200_000_000)
    block[::4096] = b"x" * len(block[::4096])
    assert doctor.peak_memory_mb() >= before
    assert doctor.peak_memory_mb() > 200
    assert json.dumps(doctor.peak_memory_mb())

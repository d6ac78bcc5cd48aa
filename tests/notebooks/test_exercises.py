"""Every exercise: its check passes on the solution, and fails on the stub and on planted wrong answers."""

import contextlib
import importlib
import io

import matplotlib
import pytest
import torch

from gsgen_lib.checks import NotYet, check, cmp, expect_close, verdict
from tools import notebook_source
from tools.notebook_source import build, read_source

SOURCES = [s for s in notebook_source.sources() if notebook_source.has_exercises(s)]


def exercises(source):
    """Ids of a source's exercises, in order."""
    return [cell.metadata["exercise"] for cell in read_source(source) if "exercise" in cell.metadata]


def verdicts(source, solved, checked):
    """What the check cells print when shared cells and exercises are run, as {"exercise 1": "passed"}.

    Solutions of exercises without a check are left out: they have no verdict, and nbval runs them (some take long).
    """
    matplotlib.use("Agg")
    stubs = {cell.id: cell.source for cell in build(source, solved=False).cells}
    printed, names, leave_out = io.StringIO(), {"__name__": "exercises"}, False
    with contextlib.redirect_stdout(printed):
        for cell in build(source, solved=True).cells:
            if "exercise" in cell.metadata:
                leave_out = f"exercise_{cell.metadata['exercise']}" not in checked
            if cell.cell_type == "code" and "setup" not in cell.metadata.get("tags", []) and not (solved and leave_out):
                code = cell.source if solved else stubs.get(cell.id)
                if code is not None:
                    exec(compile(code, source.name, "exec"), names)
    lines = [line for line in printed.getvalue().splitlines() if line.startswith("exercise ")]
    return {line.split(": ")[0]: line.split(": ")[1] for line in lines}


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_exercises(source):
    checks = importlib.import_module(f"gsgen_lib.checks.nb{source.stem[:2]}")
    names = [f"exercise_{number}" for number in exercises(source)]
    checked = [name for name in names if hasattr(checks, name)]
    assert checked, "no exercise of this notebook has a check"
    spoken = {name.replace("_", " ", 1) for name in checked}
    assert verdicts(source, True, checked) == dict.fromkeys(spoken, "passed")
    assert verdicts(source, False, checked) == dict.fromkeys(spoken, "not attempted")
    assert set(checks.WRONG) == set(checked)
    for name in checked:
        assert len(checks.WRONG[name]) >= 2, f"{name}: fewer than two planted wrong answers"
        for wrong in checks.WRONG[name]:
            for _ in range(3):  # fresh inputs each time: a check must not refuse by luck
                status, hint = verdict(getattr(checks, name), *wrong)
                assert status == "not yet" and hint, f"{name} accepts a planted wrong answer"


def test_a_check_that_accepts_everything_would_be_found_out():
    assert verdict(lambda answer: None, "anything") == ("passed", "")


def test_verdicts():
    def exercise_1(answer):
        expect_close(answer(), 1.0, "one")

    def stub():
        raise NotImplementedError

    def crash():
        raise KeyError("x")

    assert verdict(exercise_1, lambda: 1.0) == ("passed", "")
    assert verdict(exercise_1, stub) == ("not attempted", "")
    assert verdict(exercise_1, None) == ("not attempted", "")
    assert verdict(exercise_1, ...) == ("not attempted", "")
    assert verdict(exercise_1, crash) == ("not yet", "your answer raised KeyError: 'x'")
    assert verdict(exercise_1, lambda: None)[1].startswith("your function returns None")
    assert verdict(exercise_1, lambda: "text")[1].startswith("got a str")
    assert verdict(exercise_1, lambda: float("nan"))[0] == "not yet"
    assert verdict(exercise_1, lambda: [1.0, 1.0])[1] == "your answer: shape (2,), wanted ()"


@pytest.mark.parametrize("answer, hint", [
    (lambda: None, "returns None"),
    (lambda: 1.0, "shape (), wanted ("),
    (lambda: [1.0] * 7, "shape (7,), wanted ("),
    (lambda: float("nan"), "shape (), wanted ("),
])
@pytest.mark.parametrize("number, name", [("00", "exercise_1"), ("01", "exercise_1"), ("01", "exercise_2"),
                                          ("01", "exercise_4")])
def test_an_answer_of_the_wrong_kind_gets_no_hint_at_the_solution(number, name, answer, hint):
    exercise = getattr(importlib.import_module(f"gsgen_lib.checks.nb{number}"), name)
    status, said = verdict(exercise, lambda *given: answer())
    assert status == "not yet" and hint in said and len(said) < 70, said


@pytest.mark.parametrize("number", ["00", "01"])
@pytest.mark.parametrize("prediction", ["A", "xyz", 3])
def test_a_prediction_that_is_no_letter(number, prediction):
    checks = importlib.import_module(f"gsgen_lib.checks.nb{number}")
    assert verdict(checks.exercise_3, prediction) == ("not yet", f"got {prediction!r}, wanted 'a', 'b' or 'c'")


def test_hints_name_the_usual_mistake():
    nb00, nb01 = (importlib.import_module(f"gsgen_lib.checks.nb{number}") for number in ("00", "01"))
    assert "swapped" in verdict(nb00.exercise_2, torch.sigmoid, torch.logit)[1]
    for checks, name in ((nb00, "exercise_1"), (nb01, "exercise_2")):
        for mistake, hint in checks.USUAL.items():
            assert hint in verdict(getattr(checks, name), mistake)[1]


def test_expect_close_has_a_bound():
    expect_close(1.0, 1.0 + 0.9e-5, "")
    with pytest.raises(NotYet):
        expect_close(1.0, 1.0 + 1.1e-5, "")


def test_cmp_says_different(capsys):
    cmp("a", [1.0], [1.0])
    cmp("a", [1.0], [1.0 + 5e-6])
    cmp("a", [1.0], [1.1])
    cmp("a", [1.0], [[1.0]])
    cmp("a", [float("nan")], [1.0])
    words = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert words == ["exact", "close:", "DIFFERENT:", "DIFFERENT:", "DIFFERENT:"]


def test_check_prints_one_line(capsys):
    def exercise_3(answer):
        raise NotYet("try harder")

    check(exercise_3, 1)
    assert capsys.readouterr().out == "exercise 3: not yet: try harder\n"

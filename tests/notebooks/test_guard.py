"""Every committed notebook keeps the rules of tools/notebook_guard.py, and the rules bite."""

import copy

import nbformat
import pytest

from tests.notebooks.conftest import TINY
from tools import notebook_guard as guard
from tools import notebook_source

SOURCES = notebook_source.sources()
NAMES = [source.stem for source in SOURCES]
# Why a lesson may have another number of cells than guard.CELLS:
CELL_EXCEPTIONS = {"00_start_here": (12, 45)}  # a map of the course, not a lesson


def committed(source, solved):
    path = (notebook_source.solutions_path if solved else notebook_source.lesson_path)(source)
    assert path.is_file(), f"{path.name} is missing: run `make notebooks`"
    return nbformat.read(path, as_version=4), path


def problems_of(source, solved):
    """All broken rules of one committed notebook."""
    notebook, path = committed(source, solved)
    problems = guard.in_step(notebook, notebook_source.build(source, solved))
    problems += guard.executed(notebook) + guard.marked(notebook, least=1 if solved else guard.MIN_MARKED)
    problems += guard.seeds_globally(notebook) + guard.draws_unseeded(notebook) + guard.parses(notebook)
    if path.stat().st_size > guard.MAX_BYTES:
        problems.append(f"{path.stat().st_size} bytes, at most {guard.MAX_BYTES}")
    if not solved:
        problems += guard.anatomy(notebook, CELL_EXCEPTIONS.get(source.stem, guard.CELLS))
        problems += guard.pictures(notebook) + guard.solution_leaks(notebook)
    return problems


def test_there_are_lessons():
    assert SOURCES


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_lesson(source):
    assert problems_of(source, solved=False) == []


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_solutions(source):
    if not notebook_source.has_exercises(source):
        pytest.skip("has no exercises")
    assert problems_of(source, solved=True) == []
    notebook, _ = committed(source, solved=True)
    verdicts = [
        line
        for _, cell in guard.code_cells(notebook)
        for output in cell.outputs
        for line in output.get("text", "").splitlines()
        if line.startswith("exercise ")
    ]
    assert verdicts and all(line.endswith(": passed") for line in verdicts), verdicts


def test_no_notebook_without_a_source():
    made = {notebook_source.lesson_path(s) for s in SOURCES} | {notebook_source.solutions_path(s) for s in SOURCES}
    assert set(notebook_source.committed()) - made == set()


# ---- the rules bite: each takes a good notebook, breaks one thing, and must be seen to complain


def first_marked(notebook):
    return next(cell for _, cell in guard.code_cells(notebook) if guard.is_marked(cell))


def test_a_good_notebook_has_no_problems(tiny):
    assert guard.in_step(tiny, notebook_source.build(TINY, solved=False)) == []
    assert guard.executed(tiny) + guard.marked(tiny, least=2) + guard.pictures(tiny) == []
    assert guard.solution_leaks(tiny) + guard.seeds_globally(tiny) + guard.parses(tiny) == []


def test_stripped_notebook(tiny):
    for _, cell in guard.code_cells(tiny):
        cell.outputs, cell.execution_count = [], None
    assert "marked, but has no output" in " ".join(guard.marked(tiny, least=2))
    assert "execution count None" in " ".join(guard.executed(tiny))


@pytest.mark.parametrize(
    "line", ["# NBVAL_CHECK_OUTPUTS", "#NBVAL_CHECK_OUTPUT", "# nbval_check_output", "# NBVAL-CHECK-OUTPUT", "# NB_VAL"]
)
def test_misspelt_marker(tiny, line):
    cell = first_marked(tiny)
    cell.source = cell.source.replace(guard.MARKER, line)
    assert "misspelt marker" in " ".join(guard.marked(tiny, least=1))


def test_marker_behind_code(tiny):
    first_marked(tiny).source = "x = 1  # NBVAL_CHECK_OUTPUT"
    assert "line of its own" in " ".join(guard.marked(tiny, least=1))


def test_too_few_marked_cells(tiny):
    assert "2 marked cells, wanted 5 to 12" in guard.marked(tiny)


def test_marked_cell_with_html(tiny):
    first_marked(tiny).outputs.append(nbformat.v4.new_output("display_data", {"text/html": "<b>x</b>"}))
    assert "never compares" in " ".join(guard.marked(tiny, least=2))


def test_wrong_count_error_stderr_address_widgets_timestamps(tiny):
    def broken(change):
        notebook = copy.deepcopy(tiny)
        change(notebook, first_marked(notebook))
        return " ".join(guard.executed(notebook))

    assert "execution count 7" in broken(lambda nb, c: c.update(execution_count=7))
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])
    assert "error ValueError" in broken(lambda nb, c: c.outputs.append(error))
    warning = nbformat.v4.new_output("stream", name="stderr", text="watch out")
    assert "stderr" in broken(lambda nb, c: c.outputs.append(warning))
    address = nbformat.v4.new_output("stream", text="<object at 0x7f12ab34cd56>")
    assert "memory address" in broken(lambda nb, c: c.outputs.append(address))
    assert "widgets" in broken(lambda nb, c: nb.metadata.update(widgets={}))
    assert "timestamps" in broken(lambda nb, c: c.metadata.update(execution={"iopub.status.busy": "2026"}))


def test_out_of_step_with_the_source(tiny):
    built = notebook_source.build(TINY, solved=False)
    edited = copy.deepcopy(tiny)
    edited.cells[3].source += "\nprint(1)"
    assert guard.in_step(edited, built) == ["cell 3 differs from its source: run `make notebooks`"]
    edited.cells.pop()
    assert "cells, but its source gives" in guard.in_step(edited, built)[0]


def test_anatomy_complains_about_each_part(tiny):
    text = " ".join(guard.anatomy(tiny))
    for part in ("cells, wanted 30 to 45", "You will be able to", "References", "Time and memory"):
        assert part in text
    assert "no heading 'Summary'" not in text
    long = copy.deepcopy(tiny)
    long.cells[2].source = "\n".join(f"x{i} = {i}" for i in range(41))
    assert "41 lines of code" in " ".join(guard.anatomy(long))
    assert "words of prose per line" in " ".join(guard.anatomy(long))
    tiny.cells[0].source = "# No time stated"
    assert "how long it takes" in " ".join(guard.anatomy(tiny))


def test_picture_without_alt_or_notice(tiny):
    index = next(i for i, cell in guard.code_cells(tiny) if guard.has_picture(cell))
    silent = copy.deepcopy(tiny)
    silent.cells[index + 1].source = "It is red."
    assert "what to notice" in " ".join(guard.pictures(silent))
    del tiny.cells[index].metadata["alt"]
    assert "no alt=" in " ".join(guard.pictures(tiny))


def test_solution_in_a_lesson():
    lesson = notebook_source.build(TINY, solved=True)
    assert "has no stub" in " ".join(guard.solution_leaks(lesson))
    lesson.cells[-1].source = "### BEGIN SOLUTION"
    assert "solution mark" in " ".join(guard.solution_leaks(lesson))


def test_threads_and_global_seeds(tiny):
    for line in ("torch.manual_seed(0)", "torch.set_num_threads(4)", "np.random.seed(1)"):
        notebook = copy.deepcopy(tiny)
        notebook.cells[2].source += f"\n{line}"
        assert len(guard.seeds_globally(notebook)) == 1, line
    tiny.cells[2].source += "\ntorch.Generator().manual_seed(0)"
    assert guard.seeds_globally(tiny) == []


@pytest.mark.parametrize("line, found", [
    ("x = torch.rand(2)", 1),
    ("x = torch.randn(2, 3, generator=g)", 0),
    ("x = np.random.rand(2)", 1),
    ("x = np.random.default_rng(0).random(2)", 0),
    ("net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh())", 1),
    ("net = seeded(lambda: nn.Sequential(nn.Linear(2, 2), nn.Tanh()), SEED)", 0),
    ("class Net(nn.Module):\n    def __init__(self):\n        self.a = nn.Linear(2, 2)", 0),
    ("class Net(nn.Module):\n    pass\nnet = Net()", 1),
    ("class Net(nn.Module):\n    pass\nnet = seeded(Net, SEED)", 0),
])
def test_draws_from_the_global_generator(tiny, line, found):
    tiny.cells[2].source += f"\n{line}"
    assert len(guard.draws_unseeded(tiny)) == found


def test_magics(tiny):
    tiny.cells[2].source += "\n%matplotlib inline"
    assert "not plain Python" in " ".join(guard.parses(tiny))

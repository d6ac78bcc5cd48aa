"""From one source to a lesson with stubs and a notebook with solutions."""

import nbformat
import pytest

from tests.notebooks.conftest import TINY
from tools import notebook_source
from tools.notebook_source import build, split_solution


def text_of(notebook):
    return "\n".join(cell.source for cell in notebook.cells)


def write(tmp_path, text, name="08_x.py"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


SETUP = '# %% tags=["setup"]\n\n'


def test_lesson_has_stubs_and_no_solution():
    lesson = text_of(build(TINY, solved=False))
    assert 'raise NotImplementedError("exercise 1: your code here")' in lesson
    assert 'letter = None  # "a" or "b"' in lesson
    for leaked in ("math.pi * radius", 'letter = "b"', "because a is wrong", "### "):
        assert leaked not in lesson


def test_solutions_hold_shared_cells_and_the_exercises_only():
    solutions = build(TINY, solved=True)
    text = text_of(solutions)
    for wanted in ("import math", "math.pi * radius**2", 'letter = "b"', "because a is wrong", "# Solutions · 09"):
        assert wanted in text
    for unwanted in ("NotImplementedError(", "letter = None", "### ", "red", "## Summary"):
        assert unwanted not in text
    assert "solutions/09_tiny_solutions.ipynb" in text


def test_badge_and_setup_cell_name_the_repository():
    lesson = text_of(build(TINY, solved=False, repo="me/fork"))
    assert "github/me/fork/blob/main/notebooks/09_tiny.ipynb" in lesson
    assert 'REPO = "me/fork"' in lesson
    assert "OWNER/NAME" not in lesson and notebook_source.BADGE not in lesson


def is_python(code):
    try:
        compile(code, "cell", "exec")
    except SyntaxError:
        return False
    return True


def test_built_code_is_plain_python():
    for solved in (False, True):
        cells = [cell.source for cell in build(TINY, solved).cells if cell.cell_type == "code"]
        assert len(cells) >= 4 and all(is_python(code) for code in cells)
    assert not is_python("def area(radius):\n### BEGIN SOLUTION")  # a body lost with its solution would be noticed


def test_ids_are_stable_unique_and_follow_the_cell(tmp_path):
    before = [cell.id for cell in build(TINY, solved=False).cells]
    assert before == [cell.id for cell in build(TINY, solved=False, repo="me/fork").cells]
    assert len(set(before)) == len(before)
    edited = write(tmp_path, TINY.read_text(encoding="utf-8").replace("It is red", "It is very red"))
    after = [cell.id for cell in build(edited, solved=False).cells]
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_equal_cells_get_different_ids(tmp_path):
    source = write(tmp_path, SETUP + "# %%\nx = 1\n\n# %%\nx = 1\n")
    ids = [cell.id for cell in build(source, solved=False).cells]
    assert len(set(ids)) == 3


def test_kept_metadata_only():
    for cell in build(TINY, solved=False).cells:
        assert set(cell.metadata) <= {"alt", "exercise", "tags"}


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("x = 1", "no solution at all"),
        ("### BEGIN SOLUTION\nx = 1", "without"),
        ("### BEGIN SOLUTION\nx = 1\n### END SOLUTION", "top-level solution needs"),
        ("### END SOLUTION", "unexpected mark"),
        ("### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION", "unexpected mark"),
        ("### STUB", "unexpected mark"),
    ],
)
def test_misplaced_marks_are_refused(body, complaint):
    with pytest.raises(ValueError, match=complaint):
        split_solution(body, "1", keep_solution=False)


def test_source_without_setup_cell_or_with_stray_exercise_is_refused(tmp_path):
    with pytest.raises(ValueError, match="tagged 'setup', got 0"):
        build(write(tmp_path, "# %%\nx = 1\n"), solved=False)
    stray = '# %% exercise="1"\ndef f():\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION\n'
    with pytest.raises(ValueError, match="outside the section"):
        build(write(tmp_path, SETUP + stray), solved=False)


def test_notebooks_validate():
    for solved in (False, True):
        notebook = build(TINY, solved)
        assert nbformat.validator.isvalid(notebook)
        del notebook.cells[0]["source"]
        assert not nbformat.validator.isvalid(notebook)  # negative control

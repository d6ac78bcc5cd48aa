"""Executing, normalising, the course's pages, and that a changed number turns the tests red."""

import subprocess
import sys

import nbformat
import pytest

from tests.notebooks.conftest import TINY
from tools import course, notebook_source, notebooks, run_notebook


def outputs_text(notebook):
    return "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))


def test_execution_is_measured_and_normalised(tiny_run, tiny):
    _, run = tiny_run
    assert run.error is None and run.seconds > 0
    assert run.peak_mb is None or 20 < run.peak_mb < 4000
    counts = [cell.execution_count for cell in tiny.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert "exercise 1: not attempted" in outputs_text(tiny)
    assert "version" not in tiny.metadata["language_info"]
    picture = next(o for c in tiny.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {}))
    assert picture.metadata["image/png"]["alt"] == "A red square"


def test_normalise_joins_streams_drops_widgets_and_reports_stderr():
    output = nbformat.v4.new_output
    cell = nbformat.v4.new_code_cell("x")
    cell.execution_count, cell.metadata["execution"] = 9, {"iopub.status.busy": "now"}
    view = {run_notebook.WIDGET_VIEW: {}, "text/plain": "Box()"}
    cell.outputs = [output("stream", text="a\n"), output("stream", text="b\n"), output("display_data", view)]
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {}})
    assert run_notebook.normalise(notebook) == []
    assert [o.text for o in cell.outputs] == ["a\nb\n"]
    assert cell.execution_count == 1 and not cell.metadata and "widgets" not in notebook.metadata
    cell.outputs.append(output("stream", name="stderr", text="UserWarning: old\n"))
    assert run_notebook.normalise(notebook) == ["cell 0 wrote to stderr: ['UserWarning: old']"]


def test_made_notebook_is_written_only_if_it_ran(tmp_path, capsys):
    broken = tmp_path / "07_broken.py"
    broken.write_text('# %% tags=["setup"]\n\n# %%\nimport sys\nprint("old", file=sys.stderr)\n', encoding="utf-8")
    (problem,) = notebooks.make(broken, solved=False, run=True, notebooks=tmp_path)
    # the set-up cell may complain first where the library is not installed; both stop the writing
    assert "07_broken.ipynb: cell" in problem
    assert not (tmp_path / "07_broken.ipynb").exists()
    assert notebooks.make(TINY, solved=True, run=False, notebooks=tmp_path) == []
    assert (tmp_path / "solutions" / "09_tiny_solutions.ipynb").is_file()


def test_texts_change_without_execution_and_code_does_not(tmp_path, tiny_run, tiny):
    source = tmp_path / "09_tiny.py"
    source.write_text(TINY.read_text(encoding="utf-8"), encoding="utf-8")
    notebooks.write(tiny, tmp_path / "09_tiny.ipynb")
    before = outputs_text(tiny)
    text = TINY.read_text(encoding="utf-8")
    line = next(one for one in text.splitlines() if one.startswith("# ") and "%%" not in one and "#" not in one[2:])
    source.write_text(text.replace(line, line + " And more."), encoding="utf-8")
    assert notebooks.make(source, solved=False, run=True, notebooks=tmp_path, texts=True) == []
    found = nbformat.read(tmp_path / "09_tiny.ipynb", as_version=4)
    assert outputs_text(found) == before and before and "And more." in "".join(c.source for c in found.cells)
    code = next(one for one in text.splitlines() if one and one[0].isalpha())
    source.write_text(text.replace(code, code + "  # changed"), encoding="utf-8")
    (problem,) = notebooks.make(source, solved=False, run=True, notebooks=tmp_path, texts=True)
    assert "code differs" in problem


def test_unsolved_exercises_are_noticed(tiny):
    assert notebooks.unsolved(tiny) == ["exercise 1: not attempted"]


@pytest.fixture(scope="module")
def course_run(tmp_path_factory):
    """The course of two notebooks, the first of which fails."""
    folder, out = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("out")
    good = notebook_source.build(TINY, solved=False)
    good.cells = [c for c in good.cells if "setup" not in c.metadata.get("tags", [])]
    bad = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Broken")])
    bad.cells += [nbformat.v4.new_code_cell(code) for code in ("print('before')", "1 / 0", "print('after')")]
    for name, notebook in (("01_bad", bad), ("02_good", good)):
        nbformat.write(notebook, folder / f"{name}.ipynb")
    return course.run_course(sorted(folder.glob("*.ipynb")), out), folder, out


def test_a_failing_notebook_is_named_and_the_others_run(course_run):
    (bad, good), folder, out = course_run
    assert bad.run.error == "cell 2: ZeroDivisionError: division by zero"
    assert good.run.error is None
    executed = nbformat.read(out / "01_bad.ipynb", as_version=4)
    assert "before" in outputs_text(executed) and "after" not in outputs_text(executed)
    assert "Failed in cell 2: ZeroDivisionError" in (out / "index.html").read_text(encoding="utf-8")
    committed = nbformat.read(folder / "02_good.ipynb", as_version=4)
    assert outputs_text(committed) == ""  # the course leaves the notebooks as they are


def test_pages_are_readable_offline(course_run):
    _, _, out = course_run
    page = (out / "02_good.html").read_text(encoding="utf-8")
    assert page.count("<math") == 2 and r"\alpha" not in page and "<em>" not in page
    assert 'alt="A red square"' in page
    assert '<script src="http' not in page
    index = (out / "index.html").read_text(encoding="utf-8")
    assert '<img src="images/02_good_0.png" alt="A red square">' in index
    assert "You draw a red square" in index
    assert (out / "images" / "02_good_0.png").read_bytes().startswith(b"\x89PNG")


def nbval(path):
    """Exit code and output of comparing one notebook's outputs with a new run."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["--rootdir", path.parent, "--nbval-lax", "--nbval-current-env", path]
    run = subprocess.run(command, capture_output=True, text=True, cwd=path.parent)
    return run.returncode, run.stdout


def test_a_changed_number_turns_the_comparison_red(tiny, tmp_path):
    tiny.cells = [c for c in tiny.cells if "setup" not in c.metadata.get("tags", [])]
    altered = next(o for c in tiny.cells for o in c.get("outputs", []) if "12.566" in o.get("text", ""))
    nbformat.write(tiny, tmp_path / "tiny.ipynb")
    code, text = nbval(tmp_path / "tiny.ipynb")
    assert code == 0, text
    altered.text = altered.text.replace("12.566", "12.567")
    nbformat.write(tiny, tmp_path / "tiny.ipynb")
    code, text = nbval(tmp_path / "tiny.ipynb")
    assert code == 1 and "12.567" in text and "1 failed" in text

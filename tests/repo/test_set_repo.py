"""tools/set_repo.py changes the repository's name everywhere, and nowhere else."""

import shutil
import subprocess
import sys

import nbformat
import pytest

from tests.repo.conftest import ROOT, project_files
from tools import notebook_guard, notebook_source
from tools.repo_name import colab_badge, repo_name
from tools.set_repo import TEXT, set_repo


@pytest.fixture
def fork(tmp_path):
    """A copy of the project's text files, large data left out."""
    for path in project_files():
        relative = path.relative_to(ROOT)
        if path.suffix in TEXT and relative.parts[0] not in ("tests", "data"):
            (tmp_path / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / relative)
    return tmp_path


def test_every_place_is_changed(fork):
    old = repo_name(fork)
    changed = {path.relative_to(fork).as_posix() for path in set_repo("me/my.fork-2", fork)}
    assert {"pyproject.toml", "README.md", "CITATION.cff"} <= changed
    assert {path.name for path in notebook_source.NOTEBOOKS.glob("*.ipynb")} <= {c.split("/")[-1] for c in changed}
    assert repo_name(fork) == "me/my.fork-2"
    for path in fork.rglob("*"):
        if path.is_file():
            assert old not in path.read_text(encoding="utf-8"), path


def test_notebooks_still_equal_their_sources(fork):
    set_repo("me/fork", fork)
    for source in notebook_source.sources(fork / "notebooks" / "src"):
        path = notebook_source.lesson_path(source, fork / "notebooks")
        notebook = nbformat.read(path, as_version=4)
        built = notebook_source.build(source, solved=False, repo="me/fork")
        assert notebook_guard.in_step(notebook, built) == []
        assert colab_badge(f"notebooks/{path.name}", "me/fork") in notebook.cells[0].source


def test_there_and_back(fork):
    before = {path: path.read_bytes() for path in fork.rglob("*") if path.is_file()}
    old = repo_name(fork)
    set_repo("some-one/else.where", fork)
    assert set_repo("some-one/else.where", fork) == []
    set_repo(old, fork)
    assert before == {path: path.read_bytes() for path in fork.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["", "fork", "me/", "/fork", "me/fork/x", "https://github.com/me/fork", "me/fo rk"])
def test_malformed_names_are_refused(fork, name):
    with pytest.raises(ValueError, match="wanted OWNER/NAME"):
        set_repo(name, fork)


def test_runs_with_the_standard_library_alone(fork):
    command = [sys.executable, "-S", "tools/set_repo.py", "me/fork"]
    run = subprocess.run(command, cwd=fork, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "README.md" in run.stdout and "now name me/fork" in run.stdout
    run = subprocess.run([*command[:-1], "nonsense"], cwd=fork, capture_output=True, text=True)
    assert run.returncode == 1 and "wanted OWNER/NAME" in run.stderr

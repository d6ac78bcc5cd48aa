"""A tiny lesson, executed once for all tests of the notebook tools."""

import copy
from pathlib import Path

import pytest

from tools import notebook_source, run_notebook

TINY = Path(__file__).parent / "src" / "09_tiny.py"


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """(executed notebook before normalising, Run) of the tiny lesson."""
    notebook = notebook_source.build(TINY, solved=False)
    # the tests' own folder is the working directory, from where the library is found
    return notebook, run_notebook.execute(notebook, Path(__file__).parent)


@pytest.fixture
def tiny(tiny_run):
    """A fresh copy of the executed and normalised tiny lesson."""
    notebook = copy.deepcopy(tiny_run[0])
    assert run_notebook.normalise(notebook) == []
    return notebook

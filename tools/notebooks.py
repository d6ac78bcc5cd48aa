"""Make the notebooks from their sources, executed.

    python -m tools.notebooks                 all of them
    python -m tools.notebooks 01              those whose name starts with 01
    python -m tools.notebooks --no-run 01     without executing (outputs stay empty)
    python -m tools.notebooks --texts 01      texts alone: outputs are kept, refused if any code changed

For each source in notebooks/src it writes the lesson and, where there are exercises, the
solutions notebook (see tools/notebook_source.py). A notebook is written only if it ran
through, wrote nothing to stderr, and in the solutions every check passed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from tools import notebook_source, run_notebook, runner_env


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook with a trailing newline and stable key order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8", newline="\n")


def unsolved(notebook: NotebookNode) -> list[str]:
    """Lines of check cells that do not say "passed" (for a solutions notebook: none)."""
    lines = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            lines += output.get("text", "").splitlines()
    return [line for line in lines if line.startswith("exercise ") and "passed" not in line]


def keep_outputs(notebook: NotebookNode, path: Path) -> list[str]:
    """Take over what the executed notebook at `path` has; a problem, and no change, where a code cell differs."""
    new, old = ([c for c in n.cells if c.cell_type == "code"] for n in (notebook, nbformat.read(path, as_version=4)))
    if [(c.source, dict(c.metadata)) for c in new] != [(c.source, dict(c.metadata)) for c in old]:
        return ["code differs from that of the executed notebook: execute it"]
    for cell, kept in zip(new, old, strict=True):
        cell.outputs, cell.execution_count = kept.outputs, kept.execution_count
    notebook.metadata = nbformat.read(path, as_version=4).metadata
    return []


def make(source: Path, solved: bool, run: bool, notebooks: Path, texts: bool = False) -> list[str]:
    """Build (and run) one notebook and write it, or only its texts; returns the problems, none if written."""
    notebook = notebook_source.build(source, solved)
    path = (notebook_source.solutions_path if solved else notebook_source.lesson_path)(
        source, notebooks
    )
    note = "not executed"
    if texts:
        problems, note = keep_outputs(notebook, path), "texts"
        if problems:
            return [f"{path.name}: {problem}" for problem in problems]
    elif run:
        path.parent.mkdir(parents=True, exist_ok=True)
        result = run_notebook.execute(notebook, path.parent)
        problems = [result.error] if result.error else run_notebook.normalise(notebook)
        problems += unsolved(notebook) if solved else []
        if problems:
            return [f"{path.name}: {problem}" for problem in problems]
        note = f"{result.seconds:6.1f} s  {result.peak_mb or 0:6.0f} MB"
    write(notebook, path)
    print(f"{path.stem:<40} {note}", flush=True)
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="starts of names; all if none is given")
    parser.add_argument("--no-run", action="store_true", help="write without executing")
    parser.add_argument("--texts", action="store_true", help="keep the outputs, where no code changed")
    arguments = parser.parse_args()
    runner_env.apply(runner_env.NOTEBOOKS)
    problems = []
    for source in notebook_source.sources():
        if arguments.names and not source.stem.startswith(tuple(arguments.names)):
            continue
        for solved in (False, True) if notebook_source.has_exercises(source) else (False,):
            problems += make(source, solved, not arguments.no_run, notebook_source.NOTEBOOKS, arguments.texts)
    if problems:
        sys.exit("not written:\n" + "\n".join(problems))


if __name__ == "__main__":
    main()

"""From one reviewable source to two notebooks.

``notebooks/src/NN_name.py`` (jupytext "percent" format) holds a whole lesson, with every
exercise solved. From it come

- the lesson, ``notebooks/NN_name.ipynb``: solutions replaced by stubs, and
- ``notebooks/solutions/NN_name_solutions.ipynb``: the cells tagged "shared" (imports, knobs)
  and the section "## Exercises" with its solutions.

What a source may say:

    # %% tags=["setup"]              replaced by tools/setup_cell.py; exactly one per source
    # %% tags=["shared"]             is also in the solutions notebook
    # %% alt="A chair from behind"   alternative text of the pictures that this cell draws
    # %% alt="..." tags=["main"]     this cell's first picture stands on the course's index page
    # %% exercise="1"                an exercise; its solution stands between two marks:
    def area(radius):
        ### BEGIN SOLUTION
        return math.pi * radius**2
        ### END SOLUTION
    # %% [markdown] solution=true    (or a code cell) only in the solutions notebook

The lesson gets ``raise NotImplementedError("exercise 1: your code here")`` instead. Where a
stub must not raise, it is written as comment lines after ``### STUB``:

    ### BEGIN SOLUTION
    prediction = "b"
    ### STUB
    # prediction = None   # "a", "b" or "c"?
    ### END SOLUTION

``<!-- colab-badge -->`` in the first markdown cell becomes the badge of that notebook. Cell ids
are hashes of the source text, so an edit changes one id.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools.repo_name import ROOT, colab_badge, repo_name

NOTEBOOKS = ROOT / "notebooks"
SOURCES = NOTEBOOKS / "src"
SETUP_CELL = ROOT / "tools" / "setup_cell.py"
BADGE = "<!-- colab-badge -->"
EXERCISES = re.compile(r"^## .*Exercises", re.MULTILINE)
BEGIN, STUB, END = "### BEGIN SOLUTION", "### STUB", "### END SOLUTION"
KEPT_METADATA = ("alt", "exercise", "tags")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def sources(folder: Path = SOURCES) -> list[Path]:
    """The lessons' sources, in the course's order."""
    return sorted(folder.glob("[0-9][0-9]_*.py"))


def lesson_path(source: Path, notebooks: Path = NOTEBOOKS) -> Path:
    """Where the lesson made from ``source`` lies."""
    return notebooks / f"{source.stem}.ipynb"


def solutions_path(source: Path, notebooks: Path = NOTEBOOKS) -> Path:
    """Where the solutions made from ``source`` lie."""
    return notebooks / "solutions" / f"{source.stem}_solutions.ipynb"


def committed(notebooks: Path = NOTEBOOKS) -> list[Path]:
    """All lessons and solutions that lie in the notebooks' folders (no checkpoints of an editor)."""
    return sorted(notebooks.glob("*.ipynb")) + sorted((notebooks / "solutions").glob("*.ipynb"))


def read_source(source: Path) -> list[NotebookNode]:
    """The cells of a source, each with its deterministic id."""
    cells = jupytext.read(source, fmt="py:percent").cells
    seen: dict[str, int] = {}
    for cell in cells:
        digest = hashlib.sha1(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    return cells


def split_solution(code: str, exercise: str, keep_solution: bool) -> str:
    """Replace every marked region of an exercise cell by its solution or by its stub.

    Raises ValueError where marks do not pair up, or where a region at top level has no
    ``### STUB`` (raising there would stop Run All).

    >>> cell = "def f():\\n    ### BEGIN SOLUTION\\n    return 1\\n    ### END SOLUTION"
    >>> print(split_solution(cell, "2", keep_solution=False))
    def f():
        raise NotImplementedError("exercise 2: your code here")
    >>> print(split_solution(cell, "2", keep_solution=True))
    def f():
        return 1
    """
    out: list[str] = []
    solution: list[str] | None = None
    stub: list[str] | None = None
    regions = 0
    for line in code.splitlines():
        mark = line.strip()
        if mark == BEGIN and solution is None:
            solution, stub, regions = [], None, regions + 1
            indent = line[: len(line) - len(line.lstrip())]
        elif mark == STUB and solution is not None and stub is None:
            stub = []
        elif mark == END and solution is not None:
            if stub is None and not indent:
                raise ValueError(f"exercise {exercise}: a top-level solution needs a {STUB} part")
            if stub is None:
                stub = [f'{indent}raise NotImplementedError("exercise {exercise}: your code here")']
            out += solution if keep_solution else stub
            solution = None
        elif mark.startswith("### ") and mark in (BEGIN, STUB, END):
            raise ValueError(f"exercise {exercise}: unexpected mark {mark!r}")
        elif stub is not None and solution is not None:
            stub.append(re.sub(r"^(\s*)# ?", r"\1", line))
        elif solution is not None:
            solution.append(line)
        else:
            out.append(line)
    if solution is not None or not regions:
        raise ValueError(f"exercise {exercise}: {BEGIN} without {END}, or no solution at all")
    return "\n".join(out)


def build(source: Path, solved: bool, repo: str | None = None) -> NotebookNode:
    """The lesson (or, ``solved``, the solutions notebook) of one source, without outputs.

    Raises ValueError for a source without exactly one set-up cell, with an exercise outside
    the section "## Exercises", or with misplaced solution marks.
    """
    repo = repo or repo_name()
    path = f"notebooks/{source.stem}.ipynb"
    if solved:
        path = f"notebooks/solutions/{source.stem}_solutions.ipynb"
    cells, in_exercises, setups = [], False, 0
    for index, raw in enumerate(read_source(source)):
        text, meta = raw.source, raw.metadata
        tags = meta.get("tags", [])
        if raw.cell_type == "markdown" and re.search(r"^## ", text, re.MULTILINE):
            in_exercises = bool(EXERCISES.search(text))
        if "setup" in tags:
            setups += 1
            text = SETUP_CELL.read_text(encoding="utf-8").rstrip().replace("OWNER/NAME", repo)
        if "exercise" in meta:
            if not in_exercises:
                raise ValueError(f"{source.name}: exercise {meta['exercise']} stands outside "
                                 "the section '## Exercises'")  # fmt: skip
            text = split_solution(text, meta["exercise"], keep_solution=solved)
        if index == 0 and solved:
            title = text.splitlines()[0].removeprefix("# ")
            text = f"# Solutions · {title}\n\n{BADGE}\n\nTry each exercise of the lesson first."
        elif solved and not (in_exercises or "setup" in tags or "shared" in tags):
            continue
        elif meta.get("solution") and not solved:
            continue
        text = text.replace(BADGE, colab_badge(path, repo))
        kept = {key: meta[key] for key in KEPT_METADATA if key in meta}
        make = new_code_cell if raw.cell_type == "code" else new_markdown_cell
        cells.append(make(text, id=raw.id, metadata=kept))
    if setups != 1:
        raise ValueError(f"{source.name}: wanted one cell tagged 'setup', got {setups}")
    notebook = new_notebook(cells=cells, metadata=METADATA)
    notebook.nbformat_minor = 5
    nbformat.validate(notebook)
    return notebook


def has_exercises(source: Path) -> bool:
    """Whether a source holds an exercise, and so has a solutions notebook."""
    return any("exercise" in cell.metadata for cell in read_source(source))

"""Open JupyterLab on your own copies of the lessons.

    python -m tools.lab               copy the lessons you do not have yet, open JupyterLab
    python -m tools.lab --copy        copy only

You work in my_notebooks/, which git ignores: your solutions never stand in the way of `git pull` or
`make test`, and nothing there is overwritten. To start a lesson afresh, delete your copy.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tools import notebook_source
from tools.repo_name import ROOT

OWN = ROOT / "my_notebooks"


def copy_lessons(folder: Path = OWN) -> list[Path]:
    """Copy lessons and solutions that `folder` lacks; returns the new files.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first, second = copy_lessons(Path(folder)), copy_lessons(Path(folder))
    >>> first[0].name, second
    ('00_start_here.ipynb', [])
    """
    made = []
    for source in notebook_source.sources():
        for path in (notebook_source.lesson_path(source), notebook_source.solutions_path(source)):
            copy = folder / path.relative_to(notebook_source.NOTEBOOKS)
            if path.is_file() and not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
                made.append(copy)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--copy", action="store_true", help="copy the lessons, open nothing")
    arguments = parser.parse_args()
    made = copy_lessons()
    print(f"{OWN}: {len(made)} new notebooks; yours are kept as they are")
    # short OpenMP waits, as gsgen_lib sets them: in a notebook torch is often imported first, and then it is too late
    environment = {"GOMP_SPINCOUNT": "3000", **os.environ}
    return 0 if arguments.copy else subprocess.call([sys.executable, "-m", "jupyterlab", str(OWN)], env=environment)


if __name__ == "__main__":
    sys.exit(main())

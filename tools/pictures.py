"""Copy the lessons' main pictures to docs/images, where the README shows them.

    python -m tools.pictures

Every picture in the README is the output of a notebook cell tagged "main"; a test keeps the
copies equal to the committed notebooks.
"""

from __future__ import annotations

from pathlib import Path

import nbformat

from tools import notebook_source
from tools.course import main_pictures
from tools.repo_name import ROOT

FOLDER = ROOT / "docs" / "images"


def pictures() -> dict[Path, bytes]:
    """{file: PNG bytes} of the main pictures of all committed lessons."""
    found = {}
    for source in notebook_source.sources():
        path = notebook_source.lesson_path(source)
        if path.is_file():
            for number, (png, _) in enumerate(main_pictures(nbformat.read(path, as_version=4))):
                found[FOLDER / f"{source.stem}_{number}.png"] = png
    return found


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob("[0-9][0-9]_*.png"):
        old.unlink()
    found = pictures()
    for path, png in found.items():
        path.write_bytes(png)
    print(f"docs/images: {len(found)} pictures")


if __name__ == "__main__":
    main()

"""Tell the course where your fork lives.

    python tools/set_repo.py OWNER/NAME

rewrites the repository's name in pyproject.toml, README, notebooks (badges, set-up
cells) and every other text file that holds it, then lists what it changed. Standard
library only, so that it runs in a fresh fork.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.repo_name import ROOT, repo_name  # noqa: E402

TEXT = {".md", ".toml", ".ipynb", ".py", ".cff", ".yml", ".yaml", ".json"}
SKIP = {".git", ".venv", "build", "__pycache__", ".ipynb_checkpoints", "tests"}


def text_files(root: Path) -> list[Path]:
    """Every text file of the project that may hold the repository's name."""
    files = []
    for path in sorted(root.rglob("*")):
        if path.suffix in TEXT and not SKIP.intersection(path.relative_to(root).parts):
            if path.is_file():
                files.append(path)
    return files


def set_repo(new: str, root: Path = ROOT) -> list[Path]:
    """Replace the current OWNER/NAME by ``new`` below ``root``; returns the changed files.

    Raises ValueError if ``new`` is not of the form OWNER/NAME.
    """
    if not re.fullmatch(r"[A-Za-z0-9-]+/[A-Za-z0-9._-]+", new):
        raise ValueError(f"repository: got {new!r}, wanted OWNER/NAME as on GitHub")
    old, changed = repo_name(root), []
    whole_name = re.compile(rf"(?<![\w.-]){re.escape(old)}(?![\w-])")
    for path in text_files(root):
        before = path.read_text(encoding="utf-8")
        after = whole_name.sub(new, before)
        if after != before:
            path.write_text(after, encoding="utf-8", newline="\n")
            changed.append(path)
    return changed


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/set_repo.py OWNER/NAME")
    try:
        changed = set_repo(sys.argv[1])
    except ValueError as error:
        sys.exit(str(error))
    for path in changed:
        print(path.relative_to(ROOT))
    print(f"{len(changed)} files now name {sys.argv[1]}")


if __name__ == "__main__":
    main()

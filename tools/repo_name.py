"""Where the repository lives: one constant, the Repository URL in pyproject.toml.

Badges, set-up cells and links repeat it, because a notebook on Colab cannot know
which fork it came from; ``python tools/set_repo.py OWNER/NAME`` changes all of them.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BADGE_IMAGE = "https://colab.research.google.com/assets/colab-badge.svg"


def repo_name(root: Path = ROOT) -> str:
    """OWNER/NAME, from pyproject.toml.

    >>> repo_name().count("/")
    1
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"].removeprefix("https://github.com/")


def colab_badge(notebook: str, repo: str) -> str:
    """Markdown of the badge that opens ``notebook`` (a path in the repository) on Colab.

    >>> colab_badge("notebooks/00.ipynb", "me/fork").split("/github/")[1]
    'me/fork/blob/main/notebooks/00.ipynb)'
    """
    target = f"https://colab.research.google.com/github/{repo}/blob/main/{notebook}"
    return f"[![Open in Colab]({BADGE_IMAGE})]({target})"

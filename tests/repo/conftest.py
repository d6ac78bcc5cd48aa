"""What several tests of the repository need: its files, and a copy of them."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def project_files() -> list[Path]:
    """Files of the project: tracked by git, or not ignored; without git, everything visible."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if run.returncode == 0:
        paths = (ROOT / line for line in run.stdout.splitlines())
        return sorted(path for path in paths if path.is_file())
    hidden = {".venv", "build", "__pycache__", ".git"}
    return sorted(p for p in ROOT.rglob("*") if p.is_file() and not hidden.intersection(p.relative_to(ROOT).parts))


@pytest.fixture(scope="session")
def files():
    return project_files()

"""Write requirements.lock: exact pins of everything, for every platform.

    python -m pip install uv
    python -m tools.lock              keeps the pins that still fit
    python -m tools.lock --upgrade    takes the newest releases

uv resolves pyproject.toml (core + course + dev) once for Linux, macOS and Windows
and Python 3.11 and 3.12; where a package is for one of them only, its line carries
an environment marker, so that plain ``pip install -r requirements.lock`` works
everywhere.

torch is pinned to one release. The CUDA packages that its Linux build asks for are
left out on purpose: with them, a machine with the CPU build of torch would still
download gigabytes; without them, pip takes what the torch it finds asks for.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
TORCH = "2.13.0"
EXTRAS = ("course", "dev")
HEADER = """\
# Exact versions that the tests ran with: Linux, macOS, Windows; Python 3.11 and 3.12.
# Made by `python -m tools.lock` (see there); do not edit by hand.
# torch's own CUDA packages are not listed: the torch build that pip finds asks for them.
"""
CUDA_PACKAGE = re.compile(r"^(nvidia-|cuda-|triton\b)")


def without_cuda(lines: list[str]) -> list[str]:
    """Drop torch's CUDA packages and all annotations.

    >>> without_cuda(["numpy==2.0  # via x", "    # via y", "triton==3.9 ; os_name == 'posix'"])
    ['numpy==2.0']
    """
    pins = [line.split("  #")[0].rstrip() for line in lines if re.match(r"[A-Za-z0-9]", line)]
    return [pin for pin in pins if not CUDA_PACKAGE.match(pin)]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        constraint = Path(folder) / "constraints.txt"
        constraint.write_text(f"torch=={TORCH}\n")
        command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--quiet"]
        command += ["--universal", "--python-version", "3.11", "--fork-strategy", "fewest"]
        command += ["--constraint", str(constraint), "--no-header", "--no-annotate"]
        for extra in EXTRAS:
            command += ["--extra", extra]
        output = Path(folder) / "resolved.txt"  # what it holds already is kept where it still fits
        if "--upgrade" not in sys.argv and LOCK.is_file():
            output.write_text(LOCK.read_text(encoding="utf-8"), encoding="utf-8")
        run = subprocess.run([*command, "-o", str(output)], cwd=ROOT, capture_output=True, text=True)
        if run.returncode:
            sys.exit(run.stderr)
        pins = without_cuda(output.read_text(encoding="utf-8").splitlines())
    LOCK.write_text(HEADER + "\n".join(pins) + "\n")
    print(f"{LOCK.name}: {len(pins)} packages")


if __name__ == "__main__":
    main()

"""Run a benchmark of this repository and print, or keep, what it measured.

Each script `benchmarks/NAME.py` has a function `main(...) -> dict` whose typed arguments become
command-line options. It returns

    {"name": str, "rows": [{column: value, ...}, ...],
     "bars": [{"id": str, "value": number, "bar": number, "ok": bool}, ...],
     "note": str}                                                              (optional)

rows are what was measured, bars what was promised and whether it holds, note what a reader must
know beside the table (how PSNR is averaged, say). `machine` is added here.
With --save the result goes to benchmarks/results/NAME.json together with the commit and the
command that made it; `python -m tools.benchmarks_md` turns these files into BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
KEYS = ("name", "machine", "rows", "bars")


def scripts(folder: Path = ROOT / "benchmarks") -> list[str]:
    """Names of the benchmarks that this checkout has."""
    return sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))


def machine() -> str:
    """The machine in one line: processor, cores, GPU, torch.

    >>> "torch" in machine()
    True
    """
    import torch

    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    python = platform.python_version()
    return f"{processor}, {cores} cores{gpu}, Python {python}, torch {torch.__version__}"


def bar(id: str, value: float, limit: float, most: bool = False, digits: int = 3) -> dict:
    """What was promised, for "bars": value >= limit, or <= where `most`; shown with so many digits.

    >>> bar("seconds", 0.31, 0.3, most=True)
    {'id': 'seconds', 'value': 0.31, 'bar': 0.3, 'ok': False}
    """
    return {"id": id, "value": round(float(value), digits), "bar": limit, "ok": bool(value <= limit if most else value >= limit)}


def median_seconds(call: Callable, times: int = 5) -> float:
    """Median of so many calls, after one that is not counted.

    >>> calls = []
    >>> median_seconds(lambda: calls.append(0), 3) < 1, len(calls)
    (True, 4)
    """
    call()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def interval(values, digits: int = 2) -> str:
    """Mean and 95 % interval of numbers (objects,) or (seeds, objects), `metrics.bootstrap_ci`, for "rows".

    >>> interval([1.0, 1.0, 1.0])
    '1.00 (1.00 to 1.00)'
    """
    import numpy as np

    from gsgen_lib.metrics import bootstrap_ci

    mean, low, high = bootstrap_ci(np.asarray(values, float), np.random.default_rng(0))
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def kept(path: Path, make: Callable[[], dict], again: bool = False) -> dict:
    """What a long measurement found: read from the JSON file `path`; made, and written there, where there is none or `again`.

    make() -> {name: number, list of numbers or text}. The file says beside it which commit and machine made it ("commit",
    "machine"), those of now unless make() says. Raises ValueError for a file that is damaged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "arm.json"
    ...     kept(path, lambda: {"psnr": [20.0]})["psnr"], kept(path, lambda: {"psnr": [0.0]})["psnr"]
    ([20.0], [20.0])
    """
    if again or not path.is_file():
        found = {"commit": commit(), "machine": machine()} | make()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".part").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".part").replace(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or {"commit", "machine"} - set(found):
            raise ValueError("lacks commit or machine")
        return found
    except ValueError as error:
        raise ValueError(f"{path}: not a kept measurement ({error}); delete it") from error


def runs_here(name: str) -> bool:
    """Whether this machine has what a benchmark needs: ..._gpu needs CUDA.

    >>> runs_here("raster")
    True
    """
    import torch

    return not name.endswith("_gpu") or torch.cuda.is_available()


def load(name: str, folder: Path = ROOT / "benchmarks") -> ModuleType:
    """The module of one benchmark. Raises ValueError naming those there are."""
    if name not in scripts(folder):
        known = ", ".join(scripts(folder)) or "none in this installation"
        raise ValueError(f"benchmark: got {name!r}, wanted one of: {known}")
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def checked(result: dict) -> dict:
    """The result with ``machine`` filled in; ValueError where it breaks the contract above.

    >>> checked({"name": "x", "machine": "m", "rows": [], "bars": [{"id": "a"}]})
    Traceback (most recent call last):
    ValueError: bars[0]: lacks value, bar, ok
    """
    result = {"machine": machine(), **result} if "machine" not in result else result
    if set(KEYS) - set(result):
        raise ValueError(f"result: lacks {', '.join(k for k in KEYS if k not in result)}")
    for index, bar in enumerate(result["bars"]):
        lacking = [key for key in ("id", "value", "bar", "ok") if key not in bar]
        if lacking:
            raise ValueError(f"bars[{index}]: lacks {', '.join(lacking)}")
    return {key: result[key] for key in (*KEYS, *(k for k in result if k not in KEYS))}


def commit() -> str:
    """The commit of this checkout, "-dirty" added if the code differs from it."""

    def git(*words: str) -> str:
        run = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return run.stdout.strip() if run.returncode == 0 else ""

    changed = git("status", "--porcelain", "--untracked-files=no", "gsgen_lib", "benchmarks/*.py")
    return (git("rev-parse", "--short=10", "HEAD") or "unknown") + ("-dirty" if changed else "")


def save(result: dict, command: str, folder: Path = ROOT / "benchmarks" / "results") -> Path:
    """Write a result with its commit and command; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['name']}.json"
    record = {**result, "commit": commit(), "command": command}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def show(result: dict) -> None:
    """Print a result as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    for title, rows in (("measured", result["rows"]), ("bars", result["bars"])):
        if not rows:
            continue
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = Table(*columns, title=f"{result['name']}: {title}")
        for row in rows:
            table.add_row(*(cell(row.get(column, "")) for column in columns))
        console.print(table)
    if result.get("note"):
        console.print(result["note"])
    console.print(result["machine"])


def cell(value: object) -> str:
    """A number to four digits, a truth value as yes or no, anything else as it is.

    >>> [cell(v) for v in (0.123456, 12, True, "numba")]
    ['0.1235', '12', 'yes', 'numba']
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def bench(name: str, options: list[str], as_json: bool = False, keep: bool = False) -> int:
    """Run benchmark ``name`` with its own command-line ``options``.

    Prints tables, or with ``as_json`` one JSON object; with ``keep`` also writes
    benchmarks/results/NAME.json. Returns 0 if every bar holds, else 1.
    """
    import tyro

    module = load(name)
    result = checked(tyro.cli(module.main, prog=f"gsgen bench {name}", args=options))
    if keep:
        save(result, " ".join(["gsgen bench", name, *options]))
    if as_json:
        print(json.dumps(result))
    else:
        show(result)
    return 0 if all(bar["ok"] for bar in result["bars"]) else 1


def command(arguments: list[str]) -> int:
    """`gsgen bench NAME [--json] [--save] [the benchmark's own options]`; the exit code.

    NAME "all" runs every benchmark, each in a process of its own, so that none sees the
    memory and the compiled code of another; those named ..._gpu only where there is a CUDA
    device. --list names them.
    """
    parser = argparse.ArgumentParser(prog="gsgen bench", description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", help="which benchmark, or: all")
    parser.add_argument("--json", action="store_true", help="print one JSON object, no tables")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/NAME.json")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and stop")
    known, options = parser.parse_known_args(arguments)
    if known.list or not known.name:
        print("\n".join(scripts()))
        return 0
    if known.name == "all":
        flags = [a for a in arguments if a in ("--json", "--save")]
        run = [sys.executable, "-m", "gsgen_lib.cli", "bench"]
        return max([subprocess.call([*run, name, *flags]) for name in scripts() if runs_here(name)], default=0)
    try:
        return bench(known.name, options, known.json, known.save)
    except (ValueError, RuntimeError, FileNotFoundError) as error:  # unknown name, or it cannot run here
        print(f"gsgen bench: {error}", file=sys.stderr)
        return 2

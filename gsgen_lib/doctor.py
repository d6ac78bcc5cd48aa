"""What can this machine run? `gsgen doctor` looks, and never crashes.

It reports the versions of the libraries, the device, which rasterizer engine `engine="auto"`
would take and why, whether compiled code can be cached, and whether the course's data is
there. Each finding is ok, a note (something optional is absent) or a problem (the course will
not run; the exit code is then 1), with what to do about it.

Also here: how much time and memory a notebook took. Taught in notebook 00.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import platform
import sys
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REQUIRED = ("torch", "numpy", "numba", "scipy", "trimesh", "embreex", "plyfile", "safetensors", "tyro")
OPTIONAL = {
    "matplotlib": "figures in the notebooks",
    "jupyterlab": "opening the notebooks",
    "diffusers": "the notebooks on diffusion with Stable Diffusion",
    "gsplat": "the CUDA engine of the rasterizer",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report: status is "ok", "note" or "problem"."""

    status: str
    name: str
    detail: str


def _python() -> Finding:
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        return Finding("ok", "Python", detail)
    return Finding("problem", "Python", f"{detail}; the course needs 3.11 or 3.12")


def _packages() -> list[Finding]:
    """The versions of the libraries, each of them imported: installed is not yet usable."""
    findings = []
    for name in (*REQUIRED, *OPTIONAL):
        status = "problem" if name in REQUIRED else "note"
        purpose = f"; needed for {OPTIONAL[name]}" if name in OPTIONAL else ""
        try:
            found = version(name)
        except PackageNotFoundError:
            advice = purpose or ": pip install -r requirements.lock"
            findings.append(Finding(status, name, f"not installed{advice}"))
            continue
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                importlib.import_module(name)
        except Exception as error:  # a damaged installation can raise anything
            reason = (str(error).strip().splitlines() or [""])[0]
            advice = purpose or "; pip install --force-reinstall " + name
            findings.append(Finding(status, name, f"{found}, does not import: {type(error).__name__}: {reason}{advice}"))
        else:
            findings.append(Finding("ok", name, found))
    return findings


def _device() -> Finding:
    try:
        torch = importlib.import_module("torch")
        if torch.cuda.is_available():
            device = torch.cuda.get_device_properties(0)
            memory = device.total_memory / 1e9
            return Finding("ok", "device", f"cuda, {device.name}, {memory:.0f} GB")
        return Finding("ok", "device", f"cpu, {os.cpu_count()} cores (torch sees no CUDA device)")
    except Exception as error:
        return Finding("problem", "device", f"torch does not import: {error}")


def _engine() -> Finding:
    """The engine that rasterize(engine="auto") takes here, why, and one Gaussian drawn with it."""
    try:
        torch = importlib.import_module("torch")
        library = importlib.import_module("gsgen_lib")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda":
            print("Drawing one Gaussian; at first use gsplat compiles its kernels, which takes minutes.", flush=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            one = library.Gaussians.random(1, generator=torch.Generator().manual_seed(0)).to(device)
            camera = library.Cameras.orbit(1, width=8, height=8).to(device)
            engine = library.rasterize(one, camera).info.engine
        usual = {"numba": "compiled loops for the CPU", "gsplat": "CUDA kernels"}
        reasons = [str(warning.message) for warning in caught if "rasterize" in str(warning.message)]
        return Finding("ok", "rasterizer", f"{engine}: {(reasons or [usual.get(engine, '')])[0]}")
    except Exception as error:
        return Finding("problem", "rasterizer", f"{type(error).__name__}: {error}")


def _compile_cache() -> Finding:
    """numba keeps compiled code beside the source, or in NUMBA_CACHE_DIR, or in ~/.cache."""
    package = Path(__file__).parent / "raster"
    candidates = [os.environ.get("NUMBA_CACHE_DIR"), package / "__pycache__", package]
    candidates += [Path.home() / ".cache", Path.home()]
    for folder in candidates:
        if folder and Path(folder).is_dir() and os.access(folder, os.W_OK):
            return Finding("ok", "compile cache", "compiled code is kept, so it compiles once")
    advice = "no writable folder: every start compiles again; set NUMBA_CACHE_DIR to a folder"
    return Finding("note", "compile cache", advice)


def _data() -> Finding:
    try:
        root = importlib.import_module("gsgen_lib.data").data_root()
        entries = sum(1 for _ in Path(root).iterdir())
        if not (Path(root) / "objects.json").is_file():  # the list of objects, which every lesson reads
            return Finding("problem", "data", f"{Path(root).name}/ has {entries} entries but no objects.json; point "
                           "GSGEN_DATA at the data/ folder of a checkout, or unset it")
        return Finding("ok", "data", f"found: {Path(root).name}/ with {entries} entries")
    except Exception as error:
        return Finding("problem", "data", str(error) or type(error).__name__)


def examine() -> list[Finding]:
    """Look at this machine; returns the findings in the order of the report.

    >>> {finding.status for finding in examine()} <= {"ok", "note", "problem"}
    True
    """
    return [_python(), *_packages(), _device(), _engine(), _compile_cache(), _data()]


def doctor() -> int:
    """Report what this machine can run (versions, device, engine, data).

    Prints one line per finding and returns 0, or 1 if anything stands in the course's way.
    """
    findings = examine()
    marks = {"ok": "ok  ", "note": "note", "problem": "FAIL"}
    for finding in findings:
        print(f"{marks[finding.status]}  {finding.name:<14} {finding.detail}")
    problems = sum(finding.status == "problem" for finding in findings)
    print(f"{problems} problem(s)" if problems else "This machine can run the course.")
    return 1 if problems else 0


def peak_memory_mb() -> float:
    """Highest resident memory of this process so far, in MB (10^6 bytes).

    >>> peak_memory_mb() > 1
    True
    """
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def time_and_memory(started: float) -> str:
    """A sentence on what the work since ``started`` (from ``time.perf_counter()``) took.

    >>> time_and_memory(time.perf_counter()).startswith("This took 0 s and at most ")
    True
    """
    seconds = time.perf_counter() - started
    return f"This took {seconds:.0f} s and at most {peak_memory_mb():.0f} MB of memory."

"""Install on Google Colab what Colab lacks, and nothing else.

The set-up cell of every notebook runs this file. Colab comes with torch, numpy and
most of the scientific stack, built to fit each other and its GPU: replacing one of
them breaks the running kernel. So each package below is installed only if it is
missing, and always with --no-deps; the list is closed (what a listed package needs
is listed too, or is part of Colab), which tests/repo/test_colab.py checks.

Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# What Colab has and what must never be touched.
COLAB_HAS = """
torch numpy scipy pillow matplotlib tqdm rich packaging typing-extensions requests regex pyyaml
filelock huggingface-hub tokenizers psutil ipython ipykernel importlib-metadata networkx imageio
tifffile lazy-loader jinja2 sympy fsspec setuptools traitlets widgetsnbextension comm narwhals
contourpy cycler fonttools kiwisolver pyparsing python-dateutil llvmlite typer scikit-learn joblib threadpoolctl
""".split()

# What the course needs besides.
NEEDED = """
accelerate anywidget braceexpand diffusers docstring-parser einops embreex fast-simplification gsplat ipywidgets jaxtyping
jupyterlab-widgets lightning-utilities mapbox-earcut ninja numba plotly plyfile psygnal safetensors
scikit-image torchmetrics transformers trimesh typeguard tyro wadler-lindig webdataset xatlas
""".split()


def pins() -> dict[str, str]:
    """Package name -> "name==version", the versions that the tests ran with."""
    lock = Path(__file__).resolve().parents[1] / "requirements.lock"
    lines = [line.split(";")[0].strip() for line in lock.read_text().splitlines()]
    return {line.split("==")[0].lower(): line for line in lines if "==" in line}


def missing() -> list[str]:
    """The requirements whose package is not installed."""
    wanted, pin = [], pins()
    for name in NEEDED:
        try:
            version(name)
        except PackageNotFoundError:
            wanted.append(pin[name])
    return wanted


def main() -> None:
    wanted = missing()
    if not wanted:
        print("Nothing to install.")
        return
    print("Installing", ", ".join(wanted))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *wanted]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()

"""The library imports fast and alone: drawing libraries come in only when something is drawn."""

import subprocess
import sys

from gsgen_lib import viz

HEAVY = ("matplotlib", "plotly", "ipywidgets", "anywidget", "IPython", "trimesh", "PIL", "safetensors",
         "scipy.spatial")
MODULES = ("viz", "viz.picture", "viz.figures", "viz.curves", "viz.animations",
           "viz.ellipsoid_plot", "viz.orbit_viewer", "viz.view", "metrics", "perceptual")  # fmt: skip


def test_modules_import_alone_and_light():
    code = f"""
import importlib, sys
import torch
for module in {MODULES!r}:
    for name in [name for name in sys.modules if name.split(".")[0] == "gsgen_lib"]:
        del sys.modules[name]  # as in a fresh process, without paying for torch again
    importlib.import_module("gsgen_lib." + module)
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    assert not heavy, (module, heavy)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_every_public_name_is_there_and_stays_itself():
    for name in viz.__all__:
        first = getattr(viz, name)
        assert getattr(viz, name) is first and name in dir(viz)
        assert type(first).__name__ != "module"  # no module hides a function of its name
    assert not hasattr(viz, "film_stripe")

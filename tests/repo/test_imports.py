"""Every module imports alone: no CUDA, no display, no network, no order of imports, no heavy library.

Importing torch takes seconds, so a fresh interpreter per module is too slow. One child process
imports torch and numba once; then it forks for each module, so each starts from a process in
which nothing of gsgen_lib has been imported.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.repo.conftest import ROOT

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "gsgen_lib").rglob("*.py")
)
# Loaded only by the functions that need them: each costs most of a second or more, or may be absent.
HEAVY = ("diffusers", "transformers", "accelerate", "matplotlib", "plotly", "gsplat", "ipywidgets", "IPython",
         "torchmetrics", "skimage")  # fmt: skip
# Modules that define a widget load its library; the rest of the package loads them only when asked.
MAY_LOAD = {"gsgen_lib.viz.drag_image": "loads IPython,ipywidgets"}

PARENT = """
import importlib, json, os, socket, sys, traceback
sys.path.insert(0, os.getcwd())
heavy = sys.argv[2].split(",")
for name in filter(None, sys.argv[3].split(",")):
    importlib.import_module(name)

def refuse(*arguments, **options):
    raise OSError("network used while importing")

socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
assert not any(name.split(".")[0] == "gsgen_lib" for name in sys.modules)
results = {}
for module in sys.argv[1].split(","):
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        before = set(sys.modules)
        try:
            importlib.import_module(module)
            cuda = "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized()
            loaded = {name.split(".")[0] for name in set(sys.modules) - before}
            word = ",".join(sorted(loaded & set(heavy))) + (",CUDA" if cuda else "")
            answer = "loads " + word if word else "ok"
        except BaseException:
            answer = traceback.format_exc()
        os.write(send, answer.encode()[-60000:])
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        results[module] = pipe.read().decode()
    os.waitpid(child, 0)
print(json.dumps(results))
"""


def bare_environment():
    """This environment without a display and without a GPU."""
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "PYTHONPATH")}
    return environment | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


def import_each(modules, folder, preload=("numpy", "numba", "torch")):
    """{module: "ok" | what went wrong}, each imported in a process of its own."""
    command = [sys.executable, "-c", PARENT, ",".join(modules), ",".join(HEAVY), ",".join(preload)]
    run = subprocess.run(command, cwd=folder, env=bare_environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_every_module_imports_alone():
    assert len(MODULES) > 5
    answers = import_each(MODULES, ROOT)
    bad = {module: answer for module, answer in answers.items() if answer not in ("ok", MAY_LOAD.get(module))}
    assert not bad, "\n".join(f"{module}: {answer}" for module, answer in bad.items())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_the_rule_bites(tmp_path):
    package = tmp_path / "probe"
    package.mkdir()
    bodies = {
        "__init__": "",
        "good": "import math",
        "heavy": "import matplotlib",
        "network": "import socket; socket.create_connection(('127.0.0.1', 9))",
        "order": "import probe; probe.good",  # only works if probe.good was imported before
        "broken": "import nowhere_to_be_found",
    }
    for name, body in bodies.items():
        (package / f"{name}.py").write_text(body, encoding="utf-8")
    answers = import_each([f"probe.{name}" for name in ("good", "heavy", "network", "order", "broken")], tmp_path, ())
    assert answers["probe.good"] == "ok"
    assert answers["probe.heavy"] == "loads matplotlib"
    assert "network used" in answers["probe.network"]
    assert "AttributeError" in answers["probe.order"]
    assert "ModuleNotFoundError" in answers["probe.broken"]


def test_the_package_imports_in_a_fresh_interpreter():
    command = [sys.executable, "-W", "error", "-c", "import gsgen_lib; print(len(gsgen_lib.__all__))"]
    run = subprocess.run(command, cwd=ROOT, env=bare_environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= 3

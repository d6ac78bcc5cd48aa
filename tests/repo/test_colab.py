"""On Colab: torch and numpy stay, what is missing is installed without dependencies, forks work.

Colab is simulated: an empty virtual environment that "has" Colab's packages (their metadata), a
fake git that copies the checkout, a fake pip that writes down what it is asked to do, and a module
google.colab that is already imported, as it is in a Colab kernel.
"""

import json
import os
import re
import subprocess
import sys
import venv
from importlib.metadata import requires

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.repo.conftest import ROOT
from tools import notebook_source
from tools.colab_install import COLAB_HAS, NEEDED, pins
from tools.repo_name import BADGE_IMAGE, colab_badge, repo_name

SETUP = notebook_source.SETUP_CELL.read_text(encoding="utf-8")
FAKE_PIP = """
import json, os, sys
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps(["pip", *sys.argv[1:]]) + "\\n")
"""
FAKE_GIT = """#!{python}
import json, os, shutil, sys
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps(["git", *sys.argv[1:]]) + "\\n")
target = sys.argv[-1]
for name in ("gsgen_lib", "tools", "notebooks"):
    shutil.copytree(os.path.join(os.environ["CHECKOUT"], name), os.path.join(target, name),
                    ignore=shutil.ignore_patterns("__pycache__", "*.ipynb"))
shutil.copy(os.path.join(os.environ["CHECKOUT"], "requirements.lock"), target)
"""
KERNEL = """
import os, sys, types
google = types.ModuleType("google"); google.colab = types.ModuleType("google.colab")
sys.modules["google"], sys.modules["google.colab"] = google, google.colab
os.chdir(os.environ["CONTENT"])
code = open(os.environ["CELL"]).read()
exec(compile(code, "set-up cell", "exec"), {"__name__": "__main__"})
import importlib.util
print("found at", importlib.util.find_spec("gsgen_lib").origin)
"""


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """A function that runs the set-up cell of a repository on the simulated Colab -> (output, calls)."""
    if os.name == "nt":
        pytest.skip("the simulated git is a script with a shebang line")
    folder = tmp_path_factory.mktemp("colab")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    site = next((folder / "venv" / "lib").glob("python3.*")) / "site-packages"
    for name in (*COLAB_HAS, "transformers"):  # Colab also happens to have one of the needed packages
        info = site / f"{name.replace('-', '_')}-99.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
    (site / "pip").mkdir()
    (site / "pip" / "__init__.py").write_text("")
    (site / "pip" / "__main__.py").write_text(FAKE_PIP)
    (folder / "bin").mkdir()
    (folder / "bin" / "git").write_text(FAKE_GIT.format(python=sys.executable))
    (folder / "bin" / "git").chmod(0o755)
    (folder / "content").mkdir()

    def run(repo):
        record, cell = folder / "record.jsonl", folder / "cell.py"
        record.write_text("")
        cell.write_text(SETUP.replace("OWNER/NAME", repo).replace("/content", str(folder / "content")))
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
        environment |= {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "RECORD": str(record), "CELL": str(cell),
                        "CONTENT": str(folder / "content"), "CHECKOUT": str(ROOT)}  # fmt: skip
        done = subprocess.run([python, "-c", KERNEL], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout, [json.loads(line) for line in record.read_text().splitlines()]

    return run


def test_fresh_colab_then_run_again(colab):
    output, calls = colab("me/fork")
    assert re.search(r"found at .*/content/fork/gsgen_lib/__init__\.py", output)
    clone, install = calls
    assert clone[:2] == ["git", "clone"] and "https://github.com/me/fork" in clone
    assert install[:2] == ["pip", "install"] and "--no-deps" in install
    packages = {word.split("==")[0].lower() for word in install[2:] if not word.startswith("-")}
    assert packages == set(NEEDED) - {"transformers"}
    assert not packages & set(COLAB_HAS)
    output, calls = colab("me/fork")  # the checkout is there: no second clone
    assert [call[0] for call in calls] == ["pip"] and "found at" in output


def test_list_of_needed_packages_is_closed():
    """What a needed package needs is needed too or part of Colab; so is what the project needs."""
    known = {canonicalize_name(name) for name in (*NEEDED, *COLAB_HAS)}
    lacking = {}
    for name in NEEDED:
        for text in requires(name) or []:
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                if canonicalize_name(need.name) not in known:
                    lacking[need.name] = name
    assert lacking == {}
    assert not set(NEEDED) & set(COLAB_HAS)
    assert {"torch", "numpy"} <= set(COLAB_HAS)
    assert set(NEEDED) <= set(pins())


def test_what_the_library_and_the_lessons_need_is_covered():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    # for making and checking notebooks, which nobody does on Colab
    authors = {"jupyterlab", "jupytext", "nbclient", "nbconvert", "nbformat", "latex2mathml"}
    extras = project["optional-dependencies"]
    for text in project["dependencies"] + extras["course"] + extras["gpu"]:
        name = canonicalize_name(Requirement(text).name)
        assert name in authors or name in NEEDED or name in COLAB_HAS, name


def test_on_an_own_machine_the_cell_installs_nothing(tmp_path):
    program = tmp_path / "run.py"
    program.write_text("import subprocess\nsubprocess.run = None\n" + SETUP + "\nprint(root.name, REPO)\n")
    folder = ROOT / "notebooks"
    run = subprocess.run([sys.executable, program], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [ROOT.name, "OWNER/NAME"]


def test_badges_and_setup_cells_agree_with_the_repository():
    notebooks = notebook_source.committed()
    assert notebooks
    for path in notebooks:
        text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
        assert text.count(BADGE_IMAGE) == 1, path
        assert colab_badge(path.relative_to(ROOT).as_posix(), repo_name()) in text, path
        assert re.findall(r'^REPO = "(.*)"', text, re.M) == [repo_name()], path

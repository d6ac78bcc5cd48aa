"""pyproject.toml, environment.yml and requirements.lock agree, and the lock installs everywhere."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.repo.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK_TEXT = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PINS = [Requirement(line) for line in LOCK_TEXT.splitlines() if line and not line.startswith("#")]
MACHINES = [
    {"sys_platform": s, "platform_system": n, "os_name": o, "platform_machine": m, "python_version": p,
     "python_full_version": f"{p}.7", "implementation_name": "cpython", "platform_python_implementation": "CPython"}
    for s, n, o, m in (("linux", "Linux", "posix", "x86_64"), ("linux", "Linux", "posix", "aarch64"),
                       ("darwin", "Darwin", "posix", "arm64"), ("win32", "Windows", "nt", "AMD64"))
    for p in ("3.11", "3.12")
]  # fmt: skip


def locked(machine):
    """{package: version} that pip takes from the lock on a machine."""
    return {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in PINS
        if pin.marker is None or pin.marker.evaluate(machine)
    }


def test_conda_environment_equals_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = environment["dependencies"]
    wanted = PROJECT["dependencies"] + EXTRAS["course"] + EXTRAS["dev"] + ["-e ."]
    assert pip["pip"] == wanted
    assert f"python{PROJECT['requires-python']}" in conda


def test_gpu_engine_is_the_same_in_both_extras():
    assert set(EXTRAS["gpu"]) <= set(EXTRAS["dev"])


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m['platform_system']}-{m['python_version']}")
def test_lock_holds_what_is_asked_for_on_each_machine(machine):
    pins = locked(machine)
    for text in PROJECT["dependencies"] + EXTRAS["course"] + EXTRAS["dev"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), text
    assert pins["torch"] == "2.13.0"
    assert ("pywinpty" in pins) == (machine["sys_platform"] == "win32")
    assert ("appnope" in pins) == (machine["sys_platform"] == "darwin")


def test_lock_has_exact_pins_and_names_no_host_hash_or_file():
    for pin in PINS:
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and "*" not in specifier.version and "+" not in specifier.version
        assert pin.url is None
    for machine in MACHINES:
        names = [canonicalize_name(p.name) for p in PINS if p.marker is None or p.marker.evaluate(machine)]
        assert len(names) == len(set(names))
    code = re.sub(r"(?m)^#.*", "", LOCK_TEXT)
    assert not re.search(r"://|--|sha256|\.whl|@", code)


def test_cuda_packages_are_left_to_torch():
    assert not [pin.name for pin in PINS if re.match(r"nvidia-|cuda-|triton", pin.name)]


def test_this_environment_is_the_locked_one():
    """What is installed here is what the lock says: the tests speak for the lock."""
    machine = default_environment()
    wrong = {}
    for name, wanted in locked(machine).items():
        try:
            have = version(name).split("+")[0]
        except PackageNotFoundError:
            have = None
        if have != wanted:
            wrong[name] = (have, wanted)
    assert wrong == {}


def test_version_has_one_source():
    import gsgen_lib

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    if hasattr(gsgen_lib, "__version__"):
        assert gsgen_lib.__version__ == PROJECT["version"]


def test_licences_are_stated():
    assert PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    assert "Attribution 4.0" in (ROOT / "LICENSE-TEXT").read_text(encoding="utf-8")
    for name in PROJECT["license-files"]:
        assert (ROOT / name).is_file()

"""Rules that hold for the whole tree: nothing unsafe, nothing unfinished, files of readable size."""

import ast
import json
import re

import pytest

from tests.repo.conftest import ROOT, project_files

LIBRARY = sorted((ROOT / "gsgen_lib").rglob("*.py"))
MAX_LINES = 350
MAX_BYTES = 25_000_000
TEXT = {".py", ".md", ".toml", ".yml", ".cff", ".sh", ".ipynb"}
# in pieces, so that this file does not contain what it looks for
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + r")\b")


def unsafe_calls(code: str) -> list[str]:
    """Calls that would run code from a data file: unpickling in any form."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            unsafe = {"pickle", "dill", "cloudpickle", "joblib"}.intersection(names)
            found += [f"line {node.lineno}: imports {name}" for name in sorted(unsafe)]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {option.arg: option.value for option in node.keywords}
        if called == "torch.load":
            value = options.get("weights_only")
            if not (isinstance(value, ast.Constant) and value.value is True):
                found.append(f"line {node.lineno}: torch.load without weights_only=True")
        allow = options.get("allow_pickle")
        if allow is not None and not (isinstance(allow, ast.Constant) and allow.value is False):
            found.append(f"line {node.lineno}: allow_pickle")
    return found


def global_seeds(code: str) -> list[str]:
    """Calls that seed a generator shared by the whole process, except where torch puts it back (fork_rng)."""
    seeds = {"torch.manual_seed", "torch.cuda.manual_seed", "torch.cuda.manual_seed_all", "np.random.seed",
             "numpy.random.seed", "random.seed"}  # fmt: skip
    tree = ast.parse(code)
    forked = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.With)
              and any("fork_rng" in ast.unparse(item.context_expr) for item in node.items) for inner in ast.walk(node)}
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and id(node) not in forked)
    return [f"line {c.lineno}: {ast.unparse(c.func)}" for c in calls if ast.unparse(c.func) in seeds]


def undocumented(code: str) -> list[str]:
    """Public functions, classes and methods without a docstring (forward and dunders aside)."""
    missing = []
    tree = ast.parse(code)
    if not ast.get_docstring(tree):
        missing.append("the module itself")
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    for node in (n for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")):
        if not ast.get_docstring(node):
            missing.append(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (n for n in node.body if isinstance(n, kinds) and not n.name.startswith("_"))
            missing += [f"{node.name}.{m.name}" for m in methods if m.name != "forward" and not ast.get_docstring(m)]
    return missing


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_library_file(path):
    code = path.read_text(encoding="utf-8")
    assert len(code.splitlines()) <= MAX_LINES
    assert undocumented(code) == []
    assert unsafe_calls(code) == []
    assert global_seeds(code) == []


# Reads one archive of known SHA-256, once, with an unpickler that refuses everything but arrays.
MAY_UNPICKLE = ("tools/convert_lpips.py",)


def test_no_unpickling_anywhere():
    for path in project_files():
        relative = path.relative_to(ROOT)
        # tests may write a pickle to see it refused
        if path.suffix == ".py" and relative.parts[0] != "tests" and relative.as_posix() not in MAY_UNPICKLE:
            assert unsafe_calls(path.read_text(encoding="utf-8")) == [], path


def test_nothing_unfinished_and_nothing_huge():
    for path in project_files():
        assert path.stat().st_size <= MAX_BYTES, path
        if path.suffix in TEXT:
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".ipynb":  # what people wrote, not the letters of an encoded picture
                text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
            assert not UNFINISHED.search(text), f"{path}: {UNFINISHED.search(text)[0]}"


def test_no_pickled_files():
    bad = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin"}
    assert [path for path in project_files() if path.suffix in bad] == []


def test_the_rules_bite():
    for bad in ("import pickle", "from pickle import loads", "torch.load(f)", "torch.load(f, weights_only=False)",
                "np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=flag)"):  # fmt: skip
        assert unsafe_calls(bad), bad
    for good in ("torch.load(f, weights_only=True)", "np.load(f)", "np.load(f, allow_pickle=False)"):
        assert not unsafe_calls(good), good
    assert global_seeds("torch.manual_seed(0)") and not global_seeds("torch.Generator().manual_seed(0)")
    assert not global_seeds("with torch.random.fork_rng():\n    torch.manual_seed(0)")
    code = '"""Doc."""\ndef f(): pass\nclass A:\n    """Doc."""\n    def g(self): pass\n    def _h(self): pass\n'
    assert undocumented(code) == ["f", "A.g"]
    assert UNFINISHED.search("# " + "TO" + "DO: later") and not UNFINISHED.search("mastodons")


def test_ruff_finds_nothing():
    import subprocess
    import sys

    run = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr

"""The README's commands: those marked "run" are run, the others exist, and Makefile and README agree.

A fenced block is preceded by one comment: `test: run`, `test: check`, or `same as Makefile: TARGET`.
"""

import contextlib
import functools
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gsgen_lib.cli import COMMANDS, function_of, split
from tests.repo.conftest import ROOT
from tools.repo_name import repo_name

README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^>]*) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```", re.S | re.M)


def blocks(mark, text=README):
    """[(language, code)] of the fenced blocks whose comment starts with ``mark``."""
    return [(m["language"], m["code"]) for m in BLOCK.finditer(text) if (m["mark"] or "").startswith(mark)]


def makefile_targets(text=MAKEFILE):
    """{target: recipe lines without @}, continuation lines joined."""
    targets, name = {}, None
    for line in text.replace("\\\n", " ").splitlines():
        head = re.match(r"^([\w$()./-]+):(?!=)", line)
        if head:
            name = head[1]
            targets[name] = []
        elif line.startswith("\t") and name:
            targets[name].append(" ".join(line.split()).removeprefix("@"))
    return targets


def python_commands(lines):
    """The Python commands of a recipe or block, in one spelling."""
    found = []
    for line in lines:
        line = re.sub(r"^test -x \S+ \|\| ", "", line.strip())
        line = re.sub(r"\.venv\\Scripts\\python|\$\(PY\)", "PY", line)
        line = re.sub(r"^(py -3\.1[12]|\$\(PYTHON\))", "PYTHON", line)
        line = line.replace("$(VENV)", ".venv").replace(" $(NB)", "")
        if re.match(r"(PY|PYTHON) -m ", line):
            found.append(line)
    return found


def test_every_block_is_marked():
    unmarked = [m["code"] for m in BLOCK.finditer(README) if m["language"] and not m["mark"]]
    assert unmarked == []
    assert len(blocks("test: run")) >= 2 and len(blocks("test: check")) >= 5


@pytest.mark.parametrize("target", re.findall(r"<!-- same as Makefile: (.*?) -->", README))
def test_plain_commands_are_those_of_the_makefile(target):
    ((_, code),) = [b for b in blocks(f"same as Makefile: {target}") if b]
    mine, makefile = python_commands(code.splitlines()), python_commands(makefile_targets()[target])
    assert mine == makefile and mine
    assert len(mine) == len(code.splitlines())


def test_every_target_that_a_reader_needs_has_plain_commands():
    said = set(re.findall(r"<!-- same as Makefile: (.*?) -->", README))
    assert said == {"$(STAMP)", "course", "lab", "test", "notebooks", "bench"}


def test_the_comparison_bites():
    plain = python_commands([r".venv\Scripts\python -m tools.course"])
    assert python_commands(["$(PY) -m tools.course $(NB)"]) == plain
    assert python_commands(["$(PY) -m tools.curse $(NB)"]) != plain
    assert makefile_targets("a: b  ## c\n\t@one \\\n\t two\nX = 1\n") == {"a": ["one two"]}


def options_exist(command, rest):
    """"" if a subcommand takes these options, else what it says of them; it is not run."""
    if command in ("doctor", "bench"):  # no options; reads them itself
        return ""
    import tyro

    function = functools.wraps(function_of(command))(lambda *words, **options: 0)
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(said):
            tyro.cli(function, args=rest, config=(tyro.conf.PositionalRequiredArgs,))
    except SystemExit as ended:
        return said.getvalue() if ended.code else ""
    return ""


def command_exists(line):
    """"" if what a command line names exists in this repository, else what is wrong."""
    words = [word for word in shlex.split(line.split("  # ")[0].replace("\\", "/")) if not re.fullmatch(r"[A-Z_]+=\S+", word)]
    tool = Path(words[0]).name
    if tool == "make":
        return "" if words[1] in makefile_targets() else f"no target {words[1]}"
    if tool == "gsgen":
        command, rest = split(words[1:])
        return options_exist(command, rest) if command in COMMANDS else f"no subcommand {words[1:]}"
    if tool == "git":
        return "" if words[2] == f"https://github.com/{repo_name()}" else "another repository"
    if tool == "cd":
        return "" if f" {words[1]}\n{line}\n" in README else "not what the line before made"
    if tool == "pip":
        extras = re.search(r"\[(\w+)\]", line)[1]
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return "" if extras in project["optional-dependencies"] else f"no extra {extras}"
    if tool == "conda":
        return "" if "gsgen" in (ROOT / "environment.yml").read_text(encoding="utf-8") else "no environment"
    if line == "source .venv/bin/activate":
        return ""
    if tool == "python":
        path = Path(words[2].replace(".", "/") + ".py") if words[1] == "-m" else Path(words[1])
        return "" if (ROOT / path).is_file() else f"no file {path}"
    if tool == "accelerate":
        module, rest = line.split(" -m ", 1)[1].split(maxsplit=1)
        return command_exists(f"gsgen {rest}") if module == "gsgen_lib.cli" else f"another program {module}"
    return f"unknown command {tool}"


def shell_lines(mark):
    return [line for language, code in blocks(mark) if language == "bash" for line in code.splitlines() if line.strip()]


@pytest.mark.parametrize("line", shell_lines("test: check") + shell_lines("test: run"))
def test_named_commands_exist(line):
    assert command_exists(line) == ""


def test_unknown_commands_are_noticed():
    for line in ("make tea", "gsgen dance", "gsgen data shard --source toys --out shards/toys", "gsgen train var --presets gpu",
                 "gsgen data shard a --count many", "python -m tools.nowhere", "curl x", "cd x", "git clone https://github.com/x/y"):
        assert command_exists(line) != "", line


@pytest.mark.parametrize("line", shell_lines("test: run"))
def test_marked_shell_commands_run(line):
    if line.startswith("make") and not shutil.which("make"):
        pytest.skip("no make on this machine")
    words = line.split()
    if Path(words[0]).name == "gsgen":  # of the environment that runs the tests
        words = [sys.executable, "-m", "gsgen_lib.cli", *words[1:]]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.strip()


@pytest.mark.parametrize("code", [code for language, code in blocks("test: run") if language == "python"])
def test_marked_python_runs(code, tmp_path):
    (tmp_path / "build").mkdir()
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-W", "error::UserWarning", "example.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for line in code.splitlines():  # what a comment behind a print promises is what it prints
        said = re.search(r"^print\(.*\)  # (.*)", line)
        if said:
            for shape in re.findall(r"\(.*?\)", said[1]):
                assert shape in run.stdout.replace("torch.Size([", "(").replace("])", ")")


def test_links_and_pictures_exist():
    for page in ("README.md", "CONTRIBUTING.md", "CREDITS.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)\)", text):
            assert (ROOT / target).exists(), f"{page}: {target}"


def test_credits_name_the_weights_that_ship_and_no_others():
    text = (ROOT / "CREDITS.md").read_text(encoding="utf-8").split("**Weights.**")[1].split("**Libraries.**")[0]
    lines = re.findall(r"^- (`.*?`):", text, re.M)
    named = {name for line in lines for name in re.findall(r"`(\w+)`", line)}
    folder = ROOT / "data/checkpoints"
    assert named == {path.stem for path in folder.glob("*.safetensors")} | {c.parent.name for c in folder.glob("*/card.json")}


def test_readme_has_its_parts_in_order():
    wanted = ["What you will build", "Two commands", "On Colab", "On a GPU", "Using the library"]
    wanted += ["Map of the repository", "How to cite"]
    assert re.findall(r"^## (.*)", README, re.M) == wanted


def test_pictures_are_those_of_the_notebooks():
    from tools.pictures import FOLDER, pictures

    wanted = pictures()
    assert {path.name for path in FOLDER.glob("[0-9][0-9]_*.png")} == {path.name for path in wanted}
    for path, png in wanted.items():
        assert path.read_bytes() == png, f"{path.name}: run `python -m tools.pictures`"

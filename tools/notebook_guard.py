"""What every committed notebook must satisfy; tests/notebooks/test_guard.py applies it.

A stripped notebook passes an output comparison without comparing anything, a misspelt
marker is silently ignored, and twins drift. So each rule here returns sentences that say
what is wrong; no sentence means that the rule holds.
"""

from __future__ import annotations

import ast
import re

from nbformat import NotebookNode

MARKER = "# NBVAL_CHECK_OUTPUT"
MARKER_LIKE = re.compile(r"^\s*#\s*nb_?val|check.?_?output", re.IGNORECASE)
MIN_MARKED, MAX_MARKED = 5, 12
MAX_BYTES = 1_500_000
MAX_CODE_LINES = 40
CELLS = (30, 45)
WORDS_PER_CODE_LINE = (3.0, 10.0)
HEADINGS = ("You will be able to", "Exercises", "Summary", "References", "Time and memory")
NOTICE = "what to notice"
PICTURES = ("image/png", "image/jpeg", "image/svg+xml", "image/webp", "image/gif")
UNSTABLE_OUTPUT = ("image/svg+xml", "text/html")  # compared byte by byte: always fail
ADDRESS = re.compile(r"\bat 0x[0-9a-f]{6,}")


def code_cells(notebook: NotebookNode) -> list[tuple[int, NotebookNode]]:
    """(index, cell) of the code cells."""
    return [(i, c) for i, c in enumerate(notebook.cells) if c.cell_type == "code"]


def is_marked(cell: NotebookNode) -> bool:
    """Whether a cell's output is compared when the tests run the notebook."""
    return any(line.strip() == MARKER for line in cell.source.splitlines())


def has_picture(cell: NotebookNode) -> bool:
    """Whether a cell shows a picture."""
    return any(kind in out.get("data", {}) for out in cell.get("outputs", []) for kind in PICTURES)


def in_step(notebook: NotebookNode, built: NotebookNode) -> list[str]:
    """The notebook's cells are those that its source gives, one by one."""
    mine = [(c.cell_type, c.id, c.source, dict(c.metadata)) for c in notebook.cells]
    source = [(c.cell_type, c.id, c.source, dict(c.metadata)) for c in built.cells]
    if len(mine) != len(source):
        return [f"{len(mine)} cells, but its source gives {len(source)}: run `make notebooks`"]
    differing = [i for i, (a, b) in enumerate(zip(mine, source, strict=True)) if a != b]
    return [f"cell {i} differs from its source: run `make notebooks`" for i in differing]


def executed(notebook: NotebookNode) -> list[str]:
    """Executed from top to bottom, without errors or warnings, with nothing volatile."""
    problems = []
    for expected, (index, cell) in enumerate(code_cells(notebook), start=1):
        if cell.execution_count != expected:
            problems.append(f"cell {index}: execution count {cell.execution_count}, "
                            f"wanted {expected}")  # fmt: skip
        for output in cell.outputs:
            if output.output_type == "error":
                problems.append(f"cell {index}: holds the error {output.ename}")
            if output.get("name") == "stderr":
                problems.append(f"cell {index}: holds output on stderr")
            text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            if ADDRESS.search(text):
                problems.append(f"cell {index}: prints a memory address")
        if "execution" in cell.metadata:
            problems.append(f"cell {index}: holds timestamps")
    if "widgets" in notebook.metadata:
        problems.append("holds the state of widgets")
    return problems


def marked(notebook: NotebookNode, least: int = MIN_MARKED) -> list[str]:
    """Enough cells are compared, each has something to compare, no marker is misspelt."""
    problems, count = [], 0
    for index, cell in code_cells(notebook):
        for line in cell.source.splitlines():
            comment = line.strip().startswith("#")
            if comment and line.strip() != MARKER and MARKER_LIKE.search(line):
                problems.append(f"cell {index}: misspelt marker {line.strip()!r}")
            elif not comment and "NBVAL" in line.upper():
                problems.append(f"cell {index}: the marker must be a line of its own")
        if not is_marked(cell):
            continue
        count += 1
        if not cell.outputs or cell.execution_count is None:
            problems.append(f"cell {index}: marked, but has no output to compare")
        for output in cell.outputs:
            for kind in UNSTABLE_OUTPUT:
                if kind in output.get("data", {}):
                    problems.append(f"cell {index}: marked, but shows {kind}, which never compares")
    if not least <= count <= MAX_MARKED:
        problems.append(f"{count} marked cells, wanted {least} to {MAX_MARKED}")
    return problems


def anatomy(notebook: NotebookNode, cells: tuple[int, int] = CELLS) -> list[str]:
    """The parts that every lesson has, in sizes that can be read."""
    problems, number = [], len(notebook.cells)
    if not cells[0] <= number <= cells[1]:
        problems.append(f"{number} cells, wanted {cells[0]} to {cells[1]}")
    prose = [c.source for c in notebook.cells if c.cell_type == "markdown"]
    headings = [line for text in prose for line in text.splitlines() if line.startswith("#")]
    for wanted in HEADINGS:
        if not any(wanted.lower() in line.lower() for line in headings):
            problems.append(f"no heading {wanted!r}")
    strip = notebook.cells[0].source
    if not ("CPU" in strip and "GPU" in strip):
        problems.append("cell 0: no line that says how long it takes on CPU and on GPU")
    lines = 0
    for index, cell in code_cells(notebook):
        own = [ln for ln in cell.source.splitlines() if ln.strip() and ln.strip() != MARKER]
        if "setup" not in cell.metadata.get("tags", []):
            lines += len(own)
        if len(own) > MAX_CODE_LINES:
            problems.append(f"cell {index}: {len(own)} lines of code, at most {MAX_CODE_LINES}")
    words = sum(len(re.findall(r"[A-Za-z][\w'-]*", text)) for text in prose)
    ratio, (low, high) = words / max(lines, 1), WORDS_PER_CODE_LINE
    if not low <= ratio <= high:
        problems.append(f"{ratio:.1f} words of prose per line of code, wanted {low} to {high}")
    return problems


def pictures(notebook: NotebookNode) -> list[str]:
    """Each picture has an alternative text, and prose that says what to notice."""
    problems = []
    for index, cell in code_cells(notebook):
        if not has_picture(cell):
            continue
        if not cell.metadata.get("alt"):
            problems.append(f"cell {index}: shows a picture, but its source line has no alt=")
        following = notebook.cells[index + 1 : index + 3]
        if not any(c.cell_type == "markdown" and NOTICE in c.source.lower() for c in following):
            problems.append(f"cell {index}: no {NOTICE!r} within two cells after its picture")
    return problems


def solution_leaks(lesson: NotebookNode) -> list[str]:
    """A lesson holds stubs, never a solution or its marks."""
    problems = []
    for index, cell in enumerate(lesson.cells):
        if "SOLUTION" in cell.source:
            problems.append(f"cell {index}: holds a solution mark")
        if cell.cell_type == "code" and "exercise" in cell.metadata:
            stub = "NotImplementedError" in cell.source or "= None" in cell.source
            if not stub:
                problems.append(f"cell {index}: exercise {cell.metadata['exercise']} has no stub")
    return problems


def seeds_globally(notebook: NotebookNode) -> list[str]:
    """No cell sets threads or seeds for the whole process: the runner and generators do."""
    forbidden = ("set_num_threads", "random.seed", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
    return [
        f"cell {index}: {word} belongs to the runner or to a generator"
        for index, cell in code_cells(notebook)
        for word in forbidden
        if word in cell.source
    ] + [
        f"cell {index}: torch.manual_seed seeds globally; pass generator="
        for index, cell in code_cells(notebook)
        if re.search(r"\btorch\.manual_seed", cell.source)
    ]


DRAWS = ("rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli", "rand_like", "randn_like")
LAYERS = re.compile(r"Linear|Bilinear|Embedding|Conv\w+|MultiheadAttention|GRU|LSTM|RNN|Transformer\w+")


def draws_unseeded(notebook: NotebookNode) -> list[str]:
    """No cell draws from the process's own generator: its outputs would differ from run to run, and a marked cell
    would fail now and then. Looked at: torch.rand... without generator=, numpy's old functions, and networks whose
    first weights are not drawn inside `seeded(...)` (layers of torch.nn, and classes of the notebook that have some).
    """
    if parses(notebook):
        return []  # which says so
    trees = {index: ast.parse(cell.source) for index, cell in code_cells(notebook)}
    classes = {node.name for tree in trees.values() for node in ast.walk(tree)
               if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Module") for base in node.bases)}
    problems = []

    def look(node: ast.AST, index: int) -> None:
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        module, _, last = name.rpartition(".")
        if isinstance(node, ast.ClassDef) or last == "seeded":
            return  # a class draws nothing until it is called, and seeded puts the generator back
        if module == "torch" and last in DRAWS and "generator" not in [k.arg for k in node.keywords]:
            problems.append(f"cell {index}: {name} without generator=")
        elif module in ("np.random", "numpy.random") and last not in ("default_rng", "Generator", "SeedSequence"):
            problems.append(f"cell {index}: {name} draws from numpy's global state; use np.random.default_rng(seed)")
        elif name in classes or (module in ("nn", "torch.nn") and LAYERS.fullmatch(last)):
            problems.append(f"cell {index}: the weights of {name} are not seeded; use seeded(lambda: ..., SEED)")
        for child in ast.iter_child_nodes(node):
            look(child, index)

    for index, tree in trees.items():
        look(tree, index)
    return problems


def parses(notebook: NotebookNode) -> list[str]:
    """Every code cell is plain Python, without magics, so that it runs as a script too."""
    problems = []
    for index, cell in code_cells(notebook):
        try:
            ast.parse(cell.source)
        except SyntaxError as error:
            problems.append(f"cell {index}: not plain Python ({error.msg})")
    return problems

"""Write BENCHMARKS.md from benchmarks/results/*.json.

    python -m tools.benchmarks_md

Nobody writes a number into BENCHMARKS.md by hand: `gsgen bench NAME --save` measures it and
writes the JSON file, this turns the files into one page, and a test keeps the two in step.
"""

from __future__ import annotations

import json
from pathlib import Path

from gsgen_lib.bench import ROOT, cell, load

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "BENCHMARKS.md"
HEAD = """\
# Benchmarks

Every table here was printed by the command above it, on the machine and commit that are named
with it. To measure on your machine: `gsgen bench NAME` prints, `make bench` runs all of them and
rewrites this page. A bar is what the course promises; a bar that does not hold says "no", and what
stands in its way, and what was tried, is written below it.
"""


def table(rows: list[dict]) -> str:
    """Rows as a Markdown table; the columns are the keys in order of appearance.

    >>> print(table([{"a": 1, "b": 0.123456}, {"a": 2}]))
    | a | b |
    |---|---|
    | 1 | 0.1235 |
    | 2 |  |
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = (cell(row.get(column, "")).replace("|", "\\|") for column in columns)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def reasons(result: dict, why: dict[str, str]) -> list[str]:
    """For the bars of a result that do not hold, in their order, what `why` says of them; each once.

    why: a benchmark's MISSED, beginning of a bar's id -> text. Raises KeyError for a bar of which nothing is said.

    >>> missed = [{"id": "toys: PSNR", "ok": False}, {"id": "toys: IoU", "ok": False}, {"id": "real", "ok": True}]
    >>> reasons({"bars": missed}, {"toys": "too small."})
    ['too small.']
    """
    found = []
    for bar in result["bars"]:
        if not bar["ok"]:
            key = next((k for k in why if bar["id"].startswith(k)), None)
            if key is None:
                raise KeyError(f"{result['name']}: {bar['id']!r} does not hold, and MISSED says nothing of it")
            found += [why[key]] if why[key] not in found else []
    return found


def page(results: list[dict]) -> str:
    """The whole page."""
    parts = [HEAD]
    for result in sorted(results, key=lambda r: r["name"]):
        parts.append(f"## {result['name']}\n")
        parts.append(f"`{result['command']}` · commit {result['commit']} · {result['machine']}\n")
        if result.get("note"):
            parts.append(result["note"] + "\n")
        if result["rows"]:
            parts.append(table(result["rows"]) + "\n")
        if result["bars"]:
            parts.append(table(result["bars"]) + "\n")
        if any(not bar["ok"] for bar in result["bars"]):
            said = reasons(result, getattr(load(result["name"]), "MISSED", {}))
            parts.append("What does not hold, and what was tried:\n\n" + "\n".join(f"- {text}" for text in said) + "\n")
    return "\n".join(parts)


def read_results(folder: Path = RESULTS) -> list[dict]:
    """All saved results."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def main() -> None:
    results = read_results()
    PAGE.write_text(page(results), encoding="utf-8", newline="\n")
    print(f"{PAGE.name}: {len(results)} benchmarks")


if __name__ == "__main__":
    main()

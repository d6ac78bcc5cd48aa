"""Run the course on this machine.

    python -m tools.course            every lesson, in order
    python -m tools.course 00 01      those whose name starts with 00 or 01

Executes each notebook of notebooks/ and writes to build/course/: the executed copy, an HTML page
(pictures inside, formulas as MathML: readable offline), and index.html with the main pictures.
The committed notebooks stay as they are. One line per notebook: seconds, peak memory, and how it
ended. A notebook that fails is written up to where it failed, its line names the cell and the
error, the others still run, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import base64
import html
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import latex2mathml.converter
import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from tools import notebook_source, run_notebook, runner_env
from tools.repo_name import ROOT

OUT = ROOT / "build" / "course"
STYLE = """\
:root { color-scheme: light dark; }
body { font: 17px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
article { border-top: 1px solid #8885; padding: 1rem 0 1.5rem }
h2 { margin: .2rem 0 }
p { margin: .4rem 0; max-width: 46rem }
figure { margin: .8rem 1rem 0 0; display: inline-block; vertical-align: top; max-width: 100% }
figure img { max-width: 100%; max-height: 20rem; background: white; border-radius: 4px }
figcaption, small { color: #777; font-size: .85rem; max-width: 40rem }
.failed { color: #b00020; font-weight: 600 }
"""


@dataclass
class Page:
    """One executed notebook of the index: pictures are (file name, alternative text)."""

    name: str
    title: str
    summary: str
    pictures: list[tuple[str, str]]
    run: run_notebook.Run


class MathMLRenderer(IPythonRenderer):
    """Markdown to HTML with formulas as MathML, which browsers show without a network."""

    def _mathml(self, latex: str, display: str) -> str:
        try:
            return latex2mathml.converter.convert(latex, display=display)
        except Exception:  # a macro that the converter does not know: show the formula's source
            return f"<code>{html.escape(latex)}</code>"

    def inline_math(self, body: str) -> str:
        return self._mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return self._mathml(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return self._mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")


class OfflineExporter(HTMLExporter):
    """nbconvert's page without scripts from elsewhere."""

    def markdown2html(self, context, source: str) -> str:
        del context
        return MarkdownWithMath(renderer=MathMLRenderer(escape=False)).render(source)

    def from_notebook_node(self, nb, resources=None, **kw):
        page, resources = super().from_notebook_node(nb, resources, **kw)
        page = re.sub(r"<script[^>]*\bsrc=\"https?://.*?</script>", "", page, flags=re.S)
        return with_alternative_texts(page, nb), resources


def with_alternative_texts(page: str, notebook: NotebookNode) -> str:
    """Give each picture of a page the ``alt`` of the cell that drew it (nbconvert leaves it out)."""
    texts = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for kind in ("image/png", "image/jpeg"):
                if kind in output.get("data", {}) and "alt" in cell.metadata:
                    data = "".join(output.data[kind].split())
                    texts[f"data:{kind};base64,{data}"] = html.escape(cell.metadata["alt"], quote=True)

    def replace(match: re.Match) -> str:
        source = re.search(r'src="([^"]*)"', match[0])
        text = texts.get("".join(source[1].split())) if source else None
        return match[0] if text is None else re.sub(r'alt="[^"]*"', f'alt="{text}"', match[0])

    return re.sub(r"<img [^>]*>", replace, page)


# jinja passes the context to a filter that carries this mark; overriding the method loses it
OfflineExporter.markdown2html.jinja_pass_arg = HTMLExporter.markdown2html.jinja_pass_arg


def main_pictures(notebook: NotebookNode) -> list[tuple[bytes, str]]:
    """(PNG bytes, alternative text) of the first picture of each cell tagged "main".

    Without such a cell, the notebook's first picture.
    """
    tagged, first = [], []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            png = output.get("data", {}).get("image/png")
            if png:
                picture = (base64.b64decode(png), cell.metadata.get("alt", ""))
                (tagged if "main" in cell.metadata.get("tags", []) else first).append(picture)
                break
    return tagged or first[:1]


def title_and_summary(notebook: NotebookNode) -> tuple[str, str]:
    """The heading of the first cell and its last paragraph that is prose."""
    blocks = [b.strip() for b in notebook.cells[0].source.split("\n\n") if b.strip()]
    title = blocks[0].splitlines()[0].lstrip("# ")
    prose = [b for b in blocks[1:] if not re.match(r"\[!|<!|\||>|#", b)]
    return title, prose[-1].replace("\n", " ") if prose else ""


def run_one(path: Path, out: Path) -> Page:
    """Execute one notebook and write its copy, its page and its main pictures to ``out``."""
    notebook = nbformat.read(path, as_version=4)
    run = run_notebook.execute(notebook, path.parent)
    run_notebook.normalise(notebook)
    nbformat.write(notebook, out / path.name)
    page, _ = OfflineExporter(template_name="lab").from_notebook_node(
        notebook, resources={"metadata": {"name": path.stem}}
    )
    (out / f"{path.stem}.html").write_text(page, encoding="utf-8")
    pictures = []
    for number, (png, alt) in enumerate(main_pictures(notebook)):
        file = out / "images" / f"{path.stem}_{number}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(png)
        pictures.append((f"images/{file.name}", alt))
    return Page(path.stem, *title_and_summary(notebook), pictures, run)


def index(pages: list[Page]) -> str:
    """The index page: each lesson with its main pictures, time and memory."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>The course</title>',
        f"<style>{STYLE}</style></head><body><h1>How 3D worlds are generated as Gaussian splats",
        "</h1><p>Everything on these pages was computed on this machine by",
        "<code>make course</code>.</p>",
    ]
    for page in pages:
        took = f"{page.run.seconds:.0f} s, {page.run.peak_mb or 0:.0f} MB"
        parts.append(f'<article><h2><a href="{page.name}.html">{html.escape(page.title)}</a></h2>')
        parts.append(f"<p>{html.escape(page.summary)}</p><p><small>{took}</small></p>")
        if page.run.error:
            parts.append(f'<p class="failed">Failed in {html.escape(page.run.error)}</p>')
        for file, alt in page.pictures:
            text = html.escape(alt, quote=True)
            image = f'<img src="{file}" alt="{text}">'
            parts.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")
        parts.append("</article>")
    return "\n".join([*parts, "</body></html>\n"])


def run_course(paths: list[Path], out: Path = OUT) -> list[Page]:
    """Run the notebooks in order, print a line for each, write the index; returns the pages."""
    out.mkdir(parents=True, exist_ok=True)
    pages = []
    for number, path in enumerate(paths, start=1):
        print(f"[{number}/{len(paths)}] {path.stem:<32}", end=" ", flush=True)
        page = run_one(path, out)
        ended = f"FAILED in {page.run.error}" if page.run.error else "ok"
        print(f"{page.run.seconds:6.1f} s {page.run.peak_mb or 0:6.0f} MB  {ended}", flush=True)
        pages.append(page)
        (out / "index.html").write_text(index(pages), encoding="utf-8")
    return pages


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="starts of names; all if none is given")
    arguments = parser.parse_args()
    runner_env.apply(runner_env.NOTEBOOKS)
    paths = sorted(notebook_source.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    paths = [p for p in paths if not arguments.names or p.stem.startswith(tuple(arguments.names))]
    if not paths:
        print(f"no notebook matches {arguments.names}" if arguments.names else "no notebooks")
        return 1
    pages = run_course(paths)
    print(f"the index, for your browser: {OUT / 'index.html'}")
    return 1 if any(page.run.error for page in pages) else 0


if __name__ == "__main__":
    sys.exit(main())

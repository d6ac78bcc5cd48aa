"""Execute one notebook, measure it, and bring its outputs into the form that is committed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

CELL_TIMEOUT = 900  # seconds
PEAK_MEMORY = "__import__('gsgen_lib.doctor', fromlist=['x']).peak_memory_mb()"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


@dataclass
class Run:
    """What one execution took, and where it failed.

    seconds: wall-clock time, kernel start included; peak_mb: highest resident memory of the
    kernel process in MB, None if it could not be asked; error: None, or one line that names
    the cell and the error.
    """

    seconds: float
    peak_mb: float | None
    error: str | None


def execute(notebook: NotebookNode, folder: Path, timeout: int = CELL_TIMEOUT) -> Run:
    """Run all cells in order in a fresh kernel started in ``folder``; outputs land in place.

    Stops at the first cell that fails and says so in the returned ``Run``.
    """
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],  # quiet about local sockets
    )
    started, peak, error, current = time.perf_counter(), None, None, 0
    try:
        with client.setup_kernel():
            for current, cell in enumerate(notebook.cells):
                client.execute_cell(cell, current)
            peak = _peak_memory(client)
    except CellExecutionError as failure:
        error = f"cell {current}: {failure.ename}: {failure.evalue}".splitlines()[0]
    except CellTimeoutError:
        error = f"cell {current}: took more than {timeout} s"
    except (DeadKernelError, RuntimeError) as failure:
        error = f"cell {current}: the kernel died ({failure})"
    return Run(time.perf_counter() - started, peak, error)


def _peak_memory(client: NotebookClient) -> float | None:
    """Ask the kernel, after its last cell, for its highest resident memory in MB."""
    ask = client.kc.execute("", store_history=False, user_expressions={"peak": PEAK_MEMORY})
    try:
        reply = client.wait_for_reply(ask)
        return float(reply["content"]["user_expressions"]["peak"]["data"]["text/plain"])
    except (KeyError, TypeError, ValueError):  # the kernel lacks the library: the run was fine
        return None


def normalise(notebook: NotebookNode) -> list[str]:
    """Make executed outputs deterministic enough to commit; returns what stands against it.

    Counts run 1..n over the code cells, volatile metadata and live widget views go, pieces of
    one stream are joined, and each picture gets its cell's alternative text. Output on
    stderr (a warning, say) is not hidden: it is returned as a problem, to be cured in the code.
    """
    problems, count = [], 0
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        cell.metadata.pop("execution", None)
        outputs: list[NotebookNode] = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                first = output.text.strip().splitlines()[:1]
                problems.append(f"cell {index} wrote to stderr: {first}")
            data = output.get("data", {})
            if WIDGET_VIEW in data:
                continue
            if output.output_type == "execute_result":
                output.execution_count = count
            for kind in ("image/png", "image/jpeg"):
                if kind in data and "alt" in cell.metadata:
                    output.metadata.setdefault(kind, {})["alt"] = cell.metadata["alt"]
            last = outputs[-1] if outputs else None
            if last and output.output_type == last.output_type == "stream":
                if last.name == output.name:
                    last.text += output.text
                    continue
            outputs.append(output)
        cell.outputs = outputs
    return problems

"""The environment that notebooks and tests run in: threads, hashing, progress bars.

Set by the runner, once, so that no notebook cell has to; what is already set in the
environment wins. The numbers do not depend on the machine: results then do not either.
"""

from __future__ import annotations

import os
from pathlib import Path

from tools.repo_name import ROOT

NOTEBOOKS = {
    "OMP_NUM_THREADS": "2",
    "NUMBA_NUM_THREADS": "2",
    "OMP_WAIT_POLICY": "PASSIVE",  # two runners at once do not spin against each other
    "PYTHONHASHSEED": "0",
    "TQDM_DISABLE": "1",  # progress bars are for people, not for committed outputs
    "HF_HUB_OFFLINE": "1",
    "IPYTHONDIR": str(ROOT / "build" / "ipython"),  # no start-up files of the user's
    "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this environment, not the user's
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # a warning about frozen modules in Python 3.12
}
# Tests run in two processes at once: one thread each for torch.
TESTS = NOTEBOOKS | {"OMP_NUM_THREADS": "1"}


def apply(settings: dict[str, str]) -> None:
    """Set each variable that is not set yet. Call it before torch or numba is imported."""
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    Path(os.environ["IPYTHONDIR"]).mkdir(parents=True, exist_ok=True)

"""Compiling and threading for the numba engine.

Kernels are compiled once per machine and kept in numba's cache (beside this file, or in the user's cache folder when
the installation is read-only). They release Python's global lock and run on plain Python threads: the caller and
`num_threads() - 1` helpers pull chunks of work from a counter. That is safe with several Python threads rendering at
once and after a fork (the pool is made anew in the child), where numba's own thread layers hang or abort. Chunks do
not depend on the number of threads, so neither do results.
"""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import numba
import torch

# Reordering and contracting sums may be done, but infinities and NaN keep their meaning.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}

_pool: ThreadPoolExecutor | None = None
_threads: int | None = None


def jit(fastmath: bool = False):
    """`numba.njit` with this engine's options; without a cache where no cache folder can be written."""
    options = dict(nogil=True, error_model="numpy", fastmath=FASTMATH if fastmath else False)

    def decorate(function):
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # "cannot cache function: no locator available"
            return numba.njit(**options)(function)

    return decorate


def num_threads() -> int:
    """Threads that a render uses: what `set_num_threads` said, else `torch.get_num_threads()`."""
    return _threads or torch.get_num_threads()


def set_num_threads(n: int | None) -> None:
    """Use n threads (None: follow torch). Results do not depend on it.

    >>> set_num_threads(1); num_threads()
    1
    >>> set_num_threads(None)
    """
    global _threads
    if n is not None and (not isinstance(n, int) or n < 1):
        raise ValueError(f"n: got {n!r}, wanted an int >= 1 or None")
    _threads = n


def chunks(total: int, most: int, least_size: int = 1) -> list[tuple[int, int]]:
    """Cut range(total) into at most `most` chunks of nearly equal size, none (but the last) below `least_size`.

    >>> chunks(10, 4)
    [(0, 3), (3, 6), (6, 9), (9, 10)]
    """
    size = max(1, least_size, -(-total // most))
    return [(i, min(i + size, total)) for i in range(0, total, size)]


def run_parallel(function, tasks: list) -> None:
    """function(*task) for every task, spread over the threads. Exceptions come through."""
    helpers = min(num_threads(), len(tasks)) - 1
    if helpers <= 0:
        for task in tasks:
            function(*task)
        return
    counter = itertools.count()  # next() on it is atomic

    def work() -> None:
        while (i := next(counter)) < len(tasks):
            function(*tasks[i])

    futures = [_get_pool().submit(work) for _ in range(helpers)]
    work()
    for future in futures:
        future.result()


def _get_pool() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 2) - 1), thread_name_prefix="gsgen-raster")
    return _pool


def _forget_pool() -> None:
    global _pool
    _pool = None  # the parent's threads do not exist in a forked child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)

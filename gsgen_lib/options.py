"""Wrong options are named before anything is computed.

A frozen dataclass of options, like `DreamConfig`, holds a default for each. `check_options` takes the kind of each default for
the kind that is wanted; ranges that depend on the meaning are checked where the dataclass stands.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, fields
from numbers import Integral, Real


def check_options(options, name: str = "config", positive: tuple[str, ...] = ()) -> None:
    """Refuse a dataclass whose values are of another kind than its defaults.

    Whole numbers stay whole, other numbers are finite and not negative (a tuple's may be), a tuple keeps its length, and a
    flag is True or False. positive: names of numbers that must be > 0. Raises ValueError naming the option.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Options:
    ...     steps: int = 10
    ...     lr: float = 0.1
    >>> check_options(Options())
    >>> check_options(Options(steps=2.5))
    Traceback (most recent call last):
    ValueError: config.steps: got 2.5, wanted a whole number >= 0
    >>> check_options(Options(lr=0.0), positive=("lr",))
    Traceback (most recent call last):
    ValueError: config.lr: got 0.0, wanted a finite number > 0
    """
    for one in fields(options):
        value, default = getattr(options, one.name), one.default
        if isinstance(default, bool):
            ok, wanted = isinstance(value, bool), "True or False"
        elif isinstance(default, int | float):
            kind, noun = (Integral, "whole") if isinstance(default, int) else (Real, "finite")
            least = one.name in positive
            ok = _number(value, kind) and (value > 0 if least else value >= 0)
            wanted = f"a {noun} number {'>' if least else '>='} 0"
        elif isinstance(default, tuple):
            ok = isinstance(value, tuple | list) and len(value) == len(default) and all(_number(v, Real) for v in value)
            wanted = f"{len(default)} finite numbers"
        else:
            ok, wanted = default is MISSING or isinstance(value, type(default)), type(default).__name__
        if not ok:
            raise ValueError(f"{name}.{one.name}: got {value!r}, wanted {wanted}")


def _number(value, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)

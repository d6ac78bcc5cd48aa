"""Compare what you wrote with the library, and check exercises.

One file per notebook (`nb01.py`, ...) holds, for exercise 1,

- a function `exercise_1(answer, ...)` that tries the answer on fresh random inputs against an
  independent oracle and raises `NotYet(hint)` if it is wrong, the hint naming the usual mistake;
- `WRONG["exercise_1"]`: planted wrong answers (tuples of arguments) that the check must refuse,
  so that a check which accepts anything is found out.

A stub raises NotImplementedError (or is None): `check` then prints "not attempted", so that
Run All stays green.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch


class NotYet(AssertionError):
    """The answer is not right yet; the message is a hint."""


def fresh_generator() -> torch.Generator:
    """A torch generator with a new random seed: no answer can be made to fit one input.

    >>> a, b = (torch.rand(4, generator=fresh_generator()) for _ in range(2))
    >>> bool((a == b).all())
    False
    """
    return torch.Generator().manual_seed(int.from_bytes(os.urandom(7), "little"))


def _as_array(value: object) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value, dtype=np.float64)


def _distance(mine: object, reference: object) -> tuple[str, float]:
    """("", max |difference|), or (what is wrong about shape or values, inf)."""
    a, b = _as_array(mine), _as_array(reference)
    if a.shape != b.shape:
        return f"shape {a.shape}, wanted {b.shape}", float("inf")
    if not np.isfinite(a).all():
        return "holds values that are not finite", float("inf")
    return "", float(np.abs(a - b).max()) if a.size else 0.0


def cmp(name: str, mine: object, reference: object, tol: float = 1e-5) -> None:
    """Print whether ``mine`` equals ``reference`` exactly, closely, or not.

    Both are tensors, arrays or numbers of the same shape; ``tol`` bounds the largest absolute
    difference that still counts as close. That bound is printed, not the difference itself (rounding
    differs between machines), so that the line is the same everywhere.

    >>> cmp("colour", torch.tensor([0.5, 0.25]), [0.5, 0.25])
    colour           exact
    >>> cmp("colour", torch.tensor([0.5, 0.25]), [0.5, 0.25 + 3e-8])
    colour           close: largest difference below 1e-05
    >>> cmp("colour", torch.tensor([0.5, 0.25]), [0.5, 0.5])
    colour           DIFFERENT: largest difference 0.25
    """
    wrong, distance = _distance(mine, reference)
    if wrong:
        verdict = f"DIFFERENT: {wrong}"
    elif distance == 0:
        verdict = "exact"
    elif distance <= tol:
        verdict = f"close: largest difference below {tol:.0e}"
    else:
        verdict = f"DIFFERENT: largest difference {distance:.3g}"
    print(f"{name:<16} {verdict}")


def expect_close(mine: object, reference: object, hint: str, tol: float = 1e-5) -> None:
    """Raise NotYet with the hint if ``mine`` differs from ``reference`` by more than ``tol``.

    A wrong type or shape, or a number that is not finite, is told without the hint: first things first.

    >>> expect_close(1.0, 2.0, "is the sign right?")
    Traceback (most recent call last):
    gsgen_lib.checks.NotYet: is the sign right? (largest difference 1)
    >>> expect_close([1.0, 1.0], 2.0, "is the sign right?")
    Traceback (most recent call last):
    gsgen_lib.checks.NotYet: your answer: shape (2,), wanted ()
    """
    if mine is None:
        raise NotYet("your function returns None: is there a return statement?")
    try:
        wrong, distance = _distance(mine, reference)
    except (TypeError, ValueError):
        raise NotYet(f"got a {type(mine).__name__}, wanted numbers") from None
    if wrong:
        raise NotYet(f"your answer: {wrong}")
    if distance > tol:
        raise NotYet(f"{hint} (largest difference {distance:.3g})")


def shows(answer: object, mistake: object, tol: float = 1e-4) -> bool:
    """Whether an answer is this very mistake, so that a hint can name it.

    >>> shows([2.0, 4.0], [2.0, 4.0]), shows([2.0, 4.0], [2.0, 5.0]), shows(None, 1.0), shows("text", 1.0)
    (True, False, False, False)
    """
    try:
        return _distance(answer, mistake)[1] <= tol
    except (TypeError, ValueError):
        return False


def expect_letter(prediction: object, right: str, hint: str) -> None:
    """Nothing where a prediction is the right letter of a, b and c; NotYet with the hint, or saying what was wanted.

    >>> expect_letter("b", "b", "count again")
    """
    if prediction not in ("a", "b", "c"):
        raise NotYet(f"got {prediction!r}, wanted 'a', 'b' or 'c'")
    if prediction != right:
        raise NotYet(hint)


def verdict(exercise: Callable, *answers: object) -> tuple[str, str]:
    """("passed" | "not attempted" | "not yet", hint) of one exercise for the given answers.

    An answer that is None or ..., or a function that raises NotImplementedError, was not
    attempted; one that raises anything else is wrong, and the hint is what it raised.
    """
    if any(answer is None or answer is ... for answer in answers):
        return "not attempted", ""
    try:
        exercise(*answers)
    except NotImplementedError:
        return "not attempted", ""
    except NotYet as hint:
        return "not yet", str(hint)
    except Exception as error:
        return "not yet", f"your answer raised {type(error).__name__}: {error}"
    return "passed", ""


def check(exercise: Callable, *answers: object) -> None:
    """Print one line: whether the answer to an exercise passes its check.

    >>> def exercise_7(double):
    ...     expect_close(double(2.0), 4.0, "twice, not squared plus one?")
    >>> check(exercise_7, lambda x: 2 * x)
    exercise 7: passed
    >>> check(exercise_7, lambda x: x * x + 1)
    exercise 7: not yet: twice, not squared plus one? (largest difference 1)
    >>> check(exercise_7, None)
    exercise 7: not attempted
    """
    status, hint = verdict(exercise, *answers)
    name = exercise.__name__.replace("_", " ", 1)
    print(f"{name}: {status}" + (f": {hint}" if hint else ""))

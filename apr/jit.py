"""Compiled functions. Importing this module loads numba, so only the modules of fast paths do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from numba import njit  # type: ignore[import-untyped]

P = ParamSpec("P")
R = TypeVar("R")
Int = Any  # in compiled functions: a 64-bit integer, be it Python's, numpy's or an element of an array


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """`function` compiled at its first call by numba, to run without the GIL, and kept on disk for later processes.

    What is kept is known by the source file of `function` alone, with the values that its constants had and all that it
    calls inside it. So no kernel calls one of another file, and constants from elsewhere are few and noted where they
    are defined. Numba compiles a callee once more for each plain integer that is passed to it as a constant, or is the
    first value of a variable that is passed: `np.int64(0)` spares that. It keeps no recursive functions.
    """
    return cast(Callable[P, R], njit(cache=True, nogil=True, error_model="numpy")(function))

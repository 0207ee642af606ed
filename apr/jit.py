"""Compiled functions. Importing this module loads numba, so only the modules of fast paths do."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar, cast

from numba import njit  # type: ignore[import-untyped]
from numba.core.caching import FunctionCache  # type: ignore[import-untyped]

P = ParamSpec("P")
R = TypeVar("R")
Int = Any  # in compiled functions: a 64-bit integer, be it Python's, numpy's or an element of an array
UNREADABLE = (OSError, EOFError, pickle.UnpicklingError, ValueError)


class Cache(FunctionCache):  # type: ignore[misc]
    """Compiled code on disk. What cannot be read is compiled anew, and what cannot be written is not kept."""

    def load_overload(self, signature: Any, target: Any) -> Any:
        with suppress(*UNREADABLE):
            return super().load_overload(signature, target)
        return None

    def save_overload(self, signature: Any, data: Any) -> None:
        with suppress(*UNREADABLE):
            super().save_overload(signature, data)


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """`function` compiled at its first call by numba, to run without the GIL, and kept on disk for later processes.

    What is kept is known by the source file of `function` alone, with the values that its constants had and all that it
    calls inside it. So no kernel calls one of another file, and constants from elsewhere are few and noted where they
    are defined. Numba compiles a callee once more for each plain integer that is passed to it as a constant, or is the
    first value of a variable that is passed: `np.int64(0)` spares that. It keeps no recursive functions.

    Where neither the source's folder, nor the home folder, nor NUMBA_CACHE_DIR can be written, every process compiles anew.
    """
    return _kept(function)


def compiled_parallel(function: Callable[P, R]) -> Callable[P, R]:
    """The same for loops over `numba.prange`, in several threads, and with sums in any order."""
    return _kept(function, parallel=True, fastmath=True)


def _kept(function: Callable[P, R], **options: bool) -> Callable[P, R]:
    dispatcher = njit(nogil=True, error_model="numpy", **options)(function)
    with suppress(RuntimeError, OSError):  # numba finds no folder for it
        dispatcher._cache = Cache(function)
    return cast(Callable[P, R], dispatcher)


def cache_folder() -> str | None:
    """Where compiled code is kept; None if it cannot be."""
    try:
        return str(Cache(compiled).cache_path)
    except (RuntimeError, OSError):
        return None

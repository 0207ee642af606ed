"""Processes that end with whoever started them, however that one ended."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

STARTED_BY = "APR_STARTED_BY"  # environment variable: the process that a command was started by, and ends with
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with(parent: int) -> None:
    """Have this process killed as soon as `parent`, which started it, has ended, even by SIGKILL; at once if it has already.

    Linux tells a process of its parent's end if it asks to be told. Elsewhere nothing is asked for: there a worker ends when it
    next has something to say to its parent.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended before it could be told of
        os.kill(os.getpid(), signal.SIGKILL)


def end_with_starter() -> None:
    """Do so where another command of this project started this one."""
    if (parent := os.environ.pop(STARTED_BY, None)) is not None:
        end_with(int(parent))


def started_by_this() -> dict[str, str]:
    """The environment of a command that is to end with this process."""
    return {**os.environ, STARTED_BY: str(os.getpid())}

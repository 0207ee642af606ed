"""Processors that other programs want too: how OpenMP threads wait for each other, and how many of them compute.

Torch brings GNU's OpenMP, which reads its variables once, when torch is loaded. By default its threads spin for some
milliseconds before they sleep. On free cores nobody misses that time; beside a busy program a spinning thread keeps
the very core that the thread it waits for should have. Short spinning loses little in either case, and sleeping at once
(`OMP_WAIT_POLICY=passive`) loses speed on free cores (docs/performance.md).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

WAITING = {"GOMP_SPINCOUNT": "3000"}  # turns of a waiting thread before it sleeps
USERS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # either of them set by the user decides instead
MOST = 2  # threads: a third gains nothing for models of a few million parameters
SAMPLES, SECONDS = 3, 0.3
STAT = Path("/proc/stat")
_OTHERS = (0, 2, 5, 6, 7)  # user, system, irq, softirq, steal in a line of /proc/stat; nice (1) gives way


def settle_waiting() -> None:
    """Set how threads wait, unless the user did. Of use only before torch is imported."""
    os.environ.update(waiting(os.environ))


def waiting(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that say how threads wait: the user's in `environment`, or else ours."""
    return {name: environment[name] for name in USERS if name in environment} or WAITING


def threads_that_pay(cores: int, busy: float) -> int:
    """How many threads to compute with on `cores`, of which other programs keep `busy`: one for each free core, since
    threads wait for the slowest of them; at least 1, at most `MOST`."""
    return max(1, min(MOST, int(cores - busy + 0.5)))


def threads_now() -> int:
    """The threads that pay by the load of now, which is printed if it costs some."""
    cores, busy = len(os.sched_getaffinity(0)), busy_cores()
    threads = threads_that_pay(cores, busy)
    if threads < threads_that_pay(cores, 0.0):
        print(f"other programs keep {busy:.1f} of {cores} cores busy: computing with {threads} thread(s)", flush=True)
    return threads


def busy_cores() -> float:
    """How many of this process's cores others keep busy: the least of some short samples, as bursts soon end."""
    found = []
    for _ in range(SAMPLES):
        began, before = time.monotonic(), _ticks()
        time.sleep(SECONDS)
        found.append((_ticks() - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - began))
    return max(0.0, min(found))


def _ticks() -> int:
    """Clock ticks that were spent on this process's cores since the system started, idle and niced ones left out."""
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    lines = [line.split() for line in STAT.read_text(encoding="utf-8").splitlines()]
    return sum(int(line[1 + place]) for line in lines if line[0] in cores for place in _OTHERS)

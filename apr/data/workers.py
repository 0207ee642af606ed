"""Jobs in worker processes, which end with whoever asked for them, and signals that end them cleanly."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from apr.errors import ResourceError
from apr.processes import end_with

Job = TypeVar("Job")
Result = TypeVar("Result")


LITTLE = 5_000  # demonstrations: starting processes takes longer


def processes(wanted: int | None, demonstrations: int) -> int:
    """How many processes to use: as many as are `wanted`, else all cores, or one where little is to be done."""
    if wanted is not None:
        return wanted
    return len(os.sched_getaffinity(0)) if demonstrations > LITTLE else 1


def in_processes(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Generator[Result, None, None]:
    """`work` of each job, as they end, in at most `workers` processes (in this one, if one is enough).

    `work` is a module's function, its jobs and results can be pickled. If a job fails, or the caller stops, the other
    workers are killed: `work` must write whole files or none, and the caller sweeps up after it. Raises
    `ResourceError` if the system kills a worker.
    """
    if min(workers, len(jobs)) <= 1:
        yield from map(work, jobs)
        return
    others = set(multiprocessing.active_children())
    # Spawned, not forked: a process with threads (of Arrow, say) cannot be forked safely.
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), multiprocessing.get_context("spawn"), initializer=end_with, initargs=(os.getpid(),)
    )
    try:
        with (
            _interrupts_ignored()
        ):  # and so by the workers, from their first instruction on: they end with this process
            futures = [pool.submit(work, job) for job in jobs]
        for future in as_completed(futures):
            yield future.result()
        pool.shutdown()
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
            process.join()
        if isinstance(error, BrokenProcessPool):
            raise ResourceError(
                "a worker process was killed, perhaps for want of memory: give fewer `workers`, then call the same "
                "command again to go on"
            ) from error
        raise


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM ends the block as SIGINT does: by `KeyboardInterrupt`. Signals reach the main thread only."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

"""What the trace view draws of a trace, as plain data: the line of it that is searched, and its strands in time.

Times are in sampled tokens, from `after` as `apr.threads.costs` counts `span_sampled`, and in seconds, as the runtime saw them.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from apr.threads.costs import critical_path, spans
from apr.threads.trace import Strand, StrandId, Trace

Describe = Callable[[dict[str, Any]], str]  # a problem for people


def summary(trace: Trace, describe: Describe | None = None) -> dict[str, Any]:
    """One line of the index: what a trace is found, filtered and compared by."""
    outcome = trace.outcome
    return {
        "title": described(trace.problem, describe),
        "problem": str(trace.problem.get("id", "")),
        "step": trace.step,
        "sample": trace.sample,
        "correct": None if outcome is None else outcome.correct,
        "verdict": "not verified" if outcome is None else outcome.reason,
        "stop": (trace.root.stop if outcome is None else outcome.stop).value,
        "answer": trace.answer,
        "threads": len(trace.threads),
        "spawns": any(thread.strands for thread in trace.threads if thread is not trace.root),
        "timed": any(strand.ended > 0 for strand in trace.strands),
    }


def described(problem: dict[str, Any], describe: Describe | None) -> str:
    """The problem on one line: as its environment describes it, or else its own fields, its id left to the last.

    A trace may come from anywhere: where the environment cannot describe its problem, the fields are shown.
    """
    if describe is not None:
        try:
            return describe(problem)
        except (LookupError, TypeError, ValueError, AttributeError):
            pass
    fields = {name: value for name, value in problem.items() if name != "id"}
    if len(fields) == 1:
        return str(*fields.values())
    return ", ".join(f"{name} {value}" for name, value in fields.items()) or str(problem.get("id", ""))


def trace_data(trace: Trace) -> dict[str, Any]:
    """What the script draws of one trace.

    Of each strand: `start` (longest chain of sampled tokens that it waited for), `length` (its own), whether it is
    `critical` (on the longest chain), `after` (indices of strands), `times` in seconds. Of a thread without strands:
    where it would start.
    """
    until = spans(trace.strands, sampled_only=True)
    index = {strand.id: number for number, strand in enumerate(trace.strands)}
    critical = set(critical_path(trace.strands))
    starts = {strand.id: until[strand.id] - len(strand.sampled) for strand in trace.strands}
    births = _births(trace, starts, until)
    costs = trace.costs
    return {
        "protocol": trace.protocol,
        "span_sampled": max(until.values(), default=0),
        "costs": {}
        if costs is None
        else {
            **asdict(costs),
            "parallelism": round(costs.parallelism, 3),
            "parallelism_sampled": round(costs.parallelism_sampled, 3),
        },
        "limits": _given(trace.limits),
        "budgets": _given(trace.budgets),
        "reward": _given(trace.reward),
        "threads": [
            {
                "id": thread.id,
                "parent": thread.parent,
                "depth": thread.depth,
                "stop": thread.stop.value,
                "message": thread.message,
                "start": births[thread.id],
                "strands": [index[strand] for strand in thread.strands],
            }
            for thread in trace.threads
        ],
        "strands": [
            _strand(strand, starts[strand.id], strand.id in critical, [index[before] for before in strand.after])
            for strand in trace.strands
        ],
    }


def token_ids(trace: Trace) -> set[int]:
    """Every id that occurs in `trace`."""
    ids = {i for strand in trace.strands for run in strand.injected for i in run.ids}
    ids.update(*(strand.sampled for strand in trace.strands), *(thread.message for thread in trace.threads))
    return ids


def _strand(strand: Strand, start: int, critical: bool, after: list[int]) -> dict[str, Any]:
    logprobs = strand.logprobs
    return {
        "id": str(strand.id),
        "thread": strand.id.thread,
        "start": start,
        "length": len(strand.sampled),
        "critical": critical,
        "after": after,
        "sees": [[str(seen.strand), seen.length] for seen in strand.sees],
        "injected": [[run.origin.value, run.ids] for run in strand.injected],
        "sampled": strand.sampled,
        "logprobs": logprobs and [round(value, 3) if math.isfinite(value) else None for value in logprobs],
        "versions": strand.versions,
        "cached": strand.cached,
        "stop": strand.stop.value,
        "times": [_finite(strand.started), _finite(strand.ended)],
    }


def _births(trace: Trace, starts: dict[StrandId, int], until: dict[StrandId, int]) -> dict[str, int]:
    """When each thread starts. One that had no room for a strand starts with its nearest sibling, or with the last
    strand of its parent that could have spawned it."""
    threads = {thread.id: thread for thread in trace.threads}
    siblings: dict[str | None, list[tuple[int, StrandId]]] = {}  # places and first strands, of those that started
    for place, thread in enumerate(trace.threads):
        if thread.strands:
            siblings.setdefault(thread.parent, []).append((place, thread.strands[0]))
    births = {}
    for place, thread in enumerate(trace.threads):
        if thread.strands:
            births[thread.id] = starts[thread.strands[0]]
        elif near := siblings.get(thread.parent):
            at = bisect.bisect_left(near, place, key=lambda one: one[0])
            nearest = min((abs(other - place), first) for other, first in near[max(0, at - 1) : at + 1])
            births[thread.id] = starts[nearest[1]]
        else:
            parent = None if thread.parent is None else threads.get(thread.parent)
            births[thread.id] = until[parent.strands[0]] if parent is not None and parent.strands else 0
    return births


def _finite(seconds: float) -> float:
    return round(seconds, 4) if math.isfinite(seconds) else 0.0


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """What is set, as numbers where it is numbers, else as text. No number in it is infinite."""
    return {
        name: value if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)) else str(value)
        for name, value in values.items()
        if value is not None
    }

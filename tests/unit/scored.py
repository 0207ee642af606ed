"""Traces with verdict, costs and logprobs, shared by the tests of rewards, advantages and samples."""

from dataclasses import replace
from typing import Any

from test_encode import demonstration

from apr.evaluation.metrics import COSTS, Attempt, with_ratios
from apr.threads.trace import Outcome, StopReason, Trace
from solvers.search import SearchOptions

SERIAL = SearchOptions(3, 3)
SPAWNING = SearchOptions(2, 3, spawn_depth=1)


def trace(correct: bool = True, options: SearchOptions = SERIAL, reward: float | None = None, **costs: Any) -> Trace:
    """A trace as a rollout makes it; `reward` is its total, `costs` replace its own."""
    _, made, _ = demonstration((3, 5, 8), 23, options)
    assert made.costs is not None
    strands = tuple(
        replace(strand, logprobs=tuple(-0.1 * (i + 1) for i in range(len(strand.sampled)))) for strand in made.strands
    )
    parts = {} if reward is None else {"total": reward, "success": float(reward > 0)}
    return replace(
        made, strands=strands, outcome=Outcome(StopReason.ANSWERED, correct, "said"), reward=parts,
        costs=replace(made.costs, **costs),
    )  # fmt: skip


def attempt_of(problem: str, correct: bool, **costs: float) -> Attempt:
    """A serial attempt that cost 10 of everything, but for `costs`."""
    every = with_ratios({**dict.fromkeys(COSTS, 10.0), **costs})
    return Attempt(problem, correct, StopReason.ANSWERED, "1+2=3", every)

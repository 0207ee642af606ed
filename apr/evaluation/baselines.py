"""cons@n and pass@n: what n sampled traces a problem are worth together, as one `Attempt` per problem.

A report row is a name, a description and an attempt per problem, whichever way the attempts came about:

    sampled = samples_by_problem(traces)
    summarise("SoS+ cons@4", [majority(group) for group in sampled], "vote of 4 samples at temperature 1")
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from apr.evaluation.metrics import COSTS, RATIOS, Attempt, attempts, with_ratios
from apr.threads.trace import StopReason, Trace

_LARGEST = ("context", "reach", "span", "span_sampled", "depth", "seconds", "parallel_seconds")
_SUMS = tuple(cost for cost in COSTS if cost not in (*_LARGEST, *RATIOS))


def samples_by_problem(tries: Iterable[Trace | Attempt]) -> list[list[Attempt]]:
    """Attempts grouped by problem, problems in the order in which they are first seen."""
    groups: dict[str, list[Attempt]] = {}
    for one in attempts(tries):
        groups.setdefault(one.problem, []).append(one)
    return list(groups.values())


def majority(tries: Sequence[Trace | Attempt]) -> Attempt:
    """cons@n: the answer that most attempts gave, correct iff it is. No answer and blank ones do not vote.

    Answers that mean the same to the environment vote together (`Outcome.vote`). Ties go to the answer seen first.

    Raises `ValueError` unless all are of one problem.
    """
    samples = _samples(tries)
    ballots = [(one.vote, one) for one in samples if one.vote is not None]
    if not ballots:
        return _together(samples, samples[0])
    votes = Counter(key for key, _ in ballots)  # keeps the order in which keys were first seen
    winner = max(votes, key=lambda key: votes[key])
    return _together(samples, next(one for key, one in ballots if key == winner))


def pass_at(tries: Sequence[Trace | Attempt]) -> Attempt:
    """pass@n: correct iff any attempt is. Raises `ValueError` unless all are of one problem."""
    samples = _samples(tries)
    return _together(samples, next((one for one in samples if one.correct), samples[0]))


def _samples(tries: Sequence[Trace | Attempt]) -> list[Attempt]:
    samples = attempts(tries)
    problems = {one.problem for one in samples}
    if len(problems) != 1:
        raise ValueError(f"samples of one problem are voted over together, but these are of {len(problems)}")
    return samples


def _together(samples: Sequence[Attempt], chosen: Attempt) -> Attempt:
    """The costs of all samples run side by side, with the result of the chosen one."""
    costs = {cost: sum(one.costs[cost] for one in samples) for cost in _SUMS}
    costs |= {cost: max(one.costs[cost] for one in samples) for cost in _LARGEST}
    lost = any(one.lost for one in samples)
    return Attempt(
        problem=chosen.problem,
        correct=chosen.correct and not lost,
        stop=StopReason.ENGINE_LOST if lost else chosen.stop,
        answer=chosen.answer,
        costs=with_ratios(costs),
    )

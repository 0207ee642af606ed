"""The exhaustive solver: says what is solvable, and by which steps."""

from __future__ import annotations

from functools import lru_cache

from envs.countdown.log import Step
from solvers.search import steps


@lru_cache(maxsize=200_000)
def reachable(numbers: tuple[int, ...]) -> frozenset[int]:
    """All values that use every one of `numbers` (ascending) exactly once."""
    if len(numbers) == 1:
        return frozenset(numbers)
    values: set[int] = set()
    for i in range(len(numbers)):
        for j in range(i + 1, len(numbers)):
            rest = numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]
            for step in steps(numbers[i], numbers[j]):
                values |= reachable(tuple(sorted((*rest, step.result))))
    return frozenset(values)


def solve(numbers: tuple[int, ...], target: int) -> tuple[Step, ...] | None:
    """Steps that reach `target`, or None if there are none."""
    numbers = tuple(sorted(numbers))
    if target not in reachable(numbers):
        return None
    if len(numbers) == 1:
        return ()
    for i in range(len(numbers)):
        for j in range(i + 1, len(numbers)):
            rest = numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]
            for step in steps(numbers[i], numbers[j]):
                tail = solve(tuple(sorted((*rest, step.result))), target)
                if tail is not None:
                    return (step, *tail)
    raise AssertionError(f"{target} is reachable from {numbers} by no step")

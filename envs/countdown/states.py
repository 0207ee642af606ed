"""Child states: what one step leaves of a problem's numbers, and which of them win.

A child state of (numbers, target) is the sorted numbers that remain after one legal step on two of them, with the same
target. It wins if the target can be reached from it. Every problem with a solution has one that wins.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.countdown.log import Node
from solvers.exhaustive import reachable
from solvers.search import children

Numbers = tuple[int, ...]


def winning_states(numbers: Sequence[Sequence[int]], targets: Sequence[int]) -> list[list[Numbers]]:
    """Of each problem, the numbers of its distinct winning child states."""
    states = [[node.numbers for node in children(Node(tuple(sorted(row)), ()))] for row in numbers]
    flat = [(state, target) for row, target in zip(states, targets) for state in row]
    wins = iter(_solvable([state for state, _ in flat], [target for _, target in flat]))
    return [[state for state in row if next(wins)] for row in states]


def _solvable(numbers: Sequence[Numbers], targets: Sequence[int]) -> list[bool]:
    from solvers.compiled import solvable  # here: compiled code takes a second to load, and few commands need it

    try:
        return list(solvable(np.array(numbers, np.int64), np.array(targets, np.int64)).tolist())
    except (ValueError, OverflowError):  # too large for compiled arithmetic, or single numbers
        return [target in reachable(row) for row, target in zip(numbers, targets)]

"""Search logs as arrays: what compiled solvers write and compiled spellers read, without a Python object per event.

A *node* is a row of integers, and is known by its row. An *event* is a pair (kind, argument). Events come in the order
in which things happen, which is also the order in which a trace holds its strands:

    VISITED, QUEUED, PROMISING, TESTED    node (for a test, the node that its last step makes)
    SPAWNED                               how many children; that many MESSAGE events follow at once, then each child's
                                          own events, in spawn order, each ending with its JOINED
    MESSAGE                               the node from which a child starts
    JOINED                                the node that solves the problem, or NO_NODE: a thread ends

Kernels are kept on disk by their own source file (`apr.jit`), with these constants compiled in: whoever changes them
must also touch the files of the kernels that use them: `compiled_search.py` and `compiled_exhaustive.py` of `solvers`,
and `compact_compiled.py` beside this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from envs.countdown.compact import OPERATORS
from envs.countdown.log import Event, Node, Promising, Queued, SearchLog, Spawned, Step, Tested, Visited

Ints = npt.NDArray[np.int64]

MAX_NUMBERS = 6  # in a problem
MAX_CHILDREN = 4 * MAX_NUMBERS * (MAX_NUMBERS - 1) // 2  # of a node: four operations on each pair
NO_NODE = -1

# Columns of a node: the node one step back (NO_NODE at the problem itself), how many numbers are left, the last step
# (operator by its place in `OPERATORS`), and the numbers left, ascending.
PARENT, SIZE, A, OPERATOR, B, RESULT, NUMBERS = range(7)
NODE_WIDTH = NUMBERS + MAX_NUMBERS

VISITED, QUEUED, PROMISING, TESTED, SPAWNED, MESSAGE, JOINED = np.arange(7)  # of numpy's type: see `apr.jit`


class LogArrays(NamedTuple):
    """The search logs of N problems.

    `nodes` int64[K, NODE_WIDTH]; `events` int64[E, 2] of all problems, one after the other; `ends` int64[N], where each
    problem's events end; `roots` int64[N], the node of each problem; `solutions` int64[N], the node that solves it, or
    NO_NODE; `targets` int64[N].
    """

    nodes: Ints
    events: Ints
    ends: Ints
    roots: Ints
    solutions: Ints
    targets: Ints


def to_logs(arrays: LogArrays) -> list[SearchLog]:
    """The same logs as Python objects, one per problem."""
    starts = [0, *arrays.ends.tolist()]
    return [
        _Reader(arrays, start, end, target).thread(root)
        for start, end, root, target in zip(starts, starts[1:], arrays.roots.tolist(), arrays.targets.tolist())
    ]


class _Reader:
    def __init__(self, arrays: LogArrays, start: int, end: int, target: int) -> None:
        self.nodes = arrays.nodes
        self.target = target
        self.events: Iterator[list[int]] = iter(arrays.events[start:end].tolist())

    def thread(self, start: int) -> SearchLog:
        """The log of the thread that starts at node `start`, whose events come next."""
        events: list[Event] = []
        for kind, argument in self.events:
            if kind == JOINED:
                solution = None if argument == NO_NODE else self.node(argument).path
                return SearchLog(self.target, self.node(start), tuple(events), solution)
            if kind == SPAWNED:
                messages = [next(self.events)[1] for _ in range(argument)]
                events.append(Spawned(tuple(self.thread(message) for message in messages)))
            elif kind == TESTED:
                events.append(Tested(self.node(argument).path[-1], self.target))
            elif kind == VISITED:
                events.append(Visited(self.node(argument)))
            else:
                events.append((Queued if kind == QUEUED else Promising)(self.node(argument)))
        raise ValueError("the arrays of a search log end before its thread joins")

    def node(self, row: int) -> Node:
        path: list[Step] = []
        columns = self.nodes[row].tolist()
        numbers = tuple(columns[NUMBERS : NUMBERS + columns[SIZE]])
        while columns[PARENT] != NO_NODE:
            path.append(Step(columns[A], OPERATORS[columns[OPERATOR]], columns[B], columns[RESULT]))
            columns = self.nodes[columns[PARENT]].tolist()
        return Node(numbers, tuple(reversed(path)))

"""Countdown in plain lines, and search logs as what threads sample.

    prompt    how to search (`SYSTEM`), then `Numbers: 3 5 8. Target: 24.`
    visit     at 3+5=8: 8 8 -> 24             steps so far, numbers left, target; without steps `at 3 5 8 -> 24`
    queue     later 3+5=8: 8 8 -> 24          the same, kept for later
    test      8+8=16 vs 24: low               a last step, its value, the target, how they compare (low, hit, high)
    message   3+5=8: 8 8 -> 24                to a child: a state, as in a visit
    answer    3+5=8, 3*8=24                   steps in order

Every line but the answer's ends with a line end. A piece is a number, an operator or a word with the spaces around it:
a number is the same tokens wherever it stands. Dialects with a grammar of their own (compact, paper) spell logs themselves.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from typing import Any

from apr.threads.protocol import ThreadProtocol
from apr.threads.trace import Trace
from apr.tokens.control import ControlTokens
from apr.tokens.dialect import Condition, Dialect, condition_of
from apr.tokens.encode import demonstration
from envs.countdown.log import Node, Promising, Queued, SearchLog, Spawned, Step, Tested, Visited

SYSTEM = (
    "Reach the target with + - * /, using every number exactly once. Write your search, compare results with the target, "
    "hand states to children if that helps, and end with the steps or with nothing."
)
UNTRAINED = (
    "Reach the target with + - * /, using every number exactly once. Intermediate results are non-negative integers, and "
    "divisions are exact. Think step by step, then write one expression between <answer> and </answer>, such as "
    "<answer>(8-6)*(4+1)</answer>."
)


@typing.runtime_checkable
class SpellsLogs(typing.Protocol):
    """A dialect with a grammar of its own for Countdown."""

    def spell(self, log: SearchLog) -> list[tuple[int, ...]]: ...


def spell(log: SearchLog, dialect: Dialect) -> list[tuple[int, ...]]:
    """The sampled tokens of each strand of the demonstration, stop tokens included, in depth-first spawn order."""
    if isinstance(dialect, SpellsLogs):
        return dialect.spell(log)
    return [dialect.ids(pieces) for pieces in _strands(log, dialect.vocabulary.control)]


def root_prompt(
    dialect: Dialect, numbers: Sequence[int], target: int, condition: Condition | None = None
) -> tuple[int, ...]:
    """What the root is told of a problem."""
    from envs.countdown.env import Countdown

    problem: dict[str, Any] = {"numbers": list(numbers), "target": target}
    return dialect.prompt(Countdown(), problem if condition is None else {**problem, "condition": condition._asdict()})


def encode(log: SearchLog, dialect: Dialect, protocol: ThreadProtocol, problem: dict[str, Any]) -> Trace:
    """The demonstration of `log`. Raises `ValueError` if the protocol cannot express it (a spawn, in `serial`)."""
    told = root_prompt(dialect, log.start.numbers, log.target, condition_of(problem))
    return demonstration(told, spell(log, dialect), protocol, problem, log.solution is not None, dialect.answer)


def _strands(log: SearchLog, control: ControlTokens) -> Iterator[list[str | int]]:
    out: list[str | int] = []
    for event in log.events:
        match event:
            case Visited(node):
                out += ("at ", *_state(node, log.target))
            case Queued(node):
                out += ("later ", *_state(node, log.target))
            case Promising():
                pass  # said where it is visited or spawned
            case Tested(step, goal):
                verdict = "hit" if step.result == goal else "low" if step.result < goal else "high"
                out += (*_step(step), " vs ", str(goal), f": {verdict}\n")
            case Spawned(children):
                out.append(control.spawn)
                for child in children:
                    out += (control.msg, *_state(child.start, child.target))
                yield [*out, control.spawn_end]
                for child in children:
                    yield from _strands(child, control)
                out = []
    yield [*out, control.join, *_path(log.solution or ()), control.eos]


def _step(step: Step) -> Iterator[str]:
    yield from (str(step.a), step.op, str(step.b), "=", str(step.result))


def _path(path: Sequence[Step]) -> Iterator[str]:
    for i, step in enumerate(path):
        if i:
            yield ", "
        yield from _step(step)


def _state(node: Node, target: int) -> Iterator[str]:
    yield from _path(node.path)
    if node.path:
        yield ": "
    for i, n in enumerate(node.numbers):
        if i:
            yield " "
        yield str(n)
    yield from (" -> ", str(target), "\n")

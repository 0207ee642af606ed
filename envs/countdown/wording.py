"""Countdown in plain lines, and search logs as what threads sample.

    prompt    how to search (`SYSTEM`), then `Numbers: 3 5 8. Target: 24.`
    visit     at 3+5=8: 8 8 -> 24             steps so far, numbers left, target; without steps `at 3 5 8 -> 24`
    queue     later 3+5=8: 8 8 -> 24          the same, kept for later
    test      8+8=16 vs 24: low               a last step, its value, the target, how they compare (low, hit, high)
    message   3+5=8: 8 8 -> 24                to a child: a state, as in a visit
    answer    3+5=8, 3*8=24                   steps in order

Every line but the answer's ends with a line end. A piece is a number, an operator or a word with the spaces around it:
a number is the same tokens wherever it stands. Spellers with a grammar of their own (compact, paper) spell logs themselves.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from apr.scripts.demonstration import demonstration
from apr.scripts.script import Answer, Branch, Fork, Join, Say, Script
from apr.threads.protocol import ThreadProtocol
from apr.threads.trace import Trace
from apr.tokens.speller import Condition, Speller, condition_of
from envs.countdown.log import Node, Promising, Queued, SearchLog, Spawned, Step, Tested, Visited
from solvers.search import unfold

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
    """A speller with a grammar of its own for Countdown."""

    def spell(self, log: SearchLog) -> list[tuple[int, ...]]: ...


@typing.runtime_checkable
class HasWording(typing.Protocol):
    """A speller with words of its own for Countdown."""

    wording: Wording


def spell(log: SearchLog, speller: Speller, protocol: ThreadProtocol) -> list[tuple[int, ...]]:
    """The sampled tokens of each strand of the demonstration, stop tokens included, in the order of `Trace.strands`."""
    if isinstance(speller, SpellsLogs):
        return speller.spell(log)
    wording = speller.wording if isinstance(speller, HasWording) else PLAIN
    return protocol.write(script_of(log if protocol.nests else _one_level(log), wording), speller)


def root_prompt(
    speller: Speller, numbers: Sequence[int], target: int, condition: Condition | None = None
) -> tuple[int, ...]:
    """What the root is told of a problem."""
    from envs.countdown.env import Countdown

    problem: dict[str, Any] = {"numbers": list(numbers), "target": target}
    return speller.prompt(Countdown(), problem if condition is None else {**problem, "condition": condition._asdict()})


def encode(log: SearchLog, speller: Speller, protocol: ThreadProtocol, problem: dict[str, Any]) -> Trace:
    """The demonstration of `log`. Raises `ValueError` if the protocol cannot express it (a spawn, in `serial`)."""
    told = root_prompt(speller, log.start.numbers, log.target, condition_of(problem))
    return demonstration(
        told, spell(log, speller, protocol), protocol, problem, log.solution is not None, speller.answer
    )


def _one_level(log: SearchLog) -> SearchLog:
    """The log with the searches of its children's children written serially."""
    events = [
        Spawned(tuple(unfold(child) for child in event.children)) if isinstance(event, Spawned) else event
        for event in log.events
    ]
    return replace(log, events=tuple(events))


def script_of(log: SearchLog, wording: Wording) -> Script:
    """What the threads of a search say: children's results are their whole solutions, the root's is its answer."""
    return (*_said(log, wording), Answer(tuple(wording.path(log.solution or ()))))


def _said(log: SearchLog, wording: Wording) -> Iterator[Say | Fork | Join]:
    words: list[str] = []
    for event in log.events:
        match event:
            case Visited(node):
                words += wording.visited(node, log.target)
            case Queued(node):
                words += wording.queued(node, log.target)
            case Promising():
                pass  # said where it is visited or spawned
            case Tested(step, goal):
                words += wording.tested(step, goal)
            case Spawned(children):
                yield from (Say(tuple(words)), Fork(tuple(_branch(child, wording) for child in children)))
                yield Join(conclusion=_concluded(children, wording))
                words = []
    yield Say(tuple(words))


def _branch(log: SearchLog, wording: Wording) -> Branch:
    state = tuple(wording.state(log.start, log.target))
    return Branch(state, state, tuple(_said(log, wording)), tuple(wording.path(log.solution or ())))


def _concluded(children: Sequence[SearchLog], wording: Wording) -> tuple[str, ...]:
    """The first child that reached the target, by its number, and its solution; nothing if none did."""
    for number, child in enumerate(children, 1):
        if child.solution is not None:
            return (*wording.numbered(number), *wording.path(child.solution))
    return ()


class Wording(typing.Protocol):
    """How a speller says what a search did, in pieces."""

    def visited(self, node: Node, target: int) -> Iterable[str]: ...

    def queued(self, node: Node, target: int) -> Iterable[str]: ...

    def tested(self, step: Step, target: int) -> Iterable[str]: ...

    def state(self, node: Node, target: int) -> Iterable[str]:
        """All that a reader with a fresh context needs of a search."""
        ...

    def path(self, steps: Sequence[Step]) -> Iterable[str]:
        """An answer, or what a child reports."""
        ...

    def numbered(self, child: int) -> Iterable[str]:
        """What precedes words about the child of this number, counted from 1."""
        ...


class Plain:
    """Plain lines, for any tokenizer."""

    def visited(self, node: Node, target: int) -> Iterator[str]:
        yield from ("at ", *self.state(node, target))

    def queued(self, node: Node, target: int) -> Iterator[str]:
        yield from ("later ", *self.state(node, target))

    def tested(self, step: Step, target: int) -> Iterator[str]:
        verdict = "hit" if step.result == target else "low" if step.result < target else "high"
        yield from (*_step(step), " vs ", str(target), f": {verdict}\n")

    def path(self, steps: Sequence[Step]) -> Iterator[str]:
        for i, step in enumerate(steps):
            if i:
                yield ", "
            yield from _step(step)

    def numbered(self, child: int) -> Iterator[str]:
        yield from (str(child), ": ")

    def state(self, node: Node, target: int) -> Iterator[str]:
        yield from self.path(node.path)
        if node.path:
            yield ": "
        for i, n in enumerate(node.numbers):
            if i:
                yield " "
            yield str(n)
        yield from (" -> ", str(target), "\n")


def _step(step: Step) -> Iterator[str]:
    yield from (str(step.a), step.op, str(step.b), "=", str(step.result))


PLAIN = Plain()

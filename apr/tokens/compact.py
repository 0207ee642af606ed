"""The compact dialect of Countdown: a token per number below 100, a few words, and the target beside each value tested.

    prompt    <bos> 24 : 3 5 8 ;                target, then the numbers in ascending order
    visit     @ 3 + 5 = 8 : 8 8 : 24            steps so far, numbers left, target
    queue     ~ 3 + 5 = 8 : 8 8 : 24            the same, kept for later
    test      8 + 8 = 16 24 <                   a last step, its value, the target, how they compare (< ! >)
    message   3 + 5 = 8 : 8 8 : 24              to a child: a state, as in a visit
    answer    3 + 5 = 8 , 3 * 8 = 24            steps in order

A test's verdict is threefold, not just yes or no: comparing is then practised at every test, and not only at the rare
hit, without which small students never learn to see one. Numbers of any size are written in base 100: 2048 is `20 '48`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from apr.tokens.log import Event, Node, Queued, Spawned, Step, Tested, Visited
from apr.tokens.vocabulary import Vocabulary

OPERATORS = ("+", "-", "*", "/")
_HEADS = [str(n) for n in range(100)]
_TAILS = [f"'{n:02d}" for n in range(100)]
_WORDS = ["=", ":", ",", ";", "@", "~", "<", "!", ">"]


class CompactDialect:
    """Token ids for problems, search events, messages and answers. All methods are exact and total on their inputs."""

    name = "compact"

    def __init__(self) -> None:
        self.vocabulary = Vocabulary(self.name, [*_HEADS, *_TAILS, *OPERATORS, *_WORDS])

    def prompt(self, numbers: Sequence[int], target: int) -> tuple[int, ...]:
        """`<bos>`, target, numbers in ascending order."""
        words = ["<bos>", *_number(target), ":", *(w for n in sorted(numbers) for w in _number(n)), ";"]
        return self.vocabulary.encode(words)

    def event(self, event: Event, target: int) -> tuple[int, ...]:
        """A search event; `Spawned` is the protocol's to spell, not the dialect's."""
        match event:
            case Visited(node):
                return self.vocabulary.encode(["@", *_state(node, target)])
            case Queued(node):
                return self.vocabulary.encode(["~", *_state(node, target)])
            case Tested(step, goal):
                verdict = "!" if step.result == goal else "<" if step.result < goal else ">"
                return self.vocabulary.encode([*_step(step), *_number(goal), verdict])
            case Spawned():
                raise ValueError("a spawn is encoded by the protocol")

    def message(self, node: Node, target: int) -> tuple[int, ...]:
        """What a child is told: the state it searches from."""
        return self.vocabulary.encode(_state(node, target))

    def solution(self, path: Sequence[Step]) -> tuple[int, ...]:
        """The steps of a solution, as joined by a thread."""
        return self.vocabulary.encode(_path(path))

    def answer(self, ids: Iterable[int]) -> str:
        """A join message as the verifier reads it: `"8-6=2, 4+1=5, 2*5=10"`. Whatever the ids, some text."""
        text = ""
        for token in self.vocabulary.decode(ids):
            if token.isdecimal() and text[-1:].isdecimal():
                text += " "  # two numbers, which no answer may have side by side, and not one long number
            text += token[1:] if token.startswith("'") else ", " if token == "," else token
        return text


def _number(n: int) -> Iterator[str]:
    if n >= 100:
        yield from _number(n // 100)
        yield _TAILS[n % 100]
    else:
        yield _HEADS[n]


def _step(step: Step) -> Iterator[str]:
    yield from _number(step.a)
    yield step.op
    yield from _number(step.b)
    yield "="
    yield from _number(step.result)


def _path(path: Sequence[Step]) -> Iterator[str]:
    for i, step in enumerate(path):
        if i:
            yield ","
        yield from _step(step)


def _state(node: Node, target: int) -> Iterator[str]:
    yield from _path(node.path)
    yield ":"
    for n in node.numbers:
        yield from _number(n)
    yield ":"
    yield from _number(target)

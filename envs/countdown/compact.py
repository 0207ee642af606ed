"""The compact speller of Countdown: a token per number below 100, a few words, and the target beside each value tested.

    prompt    <bos> 24 : 3 5 8 ;                target, then the numbers in ascending order
    visit     @ 3 + 5 = 8 : 8 8 : 24            steps so far, numbers left, target
    queue     ~ 3 + 5 = 8 : 8 8 : 24            the same, kept for later
    test      8 + 8 = 16 24 <                   a last step, its value, the target, how they compare (< ! >)
    message   3 + 5 = 8 : 8 8 : 24              to a child: a state, as in a visit
    answer    3 + 5 = 8 , 3 * 8 = 24            steps in order
    condition <spawn> 6 ;   or   < 20 '48 ;     after <bos>: open 6 children a spawn; stay below 2,048 tokens of context

A test's verdict is threefold, not just yes or no: comparing is then practised at every test, and not only at the rare
hit, without which small students never learn to see one. Numbers of any size are written in base 100: 2048 is `20 '48`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from apr.errors import DataError
from apr.tokens.speller import Told, condition_of
from apr.tokens.vocabulary import Vocabulary
from envs.countdown.log import Node, Step

OPERATORS = ("+", "-", "*", "/")
_HEADS = [str(n) for n in range(100)]
_TAILS = [f"'{n:02d}" for n in range(100)]
_WORDS = ["=", ":", ",", ";", "@", "~", "<", "!", ">"]


class CompactSpeller:
    """Token ids for problems, search events, messages and answers. All methods are exact and total on their inputs."""

    name = "compact"
    about = "A token per number below 100, and a few words."

    def __init__(self) -> None:
        words = [*_HEADS, *_TAILS, *OPERATORS, *_WORDS]
        self.wording = CompactWording()
        self.vocabulary = Vocabulary(self.name, words)
        self._words = {*words, "."}

    def prompt(self, env: Told, problem: dict[str, Any]) -> tuple[int, ...]:
        """`<bos>`, the condition if there is one, target, numbers in ascending order."""
        numbers, target, condition = problem["numbers"], problem["target"], condition_of(problem)
        words = ["<bos>"]
        if condition is not None:
            words += ["<spawn>" if condition.kind == "children" else "<", *_number(condition.value), ";"]
        words += [*_number(target), ":", *(w for n in sorted(numbers) for w in _number(n)), ";"]
        return self.vocabulary.encode(words)

    def ids(self, pieces: Iterable[str | int]) -> tuple[int, ...]:
        """Words of the vocabulary, separated by spaces within a piece. Raises `DataError` for others."""
        known = self.vocabulary.ids
        words = [word for piece in pieces for word in (piece.split() if isinstance(piece, str) else [piece])]
        if unknown := [word for word in words if isinstance(word, str) and word not in self._words]:
            raise DataError(f"{unknown[0]!r} is no word of the compact speller")
        return tuple(known[word] if isinstance(word, str) else word for word in words)

    def answer(self, ids: Iterable[int]) -> str:
        """A join message as the verifier reads it: `"8-6=2, 4+1=5, 2*5=10"`. Whatever the ids, some text."""
        text = ""
        for token in self.vocabulary.decode(ids):
            if token.isdecimal() and text[-1:].isdecimal():
                text += " "  # two numbers, which no answer may have side by side, and not one long number
            text += token[1:] if token.startswith("'") else ", " if token == "," else token
        return text


class CompactWording:
    """The words of the compact speller."""

    def visited(self, node: Node, target: int) -> Iterator[str]:
        yield from ("@", *self.state(node, target))

    def queued(self, node: Node, target: int) -> Iterator[str]:
        yield from ("~", *self.state(node, target))

    def tested(self, step: Step, target: int) -> Iterator[str]:
        verdict = "!" if step.result == target else "<" if step.result < target else ">"
        yield from (*_step(step), *_number(target), verdict)

    def path(self, steps: Sequence[Step]) -> Iterator[str]:
        for i, step in enumerate(steps):
            if i:
                yield ","
            yield from _step(step)

    def numbered(self, child: int) -> Iterator[str]:
        yield from (*_number(child), ":")

    def state(self, node: Node, target: int) -> Iterator[str]:
        yield from self.path(node.path)
        yield ":"
        for n in node.numbers:
            yield from _number(n)
        yield ":"
        yield from _number(target)


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

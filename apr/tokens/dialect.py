"""The seam of dialects: how problems, searches and answers are spelt in tokens."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from apr.tokens.log import SearchLog
from apr.tokens.vocabulary import Vocabulary


class Condition(NamedTuple):
    """What a prompt asks of the attempt, as in the APR paper: that its context stay within `value` tokens, or that its
    spawns open `value` children each. A problem carries it as plain data: `{"condition": {"kind": ..., "value": ...}}`.
    """

    kind: Literal["context", "children"]
    value: int


def condition_of(problem: dict[str, Any]) -> Condition | None:
    """The condition that `problem` carries, if any."""
    found = problem.get("condition")
    return None if found is None else Condition(found["kind"], found["value"])


class Dialect(typing.Protocol):
    """Token ids for prompts and search logs, text for answers. Exact, and total on their inputs."""

    name: str
    vocabulary: Vocabulary

    def prompt(self, numbers: Sequence[int], target: int, condition: Condition | None = None) -> tuple[int, ...]:
        """What the root is told; opens with BOS."""
        ...

    def spell(self, log: SearchLog) -> list[tuple[int, ...]]:
        """The sampled tokens of each strand of the demonstration, stop tokens included, in depth-first spawn order."""
        ...

    def answer(self, ids: Iterable[int]) -> str:
        """A root's message as the verifier reads it: `"8-6=2, 4+1=5, 2*5=10"`. Whatever the ids, some text."""
        ...

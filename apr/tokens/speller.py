"""The seam of spellers: how prompts, scripts and answers are spelt in tokens."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

from apr.tokens.vocabulary import Vocabulary


class Message(TypedDict):
    """One turn of a chat, as chat templates take it."""

    role: Literal["system", "user", "assistant"]
    content: str


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


class Told(typing.Protocol):
    """What a speller asks of an environment (`envs.base.Env` is one)."""

    name: str

    def messages(self, problem: dict[str, Any], untrained: bool = False) -> list[Message]: ...

    def words(self, problem: dict[str, Any]) -> Sequence[str]: ...


class Speller(typing.Protocol):
    """Token ids for prompts and demonstrations, text for answers. Exact, and total on what models sample."""

    name: str
    about: str  # how it spells, in a sentence for model cards
    vocabulary: Vocabulary

    def prompt(self, env: Told, problem: dict[str, Any]) -> tuple[int, ...]:
        """What the root is told, the problem's condition included; opens with BOS. Raises `ConfigError` if the environment
        has no prompt in this speller."""
        ...

    def ids(self, pieces: Iterable[str | int]) -> tuple[int, ...]:
        """Pieces of text spelt one by one, and control tokens as they are. Raises `DataError` for text that it cannot spell."""
        ...

    def answer(self, ids: Iterable[int]) -> str:
        """A message as the environment reads it. Whatever the ids, some text."""
        ...

"""The environment seam: problems by split, prompts, and a verifier. Countdown is the first; others fit the same."""

from __future__ import annotations

import typing
from collections.abc import Hashable
from typing import Any

from envs.countdown.verify import Verdict


class Env(typing.Protocol):
    """Problems are plain dictionaries with at least a unique `id`, so that a trace can carry them."""

    name: str

    def problems(self, split: str, count: int, seed: int) -> list[dict[str, Any]]:
        """`count` distinct problems of a split. Splits share nothing that a search could be remembered from."""
        ...

    def prompt(self, problem: dict[str, Any]) -> tuple[int, ...]:
        """Token ids of the problem, BOS first."""
        ...

    def read(self, ids: tuple[int, ...] | None) -> str | None:
        """The answer in a trace's final message, as `verify` takes it."""
        ...

    def verify(self, problem: dict[str, Any], answer: str | None) -> Verdict:
        """Whether the answer is right; never raises, whatever the answer says."""
        ...

    def canonical(self, answer: str) -> Hashable:
        """The key under which an answer votes: two answers mean the same if and only if their keys are equal. `verify` then
        accepts both or neither. Decided by what the text says, never by whether it is right."""
        ...

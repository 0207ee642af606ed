"""The seam between the runtime and a protocol: the rules of spawn and join, as data.

The runtime (`apr.threads.session`) knows strands, limits and an engine. It asks the protocol what to do next and gets
one of five answers. A protocol only reads token ids; it never sees text, never evaluates anything, and never raises on
what a model sampled: text that parses as nothing is `Fail(MALFORMED)`.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apr.threads.trace import Injected, Reference, StopReason, Strand, StrandId, Thread


@dataclass(frozen=True, slots=True)
class Continue:
    """Start a strand: inject these runs after what `sees` reaches, then sample until a stop id."""

    inject: tuple[Injected, ...]
    sees: tuple[Reference, ...]
    position: int
    stop_ids: tuple[int, ...]
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Await:
    """Wait for all children of this thread that are still open, then ask `joined`."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """Open one child thread per entry; meanwhile the parent waits (`Await`) or goes on (`Continue`)."""

    children: tuple[Continue, ...]
    then: Continue | Await


@dataclass(frozen=True, slots=True)
class Finish:
    """End the thread and give its parent `message`; the empty message means "found nothing"."""

    message: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fail:
    """End the thread for `reason`; its parent gets the empty message, and its tokens still train."""

    reason: StopReason


Decision = Continue | Spawn | Await | Finish | Fail


class ThreadProtocol(typing.Protocol):
    """Rules of spawn and join. Implementations are stateless: all they need is in their arguments."""

    name: str

    def start(self, prompt: Sequence[int]) -> Continue:
        """The root's first strand. `prompt` opens with BOS, which occurs nowhere else."""
        ...

    def ended(self, strand: Strand, strands: Mapping[StrandId, Strand]) -> Decision:
        """What a thread does after `strand` sampled one of its stop ids. `strands`: all that ended so far."""
        ...

    def joined(self, last: Strand, children: Sequence[Thread], strands: Mapping[StrandId, Strand]) -> Decision:
        """What a thread does when its children, in spawn order, have ended. `last`: its own latest strand."""
        ...

    def answer(self, root: Thread) -> tuple[int, ...] | None:
        """The ids of the trace's answer, or None if the root gave none."""
        ...


def seen_length(references: Sequence[Reference], strands: Mapping[StrandId, Strand]) -> int:
    """Tokens in a chain of single references: the serial position of a strand that sees it."""
    seen = 0
    while references:
        if len(references) > 1:
            raise ValueError("serial positions need one reference per strand; this strand has several")
        (strand, length), *_ = references
        seen += length
        references = strands[strand].sees
    return seen

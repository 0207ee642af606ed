"""The seam between the runtime and a protocol: the rules of spawn and join, as data.

The interpreter (`apr.threads.interpreter`) knows threads, strands and limits. It asks the protocol what to do next and gets
one of five answers. A protocol only reads token ids; it never sees text, never evaluates anything, and never raises on
what a model sampled: text that parses as nothing is `Fail(MALFORMED)`.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apr.scripts.script import Script
from apr.threads.trace import Injected, Reference, StopReason, Strand, StrandId, Thread
from apr.tokens.speller import Speller


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
    """Wait for children of this thread, by their numbers in spawn order, then ask `joined`. None: for all that are open.

    `first`: only until one of them returns a message, counted in sampled tokens; the others are cancelled there. If none
    does, all are waited for.
    """

    children: tuple[int, ...] | None = None
    first: bool = False


@dataclass(frozen=True, slots=True)
class Spawn:
    """Open one child thread per entry; meanwhile the parent waits (`Await`) or goes on (`Continue`)."""

    children: tuple[Continue, ...]
    then: Continue | Await


@dataclass(frozen=True, slots=True)
class Finish:
    """End the thread and give its parent `message`; the empty message means "found nothing". None: nothing is sent and nothing
    is lacking, since the parent sees what the thread wrote. `cancel`: children that are still open are cancelled here; else
    the thread ends when they have."""

    message: tuple[int, ...] | None
    cancel: bool = False

    @property
    def stop(self) -> StopReason:
        """Why a thread that finished so has stopped."""
        if self.message is None:
            return StopReason.RETURNED
        return StopReason.ANSWERED if self.message else StopReason.NO_ANSWER


@dataclass(frozen=True, slots=True)
class Fail:
    """End the thread for `reason`; its parent gets the empty message, and its tokens still train."""

    reason: StopReason


Decision = Continue | Spawn | Await | Finish | Fail


class ThreadProtocol(typing.Protocol):
    """Rules of spawn and join. Implementations are stateless: all they need is in their arguments."""

    name: str
    nests: bool  # whether children may open children
    shares: bool  # whether a strand may see several others' tokens, so that only an engine of views `dag` serves it

    def start(self, prompt: Sequence[int]) -> Continue:
        """The root's first strand. `prompt` opens with BOS, which occurs nowhere else."""
        ...

    def ended(self, strand: Strand, strands: Mapping[StrandId, Strand]) -> Decision:
        """What a thread does after `strand` sampled one of its stop ids. `strands`: all that ended so far."""
        ...

    def joined(self, last: Strand, children: Sequence[Thread], strands: Mapping[StrandId, Strand]) -> Decision:
        """What a thread does when the children that it waited for have ended. `last`: its own latest strand."""
        ...

    def answer(self, threads: Sequence[Thread]) -> tuple[int, ...] | None:
        """The ids of the trace's answer, or None if it has none. `threads`: all of the trace, the root first."""
        ...

    def write(self, script: Script, speller: Speller) -> list[tuple[int, ...]]:
        """What each strand of a demonstration samples, stop token included, in the order of `Trace.strands`: those of children
        where their parent waits for them.

        Raises `ValueError` for a script that this grammar cannot express, `DataError` for words that the speller cannot spell.
        """
        ...

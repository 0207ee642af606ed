"""The trace: the one data type from demonstration to gradient.

A *trace* is one attempt at one problem. It is a DAG of *strands*; a strand is one engine call: some injected tokens,
then sampled ones, with no spawn or join inside. A *thread* is a chain of strands with one context.

    root   |-- r#0: prompt, "3+5=8 ...", <spawn> 2 messages </spawn> --|            |-- r#1: 2 results, answer --|
    child                                                      |-- r.0#0: message 1, search, <join> --|
    child                                                      |-- r.1#0: message 2, search, <join> --|

Scripts (`apr.scripts.demonstration`) and the runtime both write traces; SFT rows, verifier, rewards, RL samples, metrics,
report and viewer read them. A trace holds token ids: text is a view, and nothing is ever decoded and tokenised again.

Two relations join the strands, and they differ:

* `sees` is attention. `(strand, n)` means: all that this strand itself saw, then its first `n` tokens (injected and
  sampled counted together). Several references mean the union. After an APR join, the parent sees its own strand only
  up to the spawn block, and of its children nothing but the messages injected into it.
* `after` is dependence: the strands that must have ended before this one starts. After a join they are the thread's
  own last strand and the ends of its children. A child ends with its last strand and with the ends of its own children
  that this strand did not wait for: a child that has no room to go on after its join, or finishes while its children
  run, leaves such. What these strands waited for themselves is not listed. Span follows `after`; attention masks follow
  `sees`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

SCHEMA = "apr.trace/1"
ROOT = "r"


class Origin(StrEnum):
    """Where injected tokens come from."""

    PROMPT = "prompt"  # the problem, written by the environment
    MESSAGE = "message"  # sampled by another thread of this trace, and counted there too
    FORCED = "forced"  # control tokens that the runtime adds
    COPY = "copy"  # ids already counted in this trace, sent again (a protocol that re-prefills children's text)


class StopReason(StrEnum):
    """Why a thread, or a whole trace, stopped. Limits come in the order in which they are checked."""

    ANSWERED = "answered"  # joined with a message
    NO_ANSWER = "no_answer"  # joined with the empty message
    RETURNED = "returned"  # ended; its parent sees what it wrote
    CANCELLED = "cancelled"  # its parent went on without it
    CONTEXT = "context"
    REACH = "reach"
    WORK = "work"
    SPAN = "span"
    DEPTH = "depth"
    THREADS = "threads"
    WIDTH = "width"
    SECONDS = "seconds"
    MALFORMED = "malformed"  # what it sampled parses as nothing
    ENGINE_LOST = "engine_lost"  # retries ran out; never scored


WHOLE = (StopReason.ANSWERED, StopReason.NO_ANSWER, StopReason.RETURNED)  # of threads that ended as they should


class EngineStop(StrEnum):
    """Why one engine call ended."""

    STOP = "stop"  # sampled a stop token, which is the last of `sampled`
    LENGTH = "length"  # ran out of `max_tokens`
    ABORT = "abort"  # the caller gave up waiting, or wanted no more


class StrandId(NamedTuple):
    """A strand within its trace: thread id and number along that thread."""

    thread: str
    number: int

    def __str__(self) -> str:
        return f"{self.thread}#{self.number}"


class StrandKey(NamedTuple):
    """A strand within a whole run. Its sampling seed derives from this key; a lost strand is sampled again under it."""

    step: int
    problem: str
    sample: int
    thread: str
    number: int


class Reference(NamedTuple):
    """`strand`'s own closure, then its first `length` tokens."""

    strand: StrandId
    length: int


class Injected(NamedTuple):
    """A run of tokens that nobody sampled here."""

    origin: Origin
    ids: tuple[int, ...]


class VersionSpan(NamedTuple):
    """Sampled tokens `start:end` came from policy `version`."""

    version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Strand:
    """One engine call. `logprobs` are the sampler's own, one per sampled token; demonstrations have none."""

    id: StrandId
    sees: tuple[Reference, ...]
    after: tuple[StrandId, ...]
    position: int
    injected: tuple[Injected, ...]
    sampled: tuple[int, ...]
    stop: EngineStop
    logprobs: tuple[float, ...] | None = None
    versions: tuple[VersionSpan, ...] = ()
    cached: int = 0  # prompt tokens that the engine found in its prefix cache
    started: float = 0.0  # seconds since the trace started
    ended: float = 0.0

    @property
    def injected_ids(self) -> tuple[int, ...]:
        return tuple(i for run in self.injected for i in run.ids)

    @property
    def ids(self) -> tuple[int, ...]:
        """Injected, then sampled: what a `Reference.length` counts."""
        return self.injected_ids + self.sampled

    @property
    def end(self) -> int:
        """The position that follows its last token."""
        return self.position + sum(len(run.ids) for run in self.injected) + len(self.sampled)


@dataclass(frozen=True, slots=True)
class Thread:
    """A chain of strands with one context. `message` is what it returned to its parent: empty if it found nothing."""

    id: str
    parent: str | None
    depth: int
    strands: tuple[StrandId, ...]
    stop: StopReason
    message: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Costs:
    """What a trace cost, in tokens (defined and computed in `apr.threads.costs`), and in seconds."""

    work: int
    work_sampled: int
    span: int
    span_sampled: int
    context: int
    threads: int
    width: int
    depth: int
    prefilled: int
    seconds: float
    reach: int | None = None  # traces of earlier versions do not say

    @property
    def parallelism(self) -> float:
        return self.work / self.span if self.span else 1.0

    @property
    def parallelism_sampled(self) -> float:
        return self.work_sampled / self.span_sampled if self.span_sampled else 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the attempt ended: the root's stop reason, and the verifier's verdict on its answer.

    `score`: the verifier's, from 0 to 1. `vote`: the key under which the answer votes, None if it does not; answers that mean
    the same to the environment have the same key. Traces of earlier versions have neither.

    Example: `Outcome(StopReason.ANSWERED, True, "reaches the target", 1.0, "steps 1:3+5=8")`.
    """

    stop: StopReason
    correct: bool
    reason: str
    score: float | None = None
    vote: str | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """All threads of one attempt at one problem.

    `strands` is in depth-first spawn order, which is a topological order of `after`, whichever child ended first.
    `problem` holds the environment's own fields (Countdown: id, numbers, target) as plain data.
    """

    problem: dict[str, Any]
    protocol: str
    step: int
    sample: int
    threads: tuple[Thread, ...]
    strands: tuple[Strand, ...]
    answer: str | None = None
    outcome: Outcome | None = None
    costs: Costs | None = None
    limits: dict[str, Any] = field(default_factory=dict)
    budgets: dict[str, Any] = field(default_factory=dict)
    reward: dict[str, float] = field(default_factory=dict)
    schema: str = SCHEMA

    @property
    def root(self) -> Thread:
        return self.threads[0]

    @property
    def correct(self) -> bool:
        return self.outcome is not None and self.outcome.correct

    def by_id(self) -> dict[StrandId, Strand]:
        return {strand.id: strand for strand in self.strands}

    def key(self, strand: Strand) -> StrandKey:
        return StrandKey(self.step, self.problem["id"], self.sample, *strand.id)


def closure_lengths(strands: Mapping[StrandId, Strand], sees: tuple[Reference, ...]) -> dict[StrandId, int]:
    """How many tokens of each strand `sees` reaches, oldest strand first: its closure, each token once.

    With one reference per strand this is the root-to-leaf path of a prefix tree: an ordinary causal sequence.
    """
    longest: dict[StrandId, int] = {}
    # A strand enters after its own closure; a longer view of it contains a shorter one. A stack, not recursion: a
    # thread may join more often than Python nests calls.
    stack = [(reference, False) for reference in reversed(sees)]
    while stack:
        reference, closed = stack.pop()
        strand, length = reference
        if closed or strand in longest:
            longest[strand] = max(length, longest.get(strand, 0))
        else:
            stack.append((reference, True))
            stack.extend((older, False) for older in reversed(strands[strand].sees))
    return longest


def closure_ids(strands: Mapping[StrandId, Strand], sees: tuple[Reference, ...]) -> tuple[int, ...]:
    """The token ids of the closure: what precedes a strand in its context."""
    lengths = closure_lengths(strands, sees)
    return tuple(token for strand, length in lengths.items() for token in strands[strand].ids[:length])

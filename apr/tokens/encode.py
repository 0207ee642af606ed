"""Demonstrations from what their strands sample.

The protocol itself lays the strands out (its `start`, `ended` and `joined` are asked exactly as the runtime asks them),
so a demonstration cannot differ in form from what the runtime will make of a model that has learned it. It also means
that a demonstration is known by its sampled tokens alone: that is what data sets store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from apr.threads.costs import costs
from apr.threads.protocol import Await, Continue, Finish, Spawn, ThreadProtocol
from apr.threads.trace import ROOT, EngineStop, Outcome, StopReason, Strand, StrandId, Thread, Trace


def demonstration(
    prompt: Sequence[int], sampled: Iterable[tuple[int, ...]], protocol: ThreadProtocol, problem: dict[str, Any],
    solved: bool, read: Callable[[tuple[int, ...]], str],
) -> Trace:  # fmt: skip
    """The trace whose strands sampled `sampled`, in depth-first spawn order; `read` gives the answer in a message. Raises
    `ValueError` if the protocol lays them out otherwise."""
    writer = _Writer(protocol, iter(sampled))
    writer.thread(ROOT, None, 0, protocol.start(prompt), ())
    if next(writer.sampled, None) is not None:
        raise ValueError(f"protocol {protocol.name} ends before the last strand")
    threads = tuple(sorted(writer.threads, key=lambda thread: writer.order[thread.id]))
    strands = tuple(writer.strands.values())
    ids = protocol.answer(threads[0])
    reason = "the solver's solution" if solved else "the solver found no solution"
    return Trace(
        problem, protocol.name, 0, 0, threads, strands,
        answer=None if ids is None else read(ids),
        outcome=Outcome(threads[0].stop, solved, reason),
        costs=costs(threads, strands),
    )  # fmt: skip


class _Writer:
    """Plays the runtime's part, with given strands in place of an engine."""

    def __init__(self, protocol: ThreadProtocol, sampled: Iterable[tuple[int, ...]]) -> None:
        self.protocol = protocol
        self.sampled = iter(sampled)
        self.threads: list[Thread] = []
        self.strands: dict[StrandId, Strand] = {}
        self.order: dict[str, int] = {}

    def thread(self, id: str, parent: str | None, depth: int, plan: Continue, after: tuple[StrandId, ...]) -> Thread:
        self.order[id] = len(self.order)
        own: list[StrandId] = []
        spawned = 0
        for sampled in self.sampled:
            strand = Strand(
                StrandId(id, len(own)), plan.sees, after, plan.position, plan.inject, sampled, EngineStop.STOP
            )
            self.strands[strand.id] = strand
            own.append(strand.id)
            after = (strand.id,)
            decision = self.protocol.ended(strand, self.strands)
            if isinstance(decision, Finish):
                stop = StopReason.ANSWERED if decision.message else StopReason.NO_ANSWER
                self.threads.append(Thread(id, parent, depth, tuple(own), stop, decision.message))
                return self.threads[-1]
            if not (isinstance(decision, Spawn) and isinstance(decision.then, Await)):
                raise ValueError(f"protocol {self.protocol.name} cannot express this demonstration: {decision}")
            children = []
            for child_plan in decision.children:
                children.append(self.thread(f"{id}.{spawned}", id, depth + 1, child_plan, after))
                spawned += 1
            after += tuple(child.strands[-1] for child in children)  # whose own children ended before that
            joined = self.protocol.joined(strand, children, self.strands)
            if not isinstance(joined, Continue):
                raise ValueError(f"protocol {self.protocol.name} did not go on after a join: {joined}")
            plan = joined
        raise ValueError("a search log ended without its thread's join")

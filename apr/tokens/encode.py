"""From search log to trace, in a dialect and a protocol: `encode(log, dialect, protocol)`.

The protocol itself lays the strands out (its `start`, `ended` and `joined` are asked exactly as the runtime asks them),
so a demonstration cannot differ in form from what the runtime will make of a model that has learned it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from apr.threads.costs import costs
from apr.threads.protocol import Continue, Fail, Finish, Spawn, ThreadProtocol
from apr.threads.trace import ROOT, EngineStop, Outcome, StopReason, Strand, StrandId, Thread, Trace
from apr.tokens.compact import CompactDialect
from apr.tokens.log import SearchLog, Spawned


def encode(log: SearchLog, dialect: CompactDialect, protocol: ThreadProtocol, problem: dict[str, Any]) -> Trace:
    """The demonstration of `log`. Raises `ValueError` if the protocol cannot express it (a spawn, in `serial`)."""
    writer = _Writer(dialect, protocol)
    prompt = dialect.prompt(log.start.numbers, log.target)
    writer.thread(log, ROOT, None, 0, protocol.start(prompt), ())
    threads = tuple(sorted(writer.threads, key=lambda thread: writer.order[thread.id]))
    trace = Trace(problem, protocol.name, 0, 0, threads, tuple(writer.strands.values()))
    ids = protocol.answer(trace.root)
    reason = "the solver's solution" if log.solution else "the solver found no solution"
    return replace(
        trace,
        answer=None if ids is None else dialect.answer(ids),
        outcome=Outcome(trace.root.stop, log.solution is not None, reason),
        costs=costs(trace.threads, trace.strands),
    )


def _spell(log: SearchLog, dialect: CompactDialect) -> list[tuple[int, ...]]:
    """What one thread samples, split after each spawn block: one entry per strand."""
    control = dialect.vocabulary.control
    strands: list[tuple[int, ...]] = []
    ids: list[int] = []
    for event in log.events:
        if isinstance(event, Spawned):
            ids.append(control.spawn)
            for child in event.children:
                ids += (control.msg, *dialect.message(child.start, child.target))
            strands.append((*ids, control.spawn_end))
            ids = []
        else:
            ids += dialect.event(event, log.target)
    ids += (control.join, *dialect.solution(log.solution or ()), control.eos)
    return [*strands, tuple(ids)]


class _Writer:
    """Plays the runtime's part, with the log in place of an engine."""

    def __init__(self, dialect: CompactDialect, protocol: ThreadProtocol) -> None:
        self.dialect = dialect
        self.protocol = protocol
        self.threads: list[Thread] = []
        self.strands: dict[StrandId, Strand] = {}
        self.order: dict[str, int] = {}

    def thread(
        self, log: SearchLog, id: str, parent: str | None, depth: int, plan: Continue, after: tuple[StrandId, ...]
    ) -> Thread:
        self.order[id] = len(self.order)
        own: list[StrandId] = []
        spawns = (event.children for event in log.events if isinstance(event, Spawned))
        spawned = 0
        for sampled in _spell(log, self.dialect):
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
            if isinstance(decision, Fail) or not isinstance(decision, Spawn):
                raise ValueError(f"protocol {self.protocol.name} cannot express this search log: {decision}")
            children = []
            for child_log, child_plan in zip(next(spawns), decision.children, strict=True):
                children.append(self.thread(child_log, f"{id}.{spawned}", id, depth + 1, child_plan, after))
                spawned += 1
            after += tuple(child.strands[-1] for child in children)
            joined = self.protocol.joined(strand, children, self.strands)
            if not isinstance(joined, Continue):
                raise ValueError(f"protocol {self.protocol.name} did not go on after a join: {joined}")
            plan = joined
        raise ValueError("a search log ended without its thread's join")

"""The thread runtime: one attempt at one problem, as a tree of coroutines over an engine and a protocol.

    attempt()
      Session.thread("r")            one coroutine per thread
        Session.strand(...)          one engine call; limits are checked before it
        protocol.ended(strand)       Continue | Spawn | Await | Finish | Fail
        Session.thread("r.0") ...    children run side by side; their results are taken in spawn order
      Branch.ends                    what the parent's next strand comes after

A thread ends when the children that it left running have ended too, however it ends. So a parent that waits for a child
waits for the child's last strand and for the descendants that outlast it, and `Strand.after` names them all.

The runtime knows strands, limits and an engine; the rules of spawn and join are the protocol's. Model text is data: it
cannot recurse past the depth limit, spawn past the thread limit, or stall a run, and whatever it says, `attempt`
returns a trace. Thread ids are paths by spawn order (r, r.0, r.0.2) and seeds derive from strand keys, so a trace
depends neither on timing nor on what else the engine is doing (with a batch-invariant engine, bit for bit).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from apr.errors import EngineLostError
from apr.seeds import derive_seed
from apr.threads.costs import costs, weight
from apr.threads.engine import Completion, Engine, Request
from apr.threads.limits import Allowance, Limits
from apr.threads.protocol import Await, Continue, Decision, Fail, Finish, Spawn, ThreadProtocol
from apr.threads.trace import (
    ROOT,
    EngineStop,
    StopReason,
    Strand,
    StrandId,
    StrandKey,
    Thread,
    Trace,
    closure_ids,
)

ENGINE_RETRIES = 2


@dataclass(frozen=True)
class Sampling:
    """How strands are sampled. There is no top_p or top_k: the recorded logprobs must be the sampler's own."""

    temperature: float
    seed: int


async def attempt(
    problem: dict[str, Any],
    prompt: Sequence[int],
    *,
    engine: Engine,
    protocol: ThreadProtocol,
    limits: Limits,
    sampling: Sampling,
    step: int = 0,
    sample: int = 0,
) -> Trace:
    """Run one attempt to its end. The trace has costs, but no answer text, verdict or reward yet."""
    session = Session(problem["id"], engine, protocol, limits, sampling, step, sample)
    branch = await session.thread(ROOT, None, 0, protocol.start(prompt), (), Allowance.whole(limits))
    threads, strands = branch.flat()
    return Trace(
        problem, protocol.name, step, sample, threads, strands,
        costs=costs(threads, strands), limits=limits.model_dump(exclude_none=True),
    )  # fmt: skip


@dataclass
class Branch:
    """A thread and the branches below it, and what it left of its allowance.

    `parts`: its own strands and its children's branches, in the order in which it started the ones and gathered the others.
    `ends`: the strands after which the branch has ended. They are the thread's own last strand, and the ends of those
    children that no strand of its own came after. A thread that never started has none.
    """

    parts: list[Strand | Branch]
    allowance: Allowance
    ends: tuple[StrandId, ...] = ()
    ended: Thread | None = None

    @property
    def thread(self) -> Thread:
        assert self.ended is not None, "its thread is still running"
        return self.ended

    def flat(self) -> tuple[tuple[Thread, ...], tuple[Strand, ...]]:
        """All threads and all strands, depth first in spawn order. No recursion: branches nest deeper than Python calls."""
        threads = [self.thread]
        strands: list[Strand] = []
        stack = [iter(self.parts)]
        while stack:
            match next(stack[-1], None):
                case None:
                    stack.pop()
                case Branch() as branch:
                    threads.append(branch.thread)
                    stack.append(iter(branch.parts))
                case strand:
                    strands.append(strand)
        return tuple(threads), tuple(strands)


@dataclass
class Session:
    """State shared by the threads of one trace: the strands that ended, and the clock."""

    problem: str
    engine: Engine
    protocol: ThreadProtocol
    limits: Limits
    sampling: Sampling
    step: int
    sample: int
    ended: dict[StrandId, Strand] = field(default_factory=dict)
    until: dict[StrandId, int] = field(default_factory=dict)  # sampled tokens on the longest chain ending there
    sent: dict[StrandId, tuple[int, ...]] = field(
        default_factory=dict
    )  # prompts of the latest strand of each open thread
    born: float = field(default_factory=time.monotonic)

    async def thread(
        self,
        id: str,
        parent: str | None,
        depth: int,
        first: Continue,
        after: tuple[StrandId, ...],
        allowance: Allowance,
    ) -> Branch:
        """Run one thread to its end, and with it all threads that it spawns. Its first strand comes `after` these."""
        own: list[StrandId] = []
        below = Branch([], allowance)
        open_children: list[asyncio.Task[Branch]] = []
        spawned = 0
        decision: Decision = first
        try:
            while True:
                match decision:
                    case Continue():
                        result = await self.strand(StrandId(id, len(own)), decision, below.ends or after, allowance)
                        if isinstance(result, StopReason):
                            decision = Fail(result)
                            continue
                        strand, cut = result
                        self.ended[strand.id] = strand
                        if own:
                            del self.sent[own[-1]]
                        own.append(strand.id)
                        below.parts.append(strand)
                        below.ends = (strand.id,)
                        decision = Fail(cut) if cut else self.protocol.ended(strand, self.ended)
                    case Spawn(children, then):
                        refusal = allowance.refuse(len(children), depth, self.limits)
                        if refusal:
                            decision = Fail(refusal)
                            continue
                        shares = allowance.split(len(children), goes_on=isinstance(then, Continue))
                        for share, child in zip(shares, children):
                            run = self.thread(f"{id}.{spawned}", id, depth + 1, child, below.ends, share)
                            open_children.append(asyncio.create_task(run))
                            spawned += 1
                        decision = then
                    case Await():
                        ended = await self._gather(open_children, below)
                        decision = self.protocol.joined(self.ended[own[-1]], ended, self.ended)
                    case Finish(message):
                        await self._gather(open_children, below)
                        stop = StopReason.ANSWERED if message else StopReason.NO_ANSWER
                        below.ended = Thread(id, parent, depth, tuple(own), stop, message)
                        return below
                    case Fail(reason):
                        await self._gather(open_children, below)
                        below.ended = Thread(id, parent, depth, tuple(own), reason)
                        return below
        finally:  # if anything raised, here or in a child, no thread outlives its parent
            if own:
                del self.sent[own[-1]]
            if open_children:
                for task in open_children:
                    task.cancel()
                await asyncio.gather(*open_children, return_exceptions=True)

    async def _gather(self, open_children: list[asyncio.Task[Branch]], below: Branch) -> list[Thread]:
        """Wait for all open children; take over their strands, their ends and what they left, in spawn order."""
        if not open_children:  # gathering nothing costs a turn of the event loop all the same
            return []
        branches = await asyncio.gather(*open_children)
        open_children.clear()
        below.parts += branches
        for branch in branches:
            below.allowance.give_back(branch.allowance)
        below.ends += tuple(strand for branch in branches for strand in branch.ends)
        return [branch.thread for branch in branches]

    async def strand(
        self, id: StrandId, plan: Continue, after: tuple[StrandId, ...], allowance: Allowance
    ) -> tuple[Strand, StopReason | None] | StopReason:
        """Run one engine call. Returns the strand and, if a limit cut it short, which; or why it could not start."""
        ids = self._prompt(plan)
        draft = Strand(id, plan.sees, after, plan.position, plan.inject, (), EngineStop.STOP)
        waited = max((self.until[before] for before in after), default=0)
        room, binding = self._room(len(ids), weight(draft), waited, plan, allowance)
        if room <= 0:
            return binding
        key = StrandKey(self.step, self.problem, self.sample, *id)
        request = Request(
            key, ids, plan.stop_ids, room, self.sampling.temperature,
            derive_seed(self.sampling.seed, "strand", *key), priority=-id.thread.count("."),
        )  # fmt: skip
        started = self._clock()
        if self.limits.seconds is not None and started >= self.limits.seconds:
            return StopReason.SECONDS
        completion = await self._generate(request)
        if completion is None:
            return StopReason.ENGINE_LOST
        strand = Strand(
            id, plan.sees, after, plan.position, plan.inject, completion.ids, completion.stop,
            completion.logprobs, completion.versions, completion.cached, started, self._clock(),
        )  # fmt: skip
        self.until[id] = waited + len(strand.sampled)
        self.sent[id] = ids
        if allowance.work is not None:
            allowance.work -= weight(strand)
        cut = {EngineStop.STOP: None, EngineStop.LENGTH: binding, EngineStop.ABORT: StopReason.SECONDS}
        return strand, cut[strand.stop]

    def _prompt(self, plan: Continue) -> tuple[int, ...]:
        """All ids that precede what is sampled. A thread that goes on from its latest strand extends the prompt of that one,
        so that its closure is not walked again: the time is that of copying the ids, which an engine needs as a whole."""
        injected = tuple(token for run in plan.inject for token in run.ids)
        if len(plan.sees) == 1:
            ((id, length),) = plan.sees
            if (sent := self.sent.get(id)) is not None:
                strand = self.ended[id]
                more = length - sum(len(run.ids) for run in strand.injected)
                if more >= 0:
                    return sent + (strand.sampled[:more] + injected)
                return sent[: len(sent) + more] + injected
        return closure_ids(self.ended, plan.sees) + injected

    def _room(
        self, context: int, injected: int, waited: int, plan: Continue, allowance: Allowance
    ) -> tuple[int, StopReason]:
        """Tokens that may be sampled now, and the limit that says so (the first of equals, in documented order)."""
        rooms = [(min(self.limits.context, self.engine.max_context) - context, StopReason.CONTEXT)]
        if allowance.work is not None:
            rooms.append((allowance.work - injected, StopReason.WORK))
        if self.limits.span is not None:
            rooms.append((self.limits.span - waited, StopReason.SPAN))
        if plan.max_tokens is not None:
            rooms.append((plan.max_tokens, StopReason.MALFORMED))
        return min(rooms, key=lambda room: max(room[0], 0))

    async def _generate(self, request: Request) -> Completion | None:
        """One completion; a strand lost with its engine is sampled again under the same key, `ENGINE_RETRIES` times."""
        for _ in range(1 + ENGINE_RETRIES):
            try:
                if self.limits.seconds is None:
                    return await self.engine.generate(request)
                return await self._generate_until(request, self.limits.seconds)
            except EngineLostError:
                continue
        return None

    async def _generate_until(self, request: Request, seconds: float) -> Completion:
        """One completion, cut short when the trace is `seconds` old."""
        call = asyncio.ensure_future(self.engine.generate(request))
        try:
            done, _ = await asyncio.wait({call}, timeout=seconds - self._clock())
            if not done:
                await self.engine.abort(request.key)
            return await call
        finally:
            call.cancel()

    def _clock(self) -> float:
        return time.monotonic() - self.born

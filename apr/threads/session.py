"""The thread runtime: one attempt at one problem, sampled from an engine.

    attempt()
      Interpreter.thread("r")      by the protocol's rules (`apr.threads.interpreter`), one coroutine per thread
        Session.strand(...)        one engine call; limits are checked before it

The runtime knows strands, limits and an engine; the rules of spawn and join are the protocol's. Model text is data: it
cannot recurse past the depth limit, spawn past the thread limit, or stall a run, and whatever it says, `attempt`
returns a trace. Thread ids are paths by spawn order (r, r.0, r.0.2) and seeds derive from strand keys, so a trace
depends neither on timing nor on what else the engine is doing (with a batch-invariant engine, bit for bit).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from apr.errors import EngineLostError
from apr.seeds import derive_seed
from apr.threads.branches import Branch
from apr.threads.costs import costs, weight
from apr.threads.engine import Completion, Engine, Request
from apr.threads.interpreter import Interpreter
from apr.threads.layout import Block, block_of
from apr.threads.limits import Allowance, Limits
from apr.threads.protocol import Continue, ThreadProtocol
from apr.threads.trace import (
    ROOT,
    EngineStop,
    StopReason,
    Strand,
    StrandId,
    StrandKey,
    Trace,
    closure_ids,
    closure_lengths,
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
    try:
        branch = await session.root(protocol.start(prompt))
    finally:
        await asyncio.gather(*session.aborting)
        await engine.release(session.key(StrandId(ROOT, 0)))
    threads, strands = branch.flat()
    return Trace(
        problem, protocol.name, step, sample, threads, strands,
        costs=costs(threads, strands), limits=limits.model_dump(exclude_none=True),
    )  # fmt: skip


class Session(Interpreter):
    """One attempt: the threads side by side, each strand a call of the engine, with the clock and the limits."""

    def __init__(
        self, problem: str, engine: Engine, protocol: ThreadProtocol, limits: Limits, sampling: Sampling, step: int,
        sample: int,
    ) -> None:  # fmt: skip
        super().__init__(protocol, limits)
        self.problem = problem
        self.engine = engine
        self.sampling = sampling
        self.step = step
        self.sample = sample
        self.flying: dict[StrandId, int] = {}  # strands that are being sampled: the spans at which they started
        self.bounds: dict[str, int] = {}  # threads of which nobody wants more than up to a span, and those below them
        self.aborting: set[asyncio.Task[None]] = set()
        self.sent: dict[str, tuple[StrandId, tuple[int, ...]]] = {}  # the latest strand of each open thread, its prompt
        self.born = time.monotonic()

    def begin(self, thread: Coroutine[Any, Any, Branch]) -> asyncio.Task[Branch]:
        return asyncio.create_task(thread)

    async def gather(
        self, children: Sequence[Awaitable[Branch]], watch: Callable[[Branch], None] | None = None
    ) -> Sequence[Branch]:
        if watch is not None:
            for child in asyncio.as_completed(children):
                watch(await child)
        return await asyncio.gather(*children)

    def hurry(self, thread: str, span: int) -> None:
        self.bounds[thread] = span
        for id, started in self.flying.items():
            if _within(id.thread, thread):
                abort = asyncio.create_task(self._abort(id, max(0, span - started)))
                self.aborting.add(abort)
                abort.add_done_callback(self.aborting.discard)

    async def _abort(self, id: StrandId, after: int) -> None:
        """Ask for no more than so many tokens. If the engine is lost meanwhile, whoever waits for the strand finds out."""
        with suppress(EngineLostError):
            await self.engine.abort(self.key(id), after)

    def _wanted(self, key: StrandKey) -> float:
        """How many tokens are wanted of a strand that is being sampled."""
        return self._bound(key.thread) - self.flying[StrandId(key.thread, key.number)]

    def _bound(self, thread: str) -> float:
        """The span up to which tokens of a thread are wanted."""
        return min((span for name, span in self.bounds.items() if _within(thread, name)), default=math.inf)

    async def drop(self, children: Iterable[Awaitable[Branch]]) -> None:
        tasks = [asyncio.ensure_future(child) for child in children]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def thread(
        self,
        id: str,
        parent: str | None,
        depth: int,
        first: Continue,
        after: tuple[StrandId, ...],
        allowance: Allowance,
    ) -> Branch:
        try:
            return await super().thread(id, parent, depth, first, after, allowance)
        finally:
            self.sent.pop(id, None)

    async def strand(
        self, id: StrandId, plan: Continue, after: tuple[StrandId, ...], allowance: Allowance
    ) -> tuple[Strand, StopReason | None] | StopReason:
        """Run one engine call. Returns the strand and, if a limit cut it short, which; or why it could not start."""
        ids = self._prompt(plan)
        draft = Strand(id, plan.sees, after, plan.position, plan.inject, (), EngineStop.STOP)
        waited = self.span(after)
        room, binding = self._room(draft, len(ids), waited, plan, allowance)
        if room <= 0:
            return binding
        key = self.key(id)
        request = Request(
            key, ids, plan.stop_ids, room, self.sampling.temperature,
            derive_seed(self.sampling.seed, "strand", *key), priority=-id.thread.count("."),
            block=self._block(draft) if self.engine.views == "dag" else None, position=draft.end,
        )  # fmt: skip
        started = self._clock()
        if self.limits.seconds is not None and started >= self.limits.seconds:
            return StopReason.SECONDS
        self.flying[id] = waited
        try:
            completion = await self._generate(request)
        finally:
            del self.flying[id]
        if completion is None:
            return StopReason.ENGINE_LOST
        stop = completion.stop
        if stop is EngineStop.LENGTH and (binding is StopReason.CANCELLED or len(completion.ids) < room):
            stop = EngineStop.ABORT  # no more were wanted
        strand = Strand(
            id, plan.sees, after, plan.position, plan.inject, completion.ids, stop,
            completion.logprobs, completion.versions, completion.cached, started, self._clock(),
        )  # fmt: skip
        self.sent[id.thread] = id, ids
        if allowance.work is not None:
            allowance.work -= weight(strand)
        enough = waited + len(strand.sampled) >= self._bound(id.thread)
        aborted = StopReason.CANCELLED if enough else StopReason.SECONDS
        cut = {EngineStop.STOP: None, EngineStop.LENGTH: binding, EngineStop.ABORT: aborted}
        return strand, cut[strand.stop]

    def _prompt(self, plan: Continue) -> tuple[int, ...]:
        """All ids that precede what is sampled. A thread that goes on from its latest strand extends the prompt of that one,
        so that its closure is not walked again: the time is that of copying the ids, which an engine needs as a whole."""
        injected = tuple(token for run in plan.inject for token in run.ids)
        if len(plan.sees) == 1:
            ((id, length),) = plan.sees
            latest, sent = self.sent.get(id.thread, (None, ()))
            if latest == id:
                strand = self.ended[id]
                more = length - sum(len(run.ids) for run in strand.injected)
                if more >= 0:
                    return sent + (strand.sampled[:more] + injected)
                return sent[: len(sent) + more] + injected
        return closure_ids(self.ended, plan.sees) + injected

    def key(self, id: StrandId) -> StrandKey:
        return StrandKey(self.step, self.problem, self.sample, *id)

    def _block(self, draft: Strand) -> Block:
        """All that a strand sees and is injected, for an engine that keeps keys and values strand by strand."""
        seen = closure_lengths(self.ended, draft.sees)
        return block_of([*((self.ended[id], length) for id, length in seen.items()), (draft, len(draft.ids))])

    def _room(
        self, draft: Strand, context: int, waited: int, plan: Continue, allowance: Allowance
    ) -> tuple[int, StopReason]:
        """Tokens that may be sampled now, and the limit that says so (the first of equals, in documented order)."""
        rooms: list[tuple[float, StopReason]] = [
            (min(self.limits.context, self.engine.max_context) - context, StopReason.CONTEXT)
        ]
        if self.limits.reach is not None or self.engine.views == "dag":
            reach = min(self.limits.reach or self.engine.max_reach, self.engine.max_reach)
            rooms.append((reach - draft.end, StopReason.REACH))
        if allowance.work is not None:
            rooms.append((allowance.work - weight(draft), StopReason.WORK))
        if self.limits.span is not None:
            rooms.append((self.limits.span - waited, StopReason.SPAN))
        if plan.max_tokens is not None:
            rooms.append((plan.max_tokens, StopReason.MALFORMED))
        rooms.append((self._bound(draft.id.thread) - waited, StopReason.CANCELLED))
        room, binding = min(rooms, key=lambda room: max(room[0], 0))
        return int(room), binding

    async def _generate(self, request: Request) -> Completion | None:
        """One completion; a strand lost with its engine is sampled again under the same key, `ENGINE_RETRIES` times."""
        attempts = 1 + ENGINE_RETRIES
        while (wanted := self._wanted(request.key)) > 0:
            if not attempts:
                return None
            attempts -= 1
            if wanted < request.max_tokens:
                request = replace(request, max_tokens=int(wanted))
            try:
                if self.limits.seconds is None:
                    return await self.engine.generate(request)
                return await self._generate_until(request, self.limits.seconds)
            except EngineLostError:
                continue
        return Completion(request.key, (), (), EngineStop.ABORT, ())  # its trace has gone on without it

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


def _within(thread: str, branch: str) -> bool:
    """Whether a thread is this one or below it."""
    return thread == branch or thread.startswith(f"{branch}.")

"""A scripted engine and short spellings of what a thread may say, shared by the unit tests."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from apr.protocols.spawn_join import SpawnJoin
from apr.threads.engine import Completion, Request
from apr.threads.limits import Limits
from apr.threads.protocol import Await, Continue, Decision, Spawn, ThreadProtocol
from apr.threads.session import Sampling, attempt
from apr.threads.trace import (
    EngineStop,
    Injected,
    Origin,
    Reference,
    Strand,
    StrandId,
    StrandKey,
    Thread,
    Trace,
    VersionSpan,
)
from apr.tokens.control import CONTROL_TOKENS, ControlTokens

CONTROL = ControlTokens(*range(len(CONTROL_TOKENS)))
PROMPT = (CONTROL.bos, 20, 21)
FREE = Limits(context=1_000_000, threads=None, depth=100)
BLOCK = "block"  # in place of tokens: sample nothing until aborted

Script = Callable[[Request], Sequence[int] | Exception | str]


def spawn(*messages: Sequence[int], search: Sequence[int] = ()) -> tuple[int, ...]:
    """`search <spawn> <msg> message ... </spawn>`."""
    block = [token for message in messages for token in (CONTROL.msg, *message)]
    return (*search, CONTROL.spawn, *block, CONTROL.spawn_end)


def join(*message: int, search: Sequence[int] = ()) -> tuple[int, ...]:
    """`search <join> message <eos>`."""
    return (*search, CONTROL.join, *message, CONTROL.eos)


class FakeEngine:
    """Says what `script` says of a request, after `ticks` turns of the event loop; cut at `max_tokens`, or where it is aborted
    if it `obeys`."""

    views = "chain"
    max_reach = 10_000_000

    def __init__(self, script: Script, ticks: Callable[[Request], int] = lambda request: 0, obeys: bool = True) -> None:
        self.script = script
        self.ticks = ticks
        self.max_context = 10_000_000
        self.version = 7
        self.requests: list[Request] = []
        self.ended: list[str] = []  # "r.0#0", in the order in which they ended
        self.cancelled: list[str] = []
        self.released: list[StrandKey] = []
        self.obeys = obeys
        self.aborts: dict[StrandKey, asyncio.Event] = {}
        self.enough: dict[StrandKey, int] = {}

    async def release(self, key: StrandKey) -> None:
        self.released.append(key)

    async def generate(self, request: Request) -> Completion:
        self.requests.append(request)
        name = f"{request.key.thread}#{request.key.number}"
        aborted = self.aborts[request.key] = asyncio.Event()
        try:
            for _ in range(self.ticks(request)):
                await asyncio.sleep(0)
            said = self.script(request)
            if isinstance(said, Exception):
                raise said
            if said == BLOCK:
                await aborted.wait()
                return Completion(request.key, (), (), EngineStop.ABORT, ())
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        self.ended.append(name)
        ids = tuple(int(token) for token in said[: request.max_tokens])
        stop = EngineStop.STOP if len(ids) == len(said) else EngineStop.LENGTH
        if len(ids) > self.enough.get(request.key, len(ids)):
            ids, stop = ids[: self.enough[request.key]], EngineStop.ABORT
        return Completion(request.key, ids, (0.0,) * len(ids), stop, (VersionSpan(self.version, 0, len(ids)),))

    async def abort(self, key: StrandKey, after: int = 0) -> None:
        if not after:
            self.aborts[key].set()
        elif self.obeys:
            self.enough[key] = min(after, self.enough.get(key, after))

    def request(self, name: str) -> Request:
        """The latest request of the strand `name`, as in `r.0#0`."""
        return [r for r in self.requests if f"{r.key.thread}#{r.key.number}" == name][-1]


def says(**by_strand: Any) -> Script:
    """A script by strand: `says(r_0=spawn(...), r0_0=join(...))` speaks for r#0 and r.0#0, r01_2 for r.0.1#2."""

    def script(request: Request) -> Any:
        thread = request.key.thread.replace(".", "")
        return by_strand[f"{thread}_{request.key.number}"]

    return script


def replays(trace: Trace) -> Script:
    """A script that samples what the strands of `trace` sampled."""
    sampled = {strand.id: strand.sampled for strand in trace.strands}
    return lambda request: sampled[StrandId(request.key.thread, request.key.number)]


class GoesOn(SpawnJoin):
    """The parent writes on while its children run (as in AsyncThink); `<ret>` asks for their messages."""

    name = "goes_on"

    def ended(self, strand: Strand, strands: Mapping[StrandId, Strand]) -> Decision:
        if strand.sampled[-1] == CONTROL.ret:
            return Await()
        decision = super().ended(strand, strands)
        if isinstance(decision, Spawn):
            return Spawn(decision.children, self._on(strand))
        return decision

    def joined(self, last: Strand, children: Sequence[Thread], strands: Mapping[StrandId, Strand]) -> Decision:
        return self._on(last, *(Injected(Origin.MESSAGE, child.message) for child in children))

    def _on(self, last: Strand, *inject: Injected) -> Continue:
        length = len(last.ids)
        return Continue(inject, (Reference(last.id, length),), last.position + length, (*self._stop_ids, CONTROL.ret))


def run(
    script: Script | FakeEngine,
    limits: Limits = FREE,
    protocol: ThreadProtocol | None = None,
    prompt: Sequence[int] = PROMPT,
    problem: dict[str, Any] | None = None,
    seed: int = 0,
) -> Trace:
    """One attempt, to its end; fails if it leaves a task behind."""
    engine: Any = script if isinstance(script, FakeEngine) else FakeEngine(script)

    async def body() -> Trace:
        try:
            return await attempt(
                problem or {"id": "p"}, prompt, engine=engine, protocol=protocol or SpawnJoin(CONTROL),
                limits=limits, sampling=Sampling(1.0, seed), step=3, sample=5,
            )  # fmt: skip
        finally:
            assert asyncio.all_tasks() == {asyncio.current_task()}, "the attempt left tasks behind"

    return asyncio.run(body())


def timeless(strands: Sequence[Strand]) -> list[Strand]:
    """The strands without what only a run knows: times, cached tokens, logprobs, versions."""
    return [replace(s, started=0.0, ended=0.0, cached=0, logprobs=None, versions=()) for s in strands]

"""Many copies of one engine behind the seam of one. A copy that dies is made anew; what it was doing is done again.

    generate(request)
      route      the engine that holds what the strand builds on, else the least busy one
      lost?      the session sends the strand again under its key, and gets another engine
      replace    close the dead one, make another, bring it to the weights and the state of the others, then serve

`update_weights` and `pause` are remembered, so that a copy made at any moment catches up before its first request.
Results do not depend on who served whom (with a batch-invariant engine, bit for bit): seeds derive from strand keys.
"""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from apr.engines.refusals import refuse_second
from apr.errors import CheckpointError, EngineError, EngineLostError, TornWeightsError
from apr.threads.engine import Completion, Engine, Request, Views
from apr.threads.trace import EngineStop, StrandKey

Make = Callable[[int], Awaitable[Engine]]
Routing = Literal["trace", "spread"]
REMEMBERED = 1 << 16  # homes; more than are ever in flight, and a forgotten one costs no more than a prefill


@dataclass(eq=False)
class Member:
    """One of the pool's engines. A dead one is never alive again: another takes its place, under the same index."""

    index: int
    engine: Engine
    busy: int = 0  # requests sent to it and not answered yet
    alive: bool = True
    counted: Mapping[str, float] = field(default_factory=dict)  # its metrics when last asked


class EnginePool:
    """`members`: engines just made by `make`, which is called again, with the index of the one lost, to replace it: at
    most `restarts` times in all. `timeout`: seconds that a request waits for a restart while no engine is alive.

    `routing`: whatever shares a home goes to one engine, where its prefix is cached; a new home goes to the least busy
    one. `trace`: a trace is a home. `spread`: each thread is one, so that children fill what is idle.
    """

    def __init__(
        self,
        make: Make,
        members: Sequence[Engine],
        *,
        routing: Routing = "trace",
        restarts: int = 10,
        timeout: float = 300.0,
    ) -> None:
        self._make = make
        self._members = [Member(index, engine) for index, engine in enumerate(members)]
        self._views = members[0].views
        self._max_context = min(engine.max_context for engine in members)
        self._max_reach = min(engine.max_reach for engine in members)
        self._version = members[0].version
        self._routing = routing
        self._timeout = timeout
        self._homes: OrderedDict[StrandKey, int] = OrderedDict()  # to the index of an engine
        self._flights: dict[StrandKey, Member | None] = {}  # None: no engine has it yet
        self._waiting: dict[StrandKey, asyncio.Future[None]] = {}  # for an engine, or to be aborted
        self._wanted: dict[StrandKey, int] = {}  # tokens that an abort left to requests that no engine has yet
        self._update: tuple[Any, int] | None = None
        self._paused = self._keep = self._closed = False
        self._restarts_left = restarts
        self._starting: set[int] = set()  # indices of the dead for whom another is being made
        self._replacing: set[asyncio.Task[None]] = set()
        self._last_error: Exception | None = None
        self._counters = {"lost_requests": 0.0, "restarts": 0.0}
        self._dead: dict[str, float] = {}  # what the dead had counted

    @classmethod
    async def start(
        cls, make: Make, engines: int, *, routing: Routing = "trace", restarts: int = 10, timeout: float = 300.0
    ) -> EnginePool:
        """Make all engines at once. One that is lost while it starts is made again, which counts as a restart. If one
        cannot be made, raises why, and none is left."""
        lost = 0

        async def started(index: int) -> Engine:
            nonlocal lost
            while True:
                try:
                    return await make(index)
                except EngineLostError as error:
                    if lost == restarts:
                        raise
                    lost += 1
                    print(f"engine {index} was lost ({error}); starting another", file=sys.stderr, flush=True)

        made = await asyncio.gather(*map(started, range(engines)), return_exceptions=True)
        failures = [result for result in made if isinstance(result, BaseException)]
        members = [result for result in made if not isinstance(result, BaseException)]
        if failures:
            await asyncio.gather(*(engine.close() for engine in members), return_exceptions=True)
            raise failures[0]
        pool = cls(make, members, routing=routing, restarts=restarts - lost, timeout=timeout)
        pool._counters["restarts"] += lost
        return pool

    @property
    def max_context(self) -> int:
        return self._max_context

    @property
    def max_reach(self) -> int:
        return self._max_reach

    @property
    def views(self) -> Views:
        return self._views

    @property
    def version(self) -> int:
        return self._version

    async def generate(self, request: Request) -> Completion:
        """Sample one strand; see `Engine.generate`. While no engine is alive it waits for one that is being made."""
        refuse_second(request.key, self._flights)
        self._flights[request.key] = None
        try:
            while (member := self._route(request.key)) is None:
                self._check_alive()
                await self._another(request.key)
                if self._wanted.get(request.key) == 0:
                    return Completion(request.key, (), (), EngineStop.ABORT, ())
            self._flights[request.key] = member
            if (wanted := self._wanted.get(request.key)) is not None:
                request = replace(request, max_tokens=min(request.max_tokens, wanted))
            return await self._served(member, request)
        finally:
            del self._flights[request.key]
            self._wanted.pop(request.key, None)

    async def abort(self, key: StrandKey, after: int = 0) -> None:
        if key not in self._flights:
            return
        if (member := self._flights[key]) is None:  # no engine has it yet
            self._wanted[key] = min(after, self._wanted.get(key, after))
            if not after and key in self._waiting:
                self._wake(key)
        else:
            await self._ask(member, lambda engine: engine.abort(key, after))

    async def release(self, key: StrandKey) -> None:
        if self._views == "chain":
            return
        index = self._homes.get(self._home(key))
        if index is not None and self._members[index].alive:
            await self._ask(self._members[index], lambda engine: engine.release(key))

    async def pause(self, keep: bool = False) -> None:
        self._paused, self._keep = True, keep
        await self._ask_all(lambda engine: engine.pause(keep))

    async def update_weights(self, source: Any, version: int) -> None:
        """See `Engine.update_weights`. An engine lost meanwhile is no failure: the one in its place gets these weights."""
        if not self._paused and any(member.busy for member in self._alive()):
            raise EngineError("weights cannot change under requests in flight: await pause() first, then resume()")
        before, self._update = self._update, (source, version)
        try:
            await self._ask_all(lambda engine: engine.update_weights(source, version))
        except BaseException:
            self._update = before
            raise
        self._version = version

    async def resume(self) -> None:
        self._paused = self._keep = False
        await self._ask_all(lambda engine: engine.resume())

    async def metrics(self) -> Mapping[str, float]:
        """Sums over all engines, those that died as when they were last asked; and requests lost, restarts, engines alive."""

        async def count(engine: Engine) -> Mapping[str, float]:
            return await engine.metrics()

        asked = self._alive()
        for member, counted in zip(asked, await asyncio.gather(*(self._ask(member, count) for member in asked))):
            member.counted = counted or member.counted
        alive = self._alive()
        total = _sums([self._dead, *(member.counted for member in alive)])
        return {**total, **self._counters, "alive": float(len(alive))}

    async def close(self) -> None:
        """Close all engines, and make no more. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        for task in self._replacing:
            task.cancel()
        await asyncio.gather(*self._replacing, return_exceptions=True)
        self._wake_all()
        await _settled(member.engine.close() for member in self._alive())

    def engines(self) -> list[Engine]:
        """Those that are alive."""
        return [member.engine for member in self._alive()]

    def _alive(self) -> list[Member]:
        return [member for member in self._members if member.alive]

    def _check_alive(self) -> None:
        """Raise unless an engine is alive, or will be."""
        if self._closed:
            raise EngineError("the engines are closed; start others")
        if not self._alive() and not self._starting:
            raise EngineLostError(
                f"all {len(self._members)} engines are lost and no restart is left (cluster.restarts); the last one: "
                f"{self._last_error}"
            )

    def _route(self, key: StrandKey) -> Member | None:
        """The engine of the key's home, chosen now if it has none that is alive; None if no engine is."""
        if self._closed or not (alive := self._alive()):
            return None
        home = self._home(key)
        member = self._members[self._homes[home]] if home in self._homes else None
        if member is None or not member.alive:
            member = min(alive, key=lambda one: one.busy)
            self._homes[home] = member.index
        self._homes.move_to_end(home)
        if len(self._homes) > REMEMBERED:
            self._homes.popitem(last=False)
        return member

    def _home(self, key: StrandKey) -> StrandKey:
        """What shares it goes to one engine. One whose strands share what they computed serves a trace as a whole."""
        spread = self._routing == "spread" and self._views == "chain"
        return key._replace(thread=key.thread if spread else "", number=0)

    async def _served(self, member: Member, request: Request) -> Completion:
        member.busy += 1
        try:
            completion = await member.engine.generate(request)
        except EngineLostError as error:
            self._counters["lost_requests"] += 1
            self._lose(member, error)
            raise
        finally:
            member.busy -= 1
        if not member.alive:  # its end was seen elsewhere first: whoever is told of a loss must not meet a result
            self._counters["lost_requests"] += 1
            raise EngineLostError(f"engine {member.index} was lost with this request in flight")
        return completion

    async def _another(self, key: StrandKey) -> None:
        """Wait until an engine came up or none will, or the request is aborted."""
        self._waiting[key] = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait_for(self._waiting[key], self._timeout)
        except TimeoutError:
            raise EngineLostError(
                f"no engine was ready within cluster.timeout={self._timeout:g} s; all {len(self._members)} are lost, "
                f"{len(self._starting)} are being started again; the last one: {self._last_error}"
            ) from None
        finally:
            del self._waiting[key]

    def _wake(self, key: StrandKey) -> None:
        if not self._waiting[key].done():
            self._waiting[key].set_result(None)

    def _wake_all(self) -> None:
        for key in self._waiting:
            self._wake(key)

    # Engines that die, and those in their place.

    async def _ask(self, member: Member, call: Callable[[Engine], Awaitable[Any]]) -> Any:
        """What the engine answers; None if it is lost by that."""
        try:
            return await call(member.engine)
        except EngineLostError as error:
            self._lose(member, error)
            return None

    async def _ask_all(self, call: Callable[[Engine], Awaitable[Any]]) -> None:
        self._check_alive()
        await _settled(self._ask(member, call) for member in self._alive())

    def _lose(self, member: Member, error: Exception) -> None:
        if self._closed or not member.alive:
            return
        member.alive = False
        self._last_error = error
        self._dead = _sums([self._dead, member.counted])
        if self._restarts_left:
            self._starting.add(member.index)
        again = "starting another" if self._restarts_left else "no restart is left"
        print(f"engine {member.index} was lost ({error}); {again}", file=sys.stderr, flush=True)
        self._wake_all()
        task = asyncio.get_running_loop().create_task(self._replace(member))
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _replace(self, lost: Member) -> None:
        try:
            await asyncio.gather(lost.engine.close(), return_exceptions=True)  # dead: it may fail at that too
            while self._restarts_left:
                self._restarts_left -= 1
                self._counters["restarts"] += 1
                try:
                    self._members[lost.index] = Member(lost.index, await self._made(lost.index))
                    return
                except Exception as error:  # noqa: BLE001 - whatever it is, it is raised when no engine is left
                    self._last_error = error
                    print(f"engine {lost.index} could not be started again: {error}", file=sys.stderr, flush=True)
        finally:
            self._starting.discard(lost.index)
            self._wake_all()

    async def _made(self, index: int) -> Engine:
        """Another engine, brought to the weights and the state of the others, whatever changes meanwhile."""
        engine = await self._make(index)
        update, paused = None, (False, False)
        try:
            while update is not self._update or paused != (self._paused, self._keep):
                if paused != (self._paused, self._keep):
                    paused = (self._paused, self._keep)
                    await (engine.pause(self._keep) if self._paused else engine.resume())
                elif (update := self._update) is not None:
                    await self._brought_to(engine, update)
        except BaseException:
            await asyncio.gather(engine.close(), return_exceptions=True)
            raise
        return engine

    async def _brought_to(self, engine: Engine, update: tuple[Any, int]) -> None:
        try:
            await engine.update_weights(*update)
        except (CheckpointError, TornWeightsError):
            if update is self._update:  # else it was a folder that went when a newer one came
                raise


async def _settled(calls: Iterable[Awaitable[Any]]) -> None:
    """Wait for all of them; then raise the first error, if any."""
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def _sums(counters: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: defaultdict[str, float] = defaultdict(float)
    for one in counters:
        for name, count in one.items():
            total[name] += count
    return dict(total)

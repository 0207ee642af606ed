"""An engine that says what a script tells it to, without torch: for tests of whatever sits on an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from apr.engines.local import Flight, LocalEngine
from apr.errors import EngineError
from apr.threads.engine import Completion, Request
from apr.threads.trace import EngineStop, StrandKey

Reply = Sequence[int] | Exception  # token ids to sample, or what to raise
Key = StrandKey | tuple[str, int]  # a strand of the whole run, or (thread, number) of any trace
Script = Callable[[Request], Reply] | Mapping[Any, Reply | Sequence[Reply]]
Delays = Callable[[Request], int] | Mapping[Any, int]


class ScriptedEngine(LocalEngine):
    """`script`: a callable of the request, or a mapping from a `StrandKey` or (thread, number) to a reply, or to a
    list of replies, one per attempt under the same key (the last one stands for all later attempts).

    A reply is cut after its first stop id, else at `max_tokens`; one that just ends counts as out of tokens. `delays`:
    event-loop turns until a request completes (1 unless given), so that tests can reorder what finishes when.
    Logprobs are 0, and weights are accepted unread. All requests, as they came, are in `requests`.
    """

    def __init__(
        self, script: Script, *, max_context: int = 1 << 20, delays: Delays | None = None, version: int = 0
    ) -> None:
        super().__init__(max_context, version)
        self.requests: list[Request] = []
        self._script = script
        self._delays = delays
        self._tasks: dict[Flight, asyncio.Task[None]] = {}

    def _begin(self, flight: Flight) -> None:
        self.requests.append(flight.request)
        answer = self._answer(flight, self._reply(flight.request), self._delay(flight.request))
        self._tasks[flight] = asyncio.get_running_loop().create_task(answer)

    async def _answer(self, flight: Flight, reply: Reply, turns: int) -> None:
        for _ in range(turns):
            await self._turn()
        del self._tasks[flight]
        if isinstance(reply, Exception):
            self._settle(flight, reply)
            return
        ids, stop = self._cut(flight.request, reply)
        if len(ids) > flight.enough:
            ids, stop = ids[: int(flight.enough)], EngineStop.ABORT
        self._settle(flight, self._completion(flight, ids, (0.0,) * len(ids), stop))

    def _delay(self, request: Request) -> int:
        if self._delays is None:
            return 1
        if callable(self._delays):
            return self._delays(request)
        return self._delays.get(request.key, self._delays.get((request.key.thread, request.key.number), 1))

    def _reply(self, request: Request) -> Reply:
        if callable(self._script):
            return self._script(request)
        entry = self._script.get(request.key, self._script.get((request.key.thread, request.key.number)))
        if entry is None:
            raise EngineError(f"the script has no reply for {request.key}")
        if isinstance(entry, Exception) or not entry or isinstance(entry[0], int):
            return entry  # type: ignore[return-value]
        attempt = sum(earlier.key == request.key for earlier in self.requests)
        return entry[min(attempt, len(entry)) - 1]  # type: ignore[return-value]

    def _cut(self, request: Request, reply: Sequence[int]) -> tuple[tuple[int, ...], EngineStop]:
        room = min(request.max_tokens, self.max_context - len(request.ids))
        ids: list[int] = []
        for token in reply[:room]:
            ids.append(token)
            if token in request.stop_ids:
                return tuple(ids), EngineStop.STOP
        return tuple(ids), EngineStop.LENGTH

    def _progress(self, flight: Flight) -> int:
        return 0  # a reply is sampled all at once, when its delay is over

    def _interrupt(self, flight: Flight) -> Completion:
        self._tasks.pop(flight).cancel()
        return self._completion(flight, (), ())

    def _load(self, source: Any, version: int) -> None:
        """There is nothing to load."""

    def _release(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

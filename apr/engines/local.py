"""What engines that live in their caller's process share: requests by key, pause, abort, weights, counters, death.

A subclass says how a request starts (`_begin`), how far it is (`_progress`), what it has sampled when it is cut short
(`_interrupt`), how weights are taken (`_load`) and how the engine is let go (`_release`). Everything runs in the caller's
event loop: no threads. Between tokens a subclass awaits `_turn`, where requests can be suspended.
"""

from __future__ import annotations

import asyncio
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from apr.engines.refusals import not_finite, refuse_second
from apr.errors import EngineError, EngineLostError
from apr.threads.engine import Completion, Request, Views
from apr.threads.trace import EngineStop, StrandKey, VersionSpan


@dataclass(eq=False)
class Flight:
    """A request on its way. It is not `running` while a pause holds it back, nor once it has ended; suspended ones are.

    `marks`: for each update that it lived through, the version before and the tokens sampled until then. `enough`: tokens
    after which nobody wants more of it.
    """

    request: Request
    done: asyncio.Future[Completion]
    running: bool = False
    marks: list[tuple[int, int]] = field(default_factory=list)
    enough: float = math.inf

    def versions(self, version: int, sampled: int) -> tuple[VersionSpan, ...]:
        """The policy of each of its `sampled` tokens, the last ones being of `version`."""
        spans: list[VersionSpan] = []
        for policy, end in (*self.marks, (version, sampled)):
            start = spans[-1].end if spans else 0
            if end > start:
                spans.append(VersionSpan(policy, start, end))
        return tuple(spans)


class LocalEngine(ABC):
    """Base of the engines in this package; implements `apr.threads.engine.Engine`."""

    views: Views = "chain"

    def __init__(self, max_context: int, version: int, max_reach: int | None = None) -> None:
        self._max_context = max_context
        self._max_reach = max_context if max_reach is None else max_reach
        self._version = version
        self._flights: dict[StrandKey, Flight] = {}
        self._paused = False
        self._suspended: asyncio.Event | None = None  # set when those suspended go on
        self._closed = False
        self._lost: Exception | None = None
        self._vocabulary: int | None = None  # ids below it are tokens; None: any id is
        self._counters = dict.fromkeys(
            ("requests", "sampled_tokens", "prefilled_tokens", "cached_tokens", "preemptions", "busy_seconds"), 0.0
        )

    @property
    def max_context(self) -> int:
        return self._max_context

    @property
    def max_reach(self) -> int:
        return self._max_reach

    @property
    def version(self) -> int:
        return self._version

    async def generate(self, request: Request) -> Completion:
        """Sample one strand; see `Engine.generate`. Raises `EngineError` for a request that can never be served."""
        self._check(request)
        flight = Flight(request, asyncio.get_running_loop().create_future())
        self._flights[request.key] = flight
        try:
            if not self._paused:
                self._launch(flight)
            return await flight.done
        finally:
            del self._flights[request.key]
            if flight.running:  # the caller was cancelled: nobody will read this completion
                self._settle(flight, self._interrupt(flight))

    async def abort(self, key: StrandKey, after: int = 0) -> None:
        """Stop a request, held back ones too; unknown and finished keys are ignored."""
        flight = self._flights.get(key)
        if flight is None or flight.done.done():
            return
        if after > (self._progress(flight) if flight.running else 0):
            flight.enough = min(flight.enough, after)
            return
        self._settle(flight, self._interrupt(flight) if flight.running else self._completion(flight, (), ()))

    async def release(self, key: StrandKey) -> None:
        """See `Engine.release`. By default nothing is kept of a strand that has ended."""
        return

    async def pause(self, keep: bool = False) -> None:
        self._paused = True
        if keep:
            self._suspended = self._suspended or asyncio.Event()
            return
        self._go_on()
        while running := [flight.done for flight in self._flights.values() if flight.running]:
            await asyncio.wait(running)

    async def resume(self) -> None:
        self._paused = False
        self._go_on()
        for flight in list(self._flights.values()):
            if not flight.running and not flight.done.done():
                self._launch(flight)

    async def update_weights(self, source: Any, version: int) -> None:
        """Take weights from a folder (see `apr.engines.weights`) or a mapping of names to tensors.

        Raises `CheckpointError` if the folder cannot be read, `TornWeightsError` if it is not whole or of another version,
        `EngineError` if the weights do not fit, if requests are in flight and not suspended, or if the engine could not
        take them.
        """
        self._check_alive()
        running = [flight for flight in self._flights.values() if flight.running]
        if running and self._suspended is None:
            raise EngineError("weights cannot change under requests in flight: await pause() first, then resume()")
        self._load(source, version)
        for flight in running:
            flight.marks.append((self._version, self._progress(flight)))
        self._version = version

    async def metrics(self) -> Mapping[str, float]:
        return dict(self._counters)

    async def close(self) -> None:
        """Let the engine go; requests in flight fail with `EngineLostError`. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._fail_flights("the engine was closed with this request in flight")
        self._release()

    # What a subclass gives.

    @abstractmethod
    def _begin(self, flight: Flight) -> None:
        """Start sampling; `_settle` the flight when it is done. May raise `EngineError`."""

    @abstractmethod
    def _progress(self, flight: Flight) -> int:
        """How many tokens a running request has sampled."""

    @abstractmethod
    def _interrupt(self, flight: Flight) -> Completion:
        """Stop a running request; what it sampled so far."""

    @abstractmethod
    def _load(self, source: Any, version: int) -> None:
        """Take the weights of `version`, and forget every cache made with the old ones, suspended requests' own included."""

    @abstractmethod
    def _release(self) -> None:
        """Free what the engine holds."""

    # What a subclass uses.

    async def _turn(self) -> None:
        """Let the event loop turn; while requests are suspended, until they go on."""
        await asyncio.sleep(0)
        while self._suspended is not None:
            await self._suspended.wait()

    def _completion(
        self,
        flight: Flight,
        ids: tuple[int, ...],
        logprobs: tuple[float, ...],
        stop: EngineStop = EngineStop.ABORT,
        cached: int = 0,
    ) -> Completion:
        """The completion of a flight, counted if it ran."""
        if flight.running:
            self._counters["requests"] += 1
            self._counters["sampled_tokens"] += len(ids)
            self._counters["prefilled_tokens"] += len(flight.request.ids) - cached
            self._counters["cached_tokens"] += cached
        return Completion(flight.request.key, ids, logprobs, stop, flight.versions(self._version, len(ids)), cached)

    def _settle(self, flight: Flight, result: Completion | Exception) -> None:
        """The flight has ended with `result`; its caller may be gone already. A completion whose logprobs are not finite is
        an error, never an answer."""
        flight.running = False
        if flight.done.done():
            return
        if isinstance(result, Completion) and not all(map(math.isfinite, result.logprobs)):
            result = not_finite(flight.request.key)
        if isinstance(result, Exception):
            flight.done.set_exception(result)
        else:
            flight.done.set_result(result)

    def _lose(self, error: Exception) -> None:
        """The engine is beyond use: fail every request, now and later."""
        self._lost = error
        print(f"{type(self).__name__} died: {error!r}", file=sys.stderr, flush=True)
        self._fail_flights(f"the engine died: {error!r}")

    def _launch(self, flight: Flight) -> None:
        try:
            self._begin(flight)
            flight.running = True
        except EngineError as error:
            self._settle(flight, error)

    def _go_on(self) -> None:
        """End the suspension of requests, if they are."""
        if self._suspended is not None:
            self._suspended.set()
            self._suspended = None

    def _fail_flights(self, message: str) -> None:
        for flight in self._flights.values():
            self._settle(flight, EngineLostError(message))
        self._go_on()

    def _check_alive(self) -> None:
        if self._lost is not None:
            raise EngineLostError(f"the engine died: {self._lost!r}; start another one") from self._lost
        if self._closed:
            raise EngineError("the engine is closed; start another one")

    def _check(self, request: Request) -> None:
        self._check_alive()
        refuse_second(request.key, self._flights)
        if not request.ids or request.max_tokens < 1:
            raise EngineError(
                f"{request.key}: {len(request.ids)} ids, max_tokens {request.max_tokens}; both start at 1"
            )
        ids = {*request.ids, *request.stop_ids}
        if min(ids) < 0 or (self._vocabulary is not None and max(ids) >= self._vocabulary):
            raise EngineError(f"{request.key} names ids outside the model's vocabulary of {self._vocabulary}")
        if request.temperature < 0:
            raise EngineError(f"{request.key}: temperature {request.temperature} is negative; 0 is greedy")
        if len(request.ids) + 1 > self._max_context:
            raise EngineError(
                f"{request.key} has {len(request.ids)} ids, which leaves no room to sample in a context of "
                f"{self._max_context}: shorten it, or start the engine with a larger max_context"
            )

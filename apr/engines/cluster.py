"""An engine in a Ray actor, and its stand-in on this side, which passes the same contract.

Requests made in one turn of the event loop travel together, and so do completions: a strand costs a share of two remote
calls, however many are in flight.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from apr.config import EngineConfig
from apr.engines.base import Completion, Request
from apr.engines.build import build_engine
from apr.errors import AprError, EngineError, EngineLostError
from apr.threads.trace import StrandKey

Result = tuple[int, Completion | Exception]  # the ticket of a request, and how it ended


class EngineActor:
    """Runs in a Ray actor: an in-process engine, fed by `submit` and drained by `collect`."""

    def __init__(self) -> None:
        self.finished: asyncio.Queue[Result] = asyncio.Queue()
        self.running: set[asyncio.Task[None]] = set()

    async def start(self, config: EngineConfig, checkpoint: Path, max_context: int, seed: int) -> tuple[int, int]:
        """Build the engine; here, since what a Ray actor raises when it is made arrives without its type."""
        self.engine = build_engine(config, checkpoint, max_context, seed)
        return self.engine.max_context, self.engine.version

    async def submit(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Requests with the caller's tickets, under which their results are collected."""
        for ticket, request in requests:
            task = asyncio.create_task(self._generate(ticket, request))
            self.running.add(task)
            task.add_done_callback(self.running.discard)

    async def collect(self) -> list[Result]:
        """Waits for at least one result; returns all there are."""
        results = [await self.finished.get()]
        while not self.finished.empty():
            results.append(self.finished.get_nowait())
        return results

    async def _generate(self, ticket: int, request: Request) -> None:
        try:
            await self.finished.put((ticket, await self.engine.generate(request)))
        except EngineError as error:
            await self.finished.put((ticket, error))
        except Exception as error:  # noqa: BLE001 - a request without an answer would be waited for without end
            await self.finished.put((ticket, EngineLostError(f"the engine failed: {error!r}")))

    async def abort(self, key: StrandKey) -> None:
        await self.engine.abort(key)

    async def pause(self, keep: bool) -> None:
        await self.engine.pause(keep)

    async def resume(self) -> None:
        await self.engine.resume()

    async def update_weights(self, source: Any, version: int) -> None:
        await self.engine.update_weights(source, version)

    async def metrics(self) -> Mapping[str, float]:
        return await self.engine.metrics()

    async def close(self) -> None:
        await self.engine.close()


class RemoteEngine:
    """The `Engine` seam over an `EngineActor`'s handle. If it dies or cannot be reached, what is in flight is lost."""

    def __init__(self, actor: Any, max_context: int, version: int) -> None:
        self._actor = actor
        self._max_context = max_context
        self._version = version
        self._keys: set[StrandKey] = set()
        # By ticket, not by key: a cancelled request's late result must not answer the next one under its key.
        self._waiting: dict[int, asyncio.Future[Completion]] = {}
        self._tickets = itertools.count()
        self._outbox: list[tuple[int, Request]] = []
        self._sent: set[Any] = set()  # calls that may still be on their way
        self._pump: asyncio.Task[None] | None = None
        self._sender: asyncio.Task[None] | None = None

    @property
    def max_context(self) -> int:
        return self._max_context

    @property
    def version(self) -> int:
        return self._version

    async def generate(self, request: Request) -> Completion:
        if request.key in self._keys:
            raise EngineError(f"{request.key} is in flight already; a key names one request at a time")
        if self._actor is None:
            raise EngineLostError("the engine is closed")
        loop = asyncio.get_running_loop()
        ticket = next(self._tickets)
        future: asyncio.Future[Completion] = loop.create_future()
        self._keys.add(request.key)
        self._waiting[ticket] = future
        self._outbox.append((ticket, request))
        if self._pump is None or self._pump.done():
            self._pump = loop.create_task(self._run())
        elif len(self._outbox) == 1:
            self._sender = loop.create_task(self._flush())
        try:
            return await future
        except asyncio.CancelledError:
            await self.abort(request.key)
            raise
        finally:
            self._waiting.pop(ticket, None)
            self._keys.discard(request.key)

    async def _run(self) -> None:
        """Send what waits, collect what is ready, until nothing is in flight. Whatever else ends it, those in flight are
        lost: nobody would ever answer them."""
        try:
            await self._flush()
            while self._waiting:
                for ticket, result in await self._actor.collect.remote():
                    future = self._waiting.pop(ticket, None)
                    if future is None or future.done():
                        continue
                    if isinstance(result, Exception):
                        future.set_exception(result)
                    else:
                        future.set_result(result)
        except BaseException as error:
            self._lose(error)
            if not isinstance(error, Exception):
                raise

    async def _flush(self) -> None:
        """Send what waits; return when all that was sent has arrived, so that the next call of the actor meets it."""
        try:
            if self._outbox:
                requests, self._outbox = self._outbox, []
                self._sent.add(self._actor.submit.remote(requests))
            for sent in list(self._sent):
                await sent
                self._sent.discard(sent)
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody would ever answer these requests
            self._sent.clear()
            self._lose(error)

    def _lose(self, error: BaseException) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(EngineLostError(f"the engine's actor was lost: {error!r}"))
        self._waiting.clear()
        self._outbox.clear()

    async def abort(self, key: StrandKey) -> None:
        await self._call("abort", key)

    async def pause(self, keep: bool = False) -> None:
        await self._call("pause", keep)

    async def resume(self) -> None:
        await self._call("resume")

    async def update_weights(self, source: Any, version: int) -> None:
        await self._call("update_weights", source, version)
        self._version = version

    async def metrics(self) -> Mapping[str, float]:
        metrics: Mapping[str, float] = await self._call("metrics")
        return metrics

    async def close(self) -> None:
        """End the actor's engine, then the actor; what is still in flight is lost. Closing twice does nothing."""
        if self._actor is None:
            return
        actor, self._actor = self._actor, None
        try:
            await actor.close.remote()
        except RayError as error:
            self._lose(error)
        ray.kill(actor)
        self._lose(EngineError("closed"))

    async def _call(self, method: str, *arguments: Any) -> Any:
        """A call of the actor, after all requests made before it."""
        if self._actor is None:
            raise EngineLostError("the engine is closed")
        await self._flush()
        try:
            return await getattr(self._actor, method).remote(*arguments)
        except RayTaskError as error:
            raise cause_of(error) from error
        except RayError as error:
            raise EngineLostError(f"the engine's actor was lost: {error}") from error


def cause_of(error: RayTaskError) -> Exception:
    """What was raised in the actor: our own errors as they were, with a message for people, others with Ray's trace."""
    cause: Exception = error.cause if isinstance(error.cause, AprError) else error.as_instanceof_cause()
    return cause


def start_engine(
    config: EngineConfig, checkpoint: Path, max_context: int, seed: int, options: Mapping[str, Any], timeout: float
) -> RemoteEngine:
    """Start an engine actor and wait until it serves. Raises `ray.exceptions.GetTimeoutError` after `timeout` s."""
    actor = ray.remote(EngineActor).options(**options).remote()
    started = actor.start.remote(config, checkpoint.resolve(), max_context, seed)
    try:
        window, version = ray.get(started, timeout=timeout)
    except RayTaskError as error:
        raise cause_of(error) from error
    return RemoteEngine(actor, window, version)

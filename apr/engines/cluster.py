"""An engine in a Ray actor, its stand-in on this side, which passes the same contract, and a pool of them.

Requests made in one turn of the event loop travel together, and so do completions: a strand costs a share of two remote
calls, however many are in flight. Every wait for the actor ends: it answers in time, if only that there is nothing yet,
or it is lost and its process is killed.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, remove_placement_group

from apr.checkpoints.folder import ModelFolder
from apr.config import ClusterConfig, EngineConfig
from apr.engines.build import build_engine
from apr.engines.placement import bundle, connect, options, refuse_impossible, reserve
from apr.engines.pool import EnginePool
from apr.engines.refusals import refuse_second
from apr.errors import AprError, EngineError, EngineLostError, ResourceError
from apr.threads.engine import Completion, Engine, Request, Views
from apr.threads.trace import StrandKey

if TYPE_CHECKING:
    from apr.engines.vllm import VllmEngine


class Started(NamedTuple):
    """What an engine's stand-in must know of it: see `Engine`."""

    views: Views
    max_context: int
    max_reach: int
    version: int


Result = tuple[int, Completion | Exception]  # the ticket of a request, and how it ended
PATIENCE = 0.25  # of `timeout`: how long the actor looks for something to say before it says that there is nothing


class EngineActor:
    """Runs in a Ray actor: an in-process engine, fed by `submit` and drained by `collect`."""

    def __init__(self) -> None:
        self.finished: asyncio.Queue[Result] = asyncio.Queue()
        self.running: set[asyncio.Task[None]] = set()

    async def start(
        self, config: EngineConfig, checkpoint: Path, max_context: int, seed: int, transfer: str | None
    ) -> Started:
        """Build the engine; here, since what a Ray actor raises when it is made arrives without its type."""
        self.engine = build_engine(config, ModelFolder.open(checkpoint), max_context, seed, transfer)
        return Started(self.engine.views, self.engine.max_context, self.engine.max_reach, self.engine.version)

    async def submit(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Requests with the caller's tickets, under which their results are collected."""
        for ticket, request in requests:
            task = asyncio.create_task(self._generate(ticket, request))
            self.running.add(task)
            task.add_done_callback(self.running.discard)

    async def collect(self, patience: float) -> list[Result]:
        """All results there are; waits up to `patience` seconds for the first."""
        results = []
        with suppress(TimeoutError):
            results.append(await asyncio.wait_for(self.finished.get(), patience))
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

    async def abort(self, key: StrandKey, after: int) -> None:
        await self.engine.abort(key, after)

    async def release(self, key: StrandKey) -> None:
        await self.engine.release(key)

    async def pause(self, keep: bool, patience: float) -> bool:
        """Whether the engine is paused; it may have to wait for requests longer than `patience` seconds."""
        try:
            await asyncio.wait_for(self.engine.pause(keep), patience)
        except TimeoutError:
            return False
        return True

    async def resume(self) -> None:
        await self.engine.resume()

    async def update_weights(self, source: Any, version: int) -> None:
        await self.engine.update_weights(source, version)

    async def expect(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        cast("VllmEngine", self.engine).expect(shapes)

    async def transfer(self, method: str, arguments: Mapping[str, Any]) -> None:
        cast("VllmEngine", self.engine).transfer(method, arguments)

    async def metrics(self) -> Mapping[str, float]:
        return await self.engine.metrics()

    async def close(self) -> None:
        await self.engine.close()


class RemoteEngine:
    """The `Engine` seam over an `EngineActor`'s handle. If it dies, cannot be reached, does not answer within `timeout`
    seconds or says that its engine died, what is in flight is lost, and `end` is called, once, to kill its process: an
    actor whose engine is dead must not stay."""

    def __init__(self, actor: Any, started: Started, timeout: float, end: Callable[[], None]) -> None:
        self._actor = actor
        self.views, self._max_context, self._max_reach, self._version = started
        self._timeout = timeout
        self._end = end
        self._lost: str | None = None  # why
        self._keys: set[StrandKey] = set()
        # By ticket, not by key: a cancelled request's late result must not answer the next one under its key.
        self._waiting: dict[int, asyncio.Future[Completion]] = {}
        self._tickets = itertools.count()
        self._outbox: list[tuple[int, Request]] = []
        self._sent: set[Any] = set()  # calls that may still be on their way
        self._collecting: Any = None  # the call under way: if its pump is cancelled, the next one needs its results
        self._pump: asyncio.Task[None] | None = None
        self._sender: asyncio.Task[None] | None = None

    @property
    def actor(self) -> Any:
        """The handle, for a learner that sends weights to it."""
        return self._actor

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
        refuse_second(request.key, self._keys)
        if self._lost is not None:
            raise EngineLostError(self._lost)
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
            with suppress(EngineLostError):
                await self.abort(request.key)
            raise
        finally:
            self._waiting.pop(ticket, None)
            self._keys.discard(request.key)

    async def _run(self) -> None:
        """Send what waits, collect what is ready, until nothing is in flight."""
        try:
            await self._flush()
            while self._waiting:
                if self._collecting is None:
                    self._collecting = self._actor.collect.remote(self._timeout * PATIENCE)
                results = await self._reply(self._collecting, "requests")
                self._collecting = None
                for ticket, result in results:
                    self._settle(ticket, result)
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody would ever answer these requests
            self._lose(error)

    def _settle(self, ticket: int, result: Completion | Exception) -> None:
        if isinstance(result, EngineLostError):
            raise result
        future = self._waiting.pop(ticket, None)
        if future is None or future.done():
            return
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)

    async def _flush(self) -> None:
        """Send what waits; return when all that was sent has arrived, so that the next call of the actor meets it."""
        try:
            if self._outbox:
                requests, self._outbox = self._outbox, []
                self._sent.add(self._actor.submit.remote(requests))
            for sent in list(self._sent):
                await self._reply(sent, "submit")
                self._sent.discard(sent)
        except Exception as error:  # noqa: BLE001 - as above
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        """The engine is beyond use: what is in flight, and what comes later, fails."""
        if self._lost is None:
            self._lost = str(error) if isinstance(error, EngineLostError) else f"the engine's actor was lost: {error!r}"
            self._end()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(EngineLostError(self._lost))
        self._waiting.clear()
        self._outbox.clear()
        self._sent.clear()

    async def abort(self, key: StrandKey, after: int = 0) -> None:
        await self._call("abort", key, after)

    async def release(self, key: StrandKey) -> None:
        if self.views == "dag":
            await self._call("release", key)

    async def pause(self, keep: bool = False) -> None:
        while not await self._call("pause", keep, self._timeout * PATIENCE):
            pass

    async def resume(self) -> None:
        await self._call("resume")

    async def update_weights(self, source: Any, version: int) -> None:
        await self._call("update_weights", source, version)
        self._version = version

    async def metrics(self) -> Mapping[str, float]:
        metrics: Mapping[str, float] = await self._call("metrics")
        return metrics

    async def close(self) -> None:
        """End the engine, then its actor; what is still in flight is lost. Closing twice does nothing."""
        if self._lost is None:
            with suppress(EngineLostError):
                await self._call("close")
            self._lose(EngineLostError("the engine is closed"))

    async def _call(self, method: str, *arguments: Any) -> Any:
        """A call of the actor, after all requests made before it."""
        await self._flush()
        if self._lost is not None:
            raise EngineLostError(self._lost)
        try:
            return await self._reply(getattr(self._actor, method).remote(*arguments), method)
        except EngineLostError as error:
            self._lose(error)
            raise

    async def _reply(self, call: Any, what: str) -> Any:
        """What the actor returned or raised; `EngineLostError` if nothing comes."""
        try:
            return await asyncio.wait_for(call, self._timeout)
        except TimeoutError as error:
            raise EngineLostError(f"the engine's actor gave no answer ({what}) within {self._timeout:g} s") from error
        except RayTaskError as error:
            if isinstance(cause := cause_of(error), AprError):
                raise cause from error
            raise EngineLostError(f"the engine failed ({what}): {_why(error)}") from error
        except (RayError, OSError) as error:
            raise EngineLostError(f"the engine's actor was lost ({what}): {_why(error)}") from error


def _why(error: Exception) -> str:
    """One line of what Ray says of a loss: the last, which has the reason."""
    return f"{type(error).__name__}: {str(error).strip().rpartition(chr(10))[2]}"


def cause_of(error: RayTaskError) -> Exception:
    """What was raised in the actor: our own errors as they were, with a message for people, others with Ray's trace."""
    cause: Exception = error.cause if isinstance(error.cause, AprError) else error.as_instanceof_cause()
    return cause


async def start_engine(
    config: EngineConfig,
    checkpoint: Path,
    max_context: int,
    seed: int,
    cluster: ClusterConfig,
    transfer: str | None = None,
) -> RemoteEngine:
    """Place an engine's actor and wait until it serves. Raises `ResourceError` if that takes longer than it may,
    `EngineLostError` if the actor dies meanwhile, and what the engine raises when it is made."""
    needs = bundle(cluster.engine_cpus, cluster.engine_gpus)
    group = await reserve([needs], "PACK", cluster.timeout, "an engine")
    try:
        settings = options(cluster.engine_cpus, cluster.engine_gpus, config.threads, group)
        actor = ray.remote(EngineActor).options(**settings, max_concurrency=1000).remote()
        starting = actor.start.remote(config, checkpoint.resolve(), max_context, seed, transfer)
        started: Started = await asyncio.wait_for(starting, cluster.timeout)
    except BaseException as error:
        remove_placement_group(group)  # and with it the actor, if there is one
        if isinstance(error, TimeoutError):
            raise ResourceError(
                f"an engine had its place, but did not start within cluster.timeout={cluster.timeout:g} s: its log, in "
                "Ray's session folder, says how far it came; raise cluster.timeout if it needs longer"
            ) from error
        if isinstance(error, RayTaskError):
            raise cause_of(error) from error
        if isinstance(error, RayError):
            raise EngineLostError(
                f"an engine died while it started, perhaps for lack of memory: {_why(error)}"
            ) from error
        raise
    return RemoteEngine(actor, started, cluster.reply_timeout, partial(_end, actor, group))


def _end(actor: Any, group: PlacementGroup) -> None:
    ray.kill(actor)
    remove_placement_group(group)


async def start_pool(
    config: EngineConfig, cluster: ClusterConfig, checkpoint: Callable[[], Path], max_context: int, seed: int,
    transfer: str | None = None,
) -> EnginePool:  # fmt: skip
    """All engines of `cluster`, each with a place of its own. `checkpoint`: where an engine made now begins from; the
    first one may be gone when one is made again. With vLLM's own weight `transfer` none is (`rl.weight_transfer`)."""

    async def make(index: int) -> Engine:
        return await start_engine(config, checkpoint(), max_context, seed, cluster, transfer)

    restarts = cluster.restarts if transfer is None else 0
    return await EnginePool.start(
        make, cluster.engines, routing=cluster.routing, restarts=restarts, timeout=cluster.timeout
    )


@contextmanager
def served(config: EngineConfig, cluster: ClusterConfig, checkpoint: Path, max_context: int) -> Iterator[EnginePool]:
    """The engines of `cluster`, on the Ray that it names; connected to within the block, where nothing else runs."""
    connect(cluster.address)
    try:
        refuse_impossible([bundle(cluster.engine_cpus, cluster.engine_gpus)] * cluster.engines)
        yield asyncio.run(start_pool(config, cluster, lambda: checkpoint, max_context, seed=0))
    finally:
        ray.shutdown()

"""A server as an engine: `vllm serve`, or another that speaks its completions protocol, for evaluation.

Token ids go in (`prompt`) and come out (`return_token_ids`); the text that the server makes of them is ignored. Tokens are
streamed, so that an aborted request has those that were sampled, and a timeout is the time without a token, whatever else
is sent. Aborting closes the connection, at which the server ends the request. Everything that a server sends is checked
(`apr.engines.streamed`): an answer that cannot be right is asked for again, then fails the request.

The weights belong to the server: they cannot be updated from here, and so RL has no use for this engine. What it cannot
know: preemptions, and, unless the server says (`--enable-prompt-tokens-details`), tokens found in the prefix cache. Its
`busy_seconds` are those in which any request was on its way. Priorities are not sent: most servers refuse them.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import aiohttp

from apr.engines.local import Flight, LocalEngine
from apr.engines.server import NEUTRAL, PATIENCE, Server, headers, without_key
from apr.engines.streamed import MalformedError, Stream
from apr.errors import EngineError, EngineLostError
from apr.threads.engine import Request

WAITS = (0.5, 2.0, 8.0)  # seconds before a request whose connection failed is sent again
LONGEST_LINE = 1 << 24  # bytes; the first one of a stream has the whole prompt in it
SHOWN = 500  # bytes of a refusal that are read and shown


class _BrokenError(Exception):
    """The server failed at a request that it may serve another time."""


class EndpointEngine(LocalEngine):
    """`server`: found fit (`Server.find`). `max_context`: tokens in one context. `connections`: requests sent at once, more
    wait here. `timeout`: seconds without a token after which a request is lost."""

    def __init__(self, server: Server, *, max_context: int, connections: int, timeout: float) -> None:
        super().__init__(max_context, version=0)
        self._server = server
        self._vocabulary = server.vocabulary
        self._connections = connections
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: dict[Flight, Stream] = {}
        self._tasks: dict[Flight, asyncio.Task[None]] = {}
        self._busy_since = 0.0
        self._told = False
        self._counters["retries"] = 0.0

    async def pause(self, keep: bool = False) -> None:
        """See `Engine.pause`. Raises `EngineError` for `keep`: a server cannot suspend requests."""
        if keep:
            raise EngineError(
                f"{self._server.url} cannot suspend requests in flight: pause without keep, or use an engine of kind vllm"
            )
        await super().pause()

    async def update_weights(self, source: Any, version: int) -> None:
        """Always raises `EngineError`."""
        raise EngineError(
            f"the weights at {self._server.url} belong to its server and cannot be updated from here: train with "
            "engine.kind=vllm, export the result and serve that"
        )

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        await super().close()
        if self._session is None or self._loop is not asyncio.get_running_loop():
            return  # the connections of an event loop that has ended went with it
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._session.close()

    def _check(self, request: Request) -> None:
        super()._check(request)
        if request.temperature not in (0, 1) and not self._server.processed:
            raise EngineError(
                f"{self._server.url} reports logprobs at temperature 1, not at the {request.temperature} asked for: start "
                "it with --logprobs-mode processed_logprobs, or set temperature to 0 or 1"
            )

    def _begin(self, flight: Flight) -> None:
        if not self._tasks:
            self._busy_since = time.perf_counter()
        self._streams[flight] = self._new_stream(flight.request)
        self._tasks[flight] = asyncio.get_running_loop().create_task(self._serve(flight))

    async def _serve(self, flight: Flight) -> None:
        """Send a request until it is answered, or the connection has failed too often."""
        request = flight.request
        result: Exception
        try:
            for wait in (*WAITS, None):
                stream = self._streams[flight] = self._new_stream(request)
                try:
                    await self._fill(stream, flight)
                    self._settle(flight, self._completed(flight, stream))
                    self._told = False
                    return
                except aiohttp.ConnectionTimeoutError as error:  # a TimeoutError, too, but nothing was sent yet
                    result = error
                except TimeoutError:
                    raise EngineLostError(
                        f"{self._server.url} sent no token for {self._timeout:g} s while sampling {request.key} (it had "
                        f"sent {len(stream.ids)}): see its log; if it only has too much to do, lower in_flight or raise "
                        "engine.timeout"
                    ) from None
                except (aiohttp.ClientError, OSError, _BrokenError, MalformedError) as error:
                    result = error
                if wait is not None:
                    self._counters["retries"] += 1
                    await asyncio.sleep(wait)
            raise self._failed(request, result)
        except EngineError as error:
            self._tell(error)
            self._settle(flight, error)
        except Exception as error:  # noqa: BLE001 - whatever it was, no request may hang on it
            self._settle(flight, EngineError(f"{self._server.url} could not be asked for {request.key}: {error!r}"))
        finally:
            self._forget(flight)

    def _failed(self, request: Request, last: Exception) -> EngineLostError:
        """What is raised when a request has been sent as often as it may be; `last`: what went wrong in the end."""
        url, times = self._server.url, 1 + len(WAITS)
        if isinstance(last, aiohttp.ConnectionTimeoutError | aiohttp.ClientConnectorError):
            what = (
                f"could not connect to {url}, {times} times in a row, to sample {request.key} ({last}): see if it is up"
            )
        else:
            what = f"{url} failed {times} times to sample {request.key} ({last}): see its log"
        return EngineLostError(f"{what}; start it again if it has died, then call the same command again")

    def _tell(self, error: EngineError) -> None:
        """Say why requests fail, which whoever sampled may only count: once, until one succeeds again."""
        if not self._told:
            print(error, file=sys.stderr, flush=True)
        self._told = True

    async def _fill(self, stream: Stream, flight: Flight) -> None:
        """Send a request once and add its answer to `stream`, until it ends or nobody wants more of it.

        Raises `EngineError` if it is refused; `MalformedError`, `_BrokenError` or aiohttp's errors if it may be sent again;
        and `TimeoutError` if no token came for too long since the connection was there.
        """
        request = flight.request
        session = await self._here()
        clock = asyncio.timeout(None)
        try:
            async with (
                clock,
                session.post(
                    "/v1/completions", json=self._content(request), allow_redirects=False,
                    trace_request_ctx=lambda: self._restart(clock),
                ) as response,
            ):  # fmt: skip
                if response.status != 200:
                    said = without_key((await response.content.read(SHOWN)).decode(errors="replace"))
                    if response.status >= 500 or response.status in (408, 429):
                        raise _BrokenError(f"status {response.status}: {said}")
                    raise EngineError(f"{self._server.url} refused {request.key} with status {response.status}: {said}")
                async for line in response.content:
                    if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]" and stream.take(data):
                        self._restart(clock)
                    if len(stream.ids) >= flight.enough and stream.stop is None:
                        return
        except TimeoutError:
            if stream.stop is None:
                raise
        if stream.stop is None:
            raise _BrokenError("the stream ended before its completion did")

    def _restart(self, clock: asyncio.Timeout) -> None:
        clock.reschedule(asyncio.get_running_loop().time() + self._timeout)

    def _new_stream(self, request: Request) -> Stream:
        return Stream(request.stop_ids, self._most(request), self._server.vocabulary)

    def _most(self, request: Request) -> int:
        return min(request.max_tokens, self.max_context - len(request.ids))

    def _content(self, request: Request) -> dict[str, Any]:
        """The body of a request. Logprobs 0: those of the sampled tokens alone."""
        seed = {"seed": request.seed} if request.temperature > 0 else {}
        return {
            "model": self._server.model, "prompt": request.ids, "max_tokens": self._most(request),
            "temperature": request.temperature, "stop_token_ids": request.stop_ids, "logprobs": 0, "stream": True,
            "stream_options": {"include_usage": True}, **NEUTRAL, **seed,
        }  # fmt: skip

    async def _here(self) -> aiohttp.ClientSession:
        """The connections of the running event loop; those of a loop that is no more are let go."""
        loop = asyncio.get_running_loop()
        if self._session is None or self._loop is not loop:
            old, self._loop = self._session, loop
            self._session = aiohttp.ClientSession(
                self._server.url,
                connector=aiohttp.TCPConnector(limit=self._connections),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=min(self._timeout, PATIENCE)),
                trace_configs=[_tracing()],
                headers=headers(),
                read_bufsize=LONGEST_LINE,
            )
            if old is not None:
                await old.close()
        return self._session

    def _completed(self, flight: Flight, stream: Stream) -> Any:
        cached = min(stream.cached, len(flight.request.ids))
        return self._completion(flight, tuple(stream.ids), tuple(stream.logprobs), stream.reached, cached)

    def _progress(self, flight: Flight) -> int:
        return len(self._streams[flight].ids)

    def _interrupt(self, flight: Flight) -> Any:
        self._tasks[flight].cancel()
        completion = self._completed(flight, self._streams[flight])
        self._forget(flight)
        return completion

    def _forget(self, flight: Flight) -> None:
        if self._tasks.pop(flight, None) is not None and not self._tasks:
            self._counters["busy_seconds"] += time.perf_counter() - self._busy_since
        self._streams.pop(flight, None)

    def _load(self, source: Any, version: int) -> None:
        raise EngineError(f"the weights at {self._server.url} belong to its server")

    def _release(self) -> None:
        for task in self._tasks.values():
            task.cancel()


def _tracing() -> aiohttp.TraceConfig:
    """Call a request's `trace_request_ctx` once it has a connection: until then it waits for others, not for the server."""

    async def connected(session: Any, context: Any, parameters: Any) -> None:
        context.trace_request_ctx()

    tracing = aiohttp.TraceConfig()
    tracing.on_connection_create_end.append(connected)
    tracing.on_connection_reuseconn.append(connected)
    return tracing

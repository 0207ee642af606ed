"""A server that speaks as much of vLLM's HTTP protocol as an engine of kind `endpoint` uses, over the tiny engine. It runs
in a thread of this process, and fails when told to."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from apr.checkpoints.folder import ModelFolder
from apr.engines.tiny import TinyEngine
from apr.threads.engine import Completion, Request
from apr.threads.trace import EngineStop, StrandKey
from apr.tokens.text import load_tokenizer

CACHED = 3  # tokens that it says to have found in its prefix cache


class FakeServer:
    """`url`: where it listens. `requests`: the bodies that it was sent. `failures`: what to do to the next requests for
    completions, one each: "drop" (close the connection in the middle of a stream), "hang" (say nothing), a status to answer
    with, or None. `sent`: tokens sent; `given_up`: streams that their client closed; `most_at_once`: streams open at one
    time. It lacks what `token_ids`, `tokenizer`, `raw_logprobs` and `stops_late` say."""

    def __init__(self, checkpoint: Path, window: int) -> None:
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        self.failures: list[str | int | None] = []
        self.sent = 0
        self.at_once = self.most_at_once = 0
        self.given_up = 0
        self.models = [{"id": "tiny", "root": str(checkpoint), "max_model_len": window}]
        self.tokenizer: Any = load_tokenizer(checkpoint)
        self.token_ids = True
        self.raw_logprobs = False
        self.stops_late = False
        self._engine = TinyEngine.from_folder(ModelFolder.open(checkpoint), max_context=window)
        self._numbers = iter(range(1 << 60))

    async def list_models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": self.models})

    async def tokenize(self, request: web.Request) -> web.Response:
        if self.tokenizer is None:
            return web.json_response({"error": {"message": "no tokenizer"}}, status=400)
        asked = await request.json()
        ids = self.tokenizer(asked["prompt"], add_special_tokens=asked["add_special_tokens"])["input_ids"]
        return web.json_response({"count": len(ids), "tokens": ids})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.requests.append(asked)
        failure = self.failures.pop(0) if self.failures else None
        if isinstance(failure, int):
            return web.json_response({"error": {"message": "told to fail"}}, status=failure)
        if failure == "hang":
            await asyncio.sleep(3600)
        completion = await self._sampled(asked)
        if not asked.get("stream"):
            return web.json_response({"choices": [self._choice(asked, completion)], "usage": self._usage(asked)})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            for number in range(len(completion.ids)):
                if failure == "drop" and number == len(completion.ids) // 2:
                    assert request.transport is not None
                    request.transport.close()
                    return response
                await self._event(response, {"choices": [self._choice(asked, completion, number)]})
                self.sent += 1
                await asyncio.sleep(0.001)
            await self._event(response, {"choices": [], "usage": self._usage(asked)})
            await response.write(b"data: [DONE]\n\n")
        except (ConnectionError, asyncio.CancelledError):
            self.given_up += 1
            raise
        finally:
            self.at_once -= 1
        return response

    async def _sampled(self, asked: dict[str, Any]) -> Completion:
        temperature = asked["temperature"]
        if self.raw_logprobs and temperature == 0.5:  # the probe: as if greedy
            temperature = 0.0
        stops = () if self.stops_late else tuple(asked.get("stop_token_ids", ()))
        key = StrandKey(0, "served", next(self._numbers), "r", 0)
        request = Request(key, tuple(asked["prompt"]), stops, asked["max_tokens"], temperature, asked.get("seed", 0))
        return await self._engine.generate(request)

    def _choice(self, asked: dict[str, Any], completion: Completion, only: int | None = None) -> dict[str, Any]:
        """The whole completion, or its token number `only`."""
        part = slice(None) if only is None else slice(only, only + 1)
        last = only is None or only == len(completion.ids) - 1
        why = {EngineStop.STOP: "stop", EngineStop.LENGTH: "length"}[completion.stop]
        logprobs = list(completion.logprobs[part])
        top = [{f"token_id:{i}": logprob} for i, logprob in zip(completion.ids[part], logprobs)]
        return {
            "index": 0, "text": "?", "finish_reason": why if last else None,
            "logprobs": {"token_logprobs": logprobs, "top_logprobs": top},
            **({"token_ids": list(completion.ids[part])} if self.token_ids else {}),
            **({"prompt_token_ids": asked["prompt"]} if not only else {}),
        }  # fmt: skip

    def _usage(self, asked: dict[str, Any]) -> dict[str, Any]:
        cached = min(CACHED, len(asked["prompt"]) - 1)
        return {"prompt_tokens": len(asked["prompt"]), "prompt_tokens_details": {"cached_tokens": cached}}

    async def _event(self, response: web.StreamResponse, content: dict[str, Any]) -> None:
        await response.write(b"data: " + json.dumps(content).encode() + b"\n\n")


@contextmanager
def fake_endpoint(checkpoint: Path, window: int) -> Iterator[FakeServer]:
    """A server on a free port, until the block ends."""
    server = FakeServer(checkpoint, window)
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    runner: list[web.AppRunner] = []

    async def start() -> None:
        app = web.Application()
        app.add_routes(
            [
                web.get("/v1/models", server.list_models),
                web.post("/tokenize", server.tokenize),
                web.post("/v1/completions", server.complete),
            ]
        )
        runner.append(web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1))
        await runner[0].setup()
        site = web.TCPSite(runner[0], "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner[0].addresses[0][1]}"
        ready.set()

    def serve() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner[0].cleanup())
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)

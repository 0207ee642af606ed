"""Servers that send what cannot be right: their requests fail, with a typed error, and nothing of it is recorded."""

import asyncio
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import FakeServer, fake_endpoint

from apr.checkpoints.folder import ModelFolder
from apr.config import EngineConfig, EvalConfig
from apr.engines import endpoint, server
from apr.engines.build import build_engine
from apr.engines.endpoint import EndpointEngine
from apr.engines.server import Server
from apr.engines.streamed import MalformedError, Stream
from apr.errors import ConfigError, EngineError, EngineLostError
from apr.presets import load
from apr.threads.engine import Completion, Engine, Request
from apr.threads.trace import EngineStop, StrandKey

KEY = "sk-very-secret"
VOCABULARY = 230


def event(ids: Any, logprobs: Any = None, why: Any = None, **others: Any) -> bytes:
    said = [-0.5] * len(ids) if logprobs is None else logprobs
    choice = {"index": 0, "token_ids": ids, "logprobs": {"token_logprobs": said}, "finish_reason": why}
    return json.dumps({"choices": [choice], **others}).encode()


def usage(cached: Any) -> bytes:
    return json.dumps({"choices": [], "usage": {"prompt_tokens_details": {"cached_tokens": cached}}}).encode()


def stream() -> Stream:
    return Stream(stop_ids=(5, 2), most=4, vocabulary=VOCABULARY)


def test_a_stream_as_it_should_be() -> None:
    said = stream()
    assert [said.take(event([7])), said.take(event([8, 2], [-1, -2.5], "stop")), said.take(usage(3))] == [1, 2, 0]
    assert (said.ids, said.logprobs, said.cached, said.stop) == ([7, 8, 2], [-0.5, -1.0, -2.5], 3, EngineStop.STOP)


def test_a_stop_token_at_the_last_place_is_a_stop() -> None:
    said = stream()
    said.take(event([7, 7, 7, 5], why="length"))
    assert said.stop is EngineStop.STOP


@pytest.mark.parametrize("why", [None, math.nan])
def test_null_is_a_logprob_that_is_no_number(why: float | None) -> None:
    said = stream()
    said.take(event([7], [why]))
    assert math.isnan(said.logprobs[0])


@pytest.mark.parametrize(
    "events",
    [
        [event([7.0])], [event(["7"])], [event([True])], [event([None])], [event([[7]])], [event("7", [-1])], [event({})],
        [event([-1])], [event([VOCABULARY])], [event([10**30])],
        [event([7], ["-1"])], [event([7], [True])], [event([7], [0.5])], [event([7], [math.inf])], [event([7], [[-1]])],
        [event([7, 8], [-1])], [event([7], {"0": -1})],
        [event([7] * 5)], [event([7, 7]), event([7, 7, 7])],
        [event([2, 7])], [event([5]), event([7])], [event([2], why="stop"), event([7])],
        [event([2], why="stop"), event([2], why="stop")], [event([7], why="stop")], [event([], why="stop")],
        [event([7], why="length")], [event([7], why="abort")], [event([7], why=["stop"])],
        [usage(-1)], [usage("3")], [usage(1.5)], [usage(True)],
        [b"[" * 200_000], [b"7"], [b"[]"], [b"null"], [b"{}"], [b"{"], [b"\xff"], [b'{"choices": {}}'],
        [b'{"choices": [7]}'], [b'{"choices": [], "usage": [1]}'], [b'{"choices": [{"index": 1, "token_ids": []}]}'],
        [b'{"error": {"message": "out of memory"}}'], [b"9" * 5000],
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_malformed(events: list[bytes]) -> None:
    said = stream()
    with pytest.raises(MalformedError):
        for data in events:
            said.take(data)
    assert all(type(i) is int and 0 <= i < VOCABULARY for i in said.ids) and len(said.ids) == len(said.logprobs) <= 4


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(0)


@pytest.fixture
def honest(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr(endpoint, "WAITS", (0.01,))
    with fake_endpoint(checkpoint, 160) as server:
        yield server


def start(url: str, checkpoint: Path, **options: Any) -> Engine:
    config = EngineConfig(kind="endpoint", url=url, **{"timeout": 30, **options})
    return build_engine(config, ModelFolder.open(checkpoint), 160)


def ask(engine: Engine) -> Any:
    async def together() -> Any:
        request = Request(StrandKey(0, "p", 0, "r", 0), (1, 20, 21, 22), (5, 2), 40, 1.0, 7)
        try:
            return (await asyncio.gather(engine.generate(request), return_exceptions=True))[0]
        finally:
            await engine.close()

    return asyncio.run(together())


@pytest.mark.parametrize("lie", [["7"], [7.5], [-1], [VOCABULARY * 100], [True]])
def test_a_request_whose_ids_are_none_fails_and_the_next_is_served(
    lie: list[Any], honest: FakeServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(honest.url, checkpoint)
    choice = honest._choice

    def lying(*arguments: Any) -> dict[str, Any]:
        return {**choice(*arguments), "token_ids": lie}

    with monkeypatch.context() as patch:
        patch.setattr(honest, "_choice", lying)
        with pytest.raises(ConfigError, match="without token ids.*no id of the model"):
            start(honest.url, checkpoint)
        failed = ask(engine)
    assert isinstance(failed, EngineLostError) and "no id of the model" in str(failed)
    assert isinstance(ask(start(honest.url, checkpoint)), Completion)


@contextmanager
def raw(*pieces: bytes, every: float = 0.0, forever: bool = False) -> Iterator[tuple[str, list[bytes]]]:
    """The address of a server that answers each connection with `pieces`, the last one over and over if `forever`; and what it
    was sent."""
    heard: list[bytes] = []
    done = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection:
            heard.append(connection.recv(1 << 16))
            try:
                for piece in pieces:
                    connection.sendall(piece)
                while forever and not done.wait(every):
                    connection.sendall(pieces[-1])
            except OSError:
                pass

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", heard
        finally:
            done.set()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("last", [b": ping\n\n", b"x", b'data: {"choices": []}\n\n', b"data: " + event([]) + b"\n\n"])
def test_what_brings_no_token_keeps_no_request_alive(last: bytes) -> None:
    with raw(HEAD, last, every=0.05, forever=True) as (url, _):
        engine = EndpointEngine(Server(url, "m", VOCABULARY, True), max_context=160, connections=1, timeout=0.5)
        started = time.monotonic()
        lost = ask(engine)
    assert isinstance(lost, EngineLostError) and "sent no token for 0.5 s" in str(lost)
    assert time.monotonic() - started < 10


def test_a_completion_is_whole_though_the_server_never_closes_it() -> None:
    body = b"data: " + event([7, 2], why="stop") + b"\n\n"
    with raw(HEAD + body, b": ping\n\n", every=0.05, forever=True) as (url, _):
        engine = EndpointEngine(Server(url, "m", VOCABULARY, True), max_context=160, connections=1, timeout=0.5)
        assert ask(engine).ids == (7, 2)


@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        ((b"HTTP/1.1 200 OK\r\n\r\n", b" "), "not complete after"),
        ((b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"), "not complete after|got more than 100 headers"),
        ((b"H",), "no server answers"),
        ((b"HTTP/1.1 200 OK\r\n\r\n", b" " * (1 << 20)), "more than 1 MiB|not complete after"),
    ],
)
def test_a_probe_is_bounded_in_seconds_and_bytes(
    pieces: tuple[bytes, ...], says: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PATIENCE", 0.5)
    monkeypatch.setattr(server, "LONGEST", 1 << 20)
    with raw(*pieces, every=0.02, forever=True) as (url, _):
        started = time.monotonic()
        with pytest.raises(ConfigError, match=says):
            start(url, checkpoint)
        assert time.monotonic() - started < 10


@pytest.mark.parametrize("body", [b"[" * 200_000, b"7", b"[1]", b'{"data": 7}', b'{"data": [7, null]}', b"null"])
def test_a_probe_answered_with_other_json(body: bytes, checkpoint: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    with raw(head + body) as (url, _), pytest.raises(ConfigError, match=url):
        start(url, checkpoint)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_takes_the_key_elsewhere(
    status: int, honest: FakeServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    with raw(b"HTTP/1.1 200 OK\r\n\r\n") as (elsewhere, heard):
        head = f"HTTP/1.1 {status} Moved\r\nLocation: {elsewhere}/v1/models\r\nContent-Length: 0\r\n\r\n".encode()
        with raw(head) as (url, asked):
            with pytest.raises(ConfigError, match=f"answered {status}"):
                start(url, checkpoint)
            engine = EndpointEngine(Server(url, "m", VOCABULARY, True), max_context=160, connections=1, timeout=5)
            failed = ask(engine)
            assert isinstance(failed, EngineError) and f"status {status}" in str(failed)
            assert all(KEY.encode() in request for request in asked)
        assert not heard


@pytest.mark.parametrize("place", ["http://user:{}@x:1", "http://{}@x:1", "http://x:1?key={}", "http://x:1/v1?api_key={}",
                                   "http://x:1#{}", "http://x:1/{}", "https://u:{}@x"])  # fmt: skip
def test_a_key_in_a_url_is_refused_and_not_repeated(place: str, tmp_path: Path) -> None:
    given = place.format(KEY)
    (tmp_path / "own.yaml").write_text(json.dumps({"engine": {"kind": "endpoint", "url": given}}))
    for paths, overrides in (([], ["engine.kind=endpoint", f"engine.url={given}"]), ([tmp_path / "own.yaml"], [])):
        with pytest.raises(ConfigError, match="engine.url must be http://HOST:PORT") as refused:
            load(EvalConfig, paths, overrides)
        assert KEY not in str(refused.value)


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}\r\nX-Other: 1", f"{KEY}\u20ac"])
def test_a_key_that_is_none_is_refused_and_not_repeated(
    key: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", key)
    with pytest.raises(ConfigError, match="VLLM_API_KEY holds a character") as refused:
        start("http://127.0.0.1:9", checkpoint)
    assert KEY not in str(refused.value)


def test_a_server_that_repeats_the_key_is_not_quoted(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    body = f"wrong key: {KEY}".encode()
    with raw(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n" % len(body) + body) as (url, _):
        engine = EndpointEngine(Server(url, "m", VOCABULARY, True), max_context=160, connections=1, timeout=5)
        failed = ask(engine)
        assert "wrong key: ***" in str(failed) and KEY not in str(failed)
        with pytest.raises(ConfigError, match=r"wrong key: \*\*\*"):
            start(url, checkpoint)


def test_a_completion_whose_last_token_came_is_whole_before_the_server_says_so() -> None:
    """Whoever stops listening in between has not cut it short."""
    one = stream()
    one.take(event([7, 8]))
    assert (one.stop, one.reached) == (None, EngineStop.ABORT)
    one.take(event([5]))
    assert (one.stop, one.reached) == (None, EngineStop.STOP)
    full = stream()
    full.take(event([7, 8, 9, 10]))
    assert (full.stop, full.reached) == (None, EngineStop.LENGTH)

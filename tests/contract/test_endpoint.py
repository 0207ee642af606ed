"""A server as an engine: what is refused at the start, and what a failing server does to requests. That it is an engine like
the others is tested in `test_engine_requests.py`; a real vLLM server, in `tests/integration/test_served.py`."""

import asyncio
import math
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import CACHED, FakeServer, fake_endpoint

from apr.checkpoints.folder import ModelFolder
from apr.cli import main
from apr.config import EngineConfig, EvalConfig, RlConfig
from apr.engines import endpoint
from apr.engines.build import build_engine
from apr.engines.endpoint import EndpointEngine
from apr.engines.tiny import TinyEngine
from apr.errors import CheckpointError, ConfigError, EngineError, EngineLostError
from apr.presets import load
from apr.threads.codec import read_traces
from apr.threads.engine import Completion, Engine, Request
from apr.threads.trace import EngineStop, StrandKey

WINDOW = 160


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(0)


@pytest.fixture
def server(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr(endpoint, "WAITS", (0.01, 0.01))
    with fake_endpoint(checkpoint, WINDOW) as server:
        yield server


def start(server: FakeServer, checkpoint: Path, max_context: int = WINDOW, **options: Any) -> Engine:
    return build_engine(
        EngineConfig(kind="endpoint", url=server.url, **{"timeout": 30, **options}),
        ModelFolder.open(checkpoint),
        max_context,
    )


def ask(name: str = "p", temperature: float = 1.0, max_tokens: int = 40) -> Request:
    return Request(StrandKey(0, name, 0, "r", 0), (1, 20, 21, 22), (5, 2), max_tokens, temperature, 7, priority=-1)


def run(engine: Engine, *requests: Request) -> list[Any]:
    async def together() -> list[Any]:
        try:
            return await asyncio.gather(*map(engine.generate, requests), return_exceptions=True)
        finally:
            await engine.close()

    return asyncio.run(together())


def expected(checkpoint: Path, request: Request) -> Completion:
    (completion,) = run(TinyEngine.from_folder(ModelFolder.open(checkpoint), max_context=WINDOW), request)
    assert isinstance(completion, Completion)
    return completion


def test_token_ids_go_in_and_out_and_nothing_restricts_sampling(server: FakeServer, checkpoint: Path) -> None:
    (completion,) = run(start(server, checkpoint), ask())
    own = expected(checkpoint, ask())
    assert (completion.ids, completion.logprobs, completion.stop) == (own.ids, own.logprobs, own.stop)
    assert completion.cached == CACHED
    body = server.requests[-1]
    assert body["prompt"] == [1, 20, 21, 22] and body["stop_token_ids"] == [5, 2] and body["seed"] == 7
    assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1.0, 0, 0.0, 1.0)
    assert body["ignore_eos"] and body["return_token_ids"] and "priority" not in body and "stop" not in body


def test_no_server(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"no server answers at http://127.0.0.1:9/v1/models.*vllm serve"):
        build_engine(EngineConfig(kind="endpoint", url="http://127.0.0.1:9"), ModelFolder.open(checkpoint), WINDOW)


def test_a_server_that_is_none_of_ours(server: FakeServer, checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="no other.*tiny"):
        start(server, checkpoint, model="other")
    with pytest.raises(ConfigError, match="max_model_len=160, and limits.context is 161"):
        start(server, checkpoint, max_context=161)
    server.models.append({**server.models[0], "id": "second"})
    with pytest.raises(ConfigError, match="several.*tiny, second"):
        start(server, checkpoint)
    assert run(start(server, checkpoint, model="second"), ask())[0].ids


def test_other_weights_or_another_vocabulary(
    server: FakeServer, checkpoint: Path, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="serves the weights of"):
        start(server, make_checkpoint(1))
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    assert run(start(server, copy), ask())[0].ids
    tokenizer = copy / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"+"', '"plus"'))
    with pytest.raises(ConfigError, match="another vocabulary"):
        start(server, copy)


def test_without_a_tokenizer_there_is_a_word_of_it(
    server: FakeServer, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.tokenizer = None
    assert run(start(server, checkpoint), ask())[0].ids
    assert "its vocabulary was not compared" in capsys.readouterr().err


def test_servers_that_lack_what_everything_rests_on(server: FakeServer, checkpoint: Path) -> None:
    server.token_ids = False
    with pytest.raises(ConfigError, match="return_token_ids"):
        start(server, checkpoint)
    server.token_ids, server.stops_late = True, True
    with pytest.raises(ConfigError, match="does not end a completion with the stop token"):
        start(server, checkpoint)
    server.failures = [401]
    with pytest.raises(ConfigError, match="VLLM_API_KEY"):
        start(server, checkpoint)


def test_raw_logprobs_serve_temperatures_at_which_they_are_right(server: FakeServer, checkpoint: Path) -> None:
    server.raw_logprobs = True
    whole, greedy, refused = run(start(server, checkpoint), ask("a"), ask("b", 0.0), ask("c", 0.7))
    assert whole.ids and greedy.ids
    assert isinstance(refused, EngineError) and "processed_logprobs" in str(refused)


@pytest.mark.parametrize("failure", ["drop", 503, 500, 429])
def test_what_fails_is_sent_again_under_the_same_seed(failure: str | int, server: FakeServer, checkpoint: Path) -> None:
    engine = start(server, checkpoint)
    before = len(server.requests)
    server.failures = [failure, failure]
    (completion,) = run(engine, ask())
    assert completion.ids == expected(checkpoint, ask()).ids
    assert len(server.requests) == before + 3
    assert asyncio.run(engine.metrics())["retries"] == 2


def test_retries_end(server: FakeServer, checkpoint: Path) -> None:
    engine = start(server, checkpoint)
    server.failures = ["drop", 503, "drop"]
    (lost,) = run(engine, ask())
    assert isinstance(lost, EngineLostError) and f"{server.url} failed 3 times" in str(lost)


@pytest.fixture
def deaf() -> Iterator[str]:
    """The address of a machine that lets nobody in: connections wait, and time out."""
    with socket.socket() as listening, ExitStack() as waiting:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(8):  # more than the queue takes
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("timeout", [600, 0.2])
def test_a_server_that_cannot_be_reached_in_time_is_asked_again(
    timeout: float, deaf: str, server: FakeServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "PATIENCE", 0.2 if timeout > 1 else 60)  # the shorter of the two counts
    engine = start(server, checkpoint, timeout=timeout)
    assert isinstance(engine, EndpointEngine)
    engine._server = replace(engine._server, url=deaf)
    (lost,) = run(engine, ask())
    assert isinstance(lost, EngineLostError) and f"could not connect to {deaf}, 3 times" in str(lost)
    assert "Connection timeout" in str(lost) and "sent no token" not in str(lost)
    assert asyncio.run(engine.metrics())["retries"] == 2


def test_a_server_that_is_gone_could_not_be_connected_to(server: FakeServer, checkpoint: Path) -> None:
    engine = start(server, checkpoint)
    assert isinstance(engine, EndpointEngine)
    engine._server = replace(engine._server, url="http://127.0.0.1:9")
    (lost,) = run(engine, ask())
    assert isinstance(lost, EngineLostError) and "could not connect to http://127.0.0.1:9, 3 times" in str(lost)


def test_a_refused_request_is_not_sent_again(server: FakeServer, checkpoint: Path) -> None:
    engine = start(server, checkpoint)
    server.failures = [400]
    (refused,) = run(engine, ask())
    assert type(refused) is EngineError and "told to fail" in str(refused)


@pytest.mark.parametrize("said", [None, math.nan])
def test_logprobs_that_are_no_numbers_fail_a_request_and_are_not_asked_for_again(
    said: float | None, server: FakeServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(server, checkpoint)
    before = len(server.requests)
    choice = server._choice

    def broken(*arguments: Any) -> dict[str, Any]:
        made = choice(*arguments)
        made["logprobs"]["token_logprobs"] = [said] * len(made["logprobs"]["token_logprobs"])
        return made

    monkeypatch.setattr(server, "_choice", broken)
    (failed,) = run(engine, ask())
    assert type(failed) is EngineError and "logits are not finite" in str(failed)
    assert len(server.requests) == before + 1
    with pytest.raises(CheckpointError, match="logprobs that are not finite"):
        start(server, checkpoint)


def test_silence_is_a_lost_request(server: FakeServer, checkpoint: Path) -> None:
    engine = start(server, checkpoint, timeout=1)
    server.failures = ["hang"]
    (lost,) = run(engine, ask())
    assert isinstance(lost, EngineLostError) and "sent no token for 1 s" in str(lost)


def test_abort_and_cancellation_end_the_request_at_the_server(server: FakeServer, checkpoint: Path) -> None:
    engine = start(server, checkpoint)
    long = [Request(StrandKey(0, name, 0, "r", 0), (1, 20), (), 150, 1.0, 3) for name in "abc"]

    async def play() -> tuple[Completion, Completion]:
        tasks = [asyncio.create_task(engine.generate(request)) for request in long]
        while server.sent < 20:
            await asyncio.sleep(0.001)
        await engine.abort(long[0].key)
        tasks[1].cancel()
        await engine.abort(long[2].key, 60)
        aborted, later = await tasks[0], await tasks[2]
        for _ in range(2000):
            if server.given_up == 3:
                break
            await asyncio.sleep(0.005)
        await engine.close()
        return aborted, later

    aborted, later = asyncio.run(play())
    assert server.given_up == 3
    assert later.stop is EngineStop.ABORT and 60 <= len(later.ids) < 150  # what was on its way comes as well
    assert aborted.stop is EngineStop.ABORT and 0 < len(aborted.ids) < 150
    assert aborted.ids == expected(checkpoint, long[0]).ids[: len(aborted.ids)]


def test_an_evaluation_goes_on_after_the_server_was_gone(
    server: FakeServer, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data.yaml").write_text(
        "env: {name: countdown, numbers: 2, low: 1, high: 9, target_low: 2, target_high: 20}\n"
        "train: 8\nvalidation: 2\ntest: 9\nsolvers: {sos_plus: {protocol: serial}}\n"
    )
    assert main(["data", "generate", "--config", str(tmp_path / "data.yaml"), f"out={tmp_path / 'data'}"]) == 0
    given = ["eval", f"data={tmp_path / 'data'}", f"checkpoint={checkpoint}", "protocol=serial", "limits.context=60"]
    served = [*given, f"out={tmp_path / 'served'}", "engine.kind=endpoint", f"engine.url={server.url}", "in_flight=1"]
    probes = 4
    server.failures = [None] * (probes + 5) + [503] * 9  # three sendings, and twice more under the same key
    assert main(served) == 1
    said = capsys.readouterr().err
    assert said.count(f"{server.url} failed 3 times") == 1 and "call the same command again to go on" in said
    assert main(served) == 0
    assert main([*given, f"out={tmp_path / 'tiny'}", "engine.kind=tiny"]) == 0
    theirs, ours = (
        [strand.sampled for trace in read_traces(tmp_path / name / "traces.jsonl.gz") for strand in trace.strands]
        for name in ("served", "tiny")
    )
    assert theirs == ours


def test_no_more_connections_than_asked_for(server: FakeServer, checkpoint: Path) -> None:
    engine = start(server, checkpoint, max_num_seqs=3)
    completions = run(engine, *(ask(str(i)) for i in range(20)))
    assert all(isinstance(completion, Completion) for completion in completions)
    assert 0 < server.most_at_once <= 3


def test_weights_cannot_be_sent(server: FakeServer, checkpoint: Path) -> None:
    engine = start(server, checkpoint)
    with pytest.raises(EngineError, match="belong to its server"):
        asyncio.run(engine.update_weights(checkpoint, 1))
    with pytest.raises(EngineError, match="cannot suspend"):
        asyncio.run(engine.pause(keep=True))


@pytest.mark.parametrize(
    ("kind", "overrides", "says"),
    [
        (RlConfig, ["engine.kind=endpoint", "engine.url=http://x:1"], "cannot take new weights"),
        (EvalConfig, ["engine.kind=endpoint"], "needs engine.url.*such as engine.url=http://localhost:8000"),
        (EvalConfig, ["engine.kind=endpoint", "engine.model=x"], "needs engine.url"),
        (EvalConfig, ["engine.url=http://x:1"], "set engine.kind=endpoint as well, or leave them out"),
        (EvalConfig, ["engine.model=x"], "set engine.kind=endpoint as well, or leave them out"),
        (EvalConfig, ["engine.kind=endpoint", "engine.url=http://x:1/v1"], "without a path"),
        (EvalConfig, ["engine.kind=endpoint", "engine.url=http://x:1", "cluster.address=local"], "is a server already"),
    ],
)
def test_configurations_that_cannot_work(kind: Any, overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(kind, [], overrides)

"""A real vLLM server on the CPU with an exported folder: evaluation through it makes the traces that vLLM in our own process
makes, token for token."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from apr.cli import main
from apr.threads.codec import read_traces
from apr.threads.trace import Trace

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
WINDOW = 128
PATIENCE = 300  # seconds for the server to start; 40 on free cores
ENVIRONMENT = {  # as `apr.engines.vllm` sets it in its own process
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT),
}  # fmt: skip
FLAGS = [  # those of docs/export.md
    "--served-model-name", "spawn_join", "--dtype", "float32", "--max-model-len", str(WINDOW), "--enforce-eager",
    "--block-size", "32", "--kv-cache-memory-bytes", str(256 << 20), "--logprobs-mode", "processed_logprobs",
    "--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192", "--enable-prompt-tokens-details",
]  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "spawn_join"
    assert main(["export", str(ROOT / "checkpoints" / "tiny_cpu" / "spawn_join"), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("served") / "data"
    assert main(["data", "generate", "--config", "tiny_cpu", "train=8", "validation=2", "test=24", f"out={out}"]) == 0
    return out


@pytest.fixture(scope="module")
def server(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(exported), *FLAGS]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT},
        )  # fmt: skip
    try:
        _await(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _await(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
    pytest.fail(f"the server did not start; the end of its log:\n{log.read_text()[-3000:]}")


def arguments(exported: Path, data: Path, out: Path, *more: str) -> list[str]:
    return ["eval", "--config", "tiny_cpu", f"data={data}", f"checkpoint={exported}", f"out={out}", *more]


def traces(folder: Path) -> list[Trace]:
    return list(read_traces(folder / "traces.jsonl.gz"))


@pytest.mark.parametrize("sampling", [[], ["temperature=0.7", "samples=2"]], ids=["greedy", "sampled"])
def test_traces_through_the_endpoint_are_those_of_vllm_in_this_process(
    sampling: list[str], server: str, exported: Path, data: Path, tmp_path: Path
) -> None:
    endpoint = ["engine.kind=endpoint", f"engine.url={server}"]
    assert main(arguments(exported, data, tmp_path / "endpoint", *endpoint, *sampling)) == 0
    command = [sys.executable, "-m", "apr.cli", *arguments(exported, data, tmp_path / "vllm", *sampling)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    served, own = traces(tmp_path / "endpoint"), traces(tmp_path / "vllm")
    assert len(served) == len(own) == (48 if sampling else 24)
    assert sum(len(trace.threads) for trace in served) > 2 * len(served)  # it does spawn
    for one, other in zip(served, own):
        assert [thread.stop for thread in one.threads] == [thread.stop for thread in other.threads]
        assert one.answer == other.answer and one.correct == other.correct
        for strand, twin in zip(one.strands, other.strands, strict=True):
            assert (strand.id, strand.injected, strand.sampled) == (twin.id, twin.injected, twin.sampled)
            assert strand.logprobs == pytest.approx(twin.logprobs, abs=1e-4)


def test_a_context_longer_than_the_server_has_is_refused(
    server: str, exported: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = exported / "config.json"
    before = config.read_text()
    config.write_text(before.replace('"max_position_embeddings": 128', '"max_position_embeddings": 256'))
    try:
        more = ["engine.kind=endpoint", f"engine.url={server}", "limits.context=200"]
        assert main(arguments(exported, data, tmp_path / "long", *more)) == 2
    finally:
        config.write_text(before)
    assert "max_model_len=128, and limits.context is 200" in capsys.readouterr().err

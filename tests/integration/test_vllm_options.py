"""vLLM with one model over two processes, and in bfloat16, as the configuration asks for it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from apr.checkpoints.folder import ModelFolder
from apr.config import EngineConfig
from apr.engines.build import build_engine
from apr.engines.tiny import TinyEngine
from apr.threads.engine import Completion, Engine, Request
from apr.threads.trace import StrandKey

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

WINDOW = 160
REQUESTS = [
    Request(StrandKey(0, str(i), 0, "r", 0), (1, *range(20, 40 + 7 * i)), (), 60, 0.0, i) for i in range(4)
]  # fmt: skip


async def sample(engine: Engine) -> list[Completion]:
    return list(await asyncio.gather(*(engine.generate(request) for request in REQUESTS)))


async def update_under_way(engine: Engine, source: Any) -> list[Completion]:
    """The weights change when every request has a few tokens."""
    tasks = [asyncio.create_task(engine.generate(request)) for request in REQUESTS]
    for _ in range(20):
        await asyncio.sleep(0)
    await engine.pause(keep=True)
    await engine.update_weights(source, 1)
    await engine.resume()
    return list(await asyncio.gather(*tasks))


def gap(ones: Sequence[Completion], others: Sequence[Completion]) -> float:
    """The largest difference of logprobs as far as the tokens are the same."""
    found = 0.0
    for one, other in zip(ones, others):
        for i, (a, b) in enumerate(zip(one.logprobs, other.logprobs)):
            if one.ids[: i + 1] == other.ids[: i + 1]:
                found = max(found, abs(a - b))
    return found


def test_two_processes_sample_as_one_and_take_new_weights_and_end(
    make_checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    start, other = make_checkpoint(0), make_checkpoint(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the engine sets it: put back afterwards
    before = set(psutil.Process().children(recursive=True))
    engine = build_engine(EngineConfig(tensor_parallel=2, threads=2, kv_cache_mib=16), ModelFolder.open(start), WINDOW)

    async def play() -> None:
        alone = TinyEngine.from_folder(ModelFolder.open(start), max_context=WINDOW)
        assert [one.ids for one in await sample(engine)] == [one.ids for one in await sample(alone)]
        weights = load_file(other / "model.safetensors")
        done = await update_under_way(engine, weights)
        assert all([span.version for span in one.versions] == [0, 1] for one in done)
        await alone.update_weights(weights, 1)
        again, expected = await sample(engine), await sample(alone)
        assert [one.ids for one in again] == [one.ids for one in expected]
        assert gap(again, expected) < 1e-4
        for one, request in zip(done, REQUESTS):  # the same context, computed by the new weights alone
            cut = one.versions[1].start
            context = request.ids + one.ids[:cut]
            rest = await alone.generate(Request(request.key, context, (), 60 - cut, 0.0, 0))
            assert one.ids[cut:] == rest.ids
            assert one.logprobs[cut:] == pytest.approx(rest.logprobs, abs=1e-4)

    workers: set[psutil.Process] = set()
    try:
        workers = set(psutil.Process().children(recursive=True)) - before
        assert len(workers) >= 2
        asyncio.run(play())
    finally:
        asyncio.run(engine.close())
        left = psutil.wait_procs([worker for worker in workers if "resource_tracker" not in name_of(worker)], 60)[1]
    assert not left


def name_of(process: psutil.Process) -> str:
    """Its command line; nothing if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def test_bfloat16_arrives(make_checkpoint: Any) -> None:
    folder: Path = make_checkpoint(0)
    engine = build_engine(EngineConfig(dtype="bfloat16", threads=2, kv_cache_mib=16), ModelFolder.open(folder), WINDOW)

    async def play() -> float:
        try:
            return gap(
                await sample(engine), await sample(TinyEngine.from_folder(ModelFolder.open(folder), max_context=WINDOW))
            )
        finally:
            await engine.close()

    assert 1e-4 < asyncio.run(play()) < 0.5

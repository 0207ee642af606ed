"""Engines under the contract (`apr.threads.engine.Engine`), and what its tests ask of them. The fixture is in conftest.py."""

import asyncio
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import FakeServer

from apr.checkpoints.folder import ModelFolder
from apr.engines.scripted import ScriptedEngine
from apr.engines.weights import WEIGHTS_FILE, mark_complete
from apr.seeds import derive_rng
from apr.threads.engine import Completion, Engine, Request
from apr.threads.trace import StrandKey

WINDOW = 160
KINDS = ["scripted", "tiny", "shared", "pool", "remote", "endpoint", pytest.param("vllm", marks=pytest.mark.vllm)]
PROMPT = (1, 20, 21, 22, 23, 24, 25)


@dataclass
class Case:
    """An engine under test; `weights(i)` is the folder of its i-th policy, 0 the one it starts with."""

    kind: str
    engine: Engine
    weights: Callable[[int], Path]
    scratch: Path
    server: FakeServer | None = None

    @property
    def neural(self) -> bool:
        return self.kind != "scripted"

    def written(self, policy: int, version: int) -> Path:
        """A folder with the i-th policy as a learner writes it, as `version`."""
        folder = self.scratch / f"{policy}_as_{version}"
        if not folder.exists():
            folder.mkdir()
            shutil.copyfile(self.weights(policy) / WEIGHTS_FILE, folder / WEIGHTS_FILE)
            mark_complete(folder, version)
        return folder

    def needs_weights(self) -> None:
        """Skip the test if the engine takes no weights, and so suspends no requests for them."""
        if self.server is not None:
            pytest.skip("the weights of an endpoint belong to its server")

    async def under_way(self, number: int) -> None:
        """Let requests in flight go on for some turns of the event loop; those of a server until it has sent some tokens."""
        await turns(number)
        if self.server is not None:
            enough = self.server.sent + number
            while self.server.sent < enough:
                await asyncio.sleep(0.001)


def _babble(request: Request) -> Sequence[int]:
    """A script that answers every request, at any length, by its ids alone."""
    return derive_rng(0, "babble", *request.ids).choices(range(8, 64), k=400)


def _remote(checkpoint: Path) -> Engine:
    """The tiny engine in a Ray actor of a local cluster, which ends with this process."""
    import ray

    from apr.config import ClusterConfig, EngineConfig
    from apr.engines.cluster import start_engine

    ray.init("local", num_cpus=1, include_dashboard=False, logging_level="warning", ignore_reinit_error=True)
    config, cluster = EngineConfig(kind="tiny", threads=1), ClusterConfig(address="local", timeout=120)
    return asyncio.run(start_engine(config, checkpoint, WINDOW, 0, cluster))


def _pool(checkpoint: Path) -> Engine:
    """Two tiny engines behind one seam."""
    from apr.engines.pool import EnginePool
    from apr.engines.tiny import TinyEngine

    async def make(index: int) -> Engine:
        return TinyEngine.from_folder(ModelFolder.open(checkpoint), max_context=WINDOW)

    return asyncio.run(EnginePool.start(make, 2))


def endpoint_engine(server: FakeServer, checkpoint: Path) -> Engine:
    from apr.config import EngineConfig
    from apr.engines.build import build_engine

    return build_engine(EngineConfig(kind="endpoint", url=server.url, timeout=60), ModelFolder.open(checkpoint), WINDOW)


def make_engine(kind: str, checkpoint: Callable[[int], Path]) -> Engine:
    if kind == "remote":
        return _remote(checkpoint(0))
    if kind == "pool":
        return _pool(checkpoint(0))
    if kind == "scripted":
        return ScriptedEngine(_babble, max_context=WINDOW, delays=lambda request: len(request.ids))
    if kind == "tiny":
        from apr.engines.tiny import TinyEngine

        return TinyEngine.from_folder(ModelFolder.open(checkpoint(0)), max_context=WINDOW)
    if kind == "shared":
        from apr.engines.shared import SharedEngine

        return SharedEngine.from_folder(ModelFolder.open(checkpoint(0)), max_context=WINDOW, cache_bytes=8 << 20)
    from apr.engines.vllm import VllmEngine

    return VllmEngine(
        ModelFolder.open(checkpoint(0)), max_context=WINDOW, seed=0, max_num_seqs=64, kv_cache_bytes=64 << 20
    )


def ask(
    name: str = "p",
    ids: Sequence[int] = PROMPT,
    stop_ids: Sequence[int] = (),
    max_tokens: int = 12,
    temperature: float = 1.0,
    seed: int = 5,
) -> Request:
    return Request(StrandKey(0, name, 0, "r", 0), tuple(ids), tuple(stop_ids), max_tokens, temperature, seed)


def run(case: Case, *requests: Request) -> list[Completion]:
    async def together() -> list[Completion]:
        return list(await asyncio.gather(*(case.engine.generate(request) for request in requests)))

    return asyncio.run(together())


async def update(engine: Engine, source: Any, version: int, keep: bool = False) -> None:
    await engine.pause(keep)
    await engine.update_weights(source, version)
    await engine.resume()


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def same(a: Completion, b: Completion) -> bool:
    """Equal tokens; logprobs equal up to what batching may change."""
    return a.ids == b.ids and a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def tensors_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def recompute(folder: Path, prompt: Sequence[int], sampled: Sequence[int], temperature: float) -> list[float]:
    """The logprobs of `sampled` after `prompt`, by one forward pass of transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *sampled]])).logits[0, len(prompt) - 1 : -1]
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    return logprobs.gather(1, torch.tensor(sampled)[:, None])[:, 0].tolist()

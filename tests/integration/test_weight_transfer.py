"""vLLM's own weight transfer, without the GPUs that it is for: everything is real but the wire.

A learner and a vLLM engine in this process, with the actor's methods called directly. vLLM's trainer side declares, packs and
sends; its engine's side receives, unpacks and loads. What moves bytes between two GPUs is replaced by what moves them here:
a queue in place of NCCL's broadcast, the tensor itself in place of a CUDA IPC handle.
"""

import asyncio
import queue
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
import torch

from apr.checkpoints.folder import ModelFolder
from apr.config import LearnerConfig, LoraConfig, RlConfig
from apr.engines.cluster import EngineActor
from apr.engines.pool import EnginePool
from apr.engines.weights import Arrived
from apr.errors import EngineError, EngineLostError
from apr.presets import check
from apr.threads.engine import Completion, Engine, Request
from apr.threads.trace import StrandKey, VersionSpan
from rl import launch, weight_transfer
from rl.learner import Learner
from rl.parts import Parts
from rl.weight_transfer import Client, Source, TransferSync, distinct

PROMPT = (1, *range(20, 70))
SESSION = ["start_weight_update", "update_weights", "finish_weight_update"]


class Wire:
    """In place of NCCL's group: `broadcast` puts what the trainer has, and fills what the engine has."""

    def __init__(self, sends: bool, packets: queue.Queue[torch.Tensor]) -> None:
        self.sends = sends
        self.packets = packets

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        if self.sends:
            self.packets.put(tensor.clone())
        else:
            tensor.copy_(self.packets.get(timeout=60))

    def destroy(self) -> None:
        """There is no group to leave."""


class Actor:
    """An engine's actor as the learner sees it, with the calls that it had. `ray.get` has nothing to wait for."""

    def __init__(self, engine: Any) -> None:
        self.inside = EngineActor()
        self.inside.engine = engine
        self.calls: list[str] = []
        self.arguments: list[Any] = []
        self.expect = SimpleNamespace(remote=lambda shapes: self._call("expect", self.inside.expect(shapes)))
        self.transfer = SimpleNamespace(remote=self._transfer)

    def _transfer(self, method: str, arguments: Any) -> None:
        self.arguments.append(arguments)
        self._call(method, self.inside.transfer(method, arguments))

    def _call(self, name: str, work: Any) -> None:
        self.calls.append(name)
        asyncio.run(work)


@pytest.fixture(scope="module", params=["nccl", "ipc"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The wire of a backend replaced, and no more; CUDA's streams and devices answer as if there were one."""
    from vllm.distributed.weight_transfer import ipc_engine, nccl_engine, packed_tensor

    packets: queue.Queue[torch.Tensor] = queue.Queue()
    stream = SimpleNamespace(synchronize=lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("apr.engines.vllm.check_cuda", lambda *_: None)
        patch.setattr(weight_transfer, "check_cuda", lambda *_: None)
        patch.setattr(weight_transfer.ray, "get", lambda calls: calls)
        patch.setattr(weight_transfer, "own_address", lambda: ("127.0.0.1", 1))
        patch.setattr(nccl_engine, "open_trainer_endpoint", lambda info: Wire(True, packets))
        patch.setattr(nccl_engine, "worker_init_process_group", lambda info, config: Wire(False, packets))
        patch.setattr(packed_tensor, "_get_streams", lambda device, number: (stream,) * number)
        patch.setattr(ipc_engine, "reduce_tensor", lambda tensor: (None, (tensor, *range(6))))
        patch.setattr(ipc_engine, "rebuild_cuda_tensor", lambda tensor, *_: tensor)
        patch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="the one"))
        patch.setattr(torch.cuda, "ipc_collect", lambda: None)
        patch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        patch.setattr(torch.accelerator, "current_device_index", lambda: 0)
        patch.setattr(torch.accelerator, "synchronize", lambda: None)
        yield request.param


@pytest.fixture(scope="module")
def pool(backend: str, make_checkpoint: Callable[..., Path]) -> Iterator[EnginePool]:
    from apr.engines.vllm import VllmEngine

    engine: Any = VllmEngine(
        ModelFolder.open(make_checkpoint(0, tied=True)),
        max_context=128,
        seed=0,
        kv_cache_bytes=8 << 20,
        transfer=backend,
    )
    engine.actor = Actor(engine)

    async def make(index: int) -> Engine:
        made: Engine = engine
        return made

    pool = asyncio.run(EnginePool.start(make, 1, restarts=0))
    yield pool
    asyncio.run(pool.close())


def actor(pool: EnginePool) -> Actor:
    (engine,) = pool.engines()
    found: Actor = engine.actor  # type: ignore[attr-defined]
    return found


def greedy(pool: EnginePool, name: str) -> Completion:
    return asyncio.run(pool.generate(Request(StrandKey(0, name, 0, "r", 0), PROMPT, (), 16, 0.0, 1)))


def agree(learner: Learner, completion: Completion) -> None:
    """The completion is the learner's own greedy one, with its logprobs."""
    with torch.no_grad():
        logits = learner.model(input_ids=torch.tensor([PROMPT + completion.ids])).logits[0, len(PROMPT) - 1 : -1]
    logprobs = torch.log_softmax(logits, dim=-1)
    assert logprobs.argmax(dim=-1).tolist() == list(completion.ids)
    torch.testing.assert_close(logprobs.max(dim=-1).values, torch.tensor(completion.logprobs), atol=1e-4, rtol=0)


@pytest.mark.vllm
@pytest.mark.parametrize("lora", [False, True], ids=["full", "adapters"])
def test_the_engine_has_the_learners_weights_after_a_push(
    backend: str, pool: EnginePool, make_checkpoint: Callable[..., Path], lora: bool
) -> None:
    config = LearnerConfig(threads=1, lora=LoraConfig(rank=4) if lora else None)
    learner = Learner(make_checkpoint(1, tied=True), config, temperature=1.0)
    sync, here, calls = TransferSync(backend, 1, keep=False), actor(pool), []
    for version in (3, 4):
        before = greedy(pool, "before")
        here.calls.clear()
        asyncio.run(sync.push(learner, pool, version))
        calls.append(list(here.calls))
        after = greedy(pool, "after")
        assert pool.version == version and after.versions == (VersionSpan(version, 0, 16),)
        assert after.cached == 0 and after.logprobs != before.logprobs
        agree(learner, after)
        assert greedy(pool, "again").cached > 0
        with torch.no_grad():
            for parameter in learner.model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    meeting = ["expect", "shutdown_weight_transfer_engine", "init_weight_transfer_engine"]
    assert calls == [[*meeting, *SESSION], SESSION]


@pytest.mark.vllm
def test_another_learner_meets_the_engines_anew_and_one_of_another_model_is_refused(
    backend: str, pool: EnginePool, make_checkpoint: Callable[..., Path]
) -> None:
    sync, here = TransferSync(backend, 1, keep=True), actor(pool)
    learners = [Learner(make_checkpoint(0, tied=True), LearnerConfig(threads=1), temperature=1.0) for _ in range(2)]
    for version, learner in enumerate(learners, start=7):
        here.calls.clear()
        asyncio.run(sync.push(learner, pool, version))
        assert "init_weight_transfer_engine" in here.calls and here.calls[-3:] == SESSION
        agree(learner, greedy(pool, "p"))
    learners[0].model.model.norm.weight = torch.nn.Parameter(torch.ones(32))
    here.calls.clear()
    with pytest.raises(EngineError, match=r"model\.norm\.weight"):
        asyncio.run(sync.push(learners[0], pool, 9))
    assert here.calls == ["expect"] and pool.version == 8
    asyncio.run(pool.resume())


@pytest.mark.vllm
def test_a_version_without_weights_is_refused(pool: EnginePool) -> None:
    """As of an engine that was made after they were sent."""
    version = pool.version
    with pytest.raises(EngineError, match="no weights came for version 99"):
        asyncio.run(pool.update_weights(Arrived(), 99))
    assert pool.version == version


def test_each_process_of_each_engine_has_a_rank_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    engine = SimpleNamespace(transfer=SimpleNamespace(remote=lambda method, arguments: sent.append(arguments)))
    monkeypatch.setattr(weight_transfer.ray, "get", lambda calls: calls)
    Client([engine] * 3, workers=2).init_weight_transfer_engine({"rank_offset": 1, "world_size": 7})
    assert [one["init_info"] for one in sent] == [{"rank_offset": 1 + 2 * i, "world_size": 7} for i in range(3)]


def test_an_engine_that_dies_in_a_transfer_is_told_as_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import ActorDiedError

    def lost(calls: Any) -> None:
        raise ActorDiedError

    engine = SimpleNamespace(transfer=SimpleNamespace(remote=lambda method, arguments: None))
    monkeypatch.setattr(weight_transfer.ray, "get", lost)
    with pytest.raises(EngineLostError, match=r"in a weight transfer \(start_weight_update\)"):
        Client([engine], workers=1).start_weight_update()


def test_what_is_declared_is_what_is_sent_and_each_tensor_once() -> None:
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

    shared, other = torch.ones(4, 2), torch.zeros(3, dtype=torch.bfloat16)
    source = Source()
    source.tensors = distinct({"embed": shared, "norm": other, "lm_head": shared})
    assert [(one.name, one.dtype, one.shape) for one in source.metadata()] == [
        ("embed", torch.float32, (4, 2)), ("norm", torch.bfloat16, (3,)),
    ]  # fmt: skip
    for _ in range(2):  # it is iterated anew for each sync
        sent = list(NCCLTrainerWeightTransferEngine._checked_iter(source, source.metadata()))
        assert [name for name, _ in sent] == ["embed", "norm"]


def drive(weight_sync: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any, int]]:
    """The engine, the learner and the first step of each start of a loop that loses its engines at first."""
    starts = []

    async def run(config: Any, parts: Parts, folder: Path, start: int, stopping: Any) -> int:
        starts.append((parts.engine, parts.learner, start))
        if len(starts) == 1:
            raise EngineLostError("gone")
        return 7

    async def replace(start_from: Path, resumed: bool) -> Any:
        assert (start_from.name, resumed) == ("step", True)
        return AsyncMock(), "another learner"

    gpus = {"address": "local", "engine_gpus": 1, "learner_gpus": 1}
    config = check(RlConfig, {"weight_sync": weight_sync, "cluster": gpus, "tensorboard": False, "out": tmp_path}, "")
    monkeypatch.setattr(launch.loop, "run", run)
    monkeypatch.setattr(launch.checkpoint, "latest", lambda out: (tmp_path / "step", 3))
    nothing: Any = None
    parts = Parts(nothing, nothing, nothing, AsyncMock(), nothing, nothing, nothing, [], [])
    assert asyncio.run(launch._drive(config, parts, tmp_path, 0, replace, 0)) == 7
    return starts


def test_when_engines_are_lost_to_a_transfer_all_start_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = drive("nccl", tmp_path, monkeypatch)
    assert (first[2], second[1:]) == (0, ("another learner", 3)) and first[0] is not second[0]


def test_engines_that_their_pool_replaces_end_the_run_when_no_restart_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineLostError, match="gone"):
        drive("tensors", tmp_path, monkeypatch)

"""vLLM's own weight transfer (0.32) between Ray actors: from the learner's GPU to the engines', past the object store.

    nccl   a broadcast to engines on other GPUs, in one group: the learner's first rank, then each process of each engine
    ipc    CUDA IPC: one engine on the learner's own GPU, in another process, reads the learner's tensors where they are

    driver                 first rank of the learner      each engine's actor
    pause                                                 pause
    send                   vLLM's trainer engine          start_weight_update, update_weights, finish_weight_update
    update_weights         (nothing)                      takes the version; clears its prefix cache, and checks that
    resume                                                resume

The weights of now are on the learner's GPU alone, so that an engine made later could not be brought to them: with these two
the pool makes no engine again. Those that are left go on; when none is, or one dies in the midst of a transfer, engines and
learner start again from the newest checkpoint.

Neither way has run on a GPU yet. What a CPU can show is tested: the order of calls, what is declared and sent, ranks, refusals.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import ray
from ray.exceptions import RayError, RayTaskError
from torch import Tensor

from apr.engines.cluster import RemoteEngine, cause_of
from apr.engines.placement import own_address
from apr.engines.pool import EnginePool
from apr.engines.weights import Arrived, check_cuda
from apr.errors import AprError, EngineLostError
from apr.threads.engine import Engine
from rl.parts import LearnerApi


class TransferSync:
    """The weight sync of a run on Ray. `workers`: processes of each engine (`engine.tensor_parallel`)."""

    def __init__(self, backend: str, workers: int, keep: bool) -> None:
        self.backend = backend
        self.workers = workers
        self.keep = keep
        self._met: tuple[object, list[Any]] | None = None  # the learner and the actors that know each other

    async def push(self, learner: LearnerApi, engine: Engine, version: int) -> float:
        started = time.monotonic()
        await engine.pause(self.keep)
        actors = [cast(RemoteEngine, one).actor for one in cast(EnginePool, engine).engines()]
        if self._met != (learner, actors):  # the first push, or another learner, or fewer engines
            await learner.meet(self.backend, actors, self.workers)
            self._met = learner, actors
        await learner.send()
        await engine.update_weights(Arrived(), version)
        await engine.resume()
        return time.monotonic() - started


class Sender:
    """The first rank's side: vLLM's trainer engine, over the actors of `engines`. `tensors` are those that each `send` will
    have: names, dtypes and shapes.

    Raises `ResourceError` without a CUDA device, `EngineError` if the engines serve another model.
    """

    def __init__(self, backend: str, engines: Sequence[Any], workers: int, tensors: Mapping[str, Tensor]) -> None:
        check_cuda(backend, "the learner's process", "cluster.learner_gpus")
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

        client = Client(engines, workers)
        client.expect({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        client.forget()
        self._source = Source()
        self._trainer = WeightTransferTrainerFactory.trainer_init(
            _init_info(backend, 1 + workers * len(engines)), client=client, source=self._source
        )

    def send(self, tensors: Mapping[str, Tensor]) -> None:
        """Return when all engines have `tensors`. Raises `EngineLostError` if one is lost by that."""
        self._source.tensors = tensors
        try:
            self._trainer.send_weights()
        finally:
            self._source.tensors = {}  # the learner will change them

    def close(self) -> None:
        self._trainer.shutdown()


def _init_info(backend: str, processes: int) -> Any:
    """What vLLM's trainer engine begins with. Over IPC nothing is packed: that would copy what can be read in place."""
    if backend == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        return IPCTrainerInitInfo(rank=0)
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    address, port = own_address()
    return NCCLTrainerInitInfo(master_address=address, master_port=port, world_size=processes, rank=0)


class Source:
    """vLLM's `WeightSource`, which it takes by its methods: what one sync sends, declared and then iterated, in one order."""

    def __init__(self) -> None:
        self.tensors: Mapping[str, Tensor] = {}

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer import ParamMeta

        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self.tensors.items())


class Client:
    """vLLM's `VLLMWeightSyncClient` over our engines' actors. Its own one for Ray knows a single engine's ranks only.

    Each call waits for all engines. Raises what an engine raised of ours, else `EngineLostError`.
    """

    def __init__(self, engines: Sequence[Any], workers: int) -> None:
        self._engines = engines
        self._workers = workers

    def expect(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise `EngineError` unless these are the weights of the engines' model: in the midst of a broadcast nobody could."""
        self._wait("expect", [engine.expect.remote(shapes) for engine in self._engines])

    def forget(self) -> None:
        """Let the engines leave a group that they are in, whose learner is gone or has fewer engines now."""
        self._all("shutdown_weight_transfer_engine", [{}] * len(self._engines))

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        each = [dict(init_info) for _ in self._engines]
        if "rank_offset" in init_info:  # of an engine's first process; vLLM counts on from there
            for index, info in enumerate(each):
                info["rank_offset"] = 1 + index * self._workers
        self._all("init_weight_transfer_engine", [{"init_info": info} for info in each])

    def start_weight_update(self) -> None:
        self._all("start_weight_update", [{}] * len(self._engines))

    def update_weights(self, update_info: Any) -> None:
        self._all("update_weights", [{"update_info": update_info}] * len(self._engines))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all("finish_weight_update", [{}] * len(self._engines))

    def _all(self, method: str, arguments: Sequence[Mapping[str, Any]]) -> None:
        calls = [engine.transfer.remote(method, given) for engine, given in zip(self._engines, arguments)]
        self._wait(method, calls)

    def _wait(self, method: str, calls: Sequence[Any]) -> None:
        try:
            ray.get(calls)
        except RayError as error:
            if isinstance(error, RayTaskError) and isinstance(cause := cause_of(error), AprError):
                raise cause from error
            raise EngineLostError(f"an engine was lost in a weight transfer ({method}): {error}") from error


def distinct(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with each tensor once, under its first name: that of a model with tied embeddings lists one of them twice."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in state.items():
        found.setdefault(tensor.data_ptr(), (name, tensor.detach()))
    return dict(found.values())

"""vLLM in this process, on CPU and GPU alike: the engine that training and evaluation use. All vLLM calls are here.

vLLM's V1 `LLMEngine` is driven by `add_request` and `step`: while requests are in flight, a pump task calls `step` in
the caller's event loop and lets the loop run between steps. So the order of everything is deterministic, and there is
no second process to lose or to orphan; with `tensor_parallel` above 1 there are that many, which only compute, and which
end with this one.

What in-process vLLM does to its process: it seeds the global random number generators, makes
`torch.set_num_threads` a no-op (on CPU), and initialises torch.distributed. One engine at a time per process; another
may be made after `close`.

Sampling is seeded per request, and vLLM draws from the full softmax at the request's temperature (no top-p, no
top-k); `processed_logprobs` are the logprobs of that distribution. A greedy request is reported at temperature 1.
Which other requests are in the batch still changes floats in their last bits, and so, rarely, a sampled token.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.checkpoints.folder import ModelFolder
from apr.engines.local import Flight, LocalEngine
from apr.engines.weights import Arrived, check_cuda, check_shapes, check_weights, read_weights
from apr.errors import CheckpointError, ConfigError, EngineError, EngineLostError, ResourceError
from apr.threads.engine import Completion, Request
from apr.threads.trace import EngineStop

if TYPE_CHECKING:
    import torch

_SETTLE_TURNS = 8  # event-loop turns from a finished request to the requests that its caller makes of it
_ANSWERS_TO_ALL = "llvmlite.binding.ffi"
_MIN_TEMPERATURE = 0.01  # vLLM samples at this when asked for less


class VllmEngine(LocalEngine):
    """The folder of a model behind vLLM.

    `max_context`: tokens in one context, prompt and sampled. `max_num_seqs`: requests decoded at once; more wait.
    `kv_cache_bytes`: memory for keys and values, shared by all of them and the prefix cache. `block_size`: tokens in
    a block, the grain of prefix sharing; on CPU a multiple of 32. `dtype`: of weights and compute; logprobs are float32.
    `transfer`: nccl or ipc, where a learner sends weights from GPU to GPU (`rl.weight_transfer`).
    `tensor_parallel`: processes, each with a device and `kv_cache_bytes` of its own, that share every layer. `threads`:
    torch threads of each, fixed for the whole process by its first engine (None: as they are). `verbose`: let vLLM log.

    Raises `CheckpointError` if the model cannot be served, `ResourceError` for too little memory.
    """

    def __init__(
        self,
        model: ModelFolder,
        *,
        max_context: int,
        seed: int,
        max_num_seqs: int = 256,
        kv_cache_bytes: int = 512 << 20,
        block_size: int = 32,
        dtype: str = "float32",
        tensor_parallel: int = 1,
        transfer: str | None = None,
        version: int = 0,
        threads: int | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(max_context, version)
        if transfer is not None:
            check_cuda(transfer, "the engine's process", "cluster.engine_gpus")
        _set_environment(verbose, tensor_parallel, threads)
        self._shapes = model.shapes
        self._check_window(model)
        self._folder = tempfile.TemporaryDirectory(
            prefix="apr_vllm_"
        )  # its sockets and the like, which it leaves behind
        import torch
        from vllm import EngineArgs, LLMEngine
        from vllm.platforms import current_platform

        if current_platform.is_cpu():  # else the first request waits for a C++ compiler, to count ranks nobody reads
            current_platform.simple_compile_backend = "eager"
            _check_heads(model.path)
        elif tensor_parallel > (devices := current_platform.device_count()):
            raise ResourceError(
                f"engine.tensor_parallel={tensor_parallel} needs as many devices, and this process sees {devices}: lower "
                "it, or give the engine more (cluster.engine_gpus)"
            )
        if threads is not None:
            torch.set_num_threads(threads)
            if torch.get_num_threads() != threads:
                raise ResourceError(
                    f"{threads} torch threads were asked for, but an earlier engine of this process fixed them at "
                    f"{torch.get_num_threads()}: ask for as many, or start this engine in a process of its own"
                )
        arguments = EngineArgs(
            model=str(model.path), skip_tokenizer_init=True, trust_remote_code=False, dtype=dtype, seed=seed % 2**31,
            tensor_parallel_size=tensor_parallel, distributed_executor_backend="mp" if tensor_parallel > 1 else None,
            max_model_len=max_context, max_num_seqs=max_num_seqs, max_num_batched_tokens=max(8192, max_context),
            enable_chunked_prefill=False,  # a part of a prompt would draw from its request's generator
            kv_cache_memory_bytes=kv_cache_bytes, block_size=block_size, enable_prefix_caching=True,
            gpu_memory_utilization=0.01,  # unused beside the line above, but vLLM would not start unless so much is free
            enforce_eager=True, async_scheduling=False, scheduling_policy="priority",
            logprobs_mode="processed_logprobs", disable_log_stats=True, use_tqdm_on_load=verbose,
            weight_transfer_config={"backend": transfer} if transfer is not None else None,
        )  # fmt: skip
        try:
            with _without_llvmlite(), _temporary_files_in(self._folder.name):
                self._engine: Any = LLMEngine.from_engine_args(arguments)
        except (MemoryError, ValueError, RuntimeError, OSError) as error:
            raise _explain(error, model.path, kv_cache_bytes) from error
        self._vocabulary = self._engine.model_config.get_vocab_size()
        self._by_name: dict[str, Flight] = {}
        self._requests: dict[Flight, Any] = {}  # as vLLM's scheduler keeps them
        self._order = itertools.count()
        self._pump_task: asyncio.Task[None] | None = None
        self._arrived = False  # weights by vLLM's own transfer, of which the version is not known yet
        self._counters["steps"] = 0.0
        # What vLLM and torch made stays as long as the engine: looking through it took a third of the time between steps.
        gc.collect()
        gc.freeze()

    async def close(self) -> None:
        await super().close()
        gc.unfreeze()

    def _check(self, request: Request) -> None:
        super()._check(request)
        if 0 < request.temperature < _MIN_TEMPERATURE:
            raise EngineError(
                f"{request.key}: temperature {request.temperature} cannot be sampled exactly: "
                f"use 0 (greedy) or at least {_MIN_TEMPERATURE}"
            )

    def _begin(self, flight: Flight) -> None:
        from vllm.exceptions import VLLMValidationError
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        request = flight.request
        order = next(self._order)
        params = SamplingParams(
            temperature=request.temperature, top_p=1.0, top_k=0, max_tokens=request.max_tokens,
            seed=request.seed if request.temperature > 0 else None,
            stop_token_ids=list(request.stop_ids), ignore_eos=True,
            logprobs=0, flat_logprobs=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )  # fmt: skip
        name = str(order)
        # A running number in place of the clock: equal priorities are served in the order they came, on every run.
        try:
            internal = self._engine.add_request(
                name, tokens_input(list(request.ids)), params, arrival_time=float(order), priority=request.priority
            )
        except VLLMValidationError as error:
            raise EngineError(f"vLLM refused {request.key}: {error}") from error
        self._by_name[name] = flight
        self._requests[flight] = self._engine.engine_core.engine_core.scheduler.requests[internal]
        if self._pump_task is None or self._pump_task.done():
            self._pump_task = asyncio.get_running_loop().create_task(self._pump())

    async def _pump(self) -> None:
        """Step the engine while anything is in flight."""
        finished = True
        while True:
            for _ in range(_SETTLE_TURNS if finished else 1):
                await self._turn()
            if not self._requests or self._closed or self._lost is not None:
                return
            finished = self._step()

    def _step(self) -> bool:
        """Decode one token of every running request; whether any request finished."""
        started = time.perf_counter()
        try:
            outputs = self._engine.step()
        except Exception as error:  # noqa: BLE001 - whatever the core died of, no request may hang on it
            self._lose(error)
            return True
        self._counters["steps"] += 1
        self._counters["busy_seconds"] += time.perf_counter() - started
        for output in outputs:
            flight = self._by_name.pop(output.request_id)
            self._counters["preemptions"] += self._requests.pop(flight).num_preemptions
            sampled = output.outputs[0]
            if sampled.finish_reason not in ("stop", "length"):
                self._settle(flight, EngineError(f"vLLM ended {flight.request.key}: {sampled.finish_reason}"))
                continue
            stop = EngineStop.STOP if sampled.finish_reason == "stop" else EngineStop.LENGTH
            ids, logprobs = tuple(sampled.token_ids), tuple(sampled.logprobs.logprobs)
            cached = min(output.num_cached_tokens or 0, len(flight.request.ids))
            self._settle(flight, self._completion(flight, ids, logprobs, stop, cached))
        enough = [one for one in self._requests if one.enough < math.inf and self._progress(one) >= one.enough]
        for flight in enough:
            self._settle(flight, self._interrupt(flight))
        return bool(outputs or enough)

    def _progress(self, flight: Flight) -> int:
        sampled: int = self._requests[flight].num_output_tokens
        return sampled

    def _interrupt(self, flight: Flight) -> Completion:
        request = self._requests.pop(flight)
        self._counters["preemptions"] += request.num_preemptions
        state = self._engine.output_processor.request_states[request.request_id]
        del self._by_name[state.external_req_id]
        ids, logprobs = tuple(state.detokenizer.output_token_ids), tuple(state.logprobs_processor.logprobs.logprobs)
        self._engine.abort_request([request.request_id], internal=True)
        return self._completion(flight, ids, logprobs, cached=min(state.num_cached_tokens, len(flight.request.ids)))

    def _load(self, source: Any, version: int) -> None:
        if arrived := isinstance(source, Arrived):
            if not self._arrived:
                raise EngineError(f"no weights came for version {version}: the learner is to send them first")
        else:
            weights = read_weights(source, version)
            check_weights(weights, self._shapes)
            chosen = [(name, weights[name]) for name in self._shapes]  # a list, which other processes can be sent
        self._arrived = False
        try:
            if not arrived:
                self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": chosen})
            self._engine.apply_model(_repack_embeddings)
            # Suspended requests lose their blocks too, and are computed again in the next step.
            if not self._engine.reset_prefix_cache(reset_running_requests=True):
                raise RuntimeError("keys and values of the old weights were kept: a block is in use")
        except Exception as error:  # noqa: BLE001 - half-loaded weights: the engine is beyond use, whatever the cause
            self._lose(error)
            raise EngineLostError(f"vLLM could not take the weights: {error!r}; start another engine") from error

    def expect(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise `EngineError` unless these are the shapes of this model's weights, by name."""
        check_shapes(shapes, self._shapes)

    def transfer(self, method: str, arguments: Mapping[str, Any]) -> None:
        """A call of vLLM's own weight transfer, which the learner makes; it may wait for the learner's side of it. After
        `finish_weight_update` the weights are here, and `update_weights` with `Arrived` finishes them with a version."""
        self._check_alive()
        try:
            self._engine.collective_rpc(method, kwargs=dict(arguments))
        except Exception as error:  # noqa: BLE001 - half-loaded weights, as above
            self._lose(error)
            raise EngineLostError(f"vLLM could not take the weights ({method}): {error!r}") from error
        self._arrived = method == "finish_weight_update"

    def _release(self) -> None:
        self._by_name.clear()
        self._requests.clear()
        self._engine.engine_core.shutdown()
        self._engine = None
        self._folder.cleanup()

    def _check_window(self, model: ModelFolder) -> None:
        """A context beyond the trained window would fail inside vLLM with advice that does not fit."""
        if self.max_context > model.window:
            raise CheckpointError(
                f"max_context {self.max_context} exceeds the window of {model.window} that {model.path} was trained with: "
                "lower the context limit, or train with a larger max_position_embeddings"
            )


@contextmanager
def _without_llvmlite() -> Iterator[None]:
    """When it starts, vLLM reads the `__dict__` of all that is in any module. One object of llvmlite (numba's compiler,
    which checks problems) answers to every name, that one included, with a foreign function: keep it out of sight."""
    module = sys.modules.pop(_ANSWERS_TO_ALL, None)
    try:
        yield
    finally:
        if module is not None:
            sys.modules[_ANSWERS_TO_ALL] = module


@contextmanager
def _temporary_files_in(folder: str) -> Iterator[None]:
    """Whoever asks for the folder of temporary files gets this one."""
    before, tempfile.tempdir = tempfile.tempdir, folder
    try:
        yield
    finally:
        tempfile.tempdir = before


def _check_heads(checkpoint: Path) -> None:
    """vLLM on CPU would refuse other head sizes at the first request, with advice for GPUs."""
    from transformers import AutoConfig
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    model = AutoConfig.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    size = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
    served = CPUAttentionBackend.get_supported_head_sizes()
    if size not in served:
        raise CheckpointError(
            f"{checkpoint} has attention heads of size {size}; vLLM on CPU serves {', '.join(map(str, served))}: train "
            "with another ratio of hidden to heads, or use engine.kind=tiny"
        )


def _explain(error: Exception, checkpoint: Path, kv_cache_bytes: int) -> Exception:
    """vLLM's constructor errors in this project's types."""
    text = f"{error}".lower()
    if isinstance(error, MemoryError) or "memory" in text or "kv cache" in text:
        return ResourceError(
            f"vLLM cannot start with engine.kv_cache_mib={kv_cache_bytes / 2**20:g} for keys and values: lower it if the "
            "machine lacks memory, raise it if one context does not fit, or free memory held by other processes "
            f"(vLLM's own words, of options that are not set here: {error})"
        )
    if "tensor parallel" in text:
        return ConfigError(
            f"vLLM cannot divide {checkpoint} as engine.tensor_parallel says: give a divisor of its attention heads ({error})"
        )
    if "block size" in text or "block_size" in text:
        return EngineError(f"vLLM cannot use this block_size: {error}. On a CPU use a multiple of 32")
    return CheckpointError(f"vLLM cannot serve {checkpoint}: {error}. Check its config.json, or export it again")


def _repack_embeddings(model: torch.nn.Module) -> None:
    """Renew what vLLM derives from embeddings. On CPU an output layer tied to them multiplies by a packed copy, which
    a reload leaves as it was: the old weights (seen in 0.32)."""
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    for layer in model.modules():
        method = getattr(layer, "quant_method", None)
        if isinstance(method, UnquantizedEmbeddingMethod):
            method.process_weights_after_loading(layer)


def _set_environment(verbose: bool, tensor_parallel: int, threads: int | None) -> None:
    """Read when vLLM and torch are imported: one process, nothing sent anywhere, and only errors unless asked."""
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # a fork of a process whose torch has computed may hang
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # else each process must have a NUMA node
    if tensor_parallel > 1 and threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["VLLM_LOGGING_LEVEL"] = "INFO" if verbose else "ERROR"
    # oneDNN keeps what it compiled for each shape of a batch: 200 MB of it by default, and no faster.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

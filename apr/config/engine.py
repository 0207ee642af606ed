"""What samples, where it runs, and what prompts ask of it: for evaluation and RL."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from apr.config.base import Strict
from apr.idle import Idle
from apr.protocols import SHARING


class EngineConfig(Strict):
    """The sampling engine. `kv_cache_mib` bounds its cache. Kind `endpoint` (a server, for evaluation) takes only `url`,
    `model`, `timeout` and `max_num_seqs`; kind `tiny` only `threads`; kind `shared` also `kv_cache_mib`, `max_num_seqs`,
    `dtype` and `deterministic`."""

    kind: Literal["vllm", "shared", "tiny", "endpoint"] = Field(
        default="vllm",
        description="vllm; shared: our own, whose strands may see several others; tiny: plain PyTorch on the CPU, for small "
        "models; endpoint: a server",
    )
    url: str | None = Field(default=None, description="of kind endpoint: http://HOST:PORT, where `vllm serve` listens")
    model: str | None = Field(default=None, description="of kind endpoint: its name there; if not given, the only one")
    timeout: float = Field(
        default=600.0, gt=0, description="of kind endpoint: seconds without a token before one is lost"
    )
    kv_cache_mib: int = Field(default=512, ge=1, description="memory for keys and values, in MiB")
    max_num_seqs: int = Field(default=256, ge=1, description="requests served at once; more wait")
    block_size: int = Field(default=32, ge=1, description="tokens in a block of the cache")
    tensor_parallel: int = Field(default=1, ge=1, description="devices that one copy of the model is divided among")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of weights and activations")
    deterministic: bool = Field(
        default=False, description="of kind shared: each token is computed alone, so that nothing depends on the load"
    )
    threads: int | None = Field(
        default=None, ge=1, description="of torch; null: 1 or 2, by the cores free at the start"
    )

    @model_validator(mode="after")
    def _endpoint(self) -> EngineConfig:
        if self.kind == "endpoint" and self.url is None:
            raise ValueError(
                "engine.kind=endpoint needs engine.url, the address of the server: set it, such as "
                "engine.url=http://localhost:8000"
            )
        if self.url is not None and re.search(r"[@?#]", self.url):  # not repeated: it may hold a key
            raise ValueError(
                "engine.url must be http://HOST:PORT and hold no key, user or password, which the run's records would keep: "
                "leave it out there, and set the environment variable VLLM_API_KEY to the key"
            )
        if self.url is not None and not re.fullmatch(r"https?://[^/\s]+", self.url):
            raise ValueError("engine.url must be http://HOST:PORT, without a path such as /v1")
        return self

    def idle(self) -> Iterator[Idle]:
        server, paged = ("url", "model", "timeout"), ("block_size", "tensor_parallel")
        ignored = {
            "vllm": (*server, "deterministic"),
            "shared": (*server, *paged),
            "tiny": (*server, *paged, "kv_cache_mib", "max_num_seqs", "dtype", "deterministic"),
            "endpoint": (*paged, "kv_cache_mib", "dtype", "threads", "deterministic"),
        }
        for option in ignored[self.kind]:
            kind = "endpoint" if option in server else "shared" if option == "deterministic" else "vllm"
            yield Idle(option, "kind", f"set engine.kind={kind} as well, or leave them out")


def check_protocol(protocol: str, join: str, engine: EngineConfig) -> None:
    """Raise `ValueError` if the protocol has no such way to join, or the engine cannot serve what strands see under it."""
    if join == "first" and protocol != "spawn_join":
        raise ValueError(
            f"join=first is an option of protocol=spawn_join, and {protocol} has rules of its own for what a parent waits for: "
            "leave it out"
        )
    if protocol in SHARING and engine.kind != "shared":
        raise ValueError(
            f"protocol {protocol} joins over its children's keys and values, which engine.kind={engine.kind} does not serve: "
            "set engine.kind=shared"
        )


class ConditionConfig(Strict):
    """What prompts ask for: `children` per spawn, or a `context` within so many tokens. Only models that were trained on
    conditioned demonstrations heed it."""

    kind: Literal["context", "children"] = Field(description="children per spawn, or tokens of context")
    value: int = Field(ge=0, description="how many")


class ClusterConfig(Strict):
    """Where RL and evaluation run: `none` is one process without Ray; `local` starts a Ray; else the address of one, or
    `auto`. CPUs and GPUs are those of each engine and of each rank of the learner."""

    address: str = Field(
        default="none",
        description="none: one process; local: start Ray here; else the address of a Ray cluster, or auto",
    )
    engines: int = Field(default=1, ge=1, description="copies of the model that sample")
    engine_cpus: float = Field(default=1, ge=0, description="CPUs of each engine")
    engine_gpus: float = Field(default=0, ge=0, description="GPUs of each engine")
    ranks: int = Field(default=1, ge=1, description="processes that share the learner's work")
    learner_cpus: float = Field(default=1, ge=0, description="CPUs of each rank of the learner")
    learner_gpus: float = Field(default=0, ge=0, description="GPUs of each rank of the learner")
    routing: Literal["trace", "spread"] = Field(
        default="trace", description="trace: a trace's strands go to one engine; spread: children to the least busy one"
    )
    restarts: int = Field(default=10, ge=0, description="of lost engines and learners in a run, before it ends")
    timeout: float = Field(default=300.0, gt=0, description="seconds to wait for actors to start")
    reply_timeout: float = Field(default=1800.0, gt=0, description="seconds to wait for the reply of one that runs")

    def idle(self) -> Iterator[Idle]:
        if self.address == "none":
            for option in (
                "engine_cpus", "engine_gpus", "learner_cpus", "learner_gpus", "routing", "restarts", "timeout", "reply_timeout",
            ):  # fmt: skip
                yield Idle(option, "address", "set cluster.address=local or a cluster's address, or leave them out")

    @model_validator(mode="after")
    def _together(self) -> ClusterConfig:
        if self.engines > 1 and self.address == "none":
            raise ValueError(
                "several engines run on Ray only: set cluster.address (local starts one), or cluster.engines=1"
            )
        return self

"""Engine and learner as Ray actors. The loop drives them through the same calls as in one process."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from apr.config import ClusterConfig, RlConfig
from apr.engines.cluster import RemoteEngine, cause_of, start_engine
from apr.errors import ResourceError
from rl.learner import Learner
from rl.samples import Sample

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
import ray  # noqa: E402 (reads the variables above when imported)
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError  # noqa: E402


class RemoteLearner:
    """The learner's methods, run in its actor. `ray.remote` cannot be typed as the class it wraps; this can."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def update(
        self, batch: Sequence[Sample], lr: float, parity: tuple[float, float] | None = None
    ) -> dict[str, float]:
        metrics: dict[str, float] = await self._call("update", batch, lr, parity)
        return metrics

    async def weights(self) -> Any:
        return await self._call("weights")

    async def save_weights(self, folder: Path) -> None:
        await self._call("save_weights", folder.resolve())

    async def save(self, folder: Path) -> None:
        await self._call("save", folder.resolve())

    async def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return await getattr(self._actor, method).remote(*arguments)
        except RayTaskError as error:
            raise cause_of(error) from error
        except RayActorError as error:
            raise ResourceError(
                f"the learner's actor died, perhaps for lack of memory ({error}): see its log; --resume goes on"
            ) from error


def start(config: RlConfig, checkpoint: Path) -> tuple[RemoteEngine, RemoteLearner, Callable[[], None]]:
    """Connect to Ray (or start one), place both actors, wait until they answer.

    Returns engine, learner, and what ends them. Raises `ResourceError` with what was asked and what is free if they
    cannot be placed within `cluster.timeout` seconds.
    """
    c = config.cluster
    try:
        _check_reachable(c.address)
        own = {"include_dashboard": False} if c.address == "local" else {}
        ray.init(address=c.address, logging_level="warning", **own)
    except (OSError, ValueError, RuntimeError) as error:
        raise ResourceError(
            f"no Ray cluster at cluster.address={c.address} ({error}): start one with `ray start --head`, or use local"
        ) from error
    try:
        return *_placed(config, checkpoint), ray.shutdown
    except BaseException:
        ray.shutdown()
        raise


def _check_reachable(address: str) -> None:
    """Raise `OSError` if nobody listens at `host:port`: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _placed(config: RlConfig, checkpoint: Path) -> tuple[RemoteEngine, RemoteLearner]:
    c = config.cluster
    deadline = time.monotonic() + c.timeout
    _check_size(c)
    demanded = {"engine": _options(c.engine_cpus, c.gpus, config.engine.threads)}
    demanded["learner"] = _options(c.learner_cpus, c.gpus, config.learner.threads)
    try:
        learner = ray.remote(Learner).options(**demanded["learner"]).remote(
            checkpoint.resolve(), config.learner, config.temperature, config.dialect
        )  # fmt: skip
        engine = start_engine(
            config.engine, checkpoint, config.limits.context, config.seed,
            {**demanded["engine"], "max_concurrency": 1000}, c.timeout,
        )  # fmt: skip
        ray.get(learner.__ray_ready__.remote(), timeout=max(1.0, deadline - time.monotonic()))
    except GetTimeoutError as error:
        free = ray.available_resources()
        raise ResourceError(
            f"engine and learner did not start within {c.timeout:.0f} s. Demanded: engine {c.engine_cpus} CPUs, learner "
            f"{c.learner_cpus} CPUs, {c.gpus} GPUs each; free now: {free}. Lower cluster.*_cpus or cluster.gpus"
        ) from error
    except RayActorError as error:
        raise ResourceError(f"engine or learner died while starting: {error}") from error
    return engine, RemoteLearner(learner)


def _check_size(cluster: ClusterConfig) -> None:
    """Refuse at once what the whole cluster could never give, instead of waiting for it."""
    total = ray.cluster_resources()
    for name, demanded in (("CPU", cluster.engine_cpus + cluster.learner_cpus), ("GPU", 2 * cluster.gpus)):
        if demanded > total.get(name, 0):
            raise ResourceError(
                f"engine and learner need {demanded:g} {name}s, the cluster has {total.get(name, 0):g}: "
                f"lower cluster.{'gpus' if name == 'GPU' else '*_cpus'}, or add nodes"
            )


def _options(cpus: float, gpus: float, threads: int) -> dict[str, Any]:
    """Ray sets OMP_NUM_THREADS from an actor's CPUs, which would halve a learner's speed: set it from `threads`."""
    quiet = {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return {"num_cpus": cpus, "num_gpus": gpus, "runtime_env": {"env_vars": quiet}}

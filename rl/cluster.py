"""Engine and learner as Ray actors. The loop drives them through the same calls as in one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from apr.config import RlConfig
from apr.engines.cluster import RemoteEngine, start_engine
from apr.errors import ResourceError
from rl.learner import Learner
from rl.samples import Sample

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
import ray  # noqa: E402 (reads the variables above when imported)
from ray.exceptions import GetTimeoutError, RayTaskError  # noqa: E402


class RemoteLearner:
    """The learner's methods, run in its actor. `ray.remote` cannot be typed as the class it wraps; this can."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def update(self, batch: Sequence[Sample], parity: tuple[float, float] | None = None) -> dict[str, float]:
        metrics: dict[str, float] = await self._call("update", batch, parity)
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
            raise error.as_instanceof_cause() from error


def start(config: RlConfig, checkpoint: Path) -> tuple[RemoteEngine, RemoteLearner, Callable[[], None]]:
    """Connect to Ray (or start one), place both actors, wait until they answer.

    Returns engine, learner, and what ends them. Raises `ResourceError` with what was asked and what is free if they
    cannot be placed within `cluster.timeout` seconds.
    """
    c = config.cluster
    if c.address == "local":
        ray.init(include_dashboard=False, log_to_driver=True, logging_level="warning")
    else:
        try:
            ray.init(address=c.address, logging_level="warning")
        except ConnectionError as error:
            raise ResourceError(
                f"no Ray cluster at {c.address}: start one with `ray start --head`, or use local"
            ) from error
    demanded = {"engine": _options(c.engine_cpus, c.gpus, config.engine.threads)}
    demanded["learner"] = _options(c.learner_cpus, c.gpus, config.learner.threads)
    try:
        learner = ray.remote(Learner).options(**demanded["learner"]).remote(
            checkpoint.resolve(), config.learner, config.temperature
        )  # fmt: skip
        engine = start_engine(
            config.engine, checkpoint, config.limits.context, config.seed,
            {**demanded["engine"], "max_concurrency": 1000}, c.timeout,
        )  # fmt: skip
    except GetTimeoutError as error:
        free = ray.available_resources()
        ray.shutdown()
        raise ResourceError(
            f"engine and learner did not start within {c.timeout:.0f} s. Demanded: engine {c.engine_cpus} CPUs, learner "
            f"{c.learner_cpus} CPUs, {c.gpus} GPUs each; free now: {free}. Lower cluster.*_cpus or cluster.gpus"
        ) from error
    except RayTaskError as error:
        ray.shutdown()
        raise error.as_instanceof_cause() from error
    return engine, RemoteLearner(learner), ray.shutdown


def _options(cpus: float, gpus: float, threads: int) -> dict[str, Any]:
    """Ray sets OMP_NUM_THREADS from an actor's CPUs, which would halve a learner's speed: set it from `threads`."""
    quiet = {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return {"num_cpus": cpus, "num_gpus": gpus, "runtime_env": {"env_vars": quiet}}

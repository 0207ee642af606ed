"""Engine and learner as Ray actors. The loop drives them through the same calls as in one process."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apr.config import ClusterConfig, RlConfig
from apr.engines.cluster import RemoteEngine, cause_of, start_engine
from apr.errors import ResourceError
from rl.learner import Learner
from rl.samples import Sample

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves the actors wherever anything else runs
import ray  # noqa: E402 (reads the variables above when imported)
from ray._private.services import get_ray_address_from_environment  # noqa: E402
from ray.exceptions import GetTimeoutError, RayError, RayTaskError  # noqa: E402


class LearnerActor:
    """Runs in a Ray actor: a learner, made by `start`, since what a Ray actor raises when it is made arrives without
    its type."""

    async def start(self, *arguments: Any) -> None:
        self.learner = Learner(*arguments)

    async def call(self, method: str, *arguments: Any) -> Any:
        return await getattr(self.learner, method)(*arguments)


class RemoteLearner:
    """The `LearnerApi` over a `LearnerActor`'s handle."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def update(self, batch: Sequence[Sample], lr: float, parity: tuple[float, float]) -> dict[str, float]:
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
            return await self._actor.call.remote(method, *arguments)
        except RayTaskError as error:
            raise cause_of(error) from error
        except RayError as error:
            raise ResourceError(
                f"the learner's actor died, perhaps for lack of memory ({error}): see its log; --resume goes on"
            ) from error


def start(config: RlConfig, checkpoint: Path, resumed: bool) -> tuple[RemoteEngine, RemoteLearner, Callable[[], None]]:
    """Connect to Ray (or start one), place both actors, wait until they answer.

    Returns engine, learner, and what ends them. Raises `ResourceError` with what was asked and what is free if they
    cannot be placed within `cluster.timeout` seconds, and what engine or learner raise when they are made.
    """
    c = config.cluster
    try:
        # `auto`: what RAY_ADDRESS names, or the cluster that runs here, or `OSError`.
        address = get_ray_address_from_environment("auto", None) if c.address == "auto" else c.address
        _check_reachable(address)
        own = {"include_dashboard": False} if address == "local" else {}
        with _terminations_blocked():
            ray.init(address=address, logging_level="warning", **own)
    except (OSError, ValueError, RuntimeError) as error:
        raise ResourceError(
            f"no Ray cluster at cluster.address={c.address} ({error}): start one with `ray start --head`, or use local"
        ) from error
    try:
        return *_placed(config, checkpoint, resumed), ray.shutdown
    except BaseException:
        ray.shutdown()
        raise


def _check_reachable(address: str) -> None:
    """Raise `OSError` if nobody listens at `host:port`: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextmanager
def _terminations_blocked() -> Iterator[None]:
    """Processes started within inherit that SIGTERM is blocked, and so do theirs. One sent to the whole process group
    would else end Ray under the step that is to be finished and saved; this process still ends them all."""
    if threading.current_thread() is not threading.main_thread():  # which gets no signals
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _placed(config: RlConfig, checkpoint: Path, resumed: bool) -> tuple[RemoteEngine, RemoteLearner]:
    c = config.cluster
    deadline = time.monotonic() + c.timeout
    _check_size(c)
    demanded = {"engine": _options(c.engine_cpus, c.gpus, config.engine.threads)}
    demanded["learner"] = _options(c.learner_cpus, c.gpus, config.learner.threads)
    try:
        learner = ray.remote(LearnerActor).options(**demanded["learner"]).remote()
        learner_started = learner.start.remote(
            checkpoint.resolve(), config.learner, config.temperature, config.dialect, resumed
        )
        engine = start_engine(
            config.engine, checkpoint, config.limits.context, config.seed,
            {**demanded["engine"], "max_concurrency": 1000}, c.timeout,
        )  # fmt: skip
        ray.get(learner_started, timeout=max(1.0, deadline - time.monotonic()))
    except GetTimeoutError as error:
        free = ray.available_resources()
        raise ResourceError(
            f"engine and learner did not start within {c.timeout:.0f} s. Demanded: engine {c.engine_cpus} CPUs, learner "
            f"{c.learner_cpus} CPUs, {c.gpus} GPUs each; free now: {free}. Lower cluster.*_cpus or cluster.gpus"
        ) from error
    except RayTaskError as error:
        raise cause_of(error) from error
    except RayError as error:
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

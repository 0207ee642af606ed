"""Engine and learner as Ray actors. The loop drives them through the same calls as in one process."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr.config import ClusterConfig, RlConfig
from apr.engines.cluster import RemoteEngine, start_engine
from apr.errors import ResourceError
from rl.ranks import RemoteLearner, start_learner

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves the actors wherever anything else runs
import ray  # noqa: E402 (reads the variables above when imported)
from ray._private.services import get_ray_address_from_environment  # noqa: E402
from ray.exceptions import GetTimeoutError, RayError  # noqa: E402


@dataclass
class Cluster:
    """A run's actors. `shutdown` ends them; `new_learner` puts another learner in the place of one that was lost."""

    config: RlConfig
    engine: RemoteEngine
    learner: RemoteLearner
    shutdown: Callable[[], None]

    def new_learner(self, checkpoint: Path, resumed: bool) -> RemoteLearner:
        self.learner.kill()
        self.learner = _learner(self.config, checkpoint, resumed)
        return self.learner


def start(config: RlConfig, checkpoint: Path, resumed: bool) -> Cluster:
    """Connect to Ray (or start one), place all actors, wait until they answer.

    Raises `ResourceError` with what was asked and what is free if they cannot be placed within `cluster.timeout` seconds,
    and what engine or learner raise when they are made.
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
        _check_size(c)
        engine = _engine(config, checkpoint)
        return Cluster(config, engine, _learner(config, checkpoint, resumed), ray.shutdown)
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


def _engine(config: RlConfig, checkpoint: Path) -> RemoteEngine:
    c = config.cluster
    options = {**_options(c.engine_cpus, c.engine_gpus, config.engine.threads), "max_concurrency": 1000}
    with _explained(c, "the engine"):
        return start_engine(config.engine, checkpoint, config.limits.context, config.seed, options, c.timeout)


def _learner(config: RlConfig, checkpoint: Path, resumed: bool) -> RemoteLearner:
    c = config.cluster
    options = [_options(c.learner_cpus, c.learner_gpus, config.learner.threads)] * c.ranks
    with _explained(c, "the learner"):
        return start_learner(config, checkpoint, resumed, options, c.timeout)


@contextmanager
def _explained(c: ClusterConfig, what: str) -> Iterator[None]:
    try:
        yield
    except GetTimeoutError as error:
        raise ResourceError(
            f"{what} did not start within {c.timeout:.0f} s. Demanded: engine {c.engine_cpus} CPUs, learner "
            f"{c.learner_cpus} CPUs; free now: {ray.available_resources()}. Lower cluster.*_cpus or cluster.*_gpus"
        ) from error
    except RayError as error:
        raise ResourceError(f"{what} died while starting: {error}") from error


def _check_size(cluster: ClusterConfig) -> None:
    """Refuse at once what the whole cluster could never give, instead of waiting for it."""
    total = ray.cluster_resources()
    c = cluster
    for name, demanded in (
        ("CPU", c.engines * c.engine_cpus + c.ranks * c.learner_cpus),
        ("GPU", c.engines * c.engine_gpus + c.ranks * c.learner_gpus),
    ):
        if demanded > total.get(name, 0):
            raise ResourceError(
                f"engine and learner need {demanded:g} {name}s, the cluster has {total.get(name, 0):g}: "
                f"lower cluster.*_{name.lower()}s, or add nodes"
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

"""Engines and learner as Ray actors. The loop drives them through the same calls as in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from apr.config import RlConfig
from apr.engines.cluster import cause_of, start_pool
from apr.engines.placement import bundle, connect, options, refuse_impossible, reserve
from apr.engines.pool import EnginePool
from apr.errors import ResourceError
from rl import checkpoint
from rl.learner import Learner
from rl.samples import Sample


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


def start(config: RlConfig, start_from: Path, resumed: bool) -> tuple[EnginePool, RemoteLearner, Callable[[], None]]:
    """Connect to Ray (or start one), place all actors, wait until they answer.

    Returns engines, learner, and what ends them. Raises `ResourceError` with what was asked and what is free if they
    cannot be placed within `cluster.timeout` seconds, and what engines or learner raise when they are made.
    """
    connect(config.cluster.address)
    try:
        return *asyncio.run(_placed(config, start_from, resumed)), ray.shutdown
    except BaseException:
        ray.shutdown()
        raise


async def _placed(config: RlConfig, start_from: Path, resumed: bool) -> tuple[EnginePool, RemoteLearner]:
    c = config.cluster
    rank = bundle(c.learner_cpus, c.learner_gpus)
    refuse_impossible([rank] * c.ranks + [bundle(c.engine_cpus, c.engine_gpus)] * c.engines)
    # The learner's place first: engines, which may be anywhere, could take all that is left on the one node that fits.
    group = await reserve([rank] * c.ranks, "PACK", c.timeout, "the learner")
    settings = options(c.learner_cpus, c.learner_gpus, config.learner.threads, group)
    actor = ray.remote(LearnerActor).options(**settings).remote()
    started = actor.start.remote(start_from.resolve(), config.learner, config.temperature, config.dialect, resumed)

    def newest() -> Path:
        """Where an engine made now begins from; the checkpoint that the run began with may be gone by then."""
        found = checkpoint.latest(config.out)
        return found[0] if found else start_from

    engines = await start_pool(config.engine, c, newest, config.limits.context, config.seed)
    try:
        await asyncio.wait_for(started, c.timeout)
    except TimeoutError as error:
        raise ResourceError(
            f"the learner did not start within cluster.timeout={c.timeout:g} s: raise it if it needs longer"
        ) from error
    except RayTaskError as error:
        raise cause_of(error) from error
    except RayError as error:
        raise ResourceError(f"the learner died while it started: {error}") from error
    return engines, RemoteLearner(actor)

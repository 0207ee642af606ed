"""Engines and learner as Ray actors. The loop drives them through the same calls as in one process."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from apr.config import RlConfig
from apr.engines.cluster import start_pool
from apr.engines.placement import bundle, connect, options, refuse_impossible, reserve
from apr.engines.pool import EnginePool
from apr.errors import LearnerLostError, ResourceError
from rl import checkpoint
from rl.ranks import RemoteLearner, start_learner
from rl.weight_sync import TRANSFERS


@dataclass
class Cluster:
    """A run's actors, until `ray.shutdown`. `lost`: learners that died while the run started."""

    config: RlConfig
    engine: EnginePool
    learner: RemoteLearner
    place: PlacementGroup  # of the learner's ranks
    lost: int = 0

    async def replace(self, start_from: Path, resumed: bool) -> tuple[EnginePool, RemoteLearner]:
        """What there is after a loss: another learner, elsewhere if its node is gone; and other engines too where their
        weights came by vLLM's own transfer, of whose group no one knows who is still in it."""
        self.learner.kill()
        remove_placement_group(self.place)
        if self.config.weight_sync in TRANSFERS:
            await self.engine.close()
            self.engine = await _engines(self.config, start_from)
        self.place = await _learners_place(self.config)
        self.learner = await _learner(self.config, start_from, resumed, self.place)
        return self.engine, self.learner


def start(config: RlConfig, start_from: Path, resumed: bool) -> Cluster:
    """Connect to Ray (or start one), place all actors, wait until they answer.

    Raises `ResourceError` with what was asked and what is free if they cannot be placed within `cluster.timeout` seconds,
    and what engines or learner raise when they are made.
    """
    connect(config.cluster.address)
    try:
        return asyncio.run(_placed(config, start_from, resumed))
    except BaseException:
        ray.shutdown()
        raise


async def _placed(config: RlConfig, start_from: Path, resumed: bool) -> Cluster:
    c = config.cluster
    if config.weight_sync in TRANSFERS and not ray.cluster_resources().get("GPU"):
        raise ResourceError(
            f"weight_sync={config.weight_sync} sends from GPU to GPU, and this cluster has none: set weight_sync=tensors or "
            "file, or add a node with a GPU"
        )
    rank = bundle(c.learner_cpus, c.learner_gpus)
    refuse_impossible([rank] * c.ranks + [bundle(c.engine_cpus, c.engine_gpus)] * c.engines)
    # The learner's place first: engines, which may be anywhere, could take all that is left on the one node that fits.
    place = await _learners_place(config)
    engines, (learner, place, lost) = await asyncio.gather(
        _engines(config, start_from), _first_learner(config, start_from, resumed, place)
    )
    return Cluster(config, engines, learner, place, lost)


async def _engines(config: RlConfig, start_from: Path) -> EnginePool:
    def newest() -> Path:
        """Where an engine made now begins from; the checkpoint that the run began with may be gone by then."""
        found = checkpoint.latest(config.out)
        return found[0] if found else start_from

    transfer = config.weight_sync if config.weight_sync in TRANSFERS else None
    return await start_pool(config.engine, config.cluster, newest, config.limits.context, config.seed, transfer)


async def _first_learner(
    config: RlConfig, start_from: Path, resumed: bool, place: PlacementGroup
) -> tuple[RemoteLearner, PlacementGroup, int]:
    """The learner, where it is, and how many died before it while they started: as many as may be restarted, at most."""
    lost = 0
    while True:
        try:
            return await _learner(config, start_from, resumed, place), place, lost
        except LearnerLostError as error:
            lost += 1
            if lost > config.cluster.restarts:
                raise
            print(f"{error}: restart {lost} of {config.cluster.restarts}", file=sys.stderr, flush=True)
        remove_placement_group(place)
        place = await _learners_place(config)


async def _learners_place(config: RlConfig) -> PlacementGroup:
    c = config.cluster
    return await reserve([bundle(c.learner_cpus, c.learner_gpus)] * c.ranks, "PACK", c.timeout, "the learner")


async def _learner(config: RlConfig, start_from: Path, resumed: bool, place: PlacementGroup) -> RemoteLearner:
    c = config.cluster
    settings = [
        options(c.learner_cpus, c.learner_gpus, config.learner.threads, place, index) for index in range(c.ranks)
    ]
    try:
        return await start_learner(config, start_from, resumed, settings)
    except TimeoutError as error:
        raise ResourceError(
            f"the learner did not start within cluster.timeout={c.timeout:g} s: raise it if it needs longer"
        ) from error

"""What the loop drives: parts that may live in this process or elsewhere, by their types. `rl.launch` puts them together.

No type here needs torch or ray: who implements one imports it, never the other way round.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr.threads.engine import Engine
from apr.threads.protocol import ThreadProtocol
from apr.tokens.speller import Speller
from envs.base import Env
from rl.samples import Sample

Problems = Sequence[dict[str, Any]]


class LearnerApi(typing.Protocol):
    """What the loop and the weight sync ask of a learner: `rl.learner.Learner` in this process, or
    `rl.ranks.RemoteLearner` in Ray actors."""

    async def update(
        self, minibatches: Sequence[Sequence[Sample]], lr: float, parity: tuple[float, float]
    ) -> dict[str, float]:
        """Make one step on the minibatches at learning rate `lr`; returns metrics. Raises `ParityError` before a weight
        has changed, if the sampler's logprobs differ from the learner's by more than `parity` (mean, max)."""
        ...

    async def weights(self) -> Any:
        """The model's parameters by name, adapters merged; or a reference to them, from where engines read them."""
        ...

    async def save_weights(self, folder: Path, version: int) -> None:
        """Write the weights to `folder`, then the marker that says that they are whole."""
        ...

    async def meet(self, backend: str, engines: Sequence[Any], workers: int) -> None:
        """Make ready for `send` to the actors of these engines, of so many processes each."""
        ...

    async def send(self) -> None:
        """Send the weights as they are now to the engines that were met."""
        ...

    async def save(self, folder: Path) -> None:
        """Write a checkpoint from which a run goes on."""
        ...


class WeightSync(typing.Protocol):
    """How a learner's weights reach the engine."""

    async def push(self, learner: LearnerApi, engine: Engine, version: int) -> float:
        """Bring `engine` to the learner's weights as `version`; returns seconds."""
        ...


class Monitor(typing.Protocol):
    """Where metrics go."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def close(self) -> None: ...


@dataclass
class Parts:
    env: Env
    speller: Speller
    protocol: ThreadProtocol
    engine: Engine
    learner: LearnerApi
    sync: WeightSync
    monitor: Monitor
    train: Problems
    validation: Problems

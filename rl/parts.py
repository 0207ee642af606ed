"""What the loop drives: parts that may live in this process or elsewhere. `rl.launch` puts them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from apr.engines.base import Engine
from apr.threads.protocol import ThreadProtocol
from apr.tokens.dialect import Dialect
from envs.base import Env
from rl.learner import LearnerApi
from rl.monitor import Monitor
from rl.weight_sync import WeightSync

Problems = Sequence[dict[str, Any]]


@dataclass
class Parts:
    env: Env
    dialect: Dialect
    protocol: ThreadProtocol
    engine: Engine
    learner: LearnerApi
    sync: WeightSync
    monitor: Monitor
    train: Problems
    validation: Problems

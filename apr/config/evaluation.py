"""`apr eval`: one checkpoint on one split."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from apr.config.base import ProtocolName, Strict, Temperature
from apr.config.engine import ClusterConfig, ConditionConfig, EngineConfig
from apr.config.env import ENV_OF_DATA, EnvConfig
from apr.threads.limits import Budgets, Limits


class EvalConfig(Strict):
    """Evaluation of one checkpoint. `samples` > 1 gives cons@n and pass@n."""

    seed: int = 0
    data: Path = Path("runs/data")
    env: EnvConfig | None = Field(default=None, description=ENV_OF_DATA)
    split: Literal["train", "validation", "test"] = "test"
    checkpoint: Path = Field(
        default=Path("runs/sft"), description="a checkpoint, the folder of its SFT or RL run, or peft's adapter of one"
    )
    base: Path | None = Field(
        default=None, description="of an adapter: the model that it adapts, if it names none here"
    )
    protocol: ProtocolName = "spawn_join"
    dialect: str | None = Field(default=None, description="if the checkpoint does not say")
    problems: int | None = Field(default=None, ge=1, description="the first so many; all if not given")
    samples: int = Field(default=1, ge=1)
    temperature: Temperature = Field(default=0.0, ge=0)
    threshold: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="verifier's score from which an answer is correct; default: its own verdict",
    )
    condition: ConditionConfig | None = None
    limits: Limits = Limits()
    budgets: Budgets = Budgets()
    engine: EngineConfig = EngineConfig()
    cluster: ClusterConfig = ClusterConfig()
    in_flight: int = Field(default=64, ge=1, description="attempts running at once")
    out: Path = Path("runs/eval")

    @model_validator(mode="after")
    def _greedy(self) -> EvalConfig:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("several samples at temperature 0 are all the same: set temperature above 0 or samples=1")
        if self.engine.kind == "endpoint" and self.cluster.address != "none":
            raise ValueError(
                "engine.kind=endpoint is a server already, with devices of its own: leave cluster.address out"
            )
        return self

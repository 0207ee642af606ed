"""`apr eval`: one checkpoint on one split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from apr.config.base import Strict, Temperature
from apr.config.engine import ClusterConfig, ConditionConfig, EngineConfig, check_protocol
from apr.config.env import ENV_OF_DATA, EnvOfData
from apr.idle import Idle
from apr.threads.limits import Budgets, Limits
from apr.tokens.control import JoinRule, ProtocolName


class EvalConfig(Strict):
    """Evaluation of one checkpoint. `samples` > 1 gives cons@n and pass@n."""

    seed: int = Field(default=0, description="of sampling")
    data: Path = Field(default=Path("runs/data"), description="data folder, as `apr data generate` writes it")
    env: EnvOfData | None = Field(default=None, description=ENV_OF_DATA)
    split: Literal["train", "validation", "test"] = Field(default="test", description="which problems")
    checkpoint: Path = Field(
        default=Path("runs/sft"), description="a checkpoint, the folder of its SFT or RL run, or peft's adapter of one"
    )
    base: Path | None = Field(
        default=None, description="of an adapter: the model that it adapts, if it names none here"
    )
    protocol: ProtocolName = Field(default="spawn_join", description="how the model spawns and joins")
    join: JoinRule = Field(
        default="all",
        description="of spawn_join: parents wait for all children, or for the first with a message, and cancel the others",
    )
    speller: str | None = Field(default=None, description="if the checkpoint does not say")
    problems: int | None = Field(default=None, ge=1, description="the first so many; all if not given")
    samples: int = Field(default=1, ge=1, description="attempts per problem; above 1 gives cons@n and pass@n")
    temperature: Temperature = Field(default=0.0, ge=0, description="of sampling; 0: greedy")
    threshold: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="verifier's score from which an answer is correct; default: its own verdict",
    )
    condition: ConditionConfig | None = Field(
        default=None, description="what prompts ask for, if the model was trained on such prompts"
    )
    limits: Limits = Limits()
    budgets: Budgets = Budgets()
    engine: EngineConfig = EngineConfig()
    cluster: ClusterConfig = ClusterConfig()
    in_flight: int = Field(default=64, ge=1, description="attempts running at once")
    out: Path = Field(default=Path("runs/eval"), description="folder of the evaluation")

    def idle(self) -> Iterator[Idle]:
        for option in ("ranks", "learner_cpus", "learner_gpus"):
            yield Idle(f"cluster.{option}", "", "leave them out")

    @model_validator(mode="after")
    def _greedy(self) -> EvalConfig:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("several samples at temperature 0 are all the same: set temperature above 0 or samples=1")
        check_protocol(self.protocol, self.join, self.engine)
        if self.engine.kind == "endpoint" and self.cluster.address != "none":
            raise ValueError(
                "engine.kind=endpoint is a server already, with devices of its own: leave cluster.address out"
            )
        return self

"""`apr quickstart`: the whole path."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from apr.config.base import Strict


class QuickstartConfig(Strict):
    """The whole path in one command, each stage with its preset."""

    seed: int = Field(default=0, description="of every stage")
    preset: str = Field(default="tiny_cpu", description="preset that all stages take")
    start: Literal["data", "sft"] = Field(default="data", description="`sft` begins with the shipped SFT checkpoints")
    sampled_problems: int = Field(default=250, ge=1, description="problems for cons@n and pass@n")
    samples: int = Field(default=4, ge=2, description="attempts per problem for cons@n and pass@n")
    stages: dict[Literal["data", "sft", "rl", "eval"], list[str]] = Field(default={}, description="overrides by stage")
    out: Path = Field(default=Path("runs/quickstart"), description="folder of all stages")

    @model_validator(mode="after")
    def _shipped(self) -> QuickstartConfig:
        if self.start == "sft" and "sft" in self.stages:
            raise ValueError("start=sft takes the shipped SFT checkpoints and trains none: leave stages.sft out")
        return self

"""What all configurations share: strictness, and a few types."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from apr.idle import Idle


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def idle(self) -> Iterable[Idle]:
        """The options that do nothing beside the others' values, whatever they are set to."""
        return ()


def _sampleable(temperature: float) -> float:
    """Refused before an engine has started: vLLM would sample at 0.01 what is asked for below it."""
    if 0 < temperature < 0.01:
        raise ValueError("between 0 and 0.01 nothing is sampled exactly: set 0.01 or more, or 0 (greedy) to evaluate")
    return temperature


Temperature = Annotated[float, AfterValidator(_sampleable)]

"""What all configurations share: strictness, and a few types."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

ProtocolName = Literal["serial", "spawn_join"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, content: Any) -> Any:
        """YAML reads `yes` and `on` as true, which would pass for 1."""
        for key, value in content.items() if isinstance(content, dict) else ():
            field = cls.model_fields.get(key)
            if isinstance(value, bool) and field is not None and "bool" not in str(field.annotation):
                raise ValueError(
                    f"{key}: {value} is true or false, which does not fit (YAML reads yes, no, on, off so)"
                )
        return content


def _sampleable(temperature: float) -> float:
    """Refused before an engine has started: vLLM would sample at 0.01 what is asked for below it."""
    if 0 < temperature < 0.01:
        raise ValueError("between 0 and 0.01 nothing is sampled exactly: set 0.01 or more, or 0 (greedy) to evaluate")
    return temperature


Temperature = Annotated[float, AfterValidator(_sampleable)]

"""What all configurations share: strictness, options that a choice makes idle, and a few types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict

ProtocolName = Literal["serial", "spawn_join"]
DialectName = Literal["compact", "paper", "chat"]


class Idle(NamedTuple):
    """An option that does nothing, given another one: `choice`, or none if the whole command ignores it. Names are dotted."""

    name: str
    choice: str
    mend: str


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def idle(self) -> Iterable[Idle]:
        """The options that do nothing beside the others' values, whatever they are set to."""
        return ()


def idle_options(config: BaseModel, prefix: str = "") -> Iterator[Idle]:
    """The idle options of a configuration and its parts that are not at their defaults."""
    if isinstance(config, Strict):
        for option, choice, mend in config.idle():
            if value_at(config, option) != default_of(config, option):
                yield Idle(f"{prefix}{option}", choice and f"{prefix}{choice}", mend)
    for name in type(config).model_fields:
        value = getattr(config, name)
        parts = value.items() if isinstance(value, dict) else [("", value)]
        for part, content in parts:
            if isinstance(content, BaseModel):
                yield from idle_options(content, ".".join(filter(None, (f"{prefix}{name}", part))) + ".")


def value_at(config: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


def default_of(config: BaseModel, dotted: str) -> Any:
    above, _, last = dotted.rpartition(".")
    part = value_at(config, above) if above else config
    return type(part).model_fields[last].get_default(call_default_factory=True)


def _sampleable(temperature: float) -> float:
    """Refused before an engine has started: vLLM would sample at 0.01 what is asked for below it."""
    if 0 < temperature < 0.01:
        raise ValueError("between 0 and 0.01 nothing is sampled exactly: set 0.01 or more, or 0 (greedy) to evaluate")
    return temperature


Temperature = Annotated[float, AfterValidator(_sampleable)]

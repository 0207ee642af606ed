"""Options of a configuration that do nothing beside the values of others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel


class Idle(NamedTuple):
    """An option that does nothing, given another one: `choice`, or none if the whole command ignores it. Names are dotted."""

    name: str
    choice: str
    mend: str


def idle_options(config: BaseModel, prefix: str = "") -> Iterator[Idle]:
    """The idle options of a configuration and its parts that are not at their defaults."""
    options = getattr(config, "idle", tuple)
    for option, choice, mend in options():
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

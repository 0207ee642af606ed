"""The keys of a configuration: names, types, defaults and descriptions, for help texts and for errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from apr.values import members

NAMES = {int: "integer", float: "number", bool: "true or false", str: "text", Path: "path", NoneType: "null"}


@dataclass(frozen=True)
class Key:
    """One key. `name` is dotted; NAME in it stands for a name of the user's choice. `default` is None if there is none."""

    name: str
    type: str
    default: str | None
    description: str

    @property
    def head(self) -> str:
        """The line that begins its entry: `name=default (type)`."""
        return f"{self.name}={'...' if self.default is None else self.default} ({self.type})"

    def has(self, word: str) -> bool:
        return word.lower() in f"{self.name} {self.description}".lower()


def keys_of(kind: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """Every key of `kind`, in order; a part's own keys follow it."""
    for name, field in kind.model_fields.items():
        kinds = members(field.annotation)
        parts = [part for part in kinds if hasattr(part, "model_fields")]
        named = [value for part in kinds if get_origin(part) is dict for value in members(get_args(part)[1])]
        required = field.default is PydanticUndefined and field.default_factory is None
        default = None if required else shown(field.get_default(call_default_factory=True))
        if not parts or NoneType in kinds:
            yield Key(f"{prefix}{name}", " or ".join(map(_type, kinds)), default, field.description or "")
        for part in parts:
            for variant in _variants(part):
                yield from keys_of(variant, f"{prefix}{name}.")
        for part in named:
            if hasattr(part, "model_fields"):
                for variant in _variants(part):
                    yield from keys_of(variant, f"{prefix}{name}.NAME.")


def _variants(part: Any) -> list[Any]:
    """The classes whose keys a part may have: itself, unless it names others."""
    return part.variants() if hasattr(part, "variants") else [part]


def meant(word: str, known: Iterable[str]) -> str:
    """A hint at the known word that was probably meant; empty if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def meant_key(kind: type[BaseModel], dotted: str, siblings: Iterable[str]) -> str:
    """The same for an unknown key: keys of that last part elsewhere, or else one near it among its siblings."""
    above, dot, last = dotted.rpartition(".")
    if elsewhere := [key.name for key in keys_of(kind) if key.name.rpartition(".")[2] == last]:
        return f"; did you mean {' or '.join(elsewhere)}?"
    return meant(dotted, [f"{above}{dot}{name}" for name in siblings])


def shown(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, BaseModel):
        return "{...}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _type(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if get_origin(kind) is list:
        return f"list of {' or '.join(map(_type, members(get_args(kind)[0])))}s"
    if get_origin(kind) is dict:
        return "mapping"
    return NAMES.get(kind) or "part"

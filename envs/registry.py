"""Environments by name: built in, installed as an entry point of the group `apr.envs`, or `PATH.py:CLASS`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from pydantic import ValidationError

from apr import user_code
from apr.errors import ConfigError
from apr.tokens.speller import Speller
from apr.tokens.text import TextVocabulary
from apr.values import Unread
from envs.base import Env
from envs.environment import Environment

GROUP = "apr.envs"
BUILT_IN = {"countdown": "envs.countdown.env:Countdown"}
SPELLERS = {  # built vocabularies with a grammar of their own, which checkpoints and data sets name
    "compact": "envs.countdown.compact:CompactSpeller",
    "paper": "envs.countdown.paper:PaperSpeller",
}
TEXTUAL = ("paper",)  # those of them whose text any tokenizer may spell


class Known(NamedTuple):
    """An environment that can be named: where it comes from (`built in`, or the package that installed it)."""

    name: str
    source: str
    target: str  # MODULE:CLASS


def known() -> list[Known]:
    """Environments that `env=NAME` finds, sorted by name; built-in ones win over installed ones of the same name."""
    installed = {
        point.name: Known(point.name, point.dist.name if point.dist else "installed", point.value)
        for point in entry_points(group=GROUP)
    }
    found = installed | {name: Known(name, "built in", target) for name, target in BUILT_IN.items()}
    return sorted(found.values())


def environment(name: str, options: Mapping[str, Any] | None = None) -> Env:
    """The environment `name` with its options. Raises `ConfigError` if there is none, if its file was not named by the user,
    or if an option does not fit."""
    cls = env_class(name)
    try:
        env = cls(cls.Options.model_validate(dict(options or {})))
    except ValidationError as error:
        raise ConfigError(f"environment {name}: {_faults(cls, error)}") from None
    env.source = name
    return env


def listing() -> str:
    """Every known environment: its name, where it comes from, what it asks, its options with their defaults."""
    lines = []
    for one in known():
        try:
            cls = env_class(one.name)
        except ConfigError as error:
            lines.append(f"{one.name} ({one.source}): {error}")
            continue
        lines.append(f"{one.name} ({one.source}): {cls.about}")
        for name, field in cls.Options.model_fields.items():
            about = f"   {field.description}" if field.description else ""
            lines.append(f"    {name}={field.default}{about}")
    return "\n".join(lines) + "\nor a class of your own: env=PATH.py:CLASS (examples/sorting.py is one)"


def at_hand(config: Mapping[str, Any]) -> Env | None:
    """The environment that a record names (`Env.config`); None if it is not installed, is a file that the user did not name, or
    no longer takes such options. For what only shows problems: what judges them must not do without."""
    name = config.get("name")
    if not isinstance(name, str):
        return None
    if user_code.file_of(name) is not None:
        found = user_code.named_like(name)
    else:
        found = name if name in {one.name for one in known()} else None
    if found is None:
        return None
    try:
        return environment(found, {key: value for key, value in config.items() if key != "name"})
    except ConfigError:
        return None


def env_class(name: str) -> type[Environment[Any]]:
    """The class of an environment. Raises `ConfigError`."""
    if user_code.file_of(name) is not None:
        return _checked(user_code.load(name, "env"), name)
    targets = {one.name: one.target for one in known()}
    if name not in targets:
        if name.endswith(".py"):
            raise ConfigError(f"env={name} names a file, but not the class in it: write env={name}:CLASS")
        near = difflib.get_close_matches(name, targets, 1)
        raise ConfigError(
            f"no environment {name!r}{f' (did you mean {near[0]}?)' if near else ''}: there are {', '.join(targets)}; or name "
            "a class in a file, env=PATH.py:CLASS"
        )
    try:
        return _checked(_target(targets[name]), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"environment {name} cannot be imported from {targets[name]}: {error}") from error


@cache
def built_speller(name: str) -> Speller:
    """A speller with a vocabulary and a grammar of its own. Raises `ConfigError` for any other."""
    if name not in SPELLERS:
        raise ConfigError(f"no speller {name!r} with a grammar of its own: there are {', '.join(SPELLERS)}")
    speller: Speller = _target(SPELLERS[name])()
    return speller


def textual_speller(name: str, vocabulary: TextVocabulary) -> Speller:
    """A speller of `TEXTUAL` in another vocabulary than the one built for it."""
    speller: Speller = _target(SPELLERS[name])(vocabulary)
    return speller


def rebuilt(name: str, options: dict[str, Any]) -> Env:
    """The environment that another process of this run had."""
    user_code.allow(name)
    return environment(name, options)


def _target(path: str) -> Any:
    """What `MODULE:NAME` names."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _checked(found: Any, name: str) -> type[Environment[Any]]:
    if not isinstance(found, type) or not issubclass(found, Environment):
        raise ConfigError(
            f"environment {name} is no subclass of envs.environment.Environment: write one, or name another class"
        )
    return found


def _faults(cls: type[Environment[Any]], error: ValidationError) -> str:
    """What is wrong with its options, in a line."""
    fields = cls.Options.model_fields
    lines = []
    for fault in error.errors():
        key = ".".join(map(str, fault["loc"])) or "options"
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, fields, 1)
            hint = f", did you mean {near[0]}?" if near else f"; it has {', '.join(fields)}"
            lines.append(f"unknown option {key}{hint}")
        else:
            about, value = fields[key].description if key in fields else None, fault["input"]
            said = f"{value.text!r} {value.why}" if isinstance(value, Unread) else fault["msg"]
            lines.append(f"{key}: {said.removeprefix('Value error, ')}" + (f" ({about})" if about else ""))
    return "; ".join(lines)

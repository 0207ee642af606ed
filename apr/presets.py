"""Configurations from YAML: presets, then more files, then `dotted.key=value`, checked as a whole before anything starts.

Later ones win, key by key. There is no interpolation; `apr COMMAND --print-config` shows what a run would use.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from apr.errors import ConfigError

Config = TypeVar("Config", bound=BaseModel)


def preset(stage: str, name: str) -> Path:
    """The file of a shipped preset, e.g. `preset("sft", "tiny_cpu")`."""
    return Path(str(files("configs"))) / stage / f"{name}.yaml"


def load(
    kind: type[Config], paths: Sequence[Path], overrides: Sequence[str] = (), context: dict[str, Any] | None = None
) -> Config:
    """Merge files in order, then overrides; later ones win, key by key. `context`: of the validation, `apr.user_code.NAMED` for
    what the user gave. Raises `ConfigError`."""
    merged: dict[str, Any] = {}
    for path in paths:
        _merge(merged, _read(path))
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"override {override!r} is not of the form dotted.key=value")
        nested: Any = _parse(value, f"override {override!r}")
        for part in reversed(key.strip().split(".")):
            nested = {part: nested}
        _merge(merged, nested)
    return check(kind, merged, ", ".join([*map(str, paths), *overrides]) or "defaults", context)


def check(kind: type[Config], content: dict[str, Any], where: str, context: dict[str, Any] | None = None) -> Config:
    """Build a config; all that is wrong with it in one `ConfigError`."""
    try:
        return kind.model_validate(content, context=context)
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            key = ".".join(map(str, fault["loc"])) or "(whole config)"
            if fault["type"] == "extra_forbidden":
                siblings = ", ".join(_look_up(kind, fault["loc"][:-1])[0])
                lines.append(f"unknown key {key}" + (f"; known here: {siblings}" if siblings else ""))
            else:
                about = _look_up(kind, fault["loc"])[1]
                lines.append(f"{key}: {fault['msg'].removeprefix('Value error, ')}" + (f" ({about})" if about else ""))
        raise ConfigError(f"configuration ({where}):\n  " + "\n  ".join(lines)) from None


def dump(config: BaseModel) -> str:
    """The resolved configuration as YAML that `load` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"no configuration file {path}; shipped presets are in {files('configs')}")
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file ({error}): give a YAML file") from None
    content = _parse(text, str(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of keys to values, not {type(content).__name__}")
    return content


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from None


def _merge(base: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if key == "env":  # `env: NAME` is short for `env: {name: NAME}`, and options belong to one environment
            _merge_env(base, value)
        elif isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _merge_env(base: dict[str, Any], value: Any) -> None:
    """Another environment by name drops the options of the one before."""
    old, new = ({"name": given} if isinstance(given, str) else given for given in (base.get("env"), value))
    if isinstance(old, dict) and isinstance(new, dict) and new.get("name", old.get("name")) == old.get("name"):
        new = {**old, **new}
    base["env"] = new


def _look_up(kind: type[BaseModel], path: tuple[int | str, ...]) -> tuple[list[str], str | None]:
    """The keys known at `path`, whose steps are fields, keys of mappings and places in lists; and what the field there
    says of itself."""
    current: Any = kind
    description = None
    for part in path:
        field = getattr(current, "model_fields", {}).get(part)
        if field is not None:
            description = field.description
            current = field.annotation
            if isinstance(current, UnionType):
                current = get_args(current)[0]
        else:
            current = (get_args(current) or (None,))[-1]
    return list(getattr(current, "model_fields", {})), description

"""Configurations from YAML: presets, then more files, then `dotted.key=value`, checked as a whole before anything starts.

Later ones win, key by key; within one file, or among the overrides, a key is given once. Values are read by the type of
their key (`apr.values`). There is no interpolation; `apr COMMAND --print-config` shows what a run would use.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from types import UnionType
from typing import Any, TypeAlias, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from apr.errors import ConfigError
from apr.idle import Idle, idle_options, value_at
from apr.keys import meant_key, shown
from apr.values import COMMAND_LINE, Scalar, Tree, Unread, inside, parse, parse_override, typed

Config = TypeVar("Config", bound=BaseModel)
Context: TypeAlias = dict[str, Any] | None


def preset(stage: str, name: str) -> Path:
    """The file of a shipped preset, e.g. `preset("sft", "tiny_cpu")`."""
    return Path(str(files("configs"))) / stage / f"{name}.yaml"


def available(stage: str) -> dict[str, str]:
    """The shipped presets of a stage, by name, each with what its first comment says; for the quickstart those that all of
    its stages have."""
    if stage == "quickstart":
        from apr.quickstart import TEACHERS

        stages = [available(other) for other in ("data", "rl", "eval")]
        common = {name: about for name, about in available("sft").items() if all(name in other for other in stages)}
        return {name: about for name, about in common.items() if TEACHERS.keys() <= _teachers(preset("data", name))}
    paths = sorted(preset(stage, "any").parent.glob("*.yaml"))
    return {path.stem: _first_comment(path.read_text(encoding="utf-8")) for path in paths}


def _teachers(path: Path) -> set[str]:
    solvers = _read(path, 0).get("solvers")
    return set(solvers) if isinstance(solvers, dict) else set()


def _first_comment(text: str) -> str:
    """The first sentence of the comment that a file begins with."""
    lines = list(takewhile(lambda line: line.startswith("#"), text.splitlines()))
    return re.split(r"(?<=[a-z)])\. ", " ".join(line.lstrip("# ") for line in lines) + " ")[0].strip().rstrip(".")


def load(kind: type[Config], paths: Sequence[Path], overrides: Sequence[str] = (), context: Context = None) -> Config:
    """Merge files in order, then overrides; later ones win, key by key. `context`: of the validation, `apr.user_code.NAMED` for
    what the user gave. Raises `ConfigError`.

    An option that does nothing beside another's value is refused, unless it is at its default, or was set by an earlier file
    than that value, which then replaces it.
    """
    return _loaded(kind, paths, overrides, context, refused_from=0)


def load_recorded(kind: type[Config], path: Path, overrides: Sequence[str] = (), context: Context = None) -> Config:
    """The configuration that a run kept, with `overrides`. Drops options that did nothing, which earlier versions took."""
    return _loaded(kind, [path], overrides, context, refused_from=COMMAND_LINE)


def _loaded(
    kind: type[Config], paths: Sequence[Path], overrides: Sequence[str], context: Context, refused_from: float
) -> Config:
    """`refused_from`: the first source whose idle options are refused rather than dropped."""
    merged: dict[str, Tree] = {}
    for number, path in enumerate(paths):
        _merge(merged, _read(path, number))
    _merge(merged, _overrides(kind, overrides))
    where = ", ".join([*map(str, paths), *map(_without_secrets, overrides)]) or "defaults"
    config = check(kind, typed(merged, [kind]), where, context)
    idle = list(idle_options(config))
    refused = [
        option for option in idle if _source(merged, option.name) >= max(refused_from, _source(merged, option.choice))
    ]
    if refused:
        raise ConfigError(f"configuration ({where}):\n  " + "\n  ".join(_idle_lines(config, refused)))
    for option in idle:
        _remove(merged, option.name.split("."))
    return check(kind, typed(merged, [kind]), where, context) if idle else config


def _without_secrets(override: str) -> str:
    """`override` as a message may repeat it: of a URL that is more than a host and a port, only the scheme."""
    return re.sub(r"(://).*[/@?#].*", r"\1...", override, flags=re.DOTALL)


def _idle_lines(config: BaseModel, idle: Sequence[Idle]) -> Iterator[str]:
    for choice, mend in dict.fromkeys((option.choice, option.mend) for option in idle):
        shown = [_setting(config, name) for name, *rest in idle if rest == [choice, mend]]
        beside = f"with {_setting(config, choice)}" if choice else "in this command"
        yield f"options that do nothing {beside}: {', '.join(shown)}; {mend}"


def _setting(config: BaseModel, dotted: str) -> str:
    return f"{dotted}={shown(value_at(config, dotted))}"


def _source(tree: Tree, dotted: str) -> float:
    """The last source that set a key or a part of it; -1 for none."""
    for part in filter(None, dotted.split(".")):
        if not isinstance(tree, dict) or part not in tree:
            return -1
        tree = tree[part]
    if isinstance(tree, Scalar):
        return tree.source
    return max((_source(part, "") for part in (tree.values() if isinstance(tree, dict) else tree)), default=-1)


def _remove(tree: Tree, path: Sequence[str]) -> None:
    for part in path[:-1]:
        assert isinstance(tree, dict)
        tree = tree[part]
    assert isinstance(tree, dict)
    del tree[path[-1]]


def _overrides(kind: type[BaseModel], overrides: Sequence[str]) -> dict[str, Tree]:
    """What the command line sets. Raises `ConfigError`, also for a key given twice, by itself or as a part of another."""
    merged: dict[str, Tree] = {}
    keys: set[str] = set()
    for override in overrides:
        dotted, equals, value = override.partition("=")
        key = dotted.strip()
        if not equals or not key:
            raise ConfigError(f"override {override!r} is not of the form dotted.key=value")
        kinds: list[Any] = [kind]
        for part in key.split("."):
            kinds = inside(kinds, part)
        nested = parse_override(value, kinds, f"override {override!r}")
        if key == "env" and isinstance(nested, Scalar):
            key = "env.name"  # which it is short for
        for part in reversed(key.split(".")):
            nested = {part: nested}
        assert isinstance(nested, dict)
        if twice := key if key in keys else _common(merged, nested):
            raise ConfigError(f"the key {twice} is given twice on the command line: keep one of them")
        keys.add(key)
        _merge(merged, nested)
    return merged


def _common(one: dict[str, Tree], other: dict[str, Tree], prefix: str = "") -> str | None:
    """A dotted key that both mappings set."""
    for key in one.keys() & other.keys():
        mine, theirs = one[key], other[key]
        if not (isinstance(mine, dict) and isinstance(theirs, dict)):
            return f"{prefix}{key}"
        if found := _common(mine, theirs, f"{prefix}{key}."):
            return found
    return None


def check(kind: type[Config], content: dict[str, Any], where: str, context: Context = None) -> Config:
    """Build a config; all that is wrong with it in one `ConfigError`."""
    try:
        return kind.model_validate(content, context=context)
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            key = ".".join(map(str, fault["loc"])) or "(whole config)"
            if fault["type"] == "extra_forbidden":
                siblings = _look_up(kind, fault["loc"][:-1])[0]
                known = f"; known here: {', '.join(siblings)}" if siblings else ""
                lines.append(f"unknown key {key}{meant_key(kind, key, siblings)}{known}")
            else:
                about, value = _look_up(kind, fault["loc"])[1], fault["input"]
                said = f"{value.text!r} {value.why}" if isinstance(value, Unread) else fault["msg"]
                lines.append(f"{key}: {said.removeprefix('Value error, ')}" + (f" ({about})" if about else ""))
        raise ConfigError(f"configuration ({where}):\n  " + "\n  ".join(lines)) from None


def dump(config: BaseModel) -> str:
    """The resolved configuration as YAML that `load` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read(path: Path, number: int) -> dict[str, Tree]:
    if not path.is_file():
        raise ConfigError(f"no configuration file {path}; shipped presets are in {files('configs')}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file ({error}): give a YAML file") from None
    content = parse(text, str(path), number)
    if content is None or (isinstance(content, Scalar) and content.null):
        return {}
    if not isinstance(content, dict):
        found = "a list" if isinstance(content, list) else "a single value"
        raise ConfigError(f"{path}: a configuration is a mapping of keys to values, not {found}")
    return content


def _merge(base: dict[str, Tree], more: dict[str, Tree]) -> None:
    for key, value in more.items():
        below = base.get(key)
        if key == "env":  # `env: NAME` is short for `env: {name: NAME}`, and options belong to one environment
            base[key] = _merged_env(below, value)
        elif isinstance(value, dict) and isinstance(below, dict):
            _merge(below, value)
        else:
            base[key] = value


def _merged_env(old: Tree | None, new: Tree) -> Tree:
    """`new` over `old`; another environment by name drops the options of the one before."""
    before, after = _spelt_out(old), _spelt_out(new)
    if before is None or after is None:
        return new
    name = after.get("name", before.get("name"))
    return {**before, **after} if _same(name, before.get("name")) else after


def _spelt_out(env: Tree | None) -> dict[str, Tree] | None:
    """`env: NAME` as `env: {name: NAME}`."""
    if isinstance(env, Scalar):
        return None if env.null else {"name": env}
    return env if isinstance(env, dict) else None


def _same(one: Tree | None, other: Tree | None) -> bool:
    return one is other or (isinstance(one, Scalar) and isinstance(other, Scalar) and one.text == other.text)


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

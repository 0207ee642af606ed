"""Text into typed values: a scalar is read by the type of the field that it goes to, never by what it looks like.

YAML gives the structure only. In `out: 1_000` the value is a path of five characters, since `out` is a path; in
`steps: 1e6` it is an integer, since `steps` is one. What does not fit its type is refused as `Unread`, unchanged.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

import yaml

from apr.errors import ConfigError

COMMAND_LINE = math.inf  # the source of an override; files are numbered in order
NULLS = frozenset({"", "~", "null", "Null", "NULL"})  # unquoted, in YAML
PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "seq", "map"))
TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*(_[0-9]+)*)")
NUMBER = re.compile(r"[+-]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
LEADING_ZERO = re.compile(r"[+-]?0[0-9_]")
INFINITE = re.compile(r"[+-]?\.?(inf|nan)", re.IGNORECASE)  # read, so that fields refuse them as not finite
LARGEST = 30  # digits of an integer written with an exponent


@dataclass(frozen=True)
class Scalar:
    """Text as it was typed. `null`: it stands for no value. `source`: number of the file, or `COMMAND_LINE`. `quoted`: it is
    text, whatever it looks like."""

    text: str
    null: bool
    source: float
    quoted: bool = False


@dataclass(frozen=True)
class Unread:
    """A scalar that does not fit its field. Fits no type, so that validation reports it beside all other faults."""

    text: str
    why: str


Tree: TypeAlias = "dict[str, Tree] | list[Tree] | Scalar"


def parse(text: str, where: str, source: float) -> Tree | None:
    """Read the structure of a YAML document; None if it is empty. Raises `ConfigError`, also for a key given twice."""
    try:
        root = yaml.compose(text, yaml.BaseLoader)
        return None if root is None else _tree(root, where, source, ())
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from None


def _tree(node: yaml.Node, where: str, source: float, above: tuple[yaml.Node, ...]) -> Tree:
    line = f"{where}, line {node.start_mark.line + 1}"
    if node.tag not in PLAIN_TAGS:
        raise ConfigError(f"{line}: tags such as {node.tag!r} are not read: give the plain value")
    if node in above:
        raise ConfigError(f"{line}: an alias stands inside what it names: write the value out")
    if isinstance(node, yaml.ScalarNode):
        plain = node.style is None
        return Scalar(node.value, plain and node.value in NULLS, source, quoted=not plain)
    if isinstance(node, yaml.SequenceNode):
        return [_tree(item, where, source, (*above, node)) for item in node.value]
    content: dict[str, Tree] = {}
    for key, value in node.value:
        at = f"{where}, line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{at}: a key is a word, not a list or a mapping")
        if key.value in content:
            raise ConfigError(f"{at}: the key {key.value} is given twice: keep one of them")
        content[key.value] = _tree(value, where, source, (*above, node))
    return content


def parse_override(text: str, kinds: Iterable[Any], where: str) -> Tree:
    """Read the value of `key=value`, which goes to a field of one of `kinds`. Mappings and lists are YAML in braces and
    brackets; anything else is taken as it stands. Raises `ConfigError`."""
    if text.lstrip()[:1] not in ("{", "[") or all(_is_scalar(kind) for kind in kinds):
        return Scalar(text, text == "null", COMMAND_LINE)
    try:
        root = yaml.compose(text, yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from None
    assert root is not None  # it begins with a bracket
    if (rest := text[root.end_mark.index :]).strip():
        raise ConfigError(f"{where}: {rest.strip()!r} stands after the value and would be ignored: leave it out")
    return _tree(root, where, COMMAND_LINE, ())


def members(kind: Any) -> list[Any]:
    """The types that a field of type `kind` takes: those of a union, without their annotations."""
    if get_origin(kind) is Annotated:
        return members(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [member for part in get_args(kind) for member in members(part)]
    return [kind]


def inside(kinds: Iterable[Any], key: str) -> list[Any]:
    """The types of what lies under `key` in a value of one of `kinds`; empty if nothing can."""
    found: list[Any] = []
    for kind in kinds:
        if (field := getattr(kind, "model_fields", {}).get(key)) is not None:
            found += members(field.annotation)
        elif get_origin(kind) is dict:
            found += members(get_args(kind)[1])
        elif getattr(kind, "model_config", {}).get("extra") == "allow":
            found.append(Scalar)
    return found


def typed(tree: Tree, kinds: list[Any]) -> Any:
    """The value that `tree` stands for in a field of one of `kinds`, with `Unread` in place of what does not fit. Options of
    another class than that which holds them are left as they are: its validators know that class, and call this again."""
    if Scalar in kinds or not isinstance(tree, (dict, list, Scalar)):
        return tree
    if isinstance(tree, dict):
        return {key: typed(value, inside(kinds, key)) for key, value in tree.items()}
    if isinstance(tree, list):
        items = [item for kind in kinds if get_origin(kind) is list for item in members(get_args(kind)[0])]
        return [typed(item, items) for item in tree]
    if tree.null:
        if NoneType in kinds or not kinds:
            return None
        return Unread(tree.text or "nothing", "is no value, and this key needs one: give it, or leave the key out")
    reasons = []
    for kind in kinds:
        if kind is NoneType:
            continue
        if not isinstance(value := _read(tree.text, kind), Unread):
            return value
        reasons.append(value)
    return reasons[0] if reasons else _guessed(tree)


def _guessed(scalar: Scalar) -> Any:
    """The value of a field whose type nobody here knows."""
    if scalar.quoted or LEADING_ZERO.match(scalar.text):
        return scalar.text
    for kind in (int, float):
        if not isinstance(value := _read(scalar.text, kind), Unread) and not INFINITE.fullmatch(scalar.text):
            return value
    return {"true": True, "false": False}.get(scalar.text, scalar.text)


def _is_scalar(kind: Any) -> bool:
    return kind is not Scalar and get_origin(kind) not in (list, dict) and not hasattr(kind, "model_fields")


def _read(text: str, kind: Any) -> Any:
    """`text` as a `kind`; as it stands, for validation to judge, if that is a mapping or a list."""
    if get_origin(kind) is Literal:
        return next((choice for choice in get_args(kind) if str(choice) == text), text)
    if kind is bool:
        return TRUTHS.get(text.lower(), Unread(text, "is neither true nor false"))
    if kind is int:
        return _integer(text)
    if kind is float:
        if NUMBER.fullmatch(text) or INFINITE.fullmatch(text):
            return float(text.replace(".inf", "inf").replace(".nan", "nan").replace("_", ""))
        return Unread(text, "is not a valid number")
    if kind in (str, Path):
        return _text(text, kind)
    return text


def _integer(text: str) -> int | Unread:
    if INTEGER.fullmatch(text):
        return int(text) if len(text) < 1000 else Unread(text, "is not a valid integer: it has too many digits")
    if NUMBER.fullmatch(text) and not LEADING_ZERO.match(text):
        number = Decimal(text.replace("_", ""))
        if number.adjusted() < LARGEST and number == number.to_integral_value():
            return int(number)
    return Unread(text, "is not a valid integer: write decimal digits without leading zeros, or such as 1e6")


def _text(text: str, kind: type[str] | type[Path]) -> str | Path | Unread:
    if not text:
        return Unread(text, "is empty: give a value, or leave the key out")
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        return Unread(text, "is not UTF-8 text, or has a NUL in it: give another name")
    return typed_path(text) if kind is Path else text


def typed_path(text: str) -> Path:
    """The path that was typed; `~` at its start is the home folder (write `./~` for a folder of that name)."""
    path = Path(os.path.expanduser(text))  # noqa: PTH111  # leaves the home of an unknown user alone
    return Path.cwd() / path if str(path).startswith("~") else path

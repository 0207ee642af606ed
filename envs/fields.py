"""Values of a problem's fields, read as the type that an example has: cells of a CSV are text, and tables with gaps store 98
as 98.0.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from apr.errors import DataError

_BETWEEN = re.compile(r"\s*[,;]\s*|\s+", re.ASCII)
_SHOWN = 60  # characters of a value in a message
_WORDS = {bool: "true or false", int: "an integer", float: "a finite number", str: "a text", list: "a list"}


def like(value: Any, example: Any, name: str) -> Any:
    """`value` as what `example` is: a text, a number, true or false, or a list of these.

    A text is read if it spells the type: a list is JSON, or its items between spaces or commas (`[1, 2]`, `1 2`, `1,2`).
    Items are of the one type that the example's have. Raises `DataError` with the `name` for a value of another type.
    """
    kind = type(example)
    read = value
    if isinstance(value, str) and kind is not str:
        read = _items(value) if kind is list else _scalar(value, kind)
    if kind is int and isinstance(read, float) and read.is_integer() and abs(read) <= 2**53:
        read = int(read)
    if kind is float and type(read) is int:
        read = float(read)
    if type(read) is not kind or (kind is float and not math.isfinite(read)):
        raise DataError(f"{name} is {_shown(value)}, not {_WORDS.get(kind, f'of type {kind.__name__}')}")
    if kind is list and len({type(item) for item in example}) == 1:
        return [like(item, example[0], f"an item of {name}") for item in read]
    return read


def _items(text: str) -> Any:
    """The items that a text lists, those without brackets as texts."""
    text = text.strip()
    if text.startswith("["):
        return _json(text)
    return _BETWEEN.split(text) if text else []


def _scalar(text: str, kind: type) -> Any:
    if kind is bool:
        return {"true": True, "false": False}.get(text.strip().lower(), text)
    return _json(text.strip()) if kind in (int, float, dict) else text


def _json(text: str) -> Any:
    """What a JSON text holds; the text itself if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

"""Countdown problems from rows of files that others made: `{"nums": [3, 5], "target": 8, ...}`.

Every bound that a later command enforces is checked here, without a search: 2 to 6 numbers, and numbers and target from
0 to `MAX_NUMBER`. Whether a problem has a solution is another question (`Problems.solvable`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from apr.errors import DataError
from envs.countdown.problems import MAX_NUMBER, problem_id, problem_of

MIN_NUMBERS, MAX_NUMBERS = 2, 6
NUMBERS = ("numbers", "nums")  # names of the column, the first that is there counts
TARGET = "target"
_INTEGER = re.compile(r"\s*([0-9]{1,30})(?:\.0*)?\s*", re.ASCII)
_LIST = re.compile(r"\s*(?:\[(?P<inner>[^\[\]]*)\]|\((?P<round>[^()]*)\)|(?P<bare>[^\[\]()]*))\s*", re.ASCII)
_BETWEEN = re.compile(r"\s*[,;]\s*|\s+", re.ASCII)
_SHOWN = 60  # characters of a value in a message


def problem_from(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the problem of a row: `id`, `numbers` in ascending order, `target`. Other columns are ignored.

    Numbers are a list, or a text such as `[1, 2]`, `1 2 3` or `1,2,3`. An integer is an integer, a float without a
    fraction (tables with gaps store 98 as 98.0), or its digits as text; never a boolean. Raises `DataError` that says
    what is wrong.
    """
    name = next((name for name in NUMBERS if name in row), None)
    missing = [*(["nums or numbers"] if name is None else []), *([TARGET] if TARGET not in row else [])]
    if name is None or missing:
        there = ", ".join(map(str, list(row)[:12])) or "none"
        raise DataError(f"it has no column {' and no column '.join(missing)} (its columns: {there})")
    numbers = [_integer(value, f"a number of {name}") for value in _values(row[name], name)]
    target = _integer(row[TARGET], TARGET)
    check_bounds(numbers, target)
    return problem_of(numbers, target)


def is_written(problem: Mapping[str, Any]) -> bool:
    """Whether a stored problem is just as `problem_of` writes it, within the bounds. Quick: millions are asked about."""
    numbers, target = problem.get("numbers"), problem.get("target")
    return (
        len(problem) == 3
        and type(numbers) is list
        and MIN_NUMBERS <= len(numbers) <= MAX_NUMBERS
        and {int} == set(map(type, numbers))
        and type(target) is int
        and numbers[0] >= 0
        and numbers[-1] <= MAX_NUMBER
        and 0 <= target <= MAX_NUMBER
        and sorted(numbers) == numbers
        and problem.get("id") == problem_id(numbers, target)
    )


def check_bounds(numbers: Sequence[int], target: int) -> None:
    """Raise `DataError` for a problem that no command takes."""
    if not MIN_NUMBERS <= len(numbers) <= MAX_NUMBERS:
        raise DataError(f"it has {len(numbers)} numbers, but a problem has {MIN_NUMBERS} to {MAX_NUMBERS}")
    for what, value in (*(("a number", number) for number in numbers), ("the target", target)):
        if not 0 <= value <= MAX_NUMBER:
            shown = str(value) if abs(value) < 10**30 else "far too large"
            raise DataError(f"{what} is {shown}, but numbers and targets are from 0 to {MAX_NUMBER}")


def _values(value: Any, name: str) -> Sequence[Any]:
    if isinstance(value, str):
        match = _LIST.fullmatch(value)
        if match is None:
            raise DataError(f"{name} is {_shown(value)}, not a list of numbers such as [1, 2, 3]")
        inner = next(text for text in match.groups() if text is not None).strip()
        return _BETWEEN.split(inner) if inner else ()
    if isinstance(value, list | tuple):
        return value
    raise DataError(f"{name} is {_shown(value)}, not a list of numbers such as [1, 2, 3]")


def _integer(value: Any, what: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    if isinstance(value, str) and (match := _INTEGER.fullmatch(value)) is not None:
        return int(match[1])
    if value is None or value == "":
        raise DataError(f"{what} is missing")
    raise DataError(f"{what} is {_shown(value)}, not an integer from 0 to {MAX_NUMBER}")


def _shown(value: Any) -> str:
    text = f"of type {type(value).__name__}" if isinstance(value, dict | list) else ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

"""Problems from rows of files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr.errors import DataError
from envs.countdown.problems import MAX_NUMBER, problem_of


def problem_from(row: Mapping[str, Any]) -> dict[str, Any]:
    """The problem in a row with `numbers` and `target`. Raises `DataError` that says what is wrong."""
    numbers, target = row.get("numbers"), row.get("target")
    if not isinstance(numbers, list) or not 2 <= len(numbers) <= 6:
        raise DataError(f"numbers {numbers!r} are not 2 to 6 numbers")
    for number in (*numbers, target):
        if type(number) is not int or not 0 <= number <= MAX_NUMBER:
            raise DataError(f"{number!r} is no integer from 0 to {MAX_NUMBER}")
    return problem_of(numbers, int(str(target)))

"""Fields of problems are read as the type that a drawn problem has."""

from typing import Any

import pytest

from apr.errors import DataError
from envs.fields import like


@pytest.mark.parametrize(
    ("value", "example", "wanted"),
    [
        ("12 34", [1], [12, 34]),
        (" 12,34 ; 5", [1], [12, 34, 5]),
        ("[12, 34]", [1], [12, 34]),
        ("a b", ["x"], ["a", "b"]),
        ('["a b", "c"]', ["x"], ["a b", "c"]),
        ("", [1], []),
        ("[[1, 2], [3]]", [[0]], [[1, 2], [3]]),
        ([98.0, "7"], [1], [98, 7]),
        ("98.0", 1, 98),
        (3, 0.5, 3.0),
        ("0.25", 0.5, 0.25),
        ("True", False, True),
        ("12", "text", "12"),
        ([1, "a"], [], [1, "a"]),
    ],
)
def test_a_value_is_read_as_the_example(value: Any, example: Any, wanted: Any) -> None:
    assert repr(like(value, example, "field")) == repr(wanted)


@pytest.mark.parametrize(
    ("value", "example", "said"),
    [
        ("twelve", 1, "field is 'twelve', not an integer"),
        (2.5, 1, "not an integer"),
        (True, 1, "not an integer"),
        (1, False, "not true or false"),
        ("nan", 0.5, "not a finite number"),
        (float("inf"), 0.5, "not a finite number"),
        (12, "text", "not a text"),
        ("12 x", [1], "an item of field is 'x', not an integer"),
        ("[1, 2", [1], "not a list"),
        ("[" * 100_000, [1], "not a list"),
        ({"a": 1}, [1], "not a list"),
    ],
)
def test_a_value_of_another_type_is_named(value: Any, example: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        like(value, example, "field")

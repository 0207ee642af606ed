"""Rows of others' files as Countdown problems: every bound is checked, every refusal says why."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr.errors import DataError
from envs.countdown.problems import MAX_NUMBER, Problems
from envs.countdown.rows import problem_from


@pytest.mark.parametrize(
    "row",
    [
        {"nums": [5, 3], "target": 8},
        {"numbers": [3, 5], "target": 8, "solution": ["3+5=8"], "optimal_path": "..."},
        {"numbers": (5, 3), "nums": [9, 9], "target": "8"},
        {"nums": [3.0, 5.0], "target": 8.0},
        {"nums": ["3", " 5 "], "target": "8.0"},
        *(
            {"nums": text, "target": "8"}
            for text in ("[3, 5]", "3 5", "5,3", "3;5", "(5, 3)", "[5 3]", " 3, 5 ", "[3.0, 5]")
        ),
    ],
)
def test_rows_that_are_problems(row: dict[str, Any]) -> None:
    assert problem_from(row) == {"id": "8:3-5", "numbers": [3, 5], "target": 8}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({}, "no column nums or numbers and no column target .its columns: none."),
        ({"num": [1, 2], "target": 3}, "no column nums or numbers .its columns: num, target."),
        ({"nums": [1, 2]}, "no column target"),
        ({"nums": [7], "target": 7}, "1 numbers, but a problem has 2 to 6"),
        ({"nums": [], "target": 7}, "0 numbers"),
        ({"nums": "[]", "target": 7}, "0 numbers"),
        ({"nums": list(range(7)), "target": 7}, "7 numbers"),
        ({"nums": list(range(100_000)), "target": 7}, "100000 numbers"),
        ({"nums": [1, -2], "target": 3}, "a number is -2, but numbers and targets are from 0"),
        ({"nums": "1 -2", "target": 3}, "not an integer"),
        ({"nums": [1, MAX_NUMBER + 1], "target": 3}, "from 0 to"),
        ({"nums": [1, 2], "target": MAX_NUMBER + 1}, "target is"),
        ({"nums": [1, 2], "target": 10**5000}, "far too large"),
        ({"nums": [1, 2], "target": "9" * 5000}, "not an integer"),
        ({"nums": [1, 2], "target": -1}, "target is -1"),
        ({"nums": [1, 2], "target": None}, "target is missing"),
        ({"nums": [1, 2], "target": ""}, "target is missing"),
        ({"nums": [1, None], "target": 3}, "a number of nums is missing"),
        ({"nums": None, "target": 3}, "not a list"),
        ({"nums": 12, "target": 3}, "not a list"),
        ({"nums": "[1, 2", "target": 3}, "not a list"),
        ({"nums": "[[1, 2]]", "target": 3}, "not a list"),
        ({"nums": "1,,2", "target": 3}, "missing"),
        ({"nums": {"a": 1}, "target": 3}, "not a list"),
        ({"nums": [1, True], "target": 3}, "True, not an integer"),
        ({"nums": [1, 2], "target": False}, "False, not an integer"),
        ({"nums": [1, 2.5], "target": 3}, "2.5, not an integer"),
        ({"nums": [1, 2], "target": float("nan")}, "nan, not an integer"),
        ({"nums": [1, 2], "target": float("inf")}, "inf, not an integer"),
        ({"nums": [1, 2], "target": 1e300}, "not an integer"),
        ({"nums": [1, "²"], "target": 3}, "not an integer"),
        ({"nums": [1, "٣"], "target": 3}, "not an integer"),
        ({"nums": [1, "__import__('os')"], "target": 3}, "not an integer"),
        ({"nums": [1, [2]], "target": 3}, "of type list"),
    ],
)
def test_rows_that_are_none_say_why(row: dict[str, Any], why: str) -> None:
    with pytest.raises(DataError, match=why) as caught:
        problem_from(row)
    assert len(str(caught.value)) < 300


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.text("[](),; 0123456789.-", max_size=12),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["nums", "numbers", "target", "x"]), VALUES))
def test_whatever_a_row_holds_it_is_a_problem_or_refused(row: dict[str, Any]) -> None:
    try:
        problem = problem_from(row)
    except DataError:
        return
    assert 2 <= len(problem["numbers"]) <= 6 and problem["numbers"] == sorted(problem["numbers"])
    assert all(0 <= value <= MAX_NUMBER and type(value) is int for value in (*problem["numbers"], problem["target"]))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("large", [[10**9, 10**9], [401] * 6, [10**15 - 1, 10**15]])
def test_one_large_problem_slows_no_other(large: list[int]) -> None:
    """Compiled arithmetic does not hold it; the thousands beside it are checked as fast as ever."""
    size = len(large)
    numbers = np.tile(np.arange(1, size + 1) * 13, (5_000, 1))
    numbers[1234] = sorted(large)
    found = Problems(numbers, np.full(5_000, sum(numbers[0]))).solvable()
    assert found.sum() == 4_999 + found[1234] and found[0]

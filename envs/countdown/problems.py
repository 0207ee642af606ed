"""Countdown problems, made from a seed: numbers and target drawn uniformly, again until solvable and not seen before.

A problem is its sorted numbers and its target. By default (`split_by: multisets`) splits share no number multiset: each
belongs to one split, decided by a hash of (seed, multiset). So the root of a held-out problem was never seen in training.
States below it were: most held-out problems have a child state that wins and that a training problem with the same target
has as well (docs/data.md has the figures).

With `split_by: states` splits share no winning child state instead (`envs.countdown.states`): a hash of (seed, target,
state) puts each in one split, and a problem belongs to a split if all its winning child states do. Problems whose states
are in several splits belong to none. Losing child states, and a multiset with another target, may be in two splits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from math import comb
from random import Random
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from apr.errors import DataError
from apr.seeds import derive_rng
from envs.base import SPLITS, Options, Part
from envs.countdown.states import winning_states
from solvers.exhaustive import reachable

SHARED = {"multisets": "number multiset", "states": "winning child state"}  # what splits do not share, by `split_by`
MAX_DRAWS_PER_PROBLEM = 2_000
MAX_DRAWS_IN_VAIN = 2_000_000  # without one new problem: there are hardly more
MAX_NUMBER = 10**15  # a problem is stored as 64-bit integers
BATCH = 1 << 14  # draws looked at together, at most
DRAWS_FOR_ONE = 8  # about as many as one solvable problem takes


class CountdownSpec(Options):
    """Which problems there are. The paper: 4 numbers from 1-99, targets 10-100."""

    numbers: int = Field(default=4, ge=2, le=6, description="numbers in a problem")
    low: int = Field(default=1, ge=0, le=MAX_NUMBER, description="smallest number")
    high: int = Field(default=99, ge=1, le=MAX_NUMBER, description="largest number")
    target_low: int = Field(default=10, ge=0, le=MAX_NUMBER, description="smallest target")
    target_high: int = Field(default=100, ge=0, le=MAX_NUMBER, description="largest target")
    validation_share: float = Field(default=0.08, gt=0, lt=0.5, description="of number multisets, or of states")
    test_share: float = Field(default=0.17, gt=0, lt=0.5, description="of number multisets, or of states")
    split_by: Literal["multisets", "states"] = Field(
        default="multisets", description="what splits do not share: number multisets, or winning child states"
    )

    @model_validator(mode="after")
    def _ranges(self) -> CountdownSpec:
        if self.low > self.high or self.target_low > self.target_high:
            raise ValueError("low must not exceed high, nor target_low target_high")
        return self

    @property
    def possible(self) -> int:
        """Distinct problems in all splits, those without a solution included."""
        return comb(self.high - self.low + self.numbers, self.numbers) * (self.target_high - self.target_low + 1)

    def parts(self, numbers: Sequence[Sequence[int]], targets: Sequence[int]) -> list[list[Part]]:
        """What each problem may share with no problem of another split: its number multiset, ascending; or its winning child
        states, each as the target and then its numbers. A problem without a solution has no such state."""
        if self.split_by == "multisets":
            return [[tuple(sorted(row))] for row in numbers]
        states = winning_states(numbers, targets)
        return [[(target, *state) for state in row] for row, target in zip(states, targets)]

    def splits(self, numbers: Sequence[Sequence[int]], targets: Sequence[int]) -> list[set[str]]:
        """The splits that the parts of each problem belong to. It is a problem of a split if that is the only one."""
        return [{self.split_of(part) for part in parts} for parts in self.parts(numbers, targets)]


class Problems(NamedTuple):
    """Problems as columns: `numbers` int64[N, n], ascending in each row, and `targets` int64[N]."""

    numbers: NDArray[np.int64]
    targets: NDArray[np.int64]

    def where(self, chosen: NDArray[np.bool_]) -> Problems:
        """The rows for which `chosen` bool[N] is true."""
        return Problems(self.numbers[chosen], self.targets[chosen])

    def solvable(self) -> NDArray[np.bool_]:
        """bool[N]: which problems have a solution."""
        from solvers.compiled import solvable  # here: compiled code takes a second to load, and few commands need it

        try:
            return solvable(self.numbers, self.targets)
        except ValueError:  # some are too large for compiled arithmetic: halve until those are alone
            if len(self.targets) == 1:
                numbers, target = self.numbers[0].tolist(), int(self.targets[0])
                return np.array([target in reachable(tuple(sorted(numbers)))])
            middle = len(self.targets) // 2
            halves = (slice(None, middle), slice(middle, None))
            parts = [Problems(self.numbers[rows], self.targets[rows]).solvable() for rows in halves]
            return np.concatenate(parts)

    def of_split(self, spec: CountdownSpec, split: str) -> NDArray[np.bool_]:
        """bool[N]: which problems belong to a split."""
        splits = spec.splits(self.numbers.tolist(), self.targets.tolist())
        return np.array([found == {split} for found in splits], np.bool_)

    def dictionaries(self) -> list[dict[str, Any]]:
        return [problem_of(numbers, target) for numbers, target in zip(self.numbers.tolist(), self.targets.tolist())]


def problem_id(numbers: Sequence[int], target: int) -> str:
    """The id of a problem; `numbers` ascending."""
    return f"{target}:{'-'.join(map(str, numbers))}"


def problem_of(numbers: Sequence[int], target: int) -> dict[str, Any]:
    """A problem as plain data: id, ascending numbers, target."""
    ordered = sorted(numbers)
    return {"id": problem_id(ordered, target), "numbers": ordered, "target": target}


def draw(spec: CountdownSpec, split: str, count: int, seed: int) -> Iterator[Problems]:
    """`count` distinct solvable problems of a split, batch by batch in columns: millions fit. Raises `DataError` if there are
    too few."""
    if split not in SPLITS:
        raise DataError(f"no split {split!r}: there are {', '.join(SPLITS)}")
    if count > spec.possible:
        raise DataError(
            f"{count} {split} problems were asked for, but these numbers and targets make no more than "
            f"{spec.possible}: widen their ranges, or ask for fewer"
        )
    rng = derive_rng(seed, "problems", split)
    seen: set[bytes] = set()
    draws, last, most = 0, 0, MAX_DRAWS_PER_PROBLEM * count
    more = "" if spec.split_by == "multisets" else (
        "; or set a larger share for that split: split_by=states leaves out problems whose winning child states belong to "
        "several splits"
    )  # fmt: skip
    while len(seen) < count:
        if draws == most or draws - last >= MAX_DRAWS_IN_VAIN:
            raise DataError(
                f"only {len(seen)} of {count} distinct solvable {split} problems found in {draws} draws: "
                f"widen the ranges of numbers or targets, or ask for fewer{more}"
            )
        size = min(BATCH, DRAWS_FOR_ONE * (count - len(seen)), most - draws)
        draws += size
        drawn = _usable(spec, _drawn(spec, rng, size), split)
        before = len(seen)
        yield drawn.where(_new(drawn, seen, count))
        last = draws if len(seen) > before else last


def _usable(spec: CountdownSpec, drawn: Problems, split: str) -> Problems:
    """Those of a split that have a solution. What is cheaper is tested first."""
    if spec.split_by == "multisets":
        drawn = drawn.where(drawn.of_split(spec, split))
        return drawn.where(drawn.solvable())
    drawn = drawn.where(drawn.solvable())
    return drawn.where(drawn.of_split(spec, split))


def _drawn(spec: CountdownSpec, rng: Random, size: int) -> Problems:
    """`size` problems, solvable or not, each as one draw of its numbers and then its target."""
    s = spec
    rows = (
        (*(rng.randint(s.low, s.high) for _ in range(s.numbers)), rng.randint(s.target_low, s.target_high))
        for _ in range(size)
    )
    table = np.fromiter(chain.from_iterable(rows), np.int64, size * (s.numbers + 1)).reshape(size, -1)
    return Problems(np.sort(table[:, :-1], axis=1), table[:, -1])


def _new(problems: Problems, seen: set[bytes], count: int) -> NDArray[np.bool_]:
    """bool[N]: which problems are not in `seen` yet; they are put there, until it holds `count`."""
    rows = np.column_stack(problems).tobytes()
    width = len(rows) // max(1, len(problems.targets))
    new = np.zeros(len(problems.targets), np.bool_)
    for i in range(len(new)):
        row = rows[i * width : (i + 1) * width]
        if row not in seen and len(seen) < count:
            seen.add(row)
            new[i] = True
    return new


def solvable_rows(numbers: Sequence[Sequence[int]], targets: Sequence[int]) -> NDArray[np.bool_]:
    """bool[N]: which problems have a solution; `numbers` ascending in each, and not equally many in all."""
    found = np.zeros(len(targets), np.bool_)
    lengths = np.array([len(row) for row in numbers])
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        columns = (np.array([numbers[i] for i in rows], np.int64), np.array([targets[i] for i in rows], np.int64))
        found[rows] = Problems(*columns).solvable()
    return found

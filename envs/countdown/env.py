"""Countdown problems, made from a seed: numbers and target drawn uniformly, again until solvable and not seen before.

A problem is its sorted numbers and its target. Splits share no number multiset, so no search tree of a held-out problem
was seen in training: each multiset belongs to one split, decided by a hash of (seed, multiset).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from apr.errors import DataError
from apr.seeds import derive_rng, derive_seed
from apr.tokens.compact import CompactDialect
from envs.countdown.verify import Verdict, verify
from solvers.exhaustive import reachable

SPLITS = ("train", "validation", "test")
MAX_DRAWS_PER_PROBLEM = 2_000


class CountdownSpec(BaseModel):
    """Which problems there are. The paper: 4 numbers from 1-99, targets 10-100."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    numbers: int = Field(default=4, ge=2, le=6, description="numbers in a problem")
    low: int = Field(default=1, ge=0)
    high: int = Field(default=99, ge=1)
    target_low: int = Field(default=10, ge=0)
    target_high: int = Field(default=100, ge=0)
    validation_share: float = Field(default=0.08, gt=0, lt=0.5, description="of number multisets")
    test_share: float = Field(default=0.17, gt=0, lt=0.5, description="of number multisets")
    split_seed: int = 0

    @model_validator(mode="after")
    def _ranges(self) -> CountdownSpec:
        if self.low > self.high or self.target_low > self.target_high:
            raise ValueError("low must not exceed high, nor target_low target_high")
        return self


def problem_of(numbers: Sequence[int], target: int) -> dict[str, Any]:
    """A problem as plain data: id, ascending numbers, target."""
    ordered = sorted(numbers)
    return {"id": f"{target}:{'-'.join(map(str, ordered))}", "numbers": ordered, "target": target}


def check_problem(problem: dict[str, Any], where: str) -> None:
    """Raise `DataError` if `problem` is malformed or has no solution."""
    numbers, target = problem.get("numbers"), problem.get("target")
    well_typed = isinstance(numbers, list) and isinstance(target, int) and all(isinstance(n, int) for n in numbers)
    if not well_typed or not 2 <= len(numbers) <= 6 or min(numbers) < 0 or target < 0:  # type: ignore[arg-type,operator]
        raise DataError(f"{where}: not a Countdown problem: {problem!r}. Needed: 2 to 6 numbers >= 0, target >= 0")
    if target not in reachable(tuple(sorted(numbers))):  # type: ignore[arg-type]
        raise DataError(f"{where}: problem {problem!r} has no solution; leave it out")


class Countdown:
    """The environment: `spec` says which problems, `dialect` how they are spelt."""

    name = "countdown"

    def __init__(self, spec: CountdownSpec, dialect: CompactDialect) -> None:
        self.spec = spec
        self.dialect = dialect

    def split_of(self, numbers: Sequence[int]) -> str:
        """The split that this number multiset belongs to."""
        share = derive_seed(self.spec.split_seed, "split", *sorted(numbers)) / 2**63
        if share < self.spec.test_share:
            return "test"
        return "validation" if share < self.spec.test_share + self.spec.validation_share else "train"

    def problems(self, split: str, count: int, seed: int) -> list[dict[str, Any]]:
        if split not in SPLITS:
            raise DataError(f"no split {split!r}: there are {', '.join(SPLITS)}")
        s = self.spec
        rng = derive_rng(seed, "problems", split)
        found: dict[str, dict[str, Any]] = {}
        draws = 0
        while len(found) < count:
            draws += 1
            if draws > MAX_DRAWS_PER_PROBLEM * count:
                raise DataError(
                    f"only {len(found)} of {count} distinct solvable {split} problems found in {draws} draws: "
                    "widen the ranges of numbers or targets, or ask for fewer"
                )
            numbers = tuple(sorted(rng.randint(s.low, s.high) for _ in range(s.numbers)))
            target = rng.randint(s.target_low, s.target_high)
            if self.split_of(numbers) == split and target in reachable(numbers):
                problem = problem_of(numbers, target)
                found.setdefault(problem["id"], problem)
        return list(found.values())

    def prompt(self, problem: dict[str, Any]) -> tuple[int, ...]:
        return self.dialect.prompt(problem["numbers"], problem["target"])

    def read(self, ids: tuple[int, ...] | None) -> str | None:
        return None if ids is None else self.dialect.answer(ids)

    def verify(self, problem: dict[str, Any], answer: str | None) -> Verdict:
        return verify(problem["numbers"], problem["target"], answer)

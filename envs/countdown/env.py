"""Countdown as an environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from apr.threads.trace import Trace
from apr.tokens.speller import Message, Speller
from envs.base import Part, Problem, Teacher, Verdict
from envs.countdown.demonstrate import demonstrate
from envs.countdown.problems import SHARED, CountdownSpec, draw, problem_of, solvable_rows
from envs.countdown.rows import is_written, problem_from
from envs.countdown.teacher import SearchTeacher
from envs.countdown.verify import canonical, verify
from envs.countdown.wording import SYSTEM, UNTRAINED
from envs.environment import Environment

if TYPE_CHECKING:
    import pyarrow as pa


class Countdown(Environment[CountdownSpec]):
    """Problems as `envs.countdown.problems` draws them, judged by `envs.countdown.verify`, taught by `solvers`."""

    name = "countdown"
    title = "Countdown"
    about = "Reach a target from given numbers with + - * /, each number used exactly once."
    spellers = ("compact", "paper")
    Options = CountdownSpec
    teacher_options = SearchTeacher

    def __init__(self, options: CountdownSpec | None = None) -> None:
        super().__init__(options)
        self.shares = SHARED[self.options.split_by]

    def problems(self, split: str, count: int, seed: int) -> Iterator[Problem]:
        for batch in draw(self.options, split, count, seed):
            yield from batch.dictionaries()

    def problem(self, row: Mapping[str, Any]) -> Problem:
        return problem_from(row)

    def faults(self, problems: Sequence[Problem]) -> dict[int, str]:
        """Malformed problems, and those without a solution."""
        odd = [i for i, problem in enumerate(problems) if not is_written(problem)]
        found = {odd[i]: fault for i, fault in super().faults([problems[i] for i in odd]).items()}
        sound = [i for i in range(len(problems)) if i not in found]
        numbers, targets = [problems[i]["numbers"] for i in sound], [problems[i]["target"] for i in sound]
        unsolvable = np.flatnonzero(~solvable_rows(numbers, targets)).tolist()
        return found | {sound[i]: f"{problems[sound[i]]['id']} has no solution" for i in unsolvable}

    def fitted(self, problems: Sequence[Problem]) -> dict[str, Any]:
        numbers, targets = [p["numbers"] for p in problems], [p["target"] for p in problems]
        ranges = {
            "numbers": max(map(len, numbers)), "low": min(row[0] for row in numbers),
            "high": max(1, *(row[-1] for row in numbers)), "target_low": min(targets), "target_high": max(targets),
        }  # fmt: skip
        return self.options.model_copy(update=ranges).model_dump(mode="json")

    def parts(self, problems: Sequence[Problem]) -> list[list[Part]]:
        return self.options.parts([p["numbers"] for p in problems], [p["target"] for p in problems])

    def possible(self, problem: Problem) -> bool:
        """Whether its multiset, or its size and target (split by states), are within the ranges."""
        spec, numbers = self.options, problem["numbers"]
        if len(numbers) != spec.numbers:
            return False
        if spec.split_by == "multisets":
            return all(spec.low <= number <= spec.high for number in numbers)
        return bool(spec.target_low <= problem["target"] <= spec.target_high)

    def messages(self, problem: Problem, untrained: bool = False) -> list[Message]:
        told = f"Numbers: {' '.join(map(str, sorted(problem['numbers'])))}. Target: {problem['target']}."
        return [
            {"role": "system", "content": UNTRAINED if untrained else SYSTEM},
            {"role": "user", "content": told},
        ]

    def read(self, text: str) -> str:
        return text

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        return verify(problem["numbers"], problem["target"], answer)

    def canonical(self, answer: str) -> str:
        key = canonical(answer)
        if isinstance(key, str):
            return f"text {key}"
        return "steps " + "; ".join(f"{level}: {s.a}{s.op}{s.b}={s.result}" for level, s in key)

    def describe(self, problem: Problem) -> str:
        return f"{', '.join(map(str, problem['numbers']))} to make {problem['target']}"

    def example(self) -> Problem:
        return problem_of([3, 5, 8], 23)

    def settings(self) -> str:
        spec = self.options
        return (
            f"{spec.numbers} numbers drawn uniformly from {spec.low}-{spec.high} and the target from "
            f"{spec.target_low}-{spec.target_high}, all drawn again until the problem has a solution and is new to its split."
        )

    def remark(self) -> str:
        if self.options.split_by == "states":
            return (
                "A state is what one step leaves of the numbers, with the target that they reach. Problems with states of\n"
                "several splits are in none. Number multisets may be in several, with other targets."
            )
        return (
            "States below the root may be in several: what one step leaves of a test problem's numbers may win for a\n"
            "training problem with the same target too."
        )

    def child_fault(self, problem: Problem, message: Sequence[int], speller: Speller) -> str | None:
        """A child returns a whole solution, but in the paper speller: there the rest of the way, which the root's answer
        holds."""
        if not message or speller.name == "paper":
            return None
        verdict = self.verify(problem, speller.answer(message))
        return None if verdict.ok else f"returns a wrong solution: {verdict.reason}"

    def demonstrate(self, problem: Problem, teacher: Teacher, copy: int = 0) -> Trace | None:
        return demonstrate(problem, teacher, copy)

    def demonstrations(self, problems: Sequence[Problem], teacher: Teacher) -> pa.Table | None:
        from envs.countdown.fast import fast

        return fast(problems, teacher)

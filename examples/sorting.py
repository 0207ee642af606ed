"""A task of one's own: sort digits, in children that sort the halves and a parent that merges them.

apr data generate --config examples/sorting.yaml env=examples/sorting.py:Sorting out=runs/sorting/data
"""

from random import Random
from typing import Any

from pydantic import Field

from apr.scripts.script import Answer, Branch, Fork, Join, Pieces, Say, Script
from apr.tokens.speller import Message
from envs.base import Options, Problem, TeacherOptions, Verdict
from envs.environment import Environment


class SortingOptions(Options):
    length: int = Field(default=6, ge=2, le=40, description="digits to sort")


class Sorting(Environment[SortingOptions]):
    """Sort digits in ascending order."""

    name = "sorting"
    title = "Sorting"
    about = "Sort digits in ascending order."
    Options = SortingOptions

    def sample(self, rng: Random) -> dict[str, Any]:
        return {"digits": [rng.randrange(10) for _ in range(self.options.length)]}

    def words(self, problem: Problem) -> Pieces:
        return ("sort", *map(str, problem["digits"]), ":")

    def vocabulary(self) -> Pieces:
        return ("sort", "halve", "merge", ":", *map(str, range(10)))

    def messages(self, problem: Problem, untrained: bool = False) -> list[Message]:
        return [{"role": "user", "content": f"Sort these digits: {' '.join(map(str, problem['digits']))}"}]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        right, given = [str(digit) for digit in sorted(problem["digits"])], (answer or "").split()
        placed = sum(a == b for a, b in zip(right, given)) / max(1, len(right), len(given))
        return Verdict(given == right, "sorted" if given == right else f"{placed:.0%} in place", placed)

    def script(self, problem: Problem, options: TeacherOptions, rng: Random) -> Script:
        digits = tuple(map(str, problem["digits"]))
        halves = digits[: len(digits) // 2], digits[len(digits) // 2 :]
        results = [tuple(sorted(half)) for half in halves]
        merged = Answer(tuple(sorted(digits)))
        if options.protocol == "serial":  # the same steps, one after the other
            said = [word for half, result in zip(halves, results) for word in ("sort", *half, ":", *result)]
            return (Say(("halve", *said, "merge")), merged)
        told = [("sort", *half, ":") for half in halves]
        children = tuple(Branch(message, message, (), result) for message, result in zip(told, results))
        return (Say(("halve",)), Fork(children), Join(), Say(("merge",)), merged)

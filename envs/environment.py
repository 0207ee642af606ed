"""The easy way to write an environment: a subclass says how one problem is drawn, told and judged, and inherits the rest
(splits, distinct problems, checks of stored problems). A task fits in a few dozen lines (`examples/sorting.py`).
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel

from apr.errors import ConfigError, DataError
from apr.scripts.script import Script
from apr.seeds import derive_rng
from apr.threads.trace import Trace
from apr.tokens.speller import Message, Speller
from apr.user_code import short
from envs.base import (
    SPLITS,
    Options,
    Part,
    PlainTeacher,
    Problem,
    Teacher,
    TeacherOptions,
    Verdict,
    written,
)
from envs.fields import like

if TYPE_CHECKING:
    import pyarrow as pa

MAX_DRAWS_IN_VAIN = 10_000  # in a row without one new problem of the split: there are hardly more

Own = TypeVar("Own", bound=Options)


class Environment(Generic[Own]):
    """Base of an environment. A subclass sets `name`, `title` and `about`, and writes at least `sample`, `messages` or
    `words` with `vocabulary`, and `verify`.

    `Options` may be extended: `class Sorting(Environment[SortingOptions])` with `Options = SortingOptions`.
    """

    name: str
    title: ClassVar[str]
    about: ClassVar[str]
    shares: str = "problem"
    spellers: ClassVar[tuple[str, ...]] = ("words",)
    Options: ClassVar[type[BaseModel]] = Options
    teacher_options: ClassVar[type[TeacherOptions]] = PlainTeacher

    source: str | None = None  # the name that the registry found it by

    def __init__(self, options: Own | None = None) -> None:
        self.options: Own = options if options is not None else typing.cast(Own, self.Options())

    def config(self) -> dict[str, Any]:
        """Its name and all its options, as records have them; of a file the name alone, without its folder."""
        return {"name": short(self.source or self.name), **self.options.model_dump(mode="json")}

    def having(self, options: Mapping[str, Any]) -> Self:
        """The same environment with other options."""
        env = type(self)(typing.cast(Own, self.Options.model_validate(dict(options))))
        env.source = self.source
        return env

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process by name: a class in a user's file cannot be pickled otherwise."""
        if self.source is None:
            return type(self), (self.options,)
        from envs.registry import rebuilt

        return rebuilt, (self.source, self.options.model_dump())

    # What a subclass writes.

    def sample(self, rng: Random) -> dict[str, Any]:
        """Draw one problem's own fields, without an id."""
        raise ConfigError(f"environment {self.name} draws no problems: import them with `apr data import`")

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        raise NotImplementedError(f"{type(self).__name__}.verify")

    def messages(self, problem: Problem, untrained: bool = False) -> list[Message]:
        raise ConfigError(f"environment {self.name} has no prompt for chat models: write its `messages`")

    def words(self, problem: Problem) -> Sequence[str]:
        raise ConfigError(f"environment {self.name} has no vocabulary of words: write its `words` and `vocabulary`")

    def vocabulary(self) -> Sequence[str]:
        return ()

    def script(self, problem: Problem, options: TeacherOptions, rng: Random) -> Script | None:
        """What a teacher says of a problem; None if it gives up."""
        raise ConfigError(f"environment {self.name} has no teacher: write its `script`, or leave `solvers` out")

    # What it may change.

    def identify(self, fields: Mapping[str, Any]) -> str:
        """The id of a problem: its fields, joined."""
        return ":".join("-".join(map(str, v)) if isinstance(v, list) else str(v) for v in fields.values())

    def check(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A problem's own fields, each of the type that `sample` gives it. Raises `DataError` for what is no problem of it."""
        known = self._drawn
        if missing := [name for name in known if fields.get(name) is None]:
            there = ", ".join(map(str, list(fields)[:12])) or "none"
            raise DataError(f"it has no {' and no '.join(missing)} (its columns: {there})")
        return {name: like(fields[name], value, name) for name, value in known.items()}

    @cached_property
    def _drawn(self) -> dict[str, Any]:
        """The fields of a problem that was drawn. Raises `ConfigError` where there are none, or they cannot be a problem's."""
        if type(self).sample is Environment.sample:
            raise ConfigError(
                f"environment {self.name} does not say which fields its problems have: write its `sample`, or its `check`"
            )
        drawn = self.sample(Random(0))
        if not isinstance(drawn, dict) or not drawn or not all(isinstance(name, str) for name in drawn):
            raise ConfigError(
                f"`sample` of environment {self.name} gave {drawn!r}: return a dictionary of fields by name"
            )
        if taken := sorted({"id", "split"}.intersection(drawn)):
            raise ConfigError(
                f"environment {self.name} cannot have fields called {', '.join(taken)}: rename them in `sample`"
            )
        for name, value in drawn.items():
            if not isinstance(value, str | int | float | list | dict):
                raise ConfigError(
                    f"the field {name} of environment {self.name} is of type {type(value).__name__}: let `sample` give plain "
                    "texts, numbers and lists"
                )
        return drawn

    def read(self, text: str) -> str:
        return text.strip()

    def canonical(self, answer: str) -> str:
        return " ".join(answer.split())

    def describe(self, problem: Problem) -> str:
        return ", ".join(f"{name} {value}" for name, value in problem.items() if name not in ("id", "condition"))

    def example(self) -> Problem:
        return self.problem(self.sample(Random(0)))

    def settings(self) -> str:
        said = ", ".join(f"{name} {value}" for name, value in self.options.model_dump(mode="json").items())
        return f"Options: {said}."

    def remark(self) -> str:
        return ""

    def possible(self, problem: Problem) -> bool:
        return True

    def fitted(self, problems: Sequence[Problem]) -> dict[str, Any]:
        return self.options.model_dump(mode="json")

    def parts(self, problems: Sequence[Problem]) -> list[list[Part]]:
        return [[(problem["id"],)] for problem in problems]

    def child_fault(self, problem: Problem, message: Sequence[int], speller: Speller) -> str | None:
        return None

    # What it inherits.

    def split_of(self, part: Part) -> str:
        return self.options.split_of(part)

    def problem(self, row: Mapping[str, Any]) -> Problem:
        fields = self.check(row)
        return {"id": self.identify(fields), **fields}

    def faults(self, problems: Sequence[Problem]) -> dict[int, str]:
        found = {}
        for i, problem in enumerate(problems):
            try:
                right = self.problem(problem)
            except DataError as error:
                found[i] = str(error)
                continue
            if repr(right) != repr(problem):  # 3.0 is not 3
                found[i] = f"{problem!r} is not written as {right!r}"
        return found

    def problems(self, split: str, count: int, seed: int) -> Iterator[Problem]:
        if split not in SPLITS:
            raise DataError(f"no split {split!r}: there are {', '.join(SPLITS)}")
        rng = derive_rng(seed, "problems", split)
        seen: set[str] = set()
        vain = 0
        while len(seen) < count:
            fields = self.sample(rng)
            try:
                problem = self.problem(fields)
            except DataError as error:
                raise DataError(
                    f"environment {self.name} drew {fields!r}, which is none of its problems: {error}. Let `sample` give the "
                    "same fields each time, each of one type"
                ) from error
            [parts] = self.parts([problem])
            vain += 1
            if problem["id"] not in seen and {self.split_of(part) for part in parts} == {split}:
                seen.add(problem["id"])
                vain = 0
                yield problem
            elif vain >= MAX_DRAWS_IN_VAIN:
                raise DataError(
                    f"only {len(seen)} of {count} distinct {split} problems of {self.name} found, and {vain} draws in a row "
                    "gave no other: widen its options, or ask for fewer"
                )

    def demonstrate(self, problem: Problem, teacher: Teacher, copy: int = 0) -> Trace | None:
        if teacher.options.condition != "none":
            raise ConfigError(f"environment {self.name} has no conditioned demonstrations: leave `condition` out")
        script = self.script(problem, teacher.options, derive_rng(teacher.seed, "solver", problem["id"], copy))
        if script is None:
            return None
        return written(script, problem, teacher)

    def demonstrations(self, problems: Sequence[Problem], teacher: Teacher) -> pa.Table | None:
        return None

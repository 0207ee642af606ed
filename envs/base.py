"""The environment seam: a task's problems by split, what a model is told, and a verifier.

`Env` is what the rest of the project asks of a task. `Environment` is the easy way to write one: a subclass says how one
problem is drawn, told and judged, and inherits the rest (splits, distinct problems, checks of stored problems). A task
fits in a few dozen lines (`examples/sorting.py`).
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from apr.errors import ConfigError, DataError
from apr.scripts.script import Fork, Script
from apr.scripts.write import spell
from apr.seeds import derive_rng, derive_seed
from apr.threads.protocol import ThreadProtocol
from apr.threads.trace import Trace
from apr.tokens.dialect import Dialect, Message
from apr.tokens.encode import demonstration
from apr.user_code import short
from envs.fields import like

if TYPE_CHECKING:
    import pyarrow as pa

Problem = dict[str, Any]
Part = tuple[Any, ...]
SPLITS = ("train", "validation", "test")
MAX_DRAWS_IN_VAIN = 10_000  # in a row without one new problem of the split: there are hardly more


@dataclass(frozen=True, slots=True, init=False)
class Verdict:
    """A verifier's judgement of one answer.

    `ok`: the answer is right. `reason`: the first rule that it breaks, or what it achieves. `score`: partial credit from
    0 to 1; 1 for a right answer and 0 for a wrong one unless the environment says otherwise.

    Example: `Verdict(False, "3 of 4 items in order", score=0.75)`.
    """

    ok: bool
    reason: str
    score: float

    def __init__(self, ok: bool, reason: str, score: float | None = None) -> None:
        """Raise `ValueError` for a score that is not between 0 and 1."""
        score = float(ok) if score is None else float(score)
        if not 0 <= score <= 1:  # NaN is not either
            raise ValueError(f"a verdict has a score of {score}: scores lie between 0 and 1")
        object.__setattr__(self, "ok", ok)
        object.__setattr__(self, "reason", reason)
        object.__setattr__(self, "score", score)


class Options(BaseModel):
    """What every environment can be told. Splits are decided by a hash of `split_seed` and of what splits may not share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    validation_share: float = Field(default=0.08, gt=0, lt=0.5, description="share of the validation split")
    test_share: float = Field(default=0.17, gt=0, lt=0.5, description="share of the test split")
    split_seed: int = Field(
        default=0, description="decides which split a problem belongs to; keep it to keep the splits"
    )


class TeacherOptions(BaseModel):
    """What every teacher can be told: the protocol of its demonstrations. An environment adds its own in a subclass that
    forbids others; this class holds what it cannot check, where the environment's file may not be imported."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    protocol: typing.Literal["serial", "spawn_join"] = Field(
        description="how its demonstrations are written: serially, or with spawns and joins"
    )
    condition: typing.Literal["none", "context", "children"] = Field(
        default="none", description="what prompts of its demonstrations ask for"
    )
    scripts: Path | None = Field(
        default=None, description="a file of scripts (JSON lines) to write, in place of the environment's own teacher"
    )

    @classmethod
    def variants(cls) -> list[type[TeacherOptions]]:
        """What the teachers of the built-in environments can be told, for help texts."""
        from envs.registry import BUILT_IN, env_class  # which imports this module

        return [env_class(name).teacher_options for name in BUILT_IN]


class PlainTeacher(TeacherOptions):
    """A teacher without options of its own."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Teacher:
    """Writes demonstrations: options, how they are spelt and laid out, and `copies` per problem.

    Everything random in the `copy`-th demonstration of a problem comes from (seed, problem id, copy).
    """

    env: Env
    options: TeacherOptions
    dialect: Dialect
    protocol: ThreadProtocol
    seed: int
    copies: int = 1


class Env(typing.Protocol):
    """A task. Problems are plain dictionaries with a unique `id` and the environment's own fields.

    Example: Countdown has the problem `{"id": "24:3-5-8", "numbers": [3, 5, 8], "target": 24}`, for which
    `verify(problem, "8-5=3, 3*8=24")` says why this is wrong.
    """

    name: str
    title: ClassVar[str]  # of the task, for reports and cards
    about: ClassVar[str]  # what is asked, in one sentence
    shares: str  # what no two splits share, in the singular: "number multiset"
    dialects: ClassVar[tuple[str, ...]]  # built vocabularies for it; the first is the default
    teacher_options: ClassVar[type[TeacherOptions]]
    options: Options

    def __hash__(self) -> int: ...

    def config(self) -> dict[str, Any]:
        """Its name and all its options, as records have them."""
        ...

    def having(self, options: Mapping[str, Any]) -> Env:
        """The same environment with other options."""
        ...

    def problems(self, split: str, count: int, seed: int) -> Iterator[Problem]:
        """`count` distinct problems of a split. Raises `DataError` if there are fewer, or no such split."""
        ...

    def problem(self, row: Mapping[str, Any]) -> Problem:
        """The problem that a row of somebody's file describes. Raises `DataError` that says what is wrong with it."""
        ...

    def faults(self, problems: Sequence[Problem]) -> dict[int, str]:
        """What is wrong with stored problems, by their place; empty if nothing is."""
        ...

    def fitted(self, problems: Sequence[Problem]) -> dict[str, Any]:
        """The options, their ranges changed to hold just these problems, which somebody else made."""
        ...

    def parts(self, problems: Sequence[Problem]) -> list[list[Part]]:
        """What each problem may share with no problem of another split."""
        ...

    def split_of(self, part: Part) -> str:
        """The split that a part belongs to. A problem belongs to a split if all its parts do."""
        ...

    def possible(self, problem: Problem) -> bool:
        """Whether `problems` could draw this one with the options given."""
        ...

    def messages(self, problem: Problem, untrained: bool = False) -> list[Message]:
        """What a chat model is told, turn by turn, the last turn being the user's. `untrained`: to a model that has seen no
        demonstration, which must be told how to write its answer."""
        ...

    def words(self, problem: Problem) -> Sequence[str]:
        """The prompt for a vocabulary of words. Raises `ConfigError` if the environment has none."""
        ...

    def vocabulary(self) -> Sequence[str]:
        """Every word that prompts and demonstrations use; empty if it has no vocabulary of its own."""
        ...

    def read(self, text: str) -> str:
        """The answer in a trace's final message, as `verify` takes it."""
        ...

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """Whether the answer is right; never raises, whatever the answer says."""
        ...

    def canonical(self, answer: str) -> str:
        """The key under which an answer votes: two answers mean the same if and only if their keys are equal. `verify` then
        accepts both or neither. Decided by what the text says, never by whether it is right."""
        ...

    def describe(self, problem: Problem) -> str:
        """The problem for people, in a few words."""
        ...

    def example(self) -> Problem:
        """A problem to show."""
        ...

    def settings(self) -> str:
        """What the options say, in a sentence for cards."""
        ...

    def remark(self) -> str:
        """What else a reader must know of the splits, a sentence or two; empty if nothing."""
        ...

    def child_fault(self, problem: Problem, message: Sequence[int], dialect: Dialect) -> str | None:
        """What is wrong with the message that a child thread of a demonstration returns, if anything is."""
        ...

    def demonstrate(self, problem: Problem, teacher: Teacher, copy: int = 0) -> Trace | None:
        """The `copy`-th demonstration of a problem; None if the teacher has none. Raises `ConfigError` if the environment has
        no teacher for these options."""
        ...

    def demonstrations(self, problems: Sequence[Problem], teacher: Teacher) -> pa.Table | None:
        """The same for many problems at once, where there is a faster way; None where there is not.

        Columns: `row`, the place of the problem in `problems`, then those of `apr.scripts.columns.encoded`.
        """
        ...


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
    dialects: ClassVar[tuple[str, ...]] = ("words",)
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

    def child_fault(self, problem: Problem, message: Sequence[int], dialect: Dialect) -> str | None:
        return None

    # What it inherits.

    def split_of(self, part: Part) -> str:
        share = derive_seed(self.options.split_seed, "split", *part) / 2**63
        if share < self.options.test_share:
            return "test"
        return "validation" if share < self.options.test_share + self.options.validation_share else "train"

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
        try:
            return written(script, problem, teacher)
        except ValueError as error:
            raise ConfigError(f"environment {self.name}, the script of problem {problem['id']!r}: {error}") from error

    def demonstrations(self, problems: Sequence[Problem], teacher: Teacher) -> pa.Table | None:
        return None


def written(script: Script, problem: Problem, teacher: Teacher) -> Trace:
    """The demonstration of a script, judged by the environment.

    Raises `ValueError` if the teacher's protocol cannot express it, `DataError` if its dialect cannot spell it.
    """
    if teacher.protocol.name == "serial" and any(isinstance(piece, Fork) for piece in script):
        raise ValueError("the script forks, and the protocol serial opens no threads")
    prompt, strands = teacher.dialect.prompt(teacher.env, problem), spell(script, teacher.dialect)
    read = reader(teacher.env, teacher.dialect)
    trace = demonstration(prompt, strands, teacher.protocol, problem, True, read)
    verdict = teacher.env.verify(problem, trace.answer)
    if not isinstance(verdict, Verdict):
        raise ConfigError(f"`verify` of environment {teacher.env.name} returned {verdict!r}: return a `Verdict`")
    if verdict.ok:
        return trace
    return demonstration(prompt, strands, teacher.protocol, problem, False, read)


def reader(env: Env, dialect: Dialect) -> Callable[[Iterable[int]], str]:
    """What turns the ids of a message into the answer that `verify` takes."""
    return lambda ids: env.read(dialect.answer(ids))


def splits_of(env: Env, problems: Sequence[Problem]) -> list[set[str]]:
    """The splits that the parts of each problem belong to. It is a problem of a split if that is the only one."""
    return [{env.split_of(part) for part in parts} for parts in env.parts(problems)]

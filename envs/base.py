"""The environment seam: a task's problems by split, what a model is told, and a verifier.

`Env` is what the rest of the project asks of a task; `envs.environment.Environment` is the easy way to write one.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from apr.errors import ConfigError, DataError, ScriptError
from apr.scripts.demonstration import demonstration
from apr.scripts.script import Script, faults
from apr.seeds import derive_seed
from apr.threads.protocol import ThreadProtocol
from apr.threads.trace import Trace
from apr.tokens.control import ProtocolName
from apr.tokens.speller import Message, Speller

if TYPE_CHECKING:
    import pyarrow as pa

Problem = dict[str, Any]
Part = tuple[Any, ...]
SPLITS = ("train", "validation", "test")


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

    def split_of(self, part: Part) -> str:
        """The split that a part of a problem belongs to."""
        share = derive_seed(self.split_seed, "split", *part) / 2**63
        if share < self.test_share:
            return "test"
        return "validation" if share < self.test_share + self.validation_share else "train"


class TeacherOptions(BaseModel):
    """What every teacher can be told: the protocol of its demonstrations. An environment adds its own in a subclass that
    forbids others; this class holds what it cannot check, where the environment's file may not be imported."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    protocol: ProtocolName = Field(description="how its demonstrations are written: serially, or with spawns and joins")
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
    speller: Speller
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
    spellers: ClassVar[tuple[str, ...]]  # built vocabularies for it; the first is the default
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

    def child_fault(self, problem: Problem, message: Sequence[int], speller: Speller) -> str | None:
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


def written(script: Script, problem: Problem, teacher: Teacher) -> Trace:
    """The demonstration of a script, judged by the environment.

    Raises `ScriptError` if the teacher's protocol cannot express it, `DataError` if its speller cannot spell it.
    """
    prompt, read = teacher.speller.prompt(teacher.env, problem), reader(teacher.env, teacher.speller)
    try:
        if fault := next(faults(script), None):
            raise ValueError(fault)
        strands = teacher.protocol.write(script, teacher.speller)
        trace = demonstration(prompt, strands, teacher.protocol, problem, True, read)
    except DataError:  # words that the speller lacks
        raise
    except ValueError as error:
        raise ScriptError(f"a script for problem {problem['id']!r}: {error}") from error
    verdict = teacher.env.verify(problem, trace.answer)
    if not isinstance(verdict, Verdict):
        raise ConfigError(f"`verify` of environment {teacher.env.name} returned {verdict!r}: return a `Verdict`")
    return trace if verdict.ok else demonstration(prompt, strands, teacher.protocol, problem, False, read)


def reader(env: Env, speller: Speller) -> Callable[[Iterable[int]], str]:
    """What turns the ids of a message into the answer that `verify` takes."""
    return lambda ids: env.read(speller.answer(ids))


def splits_of(env: Env, problems: Sequence[Problem]) -> list[set[str]]:
    """The splits that the parts of each problem belong to. It is a problem of a split if that is the only one."""
    return [{env.split_of(part) for part in parts} for parts in env.parts(problems)]

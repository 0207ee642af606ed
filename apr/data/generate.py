"""`apr data generate`: problems by split, and demonstrations from each teacher, with a card that says what is there.

A shard of problems and a shard of demonstrations of them are one unit of work each; a call makes those that are missing,
so a killed one goes on where it stopped. What is in a shard depends on the configuration alone, never on the workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from apr.checkpoints.pretrained import chat_vocabulary
from apr.config import DataConfig, SolverConfig
from apr.data.card import CARD, card
from apr.data.shards import shard_path, sweep
from apr.data.store import (
    demonstrations_folder,
    problems_folder,
    problems_of,
    traces_of,
    write_demonstrations,
    write_problems,
)
from apr.data.teacher import Teacher, demonstrations_of
from apr.data.workers import ended_by_signals, in_processes, processes
from apr.dialects import TOKENIZER, dialect_by_name
from apr.progress import Progress
from apr.runs import check_kind, refuse_other, run_directory, whole_folder, write_text
from apr.threads.trace import Trace
from apr.tokens.chat import ChatDialect
from apr.tokens.dialect import Dialect
from envs.countdown.env import Countdown, Problems

CONFIG = "config.yaml"
ANYTHING = ("out", "workers")  # in which configurations of the same data may differ


class Lesson(NamedTuple):
    """One shard of demonstrations to be made."""

    problems: Path
    demonstrations: Path
    teacher: Teacher
    asked: int


def generate(config: DataConfig) -> None:
    """Write what is missing of the data set in `config.out`; finished shards are kept.

    Raises `DataError` if there are fewer problems than asked for (nothing is written then), `RunDirectoryError` if the
    folder holds other data or is in use, `KeyboardInterrupt` at SIGINT and SIGTERM.
    """
    _refuse_other_data(config)
    problems = {split: _problem_shards(config, split) for split in ("train", "validation", "test")}
    dialect = _dialect(config)
    lessons = [lesson for name in config.solvers for lesson in _lessons(config, name, dialect, problems["train"])]
    written = [*(path for paths in problems.values() for path in paths), *(one.demonstrations for one in lessons)]
    if all(path.is_file() for path in (config.out / CARD, *written)):
        return
    with ended_by_signals():
        drawn = {
            split: _draw(config, dialect, split)
            for split, paths in problems.items()
            if not all(map(Path.is_file, paths))
        }
        with run_directory(config.out, config) as out:
            sweep(out)
            if isinstance(dialect, ChatDialect):
                _keep_tokenizer(dialect, out / TOKENIZER)
            for split in list(drawn):
                _write_problems(problems[split], drawn.pop(split), config.shard_rows)
            try:
                _teach([one for one in lessons if not one.demonstrations.is_file()], config)
            finally:
                sweep(out)
            write_text(out / CARD, card(config, out))


def _refuse_other_data(config: DataConfig) -> None:
    check_kind(config.out, "data")
    if (config.out / CONFIG).is_file() and any(config.out.rglob("*.parquet")):
        refuse_other(config.out, config, ANYTHING)


def _dialect(config: DataConfig) -> Dialect:
    if config.tokenizer is None:
        return dialect_by_name(config.dialect)
    return ChatDialect(chat_vocabulary(config.tokenizer, config.control_tokens))


def _keep_tokenizer(dialect: ChatDialect, folder: Path) -> None:
    """Write the tokenizer into the data set, which is read with it alone. Raises `CheckpointError` for another one."""
    if folder.is_dir():
        dialect.vocabulary.check(folder)
        return
    with whole_folder(folder) as beside:
        dialect.vocabulary.save(beside)


def _problem_shards(config: DataConfig, split: str) -> list[Path]:
    count = -(-getattr(config, split) // config.shard_rows)
    return [shard_path(problems_folder(config.out), split, i, count) for i in range(count)]


def _lessons(config: DataConfig, name: str, dialect: Dialect, problems: Sequence[Path]) -> list[Lesson]:
    teacher = Teacher(config.solvers[name], dialect, config.seed, config.demonstrations_per_problem)
    folder = demonstrations_folder(config.out, name)
    counts = [min(config.shard_rows, config.train - i * config.shard_rows) for i in range(len(problems))]
    return [Lesson(path, folder / path.name, teacher, count * teacher.copies) for path, count in zip(problems, counts)]


def _draw(config: DataConfig, dialect: Dialect, split: str) -> Problems:
    """All problems of a split, as columns."""
    count = getattr(config, split)
    batches = []
    with Progress(f"problems {split}", count) as progress:
        for batch in Countdown(config.problems, dialect).draw(split, count, config.seed):
            batches.append(batch)
            progress.advance(len(batch.targets))
    return Problems(*map(np.concatenate, zip(*batches)))


def _write_problems(paths: Sequence[Path], problems: Problems, shard_rows: int) -> None:
    for i, path in enumerate(paths):
        if not path.is_file():
            rows = slice(i * shard_rows, (i + 1) * shard_rows)
            write_problems(path, Problems(problems.numbers[rows], problems.targets[rows]))


def _teach(lessons: Sequence[Lesson], config: DataConfig) -> None:
    """Make the shards of demonstrations that are missing, in `config.workers` processes."""
    if not lessons:
        return
    asked = sum(lesson.asked for lesson in lessons)
    with (
        Progress("demonstrations", asked) as progress,
        closing(in_processes(teach, lessons, processes(config.workers, asked))) as done,
    ):
        for asked in done:
            progress.advance(asked)


def teach(lesson: Lesson) -> int:
    """Write one shard of demonstrations; returns how many were asked for. Runs in a worker process."""
    table = demonstrations_of(problems_of(lesson.problems, set()), lesson.teacher)
    write_demonstrations(lesson.demonstrations, table, lesson.asked, lesson.teacher.facts)
    return lesson.asked


def demonstrations(
    problems: Sequence[dict[str, Any]], name: str, solver: SolverConfig, seed: int, per_problem: int = 1,
    dialect: Dialect | None = None,
) -> list[Trace]:  # fmt: skip
    """The traces of the teacher called `name`, `per_problem` for each problem; beams are drawn anew for each. The dialect
    is the compact one if not given."""
    dialect = dialect or dialect_by_name("compact")
    teacher = Teacher(solver, dialect, seed, per_problem)
    table = demonstrations_of(problems, teacher).replace_schema_metadata(teacher.facts)
    return list(traces_of(table, f"teacher {name}", dialect))

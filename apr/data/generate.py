"""`apr data generate`: problems by split, and demonstrations from each teacher, with a card that says what is there.

A shard of problems and a shard of demonstrations of them are one unit of work each; a call makes those that are missing,
so a killed one goes on where it stopped. What is in a shard depends on the configuration alone, never on the workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from apr.checkpoints.pretrained import chat_vocabulary
from apr.config import DataConfig, EnvConfig
from apr.data.card import CARD, card
from apr.data.imported import problems_from
from apr.data.rehearsal import rehearse
from apr.data.shards import sweep
from apr.data.store import (
    data_env,
    demonstrations_folder,
    problem_shards,
    problems_of,
    problems_table,
    say_if_fewer,
    write_demonstrations,
    write_missing,
)
from apr.data.teach import demonstrations_of, facts_of_teacher
from apr.data.workers import ended_by_signals, in_processes, processes
from apr.errors import ConfigError
from apr.progress import Progress
from apr.protocols import protocol_by_name
from apr.runs import CONFIG, check_kind, check_out, refuse_other, run_directory, whole_folder, write_text
from apr.spellers import TOKENIZER
from apr.tokens.chat import ChatSpeller
from apr.tokens.speller import Speller
from apr.tokens.words import WordsSpeller
from apr.user_code import blamed
from envs.base import SPLITS, Env, Teacher
from envs.registry import BUILT_IN, built_speller

BATCH = 10_000  # problems that are Python objects at a time
# Keys that may change between calls without changing the result (`tokenizer` is covered by the copy that the data set keeps).
MAY_DIFFER = ("out", "workers", "problems_from", "tokenizer")


class Lesson(NamedTuple):
    """One shard of demonstrations to be made."""

    problems: Path
    demonstrations: Path
    teacher: Teacher
    asked: int


def generate(config: DataConfig, dry_run: bool = False) -> None:
    """Write what is missing of the data set in `config.out`; finished shards are kept. `dry_run`: find out whether it could be
    written, and write nothing.

    Raises `DataError` if there are fewer problems than asked for (nothing is written then), `RunDirectoryError` if the
    folder holds other data or is in use, `KeyboardInterrupt` at SIGINT and SIGTERM.
    """
    check_out(config.out, config)
    given = None
    if config.problems_from is not None:
        config, given = _taken(config, config.problems_from)
    _refuse_other_data(config)
    problems = {split: problem_shards(config.out, split, getattr(config, split), config.shard_rows) for split in SPLITS}
    env = config.env.build()
    speller = _speller(config, env)
    if isinstance(speller, ChatSpeller | WordsSpeller) and (config.out / TOKENIZER).is_dir():
        speller.vocabulary.check(config.out / TOKENIZER)
    lessons = [lesson for name in config.solvers for lesson in _lessons(config, name, env, speller, problems["train"])]
    written = [*(path for paths in problems.values() for path in paths), *(one.demonstrations for one in lessons)]
    if all(path.is_file() for path in (config.out / CARD, *written)):
        return
    with ended_by_signals():
        missing = [split for split, paths in problems.items() if not all(map(Path.is_file, paths))]
        drawn = {split: _draw(config, env, split) if given is None else given[split] for split in missing}
        if "train" in drawn and config.env.name not in BUILT_IN:
            teachers = {name: teacher_of(config, name, env, speller) for name in config.solvers}
            rehearse(drawn["train"], env, speller, teachers)
        if dry_run:
            return
        with run_directory(config.out, config) as out:
            sweep(out)
            if isinstance(speller, ChatSpeller | WordsSpeller):
                _keep_tokenizer(speller, out / TOKENIZER)
            for split in list(drawn):
                write_missing(problems[split], drawn.pop(split), config.shard_rows)
            try:
                _teach([one for one in lessons if not one.demonstrations.is_file()], config)
            finally:
                sweep(out)
            write_text(out / CARD, card(config, out))


def _refuse_other_data(config: DataConfig) -> None:
    check_kind(config.out, "data")
    if (config.out / CONFIG).is_file() and any(config.out.rglob("*.parquet")):
        kept = (config.out / TOKENIZER).is_dir()
        refuse_other(config.out, config, MAY_DIFFER if kept else set(MAY_DIFFER) - {"tokenizer"})


def _speller(config: DataConfig, env: Env) -> Speller:
    """Raises `ConfigError` for an environment without words of its own and no tokenizer."""
    if config.tokenizer is not None:
        return ChatSpeller(chat_vocabulary(config.tokenizer, config.control_tokens))
    if config.speller != WordsSpeller.name:
        return built_speller(str(config.speller))
    if not env.vocabulary():
        raise ConfigError(f"environment {env.name} has no vocabulary of its own: set speller=chat and `tokenizer`")
    return WordsSpeller(env.vocabulary())


def _keep_tokenizer(speller: ChatSpeller | WordsSpeller, folder: Path) -> None:
    """Write the tokenizer into the data set, which is read with it alone. Raises `CheckpointError` for another one there."""
    if folder.is_dir():
        speller.vocabulary.check(folder)
        return
    with whole_folder(folder) as beside:
        speller.vocabulary.save(beside)


def _lessons(config: DataConfig, name: str, env: Env, speller: Speller, problems: Sequence[Path]) -> list[Lesson]:
    teacher = teacher_of(config, name, env, speller, config.demonstrations_per_problem)
    folder = demonstrations_folder(config.out, name)
    counts = [min(config.shard_rows, config.train - i * config.shard_rows) for i in range(len(problems))]
    return [Lesson(path, folder / path.name, teacher, count * teacher.copies) for path, count in zip(problems, counts)]


def teacher_of(config: DataConfig, name: str, env: Env, speller: Speller, copies: int = 1) -> Teacher:
    """The teacher called `name` in `config`."""
    options = env.teacher_options.model_validate(config.solvers[name].model_dump())
    return Teacher(env, options, speller, protocol_by_name(options.protocol, speller), config.seed, copies)


def _taken(config: DataConfig, folder: Path) -> tuple[DataConfig, dict[str, pa.Table]]:
    """The problems of the data set in `folder`, no more of each split than asked for, and the configuration with their counts
    and their environment's options. Says where there are fewer."""
    env = data_env(folder, config.env.name)
    rows = problems_from(folder, env)
    counts = {split: min(getattr(config, split), len(rows.get(split, []))) for split in SPLITS}
    for split, count in counts.items():
        say_if_fewer(count, getattr(config, split), split, folder)
    tables = {split: problems_table(rows[split][:count]) for split, count in counts.items() if count}
    own = EnvConfig.model_validate({**env.config(), "name": config.env.name})
    return config.model_copy(update={**counts, "env": own}), tables


def _draw(config: DataConfig, env: Env, split: str) -> pa.Table:
    """All problems of a split, as columns."""
    count = getattr(config, split)
    problems = env.problems(split, count, config.seed)
    batches = []
    with Progress(f"problems {split}", count) as progress, blamed(config.env.name, f"drawing {split} problems"):
        while batch := list(islice(problems, BATCH)):
            batches.append(problems_table(batch))
            progress.advance(len(batch))
    return pa.concat_tables(batches, promote_options="permissive")


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
    table = demonstrations_of(problems_of(lesson.problems, set(), lesson.teacher.env), lesson.teacher)
    write_demonstrations(lesson.demonstrations, table, lesson.asked, facts_of_teacher(lesson.teacher))
    return lesson.asked

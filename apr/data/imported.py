"""`apr data import FILE --env NAME`: a data set of problems from a table that somebody else made.

    problems/SPLIT-*.parquet    the problems, as `apr data generate` writes them
    config.yaml                 how many there are, and the environment's settings
    README.md                   where they came from, what was left out
    report.json                 the same in numbers
    left_out.jsonl              every row that was left out, and why

The environment says what a row means (`envs.base.Env`); this module names none. Each row is read, checked and placed in
a split, and one that does not pass is left out and named; the rest is usable. The file's own splits win over the
environment's rule, and one given on the command line over both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import yaml

from apr.data.card import CARD, content_hashes, problems_files
from apr.data.store import has_problems, problem_shards, problems_table, read_problems, write_missing
from apr.data.tables import Row, read_table
from apr.errors import ConfigError, DataError, RunDirectoryError
from apr.progress import Progress
from apr.runs import CONFIG, whole_folder
from envs.base import SPLITS, Env, Problem, splits_of

SPLIT_COLUMN = "split"
OTHER_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}  # of splits, in files
REPORT, LEFT_OUT = "report.json", "left_out.jsonl"
SHARD_ROWS = 10_000
SHOWN = 10  # rows of each kind that the summary names; `left_out.jsonl` has all
_AT_ONCE = 4096  # problems checked for solutions together


@dataclass
class Imported:
    """What was read and what was left out. Rows are numbered from 0, a header not counted."""

    file: str
    sha256: str
    env: str
    rows: int = 0
    problems: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    duplicates: int = 0  # rows whose problem an earlier row has
    duplicate_rows: list[int] = field(default_factory=list)  # the first of them
    left_out: int = 0
    reasons: dict[int, str] = field(default_factory=dict)  # of the first rows that were left out
    shared: int = 0  # held-out problems that share with a training problem what splits must not share
    splits_by: str = "rule"  # rule, column or option

    @property
    def kept(self) -> int:
        return sum(self.problems.values())

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {split}" for split, count in self.problems.items() if count)
        lines = [f"{self.rows} rows: {self.kept} distinct problems ({counts or 'none'})"]
        lines += [f"problem as in an earlier row: {self.duplicates} rows{_named(self.duplicate_rows, self.duplicates)}"]
        lines += [f"left out: {self.left_out} rows", *(f"  row {row}: {why}" for row, why in self.reasons.items())]
        if self.left_out > len(self.reasons):
            lines.append(f"  ... ({LEFT_OUT} has all)")
        if self.shared:
            lines.append(f"held-out problems with what a training problem has too, in the splits given: {self.shared}")
        return "\n".join(lines)


def _named(rows: Sequence[int], count: int) -> str:
    return f" ({', '.join(map(str, rows))}{', ...' if count > len(rows) else ''})" if rows else ""


class _Placed(NamedTuple):
    row: int
    split: str
    problem: Problem


def columns_of(given: Sequence[str]) -> dict[str, str]:
    """Return `NAME=COLUMN` options as a mapping from the environment's names to the file's columns."""
    columns: dict[str, str] = {}
    for option in given:
        name, equals, column = (part.strip() for part in option.partition("="))
        if not (name and equals and column):
            raise ConfigError(f"--column {option}: say NAME=COLUMN, such as numbers=operands")
        if name in columns:
            raise ConfigError(f"--column {name} is given twice: leave one out")
        columns[name] = column
    return columns


def import_problems(
    path: Path, out: Path | None, env: Env, columns: Mapping[str, str] | None = None, split: str | None = None
) -> Imported:  # fmt: skip
    """Read the problems of a table, and write them to the folder `out` unless it is None.

    `columns` maps names that the environment knows to the file's columns; `split` puts all problems in one split. Raises
    `DataError` if no row is usable, `RunDirectoryError` if `out` is there already; nothing is written then.
    """
    if split is not None and split not in SPLITS:
        raise ConfigError(f"--split {split}: there are {', '.join(SPLITS)}")
    if out is None:
        return _read(path, env, columns or {}, split, None)[0]
    if out.exists():
        raise RunDirectoryError(f"{out} is there already: give another folder")
    with whole_folder(out) as folder:
        with (folder / LEFT_OUT).open("w", encoding="utf-8") as left_out:
            report, problems = _read(path, env, columns or {}, split, left_out)
        for name, rows in problems.items():
            write_missing(problem_shards(folder, name, len(rows), SHARD_ROWS), problems_table(rows), SHARD_ROWS)
        counts = {name: count for name, count in report.problems.items() if count}
        fitted = env.having(env.fitted(list(chain.from_iterable(problems.values()))))
        settings = {"env": fitted.config(), **counts, "solvers": {}}
        (folder / CONFIG).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        (folder / REPORT).write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")
        (folder / CARD).write_text(_card(report, folder, settings), encoding="utf-8")
    return report


def _read(
    path: Path, env: Env, columns: Mapping[str, str], split: str | None, left_out: TextIO | None
) -> tuple[Imported, dict[str, list[Problem]]]:  # fmt: skip
    report = Imported(path.name, _sha256(path), env.name, splits_by="rule" if split is None else "option")
    problems: dict[str, list[Problem]] = {name: [] for name in SPLITS}

    def leave_out(row: int, why: str) -> None:
        report.left_out += 1
        if len(report.reasons) < SHOWN:
            report.reasons[row] = why
        if left_out is not None:
            left_out.write(json.dumps({"row": row, "why": why}) + "\n")

    waiting: list[_Placed] = []
    with Progress(f"import {path.name}, bytes", path.stat().st_size) as progress:
        for placed in _placed(read_table(path, progress.advance), env, columns, split, report, leave_out):
            waiting.append(placed)
            if len(waiting) == _AT_ONCE:
                _keep(waiting, env, problems, leave_out)
                waiting = []
        _keep(waiting, env, problems, leave_out)
    report.problems = {name: len(kept) for name, kept in problems.items()}
    if not report.kept:
        row, why = next(iter(report.reasons.items()), (0, "there is none"))
        raise DataError(
            f"{path}: none of its {report.rows} rows is a problem of {env.name} (row {row}: {why}). Give another file, "
            "or say which columns to take: --column NAME=COLUMN"
        )
    taken = {part for parts in env.parts(problems["train"]) for part in parts}
    held_out = [problem for name in SPLITS[1:] for problem in problems[name]]
    report.shared = sum(not taken.isdisjoint(parts) for parts in env.parts(held_out))
    return report, problems


def _placed(
    rows: Iterator[Row], env: Env, columns: Mapping[str, str], split: str | None, report: Imported,
    leave_out: Callable[[int, str], None],
) -> Iterator[_Placed]:  # fmt: skip
    """The rows that are new problems, each with its split; counts and names the others."""
    seen: set[str] = set()
    for number, row, fault in rows:
        report.rows += 1
        if fault is None:
            try:
                problem = env.problem(_renamed(row, columns))
                place = split or _split(row, report) or _by_rule(problem, env)
            except DataError as error:
                fault = str(error)
            else:
                if problem["id"] in seen:
                    report.duplicates += 1
                    if len(report.duplicate_rows) < SHOWN:
                        report.duplicate_rows.append(number)
                elif place is None:
                    leave_out(number, "by the environment's rule it belongs to no split (--split puts it in one)")
                else:
                    seen.add(problem["id"])
                    yield _Placed(number, place, problem)
        if fault is not None:
            leave_out(number, fault)


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    for name, column in columns.items():
        if column not in row:
            there = ", ".join(map(str, list(row)[:12]))
            raise DataError(f"it has no column {column}, which --column {name}={column} names (its columns: {there})")
    return {**row, **{name: row[column] for name, column in columns.items()}} if columns else row


def _split(row: Mapping[str, Any], report: Imported) -> str | None:
    """The split that the row names; None if it has no such column."""
    if SPLIT_COLUMN not in row:
        return None
    report.splits_by = "column"
    said = str(row[SPLIT_COLUMN]).strip().lower()
    split = OTHER_NAMES.get(said, said)
    if split not in SPLITS:
        raise DataError(f"its split is {said[:40]!r}, but there are {', '.join(SPLITS)}")
    return split


def _by_rule(problem: Problem, env: Env) -> str | None:
    """The split that the problem belongs to by the environment's rule; None if it belongs to none."""
    [splits] = splits_of(env, [problem])
    return next(iter(splits)) if len(splits) == 1 else None


def _keep(
    placed: Sequence[_Placed], env: Env, problems: dict[str, list[Problem]],
    leave_out: Callable[[int, str], None],
) -> None:  # fmt: skip
    faults = env.faults([one.problem for one in placed])
    for i, one in enumerate(placed):
        if i in faults:
            leave_out(one.row, faults[i])
        else:
            problems[one.split].append(one.problem)


def problems_from(folder: Path, env: Env) -> dict[str, list[Problem]]:
    """Return the problems of each split that the data set in `folder` has, checked as every command does.

    Raises `DataError` if it has none, or has no problems to train on.
    """
    there = [split for split in SPLITS if has_problems(folder, split)]
    if "train" not in there:
        has = f"only {' and '.join(there)} problems" if there else "no problems"
        raise DataError(
            f"{folder} has {has}, but demonstrations are of training problems: give a folder with a train split "
            "(`apr data import FILE --env NAME --split train` puts all of a file there)"
        )
    return {split: read_problems(folder, split, env) for split in there}


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"no file {path}: check the path")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _card(report: Imported, folder: Path, settings: Mapping[str, Any]) -> str:
    splits = [split for split, count in report.problems.items() if count]
    header = {"pretty_name": f"{report.env} problems from {report.file}", "configs": [problems_files(folder)]}
    counts = "\n".join(f"| {split} | {report.problems[split]:,} |" for split in splits)
    by = {
        "rule": "by the environment's own rule", "column": f"as its column `{SPLIT_COLUMN}` says", "option": "as was asked for",
    }[report.splits_by]  # fmt: skip
    why = "".join(f"\n* row {row}: {reason}" for row, reason in report.reasons.items())
    return f"""---
{yaml.safe_dump(header, sort_keys=False)}---

# Problems of {report.env}, imported

From `{report.file}` (SHA-256 `{report.sha256}`): {report.rows:,} rows, of which {report.duplicates:,} repeat the problem of an
earlier row and {report.left_out:,} were left out (`{LEFT_OUT}` says why, row by row). Splits are {by}.

| split | problems |
| --- | --- |
{counts}

Held-out problems that share with a training problem what splits should not share: {report.shared:,}.
{f"{chr(10)}The first rows that were left out:{chr(10)}{why}{chr(10)}" if why else ""}
## Content hashes

```json
{json.dumps(content_hashes(folder, ()), indent=1)}
```

## Settings

```yaml
{yaml.safe_dump(dict(settings), sort_keys=False)}```
"""

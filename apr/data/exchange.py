"""`apr data import` and `apr data export`: files of the published format (`envs.countdown.published`), read row by row and
written whole or not at all, with a report of what the known bugs damaged and of what could not be read."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from apr.data.shards import shard_path
from apr.data.store import problems_folder, problems_table, write_problems
from apr.data.tables import elements
from apr.errors import DataError, RunDirectoryError
from apr.progress import Progress
from apr.runs import CONFIG, followed, whole_file, whole_folder
from apr.threads.codec import TraceWriter, read_traces
from apr.threads.trace import Trace
from envs.countdown.env import Countdown
from envs.countdown.paper import PaperSpeller
from envs.countdown.problems import Problems
from envs.countdown.published import damage, from_row, is_prompt, problem_of_row, to_row

TRACES, REPORT = "traces.jsonl.gz", "report.json"
SPLIT = "test"  # of imported problems: what `apr eval` takes if not told otherwise
SHOWN = 10  # row numbers of each kind in the summary; the report has all


@dataclass
class Report:
    """What was found. Rows are numbered from 0."""

    rows: int = 0
    traces: int = 0
    problems: int = 0  # distinct
    duplicates: list[int] = field(default_factory=list)  # rows whose problem an earlier row has
    unsolvable: list[str] = field(default_factory=list)  # ids of problems, which are left out
    misnamed: list[int] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)
    joined: list[int] = field(default_factory=list)
    characters: int = 0  # of all main calls together, as the published trainer has them
    characters_repeated: int = 0
    characters_joined: int = 0
    unread: dict[int, str] = field(default_factory=dict)  # rows without a trace that was read, and why
    problem_only: list[int] = field(default_factory=list)  # those of them whose problem was kept

    def __str__(self) -> str:
        repeated = f"{self.characters_repeated / max(1, self.characters):.1%}"
        joined = f"{self.characters_joined / max(1, self.characters):.1%}"
        lines = [
            f"{self.rows} rows: {self.traces} traces, {self.problems} distinct problems",
            _line("D1: visits announced by a wrong name or none", self.misnamed),
            _line(f"D6: text repeated from call to call, {repeated} of all", self.repeated),
            _line(f"D7: join text that the published trainer trains on, {joined} of all", self.joined),
            _line("problem as in an earlier row", self.duplicates),
            f"problems without a solution, left out: {len(self.unsolvable)}",
            _line("problem kept without its search", self.problem_only),
            _line("not read", list(self.unread)),
            *(f"  row {row}: {why}" for row, why in islice(self.unread.items(), SHOWN)),
        ]
        return "\n".join(lines)


def _line(what: str, rows: list[int]) -> str:
    shown = ", ".join(map(str, rows[:SHOWN])) + (", ..." if len(rows) > SHOWN else "")
    return f"{what}: {len(rows)} rows" + (f" ({shown})" if rows else "")


def import_file(path: Path, out: Path | None, speller: PaperSpeller) -> Report:
    """Read a published JSON file; write traces, distinct problems (as a data set's) and the report to the folder `out`,
    if it is given.

    Raises `DataError` if the file is no JSON list at all, `RunDirectoryError` if `out` is there already. A row that
    cannot be read is named in the report, with the reason.
    """
    if out is None:
        return _import(path, speller, lambda trace: None)[0]
    if out.exists():
        raise RunDirectoryError(f"{out} is there already: give another folder")
    with whole_folder(out) as folder:
        with TraceWriter(folder / TRACES) as traces:
            report, problems = _import(path, speller, traces.append)
        _write_problems(folder, problems)
        (folder / REPORT).write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")
    return report


def _import(path: Path, speller: PaperSpeller, keep: Callable[[Trace], None]) -> tuple[Report, dict[int, Problems]]:
    """Read all rows; `keep` gets the traces. The distinct solvable problems, by how many numbers they have."""
    report = Report()
    seen: dict[tuple[int, ...], None] = {}  # target, then numbers, in the order of the rows
    with Progress(f"import {path.name}, bytes", path.stat().st_size if path.is_file() else 0) as progress:
        for number, row in enumerate(elements(path, progress.advance)):
            report.rows += 1
            try:
                trace = None if is_prompt(row) else _read(row, number, report, speller)
            except DataError as error:
                report.unread[number] = str(error)
                trace = None
            if trace is not None:
                report.traces += 1
                keep(trace)
            try:
                problem = problem_of_row(row) if trace is None else trace.problem
            except DataError as error:
                report.unread.setdefault(number, str(error))
                continue
            if number in report.unread:
                report.problem_only.append(number)
            if (key := (problem["target"], *problem["numbers"])) in seen:
                report.duplicates.append(number)
            seen[key] = None
    if not report.traces and not seen:
        why = _first("row", report.unread)
        raise DataError(
            f"{path}: none of its {report.rows} rows holds a trace or a problem ({why}). Give a file in the published "
            "format, or import problems alone: --env countdown"
        )
    report.problems = len(seen)
    problems = _solvable(seen, report)
    if not report.traces and not problems:
        raise DataError(f"{path}: none of its {report.problems} problems has a solution: give a file with others")
    return report, problems


def _solvable(seen: Iterable[tuple[int, ...]], report: Report) -> dict[int, Problems]:
    """The problems that have a solution, by size; the others go into the report."""
    sizes: defaultdict[int, list[tuple[int, ...]]] = defaultdict(list)
    for target, *numbers in seen:
        sizes[len(numbers)].append((target, *numbers))
    found = {}
    for size, rows in sorted(sizes.items()):
        columns = np.array(rows, np.int64)
        problems = Problems(columns[:, 1:], columns[:, 0])
        solvable = problems.solvable()
        report.unsolvable += [problem["id"] for problem in problems.where(~solvable).dictionaries()]
        if solvable.any():
            found[size] = problems.where(solvable)
    return found


def _write_problems(folder: Path, problems: dict[int, Problems]) -> None:
    """The distinct problems as a data set without demonstrations."""
    for index, rows in enumerate(problems.values()):
        path = shard_path(problems_folder(folder), SPLIT, index, len(problems))
        path.parent.mkdir(exist_ok=True)
        write_problems(path, problems_table(rows.dictionaries()))
    if every := [problem for rows in problems.values() for problem in rows.dictionaries()]:
        env = {"name": Countdown.name, **Countdown().fitted(every)}
        settings = {"env": env, SPLIT: len(every), "solvers": {}}
        (folder / CONFIG).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def _read(row: Any, number: int, report: Report, speller: PaperSpeller) -> Trace:
    """The trace of a row, its damage reported."""
    found = damage(row)
    for rows, damaged in (
        (report.misnamed, found.misnamed), (report.repeated, found.repeated), (report.joined, found.joined),
    ):  # fmt: skip
        if damaged:
            rows.append(number)
    report.characters += found.characters
    report.characters_repeated += found.repeated
    report.characters_joined += found.joined
    return from_row(row, speller)


def export_file(path: Path, out: Path, speller: PaperSpeller) -> str:
    """Write the traces in `path` (JSON lines) as a published JSON file; returns a line of counts.

    Raises `DataError` if there is no such file or if it holds no trace that can be written; traces that the format
    cannot hold are named in what is returned.
    """
    left_out: dict[int, str] = {}  # why, by trace
    written = 0
    out = followed(out)
    with whole_file(out) as file:
        for number, trace in enumerate(read_traces(path)):
            try:
                row = to_row(trace, speller)
            except DataError as error:
                left_out[number] = str(error)
                continue
            file.write((("[\n" if not written else ",\n") + json.dumps(row)).encode())
            written += 1
        if not written:
            raise DataError(f"{path} holds no trace that the published format can hold: {_first('trace', left_out)}")
        file.write(b"\n]\n")
    lines = [f"{written} traces in {out}, {len(left_out)} left out"]
    lines += [f"  trace {number}: {why}" for number, why in islice(left_out.items(), SHOWN)]
    return "\n".join(lines)


def _first(what: str, reasons: dict[int, str]) -> str:
    return next((f"{what} {number}: {why}" for number, why in reasons.items()), "it is empty")

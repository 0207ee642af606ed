"""`apr view`: a page in which the traces of runs are looked at, one by one or side by side."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from apr.errors import ConfigError, DataError, RunDirectoryError
from apr.evaluation.folder import TRACES, read_facts
from apr.progress import Progress
from apr.report.spelling import describing, run_kind, spelling
from apr.report.viewer import Source, write_view
from apr.runs import MANIFEST
from apr.threads.codec import read_traces
from apr.threads.trace import Trace

STEP = re.compile(r"step_(\d+)\.jsonl\.gz")
DOCTYPE = "<!doctype html"  # begins every page that this project writes, and most others
SHOWN_FAULTS = 5  # in full; more of a file are counted


@dataclass(frozen=True)
class Wanted:
    """Which traces of each source are shown: the first `limit` of those with this outcome (all, correct or wrong)."""

    limit: int | None = None
    outcome: str = "all"

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit {self.limit} shows nothing: give 1 or more, or leave it out to show all")

    def of(self, traces: Iterator[Trace]) -> Iterator[Trace]:
        return islice((trace for trace in traces if self._fits(trace)), self.limit)

    def _fits(self, trace: Trace) -> bool:
        known = trace.outcome is not None
        return self.outcome == "all" or (known and trace.correct == (self.outcome == "correct"))


@dataclass
class File:
    """A file of traces while it is gone through: what could not be read, and whose traces were shown."""

    path: Path
    label: str
    faults: list[str] = field(default_factory=list)
    problems: set[str] = field(default_factory=set)
    shown: int = 0

    def traces(self, wanted: Wanted) -> Iterator[Trace]:
        """Raises `DataError` if the file cannot be read at all, `SchemaError` for traces of another schema."""
        try:
            for trace in wanted.of(read_traces(self.path, lambda fault: self.faults.append(str(fault)))):
                self.shown += 1
                self.problems.add(str(trace.problem.get("id", "")))
                yield trace
        except OSError as error:
            raise DataError(f"cannot read {self.path} ({error.strerror}): name another path") from error

    def check_shown(self, wanted: Wanted) -> None:
        """Raise `DataError` if there was nothing to show."""
        if self.shown:
            return
        if self.faults:
            raise DataError(f"nothing in {self.path} can be read: {self.faults[0]}")
        if wanted.outcome != "all":
            raise DataError(f"no trace in {self.path} is {wanted.outcome}: leave --outcome out")
        raise DataError(f"{self.path} has no traces: go on with the run that writes it")


def view(
    paths: Sequence[Path],
    out: Path,
    title: str | None = None,
    limit: int | None = None,
    outcome: str = "all",
    step: int | None = None,
) -> str:
    """Write the page; returns a line that names it. What could not be read, and what cannot be laid side by side, is
    said on the page and on standard error.

    `step`: of RL runs, the newest if not given. Raises `DataError` for a path that holds no readable traces,
    `SchemaError` for traces of another schema, `ConfigError` for options that do not fit the paths,
    `RunDirectoryError` if `out` cannot be written, and what `spelling` raises.
    """
    wanted = Wanted(limit, outcome)
    found = [traces_of(path, step) for path in paths]
    at_hand = [file.resolve() for file, _ in found]
    if twice := [str(path) for path, file in zip(paths, at_hand) if at_hand.count(file) > 1]:
        raise ConfigError(f"{' and '.join(twice)} are the same traces: name them once")
    _check_out(out, at_hand)
    if step is not None and not any(run_kind(run) == "rl" for _, run in found):
        raise ConfigError(f"--step {step} is of RL runs, and none is given: leave it out")
    files = [File(path, label) for (path, _), label in zip(found, labels(paths, found))]
    sources = [
        Source(one.label, _whole(one, wanted, _total(run, wanted)), spelling(run), describing(run))
        for one, (_, run) in zip(files, found)
    ]
    try:
        count = write_view(
            out, title or "Traces: " + ", ".join(one.label for one in files), sources, lambda: notes(files)
        )
    except OSError as error:
        raise RunDirectoryError(f"cannot write {out} ({error.strerror}): name another file with --out") from error
    for note in notes(files):
        print(f"apr: note: {note}", file=sys.stderr)
    return f"view of {count:,} traces: {out.resolve()}"


def _check_out(out: Path, traces: Collection[Path]) -> None:
    """Raise `RunDirectoryError` if `out` is there and no page: nothing that somebody else wrote is overwritten."""
    if out.is_dir():
        raise RunDirectoryError(f"{out} is a folder: name a file with --out, such as {out / 'view.html'}")
    if out.resolve() in traces:
        raise RunDirectoryError(f"{out} holds the traces to be viewed: name another file with --out")
    if out.exists() and not _is_page(out):
        raise RunDirectoryError(
            f"{out} exists and is no page ({DOCTYPE}> does not begin it), so it is not overwritten: name another file with "
            "--out, or delete it"
        )


def _is_page(path: Path) -> bool:
    try:
        if not path.is_file():  # a pipe or a device: to read it might wait for ever
            return False
        with path.open("rb") as file:
            return file.read(len(DOCTYPE)).lower() == DOCTYPE.encode()
    except OSError as error:
        raise RunDirectoryError(f"cannot read {path} ({error.strerror}): name another file with --out") from error


def _whole(file: File, wanted: Wanted, total: int | None) -> Iterator[Trace]:
    """The wanted traces of `file`, with progress if it is known how many traces it holds."""
    with Progress(f"view {file.label}", total) if total else nullcontext() as progress:
        for trace in file.traces(wanted):
            yield trace
            if progress is not None:
                progress.advance()
    file.check_shown(wanted)


def _total(run: Path, wanted: Wanted) -> int | None:
    """How many traces there will be; None if the run's manifest does not say, or only some of them are wanted."""
    held = read_facts(run, {}, "make the run again").get("traces")
    if type(held) is not int or wanted.outcome != "all":
        return None
    return held if wanted.limit is None else min(held, wanted.limit)


def traces_of(path: Path, step: int | None) -> tuple[Path, Path]:
    """The file of traces that `path` means, and the run whose manifest says how it is spelt. Raises `DataError`, and
    `ConfigError` for a step of a file."""
    if path.is_file():
        if step is not None:
            raise ConfigError(
                f"--step {step} picks a file of the folder of an RL run, and {path} is a file already: name the run's folder, "
                "or leave --step out"
            )
        run = next((folder for folder in path.resolve().parents[:2] if (folder / MANIFEST).is_file()), None)
        if run is None:
            raise DataError(
                f"{path}: neither its folder nor the one above is a run ({MANIFEST} is missing), so nothing says how its "
                "traces are spelt: leave the file where the run wrote it"
            )
        return path, run
    if not path.exists():
        raise DataError(f"there is no {path}: name the folder of an evaluation or of an RL run, or a file of traces")
    kind = run_kind(path)
    if kind == "rl":
        return _of_step(path, step), path
    if not (path / TRACES).is_file():
        raise DataError(
            f"{path}, the folder of an `apr {kind}`, has no traces ({TRACES} is missing): "
            + (f"run `apr eval ... out={path}` to its end" if kind == "eval" else "name an evaluation or an RL run")
        )
    return path / TRACES, path


def _of_step(run: Path, step: int | None) -> Path:
    """The traces of one step of an RL run, the newest if `step` is None. Raises `DataError`."""
    kept = {int(match[1]): path for path in (run / "traces").glob("*") if (match := STEP.fullmatch(path.name))}
    if not kept:
        raise DataError(f"{run} has no traces: it has made no step yet, or kept none (traces_per_step is 0)")
    if step is not None and step not in kept:
        raise DataError(
            f"{run} has no traces of step {step}, only of steps {min(kept)} to {max(kept)}: give one of them with --step"
        )
    return kept[max(kept) if step is None else step]


def labels(paths: Sequence[Path], found: Sequence[tuple[Path, Path]]) -> list[str]:
    """A name for each source: its run's and, of RL, its step; the path as given where these do not tell all apart."""
    names = []
    for path, run in found:
        match = STEP.fullmatch(path.name)
        names.append(f"{run.resolve().name} step {int(match[1])}" if match else run.resolve().name)
    return [str(path) if names.count(name) > 1 else name for name, path in zip(names, paths)]


def notes(files: Sequence[File]) -> list[str]:
    """What the reader of the page has to know, in sentences."""
    said = []
    for one in files:
        if one.faults:
            lines = "1 line was" if len(one.faults) == 1 else f"{len(one.faults)} lines were"
            more = f"; and {len(one.faults) - SHOWN_FAULTS} more" if len(one.faults) > SHOWN_FAULTS else ""
            said.append(f"{one.label}: {lines} left out. {'; '.join(one.faults[:SHOWN_FAULTS])}{more}.")
    shared = [
        (a.label, b.label) for i, a in enumerate(files) for b in files[i + 1 :] if a.problems & b.problems
    ]  # pairs of sources
    if len(files) > 1 and not shared:
        said.append("No two of the sources have a problem in common: their traces cannot be laid side by side.")
    return said

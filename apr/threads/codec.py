"""Traces on disk: JSON, one trace a line, in a gzip file that survives a killed writer.

Each flush appends one whole gzip member, which every gzip reader takes as part of one file. A writer killed between
flushes leaves a complete file; one killed during a flush leaves an incomplete last member, which the next writer drops.
"""

from __future__ import annotations

import errno
import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from apr.errors import DataError, ResourceError, SchemaError
from apr.threads.trace import (
    SCHEMA,
    Costs,
    EngineStop,
    Injected,
    Origin,
    Outcome,
    Reference,
    StopReason,
    Strand,
    StrandId,
    Thread,
    Trace,
    VersionSpan,
)

FLUSH_CHARACTERS = 1 << 20  # of JSON held back before a flush: large enough to compress, small enough to lose
COMPRESSION = 2  # a quarter larger than 6, in a third of the time, which evaluations and RL wait for
MOST = 1 << 63  # of anything counted: more could not be divided
LONGEST_LINE = 1 << 28  # bytes of one trace: that of some ten million tokens
DEEPEST = 50  # mappings and lists within each other in what an environment writes
_CHUNK = 1 << 20


def to_json(trace: Trace) -> dict[str, Any]:
    """`trace` as plain data (schema `apr.trace/1`). Exact, as long as `problem`, `limits` and `budgets` are plain."""
    return {
        "schema": trace.schema,
        "problem": trace.problem,
        "protocol": trace.protocol,
        "step": trace.step,
        "sample": trace.sample,
        "answer": trace.answer,
        "outcome": None if trace.outcome is None else {**asdict(trace.outcome), "stop": trace.outcome.stop.value},
        "costs": None if trace.costs is None else asdict(trace.costs),
        "limits": trace.limits,
        "budgets": trace.budgets,
        "reward": trace.reward,
        "threads": [_thread_to_json(thread) for thread in trace.threads],
        "strands": [_strand_to_json(strand) for strand in trace.strands],
    }


def from_json(data: Any) -> Trace:
    """The trace that `to_json` wrote. Raises `SchemaError` for another schema, `DataError` for what is no valid trace."""
    if not isinstance(data, dict) or "schema" not in data:
        raise DataError(f"this is no trace: a trace is an object with 'schema': {SCHEMA!r}")
    if data["schema"] != SCHEMA:
        raise SchemaError(
            f"this trace has schema {data['schema']!r}, and this version of apr reads {SCHEMA!r}: "
            f"read it with a version of apr that knows {data['schema']!r}"
        )
    try:
        trace = _trace(data)
        _check(trace)
    except KeyError as error:
        raise DataError(f"malformed trace: the field {error} is missing; write the trace again") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"malformed trace: {error}; write the trace again") from error
    return trace


def _outcome(data: dict[str, Any]) -> Outcome:
    return Outcome(
        StopReason(data["stop"]),
        _typed(data["correct"], bool),
        _typed(data["reason"], str),
        _typed(data.get("score"), float, int, type(None)),
        _typed(data.get("vote"), str, type(None)),
    )


class TraceWriter:
    """Appends traces to `path` (gzip, JSON lines). A context manager; one writer a file at a time.

    Opening an existing file first drops an incomplete tail. Raises `DataError` if the file is corrupt before its tail.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = _complete_size(path) if path.exists() else 0
        self._file = path.open("ab", buffering=0)
        self._file.truncate(self._size)
        self._lines: list[bytes] = []
        self._held = 0

    def append(self, trace: Trace) -> None:
        """Add one trace; it is on disk after the next `flush`, at the latest when the writer closes."""
        line = _line(trace)
        self._lines.append(line)
        self._held += len(line)
        if self._held >= FLUSH_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Write what was appended as one gzip member.

        Raises `ResourceError` if the disk is full: the file is then as it was before, and a later flush tries again.
        """
        if not self._lines:
            return
        text = b"\n".join([*self._lines, b""])
        member = gzip.compress(text, COMPRESSION, mtime=0)  # no clock: equal traces, equal files
        rest = memoryview(member)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ResourceError(f"no space left to write {self.path}; free some and resume the run") from error
            raise
        finally:
            if rest:  # a full disk or a signal: leave no torn member for later ones to be appended to
                self._file.truncate(self._size)
        self._size += len(member)
        self._lines.clear()
        self._held = 0

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._file.close()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _line(trace: Trace) -> bytes:
    data = to_json(trace)
    if all(math.isfinite(sum(strand.logprobs)) for strand in trace.strands if strand.logprobs):
        return msgspec.json.encode(data)  # ten times as fast, but writes null for a number that is not finite
    return json.dumps(data, separators=(",", ":")).encode()


def read_traces(path: Path, fault: Callable[[DataError], None] | None = None) -> Iterator[Trace]:
    """The traces of a file, in order. Raises `DataError`, naming file and line, where the file is cut or corrupt.

    With `fault`, what cannot be read is told to it and left out; nothing can be read after a place where the file is
    cut or does not inflate. Lines in another schema are no fault of the file: they always raise `SchemaError`.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such trace file; check the path, or run the stage that writes it")
    lines = _lines(path)
    number = 0
    while True:
        number += 1
        try:
            line = next(lines, None)
            if line is None:
                return
            trace = from_json(json.loads(line))
        except SchemaError as error:
            raise SchemaError(f"{path}, line {number}: {error}") from error
        except (EOFError, zlib.error, ValueError, RecursionError) as error:  # a `DataError` is a `ValueError`
            told = DataError(f"{path}, line {number}: {_what_is_wrong(error)}")
            if fault is None:
                raise told from error
            fault(told)
            continue
        yield trace


def _what_is_wrong(error: Exception) -> str:
    match error:
        case EOFError():
            return (
                "the file is cut off here, as after a killed writer; resume the run that wrote it (this drops the torn "
                "tail), or write it again"
            )
        case DataError():
            return str(error)
        case RecursionError():
            return "its brackets are nested deeper than those of any trace; write the trace again"
        case _:
            return f"the file is corrupt ({error}); write it again"


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a gzip file. Raises `EOFError` if its end is missing, `zlib.error` where it is corrupt, and `DataError`
    at a line of more than `LONGEST_LINE` bytes."""
    rest: list[bytes] = []
    held = 0
    for text, _ in _inflate(path):
        first, *lines = text.split(b"\n")
        rest.append(first)
        held += len(first)
        if held > LONGEST_LINE:
            raise DataError(f"it has more than {LONGEST_LINE >> 20} MiB, which no trace has; write the file again")
        if lines:
            yield b"".join(rest)
            yield from lines[:-1]
            rest, held = [lines[-1]], len(lines[-1])
    if held:
        raise EOFError


def _inflate(path: Path) -> Iterator[tuple[bytes, int]]:
    """Pieces of the text of a gzip file, of bounded size, each with the file's size up to the last whole member.

    Raises `EOFError` if the last member is incomplete, `zlib.error` if the file is corrupt.
    """
    complete = at = 0
    member = zlib.decompressobj(wbits=31)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            while chunk:
                text = member.decompress(chunk, _CHUNK)
                left = member.unused_data if member.eof else member.unconsumed_tail
                at += len(chunk) - len(left)
                chunk = left
                if member.eof:
                    complete = at
                    member = zlib.decompressobj(wbits=31)
                yield text, complete
    if at != complete:
        raise EOFError


def _complete_size(path: Path) -> int:
    """Bytes up to the end of the last whole gzip member."""
    complete = 0
    try:
        for _, whole in _inflate(path):
            complete = whole
    except EOFError:
        return complete
    except zlib.error as error:
        raise DataError(
            f"{path}: corrupt after byte {complete} ({error}); move the file away, or cut it to {complete} bytes to "
            "keep the traces before"
        ) from error
    return complete


def _thread_to_json(thread: Thread) -> dict[str, Any]:
    return {
        "id": thread.id,
        "parent": thread.parent,
        "depth": thread.depth,
        "strands": thread.strands,
        "stop": thread.stop.value,
        "message": thread.message,
    }


def _strand_to_json(strand: Strand) -> dict[str, Any]:
    return {
        "id": strand.id,
        "sees": strand.sees,
        "after": strand.after,
        "position": strand.position,
        "injected": [[run.origin.value, run.ids] for run in strand.injected],
        "sampled": strand.sampled,
        "logprobs": strand.logprobs,
        "versions": strand.versions,
        "stop": strand.stop.value,
        "cached": strand.cached,
        "started": strand.started,
        "ended": strand.ended,
    }


def _trace(data: dict[str, Any]) -> Trace:
    outcome, costs = data["outcome"], data["costs"]
    return Trace(
        problem=_problem(data["problem"]),
        protocol=_typed(data["protocol"], str),
        step=_typed(data["step"], int),
        sample=_typed(data["sample"], int),
        threads=tuple(map(_thread, _typed(data["threads"], list))),
        strands=tuple(map(_strand, _typed(data["strands"], list))),
        answer=_typed(data["answer"], str, type(None)),
        outcome=None if outcome is None else _outcome(outcome),
        costs=None if costs is None else Costs(**{name: _cost(name, cost) for name, cost in costs.items()}),
        limits=_shallow(_typed(data["limits"], dict)),
        budgets=_shallow(_typed(data["budgets"], dict)),
        reward={name: _typed(part, int, float) for name, part in data["reward"].items()},
    )


def _problem(data: Any) -> dict[str, Any]:
    """The environment's fields, with the `id` by which traces are paired, counted and seeded."""
    problem: dict[str, Any] = _typed(data, dict)
    if not _typed(problem.get("id"), str):
        raise ValueError("its problem has no id")
    return _shallow(problem)


def _shallow(data: dict[str, Any]) -> dict[str, Any]:
    """`data`. Raises `ValueError` if it is nested deeper than what walks through it can follow."""
    inside: list[Any] = [data]
    for _ in range(DEEPEST):
        inside = [
            item for one in inside for item in (one.values() if isinstance(one, dict) else one)
            if isinstance(item, dict | list)
        ]  # fmt: skip
        if not inside:
            return data
    raise ValueError(f"its problem, limits or budgets are nested more than {DEEPEST} deep")


def _cost(name: str, data: Any) -> Any:
    """A count, or seconds as they were written: an int stays one."""
    if name == "seconds":
        _seconds(name, data)
    elif not 0 <= _typed(data, int) < MOST:
        raise ValueError(f"costs has {name} {data}, which is no count")
    return data


def _seconds(name: str, data: Any) -> float:
    seconds = float(_typed(data, int, float))
    if not math.isfinite(seconds):
        raise ValueError(f"{name} is {seconds}, which is no time")
    return seconds


def _thread(data: dict[str, Any]) -> Thread:
    return Thread(
        id=_typed(data["id"], str),
        parent=_typed(data["parent"], str, type(None)),
        depth=_typed(data["depth"], int),
        strands=tuple(map(_strand_id, data["strands"])),
        stop=StopReason(data["stop"]),
        message=_ids(data["message"]),
    )


def _strand(data: dict[str, Any]) -> Strand:
    logprobs = data["logprobs"]
    return Strand(
        id=_strand_id(data["id"]),
        sees=tuple(Reference(_strand_id(strand), _typed(length, int)) for strand, length in data["sees"]),
        after=tuple(map(_strand_id, data["after"])),
        position=_typed(data["position"], int),
        injected=tuple(Injected(Origin(origin), _ids(ids)) for origin, ids in data["injected"]),
        sampled=_ids(data["sampled"]),
        stop=EngineStop(data["stop"]),
        logprobs=None if logprobs is None else tuple(_typed(logprob, float) for logprob in logprobs),
        versions=tuple(VersionSpan(*_ids(span)) for span in data["versions"]),
        cached=_typed(data["cached"], int),
        started=_seconds("started", data["started"]),
        ended=_seconds("ended", data["ended"]),
    )


def _strand_id(data: Any) -> StrandId:
    thread, number = data
    return StrandId(_typed(thread, str), _typed(number, int))


def _ids(data: Any) -> tuple[int, ...]:
    ids = tuple(_typed(data, list, tuple))
    if not all(type(i) is int for i in ids):
        raise ValueError("a list of integers holds something else")
    return ids


def _typed(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:  # exactly: a bool is no count
        raise ValueError(f"{value!r:.40} is not of type {' or '.join(kind.__name__ for kind in kinds)}")
    return value


def _check(trace: Trace) -> None:
    """What readers rely on: strands in topological order, threads and references that exist, lists that match."""
    if not trace.threads:
        raise ValueError("it has no threads")
    lengths: dict[StrandId, int] = {}
    for strand in trace.strands:
        if strand.id in lengths:
            raise ValueError(f"strand {strand.id} is there twice")
        for seen in strand.sees:
            if not 0 <= seen.length <= lengths.get(seen.strand, -1):
                raise ValueError(f"strand {strand.id} sees {seen.length} tokens of {seen.strand}, which has fewer")
        if not lengths.keys() >= set(strand.after):
            raise ValueError(f"strand {strand.id} comes after a strand that does not precede it")
        if strand.logprobs is not None and len(strand.logprobs) != len(strand.sampled):
            raise ValueError(f"strand {strand.id} has {len(strand.sampled)} tokens and {len(strand.logprobs)} logprobs")
        lengths[strand.id] = len(strand.ids)
    if len({thread.id for thread in trace.threads}) != len(trace.threads):
        raise ValueError("two of its threads have the same id")
    owned = [strand for thread in trace.threads for strand in thread.strands]
    if len(owned) != len(lengths) or set(owned) != lengths.keys():
        raise ValueError("its threads do not hold each strand once")

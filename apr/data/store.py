"""Problems and demonstrations on disk: Parquet files with a schema version, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from apr.errors import DataError
from apr.runs import disk_error
from apr.threads.codec import from_json, to_json
from apr.threads.trace import SCHEMA, Trace
from envs.countdown.env import check_problem, problem_of

_META = {b"schema": SCHEMA.encode()}


def problems_file(folder: Path, split: str) -> Path:
    return folder / "problems" / f"{split}.parquet"


def demonstrations_file(folder: Path, solver: str) -> Path:
    return folder / "demonstrations" / f"{solver}.parquet"


def write_problems(path: Path, problems: list[dict[str, Any]]) -> None:
    _write(path, pa.table({key: [problem[key] for problem in problems] for key in ("id", "numbers", "target")}))


def read_problems(path: Path) -> list[dict[str, Any]]:
    """All problems of a split. Raises `DataError` for a missing or corrupt file and for a malformed problem."""
    rows: list[dict[str, Any]] = _read(path, ["id", "numbers", "target"]).to_pylist()
    if not rows:
        raise DataError(f"{path} holds no problem: make it again with `apr data generate`")
    for i, row in enumerate(rows):
        check_problem(row, f"{path}, row {i}")
        if (right := problem_of(row["numbers"], row["target"])) != row:
            raise DataError(f"{path}, row {i}: {row!r} is not written as {right!r}: make it again")
    twice = [id for id, times in Counter(row["id"] for row in rows).items() if times > 1]
    if twice:
        raise DataError(f"{path}: problem {twice[0]} is there twice: make it again with `apr data generate`")
    return rows


def write_demonstrations(path: Path, traces: list[Trace]) -> None:
    """One row a trace: what people filter by as columns, the trace itself as JSON."""
    columns = {
        "problem": [trace.problem["id"] for trace in traces],
        "solved": [trace.correct for trace in traces],
        "context": [trace.costs.context if trace.costs else 0 for trace in traces],
        "work": [trace.costs.work if trace.costs else 0 for trace in traces],
        "threads": [len(trace.threads) for trace in traces],
        "trace": [json.dumps(to_json(trace), separators=(",", ":")) for trace in traces],
    }
    _write(path, pa.table(columns))


def read_demonstrations(path: Path) -> Iterator[Trace]:
    """The traces of a demonstration file, in order. Raises `DataError` for a missing, corrupt or newer file."""
    for i, text in enumerate(_read(path, ["trace"])["trace"]):
        try:
            yield from_json(json.loads(text.as_py()))
        except (json.JSONDecodeError, DataError) as error:
            raise DataError(f"{path}, row {i}: {error}") from error


def _write(path: Path, table: pa.Table) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.replace_schema_metadata(_META), beside, compression="zstd", write_page_checksum=True)
        beside.replace(path)
    except OSError as error:
        if (full := disk_error(path, error)) is error:
            raise
        raise full from error
    finally:
        beside.unlink(missing_ok=True)


def _read(path: Path, columns: list[str]) -> pa.Table:
    if not path.is_file():
        raise DataError(f"no data file {path}: make it with `apr data generate`, or set `data` to where it is")
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        names = table.column_names
        found = (table.schema.metadata or {}).get(b"schema", b"none").decode()
    except (pa.ArrowException, ValueError, OSError) as error:
        raise DataError(f"{path} is truncated or corrupt ({error}): make it again with `apr data generate`") from error
    if found != SCHEMA:
        raise DataError(f"{path} has schema {found}, this version reads {SCHEMA}: make it again, or update")
    missing = [column for column in columns if column not in names]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}: make it again with `apr data generate`")
    return table.select(columns)

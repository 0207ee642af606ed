"""Files from elsewhere are read within bounds of memory, depth and time; tables that are written are safe in a spreadsheet."""

import csv
import gzip
import io
import json
import resource
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import FREE, join, run, says

from apr.data import shards
from apr.data.shards import read_shard
from apr.errors import DataError
from apr.report.chart import Chart, Series, csv_text
from apr.threads import codec
from apr.threads.codec import TraceWriter, read_traces, to_json

MEMORY = 3 << 30  # bytes of address space: an interpreter with pyarrow, and a bound's worth


def within_memory(program: str) -> str:
    """What a process prints that may take `MEMORY` bytes."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, preexec_fn=limit, timeout=300,
        env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def bomb(path: Path, head: bytes, filling: bytes, times: int) -> Path:
    """A gzip file of `head` and so many MiB of `filling`."""
    packer = zlib.compressobj(1, wbits=31)
    block = filling * ((1 << 20) // len(filling))
    with path.open("wb") as file:
        file.write(packer.compress(head))
        for _ in range(times):
            file.write(packer.compress(block))
        file.write(packer.flush())
    return path


@pytest.mark.parametrize(("head", "filling"), [(b'{"schema": "', b"x"), (b"[", b"1,"), (b"", b" ")])
def test_a_line_of_gigabytes_is_refused_in_bounded_memory(head: bytes, filling: bytes, tmp_path: Path) -> None:
    path = bomb(tmp_path / "t.jsonl.gz", head, filling, 400)
    assert path.stat().st_size < 8 << 20
    said = within_memory(f"""
        from pathlib import Path
        from apr.errors import DataError
        from apr.threads.codec import read_traces
        try:
            list(read_traces(Path({str(path)!r})))
        except DataError as error:
            print(error)
    """)
    assert "line 1: it has more than 256 MiB" in said


TRACE = run(says(r_0=join(7)), FREE)


def nested(depth: int) -> Any:
    value: Any = 1
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    return value


def written(*lines: bytes) -> bytes:
    return gzip.compress(b"".join(line + b"\n" for line in lines))


def line_of(**more: Any) -> bytes:
    return json.dumps({**to_json(TRACE), **more}).encode()


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 200_000, b'{"a":' * 200_000, b"[" * 200_000 + b"]" * 200_000, b'{"schema": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        line_of(problem={"id": "p", "deep": nested(300)}), line_of(limits={"deep": nested(60)}),
        line_of(budgets={"deep": nested(60)}),
    ],
    ids=range(7),
)  # fmt: skip
def test_brackets_nested_deep_are_refused_and_the_next_line_is_read(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(written(line, line_of(), line_of(problem={"id": "p", "deep": nested(20)})))
    faults: list[DataError] = []
    assert len(list(read_traces(path, faults.append))) == 2
    assert len(faults) == 1 and "line 1" in str(faults[0]) and "nested" in str(faults[0])
    with pytest.raises(DataError, match="line 1"):
        list(read_traces(path))


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_lines_are_the_same_whatever_the_pieces(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.jsonl.gz"
    for _ in range(3):
        with TraceWriter(path) as writer:
            for _ in range(4):
                writer.append(TRACE)
    whole = path.read_bytes()
    monkeypatch.setattr(codec, "_CHUNK", chunk)
    assert len(list(read_traces(path))) == 12
    path.write_bytes(whole[:-3])
    with pytest.raises(DataError, match="cut off"):
        list(read_traces(path))
    with TraceWriter(path) as writer:  # drops the member that is cut
        writer.append(TRACE)
    assert len(list(read_traces(path))) == 9


def table(**columns: Any) -> pa.Table:
    return pa.table(columns).replace_schema_metadata({"schema": "s/1"})


TEXT = "x" * (1 << 16)
BOMBS = {
    "a text over and over": lambda: table(a=[TEXT] * 2000),
    "a number over and over": lambda: table(a=pa.array([7] * (1 << 24), pa.int64())),
    "lists of one number": lambda: table(a=pa.array([[7] * 100_000] * 100, pa.list_(pa.int64()))),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_shard_that_unpacks_to_far_more_than_it_has_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "LARGEST", 1 << 26)
    path = tmp_path / "train-00000-of-00001.parquet"
    pq.write_table(BOMBS[name](), path, compression="zstd")
    assert path.stat().st_size * 100 < 1 << 26
    with pytest.raises(DataError, match="unpacks to more than 64 MiB"):
        read_shard(path, "s/1", ["a"])


def test_a_shard_in_pieces_is_the_table_that_was_written(tmp_path: Path) -> None:
    rows = table(
        a=list(range(2000)), b=[[i] * (i % 5) for i in range(2000)], c=[None if i % 3 else f"{i}" for i in range(2000)]
    )
    path = tmp_path / "train-00000-of-00001.parquet"
    pq.write_table(rows, path, row_group_size=700)
    assert read_shard(path, "s/1", ["a"]).equals(rows)
    pq.write_table(rows.slice(0, 0), path)
    assert read_shard(path, "s/1", ["a"]).equals(rows.slice(0, 0))


DANGEROUS = [
    "=1+1",
    "+1+1",
    "-1+1",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    '=HYPERLINK("http://x")',
    "\uff1d1",
    "-a",
]


@pytest.mark.parametrize("cell", DANGEROUS)
def test_no_cell_of_a_report_is_a_formula(cell: str) -> None:
    chart = Chart("c", cell, cell, cell, [Series(cell, [0.0], [-1.0], "line", labels=[cell])], "zero")
    for text in (csv_text([cell, "b"], [[cell, -1.5], ["plain", cell]]), chart.csv()):
        cells = [one for line in csv.reader(io.StringIO(text, newline="")) for one in line]
        read = cell.replace("\r", "\n")
        assert f"'{read}" in cells and not any(one.lstrip(" ")[:1] in "=+@" for one in cells if one)


@pytest.mark.parametrize("cell", ["-1.5", "+3", "-1e-05", -1.5, -3, None, "plain", "a=b", "3-4"])
def test_numbers_and_other_texts_stay_as_they_are(cell: Any) -> None:
    (line,) = csv.reader(io.StringIO(csv_text([], [[cell, "end"]]).lstrip("\n")))
    assert line == ["" if cell is None else str(cell), "end"]

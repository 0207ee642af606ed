"""Tables of any format are read row by row, whatever wrote them; bad rows are named, bad files refused."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apr.data.tables import read_table
from apr.errors import DataError

Rows = list[dict[str, Any]]
ROWS: Rows = [{"nums": [3, 5], "target": 8, "note": "a, b"}, {"nums": [1, 2], "target": 3, "note": "ü"}]
TEXTS: Rows = [{"nums": "[3, 5]", "target": "8", "note": "a, b"}, {"nums": "[1, 2]", "target": "3", "note": "ü"}]
BOM = "\ufeff".encode()


def as_csv(rows: Rows, delimiter: str = ",") -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def as_list(rows: Rows) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def as_lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_parquet(rows: Rows) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def read(path: Path) -> Rows:
    found = list(read_table(path))
    assert [row.number for row in found] == list(range(len(found))) and not [row.fault for row in found if row.fault]
    return [row.columns for row in found]


WRITTEN: dict[str, tuple[Callable[[Rows], bytes], Rows]] = {
    "rows.csv": (as_csv, TEXTS),
    "semicolons.csv": (lambda rows: as_csv(rows, ";"), TEXTS),
    "tabs.tsv": (lambda rows: as_csv(rows, "\t"), TEXTS),
    "unix.csv": (lambda rows: as_csv(rows).replace(b"\r\n", b"\n\n"), TEXTS),
    "list.json": (as_list, ROWS),
    "lines.json": (as_lines, ROWS),
    "lines.jsonl": (lambda rows: as_lines(rows).replace(b"\n", b"\r\n\r\n"), ROWS),
    "rows.parquet": (as_parquet, ROWS),
    "no_suffix": (as_list, ROWS),
}


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("mark", [False, True], ids=["", "bom"])
def test_every_format_gives_the_same_rows(name: str, packed: bool, mark: bool, tmp_path: Path) -> None:
    write, rows = WRITTEN[name]
    content = write(ROWS)
    if name.endswith("parquet"):
        if packed or mark:
            pytest.skip("Parquet is neither text nor gzipped as a whole")
    elif mark:
        content = BOM + content
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content) if packed else content)
    told: list[int] = []
    assert read(path) == rows
    list(read_table(path, told.append))
    assert sum(told) == path.stat().st_size


@pytest.mark.parametrize("name", ["rows.csv", "list.json", "lines.jsonl"])
def test_files_are_utf_8_whatever_the_locale(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(WRITTEN[name][0](ROWS))
    code = "import sys; from pathlib import Path; from apr.data.tables import read_table\n"
    code += "print(ascii([row.columns['note'] for row in read_table(Path(sys.argv[1]))]))"
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == ascii(["a, b", "ü"]), done.stderr


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("a.csv", "nums,target\n[1, 2],3\n3 5,8\n", "3 fields, but the header names 2"),
        ("a.csv", 'nums,target\n"1"2,3\n3 5,8\n', "not a row of CSV"),
        ("a.csv", "nums,target\n1\n3 5,8\n", "1 fields"),
        ("a.csv", "nums,target\n" + "9" * 200_000 + ",3\n3 5,8\n", "not a row of CSV"),
        ("a.csv", b"nums,target\n\xff,3\n3 5,8\n", "not UTF-8"),
        ("a.jsonl", '{"nums": 1\n{"nums": "3 5", "target": "8"}\n', "not a JSON object"),
        ("a.jsonl", '{"nums": nan}\n{"nums": "3 5", "target": "8"}\n', "not a JSON object"),
        ("a.jsonl", '{"a": ' + "[" * 100_000 + '\n{"nums": "3 5", "target": "8"}\n', "not a JSON object"),
        ("a.jsonl", b'{"a": "\xff"}\n{"nums": "3 5", "target": "8"}\n', "not UTF-8"),
        ("a.json", '[5, {"nums": "3 5", "target": "8"}]', "of type int"),
        ("a.json", '["x", {"nums": "3 5", "target": "8"}]', "of type str"),
        ("a.json", '[[], {"nums": "3 5", "target": "8"}]', "of type list"),
    ],
)
def test_a_bad_row_is_named_and_the_next_one_read(name: str, text: str | bytes, fault: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    bad, good = read_table(path)
    assert bad.fault and fault in bad.fault and not bad.columns
    assert good == (1, {"nums": "3 5", "target": "8"}, None)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", BOM + b" \r\n", "is empty"),
        ("a.json", b"\n\n", "is empty"),
        ("a.csv", "nums,target\n1 2,3\n".encode("utf-16"), "UTF-16, not UTF-8"),
        ("a.xlsx", b"PK\x03\x04 and more", "a spreadsheet"),
        ("a.csv", b"nums,nums,target\n1 2,1 2,3\n", "names 'nums' twice"),
        ("a.csv", b"n\xffms,target\n1 2,3\n", "is not UTF-8"),
        ("a.csv", b'"nums\n', "no header|header"),
        ("a.json", b'[{"a": 1}, {"a"', "row 1: not a JSON list"),
        ("a.json", b'[{"a": 1}] [2]', "after the end"),
        ("a.json", b'[{"a": "\xff"}]', "not UTF-8"),
        ("a.csv.gz", gzip.compress(b"nums,target\n" + os.urandom(999))[:-300], "truncated or corrupt"),
        ("a.json.gz", b"\x1f\x8b\x08 no gzip", "truncated or corrupt|empty"),
        ("a.parquet", as_parquet(ROWS)[:-20], "truncated or corrupt"),
        ("a.parquet", b"PAR1", "truncated or corrupt"),
    ],
)
def test_a_file_that_is_no_table_is_refused(name: str, content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=why) as caught:
        list(read_table(path))
    assert name in str(caught.value)


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="check the path"):
        list(read_table(tmp_path / "none.csv"))
    with pytest.raises(DataError, match="is a folder"):
        list(read_table(tmp_path))


def test_numbers_of_any_length_spoil_no_other_row(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(f'[{{"target": {"9" * 5000}}}, {{"target": {"9" * 30}}}]')
    assert read(path) == [{"target": float("inf")}, {"target": int("9" * 30)}]


@pytest.mark.parametrize("name", ["rows.csv", "list.json", "lines.jsonl"])
def test_memory_does_not_grow_with_the_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(WRITTEN[name][0]([{"nums": [1, 2], "target": i, "note": "x" * 100} for i in range(100_000)]))
    assert path.stat().st_size > 10_000_000
    tracemalloc.start()
    assert sum(1 for row in read_table(path) if row.fault is None) == 100_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=60) | st.text('{}[]",:\n\r1ü ', max_size=60).map(str.encode),
    name=st.sampled_from(["a.csv", "a.json", "a.gz", "a.parquet"]),
)
def test_whatever_a_file_holds_it_is_read_or_refused(content: bytes, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    try:
        for row in read_table(path):
            assert isinstance(row.columns, dict) and (row.fault is None or not row.columns)
    except DataError as error:
        assert name in str(error)

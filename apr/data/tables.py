"""Tables in the files that people hand over, read row by row: CSV, a JSON list, JSON lines or Parquet, also gzipped.

What a file is, its content says, since names lie: Parquet and gzip by their first bytes, JSON by a bracket, all else is
CSV (a file called `.csv` is CSV whatever it begins with). Text is UTF-8 whatever the locale, with or without a byte order
mark. Memory is bounded: by `MAX_ROW` characters for a row, by a batch of rows for Parquet.

A row that cannot be read is named and the next one is read, except in a JSON list, where nobody can say where the next
one begins. This module knows no environment: a row is whatever columns it has.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from apr.errors import DataError

MAX_ROW = 1 << 26  # characters
MAX_DIGITS = 40  # of a JSON number that is read as an integer; longer ones become floats
_CHUNK = 1 << 20
_BATCH = 1024  # rows of Parquet
_SPACE = re.compile(r"[ \t\r\n]*")
_PARQUET, _GZIP = b"PAR1", b"\x1f\x8b"
_OTHERS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"PK\x03\x04": "a zip archive or a spreadsheet"}
_SURROGATE = re.compile("[\ud800-\udfff]")

Advance = Callable[[int], None]


class Row(NamedTuple):
    """One row, numbered from 0; without columns if it could not be read, and then `fault` says why.

    Example: `Row(0, {"nums": [3, 5], "target": 8}, None)`, `Row(1, {}, "not JSON: ...")`.
    """

    number: int
    columns: dict[str, Any]
    fault: str | None


def read_table(path: Path, advance: Advance = lambda read: None) -> Iterator[Row]:
    """Yield the rows of a file in order; `advance` is told of bytes read.

    Raises `DataError` if the file is missing, empty, not UTF-8 or no table at all, or breaks off.
    """
    kind = _kind(path)
    match kind:
        case "parquet":
            yield from _parquet(path, advance)
        case "list":
            for number, value in enumerate(elements(path, advance)):
                yield _object(number, value)
        case "lines":
            yield from _json_lines(path, advance)
        case _:
            yield from _csv(path, advance)


def _kind(path: Path) -> str:
    with _opened(path, lambda read: None) as (file, head):
        if head.startswith(_PARQUET):
            return "parquet"
        first = ""
        while not first:
            text = _read(path, file, 4096)
            if not text:
                raise DataError(f"{path} is empty: give a file with rows")
            first = text.lstrip()[:1]
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if first not in ("[", "{") or suffix in (".csv", ".tsv"):
        return "csv"
    return "list" if first == "[" else "lines"


@contextmanager
def _opened(path: Path, advance: Advance) -> Iterator[tuple[TextIO, bytes]]:
    """The text of a file, and its first bytes as they are stored."""
    if not path.is_file():
        raise DataError(
            f"{path} is a folder: give a file in it" if path.is_dir() else f"no file {path}: check the path"
        )
    try:
        with path.open("rb", buffering=0) as raw:
            head = raw.read(4)
            for mark, what in _OTHERS.items():
                if head.startswith(mark):
                    raise DataError(f"{path} is {what}, not UTF-8 text or Parquet: save it as CSV in UTF-8")
            raw.seek(0)
            counted = io.BufferedReader(_Counted(raw, advance), _CHUNK)
            plain: Any = gzip.GzipFile(fileobj=counted) if head.startswith(_GZIP) else counted
            yield io.TextIOWrapper(plain, encoding="utf-8-sig", errors="surrogateescape", newline=""), head
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is truncated or corrupt ({error}): fetch or write the file again") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


class _Counted(io.RawIOBase):
    """A raw file that reports how much of it was read."""

    def __init__(self, raw: io.RawIOBase | io.FileIO, advance: Advance) -> None:
        self._raw, self._advance = raw, advance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        read = self._raw.readinto(buffer)
        self._advance(read or 0)
        return read


def _read(path: Path, file: TextIO, size: int, line: bool = False) -> str:
    """The next `size` characters at most, or the next line of no more than that."""
    text = file.readline(size) if line else file.read(size)
    if line and len(text) == size:
        raise DataError(f"{path} has a line of more than {size - 1} characters: give a table with a row on each line")
    return text


# JSON


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)


_DECODER = json.JSONDecoder(parse_int=_integer)


def _object(number: int, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(number, value, None)
    return Row(number, {}, f"it is not an object with columns, but of type {type(value).__name__}")


def _json_lines(path: Path, advance: Advance) -> Iterator[Row]:
    with _opened(path, advance) as (file, _):
        number = 0
        while line := _read(path, file, MAX_ROW, line=True):
            if not line.strip():
                continue
            yield _json_line(number, line.strip())
            number += 1


def _json_line(number: int, line: str) -> Row:
    if _SURROGATE.search(line):
        return Row(number, {}, "it is not UTF-8")
    try:
        return _object(number, _DECODER.decode(line))
    except (ValueError, RecursionError) as error:
        return Row(number, {}, f"not a JSON object on one line ({error})")


def elements(path: Path, advance: Advance = lambda read: None) -> Iterator[Any]:
    """The elements of a JSON list, one by one; `advance` is told of bytes read. Files may be larger than memory.

    Raises `DataError` if the file is missing, cut off, or no JSON list.
    """
    row = 0
    try:
        with _opened(path, advance) as (file, _):
            source = _Source(file)
            if source.mark() != "[":
                raise ValueError("it does not open a list; other tables are read with --env NAME")
            mark = source.mark(look=True)
            if mark == "]":
                source.mark()
            while mark != "]":
                yield source.value()
                row += 1
                mark = source.mark()
                if mark not in (",", "]"):
                    raise ValueError("the list is cut off" if not mark else f"{mark!r} where a comma or ] should be")
            if mark := source.mark():
                raise ValueError(f"{mark!r} after the end of the list")
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}, row {row}: not a JSON list of rows ({error}): fetch or write the file again"
        ) from error


class _Source:
    """JSON values and the marks between them, from a file read piece by piece."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._at = 0

    def mark(self, look: bool = False) -> str:
        """The next character that is no space, left in place if `look`; empty at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                self._at += not look
                return self._text[self._at - (not look)]
            if not self._more():
                return ""

    def value(self) -> Any:
        """The next JSON value. Raises `ValueError` if there is none, or if it is longer than `MAX_ROW` characters."""
        self.mark(look=True)
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if len(self._text) - self._at > MAX_ROW or not self._more():
                    raise
                continue
            if end < len(self._text) or not self._more():  # a number at the end of the text may go on
                self._at = end
                return value

    def _more(self) -> bool:
        chunk = self._file.read(max(_CHUNK, len(self._text) - self._at))
        if _SURROGATE.search(chunk):
            raise ValueError("it is not UTF-8")
        self._text, self._at = self._text[self._at :] + chunk, 0
        return bool(chunk)


# CSV


def _csv(path: Path, advance: Advance) -> Iterator[Row]:
    with _opened(path, advance) as (file, _):
        lines = iter(lambda: _read(path, file, MAX_ROW, line=True), "")
        header = next((line for line in lines if line.strip()), "")
        delimiter = max(",;\t", key=header.count)
        try:
            names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter, strict=True), [])]
        except csv.Error as error:
            raise DataError(f"{path}: its first line is no header of a CSV file ({error})") from error
        twice = [name for name, times in Counter(names).items() if times > 1]
        if twice or _SURROGATE.search(header):
            what = f"names {', '.join(map(repr, twice))} twice" if twice else "is not UTF-8"
            raise DataError(f"{path}: its first line {what}: write a header that names each column once, in UTF-8")
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        number = 0
        while True:
            try:
                fields = next(reader, None)
            except csv.Error as error:
                yield Row(number, {}, f"not a row of CSV ({error})")
                number += 1
                continue
            if fields is None:
                return
            if not fields:  # an empty line
                continue
            yield _fields(number, names, fields)
            number += 1


def _fields(number: int, names: list[str], fields: list[str]) -> Row:
    if len(fields) != len(names):
        fault = f"it has {len(fields)} fields, but the header names {len(names)}: fields with commas need quotes"
        return Row(number, {}, fault)
    if any(map(_SURROGATE.search, fields)):
        return Row(number, {}, "it is not UTF-8")
    return Row(number, dict(zip(names, fields)), None)


# Parquet


def _parquet(path: Path, advance: Advance) -> Iterator[Row]:
    import pyarrow as pa  # here: half a second to load, and only Parquet needs it
    import pyarrow.parquet as pq

    size = path.stat().st_size
    number = told = 0
    try:
        with pq.ParquetFile(path) as file:
            rows = max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=_BATCH):
                for columns in batch.to_pylist():
                    yield Row(number, columns, None)
                    number += 1
                advance(size * number // rows - told)
                told = size * number // rows
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}, row {number}: truncated or corrupt ({error}): fetch or write it again") from error

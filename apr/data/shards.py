"""Shards: a table as numbered Parquet files, each written whole or not at all, and known by the hash of its rows.

    train-00000-of-00050.parquet  train-00001-of-00050.parquet ...

The schema metadata of a shard carries facts as text, `schema` and `content_hash` among them: a card needs no row.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from apr.errors import DataError
from apr.replacing import beside
from apr.runs import disk_error, followed

AGAIN = "make it again with `apr data generate`"
LARGEST = 1 << 30  # bytes that a shard may have in memory,
RATIO = 100  # or so many times those that it has on disk, if these are more
_ROWS = 512  # read at once
_SHARD = re.compile(r"-(\d{5,})-of-(\d{5,})\.parquet")


def shard_path(folder: Path, split: str, index: int, count: int) -> Path:
    """The file of shard `index` (from 0) of `count`."""
    return folder / f"{split}-{index:05d}-of-{count:05d}.parquet"


def shard_paths(folder: Path, split: str) -> list[Path]:
    """All shards of a split, in order. Raises `DataError` if there are none, or if one is missing."""
    found = [path for path in folder.glob(f"{split}-*.parquet") if _SHARD.fullmatch(path.name, len(split))]
    if not found:
        wanted = folder / f"{split}-*.parquet"
        raise DataError(f"no data file {wanted}: make it with `apr data generate`, or set `data` to where it is")
    counts = {path.stem.rpartition("-of-")[2] for path in found}
    if len(counts) > 1:
        raise DataError(
            f"{folder} mixes data sets of {' and '.join(sorted(counts))} {split} shards: delete one of them"
        )
    paths = [shard_path(folder, split, i, int(*counts)) for i in range(int(*counts))]
    for path in paths:
        if path not in found:
            raise DataError(f"{path} is missing, while others of its data set are there: {AGAIN}")
    return paths


def sweep(folder: Path) -> None:
    """Delete what killed writers have left unfinished. Only for whoever holds the run directory's lock."""
    for path in folder.rglob(".*.parquet.*.tmp"):
        path.unlink(missing_ok=True)


def write_shard(path: Path, table: pa.Table, schema: str, facts: Mapping[str, str]) -> None:
    """Write one shard atomically. Raises `ResourceError` if the disk is full."""
    path = followed(path)
    new = beside(path)
    facts = {**facts, "schema": schema, "content_hash": rows_hash(table)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.replace_schema_metadata(facts), new, compression="zstd", write_page_checksum=True)
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        if (full := disk_error(path, error)) is error:
            raise
        raise full from error
    finally:
        new.unlink(missing_ok=True)


def read_shard(path: Path, schema: str, columns: Sequence[str]) -> pa.Table:
    """All columns, which `columns` are among, and the shard's facts as metadata.

    Raises `DataError` for a missing, corrupt or newer file, or one that unpacks to far more than any shard has."""
    facts = shard_facts(path, schema)
    try:
        table = _bounded(path)
    except DataError:
        raise
    except (pa.ArrowException, ValueError, OSError) as error:
        raise _corrupt(path, error) from error
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}: {AGAIN}")
    return table.replace_schema_metadata(facts)


def _bounded(path: Path) -> pa.Table:
    """The rows of a Parquet file, read in pieces. Raises `DataError` once they take too much memory."""
    most = max(LARGEST, RATIO * path.stat().st_size)
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        size, batches = 0, []
        if sum(group.total_byte_size for group in groups) <= most:
            for batch in file.iter_batches(_ROWS):
                size += batch.nbytes
                batches.append(batch)
                if size > most:
                    break
            else:
                return pa.Table.from_batches(batches, file.schema_arrow)
    raise DataError(
        f"{path} unpacks to more than {most >> 20} MiB, over {RATIO} times its size: no shard does. {AGAIN}"
    )


def shard_facts(path: Path, schema: str) -> dict[str, str]:
    """What a shard says of itself; reads its footer only. Raises `DataError` like `read_shard`."""
    if not path.is_file():
        raise DataError(f"no data file {path}: make it with `apr data generate`, or set `data` to where it is")
    try:
        metadata = pq.read_schema(path).metadata or {}
        facts = {key.decode(): value.decode() for key, value in metadata.items()}
    except (pa.ArrowException, ValueError, OSError) as error:
        raise _corrupt(path, error) from error
    if (found := facts.get("schema", "none")) != schema:
        raise DataError(f"{path} has schema {found}, this version reads {schema}: make it again, or update")
    return facts


def content_hash(paths: Sequence[Path], schema: str) -> str:
    """SHA-256 over the shards' hashes in order: the same rows in the same shards give the same, however written."""
    return combined(shard_facts(path, schema).get("content_hash", "") for path in paths)


def combined(hashes: Iterator[str] | Sequence[str]) -> str:
    """One hash of several."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def rows_hash(table: pa.Table) -> str:
    """SHA-256 over the values in column order: independent of compression, chunks and library versions.

    Each column is its name and its arrays, each of these its type, its length and its values, little-endian: lists and
    texts are their lengths, then their values; nulls are a byte for each row (1: a value), then the values, with 0 there.
    """
    digest = hashlib.sha256()
    for name in table.column_names:
        digest.update(f"{name}\n".encode())
        for values in _arrays(table[name].combine_chunks()):
            plain = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
            digest.update(f"{plain.dtype.str} {len(plain)}\n".encode())
            digest.update(plain.data)
    return digest.hexdigest()


def _arrays(column: Any) -> Iterator[np.ndarray[Any, Any]]:
    """The values of an Arrow array as plain arrays."""
    if column.null_count:
        yield column.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8)
    if pa.types.is_list(column.type):
        yield column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        yield from _arrays(column.flatten())
    elif pa.types.is_string(column.type):
        texts = [text.encode() for text in column.fill_null("").to_pylist()]
        yield np.array([len(text) for text in texts], np.int32)
        yield np.frombuffer(b"".join(texts), np.uint8)
    elif pa.types.is_struct(column.type):
        for field in column.flatten():
            yield from _arrays(field)
    elif pa.types.is_boolean(column.type):
        yield column.fill_null(False).to_numpy(zero_copy_only=False).astype(np.uint8)
    else:
        yield (column.fill_null(0) if column.null_count else column).to_numpy(zero_copy_only=False)


def _corrupt(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is truncated or corrupt ({error}): {AGAIN}")

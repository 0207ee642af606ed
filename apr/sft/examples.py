"""What SFT trains on: the rows of all demonstrations as one table on disk, and the batches of them."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from apr.config import SftConfig
from apr.data.shards import shard_paths
from apr.data.store import data_env, demonstrations_folder, traces_in
from apr.data.workers import in_processes
from apr.errors import ConfigError, DataError
from apr.seeds import derive_rng, derive_seed
from apr.sft.rows import Row, pointers, rows
from envs.base import Env

MOST_BATCHES = 10_000_000  # of a training; a mistyped `tokens` would fill the memory with them
ROWS_AT_ONCE = 4096  # in memory, of each shard that is read
COLUMN = pa.large_list(pa.int32())
# Tokens; for each the one that it predicts, or -100; who sees whom (`apr.sft.rows.pointers`), empty for causal sequences.
COLUMNS = pa.schema([("input_ids", COLUMN), ("targets", COLUMN), ("segments", COLUMN)])


@dataclass(frozen=True, slots=True)
class Reading:
    """A shard of demonstrations, which of its rows train, and the file that they are written to."""

    shard: Path
    rows: Path
    window: int
    overlong: Literal["head", "drop"]
    only_solved: bool
    env: Env


@dataclass(frozen=True, slots=True)
class Examples:
    """`table`: all rows as `COLUMNS`, in files that are mapped and not read whole, so that data may be larger than the memory.
    `order`: the places of its rows in a seeded order, and `lengths` the tokens of each in that order. `over`: how many rows
    were cut or dropped."""

    table: pa.Table
    order: list[int]
    lengths: list[int]
    over: int

    def batches(self, config: SftConfig) -> list[list[int]]:
        """The rows of each step, by their places in `table`; see `token_batches`."""
        made = token_batches(self.lengths, config.batch_tokens, config.tokens, config.seed)
        return [[self.order[i] for i in batch] for batch in made]


def examples_of(config: SftConfig, kept: Path) -> Examples:
    """Rows that fit the window. Shards are read in up to `config.threads` processes, into files in `kept`, which must stay as
    long as the rows are used. Raises `DataError` if no row is left."""
    folder = demonstrations_folder(config.data, config.solver)
    env = data_env(config.data, config.env)
    readings = [
        Reading(shard, kept / f"{index:05}.arrow", config.model.window, config.overlong, config.only_solved, env)
        for index, shard in enumerate(shard_paths(folder, "train"))
    ]
    with closing(in_processes(read, readings, config.threads or 1)) as done:
        over = sum(done)
    table = pa.concat_tables([pa.ipc.open_file(pa.memory_map(str(reading.rows))).read_all() for reading in readings])
    if not len(table):
        raise DataError(f"{folder} holds no row to train on: loosen only_solved or overlong, or make more data")
    order = list(range(len(table)))
    random.Random(derive_seed(config.seed, "rows")).shuffle(order)
    lengths = np.concatenate([chunk.value_lengths().to_numpy() for chunk in table["input_ids"].chunks])
    return Examples(table, order, lengths[order].tolist(), over)


def read(reading: Reading) -> int:
    """Write the rows of one shard, some at a time; how many of them were cut or dropped. Runs in a worker process."""
    over = 0
    with pa.OSFile(str(reading.rows), "wb") as file, pa.ipc.new_file(file, COLUMNS) as written:
        batch: list[Row] = []
        for trace in traces_in(reading.shard, reading.env):
            if reading.only_solved and not trace.correct:
                continue
            for row in rows(trace, reading.window):
                over += row.over
                if not (row.over and reading.overlong == "drop"):
                    batch.append(row)
            if len(batch) >= ROWS_AT_ONCE:
                written.write_batch(_columns(batch))
                batch = []
        if batch:
            written.write_batch(_columns(batch))
    return over


def _columns(batch: Sequence[Row]) -> pa.RecordBatch:
    flat = [array("i") for _ in COLUMNS]
    ends = [[0] for _ in COLUMNS]
    for row in batch:
        for values, end, own in zip(flat, ends, (row.block.ids, row.targets, pointers(row.block))):
            values.extend(own)
            end.append(len(values))
    columns = [
        pa.LargeListArray.from_arrays(pa.array(end, pa.int64()), pa.array(np.array(values, np.int32)))
        for values, end in zip(flat, ends)
    ]
    return pa.record_batch(columns, schema=COLUMNS)


def token_batches(lengths: Sequence[int], budget: int, total: int, seed: int) -> list[list[int]]:
    """Row indices in batches of at most `budget` padded tokens, rows of similar length together, until `total` tokens.

    Each pass over the rows has an order of its own; the last one is cut short where `total` is reached.

    Raises `DataError` if the rows have no tokens, and `ConfigError` for a `total` of more than `MOST_BATCHES` batches.
    """
    if not (whole := sum(lengths)):
        raise DataError("there are no tokens to train on: loosen only_solved or overlong, or make more data")
    passes = total / whole
    if passes * (steps := whole / max(budget, max(lengths))) > MOST_BATCHES:
        raise ConfigError(
            f"tokens={total:,} is {passes:,.0f} passes over the {whole:,} tokens there are, in at least {passes * steps:,.0f} "
            f"steps, more than the {MOST_BATCHES:,} that a training may have: lower tokens, or raise batch_tokens"
        )
    batches: list[list[int]] = []
    tokens, epoch = 0, 0
    while tokens < total:
        # Rows of equal length meet others in every pass, and batches come in no order of length.
        rng = derive_rng(seed, "batches", epoch)
        order = sorted(range(len(lengths)), key=lambda i: (lengths[i], rng.random()))
        for batch in rng.sample(cut := _cut(order, lengths, budget), len(cut)):
            batches.append(batch)
            tokens += sum(lengths[i] for i in batch)
            if tokens >= total:
                break
        epoch += 1
    return batches


def check_warmup(config: SftConfig, steps: int) -> None:
    """Raise `ConfigError` if the learning rate would still rise when the training ends, or never rise from 0."""
    if config.warmup_steps >= steps:
        raise ConfigError(
            f"the learning rate rises for warmup_steps={config.warmup_steps} steps, and tokens={config.tokens:,} in batches of "
            f"batch_tokens={config.batch_tokens:,} make {steps}: it would never reach lr={config.lr:g}. Lower warmup_steps "
            "below the number of steps, raise tokens, or lower batch_tokens"
        )


def _cut(order: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """`order`, by ascending length, in batches of at most `budget` padded tokens (a longer row is a batch alone)."""
    batches: list[list[int]] = []
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * lengths[i] > budget:
            batches.append(batch)
            batch = []
        batch.append(i)
    return [*batches, batch]

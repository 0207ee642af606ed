"""Problems and demonstrations on disk.

    problems/train-00000-of-00050.parquet                     id, numbers, target
    demonstrations/spawn_join/train-00000-of-00050.parquet    of the same shard of problems, in the same order

A demonstration is stored as the tokens that its strands sample, and no more: the protocol lays the strands out again
(`apr.tokens.encode.demonstration`), so a trace that is read equals the one that was written. Costs and outcome are
columns beside them, for those who filter.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from apr.data.shards import AGAIN, content_hash, read_shard, shard_facts, shard_paths, write_shard
from apr.dialects import DIALECTS, dialect_in
from apr.errors import DataError
from apr.protocols import PROTOCOLS, protocol_by_name
from apr.threads.trace import ROOT, Trace
from apr.tokens.dialect import Dialect, condition_of
from apr.tokens.encode import demonstration
from envs.countdown.env import Problems, problem_id

PROBLEMS = "apr.problems/1"
DEMONSTRATIONS = "apr.demonstrations/1"
COSTS = ("context", "work", "work_sampled", "span_sampled", "threads")

PROBLEM_COLUMNS = pa.schema([("id", pa.string()), ("numbers", pa.list_(pa.int64())), ("target", pa.int64())])
DEMONSTRATION_COLUMNS = pa.schema(
    [
        ("problem", pa.string()),  # its id
        ("numbers", pa.list_(pa.int64())),
        ("target", pa.int64()),
        ("condition", pa.int64()),  # value; its kind is a fact of the shard
        ("solved", pa.bool_()),
        *((cost, pa.int64()) for cost in COSTS),
        ("children", pa.int64()),  # the most of any one spawn of the root
        ("strands", pa.list_(pa.int32())),  # how many tokens each strand sampled, in depth-first spawn order
        ("tokens", pa.list_(pa.uint16())),  # those tokens, strand after strand
    ]
)
NARROW = 1 << 16  # tokens in a vocabulary whose ids are stored so
WIDE_COLUMNS = DEMONSTRATION_COLUMNS.set(
    DEMONSTRATION_COLUMNS.get_field_index("tokens"), pa.field("tokens", pa.list_(pa.uint32()))
)


def columns_of(dialect: Dialect) -> pa.Schema:
    """Those of demonstrations, with tokens as wide as the vocabulary needs."""
    return DEMONSTRATION_COLUMNS if len(dialect.vocabulary) <= NARROW else WIDE_COLUMNS


def problems_folder(folder: Path) -> Path:
    return folder / "problems"


def demonstrations_folder(folder: Path, solver: str) -> Path:
    return folder / "demonstrations" / solver


def dialect_of_shard(path: Path, name: str) -> Dialect:
    """The dialect `name` as the data set spells it that the shard of demonstrations at `path` is of."""
    return dialect_in(path.parents[2], name)


def problems_hash(folder: Path, split: str) -> str:
    """The content hash of a split's problems. Raises `DataError` if a shard is missing."""
    return content_hash(shard_paths(problems_folder(folder), split), PROBLEMS)


def demonstrations_hash(folder: Path, solver: str) -> str:
    """The content hash of a teacher's demonstrations. Raises `DataError` if a shard is missing."""
    return content_hash(shard_paths(demonstrations_folder(folder, solver), "train"), DEMONSTRATIONS)


# Problems


def write_problems(path: Path, problems: Problems) -> None:
    """One shard of problems."""
    rows = problems.dictionaries()
    columns = {name: [row[name] for row in rows] for name in PROBLEM_COLUMNS.names}
    write_shard(path, pa.table(columns, PROBLEM_COLUMNS), PROBLEMS, {"rows": str(len(rows))})


def read_problems(folder: Path, split: str) -> list[dict[str, Any]]:
    """All problems of a split of the data set in `folder`. Raises `DataError` for a missing or corrupt file, and for a
    problem that is malformed, has no solution or is there twice."""
    seen: set[str] = set()
    return [problem for path in shard_paths(problems_folder(folder), split) for problem in problems_of(path, seen)]


def problems_of(path: Path, seen: set[str]) -> list[dict[str, Any]]:
    """The problems of one shard, checked; their ids are added to `seen`, and must not be in it before."""
    table = read_shard(path, PROBLEMS, PROBLEM_COLUMNS.names)
    if not len(table):
        raise DataError(f"{path} holds no problem: {AGAIN}")
    malformed = _malformed(table)
    if malformed.any():
        i = int(malformed.argmax())
        problem = table.slice(i, 1).to_pylist()[0]
        raise DataError(
            f"{path}, row {i}: not a Countdown problem: {problem!r}. Needed: 2 to 6 numbers >= 0, target >= 0"
        )
    rows: list[dict[str, Any]] = table.to_pylist()
    for i, row in enumerate(rows):
        numbers = sorted(row["numbers"])
        if row["numbers"] != numbers or row["id"] != (id := problem_id(numbers, row["target"])):
            right = {"id": problem_id(numbers, row["target"]), "numbers": numbers, "target": row["target"]}
            raise DataError(f"{path}, row {i}: {row!r} is not written as {right!r}: {AGAIN}")
        if id in seen:
            raise DataError(f"{path}, row {i}: problem {id} is there twice: {AGAIN}")
        seen.add(id)
    solvable = solvable_rows([row["numbers"] for row in rows], [row["target"] for row in rows])
    if not solvable.all():
        i = int(solvable.argmin())
        raise DataError(f"{path}, row {i}: problem {rows[i]!r} has no solution; leave it out")
    return rows


def _malformed(table: pa.Table) -> NDArray[np.bool_]:
    """bool[rows]: which rows are no Countdown problem, whatever their columns are typed as."""
    bad = np.zeros(len(table), np.bool_)
    numbers, target = table["numbers"].combine_chunks(), table["target"].combine_chunks()
    typed = pa.types.is_string(table["id"].type) and pa.types.is_integer(target.type)
    if not typed or not pa.types.is_list(numbers.type) or not pa.types.is_integer(numbers.type.value_type):
        return ~bad
    for column in (table["id"], numbers, target):
        bad |= column.is_null().to_numpy(zero_copy_only=False) if column.null_count else False
    lengths = numbers.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    bad |= (lengths < 2) | (lengths > 6) | (target.fill_null(0).to_numpy(zero_copy_only=False) < 0)
    values = numbers.flatten().fill_null(-1).to_numpy(zero_copy_only=False)
    bad[np.repeat(np.arange(len(bad)), lengths)[values < 0]] = True
    return bad


def solvable_rows(numbers: Sequence[Sequence[int]], targets: Sequence[int]) -> NDArray[np.bool_]:
    """bool[N]: which problems have a solution; `numbers` ascending in each, and not equally many in all."""
    found = np.zeros(len(targets), np.bool_)
    lengths = np.array([len(row) for row in numbers])
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        columns = (np.array([numbers[i] for i in rows], np.int64), np.array([targets[i] for i in rows], np.int64))
        found[rows] = Problems(*columns).solvable()
    return found


# Demonstrations


def facts_of(dialect: Dialect, protocol: str, condition: str) -> dict[str, str]:
    """What a shard of demonstrations says of how it is to be read."""
    return {
        "dialect": dialect.name, "vocabulary": dialect.vocabulary.hash, "protocol": protocol, "condition": condition,
    }  # fmt: skip


def write_demonstrations(path: Path, table: pa.Table, asked: int, facts: dict[str, str]) -> None:
    """One shard: a table of `DEMONSTRATION_COLUMNS`, of the `asked` demonstrations that were tried for."""
    statistics = json.dumps(statistics_of(table, asked))
    write_shard(path, table, DEMONSTRATIONS, {**facts, "statistics": statistics})


def read_demonstrations(folder: Path, solver: str) -> Iterator[Trace]:
    """A teacher's traces in the data set in `folder`, in order; no more than a shard is held at a time. Raises
    `DataError` for a missing, corrupt or newer file, and for one whose dialect has another vocabulary now."""
    for path in shard_paths(demonstrations_folder(folder, solver), "train"):
        yield from traces_in(path)


def traces_in(path: Path) -> Iterator[Trace]:
    """Those of one shard."""
    table = demonstrations_table(path)
    return traces_of(table, str(path), dialect_of_shard(path, facts_in(table)["dialect"]))


def demonstrations_facts(folder: Path, solver: str) -> dict[str, str]:
    """What a teacher's demonstrations say of themselves: dialect, protocol, condition, ... Raises `DataError`."""
    return shard_facts(shard_paths(demonstrations_folder(folder, solver), "train")[0], DEMONSTRATIONS)


def facts_in(table: pa.Table) -> dict[str, str]:
    """What `facts_of` said when the table was written."""
    return {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}


def demonstrations_table(path: Path) -> pa.Table:
    """The rows of one shard."""
    table = read_shard(path, DEMONSTRATIONS, DEMONSTRATION_COLUMNS.names)
    facts = facts_in(table)
    name, vocabulary = facts.get("dialect"), facts.get("vocabulary")
    if name not in DIALECTS:
        raise DataError(f"{path} is spelt in dialect {name}: known are {', '.join(DIALECTS)}; {AGAIN}")
    dialect = dialect_of_shard(path, name)
    if vocabulary != (wanted := dialect.vocabulary.hash):
        raise DataError(f"{path} is spelt in {name}/{vocabulary}, but this is {name}/{wanted}: {AGAIN}")
    if facts.get("protocol") not in PROTOCOLS:
        raise DataError(f"{path} is for protocol {facts.get('protocol')}: known are {', '.join(PROTOCOLS)}; {AGAIN}")
    try:
        table = table.cast(columns_of(dialect).with_metadata(table.schema.metadata))
    except pa.ArrowException as error:
        raise DataError(f"{path} has columns of other types ({error}): {AGAIN}") from error
    for name in table.column_names:
        if name != "condition" and table[name].null_count:
            row = table[name].is_null().index(True).as_py()
            raise DataError(f"{path}, row {row}: {name} is missing: {AGAIN}")
    return table


def traces_of(table: pa.Table, where: str, dialect: Dialect) -> Iterator[Trace]:
    """The traces of a table with its facts as metadata. Raises `DataError` naming `where` and the row of a bad one."""
    facts = facts_in(table)
    protocol = protocol_by_name(facts["protocol"], dialect)
    small = table.select(["problem", "numbers", "target", "condition", "solved", "strands"])
    tokens, ends = _flat(table["tokens"])
    for i in range(len(table)):
        if i % 1000 == 0:  # few at a time as Python objects
            rows = small.slice(i, 1000).to_pylist()
        row = rows[i % 1000]
        problem = {"id": row["problem"], "numbers": row["numbers"], "target": row["target"]}
        if row["condition"] is not None:
            problem["condition"] = {"kind": facts["condition"], "value": row["condition"]}
        try:
            strands = _cut(tokens[ends[i] : ends[i + 1]].tolist(), row["strands"], len(dialect.vocabulary))
            prompt = dialect.prompt(row["numbers"], row["target"], condition_of(problem))
            yield demonstration(prompt, strands, dialect, protocol, problem, row["solved"])
        except (ValueError, TypeError) as error:
            raise DataError(f"{where}, row {i}: {error}: {AGAIN}") from error


def _flat(column: pa.ChunkedArray) -> tuple[NDArray[np.uint16 | np.uint32], NDArray[np.int64]]:
    """The values of a column of lists, and where each list begins, and the last one ends."""
    lists = column.combine_chunks()
    ends = np.zeros(len(lists) + 1, np.int64)
    np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False), out=ends[1:])
    return lists.flatten().to_numpy(zero_copy_only=False), ends


def _cut(tokens: list[int], lengths: list[int], vocabulary: int) -> list[tuple[int, ...]]:
    """`tokens` in strands. Raises `ValueError` if they do not add up, or are not ids below `vocabulary`."""
    ends = list(accumulate(lengths))
    if min(lengths, default=0) < 1 or ends[-1] != len(tokens):
        raise ValueError(f"its strands of {lengths} tokens are not its {len(tokens)} tokens")
    if max(tokens) >= vocabulary:
        raise ValueError(f"token {max(tokens)} is not one of the {vocabulary} of the vocabulary")
    return [tuple(tokens[end - length : end]) for end, length in zip(ends, lengths)]


def row_of(trace: Trace) -> dict[str, Any]:
    """A demonstration as a row of `DEMONSTRATION_COLUMNS`."""
    condition = condition_of(trace.problem)
    return {
        "problem": trace.problem["id"],
        "numbers": trace.problem["numbers"],
        "target": trace.problem["target"],
        "condition": None if condition is None else condition.value,
        "solved": trace.correct,
        **measures_of(trace),
        "strands": [len(strand.sampled) for strand in trace.strands],
        "tokens": np.array([token for strand in trace.strands for token in strand.sampled], np.uint32),
    }


def measures_of(trace: Trace) -> dict[str, int]:
    """The costs of a demonstration, and the most children of any one spawn of its root."""
    strands = trace.by_id()
    spawns = Counter(strands[thread.strands[0]].after for thread in trace.threads if thread.parent == ROOT)
    return {**{cost: getattr(trace.costs, cost) for cost in COSTS}, "children": max(spawns.values(), default=0)}


def statistics_of(table: pa.Table, asked: int) -> dict[str, int]:
    """Sums (and of what ends in `_max`, maxima) over the rows: `merged` puts those of several shards together."""
    numbers = {name: table[name].to_numpy() for name in (*COSTS, "children", "solved")}
    found = {"asked": asked, "rows": len(table), "solved": int(numbers["solved"].sum())}
    found["spawning"] = int((numbers["threads"] > 1).sum())
    for name in (*COSTS, "children"):
        found[name] = int(numbers[name].sum())
        found[f"{name}_max"] = int(numbers[name].max(initial=0))
    return found


def merged(statistics: Sequence[dict[str, int]]) -> dict[str, int]:
    """The statistics of several shards as those of one table."""
    return {name: (max if name.endswith("_max") else sum)(one[name] for one in statistics) for name in statistics[0]}

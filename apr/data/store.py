"""Problems and demonstrations on disk.

    problems/train-00000-of-00050.parquet                     id, and the environment's own columns
    demonstrations/spawn_join/train-00000-of-00050.parquet    of the same shard of problems, in the same order

A demonstration is stored as the tokens that its strands sample, and no more: the protocol lays the strands out again
(`apr.scripts.demonstration.demonstration`), so a trace that is read equals the one that was written. Costs and outcome are
columns beside them, for those who filter.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from apr.config import DataConfig, EnvOfData
from apr.data.shards import AGAIN, content_hash, read_shard, shard_facts, shard_path, shard_paths, write_shard
from apr.errors import ConfigError, DataError
from apr.presets import load_recorded
from apr.protocols import PROTOCOLS, protocol_by_name
from apr.runs import CONFIG
from apr.scripts.columns import COSTS, ENCODED, encoded
from apr.scripts.demonstration import demonstration
from apr.spellers import SPELLERS, speller_in
from apr.threads.trace import Trace
from apr.tokens.speller import Speller
from apr.user_code import file_of
from envs.base import SPLITS, Env, reader
from envs.registry import environment

PROBLEMS = "apr.problems/1"
DEMONSTRATIONS = "apr.demonstrations/1"

KEYS = pa.schema([("problem", pa.string())])  # the problem's id; its own columns follow, then those of `encoded`
RESERVED = {*KEYS.names, *ENCODED.names}


def data_env(folder: Path, given: EnvOfData | str | None = None) -> Env:
    """The environment of the data set in `folder`, with the options that its problems were made with.

    `given`: as the user names it, where it is a file. Raises `ConfigError` if it is another environment, or is a file and
    not named; `DataError` if the folder does not say.
    """
    if not (folder / CONFIG).is_file():
        raise DataError(
            f"{folder} holds no data set ({CONFIG} is missing): make one with `apr data generate` or `import`, or set `data` "
            "to where it is"
        )
    own = load_recorded(DataConfig, folder / CONFIG).env
    given = given.name if isinstance(given, EnvOfData) else given
    if given is not None and not own.like(given):
        mend = "leave `env` out" if file_of(own.name) is None else "name that file, wherever it lies now, and its class"
        raise ConfigError(f"{folder} holds problems of environment {own.name}, not of {given}: {mend}")
    return environment(given or own.name, own.given)


def problems_folder(folder: Path) -> Path:
    return folder / "problems"


def demonstrations_folder(folder: Path, solver: str) -> Path:
    return folder / "demonstrations" / solver


def speller_of_shard(path: Path, name: str) -> Speller:
    """The speller `name` as the data set spells it that the shard of demonstrations at `path` is of."""
    return speller_in(path.parents[2], name)


def problems_hash(folder: Path, split: str) -> str:
    """The content hash of a split's problems. Raises `DataError` if a shard is missing."""
    return content_hash(shard_paths(problems_folder(folder), split), PROBLEMS)


def demonstrations_paths(folder: Path, solver: str) -> list[Path]:
    """The shards of a teacher's demonstrations. Raises `DataError`, which names the teachers that there are."""
    teachers = sorted(path.name for path in demonstrations_folder(folder, "").glob("*") if path.is_dir())
    if teachers and solver not in teachers:
        raise DataError(
            f"no data file in {demonstrations_folder(folder, solver)}: {folder} has demonstrations of {', '.join(teachers)}. "
            f"Set `solver` to one of them, or make those of {solver} with `apr data generate`"
        )
    return shard_paths(demonstrations_folder(folder, solver), "train")


def demonstrations_hash(folder: Path, solver: str) -> str:
    """The content hash of a teacher's demonstrations. Raises `DataError` if a shard is missing."""
    return content_hash(demonstrations_paths(folder, solver), DEMONSTRATIONS)


# Problems


def has_problems(folder: Path, split: str) -> bool:
    """Whether the data set in `folder` has problems of a split."""
    return any(problems_folder(folder).glob(f"{split}-*.parquet"))


def splits_in(folder: Path) -> list[str]:
    """The splits that the data set in `folder` has problems of. Raises `DataError` if there is none."""
    found = [split for split in SPLITS if has_problems(folder, split)]
    if not found:
        raise DataError(f"{folder} holds no problems: make some with `apr data generate` or `apr data import`")
    return found


def problems_table(problems: Sequence[dict[str, Any]]) -> pa.Table:
    """Problems as columns: `id`, then the environment's own. Raises `DataError` for fields that have no one type."""
    try:
        return pa.Table.from_pylist(list(problems))
    except pa.ArrowException as error:
        raise DataError(
            f"the environment's problems cannot be stored as columns ({error}): give each field one type"
        ) from error


def check_columns(table: pa.Table) -> None:
    """Raise `DataError` for columns that demonstrations have a use of their own for."""
    if taken := RESERVED.intersection(table.column_names):
        raise DataError(f"a problem cannot have fields called {', '.join(sorted(taken))}: rename them")


def write_problems(path: Path, table: pa.Table) -> None:
    """One shard of problems. Raises `DataError` as `check_columns` does."""
    check_columns(table)
    write_shard(path, table, PROBLEMS, {"rows": str(len(table))})


def problem_shards(folder: Path, split: str, count: int, shard_rows: int) -> list[Path]:
    """The files of `count` problems of a split, `shard_rows` in each but the last."""
    shards = -(-count // shard_rows)
    return [shard_path(problems_folder(folder), split, i, shards) for i in range(shards)]


def write_missing(paths: Sequence[Path], table: pa.Table, shard_rows: int) -> None:
    """Those of a split's `problem_shards` that are not there yet."""
    for i, path in enumerate(paths):
        if not path.is_file():
            write_problems(path, table.slice(i * shard_rows, shard_rows).combine_chunks())


def read_problems(folder: Path, split: str, env: Env | None = None) -> list[dict[str, Any]]:
    """All problems of a split of the data set in `folder`; `env`: by default what the data set says.

    Raises `DataError` for a missing or corrupt file, and for a
    problem that is there twice or that the environment finds fault with."""
    env = env or data_env(folder)
    seen: set[str] = set()
    return [problem for path in shard_paths(problems_folder(folder), split) for problem in problems_of(path, seen, env)]


def say_if_fewer(count: int, asked: int | None, split: str, data: Path) -> None:
    """Say on standard error that there are fewer problems than asked for."""
    if asked is not None and count < asked:
        print(f"apr: {data} has {count:,} {split} problems, fewer than the {asked:,} asked for", file=sys.stderr)


def problems_of(path: Path, seen: set[str], env: Env) -> list[dict[str, Any]]:
    """The problems of one shard, checked; their ids are added to `seen`, and must not be in it before."""
    table = read_shard(path, PROBLEMS, ["id"])
    if not len(table):
        raise DataError(f"{path} holds no problem: {AGAIN}")
    rows: list[dict[str, Any]] = table.replace_schema_metadata(None).to_pylist()
    for i, row in enumerate(rows):
        if not isinstance(row["id"], str):
            raise DataError(f"{path}, row {i}: {row!r} has no id: {AGAIN}")
        if row["id"] in seen:
            raise DataError(f"{path}, row {i}: problem {row['id']} is there twice: {AGAIN}")
        seen.add(row["id"])
    if faults := env.faults(rows):
        i = min(faults)
        raise DataError(
            f"{path}, row {i}: not a problem of {env.name}: {rows[i]!r}: {faults[i]}. Leave it out, or {AGAIN}"
        )
    return rows


# Demonstrations


def facts_of(speller: Speller, protocol: str, condition: str) -> dict[str, str]:
    """What a shard of demonstrations says of how it is to be read."""
    return {
        "speller": speller.name, "vocabulary": speller.vocabulary.hash, "protocol": protocol, "condition": condition,
    }  # fmt: skip


def write_demonstrations(path: Path, table: pa.Table, asked: int, facts: dict[str, str]) -> None:
    """One shard: a table of problems and `encoded` columns, of the `asked` demonstrations that were tried for."""
    statistics = json.dumps(statistics_of(table, asked))
    write_shard(path, table, DEMONSTRATIONS, {**facts, "statistics": statistics})


def read_demonstrations(folder: Path, solver: str, env: Env | None = None) -> Iterator[Trace]:
    """A teacher's traces in the data set in `folder`, in order; no more than a shard is held at a time. Raises
    `DataError` for a missing, corrupt or newer file, and for one whose speller has another vocabulary now."""
    env = env or data_env(folder)
    for path in demonstrations_paths(folder, solver):
        yield from traces_in(path, env)


def traces_in(path: Path, env: Env) -> Iterator[Trace]:
    """Those of one shard."""
    table = demonstrations_table(path)
    return traces_of(table, str(path), speller_of_shard(path, facts_in(table)["speller"]), env)


def demonstrations_facts(folder: Path, solver: str) -> dict[str, str]:
    """What a teacher's demonstrations say of themselves: speller, protocol, condition, ... Raises `DataError`."""
    return shard_facts(demonstrations_paths(folder, solver)[0], DEMONSTRATIONS)


def facts_in(table: pa.Table) -> dict[str, str]:
    """What `facts_of` said when the table was written."""
    return {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}


def demonstrations_table(path: Path) -> pa.Table:
    """The rows of one shard."""
    table = read_shard(path, DEMONSTRATIONS, [*KEYS.names, *ENCODED.names])
    facts = facts_in(table)
    name, vocabulary = facts.get("speller"), facts.get("vocabulary")
    if name not in SPELLERS:
        raise DataError(f"{path} is spelt in speller {name}: known are {', '.join(SPELLERS)}; {AGAIN}")
    speller = speller_of_shard(path, name)
    if vocabulary != (wanted := speller.vocabulary.hash):
        raise DataError(f"{path} is spelt in {name}/{vocabulary}, but this is {name}/{wanted}: {AGAIN}")
    if facts.get("protocol") not in PROTOCOLS:
        raise DataError(f"{path} is for protocol {facts.get('protocol')}: known are {', '.join(PROTOCOLS)}; {AGAIN}")
    try:
        table = table.cast(_typed(table.schema, speller))
    except pa.ArrowException as error:
        raise DataError(f"{path} has columns of other types ({error}): {AGAIN}") from error
    for name in table.column_names:
        if name != "condition" and table[name].null_count:
            row = table[name].is_null().index(True).as_py()
            raise DataError(f"{path}, row {row}: {name} is missing: {AGAIN}")
    return table


def _typed(schema: pa.Schema, speller: Speller) -> pa.Schema:
    """`schema` with the columns of this project of the types that they should have."""
    for field in (*KEYS, *encoded(speller)):
        schema = schema.set(schema.get_field_index(field.name), field)
    return schema


def own_columns(table: pa.Table) -> list[str]:
    """The environment's own columns of a table of demonstrations."""
    return [name for name in table.column_names if name not in RESERVED]


def problems_in(table: pa.Table) -> list[dict[str, Any]]:
    """The problems of a table of demonstrations, row by row."""
    own = own_columns(table)
    return [
        {"id": row["problem"], **{name: row[name] for name in own}}
        for row in table.select(["problem", *own]).replace_schema_metadata(None).to_pylist()
    ]


def traces_of(table: pa.Table, where: str, speller: Speller, env: Env) -> Iterator[Trace]:
    """The traces of a table with its facts as metadata. Raises `DataError` naming `where` and the row of a bad one."""
    facts = facts_in(table)
    protocol = protocol_by_name(facts["protocol"], speller)
    own = own_columns(table)
    small = table.select(["problem", *own, "condition", "solved", "strands"])
    read = reader(env, speller)
    tokens, ends = _flat(table["tokens"])
    for i in range(len(table)):
        if i % 1000 == 0:  # few at a time as Python objects
            rows = small.slice(i, 1000).to_pylist()
        row = rows[i % 1000]
        problem = {"id": row["problem"], **{name: row[name] for name in own}}
        if row["condition"] is not None:
            problem["condition"] = {"kind": facts["condition"], "value": row["condition"]}
        try:
            strands = _cut(tokens[ends[i] : ends[i + 1]].tolist(), row["strands"], len(speller.vocabulary))
            prompt = speller.prompt(env, problem)
            yield demonstration(prompt, strands, protocol, problem, row["solved"], read)
        except (ValueError, TypeError, KeyError) as error:
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

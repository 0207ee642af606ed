"""`apr data verify`: every problem solvable, splits disjoint, every demonstration right, and every hash that of its rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from apr.config import DataConfig
from apr.data.card import CARD, content_hashes
from apr.data.generate import CONFIG
from apr.data.shards import AGAIN, read_shard, rows_hash, shard_facts, shard_paths
from apr.data.store import (
    COSTS,
    DEMONSTRATIONS,
    PROBLEM_COLUMNS,
    PROBLEMS,
    demonstrations_folder,
    demonstrations_table,
    dialect_of_shard,
    facts_in,
    measures_of,
    problems_folder,
    problems_of,
    statistics_of,
    traces_of,
)
from apr.data.workers import in_processes, processes
from apr.errors import DataError
from apr.presets import load
from apr.progress import Progress
from apr.threads.trace import Trace
from apr.tokens.dialect import Dialect
from envs.countdown.verify import Verdict, verify

Owners = dict[tuple[int, ...], str]


class Shard(NamedTuple):
    """One shard of demonstrations, to be checked; `held_out`: the number multisets it may not hold, and their splits."""

    solver: str
    path: Path
    held_out: Owners


def check_folder(folder: Path) -> str:
    """A few lines of counts. Raises `DataError` that names the file, the row and the fault."""
    config = load(DataConfig, [folder / CONFIG])
    counts, held_out = _check_problems(folder)
    lines = [f"{folder}: {', '.join(counts)} problems, no number multiset in two splits"]
    shards = [
        Shard(name, path, held_out)
        for name in config.solvers
        for path in shard_paths(demonstrations_folder(folder, name), "train")
    ]
    traces, solved = _check_demonstrations(shards)
    lines += [
        f"{name}: {traces[name]} demonstrations, {solved[name]} solved, every solution verified"
        for name in config.solvers
    ]
    text = (folder / CARD).read_text() if (folder / CARD).is_file() else ""
    for part, found in content_hashes(folder, config.solvers).items():
        if f'"{part}": "{found}"' not in text:
            raise DataError(f"{folder / CARD} is missing, or lists another content hash of {part}: delete it and {AGAIN}")
    return "\n".join([*lines, "every content hash is that of its rows, and on the card"])


def _check_demonstrations(shards: Sequence[Shard]) -> tuple[Counter[str], Counter[str]]:
    """How many demonstrations each solver made, and how many it solved."""
    traces, solved = Counter[str](), Counter[str]()
    total = sum(json.loads(shard_facts(shard.path, DEMONSTRATIONS)["statistics"])["rows"] for shard in shards)
    if shards:
        with (
            Progress("demonstrations checked", total) as progress,
            closing(in_processes(check_shard, shards, processes(None, total))) as checked,
        ):
            for name, rows, right in checked:
                progress.advance(rows)
                traces[name] += rows
                solved[name] += right
    return traces, solved


def _check_problems(folder: Path) -> tuple[list[str], Owners]:
    """How many problems each split has, and the number multisets of those held out."""
    held_out: Owners = {}
    counts = []
    for split in ("validation", "test", "train"):  # what training may not hold is known before it is gone through
        seen: set[str] = set()
        for path in shard_paths(problems_folder(folder), split):
            for row, problem in enumerate(problems_of(path, seen)):
                numbers = tuple(problem["numbers"])
                owner = held_out.get(numbers, split)
                if owner != split:
                    raise DataError(f"{path}, row {row}: numbers {numbers} are in the {owner} split too; {AGAIN}")
                if split != "train":
                    held_out[numbers] = split
            _check_hash(path, read_shard(path, PROBLEMS, PROBLEM_COLUMNS.names))
        counts.append(f"{len(seen)} {split}")
    return [counts[-1], *counts[:-1]], held_out


def check_shard(shard: Shard) -> tuple[str, int, int]:
    """Its solver, how many demonstrations it holds, and how many solved. Raises `DataError`. Runs in a worker process."""
    table = demonstrations_table(shard.path)
    columns = table.select([*COSTS, "children"]).to_pylist()
    solved = 0
    dialect = dialect_of_shard(shard.path, facts_in(table)["dialect"])
    for row, trace in enumerate(traces_of(table, str(shard.path), dialect)):
        if fault := _fault(trace, columns[row], shard.held_out, dialect):
            raise DataError(f"{shard.path}, row {row}: {fault}")
        solved += trace.correct
    facts = _check_hash(shard.path, table)
    statistics = json.loads(facts["statistics"])
    if statistics != statistics_of(table, statistics["asked"]):
        raise DataError(f"{shard.path}: its statistics are not those of its rows: {AGAIN}")
    return shard.solver, len(table), solved


def _fault(trace: Trace, columns: dict[str, int], held_out: Owners, dialect: Dialect) -> str | None:
    """What is wrong with a demonstration, if anything is."""
    if owner := held_out.get(tuple(trace.problem["numbers"])):
        return f"numbers {trace.problem['numbers']} are in the {owner} split too"
    verdict = _verdict(trace, trace.answer)
    if trace.correct != verdict.ok:
        return f"says solved={trace.correct}, but the verifier says: {verdict.reason}"
    # A child of the paper dialect returns the rest of the way alone; the root's answer, checked above, holds it.
    for thread in trace.threads[1:] if dialect.name != "paper" else ():
        if thread.message and not (verdict := _verdict(trace, dialect.answer(thread.message))).ok:
            return f"thread {thread.id} returns a wrong solution: {verdict.reason}"
    found = measures_of(trace)
    wrong = [name for name, value in columns.items() if found[name] != value]
    return f"says {wrong[0]}={columns[wrong[0]]}, but it is {found[wrong[0]]}" if wrong else None


def _verdict(trace: Trace, answer: str | None) -> Verdict:
    return verify(trace.problem["numbers"], trace.problem["target"], answer)


def _check_hash(path: Path, table: pa.Table) -> dict[str, str]:
    """The facts of a shard, whose content hash must be that of its rows."""
    facts = facts_in(table)
    if facts.get("content_hash") != rows_hash(table):
        raise DataError(f"{path}: its rows are not those that its content hash was made of: {AGAIN}")
    return facts

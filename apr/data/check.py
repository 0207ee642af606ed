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
from apr.data.shards import AGAIN, read_shard, rows_hash, shard_facts, shard_paths
from apr.data.store import (
    DEMONSTRATIONS,
    PROBLEMS,
    data_env,
    demonstrations_folder,
    demonstrations_table,
    facts_in,
    problems_folder,
    problems_in,
    problems_of,
    speller_of_shard,
    splits_in,
    statistics_of,
    traces_of,
)
from apr.data.workers import in_processes, processes
from apr.errors import DataError
from apr.presets import load_recorded
from apr.progress import Progress
from apr.runs import CONFIG
from apr.scripts.columns import COSTS, measures_of
from apr.threads.trace import Trace
from apr.tokens.speller import Speller
from envs.base import Env, Part

Owners = dict[Part, str]


class Shard(NamedTuple):
    """One shard of demonstrations, to be checked; `held_out`: what its problems may not have (`Env.parts`), and the
    split of each."""

    solver: str
    path: Path
    env: Env
    held_out: Owners


def check_folder(folder: Path, given: str | None = None) -> str:
    """A few lines of counts. `given`: the environment, where it is a file. Raises `DataError` that names the file, the row and
    the fault."""
    config = load_recorded(DataConfig, folder / CONFIG)
    env = data_env(folder, given)
    counts, held_out = _check_problems(folder, env)
    lines = [f"{folder}: {', '.join(counts)} problems, no {env.shares} in two splits"]
    shards = [
        Shard(name, path, env, held_out)
        for name in config.solvers
        for path in shard_paths(demonstrations_folder(folder, name), "train")
    ]
    traces, solved = _check_demonstrations(shards)
    lines += [
        f"{name}: {traces[name]} demonstrations, {solved[name]} solved, every solution verified"
        for name in config.solvers
    ]
    text = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    for part, found in content_hashes(folder, config.solvers).items():
        if f'"{part}": "{found}"' not in text:
            raise DataError(
                f"{folder / CARD} is missing, or lists another content hash of {part}: delete it and {AGAIN}"
            )
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


def _check_problems(folder: Path, env: Env) -> tuple[list[str], Owners]:
    """How many problems each split has, and what those held out share with no training problem."""
    held_out: Owners = {}
    counts: dict[str, int] = {}
    there = splits_in(folder)
    for split in sorted(there, key=["validation", "test", "train"].index):  # held-out parts are known before training's
        seen: set[str] = set()
        for path in shard_paths(problems_folder(folder), split):
            problems = problems_of(path, seen, env)
            for row, parts in enumerate(env.parts(problems)):
                if fault := _in_another(parts, split, held_out, env):
                    raise DataError(f"{path}, row {row}: {fault}; {AGAIN}")
                if split != "train":
                    held_out |= dict.fromkeys(parts, split)
            _check_hash(path, read_shard(path, PROBLEMS, ["id"]))
        counts[split] = len(seen)
    return [f"{counts[split]} {split}" for split in there], held_out


def _in_another(parts: Sequence[Part], split: str, held_out: Owners, env: Env) -> str | None:
    """What a problem of `split` shares with a held-out one of another, if anything."""
    for part in parts:
        if (owner := held_out.get(part, split)) != split:
            return f"its {env.shares} {':'.join(map(str, part))} is in the {owner} split too"
    return None


def check_shard(shard: Shard) -> tuple[str, int, int]:
    """Its solver, how many demonstrations it holds, and how many solved. Raises `DataError`. Runs in a worker process."""
    table = demonstrations_table(shard.path)
    columns = table.select([*COSTS, "children"]).to_pylist()
    solved = 0
    speller = speller_of_shard(shard.path, facts_in(table)["speller"])
    parts = shard.env.parts(problems_in(table))
    for row, trace in enumerate(traces_of(table, str(shard.path), speller, shard.env)):
        if fault := _in_another(parts[row], "train", shard.held_out, shard.env) or _fault(
            trace, columns[row], speller, shard.env
        ):
            raise DataError(f"{shard.path}, row {row}: {fault}")
        solved += trace.correct
    facts = _check_hash(shard.path, table)
    statistics = json.loads(facts["statistics"])
    if statistics != statistics_of(table, statistics["asked"]):
        raise DataError(f"{shard.path}: its statistics are not those of its rows: {AGAIN}")
    return shard.solver, len(table), solved


def _fault(trace: Trace, columns: dict[str, int], speller: Speller, env: Env) -> str | None:
    """What is wrong with a demonstration, if anything is."""
    verdict = env.verify(trace.problem, trace.answer)
    if trace.correct != verdict.ok:
        return f"says solved={trace.correct}, but the verifier says: {verdict.reason}"
    for thread in trace.threads[1:]:
        if fault := env.child_fault(trace.problem, thread.message, speller):
            return f"thread {thread.id} {fault}"
    found = measures_of(trace)
    wrong = [name for name, value in columns.items() if found[name] != value]
    return f"says {wrong[0]}={columns[wrong[0]]}, but it is {found[wrong[0]]}" if wrong else None


def _check_hash(path: Path, table: pa.Table) -> dict[str, str]:
    """The facts of a shard, whose content hash must be that of its rows."""
    facts = facts_in(table)
    if facts.get("content_hash") != rows_hash(table):
        raise DataError(f"{path}: its rows are not those that its content hash was made of: {AGAIN}")
    return facts

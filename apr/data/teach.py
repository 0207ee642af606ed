"""The demonstrations of many problems as a table: the environment's own fast way where it has one, else one by one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from apr.data.store import KEYS, facts_of, problems_table, traces_of
from apr.errors import DataError
from apr.scripts.columns import encoded, row_of
from apr.scripts.files import Scripted, read_scripts
from apr.threads.trace import Trace
from apr.user_code import blamed
from envs.base import Env, Teacher, written


def facts_of_teacher(teacher: Teacher) -> dict[str, str]:
    """What its shards say of how they are to be read."""
    return facts_of(teacher.speller, teacher.options.protocol, teacher.options.condition)


def demonstrations_of(problems: Sequence[dict[str, Any]], teacher: Teacher) -> pa.Table:
    """Rows: the problem's id, its own columns, then those of `encoded`; problem by problem, the copies of one together.
    Problems that the teacher gives up are left out."""
    table = None if teacher.options.scripts else teacher.env.demonstrations(problems, teacher)
    return _with_problems(plain(problems, teacher) if table is None else table, problems)


def plain(problems: Sequence[dict[str, Any]], teacher: Teacher) -> pa.Table:
    """One by one, through the environment's `demonstrate`; columns as its `demonstrations` gives them."""
    rows = [
        {"row": i, **row_of(trace)}
        for i, problem in enumerate(problems)
        for copy in range(teacher.copies)
        if (trace := demonstration_of(problem, teacher, copy)) is not None
    ]
    schema = pa.schema([("row", pa.int64()), *encoded(teacher.speller)])
    return pa.table({name: [row[name] for row in rows] for name in schema.names}, schema)


def _from_script(path: Path, problem: dict[str, Any], teacher: Teacher, copy: int) -> Trace | None:
    """The `copy`-th script of the problem in a file. Raises `DataError` for one that the teacher's protocol or speller cannot
    express."""
    found = scripts_by_problem(path, teacher.env).get(problem["id"], [])
    if copy >= len(found):
        return None
    try:
        with blamed(teacher.env.config()["name"], f"a script for problem {problem['id']!r}"):
            return written(found[copy].script, problem, teacher)
    except DataError as error:
        raise DataError(f"{path}, line {found[copy].line}: {error}: correct the line, or leave it out") from error


@lru_cache(maxsize=4)
def scripts_by_problem(path: Path, env: Env) -> dict[str, list[Scripted]]:
    """The scripts of a file, by the ids of their problems. Raises `DataError` that names the line of a problem that is none."""
    found: dict[str, list[Scripted]] = {}
    for one in read_scripts(path):
        try:
            found.setdefault(env.problem(one.problem)["id"], []).append(one)
        except DataError as error:
            raise DataError(f"{path}, line {one.line}: not a problem of {env.name}: {error}") from error
    return found


def demonstration_of(problem: dict[str, Any], teacher: Teacher, copy: int = 0) -> Trace | None:
    """One of them. Raises `ConfigError` that names the place for code of the environment's file that fails."""
    if teacher.options.scripts is not None:
        return _from_script(teacher.options.scripts, problem, teacher, copy)
    with blamed(
        teacher.env.config()["name"], f"a demonstration ({teacher.options.protocol}) of problem {problem['id']!r}"
    ):
        return teacher.env.demonstrate(problem, teacher, copy)


def traces(problems: Sequence[dict[str, Any]], teacher: Teacher) -> list[Trace]:
    """The demonstrations of a few problems, as `apr data generate` stores them."""
    table = demonstrations_of(problems, teacher).replace_schema_metadata(facts_of_teacher(teacher))
    return list(traces_of(table, "demonstrations", teacher.speller, teacher.env))


def _with_problems(table: pa.Table, problems: Sequence[dict[str, Any]]) -> pa.Table:
    own = problems_table(problems).take(table["row"]).combine_chunks()
    columns = {KEYS.names[0]: own["id"], **{name: own[name] for name in own.column_names if name != "id"}}
    return pa.table(columns | {name: table[name] for name in table.column_names if name != "row"})

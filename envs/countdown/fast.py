"""The demonstrations of many problems as a table, compiled.

`envs.countdown.demonstrate` is the reference: a test shows that both give the same rows; the draws are its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from apr.errors import DataError
from apr.scripts.columns import COSTS, ENCODED
from envs.base import Teacher
from envs.countdown.demonstrate import drawn, search_teacher

if TYPE_CHECKING:
    from solvers.compiled import Chunk

AT_ONCE = 2_000  # searches for which compiled code holds everything in memory
COLUMNS = pa.schema([("row", pa.int64()), *ENCODED])


def fast(problems: Sequence[dict[str, Any]], teacher: Teacher) -> pa.Table | None:
    """`Environment.demonstrations`: compiled; None for another speller than compact, for the protocols of the family, and for
    numbers that are too large for compiled arithmetic."""
    if teacher.speller.name != "compact" or teacher.protocol.name not in ("serial", "spawn_join"):
        return None
    try:
        return _searched(problems, teacher)
    except DataError:
        return None


def _searched(problems: Sequence[dict[str, Any]], teacher: Teacher) -> pa.Table:
    """Problem by problem, the copies of one together; those for which rejection sampling found nothing are left out.

    Raises `DataError` for numbers beyond `solvers.compiled.check_bound`."""
    rejection = search_teacher(teacher).rejection
    searches = [(problem, copy) for problem in range(len(problems)) for copy in range(teacher.copies)]
    pending = np.arange(len(searches))
    tables, places = [COLUMNS.empty_table()], [pending[:0]]
    for attempt in range(rejection.tries if rejection else 1):
        refused = [pending[:0]]
        for rows in _batches(pending, [len(problems[problem]["numbers"]) for problem, _ in searches]):
            chosen = [(problems[searches[row][0]], searches[row][1]) for row in rows]
            chunk = _chunk(chosen, teacher, attempt)
            table = _table([searches[row][0] for row in rows], chunk)
            if rejection:
                kept = chunk.solved & (chunk.context <= rejection.context)
                refused.append(rows[~kept])
                table, rows = table.filter(kept), rows[kept]
            tables.append(table)
            places.append(rows)
        pending = np.concatenate(refused)
    order = np.argsort(np.concatenate(places))
    table = pa.concat_tables(tables)
    in_order = bool((np.diff(order) > 0).all())  # as nearly always: moving lists about is slow
    return (table if in_order else table.take(order)).combine_chunks()


def _batches(rows: np.ndarray[Any, Any], lengths: Sequence[int]) -> Iterator[np.ndarray[Any, Any]]:
    """`rows` in groups of problems of equally many numbers, none larger than `AT_ONCE`."""
    groups: dict[int, list[int]] = defaultdict(list)
    for row in rows.tolist():
        groups[lengths[row]].append(row)
    for group in groups.values():
        for start in range(0, len(group), AT_ONCE):
            yield np.array(group[start : start + AT_ONCE])


def _chunk(searches: Sequence[tuple[dict[str, Any], int]], teacher: Teacher, attempt: int) -> Chunk:
    """Compiled searches, each of (problem, copy), all with equally many numbers."""
    from solvers.compiled import demonstrations  # here: compiled code takes a second to load

    solver = search_teacher(teacher)
    draws = [drawn(problem["id"], solver, teacher.seed, copy, attempt) for problem, copy in searches]
    return demonstrations(
        np.array([problem["numbers"] for problem, _ in searches], np.int64),
        np.array([problem["target"] for problem, _ in searches], np.int64),
        draws[0][0],  # but for its beams, the same for all
        np.array([options.beam for options, _ in draws], np.int64),
        np.array([options.child_beam for options, _ in draws], np.int64),
        np.array([seed for _, seed in draws], np.uint64),
        solver.unfold,
        solver.condition,
        solver.context_bin,
    )


def _table(places: Sequence[int], chunk: Chunk) -> pa.Table:
    token_ends = np.concatenate([[0], chunk.strand_ends])
    row_ends = np.concatenate([[0], chunk.row_ends])
    columns = {
        "row": places,
        "condition": pa.array(chunk.condition, mask=chunk.condition < 0),
        **{name: getattr(chunk, name) for name in ("solved", "children")},
        **{name: getattr(chunk, name) for name in COSTS},
        "strands": _lists(np.diff(token_ends), row_ends, pa.int32()),
        "tokens": _lists(chunk.tokens, token_ends[row_ends], pa.uint16()),
    }
    return pa.table({name: columns[name] for name in COLUMNS.names}, COLUMNS)


def _lists(values: np.ndarray[Any, Any], ends: np.ndarray[Any, Any], kind: pa.DataType) -> pa.ListArray:
    """A column of lists; `ends` int64[N + 1] begins with 0. The casts refuse what does not fit."""
    return pa.ListArray.from_arrays(pa.array(ends).cast(pa.int32()), pa.array(values).cast(kind))

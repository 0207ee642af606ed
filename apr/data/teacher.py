"""The demonstrations of many problems as a table: compiled where there is compiled code for it, else one by one.

Both give the same rows (a test shows it): `apr.data.demonstrate` is the reference, and the draws are its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from apr.config import SolverConfig
from apr.data.demonstrate import demonstrate, drawn
from apr.data.store import DEMONSTRATION_COLUMNS, columns_of, facts_of, row_of
from apr.errors import DataError
from apr.protocols import protocol_by_name
from apr.tokens.dialect import Dialect

if TYPE_CHECKING:
    from solvers.compiled import Chunk

AT_ONCE = 2_000  # searches for which compiled code holds everything in memory


@dataclass(frozen=True)
class Teacher:
    """A solver, and what its demonstrations are spelt in: `copies` of each problem, beams drawn anew for each."""

    solver: SolverConfig
    dialect: Dialect
    seed: int
    copies: int = 1

    @property
    def facts(self) -> dict[str, str]:
        return facts_of(self.dialect, self.solver.protocol, self.solver.condition)


def demonstrations_of(problems: Sequence[dict[str, Any]], teacher: Teacher) -> pa.Table:
    """Rows of `columns_of` the dialect, problem by problem, the copies of one together; those for which rejection sampling
    found nothing are left out."""
    if teacher.dialect.name != "compact":
        return plain(problems, teacher)
    try:
        return fast(problems, teacher)
    except DataError:  # numbers too large for compiled arithmetic
        return plain(problems, teacher)


def plain(problems: Sequence[dict[str, Any]], teacher: Teacher) -> pa.Table:
    """One by one, through `demonstrate`."""
    protocol = protocol_by_name(teacher.solver.protocol, teacher.dialect)
    traces = (
        demonstrate(problem, teacher.solver, teacher.dialect, protocol, teacher.seed, copy)
        for problem in problems
        for copy in range(teacher.copies)
    )
    rows = [row_of(trace) for trace in traces if trace is not None]
    columns = columns_of(teacher.dialect)
    return pa.table({name: [row[name] for row in rows] for name in columns.names}, columns)


def fast(problems: Sequence[dict[str, Any]], teacher: Teacher) -> pa.Table:
    """Compiled. Raises `DataError` for numbers beyond `solvers.compiled.check_bound`."""
    rejection = teacher.solver.rejection
    searches = [(problem, copy) for problem in range(len(problems)) for copy in range(teacher.copies)]
    pending = np.arange(len(searches))
    tables, places = [DEMONSTRATION_COLUMNS.empty_table()], [pending[:0]]
    for attempt in range(rejection.tries if rejection else 1):
        refused = [pending[:0]]
        for rows in _batches(pending, [len(problems[problem]["numbers"]) for problem, _ in searches]):
            chosen = [(problems[searches[row][0]], searches[row][1]) for row in rows]
            chunk = _chunk(chosen, teacher, attempt)
            table = _table([problem for problem, _ in chosen], chunk)
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

    solver = teacher.solver
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


def _table(problems: Sequence[dict[str, Any]], chunk: Chunk) -> pa.Table:
    token_ends = np.concatenate([[0], chunk.strand_ends])
    row_ends = np.concatenate([[0], chunk.row_ends])
    columns = {
        "problem": [problem["id"] for problem in problems],
        "numbers": [problem["numbers"] for problem in problems],
        "target": [problem["target"] for problem in problems],
        "condition": pa.array(chunk.condition, mask=chunk.condition < 0),
        **{name: getattr(chunk, name) for name in ("solved", "children")},
        **{name: getattr(chunk, name) for name in ("context", "work", "work_sampled", "span_sampled", "threads")},
        "strands": _lists(np.diff(token_ends), row_ends, pa.int32()),
        "tokens": _lists(chunk.tokens, token_ends[row_ends], pa.uint16()),
    }
    return pa.table({name: columns[name] for name in DEMONSTRATION_COLUMNS.names}, DEMONSTRATION_COLUMNS)


def _lists(values: np.ndarray[Any, Any], ends: np.ndarray[Any, Any], kind: pa.DataType) -> pa.ListArray:
    """A column of lists; `ends` int64[N + 1] begins with 0. The casts refuse what does not fit."""
    return pa.ListArray.from_arrays(pa.array(ends).cast(pa.int32()), pa.array(values).cast(kind))

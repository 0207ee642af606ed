"""The fast path: `solvers.search`, `solvers.exhaustive.reachable` and the compact speller compiled with numba, for many
problems at once. The plain modules are the reference, and property tests show that both make the same.

`solvable` says which problems have a solution, `demonstrations` makes what a data set stores, and `logs` gives the
searches themselves. Each runs on one core; callers start a process for each core.

All arithmetic is in 64 bits, and distances are floats that must be exact, so numbers are bounded: see `check_bound`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from apr.errors import DataError
from apr.threads.costs_compiled import CostArrays, count_costs
from envs.countdown.compact import CompactSpeller
from envs.countdown.compact_compiled import condition_lengths, prompt_lengths, spell
from envs.countdown.log import SearchLog
from envs.countdown.log_arrays import MAX_CHILDREN, NO_NODE, Ints, LogArrays, to_logs
from solvers.compiled_exhaustive import check_bound, solvable
from solvers.compiled_search import EVENTS, NODES, search_from
from solvers.compiled_types import HEURISTICS, ORDERS, Problems, Rules, Seeds, larger, new_space
from solvers.search import Heuristic, SearchOptions, factors

__all__ = ["Chunk", "check_bound", "demonstrations", "logs", "solvable"]

ConditionKind = Literal["none", "context", "children"]

NO_CONDITION = -1
_NO_CAP = 2**62
_ROOM = 2**15  # nodes that are held as arrays at a time (100 bytes each): few enough for the processor's cache


class Chunk(NamedTuple):
    """The demonstrations of N problems, in S strands of T sampled tokens.

    `tokens` uint16[T]: what each strand samples, strands in depth-first spawn order, problem after problem;
    `strand_ends` int64[S]: where each strand ends in `tokens`; `row_ends` int64[N]: where each problem's strands end in
    `strand_ends`; `solved` bool[N]; `condition` int64[N]: the value in the prompt, NO_CONDITION without one; `children`
    int64[N]: the widest spawn of the root, 0 without one. Then costs as in `apr.threads.costs`, int64[N] each, in which
    the prompt counts with its condition: `context`, `work`, `work_sampled`, `span_sampled`, `threads`.
    """

    tokens: npt.NDArray[np.uint16]
    strand_ends: Ints
    row_ends: Ints
    solved: npt.NDArray[np.bool_]
    condition: Ints
    children: Ints
    context: Ints
    work: Ints
    work_sampled: Ints
    span_sampled: Ints
    threads: Ints


def demonstrations(
    numbers: Ints, targets: Ints, options: SearchOptions, beams: Ints, child_beams: Ints, seeds: Seeds, unfold: bool,
    condition: ConditionKind, context_bin: int,
) -> Chunk:  # fmt: skip
    """The demonstrations of N problems in the compact speller: of each the `search` with `SplitMix64(seed)`, through
    `unfold` if asked, conditioned and encoded as `envs.countdown.demonstrate.conditioned` does.

    `numbers` int64[N, n] in any order, `targets`, `beams`, `child_beams` int64[N], `seeds` uint64[N]; the beams of
    `options` are not read. `context_bin`: context conditions are multiples of it. Raises `DataError` beyond
    `check_bound` and for arrays of unequal lengths.
    """
    problems = _problems(numbers, targets, options, beams, child_beams, seeds)
    if context_bin < 1:
        raise DataError(f"context_bin is {context_bin}: give at least 1 token")
    control = CompactSpeller().vocabulary.control
    prompts = prompt_lengths(problems.numbers, problems.targets)
    chunks: list[Chunk] = []
    for rows, arrays in _searches(problems, _rules(options, unfold)):
        spelled = spell(arrays)
        costs = count_costs(*spelled, prompts[rows], control)
        value, more = _conditions(costs, condition, context_bin)
        chunks.append(
            Chunk(
                *spelled,
                solved=arrays.solutions != NO_NODE,
                condition=value,
                children=costs.widest,
                context=np.maximum(costs.root_context + more, costs.child_context),
                work=costs.work + more,
                work_sampled=costs.work_sampled,
                span_sampled=costs.span_sampled,
                threads=costs.threads,
            )
        )
    return _concatenated(chunks)


def logs(
    numbers: Ints, targets: Ints, options: SearchOptions, beams: Ints, child_beams: Ints, seeds: Seeds, unfold: bool
) -> list[SearchLog]:
    """The searches that `demonstrations` spells, as Python objects: slow, for tests and for people."""
    problems = _problems(numbers, targets, options, beams, child_beams, seeds)
    return [log for _, arrays in _searches(problems, _rules(options, unfold)) for log in to_logs(arrays)]


def _problems(
    numbers: Ints, targets: Ints, options: SearchOptions, beams: Ints, child_beams: Ints, seeds: Seeds
) -> Problems:
    """All that is given, checked."""
    check_bound(numbers, targets)
    if not targets.shape == beams.shape == child_beams.shape == seeds.shape:
        raise DataError("there is one beam, child beam and seed for each problem: make these arrays equally long")
    if beams.dtype != np.int64 or child_beams.dtype != np.int64 or seeds.dtype != np.uint64:
        raise DataError("beams are of type int64, and seeds of type uint64: convert them")
    if min(beams.min(initial=1), child_beams.min(initial=1)) < 1:
        raise DataError("a search keeps at least one child: give beams of at least 1")
    compared = [_compared(target, options.heuristic) for target in targets.tolist()]
    return Problems(
        np.ascontiguousarray(np.sort(numbers, axis=1)),
        np.require(targets, requirements=["C", "W"]),
        np.array([factor for factors in compared for factor in factors], np.int64),
        np.cumsum([len(factors) for factors in compared], dtype=np.int64),
        np.require(beams, requirements=["C", "W"]),
        np.require(child_beams, requirements=["C", "W"]),
        np.require(seeds, requirements=["C", "W"]),
    )


@lru_cache(maxsize=10_000)
def _compared(target: int, heuristic: Heuristic) -> list[int]:
    """The factors of `target` that `heuristic` compares with, ascending."""
    found = factors(target)
    return [factor for factor in found if factor != 1] or [target] if heuristic == "numbers_to_factors" else found


def _rules(options: SearchOptions, unfold: bool) -> Rules:
    own, of_children = options.promising_share, options.child_promising_share
    return Rules(
        shares=(float(own), float(own if of_children is None else of_children)),
        per_node=options.promising == "per_node",
        heuristic=HEURISTICS.index(options.heuristic),
        order=ORDERS.index(options.order),
        prune_target=options.prune == "target",
        duplicates=options.duplicates,
        spawn_depth=options.spawn_depth,
        wave=MAX_CHILDREN if options.wave is None else options.wave,
        value_cap=_NO_CAP if options.value_cap is None else min(options.value_cap, _NO_CAP),
        unfold=unfold,
    )


def _searches(problems: Problems, rules: Rules) -> Iterator[tuple[slice, LogArrays]]:
    """The searches of all problems, as many at a time as there is room for, with their rows in `problems`. Arrays are
    overwritten by the next: read them first."""
    count = len(problems.targets)
    space = new_space(_ROOM)
    found = np.empty((3, count), np.int64)
    done = -1
    while done < count:
        start = max(done, 0)
        space.counters[:] = 0
        done = search_from(start, problems, rules, space, found)
        if done == start < count:  # not even one
            space = larger(space)
            continue
        nodes, events = space.nodes[: space.counters[NODES]], space.events[: space.counters[EVENTS]]
        rows = slice(start, done)
        ends, roots, solutions = found[:, rows]
        yield rows, LogArrays(nodes, events, ends, roots, solutions, problems.targets[rows])


def _conditions(costs: CostArrays, kind: ConditionKind, context_bin: int) -> tuple[Ints, Ints]:
    """The value of each condition, and the tokens that it adds to its prompt."""
    if kind == "none":
        return np.full_like(costs.work, NO_CONDITION), np.zeros_like(costs.work)
    if kind == "children":
        return costs.widest, condition_lengths(costs.widest)
    value = np.full_like(costs.work, context_bin)
    while True:  # the condition's own tokens count too: they may need the next bin
        more = condition_lengths(value)
        context = np.maximum(costs.root_context + more, costs.child_context)
        if (context <= value).all():
            return value, more
        value = np.where(context <= value, value, -(-context // context_bin) * context_bin)


def _concatenated(chunks: Sequence[Chunk]) -> Chunk:
    columns = [np.concatenate(column) for column in zip(*chunks)]
    for ends, within in ((1, 0), (2, 1)):  # strands end in tokens, rows in strands: shift by what came before
        shifts = np.cumsum([0, *(len(chunk[within]) for chunk in chunks[:-1])])
        columns[ends] += np.repeat(shifts, [len(chunk[ends]) for chunk in chunks])
    return Chunk(*columns)

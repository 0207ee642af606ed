"""Training rows: each sampled token is a target exactly once, in the context in which it was sampled; injected ones never."""

from collections import Counter
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_encode import CONTROL, demonstration, demonstrations
from test_views import STRANDS

from apr.errors import DataError
from apr.sft.rows import IGNORED, Row, pointers, rows, told_block
from apr.threads.masks import mark_attended
from apr.threads.trace import (
    EngineStop,
    Injected,
    Origin,
    Reference,
    StopReason,
    Strand,
    StrandId,
    Thread,
    Trace,
    closure_lengths,
)
from solvers.search import SearchOptions


def seen_by(row: Row, index: int) -> list[int]:
    """The tokens that token `index` attends to, itself included, as places in the row."""
    mask = np.zeros((len(row.block.ids),) * 2, np.bool_)
    mark_attended(mask, row.block)
    return [int(place) for place in np.flatnonzero(mask[index])]


def contexts(trace: Trace) -> Counter[tuple[int, tuple[tuple[StrandId, int], ...]]]:
    """Each sampled token, with the places of all that its strand saw and had before it."""
    strands = trace.by_id()
    found = Counter[tuple[int, tuple[tuple[StrandId, int], ...]]]()
    for strand in trace.strands:
        injected = len(strand.injected_ids)
        saw = [(id, i) for id, length in closure_lengths(strands, strand.sees).items() for i in range(length)]
        for number, token in enumerate(strand.sampled):
            if before := sorted([*saw, *((strand.id, i) for i in range(injected + number))]):
                found[token, tuple(before)] += 1
    return found


def contexts_in_rows(trace: Trace) -> Counter[tuple[int, tuple[tuple[StrandId, int], ...]]]:
    """The same, of the targets of rows and what the tokens that predict them attend to."""
    found = Counter[tuple[int, tuple[tuple[StrandId, int], ...]]]()
    for row in rows(trace):
        names = [
            (segment.strand, place - segment.start)
            for segment in row.block.segments
            for place in range(segment.start, segment.stop)
        ]
        for index, target in enumerate(row.targets):
            if target != IGNORED:
                found[target, tuple(sorted(names[place] for place in seen_by(row, index)))] += 1
    return found


@settings(max_examples=100, deadline=None)
@given(demonstrations())
def test_each_sampled_token_is_a_target_once_in_its_own_context(made: tuple[object, Trace, object]) -> None:
    _, trace, _ = made
    assert contexts_in_rows(trace) == contexts(trace)
    assert sum(len(row.block.ids) for row in rows(trace)) == sum(len(strand.ids) for strand in trace.strands)


@given(demonstrations())
def test_stop_tokens_are_trained_and_prompts_are_not(made: tuple[object, Trace, object]) -> None:
    _, trace, _ = made
    targets = Counter(target for row in rows(trace) for target in row.targets if target != IGNORED)
    threads_that_end = len(trace.threads)
    assert targets[CONTROL.eos] == targets[CONTROL.join] == threads_that_end
    assert targets[CONTROL.spawn_end] == targets[CONTROL.spawn] == len(trace.strands) - threads_that_end
    assert targets[CONTROL.bos] == targets[CONTROL.ret] == 0
    injected = sum(len(strand.injected_ids) for strand in trace.strands)
    assert sum(targets.values()) == sum(len(strand.ids) for strand in trace.strands) - injected


def test_a_thread_is_a_row_and_causal_if_it_never_joins() -> None:
    _, serial, _ = demonstration((3, 5, 8), 7919, SearchOptions(3, 3))
    [row] = rows(serial)
    assert row.block.ids == serial.strands[0].ids and row.block.causal and pointers(row.block) == []
    _, nested, _ = demonstration((3, 5, 7, 11), 7919, SearchOptions(2, 2, spawn_depth=2))
    assert max(thread.depth for thread in nested.threads) == 2
    assert [row.block.causal for row in rows(nested)] == [len(thread.strands) == 1 for thread in nested.threads]


def strand(number: int, sees: tuple[Reference, ...], injected: tuple[int, ...], sampled: tuple[int, ...]) -> Strand:
    after = tuple(reference.strand for reference in sees)
    return Strand(StrandId("r", number), sees, after, 0, (Injected(Origin.FORCED, injected),), sampled, EngineStop.STOP)


def trace_of(*strands: Strand) -> Trace:
    thread = Thread("r", None, 0, tuple(one.id for one in strands), StopReason.ANSWERED)
    return Trace({"id": "p"}, "any", 0, 0, (thread,), strands)


def standing(strands: list[Strand]) -> list[Strand]:
    """The strands at positions of their own: after the last token that they see. Those that see several others open with a
    token that sees these all: what is sampled next is predicted there."""
    made: dict[StrandId, Strand] = {}
    for one in strands:
        if (len(one.sees) > 1 or any(not length for _, length in one.sees)) and not one.injected_ids:
            one = replace(one, injected=(Injected(Origin.FORCED, (9,)),))
        ends = [made[older].position + length for older, length in closure_lengths(made, one.sees).items()]
        made[one.id] = replace(one, position=max(ends, default=0))
    return list(made.values())


def once(strands: list[Strand]) -> bool:
    """Whether no two strands that open with a sampled token follow the same one."""
    try:
        rows(trace_of(*strands))
    except DataError:
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(STRANDS.map(standing).filter(once))
def test_rows_of_any_dag_are_its_contexts(strands: list[Strand]) -> None:
    trace = trace_of(*strands)
    assert dict.fromkeys(contexts_in_rows(trace), 1) == dict.fromkeys(contexts(trace), 1)
    for row in rows(trace):
        again = told_block(row.block.ids, pointers(row.block))
        assert (again.ids, again.positions) == (row.block.ids, row.block.positions)
        assert [(s.start, s.stop) for s in again.segments if s.start < s.stop] == (
            [(0, len(row.block.ids))]
            if row.block.causal
            else [(s.start, s.stop) for s in row.block.segments if s.start < s.stop]
        )
        masks = [np.zeros((len(again.ids),) * 2, np.bool_) for _ in range(2)]
        for mask, block in zip(masks, (row.block, again)):
            mark_attended(mask, block)
        assert (masks[0] == masks[1]).all()


@settings(max_examples=200, deadline=None)
@given(STRANDS.map(standing).filter(once), st.integers(0, 12))
def test_a_window_keeps_what_stands_below_it(strands: list[Strand], window: int) -> None:
    trace = trace_of(*strands)
    cut = rows(trace, window)
    for row in cut:
        assert max(row.block.positions) < window
        ends = list(accumulate(segment.stop - segment.start for segment in row.block.segments))
        assert ends[-1] == len(row.block.ids) == len(row.targets)
    kept = Counter(id for row in cut for id in row.targets if id != IGNORED)
    below = Counter(
        token
        for one in strands
        for place, token in enumerate(one.sampled, one.position + len(one.injected_ids))
        if place < window and place > 0
    )
    assert kept == below
    if all(one.end <= window for one in strands):
        assert cut == rows(trace) and not any(row.over for row in cut)


def test_two_sampled_tokens_cannot_follow_one() -> None:
    first = strand(0, (), (1,), (10, 11))
    others = [replace(strand(n, (Reference(first.id, 3),), (), (20 + n,)), position=3) for n in (1, 2)]
    with pytest.raises(DataError, match="follow one token"):
        rows(trace_of(first, *others))

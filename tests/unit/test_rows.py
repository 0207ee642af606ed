"""Training rows: each sampled token trains exactly once, in the context in which it was sampled; injected ones never."""

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from test_encode import CONTROL, demonstration, demonstrations
from test_views import STRANDS

from apr.sft.rows import IGNORED, rows
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
    closure_ids,
    closure_lengths,
)
from solvers.search import SearchOptions


def places(trace: Trace) -> Counter[tuple[StrandId, int]]:
    runs = [run for row in rows(trace) for run in row.trained]
    return Counter((run.strand, run.first + i) for run in runs for i in range(run.count))


@settings(max_examples=150)
@given(demonstrations())
def test_each_sampled_token_trains_once_in_its_own_context(made: tuple[object, Trace, object]) -> None:
    _, trace, _ = made
    strands = trace.by_id()
    sampled = {(strand.id, index) for strand in trace.strands for index in range(len(strand.sampled))}
    assert places(trace) == dict.fromkeys(sampled, 1)
    for row in rows(trace):
        labels = [IGNORED] * len(row.ids)
        for run in row.trained:
            strand = strands[run.strand]
            for at, index in zip(range(run.at, run.at + run.count), range(run.first, run.first + run.count)):
                assert row.ids[at] == strand.sampled[index]
                assert row.ids[:at] == closure_ids(strands, strand.sees) + strand.injected_ids + strand.sampled[:index]
                labels[at] = row.ids[at]
        assert row.labels == labels


@given(demonstrations())
def test_stop_tokens_are_trained_and_prompts_are_not(made: tuple[object, Trace, object]) -> None:
    _, trace, _ = made
    labelled = Counter(label for row in rows(trace) for label in row.labels if label != IGNORED)
    threads_that_end = len(trace.threads)
    assert labelled[CONTROL.eos] == labelled[CONTROL.join] == threads_that_end
    assert labelled[CONTROL.spawn_end] == labelled[CONTROL.spawn] == len(trace.strands) - threads_that_end
    assert labelled[CONTROL.bos] == labelled[CONTROL.ret] == 0
    injected = sum(len(strand.injected_ids) for strand in trace.strands)
    assert sum(labelled.values()) == sum(len(strand.ids) for strand in trace.strands) - injected


def test_a_serial_trace_is_one_row_and_a_spawning_one_a_row_a_context() -> None:
    _, serial, _ = demonstration((3, 5, 8), 7919, SearchOptions(3, 3))
    assert [row.ids for row in rows(serial)] == [serial.strands[0].ids]
    _, nested, _ = demonstration((3, 5, 7, 11), 7919, SearchOptions(2, 2, spawn_depth=2))
    assert max(thread.depth for thread in nested.threads) == 2
    assert len(rows(nested)) == len(nested.strands)  # each parent goes on from before its spawn block, not after it


def strand(number: int, sees: tuple[Reference, ...], injected: tuple[int, ...], sampled: tuple[int, ...]) -> Strand:
    after = tuple(reference.strand for reference in sees)
    return Strand(StrandId("r", number), sees, after, 0, (Injected(Origin.FORCED, injected),), sampled, EngineStop.STOP)


@given(st.integers(0, 3), st.integers(0, 3))
def test_a_strand_that_is_continued_in_full_has_no_row_of_its_own(injected: int, cut: int) -> None:
    """One that is continued from an earlier point has one, and what both rows hold is labelled in the first."""
    first = strand(0, (), (1, 2), (10, 11, 12))
    second = strand(1, (Reference(first.id, 5 - cut),), (3,) * injected, (20, 21))
    _, made, _ = demonstration((3, 5), 8, SearchOptions(1, 1))
    trace = replace(made, strands=(first, second), threads=(replace(made.root, strands=(first.id, second.id)),))
    all_rows = rows(trace)
    assert [row.ids for row in all_rows] == ([first.ids] if cut else []) + [first.ids[: 5 - cut] + second.ids]
    assert places(trace) == {(first.id, 0): 1, (first.id, 1): 1, (first.id, 2): 1, (second.id, 0): 1, (second.id, 1): 1}
    if cut:
        assert all_rows[1].labels == [IGNORED] * (5 - cut + injected) + [20, 21]


def rows_by_walking(trace: Trace) -> list[tuple[tuple[int, ...], list[tuple[int, StrandId, int, int]]]]:
    """Rows as the definition has them: of each leaf its whole closure, each sampled token labelled in the first row."""
    strands = trace.by_id()
    continued = {
        older for strand in trace.strands for older, length in strand.sees if length == len(strands[older].ids)
    }
    labelled: dict[StrandId, int] = {}
    found = []
    for leaf in trace.strands:
        if leaf.id in continued:
            continue
        ids: tuple[int, ...] = ()
        trained = []
        for where, length in {**closure_lengths(strands, leaf.sees), leaf.id: len(leaf.ids)}.items():
            injected = len(strands[where].injected_ids)
            first = max(injected, labelled.get(where, 0))
            if first < length:
                trained.append((len(ids) + first, where, first - injected, length - first))
                labelled[where] = length
            ids += strands[where].ids[:length]
        found.append((ids, trained))
    return found


CHAINS = STRANDS.map(lambda strands: [replace(strand, sees=strand.sees[:1]) for strand in strands])


@settings(max_examples=400)
@given(st.one_of(STRANDS, CHAINS), st.integers(0, 20))
def test_rows_are_those_of_the_definition(strands: list[Strand], most: int) -> None:
    thread = Thread("r", None, 0, tuple(strand.id for strand in strands), StopReason.ANSWERED)
    trace = Trace({"id": "p"}, "any", 0, 0, (thread,), tuple(strands))
    expected = rows_by_walking(trace)
    runs = [[(run.at, run.strand, run.first, run.count) for run in row.trained] for row in rows(trace)]
    assert list(zip((row.ids for row in rows(trace)), runs, strict=True)) == expected
    for row, whole in zip(rows(trace, most), rows(trace), strict=True):
        assert (row.ids, row.labels) == (whole.ids[:most], whole.labels[:most])
        assert (row.trained, row.length) == (whole.trained, len(whole.ids))

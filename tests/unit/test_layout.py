"""Blocks: every token of a trace once, seeing what its strand's context holds, in the order of that context."""

import pickle

import numpy as np
from fakes import CONTROL, join, run, says, spawn
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import SERIAL, SPAWNING, trace
from test_views import STRANDS

from apr.threads.engine import Request
from apr.threads.layout import Block, Segment, blocks, causal
from apr.threads.trace import (
    EngineStop,
    Injected,
    Origin,
    Reference,
    Strand,
    StrandId,
    Trace,
    closure_ids,
    closure_lengths,
)
from rl.packing import mark_attended

NESTED = says(
    r_0=spawn([30], [31], search=[20, 21]), r0_0=spawn([40], search=[22]), r00_0=join(50), r0_1=join(51, search=[23]),
    r1_0=join(), r_1=spawn([32], search=[24]), r2_0=join(52), r_2=join(60),
)  # fmt: skip


def context(block: Block, place: int) -> list[int]:
    """What the token at `place` attends to, itself included, by its position."""
    ((number, segment),) = ((n, one) for n, one in enumerate(block.segments) if one.start <= place < one.stop)
    seen = [i for first, last in block.seen(number) for i in range(first, last)] + list(range(segment.start, place + 1))
    assert [block.positions[i] for i in seen] == list(range(len(seen)))
    return [block.ids[i] for i in seen]


def check(one: Trace) -> None:
    strands = one.by_id()
    made = blocks(one.strands)
    assert sum(len(block.ids) for block in made) == sum(len(strand.ids) for strand in one.strands)
    assert sorted(s.strand for block in made for s in block.segments) == sorted(strands)
    for block in made:
        before = block.before()
        for segment in block.segments:
            strand = strands[segment.strand]
            assert block.ids[segment.start : segment.stop] == strand.ids
            path = [*closure_ids(strands, strand.sees), *strand.ids]
            own = len(path) - len(strand.ids)
            for place in range(segment.start, segment.stop):
                at = own + place - segment.start
                assert context(block, place) == path[: at + 1]
                assert (block.ids[before[place]] == path[at - 1]) if at else before[place] == -1


def test_each_token_sees_the_context_of_its_strand_and_is_laid_out_once() -> None:
    for one in (trace(options=SERIAL), trace(options=SPAWNING), run(NESTED)):
        check(one)


def test_a_childs_strands_are_a_block_of_their_own() -> None:
    made = blocks(run(NESTED).strands)
    assert [[str(segment.strand) for segment in block.segments] for block in made] == [
        ["r#0", "r#1", "r#2"], ["r.0#0", "r.0#1"], ["r.0.0#0"], ["r.1#0"], ["r.2#0"],
    ]  # fmt: skip


def test_the_docstrings_example() -> None:
    one = run(says(r_0=spawn([30]), r0_0=join(50), r_1=join(60)), prompt=(CONTROL.bos, 20, 21))
    parent, _ = blocks(one.strands)
    assert [(s.start, s.stop, s.sees) for s in parent.segments] == [(0, 7, ()), (7, 12, ((0, 3),))]
    assert parent.seen(1) == ((0, 3),)
    assert parent.positions == (0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 7)
    assert parent.before()[7] == 2


def test_a_strand_over_several_others_sees_them_all_in_one_block() -> None:
    """As protocols do whose parent goes on over its children's own tokens."""

    def strand(name: str, number: int, sees: tuple[Reference, ...], position: int) -> Strand:
        return Strand(
            StrandId(name, number), sees, (), position, (Injected(Origin.FORCED, (7,)),), (8, 9), EngineStop.STOP
        )

    prefix = Reference(StrandId("r", 0), 3)
    strands = [
        strand("r", 0, (), 0), strand("r.0", 0, (prefix,), 3), strand("r.1", 0, (prefix,), 3),
        strand("r", 1, (Reference(StrandId("r.0", 0), 3), Reference(StrandId("r.1", 0), 2)), 6),
    ]  # fmt: skip
    (block,) = blocks(strands)
    assert block.segments[3] == Segment(StrandId("r", 1), 9, 12, ((1, 3), (2, 2)))
    assert block.seen(3) == ((0, 3), (3, 6), (6, 8))
    assert block.before()[9] == 7


@given(st.lists(st.integers(0, 99), max_size=9))
def test_a_plain_sequence_is_causal(ids: list[int]) -> None:
    block = causal(ids)
    assert block.before() == list(range(-1, len(ids) - 1))
    for place in range(len(ids)):
        assert context(block, place) == ids[: place + 1]


def by_walking(strands: list[Strand]) -> list[tuple[list[int], list[tuple[int, ...]], list[int]]]:
    """Blocks as the definition has them, each closure walked: ids, what each token attends to, what it follows."""
    by_id = {one.id: one for one in strands}
    groups: list[set[StrandId]] = []
    for one in strands:
        joined = {one.id}.union(*(group for group in groups if any(seen in group for seen, _ in one.sees)))
        groups = [group for group in groups if not group & joined] + [joined]
    found = []
    for one in strands:
        members = [other for other in strands if any({one.id, other.id} <= group for group in groups)]
        if members[0] is not one:
            continue
        ids: list[int] = []
        attended: list[tuple[int, ...]] = []
        follows: list[int] = []
        starts: dict[StrandId, int] = {}
        for member in members:
            start = starts[member.id] = len(ids)
            lengths = closure_lengths(by_id, member.sees)
            seen = [starts[older] + i for older, length in lengths.items() for i in range(length)]
            for place in range(start, start + len(member.ids)):
                attended.append((*seen, *range(start, place + 1)))
                follows.append(attended[-1][-2] if len(attended[-1]) > 1 else -1)
            ids += member.ids
        found.append((ids, attended, follows))
    return found


@settings(max_examples=150)
@given(STRANDS)
def test_pointers_say_what_walking_every_closure_says(strands: list[Strand]) -> None:
    made = blocks(strands)
    expected = by_walking(strands)
    assert len(made) == len(expected)
    for block, (ids, attended, follows) in zip(made, expected, strict=True):
        assert list(block.ids) == ids
        places = [
            (*(i for first, last in block.seen(number) for i in range(first, last)), *range(segment.start, place + 1))
            for number, segment in enumerate(block.segments)
            for place in range(segment.start, segment.stop)
        ]
        assert places == attended
        assert block.before() == follows
        mask = np.zeros((len(ids), len(ids)), np.bool_)
        mark_attended(mask, block)
        assert [tuple(np.flatnonzero(row)) for row in mask] == [tuple(sorted(row)) for row in attended]


def joins_often(request: Request) -> tuple[int, ...]:
    if request.key.thread != "r":
        return join(50)
    return spawn([30]) if request.key.number < 2_000 else join(60)


def test_a_block_takes_memory_linear_in_its_strands() -> None:
    """So that ten thousand joins of one thread can be laid out and pickled for a rank."""
    (block,) = (block for block in blocks(run(joins_often).strands) if len(block.segments) > 1)
    assert len(block.segments) == 2_001
    assert sum(len(segment.sees) for segment in block.segments) == 2_000
    assert pickle.loads(pickle.dumps(block)) == block

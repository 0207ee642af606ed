"""Blocks: every token of a trace once, seeing what its strand's context holds, in the order of that context."""

from fakes import CONTROL, join, run, says, spawn
from hypothesis import given
from hypothesis import strategies as st
from scored import SERIAL, SPAWNING, trace

from apr.threads.layout import Block, Segment, blocks, causal
from apr.threads.trace import EngineStop, Injected, Origin, Reference, Strand, StrandId, Trace, closure_ids

NESTED = says(
    r_0=spawn([30], [31], search=[20, 21]), r0_0=spawn([40], search=[22]), r00_0=join(50), r0_1=join(51, search=[23]),
    r1_0=join(), r_1=spawn([32], search=[24]), r2_0=join(52), r_2=join(60),
)  # fmt: skip


def context(block: Block, place: int) -> list[int]:
    """What the token at `place` attends to, itself included, by its position."""
    (segment,) = (one for one in block.segments if one.start <= place < one.stop)
    seen = [i for first, last in segment.seen for i in range(first, last)] + list(range(segment.start, place + 1))
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
    assert [(s.start, s.stop, s.seen) for s in parent.segments] == [(0, 7, ()), (7, 12, ((0, 3),))]
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
    assert block.segments[3] == Segment(StrandId("r", 1), 9, 12, ((0, 3), (3, 6), (6, 8)))
    assert block.before()[9] == 7


@given(st.lists(st.integers(0, 99), max_size=9))
def test_a_plain_sequence_is_causal(ids: list[int]) -> None:
    block = causal(ids)
    assert block.before() == list(range(-1, len(ids) - 1))
    for place in range(len(ids)):
        assert context(block, place) == ids[: place + 1]

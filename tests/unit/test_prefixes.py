"""Overlaid samples: every trained token keeps its context, its position and its numbers, and no context is there twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from hypothesis import given
from hypothesis import strategies as st

from apr.threads.layout import Block, Segment, causal
from apr.threads.trace import StrandId
from rl.prefixes import overlaid
from rl.samples import Sample


def sample(block: Block, advantage: float = 1.0) -> Sample:
    """All tokens trained that another one predicts."""
    before = block.before()
    trained = [index for index in range(len(block.ids)) if before[index] >= 0]
    strands = [next(n for n, s in enumerate(block.segments) if s.start <= index < s.stop) for index in trained]
    numbers = [advantage + index / 64 for index in trained]
    return Sample(
        block, trained, [before[index] for index in trained], strands, numbers, [advantage] * len(trained), numbers,
        numbers, [0] * len(trained),
    )  # fmt: skip


LABELS: dict[tuple[int, int, tuple[int, ...]], int] = {}


def contexts(block: Block) -> list[int]:
    """A label for each token: of its id, its position and the labels of all that it sees, each as often as it sees it. So
    labels are equal if and only if contexts are, whatever numbers strands and tokens have."""
    labels: list[int] = []
    for number, segment in enumerate(block.segments):
        seen = [labels[index] for first, last in block.seen(number) for index in range(first, last)]
        for index in range(segment.start, segment.stop):
            told = (block.ids[index], block.positions[index], tuple(sorted(seen)))
            labels.append(LABELS.setdefault(told, len(LABELS)))
            seen.append(labels[-1])
    return labels


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    """Few ids, so that prefixes meet; references to parts, to nothing, and to several strands."""
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    for number in range(draw(st.integers(1, 4))):
        older = draw(st.lists(st.integers(0, number - 1), max_size=2, unique=True)) if number else []
        sees = tuple((n, draw(st.integers(0, segments[n].stop - segments[n].start))) for n in sorted(older))
        new = draw(st.lists(st.integers(0, 1), max_size=3))
        first = draw(st.integers(0, 1))
        segments.append(Segment(StrandId("r", number), len(ids), len(ids) + len(new), sees))
        positions += range(first, first + len(new))
        ids += new
    return Block(tuple(ids), tuple(positions), tuple(segments))


def entries(batch: Sequence[Sample]) -> Iterator[tuple[object, ...]]:
    for one in batch:
        told = contexts(one.block)
        numbers = zip(one.logprobs, one.advantages, one.weights, one.kl_weights, one.lags, strict=True)
        for trained, before, row in zip(one.trained, one.before, numbers, strict=True):
            yield told[trained], told[before], row


@given(st.lists(blocks(), max_size=8), st.integers(1, 40))
def test_each_entry_keeps_its_context_and_its_numbers(made: list[Block], most: int) -> None:
    batch = [sample(block, advantage) for advantage, block in enumerate(made)]
    found = overlaid(batch, most)
    assert Counter(entries(found)) == Counter(entries(batch))
    longest = max((len(block.ids) for block in made), default=0)
    assert all(len(one.block.ids) <= max(most, longest) for one in found)
    assert sum(len(one.block.ids) for one in found) <= sum(len(block.ids) for block in made)
    strands = sum(len(set(one.strands)) for one in batch)  # the ratios of GSPO are of strands
    assert sum(len(set(one.strands)) for one in found) == strands


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=12))
def test_sequences_become_their_trie(made: list[list[int]]) -> None:
    found = overlaid([sample(causal(ids)) for ids in made], 10_000)
    prefixes = {tuple(ids[: end + 1]) for ids in made for end in range(len(ids))}
    assert sum(len(one.block.ids) for one in found) == len(prefixes)
    assert len(found) == len({ids[0] for ids in made})


def test_a_fork_is_one_segment_that_sees_the_common_prefix() -> None:
    (one,) = overlaid([sample(causal([1, 2, 5]), 2.0), sample(causal([1, 2, 3, 4]), 1.0)], 8)
    assert one.block.ids == (1, 2, 3, 4, 5) and one.block.positions == (0, 1, 2, 3, 2)
    assert [(s.start, s.stop, s.sees) for s in one.block.segments] == [(0, 4, ()), (4, 5, ((0, 2),))]
    assert one.trained == [1, 2, 3, 1, 4] and one.before == [0, 1, 2, 0, 1]
    assert one.advantages == [1.0, 1.0, 1.0, 2.0, 2.0] and one.strands == [0, 0, 0, 1, 1]


def test_a_parents_second_strand_is_shared_where_it_saw_the_same() -> None:
    """It is laid out after the spawn block of the first, which it does not see."""

    def parent(spawned: list[int], joined: list[int]) -> Sample:
        segments = (Segment(StrandId("r", 0), 0, 1 + len(spawned), ()),)
        end = segments[0].stop
        segments = (*segments, Segment(StrandId("r", 1), end, end + len(joined), ((0, 1),)))
        positions = (*range(end), *range(1, 1 + len(joined)))
        return sample(Block((9, *spawned, *joined), positions, segments))

    (one,) = overlaid([parent([1, 2], [7, 8]), parent([1, 3], [7, 8])], 16)
    assert Counter(one.block.ids) == Counter([9, 1, 2, 3, 7, 8])


def test_two_children_who_wrote_the_same_are_seen_both() -> None:
    """As two paths of Multiverse: they share a prompt and positions, and the parent joins over both."""
    segments = (
        Segment(StrandId("r", 0), 0, 1, ()), Segment(StrandId("r.0", 0), 1, 2, ((0, 1),)),
        Segment(StrandId("r.1", 0), 2, 3, ((0, 1),)), Segment(StrandId("r", 1), 3, 4, ((0, 1), (1, 1), (2, 1))),
    )  # fmt: skip
    block = Block((9, 5, 5, 7), (0, 1, 1, 2), segments)
    (one,) = overlaid([sample(block), sample(block)], 16)
    assert one.block.ids == (9, 5, 5, 7)
    assert sum(stop - start for start, stop in one.block.seen(len(one.block.segments) - 1)) == 3

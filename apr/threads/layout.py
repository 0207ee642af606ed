"""Strands laid out for a learner: every token of a trace once, with who sees whom and where it stands.

Strands that `sees` joins form a *block*; no token of a block attends to anything outside it. In spawn/join a parent's
strands are one block (they share its prompt) and each child's are another. A block is a tree for protocols of one
reference per strand, and a DAG otherwise; its mask and positions come from `sees` and `position` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from apr.threads.trace import Strand, StrandId, closure_lengths

Range = tuple[int, int]  # of indices into a block, the second excluded


@dataclass(frozen=True, slots=True)
class Segment:
    """One strand's tokens, `start` to `stop`. Each sees the ranges `seen`, oldest first, then its own strand up to itself."""

    strand: StrandId
    start: int
    stop: int
    seen: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """`ids`: tokens, strand after strand. `positions`: where each stands in its own context. For example, a parent of
    three prompt tokens P, a sampled spawn block S and, after the join, a message M and an answer A:

        ids        P P P S S M A
        positions  0 1 2 3 4 3 4
        segments   (0, 5) seeing nothing; (5, 7) seeing (0, 3)
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    segments: tuple[Segment, ...]

    def before(self) -> list[int]:
        """For each token the index of the one that it follows in its context, and that predicts it; -1 if it is first."""
        found = list(range(-1, len(self.ids) - 1))
        for segment in self.segments:
            if segment.start < segment.stop:
                found[segment.start] = segment.seen[-1][1] - 1 if segment.seen else -1
        return found


def causal(ids: Sequence[int]) -> Block:
    """A plain sequence as a block of one strand."""
    return Block(tuple(ids), tuple(range(len(ids))), (Segment(StrandId("r", 0), 0, len(ids), ()),))


def blocks(strands: Sequence[Strand]) -> list[Block]:
    """The blocks of a trace, by their first strands; `strands` in topological order, as `Trace.strands` is."""
    by_id = {strand.id: strand for strand in strands}
    head: dict[StrandId, StrandId] = {}  # of each strand's block, its first strand

    def find(strand: StrandId) -> StrandId:
        while head[strand] != strand:
            strand = head[strand]
        return strand

    order = {strand.id: place for place, strand in enumerate(strands)}
    for strand in strands:
        head[strand.id] = strand.id
        for reference in strand.sees:
            heads = sorted((find(reference.strand), find(strand.id)), key=order.__getitem__)
            head[heads[1]] = heads[0]
    together: dict[StrandId, list[Strand]] = {}
    for strand in strands:
        together.setdefault(find(strand.id), []).append(strand)
    return [_block(members, by_id) for members in together.values()]


def _block(members: Iterable[Strand], by_id: dict[StrandId, Strand]) -> Block:
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    starts: dict[StrandId, int] = {}
    for strand in members:
        start = starts[strand.id] = len(ids)
        lengths = closure_lengths(by_id, strand.sees)
        seen = tuple((starts[older], starts[older] + length) for older, length in lengths.items() if length)
        ids += strand.ids
        positions += range(strand.position, strand.position + len(strand.ids))
        segments.append(Segment(strand.id, start, len(ids), seen))
    return Block(tuple(ids), tuple(positions), tuple(segments))

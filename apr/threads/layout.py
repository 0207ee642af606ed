"""Strands laid out for a learner: every token of a trace once, with who sees whom and where it stands.

Strands that `sees` joins form a *block*; no token of a block attends to anything outside it. In spawn/join a parent's
strands are one block (they share its prompt) and each child's are another. A block is a tree for protocols of one
reference per strand, and a DAG otherwise; its mask and positions come from `sees` and `position` alone.

A segment points to the segments that its strand refers to, and copies nothing of what these saw. So a block takes memory
linear in its tokens and references, however often a thread joins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from apr.threads.trace import Strand, StrandId
from apr.threads.views import View, Views

Range = tuple[int, int]  # of indices into a block, the second excluded


@dataclass(frozen=True, slots=True)
class Segment:
    """One strand's tokens, `start` to `stop`. Each sees `sees`, the strand's references by numbers of segments in the block,
    then its own strand up to itself."""

    strand: StrandId
    start: int
    stop: int
    sees: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Block:
    """`ids`: tokens, strand after strand. `positions`: where each stands in its own context. For example, a parent of
    three prompt tokens P, a sampled spawn block S and, after the join, a message M and an answer A:

        ids        P P P S S M A
        positions  0 1 2 3 4 3 4
        segments   (0, 5) seeing nothing; (5, 7) seeing three tokens of segment 0
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    segments: tuple[Segment, ...]

    @property
    def causal(self) -> bool:
        """Whether it is one plain sequence: each token sees all before it and stands one further."""
        older = None
        for number, segment in enumerate(self.segments):
            sees = () if older is None else ((number - 1, older.stop - older.start),)
            if segment.sees != sees or (
                segment.start < segment.stop and self.positions[segment.start] != segment.start
            ):
                return False
            older = segment
        return True

    def before(self) -> list[int]:
        """For each token the index of the one that it follows in its context, and that predicts it; -1 if it is first."""
        found = list(range(-1, len(self.ids) - 1))
        for segment, end in zip(self.segments, self.ends()):
            if segment.start < segment.stop:
                found[segment.start] = end
        return found

    def ends(self) -> list[int]:
        """For each segment the index of the last token that it sees, which its first token follows; -1 if it sees none."""
        views = Views()
        ends: list[int] = []
        for number, segment in enumerate(self.segments):
            last = views.add(segment.sees)
            if last is None:
                end = -1
            elif last.length:
                end = self.segments[last.number].start + last.length - 1
            elif len(segment.sees) == 1:
                end = ends[last.number]
            else:  # the last reference is empty, and what comes before it depends on the others
                end = next((stop - 1 for _, stop in reversed(self.seen(number))), -1)
            ends.append(end)
        return ends

    def seen(self, number: int) -> tuple[Range, ...]:
        """The ranges of tokens that segment `number` sees, oldest first, before its own: its whole closure."""
        longest: dict[int, int] = {}
        stack = [(View(*view), False) for view in reversed(self.segments[number].sees)]
        while stack:  # as in `closure_lengths`
            (older, length), closed = stack.pop()
            if closed or older in longest:
                longest[older] = max(length, longest.get(older, 0))
            else:
                stack.append((View(older, length), True))
                stack.extend((View(*view), False) for view in reversed(self.segments[older].sees))
        starts = {older: self.segments[older].start for older in longest}
        return tuple((starts[older], starts[older] + length) for older, length in longest.items() if length)


def causal(ids: Sequence[int]) -> Block:
    """A plain sequence as a block of one strand."""
    return Block(tuple(ids), tuple(range(len(ids))), (Segment(StrandId("r", 0), 0, len(ids), ()),))


def blocks(strands: Sequence[Strand]) -> list[Block]:
    """The blocks of a trace, by their first strands; `strands` in topological order, as `Trace.strands` is."""
    numbers = {strand.id: number for number, strand in enumerate(strands)}
    head = list(range(len(strands)))  # of each strand's block, the first strand

    def find(number: int) -> int:
        while head[number] != number:
            head[number] = number = head[head[number]]
        return number

    for number, strand in enumerate(strands):
        for reference in strand.sees:
            first, second = sorted((find(numbers[reference.strand]), find(number)))
            head[second] = first
    together: dict[int, list[Strand]] = {}
    for number, strand in enumerate(strands):
        together.setdefault(find(number), []).append(strand)
    return [block_of((strand, len(strand.ids)) for strand in members) for members in together.values()]


def block_of(parts: Iterable[tuple[Strand, int]]) -> Block:
    """Strands, of each its first tokens, as one block. Whatever they see is among those before them."""
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    numbers: dict[StrandId, int] = {}
    for number, (strand, length) in enumerate(parts):
        numbers[strand.id] = number
        start = len(ids)
        ids += strand.ids[:length]
        positions += range(strand.position, strand.position + len(ids) - start)
        sees = tuple((numbers[older], length) for older, length in strand.sees)
        segments.append(Segment(strand.id, start, len(ids), sees))
    return Block(tuple(ids), tuple(positions), tuple(segments))

"""Training rows of a trace: its blocks, as RL trains on them (`apr.threads.layout`).

Each token of a trace stands in one row, each sampled one is the target of the token that it follows in its own context, and
injected ones are never a target. A row of several references is no causal sequence; who sees whom, and where tokens stand,
comes from the block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from apr.errors import DataError
from apr.threads.layout import Block, Segment, blocks
from apr.threads.trace import StrandId, Trace

IGNORED = -100
_NOBODY = StrandId("", 0)


@dataclass(frozen=True, slots=True)
class Row:
    """`targets`: for each token of `block` the sampled token that it predicts, or -100. `over`: whether tokens that stand
    beyond the window were cut off.

    Example: a prompt of two tokens 1 7 and, sampled after it, 9 2: `block.ids == (1, 7, 9, 2)` and
    `targets == [-100, 9, 2, -100]`.
    """

    block: Block
    targets: list[int]
    over: bool


def rows(trace: Trace, window: int | None = None) -> list[Row]:
    """All rows of one trace that have a target, in the order of their first strands. Of each strand the tokens that stand at
    positions below `window` are kept.

    Raises `DataError` if one token would predict two, which no protocol of this project lays out.
    """
    sampled = {strand.id: len(strand.sampled) for strand in trace.strands}
    found = []
    for whole in blocks(trace.strands):
        over = window is not None and max(whole.positions, default=0) >= window
        block = _below(whole, window) if over and window is not None else whole
        targets = [IGNORED] * len(block.ids)
        before = None if block.causal else block.before()
        for segment, uncut in zip(block.segments, whole.segments, strict=True):
            first = segment.start + (uncut.stop - uncut.start) - sampled[segment.strand]
            if first >= segment.stop:
                continue
            if first > segment.start or before is None:
                start = max(first, 1)
                targets[start - 1 : segment.stop - 1] = block.ids[start : segment.stop]
                continue
            predictor = before[first]
            if predictor >= 0:
                if targets[predictor] != IGNORED:
                    raise DataError(f"strand {segment.strand} and another follow one token, and both are sampled there")
                targets[predictor] = block.ids[first]
            targets[first : segment.stop - 1] = block.ids[first + 1 : segment.stop]
        if any(target != IGNORED for target in targets):
            found.append(Row(block, targets, over))
    return found


def _below(block: Block, window: int) -> Block:
    """The block without the tokens that stand at `window` or beyond."""
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    for segment in block.segments:
        own = block.positions[segment.start : segment.stop]
        kept = max(0, min(len(own), window - own[0])) if own else 0
        start = len(ids)
        ids += block.ids[segment.start : segment.start + kept]
        positions += own[:kept]
        sees = tuple(
            (older, min(length, segments[older].stop - segments[older].start)) for older, length in segment.sees
        )
        segments.append(replace(segment, start=start, stop=len(ids), sees=sees))
    return Block(tuple(ids), tuple(positions), tuple(segments))


def pointers(block: Block) -> list[int]:
    """A block's segments as numbers: of each its length, position and references. Empty for a causal sequence."""
    if block.causal:
        return []
    found: list[int] = []
    for segment in block.segments:
        position = block.positions[segment.start] if segment.start < segment.stop else 0
        found += (segment.stop - segment.start, position, len(segment.sees))
        found += [number for reference in segment.sees for number in reference]
    return found


def told_block(ids: Sequence[int], numbers: Sequence[int]) -> Block:
    """The block that `pointers` told; its strands have no names."""
    positions: list[int] = []
    segments: list[Segment] = []
    for length, position, sees in _told(numbers) if numbers else [(len(ids), 0, ())]:
        start = len(positions)
        positions += range(position, position + length)
        segments.append(Segment(_NOBODY, start, start + length, sees))
    return Block(tuple(ids), tuple(positions), tuple(segments))


def _told(numbers: Sequence[int]) -> Iterator[tuple[int, int, tuple[tuple[int, int], ...]]]:
    at = 0
    while at < len(numbers):
        length, position, count = numbers[at : at + 3]
        at += 3 + 2 * count
        flat = numbers[at - 2 * count : at]
        yield length, position, tuple(zip(flat[::2], flat[1::2], strict=True))

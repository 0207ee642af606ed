"""Training rows of a trace: ordinary causal sequences in which each sampled token is labelled exactly once.

With one reference per strand, `sees` is a prefix tree and each root-to-leaf path is a causal sequence. A strand that is
continued in full by another one needs no row of its own; a token that two rows contain is labelled in the first.
"""

from __future__ import annotations

from dataclasses import dataclass

from apr.threads.trace import Reference, Strand, StrandId, Trace, closure_lengths

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Trained:
    """`count` sampled tokens of `strand`, from its sampled token `first` on, stand in a row at `at` and train there."""

    at: int
    strand: StrandId
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Row:
    """`ids`: the sequence, or its beginning. `trained`: the runs of its tokens that train, in order and apart from each
    other. `length`: tokens of the whole sequence."""

    ids: tuple[int, ...]
    trained: tuple[Trained, ...]
    length: int

    @property
    def labels(self) -> list[int]:
        """`ids` where a token trains, else -100 (the loss shifts them by itself)."""
        labels = [IGNORED] * len(self.ids)
        for run in self.trained:
            labels[run.at : run.at + run.count] = self.ids[run.at : run.at + run.count]
        return labels


def rows(trace: Trace, most: int | None = None) -> list[Row]:
    """All rows of one trace, in strand order. Every sampled token is labelled in exactly one, injected ones never.

    `most`: the ids of a row that are wanted, from its beginning. The time is that of writing the ids out: a row extends an
    earlier one, and only strands that are in no earlier row are looked at.
    """
    if any(len(strand.sees) > 1 for strand in trace.strands):
        return _rows_of_dag(trace, most)
    strands = trace.by_id()
    ids = {strand.id: strand.ids for strand in trace.strands}
    seen: dict[StrandId, int] = {}  # tokens before a strand in its context
    continued: set[StrandId] = set()
    for id, strand in strands.items():
        seen[id] = 0
        for older, length in strand.sees:
            seen[id] = seen[older] + length
            if length == len(ids[older]):
                continued.add(older)
    rows_with: dict[StrandId, tuple[int, ...]] = {}  # the first row with each strand
    labelled: dict[StrandId, int] = {}  # how far into a strand rows so far have reached: each holds its beginning
    result = []
    for leaf in strands:
        if leaf in continued:
            continue
        path = [(leaf, len(ids[leaf]))]  # back to the first strand that an earlier row has, whose own past it has too
        while (oldest := path[-1][0]) not in rows_with and strands[oldest].sees:
            ((older, length),) = strands[oldest].sees
            path.append((older, length))
        row = rows_with.get(oldest, ())[: seen[oldest]]
        trained: list[Trained] = []
        for id, length in reversed(path):
            _train(trained, strands[id], len(ids[id]), length, seen[id], labelled)
            if most is None or len(row) < most:
                row += ids[id][:length]
        row = row[:most]
        for id, _ in path:
            rows_with.setdefault(id, row)
        result.append(Row(row, tuple(trained), seen[leaf] + len(ids[leaf])))
    return result


def _rows_of_dag(trace: Trace, most: int | None) -> list[Row]:
    """The same, of strands with several references: each leaf's closure is walked as a whole."""
    strands = trace.by_id()
    ids = {strand.id: strand.ids for strand in trace.strands}
    whole = {Reference(strand.id, len(ids[strand.id])) for strand in trace.strands}
    continued = {ref.strand for strand in trace.strands for ref in strand.sees if ref in whole}
    labelled: dict[StrandId, int] = {}
    result = []
    for leaf in trace.strands:
        if leaf.id in continued:
            continue
        row: list[int] = []
        trained: list[Trained] = []
        for where, length in {**closure_lengths(strands, leaf.sees), leaf.id: len(ids[leaf.id])}.items():
            _train(trained, strands[where], len(ids[where]), length, len(row), labelled)
            row.extend(ids[where][:length])
        result.append(Row(tuple(row[:most]), tuple(trained), len(row)))
    return result


def _train(
    trained: list[Trained], strand: Strand, whole: int, length: int, at: int, labelled: dict[StrandId, int]
) -> None:
    """Add the run of `strand` that no earlier row has labelled. Of its `whole` tokens, `length` stand in the row at `at`."""
    injected = whole - len(strand.sampled)
    first = max(injected, labelled.get(strand.id, 0))
    if first < length:
        trained.append(Trained(at + first, strand.id, first - injected, length - first))
        labelled[strand.id] = length

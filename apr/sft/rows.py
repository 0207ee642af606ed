"""Training rows of a trace: ordinary causal sequences in which each sampled token is labelled exactly once.

With one reference per strand, `sees` is a prefix tree and each root-to-leaf path is a causal sequence. A strand that is
continued in full by another one needs no row of its own; a token that two rows contain is labelled in the first.
"""

from __future__ import annotations

from dataclasses import dataclass

from apr.threads.trace import Reference, StrandId, Trace, closure_lengths

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
    """`ids`: the sequence. `trained`: the runs of its tokens that train, in order and apart from each other."""

    ids: tuple[int, ...]
    trained: tuple[Trained, ...]

    @property
    def labels(self) -> list[int]:
        """`ids` where a token trains, else -100 (the loss shifts them by itself)."""
        labels = [IGNORED] * len(self.ids)
        for run in self.trained:
            labels[run.at : run.at + run.count] = self.ids[run.at : run.at + run.count]
        return labels


def rows(trace: Trace) -> list[Row]:
    """All rows of one trace, in strand order. Every sampled token is labelled in exactly one, injected ones never."""
    strands = trace.by_id()
    ids = {strand.id: strand.ids for strand in trace.strands}
    whole = {Reference(strand.id, len(ids[strand.id])) for strand in trace.strands}
    continued = {ref.strand for strand in trace.strands for ref in strand.sees if ref in whole}
    labelled: dict[StrandId, int] = {}  # how far into a strand rows so far have reached: each holds its beginning
    result = []
    for leaf in trace.strands:
        if leaf.id in continued:
            continue
        row: list[int] = []
        trained = []
        for where, length in {**closure_lengths(strands, leaf.sees), leaf.id: len(ids[leaf.id])}.items():
            injected = len(strands[where].injected_ids)
            first = max(injected, labelled.get(where, 0))
            if first < length:
                trained.append(Trained(len(row) + first, where, first - injected, length - first))
                labelled[where] = length
            row.extend(ids[where][:length])
        result.append(Row(tuple(row), tuple(trained)))
    return result

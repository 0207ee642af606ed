"""Training rows of a trace: ordinary causal sequences in which each sampled token is labelled exactly once.

With one reference per strand, `sees` is a prefix tree and each root-to-leaf path is a causal sequence. A strand that is
continued in full by another one needs no row of its own; a token that two rows contain is labelled in the first.
"""

from __future__ import annotations

from dataclasses import dataclass

from apr.threads.trace import Reference, StrandId, Trace, closure

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Row:
    """`ids`: the sequence. `sampled[i]`: the (strand, index among its sampled tokens) to be trained at i, or None."""

    ids: tuple[int, ...]
    sampled: tuple[tuple[StrandId, int] | None, ...]

    @property
    def labels(self) -> list[int]:
        """`ids` where a token trains, else -100 (the loss shifts them by itself)."""
        return [token if where else IGNORED for token, where in zip(self.ids, self.sampled)]


def rows(trace: Trace) -> list[Row]:
    """All rows of one trace, in strand order. Every sampled token is labelled in exactly one, injected ones never."""
    strands = trace.by_id()
    whole = {Reference(strand.id, len(strand.ids)) for strand in trace.strands}
    continued = {ref.strand for strand in trace.strands for ref in strand.sees if ref in whole}
    labelled: set[tuple[StrandId, int]] = set()
    result = []
    for leaf in trace.strands:
        if leaf.id in continued:
            continue
        path = [*closure(strands, leaf.sees), *((leaf.id, index) for index in range(len(leaf.ids)))]
        ids, sampled = [], []
        for where, index in path:
            strand = strands[where]
            ids.append(strand.ids[index])
            place = (where, index - len(strand.injected_ids))
            trains = place[1] >= 0 and place not in labelled
            if trains:
                labelled.add(place)
            sampled.append(place if trains else None)
        result.append(Row(tuple(ids), tuple(sampled)))
    return result

"""A demonstration as a row: its costs, and the tokens that its strands sample. The problem's own columns stand before."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from apr.threads.trace import ROOT, Trace
from apr.tokens.speller import Speller, condition_of

COSTS = ("context", "work", "work_sampled", "span_sampled", "threads")
NARROW = 1 << 16  # tokens in a vocabulary whose ids are stored so
ENCODED = pa.schema(
    [
        ("condition", pa.int64()),  # value; its kind is a fact of the shard
        ("solved", pa.bool_()),
        *((cost, pa.int64()) for cost in COSTS),
        ("children", pa.int64()),  # the most of any one spawn of the root
        ("strands", pa.list_(pa.int32())),  # how many tokens each strand sampled, in depth-first spawn order
        ("tokens", pa.list_(pa.uint16())),  # those tokens, strand after strand
    ]
)


def encoded(speller: Speller) -> pa.Schema:
    """`ENCODED`, with tokens as wide as the vocabulary needs."""
    if len(speller.vocabulary) <= NARROW:
        return ENCODED
    return ENCODED.set(ENCODED.get_field_index("tokens"), pa.field("tokens", pa.list_(pa.uint32())))


def row_of(trace: Trace) -> dict[str, Any]:
    """A demonstration as a row of `encoded`."""
    condition = condition_of(trace.problem)
    return {
        "condition": None if condition is None else condition.value,
        "solved": trace.correct,
        **measures_of(trace),
        "strands": [len(strand.sampled) for strand in trace.strands],
        "tokens": np.array([token for strand in trace.strands for token in strand.sampled], np.uint32),
    }


def measures_of(trace: Trace) -> dict[str, int]:
    """The costs of a demonstration, and the most children of any one spawn of its root."""
    strands = trace.by_id()
    spawns = Counter(strands[thread.strands[0]].after for thread in trace.threads if thread.parent == ROOT)
    return {**{cost: getattr(trace.costs, cost) for cost in COSTS}, "children": max(spawns.values(), default=0)}

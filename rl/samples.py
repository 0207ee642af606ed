"""From scored traces to training samples: rows with, per trained token, the sampler's logprob, advantage and weight.

The weights are computed here, over the whole step, so that the loss is a plain sum and does not depend on how samples
are packed, ordered or divided among learners.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from apr.sft.rows import rows
from apr.threads.trace import Strand
from rl.advantages import Scored

Weighting = Literal["token", "strand", "trace", "constant"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One causal row. The lists run over its trained tokens; `positions[i]` is token i's index in `ids`."""

    ids: tuple[int, ...]
    positions: list[int]
    logprobs: list[float]
    advantages: list[float]
    weights: list[float]


def samples(scored: Sequence[Scored], weighting: Weighting = "token", constant: int = 1024) -> list[Sample]:
    """Rows of all traces; the weights of all trained tokens sum to 1 (`constant`: to tokens / (traces * constant)).

    * token: each token of the step weighs the same (DAPO).
    * strand: each strand weighs the same, shared equally by its tokens.
    * trace: each trace weighs the same, then each of its strands, then tokens (the APR paper, over rollouts).
    * constant: each token weighs 1 / (traces * constant) (Dr.GRPO, arXiv 2503.20783).
    """
    tokens = sum(len(strand.sampled) for one in scored for strand in one.trace.strands)
    strands = sum(bool(strand.sampled) for one in scored for strand in one.trace.strands)

    def weight(one: Scored, strand: Strand) -> float:
        match weighting:
            case "token":
                return 1.0 / tokens
            case "strand":
                return 1.0 / (strands * len(strand.sampled))
            case "trace":
                own = sum(bool(other.sampled) for other in one.trace.strands)
                return 1.0 / (len(scored) * own * len(strand.sampled))
            case "constant":
                return 1.0 / (len(scored) * constant)

    result = []
    for one in scored:
        by_id = one.trace.by_id()
        for row in rows(one.trace):
            sample = Sample(row.ids, [], [], [], [])
            for position, place in enumerate(row.sampled):
                if place is None:
                    continue
                strand = by_id[place[0]]
                if strand.logprobs is None:
                    raise ValueError(f"strand {strand.id} has no sampler logprobs: a demonstration cannot train RL")
                sample.positions.append(position)
                sample.logprobs.append(strand.logprobs[place[1]])
                sample.advantages.append(one.advantage)
                sample.weights.append(weight(one, strand))
            if sample.positions:
                result.append(sample)
    return result

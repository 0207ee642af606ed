"""From scored traces to training samples: blocks of strands with, per trained token, the sampler's logprob, advantage
and weights.

The weights are computed here, over a whole minibatch, so that the loss is a plain sum and does not depend on how samples
are packed, ordered or divided among learners.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from apr.threads.layout import Block, blocks
from apr.threads.trace import Strand
from rl.advantages import Scored

Weighting = Literal["token", "strand", "trace", "constant"]


@dataclass(frozen=True, slots=True)
class Sample:
    """A block of a trace. The lists run over its trained tokens: `trained[i]` is token i's index in the block,
    `before[i]` the index of the token that predicts it, `strands[i]` the number of its segment, `weights[i]` its weight in
    the policy term and `kl_weights[i]` in the KL term, and `lags[i]` how many updates the learner has made since it was
    sampled."""

    block: Block
    trained: list[int]
    before: list[int]
    strands: list[int]
    logprobs: list[float]
    advantages: list[float]
    weights: list[float]
    kl_weights: list[float]
    lags: list[int]


def minibatches(scored: Sequence[Scored], count: int, rng: random.Random) -> list[list[Scored]]:
    """The traces of a step, dealt at random into `count` parts of equal size (give or take one trace)."""
    dealt = list(scored)
    if count > 1:
        rng.shuffle(dealt)
    return [dealt[first::count] for first in range(count)]


def samples(
    scored: Sequence[Scored],
    weighting: Weighting = "token",
    *,
    constant: int = 1024,
    version: int = 0,
    kl: bool = False,
) -> list[Sample]:
    """Blocks of the traces of a minibatch; every sampled token is trained in exactly one, injected ones never.

    `version`: the learner's own. Traces without an advantage count in all denominators. Their blocks are made only for a
    KL term (`kl`), since they have no other gradient. Over all traces the weights sum to 1 (weighting `constant`: to
    tokens / (traces * constant)); the KL weights sum to 1 always.

    * token: each token of the minibatch weighs the same (DAPO, arXiv 2503.14476).
    * strand: each strand weighs the same, shared equally by its tokens.
    * trace: each trace weighs the same, then each of its strands, then tokens (the APR paper, over rollouts).
    * constant: each token weighs 1 / (traces * constant) (Dr.GRPO, arXiv 2503.20783); in the KL term as under `token`.
    """
    tokens = sum(len(strand.sampled) for one in scored for strand in one.trace.strands)
    own = [
        sum(bool(strand.sampled) for strand in one.trace.strands) for one in scored
    ]  # of each trace: those that train
    strands = sum(own)

    def weight(of_trace: int, strand: Strand) -> float:
        match weighting:
            case "token":
                return 1.0 / tokens
            case "strand":
                return 1.0 / (strands * len(strand.sampled))
            case "trace":
                return 1.0 / (len(scored) * of_trace * len(strand.sampled))
            case "constant":
                return 1.0 / (len(scored) * constant)

    result = []
    for one, of_trace in zip(scored, own, strict=True):
        if not (kl or one.advantage):
            continue
        by_id = one.trace.by_id()
        for block in blocks(one.trace.strands):
            sample = Sample(block, [], [], [], [], [], [], [], [])
            before = block.before()
            for number, segment in enumerate(block.segments):
                strand = by_id[segment.strand]
                if not strand.sampled:
                    continue
                if strand.logprobs is None:
                    raise ValueError(f"strand {strand.id} has no sampler logprobs: a demonstration cannot train RL")
                share = weight(of_trace, strand)
                count = len(strand.sampled)
                first = segment.stop - count
                sample.trained.extend(range(first, segment.stop))
                sample.before.extend(before[first : segment.stop])
                sample.strands.extend([number] * count)
                sample.logprobs.extend(strand.logprobs)
                sample.advantages.extend([one.advantage] * count)
                sample.weights.extend([share] * count)
                sample.kl_weights.extend([1.0 / tokens if weighting == "constant" else share] * count)
                sample.lags.extend(_lags(strand, version))
            if sample.trained:
                result.append(sample)
    return result


def _lags(strand: Strand, version: int) -> list[int]:
    lags = [0] * len(strand.sampled)
    for span in strand.versions:
        lags[span.start : span.end] = [version - span.version] * (span.end - span.start)
    return lags

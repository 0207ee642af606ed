"""Advantages over groups: a group is k traces of one problem, never k sequences."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from apr.threads.trace import Trace

SIGNAL = 1e-9  # rewards of one group that differ by no more do so by rounding alone


@dataclass(frozen=True, slots=True)
class Scored:
    """A trace and the advantage that all its sampled tokens share."""

    trace: Trace
    advantage: float


def has_signal(group: Sequence[Trace]) -> bool:
    """Whether the rewards of a group differ. A group of successes has a signal while a soft term separates them."""
    rewards = [trace.reward["total"] for trace in group]
    return max(rewards) - min(rewards) > SIGNAL


def advantages(groups: Sequence[Sequence[Trace]], divide_by_deviation: bool = False) -> list[Scored]:
    """Reward minus group mean, for every trace; exactly 0 in a silent group, one without a signal.

    Silent groups stay, since GRPO (arXiv 2402.03300) and Dr.GRPO (arXiv 2503.20783) count them in their denominators.
    `divide_by_deviation` is GRPO's (population deviation); in a group of successes it cancels the weight of the soft term.
    """
    scored = []
    for group in groups:
        rewards = [trace.reward["total"] for trace in group]
        if not has_signal(group):
            scored += [Scored(trace, 0.0) for trace in group]
            continue
        mean = statistics.fmean(rewards)
        scale = statistics.pstdev(rewards) if divide_by_deviation else 1.0
        scored += [Scored(trace, (reward - mean) / scale) for trace, reward in zip(group, rewards)]
    return scored


def shuffled(scored: Sequence[Scored], rng: random.Random) -> list[Scored]:
    """The null control: the same traces, their advantages dealt out at random. Nothing can be learned from it."""
    dealt = [one.advantage for one in scored]
    rng.shuffle(dealt)
    return [Scored(one.trace, advantage) for one, advantage in zip(scored, dealt)]

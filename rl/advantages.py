"""Advantages over groups: a group is k traces of one problem, never k sequences."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from apr.threads.trace import Trace


@dataclass(frozen=True, slots=True)
class Scored:
    """A trace and the advantage that all its sampled tokens share."""

    trace: Trace
    advantage: float


def advantages(groups: Sequence[Sequence[Trace]], divide_by_deviation: bool = False) -> list[Scored]:
    """Reward minus group mean, over the groups that carry a signal.

    A group with no success is dropped, and so is one whose rewards are all equal; a group of successes stays while a
    soft term separates them. `divide_by_deviation` is the paper's GRPO (population deviation); in a group of successes
    it cancels the weight of the soft term.
    """
    scored = []
    for group in groups:
        rewards = [trace.reward["total"] for trace in group]
        if not any(trace.reward["success"] for trace in group) or max(rewards) == min(rewards):
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

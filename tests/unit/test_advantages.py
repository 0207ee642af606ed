"""Advantages: over groups of traces of one problem; 0 where there is no signal."""

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import trace

from apr.threads.trace import Trace
from rl.advantages import advantages, has_signal, shuffled


def group(*rewards: float) -> list[Trace]:
    return [trace(reward=reward) for reward in rewards]


def test_reward_minus_the_mean_of_the_group() -> None:
    scored = advantages([group(1, 0, 0, 0), group(1, 1, 0, 0)])
    assert [one.advantage for one in scored] == pytest.approx([0.75, -0.25, -0.25, -0.25, 0.5, 0.5, -0.5, -0.5])


def test_division_by_the_deviation() -> None:
    scored = advantages([group(1, 0, 0, 0)], divide_by_deviation=True)
    deviation = statistics.pstdev([1, 0, 0, 0])
    assert [one.advantage for one in scored] == pytest.approx([0.75 / deviation, *[-0.25 / deviation] * 3])


@pytest.mark.parametrize("rewards", [(0, 0, 0), (1, 1, 1), (0.7, 0.7), (0.1 + 0.2, 0.3)])
@pytest.mark.parametrize("divide", [True, False])
def test_a_group_without_signal_has_no_advantage_and_still_counts(rewards: tuple[float, ...], divide: bool) -> None:
    """0.1 + 0.2 and 0.3 differ by rounding alone: divided by their deviation, they would be full advantages."""
    assert [one.advantage for one in advantages([group(*rewards)], divide)] == [0.0] * len(rewards)
    assert not has_signal(group(*rewards)) and has_signal(group(1, 0))
    both = advantages([group(*rewards), group(1, 0)])
    assert [one.advantage for one in both] == [*[0.0] * len(rewards), 0.5, -0.5]


def test_a_group_of_successes_has_a_signal_while_a_soft_term_separates_them() -> None:
    scored = advantages([group(1.0, 0.8)])
    assert [one.advantage for one in scored] == pytest.approx([0.1, -0.1])


@given(st.lists(st.lists(st.sampled_from([0.0, 0.6, 1.0]), min_size=2, max_size=6), max_size=5), st.booleans())
def test_each_group_sums_to_nothing_and_traces_keep_their_order(totals: list[list[float]], divide: bool) -> None:
    groups = [group(*rewards) for rewards in totals]
    scored = advantages(groups, divide)
    assert [id(one.trace) for one in scored] == [id(trace) for traces in groups for trace in traces]
    start = 0
    for traces in groups:
        own = scored[start : start + len(traces)]
        start += len(traces)
        assert sum(one.advantage for one in own) == pytest.approx(0, abs=1e-9)
        best = max(own, key=lambda one: one.trace.reward["total"])
        assert best.advantage == max(one.advantage for one in own)
        assert (best.advantage > 0) == (len({trace.reward["total"] for trace in traces}) > 1)


def test_shuffling_deals_the_same_advantages_to_the_same_traces() -> None:
    scored = advantages([group(1, *[0] * 9), group(*[1] * 5, *[0] * 5)])
    dealt = shuffled(scored, random.Random(0))
    assert [one.trace for one in dealt] == [one.trace for one in scored]
    assert sorted(one.advantage for one in dealt) == sorted(one.advantage for one in scored)
    assert [one.advantage for one in dealt] != [one.advantage for one in scored]

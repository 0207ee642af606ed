"""Rewards: success within hard budgets, and soft terms that only separate successes."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import trace

from apr.config import Bonus, RewardConfig, SoftBudget
from apr.threads.limits import Budgets
from rl.rewards import acceleration, rewarded

HARD = RewardConfig(budgets=Budgets(context=100, span_sampled=50, work=200))


@pytest.mark.parametrize(
    ("correct", "costs", "success"),
    [
        (True, {"context": 100, "span_sampled": 50, "work": 200}, 1.0),
        (False, {"context": 10, "span_sampled": 5, "work": 20}, 0.0),
        (True, {"context": 101, "span_sampled": 5, "work": 20}, 0.0),
        (True, {"context": 10, "span_sampled": 51, "work": 20}, 0.0),
        (True, {"context": 10, "span_sampled": 5, "work": 201}, 0.0),
    ],
)
def test_success_is_correct_within_every_hard_budget(correct: bool, costs: dict[str, int], success: float) -> None:
    made = rewarded(trace(correct, **costs), HARD)
    assert made.reward["correct"] == float(correct)
    assert made.reward["success"] == made.reward["total"] == success
    assert made.budgets == {"context": 100, "span_sampled": 50, "work": 200}


def test_without_budgets_being_correct_is_success() -> None:
    made = rewarded(trace(True, work=10**6), RewardConfig())
    assert made.reward == {"correct": 1.0, "within": 1.0, "success": 1.0, "total": 1.0}
    assert made.budgets == {}


def test_a_soft_penalty_grows_with_the_excess_up_to_its_weight() -> None:
    config = RewardConfig(soft_span=SoftBudget(budget=100, weight=0.4))
    totals = [rewarded(trace(True, span_sampled=span), config).reward["total"] for span in (10, 100, 150, 200, 900)]
    assert totals == pytest.approx([1.0, 1.0, 0.8, 0.6, 0.6])
    made = rewarded(trace(True, span_sampled=150), config)
    assert made.reward["penalty_span_sampled"] == pytest.approx(0.2)


COSTS = st.fixed_dictionaries({name: st.integers(1, 500) for name in ("context", "span_sampled", "work")})
SOFT = st.builds(SoftBudget, budget=st.integers(1, 300), weight=st.floats(0.01, 0.33)) | st.none()


@given(COSTS, COSTS, SOFT, SOFT, SOFT)
def test_no_failure_is_preferred_to_another_nor_to_a_success_nor_a_dear_success_raised(
    a: dict[str, int], b: dict[str, int], context: Any, span: Any, work: Any
) -> None:
    config = RewardConfig(soft_context=context, soft_span=span, soft_work=work)
    assert (
        rewarded(trace(False, **a), config).reward["total"] == rewarded(trace(False, **b), config).reward["total"] == 0
    )
    cheap = {name: min(a[name], b[name]) for name in a}
    dear = {name: max(a[name], b[name]) for name in a}
    cheap_total, dear_total = (rewarded(trace(True, **costs), config).reward["total"] for costs in (cheap, dear))
    assert 0 < dear_total <= cheap_total <= 1.0


def test_a_success_earns_for_acceleration_up_to_the_cap_and_a_failure_nothing() -> None:
    """ThreadWeaver's 1 + 0.5 min(eta, 0.2), on three threads of 10, 20 and 30 tokens with 5 outside: eta = 1 - 35/65."""
    config = RewardConfig(acceleration=Bonus(cap=0.2, weight=0.1))
    assert acceleration(trace(span_sampled=35, work_sampled=65).costs) == pytest.approx(1 - 35 / 65)  # type: ignore[arg-type]
    for span, bonus in ((100, 0.0), (90, 0.05), (80, 0.1), (35, 0.1)):
        made = rewarded(trace(True, span_sampled=span, work_sampled=100), config)
        assert made.reward["bonus_acceleration"] == pytest.approx(bonus)
        assert made.reward["total"] == pytest.approx(1 + bonus)
    assert rewarded(trace(False, span_sampled=35, work_sampled=100), config).reward["total"] == 0


def test_a_success_earns_for_threads_that_ran_at_once() -> None:
    """AsyncThink's min(eta / c, tau) / tau for a pool of 4 and tau 0.5: all of it from 2 active threads on."""
    config = RewardConfig(concurrency=Bonus(cap=2.0, weight=0.2))
    for span, bonus in ((100, 0.1), (50, 0.2), (20, 0.2)):
        made = rewarded(trace(True, span_sampled=span, work_sampled=100), config)
        assert made.reward["total"] == pytest.approx(1 + bonus)
    assert rewarded(trace(False, span_sampled=20, work_sampled=100), config).reward["bonus_concurrency"] == 0


def test_a_trace_without_verdict_or_costs_cannot_be_rewarded() -> None:
    for unfinished in (replace(trace(), outcome=None), replace(trace(), costs=None)):
        with pytest.raises(ValueError, match="verified"):
            rewarded(unfinished, RewardConfig())

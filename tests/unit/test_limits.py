"""Limits and allowances: refusals in documented order, shares in spawn order, and all that is unused comes back."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from apr.threads.limits import Allowance, Limits
from apr.threads.trace import StopReason

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines may be busy

AMOUNT = st.none() | st.integers(0, 50)


def test_fields_stand_in_the_order_in_which_they_are_checked() -> None:
    assert list(Limits.model_fields) == ["context", "reach", "work", "span", "depth", "threads", "width", "seconds"]


@pytest.mark.parametrize(
    "wrong", [{"context": 7}, {"work": 0}, {"span": 0}, {"threads": 0}, {"depth": -1}, {"seconds": 0}, {"tokens": 5}]
)
def test_senseless_limits_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Limits.model_validate(wrong)


def test_the_root_counts_itself() -> None:
    assert Allowance.whole(Limits(work=9, threads=5, width=3)) == Allowance(9, 4, 2)
    assert Allowance.whole(Limits(threads=None)) == Allowance(None, None, None)


def test_refusals_come_in_the_order_depth_threads_width() -> None:
    depth_1 = Limits(depth=1)
    assert Allowance(None, 1, 1).refuse(2, 1, depth_1) is StopReason.DEPTH
    assert Allowance(None, 1, 1).refuse(2, 0, depth_1) is StopReason.THREADS
    assert Allowance(None, 2, 1).refuse(2, 0, depth_1) is StopReason.WIDTH
    assert Allowance(None, 2, 2).refuse(2, 0, depth_1) is None
    assert Allowance(None, None, None).refuse(1, 0, Limits(depth=0)) is StopReason.DEPTH


def test_the_first_children_get_the_larger_shares() -> None:
    parent = Allowance(11, 10, 6)
    assert parent.split(3, goes_on=False, nest=True) == [Allowance(4, 3, 1), Allowance(4, 2, 1), Allowance(3, 2, 1)]
    assert parent == Allowance(0, 0, 0)


def test_a_parent_that_goes_on_keeps_the_last_share() -> None:
    parent = Allowance(11, 5, None)
    assert parent.split(2, goes_on=True, nest=True) == [Allowance(4, 1, None), Allowance(4, 1, None)]
    assert parent == Allowance(3, 1, None)


def test_children_that_open_none_leave_all_threads_to_a_parent_that_goes_on() -> None:
    """Else each fork would halve what is left, and four forks would use up fifteen threads."""
    parent = Allowance(None, 15, 8)
    for _ in range(8):
        assert parent.split(1, goes_on=True, nest=False) == [Allowance(None, 0, 0)]
    assert parent == Allowance(None, 7, 0)
    parent.give_back(Allowance(None, 0, 0))
    assert parent == Allowance(None, 7, 1)


@PATIENT
@given(AMOUNT, AMOUNT, AMOUNT, st.integers(1, 9), st.booleans(), st.booleans())
def test_nothing_is_lost_or_made(
    work: int | None, threads: int | None, width: int | None, children: int, goes_on: bool, nest: bool
) -> None:
    parent = Allowance(work, threads, width)
    if parent.refuse(children, 0, Limits()) is not None:
        return
    shares = parent.split(children, goes_on, nest)
    assert len(shares) == children
    for share in shares:
        assert all(amount is None or amount >= 0 for amount in (share.work, share.threads, share.width))
        parent.give_back(share)
    assert parent.work == work
    assert parent.threads == (None if threads is None else threads - children)  # started once, started for good
    assert parent.width == width

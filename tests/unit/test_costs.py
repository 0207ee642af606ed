"""Costs of hand-made traces, with the numbers worked out by hand from the definitions."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apr.protocols.serial import Serial
from apr.seeds import SplitMix64
from apr.threads.costs import costs, critical_path
from apr.threads.limits import Budgets
from apr.threads.trace import Costs, EngineStop, Injected, Origin, Reference, StopReason, Strand, StrandId, Thread
from envs.countdown.compact import CompactSpeller
from envs.countdown.log import Node
from envs.countdown.wording import encode
from solvers.search import SearchOptions, search

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines may be busy


def sid(name: str) -> StrandId:
    thread, number = name.split("#")
    return StrandId(thread, int(number))


def strand(
    name: str, injected: dict[str, int], sampled: int, sees: dict[str, int] | None = None, after: str = "",
    cached: int = 0, ended: float = 0.0,
) -> Strand:  # fmt: skip
    """A strand of so many tokens: `injected` by origin, `sees` by strand, `after` separated by spaces."""
    return Strand(
        sid(name),
        tuple(Reference(sid(seen), length) for seen, length in (sees or {}).items()),
        tuple(map(sid, after.split())),
        0,
        tuple(Injected(Origin(origin), (9,) * count) for origin, count in injected.items()),
        (8,) * sampled,
        EngineStop.STOP,
        cached=cached,
        ended=ended,
    )


def cost(*strands: Strand) -> Costs:
    """Costs of a trace of these strands, its threads being those that the strands name, in path order."""
    names = sorted({s.id.thread for s in strands})
    threads = tuple(
        Thread(
            name,
            name.rpartition(".")[0] or None,
            name.count("."),
            tuple(s.id for s in strands if s.id.thread == name),
            StopReason.ANSWERED,
        )  # fmt: skip
        for name in names
    )
    return costs(threads, strands)


TWO_CHILDREN = (
    strand("r#0", {"prompt": 4}, 10, ended=1.0),
    strand("r.0#0", {"forced": 1, "message": 2}, 5, after="r#0", ended=2.0),
    strand("r.1#0", {"forced": 1, "message": 3}, 9, after="r#0", cached=2, ended=3.5),
    strand("r#1", {"forced": 2, "message": 3}, 7, {"r#0": 10}, "r#0 r.0#0 r.1#0", cached=8, ended=4.0),
)


def test_two_children_of_unequal_length() -> None:
    assert cost(*TWO_CHILDREN) == Costs(
        work=14 + 8 + 13 + 12,
        work_sampled=10 + 5 + 9 + 7,
        span=14 + 13 + 12,  # by way of the longer child
        span_sampled=10 + 9 + 7,
        context=10 + 5 + 7,  # the parent after the join: what it sees, the messages, what it samples
        threads=3,
        width=3,
        depth=1,
        prefilled=4 + 3 + (4 - 2) + (10 + 5 - 8),
        seconds=4.0,
        reach=14,  # all strands of this test stand at 0
    )
    assert cost(*TWO_CHILDREN).parallelism == 47 / 39
    assert cost(*TWO_CHILDREN).parallelism_sampled == 31 / 26
    assert [str(s) for s in critical_path(TWO_CHILDREN)] == ["r#0", "r.1#0", "r#1"]


def test_children_that_spawn() -> None:
    found = cost(
        strand("r#0", {"prompt": 2}, 3),
        strand("r.0#0", {"forced": 1}, 4, after="r#0"),
        strand("r.0.0#0", {"forced": 1}, 20, after="r.0#0"),
        strand("r.0.1#0", {"forced": 1}, 6, after="r.0#0"),
        strand("r.0#1", {"forced": 2}, 5, {"r.0#0": 3}, "r.0#0 r.0.0#0 r.0.1#0"),
        strand("r.1#0", {"forced": 1}, 30, after="r#0"),
        strand("r#1", {"forced": 2}, 1, {"r#0": 4}, "r#0 r.0#1 r.1#0"),
    )
    assert (found.threads, found.depth, found.width) == (5, 2, 5)
    assert found.span == 5 + 5 + 21 + 7 + 3  # the chain through r.0 and r.0.0, longer than r.1's 31
    assert found.span_sampled == 3 + 30 + 1  # through r.1: messages are not decoded, so another chain is the longest
    assert found.work == 5 + 5 + 21 + 7 + 7 + 31 + 3
    assert found.context == 31  # r.1 alone


def test_copies_count_in_context_and_nowhere_else() -> None:
    found = cost(
        strand("r#0", {"prompt": 4}, 10),
        strand("r.0#0", {"forced": 1}, 5, after="r#0"),
        strand("r#1", {"forced": 1, "copy": 5}, 3, {"r#0": 14}, "r#0 r.0#0"),
    )
    assert found.work == 14 + 6 + (1 + 3)
    assert found.span == 14 + 6 + 4
    assert found.context == 14 + 6 + 3
    assert found.prefilled == 4 + 1 + (14 + 6)


def test_span_follows_after_and_context_follows_sees() -> None:
    """A parent that goes on while its child runs, then sees all of itself and nothing of the child."""
    going_on = (
        strand("r#0", {"prompt": 2}, 4),
        strand("r#1", {}, 3, {"r#0": 6}, "r#0"),
        strand("r.0#0", {"message": 2}, 40, after="r#0"),
        strand("r#2", {"message": 1}, 5, {"r#1": 3}, "r#1 r.0#0"),
    )
    found = cost(*going_on)
    assert found.span_sampled == 4 + 40 + 5  # the child, whose tokens the parent never sees
    assert found.span == 6 + 42 + 6
    assert found.context == 42  # the child's own
    assert found.width == 2
    # The same strands, seen the same way, but waited for by nobody: only the span changes.
    unawaited = cost(*going_on[:3], strand("r#2", {"message": 1}, 5, {"r#1": 3}, "r#1"))
    assert unawaited.span_sampled == max(4 + 3 + 5, 4 + 40)
    assert (unawaited.work, unawaited.context) == (found.work, found.context)
    # The same dependence, but the last strand sees the child too: only the context changes.
    seeing = cost(*going_on[:3], strand("r#2", {"message": 1}, 5, {"r#1": 3, "r.0#0": 42}, "r#1 r.0#0"))
    assert seeing.context == (6 + 3) + 42 + 1 + 5
    assert (seeing.work, seeing.span) == (found.work, found.span)


def test_width_counts_waiting_parents_and_not_those_that_ended() -> None:
    one_by_one = (
        strand("r#0", {"prompt": 1}, 2),
        strand("r.0#0", {}, 5, after="r#0"),
        strand("r#1", {}, 2, {"r#0": 2}, "r#0 r.0#0"),
        strand("r.1#0", {}, 5, after="r#1"),
        strand("r#2", {}, 2, {"r#1": 2}, "r#1 r.1#0"),
    )
    assert cost(*one_by_one).width == 2
    assert cost(*TWO_CHILDREN[:3]).width == 3  # a parent that had no room to go on waited all the same
    assert cost(strand("r#0", {"prompt": 1}, 2)).width == 1


def test_a_thread_that_could_not_start_costs_nothing() -> None:
    lone = Thread("r", None, 0, (), StopReason.CONTEXT)
    found = costs((lone,), ())
    assert found == Costs(0, 0, 0, 0, 0, threads=1, width=0, depth=0, prefilled=0, seconds=0.0, reach=0)
    assert found.parallelism == found.parallelism_sampled == 1.0


@settings(PATIENT, max_examples=20)
@given(st.lists(st.integers(1, 20), min_size=2, max_size=4), st.integers(1, 60), st.integers(0, 9))
def test_a_serial_trace_has_one_number_for_work_span_and_context(numbers: list[int], target: int, seed: int) -> None:
    speller = CompactSpeller()
    log = search(target, Node(tuple(sorted(numbers)), ()), SearchOptions(4, 4, 0.5), SplitMix64(seed))
    trace = encode(log, speller, Serial(speller.vocabulary.control), {"id": "p"})
    found = trace.costs
    assert found is not None
    assert found.work == found.span == found.context == len(trace.strands[0].ids)
    assert found.work_sampled == found.span_sampled == len(trace.strands[0].sampled)
    assert found.parallelism == found.parallelism_sampled == 1.0
    assert (found.threads, found.width, found.depth) == (1, 1, 0)


@pytest.mark.parametrize(
    ("budgets", "within"),
    [
        (Budgets(), True),
        (Budgets(context=22, span_sampled=26, work=47), True),
        (Budgets(context=21), False),
        (Budgets(span_sampled=25), False),
        (Budgets(work=46), False),
    ],
)
def test_budgets_hold_up_to_and_including_their_number(budgets: Budgets, within: bool) -> None:
    assert budgets.within(cost(*TWO_CHILDREN)) is within

"""Metrics and baselines against numbers worked out by hand."""

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import attempt_of

from apr.evaluation.baselines import majority, pass_at, samples_by_problem
from apr.evaluation.metrics import (
    COSTS,
    METRICS,
    Attempt,
    accuracy_by_cost,
    attempt,
    clustered_interval,
    compare,
    interval,
    mcnemar,
    spread,
    summarise,
)
from apr.evaluation.systems import systems
from apr.threads.costs import Parallel, costs, parallel
from apr.threads.trace import (
    Costs,
    EngineStop,
    Injected,
    Origin,
    Outcome,
    StopReason,
    Strand,
    StrandId,
    Thread,
    Trace,
)  # fmt: skip
from envs.countdown.env import Countdown


def trace(
    problem: str,
    correct: bool,
    answer: str | None = "1+2=3",
    stop: StopReason = StopReason.ANSWERED,
    context: int = 50,
    work: int = 100,
    span: int = 50,
) -> Trace:
    costs = Costs(work, work - 10, span, span - 10, context, 3, 2, 1, 80, 1.5)
    root = Thread("r", None, 0, (), stop)
    vote = Countdown().canonical(answer) if answer and answer.strip() else None
    return Trace(
        {"id": problem}, "spawn_join", 0, 0, (root,), (), answer, Outcome(stop, correct, "as told", float(correct), vote), costs
    )  # fmt: skip


def test_wilson_interval() -> None:
    # By Wilson's formula with z = 1.959964.
    assert interval(8, 10) == pytest.approx((0.490162, 0.943317), abs=1e-6)
    assert interval(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert interval(10, 10) == pytest.approx((0.722467, 1.0), abs=1e-6)
    assert interval(0, 0) == (0.0, 1.0)


def test_mcnemar_is_exact_and_two_sided() -> None:
    a = [True] * 9 + [False] + [True, False] * 5
    b = [False] * 9 + [True] + [True, False] * 5
    test = mcnemar(a, b)
    assert (test.n, test.only_a, test.only_b) == (20, 9, 1)
    assert test.p_value == pytest.approx(2 * 11 / 1024)
    assert mcnemar(b, a).p_value == test.p_value
    assert mcnemar([True, False], [True, False]).p_value == 1.0
    with pytest.raises(ValueError, match="same problems"):
        mcnemar([True], [])


def test_compare_pairs_by_problem_and_leaves_lost_ones_out() -> None:
    a = [trace("p1", True), trace("p2", True), trace("p3", False), trace("p4", True)]
    b = [trace("p3", True), trace("p2", False), trace("p1", True), trace("p5", True)]
    test = compare(a, b)
    assert (test.n, test.only_a, test.only_b) == (3, 1, 1)
    b[1] = trace("p2", False, stop=StopReason.ENGINE_LOST)
    assert compare(a, b).n == 2
    with pytest.raises(ValueError, match="several attempts"):
        compare([*a, a[0]], b)
    with pytest.raises(ValueError, match="share no problem"):
        compare(a[3:], b)


def test_percentiles_are_values_that_occurred() -> None:
    hundred = spread(list(range(100, 0, -1)))
    assert (hundred.p50, hundred.p90, hundred.p99, hundred.max) == (50, 90, 99, 100)
    assert hundred.mean == 50.5
    assert asdict(spread([7.0])) == dict.fromkeys(("mean", "p50", "p90", "p99", "max"), 7.0)
    assert spread([1.0, 2.0]).p50 == 1.0


def test_summary() -> None:
    tries = [
        trace("p1", True, context=40),
        trace("p2", False, None, StopReason.CONTEXT, context=160),
        trace("p3", False, None, StopReason.NO_ANSWER),
        trace("p4", True, work=400),
        trace("p5", True, stop=StopReason.ENGINE_LOST, work=9_999),
    ]
    summary = summarise("model", tries, "greedy")
    assert (summary.n, summary.lost, summary.correct, summary.accuracy) == (4, 1, 2, 0.5)
    assert summary.stops == {"answered": 2, "no_answer": 1, "context": 1}
    assert summary.costs.keys() == set(COSTS)
    assert summary.costs["context"].mean == (40 + 160 + 50 + 50) / 4
    assert summary.costs["work"].max == 400  # the lost attempt costs nothing
    assert summary.costs["parallelism"].max == 8.0
    assert summary.costs["parallelism_sampled"].p50 == 90 / 40
    assert json.loads(json.dumps(asdict(summary)))["costs"]["seconds"]["mean"] == 1.5
    with pytest.raises(ValueError, match="can be scored"):
        summarise("model", tries[4:])
    with pytest.raises(ValueError, match="p1 has no outcome"):
        summarise("model", [replace(tries[0], outcome=None)])


def test_lost_child_makes_the_trace_lost() -> None:
    whole = trace("p1", True)
    child = Thread("r.0", "r", 1, (), StopReason.ENGINE_LOST)
    assert summarise("model", [whole, replace(whole, threads=(*whole.threads, child))]).lost == 1


def test_accuracy_by_cost_counts_all_attempts_below() -> None:
    tries = [
        trace("p1", True, context=10),
        trace("p2", False, context=20),
        trace("p3", True, context=30),
        trace("p4", True, context=30),
    ]
    assert accuracy_by_cost(tries, "context") == ([10, 20, 30], [0.25, 0.25, 0.75])
    assert accuracy_by_cost(tries, "span_sampled") == ([40], [0.75])
    assert accuracy_by_cost([], "work") == ([], [])


def test_majority_votes_over_canonical_answers() -> None:
    wrong, right = "2*5=11", "5*2=10"
    group = [
        trace("p", False, None, StopReason.CONTEXT),
        trace("p", False, wrong),
        trace("p", True, right, context=70, work=300, span=90),
        trace("p", False, " 2 * 5 = 11 "),
    ]
    vote = majority(group)
    assert (vote.answer, vote.correct, vote.stop) == (wrong, False, StopReason.ANSWERED)
    assert majority(group[1:3]).answer == wrong  # a tie: first seen
    assert majority(group[2:]).correct
    none = majority([group[0], trace("p", False, None, StopReason.MALFORMED)])
    assert (none.answer, none.correct, none.stop) == (None, False, StopReason.CONTEXT)
    assert pass_at(group).correct
    assert not pass_at([group[0], group[1]]).correct


def test_equal_answers_vote_together() -> None:
    """Three say the same right thing, each in other words, and two the same wrong one."""
    right = ["2+3=5, 5+6=11", "3+2=5, 6+5=11", "2+3=5, 6+5=11"]
    group = [
        trace("p", False, "2*3=6, 6+6=12"),
        trace("p", False, "2*3=6, 6+6=12"),
        *(trace("p", True, one) for one in right),
    ]
    vote = majority(group)
    assert (vote.answer, vote.correct) == (right[0], True)


@pytest.mark.parametrize("blank", ["", " ", "\n", "\t \n"])
def test_blank_answers_do_not_vote(blank: str) -> None:
    silent = [trace("p", False, blank, StopReason.NO_ANSWER) for _ in range(3)]
    assert majority([*silent, trace("p", True, "2+3=5")]).correct
    assert not majority(silent).correct


def test_a_malformed_answer_takes_no_votes_from_a_right_one() -> None:
    right, torn, other = "12+3=15", "1 2+3=15", "3*5=15"
    group = [trace("p", False, torn), trace("p", True, right), trace("p", False, other), trace("p", False, other)]
    vote = majority(group)
    assert (vote.answer, vote.correct) == (other, False)
    votes = [trace("p", False, torn), trace("p", True, right), trace("p", True, "12 + 3 = 15")]
    assert majority(votes).correct


def test_samples_run_side_by_side() -> None:
    first = trace("p", False, "a", context=60, work=100, span=50)
    group = [first, trace("p", True, "b", context=40, work=200, span=90)]
    for together in (majority(group), pass_at(group)):
        assert dict(together.costs) == {
            "work": 300, "work_sampled": 280, "span": 90, "span_sampled": 80, "context": 60, "reach": 0, "threads": 6,
            "width": 4, "seconds": 1.5, "parallelism": 300 / 90, "parallelism_sampled": 280 / 80, "acceleration": 1 - 80 / 280,
            "depth": 1, "prefilled": 160, "spawns": 0, "branches": 0, "parallel_tokens": 0, "parallel_seconds": 0,
        }  # fmt: skip
        assert list(together.costs) == list(COSTS)


def test_votes_need_one_problem_and_no_lost_engine() -> None:
    with pytest.raises(ValueError, match="of 2"):
        majority([trace("p", True), trace("q", True)])
    with pytest.raises(ValueError, match="of 0"):
        pass_at([])
    assert pass_at([trace("p", True), trace("p", False, stop=StopReason.ENGINE_LOST)]).lost


def test_samples_are_grouped_in_order() -> None:
    traces = [trace("b", True), trace("a", True), trace("b", False)]
    tries = [attempt(one) for one in traces]
    assert samples_by_problem(traces) == samples_by_problem(tries) == [[tries[0], tries[2]], [tries[1]]]
    votes: list[Attempt] = [majority(group) for group in samples_by_problem(traces)]
    assert summarise("cons@2", votes).n == 2


def test_each_cost_is_defined() -> None:
    assert set(COSTS) <= METRICS.keys()


def strand(
    thread: str, number: int, after: list[tuple[str, int]], sampled: int, started: float, ended: float
) -> Strand:
    before = tuple(StrandId(*one) for one in after)
    prompt = (Injected(Origin.PROMPT, (1, 2)),)
    return Strand(
        StrandId(thread, number), (), before, 0, prompt, (5,) * sampled, EngineStop.STOP, started=started, ended=ended
    )  # fmt: skip


def test_what_other_systems_measure() -> None:
    """By hand: two spawns, of two children and one; 10 + 20 + 5 of 65 sampled tokens are theirs. The longest chain is
    10 (root), 20, 10, 5, 10. Children run from 1 to 4 and from 5 to 5.5 seconds."""
    strands = (
        strand("r", 0, [], 10, 0, 1),
        strand("r.0", 0, [("r", 0)], 10, 1, 2),
        strand("r.1", 0, [("r", 0)], 20, 1.5, 4),
        strand("r", 1, [("r", 0), ("r.0", 0), ("r.1", 0)], 10, 4, 5),
        strand("r.2", 0, [("r", 1)], 5, 5, 5.5),
        strand("r", 2, [("r", 1), ("r.2", 0)], 10, 5.5, 6),
    )
    ids = {one: tuple(s.id for s in strands if s.id.thread == one) for one in ("r", "r.0", "r.1", "r.2")}
    threads = tuple(
        Thread(name, None if name == "r" else "r", int(name != "r"), own, StopReason.ANSWERED)
        for name, own in ids.items()
    )
    assert parallel(threads, strands) == Parallel(spawns=2, branches=3, tokens=35, seconds=3.5)
    outcome = Outcome(StopReason.ANSWERED, True, "as told")
    spawned = Trace({"id": "p"}, "spawn_join", 0, 0, threads, strands, "", outcome, costs(threads, strands))
    alone = (Thread("r", None, 0, ids["r"][:1], StopReason.ANSWERED),)
    serial = Trace({"id": "q"}, "serial", 0, 0, alone, strands[:1], "", outcome, costs(alone, strands[:1]))
    found = systems([attempt(spawned), attempt(serial)])
    assert found.parallel == pytest.approx((65 / 55 + 1) / 2)
    assert found.acceleration == pytest.approx((1 - 55 / 65) / 2)
    assert (found.dp, found.abn, found.ppd) == (35 / 75, 3 / 2, 1 / 2)
    assert (found.tps, found.p_tps) == (75 / 7, 35 / 3.5)
    assert found.tokens_per_thread == (65 + 6 * 2 + 10 + 2) / 5
    assert found.ms_per_span_token == pytest.approx(7000 / 65)
    lone = systems([attempt(serial)])
    assert (lone.abn, lone.p_tps, lone.parallel, lone.acceleration) == (None, None, 1, 0)
    with pytest.raises(ValueError, match="can be scored"):
        systems([])


def test_the_gain_has_the_interval_of_paired_proportions() -> None:
    """By hand: (b - c) / (n + 2), and 1.96 sqrt(b + c + 1 - (b - c)^2 / (n + 2)) / (n + 2)."""
    test = mcnemar([True] * 5 + [False] * 55, [False] * 60)
    low, high = test.gain_interval
    reach = 1.959964 * (6 - 25 / 62) ** 0.5 / 62
    assert (low, high) == (pytest.approx(5 / 62 - reach), pytest.approx(5 / 62 + reach))
    low, high = mcnemar([True] * 60, [True] * 60).gain_interval
    assert low == -high and high == pytest.approx(
        1.959964 / 62
    )  # no difference was seen: it is not certain that there is none


def test_samples_of_a_problem_are_not_independent() -> None:
    """All samples of a problem alike: eight of each are worth one. Samples that have nothing in common: worth what they are."""
    alike = [attempt_of(str(i), i < 60) for i in range(100) for _ in range(8)]
    assert clustered_interval(alike) == pytest.approx(interval(60, 100), abs=2e-3)
    mixed = [attempt_of(str(i), (i + k) % 2 == 0) for i in range(100) for k in range(8)]
    assert clustered_interval(mixed) == pytest.approx(interval(400, 800))
    single = [attempt_of(str(i), i < 60) for i in range(100)]
    assert clustered_interval(single) == interval(60, 100)
    assert clustered_interval([attempt_of("a", True)] * 3) == interval(1, 1)


@pytest.mark.parametrize("n", [1, 3, 50])
def test_no_gain_reaches_beyond_what_two_rates_can_differ_by(n: int) -> None:
    won = mcnemar([True] * n, [False] * n)
    lost = mcnemar([False] * n, [True] * n)
    assert won.gain_interval[1] == 1 and -1 < won.gain_interval[0] < 1
    assert lost.gain_interval == (-1, -won.gain_interval[0])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40), st.sampled_from([1.0, 1.96, 5.0]))
def test_a_gain_lies_in_its_interval(pairs: list[tuple[bool, bool]], z: float) -> None:
    test = mcnemar(*zip(*pairs))
    low, high = test.gain_bounds(z)
    assert -1 <= low <= high <= 1
    assert low <= test.gain * test.n / (test.n + 2) <= high

"""The runtime over a scripted engine: what a trace holds, whatever the timing, the limits and the model's words."""

import asyncio
import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from fakes import BLOCK, CONTROL, FREE, PROMPT, FakeEngine, GoesOn, join, run, says, spawn, timeless

from apr.errors import EngineError, EngineLostError
from apr.protocols.spawn_join import SpawnJoin
from apr.seeds import derive_seed
from apr.threads.engine import Request
from apr.threads.limits import Limits
from apr.threads.protocol import Continue, Decision, Finish
from apr.threads.session import Sampling, attempt
from apr.threads.trace import (
    Injected,
    Origin,
    Reference,
    StopReason,
    Strand,
    StrandId,
    StrandKey,
    Thread,
    Trace,
    closure_ids,
)

C = CONTROL


def stops(trace: Trace) -> dict[str, StopReason]:
    return {thread.id: thread.stop for thread in trace.threads}


def names(trace: Trace) -> list[str]:
    return [str(strand.id) for strand in trace.strands]


def limits(**changes: Any) -> Limits:
    return FREE.model_copy(update=changes)


TWO = says(r_0=spawn((30,), (31, 32), search=(40,)), r0_0=join(50), r1_0=join(51, 52, search=(41,)), r_1=join(60))


def test_a_spawn_and_its_join() -> None:
    engine = FakeEngine(TWO)
    trace = run(engine)
    assert stops(trace) == dict.fromkeys(("r", "r.0", "r.1"), StopReason.ANSWERED)
    assert [thread.message for thread in trace.threads] == [(60,), (50,), (51, 52)]
    assert names(trace) == ["r#0", "r.0#0", "r.1#0", "r#1"]
    # What the engine was sent is what the trace says was in context.
    assert engine.request("r#0").ids == PROMPT
    assert engine.request("r.1#0").ids == (C.msg, 31, 32)
    assert engine.request("r#1").ids == (*PROMPT, 40, C.ret, 50, C.ret, 51, 52)
    last = trace.strands[-1]
    assert last.sees == (Reference(StrandId("r", 0), 4),)
    assert last.after == (StrandId("r", 0), StrandId("r.0", 0), StrandId("r.1", 0))
    assert last.position == 4
    assert trace.strands[1].after == trace.strands[2].after == (StrandId("r", 0),)
    assert trace.costs is not None and trace.costs.work == 3 + 8 + (2 + 3) + (3 + 5) + (5 + 3)
    assert trace.limits == {"context": 1_000_000, "depth": 100}
    assert (trace.step, trace.sample, trace.outcome, trace.answer) == (3, 5, None, None)


def test_logprobs_versions_and_times_come_from_the_engine() -> None:
    trace = run(TWO)
    for strand in trace.strands:
        assert strand.logprobs is not None and len(strand.logprobs) == len(strand.sampled)
        assert [(span.version, span.start, span.end) for span in strand.versions] == [(7, 0, len(strand.sampled))]
        assert 0 <= strand.started <= strand.ended


def test_keys_and_seeds_derive_from_the_place_in_the_tree() -> None:
    engine = FakeEngine(TWO)
    run(engine, problem={"id": "p9"}, seed=11)
    keys = [StrandKey(3, "p9", 5, *place) for place in (("r", 0), ("r.0", 0), ("r.1", 0), ("r", 1))]
    assert [request.key for request in engine.requests] == keys
    for request in engine.requests:
        assert request.seed == derive_seed(11, "strand", *request.key)
        assert request.stop_ids == (C.spawn_end, C.eos)
    assert len({request.seed for request in engine.requests}) == 4
    assert engine.request("r.0#0").priority < engine.request("r#0").priority  # children first


@pytest.mark.parametrize(
    ("slow", "earlier", "later"),
    [("r.0", "r.1#0", "r.0#0"), ("r.1", "r.0#1", "r.1#0"), ("r.0.0", "r.0.1#0", "r.0.0#0")],
)
def test_the_order_in_which_children_finish_changes_nothing(slow: str, earlier: str, later: str) -> None:
    script = says(
        r_0=spawn((30,), (31,)), r0_0=spawn((32,), (33,)), r00_0=join(50), r01_0=join(search=(41,)), r0_1=join(51),
        r1_0=join(52), r_1=join(60),
    )  # fmt: skip
    engine = FakeEngine(script, ticks=lambda request: 50 if request.key.thread == slow else 0)
    trace, plain = run(engine, limits(work=200, threads=9)), run(script, limits(work=200, threads=9))
    assert engine.ended.index(earlier) < engine.ended.index(later)
    assert trace.threads == plain.threads
    assert timeless(trace.strands) == timeless(plain.strands)
    assert names(trace) == ["r#0", "r.0#0", "r.0.0#0", "r.0.1#0", "r.0#1", "r.1#0", "r#1"]


def test_threads_nest_three_deep_and_paths_count_spawns() -> None:
    trace = run(
        says(
            r_0=spawn((30,)), r0_0=spawn((31,)), r00_0=spawn((32,), (33,)), r000_0=join(50), r001_0=join(51),
            r00_1=join(52), r0_1=join(53), r_1=spawn((34,), (35,)), r1_0=join(), r2_0=join(54), r_2=join(60),
        ),
        limits(depth=3),
    )  # fmt: skip
    assert [(t.id, t.parent, t.depth) for t in trace.threads] == [
        ("r", None, 0), ("r.0", "r", 1), ("r.0.0", "r.0", 2), ("r.0.0.0", "r.0.0", 3), ("r.0.0.1", "r.0.0", 3),
        ("r.1", "r", 1), ("r.2", "r", 1),
    ]  # fmt: skip
    assert trace.root.strands == (StrandId("r", 0), StrandId("r", 1), StrandId("r", 2))
    assert stops(trace)["r.1"] is StopReason.NO_ANSWER
    seen: set[StrandId] = set()
    for strand in trace.strands:  # topological
        assert set(strand.after) <= seen
        seen.add(strand.id)


def test_two_children_with_the_same_message_are_two() -> None:
    trace = run(says(r_0=spawn((30,), (30,)), r0_0=join(50), r1_0=join(50), r_1=join(60)))
    assert stops(trace) == dict.fromkeys(("r", "r.0", "r.1"), StopReason.ANSWERED)
    assert trace.strands[-1].injected_ids == (C.ret, 50, C.ret, 50)
    assert trace.strands[1].injected == trace.strands[2].injected


# --- what a model may get wrong


def test_a_malformed_root_fails_the_trace() -> None:
    trace = run(says(r_0=(40, C.eos)))
    assert stops(trace) == {"r": StopReason.MALFORMED}
    assert trace.root.message == () and trace.strands[0].sampled == (40, C.eos)


def test_a_malformed_child_returns_the_empty_message_and_its_siblings_go_on() -> None:
    trace = run(says(r_0=spawn((30,), (31,)), r0_0=(C.spawn, C.spawn_end), r1_0=join(51), r_1=join(60)))
    assert stops(trace) == {"r": StopReason.ANSWERED, "r.0": StopReason.MALFORMED, "r.1": StopReason.ANSWERED}
    assert trace.strands[-1].injected_ids == (C.ret, C.ret, 51)
    assert trace.strands[1].sampled == (C.spawn, C.spawn_end)  # its tokens are kept: they train


def test_a_model_that_joins_more_often_than_python_nests_calls() -> None:
    def script(request: Request) -> tuple[int, ...]:
        return spawn((30,)) if request.key.thread == "r" and request.key.number < 400 else join(50)

    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 300)  # a lower ceiling tells as much, sooner
    try:
        trace = run(script)
    finally:
        sys.setrecursionlimit(before)
    assert trace.root.stop is StopReason.ANSWERED and len(trace.threads) == 401


# --- limits, in documented order


LONG = (40,) * 1000


@pytest.mark.parametrize(
    ("changes", "sampled", "reason"),
    [
        ({"context": 20}, 17, StopReason.CONTEXT),
        ({"work": 20}, 17, StopReason.WORK),
        ({"span": 20}, 20, StopReason.SPAN),
        ({"context": 20, "work": 20}, 17, StopReason.CONTEXT),  # equal room: the first in order
        ({"work": 20, "span": 17}, 17, StopReason.WORK),
        ({"context": 21, "work": 20, "span": 20}, 17, StopReason.WORK),
    ],
)
def test_a_limit_cuts_the_root_short(changes: dict[str, int], sampled: int, reason: StopReason) -> None:
    trace = run(says(r_0=LONG), limits(**changes))
    assert stops(trace) == {"r": reason}
    assert len(trace.strands[0].sampled) == sampled
    assert trace.root.message == ()


def test_the_engines_window_bounds_the_context() -> None:
    engine = FakeEngine(says(r_0=LONG))
    engine.max_context = 12
    trace = run(engine)
    assert stops(trace) == {"r": StopReason.CONTEXT}
    assert len(trace.strands[0].ids) == 12


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"context": 10}, StopReason.CONTEXT),
        ({"work": 10}, StopReason.WORK),
        ({"context": 10, "work": 5}, StopReason.CONTEXT),  # neither has room, work by more: still in order
    ],
)
def test_no_room_for_the_prompt_is_a_result(changes: dict[str, int], reason: StopReason) -> None:
    engine = FakeEngine(TWO)
    trace = run(engine, limits(**changes), prompt=range(10, 20))
    assert trace.threads == (Thread("r", None, 0, (), reason),)
    assert trace.strands == () and engine.requests == []
    assert trace.costs is not None and trace.costs.work == 0


def test_a_child_cut_short_keeps_its_reason_and_returns_nothing() -> None:
    trace = run(says(r_0=spawn((30,), (31,)), r0_0=LONG, r1_0=join(51), r_1=join(60)), limits(context=16))
    assert stops(trace) == {"r": StopReason.ANSWERED, "r.0": StopReason.CONTEXT, "r.1": StopReason.ANSWERED}
    assert len(trace.strands[1].ids) == 16
    assert trace.strands[-1].injected_ids == (C.ret, C.ret, 51)


def test_a_child_without_room_never_starts() -> None:
    script = says(r_0=spawn(tuple(range(30, 40)), (31,)), r0_0=join(50), r1_0=join(51), r_1=join(60))
    # The root takes 3 + 15. Of 20 left, r.0 may use 10, and its message takes 11; of 24, it may use 12.
    trace = run(script, limits(work=38))
    assert stops(trace) == {"r": StopReason.ANSWERED, "r.0": StopReason.WORK, "r.1": StopReason.ANSWERED}
    assert trace.threads[1].strands == ()
    assert trace.strands[-1].after == (StrandId("r", 0), StrandId("r.1", 0))
    assert len(run(script, limits(work=42)).threads[1].strands) == 1


def test_a_parent_without_room_after_the_join_stops_there() -> None:
    trace = run(says(r_0=spawn((30,)), r0_0=join(*range(50, 60))), limits(context=14))
    assert stops(trace) == {"r": StopReason.CONTEXT, "r.0": StopReason.ANSWERED}
    assert names(trace) == ["r#0", "r.0#0"]


def test_span_counts_the_longest_chain_and_not_all_sampled_tokens() -> None:
    script = says(r_0=spawn((30,), (31,)), r0_0=join(50), r1_0=join(51, search=(40,) * 9), r_1=LONG)
    trace = run(script, limits(span=30))
    # 6 sampled by the root, 12 by the longer child: 12 of 30 are left after the join.
    assert len(trace.strands[-1].sampled) == 30 - 6 - 12
    assert stops(trace)["r"] is StopReason.SPAN
    assert trace.costs is not None and trace.costs.span_sampled == 30


def test_work_is_split_in_spawn_order_and_returns() -> None:
    engine = FakeEngine(TWO)
    run(engine, limits(work=100))
    assert engine.request("r#0").max_tokens == 100 - 3
    # 100 - 3 - 8 = 89: 45 for r.0 (2 injected), 44 for r.1 (3 injected).
    assert engine.request("r.0#0").max_tokens == 45 - 2
    assert engine.request("r.1#0").max_tokens == 44 - 3
    # r.0 used 2 + 3, r.1 used 3 + 5; the parent is injected 5.
    assert engine.request("r#1").max_tokens == 89 - 5 - 8 - 5


def test_threads_are_split_among_children_and_return() -> None:
    def script(request: Request) -> tuple[int, ...]:
        said = {"r#0": spawn((30,), (31,)), "r.0#0": spawn((32,)), "r.1#0": spawn((33,), (34,)), "r#1": spawn((35,))}
        return said.get(f"{request.key.thread}#{request.key.number}", join(50))

    # Five threads: the root and its two children leave two, one for each child: r.1 wants two more.
    trace = run(script, limits(threads=5))
    assert stops(trace)["r.1"] is StopReason.THREADS
    # r.1 returned the one that it could not use, so the root may spawn once more.
    assert stops(trace)["r.2"] is StopReason.ANSWERED
    assert trace.root.stop is StopReason.ANSWERED and len(trace.threads) == 5
    assert stops(run(script, limits(threads=4)))["r"] is StopReason.THREADS


def test_width_bounds_threads_alive_at_once() -> None:
    def script(request: Request) -> tuple[int, ...]:
        said = {"r#0": spawn((30,), (31,)), "r#1": spawn((32,), (33,)), "r.1#0": spawn((34,))}
        return said.get(f"{request.key.thread}#{request.key.number}", join(50))

    trace = run(script, limits(width=3))
    assert stops(trace) == {
        "r": StopReason.ANSWERED, "r.0": StopReason.ANSWERED, "r.1": StopReason.WIDTH, "r.2": StopReason.ANSWERED,
        "r.3": StopReason.ANSWERED,
    }  # fmt: skip
    assert trace.costs is not None and trace.costs.width == 3
    assert stops(run(script, limits(width=2))) == {"r": StopReason.WIDTH}


def test_depth_refuses() -> None:
    script = says(r_0=spawn((30,)), r0_0=spawn((31,)), r_1=join(60))
    trace = run(script, limits(depth=1))
    assert stops(trace) == {"r": StopReason.ANSWERED, "r.0": StopReason.DEPTH}
    assert trace.strands[1].sampled == spawn((31,))
    assert stops(run(script, limits(depth=0))) == {"r": StopReason.DEPTH}
    assert stops(run(script, limits(depth=0, threads=1, width=1))) == {"r": StopReason.DEPTH}
    assert stops(run(script, limits(depth=1, threads=1, width=1))) == {"r": StopReason.THREADS}
    assert stops(run(script, limits(depth=1, width=1))) == {"r": StopReason.WIDTH}


def test_seconds_abort_what_is_in_flight() -> None:
    trace = run(says(r_0=spawn((30,), (31,)), r0_0=join(50), r1_0=BLOCK), limits(seconds=0.1))
    assert stops(trace) == {"r": StopReason.SECONDS, "r.0": StopReason.ANSWERED, "r.1": StopReason.SECONDS}
    assert trace.costs is not None and trace.costs.seconds >= 0.1
    assert names(trace) == ["r#0", "r.0#0", "r.1#0"]


def test_what_a_protocol_allows_itself_is_no_limit_of_the_users() -> None:
    class Terse(SpawnJoin):
        def start(self, prompt: Sequence[int]) -> Continue:
            return Continue((Injected(Origin.PROMPT, tuple(prompt)),), (), 0, self._stop_ids, max_tokens=4)

    trace = run(says(r_0=LONG), protocol=Terse(C))
    assert len(trace.strands[0].sampled) == 4
    assert stops(trace) == {"r": StopReason.MALFORMED}


# --- engines that fail


def test_a_lost_strand_is_sampled_again_under_its_key_and_seed() -> None:
    left = {"r.1": 2, "r": 1}

    def script(request: Request) -> Any:
        if left.get(request.key.thread, 0):
            left[request.key.thread] -= 1
            return EngineLostError("gone")
        return TWO(request)

    engine = FakeEngine(script)
    trace = run(engine)
    assert trace.threads == run(TWO).threads
    again = [request for request in engine.requests if request.key.thread == "r.1"]
    assert len(again) == 3 and len(set(again)) == 1
    assert trace.costs is not None and trace.costs.work == 32  # lost attempts are in no cost


def test_an_engine_lost_three_times_is_a_typed_stop() -> None:
    def script(request: Request) -> Any:
        return EngineLostError("gone") if request.key.thread == "r.0" else TWO(request)

    engine = FakeEngine(script)
    trace = run(engine)
    assert stops(trace) == {"r": StopReason.ANSWERED, "r.0": StopReason.ENGINE_LOST, "r.1": StopReason.ANSWERED}
    assert sum(request.key.thread == "r.0" for request in engine.requests) == 3
    assert trace.threads[1].strands == ()
    assert stops(run(lambda request: EngineLostError("gone"))) == {"r": StopReason.ENGINE_LOST}


def test_another_error_of_the_engine_propagates_and_cancels_the_siblings() -> None:
    script = says(
        r_0=spawn((30,), (31,), (32,)), r0_0=BLOCK, r1_0=EngineError("refused"), r2_0=spawn((33,), (34,)),
        r20_0=BLOCK, r21_0=BLOCK,
    )  # fmt: skip
    engine = FakeEngine(script, ticks=lambda request: 20 if request.key.thread == "r.1" else 0)
    with pytest.raises(EngineError, match="refused"):
        run(engine)  # which fails if a task outlives the attempt
    assert sorted(engine.cancelled) == ["r.0#0", "r.2.0#0", "r.2.1#0"]


@pytest.mark.parametrize("seconds", [None, 60.0])
def test_an_attempt_that_is_cancelled_leaves_nothing_running(seconds: float | None) -> None:
    engine: Any = FakeEngine(says(r_0=spawn((30,), (31,)), r0_0=BLOCK, r1_0=BLOCK))

    async def body() -> None:
        sampling = Sampling(1.0, 0)
        task = asyncio.create_task(
            attempt({"id": "p"}, PROMPT, engine=engine, protocol=SpawnJoin(C), limits=limits(seconds=seconds),
                    sampling=sampling)
        )  # fmt: skip
        while len(engine.requests) < 3:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(body())
    assert sorted(engine.cancelled) == ["r.0#0", "r.1#0"]


# --- other protocols over the same runtime


GOING_ON = says(
    r_0=spawn((30,), search=(40,)), r_1=spawn((31,), search=(41,)), r_2=(42, 43, C.ret), r0_0=join(50),
    r1_0=join(51, search=(44,) * 9), r_3=join(60),
)  # fmt: skip


@pytest.mark.parametrize("slow", ["", "r", "r.0", "r.1"])
def test_a_parent_that_goes_on(slow: str) -> None:
    engine = FakeEngine(GOING_ON, ticks=lambda request: 30 if request.key.thread == slow else 0)
    trace = run(engine, limits(work=200, threads=9), GoesOn(C))
    assert stops(trace) == dict.fromkeys(("r", "r.0", "r.1"), StopReason.ANSWERED)
    assert names(trace) == ["r#0", "r#1", "r#2", "r.0#0", "r.1#0", "r#3"]
    by_name = {str(strand.id): strand for strand in trace.strands}
    assert by_name["r#1"].after == (StrandId("r", 0),)
    assert by_name["r.1#0"].after == (StrandId("r", 1),)
    assert by_name["r#3"].after == (StrandId("r", 2), StrandId("r.0", 0), StrandId("r.1", 0))
    assert engine.request("r#3").ids == (
        *PROMPT, 40, C.spawn, C.msg, 30, C.spawn_end, 41, C.spawn, C.msg, 31, C.spawn_end, 42, 43, C.ret, 50, 51,
    )  # fmt: skip
    # The children ran beside the parent: 5 + 5 + 12 (r.1) + 3, and not 5 + 5 + 3 + ...
    assert trace.costs is not None
    assert trace.costs.span_sampled == 5 + 5 + 12 + 3
    # 200 - 3 - 5 = 192, half for r.0 and half for the parent, which is injected nothing.
    assert engine.request("r.0#0").max_tokens == 96 - 2
    assert engine.request("r#1").max_tokens == 96
    assert engine.request("r.1#0").max_tokens == 46 - 2
    # All that is left comes back: 200 less the work so far and the 2 injected now.
    assert engine.request("r#3").max_tokens == 200 - (8 + 5 + 3 + 5 + 14) - 2


def test_a_parent_that_goes_on_may_fail_while_its_children_run() -> None:
    script = says(r_0=spawn((30,)), r_1=(41, C.eos), r0_0=join(50))
    trace = run(FakeEngine(script, ticks=lambda request: 9 if request.key.thread == "r.0" else 0), FREE, GoesOn(C))
    assert stops(trace) == {"r": StopReason.MALFORMED, "r.0": StopReason.ANSWERED}
    script = says(r_0=spawn((30,)), r_1=EngineError("refused"), r0_0=BLOCK)
    engine = FakeEngine(script, ticks=lambda request: request.key.number)  # the child starts before its parent fails
    with pytest.raises(EngineError, match="refused"):
        run(engine, FREE, GoesOn(C))
    assert engine.cancelled == ["r.0#0"]


class Forgets(GoesOn):
    """The parent finishes as it spawns, and awaits nobody."""

    name = "forgets"

    def ended(self, strand: Strand, strands: Mapping[StrandId, Strand]) -> Decision:
        decision = super().ended(strand, strands)
        return Finish((60,)) if str(strand.id) == "r#1" else decision


def test_children_that_nobody_awaits_are_still_in_the_trace() -> None:
    script = says(r_0=spawn((30,), (31,)), r_1=(42, C.ret), r0_0=join(50, search=(44,) * 9), r1_0=join(51))
    engine = FakeEngine(script, ticks=lambda request: 9 if request.key.thread == "r.0" else 0)
    trace = run(engine, limits(work=100), Forgets(C))
    assert stops(trace) == dict.fromkeys(("r", "r.0", "r.1"), StopReason.ANSWERED)
    assert names(trace) == ["r#0", "r#1", "r.0#0", "r.1#0"]
    assert trace.root.message == (60,)
    assert trace.costs is not None
    assert trace.costs.span_sampled == 6 + 12 and trace.costs.work == 9 + 2 + 14 + 5


# --- engines that keep what strands have computed


def test_an_engine_is_told_when_a_trace_has_ended() -> None:
    engine = FakeEngine(says(r_0=spawn((30,)), r0_0=join(50), r_1=join(60)))
    run(engine, FREE)
    assert engine.released == [engine.request("r#0").key]
    engine = FakeEngine(says(r_0=EngineError("refused")))
    with pytest.raises(EngineError, match="refused"):
        run(engine, FREE)
    assert engine.released == [engine.request("r#0").key]  # however it ended


def test_an_engine_of_dags_is_told_who_sees_whom_and_others_are_not() -> None:
    script = says(r_0=spawn((30,), search=(40,)), r0_0=join(50), r_1=join(60))
    chains = FakeEngine(script)
    run(chains, FREE)
    assert {request.block for request in chains.requests} == {None}
    engine = FakeEngine(script)
    engine.views = "dag"
    trace = run(engine, FREE)
    for strand in trace.strands:
        request = engine.request(str(strand.id))
        block = request.block
        assert (
            block is not None
            and block.ids == request.ids == closure_ids(trace.by_id(), strand.sees) + strand.injected_ids
        )
        assert block.segments[-1].strand == strand.id
        assert block.positions == tuple(range(len(block.ids))) and request.position == len(block.ids)


def test_a_trace_stops_where_its_positions_end() -> None:
    """The context has room for more: a limit on positions binds where it is the smaller one."""
    trace = run(FakeEngine(says(r_0=(40,) * 50)), limits(reach=20))
    assert (trace.root.stop, trace.strands[0].end) == (StopReason.REACH, 20)
    engine = FakeEngine(says(r_0=(40,) * 50))
    engine.views, engine.max_reach = "dag", 12
    trace = run(engine, limits())
    assert (trace.root.stop, trace.strands[0].end) == (StopReason.REACH, 12)

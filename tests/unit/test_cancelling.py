"""Parents that go on without some children: with the first message, or at their own end. What is recorded of the others is
counted in sampled tokens, and depends on no clock."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from fakes import CONTROL, FREE, FakeEngine, Script, join, run, says, spawn, timeless

from apr.errors import EngineLostError
from apr.protocols import protocol_by_name
from apr.protocols.spawn_join import SpawnJoin
from apr.scripts.demonstration import demonstration
from apr.threads.branches import shortened
from apr.threads.costs import costs, spans
from apr.threads.engine import Request
from apr.threads.limits import Limits
from apr.threads.protocol import Spawn
from apr.threads.trace import EngineStop, StopReason, Strand, StrandId, Trace, VersionSpan
from envs.countdown.compact import CompactSpeller

FIRST = SpawnJoin(CONTROL, first=True)
SPELLER = CompactSpeller()
IDS, TEXT = SPELLER.vocabulary.encode, SPELLER.vocabulary.text
ASYNC = protocol_by_name("asyncthink", SPELLER)


def told(trace: Trace) -> dict[str, tuple[StopReason, tuple[int, ...], int]]:
    """Of each thread: why it stopped, its message, and how many tokens it sampled."""
    sampled = {thread.id: 0 for thread in trace.threads}
    for strand in trace.strands:
        sampled[strand.id.thread] += len(strand.sampled)
    return {thread.id: (thread.stop, thread.message, sampled[thread.id]) for thread in trace.threads}


def test_the_first_message_ends_the_wait() -> None:
    """Four children of 13, 8, 5 and 6 tokens; the third says it found nothing, and the fourth is the first that found."""
    script = says(
        r_0=spawn((30,), (31,), (32,), (33,)), r0_0=join(50, search=range(20, 30)), r1_0=join(51, search=range(20, 25)),
        r2_0=join(search=range(20, 23)), r3_0=join(52, search=range(20, 23)), r_1=join(60),
    )  # fmt: skip
    trace = run(script, protocol=FIRST)
    assert told(trace) == {
        "r": (StopReason.ANSWERED, (60,), 10 + 3),
        "r.0": (StopReason.CANCELLED, (), 6),
        "r.1": (StopReason.CANCELLED, (), 6),
        "r.2": (StopReason.NO_ANSWER, (), 5),
        "r.3": (StopReason.ANSWERED, (52,), 6),
    }
    last = trace.strands[-1]
    assert last.after == (StrandId("r", 0), StrandId("r.3", 0))
    assert last.injected_ids == (CONTROL.ret, CONTROL.ret, CONTROL.ret, CONTROL.ret, 52)
    assert {strand.stop for strand in trace.strands if strand.id.thread in ("r.0", "r.1")} == {EngineStop.ABORT}
    assert trace.costs is not None and trace.costs.span_sampled == 10 + 6 + 3


def test_ties_go_to_the_child_that_was_spawned_first() -> None:
    script = says(r_0=spawn((30,), (31,)), r0_0=join(50, search=(20,)), r1_0=join(51, search=(20,)), r_1=join(60))
    for slow in ("r.0", "r.1"):
        engine = FakeEngine(script, ticks=lambda request, slow=slow: 9 * (request.key.thread == slow))  # type: ignore[misc]
        trace = run(engine, protocol=FIRST)
        assert told(trace)["r.0"] == (StopReason.ANSWERED, (50,), 4)
        assert told(trace)["r.1"] == (StopReason.CANCELLED, (), 4)


def test_without_a_message_all_are_waited_for() -> None:
    script = says(r_0=spawn((30,), (31,)), r0_0=join(), r1_0=(20, CONTROL.eos), r_1=join(60))
    trace = run(script, protocol=FIRST)
    assert [thread.stop for thread in trace.threads[1:]] == [StopReason.NO_ANSWER, StopReason.MALFORMED]
    assert len(trace.strands[-1].after) == 3


def test_a_cancelled_child_counts_in_work_and_in_no_span() -> None:
    """The first child is told a long message, and is cancelled: the longest chain is that of the second."""
    script = says(r_0=spawn(range(20, 80), (31,)), r0_0=join(50, search=range(20, 40)), r1_0=join(51), r_1=join(60))
    trace = run(script, protocol=FIRST)
    found = trace.costs
    assert found is not None
    by_id = spans(trace.strands)
    assert found.span == by_id[StrandId("r", 1)] < by_id[StrandId("r.0", 0)]
    assert found.work_sampled == sum(len(strand.sampled) for strand in trace.strands)


def babble(seed: int) -> Script:
    """Threads of random length that spawn, report, find nothing or babble; the same for the same request."""

    def script(request: Request) -> Sequence[int]:
        rng = random.Random(f"{seed} {request.key.thread} {request.key.number}")
        search = [rng.randrange(20, 90) for _ in range(rng.randrange(12))]
        if request.key.number < 2 and rng.random() < (0.9 if request.key.thread == "r" else 0.3):
            return spawn(*([rng.randrange(20, 90)] for _ in range(rng.randint(1, 4))), search=search)
        found = [7 + 13] * rng.randrange(3)
        return join(*found, search=search) if rng.random() < 0.9 else (*search, CONTROL.eos)

    return script


BOUNDS: list[dict[str, Any]] = [
    {}, {"work": 90}, {"threads": 9}, {"width": 6}, {"depth": 1}, {"span": 40}, {"context": 40}, {"work": 150, "threads": 12},
]  # fmt: skip


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_a_trace_depends_neither_on_timing_nor_on_how_an_engine_stops(bounds: dict[str, Any]) -> None:
    """The same words under any delays, by engines that stop where they are told and by one that never does."""
    limits = Limits(**{"context": 1_000, "threads": None, "depth": 3, **bounds})
    cancelled = 0
    for seed in range(60):
        found = []
        for timing in range(4):
            rng = random.Random(timing)
            engine = FakeEngine(babble(seed), ticks=lambda request, rng=rng: rng.randrange(40), obeys=timing != 3)  # type: ignore[misc]
            trace = run(engine, limits, FIRST)
            assert costs(trace.threads, trace.strands).span_sampled <= sum(len(s.sampled) for s in trace.strands)
            found.append((trace.threads, timeless(trace.strands)))
        assert all(one == found[0] for one in found), seed
        cancelled += any(thread.stop is StopReason.CANCELLED for thread in found[0][0])
    assert cancelled > 5


def test_a_shortened_strand_keeps_what_belongs_to_its_tokens() -> None:
    versions = (VersionSpan(1, 0, 2), VersionSpan(2, 2, 5))
    strand = Strand(
        StrandId("r", 0), (), (), 0, (), (1, 2, 3, 4, 5), EngineStop.STOP, (0.1, 0.2, 0.3, 0.4, 0.5), versions
    )
    assert shortened(strand, 5) is strand
    cut = shortened(strand, 3)
    assert (cut.sampled, cut.logprobs, cut.stop) == ((1, 2, 3), (0.1, 0.2, 0.3), EngineStop.ABORT)
    assert cut.versions == (VersionSpan(1, 0, 2), VersionSpan(2, 2, 3))
    assert shortened(strand, 2).versions == (VersionSpan(1, 0, 2),)


# AsyncThink.


def organized(**says: str) -> Trace:
    """A trace in which `r3` is what the organizer's fourth strand says, and `w1` what the first worker says."""

    def script(request: Request) -> Sequence[int]:
        thread, number = request.key.thread, request.key.number
        return IDS(says[f"r{number}" if thread == "r" else f"w{int(thread[2:]) + 1}"].split())

    return run(script, FREE, ASYNC, (1,), {"id": "p"})


def test_the_organizer_goes_on_and_joins_in_any_order() -> None:
    trace = organized(
        r0="<FORK> 1 7 </FORK>", r1="5 <FORK> 2 8 9 </FORK>", r2="6 <JOIN>", r3="2", r4="<JOIN>", r5="1", r6="<ANSWER> 3 <eos>",
        w1="4 4 <RETURN> 7 <eos>", w2="<RETURN> <eos>",
    )  # fmt: skip
    assert [str(strand.id) for strand in trace.strands] == [
        "r#0", "r#1", "r#2", "r#3", "r.1#0", "r#4", "r#5", "r.0#0", "r#6",
    ]  # fmt: skip
    by_id = {str(strand.id): strand for strand in trace.strands}
    assert TEXT(by_id["r.1#0"].injected_ids) == "<QUERY> 8 9"
    assert TEXT(by_id["r#4"].injected_ids) == "<RET> </RET>" and TEXT(by_id["r#6"].injected_ids) == "<RET> 7 </RET>"
    assert by_id["r#1"].after == (StrandId("r", 0),) and by_id["r#4"].after == (StrandId("r", 3), StrandId("r.1", 0))
    assert ASYNC.answer(trace.threads) == IDS(["3"])


def test_open_workers_are_cancelled_at_the_answer() -> None:
    trace = organized(
        r0="<FORK> 1 7 </FORK>", r1="<FORK> 2 8 </FORK>", r2="<ANSWER> 3 <eos>",
        w1="4 4 4 4 4 4 4 4 4 4 4 4 <RETURN> 7 <eos>", w2="<RETURN> <eos>",
    )  # fmt: skip
    assert told(trace)["r.0"] == (StopReason.CANCELLED, (), 4 + 3)  # all that follows its fork
    assert told(trace)["r.1"] == (StopReason.NO_ANSWER, (), 2)  # it had ended
    assert trace.costs is not None and trace.costs.span_sampled == 4 + 4 + 3
    sampled = [strand.sampled for strand in trace.strands]
    again = demonstration((1,), sampled, ASYNC, {"id": "p"}, True, SPELLER.answer)
    assert again.threads == trace.threads and again.strands == tuple(timeless(trace.strands))


def test_a_failed_worker_returns_the_empty_result() -> None:
    trace = organized(
        r0="<FORK> 3 7 </FORK>", r1="<JOIN>", r2="3", r3="<ANSWER> <eos>", w1="<FORK> 1 7 </FORK>",
    )  # fmt: skip
    assert told(trace)["r.0"][0] is StopReason.MALFORMED and trace.root.stop is StopReason.NO_ANSWER
    assert TEXT(trace.strands[-1].injected_ids) == "<RET> </RET>"


@pytest.mark.parametrize(
    "said",
    [
        {"r0": "<FORK> 7 </FORK>"}, {"r0": "<FORK> + 7 </FORK>"}, {"r0": "<FORK> 1 </FORK>"}, {"r0": "1 7 </FORK>"},
        {"r0": "<FORK> 1 <QUERY> </FORK>"}, {"r0": "<FORK> 1 7 </FORK>", "r1": "<FORK> 1 8 </FORK>"},  # each number once
        {"r0": "<JOIN>", "r1": "1"}, {"r0": "<FORK> 1 7 </FORK>", "r1": "<JOIN>", "r2": "2"},
        {"r0": "<FORK> 1 7 </FORK>", "r1": "<JOIN>", "r2": "1", "r3": "<JOIN>", "r4": "1"},  # joined already
        {"r0": "<FORK> 1 7 </FORK>", "r1": "<JOIN>", "r2": "+"}, {"r0": "<join> 3 <eos>"}, {"r0": "3 <eos>"},
        {"r0": "<RETURN> 3 <eos>"}, {"r0": "<ANSWER> <ANSWER> <eos>"}, {"r0": "<RET> <JOIN>"},
    ],
    ids=lambda said: " | ".join(said.values()),
)  # fmt: skip
def test_what_parses_as_nothing_is_malformed(said: dict[str, str]) -> None:
    trace = organized(**said, w1="<RETURN> 7 <eos>", w2="<RETURN> 7 <eos>")
    assert trace.root.stop is StopReason.MALFORMED


def test_a_demonstration_cannot_leave_what_its_parent_waits_for() -> None:
    """A child whose strand has no end was cancelled, and nobody can have waited for it."""
    sampled = [IDS(one.split()) for one in ("<FORK> 1 7 </FORK>", "<JOIN>", "1", "3 3", "<ANSWER> <eos>")]
    with pytest.raises(ValueError, match="r.0 is cancelled"):
        demonstration((1,), sampled, ASYNC, {"id": "p"}, False, SPELLER.answer)
    with pytest.raises(ValueError, match="r is cancelled"):
        demonstration((1,), [IDS(["3"])], ASYNC, {"id": "p"}, False, SPELLER.answer)


def test_numbers_beyond_nine_are_workers_where_they_are_words() -> None:
    strand = Strand(StrandId("r", 0), (), (), 0, (), IDS(["<FORK>", "12", "7", "</FORK>"]), EngineStop.STOP)
    assert isinstance(ASYNC.ended(strand, {strand.id: strand}), Spawn)


def timed(script: Script, delays: dict[str, int], limits: Limits = FREE, obeys: bool = True) -> Trace:
    """Under the given turns of the event loop for each strand, as in `r.0#1`."""
    engine = FakeEngine(script, lambda request: delays.get(f"{request.key.thread}#{request.key.number}", 0), obeys)
    return run(engine, limits, FIRST)


def test_a_strand_that_would_start_where_the_winner_ends_is_no_part_of_its_thread() -> None:
    """r.0 wins at 4 tokens after the spawn. The child of r.1 ends just there, and r.1 goes on, or is stopped before it says
    anything, or has not come so far: a trace all the same, and the same one."""
    script = says(
        r_0=spawn((30,), (31,)), r0_0=join(50, search=range(20, 29)), r1_0=spawn((32,)), r10_0=join(51, search=range(20, 25)),
        r1_1=join(52, search=range(20, 30)), r_1=join(60),
    )  # fmt: skip
    limits = FREE.model_copy(update={"depth": 3})
    found = [
        timed(script, {"r.0#0": slow, "r.1#1": late}, limits, obeys)
        for slow in (0, 5, 30)
        for late in (0, 10, 60)
        for obeys in (True, False)
    ]
    assert told(found[0])["r.1"] == (StopReason.CANCELLED, (), 4)
    assert all((one.threads, timeless(one.strands)) == (found[0].threads, timeless(found[0].strands)) for one in found)


def test_what_is_sampled_again_after_a_loss_is_no_more_than_is_wanted() -> None:
    """r.0 wins with 4 tokens; the engine of r.1 dies after that, and it is asked for 4 tokens again."""
    lost: list[int] = []

    def script(request: Request) -> Any:
        if request.key.thread == "r.1" and not lost:
            lost.append(request.max_tokens)
            return EngineLostError("killed")
        return says(r_0=spawn((30,), (31,)), r0_0=join(50, search=(20,)), r1_0=range(20, 90), r_1=join(60))(request)

    engine = FakeEngine(script, lambda request: 20 * (request.key.thread == "r.1" and not lost))
    trace = run(engine, protocol=FIRST)
    assert told(trace)["r.1"] == (StopReason.CANCELLED, (), 4)
    assert [request.max_tokens for request in engine.requests if request.key.thread == "r.1"] == [lost[0], 4]

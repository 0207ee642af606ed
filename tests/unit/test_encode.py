"""Demonstrations: what `encode` writes is what the runtime makes of a model that says the same."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from fakes import FREE, FakeEngine, GoesOn, join, replays, run, spawn, timeless
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apr.protocols.serial import Serial
from apr.protocols.spawn_join import SpawnJoin
from apr.scripts.demonstration import demonstration as laid_out
from apr.seeds import SplitMix64
from apr.threads.protocol import ThreadProtocol
from apr.threads.trace import EngineStop, Origin, StopReason, Trace
from envs.countdown.compact import CompactSpeller
from envs.countdown.log import Node, SearchLog, Spawned
from envs.countdown.verify import verify
from envs.countdown.wording import encode, root_prompt
from solvers.exhaustive import reachable
from solvers.search import SearchOptions, search

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines may be busy

SPELLER = CompactSpeller()
CONTROL = SPELLER.vocabulary.control


@st.composite
def demonstrations(draw: st.DrawFn) -> tuple[SearchLog, Trace, ThreadProtocol]:
    numbers = tuple(sorted(draw(st.lists(st.integers(1, 40), min_size=2, max_size=4))))
    target = draw(st.sampled_from(sorted(reachable(numbers))) | st.integers(1, 400))
    beam = draw(st.integers(1, 5))
    spawn_depth = draw(st.integers(0, 2))
    options = SearchOptions(
        beam, draw(st.integers(1, 5)), draw(st.sampled_from([0.1, 0.5, 1.0])), spawn_depth=spawn_depth,
        order=draw(st.sampled_from(["canonical", "heuristic", "shuffled"])),
    )  # fmt: skip
    return demonstration(numbers, target, options, draw(st.integers(0, 99)))


def demonstration(
    numbers: tuple[int, ...], target: int, options: SearchOptions, seed: int = 0
) -> tuple[SearchLog, Trace, ThreadProtocol]:
    log = search(target, Node(numbers, ()), options, SplitMix64(seed))
    protocol: ThreadProtocol = SpawnJoin(CONTROL) if options.spawn_depth else Serial(CONTROL)
    return log, encode(log, SPELLER, protocol, {"id": "p", "numbers": numbers, "target": target}), protocol


@PATIENT
@given(demonstrations())
def test_a_replayed_demonstration_is_the_demonstration(made: tuple[SearchLog, Trace, ThreadProtocol]) -> None:
    log, trace, protocol = made
    prompt = root_prompt(SPELLER, trace.problem["numbers"], trace.problem["target"])
    replayed = run(replays(trace), FREE, protocol, prompt, trace.problem)
    assert replayed.threads == trace.threads
    assert timeless(replayed.strands) == timeless(trace.strands)
    assert trace.costs is not None and replayed.costs is not None
    assert replace(replayed.costs, seconds=0.0) == trace.costs


@PATIENT
@given(demonstrations())
def test_the_answer_is_the_solvers_and_verifies(made: tuple[SearchLog, Trace, ThreadProtocol]) -> None:
    log, trace, _ = made
    numbers, target = trace.problem["numbers"], trace.problem["target"]
    assert trace.outcome is not None
    if log.solution is None:
        assert (trace.answer, trace.correct, trace.outcome.stop) == (None, False, StopReason.NO_ANSWER)
    else:
        assert trace.answer == ", ".join(map(str, log.solution))
        assert verify(numbers, target, trace.answer).ok
        assert trace.correct and trace.outcome.stop is StopReason.ANSWERED


@PATIENT
@given(demonstrations())
def test_the_form_of_a_demonstration(made: tuple[SearchLog, Trace, ThreadProtocol]) -> None:
    log, trace, _ = made
    bos = [strand.id for strand in trace.strands for token in strand.ids if token == CONTROL.bos]
    assert bos == [trace.strands[0].id]  # once, in the prompt
    for strand in trace.strands:
        assert strand.stop is EngineStop.STOP and strand.logprobs is None
        assert strand.sampled[-1] in (CONTROL.eos, CONTROL.spawn_end)
        origins = {run.origin for run in strand.injected}
        assert origins <= ({Origin.PROMPT} if strand.id == ("r", 0) else {Origin.FORCED, Origin.MESSAGE})
    # Each injected message was sampled by another thread, and is found there.
    for strand in trace.strands:
        for index, injected in enumerate(strand.injected):
            if injected.origin is Origin.MESSAGE:
                returned = [t.message for t in trace.threads if t.parent == strand.id.thread]
                opened = [s.sampled for s in trace.strands if s.id in strand.after]
                assert injected.ids in returned or any(contains(sampled, injected.ids) for sampled in opened), index


def contains(whole: tuple[int, ...], part: tuple[int, ...]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole)))


@settings(PATIENT, max_examples=10)
@given(st.integers(0, 10_000))
def test_children_spawn_in_turn(seed: int) -> None:
    rng = random.Random(seed)
    numbers = tuple(sorted(rng.sample(range(2, 60), 4)))
    log, trace, protocol = demonstration(numbers, 7919, SearchOptions(3, 2, 1.0, spawn_depth=2), seed)
    assert trace.costs is not None
    # Depth first with a beam of 3, then of 2: three children, each with two of its own.
    assert [thread.depth for thread in trace.threads] == [0] + [1, 2, 2] * 3
    assert [thread.id for thread in trace.threads][:5] == ["r", "r.0", "r.0.0", "r.0.1", "r.1"]
    assert (trace.costs.threads, trace.costs.depth, trace.costs.width) == (10, 2, 10)
    assert trace.costs.parallelism_sampled > 2
    engine = FakeEngine(replays(trace), ticks=lambda request: rng.randrange(20))
    prompt = root_prompt(SPELLER, numbers, 7919)
    assert timeless(run(engine, FREE, protocol, prompt, trace.problem).strands) == timeless(trace.strands)


def test_the_serial_protocol_cannot_express_a_spawn() -> None:
    log = search(7919, Node((3, 7, 11), ()), SearchOptions(3, 3, spawn_depth=1), SplitMix64(0))
    assert any(isinstance(event, Spawned) for event in log.events)
    with pytest.raises(ValueError, match="serial opens no threads"):
        encode(log, SPELLER, Serial(CONTROL), {"id": "p"})


@pytest.mark.parametrize(
    ("sampled", "said"),
    [
        (((30, CONTROL.spawn_end),), "cannot express this demonstration: thread r is malformed"),
        (((30, 31),), "cannot express this demonstration: thread r is cancelled"),  # it has no end
        ((spawn((30,)),), "ends before thread r.0 does"),
        ((join(), (30,)), "ends before the last strand"),
    ],
)
def test_strands_that_the_protocol_lays_out_otherwise_are_refused(
    sampled: Sequence[tuple[int, ...]], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        laid_out((CONTROL.bos,), sampled, SpawnJoin(CONTROL), {"id": "p"}, True, SPELLER.answer)


def test_children_of_a_parent_that_goes_on_come_where_it_waits_for_them() -> None:
    strands = [
        spawn((30,), search=(40,)), spawn((31,), search=(41,)), (42, 43, CONTROL.ret), join(50), join(51), join(60)
    ]  # fmt: skip
    trace = laid_out((CONTROL.bos,), strands, GoesOn(CONTROL), {"id": "p"}, True, SPELLER.answer)
    assert [str(strand.id) for strand in trace.strands] == ["r#0", "r#1", "r#2", "r.0#0", "r.1#0", "r#3"]
    replayed = run(replays(trace), FREE, GoesOn(CONTROL), (CONTROL.bos,), trace.problem)
    assert replayed.threads == trace.threads
    assert timeless(replayed.strands) == timeless(trace.strands)


def test_demonstrations_nest_deeper_than_python_calls() -> None:
    down, up = [spawn((30,))] * 1500, [join(40)] * 1501
    trace = laid_out((CONTROL.bos,), [*down, *up], SpawnJoin(CONTROL), {"id": "p"}, True, SPELLER.answer)
    assert trace.costs is not None and (trace.costs.depth, len(trace.strands)) == (1500, 3001)


def test_what_one_looks_like() -> None:
    _, trace, _ = demonstration((3, 5, 8), 23, SearchOptions(9, 9, 1.0, spawn_depth=1))
    text = SPELLER.vocabulary.text
    root, *children, last = trace.strands
    assert text(root.ids[:7]) == "<bos> 23 : 3 5 8 ;"
    assert text(root.ids[7:9]) == "<spawn> <msg>" and text(root.ids[-1:]) == "</spawn>"
    assert len(children) == 9
    assert text(last.ids).startswith("<ret>") and text(last.ids).endswith("<eos>")
    assert trace.answer is not None and verify((3, 5, 8), 23, trace.answer).ok

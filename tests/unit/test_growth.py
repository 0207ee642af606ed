"""Large traces through the runtime: prompts are extended, never walked anew, and nothing recurses."""

import json
import pickle
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import pytest
from fakes import FREE, PROMPT, FakeEngine, join, run, says, spawn
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.report.timeline import trace_data
from apr.threads.codec import from_json, to_json
from apr.threads.costs import spans
from apr.threads.engine import Request
from apr.threads.layout import blocks
from apr.threads.limits import Limits
from apr.threads.protocol import Continue, Decision, Finish
from apr.threads.trace import (
    EngineStop,
    Injected,
    Origin,
    Reference,
    StopReason,
    Strand,
    StrandId,
    Thread,
    Trace,
    closure_ids,
)


def limits(**changes: Any) -> Limits:
    return FREE.model_copy(update=changes)


def test_a_prompt_is_the_closure_of_what_its_strand_sees() -> None:
    """However it was put together: an engine is sent the same ids."""
    engine = FakeEngine(says(
        r_0=spawn((30,), (31,), search=(40, 41)), r0_0=spawn((32,)), r00_0=join(50), r0_1=join(51), r1_0=join(52, 53),
        r_1=spawn((33,), search=(42,)), r2_0=join(), r_2=join(60),
    ))  # fmt: skip
    trace = run(engine)
    strands = trace.by_id()
    assert len(engine.requests) == len(strands)
    for request in engine.requests:
        strand = strands[StrandId(request.key.thread, request.key.number)]
        assert request.ids == closure_ids(strands, strand.sees) + strand.injected_ids
        assert strand.position == len(closure_ids(strands, strand.sees))


@settings(deadline=None, max_examples=60)
@given(st.randoms(use_true_random=True))
def test_prompts_of_threads_that_go_on_from_anywhere(rng: Random) -> None:
    """From any place of their latest strand, or of an older one, cut within what was injected or sampled."""
    engine = FakeEngine(lambda request: [rng.randrange(100, 200) for _ in range(rng.randint(0, 4))] + [7])
    trace = run(engine, protocol=GoingOn(rng))
    strands = trace.by_id()
    for request in engine.requests:
        strand = strands[StrandId(request.key.thread, request.key.number)]
        assert request.ids == closure_ids(strands, strand.sees) + strand.injected_ids


class GoingOn:
    """A thread of up to nine strands, each of which sees a part of one or two of those before it."""

    name = "going_on"

    def __init__(self, rng: Random) -> None:
        self.rng = rng

    def start(self, prompt: Sequence[int]) -> Continue:
        return Continue((Injected(Origin.PROMPT, tuple(prompt)),), (), 0, (7,))

    def ended(self, strand: Strand, strands: Mapping[StrandId, Strand]) -> Decision:
        if len(strands) > self.rng.randint(2, 9):
            return Finish((1,))
        others = self.rng.sample(sorted(strands), self.rng.choice([0, 0, 0, 1, min(2, len(strands))]))
        sees = [Reference(id, self.rng.randint(0, len(strands[id].ids))) for id in others or [strand.id]]
        return Continue((Injected(Origin.FORCED, (5,) * self.rng.randint(0, 2)),), tuple(sees), 0, (7,))

    def joined(self, last: Strand, children: Sequence[Thread], strands: Mapping[StrandId, Strand]) -> Decision:
        raise AssertionError("it has no children")

    def answer(self, threads: Sequence[Thread]) -> tuple[int, ...] | None:
        return threads[0].message or None


def test_threads_nest_four_hundred_deep_and_join_thousands_of_times() -> None:
    def deep(request: Request) -> Sequence[int]:
        level, number = request.key.thread.count("."), request.key.number
        return spawn((30,)) if number == 0 and level < 400 else join(50)

    trace = run(deep, limits(context=1000, threads=None, depth=400))
    assert [thread.depth for thread in trace.threads] == list(range(401))
    assert trace.costs is not None and trace.costs.depth == 400
    assert from_json(json.loads(json.dumps(to_json(trace)))) == trace
    assert len(blocks(trace.strands)) == 401

    def often(request: Request) -> Sequence[int]:
        engine.requests.clear()  # whose prompts are long
        return spawn((30,)) if request.key.thread == "r" and request.key.number < 3_000 else join()

    engine = FakeEngine(often)
    trace = run(engine, limits(context=1 << 20, threads=None))
    assert len(trace.root.strands) == len(trace.threads) == 3_001
    assert trace.costs is not None and trace.costs.context == len(PROMPT) + 2_999 + 4
    assert len(pickle.dumps(blocks(trace.strands))) > 0


def test_an_engine_that_breaks_at_depth_four_hundred_leaves_no_task() -> None:
    def broken(request: Request) -> Sequence[int] | Exception:
        return spawn((30,)) if request.key.thread.count(".") < 400 else ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        run(broken, limits(context=1000, threads=None, depth=400))


def birth(thread: Thread, trace: Trace) -> int:
    """When a thread starts, by looking at all others."""
    until = spans(trace.strands, sampled_only=True)
    starts = {strand.id: until[strand.id] - len(strand.sampled) for strand in trace.strands}
    if thread.strands:
        return starts[thread.strands[0]]
    at = trace.threads.index(thread)
    near = [
        (abs(number - at), other.strands[0])
        for number, other in enumerate(trace.threads)
        if other.parent == thread.parent and other.strands
    ]
    if near:
        return starts[min(near)[1]]
    parent = next((other for other in trace.threads if other.id == thread.parent), None)
    return until[parent.strands[0]] if parent is not None and parent.strands else 0


@given(st.lists(st.tuples(st.sampled_from(["r", "r.0", "r.1"]), st.integers(0, 5)), max_size=12))
def test_threads_without_strands_are_drawn_beside_their_nearest_sibling(drawn: list[tuple[str, int]]) -> None:
    threads = [Thread("r", None, 0, (StrandId("r", 0),), StopReason.ANSWERED)]
    strands = [Strand(StrandId("r", 0), (), (), 0, (), (1, 2), EngineStop.STOP)]
    for number, (parent, sampled) in enumerate(drawn):
        id = StrandId(f"{parent}.{number}", 0)
        if sampled:
            strands.append(Strand(id, (), (strands[-1].id,), 0, (), (1,) * sampled, EngineStop.STOP))
        threads.append(Thread(id.thread, parent, 1, (id,) if sampled else (), StopReason.CONTEXT))
    trace = Trace({"id": "p"}, "any", 0, 0, tuple(threads), tuple(strands))
    assert [thread["start"] for thread in trace_data(trace)["threads"]] == [birth(one, trace) for one in threads]

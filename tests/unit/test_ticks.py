"""Costs of traces against a simulation in which every runnable strand decodes one token per tick.

A random script says what each thread does, `Scripted` tells it to the runtime, and `Simulation` plays it again. The
simulation knows from the script who spawns whom and who waits. From the trace it takes only how many tokens each strand
has and where a limit stopped a thread. It never reads `after`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from fakes import FakeEngine, join, run, says, spawn, timeless
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from apr.threads.codec import from_json, to_json
from apr.threads.costs import critical_path, parallel, spans
from apr.threads.engine import Request
from apr.threads.limits import Limits
from apr.threads.protocol import Await, Continue, Decision, Fail, Finish, Spawn
from apr.threads.trace import ROOT, Injected, Origin, Reference, StopReason, Strand, StrandId, Thread, Trace

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines may be busy
END = 7  # the stop token that ends every scripted strand


# --- what a thread does


@dataclass(frozen=True)
class Say:
    """Run a strand: so many tokens are injected, so many more as copies, and so many sampled."""

    injected: int
    copied: int
    sampled: int


@dataclass(frozen=True)
class Open:
    """Start children. A `Say` that follows runs beside them."""

    children: tuple[ThreadScript, ...]


@dataclass(frozen=True)
class Wait:
    """Wait for all children that are still open."""


@dataclass(frozen=True)
class End:
    """End the thread, with a message of so many tokens, or as malformed; children may still be running."""

    message: int | None


Step = Say | Open | Wait | End


@dataclass(frozen=True)
class ThreadScript:
    """Steps of one thread. The first is a `Say`, the last an `End`; `Open` is followed by `Wait` or `Say`."""

    steps: tuple[Step, ...]

    def children(self) -> list[ThreadScript]:
        return [child for step in self.steps if isinstance(step, Open) for child in step.children]


def says_of(script: ThreadScript) -> list[int]:
    """Where the strands of `script` are among its steps."""
    return [at for at, step in enumerate(script.steps) if isinstance(step, Say)]


def find(root: ThreadScript, thread: str) -> ThreadScript:
    """The script of the thread with the id `thread`, whose numbers count children in the order of their `Open`s."""
    script = root
    for number in thread.split(".")[1:]:
        script = script.children()[int(number)]
    return script


def some_say(rng: Random) -> Say:
    return Say(rng.randint(0, 5), rng.randint(0, 2), rng.randint(1, 25))


def some_script(rng: Random, depth: int) -> ThreadScript:
    """A thread that spawns, waits, goes on, fails and finishes as it likes; its children nest `depth` deep."""
    steps: list[Step] = [some_say(rng)]
    is_open = False
    for act in rng.choices(["open", "say", "wait"], [3, 1, 1], k=rng.randint(0, 3)):
        if act == "open" and depth:
            steps.append(Open(tuple(some_script(rng, depth - 1) for _ in range(rng.randint(1, 2)))))
            is_open = rng.random() < 0.5
            steps.append(some_say(rng) if is_open else Wait())
        elif act == "wait" and is_open:
            steps.append(Wait())
            is_open = False
        elif act == "say":
            steps.append(some_say(rng))
    return ThreadScript((*steps, End(rng.choice([None, 0, 4, 8]))))


def some_limits(rng: Random) -> Limits:
    """Most of them far away, so that more than the root runs."""

    def perhaps(low: int, high: int) -> int | None:
        return rng.randint(low, high) if rng.random() < 0.2 else None

    return Limits(
        context=perhaps(8, 80) or 10_000, work=perhaps(20, 600), span=perhaps(10, 120), threads=perhaps(2, 12),
        width=perhaps(2, 8), depth=rng.choice([1, 2, 3, 3, 3]),
    )  # fmt: skip


# Of a seed: hypothesis draws trees of its own so that most are a root alone.
SCRIPTS = st.randoms(use_true_random=True).map(lambda rng: some_script(rng, depth=3))
LIMITS = st.randoms(use_true_random=True).map(some_limits)


@dataclass(frozen=True)
class Scripted:
    """The protocol and the engine's words of a script. Stateless, as protocols are: a place is found by ids alone."""

    root: ThreadScript
    name: str = "scripted"
    nests: bool = True

    def start(self, prompt: Sequence[int]) -> Continue:
        return self._say(self.root.steps[0], ())

    def ended(self, strand: Strand, strands: Mapping[StrandId, Strand]) -> Decision:
        script = find(self.root, strand.id.thread)
        return self._next(script, says_of(script)[strand.id.number] + 1, strand)

    def joined(self, last: Strand, children: Sequence[Thread], strands: Mapping[StrandId, Strand]) -> Decision:
        script = find(self.root, last.id.thread)
        joined = int(children[-1].id.rpartition(".")[2]) + 1
        opened = 0
        for at, step in enumerate(script.steps):
            if isinstance(step, Open):
                opened += len(step.children)
            if isinstance(step, Wait) and opened >= joined:
                return self._next(script, at + 1, last)
        raise AssertionError("no child is joined but by a Wait")

    def answer(self, threads: Sequence[Thread]) -> tuple[int, ...] | None:
        return threads[0].message or None

    def words(self, request: Request) -> tuple[int, ...]:
        script = find(self.root, request.key.thread)
        step = script.steps[says_of(script)[request.key.number]]
        assert isinstance(step, Say)
        return (*[9] * (step.sampled - 1), END)

    def _next(self, script: ThreadScript, at: int, last: Strand) -> Decision:
        sees = (Reference(last.id, len(last.ids)),)
        match script.steps[at]:
            case Say() as say:
                return self._say(say, sees)
            case Open(children):
                then = script.steps[at + 1]
                plans = tuple(self._say(child.steps[0], ()) for child in children)
                return Spawn(plans, self._say(then, sees) if isinstance(then, Say) else Await())
            case Wait():
                return Await()
            case End(None):
                return Fail(StopReason.MALFORMED)
            case End(message):
                return Finish((8,) * message)

    def _say(self, step: Step, sees: tuple[Reference, ...]) -> Continue:
        assert isinstance(step, Say)
        injected = (
            Injected(Origin.FORCED, (5,) * (step.injected - step.injected // 2)),
            Injected(Origin.MESSAGE, (6,) * (step.injected // 2)),
            Injected(Origin.COPY, (9,) * step.copied),
        )
        return Continue(injected, sees, 0, (END,))


# --- the simulation


@dataclass
class Runner:
    """A thread in the simulation."""

    id: str
    script: ThreadScript
    ran: Thread  # what came of it: how many strands, and why it stopped
    at: int = 0  # its next step
    said: int = 0  # strands so far
    left: int = 0  # ticks until its strand ends
    children: list[Runner] = field(default_factory=list)
    ended: bool = False


class Simulation:
    """Plays the script of a trace, one token per tick for every runnable strand.

    `ticks`: until all threads have ended. `ends`: the tick at which each strand ended. `width`: most threads at once
    that had started and had not ended, nor all their descendants. `spawns`: those that started a child.
    """

    def __init__(self, root: ThreadScript, trace: Trace, tokens: Callable[[Strand], int]) -> None:
        self.threads = {thread.id: thread for thread in trace.threads}
        self.strands = trace.by_id()
        self.tokens = tokens
        self.runners: list[Runner] = [Runner(ROOT, root, self.threads[ROOT])]
        self.ticks = self.width = 0
        self.ends: dict[StrandId, int] = {}
        self.spawned: list[list[Runner]] = []
        self._play()

    @property
    def spawns(self) -> int:
        return sum(any(child.said for child in children) for children in self.spawned)

    def _play(self) -> None:
        while True:
            while any(self._act(runner) for runner in list(self.runners)):
                pass  # starting, spawning, joining and ending take no time
            if all(runner.ended for runner in self.runners):
                return
            decoding = [runner for runner in self.runners if runner.left]
            assert decoding, "all threads wait"
            self.width = max(self.width, sum(runner.said > 0 and not runner.ended for runner in self.runners))
            self.ticks += 1
            for runner in decoding:
                runner.left -= 1
                if not runner.left:
                    self.ends[StrandId(runner.id, runner.said - 1)] = self.ticks

    def _act(self, runner: Runner) -> bool:
        """Do the next thing that takes no time; False if there is none."""
        if runner.ended or runner.left:
            return False
        waits = not all(child.ended for child in runner.children)
        steps = runner.script.steps
        match steps[runner.at]:
            case Say() as say if runner.said < len(runner.ran.strands):
                strand = self.strands[StrandId(runner.id, runner.said)]
                runner.left = self.tokens(strand)
                runner.said += 1
                runner.at = runner.at + 1 if len(strand.sampled) == say.sampled else len(steps) - 1  # it was cut
            case Open(children) if f"{runner.id}.{len(runner.children)}" in self.threads:
                for child in children:
                    id = f"{runner.id}.{len(runner.children)}"
                    runner.children.append(Runner(id, child, self.threads[id]))
                self.spawned.append(runner.children[-len(children) :])
                self.runners += self.spawned[-1]
                runner.at += 1
            case Say() | Open():  # a limit refused it
                runner.at = len(steps) - 1
            case Wait() if not waits:
                runner.at += 1
            case End() if not waits:
                runner.ended = True
            case Wait() | End():
                return False
        return True


def sampled(strand: Strand) -> int:
    return len(strand.sampled)


def all_but_copies(strand: Strand) -> int:
    return len(strand.sampled) + sum(len(run.ids) for run in strand.injected if run.origin is not Origin.COPY)


def scripted(script: ThreadScript, limits: Limits, late: Callable[[Request], int] = lambda request: 0) -> Trace:
    protocol = Scripted(script)
    return run(FakeEngine(protocol.words, late), limits, protocol)


@settings(PATIENT, max_examples=400)
@given(SCRIPTS, LIMITS)
def test_costs_are_those_of_one_token_per_tick(script: ThreadScript, limits: Limits) -> None:
    trace = scripted(script, limits)
    decoded, whole = Simulation(script, trace, sampled), Simulation(script, trace, all_but_copies)
    assert trace.costs is not None
    assert trace.costs.span_sampled == decoded.ticks
    assert sum(sampled(trace.by_id()[strand]) for strand in critical_path(trace.strands)) == decoded.ticks
    assert trace.costs.span == whole.ticks
    assert trace.costs.width == decoded.width
    assert spans(trace.strands, sampled_only=True) == decoded.ends  # of each strand by itself
    assert spans(trace.strands) == whole.ends
    assert parallel(trace.threads, trace.strands).spawns == decoded.spawns
    if limits.span is not None:
        assert decoded.ticks <= limits.span
        if any(thread.stop is StopReason.SPAN for thread in trace.threads):
            assert decoded.ticks == limits.span
    for thread in trace.threads:
        event(f"{'child' if thread.depth else 'root'} stops: {thread.stop}")
    if any(before.thread.count(".") > strand.id.thread.count(".") + 1 for strand in trace.strands
           for before in strand.after):  # fmt: skip
        event("a strand comes after a grandchild")


@PATIENT
@given(SCRIPTS, LIMITS, st.integers(1, 1 << 30))
def test_dependence_is_the_same_whoever_ends_first(script: ThreadScript, limits: Limits, salt: int) -> None:
    trace, plain = scripted(script, limits, lambda request: request.seed % salt % 17), scripted(script, limits)
    assert timeless(trace.strands) == timeless(plain.strands)
    assert from_json(json.loads(json.dumps(to_json(trace)))) == trace  # topological order, which readers ask for


@PATIENT
@given(SCRIPTS, LIMITS)
def test_after_names_only_the_last_strand_of_a_thread(script: ThreadScript, limits: Limits) -> None:
    for strand in scripted(script, limits).strands:
        assert len({before.thread for before in strand.after}) == len(strand.after)


# --- by hand


def failing_at_its_join() -> Callable[[Request], Any]:
    """r.0 has no room to go on: its children return 2 x 31 tokens into a context of 60. The root goes on when they have
    ended, after 10 + 12 + 32 sampled tokens."""
    message = range(30, 60)
    return says(
        r_0=spawn((30,), search=(40,) * 6), r0_0=spawn((31,), (32,), search=(41,) * 6),
        r00_0=join(*message), r01_0=join(*message), r_1=join(60, search=(42,) * 30),
    )  # fmt: skip


def test_a_child_that_fails_at_its_join_leaves_its_children_to_be_waited_for() -> None:
    trace = run(failing_at_its_join(), Limits(context=60, depth=2))
    assert [(thread.id, thread.stop) for thread in trace.threads] == [
        ("r", StopReason.ANSWERED), ("r.0", StopReason.CONTEXT), ("r.0.0", StopReason.ANSWERED),
        ("r.0.1", StopReason.ANSWERED),
    ]  # fmt: skip
    assert trace.costs is not None and trace.costs.span_sampled == 10 + 12 + 32 + 33 == 87
    assert list(map(str, trace.strands[-1].after)) == ["r#0", "r.0#0", "r.0.0#0", "r.0.1#0"]
    assert list(map(str, critical_path(trace.strands))) == ["r#0", "r.0#0", "r.0.0#0", "r#1"]


@pytest.mark.parametrize(("span", "left"), [(87, 33), (86, 32), (75, 21), (55, 1), (54, 0)])
def test_the_span_limit_counts_what_a_failed_child_left_running(span: int, left: int) -> None:
    trace = run(failing_at_its_join(), Limits(context=60, depth=2, span=span))
    assert trace.costs is not None and trace.costs.span_sampled == span
    assert trace.root.stop is (StopReason.ANSWERED if left == 33 else StopReason.SPAN)
    assert sum(len(strand.sampled) for strand in trace.strands if strand.id == ("r", 1)) == left


def child(*steps: Step) -> ThreadScript:
    return ThreadScript((*steps, End(1)))


def say(sampled: int) -> Say:
    return Say(0, 0, sampled)


FREE = Limits(context=10_000, threads=None, depth=3)


def test_a_child_that_finishes_before_its_children_leaves_them_to_be_waited_for() -> None:
    grandchildren = Open((child(say(20)), child(say(3))))
    script = child(say(2), Open((child(say(4), grandchildren, say(5)), child(say(6)))), Wait(), say(7))
    trace = scripted(script, FREE)
    assert list(map(str, trace.strands[-1].after)) == ["r#0", "r.0#1", "r.0.0#0", "r.0.1#0", "r.1#0"]
    assert trace.costs is not None and trace.costs.span_sampled == 2 + 4 + 20 + 7
    # Where the child waits and goes on, its own last strand stands for its children.
    script = child(say(2), Open((child(say(4), grandchildren, Wait(), say(5)), child(say(6)))), Wait(), say(7))
    trace = scripted(script, FREE)
    assert list(map(str, trace.strands[-1].after)) == ["r#0", "r.0#1", "r.1#0"]
    assert trace.costs is not None and trace.costs.span_sampled == 2 + 4 + 20 + 5 + 7


def test_children_spawned_right_after_a_join_come_after_all_that_was_joined() -> None:
    first, second = child(say(4), Open((child(say(20)),)), say(1)), child(say(6))
    script = child(say(2), Open((first,)), Wait(), Open((second,)), Wait())
    trace = scripted(script, FREE)
    assert [str(strand.id) for strand in trace.strands] == ["r#0", "r.0#0", "r.0#1", "r.0.0#0", "r.1#0"]
    assert list(map(str, trace.strands[-1].after)) == ["r#0", "r.0#1", "r.0.0#0"]
    assert trace.costs is not None and trace.costs.span_sampled == 2 + 4 + 20 + 6


def test_what_runs_on_after_the_root_is_in_the_span() -> None:
    script = ThreadScript((say(2), Open((child(say(4), Open((child(say(30)),)), say(1)),)), say(3), End(None)))
    trace = scripted(script, FREE)
    assert trace.root.stop is StopReason.MALFORMED
    assert trace.costs is not None and trace.costs.span_sampled == 2 + 4 + 30

"""How the parts grow: CPU seconds against the size of a trace, sizes doubling, and the exponents fitted to them.

    python benchmarks/growth.py [--runs 3] [--budget 20] [--parts costs layout ...] [--shapes joins ...]

A trace grows in one way at a time (`SHAPES`): its strand, the joins of one thread, the children of one spawn, its depth.
Two more shapes join over children's own tokens, so that strands have several references. Each part is timed at four
sizes. It stops early where the next size would take more than `--budget` seconds; the table names the largest size.

The exponent is the slope of log seconds over log tokens. Tokens are those of the trace; for the runtime, which must write
out each context as a whole (a prompt), those of the contexts are added. Python's garbage collector is off meanwhile: what it
adds depends on what else the process holds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from apr.protocols.spawn_join import SpawnJoin
from apr.report.viewer import Source, trace_view
from apr.sft.rows import rows
from apr.threads.codec import from_json, to_json
from apr.threads.costs import costs
from apr.threads.engine import Completion, Request
from apr.threads.layout import blocks, causal
from apr.threads.limits import Limits
from apr.threads.session import Sampling, attempt
from apr.threads.trace import (
    EngineStop,
    Injected,
    Origin,
    Outcome,
    Reference,
    StopReason,
    Strand,
    StrandId,
    StrandKey,
    Thread,
    Trace,
    VersionSpan,
)
from apr.tokens.control import CONTROL_TOKENS, ControlTokens
from rl.advantages import Scored
from rl.packing import plan
from rl.samples import Sample, samples

C = ControlTokens(*range(len(CONTROL_TOKENS)))
PROMPT = (C.bos, 20, 21)
FREE = Limits(context=1 << 40, threads=None, depth=1 << 20)


# Traces, built in linear time.


class Writer:
    """Strands and threads of one trace, in depth-first spawn order."""

    def __init__(self) -> None:
        self.strands: list[Strand] = []
        self.threads: dict[str, list[StrandId]] = {}

    def strand(
        self,
        thread: str,
        injected: Sequence[Injected],
        sampled: Sequence[int],
        sees: Sequence[Reference] = (),
        after: Sequence[StrandId] = (),
        position: int = 0,
    ) -> Strand:
        own = self.threads.setdefault(thread, [])
        id = StrandId(thread, len(own))
        own.append(id)
        made = Strand(
            id, tuple(sees), tuple(after), position, tuple(injected), tuple(sampled), EngineStop.STOP,
            (-0.5,) * len(sampled), (VersionSpan(0, 0, len(sampled)),),
        )  # fmt: skip
        self.strands.append(made)
        return made

    def trace(self) -> Trace:
        threads = tuple(
            Thread(
                id, id.rpartition(".")[0] or None, id.count("."), tuple(own), StopReason.ANSWERED,
                (60,) if id == "r" else (50,),
            )
            for id, own in self.threads.items()
        )  # fmt: skip
        strands = tuple(self.strands)
        return Trace({"id": "p"}, "spawn_join", 0, 0, threads, strands, outcome=Outcome(StopReason.ANSWERED, True, ""))


def spawning(search: int, children: int = 1) -> tuple[int, ...]:
    return (*[40] * search, C.spawn, *(token for _ in range(children) for token in (C.msg, 30)), C.spawn_end)


def joining(message: int, search: int = 4) -> tuple[int, ...]:
    return (*[40] * search, C.join, message, C.eos)


START = (Injected(Origin.PROMPT, PROMPT),)
TOLD = (Injected(Origin.FORCED, (C.msg,)), Injected(Origin.MESSAGE, (30,)))
RETURNED = (Injected(Origin.FORCED, (C.ret,)), Injected(Origin.MESSAGE, (50,)))


def length(size: int) -> Trace:
    """One strand of `size` tokens."""
    writer = Writer()
    writer.strand("r", START, joining(60, size))
    return writer.trace()


def joins(size: int) -> Trace:
    """A thread that joins `size` times, each time one child."""
    writer = Writer()
    last = writer.strand("r", START, spawning(4))
    for number in range(size):
        child = writer.strand(f"r.{number}", TOLD, joining(50), after=(last.id,))
        kept = len(last.injected_ids) + 4
        last = writer.strand(
            "r", RETURNED, spawning(4) if number + 1 < size else joining(60), (Reference(last.id, kept),),
            (last.id, child.id), last.position + kept,
        )  # fmt: skip
    return writer.trace()


def children(size: int) -> Trace:
    """One spawn of `size` children."""
    writer = Writer()
    first = writer.strand("r", START, spawning(4, size))
    ends = [writer.strand(f"r.{n}", TOLD, joining(50), after=(first.id,)).id for n in range(size)]
    kept = len(PROMPT) + 4
    writer.strand("r", RETURNED * size, joining(60), (Reference(first.id, kept),), (first.id, *ends), kept)
    return writer.trace()


def depth(size: int) -> Trace:
    """A child of a child of a child ..., `size` levels, a hundred tokens each."""
    writer = Writer()
    names = ["r" + ".0" * level for level in range(size + 1)]
    opened: list[Strand] = []
    for level, name in enumerate(names):
        sampled = spawning(100) if level < size else joining(50)
        after = (opened[-1].id,) if opened else ()
        opened.append(writer.strand(name, TOLD if level else START, sampled, after=after))
    last = opened[-1].id
    for level in reversed(range(size)):
        first = opened[level]
        kept = len(first.injected_ids) + 100
        sampled = joining(50 if level else 60)
        last = writer.strand(names[level], RETURNED, sampled, (Reference(first.id, kept),), (first.id, last), kept).id
    return writer.trace()


def shared_joins(size: int) -> Trace:
    """A thread that joins `size` times over the keys of two children, which see all that it saw."""
    writer = Writer()
    last = writer.strand("r", START, spawning(4, 2))
    for number in range(size):
        whole = Reference(last.id, len(last.ids))
        at = last.position + len(last.ids)
        pair = [
            writer.strand(f"r.{2 * number + i}", TOLD, joining(50), (whole,), (last.id,), at + 9 * i) for i in (0, 1)
        ]
        sees = [Reference(child.id, len(child.ids)) for child in pair]
        last = writer.strand("r", (), spawning(4, 2), sees, (last.id, *(child.id for child in pair)), at + 18)
    return writer.trace()


def shared_depth(size: int) -> Trace:
    """`size` levels of two children each, of which the second nests; each level joins over its children's keys."""
    writer = Writer()
    opened: list[tuple[Strand, Strand]] = []
    name, sees, after = "r", (), ()
    for level in range(size):
        first = writer.strand(name, TOLD if level else START, spawning(100, 2), sees, after)
        sees, after = (Reference(first.id, len(first.ids)),), (first.id,)
        opened.append((first, writer.strand(f"{name}.0", TOLD, joining(50, 100), sees, after)))
        name += ".1"
    last = writer.strand(name, TOLD, joining(50, 100), sees, after)
    for first, leaf in reversed(opened):
        both = [Reference(child.id, len(child.ids)) for child in (leaf, last)]
        last = writer.strand(first.id.thread, (), joining(50), both, (first.id, leaf.id, last.id))
    return writer.trace()


SHAPES: dict[str, tuple[Callable[[int], Trace], int]] = {
    "length": (length, 64_000),
    "joins": (joins, 10_000),
    "children": (children, 20_000),
    "depth": (depth, 400),
    "shared joins": (shared_joins, 10_000),
    "shared depth": (shared_depth, 400),
}
SIZES = 4


# Parts. Each is given a trace (`plan`: samples) and returns the work to time.


class Scripted:
    """An engine that says at once what the strands of `trace` sampled. It notes how many prompt tokens it was sent."""

    views = "chain"
    max_context = max_reach = 1 << 40
    version = 0

    def __init__(self, trace: Trace) -> None:
        self.said = {
            strand.id: (strand.sampled, (0.0,) * len(strand.sampled), (VersionSpan(0, 0, len(strand.sampled)),))
            for strand in trace.strands
        }
        self.prompted = 0

    async def release(self, key: StrandKey) -> None:
        pass

    async def generate(self, request: Request) -> Completion:
        self.prompted += len(request.ids)
        ids, logprobs, versions = self.said[StrandId(request.key.thread, request.key.number)]
        return Completion(request.key, ids, logprobs, EngineStop.STOP, versions)


def runtime(trace: Trace) -> Callable[[], Any]:
    engine: Any = Scripted(trace)

    def work() -> Trace:
        attempted = attempt(
            {"id": "p"}, PROMPT, engine=engine, protocol=SpawnJoin(C), limits=FREE, sampling=Sampling(1.0, 0)
        )
        made = asyncio.run(attempted)
        if len(made.strands) != len(trace.strands):
            raise ValueError("the runtime went another way than the trace")
        return made

    return work


def codec(trace: Trace) -> Callable[[], Any]:
    return lambda: from_json(json.loads(json.dumps(to_json(trace))))


def viewer(trace: Trace) -> Callable[[], Any]:
    return lambda: trace_view([Source("a", [trace], lambda ids: "".join(f"{i} " for i in ids))])


PARTS: dict[str, Callable[[Trace], Callable[[], Any]]] = {
    "costs": lambda trace: lambda: costs(trace.threads, trace.strands),
    "layout": lambda trace: lambda: [block.before() for block in blocks(trace.strands)],
    "SFT rows": lambda trace: lambda: rows(trace),
    "RL samples": lambda trace: lambda: samples([Scored(trace, 1.0)], "trace"),
    "runtime": runtime,
    "codec": codec,
    "viewer": viewer,
}
CONTEXTS = ("runtime",)  # what must write out each context
CHAINS_ONLY = ("runtime",)


def tokens(trace: Trace, contexts: bool) -> int:
    """Tokens of the trace, and if `contexts` those that each strand of a chain saw."""
    own = sum(len(strand.ids) for strand in trace.strands)
    if not contexts or any(len(strand.sees) > 1 for strand in trace.strands):
        return own
    seen: dict[StrandId, int] = {}
    for strand in trace.strands:
        seen[strand.id] = sum(seen[reference.strand] + reference.length for reference in strand.sees)
    return own + sum(seen.values())


def batch(size: int) -> list[Sample]:
    rng = random.Random(0)
    return [Sample(causal(range(rng.randint(100, 250))), [], [], [], [], [], [], [], []) for _ in range(size)]


class Timed(NamedTuple):
    size: int
    tokens: int
    seconds: float


def cpu_seconds(work: Callable[[], Any], runs: int) -> float:
    """Median CPU seconds of one call; calls shorter than 20 ms are repeated within a run."""
    times = []
    repeat = 1
    while len(times) < runs:
        gc.collect()
        gc.disable()
        started = time.process_time()
        for _ in range(repeat):
            work()
        spent = time.process_time() - started
        gc.enable()
        if spent < 0.02 and repeat < 1024:
            repeat *= 2
            continue
        times.append(spent / repeat)
        if spent > 4.0:  # long enough to be steady
            break
    return statistics.median(times)


def grown(
    prepare: Callable[[int], tuple[int, Callable[[], Any]]], largest: int, runs: int, budget: float
) -> list[Timed]:
    """Seconds at doubling sizes up to `largest`, as long as the next is expected within `budget`."""
    timed: list[Timed] = []
    for halvings in reversed(range(SIZES)):
        size = largest >> halvings
        if len(timed) > 1 and timed[-1].seconds * max(1.0, timed[-1].seconds / timed[-2].seconds) > budget:
            break
        count, work = prepare(size)
        timed.append(Timed(size, count, cpu_seconds(work, runs)))
    return timed


def exponent(timed: Sequence[Timed]) -> float:
    """Slope of log seconds over log tokens."""
    if len(timed) < 2:
        return math.nan
    return float(np.polyfit([math.log(one.tokens) for one in timed], [math.log(one.seconds) for one in timed], 1)[0])


def measures(
    parts: Sequence[str], shapes: Sequence[str], runs: int, budget: float
) -> Iterator[tuple[str, str, list[Timed]]]:
    for part in parts:
        if part == "plan":

            def packed(size: int) -> tuple[int, Callable[[], Any]]:
                made = batch(size)
                return size, lambda: plan(made, 256, 256, 4)  # a pass for each row: the most passes there can be

            yield part, "samples", grown(packed, 16_000, runs, budget)
            continue
        for shape in shapes:
            if part in CHAINS_ONLY and shape.startswith("shared"):
                continue
            make, largest = SHAPES[shape]

            def prepared(
                size: int, part: str = part, make: Callable[[int], Trace] = make
            ) -> tuple[int, Callable[[], Any]]:
                trace = make(size)
                return tokens(trace, part in CONTEXTS), PARTS[part](trace)

            yield part, shape, grown(prepared, largest, runs, budget)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds that one call may be expected to take")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, "plan"], default=[*PARTS, "plan"])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    given = parser.parse_args()
    print("| part | grows with | to | seconds there | exponent |\n| --- | --- | --- | --- | --- |")
    for part, shape, timed in measures(given.parts, given.shapes, given.runs, given.budget):
        last = timed[-1]
        print(f"| {part} | {shape} | {last.size:,} | {last.seconds:.3g} | {exponent(timed):.2f} |", flush=True)


if __name__ == "__main__":
    main()

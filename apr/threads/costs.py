"""What a trace costs, from its strands alone, so that two engineers compute the same number.

I = injected tokens, C = the part of I that is `copy`, X = sampled tokens:

* work = sum of |I| - |C| + |X|;  work_sampled = sum of |X|;
* span = longest chain of `after`, each strand weighing |I| - |C| + |X|, but for strands of cancelled threads and of those below
  them, which nobody waited for;  span_sampled the same with |X| alone;
  Since `after` names all strands that must have ended, those of descendants included, `span_sampled` is the number of
  steps in which every runnable strand decodes one token per step;
* context = max over strands of |closure of sees| + |I| + |X|, copies included;
* reach = the largest position + 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from apr.threads.trace import Costs, Origin, StopReason, Strand, StrandId, Thread
from apr.threads.views import Views


def weight(strand: Strand) -> int:
    """Tokens this strand adds to work: injected ones that are not copies, and sampled ones."""
    return sum(len(run.ids) for run in strand.injected if run.origin is not Origin.COPY) + len(strand.sampled)


def spans(strands: tuple[Strand, ...], sampled_only: bool = False) -> dict[StrandId, int]:
    """Per strand: tokens on the longest dependent chain that ends with it. `strands` in topological order."""
    until: dict[StrandId, int] = {}
    for strand in strands:
        start = max((until[before] for before in strand.after), default=0)
        until[strand.id] = start + (len(strand.sampled) if sampled_only else weight(strand))
    return until


def critical_path(strands: tuple[Strand, ...]) -> list[StrandId]:
    """The strands of the longest dependent chain of sampled tokens, first to last."""
    until = spans(strands, sampled_only=True)
    by_id = {strand.id: strand for strand in strands}
    path: list[StrandId] = []
    current: StrandId | None = max(until, key=lambda s: until[s], default=None)
    while current is not None:
        path.append(current)
        current = max(by_id[current].after, key=lambda s: until[s], default=None)
    return path[::-1]


def costs(threads: tuple[Thread, ...], strands: tuple[Strand, ...]) -> Costs:
    """All costs of one trace, in one pass over its strands; `strands` in topological order (as `Trace.strands` is)."""
    until: dict[StrandId, tuple[int, int]] = {}  # the longest chains that end with a strand: tokens, sampled tokens
    work = work_sampled = span = span_sampled = context = prefilled = reach = 0
    seconds = 0.0
    left = cancelled(threads)
    for strand, seen in zip(strands, closure_tokens(strands), strict=True):
        sampled, weighs = len(strand.sampled), weight(strand)
        sent = seen + sum(len(run.ids) for run in strand.injected)
        chain, chain_sampled = weighs, sampled
        if strand.after:
            waited = [until[before] for before in strand.after]
            chain += max(tokens for tokens, _ in waited)
            chain_sampled += max(tokens for _, tokens in waited)
        until[strand.id] = chain, chain_sampled
        work += weighs
        work_sampled += sampled
        if strand.id.thread not in left:
            span, span_sampled = max(span, chain), max(span_sampled, chain_sampled)
        context = max(context, sent + sampled)
        prefilled += sent - strand.cached
        reach = max(reach, strand.end)
        seconds = max(seconds, strand.ended)
    return Costs(
        work, work_sampled, span, span_sampled, context,
        threads=len(threads),
        width=_width(threads, strands, {id: chain for id, (_, chain) in until.items()}),
        depth=max((thread.depth for thread in threads), default=0),
        prefilled=prefilled,
        seconds=seconds,
        reach=reach,
    )  # fmt: skip


def cancelled(threads: tuple[Thread, ...]) -> set[str]:
    """The threads that were cancelled, and all below them."""
    found: set[str] = set()
    for thread in threads:  # parents before their children
        if thread.stop is StopReason.CANCELLED or thread.parent in found:
            found.add(thread.id)
    return found


def closure_tokens(strands: tuple[Strand, ...]) -> list[int]:
    """How many tokens each strand sees before its own, in linear time where joins nest; `strands` in topological order."""
    views = Views()
    numbers: dict[StrandId, int] = {}
    for number, strand in enumerate(strands):
        views.add([(numbers[seen], length) for seen, length in strand.sees])
        numbers[strand.id] = number
    return views.tokens


@dataclass(frozen=True, slots=True)
class Parallel:
    """What a trace did in threads other than its root: spawns that started a child, children that started, their
    sampled tokens, and the seconds in which at least one of their strands ran."""

    spawns: int
    branches: int
    tokens: int
    seconds: float


def parallel(threads: tuple[Thread, ...], strands: tuple[Strand, ...]) -> Parallel:
    """The parallel part of a trace, from which the measures of ASPD (arXiv 2508.08895) are made."""
    by_id = {strand.id: strand for strand in strands}
    first = [by_id[thread.strands[0]] for thread in threads if thread.parent is not None and thread.strands]
    of_children = [strand for strand in strands if strand.id.thread != threads[0].id]
    seconds = until = 0.0
    for started, ended in sorted((strand.started, strand.ended) for strand in of_children):
        seconds += max(0.0, ended - max(started, until))
        until = max(until, ended)
    return Parallel(
        spawns=len({strand.after for strand in first}),
        branches=len(first),
        tokens=sum(len(strand.sampled) for strand in of_children),
        seconds=seconds,
    )


def _width(threads: tuple[Thread, ...], strands: tuple[Strand, ...], until: Mapping[StrandId, int]) -> int:
    """Most threads alive at once, when all runnable threads decode one token a step.

    A thread is alive from its first strand until it and all its descendants have ended; one that never started is not.
    `until`: the spans of `strands` in sampled tokens.
    """
    by_id = {strand.id: strand for strand in strands}
    end: dict[str, int] = {}
    edges: list[tuple[int, int]] = []
    for thread in reversed(threads):  # children before their parents
        if not thread.strands:
            continue
        birth = max((until[before] for before in by_id[thread.strands[0]].after), default=0)
        last = max(until[thread.strands[-1]], birth + 1, end.get(thread.id, 0))
        if thread.parent is not None:
            end[thread.parent] = max(end.get(thread.parent, 0), last)
        edges += [(birth, 1), (last, -1)]
    alive = most = 0
    for _, change in sorted(edges):  # at equal times the ends (-1) come first
        alive += change
        most = max(most, alive)
    return most

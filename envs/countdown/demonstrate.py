"""One demonstration: a teacher's search for one problem, drawn, conditioned and encoded. Plain and readable; the fast
path (`solvers.compiled`) makes the same."""

from __future__ import annotations

from typing import Any

from apr.seeds import SplitMix64, derive_rng, derive_seed
from apr.threads.protocol import ThreadProtocol
from apr.threads.trace import Trace
from apr.tokens.speller import Condition, Speller
from envs.base import Teacher
from envs.countdown.log import Node, SearchLog, Spawned
from envs.countdown.teacher import SearchTeacher
from envs.countdown.wording import encode
from solvers.search import SearchOptions, search, unfold


def demonstrate(problem: dict[str, Any], teacher: Teacher, copy: int = 0) -> Trace | None:
    """The `copy`-th demonstration of `problem`; None if rejection sampling found none."""
    solver, speller, protocol, seed = search_teacher(teacher), teacher.speller, teacher.protocol, teacher.seed
    for attempt in range(solver.rejection.tries if solver.rejection else 1):
        options, search_seed = drawn(problem["id"], solver, seed, copy, attempt)
        log = search(problem["target"], Node(tuple(problem["numbers"]), ()), options, SplitMix64(search_seed))
        trace = conditioned(unfold(log) if solver.unfold else log, solver, speller, protocol, problem)
        if solver.rejection is None or (trace.correct and context_of(trace) <= solver.rejection.context):
            return trace
    return None


def drawn(problem: str, solver: SearchTeacher, seed: int, copy: int, attempt: int) -> tuple[SearchOptions, int]:
    """The options of one search, and the seed of its own stream. The same streams for every solver: teachers with equal
    options make equal choices."""
    key = (problem, copy) if attempt == 0 else (problem, copy, attempt)
    rng = derive_rng(seed, "solver", *key)
    beam = rng.choice(solver.beams)
    options = SearchOptions(
        beam=beam,
        child_beam=rng.randint(beam, max(beam, solver.child_beam_max)),
        promising_share=solver.promising_share,
        promising=solver.promising,
        heuristic=solver.heuristic,
        order=solver.order,
        child_promising_share=solver.child_promising_share,
        prune=solver.prune,
        duplicates=solver.duplicates,
        spawn_depth=solver.spawn_depth,
        wave=solver.wave,
        value_cap=solver.value_cap,
    )
    return options, derive_seed(seed, "search", *key)


def conditioned(
    log: SearchLog, solver: SearchTeacher, speller: Speller, protocol: ThreadProtocol, problem: dict[str, Any]
) -> Trace:
    """The trace of `log`, its prompt saying what it takes: the bin of its context, or its widest spawn."""
    match solver.condition:
        case "none":
            return encode(log, speller, protocol, problem)
        case "children":
            condition = Condition("children", widest_spawn(log))
            return encode(log, speller, protocol, {**problem, "condition": condition._asdict()})
        case "context":
            bound = 0
            while True:  # the condition's own tokens count too: they may need the next bin
                bound += solver.context_bin
                condition = Condition("context", bound)
                trace = encode(log, speller, protocol, {**problem, "condition": condition._asdict()})
                if (context := context_of(trace)) <= bound:
                    return trace
                bound = (context - 1) // solver.context_bin * solver.context_bin


def widest_spawn(log: SearchLog) -> int:
    """The most children of any one spawn of the root; 0 if it never spawns."""
    return max((len(event.children) for event in log.events if isinstance(event, Spawned)), default=0)


def context_of(trace: Trace) -> int:
    """Tokens in its largest context."""
    if trace.costs is None:
        raise ValueError("a demonstration has its costs")
    return trace.costs.context


def search_teacher(teacher: Teacher) -> SearchTeacher:
    """The options of a teacher of Countdown. Raises `TypeError` for those of another environment."""
    if not isinstance(teacher.options, SearchTeacher):
        raise TypeError(f"Countdown's teachers take SearchTeacher, not {type(teacher.options).__name__}")
    return teacher.options

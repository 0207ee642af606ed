"""Random searches for tests of the paper speller."""

from typing import Any

from hypothesis import strategies as st

from apr.seeds import SplitMix64
from apr.threads.protocol import ThreadProtocol
from envs.countdown.log import Node, SearchLog
from envs.countdown.paper import PaperSpeller
from envs.countdown.paper_protocols import PaperSerial, PaperSpawnJoin
from envs.countdown.problems import problem_of
from solvers.exhaustive import reachable
from solvers.search import SearchOptions, search, unfold


@st.composite
def searches(draw: st.DrawFn) -> tuple[SearchLog, dict[str, Any]]:
    """A search log of any solver, and its problem, which may carry a condition. Small: a few hundred tokens."""
    numbers = tuple(sorted(draw(st.lists(st.integers(0, 30), min_size=2, max_size=4))))
    target = draw(st.sampled_from(sorted(reachable(numbers))) | st.integers(1, 400))
    options = SearchOptions(
        beam=draw(st.integers(1, 3)),
        child_beam=draw(st.integers(1, 3)),
        promising_share=draw(st.sampled_from([0.0, 0.5, 1.0])),
        promising=draw(st.sampled_from(["per_child", "per_node"])),
        order=draw(st.sampled_from(["canonical", "heuristic", "shuffled"])),
        child_promising_share=draw(st.sampled_from([None, 0.0])),
        duplicates=draw(st.booleans()),
        spawn_depth=draw(st.integers(0, 2)),
    )
    log = search(target, Node(numbers, ()), options, SplitMix64(draw(st.integers(0, 99))))
    if draw(st.booleans()):
        log = unfold(log)
    problem = problem_of(numbers, target)
    condition = draw(st.sampled_from([None, {"kind": "context", "value": 512}, {"kind": "children", "value": 3}]))
    return log, problem if condition is None else {**problem, "condition": condition}


def protocol_for(log: SearchLog, speller: PaperSpeller) -> ThreadProtocol:
    """Serial for a log that spawns nothing."""
    spawns = any(type(event).__name__ == "Spawned" for event in log.events)
    return PaperSpawnJoin(speller) if spawns else PaperSerial(speller)

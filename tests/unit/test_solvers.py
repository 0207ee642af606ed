"""The search core: its options one by one, its heuristics on hand-computed values, and serial against spawned."""

import heapq
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apr.seeds import SplitMix64
from envs.countdown.log import Event, Node, Promising, Queued, SearchLog, Spawned, Step, Visited
from envs.countdown.log import Tested as Leaf  # pytest takes names in Test for its own
from envs.countdown.verify import verify
from solvers.exhaustive import reachable
from solvers.search import SearchOptions, children, distance, factors, search, steps, unfold

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines may be busy

WIDE = 10_000  # a beam that keeps all
NUMBERS = st.lists(st.integers(0, 20), min_size=2, max_size=4).map(lambda ns: tuple(sorted(ns)))
OPTIONS = st.builds(
    SearchOptions,
    beam=st.integers(1, 6),
    child_beam=st.integers(1, 6),
    promising_share=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    promising=st.sampled_from(["per_child", "per_node"]),
    heuristic=st.sampled_from(["sum_to_factors", "numbers_to_factors", "numbers_to_target"]),
    child_promising_share=st.sampled_from([None, 0.0, 0.5]),
    prune=st.sampled_from(["beam", "target"]),
    duplicates=st.booleans(),
    order=st.sampled_from(["canonical", "heuristic", "shuffled"]),
    spawn_depth=st.integers(0, 2),
    wave=st.sampled_from([None, 1, 2]),
    value_cap=st.sampled_from([None, 100]),
)


def solver(numbers: tuple[int, ...], target: int, options: SearchOptions, seed: int = 0) -> SearchLog:
    return search(target, Node(tuple(sorted(numbers)), ()), options, SplitMix64(seed))


def logs(log: SearchLog, level: int = 0) -> Iterator[tuple[int, SearchLog]]:
    """The log and all child logs below it, with their levels."""
    yield level, log
    for event in log.events:
        if isinstance(event, Spawned):
            for child in event.children:
                yield from logs(child, level + 1)


def flat(log: SearchLog) -> Iterator[Event]:
    """All events, each spawn replaced by those of its children in spawn order."""
    for event in log.events:
        if isinstance(event, Spawned):
            for child in event.children:
                yield from flat(child)
        else:
            yield event


def leaves(log: SearchLog) -> list[Step]:
    return [event.step for event in flat(log) if isinstance(event, Leaf)]


def queued(log: SearchLog) -> list[Node]:
    return [event.node for event in log.events if isinstance(event, Queued)]


# --- steps and children


def test_steps_are_the_legal_ones() -> None:
    assert [str(step) for step in steps(3, 12)] == ["12+3=15", "12-3=9", "12*3=36", "12/3=4"]
    assert [str(step) for step in steps(5, 3)] == ["5+3=8", "5-3=2", "5*3=15"]
    assert [str(step) for step in steps(0, 7)] == ["7+0=7", "7-0=7", "7*0=0"]
    assert [str(step) for step in steps(4, 4)] == ["4+4=8", "4-4=0", "4*4=16", "4/4=1"]


def test_children_are_distinct_and_in_canonical_order() -> None:
    assert [(child.numbers, str(child.path[-1])) for child in children(Node((1, 2, 2), ()))] == [
        ((2, 3), "2+1=3"), ((1, 2), "2-1=1"), ((2, 2), "2*1=2"),  # 2/1 and the second 2 give nothing new
        ((1, 4), "2+2=4"), ((0, 1), "2-2=0"), ((1, 1), "2/2=1"),
    ]  # fmt: skip
    assert [child.numbers for child in children(Node((1, 2, 2), ()), value_cap=2)] == [(1, 2), (2, 2), (0, 1), (1, 1)]
    assert children(Node((7,), ())) == []


# --- heuristics


def test_heuristics_on_hand_computed_values() -> None:
    assert factors(24) == [1, 2, 3, 4, 6, 8, 12, 24]
    assert distance((3, 5), 24, "sum_to_factors") == 0  # 3 + 5 = 8
    assert distance((7, 12), 24, "sum_to_factors") == 5  # 19 is as near to 24
    assert distance((7, 12), 24, "numbers_to_factors") == 1  # 7 is one off 6 or 8
    assert distance((1, 10, 30), 24, "numbers_to_factors") == 1 + 2 + 6  # factor 1 does not count
    assert distance((20, 25), 23, "numbers_to_factors") == 3 + 2  # a prime has only itself
    assert distance((20, 25), 23, "sum_to_factors") == 22
    for heuristic in ("sum_to_factors", "numbers_to_factors"):
        assert distance((20,), 24, heuristic) == 4  # type: ignore[arg-type]


@pytest.mark.parametrize("heuristic", ["sum_to_factors", "numbers_to_factors"])
def test_heuristics_on_the_smallest_targets(heuristic: str) -> None:
    assert distance((1, 3), 1, heuristic) == {"sum_to_factors": 3, "numbers_to_factors": 0 + 2}[heuristic]  # type: ignore[arg-type]
    assert distance((1, 3), 0, heuristic) == 4  # type: ignore[arg-type]  # 0 is its own only factor


# --- what a search finds


@PATIENT
@given(NUMBERS, st.integers(0, 200), OPTIONS, st.integers(0, 99))
def test_solutions_verify_and_logs_keep_their_form(
    numbers: tuple[int, ...], target: int, options: SearchOptions, seed: int
) -> None:
    log = solver(numbers, target, options, seed)
    assert log == solver(numbers, target, options, seed)  # equal generators, equal logs
    for level, part in logs(log):
        assert part.target == target
        if part.solution is not None:
            assert verify(numbers, target, ", ".join(map(str, part.solution))).ok
            last = part.events[-1]
            if isinstance(last, Spawned):  # a child found it
                assert part.solution in [child.solution for child in last.children]
            else:
                assert isinstance(last, Leaf) and last.step == part.solution[-1]
        for event in part.events:
            if isinstance(event, Spawned):
                assert level < options.spawn_depth
                assert len(event.children) > 1 if options.wave is None else len(event.children) <= options.wave
                starts = [child.start for child in event.children]
                assert options.duplicates or len(set(starts)) == len(starts)
            elif isinstance(event, Visited | Queued):
                assert event.node != part.start  # which the prompt or the message tells
                assert event.node.path[: len(part.start.path)] == part.start.path
            if options.value_cap is not None and not isinstance(event, Spawned):
                path = (event.step,) if isinstance(event, Leaf) else event.node.path
                assert all(step.result <= options.value_cap for step in path)
    assert log.solution is not None or all(part.solution is None for _, part in logs(log))
    if log.solution is None:
        assert all(step.result != target for step in leaves(log))


@settings(PATIENT, max_examples=25)
@given(NUMBERS, st.integers(0, 60), OPTIONS)
def test_a_beam_that_keeps_all_solves_all_that_is_solvable(
    numbers: tuple[int, ...], target: int, options: SearchOptions
) -> None:
    numbers = numbers[:3]
    wide = replace(options, beam=WIDE, child_beam=WIDE, value_cap=None, prune="beam")
    assert (solver(numbers, target, wide).solution is not None) == (target in reachable(numbers))


@PATIENT
@given(NUMBERS, OPTIONS, st.integers(0, 99))
def test_spawned_and_serial_searches_look_at_the_same_where_nothing_is_solved(
    numbers: tuple[int, ...], options: SearchOptions, seed: int
) -> None:
    impossible = 7919  # prime, and above what four numbers to 20 are likely to make
    equal = replace(options, child_beam=options.beam, child_promising_share=None)
    serial = solver(numbers, impossible, replace(equal, spawn_depth=0), seed)
    spawned = solver(numbers, impossible, replace(equal, spawn_depth=2), seed)
    if serial.solution is not None:
        return
    assert leaves(serial) == leaves(spawned)
    assert [e for e in flat(serial) if isinstance(e, Queued)] == [e for e in flat(spawned) if isinstance(e, Queued)]


# --- options


@pytest.mark.parametrize("spawn_depth", [0, 1])
def test_beams_prune_by_heuristic(spawn_depth: int) -> None:
    numbers, target = (3, 7, 11), 24
    options = SearchOptions(beam=2, child_beam=1, promising_share=1.0, spawn_depth=spawn_depth)
    log = solver(numbers, 7919, options)
    ranked = sorted(children(Node(numbers, ())), key=lambda node: distance(node.numbers, 7919, options.heuristic))
    looked = {node.numbers for node in ranked[:2]}
    if spawn_depth:
        *promising, spawn = log.events
        assert isinstance(spawn, Spawned)
        assert [Promising(child.start) for child in spawn.children] == promising
        assert {child.start.numbers for child in spawn.children} == looked
        assert all(len(child.events) == 1 for child in spawn.children)  # the children's own beam
    else:
        assert {event.node.numbers for event in log.events if isinstance(event, Visited)} == looked
        assert len(leaves(log)) == 2 * 2
    full = solver(numbers, target, replace(options, beam=WIDE, child_beam=WIDE))
    assert full.solution is not None or len(leaves(full)) > 4


def test_share_0_is_breadth_first_best_first() -> None:
    log = solver((3, 7, 11, 13), 7919, SearchOptions(beam=4, child_beam=4, promising_share=0.0))
    heap: list[tuple[float, int, Node]] = []
    count = 0
    for event in log.events:
        if isinstance(event, Queued):
            count += 1
            heapq.heappush(heap, (distance(event.node.numbers, 7919, "numbers_to_factors"), count, event.node))
        elif isinstance(event, Visited):
            assert event.node == heapq.heappop(heap)[2]
    assert count == 4 + 4 * 4 and not heap
    assert not any(isinstance(event, Spawned) for event in log.events)


def test_share_1_is_depth_first() -> None:
    log = solver((3, 7, 11, 13), 7919, SearchOptions(beam=3, child_beam=3, promising_share=1.0))
    assert queued(log) == []
    visited = [event.node for event in log.events if isinstance(event, Visited)]
    assert [len(node.path) for node in visited] == [1, 2, 2, 2] * 3
    for node, before in zip(visited[1:], visited):
        parent = before.path[: len(node.path) - 1]
        assert node.path[: len(parent)] == parent


def test_promising_is_decided_per_node_or_per_child() -> None:
    def first_queued(promising: str, seed: int) -> int:
        options = SearchOptions(5, 5, promising_share=0.5, promising=promising)  # type: ignore[arg-type]
        log = solver((3, 7, 11), 7919, options, seed)
        return len(queued(log))  # with three numbers only the root's children can be queued

    assert {first_queued("per_node", seed) for seed in range(40)} == {0, 5}
    assert {first_queued("per_child", seed) for seed in range(60)} >= {1, 2, 3, 4}


def test_the_order_in_which_kept_children_are_looked_at() -> None:
    def order(name: str, seed: int = 0) -> list[Node]:
        options = SearchOptions(4, 4, promising_share=0.0, order=name)  # type: ignore[arg-type]
        return queued(solver((3, 7, 11), 24, options, seed))

    def rank(node: Node) -> float:
        return distance(node.numbers, 24, "numbers_to_factors")

    everything = children(Node((3, 7, 11), ()))
    canonical, by_heuristic = order("canonical"), order("heuristic")
    assert canonical == [node for node in everything if node in canonical]
    assert by_heuristic == sorted(everything, key=rank)[:4]
    assert canonical != by_heuristic  # or this test would say nothing
    shuffles = [order("shuffled", seed) for seed in range(8)]
    assert all(sorted(shuffle) == sorted(canonical) for shuffle in shuffles)
    assert len({tuple(shuffle) for shuffle in shuffles}) > 1


def test_value_cap_keeps_large_numbers_out_of_sight() -> None:
    options = SearchOptions(WIDE, WIDE, value_cap=50)
    log = solver((5, 9, 20), 7919, options)
    assert max(step.result for step in leaves(log)) <= 50
    assert max(step.result for step in leaves(solver((5, 9, 20), 7919, replace(options, value_cap=None)))) == 900


def test_child_logs_start_where_they_were_spawned() -> None:
    options = SearchOptions(beam=3, child_beam=2, spawn_depth=2)
    log = solver((3, 7, 11, 13), 7919, options)
    assert [level for level, _ in logs(log)] == [0] + [1, 2, 2] * 3
    for level, part in logs(log):
        assert len(part.start.path) == level and len(part.start.numbers) == 4 - level
        assert not isinstance(part.events[0], Visited)  # the message tells where it starts
    assert log.solution is None and len(leaves(log)) == 3 * 2 * 2


def test_waves_end_with_the_first_that_succeeds() -> None:
    """The same searches as all at once, in the same order, as far as they go; unfolded, both are the same."""
    together, waves = SearchOptions(WIDE, WIDE, spawn_depth=1), SearchOptions(WIDE, WIDE, spawn_depth=1, wave=3)
    numbers, target = (3, 7, 11), 56
    log, parts = solver(numbers, target, together), solver(numbers, target, waves)
    spawns = [event.children for event in parts.events if isinstance(event, Spawned)]
    [children] = [event.children for event in log.events if isinstance(event, Spawned)]
    told = [child for spawn in spawns for child in spawn]
    assert told == list(children[: len(told)]) and 3 < len(told) < len(children)
    assert [any(child.solution is not None for child in spawn) for spawn in spawns] == [False] * (len(spawns) - 1) + [
        True
    ]
    assert parts.solution == log.solution and unfold(parts) == unfold(log)


def test_a_childs_solution_is_its_parents() -> None:
    log = solver((3, 7, 11), 7 * 11 - 3, SearchOptions(WIDE, WIDE, spawn_depth=1))
    *_, spawn = log.events
    assert isinstance(spawn, Spawned)
    solutions = [child.solution for child in spawn.children if child.solution is not None]
    assert log.solution == solutions[0]
    assert any(child.solution is None for child in spawn.children)


def test_duplicates_take_places_in_the_beam_if_kept() -> None:
    assert [str(child.path[-1]) for child in children(Node((1, 2), ()), duplicates=True)] == [
        "2+1=3", "2-1=1", "2*1=2", "2/1=2"
    ]  # fmt: skip
    assert [str(child.path[-1]) for child in children(Node((1, 2), ()))] == ["2+1=3", "2-1=1", "2*1=2"]
    both = SearchOptions(beam=1, child_beam=1, promising_share=1.0, duplicates=True)
    assert len(leaves(solver((1, 2), 2, both))) == 1


def test_pruning_by_target_keeps_what_is_no_farther_than_it() -> None:
    # Depth first as in Stream of Search: no beam, best first.
    options = SearchOptions(beam=1, child_beam=1, order="heuristic", prune="target")
    log = solver((3, 7, 11), 24, options)
    looked = {event.node.numbers for event in log.events if isinstance(event, Promising)}
    near = {c.numbers for c in children(Node((3, 7, 11), ())) if distance(c.numbers, 24, "numbers_to_factors") <= 24}
    assert looked == near and len(near) > 2
    far = {c.numbers for c in children(Node((3, 7, 11), ()))} - near
    assert far


def test_child_threads_may_have_a_share_of_their_own() -> None:
    options = SearchOptions(beam=4, child_beam=4, promising_share=1.0, child_promising_share=0.0, spawn_depth=1)
    log = solver((3, 7, 11, 13), 7919, options)
    below = [child for level, child in logs(log) if level]
    assert len(below) == 4
    assert all(any(isinstance(event, Queued) for event in child.events) for child in below)
    assert not any(isinstance(event, Promising) for child in below for event in child.events)


def test_the_mean_distance_to_the_target() -> None:
    assert distance((3, 7), 24, "numbers_to_target") == (21 + 17) / 2
    assert distance((30,), 24, "numbers_to_target") == 6


@PATIENT
@given(NUMBERS, st.integers(0, 60), OPTIONS, st.integers(0, 1000))
def test_unfolding_runs_the_childrens_searches_up_to_the_first_success(
    numbers: tuple[int, ...], target: int, options: SearchOptions, seed: int
) -> None:
    log = solver(numbers, target, options, seed)
    serial = unfold(log)
    assert not any(isinstance(event, Spawned) for event in serial.events)
    assert (serial.start, serial.target, serial.solution) == (log.start, target, log.solution)
    # The same tests in the same order; all of them if none succeeds.
    assert leaves(serial) == leaves(log)[: len(leaves(serial))]
    if log.solution is None:
        assert leaves(serial) == leaves(log)
    elif leaves(serial):
        assert leaves(serial)[-1].result == target
        assert all(step.result != target for step in leaves(serial)[:-1])
    spawned = [child.start for _, one in logs(log) for event in one.events if isinstance(event, Spawned)
               for child in event.children]  # fmt: skip
    if log.solution is None:
        visited = [event.node for event in serial.events if isinstance(event, Visited)]
        assert all(start in visited for start in spawned)

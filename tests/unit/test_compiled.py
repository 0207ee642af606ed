"""The fast path makes what the plain solvers, speller and costs make."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from apr.errors import DataError
from apr.protocols import protocol_by_name
from apr.protocols.spawn_join import SpawnJoin
from apr.seeds import SplitMix64
from apr.threads.trace import Trace
from apr.tokens.speller import condition_of
from envs.countdown.compact import CompactSpeller
from envs.countdown.demonstrate import conditioned, widest_spawn
from envs.countdown.log import Node, SearchLog, Spawned
from envs.countdown.teacher import SearchTeacher
from envs.countdown.wording import spell
from solvers.compiled import Chunk, demonstrations, logs, solvable
from solvers.exhaustive import reachable
from solvers.search import SearchOptions, search, unfold

ROOT = Path(__file__).parents[2]
SPELLER = CompactSpeller()
PROTOCOL = SpawnJoin(SPELLER.vocabulary.control)
WIDE = 10_000  # a beam that keeps all

OPTIONS = st.builds(
    SearchOptions,
    beam=st.just(1),  # not read
    child_beam=st.just(1),
    promising_share=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    promising=st.sampled_from(["per_child", "per_node"]),
    heuristic=st.sampled_from(["sum_to_factors", "numbers_to_factors", "numbers_to_target"]),
    order=st.sampled_from(["canonical", "heuristic", "shuffled"]),
    child_promising_share=st.sampled_from([None, 0.0, 0.5]),
    prune=st.sampled_from(["beam", "beam", "target"]),
    duplicates=st.booleans(),
    spawn_depth=st.integers(0, 3),
    wave=st.sampled_from([None, None, 1, 2, 3]),
    value_cap=st.sampled_from([None, None, 10, 300]),
)


class Batch:
    """Problems of equally many numbers, their beams and seeds; both ways to search them."""

    def __init__(self, size: int, seed: int, problems: int = 4, high: int = 99, beams: int = 7) -> None:
        rng = random.Random(seed)
        low = rng.choice([0, 1])
        self.numbers = np.sort([[rng.randint(low, high) for _ in range(size)] for _ in range(problems)], axis=1)
        self.targets = np.array([self._target(rng, numbers) for numbers in self.numbers.tolist()])
        self.beams = np.array([rng.randint(1, beams) for _ in range(problems)])
        self.child_beams = np.array([rng.randint(1, beams) for _ in range(problems)])
        self.seeds = np.array([rng.getrandbits(64) for _ in range(problems)], np.uint64)

    @staticmethod
    def _target(rng: random.Random, numbers: list[int]) -> int:
        """Often solvable, sometimes tiny."""
        if len(numbers) < 5 and rng.random() < 0.5:
            return rng.choice(sorted(reachable(tuple(numbers))))
        return rng.randint(0, rng.choice([3, 120]))

    def __len__(self) -> int:
        return len(self.targets)

    def fast(self, options: SearchOptions, unfolded: bool) -> list[SearchLog]:
        return logs(self.numbers, self.targets, options, self.beams, self.child_beams, self.seeds, unfolded)

    def chunk(self, options: SearchOptions, unfolded: bool, condition: Any = "none", context_bin: int = 512) -> Chunk:
        given = self.numbers, self.targets, options, self.beams, self.child_beams, self.seeds
        return demonstrations(*given, unfolded, condition, context_bin)

    def plain(self, options: SearchOptions, unfolded: bool) -> list[SearchLog]:
        found = []
        for row in range(len(self)):
            own = replace(options, beam=int(self.beams[row]), child_beam=int(self.child_beams[row]))
            start = Node(tuple(self.numbers[row].tolist()), ())
            log = search(int(self.targets[row]), start, own, SplitMix64(int(self.seeds[row])))
            found.append(unfold(log) if unfolded else log)
        return found


def strands(chunk: Chunk, row: int) -> list[tuple[int, ...]]:
    """The strands of one problem, cut out of the flat arrays."""
    first = chunk.row_ends[row - 1] if row else 0
    found = []
    for strand in range(first, chunk.row_ends[row]):
        begin = chunk.strand_ends[strand - 1] if strand else 0
        found.append(tuple(chunk.tokens[begin : chunk.strand_ends[strand]].tolist()))
    return found


def events(log: SearchLog) -> int:
    """How many there are, in child threads too."""
    inner = [child for event in log.events if isinstance(event, Spawned) for child in event.children]
    return len(log.events) + sum(map(events, inner))


# --- searches


@settings(max_examples=100)
@given(st.integers(2, 5), st.integers(0, 2**32), OPTIONS, st.booleans())
def test_searches_are_those_of_the_plain_solver(size: int, seed: int, options: SearchOptions, unfolded: bool) -> None:
    batch = Batch(size, seed, beams=7 if size < 5 else 3)
    assert batch.fast(options, unfolded) == batch.plain(options, unfolded)


@pytest.mark.parametrize("room", [1, 40, 500])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_search_that_outgrows_its_room_starts_again(monkeypatch: pytest.MonkeyPatch, room: int, share: float) -> None:
    monkeypatch.setattr("solvers.compiled._ROOM", room)
    batch, options = Batch(4, 3, problems=6), SearchOptions(1, 1, share, order="shuffled", spawn_depth=1)
    plain = batch.plain(options, False)
    assert sum(map(events, plain)) > 500
    assert batch.fast(options, False) == plain
    chunk = batch.chunk(options, False)
    assert [strands(chunk, row) for row in range(len(batch))] == [spell(log, SPELLER, PROTOCOL) for log in plain]


def test_numbers_beyond_32_bits() -> None:
    batch = Batch(2, 0, problems=3)
    batch.numbers = np.array([[2, 10**9], [3 * 10**6, 10**7], [0, 2**50]])
    batch.targets = np.array([5 * 10**3, 3, 7])
    for heuristic in ("sum_to_factors", "numbers_to_factors", "numbers_to_target"):
        options = SearchOptions(1, 1, heuristic=heuristic)  # type: ignore[arg-type]
        batch.beams[:] = WIDE
        assert batch.fast(options, False) == batch.plain(options, False)
        chunk = batch.chunk(options, False)
        assert [strands(chunk, row) for row in range(3)] == [
            spell(log, SPELLER, PROTOCOL) for log in batch.plain(options, False)
        ]


def test_numbers_may_come_in_any_order_and_arrays_read_only() -> None:
    batch, options = Batch(4, 5), SearchOptions(1, 1, 0.5, spawn_depth=1)
    expected = batch.chunk(options, False)
    batch.numbers = batch.numbers[:, ::-1]
    for array in (batch.targets, batch.beams, batch.seeds):
        array.setflags(write=False)
    assert all(np.array_equal(one, other) for one, other in zip(expected, batch.chunk(options, False)))


# --- demonstrations


@settings(max_examples=100)
@given(
    st.integers(2, 4), st.integers(0, 2**32), OPTIONS, st.booleans(),
    st.sampled_from(["none", "context", "children"]), st.sampled_from([16, 100, 512]),
)  # fmt: skip
@example(4, 0, SearchOptions(1, 1, 0.9, "per_node", order="shuffled", spawn_depth=1), False, "children", 512)
def test_demonstrations_are_those_of_the_plain_path(
    size: int, seed: int, options: SearchOptions, unfolded: bool, condition: str, context_bin: int
) -> None:
    unfolded = unfolded and options.spawn_depth > 0
    protocol_name = "serial" if unfolded or not options.spawn_depth else "spawn_join"
    if protocol_name == "serial" and condition == "children":
        condition = "none"
    solver = SearchTeacher(
        protocol=protocol_name, spawn_depth=options.spawn_depth, unfold=unfolded, condition=condition,
        context_bin=context_bin,
    )  # fmt: skip
    protocol = protocol_by_name(protocol_name, SPELLER)
    batch = Batch(size, seed)
    chunk = batch.chunk(options, unfolded, condition, context_bin)
    assert chunk.tokens.dtype == np.uint16
    assert (len(chunk.tokens), len(chunk.strand_ends)) == (chunk.strand_ends[-1], chunk.row_ends[-1])
    for row, log in enumerate(batch.plain(options, unfolded)):
        problem = {"id": "p", "numbers": list(log.start.numbers), "target": log.target}
        trace = conditioned(log, solver, SPELLER, protocol, problem)
        assert strands(chunk, row) == spell(log, SPELLER, PROTOCOL) == [strand.sampled for strand in trace.strands]
        assert facts(chunk, row) == facts_of(trace, log)


def facts(chunk: Chunk, row: int) -> dict[str, int | bool]:
    return {name: getattr(chunk, name)[row].item() for name in Chunk._fields[3:]}


def facts_of(trace: Trace, log: SearchLog) -> dict[str, int | bool]:
    assert trace.costs is not None
    condition = condition_of(trace.problem)
    return {
        "solved": trace.correct,
        "condition": -1 if condition is None else condition.value,
        "children": widest_spawn(log),
        "context": trace.costs.context,
        "work": trace.costs.work,
        "work_sampled": trace.costs.work_sampled,
        "span_sampled": trace.costs.span_sampled,
        "threads": trace.costs.threads,
    }


def test_a_long_chunk_is_its_problems_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solvers.compiled._ROOM", 1000)  # so it is made in parts
    batch, options = Batch(3, 1, problems=70), SearchOptions(1, 1, 0.5, spawn_depth=1)
    whole = batch.chunk(options, False, "context")
    for row in range(70):
        alone = Batch(3, 1, problems=70)
        for name in ("numbers", "targets", "beams", "child_beams", "seeds"):
            setattr(alone, name, getattr(batch, name)[row : row + 1])
        part = alone.chunk(options, False, "context")
        assert strands(whole, row) == strands(part, 0)
        assert facts(whole, row) == facts(part, 0)


def test_no_problems_make_an_empty_chunk() -> None:
    empty = Batch(4, 0, problems=1)
    for name in ("numbers", "targets", "beams", "child_beams", "seeds"):
        setattr(empty, name, getattr(empty, name)[:0])
    chunk = empty.chunk(SearchOptions(1, 1), False, "context")
    assert [len(column) for column in chunk] == [0] * len(Chunk._fields)
    assert solvable(empty.numbers, empty.targets).tolist() == []


# --- solvable or not


@settings(max_examples=60)
@given(st.integers(2, 5), st.integers(0, 2**32), st.sampled_from([3, 12, 99]))
def test_solvable_is_reachable(size: int, seed: int, high: int) -> None:
    rng = random.Random(seed)
    numbers = [rng.randint(0, high) for _ in range(size)]
    values = reachable(tuple(sorted(numbers)))
    targets = [rng.randint(0, 100) for _ in range(40)] + rng.sample(sorted(values), min(40, len(values)))
    found = solvable(np.array([numbers] * len(targets)), np.array(targets))
    assert found.tolist() == [target in values for target in targets]


@pytest.mark.parametrize("numbers", [[1, 2, 2, 3, 3, 4], [0, 0, 1, 5, 5, 5]])
def test_solvable_with_six_numbers(numbers: list[int]) -> None:
    values = reachable(tuple(numbers))
    targets = [*range(0, 300, 7), *sorted(values)[-10:], max(values) + 1]
    found = solvable(np.array([numbers] * len(targets)), np.array(targets))
    assert found.tolist() == [target in values for target in targets]
    assert not found[-1]


def test_a_product_that_wraps_around_solves_nothing() -> None:
    number, target = 2**20, 2**44 + 1
    assert target * number % 2**64 == number  # as if number / number were the target
    assert solvable(np.array([[number, number]] * 2), np.array([target, 1])).tolist() == [False, True]


# --- refusals


@pytest.mark.parametrize(
    ("numbers", "target"),
    [([10**5, 10**5, 10**6], 5), ([3, -1], 2), ([1, 2], -1), ([1, 2], 2**52), ([2**62, 2**62], 9)],
)
def test_what_may_overflow_is_refused(numbers: list[int], target: int) -> None:
    batch = Batch(len(numbers), 0, problems=1)
    batch.numbers, batch.targets = np.array([numbers]), np.array([target])
    for work in (lambda: solvable(batch.numbers, batch.targets), lambda: batch.chunk(SearchOptions(1, 1), False)):
        with pytest.raises(DataError, match="too large for compiled solvers"):
            work()


def test_six_numbers_below_100_are_within_the_bound() -> None:
    assert solvable(np.full((1, 6), 99), np.array([99**6 % 2**31])).tolist() == [False]
    assert solvable(np.full((1, 6), 99), np.array([99**6])).tolist() == [True]


def test_arrays_of_a_wrong_form_are_refused() -> None:
    batch, options = Batch(4, 0), SearchOptions(1, 1)
    for name, wrong, message in (
        ("numbers", np.ones((4, 7), np.int64), "shape"),
        ("targets", batch.targets[:2], "shape"),
        ("targets", batch.targets.astype(np.float64), "int64"),
        ("beams", batch.beams[:2], "equally long"),
        ("beams", batch.beams * 0, "at least 1"),
        ("seeds", batch.seeds.astype(np.int64), "uint64"),
    ):
        right = getattr(batch, name)
        setattr(batch, name, wrong)
        with pytest.raises(DataError, match=message):
            batch.chunk(options, False)
        setattr(batch, name, right)


def test_a_second_process_compiles_nothing() -> None:
    Batch(4, 0).chunk(SearchOptions(1, 1), False)  # compiled here, or before
    solvable(np.array([[1, 2]]), np.array([3]))
    code = """
import numpy as np, solvers.compiled as fast, solvers.compiled_exhaustive, solvers.compiled_search
import apr.threads.costs_compiled, envs.countdown.compact_compiled
one, seeds = np.array([5]), np.array([5], np.uint64)
fast.demonstrations(np.array([[2, 3, 4]]), one, fast.SearchOptions(1, 1), one, one, seeds, False, "none", 512)
fast.solvable(np.array([[1, 2]]), np.array([3]))
entries = (
    solvers.compiled_exhaustive._solvable, solvers.compiled_search.search_from,
    apr.threads.costs_compiled._count_all, envs.countdown.compact_compiled._spell_all,
)
print([(sum(e.stats.cache_hits.values()), sum(e.stats.cache_misses.values())) for e in entries])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == str([(1, 0)] * 4)


def test_the_command_line_does_not_load_numba() -> None:
    code = "import sys, apr.cli\ntry: apr.cli.main(['--help'])\nexcept SystemExit: assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)

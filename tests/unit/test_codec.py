"""Trace files: exact round trips, and what a killed or corrupted writer leaves."""

import gzip
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.errors import DataError, ResourceError
from apr.protocols.spawn_join import SpawnJoin
from apr.seeds import SplitMix64
from apr.threads.codec import TraceWriter, from_json, read_traces, to_json
from apr.threads.costs import costs
from apr.threads.trace import (
    Costs,
    EngineStop,
    Injected,
    Origin,
    Outcome,
    Reference,
    StopReason,
    Strand,
    StrandId,
    Thread,
    Trace,
    VersionSpan,
)
from envs.countdown.compact import CompactSpeller
from envs.countdown.log import Node
from envs.countdown.wording import encode
from solvers.search import SearchOptions, search

TOKENS = st.lists(st.integers(0, 250), max_size=6).map(tuple)
SECONDS = st.floats(0, 1e6)
PLAIN = st.dictionaries(
    st.text(max_size=6), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()), max_size=3
)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Any DAG of strands over a few threads, with any field filled or not."""
    strands: list[Strand] = []
    names = ["r"] + [f"r.{i}" for i in range(draw(st.integers(0, 3)))]
    for name in names:
        for number in range(draw(st.integers(0, 2))):
            known = st.lists(st.sampled_from(strands), max_size=2, unique=True) if strands else st.just([])
            seen = draw(known)
            sampled = draw(TOKENS)
            n = len(sampled)
            injected = draw(st.lists(st.builds(Injected, st.sampled_from(Origin), TOKENS), max_size=2).map(tuple))
            strands.append(
                Strand(
                    StrandId(name, number),
                    tuple(Reference(s.id, draw(st.integers(0, len(s.ids)))) for s in seen),
                    tuple(s.id for s in draw(known)),
                    draw(st.integers(0, 500)),
                    injected,
                    sampled,
                    draw(st.sampled_from(EngineStop)),
                    draw(st.none() | st.tuples(*[st.floats(max_value=0.0, allow_nan=False)] * n)),
                    draw(st.sampled_from([(), (VersionSpan(3, 0, n),)])),
                    draw(st.integers(0, sum(len(run.ids) for run in injected))),  # cached: no more than was sent
                    draw(SECONDS),
                    draw(SECONDS),
                )
            )
    threads = tuple(
        Thread(
            name,
            None if name == "r" else "r",
            name.count("."),
            tuple(s.id for s in strands if s.id.thread == name),
            draw(st.sampled_from(StopReason)),
            draw(TOKENS),
        )
        for name in names
    )
    return Trace(
        {**draw(PLAIN), "id": draw(st.text(min_size=1))}, "spawn_join", draw(st.integers(0, 9)), draw(st.integers(0, 9)),
        threads, tuple(strands),
        answer=draw(st.none() | st.text()),
        outcome=draw(st.none() | st.builds(Outcome, st.sampled_from(StopReason), st.booleans(), st.text())),
        costs=draw(st.sampled_from([None, costs(threads, tuple(strands))])),
        limits=draw(PLAIN), budgets=draw(PLAIN),
        reward=draw(st.dictionaries(st.text(), st.floats(allow_nan=False), max_size=2)),
    )  # fmt: skip


@settings(deadline=None)
@given(traces())
def test_json_round_trip_is_exact(trace: Trace) -> None:
    back = from_json(json.loads(json.dumps(to_json(trace))))
    assert back == trace
    assert repr(back) == repr(trace)  # equal also in types: a StrandId, not a list; 0.0, not 0


def example(target: int) -> Trace:
    speller = CompactSpeller()
    log = search(target, Node((3, 5, 8), ()), SearchOptions(3, 2, spawn_depth=1), SplitMix64(0))
    problem = {"id": f"p{target}", "numbers": [3, 5, 8], "target": target}
    return encode(log, speller, SpawnJoin(speller.vocabulary.control), problem)


def test_file_round_trip_over_several_writers(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl.gz"
    expected = [example(target) for target in range(10, 16)]
    for part in (expected[:2], expected[2:5], [], expected[5:]):
        with TraceWriter(path) as writer:
            for trace in part:
                writer.append(trace)
    assert list(read_traces(path)) == expected
    assert len(gzip.decompress(path.read_bytes()).splitlines()) == 6  # one trace a line


def test_equal_traces_make_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with TraceWriter(tmp_path / name) as writer:
            writer.append(example(24))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_killed_between_flushes_leaves_a_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl.gz"
    writer = TraceWriter(path)
    writer.append(example(10))
    writer.flush()
    writer.append(example(11))  # never flushed: as if the process died here
    assert list(read_traces(path)) == [example(10)]


def test_torn_tail_is_an_error_to_readers_and_dropped_by_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl.gz"
    sizes = []
    for target in (10, 11):
        with TraceWriter(path) as writer:
            writer.append(example(target))
        sizes.append(path.stat().st_size)
    whole = path.read_bytes()
    for size in range(sizes[0] + 1, sizes[1], 7):
        path.write_bytes(whole[:size])
        seen = []
        with pytest.raises(DataError, match=r"traces\.jsonl\.gz, line [23]: .*cut off"):
            for trace in read_traces(path):
                seen.append(trace)
        assert seen[0] == example(10)
        with TraceWriter(path) as writer:
            writer.append(example(12))
        assert list(read_traces(path)) == [example(10), example(12)]


def test_failed_write_leaves_no_torn_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "traces.jsonl.gz"
    writer = TraceWriter(path)
    writer.append(example(10))
    writer.flush()
    file = writer._file

    class FullDisk:
        def write(self, data: memoryview) -> int:
            if len(data) < 50:
                raise OSError(28, "No space left on device")
            return file.write(data[:-20])

        def __getattr__(self, name: str) -> Any:
            return getattr(file, name)

    writer._file = FullDisk()  # type: ignore[assignment]
    writer.append(example(11))
    with pytest.raises(ResourceError, match=r"no space left to write .*traces\.jsonl\.gz"):
        writer.flush()
    assert list(read_traces(path)) == [example(10)]
    writer._file = file
    writer.close()  # room again: nothing was lost
    assert list(read_traces(path)) == [example(10), example(11)]


def test_corruption_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl.gz"
    good = json.dumps(to_json(example(10)))
    for bad in ("{not json", "[1, 2]", '{"schema": "apr.trace/1"}', '"text"'):
        path.write_bytes(gzip.compress(f"{good}\n{bad}\n".encode()))
        with pytest.raises(DataError, match=r"traces\.jsonl\.gz, line 2:"):
            list(read_traces(path))
    path.write_bytes(good.encode())
    with pytest.raises(DataError, match="line 1: the file is corrupt"):
        list(read_traces(path))
    with pytest.raises(DataError, match="corrupt after byte 0"):
        TraceWriter(path)
    with pytest.raises(DataError, match="no such trace file"):
        list(read_traces(tmp_path / "absent"))


def test_other_schema_names_the_version_needed() -> None:
    with pytest.raises(DataError, match=r"knows 'apr\.trace/2'"):
        from_json({**to_json(example(10)), "schema": "apr.trace/2"})


def broken(**fields: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(to_json(example(24))))
    return {**data, **fields}


def broken_strand(**fields: Any) -> dict[str, Any]:
    data = broken()
    data["strands"][1].update(fields)
    return data


@pytest.mark.parametrize(
    "data",
    [
        None,
        broken(step="1"),
        broken(step=True),
        broken(threads=[]),
        broken(outcome={"stop": "bored", "correct": True, "reason": ""}),
        broken(costs={"work": 1}),
        broken(problem=None),
        broken(problem=[["id", "p24"]]),
        broken(problem={"numbers": [3, 5, 8]}),
        broken(strands=[]),
        broken_strand(sampled=[1, "2"]),
        broken_strand(sampled=[1.0]),
        broken_strand(logprobs=[-0.5]),
        broken_strand(after=[["r", 7]]),
        broken_strand(sees=[[["r", 0], 10_000]]),
        broken_strand(id=["r", 0]),
        broken_strand(id=["r.9", 0]),
        broken_strand(injected=[["heaven", [1]]]),
    ],
)
def test_malformed_traces_are_data_errors(data: Any) -> None:
    with pytest.raises(DataError):
        from_json(data)


COUNTS = [field.name for field in fields(Costs) if field.name != "seconds"]
NOT_PLAIN = (
    st.none() | st.booleans() | st.lists(st.integers(), max_size=2) | st.dictionaries(st.text(), st.none(), max_size=1)
)
NO_NUMBER = NOT_PLAIN | st.text(max_size=3)
NO_SECONDS = NO_NUMBER | st.sampled_from([float("nan"), float("inf"), float("-inf"), 10**400])


@settings(deadline=None)
@given(
    st.tuples(
        st.just("problem"),
        NO_NUMBER | st.integers() | st.fixed_dictionaries({"id": NOT_PLAIN | st.just("") | st.integers()}),
    )
    | st.tuples(st.sampled_from(["started", "ended", "seconds"]), NO_SECONDS)
    | st.tuples(st.sampled_from(COUNTS), NO_NUMBER | st.floats() | st.integers(max_value=-1) | st.just(10**400)),
)
def test_what_readers_could_not_count_with_is_a_data_error(unfit: tuple[str, Any]) -> None:
    name, value = unfit
    data = broken()
    holder = data["costs"] if name in data["costs"] else data["strands"][0] if name in data["strands"][0] else data
    holder[name] = value
    with pytest.raises(DataError, match="malformed trace: .*write the trace again"):
        from_json(json.loads(json.dumps(data)))


def test_a_lenient_reader_names_the_lines_that_are_unfit_and_goes_on(tmp_path: Path) -> None:
    lines = [broken(), broken_strand(ended=float("nan")), broken(outcome=None, costs=None), broken(problem={"id": 3})]
    path = tmp_path / "traces.jsonl.gz"
    path.write_bytes(gzip.compress("".join(f"{json.dumps(line)}\n" for line in lines).encode()))
    told: list[str] = []
    assert [trace.costs is None for trace in read_traces(path, lambda fault: told.append(str(fault)))] == [False, True]
    assert len(told) == 2
    assert "line 2: malformed trace: ended is nan" in told[0] and "line 4: malformed trace: 3 is not" in told[1]


def test_missing_field_is_named() -> None:
    data = to_json(replace(example(24), answer=None))
    del data["answer"]
    with pytest.raises(DataError, match="'answer' is missing"):
        from_json(data)

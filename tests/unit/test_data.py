"""Data sets: the same from the same seed, in files that are whole or not there, and refused when they are neither."""

import errno
import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.config import DataConfig, SolverConfig
from apr.data import generate as generating
from apr.data import store
from apr.data.card import content_hashes
from apr.data.check import check_folder
from apr.data.demonstrate import demonstrate
from apr.data.generate import demonstrations, generate
from apr.data.shards import content_hash, rows_hash, shard_facts, shard_path, shard_paths
from apr.data.store import (
    DEMONSTRATION_COLUMNS,
    DEMONSTRATIONS,
    PROBLEMS,
    demonstrations_folder,
    demonstrations_hash,
    demonstrations_table,
    problems_folder,
    problems_hash,
    read_demonstrations,
    read_problems,
    write_demonstrations,
    write_problems,
)
from apr.data.teacher import Teacher, demonstrations_of, fast, plain
from apr.errors import ConfigError, DataError, ResourceError, RunDirectoryError
from apr.presets import check
from apr.protocols import protocol_by_name
from apr.runs import run_directory
from apr.threads.trace import Trace
from apr.tokens.compact import CompactDialect
from envs.countdown.env import MAX_NUMBER, SPLITS, Countdown, CountdownSpec, Problems, problem_of

COMPACT = CompactDialect()

# 3 shards of training problems, 1 of validation, 2 of test, and for each teacher 3.
EASY = {
    "problems": {"numbers": 3, "low": 1, "high": 9, "target_low": 5, "target_high": 30, "test_share": 0.3},
    "train": 20, "validation": 5, "test": 10, "demonstrations_per_problem": 2, "shard_rows": 8,
    "solvers": {
        "sos_plus": {"protocol": "serial", "beams": [1, 3]},
        "spawn_join": {"protocol": "spawn_join", "spawn_depth": 1, "beams": [1, 3]},
    },
}  # fmt: skip
SHARDS = 12


def config(out: Path, **more: Any) -> DataConfig:
    return check(DataConfig, {**EASY, **more, "out": out}, "test")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}


def first(folder: Path, solver: str) -> Path:
    return shard_paths(demonstrations_folder(folder, solver), "train")[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "set"
    generate(config(out))
    return out


def test_the_same_seed_makes_the_same_files(made: Path, tmp_path: Path) -> None:
    generate(config(tmp_path / "again"))
    assert files(tmp_path / "again") == files(made)
    assert len(files(made)) == SHARDS
    assert (tmp_path / "again" / "README.md").read_text() == (made / "README.md").read_text()
    generate(config(tmp_path / "other", seed=1))
    ours, others = (content_hashes(folder, EASY["solvers"]) for folder in (made, tmp_path / "other"))
    assert ours.keys() == others.keys() and not set(ours.values()) & set(others.values())


def test_splits_hold_what_was_asked_for_and_share_no_numbers(made: Path) -> None:
    problems = {split: read_problems(made, split) for split in SPLITS}
    assert {split: len(found) for split, found in problems.items()} == {"train": 20, "validation": 5, "test": 10}
    multisets = [{tuple(problem["numbers"]) for problem in found} for found in problems.values()]
    assert len(set.union(*multisets)) == sum(map(len, multisets))
    env = Countdown(CountdownSpec(**EASY["problems"]), COMPACT)
    assert problems == {split: env.problems(split, len(found), 0) for split, found in problems.items()}


@pytest.mark.parametrize("solver", EASY["solvers"])
def test_what_is_read_are_the_demonstrations_of_the_training_problems(solver: str, made: Path) -> None:
    teacher = config(made).solvers[solver]
    protocol = protocol_by_name(teacher.protocol, COMPACT)
    problems = read_problems(made, "train")
    expected = [demonstrate(one, teacher, COMPACT, protocol, 0, copy) for one in problems for copy in range(2)]
    traces = list(read_demonstrations(made, solver))
    assert traces == expected
    assert 0 < sum(trace.correct for trace in traces) < len(traces)
    assert demonstrations(problems, solver, teacher, 0, per_problem=2) == traces


def test_costs_and_outcome_are_columns(made: Path) -> None:
    traces = list(read_demonstrations(made, "spawn_join"))
    table = pq.read_table(demonstrations_folder(made, "spawn_join")).to_pydict()
    assert table["solved"] == [trace.correct for trace in traces]
    assert table["problem"] == [trace.problem["id"] for trace in traces]
    for cost in ("context", "work", "work_sampled", "span_sampled", "threads"):
        assert table[cost] == [getattr(trace.costs, cost) for trace in traces]
    assert table["children"] == [len(trace.threads) - 1 for trace in traces]  # one spawn at most, of three numbers
    assert len({*table["threads"]}) > 1
    assert [sum(lengths) for lengths in table["strands"]] == table["work_sampled"]


def test_the_card_says_what_is_there(made: Path) -> None:
    card = (made / "README.md").read_text()
    hashes = content_hashes(made, EASY["solvers"])
    assert set(hashes) == {
        *(f"problems/{split}" for split in SPLITS), *(f"demonstrations/{solver}" for solver in EASY["solvers"]), "all",
    }  # fmt: skip
    assert all(f'"{part}": "{hash}"' in card for part, hash in hashes.items())
    assert "| train | 20 | 3 |" in card and "| test | 10 | 2 |" in card
    for solver in EASY["solvers"]:
        traces = list(read_demonstrations(made, solver))
        [line] = [line for line in card.splitlines() if line.startswith(f"| {solver} |")]
        solved = sum(trace.correct for trace in traces) / len(traces)
        assert f"| 40 | 100.00% | {solved:.2%} |" in line
        work = [trace.costs.work for trace in traces if trace.costs]
        assert f"| {sum(work):,} | {sum(work) / 40:,.2f} ({max(work)}) |" in line


def test_content_hashes_change_with_the_rows_alone(made: Path, tmp_path: Path) -> None:
    assert problems_hash(made, "train") != problems_hash(made, "test")
    path = first(made, "sos_plus")
    table = pq.read_table(path)
    pq.write_table(table, tmp_path / path.name, compression="none", row_group_size=3)
    again = pq.read_table(tmp_path / path.name)
    assert (tmp_path / path.name).read_bytes() != path.read_bytes()
    assert rows_hash(again) == rows_hash(table) == shard_facts(path, DEMONSTRATIONS)["content_hash"]
    assert content_hash([path], DEMONSTRATIONS) != demonstrations_hash(made, "sos_plus")


COLUMNS = {
    "texts": (pa.string(), st.text(max_size=3)),
    "lists": (pa.list_(pa.uint16()), st.lists(st.integers(0, 2**16 - 1), max_size=3)),
    "nullable": (pa.int64(), st.none() | st.integers(-2, 2)),
    "truths": (pa.bool_(), st.booleans()),
}
ROWS = st.lists(st.tuples(*(values for _, values in COLUMNS.values())), max_size=4)


@given(ROWS, ROWS, st.integers(0, 4))
def test_two_tables_have_one_hash_if_and_only_if_they_have_the_same_rows(
    left: list[Any], right: list[Any], cut: int
) -> None:
    schema = pa.schema([(name, kind) for name, (kind, _) in COLUMNS.items()])

    def table(rows: list[Any]) -> pa.Table:
        return pa.Table.from_pylist([dict(zip(COLUMNS, row)) for row in rows], schema)

    assert (rows_hash(table(left)) == rows_hash(table(right))) == (left == right)
    assert rows_hash(pa.concat_tables([table(left[:cut]), table(left[cut:])])) == rows_hash(table(left))


def test_a_good_folder_is_verified(made: Path) -> None:
    said = check_folder(made)
    assert "20 train, 5 validation, 10 test" in said and "spawn_join: 40 demonstrations" in said


# Compiled and plain paths

SOLVERS = st.fixed_dictionaries(
    {
        "beams": st.lists(st.integers(1, 6), min_size=1, max_size=3),
        "promising_share": st.sampled_from([0.0, 0.5, 1.0]),
        "order": st.sampled_from(["canonical", "heuristic", "shuffled"]),
        "context_bin": st.sampled_from([16, 512]),
    }
)
KINDS = st.sampled_from(
    [
        {"protocol": "serial", "condition": "none"},
        {"protocol": "serial", "condition": "context"},
        {"protocol": "serial", "condition": "context", "spawn_depth": 1, "unfold": True},
        {"protocol": "serial", "condition": "none", "rejection": {"tries": 3, "context": 70}},
        {"protocol": "serial", "condition": "context", "rejection": {"tries": 2, "context": 90}},
        {"protocol": "spawn_join", "condition": "children", "spawn_depth": 1},
        {"protocol": "spawn_join", "condition": "none", "spawn_depth": 2, "rejection": {"tries": 2, "context": 40}},
    ]
)
MIXED = [
    problem
    for numbers in (2, 3, 4)
    for problem in Countdown(CountdownSpec(numbers=numbers, high=12), COMPACT).problems("train", 4, numbers)
]


@settings(max_examples=25)
@given(SOLVERS, KINDS, st.integers(0, 9), st.integers(1, 2))
def test_compiled_shards_are_the_plain_ones(solver: dict[str, Any], kind: dict[str, Any], seed: int, copies: int) -> None:
    teacher = Teacher(SolverConfig.model_validate({**solver, **kind}), COMPACT, seed, copies)
    slow = plain(MIXED, teacher)
    assert fast(MIXED, teacher).equals(slow)
    table = slow.replace_schema_metadata(teacher.facts)
    traces = list(store.traces_of(table, "test", COMPACT))
    assert [store.row_of(trace)["tokens"].tolist() for trace in traces] == table["tokens"].to_pylist()
    assert {**store.row_of(traces[0]), "tokens": None} == {**table.slice(0, 1).to_pylist()[0], "tokens": None}


def test_rejected_problems_leave_a_shorter_set_and_are_counted(tmp_path: Path) -> None:
    solvers = {"picky": {"protocol": "serial", "beams": [1], "rejection": {"tries": 1, "context": 60}}}
    generate(config(tmp_path, solvers=solvers))
    traces = list(read_demonstrations(tmp_path, "picky"))
    assert 0 < len(traces) < 40
    assert all(trace.correct and trace.costs and trace.costs.context <= 60 for trace in traces)
    assert f"| {len(traces)} | {len(traces) / 40:.2%} | 100.00% |" in (tmp_path / "README.md").read_text()
    assert f"picky: {len(traces)} demonstrations" in check_folder(tmp_path)


def test_a_teacher_that_solves_nothing_leaves_an_empty_set(tmp_path: Path) -> None:
    solvers = {"never": {"protocol": "serial", "rejection": {"tries": 1, "context": 1}}}
    generate(config(tmp_path, solvers=solvers))
    assert list(read_demonstrations(tmp_path, "never")) == []
    assert "never: 0 demonstrations" in check_folder(tmp_path)


def test_numbers_too_large_for_compiled_code_take_the_plain_path(tmp_path: Path) -> None:
    large = {"numbers": 2, "low": 10**9, "high": 10**9 + 30, "target_low": 1, "target_high": 9}
    solvers = {"sos": {"protocol": "serial"}}
    generate(config(tmp_path, problems=large, solvers=solvers, train=3, validation=1, test=1))
    problems = read_problems(tmp_path, "train")
    assert len(problems) == 3 and min(problems[0]["numbers"]) >= 10**9
    assert [trace.problem for trace in read_demonstrations(tmp_path, "sos") if trace.correct]
    check_folder(tmp_path)
    with pytest.raises(DataError):
        fast(problems, Teacher(SolverConfig(protocol="serial"), COMPACT, 0))
    with pytest.raises(ConfigError, match="problems.high"):
        config(tmp_path, problems={"high": MAX_NUMBER + 1})


# Interrupted, repeated, refused


def test_a_second_call_does_nothing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    monkeypatch.setattr(generating, "run_directory", None)
    generate(config(made))
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


@pytest.mark.parametrize("written", range(0, SHARDS, 3))
def test_a_generator_stopped_between_files_goes_on(
    written: int, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(range(written))

    def stopping(write: Any) -> Any:
        def writes(*arguments: Any) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            write(*arguments)

        return writes

    out = tmp_path / "set"
    with monkeypatch.context() as patch:
        patch.setattr(generating, "write_problems", stopping(write_problems))
        patch.setattr(generating, "write_demonstrations", stopping(write_demonstrations))
        with pytest.raises(KeyboardInterrupt):
            generate(config(out))
    kept = files(out)
    assert len(kept) == written and kept.items() <= files(made).items()
    at = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    (out / "problems" / ".train-00000-of-00003.parquet.77.tmp").parent.mkdir(exist_ok=True)
    (out / "problems" / ".train-00000-of-00003.parquet.77.tmp").write_bytes(b"what a killed writer left")
    generate(config(out))
    assert files(out) == files(made)
    assert {path: path.stat().st_mtime_ns for path in at} == at
    assert (out / "README.md").read_text() == (made / "README.md").read_text()
    assert not list(out.rglob("*.tmp"))


def test_a_lost_card_is_written_again(made: Path, tmp_path: Path) -> None:
    generate(config(tmp_path))
    (tmp_path / "README.md").unlink()
    generate(config(tmp_path))
    assert (tmp_path / "README.md").read_text() == (made / "README.md").read_text()


def test_more_problems_than_there_are_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    few = {"numbers": 2, "low": 1, "high": 4, "target_low": 5, "target_high": 8}
    with pytest.raises(DataError, match=r"of 20 distinct solvable train problems.*ask for fewer"):
        generate(config(tmp_path / "set", problems=few))
    assert not (tmp_path / "set").exists()


def test_a_folder_of_other_data_is_refused_and_left_alone(made: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    for more in ({"seed": 1}, {"train": 21}, {"shard_rows": 9}):
        with pytest.raises(RunDirectoryError, match="another configuration"):
            generate(config(made, **more))
    generate(config(made, workers=3))  # which changes nothing
    with run_directory(tmp_path, config(tmp_path)), pytest.raises(RunDirectoryError, match="in use"):
        generate(config(tmp_path))
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["../up", "a-b", "", "problems", "9lives"])
def test_a_teacher_whose_name_makes_no_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot name a part"):
        config(tmp_path, solvers={name: {"protocol": "serial"}})


@pytest.mark.parametrize("whole", [0, 7])
def test_a_full_disk_leaves_no_half_file(whole: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, number = pq.write_table, itertools.count()

    def full(table: Any, where: Path, **rest: Any) -> None:
        if next(number) < whole:
            write(table, where, **rest)
            return
        where.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(ResourceError, match=r"no space left to write .*train-0000\d-of-00003\.parquet"):
        generate(config(tmp_path))
    assert len(list(tmp_path.rglob("*.parquet"))) == whole and not list(tmp_path.rglob("*.tmp"))


# Files that are not what they should be.


@pytest.mark.parametrize("name", ["problems", "demonstrations"])
def test_a_corrupt_file_is_named(name: str, made: Path, tmp_path: Path) -> None:
    def read(folder: Path) -> list[Any]:
        return read_problems(folder, "validation") if name == "problems" else list(read_demonstrations(folder, "spawn_join"))

    if name == "problems":
        path = shard_path(problems_folder(tmp_path), "validation", 0, 1)
        whole, rows = shard_path(problems_folder(made), "validation", 0, 1).read_bytes(), read(made)
    else:
        path = shard_path(demonstrations_folder(tmp_path, "spawn_join"), "train", 0, 1)
        whole, rows = first(made, "spawn_join").read_bytes(), read(made)[:16]
    path.parent.mkdir(parents=True)
    rng = random.Random(0)
    refused = 0
    for trial in range(120):
        content = bytearray(whole)
        if trial < 40:
            content = content[: rng.randrange(len(content))]
        else:
            for _ in range(rng.choice([1, 8, 200])):
                content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            assert read(tmp_path) == rows  # a byte may be changed where it does not matter
        except DataError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 80


def write(folder: Path, rows: dict[str, list[Any]], schema: str = PROBLEMS) -> Path:
    """`rows` as the test problems of the data set in `folder`."""
    path = shard_path(problems_folder(folder), "test", 0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(rows).replace_schema_metadata({"schema": schema}), path)
    return path


GOOD = problem_of([3, 5, 8], 23)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"id": [], "numbers": [], "target": []}, "no problem"),
        ({"id": ["a"], "numbers": [[3, 5, 8]]}, "lacks the columns target"),
        ({"id": ["23:3-5-8"], "numbers": [[3, 5, 8]], "target": ["24"]}, "row 0: not a Countdown problem"),
        ({"id": ["24:3"], "numbers": [[3]], "target": [23]}, "row 0: not a Countdown problem"),
        ({"id": ["24:3-5"], "numbers": [None], "target": [23]}, "row 0: not a Countdown problem"),
        ({"id": ["1:-3-5"], "numbers": [[-3, 5]], "target": [1]}, "row 0: not a Countdown problem"),
        ({"id": ["23:3-5-8", "2:1-1"], "numbers": [[3, 5, 8], [1, None]], "target": [23, 2]}, "row 1: not a Countdown"),
        ({"id": ["23:3-5-8", None], "numbers": [[3, 5, 8], [1, 1]], "target": [23, 2]}, "row 1: not a Countdown"),
        ({"id": ["23:3-5-8"], "numbers": [[3.0, 5.0, 8.0]], "target": [23]}, "row 0: not a Countdown problem"),
        ({"id": [1], "numbers": [[3, 5, 8]], "target": [23]}, "row 0: not a Countdown problem"),
        ({"id": ["7919:3-5-8"], "numbers": [[3, 5, 8]], "target": [7919]}, "row 0.*no solution; leave it out"),
        ({"id": ["2:1-1", "99:3-5-8"], "numbers": [[1, 1], [3, 5, 8]], "target": [2, 99]}, "row 1.*no solution"),
        ({"id": ["x"], "numbers": [[3, 5, 8]], "target": [23]}, "row 0.*'23:3-5-8'"),
        ({"id": ["23:3-5-8"], "numbers": [[8, 3, 5]], "target": [23]}, "row 0.*is not written as"),
        ({"id": ["23:3-5-8"] * 2, "numbers": [[3, 5, 8]] * 2, "target": [23] * 2}, "23:3-5-8 is there twice"),
    ],
)
def test_a_malformed_or_unsolvable_problem_is_refused_with_its_row(
    rows: dict[str, list[Any]], said: str, tmp_path: Path
) -> None:
    path = write(tmp_path, rows)
    with pytest.raises(DataError, match=said) as caught:
        read_problems(tmp_path, "test")
    assert str(path) in str(caught.value)


def test_problems_of_several_sizes_are_read(tmp_path: Path) -> None:
    rows = [problem_of([1, 1], 2), GOOD, problem_of([1, 2, 3, 4], 24), problem_of([2, 9], 18)]
    write(tmp_path, {key: [row[key] for row in rows] for key in GOOD})
    assert read_problems(tmp_path, "test") == rows


def test_a_missing_or_newer_file_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data file .*apr data generate"):
        read_problems(tmp_path, "test")
    with pytest.raises(DataError, match="no data file .*apr data generate"):
        next(read_demonstrations(made, "other"))
    write(tmp_path, {key: [value] for key, value in GOOD.items()}, "apr.problems/2")
    with pytest.raises(DataError, match=r"has schema apr\.problems/2, this version reads apr\.problems/1"):
        read_problems(tmp_path, "test")


@pytest.fixture
def again(made: Path, tmp_path: Path) -> Path:
    """A data set to be spoilt."""
    return Path(shutil.copytree(made, tmp_path / "again"))


def test_a_missing_or_foreign_shard_is_named(again: Path) -> None:
    folder = demonstrations_folder(again, "sos_plus")
    content = first(again, "sos_plus").read_bytes()
    (folder / "train-00000-of-00004.parquet").write_bytes(content)
    with pytest.raises(DataError, match=f"{folder} mixes data sets of 00003 and 00004 train shards"):
        list(read_demonstrations(again, "sos_plus"))
    (folder / "train-00000-of-00004.parquet").unlink()
    (folder / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(DataError, match=r"train-00001-of-00003\.parquet is missing"):
        list(read_demonstrations(again, "sos_plus"))
    with pytest.raises(DataError, match=r"train-00001-of-00003\.parquet is missing"):
        demonstrations_hash(again, "sos_plus")


def spoil(again: Path, **columns: Any) -> Path:
    """Replace columns of the first shard of spawn/join demonstrations, its hash and statistics made anew."""
    path = first(again, "spawn_join")
    table = demonstrations_table(path)
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, DEMONSTRATION_COLUMNS.field(name).type))
    write_demonstrations(path, table, 16, shard_facts(path, DEMONSTRATIONS))
    return path


def columns_of(folder: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = pq.read_table(first(folder, "spawn_join")).to_pydict()
    return found


@pytest.mark.parametrize(
    ("fact", "said"),
    [
        ({b"dialect": "latin"}, "spelt in dialect latin: known are compact, paper"),
        ({b"vocabulary": "0"}, "spelt in compact/0, but"),
    ],
)
def test_demonstrations_in_other_tokens_are_refused(fact: dict[bytes, str], said: str, again: Path) -> None:
    path = first(again, "sos_plus")
    table = demonstrations_table(path)
    pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **fact}), path)
    with pytest.raises(DataError, match=said) as caught:
        next(read_demonstrations(again, "sos_plus"))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("column", "change", "said"),
    [
        ("tokens", lambda ids: ids[:-1], "its strands of"),
        ("tokens", lambda ids: [*ids[:-1], 60_000], "token 60000 is not one of"),
        ("tokens", lambda ids: [*ids[:-1], COMPACT.vocabulary.control.join], "cannot express"),
        ("strands", lambda lengths: [], "its strands of"),
        ("strands", lambda lengths: [*lengths[:-1], lengths[-1] + 1, -1], "its strands of"),
        ("strands", lambda lengths: [sum(lengths[:-1]), lengths[-1]], "cannot express"),
    ],
)
def test_a_demonstration_that_is_none_is_refused_with_its_row(
    column: str, change: Any, said: str, again: Path
) -> None:
    values = columns_of(again)[column]
    row = next(i for i, lengths in enumerate(columns_of(again)["strands"]) if len(lengths) > 2)
    path = spoil(again, **{column: [*values[:row], change(values[row]), *values[row + 1 :]]})
    read: list[Trace] = []
    with pytest.raises(DataError, match=said) as caught:
        read.extend(read_demonstrations(again, "spawn_join"))
    assert f"{path}, row {row}: " in str(caught.value)


def test_a_demonstration_that_lacks_a_value_is_refused_with_its_row(again: Path) -> None:
    path = first(again, "spawn_join")
    table = pq.read_table(path)
    solved = [None if i == 4 else solved for i, solved in enumerate(table["solved"].to_pylist())]
    pq.write_table(table.set_column(table.column_names.index("solved"), "solved", [solved]), path)
    with pytest.raises(DataError, match=r"train-00000-of-00003\.parquet, row 4: solved is missing"):
        list(read_demonstrations(again, "spawn_join"))


def test_checking_a_folder_finds_problems_in_two_splits(again: Path) -> None:
    test = shard_paths(problems_folder(again), "test")[0]
    [numbers, *_] = [problem["numbers"] for problem in read_problems(again, "train")]
    [target, *_] = [problem["target"] for problem in read_problems(again, "train")]
    write_problems(test, Problems(np.array([numbers]), np.array([target])))
    with pytest.raises(DataError, match=r"train-00000-of-00003\.parquet, row 0: numbers .* are in the test split too"):
        check_folder(again)


@pytest.mark.parametrize(
    ("column", "change", "said"),
    [
        ("solved", lambda solved: not solved, "says solved=.*, but the verifier says"),
        ("work", lambda work: work + 1, "says work="),
        ("threads", lambda threads: 0, "says threads=0"),
        ("children", lambda children: 9, "says children=9"),
    ],
)
def test_checking_a_folder_finds_demonstrations_that_say_what_is_not_so(
    column: str, change: Any, said: str, again: Path
) -> None:
    values = columns_of(again)[column]
    path = spoil(again, **{column: [*values[:2], change(values[2]), *values[3:]]})
    assert list(read_demonstrations(again, "spawn_join"))
    with pytest.raises(DataError, match=said) as caught:
        check_folder(again)
    assert f"{path}, row 2: " in str(caught.value)


def test_checking_a_folder_finds_a_wrong_solution_in_a_child(again: Path) -> None:
    columns = columns_of(again)
    row = next(i for i, solved in enumerate(columns["solved"]) if solved and columns["threads"][i] > 1)
    lengths, ids = columns["strands"][row], columns["tokens"][row]
    ends = list(itertools.accumulate(lengths))
    join = COMPACT.vocabulary.control.join
    child = next(i for i in range(1, len(lengths) - 1) if ids[ends[i] - 2] != join)
    ids[ends[child] - 2] = COMPACT.vocabulary.ids["99"]  # the result of the last step that it returns
    spoil(again, tokens=[*columns["tokens"][:row], ids, *columns["tokens"][row + 1 :]])
    with pytest.raises(DataError, match=rf"row {row}: thread r\.\d returns a wrong solution"):
        check_folder(again)


def test_checking_a_folder_finds_held_out_numbers_in_demonstrations(again: Path) -> None:
    [problem, *_] = read_problems(again, "validation")
    table = demonstrations_of([problem], Teacher(config(again).solvers["spawn_join"], COMPACT, 0))
    path = first(again, "spawn_join")
    write_demonstrations(path, table, 1, shard_facts(path, DEMONSTRATIONS))
    with pytest.raises(DataError, match=r"row 0: numbers .* are in the validation split too"):
        check_folder(again)


def test_checking_a_folder_finds_hashes_and_cards_of_other_rows(again: Path) -> None:
    path = first(again, "spawn_join")
    table = pq.read_table(path)
    fewer = table.filter(pc.not_equal(table["problem"], table["problem"][0]))
    pq.write_table(fewer, path)  # under the old facts
    with pytest.raises(DataError, match=r"spawn_join.train-00000.*its rows are not those that its content hash"):
        check_folder(again)
    facts = shard_facts(path, DEMONSTRATIONS)
    statistics = json.loads(facts["statistics"])
    pq.write_table(table.replace_schema_metadata({**facts, "statistics": json.dumps({**statistics, "work": 1})}), path)
    with pytest.raises(DataError, match="its statistics are not those of its rows"):
        check_folder(again)
    write_demonstrations(path, fewer.replace_schema_metadata(None), 16, facts)
    with pytest.raises(DataError, match=r"README\.md is missing, or lists another content hash of demonstrations/spawn_join"):
        check_folder(again)
    pq.write_table(table, path)
    assert check_folder(again)

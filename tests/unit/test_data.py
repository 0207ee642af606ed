"""Data sets: the same from the same seed, in files that are whole or not there, and refused when they are neither."""

import errno
import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_sets import COMPACT, EASY, ENV, SHARDS, config, files, first, teacher
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.config import DataConfig
from apr.data import generate as generating
from apr.data import store, teach
from apr.data.card import content_hashes
from apr.data.check import check_folder
from apr.data.generate import generate
from apr.data.shards import content_hash, rows_hash, shard_facts, shard_path
from apr.data.store import (
    DEMONSTRATIONS,
    demonstrations_folder,
    demonstrations_hash,
    problems_folder,
    problems_hash,
    read_demonstrations,
    read_problems,
    write_demonstrations,
    write_problems,
)
from apr.data.teach import demonstrations_of, facts_of_teacher, plain
from apr.errors import ConfigError, DataError, ResourceError, RunDirectoryError
from apr.presets import load
from apr.runs import run_directory
from apr.scripts.columns import row_of
from envs.base import SPLITS
from envs.countdown.demonstrate import demonstrate
from envs.countdown.env import Countdown
from envs.countdown.fast import fast
from envs.countdown.problems import MAX_NUMBER, CountdownSpec


def test_the_same_seed_makes_the_same_files(easy: Path, tmp_path: Path) -> None:
    generate(config(tmp_path / "again"))
    assert files(tmp_path / "again") == files(easy)
    assert len(files(easy)) == SHARDS
    assert (tmp_path / "again" / "README.md").read_text() == (easy / "README.md").read_text()
    generate(config(tmp_path / "other", seed=1))
    ours, others = (content_hashes(folder, EASY["solvers"]) for folder in (easy, tmp_path / "other"))
    assert ours.keys() == others.keys() and not set(ours.values()) & set(others.values())


def test_splits_hold_what_was_asked_for_and_share_no_numbers(easy: Path) -> None:
    problems = {split: read_problems(easy, split) for split in SPLITS}
    assert {split: len(found) for split, found in problems.items()} == {"train": 20, "validation": 5, "test": 10}
    multisets = [{tuple(problem["numbers"]) for problem in found} for found in problems.values()]
    assert len(set.union(*multisets)) == sum(map(len, multisets))
    assert problems == {split: list(ENV.problems(split, len(found), 0)) for split, found in problems.items()}


@pytest.mark.parametrize("solver", EASY["solvers"])
def test_what_is_read_are_the_demonstrations_of_the_training_problems(solver: str, easy: Path) -> None:
    told = teacher(config(easy).solvers[solver], copies=2)
    problems = read_problems(easy, "train")
    expected = [demonstrate(one, told, copy) for one in problems for copy in range(2)]
    traces = list(read_demonstrations(easy, solver))
    assert traces == expected
    assert 0 < sum(trace.correct for trace in traces) < len(traces)
    assert teach.traces(problems, told) == traces


def test_costs_and_outcome_are_columns(easy: Path) -> None:
    traces = list(read_demonstrations(easy, "spawn_join"))
    table = pq.read_table(demonstrations_folder(easy, "spawn_join")).to_pydict()
    assert table["solved"] == [trace.correct for trace in traces]
    assert table["problem"] == [trace.problem["id"] for trace in traces]
    for cost in ("context", "work", "work_sampled", "span_sampled", "threads"):
        assert table[cost] == [getattr(trace.costs, cost) for trace in traces]
    assert table["children"] == [len(trace.threads) - 1 for trace in traces]  # one spawn at most, of three numbers
    assert len({*table["threads"]}) > 1
    assert [sum(lengths) for lengths in table["strands"]] == table["work_sampled"]


def test_the_card_says_what_is_there(easy: Path) -> None:
    card = (easy / "README.md").read_text()
    hashes = content_hashes(easy, EASY["solvers"])
    assert set(hashes) == {
        *(f"problems/{split}" for split in SPLITS), *(f"demonstrations/{solver}" for solver in EASY["solvers"]), "all",
    }  # fmt: skip
    assert all(f'"{part}": "{hash}"' in card for part, hash in hashes.items())
    assert "| train | 20 | 3 |" in card and "| test | 10 | 2 |" in card
    for solver in EASY["solvers"]:
        traces = list(read_demonstrations(easy, solver))
        [line] = [line for line in card.splitlines() if line.startswith(f"| {solver} |")]
        solved = sum(trace.correct for trace in traces) / len(traces)
        assert f"| 40 | 100.00% | {solved:.2%} |" in line
        work = [trace.costs.work for trace in traces if trace.costs]
        assert f"| {sum(work):,} | {sum(work) / 40:,.2f} ({max(work)}) |" in line


def test_content_hashes_change_with_the_rows_alone(easy: Path, tmp_path: Path) -> None:
    assert problems_hash(easy, "train") != problems_hash(easy, "test")
    path = first(easy, "sos_plus")
    table = pq.read_table(path)
    pq.write_table(table, tmp_path / path.name, compression="none", row_group_size=3)
    again = pq.read_table(tmp_path / path.name)
    assert (tmp_path / path.name).read_bytes() != path.read_bytes()
    assert rows_hash(again) == rows_hash(table) == shard_facts(path, DEMONSTRATIONS)["content_hash"]
    assert content_hash([path], DEMONSTRATIONS) != demonstrations_hash(easy, "sos_plus")


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


def test_a_good_folder_is_verified(easy: Path) -> None:
    said = check_folder(easy)
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
    for problem in Countdown(CountdownSpec(numbers=numbers, high=12)).problems("train", 4, numbers)
]


@settings(max_examples=25)
@given(SOLVERS, KINDS, st.integers(0, 9), st.integers(1, 2))
def test_compiled_shards_are_the_plain_ones(
    solver: dict[str, Any], kind: dict[str, Any], seed: int, copies: int
) -> None:
    told = teacher({**solver, **kind}, seed, copies)
    slow, quick = plain(MIXED, told), fast(MIXED, told)
    assert quick is not None and quick.equals(slow)
    table = demonstrations_of(MIXED, told).replace_schema_metadata(facts_of_teacher(told))
    traces = list(store.traces_of(table, "test", COMPACT, ENV))
    assert [row_of(trace)["tokens"].tolist() for trace in traces] == table["tokens"].to_pylist()
    row = table.slice(0, 1).to_pylist()[0]
    assert {**row, **row_of(traces[0]), "tokens": None} == {**row, "tokens": None}
    assert {name: traces[0].problem[name] for name in ("numbers", "target")} == {
        name: row[name] for name in ("numbers", "target")
    }


def test_a_data_set_split_by_states_is_made_and_verified(tmp_path: Path) -> None:
    made = config(tmp_path / "set", env={**EASY["env"], "split_by": "states"})
    generate(made)
    assert "no winning child state in two splits" in check_folder(made.out)
    text = (made.out / "README.md").read_text()
    assert "Splits share no winning child state" in text and "split_by: states" in text
    said = load(DataConfig, [made.out / "config.yaml"]).env.given
    assert said["split_by"] == "states"
    swapped = [shard_path(problems_folder(made.out), "train", i, 3) for i in (0, 1)]
    wrong = config(tmp_path / "wrong")  # the same numbers, split by multisets
    generate(wrong)
    for path in swapped:
        path.write_bytes((wrong.out / path.relative_to(made.out)).read_bytes())
    with pytest.raises(DataError, match=r"its winning child state .* is in the (test|validation) split too"):
        check_folder(made.out)


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
    generate(config(tmp_path, env={"name": "countdown", **large}, solvers=solvers, train=3, validation=1, test=1))
    problems = read_problems(tmp_path, "train")
    assert len(problems) == 3 and min(problems[0]["numbers"]) >= 10**9
    assert [trace.problem for trace in read_demonstrations(tmp_path, "sos") if trace.correct]
    check_folder(tmp_path)
    assert fast(problems, teacher({"protocol": "serial"})) is None
    with pytest.raises(ConfigError, match="high"):
        config(tmp_path, env={"name": "countdown", "high": MAX_NUMBER + 1})


# Interrupted, repeated, refused


def test_a_second_call_does_nothing(easy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in easy.rglob("*")}
    monkeypatch.setattr(generating, "run_directory", None)
    generate(config(easy))
    assert {path: path.stat().st_mtime_ns for path in easy.rglob("*")} == before


@pytest.mark.parametrize("written", range(0, SHARDS, 3))
def test_a_generator_stopped_between_files_goes_on(
    written: int, easy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        patch.setattr(store, "write_problems", stopping(write_problems))
        patch.setattr(generating, "write_demonstrations", stopping(write_demonstrations))
        with pytest.raises(KeyboardInterrupt):
            generate(config(out))
    kept = files(out)
    assert len(kept) == written and kept.items() <= files(easy).items()
    at = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    (out / "problems" / ".train-00000-of-00003.parquet.77.tmp").parent.mkdir(exist_ok=True)
    (out / "problems" / ".train-00000-of-00003.parquet.77.tmp").write_bytes(b"what a killed writer left")
    generate(config(out))
    assert files(out) == files(easy)
    assert {path: path.stat().st_mtime_ns for path in at} == at
    assert (out / "README.md").read_text() == (easy / "README.md").read_text()
    assert not list(out.rglob("*.tmp"))


def test_a_lost_card_is_written_again(easy: Path, tmp_path: Path) -> None:
    generate(config(tmp_path))
    (tmp_path / "README.md").unlink()
    generate(config(tmp_path))
    assert (tmp_path / "README.md").read_text() == (easy / "README.md").read_text()


def test_more_problems_than_there_are_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    few = {"numbers": 2, "low": 1, "high": 4, "target_low": 5, "target_high": 8}
    with pytest.raises(DataError, match=r"of 20 distinct solvable train problems.*ask for fewer"):
        generate(config(tmp_path / "set", env={"name": "countdown", **few}))
    assert not (tmp_path / "set").exists()


def test_a_folder_of_other_data_is_refused_and_left_alone(easy: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in easy.rglob("*") if path.is_file()}
    for more in ({"seed": 1}, {"train": 21}, {"shard_rows": 9}):
        with pytest.raises(RunDirectoryError, match="another configuration"):
            generate(config(easy, **more))
    generate(config(easy, workers=3))  # which changes nothing
    with run_directory(tmp_path, config(tmp_path)), pytest.raises(RunDirectoryError, match="in use"):
        generate(config(tmp_path))
    assert {path: path.read_bytes() for path in easy.rglob("*") if path.is_file()} == before


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

"""Data sets: the same from the same seed, in files that are whole or not there, and refused when they are neither."""

import errno
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apr.config import DataConfig, check
from apr.data import generate as generating
from apr.data.check import check_folder
from apr.data.generate import generate
from apr.data.store import (
    demonstrations_file,
    problems_file,
    read_demonstrations,
    read_problems,
    write_demonstrations,
    write_problems,
)
from apr.errors import DataError, ResourceError, RunDirectoryError
from apr.runs import file_hash, run_directory
from envs.countdown.env import SPLITS, problem_of

EASY = {
    "problems": {"numbers": 3, "low": 1, "high": 9, "target_low": 5, "target_high": 30, "test_share": 0.3},
    "train": 20, "validation": 5, "test": 10, "demonstrations_per_problem": 2,
    "solvers": {
        "sos_plus": {"protocol": "serial", "beams": [1, 3]},
        "spawn_join": {"protocol": "spawn_join", "spawn_depth": 1, "beams": [1, 3]},
    },
}  # fmt: skip


def config(out: Path, **more: Any) -> DataConfig:
    return check(DataConfig, {**EASY, **more, "out": out}, "test")


def hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_hash(path) for path in folder.rglob("*.parquet")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "set"
    generate(config(out))
    return out


def test_the_same_seed_makes_the_same_files(made: Path, tmp_path: Path) -> None:
    generate(config(tmp_path / "again"))
    assert hashes(tmp_path / "again") == hashes(made)
    assert len(hashes(made)) == 5
    generate(config(tmp_path / "other", seed=1))
    assert not set(hashes(tmp_path / "other").values()) & set(hashes(made).values())


def test_splits_hold_what_was_asked_for_and_share_no_numbers(made: Path) -> None:
    problems = {split: read_problems(problems_file(made, split)) for split in SPLITS}
    assert {split: len(found) for split, found in problems.items()} == {"train": 20, "validation": 5, "test": 10}
    multisets = [{tuple(problem["numbers"]) for problem in found} for found in problems.values()]
    assert len(set.union(*multisets)) == sum(map(len, multisets))


def test_demonstrations_are_of_the_training_problems(made: Path) -> None:
    train = [problem for problem in read_problems(problems_file(made, "train")) for _ in range(2)]
    for solver in ("sos_plus", "spawn_join"):
        traces = list(read_demonstrations(demonstrations_file(made, solver)))
        assert [trace.problem for trace in traces] == train
        assert {trace.protocol for trace in traces} == {"serial" if solver == "sos_plus" else "spawn_join"}
        assert any(trace.correct for trace in traces)
    table = pq.read_table(demonstrations_file(made, "spawn_join"))
    assert table["solved"].to_pylist() == [trace.correct for trace in traces]
    assert table["threads"].to_pylist() == [len(trace.threads) for trace in traces]


def test_the_card_says_what_is_there(made: Path) -> None:
    card = (made / "README.md").read_text()
    for path, hash in hashes(made).items():
        assert hash in card and Path(path).name in card
    assert "| sos_plus |" in card and "| spawn_join |" in card and "20 train" in card


def test_a_good_folder_is_verified(made: Path) -> None:
    assert "20 train, 5 validation, 10 test" in check_folder(made)


def test_a_second_call_does_nothing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*.parquet")}
    monkeypatch.setattr(generating, "demonstrations", None)
    generate(config(made))
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*.parquet")} == before


@pytest.mark.parametrize("written", range(5))
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
    assert len(hashes(out)) == written
    generate(config(out))
    assert hashes(out) == hashes(made)
    assert (out / "README.md").read_text().replace(str(out), "") == (made / "README.md").read_text().replace(
        str(made), ""
    )


def test_more_problems_than_there_are_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    few = {"numbers": 2, "low": 1, "high": 4, "target_low": 5, "target_high": 8}
    with pytest.raises(DataError, match=r"of 20 distinct solvable train problems.*ask for fewer"):
        generate(config(tmp_path / "set", problems=few))
    assert not (tmp_path / "set").exists()


def test_a_folder_of_other_data_is_refused_and_left_alone(made: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    for more in ({"seed": 1}, {"train": 21}):
        with pytest.raises(RunDirectoryError, match="another configuration"):
            generate(config(made, **more))
    with run_directory(tmp_path, config(tmp_path)), pytest.raises(RunDirectoryError, match="in use"):
        generate(config(tmp_path))
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before


def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(table: Any, where: Path, **_: Any) -> None:
        where.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(ResourceError, match=r"train\.parquet"):
        generate(config(tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".tmp", ".parquet")]


# Files that are not what they should be.


@pytest.mark.parametrize("name", ["problems", "demonstrations"])
def test_a_corrupt_file_is_named(name: str, made: Path, tmp_path: Path) -> None:
    good = problems_file(made, "test") if name == "problems" else demonstrations_file(made, "spawn_join")
    read = read_problems if name == "problems" else read_demonstrations
    whole, rows = good.read_bytes(), list(read(good))
    rng = random.Random(0)
    path = tmp_path / "bad.parquet"
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
            assert list(read(path)) == rows  # a byte may be changed where it does not matter
        except DataError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 90


def write(path: Path, rows: dict[str, list[Any]], schema: str = "apr.trace/1") -> Path:
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
        ({"id": ["7919:3-5-8"], "numbers": [[3, 5, 8]], "target": [7919]}, "row 0.*no solution; leave it out"),
        ({"id": ["x"], "numbers": [[3, 5, 8]], "target": [23]}, "row 0.*'23:3-5-8'"),
        ({"id": ["23:3-5-8"], "numbers": [[8, 3, 5]], "target": [23]}, "row 0.*is not written as"),
        ({"id": ["23:3-5-8"] * 2, "numbers": [[3, 5, 8]] * 2, "target": [23] * 2}, "23:3-5-8 is there twice"),
    ],
)
def test_a_malformed_or_unsolvable_problem_is_refused_with_its_row(
    rows: dict[str, list[Any]], said: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "problems.parquet", rows)
    with pytest.raises(DataError, match=said) as caught:
        read_problems(path)
    assert str(path) in str(caught.value)


def test_a_missing_or_newer_file_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="apr data generate"):
        read_problems(tmp_path / "missing.parquet")
    newer = write(tmp_path / "newer.parquet", {key: [value] for key, value in GOOD.items()}, "apr.trace/2")
    with pytest.raises(DataError, match=r"has schema apr\.trace/2, this version reads apr\.trace/1"):
        read_problems(newer)
    [trace, *_] = pq.read_table(demonstrations_file(made, "sos_plus"))["trace"].to_pylist()
    torn = {**json.loads(trace), "schema": "apr.trace/2"}
    path = write(tmp_path / "mixed.parquet", {"trace": [trace, json.dumps(torn)]})
    with pytest.raises(DataError, match=r"row 1.*apr\.trace/2"):
        list(read_demonstrations(path))
    path = write(tmp_path / "cut.parquet", {"trace": [trace, trace[:-9]]})
    with pytest.raises(DataError, match="row 1"):
        list(read_demonstrations(path))


def test_checking_a_folder_finds_what_reading_does_not(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    generate(config(out))
    [first, *_] = read_problems(problems_file(out, "train"))
    write_problems(problems_file(out, "test"), [first])
    with pytest.raises(DataError, match=r"test\.parquet, row 0: numbers .* are in the train split too"):
        check_folder(out)
    generate(config(tmp_path / "again"))
    path = demonstrations_file(tmp_path / "again", "sos_plus")
    table = pq.read_table(path)
    traces = [json.loads(trace) for trace in table["trace"].to_pylist()]
    solved = next(i for i, trace in enumerate(traces) if trace["outcome"]["correct"])
    traces[solved]["answer"] = "1+1=2"
    write(path, {"trace": [json.dumps(trace) for trace in traces]})
    with pytest.raises(DataError, match=rf"sos_plus\.parquet, row {solved}: says correct=True"):
        check_folder(tmp_path / "again")

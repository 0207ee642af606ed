"""Problems of others' tables become a data set: what passes is usable, what does not is named."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from apr.cli import main
from apr.config import DataConfig
from apr.contact import trained_on
from apr.data.card import content_hashes
from apr.data.check import check_folder
from apr.data.imported import LEFT_OUT, REPORT, Imported, columns_of, import_problems, problems_from
from apr.data.store import read_problems
from apr.errors import ConfigError, DataError, RunDirectoryError
from apr.presets import load
from apr.runs import CONFIG
from apr.seeds import derive_rng
from envs.base import SPLITS, splits_of
from envs.countdown.env import Countdown
from envs.countdown.problems import CountdownSpec
from envs.registry import environment

SOURCE = environment("countdown")
Rows = list[dict[str, Any]]


def many(count: int) -> Rows:
    """Rows as APR's own problem files have them, three and four numbers mixed, numbers in the order drawn."""
    rng = derive_rng(0, "rows")
    rows: Rows = []
    for size in (3, 4):
        env = Countdown(CountdownSpec(numbers=size, high=30))
        for split in SPLITS:
            rows += env.problems(split, count // 6, size)
    rng.shuffle(rows)
    return [
        {
            "nums": rng.sample(row["numbers"], len(row["numbers"])),
            "target": row["target"],
            "solution": [],
            "optimal_path": "",
        }
        for row in rows
    ]


def written(path: Path, rows: Rows) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        names = list(rows[0])
        lines = [",".join(f'"{row.get(name, "")}"' for name in names) for row in rows]
        path.write_text("\n".join([",".join(names), *lines]))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        path.write_text(json.dumps(rows))
    return path


def imported(path: Path, *options: str) -> tuple[int, Path]:
    out = path.parent / "out"
    return main(["data", "import", str(path), "--env", "countdown", "--out", str(out), *options]), out


@pytest.mark.parametrize("name", ["rows.csv", "rows.json", "rows.jsonl", "rows.parquet"])
def test_a_table_becomes_a_data_set_that_commands_take(name: str, tmp_path: Path) -> None:
    rows = many(300)
    status, out = imported(written(tmp_path / name, rows))
    assert status == 0
    found = {split: read_problems(out, split) for split in SPLITS}
    assert sorted(p["id"] for problems in found.values() for p in problems) == sorted(
        {SOURCE.problem(r)["id"] for r in rows}
    )
    assert all(one == {split} for split, problems in found.items() for one in splits_of(SOURCE, problems))
    config = load(DataConfig, [out / CONFIG])
    assert (config.train, config.validation, config.test) == tuple(len(found[split]) for split in SPLITS)
    assert "no number multiset in two splits" in check_folder(out)
    assert [one.split for one in trained_on(out, "sft", SOURCE)] == ["train"]
    card = (out / "README.md").read_text()
    report = json.loads((out / REPORT).read_text())
    assert name in card and report["sha256"] in card and content_hashes(out, [])["all"] in card
    assert yaml.safe_load(card.split("---\n")[1])["configs"][0]["config_name"] == "problems"
    assert (out / LEFT_OUT).read_text() == "" and report["left_out"] == report["duplicates"] == 0


def test_the_same_rows_make_the_same_data_set_whatever_their_format(tmp_path: Path) -> None:
    rows, hashes = many(60), set()
    for name in ("rows.csv", "rows.json", "rows.jsonl", "rows.parquet"):
        import_problems(written(tmp_path / name, rows), tmp_path / f"{name}_out", SOURCE)
        hashes.add(content_hashes(tmp_path / f"{name}_out", [])["all"])
    assert len(hashes) == 1


BAD: list[tuple[dict[str, Any], str]] = [
    ({"nums": [7], "target": 7}, "1 numbers"),
    ({"nums": [1, 2, 3, 4, 5, 6, 7], "target": 7}, "7 numbers"),
    ({"nums": list(range(1, 41)), "target": 24}, "40 numbers"),
    ({"nums": [1, -2], "target": 3}, "-2"),
    ({"nums": [1, 10**16], "target": 3}, "from 0 to"),
    ({"nums": [3, 4], "target": 99}, "99:3-4 has no solution"),
    ({"nums": [10**15 - 1] * 6, "target": 12345}, "no solution"),
    ({"nums": "x", "target": 3}, "'x', not an integer"),
    ({"nums": [1, 2], "target": 3.5}, "not an integer"),
    ({"nums": None, "target": None}, "not a list"),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("bad", "why"), BAD)
def test_a_row_that_no_command_takes_is_named_and_the_rest_is_usable(
    bad: dict[str, Any], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"nums": [3, 5], "target": 8}, bad, {"nums": [3, 5, 7], "target": 15}]
    status, out = imported(written(tmp_path / "rows.json", rows), "--split", "test")
    assert status == 0
    assert [problem["id"] for problem in read_problems(out, "test")] == ["8:3-5", "15:3-5-7"]
    assert (
        "left out: 1 rows" in (said := capsys.readouterr().out)
        and f"row 1: {json.loads((out / LEFT_OUT).read_text())['why']}" in said
    )
    assert why in said and "1 were left out" in (out / "README.md").read_text()


@pytest.mark.parametrize(("bad", "why"), BAD)
@pytest.mark.timeout(60)
def test_a_file_of_such_rows_alone_is_an_error(
    bad: dict[str, Any], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "rows.json", [bad, bad])
    status, out = imported(path)
    assert status == 2 and list(tmp_path.iterdir()) == [path]
    assert why in (said := capsys.readouterr().err) and "none of its 2 rows" in said and "Traceback" not in said


def test_duplicates_are_said_and_kept_once(tmp_path: Path) -> None:
    rows = [{"nums": [3, 5], "target": 8}, {"nums": [5, 3], "target": 8}, {"nums": [3, 5], "target": 15}] * 20
    report = import_problems(written(tmp_path / "rows.json", rows), tmp_path / "out", SOURCE, split="test")
    assert (report.kept, report.duplicates, report.duplicate_rows[:3]) == (2, 58, [1, 3, 4])
    assert "problem as in an earlier row: 58 rows (1, 3, 4, 5, 6, 7, 8, 9, 10, 11, ...)" in str(report)


@pytest.mark.parametrize(
    ("said", "split"),
    [("train", "train"), ("Test", "test"), ("val", "validation"), ("dev", "validation"), ("validation", "validation")],
)
def test_the_splits_of_the_file_win_over_the_rule(said: str, split: str, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.csv", [{"nums": [3, 5 + i], "target": 8 + i, "split": said} for i in range(9)])
    report = import_problems(path, tmp_path / "out", SOURCE)
    assert report.problems == {**dict.fromkeys(SPLITS, 0), split: 9} and report.splits_by == "column"
    assert len(read_problems(tmp_path / "out", split)) == 9
    assert import_problems(path, None, SOURCE, split="train").problems["train"] == 9


@pytest.mark.parametrize("said", ["holdout", "", None, "training set", 3])
def test_a_row_of_an_unknown_split_is_left_out(said: Any, tmp_path: Path) -> None:
    rows = [{"nums": [3, 5], "target": 8, "split": said}, {"nums": [3, 5], "target": 15, "split": "test"}]
    report = import_problems(written(tmp_path / "rows.json", rows), None, SOURCE)
    assert report.kept == 1 and "its split is" in report.reasons[0]


def test_given_splits_that_share_numbers_are_said(tmp_path: Path) -> None:
    rows = [{"nums": [3, 5], "target": 8, "split": "train"}, {"nums": [3, 5], "target": 15, "split": "test"}]
    report = import_problems(written(tmp_path / "rows.json", rows), None, SOURCE)
    assert report.shared == 1 and "held-out problems with what a training problem has too" in str(report)


def test_other_columns_are_named_by_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "rows.csv", [{"ops": [3, 5], "goal": 8}, {"ops": [3, 5], "goal": 15}])
    assert imported(path)[0] == 2
    assert "no column nums or numbers and no column target (its columns: ops, goal)" in (
        said := capsys.readouterr().err
    )
    assert "--column NAME=COLUMN" in said
    status, out = imported(path, "--column", "numbers=ops", "--column", "target=goal", "--split", "train")
    assert status == 0 and len(read_problems(out, "train")) == 2


@pytest.mark.parametrize("given", [["numbers"], ["=x"], ["numbers="], ["numbers=a", "numbers=b"]])
def test_column_options_that_say_nothing_are_refused(given: list[str]) -> None:
    with pytest.raises(ConfigError, match="--column numbers|--column =x"):
        columns_of(given)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--env", "countdwn"], "there are countdown"),
        (["--column", "numbers=ops"], "add --env"),
        (["--split", "test"], "add --env"),
        (["--env", "countdown", "--column", "numbers=none"], "no column none, which --column numbers=none names"),
        (["--env", "countdown", "--column", "numbers"], "say NAME=COLUMN"),
    ],
)
def test_options_that_do_not_fit_are_errors(
    options: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "rows.json", [{"nums": [3, 5], "target": 8}])
    assert main(["data", "import", str(path), "--out", str(tmp_path / "out"), *options]) == 2
    assert why in capsys.readouterr().err and list(tmp_path.iterdir()) == [path]


def test_a_dry_run_writes_nothing_and_a_folder_that_is_there_is_kept(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.json", [{"nums": [3, 5], "target": 8}])
    assert imported(path, "--dry-run")[0] == 0 and list(tmp_path.iterdir()) == [path]
    with pytest.raises(RunDirectoryError, match="another folder"):
        import_problems(path, tmp_path, SOURCE)
    with pytest.raises(DataError, match="check the path"):
        import_problems(tmp_path / "none.json", tmp_path / "out", SOURCE)
    assert list(tmp_path.iterdir()) == [path]


def test_more_rows_than_are_named_are_counted(tmp_path: Path) -> None:
    rows = [{"nums": [3, 5], "target": 8}, *({"nums": [1], "target": i} for i in range(5000))]
    report = import_problems(written(tmp_path / "rows.jsonl", rows), tmp_path / "out", SOURCE)
    assert isinstance(report, Imported) and report.left_out == 5000 and len(report.reasons) == 10
    assert "... (left_out.jsonl has all)" in str(report)
    assert len((tmp_path / "out" / LEFT_OUT).read_text().splitlines()) == 5000


def test_problems_are_cut_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apr.data.imported.SHARD_ROWS", 4)
    rows = [{"nums": [3, 5 + i], "target": 8 + i} for i in range(9)]
    import_problems(written(tmp_path / "rows.json", rows), tmp_path / "out", SOURCE, split="train")
    assert len(list((tmp_path / "out" / "problems").glob("train-*-of-00003.parquet"))) == 3
    assert [problem["target"] for problem in read_problems(tmp_path / "out", "train")] == [8 + i for i in range(9)]


def test_demonstrations_need_training_problems(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.json", [{"nums": [3, 5], "target": 8}, {"nums": [3, 5], "target": 15}])
    for split in ("train", "test"):
        import_problems(path, tmp_path / split, SOURCE, split=split)
    assert {split: len(rows) for split, rows in problems_from(tmp_path / "train", SOURCE).items()} == {"train": 2}
    with pytest.raises(DataError, match="only test problems.*--split train"):
        problems_from(tmp_path / "test", SOURCE)
    with pytest.raises(DataError, match="has no problems"):
        problems_from(tmp_path / "none", SOURCE)


def test_a_card_of_taken_problems_does_not_say_that_they_were_drawn(tmp_path: Path) -> None:
    rows = [{"nums": [3, 5], "target": 8, "split": "train"}, {"nums": [3, 5], "target": 15, "split": "test"}]
    import_problems(written(tmp_path / "rows.json", rows), tmp_path / "taken", SOURCE)
    assert (
        main(["data", "generate", "env=countdown", f"problems_from={tmp_path / 'taken'}", f"out={tmp_path / 'made'}"])
        == 0
    )
    text = (tmp_path / "made" / "README.md").read_text()
    assert "those of the data set `taken`" in text and "Splits are those of that data set." in text
    assert "drawn uniformly" not in text and "SHA-256 of it" not in text

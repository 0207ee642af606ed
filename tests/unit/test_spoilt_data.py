"""Data files that are not what they should be are refused, with the file and the row."""

import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from data_sets import COMPACT, ENV, config, first, teacher

from apr.data.check import check_folder
from apr.data.shards import shard_facts, shard_path, shard_paths
from apr.data.store import (
    DEMONSTRATIONS,
    PROBLEMS,
    demonstrations_folder,
    demonstrations_hash,
    demonstrations_table,
    problems_folder,
    problems_table,
    read_demonstrations,
    read_problems,
    write_demonstrations,
    write_problems,
)
from apr.data.teach import demonstrations_of
from apr.errors import DataError
from apr.threads.trace import Trace
from envs.countdown.problems import problem_of


@pytest.mark.parametrize("name", ["problems", "demonstrations"])
def test_a_corrupt_file_is_named(name: str, easy: Path, tmp_path: Path) -> None:
    def read(folder: Path) -> list[Any]:
        return (
            read_problems(folder, "validation", ENV)
            if name == "problems"
            else list(read_demonstrations(folder, "spawn_join", ENV))
        )

    if name == "problems":
        path = shard_path(problems_folder(tmp_path), "validation", 0, 1)
        whole, rows = shard_path(problems_folder(easy), "validation", 0, 1).read_bytes(), read(easy)
    else:
        path = shard_path(demonstrations_folder(tmp_path, "spawn_join"), "train", 0, 1)
        whole, rows = first(easy, "spawn_join").read_bytes(), read(easy)[:16]
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
        ({"id": ["a"], "numbers": [[3, 5, 8]]}, "it has no column target"),
        ({"id": ["23:3-5-8"], "numbers": [[3, 5, 8]], "target": ["24"]}, "row 0: not a problem of countdown"),
        ({"id": ["24:3"], "numbers": [[3]], "target": [23]}, "row 0: not a problem of countdown"),
        ({"id": ["24:3-5"], "numbers": [None], "target": [23]}, "row 0: not a problem of countdown"),
        ({"id": ["1:-3-5"], "numbers": [[-3, 5]], "target": [1]}, "row 0: not a problem of countdown"),
        ({"id": ["23:3-5-8", "2:1-1"], "numbers": [[3, 5, 8], [1, None]], "target": [23, 2]}, "row 1: not a problem"),
        ({"id": ["23:3-5-8", None], "numbers": [[3, 5, 8], [1, 1]], "target": [23, 2]}, "row 1: .* has no id"),
        ({"id": ["23:3-5-8"], "numbers": [[3.0, 5.0, 8.0]], "target": [23]}, "row 0: not a problem of countdown"),
        ({"id": [1], "numbers": [[3, 5, 8]], "target": [23]}, "row 0: .* has no id"),
        ({"id": ["7919:3-5-8"], "numbers": [[3, 5, 8]], "target": [7919]}, "row 0.*no solution"),
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
        read_problems(tmp_path, "test", ENV)
    assert str(path) in str(caught.value)


def test_problems_of_several_sizes_are_read(tmp_path: Path) -> None:
    rows = [problem_of([1, 1], 2), GOOD, problem_of([1, 2, 3, 4], 24), problem_of([2, 9], 18)]
    write(tmp_path, {key: [row[key] for row in rows] for key in GOOD})
    assert read_problems(tmp_path, "test", ENV) == rows


def test_a_missing_or_newer_file_is_refused(easy: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data file .*apr data generate"):
        read_problems(tmp_path, "test", ENV)
    with pytest.raises(DataError, match="no data file .*apr data generate"):
        next(read_demonstrations(easy, "other"))
    write(tmp_path, {key: [value] for key, value in GOOD.items()}, "apr.problems/2")
    with pytest.raises(DataError, match=r"has schema apr\.problems/2, this version reads apr\.problems/1"):
        read_problems(tmp_path, "test", ENV)


@pytest.fixture
def again(easy: Path, tmp_path: Path) -> Path:
    """A data set to be spoilt."""
    return Path(shutil.copytree(easy, tmp_path / "again"))


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
        table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
    write_demonstrations(path, table, 16, shard_facts(path, DEMONSTRATIONS))
    return path


def columns_of(folder: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = pq.read_table(first(folder, "spawn_join")).to_pydict()
    return found


@pytest.mark.parametrize(
    ("fact", "said"),
    [
        ({b"speller": "latin"}, "spelt in speller latin: known are compact, paper"),
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
        ("strands", lambda lengths: [sum(lengths[:-1]), lengths[-1]], "ends before the last strand"),
    ],
)
def test_a_demonstration_that_is_none_is_refused_with_its_row(column: str, change: Any, said: str, again: Path) -> None:
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
    write_problems(test, problems_table([problem_of(numbers, target)]))
    with pytest.raises(DataError, match=r"-00003\.parquet, row 0: its number multiset .* is in the test split too"):
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
    table = demonstrations_of([problem], teacher(config(again).solvers["spawn_join"]))
    path = first(again, "spawn_join")
    write_demonstrations(path, table, 1, shard_facts(path, DEMONSTRATIONS))
    with pytest.raises(DataError, match=r"row 0: its number multiset .* is in the validation split too"):
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
    with pytest.raises(
        DataError, match=r"README\.md is missing, or lists another content hash of demonstrations/spawn_join"
    ):
        check_folder(again)
    pq.write_table(table, path)
    assert check_folder(again)

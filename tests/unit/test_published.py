"""Published data in and out: traces equal what the text says, damage is found, and nothing is dropped in silence."""

import copy
import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FREE, FakeEngine, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paper_logs import protocol_for, searches

from apr.cli import main
from apr.data.exchange import REPORT, TRACES, export_file, import_file
from apr.data.store import read_problems
from apr.data.tables import elements
from apr.errors import DataError, RunDirectoryError
from apr.protocols.serial import Serial
from apr.protocols.spawn_join import SpawnJoin
from apr.seeds import SplitMix64
from apr.sft.rows import rows
from apr.threads.codec import TraceWriter, read_traces
from apr.threads.trace import EngineStop, Trace
from envs.countdown.compact import CompactSpeller
from envs.countdown.log import Node, SearchLog
from envs.countdown.paper import CALL, JOIN, PaperSpeller
from envs.countdown.paper_protocols import PaperSpawnJoin
from envs.countdown.published import damage, from_row, is_prompt, misnamed, problem_in, to_row
from envs.countdown.wording import encode
from solvers.search import SearchOptions, search

SPELLER = PaperSpeller()
WORDS = SPELLER.words
Row = dict[str, Any]


# A row as the published generator writes them: numbers in the order drawn, children listed in another order than called.

TOLD = "Moving to Node #0\nCurrent State: 10:[8, 1, 6, 4], Operations: []\n"
BEFORE = f"""{TOLD}Exploring Operation: 1*4=4, Resulting Numbers: [8, 6, 4]
Generated Node #0,0: 10:[8, 6, 4] Operation: 1*4=4
Exploring Operation: 1+4=5, Resulting Numbers: [8, 6, 5]
Generated Node #0,1: 10:[8, 6, 5] Operation: 1+4=5
Exploring Operation: 8*6=48, Resulting Numbers: [1, 4, 48]
Generated Node #0,2: 10:[1, 4, 48] Operation: 8*6=48
Moving to Node #0,2
Current State: 10:[1, 4, 48], Operations: ['8*6=48']
Exploring Operation: 48/4=12, Resulting Numbers: [1, 12]
Generated Node #0,2,0: 10:[1, 12] Operation: 48/4=12
"""
CALLED = f"""{BEFORE}<Calling Sub Searches>
<Start Sub Search 0 at level 1> Moving to Node #0,1
<Start Sub Search 1 at level 1> Moving to Node #0,2,0
<End Calling Sub Searches>
"""
FIRST_TOLD = "Moving to Node #0,1\nCurrent State: 10:[8, 6, 5], Operations: ['1+4=5']\n"
FIRST_PATH = f"""{FIRST_TOLD}Exploring Operation: 8-6=2, Resulting Numbers: [5, 2]
Generated Node #0,1,0: 10:[5, 2] Operation: 8-6=2
Moving to Node #0,1,0
Current State: 10:[5, 2], Operations: ['1+4=5', '8-6=2']
Exploring Operation: 5*2=10, Resulting Numbers: [10]
10,10 equal: Goal Reached
"""
TRIED = "Exploring Operation: 5+2=7, Resulting Numbers: [7]\n7,10 unequal: No Solution\n"
FIRST = FIRST_PATH.replace("Exploring Operation: 5*2", f"{TRIED}Exploring Operation: 5*2") + FIRST_PATH
SECOND = """Moving to Node #0,2,0
Current State: 10:[1, 12], Operations: ['8*6=48', '48/4=12']
Exploring Operation: 12-1=11, Resulting Numbers: [11]
11,10 unequal: No Solution
No solution found.
"""
AFTER = f"""{BEFORE}<Sub Searches>
<Goal Reached in Sub Search 0 at level 1 at Node #0,1>
{FIRST_PATH}<No Solution in Sub Search 1 at level 1 at Node #0,2,0>
<End Sub Searches>
10,10 equal: Goal Reached
{TOLD}Exploring Operation: 1+4=5, Resulting Numbers: [8, 6, 5]
Generated Node #0,1: 10:[8, 6, 5] Operation: 1+4=5
{FIRST_PATH}"""
ROW: Row = {
    "nums": [8, 1, 6, 4], "target": 10, "start_size": 4, "rating": 0.9, "search_type": "apr_3",
    "trace_dict": {
        "main_calls": [CALLED, AFTER],
        "sub_calls": [[{"main_calls": [FIRST], "sub_calls": []}, {"main_calls": [SECOND], "sub_calls": []}]],
    },
    "search_path": AFTER,
}  # fmt: skip


OTHER_JOIN = AFTER.replace("<No Solution in Sub Search 1", "<No Solution in Sub Search 2")


def damaged(change: Callable[[Row], None]) -> Row:
    row = copy.deepcopy(ROW)
    change(row)
    return row


def replaced(old: str, new: str) -> Callable[[Row], None]:
    """A change of all texts of a row's root, as a bug of its generator would make it."""

    def change(row: Row) -> None:
        calls = row["trace_dict"]["main_calls"]
        assert all(old in text for text in calls)
        calls[:] = [text.replace(old, new) for text in calls]
        row["search_path"] = calls[-1]

    return change


# Rows and traces


def test_a_published_row_becomes_a_trace() -> None:
    trace = from_row(ROW, SPELLER)
    assert trace.problem == {"id": "10:1-4-6-8", "numbers": [1, 4, 6, 8], "target": 10}
    assert trace.protocol == "spawn_join" and trace.correct and trace.answer == "1+4=5, 8-6=2, 5*2=10"
    assert [str(strand.id) for strand in trace.strands] == ["r#0", "r.0#0", "r.1#0", "r#1"]
    sampled = [WORDS.text(strand.sampled) for strand in trace.strands]
    assert sampled[0] == CALLED.removeprefix(TOLD[:-1]) + "<eos>"
    assert sampled[2] == SECOND.partition("]\n")[2].join(["\n", "<eos>"])
    assert sampled[3] == AFTER.partition("<End Sub Searches>\n")[2] + "<eos>"  # no prefix, and no join text
    assert WORDS.text(trace.strands[1].injected_ids) == "<bos>" + FIRST_TOLD[:-1]


def test_the_damage_of_the_trainer_is_counted_and_not_in_the_rows() -> None:
    found = damage(ROW)
    join = AFTER.removeprefix(BEFORE).partition("10,10 equal: Goal Reached\nMoving to Node #0\n")[0]
    assert (found.misnamed, found.repeated, found.joined) == (0, len(BEFORE), len(join))
    assert found.characters == sum(map(len, (CALLED, AFTER, FIRST, SECOND)))
    trace = from_row(ROW, SPELLER)
    trained = "".join(WORDS.text(i for i in row.targets if i >= 0) for row in rows(trace))
    assert trained.count("Generated Node #0,2,0:") == 1  # the prefix trains once (D6)
    assert "<Sub Searches>" not in trained  # join text does not (D7)
    assert trained.count("<eos>") == 4 and trained.count("Current State: 10:[8, 1, 6, 4]") == 1  # told once, said once


@pytest.mark.parametrize(
    "announced",
    [
        "Current State: 10:[1, 4, 48]",  # by no name
        "Moving to Node #0,1\nCurrent State: 10:[1, 4, 48]",  # by another node's
        "Moving to Node #0,9\nCurrent State: 10:[1, 4, 48]",  # by no node's
        "Moving to Node #0,1\nMoving to Node #0,2\nCurrent State: 10:[1, 4, 48]",  # by two
        "Moving to Node #0,2\nCurrent State: 10:[4, 1, 48]",  # another state
    ],
)
def test_a_shadowed_index_is_found_and_changes_no_child(announced: str) -> None:
    row = damaged(replaced("Moving to Node #0,2\nCurrent State: 10:[1, 4, 48]", announced))
    assert damage(row).misnamed == 1  # once, though each of the root's calls repeats it
    assert from_row(row, SPELLER).answer == "1+4=5, 8-6=2, 5*2=10"


def test_a_row_is_written_as_it_was_read() -> None:
    written = to_row(from_row(ROW, SPELLER), SPELLER)
    assert written == {key: ROW[key] for key in ("target", "nums", "start_size", "search_path", "trace_dict")}


@given(searches())
def test_export_then_import_gives_equal_traces(made: tuple[SearchLog, dict[str, Any]]) -> None:
    log, problem = made
    trace = encode(log, SPELLER, protocol_for(log, SPELLER), problem)
    row = json.loads(json.dumps(to_row(trace, SPELLER)))
    assert from_row(row, SPELLER) == trace
    assert damage(row).misnamed == 0


def set_key(*keys: Any, to: Any) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        for key in keys[:-1]:
            row = row[key]
        row[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (5, "not int"),
        (None, "not NoneType"),
        ({}, "neither a trace_dict nor a search_path"),
        ("Current State: 10:[8, 1], Operations: [exit()]", "does not open with a problem"),
        ({"search_path": "\n"}, "does not open with a problem"),
        ({"trace_dict": []}, "main_calls"),
        ({"trace_dict": {"main_calls": [], "sub_calls": []}}, "main_calls"),
        ({"trace_dict": {"main_calls": [3], "sub_calls": []}}, "main_calls"),
        (damaged(set_key("trace_dict", "sub_calls", to=[])), "list of 1 lists"),
        (damaged(set_key("trace_dict", "sub_calls", 0, to=[])), "not follow the protocol"),
        (damaged(set_key("trace_dict", "sub_calls", 0, 1, to={"main_calls": [FIRST], "sub_calls": []})), "thread r.1 was told"),
        (damaged(set_key("trace_dict", "main_calls", 1, to=CALLED)), "does not go on where"),
        (damaged(set_key("trace_dict", "main_calls", 1, to=AFTER.replace("#0,2:", "#0,3:"))), "does not go on where"),
        (damaged(set_key("trace_dict", "main_calls", 1, to=OTHER_JOIN)), "thread r was told"),
        (damaged(replaced("Generated Node #0,1:", "Generated Node #0,7:")), "not follow the protocol"),
        (damaged(set_key("nums", to=[8, 1, 6, 5])), "its fields say"),
        (damaged(set_key("target", to=11)), "its fields say"),
        (damaged(set_key("trace_dict", "main_calls", to=[TOLD + "No solution found.\n# and more"])), "list of 0 lists"),
        ({"search_path": TOLD[18:] + "No solution found.\u00b0\n"}, "no token for"),
        ({"search_path": TOLD[18:] + "Nothing.\n"}, "does not end with the line"),
        ({"search_path": AFTER[18:].replace("8-6=2", "8-6=3")}, "does not|not follow"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_why(row: Any, why: str) -> None:
    with pytest.raises(DataError, match=why):
        from_row(row, SPELLER)


def test_a_false_claim_is_refused() -> None:
    wrong = (
        "\n10,10 equal: Goal Reached\nExploring Operation: 8-1=7, Resulting Numbers: [7]\n10,10 equal: Goal Reached\n"
    )
    with pytest.raises(DataError, match="claims to reach the goal.*unused"):
        from_row({"search_path": "Current State: 10:[8, 1, 6, 4], Operations: []" + wrong}, SPELLER)


def test_calls_that_nest_without_end_are_refused() -> None:
    thread: Row = {"main_calls": [SECOND], "sub_calls": []}
    for _ in range(40):
        thread = {"main_calls": [CALLED, AFTER], "sub_calls": [[thread]]}
    with pytest.raises(DataError, match="nest deeper"):
        from_row({"trace_dict": thread}, SPELLER)


def test_visits_in_sub_searches_of_one_thread_are_announced_too() -> None:
    start = "Current State: 9:[1, 2, 3], Operations: []\nGenerated Node #0,0: 9:[3, 3] Operation: 1+2=3\n"
    state = "Current State: 9:[3, 3], Operations: ['1+2=3']\n"
    assert misnamed(f"{start}Start Sub Search at level 1: Moving to Node #0,0\n{state}") == 0
    assert misnamed(f"{start}Start Sub Search at level 1: Moving to Node #0,1\n{state}") == 1
    assert misnamed(start + state) == 1
    assert misnamed(f"{start}Moving to Node #0,0\n") == 1  # and nothing comes


@pytest.mark.parametrize(
    ("prefix", "condition"),
    [
        ("", None),
        ("Moving to Node #0\n", None),
        ("Sub Call Budget: 10 Moving to Node #0\n", {"kind": "children", "value": 10}),
        ("Token Budget: 1536 ", {"kind": "context", "value": 1536}),
    ],
)
def test_prompts_of_the_rl_data(prefix: str, condition: Row | None) -> None:
    text = f"{prefix}Current State: 39:[51, 49, 36, 25], Operations: []"
    problem, told = problem_in(text)
    assert is_prompt(text) and told == text and not is_prompt(text + "\n")
    assert problem == {
        "id": "39:25-36-49-51", "numbers": [25, 36, 49, 51], "target": 39, **({"condition": condition} if condition else {}),
    }  # fmt: skip


# What the format cannot hold


def traced(said: dict[tuple[str, int], str]) -> Trace:
    eos = (WORDS.control.eos,)
    script = {key: (*WORDS.continued(text), *eos) for key, text in said.items()}
    engine = FakeEngine(lambda request: script[request.key.thread, request.key.number])
    prompt = WORDS.opened(TOLD[:-1])
    return run(
        engine, FREE, PaperSpawnJoin(SPELLER), prompt, {"id": "10:1-4-6-8", "numbers": [1, 4, 6, 8], "target": 10}
    )


def test_a_join_that_the_model_wrote_itself_cannot_be_written() -> None:
    listing = BEFORE.removeprefix(TOLD[:-1])
    call = CALLED.removeprefix(BEFORE + CALL)
    nothing = "\nNo solution found.\n"
    trace = traced(
        {("r", 0): listing + JOIN, ("r", 1): call, ("r", 2): nothing[1:], ("r.0", 0): nothing, ("r.1", 0): nothing}
    )
    with pytest.raises(DataError, match="goes on without a call"):
        to_row(trace, SPELLER)


def cut(trace: Trace) -> Trace:
    """The same, its first strand cut by a limit."""
    return replace(trace, strands=(replace(trace.strands[0], stop=EngineStop.LENGTH), *trace.strands[1:]))


def test_a_cut_trace_and_another_speller_cannot_be_written() -> None:
    with pytest.raises(DataError, match="does not end with EOS"):
        to_row(cut(from_row(ROW, SPELLER)), SPELLER)
    compact = CompactSpeller()
    for depth, protocol in ((0, Serial), (1, SpawnJoin)):
        log = search(24, Node((2, 3, 5), ()), SearchOptions(3, 3, spawn_depth=depth), SplitMix64(0))
        with pytest.raises(DataError, match="another|does not open"):
            to_row(encode(log, compact, protocol(compact.vocabulary.control), {"id": "p"}), SPELLER)


# Files


SERIAL = "Current State: 7:[3, 4], Operations: []\nExploring Operation: 3*4=12, Resulting Numbers: [12]\n" \
         "12,7 unequal: No Solution\nNo solution found.\n"  # fmt: skip
PROMPT = "Token Budget: 512 Current State: 7:[3, 4], Operations: []"
WRONG_VISIT = damaged(replaced("Moving to Node #0,2\nCurrent", "Moving to Node #0,1\nCurrent"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "published.json"
    path.write_text(json.dumps([ROW, WRONG_VISIT, {"search_path": SERIAL}, {"nums": 3}, PROMPT, SERIAL], indent=2))
    return path


def test_importing_a_file(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["data", "import", str(file), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "6 rows: 4 traces, 2 distinct problems" in said
    assert "row 3: it has neither" in said and "not read: 1 rows (3)" in said
    report = json.loads((out / REPORT).read_text())
    assert report["misnamed"] == [1] and report["repeated"] == report["joined"] == [0, 1]
    assert report["duplicates"] == [1, 4, 5] and list(report["unread"]) == ["3"]
    traces = list(read_traces(out / TRACES))
    assert traces[0] == from_row(ROW, SPELLER) and [t.protocol for t in traces] == ["spawn_join"] * 2 + ["serial"] * 2
    assert [problem["id"] for problem in read_problems(out, "test")] == ["7:3-4", "10:1-4-6-8"]  # by size

    back = tmp_path / "back" / "again.json"
    assert main(["data", "export", str(out / TRACES), "--out", str(back)]) == 0
    assert [row["search_path"] for row in json.loads(back.read_text())] == [
        AFTER,
        WRONG_VISIT["search_path"],
        SERIAL,
        SERIAL,
    ]
    assert list(back.parent.iterdir()) == [back]
    assert main(["data", "import", str(back), "--out", str(tmp_path / "twice")]) == 0
    assert list(read_traces(tmp_path / "twice" / TRACES)) == traces


def test_unsolvable_problems_are_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    told = "Moving to Node #0\nCurrent State: {}:[3, 4], Operations: []"
    path.write_text(json.dumps([told.format(7), told.format(99)]))
    report = import_file(path, tmp_path / "out", SPELLER)
    assert (report.problems, report.unsolvable) == (2, ["99:3-4"])
    assert [problem["id"] for problem in read_problems(tmp_path / "out", "test")] == ["7:3-4"]


STATED = "Current State: {}:{}, Operations: []"
BOUNDED = [
    ("[7]", 7, "1 numbers"),
    ("[1, 2, 3, 4, 5, 6, 7]", 24, "7 numbers"),
    ("[1, 2, 3, 4, 5, 6, 7, 8]", 24, "8 numbers"),
    (str(list(range(1, 17))), 24, "16 numbers"),
    (f"[3, {10**23}]", 24, "from 0 to"),
    ("[3, 8]", 10**15 + 1, "target is"),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("numbers", "target", "why"), BOUNDED)
@pytest.mark.parametrize("search", ["", "\nNo solution found.\n"])
def test_problems_that_no_command_takes_are_left_out_at_once(
    numbers: str, target: int, why: str, search: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([STATED.format(24, "[3, 8]"), STATED.format(target, numbers) + search]))
    report = import_file(path, tmp_path / "out", SPELLER)
    assert (report.problems, list(report.unread)) == (1, [1]) and why in report.unread[1]
    assert [problem["id"] for problem in read_problems(tmp_path / "out", "test")] == ["24:3-8"]


def sos(path: str, nums: list[int], target: int, **more: Any) -> Row:
    """A row as the public generator of Stream of Search writes it."""
    return {
        "nums": nums,
        "target": target,
        "search_path": STATED.format(target, nums) + path,
        "search_type": "dfs",
        **more,
    }


REACHED = "\nExploring Operation: 42-25=17, Resulting Numbers: [17]\n17,17 equal: Goal Reached\n"
NOT_REACHED = "\nExploring Operation: 42+25=67, Resulting Numbers: [67]\n67,17 unequal: No Solution\n"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (sos(REACHED, [25, 42], 17), "says the path to it again"),
        (sos(NOT_REACHED + REACHED[1:], [25, 42], 17), "says the path to it again"),
        (sos("\n", [25, 42], 17), "does not end with the line 'No solution found.'"),
        (sos(NOT_REACHED, [25, 42], 17), "does not end with the line"),
        (sos("\nNo solution found.", [25, 42], 17), "does not end with the line|no token for"),
        ({"nums": [25, 42], "target": 17, "solution": ["42-25=17"]}, "neither a trace_dict nor a search_path"),
    ],
)
def test_the_problem_is_kept_where_the_search_cannot_be_read(row: Row, why: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row]))
    report = import_file(path, tmp_path / "out", SPELLER)
    assert report.problem_only == [0] and re.search(why, report.unread[0])
    assert "problem kept without its search: 1 rows (0)" in str(report)
    assert [problem["id"] for problem in read_problems(tmp_path / "out", "test")] == ["17:25-42"]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [5, None],
        [{"nums": [1], "target": 1}],
        [STATED.format(24, [1, 2, 3, 4, 5, 6, 7, 8])],
        [STATED.format(99, [3, 4])],  # without a solution
        [sos(REACHED, [25, 43], 17) | {"nums": [1, 2]}],
    ],
)
def test_a_file_with_nothing_to_use_is_an_error(
    rows: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    assert main(["data", "import", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "rows.json: none of its" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


def test_a_dry_run_writes_nothing(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "import", str(file), "--dry-run"]) == 0
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_is_there_is_kept(file: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="another folder"):
        import_file(file, tmp_path, SPELLER)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "text", ["", "{}", "[1, 2", "[1 2]", "[1,]", "[", '["a', '[{"a": 1}', "[1] ", "[nonsense]", "\udcff", "[" * 100_000]
)
def test_files_that_are_no_list_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    if text == "[1] ":
        assert list(elements(path)) == [1]
        return
    with pytest.raises(DataError, match="file.json, row"):
        list(elements(path))
    out = tmp_path / "out"
    assert main(["data", "import", str(path), "--out", str(out)]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]  # nothing half-written


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="check the path"):
        list(elements(tmp_path / "none.json"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(VALUES, max_size=9), size=st.integers(1, 7), indent=st.sampled_from([None, 2]))
def test_lists_are_read_piece_by_piece(
    values: list[Any], size: int, indent: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps(values, indent=indent))
    with monkeypatch.context() as patch:
        patch.setattr("apr.data.tables._CHUNK", size)
        read: list[int] = []
        assert list(elements(path, read.append)) == values
        assert sum(read) <= len(path.read_text())


def test_traces_that_cannot_be_exported_are_named(tmp_path: Path) -> None:
    good = from_row(ROW, SPELLER)
    path, out = tmp_path / "t.jsonl.gz", tmp_path / "o.json"
    with TraceWriter(path) as writer:
        writer.append(cut(good))
        writer.append(good)
    assert "1 traces in" in (said := export_file(path, out, SPELLER)) and "1 left out" in said and "trace 0:" in said
    assert len(json.loads(out.read_text())) == 1
    with TraceWriter(tmp_path / "bad.jsonl.gz") as writer:
        writer.append(cut(good))
    with pytest.raises(DataError, match="holds no trace"):
        export_file(tmp_path / "bad.jsonl.gz", tmp_path / "no.json", SPELLER)
    assert not (tmp_path / "no.json").exists() and not list(tmp_path.glob(".*"))


def test_random_damage_never_raises_anything_else(file: Path) -> None:
    """Whatever a row holds, it is a trace or a `DataError`."""
    rng = random.Random(0)
    text = json.dumps(ROW["trace_dict"])
    for _ in range(300):
        start = rng.randrange(len(text))
        end = start + rng.choice((0, 1, 5, 60))
        changed = text[:start] + rng.choice(("", "0", "#0,1", "Goal Reached", '"', "],")) + text[end:]
        try:
            row = {"trace_dict": json.loads(changed)}
        except json.JSONDecodeError:
            continue
        try:
            from_row(row, SPELLER)
            damage(row)
        except DataError:
            pass

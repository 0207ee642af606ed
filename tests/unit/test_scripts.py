"""Scripts: what threads say, in no grammar; files of them; and what the grammars of today make of them."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr.cli import main
from apr.data.store import read_demonstrations
from apr.errors import DataError, SchemaError, ScriptError
from apr.protocols import protocol_by_name
from apr.protocols.spawn_join import SpawnJoin
from apr.scripts.files import MAX_DEPTH, read_scripts, to_json
from apr.scripts.script import Answer, Branch, Fork, Join, Say, Script, faults
from apr.seeds import SplitMix64
from apr.tokens.words import WordsSpeller
from apr.user_code import allow
from envs.base import PlainTeacher, Teacher, written
from envs.countdown.compact import CompactSpeller
from envs.countdown.log import Node
from envs.countdown.wording import encode, script_of
from envs.registry import environment
from solvers.search import SearchOptions, search, unfold

SORTING = f"{Path(__file__).parents[2] / 'examples' / 'sorting.py'}:Sorting"
allow(SORTING)
WORDS = st.lists(st.sampled_from(["a", "b", "cd", "e f"]), max_size=4).map(tuple)
SOME = st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=3).map(tuple)


def children(inner: st.SearchStrategy[Script]) -> st.SearchStrategy[Script]:
    """Scripts of children: words, and forks that are joined at once."""
    branch = st.builds(Branch, SOME, SOME, inner, WORDS)
    fork = st.lists(branch, min_size=1, max_size=3).map(lambda branches: (Fork(tuple(branches)), Join()))
    part = st.one_of(st.builds(Say, WORDS).map(lambda say: (say,)), fork)
    return st.lists(part, max_size=3).map(lambda parts: tuple(piece for part in parts for piece in part))


CHILD = st.recursive(st.just(()), children, max_leaves=6)
SCRIPTS = st.builds(lambda body, answer: (*body, answer), children(CHILD), st.builds(Answer, WORDS))


@given(SCRIPTS)
def test_a_script_is_read_as_it_was_written(script: Script) -> None:
    assert list(faults(script)) == []
    line = json.dumps(to_json({"id": "x"}, script))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "scripts.jsonl"
        path.write_text(f"\ufeff{line}\n\n{line}\n", encoding="utf-8")
        first, second = read_scripts(path)
    assert (first.line, second.line) == (1, 3)
    assert first.script == second.script == script and first.problem == {"id": "x"}


@given(SCRIPTS)
def test_strands_are_laid_out_by_the_protocol_and_hold_all_words(script: Script) -> None:
    speller = WordsSpeller(["a", "b", "cd", "e", "f"])
    strands = SpawnJoin(speller.vocabulary.control).write(script, speller)
    control = speller.vocabulary.control

    def words(pieces: Script, result: tuple[str, ...] | None) -> int:
        found = 0 if result is None else len(" ".join(result).split())
        for piece in pieces:
            match piece:
                case Say(said) | Answer(said):
                    found += len(" ".join(said).split())
                case Fork(branches):
                    found += sum(len(branch.message) + words(branch.script, branch.result) for branch in branches)
        return found

    special = {control.spawn, control.msg, control.spawn_end, control.join, control.eos}
    assert sum(token not in special for strand in strands for token in strand) == words(script, None)
    assert all(strand[-1] in (control.spawn_end, control.eos) for strand in strands)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ((Say(("a",)),), "does not end with an answer"),
        ((Answer(()), Say(("a",))), "something follows the answer"),
        ((Fork(()), Join(), Answer(())), "opens no branch"),
        ((Join(), Answer(())), "waits for no child"),
        ((Fork((Branch((), (), (), ()),)), Join(), Answer(())), "branch 0 has no message"),
        ((Fork((Branch(("a",), ("a",), (), ()),)), Join((1,)), Answer(())), "child 1, which is not open"),
        ((Fork((Branch(("a",), ("a",), (), ()),)), Join(), Join((0,)), Answer(())), "child 0, which is not open"),
        ((Fork((Branch(("a",), ("a",), (), ()),)), Join((0, 0)), Answer(())), "a child twice"),
        ((Fork((Branch(("a",), ("a",), (Answer(()),), ()),)), Join(), Answer(())), "branch 0: a child has an answer"),
    ],
)
def test_what_no_grammar_can_express_is_named(script: Script, said: str) -> None:
    assert any(said in fault for fault in faults(script))


def test_what_spawn_join_cannot_express_is_refused() -> None:
    branch = Branch(("a",), ("a",), (), ())
    speller = WordsSpeller(["a", "b", *environment(SORTING).vocabulary()])
    protocol = protocol_by_name("spawn_join", speller)
    for script in (
        (Fork((branch,)), Say(("b",)), Join(), Answer(())),  # words between
        (Fork((branch, branch)), Join((0,)), Answer(())),  # waits for one
        (Fork((branch,)), Answer(())),  # never waits
    ):
        with pytest.raises(ValueError, match="spawn_join|joined"):
            protocol.write(script, speller)
    two = (Fork((branch,)), Fork((branch,)), Join(), Answer(("b",)))  # two forks before one join are one spawn
    assert len(protocol.write(two, speller)) == 4
    teacher = Teacher(
        environment(SORTING), PlainTeacher(protocol="serial"), speller, protocol_by_name("serial", speller), 0
    )
    with pytest.raises(ScriptError, match="serial opens no threads"):
        written(two, {"id": "x", "digits": [1]}, teacher)


GOOD: dict[str, Any] = {"schema": "apr.script/1", "problem": {"digits": [2, 1]}, "script": [{"answer": ["1", "2"]}]}


def deep(levels: int) -> list[dict[str, Any]]:
    script: list[dict[str, Any]] = []
    for _ in range(levels):
        script = [{"fork": [{"message": "a", "script": script}]}, {"join": "all"}]
    return [*script, {"answer": []}]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: "),
        ("[]", "a line is an object, not list"),
        (json.dumps({**GOOD, "extra": 1}), "a line has an unknown key 'extra'"),
        (json.dumps({**GOOD, "problem": 3}), "`problem` is an object"),
        (json.dumps({**GOOD, "script": {"say": "a"}}), "`script` is a list"),
        (json.dumps({**GOOD, "script": [{"say": 3}, {"answer": []}]}), "`say` is a text or a list of texts"),
        (json.dumps({**GOOD, "script": [{"say": "a", "join": "all"}]}), "a piece is one of say"),
        (json.dumps({**GOOD, "script": [{"join": "some"}, {"answer": []}]}), '`join` is "all" or a list'),
        (json.dumps({**GOOD, "script": [{"join": [True]}, {"answer": []}]}), '`join` is "all" or a list'),
        (json.dumps({**GOOD, "script": [{"fork": [{"messag": "a"}]}]}), "a branch has an unknown key 'messag'"),
        (json.dumps({**GOOD, "script": [{"say": "a"}]}), "does not end with an answer"),
        (json.dumps({**GOOD, "script": deep(MAX_DEPTH + 2)}), "deeper than"),
        ("[" * 100_000, "line 2: "),
    ],
)
def test_a_line_that_is_no_script_is_named(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "scripts.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n")
    with pytest.raises(DataError, match="line 2: ") as caught:
        list(read_scripts(path))
    assert said in str(caught.value)


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scripts.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n\xff\n")
    with pytest.raises(DataError, match=r"scripts\.jsonl, at or after line [12]: it is not UTF-8"):
        list(read_scripts(path))


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scripts.jsonl"
    path.write_text(json.dumps({**GOOD, "schema": "apr.script/2"}))
    with pytest.raises(SchemaError, match="line 1: its schema is 'apr.script/2'"):
        list(read_scripts(path))


def test_scripts_of_people_are_checked_and_taught(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two problems by hand: one is spawned over, one is answered wrongly at once."""
    data = tmp_path / "data"
    sorting = [f"env.name={SORTING}", "env.length=4", "validation=2", "test=2"]
    assert main(["data", "generate", *sorting, "train=5", f"out={tmp_path / 'drawn'}"]) == 0
    from apr.data.store import read_problems

    problems = read_problems(tmp_path / "drawn", "train", environment(SORTING, {"length": 4}))[:2]
    halves = [[str(digit) for digit in problems[0]["digits"][:2]], [str(digit) for digit in problems[0]["digits"][2:]]]
    forks = [{"message": ["sort", *half, ":"], "result": sorted(half)} for half in halves]
    right = [{"fork": forks}, {"join": "all"}, {"answer": [str(d) for d in sorted(problems[0]["digits"])]}]
    rows = [
        {**GOOD, "problem": problem, "script": script}
        for problem, script in zip(problems, (right, [{"answer": ["0"]}]))
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert main(["data", "verify", str(path), "--env", SORTING]) == 0
    assert (
        "2 scripts for 2 problems of sorting, 1 right; can be written: 2 under apar, 2 under aspd, 2 under asyncthink, "
        "2 under multiverse, 2 under pasta, 1 under serial, 2 under skeleton, 2 under spawn_join, 2 under threadweaver"
        in _sorted(capsys.readouterr().out)
    )
    misspelt = {
        **rows[0],
        "script": [{"fork": [{**forks[0], "title": ["sortt"]}]}, *right[1:]],
    }  # in a title, which few say
    path.write_text(json.dumps(misspelt) + "\n")
    assert main(["data", "verify", str(path), "--env", SORTING]) == 2
    assert "line 1: 'sortt' is no word of this vocabulary" in capsys.readouterr().err
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["data", "verify", str(path), "--env", SORTING, "--protocol", "serial"]) == 2
    assert f"{path}, line 1: a script for problem" in capsys.readouterr().err
    assert main(["data", "verify", str(path), "--env", SORTING, "--protocol", "no_such"]) == 2
    assert "--protocol no_such: there are serial, spawn_join" in capsys.readouterr().err
    mine = [f"solvers.mine.scripts={path}", "solvers.mine.protocol=spawn_join"]
    assert main(["data", "generate", *sorting, "train=5", *mine, f"out={data}"]) == 0
    traces = list(read_demonstrations(data, "mine", environment(SORTING, {"length": 4})))
    assert [trace.problem["id"] for trace in traces] == [problem["id"] for problem in problems]
    assert [(trace.correct, len(trace.threads)) for trace in traces] == [(True, 3), (False, 1)]
    assert main(["data", "verify", str(data), "--env", SORTING]) == 0
    path.write_text(json.dumps({**GOOD, "problem": problems[0], "script": [{"answer": ["ten"]}]}))
    assert main(["data", "generate", *sorting, "train=5", *mine, f"out={tmp_path / 'other'}"]) == 2
    assert "'ten' is no word of this vocabulary" in capsys.readouterr().err


def _sorted(text: str) -> str:
    """The counts of protocols in the order of their names."""
    head, _, counts = text.strip().partition("can be written: ")
    return head + "can be written: " + ", ".join(sorted(counts.split(", "), key=lambda count: count.split()[-1]))


# A worked example: the problem {1, 4, 6, 8} -> 10, three children at the root, the paper's heuristic.

STATES = ["6 - 4 = 2 : 1 2 8 : 10", "8 - 4 = 4 : 1 4 6 : 10", "8 / 4 = 2 : 1 2 6 : 10"]
BODIES = [
    "@ 6 - 4 = 2 , 2 * 1 = 2 : 2 8 : 10 8 + 2 = 10 10 !",
    "@ 8 - 4 = 4 , 4 * 1 = 4 : 4 6 : 10 6 + 4 = 10 10 !",
    "@ 8 / 4 = 2 , 6 - 2 = 4 : 1 4 : 10 4 + 1 = 5 10 <",
]
PATHS = ["6 - 4 = 2 , 2 * 1 = 2 , 8 + 2 = 10", "8 - 4 = 4 , 4 * 1 = 4 , 6 + 4 = 10", ""]


def test_the_worked_example_is_written_row_by_row() -> None:
    speller = CompactSpeller()
    options = SearchOptions(3, 1, heuristic="sum_to_factors", spawn_depth=1)
    log = search(10, Node((1, 4, 6, 8), ()), options, SplitMix64(0))
    script = script_of(log, speller.wording)
    [fork] = [piece for piece in script if isinstance(piece, Fork)]
    rows = [(branch.message, branch.script, branch.result) for branch in fork.branches]
    assert [" ".join(message) for message, _, _ in rows] == STATES
    assert [
        " ".join(word for say in body if isinstance(say, Say) for word in say.pieces) for _, body, _ in rows
    ] == BODIES
    assert [" ".join(result) for _, _, result in rows] == PATHS
    problem = {"id": "10:1-4-6-8", "numbers": [1, 4, 6, 8], "target": 10}
    spawned = encode(log, speller, protocol_by_name("spawn_join", speller), problem)
    texts = [speller.vocabulary.text(strand.sampled) for strand in spawned.strands]
    assert texts[0].endswith(f"<spawn> {' '.join(f'<msg> {state}' for state in STATES)} </spawn>")
    assert texts[1:4] == [f"{body} <join> {path} <eos>".replace("  ", " ") for body, path in zip(BODIES, PATHS)]
    assert texts[4] == f"<join> {PATHS[0]} <eos>"
    serial = encode(unfold(log), speller, protocol_by_name("serial", speller), problem)
    [strand] = serial.strands
    assert speller.vocabulary.text(strand.sampled).endswith(f"@ {STATES[0]} {BODIES[0]} <join> {PATHS[0]} <eos>")

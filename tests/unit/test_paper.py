"""The paper speller: the published wording, its tokenizer, and traces that the runtime reproduces."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FREE, replays, run, timeless
from hypothesis import given, settings
from hypothesis import strategies as st
from paper_logs import protocol_for, searches

from apr.errors import CheckpointError, DataError
from apr.seeds import SplitMix64
from apr.sft.rows import rows
from apr.threads.trace import StopReason, closure_ids
from apr.tokens.control import CONTROL_TOKENS
from apr.tokens.speller import Condition
from apr.tokens.text import Spelt
from envs.countdown.compact import CompactSpeller
from envs.countdown.log import Event, Node, Promising, Queued, SearchLog, Spawned, Step, Visited
from envs.countdown.log import Tested as Leaf  # pytest takes names in Test for its own
from envs.countdown.paper import PaperSpeller, texts
from envs.countdown.paper_protocols import PaperSerial, PaperSpawnJoin
from envs.countdown.published import misnamed
from envs.countdown.verify import verify
from envs.countdown.wording import encode, root_prompt
from solvers.search import SearchOptions, search

FEWER = settings(max_examples=40)

SPELLER = PaperSpeller()
WORDS = SPELLER.words
ALPHABET = "".join(sorted({c for token in WORDS.tokens[len(CONTROL_TOKENS) :] for c in token}))
TEXTS = st.text(ALPHABET, max_size=60) | st.lists(st.sampled_from(WORDS.tokens), max_size=20).map("".join)


# The wording


FOUR_AND_ONE, SIX_LESS_ONE = Step(4, "+", 1, 5), Step(6, "-", 1, 5)
LEFT, RIGHT = Node((5, 6, 8), (FOUR_AND_ONE,)), Node((4, 5, 8), (SIX_LESS_ONE,))
EIGHT_LESS_SIX, LAST = Step(8, "-", 6, 2), Step(2, "*", 5, 10)
SOLUTION = (FOUR_AND_ONE, EIGHT_LESS_SIX, LAST)
FOUND: tuple[Event, ...] = (
    Queued(Node((2, 5), (FOUR_AND_ONE, EIGHT_LESS_SIX))),
    Visited(Node((2, 5), (FOUR_AND_ONE, EIGHT_LESS_SIX))),
    Leaf(Step(5, "-", 2, 3), 10),
    Leaf(LAST, 10),
)
FOUND_TEXT = """
Exploring Operation: 8-6=2, Resulting Numbers: [5, 2]
Generated Node #0,0,0: 10:[5, 2] Operation: 8-6=2
Moving to Node #0,0,0
Current State: 10:[5, 2], Operations: ['4+1=5', '8-6=2']
Exploring Operation: 5-2=3, Resulting Numbers: [3]
3,10 unequal: No Solution
Exploring Operation: 2*5=10, Resulting Numbers: [10]
10,10 equal: Goal Reached
"""
PATH_FROM_LEFT = """\
Moving to Node #0,0
Current State: 10:[6, 8, 5], Operations: ['4+1=5']
Exploring Operation: 8-6=2, Resulting Numbers: [5, 2]
Generated Node #0,0,0: 10:[5, 2] Operation: 8-6=2
Moving to Node #0,0,0
Current State: 10:[5, 2], Operations: ['4+1=5', '8-6=2']
Exploring Operation: 2*5=10, Resulting Numbers: [10]
10,10 equal: Goal Reached
"""
PATH_FROM_ROOT = f"""\
Moving to Node #0
Current State: 10:[1, 4, 6, 8], Operations: []
Exploring Operation: 4+1=5, Resulting Numbers: [6, 8, 5]
Generated Node #0,0: 10:[6, 8, 5] Operation: 4+1=5
{PATH_FROM_LEFT}"""
LISTING = """
Exploring Operation: 4+1=5, Resulting Numbers: [6, 8, 5]
Generated Node #0,0: 10:[6, 8, 5] Operation: 4+1=5
Exploring Operation: 6-1=5, Resulting Numbers: [4, 8, 5]
Generated Node #0,1: 10:[4, 8, 5] Operation: 6-1=5
"""


def spawning_log() -> SearchLog:
    children = (SearchLog(10, LEFT, FOUND, SOLUTION), SearchLog(10, RIGHT, (), None))
    return SearchLog(10, Node((1, 4, 6, 8), ()), (Promising(LEFT), Promising(RIGHT), Spawned(children)), SOLUTION)


def test_what_a_spawn_looks_like() -> None:
    assert texts(spawning_log()) == [
        f"{LISTING}<Calling Sub Searches>\n"
        "<Start Sub Search 0 at level 1> Moving to Node #0,0\n"
        "<Start Sub Search 1 at level 1> Moving to Node #0,1\n"
        "<End Calling Sub Searches>\n",
        FOUND_TEXT + PATH_FROM_LEFT,
        "\nNo solution found.\n",
        f"10,10 equal: Goal Reached\n{PATH_FROM_ROOT}",
    ]
    trace = encode(spawning_log(), SPELLER, PaperSpawnJoin(SPELLER), {"id": "p"})
    assert WORDS.text(trace.strands[3].injected_ids) == (
        "<Sub Searches>\n"
        f"<Goal Reached in Sub Search 0 at level 1 at Node #0,0>\n{PATH_FROM_LEFT}"
        "<No Solution in Sub Search 1 at level 1 at Node #0,1>\n"
        "<End Sub Searches>\n"
    )
    told = [WORDS.text(strand.injected_ids) for strand in trace.strands[:3]]
    assert told == [
        "<bos>Moving to Node #0\nCurrent State: 10:[1, 4, 6, 8], Operations: []",
        "<bos>Moving to Node #0,0\nCurrent State: 10:[6, 8, 5], Operations: ['4+1=5']",
        "<bos>Moving to Node #0,1\nCurrent State: 10:[4, 8, 5], Operations: ['6-1=5']",
    ]
    assert trace.answer == "4+1=5, 8-6=2, 2*5=10"


def test_what_a_serial_search_looks_like() -> None:
    """Depth first below promising nodes, in sub searches of the same thread; breadth first over the others."""
    later = Node((6, 8, 4), (Step(4, "/", 1, 4),))
    events = (Promising(RIGHT), Queued(later), Promising(LEFT), Visited(RIGHT), Visited(LEFT), *FOUND)
    log = SearchLog(10, Node((1, 4, 6, 8), ()), events, SOLUTION)
    [text] = texts(log)
    found, path = FOUND_TEXT.replace("#0,0", "#0,2"), PATH_FROM_ROOT.replace("#0,0", "#0,2")
    assert text == (
        "\nExploring Operation: 6-1=5, Resulting Numbers: [4, 8, 5]\n"
        "Generated Node #0,0: 10:[4, 8, 5] Operation: 6-1=5\n"
        "Exploring Operation: 4/1=4, Resulting Numbers: [6, 8, 4]\n"
        "Generated Node #0,1: 10:[6, 8, 4] Operation: 4/1=4\n"
        "Exploring Operation: 4+1=5, Resulting Numbers: [6, 8, 5]\n"
        "Generated Node #0,2: 10:[6, 8, 5] Operation: 4+1=5\n"
        "Start Sub Search at level 1: Moving to Node #0,0\n"
        "Current State: 10:[4, 8, 5], Operations: ['6-1=5']\n"
        "No solution found.\nExit Sub Search at level 1\nNo solution found in sub search\n"
        "Start Sub Search at level 1: Moving to Node #0,2\n"
        f"Current State: 10:[6, 8, 5], Operations: ['4+1=5']{found}{path}Exit Sub Search at level 1\n"
    )
    trace = encode(log, SPELLER, PaperSerial(SPELLER), {"id": "p"})
    assert WORDS.text(trace.strands[0].injected_ids) == "<bos>Current State: 10:[1, 4, 6, 8], Operations: []"
    assert trace.answer == "4+1=5, 8-6=2, 2*5=10"


def test_conditions_stand_in_front() -> None:
    state = "Moving to Node #0\nCurrent State: 24:[3, 5], Operations: []"
    assert WORDS.text(root_prompt(SPELLER, (5, 3), 24)) == f"<bos>{state}"
    assert WORDS.text(root_prompt(SPELLER, (5, 3), 24, Condition("children", 6))) == f"<bos>Sub Call Budget: 6 {state}"
    told = root_prompt(SPELLER, (5, 3), 24, Condition("context", 2048))
    assert WORDS.text(told) == f"<bos>Token Budget: 2048 {state}"
    [injected] = PaperSerial(SPELLER).start(told).inject
    assert WORDS.text(injected.ids) == "<bos>Token Budget: 2048 Current State: 24:[3, 5], Operations: []"


@pytest.mark.parametrize(
    ("events", "what"),
    [
        ((Visited(LEFT),), "did not list"),
        ((Promising(LEFT), Visited(RIGHT)), "did not list"),
        ((Spawned((SearchLog(10, LEFT, (), None),)),), "did not list"),
        ((Queued(Node((9,), (Step(7, "+", 2, 9),))),), "not at hand"),
    ],
)
def test_a_log_that_no_search_makes_is_refused(events: tuple[Event, ...], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        texts(SearchLog(10, Node((1, 4, 6, 8), ()), events, None))


@given(searches())
def test_each_visit_is_announced_by_its_own_name(made: tuple[SearchLog, dict[str, Any]]) -> None:
    """The published code's D1 is not in our text."""
    log, problem = made
    trace = encode(log, SPELLER, protocol_for(log, SPELLER), problem)
    strands = trace.by_id()
    for strand in trace.strands:
        assert misnamed(WORDS.text(WORDS.without_bos(closure_ids(strands, strand.sees) + strand.ids))) == 0


@given(searches())
def test_all_events_are_told_in_order(made: tuple[SearchLog, dict[str, Any]]) -> None:
    """Read line by line, the text says which nodes were listed and visited, and what was tested."""
    log, _ = made
    expected = [told for thread in _threads(log) for told in _told(thread)]
    assert [told for text in _by_thread(log) for told in _read(text)] == expected


def _threads(log: SearchLog) -> Iterable[SearchLog]:
    yield log
    for event in log.events:
        if isinstance(event, Spawned):
            for child in event.children:
                yield from _threads(child)


def _by_thread(log: SearchLog) -> list[str]:
    """The text of each thread, as `_threads` orders them."""
    order: list[list[str]] = []
    strands = iter(texts(log))

    def walk(thread: SearchLog) -> None:
        own: list[str] = [next(strands)]
        order.append(own)
        for event in thread.events:
            if isinstance(event, Spawned):
                for child in event.children:
                    walk(child)
                own.append(next(strands))

    walk(log)
    return ["".join(own) for own in order]


def _told(log: SearchLog) -> list[tuple[str, str]]:
    told = []
    for event in log.events:
        match event:
            case Promising(node) | Queued(node):
                told.append(("listed", str(node.path[-1])))
            case Visited(node):
                told.append(("visited", str([str(step) for step in node.path])))
            case Leaf(step, _):
                told.append(("tested", str(step)))
            case Spawned(children):
                told += [("spawned", str(child.start.path[-1])) for child in children]
    return told


def _read(text: str) -> list[tuple[str, str]]:
    lines = text.split("\n")
    goal = next((i for i, line in enumerate(lines) if line.endswith("Goal Reached")), len(lines))
    told, steps = [], {}
    for line, after in zip(lines[: goal + 1], [*lines[1:], ""]):
        if found := re.match("Generated Node #(.*): .* Operation: (.*)", line):
            told.append(("listed", found[2]))
            steps[found[1]] = found[2]
        elif found := re.match(".*Operations: (.*)", line):
            told.append(("visited", found[1]))
        elif (found := re.match("Exploring Operation: (.*), Resulting", line)) and "equal" in after:
            told.append(("tested", found[1]))
        elif found := re.match("<Start Sub Search .*> Moving to Node #(.*)", line):
            told.append(("spawned", steps[found[1]]))
    return told


# The tokenizer


@given(TEXTS)
def test_any_text_of_the_alphabet_round_trips(text: str) -> None:
    assert WORDS.text(WORDS.continued(text)) == text
    assert WORDS.opened(text) == (WORDS.control.bos, *WORDS.continued(text))


@given(st.integers(0, 10**40))
def test_numbers_of_any_size_are_digits(number: int) -> None:
    assert len(WORDS.continued(str(number))) == len(str(number))


@given(TEXTS, st.characters(exclude_characters=ALPHABET), TEXTS)
def test_an_unknown_character_is_an_error_that_names_it(before: str, unknown: str, after: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"no token for {unknown!r} (character {len(before)} ")):
        WORDS.continued(before + unknown + after)


@given(TEXTS, st.data())
def test_cuts_are_exact(text: str, data: st.DataObject) -> None:
    spelt = Spelt(WORDS, WORDS.continued(text))
    start, end = sorted(data.draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
    count, rest = spelt.before(start)
    assert WORDS.text(spelt.ids[:count]) + rest == text[:start]
    assert not rest or len(WORDS.text(spelt.ids[: count + 1])) > start  # the last boundary at or before the place
    assert WORDS.text(spelt.between(start, end)) == text[start:end]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paper_tokenizer")
    WORDS.save(folder)
    return folder


@pytest.fixture(scope="module")
def hugging_face(saved: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(saved)


@FEWER
@given(TEXTS)
def test_hugging_face_gives_the_same_ids_and_text(hugging_face: Any, text: str) -> None:
    ids = hugging_face(text)["input_ids"]
    assert tuple(ids) == WORDS.continued(text)
    assert hugging_face.decode(ids) == text


@FEWER
@given(searches())
def test_traces_are_the_tokens_of_their_text(hugging_face: Any, made: tuple[SearchLog, dict[str, Any]]) -> None:
    """No token reaches over a place where strands are cut, so a whole context is tokenised as it was put together."""
    log, problem = made
    trace = encode(log, SPELLER, protocol_for(log, SPELLER), problem)
    strands = trace.by_id()
    for strand in trace.strands:
        ids = closure_ids(strands, strand.sees) + strand.ids
        assert tuple(hugging_face(WORDS.text(ids))["input_ids"]) == ids == WORDS.continued(WORDS.text(ids))


def test_the_special_tokens_are_known(hugging_face: Any) -> None:
    c = WORDS.control
    assert (hugging_face.pad_token_id, hugging_face.bos_token_id, hugging_face.eos_token_id) == (c.pad, c.bos, c.eos)
    assert WORDS.tokens[: len(CONTROL_TOKENS)] == CONTROL_TOKENS and len(hugging_face) == len(WORDS)


def test_a_checkpoint_of_another_vocabulary_is_refused(saved: Path, tmp_path: Path) -> None:
    WORDS.check(saved)
    with pytest.raises(CheckpointError, match="paper/"):
        CompactSpeller().vocabulary.check(saved)
    CompactSpeller().vocabulary.save(tmp_path)
    with pytest.raises(CheckpointError, match="compact/"):
        WORDS.check(tmp_path)


# Traces


@given(searches())
def test_a_replayed_demonstration_is_the_demonstration(made: tuple[SearchLog, dict[str, Any]]) -> None:
    log, problem = made
    protocol = protocol_for(log, SPELLER)
    trace = encode(log, SPELLER, protocol, problem)
    condition = problem.get("condition")
    prompt = root_prompt(SPELLER, problem["numbers"], problem["target"], condition and Condition(**condition))
    replayed = run(replays(trace), FREE, protocol, prompt, problem)
    assert replayed.threads == trace.threads
    assert timeless(replayed.strands) == timeless(trace.strands)
    assert trace.costs is not None and replayed.costs is not None
    assert replace(replayed.costs, seconds=0.0) == trace.costs


@given(searches())
def test_the_answer_is_the_solvers_and_verifies(made: tuple[SearchLog, dict[str, Any]]) -> None:
    log, problem = made
    trace = encode(log, SPELLER, protocol_for(log, SPELLER), problem)
    assert trace.outcome is not None
    if log.solution is None:
        assert (trace.answer, trace.correct, trace.outcome.stop) == (None, False, StopReason.NO_ANSWER)
    else:
        assert trace.answer == ", ".join(map(str, log.solution))
        assert verify(problem["numbers"], problem["target"], trace.answer).ok
        assert trace.correct and trace.outcome.stop is StopReason.ANSWERED


@given(searches())
def test_each_sampled_token_trains_once(made: tuple[SearchLog, dict[str, Any]]) -> None:
    log, problem = made
    trace = encode(log, SPELLER, protocol_for(log, SPELLER), problem)
    targets = sorted(target for row in rows(trace) for target in row.targets if target >= 0)
    assert targets == sorted(token for strand in trace.strands for token in strand.sampled)
    bos = [strand.id.thread for strand in trace.strands for token in strand.ids if token == WORDS.control.bos]
    assert bos == [thread.id for thread in trace.threads]  # one of its own for each thread


@given(st.lists(st.integers(0, len(WORDS) + 5), max_size=40))
def test_any_ids_make_some_answer(ids: list[int]) -> None:
    assert isinstance(SPELLER.answer(ids), str)


def test_a_strange_line_in_an_answer_stays_and_is_refused() -> None:
    answer = SPELLER.answer(WORDS.continued(PATH_FROM_ROOT + "No solution found.\n"))
    assert answer == "4+1=5, 8-6=2, 2*5=10, No solution found."
    assert not verify((1, 4, 6, 8), 10, answer).ok


def test_a_search_that_takes_equal_nodes_twice_names_both() -> None:
    """Two nodes with equal numbers and steps are two nodes, with names of their own."""
    options = SearchOptions(30, 1, promising_share=0.0, duplicates=True)
    log = search(999, Node((5, 5, 5), ()), options, SplitMix64(0))
    [text] = texts(log)
    moves = re.findall("Moving to Node #(.*)\n(.*)", text)
    by_state: dict[str, list[str]] = {}
    for name, state in moves:
        by_state.setdefault(state, []).append(name)
    assert len({name for name, _ in moves}) == len(moves) > len(by_state) > 1
    assert all(names == sorted(names, key=lambda name: int(name[2:])) for names in by_state.values())

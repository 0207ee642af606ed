"""Multiverse: its worked example token by token, what it refuses, and that demonstrations are what the runtime makes."""

from collections.abc import Sequence

import pytest
from fakes import FREE, replays, run, timeless

from apr.errors import ConfigError
from apr.protocols import protocol_by_name
from apr.protocols.multiverse import Multiverse
from apr.scripts.demonstration import demonstration
from apr.scripts.script import Answer, Branch, Fork, Join, Say
from apr.seeds import SplitMix64
from apr.threads.protocol import Await, Continue, Finish, Spawn
from apr.threads.trace import EngineStop, Injected, Origin, Reference, StopReason, Strand, StrandId, Trace
from apr.tokens.words import WordsSpeller
from envs.countdown.compact import CompactSpeller
from envs.countdown.log import Node
from envs.countdown.wording import encode
from solvers.search import SearchOptions, search

SPELLER = CompactSpeller()
PROTOCOL = Multiverse(SPELLER)
WORDS = WordsSpeller(["a", "b", "c"])
STATES = ["6 - 4 = 2 : 1 2 8 : 10", "8 - 4 = 4 : 1 4 6 : 10", "8 / 4 = 2 : 1 2 6 : 10"]
PATH = "6 - 4 = 2 , 2 * 1 = 2 , 8 + 2 = 10"


def worked_example() -> Trace:
    """The problem {1, 4, 6, 8} -> 10: three children at the root, of which two reach the target."""
    options = SearchOptions(3, 1, heuristic="sum_to_factors", spawn_depth=1)
    log = search(10, Node((1, 4, 6, 8), ()), options, SplitMix64(0))
    return encode(log, SPELLER, PROTOCOL, {"id": "10:1-4-6-8", "numbers": [1, 4, 6, 8], "target": 10})


def test_the_worked_example_stands_where_it_should() -> None:
    """FAMILY 8.3 and 8.4: g = 55; all paths at 56 to 83; the conclusion at 84 to 124."""
    trace = worked_example()
    root, *paths, last = trace.strands
    assert [str(strand.id) for strand in trace.strands] == ["r#0", "r.0#0", "r.1#0", "r.2#0", "r#1"]
    spans = [
        (strand.position, strand.end - 1, len(strand.injected_ids), len(strand.sampled)) for strand in trace.strands
    ]
    assert spans == [(0, 55, 8, 48), *[(56, 83, 3, 25)] * 3, (84, 124, 1, 40)]
    assert [path.sees for path in paths] == [(Reference(root.id, 56),)] * 3
    assert last.sees == (Reference(root.id, 56), *(Reference(path.id, 28) for path in paths))
    text = SPELLER.vocabulary.text
    outlines = " ".join(f"<Outline> {n} : {state} </Outline>" for n, state in enumerate(STATES, 1))
    assert text(root.sampled) == f"<Parallel> <Goal> {outlines} </Goal>"
    assert [text(path.injected_ids) for path in paths] == ["<Path> 1 :", "<Path> 2 :", "<Path> 3 :"]
    assert all(text(path.sampled).startswith("@ ") and text(path.sampled).endswith(" </Path>") for path in paths)
    assert text(last.ids) == f"<Conclusion> 1 : {PATH} </Conclusion> </Parallel> <join> {PATH} <eos>"
    assert [thread.stop for thread in trace.threads] == [StopReason.ANSWERED, *[StopReason.RETURNED] * 3]
    assert trace.correct and trace.answer == PATH.replace(" ", "").replace(",", ", ")
    costs = trace.costs
    assert costs is not None
    assert (costs.work, costs.work_sampled, costs.span, costs.span_sampled, costs.context) == (181, 163, 125, 113, 181)


def test_a_replayed_demonstration_is_the_demonstration() -> None:
    for depth, seed in ((1, 0), (2, 1), (2, 2)):
        log = search(97, Node((3, 5, 7, 11), ()), SearchOptions(3, 2, 0.8, spawn_depth=depth), SplitMix64(seed))
        problem = {"id": "p", "numbers": [3, 5, 7, 11], "target": 97}
        trace = encode(log, SPELLER, PROTOCOL, problem)
        assert trace.costs is not None and trace.costs.depth == depth
        prompt = trace.strands[0].injected_ids
        replayed = run(replays(trace), FREE, PROTOCOL, prompt, problem)
        assert replayed.threads == trace.threads and timeless(replayed.strands) == timeless(trace.strands)
        again = demonstration(
            prompt, [s.sampled for s in trace.strands], PROTOCOL, problem, trace.correct, SPELLER.answer
        )
        assert again.strands == trace.strands


def said(words: str, thread: str = "r", forced: str = "", at: int = 0) -> Strand:
    """A strand that sampled `words` at position `at`."""
    ids = SPELLER.vocabulary.encode
    injected = (Injected(Origin.FORCED, ids(forced.split())),)
    return Strand(StrandId(thread, 0), (), (), at, injected, ids(words.split()), EngineStop.STOP)


PLAN = "<Parallel> <Goal> <Outline> 1 : 7 </Outline> <Outline> 2 : 8 </Outline> </Goal>"


def test_a_plan_opens_a_path_for_each_outline() -> None:
    strand = said(f"@ 3 {PLAN}", at=10)
    decision = PROTOCOL.ended(strand, {strand.id: strand})
    assert isinstance(decision, Spawn) and decision.then == Await()
    assert [SPELLER.vocabulary.text(run.ids) for child in decision.children for run in child.inject] == [
        "<Path> 1 :", "<Path> 2 :",
    ]  # fmt: skip
    assert {child.sees for child in decision.children} == {(Reference(strand.id, len(strand.ids)),)}
    assert {child.position for child in decision.children} == {10 + len(strand.ids)}


@pytest.mark.parametrize(
    ("words", "thread", "forced"),
    [
        ("@ 3", "r", ""),
        ("<Parallel> <Goal> </Goal>", "r", ""),  # no outline
        ("<Goal> <Outline> 1 : 7 </Outline> </Goal>", "r", ""),  # no block
        ("</Goal>", "r", ""),
        ("<Parallel> 3 <Goal> <Outline> 1 : 7 </Outline> </Goal>", "r", ""),
        ("<Parallel> <Goal> <Outline> 2 : 7 </Outline> </Goal>", "r", ""),  # numbers from 1
        ("<Parallel> <Goal> <Outline> 1 : </Outline> </Goal>", "r", ""),  # an empty outline
        ("<Parallel> <Goal> <Outline> 1 : 7 </Goal>", "r", ""),  # not closed
        ("<Parallel> <Goal> <Outline> 1 : <Outline> 7 </Outline> </Goal>", "r", ""),  # tags inside tags
        ("<Parallel> <Goal> <Outline> 1 : 7 </Outline> 3 </Goal>", "r", ""),
        (f"<Path> {PLAN}", "r", ""),
        ("3 </Path>", "r", ""),  # the root is no path
        ("3 <join> 4 <eos>", "r.0", "<Path> 1 :"),  # a path gives no answer
        ("3 <eos>", "r.0", "<Path> 1 :"),
        ("<Path> </Path>", "r.0", "<Path> 1 :"),
        ("3 <eos>", "r", ""),
        ("<join> 3 <join> 4 <eos>", "r", ""),
        ("<spawn> <join> 4 <eos>", "r", ""),
        ("<join> <sync/> <eos>", "r", ""),
        ("3 <join> 4 <eos>", "r", "<Conclusion>"),  # never concluded
        ("3 </Conclusion> 4 </Parallel> <join> <eos>", "r", "<Conclusion>"),
        ("</Parallel> <join> <eos>", "r", "<Conclusion>"),
        ("3 </Conclusion> </Parallel> <join> <eos>", "r", ""),  # nothing to conclude
    ],
)
def test_what_parses_as_nothing_is_a_typed_failure(words: str, thread: str, forced: str) -> None:
    strand = said(words, thread, forced)
    decision = PROTOCOL.ended(strand, {strand.id: strand})
    assert getattr(decision, "reason", None) is StopReason.MALFORMED, decision


@pytest.mark.parametrize(
    ("words", "thread", "forced", "message"),
    [
        ("3 <join> 4 5 <eos>", "r", "", "4 5"),
        ("<join> <eos>", "r", "", ""),
        ("3 </Conclusion> </Parallel> 4 <join> 5 <eos>", "r", "<Conclusion>", "5"),
        ("</Conclusion> </Parallel> </Path>", "r.0", "<Conclusion>", None),
        ("</Path>", "r.0", "<Path> 1 :", None),  # an empty path
        ("3 </Path>", "r.0", "<Path> 1 :", None),
    ],
)
def test_how_threads_end(words: str, thread: str, forced: str, message: str | None) -> None:
    strand = said(words, thread, forced)
    ids = None if message is None else SPELLER.vocabulary.encode(message.split())
    assert PROTOCOL.ended(strand, {strand.id: strand}) == Finish(ids)


def test_a_block_may_follow_a_conclusion() -> None:
    strand = said(f"3 </Conclusion> </Parallel> 4 {PLAN}", "r.0", "<Conclusion>")
    assert isinstance(PROTOCOL.ended(strand, {strand.id: strand}), Spawn)


def test_a_parent_does_not_see_a_path_that_failed() -> None:
    open_, whole, cut = (
        said(PLAN),
        said("3 4 </Path>", "r.0", "<Path> 1 :", 20),
        said("3 <eos>", "r.1", "<Path> 2 :", 20),
    )
    strands = {strand.id: strand for strand in (open_, whole, cut)}
    trace = run(
        lambda request: strands[StrandId(request.key.thread, 0)].sampled if request.key.number == 0
        else SPELLER.vocabulary.encode(["</Conclusion>", "</Parallel>", "<join>", "5", "<eos>"]),
        FREE, PROTOCOL, (SPELLER.vocabulary.control.bos,), {"id": "p"},
    )  # fmt: skip
    assert [thread.stop for thread in trace.threads] == [
        StopReason.ANSWERED, StopReason.RETURNED, StopReason.MALFORMED,
    ]  # fmt: skip
    last = trace.strands[-1]
    assert [reference.strand for reference in last.sees] == [StrandId("r", 0), StrandId("r.0", 0)]
    assert last.position == trace.strands[1].end
    assert StrandId("r.1", 0) in last.after  # it was waited for all the same


def test_nobody_returned_and_the_parent_goes_on() -> None:
    strand = said(PLAN)
    decision = PROTOCOL.joined(strand, [], {strand.id: strand})
    assert isinstance(decision, Continue) and decision.position == strand.end


def test_words_number_children_beyond_nine_digit_by_digit() -> None:
    protocol = protocol_by_name("multiverse", WORDS)
    branch = Branch(("a",), ("a", "b"), (Say(("b",)),), ())
    [plan, *paths, last] = protocol.write((Fork((branch,) * 12), Join(conclusion=("c",)), Answer(("c",))), WORDS)
    text = WORDS.vocabulary.text
    assert text(plan).endswith("<Outline> 1 2 : a </Outline> </Goal>") and len(paths) == 12
    assert text(last) == "c </Conclusion> </Parallel> <join> c <eos>"
    trace = demonstration((1,), [plan, *paths, last], protocol, {"id": "p"}, True, WORDS.answer)
    assert text(trace.strands[-2].injected_ids) == "<Path> 1 2 :" and trace.answer == "c"


@pytest.mark.parametrize(
    "script",
    [
        (Fork((Branch(("a",), ("a",), (), ()),)), Say(("b",)), Join(), Answer(())),
        (Fork((Branch(("a",), ("a",), (), ()),)), Join((0,)), Answer(())),
        (Fork((Branch(("a",), ("a",), (), ()),)), Answer(())),
    ],
)
def test_scripts_that_it_cannot_express_are_refused(script: Sequence[Say | Fork | Join | Answer]) -> None:
    with pytest.raises(ValueError, match="multiverse"):
        Multiverse(WORDS).write(tuple(script), WORDS)


def test_a_vocabulary_without_its_tokens_is_refused() -> None:
    class Bare(WordsSpeller):
        def __init__(self) -> None:
            super().__init__(["a"])
            self.vocabulary.ids = {token: i for token, i in self.vocabulary.ids.items() if token != "<Path>"}

    with pytest.raises(ConfigError, match="no <Path>"):
        Multiverse(Bare())

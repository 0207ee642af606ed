"""One search in every grammar: where each strand stands, what it sees and what it costs, in an example of three children.

The problem {1, 4, 6, 8} -> 10: the root keeps three children; the first two reach the target, the third fails.
"""

from __future__ import annotations

import typing

import pytest
from fakes import FREE, replays, run, timeless

from apr.protocols import PROTOCOLS, protocol_by_name
from apr.protocols.aspd import Aspd
from apr.protocols.pasta import Pasta, overruns
from apr.scripts.demonstration import demonstration
from apr.scripts.script import Answer, Branch, Fork, Join, Say, Script
from apr.seeds import SplitMix64
from apr.threads.protocol import Await, Continue, Finish, Spawn, ThreadProtocol
from apr.threads.trace import EngineStop, Injected, Origin, Reference, StopReason, Strand, StrandId, Trace
from apr.tokens.control import ProtocolName
from apr.tokens.words import WordsSpeller
from envs.countdown.compact import CompactSpeller
from envs.countdown.log import Node
from envs.countdown.wording import encode
from solvers.search import SearchOptions, search, unfold

SPELLER = CompactSpeller()
IDS, TEXT = SPELLER.vocabulary.encode, SPELLER.vocabulary.text
PROBLEM = {"id": "10:1-4-6-8", "numbers": [1, 4, 6, 8], "target": 10}


def example(name: str) -> Trace:
    log = search(
        10, Node((1, 4, 6, 8), ()), SearchOptions(3, 1, heuristic="sum_to_factors", spawn_depth=1), SplitMix64(0)
    )
    return encode(unfold(log) if name == "serial" else log, SPELLER, protocol_by_name(name, SPELLER), PROBLEM)


# Of each strand: its name, what it sees, first and last position, tokens that do not train and that do.
LAYOUT = {
    "serial": [("r#0", "", 0, 62, 8, 55)],
    "spawn_join": [
        ("r#0", "", 0, 45, 8, 38),
        ("r.0#0", "", 0, 54, 12, 43), ("r.1#0", "", 0, 54, 12, 43), ("r.2#0", "", 0, 37, 12, 26),
        ("r#1", "r#0[:8]", 8, 63, 37, 19),
    ],
    "multiverse": [
        ("r#0", "", 0, 55, 8, 48),
        ("r.0#0", "r#0", 56, 83, 3, 25), ("r.1#0", "r#0", 56, 83, 3, 25), ("r.2#0", "r#0", 56, 83, 3, 25),
        ("r#1", "r#0 r.0#0 r.1#0 r.2#0", 84, 124, 1, 40),
    ],
    "aspd": [
        ("r#0", "", 0, 47, 8, 40),
        ("r.0#0", "r#0", 48, 85, 13, 25), ("r.1#0", "r#0", 48, 85, 13, 25), ("r.2#0", "r#0", 48, 85, 13, 25),
        ("r#1", "r#0 r.0#0 r.1#0 r.2#0", 162, 181, 1, 19),
    ],
    "pasta": [
        ("r#0", "", 0, 22, 8, 15),
        ("r#1", "r#0", 53, 67, 0, 15),
        ("r#2", "r#1", 98, 112, 0, 15),
        ("r#3", "r#2", 143, 143, 0, 1),
        ("r.0#0", "r#0", 23, 48, 1, 25), ("r.1#0", "r#1", 68, 93, 1, 25), ("r.2#0", "r#2", 113, 138, 1, 25),
        ("r#4", "r#3 r.0#0 r.1#0 r.2#0", 144, 162, 0, 19),
    ],
}  # fmt: skip
LAYOUT |= {
    "threadweaver": [
        ("r#0", "", 0, 55, 8, 48),
        ("r.0#0", "r#0", 56, 83, 3, 25), ("r.1#0", "r#0", 56, 83, 3, 25), ("r.2#0", "r#0", 56, 83, 3, 25),
        ("r#1", "r#0", 56, 159, 85, 19),
    ],
    "asyncthink": [  # `<JOIN> 1` is two strands: no token ends it, and a strand ends at one
        ("r#0", "", 0, 21, 8, 14), ("r#1", "r#0", 22, 35, 0, 14), ("r#2", "r#1", 36, 49, 0, 14),
        ("r#3", "r#2", 50, 50, 0, 1), ("r#4", "r#3", 51, 51, 0, 1),
        ("r.0#0", "", 0, 54, 12, 43),
        ("r#5", "r#4", 52, 89, 19, 19),
        ("r.1#0", "", 0, 54, 12, 43), ("r.2#0", "", 0, 37, 12, 26),
    ],
    "apar": [
        ("r#0", "", 0, 19, 8, 12), ("r#1", "r#0", 20, 31, 0, 12), ("r#2", "r#1", 32, 43, 0, 12), ("r#3", "r#2", 44, 44, 0, 1),
        ("r.0#0", "r#0", 20, 63, 1, 43), ("r.1#0", "r#1", 32, 75, 1, 43), ("r.2#0", "r#2", 44, 70, 1, 26),
    ],
    "skeleton": [
        ("r#0", "", 0, 47, 8, 40),
        ("r.0#0", "", 0, 103, 61, 43), ("r.1#0", "", 0, 103, 61, 43), ("r.2#0", "", 0, 86, 61, 26),
    ],
}  # fmt: skip
# work, sampled, span, sampled span, context, reach
COSTS = {
    "serial": (63, 55, 63, 55, 63, 63),
    "spawn_join": (250, 169, 157, 100, 64, 64),
    "multiverse": (181, 163, 125, 113, 181, 125),
    "aspd": (149, 134, 95, 84, 182, 182),
    "pasta": (151, 140, 98, 89, 151, 163),
    "threadweaver": (160, 142, 104, 92, 160, 160),
    "asyncthink": (238, 175, 115, 76, 90, 90),
    "apar": (160, 149, 76, 67, 76, 76),
    "skeleton": (193, 152, 102, 83, 104, 104),
}


def seen(trace: Trace, strand: Strand) -> str:
    lengths = {one.id: len(one.ids) for one in trace.strands}
    return " ".join(sorted(f"{id}" if n == lengths[id] else f"{id}[:{n}]" for id, n in strand.sees))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_worked_example_stands_where_it_should_and_costs_what_it_should(name: str) -> None:
    trace = example(name)
    assert [
        (str(s.id), seen(trace, s), s.position, s.end - 1, len(s.injected_ids), len(s.sampled)) for s in trace.strands
    ] == LAYOUT[name]
    costs = trace.costs
    assert costs is not None
    found = (costs.work, costs.work_sampled, costs.span, costs.span_sampled, costs.context, costs.reach)
    assert found == COSTS[name]
    assert trace.correct and trace.answer == "6-4=2, 2*1=2, 8+2=10"


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("depth", [1, 2])
def test_a_replayed_demonstration_is_the_demonstration(name: str, depth: int) -> None:
    for seed in range(3):
        log = search(97, Node((3, 5, 7, 11), ()), SearchOptions(3, 2, 1.0, spawn_depth=depth), SplitMix64(seed))
        protocol = protocol_by_name(name, SPELLER)
        problem = {"id": "p", "numbers": [3, 5, 7, 11], "target": 97}
        trace = encode(unfold(log) if name == "serial" else log, SPELLER, protocol, problem)
        assert trace.costs is not None and trace.costs.depth == (
            depth if protocol.nests else min(1, depth) * (name != "serial")
        )
        prompt = trace.strands[0].injected_ids
        replayed = run(replays(trace), FREE, protocol, prompt, problem)
        assert replayed.threads == trace.threads and timeless(replayed.strands) == timeless(trace.strands)
        sampled = [strand.sampled for strand in trace.strands]
        again = demonstration(prompt, sampled, protocol, problem, trace.correct, SPELLER.answer)
        assert again.strands == trace.strands


def said(words: str, thread: str = "r", at: int = 0) -> Strand:
    return Strand(StrandId(thread, 0), (), (), at, (Injected(Origin.FORCED, ()),), IDS(words.split()), EngineStop.STOP)


TITLES = "<|title|> 7 <|/title|> <|title|> 8 9 <|/title|> <|para|>"
BAD_ASPD = [
    ("3", "r"), ("<|para|>", "r"), ("3 <|para|>", "r"), ("<|title|> <|/title|> <|para|>", "r"), ("<|title|> 7 <|para|>", "r"),
    ("<|title|> 7 <|/title|> 3 <|para|>", "r"), ("<|title|> <|title|> 7 <|/title|> <|/title|> <|para|>", "r"),
    ("7 <|/title|> <|para|>", "r"), (f"<|branch|> {TITLES}", "r"), ("3 <|/branch|>", "r"), ("3 <eos>", "r"),
    ("<join> <|para|> <eos>", "r"), ("3 <eos>", "r.0"), (TITLES, "r.0"), ("<|branch|> <|/branch|>", "r.0"),
]  # fmt: skip
BAD_PASTA = [
    ("3", "r"), ("</promise>", "r"), ("<promise> 7 </promise>", "r"), ("<promise> <tokens> 3 </promise>", "r"),
    ("<promise> 7 <tokens> </promise>", "r"), ("<promise> 7 <tokens> 0 </promise>", "r"),
    ("<promise> 7 <tokens> + </promise>", "r"), ("<promise> 7 <tokens> 99 '99 </promise>", "r"),  # 99,990 tokens
    ("<promise> <promise> 7 <tokens> 3 </promise>", "r"), ("7 <tokens> 3 </promise>", "r"), ("3 </async>", "r"),
    ("<async> <sync/>", "r"), ("3 <eos>", "r"), ("3 <eos>", "r.0"), ("<promise> 7 <tokens> 3 </promise>", "r.0"),
    ("<sync/>", "r.0"), ("<async> </async>", "r.0"),
]  # fmt: skip


BAD_WEAVER = [
    ("<Parallel> <Outlines> </Outlines>", "r"), ("<Outlines> <Outline> 1 : 7 </Outline> </Outlines>", "r"),
    ("<Parallel> <Outlines> <Outline> 2 : 7 </Outline> </Outlines>", "r"), ("3 </Thread>", "r"), ("3 <eos>", "r"),
    ("3 <eos>", "r.0"), ("<Thread> </Thread>", "r.0"), ("<Parallel> <Outlines> <Outline> 1 : 7 </Outline> </Outlines>", "r.0"),
]  # fmt: skip
BAD_APAR = [
    ("[Fork]", "r"), ("[Child] 3 [Fork]", "r"), ("3 [Child] <eos>", "r"), ("3 [Fork] [Fork]", "r"), ("3 [Fork]", "r.0"),
    ("3 <eos>", "r.0"), ("<spawn> <eos>", "r"), ("<join> 3 <join> <eos>", "r"),
]  # fmt: skip
BAD_SKELETON = [
    ("<eos>", "r"), ("3 <eos>", "r"), ("2 . 7 <eos>", "r"), ("1 . <eos>", "r"),
    ("5 1 . 7 <eos>", "r"), ("1 . 7 <Path> <eos>", "r"), ("1 . 7", "r"), ("3 <eos>", "r.0"), ("1 . 7 <eos>", "r.0"),
]  # fmt: skip
BAD = {
    "aspd": BAD_ASPD, "pasta": BAD_PASTA, "threadweaver": BAD_WEAVER, "apar": BAD_APAR, "skeleton": BAD_SKELETON,
}  # fmt: skip


@pytest.mark.parametrize(
    ("protocol", "words", "thread"),
    [(protocol_by_name(name, SPELLER), *bad) for name, cases in BAD.items() for bad in cases],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "name", None),
)
def test_what_parses_as_nothing_is_a_typed_failure(protocol: ThreadProtocol, words: str, thread: str) -> None:
    strand = said(words, thread)
    decision = protocol.ended(strand, {strand.id: strand})
    assert getattr(decision, "reason", None) is StopReason.MALFORMED, decision


def test_aspd_opens_a_branch_for_each_title_once() -> None:
    strand = said(f"3 <|title|> 7 <|/title|> {TITLES}", at=10)
    decision = Aspd(SPELLER).ended(strand, {strand.id: strand})
    assert isinstance(decision, Spawn) and decision.then == Await()
    told = [TEXT(token for run in child.inject for token in run.ids) for child in decision.children]
    assert told == ["<|branch|> 7 :", "<|branch|> 8 9 :"]
    assert {child.position for child in decision.children} == {10 + len(strand.ids)}
    branch = said("3 <|/branch|>", "r.0")
    assert Aspd(SPELLER).ended(branch, {branch.id: branch}) == Finish(None)


def test_pasta_reserves_positions_and_goes_on() -> None:
    strand = said("3 <promise> 7 <tokens> 12 </promise>", at=10)
    decision = Pasta(SPELLER).ended(strand, {strand.id: strand})
    assert isinstance(decision, Spawn) and isinstance(decision.then, Continue)
    [child] = decision.children
    assert (child.position, decision.then.position) == (strand.end, strand.end + 120)
    assert decision.then.inject == () and decision.then.sees == child.sees == (Reference(strand.id, len(strand.ids)),)


def test_a_sync_with_nothing_promised_is_malformed() -> None:
    replies = {0: "3 <sync/>"}
    trace = run(lambda request: IDS(replies[request.key.number].split()), FREE, Pasta(SPELLER), (1,), {"id": "p"})
    assert trace.root.stop is StopReason.MALFORMED


@pytest.mark.parametrize("tens", [1, 2, 3])
def test_overruns_are_counted_and_the_clash_stands(tens: int) -> None:
    """A thread of 15 tokens, tags included, for which ten, twenty or thirty positions are kept free."""
    replies = {
        ("r", 0): f"<promise> 7 <tokens> {tens} </promise>", ("r", 1): "<sync/>", ("r.0", 0): f"{'3 ' * 13}</async>",
        ("r", 2): "<join> 5 <eos>",
    }  # fmt: skip
    protocol = Pasta(SPELLER)
    trace = run(
        lambda request: IDS(replies[request.key.thread, request.key.number].split()), FREE, protocol, (1,), {"id": "p"}
    )
    assert trace.root.stop is StopReason.ANSWERED
    assert overruns(trace, protocol) == (tens == 1)
    by_name = {str(strand.id): strand for strand in trace.strands}
    assert by_name["r#1"].position == by_name["r#0"].end + 10 * tens
    assert by_name["r#2"].position == by_name["r#1"].end
    assert len(by_name["r.0#0"].ids) == 15


BRANCH = Branch(("a",), ("a",), (Say(("b",)),), ())
NESTED = Branch(("a",), ("a",), (Fork((BRANCH,)), Join()), ())


@pytest.mark.parametrize(
    ("name", "script", "why"),
    [
        ("aspd", (Fork((NESTED,)), Join(), Answer(())), "opens no children of its own"),
        ("aspd", (Fork((BRANCH, BRANCH)), Join(), Answer(())), "have the same"),
        ("aspd", (Fork((BRANCH,)), Say(("b",)), Join(), Answer(())), "waits at once"),
        ("pasta", (Fork((NESTED,)), Join(), Answer(())), "opens no children of its own"),
        ("pasta", (Fork((BRANCH,)), Join((0,)), Answer(())), "at a sync"),
    ],
)
def test_scripts_that_a_grammar_cannot_express_are_refused(name: str, script: Script, why: str) -> None:
    words = WordsSpeller(["a", "b", "c"])
    with pytest.raises(ValueError, match=why):
        protocol_by_name(name, words).write(script, words)


def test_pasta_says_words_between_promises_and_may_never_sync() -> None:
    words = WordsSpeller(["a", "b", "c"])
    protocol = protocol_by_name("pasta", words)
    script = (Fork((BRANCH,)), Say(("c",)), Fork((BRANCH,)), Answer(("a",)))
    sampled = protocol.write(script, words)
    assert [words.vocabulary.text(ids) for ids in sampled] == [
        "<promise> a <tokens> 1 </promise>", "c <promise> a <tokens> 1 </promise>", "<join> a <eos>", *["b </async>"] * 2,
    ]  # fmt: skip
    trace = demonstration((1,), sampled, protocol, {"id": "p"}, True, words.answer)
    assert [str(strand.id) for strand in trace.strands] == ["r#0", "r#1", "r#2", "r.0#0", "r.1#0"]


def test_threadweaver_sends_copies_of_the_threads_that_ended() -> None:
    """The second thread fails, and is not sent."""
    replies = {
        ("r", 0): "<Parallel> <Outlines> <Outline> 1 : 7 </Outline> <Outline> 2 : 8 </Outline> </Outlines>",
        ("r.0", 0): "3 4 </Thread>", ("r.1", 0): "3 <eos>", ("r", 1): "<join> 5 <eos>",
    }  # fmt: skip
    trace = run(
        lambda request: IDS(replies[request.key.thread, request.key.number].split()), FREE,
        protocol_by_name("threadweaver", SPELLER), (1,), {"id": "p"},
    )  # fmt: skip
    last = trace.strands[-1]
    assert [(run.origin, TEXT(run.ids)) for run in last.injected] == [
        (Origin.COPY, "<Thread> 1 : 3 4 </Thread>"), (Origin.FORCED, "</Parallel>"),
    ]  # fmt: skip
    assert last.sees == (Reference(trace.strands[0].id, len(trace.strands[0].ids)),)
    assert last.position == trace.strands[0].end and trace.root.stop is StopReason.ANSWERED


@pytest.mark.parametrize(
    ("replies", "answer"),
    [
        (
            {
                "r#0": "7 [Fork]",
                "r#1": "8 [Fork]",
                "r#2": "<eos>",
                "r.0#0": "3 <join> <eos>",
                "r.1#0": "<join> 5 <eos>",
            },
            "5",
        ),
        ({"r#0": "7 [Fork]", "r#1": "<join> 9 <eos>", "r.0#0": "<join> 5 <eos>"}, "9"),  # the root's own wins
        ({"r#0": "7 [Fork]", "r#1": "<eos>", "r.0#0": "3 <eos>"}, None),
        (
            {"r#0": "7 [Fork]", "r#1": "<spawn> <eos>", "r.0#0": "<join> 5 <eos>"},
            None,
        ),  # a root that is malformed has none
    ],
)
def test_the_host_takes_the_first_child_that_succeeded(replies: dict[str, str], answer: str | None) -> None:
    protocol = protocol_by_name("apar", SPELLER)
    trace = run(
        lambda request: IDS(replies[f"{request.key.thread}#{request.key.number}"].split()),
        FREE,
        protocol,
        (1,),
        {"id": "p"},
    )
    ids = protocol.answer(trace.threads)
    assert (None if ids is None else TEXT(ids)) == answer


def test_a_skeleton_may_hold_numbers() -> None:
    """A mark is looked for in order: `3 .` before `2 .` is text."""
    protocol = protocol_by_name("skeleton", SPELLER)
    strand = said("1 . 7 3 . 8 2 . 9 <eos>")
    strand = Strand(strand.id, (), (), 0, (Injected(Origin.PROMPT, (1,)),), strand.sampled, EngineStop.STOP)
    decision = protocol.ended(strand, {strand.id: strand})
    assert isinstance(decision, Spawn)
    assert [TEXT(child.inject[-1].ids) for child in decision.children] == ["7 3 . 8", "9"]


def test_all_protocols_have_a_name_that_configurations_know() -> None:
    assert typing.get_args(ProtocolName) == PROTOCOLS

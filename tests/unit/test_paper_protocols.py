"""Spawn and join in the published wording, case by case, in our tokens and in those of pretrained tokenizers."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FREE, FakeEngine, replays, run, timeless
from hypothesis import given, settings
from paper_logs import protocol_for, searches
from paper_talk import CALLING, FIRST, GOAL, LISTING, MALFORMED, PATH, TOLD, Talk, sample
from paper_tokenizers import byte_level, llama_like

from apr.errors import CheckpointError, DataError
from apr.threads.limits import Limits
from apr.threads.protocol import Continue, Finish
from apr.threads.trace import (
    EngineStop,
    Origin,
    Reference,
    StopReason,
    Strand,
    StrandId,
    Trace,
    closure_ids,
)
from apr.tokens.speller import Condition
from apr.tokens.text import PretrainedVocabulary, Spelt, TextVocabulary
from envs.countdown.log import SearchLog
from envs.countdown.paper import CALL, JOIN, PaperSpeller
from envs.countdown.paper_protocols import PaperSerial, PaperSpawnJoin
from envs.countdown.wording import encode, root_prompt


@pytest.fixture(scope="module", params=["own", "byte level", "byte level over lines", "after Llama-2"])
def speller(request: pytest.FixtureRequest) -> PaperSpeller:
    vocabularies: dict[str, Callable[[], TextVocabulary | None]] = {
        "own": lambda: None,
        "byte level": lambda: byte_level(sample()),
        "byte level over lines": lambda: byte_level(sample(), merge_lines=True),
        "after Llama-2": lambda: llama_like(sample()),
    }
    return PaperSpeller(vocabularies[request.param]())


@pytest.fixture
def talk(speller: PaperSpeller) -> Talk:
    return Talk(speller)


# How threads end


@pytest.mark.parametrize("protocol", [PaperSerial, PaperSpawnJoin])
def test_a_message_is_the_path_after_the_claim(speller: PaperSpeller, protocol: type) -> None:
    talk = Talk(speller, protocol)
    decision = talk.decide(LISTING + GOAL[1:])
    assert isinstance(decision, Finish)
    assert talk.words.text(decision.message) == PATH
    assert speller.answer(decision.message) == "8-6=2"
    assert decision == talk.decide(GOAL + "Exit Sub Search at level 2\nExit Sub Search at level 1\n")
    twice = talk.decide(f"\n10,10 equal: Goal Reached\n{PATH}{PATH}")
    assert isinstance(twice, Finish) and talk.words.text(twice.message) == PATH  # from the second-to-last


@pytest.mark.parametrize("protocol", [PaperSerial, PaperSpawnJoin])
def test_a_failure_is_the_empty_message(speller: PaperSpeller, protocol: type) -> None:
    assert Talk(speller, protocol).decide(LISTING + "No solution found.\n") == Finish(())


@pytest.mark.parametrize("protocol", [PaperSerial, PaperSpawnJoin])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        LISTING,
        "\nNo solution found.\nNo",
        "\n10,10 equal: Goal Reached\n",  # a claim without a path
        GOAL + "No solution found.\n",
        GOAL + PATH[:40],
        f"\n10,10 equal: Goal Reached\nNo solution found.\n{PATH}",  # a line that no path has
        f"\n10,10 equal: Goal Reached\n{CALL}{PATH}",
        GOAL.replace("8-6=2", "8-6"),
        GOAL.replace("8-6=2", f"8-6={'2' * 25}"),  # numbers are bounded
    ],
)
def test_malformed_ends(speller: PaperSpeller, protocol: type, text: str) -> None:
    assert Talk(speller, protocol).decide(text) == MALFORMED


@pytest.mark.parametrize("protocol", [PaperSerial, PaperSpawnJoin])
def test_control_tokens_have_no_place_in_text(speller: PaperSpeller, protocol: type) -> None:
    talk = Talk(speller, protocol)
    for control in sorted({talk.words.control.bos, talk.words.control.eos, talk.words.control.pad}):
        strand = talk.strand(GOAL)
        strand = replace(strand, sampled=(control, *strand.sampled))
        assert talk.protocol.ended(strand, {FIRST: strand}) == MALFORMED
    assert talk.decide(GOAL, ended=False) == MALFORMED  # no EOS


def test_a_childs_goal_is_not_its_parents(talk: Talk) -> None:
    """After a join with a solution, the root must say the path itself."""
    strand = talk.strand(LISTING + CALL + CALLING)
    plan = talk.joined(strand, PATH, "")
    for said, expected in (("No solution found.\n", Finish(())), ("", MALFORMED)):
        after = Strand(StrandId("r", 1), plan.sees, (), plan.position, plan.inject,
                       (*talk.words.continued(said), talk.words.control.eos), EngineStop.STOP)  # fmt: skip
        assert talk.protocol.ended(after, {FIRST: strand, after.id: after}) == expected


# Calls


def test_children_are_told_their_nodes_from_the_parents_own_listing(talk: Talk) -> None:
    assert talk.told(talk.decide(LISTING + CALL + CALLING)) == [
        "Moving to Node #0,0\nCurrent State: 10:[6, 8, 5], Operations: ['4+1=5']",
        "Moving to Node #0,1\nCurrent State: 10:[4, 8, 5], Operations: ['6-1=5']",
    ]


def test_steps_are_put_together_along_the_names(talk: Talk) -> None:
    told = "Moving to Node #0,2\nCurrent State: 10:[1, 4, 6, 8], Operations: ['9-3=6']"
    listing = LISTING.replace("#0,", "#0,2,") + "Generated Node #0,2,1,0: 10:[8, 20] Operation: 4*5=20\n"
    call = f"{CALL}<Start Sub Search 0 at level 2> Moving to Node #0,2,1,0\n<End Calling Sub Searches>\n"
    assert talk.told(talk.decide(listing + call, told=told, thread="r.2")) == [
        "Moving to Node #0,2,1,0\nCurrent State: 10:[8, 20], Operations: ['9-3=6', '6-1=5', '4*5=20']"
    ]


def test_a_wrong_visit_does_not_change_what_a_child_is_told(talk: Talk) -> None:
    """As in the published data, whose visits are announced by wrong names now and then."""
    wrong = "Moving to Node #0,1\nCurrent State: 10:[6, 8, 5], Operations: ['4+1=5']\n"
    assert talk.told(talk.decide(LISTING + wrong + CALL + CALLING)) == talk.told(talk.decide(LISTING + CALL + CALLING))


def test_the_first_node_of_a_name_is_the_one(talk: Talk) -> None:
    again = "Generated Node #0,1: 10:[1, 2] Operation: 8/4=2\n"
    assert talk.told(talk.decide(LISTING + again + CALL + CALLING)) == talk.told(talk.decide(LISTING + CALL + CALLING))


def test_a_path_without_a_step_is_malformed(talk: Talk) -> None:
    assert talk.decide("\n" + "10,10 equal: Goal Reached\n" * 2) == MALFORMED


@pytest.mark.parametrize(("prefix", "passed"), [("Token Budget: 2048 ", True), ("Sub Call Budget: 6 ", False)])
def test_a_token_budget_is_told_to_children_and_a_sub_call_budget_is_not(talk: Talk, prefix: str, passed: bool) -> None:
    told = talk.told(talk.decide(LISTING + CALL + CALLING, told=prefix + TOLD))
    assert [text.startswith(prefix) for text in told] == [passed, passed]
    assert [text.removeprefix(prefix) for text in told] == talk.told(talk.decide(LISTING + CALL + CALLING))


@pytest.mark.parametrize(
    "text",
    [
        CALL + CALLING,  # nodes that were never generated
        LISTING + CALL + CALLING.replace("#0,1", "#0,2"),
        LISTING + CALL + CALLING.replace("#0,1", "#0"),  # itself
        LISTING.replace("#0,1:", "#0,1,1:")
        + CALL
        + CALLING.replace("#0,1", "#0,1,1"),  # its parent was never generated
        LISTING.replace("6-1=5\n", "6-1\n") + CALL + CALLING,
        LISTING.replace("[4, 8, 5] Op", "[4, 9-1, 5] Op") + CALL + CALLING,
        LISTING.replace("[4, 8, 5] Op", f"[{'4, ' * 20}5] Op") + CALL + CALLING,
        LISTING + CALL + CALLING.replace("Search 1", "Search 2"),
        LISTING + CALL + CALLING.replace("level 1", "level 2"),
        LISTING + CALL + "<End Calling Sub Searches>\n",
        LISTING + CALLING,
        LISTING + CALL + CALLING + CALLING,
        LISTING + CALL + CALLING + "\n",
        LISTING + CALL + CALLING.replace("#0,1", "#" + ",".join("0" * 40)),
    ],
)
def test_malformed_calls(talk: Talk, text: str) -> None:
    assert talk.decide(text) == MALFORMED


def test_two_children_at_one_node_are_two_children(talk: Talk) -> None:
    assert len(talk.told(talk.decide(LISTING + CALL + CALLING.replace("#0,1", "#0,0")))) == 2


def test_a_call_is_malformed_in_a_serial_search(speller: PaperSpeller) -> None:
    assert Talk(speller, PaperSerial).decide(LISTING + CALL + CALLING) == MALFORMED


# Joins


def test_verdicts_and_paths_take_the_place_of_the_call(talk: Talk) -> None:
    strand = talk.strand(LISTING + CALL + CALLING)
    stops = (StopReason.ANSWERED, StopReason.CONTEXT)  # cut short: for its parent it is one that found nothing
    plan = talk.joined(strand, PATH, "", stops=stops)
    [(seen, kept)] = plan.sees
    shown = talk.words.text(strand.ids[:kept]) + talk.text(plan)
    assert seen == FIRST and plan.position == kept
    assert shown == talk.words.text(talk.words.opened(TOLD)) + (
        f"{LISTING}<Sub Searches>\n<Goal Reached in Sub Search 0 at level 1 at Node #0,0>\n{PATH}"
        "<No Solution in Sub Search 1 at level 1 at Node #0,1>\n<End Sub Searches>\n"
    )
    assert [run.origin for run in plan.inject] == [Origin.FORCED, Origin.MESSAGE, Origin.FORCED]
    assert plan.inject[1].ids == talk.words.continued(PATH)
    # The cut is the last token boundary at or before the call.
    before = len(talk.words.text(strand.ids[: kept + 1]))
    assert before > len(talk.words.text(talk.words.opened(TOLD)) + LISTING)


def test_the_call_of_a_later_strand_is_cut_there(talk: Talk) -> None:
    first = talk.strand(LISTING + CALL + CALLING)
    plan = talk.joined(first, "", "")
    below = "Generated Node #0,7: 10:[6, 8, 5] Operation: 4+1=5\n" + LISTING[1:].replace("#0,", "#0,7,")
    said = below + CALL + CALLING.replace("#0,", "#0,7,")
    second = Strand(StrandId("r", 1), plan.sees, (), plan.position, plan.inject,
                    (*talk.words.continued(said), talk.words.control.eos), EngineStop.STOP)  # fmt: skip
    strands = {FIRST: first, second.id: second}
    assert talk.told(talk.protocol.ended(second, strands))[1].endswith("Operations: ['4+1=5', '6-1=5']")
    again = talk.protocol.joined(second, [], strands)
    seen = closure_ids(strands, again.sees)
    assert CALL not in talk.words.text(seen) and again.position == len(seen)
    assert talk.words.text(seen).count(JOIN) == 1


# Joins that a model writes itself (D7)


def test_a_join_of_its_own_becomes_a_call(talk: Talk) -> None:
    invented = f"{LISTING}{JOIN}<Goal Reached in Sub Search 0 at level 1 at Node #0,0>\n{PATH}"
    strand = talk.strand(invented)
    plan = talk.protocol.ended(strand, {FIRST: strand})
    assert isinstance(plan, Continue)
    [(seen, kept)] = plan.sees
    shown = talk.words.text(talk.words.without_bos(strand.ids[:kept])) + talk.text(plan)
    assert shown.removeprefix(" ") == TOLD + LISTING + CALL
    assert [run.origin for run in plan.inject] == [Origin.FORCED] and plan.position == kept


def test_engines_stop_at_such_a_join_where_a_token_tells_it(speller: PaperSpeller) -> None:
    talk = Talk(speller)
    stops = talk.protocol.start(()).stop_ids
    told_apart = stops[1:]
    if not told_apart:
        pytest.skip("no token of this tokenizer tells the line apart")
    join = talk.words.continued(f"{LISTING}{JOIN}")
    sampled = join[: join.index(told_apart[0]) + 1]
    strand = replace(talk.strand(""), sampled=sampled)
    plan = talk.protocol.ended(strand, {FIRST: strand})
    assert isinstance(plan, Continue)
    shown = talk.words.text(talk.words.without_bos(strand.ids[: plan.sees[0].length])) + talk.text(plan)
    assert shown.removeprefix(" ") == TOLD + LISTING + CALL
    strand = replace(strand, sampled=(*talk.words.continued("\nMoving to"), told_apart[0]))
    assert talk.protocol.ended(strand, {FIRST: strand}) == MALFORMED  # the token elsewhere


def test_our_own_tokens_tell_such_a_join_apart_and_nothing_else_stops() -> None:
    words = PaperSpeller().words
    assert PaperSpawnJoin(PaperSpeller()).start(()).stop_ids == (words.control.eos, *words.continued(JOIN))


def test_a_second_join_in_the_same_call_is_malformed(talk: Talk) -> None:
    strand = talk.strand(LISTING + JOIN)
    plan = talk.protocol.ended(strand, {FIRST: strand})
    again = Strand(StrandId("r", 1), plan.sees, (), plan.position, plan.inject,
                   (*talk.words.continued(JOIN), talk.words.control.eos), EngineStop.STOP)  # fmt: skip
    assert talk.protocol.ended(again, {FIRST: strand, again.id: again}) == MALFORMED


def test_a_whole_attempt_with_a_join_of_its_own(speller: PaperSpeller) -> None:
    """The call is forced, its children run, and their verdicts take its place; every token is counted once."""
    words = speller.words
    eos = (words.control.eos,)
    solved = f"10,10 equal: Goal Reached\n{PATH}"
    says = {
        ("r", 0): (*words.continued(LISTING + JOIN), *eos),
        ("r", 1): (*words.continued(CALLING), *eos),
        ("r", 2): (*words.continued(solved), *eos),
        ("r.0", 0): (*words.continued(GOAL), *eos),
        ("r.1", 0): (*words.continued("\nNo solution found.\n"), *eos),
    }
    trace = run(FakeEngine(lambda request: says[request.key.thread, request.key.number]), FREE, PaperSpawnJoin(speller),
                words.opened(TOLD), {"id": "p"})  # fmt: skip
    assert [(thread.id, thread.stop) for thread in trace.threads] == [
        ("r", StopReason.ANSWERED), ("r.0", StopReason.ANSWERED), ("r.1", StopReason.NO_ANSWER),
    ]  # fmt: skip
    strands = trace.by_id()
    seen = words.text(words.without_bos(closure_ids(strands, trace.strands[-1].sees) + trace.strands[-1].ids))
    assert CALL not in seen and seen.count(JOIN) == 1
    assert trace.costs is not None and trace.costs.work_sampled == sum(map(len, says.values()))


def test_limits_hold_whatever_is_called(speller: PaperSpeller) -> None:
    """A model that calls for ever is stopped by depth, threads or context."""
    words = speller.words

    def script(request: Any) -> tuple[int, ...]:
        name = ",".join(["0"] * (request.key.thread.count(".") + 1))
        level = request.key.thread.count(".") + 1
        said = (f"\nGenerated Node #{name},0: 10:[6, 8, 5] Operation: 4+1=5\n{CALL}"
                f"<Start Sub Search 0 at level {level}> Moving to Node #{name},0\n<End Calling Sub Searches>\n")  # fmt: skip
        return (*words.continued(said), words.control.eos)

    for limits in (
        Limits(context=10_000, depth=3),
        Limits(context=10_000, depth=9, threads=3),
        Limits(context=2_000, depth=9),
    ):
        trace = run(FakeEngine(script), limits, PaperSpawnJoin(speller), words.opened(TOLD), {"id": "p"})
        stops = {thread.stop for thread in trace.threads}
        assert stops <= {StopReason.DEPTH, StopReason.THREADS, StopReason.CONTEXT}


# Other tokenizers


@settings(max_examples=25)
@given(made=searches())
def test_a_demonstration_says_the_same_in_any_tokens(
    speller: PaperSpeller, made: tuple[SearchLog, dict[str, Any]]
) -> None:
    log, problem = made
    own = PaperSpeller()
    expected = encode(log, own, protocol_for(log, own), problem)
    trace = encode(log, speller, protocol_for(log, speller), problem)
    assert (trace.answer, trace.outcome) == (expected.answer, expected.outcome)
    for a, b in zip(trace.strands, expected.strands, strict=True):
        assert context(trace, a, speller) == context(expected, b, own)


def context(trace: Trace, strand: Strand, speller: PaperSpeller) -> str:
    words = speller.words
    return words.text(words.without_bos(closure_ids(trace.by_id(), strand.sees) + strand.ids)[:-1]).removeprefix(" ")


@settings(max_examples=10)
@given(made=searches())
def test_the_runtime_makes_the_same_of_a_model_that_says_it(
    speller: PaperSpeller, made: tuple[SearchLog, dict[str, Any]]
) -> None:
    log, problem = made
    protocol = protocol_for(log, speller)
    trace = encode(log, speller, protocol, problem)
    condition = problem.get("condition")
    prompt = root_prompt(speller, problem["numbers"], problem["target"], condition and Condition(**condition))
    rng = random.Random(0)
    engine = FakeEngine(replays(trace), ticks=lambda request: rng.randrange(9))
    replayed = run(engine, FREE, protocol, prompt, problem)
    assert replayed.threads == trace.threads
    assert timeless(replayed.strands) == timeless(trace.strands)


def test_contexts_open_as_the_published_ones() -> None:
    """A tokenizer that puts its own BOS before the one in the text gives two, in training and here."""
    llama, plain = llama_like(sample()), byte_level(sample())
    bos = llama.control.bos
    assert llama.opened("Moving to Node #0")[:3].count(bos) == 2
    assert plain.opened("Moving to Node #0").count(plain.control.bos) == 1
    [child, _] = Talk(PaperSpeller(llama)).decide(LISTING + CALL + CALLING).children  # type: ignore[union-attr]
    assert child.inject[0].ids == (bos, bos)


def test_cuts_inside_tokens_spell_only_what_is_left() -> None:
    words = byte_level(sample(), merge_lines=True)
    text = LISTING * 2
    spelt = Spelt(words, words.continued(text))
    whole = words.pieces(spelt.ids)
    for place in range(0, len(text), 7):
        count, rest = spelt.before(place)
        assert "".join(whole[:count]) + rest == text[:place] and len(rest) < len(whole[count])
        cut = spelt.between(place, len(text))
        assert words.text(cut) == text[place:]
        kept = len(spelt.ids) - count - bool(rest)
        assert cut[len(cut) - kept :] == spelt.ids[len(spelt.ids) - kept :]


def test_what_cannot_be_spelt_token_by_token_is_an_error() -> None:
    with pytest.raises(DataError, match="cannot spell"):
        llama_like(sample()).continued("é")  # of two byte tokens, neither of which is text


def test_a_pretrained_tokenizer_is_saved_and_checked(tmp_path: Path) -> None:
    words, other = byte_level(sample()), llama_like(sample())
    (tmp_path / "made").mkdir()
    words.save(tmp_path / "made")
    loaded = PretrainedVocabulary.load("paper", tmp_path / "made")
    assert loaded.hash == words.hash and loaded.continued(LISTING) == words.continued(LISTING)
    loaded.check(tmp_path / "made")
    with pytest.raises(CheckpointError, match="vocabulary"):
        other.check(tmp_path / "made")
    (tmp_path / "made" / "apr_vocabulary.json").unlink()  # as in a checkpoint from elsewhere
    loaded.check(tmp_path / "made")
    with pytest.raises(CheckpointError, match="another tokenizer"):
        other.check(tmp_path / "made")
    with pytest.raises(CheckpointError, match="no tokenizer"):
        PretrainedVocabulary.load("paper", tmp_path)


def test_a_root_sees_what_it_kept_and_was_told() -> None:
    """Own tokens: the reference ends right before the call, and nothing is spelt again."""
    talk = Talk(PaperSpeller())
    strand = talk.strand(LISTING + CALL + CALLING)
    plan = talk.joined(strand, "", "")
    kept = strand.ids.index(talk.words.continued(CALL)[0])
    assert plan.sees == (Reference(FIRST, kept),)
    assert plan.inject[0].ids[0] == talk.words.continued(JOIN)[0]

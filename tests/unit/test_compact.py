"""The compact speller: what is written can be read back, number by number."""

from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apr.protocols.spawn_join import SpawnJoin
from apr.tokens.control import CONTROL_TOKENS
from apr.tokens.speller import Condition
from envs.countdown.compact import OPERATORS, CompactSpeller
from envs.countdown.log import Node, Promising, Queued, SearchLog, Spawned, Step, Visited
from envs.countdown.log import Tested as Leaf  # pytest takes names in Test for its own
from envs.countdown.wording import root_prompt, spell

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines may be busy

SPELLER = CompactSpeller()
PROTOCOL = SpawnJoin(SPELLER.vocabulary.control)
NUMBER = st.integers(0, 99) | st.integers(0, 10_000) | st.integers(0, 10**30)
NUMBERS = st.lists(NUMBER, min_size=1, max_size=6).map(lambda ns: tuple(sorted(ns)))
STEPS = st.builds(Step, NUMBER, st.sampled_from(OPERATORS), NUMBER, NUMBER)
NODES = st.builds(Node, NUMBERS, st.lists(STEPS, max_size=4).map(tuple))


def read(ids: Sequence[int]) -> list[int | str]:
    """The numbers and words of `ids`: a head opens a number, tails go on with it, in base 100."""
    found: list[int | str] = []
    for token in SPELLER.vocabulary.decode(ids):
        if token.startswith("'"):
            last = found.pop()
            assert isinstance(last, int), "a tail without a head"
            found.append(last * 100 + int(token[1:]))
        else:
            found.append(int(token) if token.isdecimal() else token)
    return found


def spelt(step: Step) -> list[int | str]:
    return [step.a, step.op, step.b, "=", step.result]


def state(node: Node, target: int) -> list[int | str]:
    path = [word for step in node.path for word in [",", *spelt(step)]][1:]
    return [*path, ":", *node.numbers, ":", target]


@PATIENT
@given(NUMBERS, NUMBER)
def test_prompts_read_back(numbers: tuple[int, ...], target: int) -> None:
    ids = root_prompt(SPELLER, tuple(reversed(numbers)), target)
    assert read(ids) == ["<bos>", target, ":", *numbers, ";"]


@PATIENT
@given(NODES, STEPS, NUMBER)
def test_events_and_messages_read_back(node: Node, step: Step, target: int) -> None:
    child = SearchLog(target, node, (), None)
    verdict = "!" if step.result == target else "<" if step.result < target else ">"
    events = (Promising(node), Visited(node), Leaf(step, target), Spawned((child, child)), Queued(node))
    assert [read(ids) for ids in spell(SearchLog(target, node, events, (step,)), SPELLER, PROTOCOL)] == [
        [
            "@", *state(node, target), *spelt(step), target, verdict,
            "<spawn>", "<msg>", *state(node, target), "<msg>", *state(node, target), "</spawn>",
        ],
        ["<join>", "<eos>"],
        ["<join>", "<eos>"],
        ["~", *state(node, target), "<join>", *spelt(step), "<eos>"],
    ]  # fmt: skip


@PATIENT
@given(st.lists(STEPS, max_size=5))
def test_answers_are_the_steps_as_the_verifier_reads_them(path: list[Step]) -> None:
    [ids] = spell(SearchLog(24, Node((24,), ()), (), tuple(path)), SPELLER, PROTOCOL)
    assert SPELLER.answer(ids[1:-1]) == ", ".join(map(str, path))


@PATIENT
@given(st.lists(st.integers(0, len(SPELLER.vocabulary) - 1), max_size=40))
def test_any_ids_make_some_answer(ids: list[int]) -> None:
    assert isinstance(SPELLER.answer(ids), str)


def test_two_numbers_side_by_side_are_not_one_long_number() -> None:
    vocabulary = SPELLER.vocabulary
    assert SPELLER.answer(vocabulary.encode(["1", "2", "+", "3", "=", "15"])) == "1 2+3=15"
    assert SPELLER.answer(vocabulary.encode(["1", "'02", "+", "3", "=", "1", "'05"])) == "102+3=105"


def test_what_it_looks_like() -> None:
    node = Node((8, 2048), (Step(3, "+", 5, 8),))
    text = SPELLER.vocabulary.text
    assert text(root_prompt(SPELLER, (5, 3, 100), 24)) == "<bos> 24 : 3 5 1 '00 ;"
    assert text(root_prompt(SPELLER, (5, 3), 24, Condition("children", 6))) == "<bos> <spawn> 6 ; 24 : 3 5 ;"
    assert text(root_prompt(SPELLER, (5, 3), 24, Condition("context", 2048))) == "<bos> < 20 '48 ; 24 : 3 5 ;"
    events = (Visited(node), Leaf(Step(16, "+", 8, 24), 24), Leaf(Step(8, "+", 8, 16), 24))
    [ids] = spell(SearchLog(24, node, events, None), SPELLER, PROTOCOL)
    assert text(ids) == "@ 3 + 5 = 8 : 8 20 '48 : 24 16 + 8 = 24 24 ! 8 + 8 = 16 24 < <join> <eos>"


def test_control_tokens_are_no_words_of_the_speller() -> None:
    vocabulary = SPELLER.vocabulary
    assert vocabulary.tokens[: len(CONTROL_TOKENS)] == CONTROL_TOKENS
    control = set(range(len(CONTROL_TOKENS)))
    node = Node((3, 99, 100), (Step(3, "*", 5, 15),))
    events = (Visited(node), Queued(node), Leaf(Step(3, "*", 5, 15), 8))
    [ids] = spell(SearchLog(8, node, events, node.path), SPELLER, PROTOCOL)
    assert set(ids) & control == {vocabulary.control.join, vocabulary.control.eos}
    assert not {*root_prompt(SPELLER, (3, 5), 8)[1:]} & control
    assert root_prompt(SPELLER, (3, 5), 8)[0] == vocabulary.control.bos

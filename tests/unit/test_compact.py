"""The compact dialect: what is written can be read back, number by number."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apr.tokens.compact import OPERATORS, CompactDialect
from apr.tokens.control import CONTROL_TOKENS
from apr.tokens.log import Node, Queued, SearchLog, Spawned, Step, Visited
from apr.tokens.log import Tested as Leaf  # pytest takes names in Test for its own

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines may be busy

DIALECT = CompactDialect()
NUMBER = st.integers(0, 99) | st.integers(0, 10_000) | st.integers(0, 10**30)
NUMBERS = st.lists(NUMBER, min_size=1, max_size=6).map(lambda ns: tuple(sorted(ns)))
STEPS = st.builds(Step, NUMBER, st.sampled_from(OPERATORS), NUMBER, NUMBER)
NODES = st.builds(Node, NUMBERS, st.lists(STEPS, max_size=4).map(tuple))


def read(ids: Sequence[int]) -> list[int | str]:
    """The numbers and words of `ids`: a head opens a number, tails go on with it, in base 100."""
    found: list[int | str] = []
    for token in DIALECT.vocabulary.decode(ids):
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
    ids = DIALECT.prompt(tuple(reversed(numbers)), target)
    assert read(ids) == ["<bos>", target, ":", *numbers, ";"]


@PATIENT
@given(NODES, STEPS, NUMBER)
def test_events_and_messages_read_back(node: Node, step: Step, target: int) -> None:
    assert read(DIALECT.event(Visited(node), target)) == ["@", *state(node, target)]
    assert read(DIALECT.event(Queued(node), target)) == ["~", *state(node, target)]
    assert read(DIALECT.message(node, target)) == state(node, target)
    verdict = "!" if step.result == target else "<" if step.result < target else ">"
    assert read(DIALECT.event(Leaf(step, target), target)) == [*spelt(step), target, verdict]
    assert read(DIALECT.event(Leaf(step, step.result), step.result))[-1] == "!"


@PATIENT
@given(st.lists(STEPS, max_size=5))
def test_answers_are_the_steps_as_the_verifier_reads_them(path: list[Step]) -> None:
    assert DIALECT.answer(DIALECT.solution(path)) == ", ".join(map(str, path))


@PATIENT
@given(st.lists(st.integers(0, len(DIALECT.vocabulary) - 1), max_size=40))
def test_any_ids_make_some_answer(ids: list[int]) -> None:
    assert isinstance(DIALECT.answer(ids), str)


def test_two_numbers_side_by_side_are_not_one_long_number() -> None:
    vocabulary = DIALECT.vocabulary
    assert DIALECT.answer(vocabulary.encode(["1", "2", "+", "3", "=", "15"])) == "1 2+3=15"
    assert DIALECT.answer(vocabulary.encode(["1", "'02", "+", "3", "=", "1", "'05"])) == "102+3=105"


def test_what_it_looks_like() -> None:
    node = Node((8, 2048), (Step(3, "+", 5, 8),))
    text = DIALECT.vocabulary.text
    assert text(DIALECT.prompt((5, 3, 100), 24)) == "<bos> 24 : 3 5 1 '00 ;"
    assert text(DIALECT.event(Visited(node), 24)) == "@ 3 + 5 = 8 : 8 20 '48 : 24"
    assert text(DIALECT.event(Leaf(Step(16, "+", 8, 24), 24), 24)) == "16 + 8 = 24 24 !"
    assert text(DIALECT.event(Leaf(Step(8, "+", 8, 16), 24), 24)) == "8 + 8 = 16 24 <"


def test_control_tokens_are_no_words_of_the_dialect() -> None:
    vocabulary = DIALECT.vocabulary
    assert vocabulary.tokens[: len(CONTROL_TOKENS)] == CONTROL_TOKENS
    control = set(range(len(CONTROL_TOKENS)))
    node = Node((3, 99, 100), (Step(3, "*", 5, 15),))
    ids = {*DIALECT.prompt((3, 5), 8)[1:], *DIALECT.event(Visited(node), 8), *DIALECT.solution(node.path)}
    assert not ids & control
    assert DIALECT.prompt((3, 5), 8)[0] == vocabulary.control.bos


def test_a_spawn_is_the_protocols_to_spell() -> None:
    child = SearchLog(8, Node((3, 5), ()), (), None)
    with pytest.raises(ValueError, match="protocol"):
        DIALECT.event(Spawned((child,)), 8)

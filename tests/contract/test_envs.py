"""What every environment promises (`envs.base.Env`), and what Countdown promises beyond."""

from collections.abc import Iterator
from itertools import combinations_with_replacement, islice, permutations
from pathlib import Path
from typing import Any

import pytest
from chat_tokenizers import smol_like
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.errors import DataError
from apr.seeds import derive_rng
from apr.testing.envs import EnvContract
from apr.tokens.chat import ChatSpeller
from apr.tokens.chat_vocabulary import ChatVocabulary
from apr.tokens.speller import Speller
from apr.user_code import allow
from envs.base import SPLITS, Env, PlainTeacher
from envs.countdown.compact import CompactSpeller
from envs.countdown.env import Countdown
from envs.countdown.problems import MAX_DRAWS_PER_PROBLEM, CountdownSpec, Problems, draw, problem_of
from envs.countdown.teacher import SearchTeacher
from envs.registry import environment
from solvers.exhaustive import reachable, solve

SORTING = f"{Path(__file__).parents[2] / 'examples' / 'sorting.py'}:Sorting"
allow(SORTING)
SPELLER = CompactSpeller()
CHAT = ChatSpeller(ChatVocabulary(smol_like()))
TEACHERS = (
    SearchTeacher.model_validate({"protocol": "serial", "beams": [2]}),
    SearchTeacher.model_validate({"protocol": "spawn_join", "spawn_depth": 1, "beams": [2]}),
)


class CountdownContract(EnvContract):
    env: Env = Countdown(CountdownSpec(numbers=3, high=30))
    teachers = TEACHERS

    def solution(self, problem: dict[str, Any]) -> str | None:
        path = solve(tuple(problem["numbers"]), problem["target"])
        return None if path is None else ", ".join(map(str, path))

    def speller(self) -> Speller:
        return SPELLER

    def test_a_right_answer_is_right_for_its_own_problem_only(self) -> None:
        problems = self.problems("test")
        for answer in map(self.solution, problems):
            assert sum(self.env.verify(other, answer).ok for other in problems) == 1

    def test_a_prompt_starts_with_bos_and_spawns_and_joins_nothing(self) -> None:
        speller = self.speller()
        control = speller.vocabulary.control
        for problem in self.problems():
            prompt = speller.prompt(self.env, problem)
            assert prompt[0] == control.bos and max(prompt) < len(speller.vocabulary)
            assert not {*speller.vocabulary.unknown_to_text, control.pad} & {*prompt}
            if speller is SPELLER:  # the templates of chat models have turns before theirs
                assert not {control.bos, control.eos} & {*prompt[1:]}


class TestCountdown(CountdownContract):
    pass


class TestCountdownOfThePaper(CountdownContract):
    env = Countdown()


class TestCountdownSplitByStates(CountdownContract):
    env = Countdown(CountdownSpec(numbers=3, high=20, split_by="states"))


class TestCountdownInChat(CountdownContract):
    def speller(self) -> Speller:
        return CHAT


class TestSorting(EnvContract):
    env = environment(SORTING)
    teachers = (PlainTeacher(protocol="serial"), PlainTeacher(protocol="spawn_join"))

    def solution(self, problem: dict[str, Any]) -> str | None:
        return " ".join(map(str, sorted(problem["digits"])))


TEXTS = st.text(max_size=200) | st.text("0123456789+-*/=, ", max_size=60) | st.from_regex(r"(\d+[-+*/]\d+=\d+, ?)+")


@given(st.lists(TEXTS, min_size=2, max_size=5))
def test_answers_that_are_equal_are_right_together(answers: list[str]) -> None:
    env = Countdown(CountdownSpec(numbers=3, high=30))
    [problem] = env.problems("train", 1, 0)
    verdicts: dict[str, set[bool]] = {}
    for answer in answers:
        verdict = env.verify(problem, answer)
        assert isinstance(verdict.ok, bool) and verdict.reason and len(verdict.reason) < 500
        verdicts.setdefault(env.canonical(answer), set()).add(verdict.ok)
    assert all(len(found) == 1 for found in verdicts.values())


@given(st.lists(st.integers(0, len(SPELLER.vocabulary) - 1), max_size=80))
def test_whatever_a_thread_returns_can_be_read_and_judged(ids: list[int]) -> None:
    env = Countdown(CountdownSpec(numbers=3, high=30))
    [problem] = env.problems("train", 1, 0)
    for speller in (SPELLER, CHAT):
        assert isinstance(env.verify(problem, env.read(speller.answer(ids))).ok, bool)


# What Countdown promises beyond the seam: problems in batches of columns are those of one draw after the other.


def one_by_one(env: Countdown, split: str, count: int, seed: int) -> list[dict[str, Any]]:
    """The first `count` new solvable problems among the draws that a seed gives, or what there is of them."""
    s, rng = env.options, derive_rng(seed, "problems", split)
    found: dict[str, dict[str, Any]] = {}
    for _ in range(MAX_DRAWS_PER_PROBLEM * count):
        numbers = sorted(rng.randint(s.low, s.high) for _ in range(s.numbers))
        target = rng.randint(s.target_low, s.target_high)
        if len(found) < count and env.split_of(tuple(numbers)) == split and target in reachable(tuple(numbers)):
            found.setdefault(f"{target}:{numbers}", problem_of(numbers, target))
    return list(found.values())


SPECS = st.builds(
    CountdownSpec,
    numbers=st.integers(2, 4),
    low=st.integers(0, 3),
    high=st.sampled_from([6, 40, 10**9]),
    target_low=st.integers(0, 2),
    target_high=st.integers(3, 12),
    test_share=st.sampled_from([0.02, 0.4]),
    split_seed=st.integers(0, 3),
)


@settings(max_examples=30)
@given(SPECS, st.sampled_from(SPLITS), st.integers(1, 4), st.integers(0, 99))
def test_problems_are_the_first_that_one_draw_after_the_other_gives(
    spec: CountdownSpec, split: str, count: int, seed: int
) -> None:
    env = Countdown(spec)
    expected = one_by_one(env, split, count, seed)
    if len(expected) == count:
        assert list(env.problems(split, count, seed)) == expected
    else:
        with pytest.raises(DataError, match=f"only {len(expected)} of {count} distinct solvable {split} problems"):
            list(env.problems(split, count, seed))


def test_many_problems_come_in_batches_of_columns() -> None:
    env = Countdown()
    batches = list(draw(env.options, "train", 3_000, 1))
    assert len(batches) > 1
    rows = [problem for batch in batches for problem in batch.dictionaries()]
    assert rows == list(env.problems("train", 3_000, 1)) and len({row["id"] for row in rows}) == 3_000
    assert rows[:20] == one_by_one(env, "train", 20, 1)
    few = list(islice(draw(env.options, "train", 3_000, 1), 1))
    assert isinstance(few[0], Problems) and few[0].numbers.shape == (len(few[0].targets), 4)
    assert all(env.split_of(tuple(numbers)) == "train" for numbers in few[0].numbers.tolist())


def test_more_problems_than_there_can_be_are_refused_at_once() -> None:
    spec = CountdownSpec(numbers=2, low=1, high=5, target_low=1, target_high=10)
    assert spec.possible == 15 * 10
    with pytest.raises(DataError, match="no more than 150"):
        list(Countdown(spec).problems("train", 151, 0))


# A split by states: what one step leaves of a held-out problem's numbers, where it wins, is never left in training.

SMALL = CountdownSpec(
    numbers=3, high=9, target_low=1, target_high=20, validation_share=0.2, test_share=0.3, split_by="states"
)


def states_by_hand(numbers: list[int]) -> set[tuple[int, ...]]:
    """All that one step leaves, whether it wins or not."""
    found = set()
    for i, a in enumerate(numbers):
        for j, b in enumerate(numbers):
            if i != j:
                rest = [number for k, number in enumerate(numbers) if k not in (i, j)]
                results = [a + b, a * b, *([a - b] if a >= b else []), *([a // b] if b and a % b == 0 else [])]
                found |= {tuple(sorted([*rest, result])) for result in results}
    return found


def every_problem(spec: CountdownSpec) -> Iterator[dict[str, Any]]:
    for numbers in combinations_with_replacement(range(spec.low, spec.high + 1), spec.numbers):
        for target in range(spec.target_low, spec.target_high + 1):
            if target in reachable(numbers):
                yield problem_of(numbers, target)


@pytest.mark.parametrize(
    "spec", [SMALL, SMALL.model_copy(update={"numbers": 2}), SMALL.model_copy(update={"split_seed": 5})]
)
def test_no_winning_state_of_a_held_out_problem_is_seen_in_training(spec: CountdownSpec) -> None:
    """Of all problems that there are: each split has some, and none of its winning states is any state of another's."""
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for problem in every_problem(spec):
        [found] = spec.splits([problem["numbers"]], [problem["target"]])
        if len(found) == 1:
            splits[found.pop()].append(problem)
    every = {s: {(t["target"], c) for t in some for c in states_by_hand(t["numbers"])} for s, some in splits.items()}
    wins = {s: {(target, state) for target, state in some if target in reachable(state)} for s, some in every.items()}
    for one, other in permutations(SPLITS, 2):
        assert splits[one] and not wins[one] & every[other]


@pytest.mark.parametrize("split", SPLITS)
def test_problems_split_by_states_are_drawn_from_their_split_alone(split: str) -> None:
    env = Countdown(SMALL)
    problems = list(env.problems(split, 40, 3))
    assert problems == list(env.problems(split, 40, 3)) and len({one["id"] for one in problems}) == 40
    for problem in problems:
        states = [state for state in states_by_hand(problem["numbers"]) if problem["target"] in reachable(state)]
        assert states and {SMALL.split_of((problem["target"], *state)) for state in states} == {split}


def test_states_too_large_for_compiled_arithmetic_are_found_as_well() -> None:
    spec = SMALL.model_copy(update={"high": 10**12, "target_high": 10**13})
    [parts] = spec.parts([[2, 10**12, 10**12]], [2 * 10**12 + 2])
    assert set(parts) == {(2 * 10**12 + 2, 2, 2 * 10**12), (2 * 10**12 + 2, 10**12, 10**12 + 2)}


def test_too_few_problems_with_states_of_one_split_are_an_error() -> None:
    spec = CountdownSpec(numbers=3, high=5, target_low=10, target_high=11, test_share=0.01, split_by="states")
    with pytest.raises(DataError, match=r"of 50 distinct solvable test problems .* split_by=states leaves out"):
        list(Countdown(spec).problems("test", 50, 0))

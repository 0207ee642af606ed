"""What every environment promises (`envs.base.Env`)."""

import json
from collections.abc import Iterator
from itertools import combinations_with_replacement, islice, permutations
from typing import Any

import pytest
from chat_tokenizers import smol_like
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.errors import DataError
from apr.seeds import derive_rng
from apr.tokens.chat import ChatDialect
from apr.tokens.chat_vocabulary import ChatVocabulary
from apr.tokens.dialect import Dialect
from envs.base import SPLITS, Env
from envs.countdown.compact import CompactDialect
from envs.countdown.env import Countdown
from envs.countdown.log import Node, SearchLog
from envs.countdown.problems import MAX_DRAWS_PER_PROBLEM, CountdownSpec, Problems, problem_of
from envs.countdown.verify import Verdict
from solvers.exhaustive import reachable, solve

DIALECT = CompactDialect()
CHAT = ChatDialect(ChatVocabulary(smol_like()))


def solution(problem: dict[str, Any], dialect: Dialect) -> tuple[int, ...]:
    """A right answer, as a thread would return it."""
    path = solve(tuple(problem["numbers"]), problem["target"])
    assert path is not None
    log = SearchLog(problem["target"], Node(tuple(problem["numbers"]), ()), (), path)
    message = dialect.vocabulary.control.join_message(dialect.spell(log)[0])
    assert message
    return message


# Each environment with a way to write a right answer.
ENVS = {
    "countdown": (Countdown(CountdownSpec(numbers=3, high=30)), DIALECT),
    "countdown_paper": (Countdown(), DIALECT),
    "countdown_chat": (Countdown(CountdownSpec(numbers=3, high=30)), CHAT),
}
COUNT = 8


@pytest.fixture(params=ENVS)
def env(request: pytest.FixtureRequest) -> Countdown:
    return ENVS[request.param][0]


@pytest.fixture
def write(request: pytest.FixtureRequest) -> Any:
    env, write = ENVS[request.node.callspec.params["env"]]
    return lambda problem: write(problem, env.dialect)


def test_problems_are_distinct_plain_and_the_same_from_the_same_seed(env: Env) -> None:
    for split in SPLITS:
        problems = list(env.problems(split, COUNT, 7))
        assert len({problem["id"] for problem in problems}) == len(problems) == COUNT
        assert list(env.problems(split, COUNT, 7)) == problems != env.problems(split, COUNT, 8)
        assert json.loads(json.dumps(problems)) == problems
        assert all(isinstance(problem["id"], str) for problem in problems)


def test_splits_share_nothing_that_a_search_could_be_remembered_from(env: Env) -> None:
    seen = [{tuple(p["numbers"]) for seed in range(3) for p in env.problems(split, COUNT, seed)} for split in SPLITS]
    assert len(set.union(*seen)) == sum(map(len, seen))


def test_an_unknown_split_is_refused(env: Env) -> None:
    with pytest.raises(DataError, match="validation"):
        env.problems("holdout", 1, 0)


def test_a_prompt_starts_with_bos_and_spawns_and_joins_nothing(env: Countdown) -> None:
    control = env.dialect.vocabulary.control
    problems = [problem for split in SPLITS for problem in list(env.problems(split, COUNT, 7))]
    prompts = [env.prompt(problem) for problem in problems]
    assert len(set(prompts)) == len(prompts)
    for prompt in prompts:
        assert prompt[0] == control.bos
        assert not {*control.spawning_and_joining, control.pad} & {*prompt}
        assert max(prompt) < len(env.dialect.vocabulary)
        if env.dialect is DIALECT:  # the templates of chat models have turns before theirs
            assert not {control.bos, control.eos} & {*prompt[1:]}


def test_a_right_answer_is_right_for_its_own_problem_only(env: Env, write: Any) -> None:
    problems = env.problems("test", COUNT, 7)
    answers = [env.read(write(problem)) for problem in problems]
    for problem, answer in zip(problems, answers):
        assert env.verify(problem, answer) == Verdict(True, "reaches the target")
        assert sum(env.verify(other, answer).ok for other in problems) == 1


def test_no_answer_is_wrong_and_says_why(env: Env) -> None:
    [problem] = env.problems("train", 1, 0)
    assert env.read(None) is None
    for answer in (None, "", env.read(())):
        verdict = env.verify(problem, answer)
        assert not verdict.ok and verdict.reason


TEXTS = st.text(max_size=200) | st.text("0123456789+-*/=, ", max_size=60) | st.from_regex(r"(\d+[-+*/]\d+=\d+, ?)+")


@given(TEXTS)
@pytest.mark.parametrize("name", ENVS)
def test_whatever_the_answer_says_there_is_a_verdict(name: str, answer: str) -> None:
    env = ENVS[name][0]
    [problem] = env.problems("train", 1, 0)
    verdict = env.verify(problem, answer)
    assert isinstance(verdict.ok, bool) and verdict.reason and len(verdict.reason) < 500


@given(st.lists(TEXTS, min_size=2, max_size=5))
@pytest.mark.parametrize("name", ENVS)
def test_answers_that_are_equal_are_right_together(name: str, answers: list[str]) -> None:
    env = ENVS[name][0]
    problem = env.problems("train", 1, 0)[0]
    answers = [*answers, env.read(ENVS[name][1](problem, env.dialect)) or ""]
    verdicts: dict[Any, set[bool]] = {}
    for answer in answers:
        assert env.canonical(answer) == env.canonical(answer)
        verdicts.setdefault(env.canonical(answer), set()).add(env.verify(problem, answer).ok)
    assert all(len(found) == 1 for found in verdicts.values())


@given(st.lists(st.integers(0, len(DIALECT.vocabulary) - 1), max_size=80))
@pytest.mark.parametrize("name", ENVS)
def test_whatever_a_thread_returns_can_be_read_and_judged(name: str, ids: list[int]) -> None:
    env = ENVS[name][0]
    [problem] = env.problems("train", 1, 0)
    answer = env.read(tuple(ids))
    assert isinstance(answer, str)
    assert isinstance(env.verify(problem, answer).ok, bool)


# What Countdown promises beyond the seam: problems in batches of columns are those of one draw after the other.


def one_by_one(env: Countdown, split: str, count: int, seed: int) -> list[dict[str, Any]]:
    """The first `count` new solvable problems among the draws that a seed gives, or what there is of them."""
    s, rng = env.spec, derive_rng(seed, "problems", split)
    found: dict[str, dict[str, Any]] = {}
    for _ in range(MAX_DRAWS_PER_PROBLEM * count):
        numbers = sorted(rng.randint(s.low, s.high) for _ in range(s.numbers))
        target = rng.randint(s.target_low, s.target_high)
        if len(found) < count and env.split_of(numbers) == split and target in reachable(tuple(numbers)):
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
        assert env.problems(split, count, seed) == expected
    else:
        with pytest.raises(DataError, match=f"only {len(expected)} of {count} distinct solvable {split} problems"):
            env.problems(split, count, seed)


def test_many_problems_come_in_batches_of_columns() -> None:
    env = Countdown()
    batches = list(env.draw("train", 3_000, 1))
    assert len(batches) > 1
    rows = [problem for batch in batches for problem in batch.dictionaries()]
    assert rows == list(env.problems("train", 3_000, 1)) and len({row["id"] for row in rows}) == 3_000
    assert rows[:20] == one_by_one(env, "train", 20, 1)
    few = list(islice(env.draw("train", 3_000, 1), 1))
    assert isinstance(few[0], Problems) and few[0].numbers.shape == (len(few[0].targets), 4)
    assert all(env.split_of(numbers) == "train" for numbers in few[0].numbers.tolist())


def test_more_problems_than_there_can_be_are_refused_at_once() -> None:
    spec = CountdownSpec(numbers=2, low=1, high=5, target_low=1, target_high=10)
    assert spec.possible == 15 * 10
    with pytest.raises(DataError, match="no more than 150"):
        Countdown(spec).problems("train", 151, 0)


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
    problems = env.problems(split, 40, 3)
    assert problems == env.problems(split, 40, 3) and len({one["id"] for one in problems}) == 40
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
        Countdown(spec).problems("test", 50, 0)

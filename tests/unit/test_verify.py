"""The verifier: right answers pass; all others fail with a reason, and nothing raises."""

import random
import re
from itertools import combinations, permutations, product

import pytest
import recompute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import envs.countdown
from envs.countdown.log import Step
from envs.countdown.verify import MAX_ANSWER, Verdict, canonical, verify
from solvers.exhaustive import reachable, solve

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines may be busy

NUMBERS = st.lists(st.integers(0, 99), min_size=2, max_size=4).map(lambda ns: tuple(sorted(ns)))


def spell(steps: tuple[Step, ...] | list[Step]) -> str:
    return ", ".join(map(str, steps))


@st.composite
def solved(draw: st.DrawFn) -> tuple[tuple[int, ...], int, list[Step]]:
    """Numbers, a target that they reach, and steps that reach it."""
    numbers = draw(NUMBERS)
    target = draw(st.sampled_from(sorted(reachable(numbers))))
    return numbers, target, list(solve(numbers, target) or ())


def fails(numbers: tuple[int, ...], target: int, answer: str | None, because: str = "") -> None:
    verdict = verify(numbers, target, answer)
    assert not verdict.ok
    assert verdict.reason and because in verdict.reason


@PATIENT
@given(solved())
def test_every_solution_of_the_exhaustive_solver_passes(problem: tuple[tuple[int, ...], int, list[Step]]) -> None:
    numbers, target, steps = problem
    assert verify(numbers, target, spell(steps)) == Verdict(True, "reaches the target")
    spaced = " , ".join(f" {s.a}  {s.op} {s.b}\t= {s.result}\n" for s in steps)
    assert verify(tuple(reversed(numbers)), target, spaced).ok


@PATIENT
@given(solved(), st.integers(1, 1000))
def test_a_wrong_result_fails(problem: tuple[tuple[int, ...], int, list[Step]], off: int) -> None:
    numbers, target, steps = problem
    for i, step in enumerate(steps):
        wrong = step._replace(result=step.result + off)
        fails(numbers, target, spell([*steps[:i], wrong, *steps[i + 1 :]]), "wrong arithmetic")
    fails(numbers, target + off, spell(steps), f"ends at {target}")


@PATIENT
@given(solved(), st.integers(0, 99))
def test_an_unused_number_or_a_missing_step_fails(problem: tuple[tuple[int, ...], int, list[Step]], extra: int) -> None:
    numbers, target, steps = problem
    fails((*numbers, extra), target, spell(steps), "unused")
    fails(numbers, target, spell(steps[:-1]), "unused" if len(steps) > 1 else "no answer")


@PATIENT
@given(solved())
def test_a_number_used_twice_fails(problem: tuple[tuple[int, ...], int, list[Step]]) -> None:
    numbers, target, steps = problem
    again = Step(target, "+", steps[0].a, target + steps[0].a)
    fails(numbers, target + steps[0].a, spell([*steps, again]), "not at hand")
    fails(numbers, target, spell([*steps, steps[0]]))


@pytest.mark.parametrize(
    ("numbers", "target", "answer", "because"),
    [
        ((3, 5), 2, "3-5=2", "not allowed"),
        ((3, 5), 0, "3-5=0", "not allowed"),
        ((3, 5), -2, "3-5=-2", "not a step"),
        ((3, 5), 1, "5/3=1", "not allowed"),
        ((3, 6), 0, "3/6=0", "not allowed"),
        ((0, 6), 0, "6/0=0", "not allowed"),
        ((2, 3, 4), 20, "5*4=20, 2+3=5", "not at hand"),
        ((2, 3, 4), 20, "2+3=5", "unused"),
        ((2, 3), 6, "2*2=4, 4+2=6", "not at hand"),
        ((12, 3), 15, "1 2+3=15", "not a step"),
        ((2, 3), 5, "2+3=5,", "not a step"),
        ((2, 3), 5, "2+3=5; 1", "not a step"),
        ((2, 3), 5, "2+3==5", "not a step"),
        ((2, 3), 5, "2²+3=5", "not a step"),
        ((2, 3), 5, "²+3=5", "not a step"),
        ((2, 3), 5, "٢+٣=٥", "not a step"),
        ((2, 3), 8, "2**3=8", "not a step"),
        ((2, 3), 5, "+2+3=5", "not a step"),
        ((2, 3), 5, "__import__('os')", "not a step"),
        ((2, 3), 5, "2+3=" + "5" * 25, "not a step"),
        ((2, 3), 5, "9" * 1900 + "+3=5", "not a step"),
        ((2, 3), 5, "2+3=5" + " " * MAX_ANSWER, "longer"),
        ((2, 3), 5, "", "no answer"),
        ((2, 3), 5, " \u2003\n", "no answer"),
        ((2, 3), 5, None, "no answer"),
    ],
)
def test_answers_that_break_a_rule(numbers: tuple[int, ...], target: int, answer: str | None, because: str) -> None:
    fails(numbers, target, answer, because)


@PATIENT
@given(NUMBERS, st.integers(0, 999), st.text(max_size=60) | st.text("0123456789+-*/=, ²٣", max_size=60))
def test_garbage_fails_with_a_reason(numbers: tuple[int, ...], target: int, answer: str) -> None:
    if not checked(numbers, target, answer):
        fails(numbers, target, answer)


@PATIENT
@given(solved(), st.data())
def test_an_edited_answer_passes_only_if_it_is_a_proof(
    problem: tuple[tuple[int, ...], int, list[Step]], data: st.DataObject
) -> None:
    """Characters swapped, dropped or inserted, and steps reordered, against a second reading of the rules."""
    numbers, target, steps = problem
    answer = spell(data.draw(st.permutations(steps)))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(answer)))
        cut = data.draw(st.integers(0, 1))
        answer = answer[:at] + data.draw(st.sampled_from(["", *"0123456789+-*/=, "])) + answer[at + cut :]
    assert verify(numbers, target, answer).ok == checked(numbers, target, answer)


def checked(numbers: tuple[int, ...], target: int, answer: str) -> bool:
    """The rules again, told with lists and string splits; a text without a comma may be an expression too."""
    hand = list(numbers)
    last = None
    tree, claimed = recompute.equation(recompute.said(answer)) if "," not in answer else (None, None)
    if tree is not None:
        value, steps = recompute.done(tree)
        taken = re.findall("[0-9]+", answer.partition("=")[0])
        return value == target and claimed in (None, target) and sorted(map(int, taken)) == sorted(hand)
    for part in answer.split(","):
        left, equals, right = (piece.strip() for piece in part.partition("="))
        op = next((c for c in left if c in "+-*/"), "")
        a, _, b = (piece.strip() for piece in left.partition(op)) if op else ("", "", "")
        if not equals or not all(word and set(word) <= set("0123456789") for word in (a, b, right)):
            return False
        x, y, z = int(a), int(b), int(right)
        if x not in hand:
            return False
        hand.remove(x)
        if y not in hand:
            return False
        hand.remove(y)
        by_rule = {"+": x + y == z, "-": x - y == z, "*": x * y == z, "/": y > 0 and y * z == x}
        if not by_rule[op]:
            return False
        hand.append(z)
        last = z
    return hand == [last] == [target]


def test_the_verifier_is_a_function_of_the_package() -> None:
    assert envs.countdown.verify([3, 5], 8, "3+5=8").ok


def test_large_intermediate_values_are_read() -> None:
    numbers = (999, 999, 999, 999, 999, 999)
    value, steps = 999, []
    for _ in range(5):
        steps.append(Step(value, "*", 999, value * 999))
        value *= 999
    assert verify(numbers, value, spell(steps)).ok


def postfix_values(numbers: tuple[int, ...]) -> set[int]:
    """All values by brute force: every order of the numbers, every postfix shape, every choice of operators."""
    n = len(numbers)
    shapes = []
    for operators_at in combinations(range(2 * n - 1), n - 1):
        height, valid = 0, True
        for i in range(2 * n - 1):
            height += -1 if i in operators_at else 1
            valid = valid and height >= 1
        if valid:
            shapes.append([i in operators_at for i in range(2 * n - 1)])
    values = set()
    for order, shape, operators in product(sorted(set(permutations(numbers))), shapes, product("+-*/", repeat=n - 1)):
        value = _postfix(order, shape, operators)
        if value is not None:
            values.add(value)
    return values


def _postfix(order: tuple[int, ...], shape: list[bool], operators: tuple[str, ...]) -> int | None:
    operands, ops, stack = iter(order), iter(operators), []
    for is_operator in shape:
        if not is_operator:
            stack.append(next(operands))
            continue
        b, a = stack.pop(), stack.pop()
        op = next(ops)
        if (op == "-" and a < b) or (op == "/" and (b == 0 or a % b)):
            return None
        stack.append(a + b if op == "+" else a - b if op == "-" else a * b if op == "*" else a // b)
    return stack[0]


@settings(PATIENT, max_examples=12)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=4).map(lambda ns: tuple(sorted(ns))))
def test_the_exhaustive_solver_reaches_what_brute_force_reaches(numbers: tuple[int, ...]) -> None:
    assert reachable(numbers) == postfix_values(numbers)


def test_solutions_of_five_numbers_pass() -> None:
    rng = random.Random(0)
    numbers = tuple(sorted(rng.randint(1, 99) for _ in range(5)))
    for target in rng.sample(sorted(reachable(numbers)), 20):
        assert verify(numbers, target, spell(solve(numbers, target) or ())).ok


def test_the_exhaustive_solver_on_five_numbers() -> None:
    rng = random.Random(0)
    numbers = tuple(sorted((3, 3, 5, 5, rng.randint(1, 20))))  # equal numbers keep the brute force to seconds
    values = postfix_values(numbers)
    assert reachable(numbers) == values
    unreachable = next(n for n in range(1000) if n not in values)
    assert solve(numbers, unreachable) is None


# When two answers are the same. Few numbers, so that steps meet: right ones, wrong ones, and ones that reuse values.

SMALL = st.integers(0, 6)
STEPS = st.lists(st.tuples(SMALL, st.sampled_from("+-*/"), SMALL, st.integers(0, 9)), min_size=1, max_size=6)
Steps = list[tuple[int, str, int, int]]


def written(steps: Steps) -> str:
    return ", ".join(f"{a}{op}{b}={result}" for a, op, b, result in steps)


def independent(x: tuple[int, str, int, int], y: tuple[int, str, int, int]) -> bool:
    return x[3] not in (y[0], y[2]) and y[3] not in (x[0], x[2])


@st.composite
def rewritten(draw: st.DrawFn) -> tuple[str, str]:
    """An answer, and the same one with operands and neighbouring independent steps swapped."""
    steps = draw(STEPS)
    other = list(steps)
    for _ in range(draw(st.integers(0, 12))):
        i = draw(st.integers(0, len(other) - 1))
        a, op, b, result = other[i]
        if op in "+*" and draw(st.booleans()):
            other[i] = (b, op, a, result)
        if i + 1 < len(other) and independent(other[i], other[i + 1]):
            other[i], other[i + 1] = other[i + 1], other[i]
    space = draw(st.sampled_from(["", " ", "\t"]))
    return written(steps), written(other).replace(",", f"{space},").replace("=", f"={space}")


@settings(PATIENT, max_examples=300)
@given(rewritten(), NUMBERS, st.integers(0, 12))
def test_swapped_operands_and_independent_steps_make_no_other_answer(
    answers: tuple[str, str], numbers: tuple[int, ...], target: int
) -> None:
    one, other = answers
    assert canonical(one) == canonical(other)
    assert verify(numbers, target, one).ok == verify(numbers, target, other).ok


@PATIENT
@given(solved(), st.randoms(use_true_random=False))
def test_every_order_that_reaches_the_target_is_accepted_like_its_equals(
    problem: tuple[tuple[int, ...], int, list[Step]], rng: random.Random
) -> None:
    """Any order at all: where the keys are equal, so are the verdicts, for the problem that the steps solve."""
    numbers, target, steps = problem
    right = spell(steps)
    shuffled = rng.sample(steps, len(steps))
    other = ", ".join(
        f"{s.b}{s.op}{s.a}={s.result}" if s.op in "+*" else f"{s.a}{s.op}{s.b}={s.result}" for s in shuffled
    )
    if canonical(other) == canonical(right):
        assert verify(numbers, target, other).ok


ANSWERS = (
    STEPS.map(written)
    | rewritten().map(lambda pair: pair[1])
    | st.text("0123 +*=,", max_size=12)
    | st.text(max_size=20)
)


@settings(PATIENT, max_examples=300)
@given(st.lists(ANSWERS, min_size=3, max_size=6), NUMBERS, st.integers(0, 12))
def test_equality_is_an_equivalence_that_the_verifier_respects(
    answers: list[str], numbers: tuple[int, ...], target: int
) -> None:
    keys = [canonical(one) for one in answers]
    assert keys == [canonical(one) for one in answers]
    assert len({hash(key) for key in keys}) <= len(set(keys))
    for (a, x), (b, y) in product(zip(answers, keys), repeat=2):
        assert (x == y) == (y == x)
        if x == y:
            assert verify(numbers, target, a).ok == verify(numbers, target, b).ok
            assert all((x == z) == (y == z) for z in keys)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("8-6=2, 4+1=5, 2*5=10", "1+4=5,8 - 6 = 2 ,5*2\t=10\n"),
        ("2+3=5", "02+3=5"),
        ("2+3=5, 2+3=5", "3+2=5, 2+3=5"),
        ("1 2+3", "1 2 + 3"),
        ("7*7", " 7 * 7 "),
        ("2+3", "3+2"),
    ],
)
def test_answers_that_are_the_same(one: str, other: str) -> None:
    assert canonical(one) == canonical(other)
    assert recompute.same_answer(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2+3=5, 5+6=11", "5+6=11, 2+3=5"),  # the order matters: 5 is made first
        ("2+3=5, 5+6=11", "3+6=9, 9+2=11"),  # another derivation of the same value
        ("5-3=2", "3-5=2"),
        ("2+3=5", "2+3=5, 2+3=5"),
        ("2+3=5", "2+3=6"),
        ("1 2+3=15", "12+3=15"),
        ("2+3", "2+3="),  # no step: compared as text
        ("2+3=", "3+2="),
        ("2+3=5", "2+3=5" + " " * MAX_ANSWER),  # too long to be right
        ("2+3=5", "2+3=5,"),
    ],
)
def test_answers_that_are_not_the_same(one: str, other: str) -> None:
    assert canonical(one) != canonical(other)
    assert not recompute.same_answer(one, other)


@settings(PATIENT, max_examples=300)
@given(ANSWERS | rewritten().map(lambda pair: pair[0]), ANSWERS)
def test_equality_is_as_foreign_code_has_it(one: str, other: str) -> None:
    assert (canonical(one) == canonical(other)) == recompute.same_answer(one, other)

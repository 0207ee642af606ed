r"""Answers as expressions: judged as their steps are, whatever their spelling; and in <answer> or \boxed within a text."""

import random
import re
import time
from collections.abc import Callable

import pytest
import recompute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.countdown.expression import MAX_DIGITS, MAX_NESTING, MAX_OPERANDS, Equation, Operation, parse, said
from envs.countdown.verify import MAX_ANSWER, canonical, verify

PATIENT = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
Tree = int | tuple[str, "Tree", "Tree"]  # type: ignore[misc]

OPERATORS = {"+": ["+"], "-": ["-", "−"], "*": ["*", "×", "·", r"\times ", r"\cdot "], "/": ["/", "÷", r"\div "]}
TREES: st.SearchStrategy[Tree] = st.recursive(
    st.integers(0, 20),
    lambda inner: st.tuples(st.sampled_from("+-*/"), inner, inner),
    max_leaves=6,
)


def leaves(tree: Tree) -> list[int]:
    return [tree] if isinstance(tree, int) else [*leaves(tree[1]), *leaves(tree[2])]


def rendered(tree: Tree, draw: Callable[[list[str]], str], top: bool = True) -> str:
    """An expression, its operators, spaces and needless parentheses drawn."""
    if isinstance(tree, int):
        return draw([str(tree), f"0{tree}", f"({tree})"])
    op, a, b = tree
    left, right = rendered(a, draw, False), rendered(b, draw, False)
    if op == "/" and draw(["", "frac"]):
        text = rf"\{draw(['', 'd', 't'])}frac{{{left}}}{{{right}}}"
    else:
        space = draw(["", " "])
        text = f"{left}{space}{draw(OPERATORS[op])}{space}{right}"
    return text if top and draw(["", "bare"]) else draw([f"({text})", rf"\left({text}\right)"])


def around(text: str, draw: Callable[[list[str]], str]) -> str:
    """The expression as a model may say it, alone or in a mark within other text."""
    return draw(
        [
            text, f" {text}\n", f"${text}$", f"<answer>{text}</answer>", f"So 2+3 it is: <answer> {text} </answer>.",
            rf"\boxed{{{text}}}", rf"Thus $\boxed{{{text}}}$.", rf"<answer>\boxed{{{text}}}</answer>",
            rf"\[\boxed{{ {text} }}\]",
            f"<answer>1</answer> no, <answer>{text}</answer>", rf"First \boxed{{7}}, then \boxed{{{text}}}",
        ]
    )  # fmt: skip


def evaluated(tree: Tree) -> tuple[int | None, list[str]]:
    """The value and the steps, operands from left to right; None where the rules do not allow an operation."""
    if isinstance(tree, int):
        return tree, []
    op, (a, first), (b, second) = tree[0], evaluated(tree[1]), evaluated(tree[2])
    if a is None or b is None or (op == "-" and a < b) or (op == "/" and (b == 0 or a % b)):
        return None, []
    value = {"+": a + b, "-": a - b, "*": a * b, "/": a // max(b, 1)}[op]
    return value, [*first, *second, f"{a}{op}{b}={value}"]


def swapped(tree: Tree, draw: Callable[[list[str]], str]) -> Tree:
    if isinstance(tree, int):
        return tree
    op, a, b = tree[0], swapped(tree[1], draw), swapped(tree[2], draw)
    return (op, b, a) if op in "+*" and draw(["", "swap"]) else (op, a, b)


def ambiguous(tree: Tree, steps: list[str]) -> bool:
    """Whether a value that a step makes is one of the numbers, or of another step: then it may be taken for that one."""
    results = [int(step.rpartition("=")[2]) for step in steps]
    return len({*results, *leaves(tree)}) < len(results) + len({*leaves(tree)})


@PATIENT
@given(TREES.filter(lambda tree: isinstance(tree, tuple)), st.data())
def test_an_expression_is_judged_and_votes_as_its_steps(tree: Tree, data: st.DataObject) -> None:
    def draw(choices: list[str]) -> str:
        return data.draw(st.sampled_from(choices))

    value, steps = evaluated(tree)
    numbers = data.draw(st.permutations(leaves(tree)))
    text = rendered(tree, draw)
    answer = around(text, draw)
    if value is None:
        verdict = verify(numbers, 1, answer)
        assert not verdict.ok and "not allowed" in verdict.reason
        assert canonical(answer) == canonical(rendered(swapped(tree, draw), draw))
        return
    listed = ", ".join(steps)
    for target in (value, value + 1):
        assert verify(numbers, target, answer) == verify(numbers, target, listed)
        assert verify(numbers, target, around(listed, draw)) == verify(numbers, target, listed)
    assert verify(numbers, value, answer).ok
    assert verify(numbers, value, around(f"{text} = {value}", draw)).ok
    assert "wrong arithmetic" in verify(numbers, value, around(f"{text} = {value + 1}", draw)).reason
    assert "unused" in verify([*numbers, 3], value, answer).reason
    assert not verify(numbers[1:], value, answer).ok
    key = canonical(answer)
    assert key == canonical(f"{text}={value}") == canonical(around(rendered(swapped(tree, draw), draw), draw))
    assert key != canonical(f"{text}={value + 1}")
    if not ambiguous(tree, steps):
        assert key == canonical(around(listed, draw))


RANDOMS = st.randoms(use_true_random=False)
PIECES = [*"0123+-*/()={}$, ", "<answer>", "</answer>", r"\boxed{", r"\frac{", "×", "÷", "−"]
TEXTS = (
    st.builds(lambda tree, rng: around(rendered(tree, rng.choice), rng.choice), TREES, RANDOMS)
    | st.text("0123+-*/()= ,", max_size=14)
    | st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
    | st.text(max_size=20)
)


@settings(PATIENT, max_examples=500)
@given(st.lists(TEXTS, min_size=2, max_size=5), st.lists(st.integers(0, 6), min_size=1, max_size=4), st.integers(0, 12))
def test_equality_is_an_equivalence_that_the_verifier_respects(
    texts: list[str], numbers: list[int], target: int
) -> None:
    keys = [canonical(text) for text in texts]
    assert keys == [canonical(text) for text in texts] and len({*keys}) <= len(keys)
    for text, key in zip(texts, keys):
        verdict = verify(numbers, target, text)
        assert verdict.reason
        for other, same in zip(texts, keys):
            assert (key == same) == recompute.same_answer(text, other)
            if key == same:
                assert verify(numbers, target, other).ok == verdict.ok


@pytest.mark.parametrize(
    "answer",
    [
        "(8-6)*(4+1)", "(8-6)*(4+1) = 10", "(8−6)×(4+1)=10", "(4+1)*(8-6)",
        "<answer>(8-6)*(4+1)</answer>", "<think>try 8+6</think>\n<answer> (8 - 6) * (4 + 1) </answer>",
        "<ANSWER>(8-6)*(4+1)</Answer>",
        "<answer>(8-6)*(4+1)", r"\boxed{(8-6)*(4+1)}", r"The answer is $\boxed{(8-6) \times (4+1) = 10}$.",
        r"\boxed {\left(8-6\right)\cdot\left(4+1\right)}", r"\(\boxed{(8-6)(4+1)}\) or rather \boxed{(8-6)\,\times\,(4+1)}",
        "<answer>8-6=2, 4+1=5, 2×5=10</answer>", r"$$(8-6)\times(4+1)$$", "((8)-((6)))*(1+4)",
    ],
)  # fmt: skip
def test_spellings_of_one_answer(answer: str) -> None:
    assert verify([1, 4, 6, 8], 10, answer).ok
    assert canonical(answer) == canonical("8-6=2, 4+1=5, 2*5=10")
    assert recompute.same_answer(answer, "8-6=2, 4+1=5, 2*5=10")


@pytest.mark.parametrize(
    ("answer", "because"),
    [
        ("The answer is (8-6)*(4+1)", "not a step"),
        ("(8-6)*(4+1) is 10", "not a step"),
        ("<answer>it is (8-6)*(4+1)</answer>", "not a step"),
        ("<answer>(8-6)*(4+1)</answer>, that is <answer>8</answer>", "not a step"),
        (r"\boxed{(8-6)*(4+1)} \boxed{}", "no answer"),
        ("<answer> </answer>", "no answer"),
        ("(8-6)*(4+1) = 10 = 10", "not a step"),
        ("10 = (8-6)*(4+1)", "not a step"),
        ("(8-6)(4+1)", "not a step"),
        ("(8-6)*(4+1", "not a step"),
        ("(8-6)*(4+1))", "not a step"),
        ("-(6-8)*(4+1)", "not a step"),
        ("(8-6)*+(4+1)", "not a step"),
        ("(8-6)**(4+1)", "not a step"),
        ("(8-6)*(4+1)^1", "not a step"),
        ("10", "not a step"),
        ("(8-6)*(4+1), 10", "not a step"),
        (r"\frac{8}6", "not a step"),
        ("(6-8)*(4+1)", "not allowed: '6-8'"),
        ("(8-6)*4/(1*3)", "3 is not at hand"),
        ("8/6*4+1", "not allowed: '8/6'"),
        ("(8-6)*(4+1) = 11", "wrong arithmetic: '2*5=11'"),
        ("(8-6)*5", "5 is not at hand"),
        ("8+6-4", "unused: [1, 10]"),
        ("8+6-(4-1)", "ends at 11, not at 10"),
        ("(8-6)*(4+1)+6", "6 is not at hand"),
        ("<answer>8-6=2, 4+1=5, 2*5=11</answer>", "wrong arithmetic"),
        ("<answer>" + "(" * 3000 + "</answer>", "longer"),
    ],
)
def test_expressions_that_break_a_rule(answer: str, because: str) -> None:
    verdict = verify([1, 4, 6, 8], 10, answer)
    assert not verdict.ok and because in verdict.reason


def test_only_the_part_that_counts_is_bounded() -> None:
    thought = "Let me try 8*6=48 first. " * 10_000
    assert verify([1, 4, 6, 8], 10, f"{thought}<answer>(8-6)*(4+1)</answer>{thought}").ok
    assert "longer" in verify([1, 4, 6, 8], 10, f"<answer>(8-6)*(4+1){' ' * MAX_ANSWER}</answer>").reason


def test_the_bounds_of_the_parser() -> None:
    assert parse("+".join(["1"] * MAX_OPERANDS)) is not None
    assert parse("+".join(["1"] * (MAX_OPERANDS + 1))) is None
    assert parse("(" * MAX_NESTING + "1+1" + ")" * MAX_NESTING) == Equation(Operation("+", 1, 1), None)
    assert parse("(" * (MAX_NESTING + 1) + "1+1" + ")" * (MAX_NESTING + 1)) is None
    assert parse("9" * MAX_DIGITS + "-1") is not None
    assert parse("9" * (MAX_DIGITS + 1) + "-1") is None
    large = "9" * MAX_DIGITS
    assert verify([int(large), int(large)], int(large) ** 2, f"{large}*{large}").reason.startswith("not allowed")


PARTS = [
    "(",
    "1+",
    "1/",
    "(1+",
    r"\frac{",
    r"\frac{1}{",
    r"\boxed{",
    "<answer>",
    "{",
    " ",
    "9",
    "$",
    r"\left",
    r"\(",
    "\\",
    "<",
]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("length", [MAX_ANSWER, 1_000_000])
def test_hostile_texts_take_bounded_time(part: str, length: int) -> None:
    text = part * (length // len(part))
    begun = time.process_time()
    for answer in (text, f"<answer>{text}</answer>", f"<answer>{text[:MAX_ANSWER]}</answer>"):
        assert not verify([1, 2], 3, answer).ok
        assert canonical(answer) == canonical(answer)
    assert time.process_time() - begun < 5


def test_random_damage_never_raises() -> None:
    rng = random.Random(0)
    good = r"So $\boxed{\frac{8-6}{1} \times \left(4+1\right) = 10}$ <answer>(8-6)*(4+1)/1</answer>"
    for _ in range(3000):
        start = rng.randrange(len(good))
        end = start + rng.choice((0, 1, 3, 20))
        answer = (
            good[:start] + rng.choice(("", "{", "}", "(", ")", "\\", "=", "/", "9", "²", "\x00", "\ud800")) + good[end:]
        )
        assert verify([1, 4, 6, 8], 10, answer).reason
        hash(canonical(answer))


def test_what_counts_in_an_answer() -> None:
    assert said(r"a \boxed{1+{2}} b") == "1+{2}"
    assert said("<answer>1</answer> <answer>2") == "2"
    assert re.sub(r"\s", "", said(r"$\left( 1 \right) \div 2$")) == "(1)/2"
    assert said("$5") == "$5" and said("$") == "$"

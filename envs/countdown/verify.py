r"""The rules of Countdown, as a verifier of answers, and when two answers are the same.

Every number is used exactly once; intermediates are non-negative integers (0 is allowed); a-b needs a >= b; a/b needs
b > 0 and an exact quotient; the last value is the target. Answers are model text: they are parsed, never evaluated,
and bounded in length.

An answer is a list of steps, `8-6=2, 4+1=5, 2*5=10`, or one expression, `(8-6)*(4+1)`, with or without `= 10`
(`envs.countdown.expression` has its grammar). Either may stand alone, or in the last `<answer>...</answer>` or
`\boxed{...}` of a longer text. Other text around it, as in `The answer is 2+3`, makes it neither.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from envs.base import Verdict
from envs.countdown.expression import MAX_DIGITS, Equation, Operation, Tree, parse, said

__all__ = ["MAX_ANSWER", "Step", "Verdict", "canonical", "verify"]

MAX_ANSWER = 2_000  # characters that count; six numbers of any sensible size need far fewer
_NUMBER = f"[0-9]{{1,{MAX_DIGITS}}}"
_STEP = re.compile(rf"\s*({_NUMBER})\s*([-+*/])\s*({_NUMBER})\s*=\s*({_NUMBER})\s*", re.ASCII)
_IMPOSSIBLE = -1  # result of a step of an expression that the rules do not allow


class Step(NamedTuple):
    """One step of an answer as it was written, right or wrong: `a op b = result`."""

    a: int
    op: str
    b: int
    result: int

    def __str__(self) -> str:
        return f"{self.a}{self.op}{self.b}" + (f"={self.result}" if self.result != _IMPOSSIBLE else "")


def verify(numbers: Sequence[int], target: int, answer: str | None) -> Verdict:
    """Check an answer such as `"8-6=2, 4+1=5, 2*5=10"` or `"(8-6)*(4+1)"` against the rules above. Never raises."""
    text = "" if answer is None else said(answer)
    if not text.strip():
        return Verdict(False, "no answer")
    if len(text) > MAX_ANSWER:
        return Verdict(False, f"answer is longer than {MAX_ANSWER} characters")
    at_hand = Counter(numbers)
    value: int | None = None
    for part, step in _moves(text):
        if step is None:
            return Verdict(False, f"not a step: {part[:40]!r}")
        a, op, b, result = step
        for operand in (a, b):
            if at_hand[operand] == 0:
                return Verdict(False, f"{operand} is not at hand in {part!r}")
            at_hand[operand] -= 1
        value = _apply(a, op, b)
        if value is None or result == _IMPOSSIBLE:
            return Verdict(False, f"not allowed: {part!r}")
        if value != result:
            return Verdict(False, f"wrong arithmetic: {part!r}")
        at_hand[value] += 1
    left = sorted(at_hand.elements())
    if len(left) != 1:
        return Verdict(False, f"numbers left unused: {left}")
    if value != target:
        return Verdict(False, f"ends at {value}, not at {target}")
    return Verdict(True, "reaches the target")


def _moves(text: str) -> list[tuple[str, Step | None]]:
    """What the text says to do, in order: each part as written and the step that it is, or None."""
    moves = [(part.strip(), _step(part)) for part in text.split(",")]
    if len(moves) > 1 or moves[0][1] is not None or (equation := parse(text)) is None:
        return moves
    value, steps = derivation(equation.tree)
    moves = [(str(step), step) for step in steps]
    if value is not None and equation.claimed not in (None, value):
        moves[-1] = (
            f"{steps[-1].a}{steps[-1].op}{steps[-1].b}={equation.claimed}",
            steps[-1]._replace(result=equation.claimed),
        )
    return moves


class Derived(NamedTuple):
    """The value of an expression, None if the rules do not allow it, and the steps that make it. The last of them is then
    the first that is not allowed."""

    value: int | None
    steps: tuple[Step, ...]


def derivation(tree: Tree) -> Derived:
    """Return an expression as steps. Operands of + and * are ordered by their values and steps, so that expressions that
    differ in this order only have equal steps."""
    if isinstance(tree, int):
        return Derived(tree, ())
    operands = [derivation(tree.a), derivation(tree.b)]
    for operand in operands:
        if operand.value is None:
            return operand
    first, second = sorted(operands) if tree.op in "+*" else operands
    assert first.value is not None and second.value is not None
    value = _apply(first.value, tree.op, second.value)
    if value is not None and value >= 10**MAX_DIGITS:  # no step could say it
        value = None
    step = Step(first.value, tree.op, second.value, _IMPOSSIBLE if value is None else value)
    return Derived(value, (*first.steps, *second.steps, step))


def canonical(answer: str) -> str | tuple[tuple[int, Step], ...]:
    """The key of an answer. Two answers are the same if and only if their keys are equal; the verifier then accepts both
    or neither, whatever the problem.

    Answers are the same derivation if one becomes the other by swapping the operands of + and *, and by swapping
    neighbouring steps that are independent: neither takes as an operand the value that the other results in. Numbers
    count by value, so `02+3=5` is `2+3=5`. The key holds each step with its level, which is one above the highest level of
    the earlier steps that it depends on; levels are all that such swaps leave of the order (Foata normal form).

    An expression counts as the steps that `derivation` gives. So it is the same as any list of its steps, unless it makes
    a value that it also takes from the numbers: there the order of the steps decides which of the two is meant.
    An expression that the rules do not allow, or that claims a wrong value, equals only the same one, up to
    the order of the operands of + and *.

    Text with any part that is no step equals only the same text, up to spaces beside `+ - * / = ,`. So does text that is
    too long for the verifier, to the last space.
    """
    text = said(answer)
    if len(text) > MAX_ANSWER:
        return text
    steps = [_step(part) for part in text.split(",")]
    if len(steps) == 1 and steps[0] is None and (equation := parse(text)) is not None:
        value, derived = derivation(equation.tree)
        if value is None or equation.claimed not in (None, value):
            return _spelt(equation)
        steps = list(derived)
    levels: list[tuple[int, Step]] = []
    for step in steps:
        if step is None:
            return re.sub(r"\s*([-+*/=,])\s*", r"\1", text.strip())
        level = 1 + max((before for before, other in levels if _dependent(step, other)), default=0)
        levels.append((level, _ordered(step)))
    return tuple(sorted(levels))


def _spelt(equation: Equation) -> str:
    """An equation in one spelling, the operands of + and * in order."""
    return _whole(equation.tree) + (f"={equation.claimed}" if equation.claimed is not None else "")


def _whole(tree: Tree) -> str:
    if not isinstance(tree, Operation):
        return str(tree)
    operands = [_whole(tree.a), _whole(tree.b)]
    return f"({tree.op.join(sorted(operands) if tree.op in '+*' else operands)})"


def _step(text: str) -> Step | None:
    match = _STEP.fullmatch(text)
    return None if match is None else Step(int(match[1]), match[2], int(match[3]), int(match[4]))


def _ordered(step: Step) -> Step:
    """The step with the smaller operand first, where their order means nothing."""
    return step._replace(a=step.b, b=step.a) if step.op in "+*" and step.b < step.a else step


def _dependent(x: Step, y: Step) -> bool:
    return x.result in (y.a, y.b) or y.result in (x.a, x.b)


def _apply(a: int, op: str, b: int) -> int | None:
    match op:
        case "+":
            return a + b
        case "-":
            return a - b if a >= b else None
        case "*":
            return a * b
        case _:
            return a // b if b > 0 and a % b == 0 else None

"""The rules of Countdown, as a verifier of answers, and when two answers are the same.

Every number is used exactly once; intermediates are non-negative integers (0 is allowed); a-b needs a >= b; a/b needs
b > 0 and an exact quotient; the last value is the target. Answers are model text: they are parsed, never evaluated,
and bounded in length.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from envs.base import Verdict

__all__ = ["MAX_ANSWER", "Step", "Verdict", "canonical", "verify"]

MAX_ANSWER = 2_000  # characters; six numbers of any sensible size need far fewer
_STEP = re.compile(r"\s*([0-9]{1,24})\s*([-+*/])\s*([0-9]{1,24})\s*=\s*([0-9]{1,24})\s*", re.ASCII)


class Step(NamedTuple):
    """One step of an answer as it was written, right or wrong: `a op b = result`."""

    a: int
    op: str
    b: int
    result: int


def verify(numbers: Sequence[int], target: int, answer: str | None) -> Verdict:
    """Check an answer such as `"8-6=2, 4+1=5, 2*5=10"` against the rules above."""
    if answer is None or not answer.strip():
        return Verdict(False, "no answer")
    if len(answer) > MAX_ANSWER:
        return Verdict(False, f"answer is longer than {MAX_ANSWER} characters")
    at_hand = Counter(numbers)
    value: int | None = None
    for part in answer.split(","):
        step = _step(part)
        if step is None:
            return Verdict(False, f"not a step: {part.strip()[:40]!r}")
        a, op, b, result = step
        for operand in (a, b):
            if at_hand[operand] == 0:
                return Verdict(False, f"{operand} is not at hand in {part.strip()!r}")
            at_hand[operand] -= 1
        value = _apply(a, op, b)
        if value is None:
            return Verdict(False, f"not allowed: {part.strip()!r}")
        if value != result:
            return Verdict(False, f"wrong arithmetic: {part.strip()!r}")
        at_hand[value] += 1
    left = sorted(at_hand.elements())
    if len(left) != 1:
        return Verdict(False, f"numbers left unused: {left}")
    if value != target:
        return Verdict(False, f"ends at {value}, not at {target}")
    return Verdict(True, "reaches the target")


def canonical(answer: str) -> str | tuple[tuple[int, Step], ...]:
    """The key of an answer. Two answers are the same if and only if their keys are equal; the verifier then accepts both
    or neither, whatever the problem.

    Answers are the same derivation if one becomes the other by swapping the operands of + and *, and by swapping
    neighbouring steps that are independent: neither takes as an operand the value that the other results in. Numbers
    count by value, so `02+3=5` is `2+3=5`. The key holds each step with its level, which is one above the highest level of
    the earlier steps that it depends on; levels are all that such swaps leave of the order (Foata normal form).

    Text with any part that is no step equals only the same text, up to spaces beside `+ - * / = ,`. So does text that is
    too long for the verifier, to the last space. No arithmetic is checked or done.
    """
    if len(answer) > MAX_ANSWER:
        return answer
    steps = [_step(part) for part in answer.split(",")]
    levels: list[tuple[int, Step]] = []
    for step in steps:
        if step is None:
            return re.sub(r"\s*([-+*/=,])\s*", r"\1", answer.strip())
        level = 1 + max((before for before, other in levels if _dependent(step, other)), default=0)
        levels.append((level, _ordered(step)))
    return tuple(sorted(levels))


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

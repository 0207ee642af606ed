"""The rules of Countdown, as a verifier of answers.

Every number is used exactly once; intermediates are non-negative integers (0 is allowed); a-b needs a >= b; a/b needs
b > 0 and an exact quotient; the last value is the target. Answers are model text: they are parsed, never evaluated,
and bounded in length.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

MAX_ANSWER = 2_000  # characters; six numbers of any sensible size need far fewer
_STEP = re.compile(r"\s*([0-9]{1,24})\s*([-+*/])\s*([0-9]{1,24})\s*=\s*([0-9]{1,24})\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an answer is right, and if not, the first rule that it breaks."""

    ok: bool
    reason: str


def verify(numbers: Sequence[int], target: int, answer: str | None) -> Verdict:
    """Check an answer such as `"8-6=2, 4+1=5, 2*5=10"` against the rules above."""
    if answer is None or not answer.strip():
        return Verdict(False, "no answer")
    if len(answer) > MAX_ANSWER:
        return Verdict(False, f"answer is longer than {MAX_ANSWER} characters")
    at_hand = Counter(numbers)
    value: int | None = None
    parts = answer.split(",")
    for part in parts:
        match = _STEP.fullmatch(part)
        if match is None:
            return Verdict(False, f"not a step: {part.strip()[:40]!r}")
        a, op, b, result = int(match[1]), match[2], int(match[3]), int(match[4])
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

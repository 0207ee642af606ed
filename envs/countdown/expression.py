r"""Answers as expressions: the text that counts in an answer, and a bounded parser for it. Nothing is evaluated by Python.

    equation    sum, or sum = NUMBER
    sum         product, then + or - and a product, any number of times
    product     operand, then * or / and an operand, any number of times
    operand     NUMBER, (sum) or \frac{sum}{sum}

An operator is always written, and there are no signs: `2(3)`, `-2+5` and `2**3` are no expressions.

Example: `parse("(8-6)*(4+1) = 10")` is
`Equation(Operation("*", Operation("-", 8, 6), Operation("+", 4, 1)), 10)`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_DIGITS = 24  # of a number
MAX_OPERANDS = 32  # numbers in an expression; problems have six at most
MAX_NESTING = 32  # parentheses within parentheses

_MARK = re.compile(r"<answer>|\\boxed\s*\{", re.ASCII | re.IGNORECASE)
_END = re.compile("</answer>", re.ASCII | re.IGNORECASE)
_BRACE = re.compile("[{}]")
_MATHS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))  # what encloses a formula
_SIGNS = str.maketrans({"×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "∕": "/", "−": "-"})
_LATEX = (
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "*"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\\left\s*(?=\()|\\right\s*(?=\))|\\[,;:! ]", re.ASCII), " "),
)
_TOKEN = re.compile(rf"\s*([0-9]{{1,{MAX_DIGITS}}}(?![0-9])|[-+*/=(){{}}]|\\[dt]?frac(?![A-Za-z]))", re.ASCII)


class Operation(NamedTuple):
    """`a op b`."""

    op: str
    a: Tree
    b: Tree


Tree = int | Operation


class Equation(NamedTuple):
    """An expression with the value that the answer claims for it, if it claims one."""

    tree: Operation
    claimed: int | None


def said(answer: str) -> str:
    r"""Return the part of an answer that counts, in ASCII signs.

    That is what follows the last `<answer>` or `\boxed{`, up to its end or that of the text; all of an answer without
    such a mark. Whatever stands around the mark is ignored; what stands inside is not.
    """
    return plain(_marked(answer))


def _marked(answer: str) -> str:
    marks = list(_MARK.finditer(answer))
    if not marks:
        return answer
    mark = marks[-1]
    if mark[0][0] == "<":
        end = _END.search(answer, mark.end())
        return answer[mark.end() : end.start() if end else None]
    depth = 1
    for brace in _BRACE.finditer(answer, mark.end()):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return answer[mark.end() : brace.start()]
    return answer[mark.end() :]


def plain(text: str) -> str:
    r"""Return the text without the `$` or `\(` around it, its operators as `+ - * /`. Other text is left unchanged."""
    bare = text.strip()
    for left, right in _MATHS:
        if bare.startswith(left) and bare.endswith(right) and len(bare) >= len(left) + len(right):
            text = bare = bare[len(left) : -len(right)].strip()
    text = text.translate(_SIGNS)
    for pattern, sign in _LATEX if "\\" in text else ():
        text = pattern.sub(sign, text)
    return text


def parse(text: str) -> Equation | None:
    """Return the equation that the text is; None for anything else, also for one beyond the bounds above. Never raises."""
    tokens = []
    at, end = 0, len(text.rstrip(" \t\n\r\f\v"))
    while at < end:
        token = _TOKEN.match(text, at)
        if token is None:
            return None
        tokens.append(token[1])
        at = token.end()
    try:
        return _Parser(tokens).equation()
    except _NoExpressionError:
        return None


class _NoExpressionError(Exception):
    pass


class _Parser:
    """Recursive descent, one level of recursion for each pair of parentheses."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = [*tokens, ""]  # "": the end
        self._at = 0
        self._operands = 0

    def equation(self) -> Equation:
        tree = self._sum(0)
        claimed = self._number(self._next()) if self._taken("=") else None
        if self._tokens[self._at] or not isinstance(tree, Operation):
            raise _NoExpressionError
        return Equation(tree, claimed)

    def _sum(self, depth: int) -> Tree:
        tree = self._product(depth)
        while self._tokens[self._at] in ("+", "-"):
            tree = Operation(self._next(), tree, self._product(depth))
        return tree

    def _product(self, depth: int) -> Tree:
        tree = self._operand(depth)
        while self._tokens[self._at] in ("*", "/"):
            tree = Operation(self._next(), tree, self._operand(depth))
        return tree

    def _operand(self, depth: int) -> Tree:
        token = self._next()
        if token == "(":
            return self._enclosed(depth, ")")
        if token.startswith("\\"):
            parts = []
            for _ in range(2):
                self._expect("{")
                parts.append(self._enclosed(depth, "}"))
            return Operation("/", *parts)
        self._operands += 1
        if self._operands > MAX_OPERANDS:
            raise _NoExpressionError
        return self._number(token)

    def _enclosed(self, depth: int, end: str) -> Tree:
        if depth == MAX_NESTING:
            raise _NoExpressionError
        tree = self._sum(depth + 1)
        self._expect(end)
        return tree

    def _number(self, token: str) -> int:
        if not token.isdigit():
            raise _NoExpressionError
        return int(token)

    def _next(self) -> str:
        token = self._tokens[self._at]
        self._at += bool(token)
        return token

    def _taken(self, token: str) -> bool:
        found = self._tokens[self._at] == token
        self._at += found
        return found

    def _expect(self, token: str) -> None:
        if not self._taken(token):
            raise _NoExpressionError

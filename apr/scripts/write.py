"""Scripts as strands: what the protocols of control tokens have each thread of a script sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from apr.scripts.script import Answer, Fork, Join, Pieces, Say, Script
from apr.tokens.control import ControlTokens
from apr.tokens.dialect import Dialect


def spell(script: Script, dialect: Dialect) -> list[tuple[int, ...]]:
    """What each strand of `serial` or `spawn_join` samples, stop token included, those of children after the strand that
    spawned them.

    Raises `ValueError` for a script that these grammars cannot express, `DataError` for words that the dialect cannot spell.
    """
    return [dialect.ids(pieces) for pieces in _strands(script, None, dialect.vocabulary.control)]


def _strands(script: Script, result: Pieces | None, control: ControlTokens) -> Iterator[Sequence[str | int]]:
    """The pieces of each strand, control tokens as their ids. `result`: of a child; None for the root."""
    out: list[str | int] = []
    forked: list[Fork] = []
    for piece in script:
        if forked and not isinstance(piece, Fork | Join):
            raise ValueError("spawn_join's parent waits at once: nothing may stand between a fork and its join")
        match piece:
            case Say(pieces):
                out += pieces
            case Fork():
                forked.append(piece)
            case Join(some):
                if some is not None or not forked:
                    raise ValueError("spawn_join waits for all children of a spawn, once: join all of them")
                branches = [branch for fork in forked for branch in fork.branches]
                messages: list[str | int] = []
                for branch in branches:
                    messages += (control.msg, *branch.message)
                yield [*out, control.spawn, *messages, control.spawn_end]
                for branch in branches:
                    yield from _strands(branch.script, branch.result, control)
                out, forked = [], []
            case Answer(pieces):
                result = pieces
    if result is None or forked:
        raise ValueError("a root's script ends with an Answer, and every fork is joined")
    yield [*out, control.join, *result, control.eos]

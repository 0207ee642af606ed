"""Scripts as strands: what a protocol of control tokens has each thread of a script sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from apr.errors import ConfigError
from apr.scripts.script import Answer, Fork, Say, Script
from apr.tokens.control import ControlTokens
from apr.tokens.dialect import Dialect


def spell(script: Script, dialect: Dialect) -> list[tuple[int, ...]]:
    """What each strand samples, stop token included, those of children after the strand that spawned them. Raises
    `ConfigError` for a script that does not end, `DataError` for words that the dialect cannot spell."""
    return [dialect.ids(pieces) for pieces in _strands(script, dialect.vocabulary.control)]


def _strands(script: Script, control: ControlTokens) -> Iterator[Sequence[str | int]]:
    """The pieces of each strand, control tokens as their ids."""
    out: list[str | int] = []
    for piece in script:
        match piece:
            case Say(pieces):
                out += pieces
            case Fork(branches):
                out.append(control.spawn)
                for branch in branches:
                    out += (control.msg, *branch.message)
                yield [*out, control.spawn_end]
                for branch in branches:
                    yield from _strands(branch.script, control)
                out = []
            case Answer(pieces):
                yield [*out, control.join, *pieces, control.eos]
                return
    raise ConfigError("a script does not end with an `Answer`: add one to the script of each thread; it may be empty")

"""Scripts: what each thread of a demonstration says, in no protocol's grammar.

    Say      words of the thread, in pieces that a dialect spells one by one
    Fork     open child threads, and wait for all of them
    Answer   end the thread with this result: the root's is the trace's answer, a child's goes to its parent

Example: sort 4 2 3 1 with two children.

    (
        Say(("split",)),
        Fork((
            Branch(("4", "2"), (Say(("4", ">", "2")), Answer(("2", "4")))),
            Branch(("3", "1"), (Say(("3", ">", "1")), Answer(("1", "3")))),
        )),
        Say(("merge",)),
        Answer(("1", "2", "3", "4")),
    )
"""

from __future__ import annotations

from dataclasses import dataclass

Pieces = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Say:
    """Words that stay in the thread."""

    pieces: Pieces


@dataclass(frozen=True, slots=True)
class Branch:
    """A child thread. `message` is all that a reader with a fresh context needs; `script` ends with the child's result."""

    message: Pieces
    script: Script


@dataclass(frozen=True, slots=True)
class Fork:
    """Children to open, in spawn order."""

    branches: tuple[Branch, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The result that a thread ends with; empty if it found none."""

    pieces: Pieces


Script = tuple[Say | Fork | Answer, ...]

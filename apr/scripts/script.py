"""Scripts: what each thread of a demonstration says, in no protocol's grammar.

    Say      words of the thread
    Fork     open child threads; more words, forks and joins may follow before the thread waits for them
    Join     wait for all open children, or for some, and say what is concluded from them
    Answer   the root's answer, with which its script ends

Example: sort 4 2 3 1 in two children.

    (
        Say(("halve",)),
        Fork((
            Branch(("4", "2"), ("4", "2"), (Say(("4", ">", "2")),), ("2", "4")),
            Branch(("3", "1"), ("3", "1"), (Say(("3", ">", "1")),), ("1", "3")),
        )),
        Join(),
        Say(("merge",)),
        Answer(("1", "2", "3", "4")),
    )

Words stand in pieces, which a speller spells one by one: the same piece is the same tokens wherever it stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Pieces = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Say:
    """Words that stay in the thread."""

    pieces: Pieces


@dataclass(frozen=True, slots=True)
class Branch:
    """A child thread.

    `title`: what siblings and parent may see of it; `message`: all that a reader with a fresh context needs. `script`: what the
    child says, without an `Answer`; `result`: what it reports to its parent, empty if it found nothing.
    """

    title: Pieces
    message: Pieces
    script: Script
    result: Pieces


@dataclass(frozen=True, slots=True)
class Fork:
    """Children to open, in spawn order."""

    branches: tuple[Branch, ...]


@dataclass(frozen=True, slots=True)
class Join:
    """Wait for children. `some`: their numbers, counted from 0 over all forks of the thread; None: all that are open.
    `conclusion`: what the parent says of them, in protocols that ask for it."""

    some: tuple[int, ...] | None = None
    conclusion: Pieces = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the root hands to the verifier; empty if it found nothing."""

    pieces: Pieces


Script = tuple[Say | Fork | Join | Answer, ...]


def faults(script: Script, root: bool = True) -> Iterator[str]:
    """What is wrong with a script in any grammar."""
    opened, waited = 0, set[int]()
    for place, piece in enumerate(script):
        match piece:
            case Fork(branches):
                if not branches:
                    yield "a fork opens no branch"
                for branch in branches:
                    if not branch.message:
                        yield f"branch {opened} has no message"
                    yield from (f"branch {opened}: {fault}" for fault in faults(branch.script, root=False))
                    opened += 1
            case Join(some):
                chosen = set(range(opened)) - waited if some is None else set(some)
                if not chosen:
                    yield "a join waits for no child"
                if some is not None and len(chosen) < len(some):
                    yield "a join waits for a child twice"
                if gone := sorted(chosen & waited) + sorted(chosen - set(range(opened))):
                    yield f"a join waits for child {gone[0]}, which is not open"
                waited |= chosen
            case Answer() if not root:
                yield "a child has an answer: its result says what it reports"
            case Answer() if place != len(script) - 1:
                yield "something follows the answer"
            case _:
                pass
    if root and not (script and isinstance(script[-1], Answer)):
        yield "the root's script does not end with an answer, which may be empty"
    if not root and len(waited) < opened:
        yield "a child ends while children of its own are open"

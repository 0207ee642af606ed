"""What the grammars share: words between tags, the answer that ends a root, and scripts as words and blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from apr.scripts.script import Answer, Branch, Fork, Join, Pieces, Say, Script
from apr.threads.protocol import Continue, Decision, Fail, Finish
from apr.threads.trace import WHOLE, Injected, Origin, Reference, StopReason, Strand, StrandId, Thread
from apr.tokens.speller import Speller

MALFORMED = Fail(StopReason.MALFORMED)
Said = tuple[int, ...]


class Words:
    """What a speller's vocabulary says is a word, and no control token of any grammar."""

    def __init__(self, speller: Speller) -> None:
        self.control = speller.vocabulary.control
        self.reserved = speller.vocabulary.reserved

    def alone(self, ids: Said) -> bool:
        """Whether `ids` are words alone."""
        return self.reserved.isdisjoint(ids)

    def answered(self, said: Said) -> Decision:
        """How a root ends that says words, `<join>`, its answer and EOS."""
        message = self.after(self.control.join, said)
        return MALFORMED if message is None else Finish(message)

    def after(self, tag: int, said: Said) -> Said | None:
        """The words between `tag` and the EOS that ends `said`; None unless it is words, the tag, words and EOS."""
        if said[-1:] != (self.control.eos,) or said.count(tag) != 1:
            return None
        at = said.index(tag)
        return said[at + 1 : -1] if self.alone(said[:at]) and self.alone(said[at + 1 : -1]) else None


class Rooted:
    """How a trace begins, and whose message its answer is."""

    _stop_ids: tuple[int, ...]

    def start(self, prompt: Sequence[int]) -> Continue:
        return Continue((Injected(Origin.PROMPT, tuple(prompt)),), (), 0, self._stop_ids)

    def answer(self, threads: Sequence[Thread]) -> tuple[int, ...] | None:
        return threads[0].message or None


class Tagged(Rooted, ABC):
    """A grammar in tags of its own. Stateless, as protocols are."""

    def __init__(self, speller: Speller) -> None:
        self.speller = speller
        self.control = speller.vocabulary.control
        self.words = Words(speller)

    def write(self, script: Script, speller: Speller) -> list[tuple[int, ...]]:
        return [speller.ids(pieces) for pieces in self._strands(script)]

    @abstractmethod
    def _strands(self, script: Script) -> Iterable[Sequence[str | int]]:
        """The pieces of each strand, control tokens as their ids."""


def first_message(threads: Sequence[Thread]) -> Said | None:
    """The answer where nothing is joined: the first message in spawn order, if the root ended as it should."""
    if threads[0].stop not in WHOLE:
        return None
    return next((thread.message for thread in threads if thread.message), None)


def whole(strand: Strand) -> Reference:
    """All that a strand saw and wrote."""
    return Reference(strand.id, len(strand.ids))


def returned(children: Sequence[Thread], strands: Mapping[StrandId, Strand]) -> list[Strand]:
    """The last strands of the children that ended as they should; no parent sees the others."""
    return [strands[child.strands[-1]] for child in children if child.stop is StopReason.RETURNED]


class Block(NamedTuple):
    """Branches that a thread opens together and waits for, and what it concludes from them."""

    branches: list[Branch]
    conclusion: Pieces


def blocks(script: Script, protocol: str) -> Iterator[Say | Block | Answer]:
    """The script with its forks and joins as blocks. Raises `ValueError` if the thread does not wait for all at once."""
    forked: list[Fork] = []
    for piece in script:
        if forked and not isinstance(piece, Fork | Join):
            raise ValueError(f"{protocol}'s parent waits at once: nothing may stand between a fork and its join")
        match piece:
            case Say() | Answer():
                yield piece
            case Fork():
                forked.append(piece)
            case Join(some, conclusion):
                if some is not None or not forked:
                    raise ValueError(f"{protocol} waits for all children of a fork, once: join all of them")
                yield Block([branch for fork in forked for branch in fork.branches], conclusion)
                forked = []
    if forked:
        raise ValueError(f"every fork of {protocol} is joined")


def words_of(branch: Branch, protocol: str) -> list[str]:
    """What a branch says, in a grammar whose children open no children. Raises `ValueError` for a branch that does."""
    words: list[str] = []
    for piece in branch.script:
        if not isinstance(piece, Say):
            raise ValueError(f"a child of {protocol} opens no children of its own: write its search serially (unfold)")
        words += piece.pieces
    return words


def label(number: int) -> Pieces:
    """How children are numbered."""
    return (str(number), ":")


def outlined(branches: Iterable[Branch], outline: int, outline_end: int) -> list[str | int]:
    """A plan's outlines, as `outlines` reads them."""
    plan: list[str | int] = []
    for number, branch in enumerate(branches, 1):
        plan += (outline, *label(number), *(branch.title or branch.message), outline_end)
    return plan


def outlines(said: Said, tags: Said, speller: Speller, words: Words) -> int:
    """How many outlines the plan has that ends `said`; 0 if it is malformed. `tags`: what opens the block and the plan, and
    what opens and closes an outline. Outlines are numbered from 1, and are not empty."""
    block, plan, outline, outline_end = tags
    start = said.index(block) if block in said else len(said)
    if not words.alone(said[:start]) or said[start : start + 2] != (block, plan):
        return 0
    rest, number = said[start + 2 : -1], 0
    while rest:
        number += 1
        head = (outline, *speller.ids(label(number)))
        end = rest.index(outline_end) if outline_end in rest else 0
        if rest[: len(head)] != head or end <= len(head) or not words.alone(rest[1:end]):
            return 0
        rest = rest[end + 1 :]
    return number

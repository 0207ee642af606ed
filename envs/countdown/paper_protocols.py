"""Spawn and join in the wording of APR's published models (`envs.countdown.paper`; arXiv 2504.15466).

A thread samples its search and ends it with EOS. What the text before EOS ends with says what happens:

    10,10 equal: Goal Reached, then the path, line by line     end, and give the parent the path (the message)
    No solution found.                                         end, and give the parent nothing
    <Calling Sub Searches> ... <End Calling Sub Searches>      open a child for each node named, and wait for all
    anything else                                              malformed

A message is what the published host takes: the text after the second-to-last `Goal Reached`; here only of what this
strand sampled itself, so that a child's goal in the text of a join is never taken for its parent's. A root's message is
the answer.

A child is told its node's name and state and nothing else of the search. The call only names nodes: their states are
looked up in what the parent saw and sampled, in the `Generated Node` lines, first come first served. Visits are not
asked, since the published data names some wrongly. Everything is parsed with bounded patterns, never evaluated. Each
child opens with a BOS of its own, where other protocols have one BOS a trace: the published models were trained so. As in
the published host a `Token Budget` is told to children too, a `Sub Call Budget` is not.

After the join the parent sees its own text up to the call, cut at the last token boundary at or before it (what lies
between is spelt again), and in place of the call the children's verdicts and paths.

Origins: a child's BOS and, in a join, all but the paths are `forced`; the state that a child is told and the paths that
it returns are `message`. A state's lines are the parent's own, except for the list of steps, which is put together.

Published models also learned to write `<Sub Searches>` where they should call, since their trainer trained on join text
too. A strand that does so is cut there, and goes on with `<Calling Sub Searches>` forced. Where a token is found in that
line only, engines stop at it; with other tokenizers such a strand runs to its own end first. A second `<Sub Searches>`
in the same call is malformed, so each costs at most one strand more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from apr.errors import DataError
from apr.scripts.script import Script
from apr.threads.protocol import Await, Continue, Decision, Fail, Finish, Spawn
from apr.threads.trace import Injected, Origin, Reference, StopReason, Strand, StrandId, Thread, closure_ids
from apr.tokens.speller import Speller
from apr.tokens.text import Spelt, TextVocabulary
from envs.countdown.paper import (
    CALL,
    CALL_END,
    FAILURE,
    JOIN,
    JOIN_END,
    NAME,
    NUMBER,
    NUMBERS,
    PATH_LINE,
    STEP,
    PaperSpeller,
    call,
    verdict,
)

NO_SCRIPTS = "the published models' text is written from search logs, not from scripts: take another speller"
MALFORMED = Fail(StopReason.MALFORMED)
_GOAL = "Goal Reached\n"
_EXITS = re.compile(f"(?:Exit Sub Search at level {NUMBER}\n)*")
_JOIN = JOIN.strip()
_NAMED = re.compile(f"> Moving to Node #({NAME})\n")
_TOLD = re.compile(
    rf" ?(?P<budget>Token Budget: {NUMBER} )?(?:Sub Call Budget: {NUMBER} )?Moving to Node #(?P<name>{NAME})\n"
    rf"Current State: {NUMBER}:{NUMBERS}, Operations: \[(?P<steps>(?:'{STEP}'(?:, '{STEP}'){{0,15}})?)\]"
)
_GENERATED = re.compile(f"\nGenerated Node #({NAME}): ({NUMBER}:{NUMBERS}) Operation: ({STEP})(?=\n)")


class PaperSerial:
    """SoS and SoS+ as published: one thread, one strand. The prompt is told without the root's name."""

    name = "serial"
    shares = False
    nests = False

    def __init__(self, speller: PaperSpeller) -> None:
        self._speller = speller
        self._words = speller.words

    def start(self, prompt: Sequence[int]) -> Continue:
        told = self._speller.serial_prompt(prompt)
        return Continue((Injected(Origin.PROMPT, told),), (), 0, (self._words.control.eos,))

    def ended(self, strand: Strand, strands: Mapping[StrandId, Strand]) -> Decision:
        said = _said(self._words, strand)
        return MALFORMED if said is None else _ended(said)

    def joined(self, last: Strand, children: Sequence[Thread], strands: Mapping[StrandId, Strand]) -> Decision:
        raise AssertionError("a serial thread has no children")

    def answer(self, threads: Sequence[Thread]) -> tuple[int, ...] | None:
        return threads[0].message or None

    def write(self, script: Script, speller: Speller) -> list[tuple[int, ...]]:
        raise ValueError(NO_SCRIPTS)


class PaperSpawnJoin:
    """APR as published, except that children may spawn in turn, as deep as the limits allow. Stateless."""

    name = "spawn_join"
    shares = False
    nests = True

    def __init__(self, speller: PaperSpeller) -> None:
        self._words = speller.words
        self._join_ids = _ids_found_only_in_join(self._words)
        self._stop_ids = (self._words.control.eos, *self._join_ids)

    def start(self, prompt: Sequence[int]) -> Continue:
        return Continue((Injected(Origin.PROMPT, tuple(prompt)),), (), 0, self._stop_ids)

    def ended(self, strand: Strand, strands: Mapping[StrandId, Strand]) -> Decision:
        said = _said(self._words, strand, self._join_ids)
        if said is None:
            return MALFORMED
        stopped = strand.sampled[-1] in self._join_ids
        place = _place_of_join(said.text, stopped)
        try:
            if place is not None:
                return self._call_instead(strand, place)
            if said.text.endswith(CALL_END):
                return self._spawn(strand, strands)
        except DataError:  # what a cut leaves of a token may be no text that can be spelt, such as half a character
            return MALFORMED
        return MALFORMED if stopped else _ended(said)

    def joined(self, last: Strand, children: Sequence[Thread], strands: Mapping[StrandId, Strand]) -> Decision:
        called = _called(self._words, last)
        if called is None:
            raise ValueError(f"strand {last.id} called no children")
        text = called.rest + JOIN
        inject: list[Injected] = []
        for number, (child, name) in enumerate(zip(children, called.names)):
            text += verdict(bool(child.message), number, name, _level(last))
            if child.message:
                inject += (self._forced(text), Injected(Origin.MESSAGE, child.message))
                text = ""
        inject.append(self._forced(text + JOIN_END))
        return self._continue(last, called.kept, tuple(inject))

    def answer(self, threads: Sequence[Thread]) -> tuple[int, ...] | None:
        return threads[0].message or None

    def write(self, script: Script, speller: Speller) -> list[tuple[int, ...]]:
        raise ValueError(NO_SCRIPTS)

    def _spawn(self, strand: Strand, strands: Mapping[StrandId, Strand]) -> Decision:
        called = _called(self._words, strand)
        if called is None:
            return MALFORMED
        self._forced(called.rest + JOIN)  # which the join will need: refused here if it cannot be spelt
        seen = self._words.without_bos(closure_ids(strands, strand.sees) + strand.ids)
        told = _children(self._words.text(seen), called.names)
        return MALFORMED if told is None else Spawn(tuple(self._child(text) for text in told), then=Await())

    def _call_instead(self, strand: Strand, place: int) -> Decision:
        """Go on with a call in place of the join that was sampled at `place`, unless a call is open there already."""
        whole = Spelt(self._words, strand.ids)
        place += len(self._words.text(strand.injected_ids))
        if CALL in whole.text[:place]:
            return MALFORMED
        kept, rest = whole.before(place)
        return self._continue(strand, kept, (self._forced(rest + CALL),))

    def _continue(self, last: Strand, kept: int, inject: tuple[Injected, ...]) -> Continue:
        return Continue(inject, (Reference(last.id, kept),), last.position + kept, self._stop_ids)

    def _forced(self, text: str) -> Injected:
        return Injected(Origin.FORCED, self._words.continued(text))

    def _child(self, told: str) -> Continue:
        ids = self._words.opened(told)
        message = tuple(self._words.without_bos(ids))
        bos = ids[: len(ids) - len(message)]
        return Continue((Injected(Origin.FORCED, bos), Injected(Origin.MESSAGE, message)), (), 0, self._stop_ids)


class _Call(NamedTuple):
    """A call at the end of a strand: the nodes that it names, how many of the strand's tokens end at or before it, and
    the text between these and the call."""

    names: list[str]
    kept: int
    rest: str


def _called(words: TextVocabulary, strand: Strand) -> _Call | None:
    """The call that the strand's text ends with; None if that is no call. It may have been forced, so it is looked for
    in what was injected too."""
    whole = Spelt(words, strand.ids[:-1])
    start = whole.text.rfind(CALL)
    names = _NAMED.findall(whole.text, max(start, 0))
    if start < 0 or not names or whole.text[start:] != call(names, _level(strand)):
        return None
    return _Call(names, *whole.before(start))


def _level(strand: Strand) -> int:
    """How many threads a child of this strand's thread has above it."""
    return strand.id.thread.count(".") + 1


def _said(words: TextVocabulary, strand: Strand, also: Sequence[int] = ()) -> Spelt | None:
    """What a strand sampled before EOS (before one of `also`: with it); None if a control token is in between, or the
    end is another."""
    if strand.sampled[-1:] == (words.control.eos,):
        sampled = strand.sampled[:-1]
    elif strand.sampled and strand.sampled[-1] in also:
        sampled = strand.sampled
    else:
        return None
    c = words.control
    reserved = {c.pad, c.bos, c.eos, c.spawn, c.msg, c.spawn_end, c.join, c.ret}
    return None if reserved.intersection(sampled) else Spelt(words, sampled)


def _ended(said: Spelt) -> Decision:
    """How a thread that calls no children ends."""
    last = said.text.rfind(_GOAL)
    if last < 0:
        return Finish(()) if said.text.endswith(FAILURE) else MALFORMED
    claim = said.text.rfind(_GOAL, 0, last)
    start, end = claim + len(_GOAL), last + len(_GOAL)
    path = said.text[start:end].splitlines(keepends=True)
    if claim < 0 or len(path) < 2 or not all(map(PATH_LINE.fullmatch, path)) or not _EXITS.fullmatch(said.text, end):
        return MALFORMED
    return Finish(said.between(start, end))


def _place_of_join(text: str, cut: bool) -> int | None:
    """Where `text` opens a join of its own; `cut`: it ends with a token of that line, but perhaps not with the line."""
    place = 0 if text.startswith(_JOIN) else text.find(f"\n{_JOIN}") + 1
    if text.startswith(_JOIN, place):
        return place
    start = text.rfind("\n") + 1
    return start if cut and start < len(text) and JOIN.startswith(text[start:]) else None


def _children(context: str, names: Sequence[str]) -> list[str] | None:
    """What children at the nodes `names` are told, by the text of all that their parent saw and sampled. None if a node
    is not among those generated there, or its steps do not lead back to the node that the parent started from."""
    told = _TOLD.match(context)
    if told is None:
        return None
    generated: dict[str, tuple[str, str]] = {}
    for name, numbers, step in _GENERATED.findall(context):
        generated.setdefault(name, (numbers, step))
    texts = []
    for name in names:
        steps: list[str] = []
        ancestor = name
        while ancestor in generated and ancestor != told["name"]:
            steps.append(f"'{generated[ancestor][1]}'")
            ancestor = ancestor.rpartition(",")[0]
        if ancestor != told["name"] or not steps:
            return None
        path = ", ".join(filter(None, [told["steps"], *reversed(steps)]))
        state = f"Current State: {generated[name][0]}, Operations: [{path}]"
        texts.append(f"{told['budget'] or ''}Moving to Node #{name}\n{state}")
    return texts


def _ids_found_only_in_join(words: TextVocabulary) -> tuple[int, ...]:
    """The first token of `<Sub Searches>` that no other line contains; none if there is no such token."""
    elsewhere = words.opened(
        "Moving to Node #0\nCurrent State: 10:[1, 2], Operations: []\n"
        "Exploring Operation: 1+2=3, Resulting Numbers: [3]\n3,10 unequal: No Solution\n10,10 equal: Goal Reached\n"
        "Generated Node #0,1: 10:[7, 2] Operation: 3+4=7\nMoving to Node #0,1\n"
        f"Current State: 10:[7, 2], Operations: ['3+4=7', '5-2=3']\n{FAILURE}{call(['0,0', '0,1'], 1)}"
        "Start Sub Search at level 1: Moving to Node #0,0\nExit Sub Search at level 1\nNo solution found in sub search\n"
    )
    ids = words.continued(f"\n{JOIN}")
    return tuple(i for i in ids if i not in elsewhere and words.text((i,)) in JOIN)[:1]

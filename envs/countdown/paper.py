"""The paper speller of Countdown: the Stream-of-Search wording of APR's published data and models (arXiv 2504.15466).

    root      Moving to Node #0                                                 told (in `serial` without this line)
              Current State: 10:[4, 1, 8, 6], Operations: []                    told, but for the line's end
    listing   Exploring Operation: 4+1=5, Resulting Numbers: [8, 6, 5]          `Promising` and `Queued` alike
              Generated Node #0,0: 10:[8, 6, 5] Operation: 4+1=5
    visit     Moving to Node #0,0                                               `Visited`
              Current State: 10:[8, 6, 5], Operations: ['4+1=5']
    test      Exploring Operation: 5*2=10, Resulting Numbers: [10]              `Tested`
              10,10 equal: Goal Reached                                         or: 7,10 unequal: No Solution
    path      Moving to Node #0 ... 10,10 equal: Goal Reached                   after a goal: its path alone, line by line
    failure   No solution found.
    spawn     <Calling Sub Searches>                                            `Spawned`
              <Start Sub Search 0 at level 1> Moving to Node #0,0
              <End Calling Sub Searches>
    join      <Sub Searches>                                                    injected (see `envs.countdown.paper_protocols`)
              <No Solution in Sub Search 0 at level 1 at Node #0,0>             or <Goal Reached in ...> and the path
              <End Sub Searches>
    condition `Sub Call Budget: 6 ` or `Token Budget: 2048 `                    in front of the root's first line

A promising node that its own thread visits (SoS+) stands in `Start Sub Search at level 1: Moving to Node #0,0` and
`Exit Sub Search at level 1`. Each strand ends with EOS. A name is the parent's with the node's number among the nodes
that were listed below it, tests not counted. Numbers are what is left, in order, then the result.

What a search log does not tell, and this text therefore lacks:

* The order of the problem's numbers: they are listed in ascending order, where published problems list them as drawn.
* Which of two equal numbers a step takes: the first in the list.
* How many nodes were taken from the queue at a time: published searches take as many as their beam is wide, ours one,
  so the order of visits differs; and siblings stand in the order of the log (`SearchOptions.order`).

Right here where the published code is wrong: every visit is announced by its own node's name.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from apr.errors import ConfigError
from apr.threads.protocol import ThreadProtocol
from apr.tokens.speller import Told, condition_of
from apr.tokens.text import PhraseVocabulary, TextVocabulary
from apr.tokens.vocabulary import Vocabulary
from envs.countdown.log import Node, Promising, Queued, SearchLog, Spawned, Step, Tested, Visited

CALL, CALL_END = "<Calling Sub Searches>\n", "<End Calling Sub Searches>\n"
JOIN, JOIN_END = "<Sub Searches>\n", "<End Sub Searches>\n"
FAILURE = "No solution found.\n"
ROOT_NAME = "0"
# Phrases end where strands are cut: at the ends of lines, and at the end of a told state. So a trace's ids are those of
# its whole text.
PHRASES = (
    "Moving to Node #", "Current State: ", ":[", "], Operations: []", "], Operations: ['", "', '", "']",
    "Exploring Operation: ", ", Resulting Numbers: [", "]\n", "Generated Node #", ": ", "] Operation: ", ", ",
    " unequal: No Solution\n", " equal: Goal Reached\n", FAILURE, CALL, CALL_END, "<Start Sub Search ", " at level ",
    "> Moving to Node #", JOIN, JOIN_END, "<No Solution in Sub Search ", "<Goal Reached in Sub Search ", " at Node #",
    ">\n", "Start Sub Search at level ", ": Moving to Node #", "Exit Sub Search at level ",
    "No solution found in sub search\n", "Sub Call Budget: ", "Token Budget: ",
)  # fmt: skip
CONDITIONS = {"children": "Sub Call Budget", "context": "Token Budget"}

# Model text is parsed with these, and bounded by them: numbers in digits, names in levels, lists in entries.
NUMBER = "[0-9]{1,24}"
STEP = f"{NUMBER}[-+*/]{NUMBER}={NUMBER}"
NAME = "[0-9]{1,4}(?:,[0-9]{1,4}){0,15}"
NUMBERS = rf"\[{NUMBER}(?:, {NUMBER}){{0,15}}\]"
STEPS = rf"\[(?:'{STEP}'(?:, '{STEP}'){{0,15}})?\]"
MOVING_LINE = f"Moving to Node #{NAME}\n"
STATE = f"Current State: {NUMBER}:{NUMBERS}, Operations: {STEPS}"
EXPLORING_LINE = rf"Exploring Operation: ({STEP}), Resulting Numbers: {NUMBERS}\n"  # group: the step
GENERATED_LINE = rf"Generated Node #{NAME}: {NUMBER}:{NUMBERS} Operation: {STEP}\n"
GOAL = f"{NUMBER},{NUMBER} equal: Goal Reached"
PATH_LINE = re.compile(f"(?:{MOVING_LINE}|{STATE}\n|{EXPLORING_LINE}|{GENERATED_LINE}|{GOAL}\n)")
_NAME_LINE = re.compile(f"Moving to Node #{ROOT_NAME}\n")


def state(target: int, numbers: Iterable[int], path: Iterable[Step]) -> str:
    """A `Current State` line, without its end."""
    steps = ", ".join(f"'{step}'" for step in path)
    return f"Current State: {target}:[{', '.join(map(str, numbers))}], Operations: [{steps}]"


def call(names: Sequence[str], level: int) -> str:
    """The block that opens child threads, one for each of the nodes `names`."""
    starts = (f"<Start Sub Search {i} at level {level}> Moving to Node #{name}\n" for i, name in enumerate(names))
    return f"{CALL}{''.join(starts)}{CALL_END}"


def verdict(solved: bool, number: int, name: str, level: int) -> str:
    """What a parent is told of its child `number`, which searched from the node `name`."""
    kind = "Goal Reached" if solved else "No Solution"
    return f"<{kind} in Sub Search {number} at level {level} at Node #{name}>\n"


class PaperSpeller:
    """Token ids for problems, search logs and answers in the published wording.

    `vocabulary`: how the text is spelt; by default in tokens of whole phrases and single digits.
    """

    name = "paper"
    about = (
        "Search, calls and results are written in the words of APR's published data; `envs/countdown/paper.py` and\n"
        "`envs/countdown/paper_protocols.py` of this project describe them."
    )

    def __init__(self, vocabulary: TextVocabulary | None = None) -> None:
        self.words = vocabulary or PhraseVocabulary(self.name, PHRASES, "0123456789+-*/=#")
        self.vocabulary: Vocabulary = self.words

    def prompt(self, env: Told, problem: dict[str, Any]) -> tuple[int, ...]:
        """BOS, the condition if there is one, the root's name, target and numbers (in ascending order)."""
        numbers, target, condition = problem["numbers"], problem["target"], condition_of(problem)
        asked = "" if condition is None else f"{CONDITIONS[condition.kind]}: {condition.value} "
        return self.words.opened(f"{asked}Moving to Node #{ROOT_NAME}\n{state(target, sorted(numbers), ())}")

    def serial_prompt(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """`prompt` without the root's name, as published for serial search; unchanged if it names none."""
        text = self.words.text(self.words.without_bos(prompt))
        named = _NAME_LINE.search(text)
        if named is None:
            return tuple(prompt)
        return self.words.opened((text[: named.start()] + text[named.end() :]).removeprefix(" "))

    def spell(self, log: SearchLog) -> list[tuple[int, ...]]:
        """Each strand's sampled tokens, EOS included, those of children after the strand that spawned them.

        Raises `ValueError` for a log that no search makes: one that visits a node it never listed, or that has a step
        with numbers that are not at hand.
        """
        eos = self.words.control.eos
        return [(*self.words.continued(text), eos) for text in texts(log)]

    def protocol(self, name: str) -> ThreadProtocol:
        """The protocol `name` in the published wording. Raises `ConfigError` if there is none."""
        from envs.countdown.paper_protocols import PaperSerial, PaperSpawnJoin

        if name not in (PaperSerial.name, PaperSpawnJoin.name):
            raise ConfigError(
                f"the published wording has no protocol {name}: set protocol={PaperSerial.name} or {PaperSpawnJoin.name}, or "
                "take another speller"
            )
        return PaperSerial(self) if name == PaperSerial.name else PaperSpawnJoin(self)

    def ids(self, pieces: Iterable[str | int]) -> tuple[int, ...]:
        return tuple(
            token for piece in pieces for token in (self.words.continued(piece) if isinstance(piece, str) else (piece,))
        )

    def answer(self, ids: Iterable[int]) -> str:
        """A path as the verifier reads it: `"8-6=2, 4+1=5, 2*5=10"`. A line that belongs to no path stays as it is."""
        parts = []
        for line in self.words.text(ids).removesuffix("\n").split("\n"):
            known = PATH_LINE.fullmatch(line + "\n")
            if known is None:
                parts.append(line.strip())
            elif known[1]:
                parts.append(known[1])
        return ", ".join(parts)


def texts(log: SearchLog) -> list[str]:
    """What each strand of the search samples, EOS left out, in depth-first spawn order. Raises `ValueError` as
    `PaperSpeller.spell` does."""
    return list(_Spelling(log).thread(log, ROOT_NAME, 0))


Waiting = dict[tuple[Step, ...], deque[str]]


@dataclass
class _SubSearch:
    """A search from one node within a thread: names of nodes listed and not yet visited, by their paths.

    Two nodes may have equal paths (equal numbers, the same step): they are visited in the order of their listing.
    """

    promising: Waiting = field(default_factory=dict)
    queued: Waiting = field(default_factory=dict)


class _Spelling:
    """Spells the strands of one trace."""

    def __init__(self, log: SearchLog) -> None:
        self.target = log.target
        self.lists = {log.start.path: list(log.start.numbers)}  # numbers in published order, by path
        self.names: dict[tuple[Step, ...], str] = {}  # of nodes visited, by path

    def thread(self, log: SearchLog, name: str, level: int) -> Iterator[str]:
        """The texts of one thread's strands, children's included. `level` counts the threads above it."""
        self.names[log.start.path] = name
        node, listed, out, searches = log.start, 0, ["\n"], [_SubSearch()]
        for event in log.events:
            match event:
                case Visited(node):
                    name = self._visit(node, level, searches, out)
                    listed = 0
                case Promising(child) | Queued(child):
                    out.append(self._explored(child.path))
                    child_name = f"{name},{listed}"
                    out.append(f"Generated Node #{child_name}: {self._generated(child.path)}\n")
                    waiting = searches[-1].promising if isinstance(event, Promising) else searches[-1].queued
                    waiting.setdefault(child.path, deque()).append(child_name)
                    listed += 1
                case Tested(step, goal):
                    out.append(self._explored((*node.path, step)))
                    equal = "equal: Goal Reached" if step.result == goal else "unequal: No Solution"
                    out.append(f"{step.result},{goal} {equal}\n")
                case Spawned(children):
                    names = [_take(searches[-1].promising, child.start) for child in children]
                    yield "".join([*out, call(names, level + 1)])
                    for child_log, child_name in zip(children, names):
                        yield from self.thread(child_log, child_name, level + 1)
                    out = []
        out += self._ending(log, level, searches)
        yield "".join(out)

    def _visit(self, node: Node, level: int, searches: list[_SubSearch], out: list[str]) -> str:
        """Go on at `node`: in a new search within this thread, in the current one, or back in an earlier one."""
        while not searches[-1].promising and not searches[-1].queued and len(searches) > 1:
            searches.pop()
            out.append(_failed_sub_search(level + len(searches)))
        if searches[-1].promising:
            name = _take(searches[-1].promising, node)
            searches.append(_SubSearch())
            out.append(f"Start Sub Search at level {level + len(searches) - 1}: ")
        else:
            name = _take(searches[-1].queued, node)
        out.append(f"Moving to Node #{name}\n{self._state(node.path)}\n")
        self.names[node.path] = name
        return name

    def _ending(self, log: SearchLog, level: int, searches: list[_SubSearch]) -> Iterator[str]:
        inner = range(len(searches) - 1, 0, -1)  # searches within this thread that are still open, innermost first
        if log.solution is None:
            yield from (_failed_sub_search(level + i) for i in inner)
            yield FAILURE
            return
        if log.events and isinstance(log.events[-1], Spawned):
            yield f"{self.target},{self.target} equal: Goal Reached\n"  # said again by the thread whose child found it
        yield from self._path(log.start, log.solution)
        yield from (f"Exit Sub Search at level {level + i}\n" for i in inner)

    def _path(self, start: Node, solution: tuple[Step, ...]) -> Iterator[str]:
        """The way from `start` to the goal, without what was tried beside it."""
        for length in range(len(start.path), len(solution)):
            path = solution[:length]
            name = self.names.get(path)
            if name is None:
                raise ValueError(f"the solution passes a node that the search never visited: {path}")
            if length > len(start.path):
                yield f"Generated Node #{name}: {self._generated(path)}\n"
            yield f"Moving to Node #{name}\n{self._state(path)}\n"
            yield self._explored(solution[: length + 1])
        yield f"{self.target},{self.target} equal: Goal Reached\n"

    def _numbers(self, path: tuple[Step, ...]) -> list[int]:
        """What is left after the steps of `path`, then the last result."""
        if path not in self.lists:
            if not path:
                raise ValueError("a node is not below the start of its search")
            numbers, step = list(self._numbers(path[:-1])), path[-1]
            for taken in (step.a, step.b):
                if taken not in numbers:
                    raise ValueError(f"step {step} takes {taken}, which is not at hand: {numbers}")
                numbers.remove(taken)
            self.lists[path] = [*numbers, step.result]
        return self.lists[path]

    def _state(self, path: tuple[Step, ...]) -> str:
        return state(self.target, self._numbers(path), path)

    def _generated(self, path: tuple[Step, ...]) -> str:
        return f"{self.target}:{self._numbers(path)} Operation: {path[-1]}"

    def _explored(self, path: tuple[Step, ...]) -> str:
        return f"Exploring Operation: {path[-1]}, Resulting Numbers: {self._numbers(path)}\n"


def _take(waiting: Waiting, node: Node) -> str:
    """The name of `node`, which leaves `waiting`."""
    names = waiting.get(node.path)
    if not names:
        raise ValueError(f"the search goes to a node that it did not list, or not yet: {node}")
    name = names.popleft()
    if not names:
        del waiting[node.path]
    return name


def _failed_sub_search(level: int) -> str:
    return f"{FAILURE}Exit Sub Search at level {level}\nNo solution found in sub search\n"

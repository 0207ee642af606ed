"""APR's published data (arXiv 2504.15466) as traces of the paper speller, and back.

A file is a JSON list. Its rows are one of

    {"target": 10, "nums": [...], "search_path": "...", "trace_dict": {...}, ...}     spawn and join
    {"target": 10, "nums": [...], "search_path": "...", ...}                          serial search (SoS, SoS+)
    "Moving to Node #0\\nCurrent State: 10:[...], Operations: []"                      a prompt (the RL data)
    "Current State: 10:[...], Operations: []\\nExploring ..."                          a serial search alone

A `trace_dict` is a thread: `main_calls` holds its text after each call of the model, so each entry repeats what the
thread saw; `sub_calls[i]` holds the threads that `main_calls[i]` called. A search path is the last of a thread's main
calls. All text is without BOS and EOS.

What else published rows hold (ratings, solver settings, token counts) is not read, and not written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from apr.errors import DataError
from apr.scripts.demonstration import demonstration
from apr.threads.trace import EngineStop, Strand, StrandId, Thread, Trace, closure_ids
from envs.countdown.paper import (
    CALL,
    CONDITIONS,
    FAILURE,
    JOIN,
    JOIN_END,
    NAME,
    NUMBER,
    NUMBERS,
    ROOT_NAME,
    STATE,
    STEP,
    PaperSpeller,
)
from envs.countdown.paper_protocols import PaperSerial, PaperSpawnJoin
from envs.countdown.problems import problem_of
from envs.countdown.rows import check_bounds, problem_from
from envs.countdown.verify import verify

MAX_DEPTH = 16  # of nested calls
_TOLD = re.compile(rf"(?:({'|'.join(CONDITIONS.values())}): ([0-9]{{1,9}}) )?(?:Moving to Node #{NAME}\n)?{STATE}")
_NUMBERS = re.compile(f"Current State: ({NUMBER}):({NUMBERS})")
_GOAL = "Goal Reached\n"
_KINDS = {prefix: kind for kind, prefix in CONDITIONS.items()}

Row = dict[str, Any]


def problem_in(text: str) -> tuple[dict[str, Any], str]:
    """The problem that `text` opens with, as plain data (numbers ascending), and the text that tells it, which ends with
    the list of steps. Raises `DataError` if it opens with none, or with one that no command takes."""
    told = _TOLD.match(text)
    if told is None:
        raise DataError(f"it does not open with a problem in the published wording: {text[:80]!r}")
    stated = _NUMBERS.search(told[0])
    assert stated is not None  # part of what matched
    problem = problem_of([int(n) for n in stated[2][1:-1].split(", ")], int(stated[1]))
    check_bounds(problem["numbers"], problem["target"])
    if told[1] is not None:
        problem["condition"] = {"kind": _KINDS[told[1]], "value": int(told[2])}
    return problem, told[0]


def problem_of_row(row: Any) -> dict[str, Any]:
    """The problem of a row whose search cannot be read: that of its text and of its fields, which must not differ. Raises
    `DataError` if it has neither."""
    if isinstance(row, str):
        return problem_in(row)[0]
    if not isinstance(row, dict):
        raise DataError(f"a row is an object or a text, not {type(row).__name__}")
    if not isinstance(row.get("search_path"), str):
        return problem_from(row)
    problem = problem_in(row["search_path"])[0]
    _check_stated(row, problem)
    return problem


def is_prompt(row: Any) -> bool:
    """Whether a row is a prompt, and no more."""
    return isinstance(row, str) and _TOLD.fullmatch(row) is not None


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the model: all text before the end (`text`), of which the first `told` characters were its prompt,
    and of these the first `kept` were its thread's own text before."""

    text: str
    told: int
    kept: int


def calls(row: Any) -> list[Call]:
    """The calls of a row, in depth-first spawn order. Raises `DataError` for anything else than described above."""
    if isinstance(row, str):
        row = {"search_path": row}
    if not isinstance(row, dict):
        raise DataError(f"a row is an object or a text, not {type(row).__name__}")
    if "trace_dict" in row:
        return list(_thread(row["trace_dict"], 0))
    if not isinstance(row.get("search_path"), str):
        raise DataError(
            "it has neither a trace_dict nor a search_path (`--env countdown` reads rows that are problems alone)"
        )
    return [Call(row["search_path"], len(problem_in(row["search_path"])[1]), 0)]


def _thread(thread: Any, depth: int) -> Iterator[Call]:
    main, sub = (thread.get("main_calls"), thread.get("sub_calls", [])) if isinstance(thread, dict) else (None, None)
    if not isinstance(main, list) or not main or not all(isinstance(text, str) for text in main):
        raise DataError("a trace_dict has a list of texts as main_calls")
    if not isinstance(sub, list) or len(sub) != len(main) - 1 or not all(isinstance(called, list) for called in sub):
        raise DataError(f"a trace_dict with {len(main)} main_calls needs a list of {len(main) - 1} lists as sub_calls")
    if depth > MAX_DEPTH:
        raise DataError(f"its calls nest deeper than {MAX_DEPTH} levels")
    yield Call(main[0], len(problem_in(main[0])[1]), 0)
    for (before, after), children in zip(pairwise(main), sub):
        for child in children:
            yield from _thread(child, depth + 1)
        kept = before.rfind(CALL)
        end = after.find(JOIN_END, kept)
        if kept < 0 or end < 0 or not after.startswith(before[:kept] + JOIN):
            raise DataError("a main call does not go on where its sub searches were called")
        yield Call(after, end + len(JOIN_END), kept)


def from_row(row: Any, speller: PaperSpeller) -> Trace:
    """The trace of a row. Raises `DataError`, saying why, for one that the protocol would lay out in another way: it
    looks up itself what children are told, and what is joined."""
    made = calls(row)
    text = made[0].text
    problem, told = problem_in(text)
    _check_stated(row, problem)
    name = PaperSpawnJoin.name if isinstance(row, dict) and "trace_dict" in row else PaperSerial.name
    words = speller.words
    eos = words.control.eos
    sampled = [(*words.continued(call.text[call.told :]), eos) for call in made]
    last = made[-1]
    solved = _GOAL in last.text[last.told :]
    try:
        trace = demonstration(words.opened(told), sampled, speller.protocol(name), problem, solved, speller.answer)
    except ValueError as error:
        raise DataError(
            _unfinished(last.text[last.told :]) or f"its calls do not follow the protocol: {error}"
        ) from error
    strands = trace.by_id()
    for strand, call in zip(trace.strands, made):
        if (found := _text(strand, strands, speller)) != call.text:
            raise DataError(f"thread {strand.id.thread} was told {call.text[: call.told]!r}, but the text of the "
                            f"thread that called it, or was called, says {found[: call.told]!r}")  # fmt: skip
    right = verify(problem["numbers"], problem["target"], trace.answer)
    if right.ok != solved:
        raise DataError(f"it claims to reach the goal, but its path does not: {right.reason}")
    return trace


def _unfinished(said: str) -> str | None:
    """What a search lacks at its end, if it is whole otherwise, as those of Stream of Search's own generator are."""
    goals = said.count(_GOAL)
    if goals == 1 and said.endswith(_GOAL):
        return "its search ends where it reaches the goal, but a trace says the path to it again, line by line, as its answer"
    if not goals and not said.endswith(FAILURE):
        return f"its search reaches no goal, but does not end with the line {FAILURE.strip()!r}, as a trace does"
    return None


def _check_stated(row: Any, problem: dict[str, Any]) -> None:
    if not isinstance(row, dict):
        return
    stated = {name: row[name] for name in ("target", "nums") if name in row}
    said = {"target": problem["target"], "nums": problem["numbers"]}
    if isinstance(stated.get("nums"), list):
        stated["nums"] = sorted(stated["nums"], key=str)
        said["nums"] = sorted(problem["numbers"], key=str)
    if stated != {name: said[name] for name in stated}:
        raise DataError(f"its fields say {stated}, but its text is about {said}")


def to_row(trace: Trace, speller: PaperSpeller) -> Row:
    """A row of the published format. Raises `DataError` for a trace that it cannot hold: one that a limit cut, one that
    goes on after a join that it wrote itself, or one in another speller."""
    for strand in trace.strands:
        if strand.stop is not EngineStop.STOP or strand.sampled[-1:] != (speller.words.control.eos,):
            raise DataError(f"strand {strand.id} does not end with EOS (limits cut it, or its speller is another)")
    strands = trace.by_id()
    path = _text(strands[trace.root.strands[-1]], strands, speller)
    problem, told = problem_in(path)
    stated = _NUMBERS.search(told)
    assert stated is not None  # else there were no problem
    numbers = [int(n) for n in stated[2][1:-1].split(", ")]
    row: Row = {"target": problem["target"], "nums": numbers, "start_size": len(numbers), "search_path": path}
    if trace.protocol != PaperSerial.name:
        row["trace_dict"] = _trace_dict(trace, trace.root, strands, speller)
    return row


def _trace_dict(trace: Trace, thread: Thread, strands: dict[StrandId, Strand], speller: PaperSpeller) -> Row:
    main = [_text(strands[id], strands, speller) for id in thread.strands]
    sub: list[list[Row]] = []
    for id in thread.strands[:-1]:
        called = [t for t in trace.threads if t.parent == thread.id and t.strands and id in strands[t.strands[0]].after]
        if not called:
            raise DataError(f"strand {id} goes on without a call, which the published format cannot say")
        sub.append([_trace_dict(trace, child, strands, speller) for child in called])
    return {"main_calls": main, "sub_calls": sub}


def _text(strand: Strand, strands: dict[StrandId, Strand], speller: PaperSpeller) -> str:
    """All that a strand saw and sampled, without BOS and EOS."""
    ids = closure_ids(strands, strand.sees) + strand.ids
    return speller.words.text(speller.words.without_bos(ids)[:-1]).removeprefix(" ")


# Known damage, named as in the notes on the published code: D1, D6 and D7.


@dataclass(frozen=True, slots=True)
class Damage:
    """What the bugs of the published code did to one row, in characters but for `misnamed`.

    `misnamed` (D1): visits whose `Moving to Node` line is missing, or names another node than the state that follows.
    `repeated` (D6): text that main calls repeat from the ones before, with the published trainer's loss on all of it.
    `joined` (D7): join text, on which it has loss too. Traces have loss on neither.
    """

    misnamed: int
    repeated: int
    joined: int
    characters: int


def damage(row: Any) -> Damage:
    """What is damaged in a row. Raises `DataError` for what is no row."""
    made = calls(row)
    return Damage(
        misnamed=sum(misnamed(call.text, call.kept) for call in made),
        repeated=sum(call.kept for call in made),
        joined=sum(call.told - call.kept for call in made if call.kept),
        characters=sum(len(call.text) for call in made),
    )


_GENERATED = re.compile(f"Generated Node #({NAME}): ({NUMBER}:{NUMBERS}) Operation: ({STEP})")
_MOVING = re.compile(f"(?:Start Sub Search at level {NUMBER}: )?Moving to Node #({NAME})")
_STATE = re.compile(rf"Current State: ({NUMBER}:{NUMBERS}), Operations: \[(.*)\]")


def misnamed(text: str, start: int = 0) -> int:
    """How many visits after the first, beginning at or after the character `start`, have no `Moving to Node` line of
    their own node right before them; and how many such lines have no visit."""
    known: dict[str, tuple[str, str]] = {}  # numbers and steps by name
    moved: str | None = None
    faults = place = 0
    first = True
    for line in text.split("\n"):
        counts = place >= start
        place += len(line) + 1
        if (visit := _STATE.search(line)) is not None:
            if first:
                known[moved or ROOT_NAME] = (visit[1], visit[2])
            elif moved is None or known.get(moved) != (visit[1], visit[2]):
                faults += counts
            first, moved = False, None
            continue
        if moved is not None:
            faults += counts
            moved = None
        if line.startswith("<"):
            continue
        if (moving := _MOVING.search(line)) is not None:
            moved = moving[1]
        elif (node := _GENERATED.fullmatch(line)) is not None:
            steps = known.get(node[1].rpartition(",")[0], ("", ""))[1]
            known[node[1]] = (node[2], f"{steps}, '{node[3]}'".removeprefix(", "))
    return faults

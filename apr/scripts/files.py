"""Files of scripts: JSON lines, schema `apr.script/1`, one problem and one script per line. People can write them.

    {"schema": "apr.script/1",
     "problem": {"id": "4-2-3-1", "digits": [4, 2, 3, 1]},
     "script": [{"say": ["halve"]},
                {"fork": [{"message": ["sort", "4", "2", ":"], "result": ["2", "4"]},
                          {"message": ["sort", "3", "1", ":"], "result": ["1", "3"]}]},
                {"join": "all"},
                {"say": ["merge"]},
                {"answer": ["1", "2", "3", "4"]}]}

Words are a list of pieces, or one text, which is one piece. A branch has `message`, and may have `title` (as the message, if
it is not given), `script` and `result`. A join waits for `"all"` or for a list of children, and may have a `conclusion`.
Lines are data: unknown keys, other types, and scripts deeper than `MAX_DEPTH` are refused, by file and line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from apr.errors import DataError, SchemaError
from apr.scripts.script import Answer, Branch, Fork, Join, Pieces, Say, Script, faults

SCHEMA = "apr.script/1"
MAX_LINE = 1 << 24  # characters
MAX_DEPTH = 32  # of children within children


class Scripted(NamedTuple):
    """A problem, what to say of it, and the line that says so, from 1."""

    line: int
    problem: dict[str, Any]
    script: Script


def read_scripts(path: Path) -> Iterator[Scripted]:
    """The scripts of a file. Raises `DataError` that names file and line for what is none, `SchemaError` for another schema."""
    if not path.is_file():
        raise DataError(f"no file {path}: check the path")
    with path.open(encoding="utf-8-sig") as file:
        number = 0
        while line := _line(file, path, number + 1):
            number += 1
            if not line.strip():
                continue
            try:
                yield Scripted(number, *_scripted(json.loads(line)))
            except SchemaError as error:
                raise SchemaError(f"{path}, line {number}: {error}") from None
            except (ValueError, TypeError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: {error}: correct the line, or leave it out") from None


def to_json(problem: Mapping[str, Any], script: Script) -> dict[str, Any]:
    """One line of a file, as plain data."""
    return {"schema": SCHEMA, "problem": dict(problem), "script": [_piece_to_json(piece) for piece in script]}


def _line(file: TextIO, path: Path, number: int) -> str:
    try:
        text = file.readline(MAX_LINE + 1)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, at or after line {number}: it is not UTF-8 ({error}): save the file as UTF-8"
        ) from None
    if len(text) > MAX_LINE:
        raise DataError(f"{path}, line {number}: longer than {MAX_LINE:,} characters: no script takes so many")
    return text


def _scripted(data: Any) -> tuple[dict[str, Any], Script]:
    fields = _fields(data, "a line", {"schema", "problem", "script"})
    if fields.get("schema") != SCHEMA:
        raise SchemaError(f"its schema is {fields.get('schema')!r}, and this version reads {SCHEMA!r}")
    problem = fields.get("problem")
    if not isinstance(problem, dict):
        raise ValueError("`problem` is an object with the environment's fields")
    script = _script(fields.get("script"), 0)
    if fault := next(faults(script), None):
        raise ValueError(fault)
    return problem, script


def _script(data: Any, depth: int) -> Script:
    if not isinstance(data, list):
        raise ValueError("`script` is a list of say, fork, join and answer")
    if depth > MAX_DEPTH:
        raise ValueError(f"children within children, deeper than {MAX_DEPTH}")
    return tuple(_piece(piece, depth) for piece in data)


def _piece(data: Any, depth: int) -> Say | Fork | Join | Answer:
    fields = _fields(data, "a piece", {"say", "fork", "join", "answer", "conclusion"})
    match sorted(fields):
        case ["say"]:
            return Say(_words(fields["say"], "say"))
        case ["answer"]:
            return Answer(_words(fields["answer"], "answer"))
        case ["fork"] if isinstance(fields["fork"], list):
            return Fork(tuple(_branch(branch, depth) for branch in fields["fork"]))
        case ["join"] | ["conclusion", "join"]:
            return Join(_some(fields["join"]), _words(fields.get("conclusion", []), "conclusion"))
        case keys:
            raise ValueError(
                f"a piece is one of say, fork (a list), join (with conclusion) and answer, not {', '.join(keys)}"
            )


def _branch(data: Any, depth: int) -> Branch:
    fields = _fields(data, "a branch", {"title", "message", "script", "result"})
    message = _words(fields.get("message", []), "message")
    title = _words(fields["title"], "title") if "title" in fields else message
    script = _script(fields.get("script", []), depth + 1)
    return Branch(title, message, script, _words(fields.get("result", []), "result"))


def _some(data: Any) -> tuple[int, ...] | None:
    if data == "all":
        return None
    if not isinstance(data, list) or not all(type(number) is int and number >= 0 for number in data):
        raise ValueError('`join` is "all" or a list of children, counted from 0')
    return tuple(data)


def _words(data: Any, key: str) -> Pieces:
    if isinstance(data, str):
        return (data,)
    if not isinstance(data, list) or not all(isinstance(piece, str) for piece in data):
        raise ValueError(f"`{key}` is a text or a list of texts")
    return tuple(data)


def _fields(data: Any, what: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"{what} is an object, not {type(data).__name__}")
    if unknown := sorted(set(data) - known):
        raise ValueError(f"{what} has an unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    return data


def _piece_to_json(piece: Say | Fork | Join | Answer) -> dict[str, Any]:
    match piece:
        case Say(pieces):
            return {"say": list(pieces)}
        case Answer(pieces):
            return {"answer": list(pieces)}
        case Join(some, conclusion):
            join: dict[str, Any] = {"join": "all" if some is None else list(some)}
            return {**join, "conclusion": list(conclusion)} if conclusion else join
        case Fork(branches):
            return {"fork": [_branch_to_json(branch) for branch in branches]}


def _branch_to_json(branch: Branch) -> dict[str, Any]:
    data: dict[str, Any] = {"message": list(branch.message)}
    if branch.title != branch.message:
        data["title"] = list(branch.title)
    if branch.script:
        data["script"] = [_piece_to_json(piece) for piece in branch.script]
    return {**data, "result": list(branch.result)}

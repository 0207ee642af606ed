"""The trace view: a timeline in which a person sees threads start, run side by side and return.

`apr.report.timeline` works out what is drawn; the scripts in `assets/` draw it. A page holds an index of its traces as
JSON, and each trace deflated and on its own, which the script inflates when it is shown. So a page of a thousand traces
opens at once, and it is written as traces come: memory does not grow with their number.

Model text reaches the page as JSON strings and then as text nodes only, so it can never become markup.
"""

from __future__ import annotations

import base64
import html
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import Any

from apr.errors import DataError
from apr.report.timeline import Describe, summary, token_ids, trace_data
from apr.runs import whole_file
from apr.threads.trace import Trace

Text = Callable[[Sequence[int]], str]  # token ids to text, for people
ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("dom.js", "traces.js", "gauges.js", "timeline.js", "strand.js", "viewer.js", "keys.js")
LEVEL = 6  # of deflating
IN_MEMORY = 4 << 20  # bytes of a page that wait in memory to be written; more of them wait in a file
NOTHING = '<p class="note">No traces were sampled for this report.</p>'


@dataclass(frozen=True)
class Source:
    """Traces under one name, as one evaluation or one step of RL has them, and what spells their tokens.

    `traces` may be an iterator: it is gone through once. `text` is asked for one token at a time; if the texts of a
    strand's tokens do not make up the strand's text, they are shown with spaces between them. `describe`: problems on one line.
    """

    label: str
    traces: Iterable[Trace]
    text: Text
    describe: Describe | None = None


def trace_view(sources: Sequence[Source]) -> str:
    """HTML of the view of all traces of `sources`: a section to put into a page made by `page`, once a page.

    With several sources, their traces of one problem can be laid side by side, the k-th of one beside the k-th of the
    other; with several samples of a problem in one source, these can be too.
    """
    with _Packed(None) as packed:
        for source in sources:
            packed.add(source)
        return "".join(packed.pieces()) if packed.count else NOTHING


def write_view(path: Path, title: str, sources: Sequence[Source], notes: Callable[[], Sequence[str]] = list) -> int:
    """Write a page that holds nothing but the view (`apr view`), whole or not at all; returns how many traces it has.

    `notes` is called after all traces were gone through: sentences to put above the view.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _Packed(path.parent) as packed:
        for source in sources:
            packed.add(source)
        said = "".join(f'<p class="warning">{html.escape(note)}</p>\n' for note in notes())
        with whole_file(path) as file:
            file.write(_opening(title, "view").encode())
            file.write(f"<header><h1>{html.escape(title)}</h1>\n{said}</header>\n".encode())
            for piece in packed.pieces():
                file.write(piece.encode())
            file.write(CLOSING.encode())
        return packed.count


def page(title: str, body: str) -> str:
    """A self-contained page. `body` is HTML; whoever makes it escapes what it quotes."""
    return _opening(title, "report") + body + CLOSING


CLOSING = "</main>\n</body>\n</html>\n"


def _opening(title: str, kind: str) -> str:
    style = "".join((ASSETS / name).read_text(encoding="utf-8") for name in ("palette.css", "report.css", "viewer.css"))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f'<body class="{kind}">\n<main>\n'
    )


NO_ID = 1 << 31  # no model has as many outputs; ids below it that no vocabulary has may be sampled, and are shown


@dataclass
class _Spelling:
    """The texts of the tokens that occurred, by id; `joined`: put together they are the text."""

    text: Text
    pieces: dict[int, str]
    joined: bool = True

    def add(self, trace: Trace) -> None:
        """Raises `DataError` for a token that cannot be spelt."""
        for i in token_ids(trace).difference(self.pieces):
            try:
                if not 0 <= i < NO_ID:
                    raise LookupError(i)
                self.pieces[i] = self.text((i,))
            except (LookupError, OverflowError) as error:
                raise DataError(
                    f"a trace of problem {trace.problem.get('id')} has the token {i}, which is not in its run's vocabulary: "
                    "its file was corrupted, or moved here from another run; leave it where it was written"
                ) from error
        self.joined = self.joined and all(
            self.text(strand.ids) == "".join(self.pieces[i] for i in strand.ids) for strand in trace.strands
        )


class _Packed:
    """The view's parts while traces come in: index lines and deflated traces, in files once they are large.

    The files have no names and are in `folder` (None: the system's folder for such), where the page itself has room.
    """

    def __init__(self, folder: Path | None) -> None:
        self.count = 0
        self._labels: list[dict[str, Any]] = []
        self._spellings: list[_Spelling] = []
        self._open = ExitStack()
        self._index, self._blobs = (self._open.enter_context(_waiting(folder)) for _ in range(2))

    def __enter__(self) -> _Packed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def add(self, source: Source) -> None:
        """Go through the traces of `source`, whatever they raise."""
        spelling = next((one for one in self._spellings if one.text == source.text), None)
        if spelling is None:
            spelling = _Spelling(source.text, {})
            self._spellings.append(spelling)
        number = len(self._labels)
        self._labels.append({"label": source.label, "spelling": self._spellings.index(spelling)})
        for trace in source.traces:
            spelling.add(trace)
            line = _json({"source": number, **summary(trace, source.describe)})
            self._index.write(f"{',' if self.count else ''}\n{line}")
            blob = base64.b64encode(zlib.compress(_json(trace_data(trace)).encode(), LEVEL)).decode()
            self._blobs.write(f'<script type="text/plain" id="apr-trace-{self.count}">{blob}</script>\n')
            self.count += 1

    def pieces(self) -> Iterator[str]:
        """The view in the order of the page: the scripts come before the traces, so that the first is drawn at once."""
        yield (ASSETS / "viewer.html").read_text(encoding="utf-8")
        spellings = [{"space": "" if one.joined else " ", "pieces": one.pieces} for one in self._spellings]
        yield '<script type="application/json" id="apr-index">'
        yield f'{{"sources":{_json(self._labels)},"spellings":{_json(spellings)},"traces":['
        yield from _chunks(self._index)
        yield "]}</script>\n<script>\n"
        yield script()
        yield "</script>\n"
        yield from _chunks(self._blobs)


def script() -> str:
    """All scripts of the view as one, with no name of theirs visible to the rest of the page."""
    return (
        '"use strict";\n(() => {\n'
        + "".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
        + "})();\n"
    )


def _json(data: Any) -> str:
    """`data` as JSON in ASCII that may stand inside a script element."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _waiting(folder: Path | None) -> SpooledTemporaryFile[str]:
    where = None if folder is None else str(folder)
    return SpooledTemporaryFile(IN_MEMORY, "w+", encoding="ascii", newline="\n", dir=where)


def _chunks(file: SpooledTemporaryFile[str]) -> Iterator[str]:
    file.seek(0)
    while chunk := file.read(1 << 16):
        yield chunk

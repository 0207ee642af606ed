"""Progress of long loops: a bar on a terminal, a line now and then otherwise."""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from types import TracebackType

LINE_EVERY = 10.0  # seconds
BAR_FROM = 64  # columns; narrower terminals have the line alone


class Progress:
    """`with Progress("what", total) as p: p.advance()`; prints rate and time left to standard error."""

    def __init__(self, what: str, total: int) -> None:
        self.what = what
        self.total = total
        self.done = 0
        self.started = self.printed = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def advance(self, by: int = 1, note: str = "") -> None:
        self.done += by
        now = time.monotonic()
        if now - self.printed >= (0.2 if self.terminal else LINE_EVERY):
            self.printed = now
            self._print(note)

    def _print(self, note: str) -> None:
        seconds = time.monotonic() - self.started
        rate = self.done / seconds if seconds else 0.0
        left = f"{time_left((self.total - self.done) / rate)} left" if rate else ""
        line = f"{self.what}: {self.done}/{self.total} | {rate:,.1f}/s | {left} {note}".rstrip()
        if self.terminal:
            columns = terminal_columns()
            bar = "#" * int(20 * self.done / max(1, self.total))
            line = f"[{bar:<20}] {line}" if columns >= BAR_FROM else line
            print(f"\r{cut(line, columns - 1)}\x1b[K", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self._print(f"({time.monotonic() - self.started:.1f}s)")
        if self.terminal:
            print(file=sys.stderr)


def terminal_columns() -> int:
    """Width of the terminal that standard error is, as it is now; 80 if it does not say."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def cut(line: str, columns: int) -> str:
    """The head of `line` that takes at most `columns` in a terminal, where some characters take two and others none."""
    kept, width = "", 0
    for letter in line:
        shown = letter if letter.isprintable() else "?"
        width += 0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF")
        if width > columns:
            break
        kept += shown
    return kept


def time_left(seconds: float) -> str:
    """A duration as `1h 02m`, `3m 20s` or `45s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    return f"{whole // 60}m {whole % 60:02}s" if whole >= 60 else f"{whole}s"

"""Progress of long loops: a bar on a terminal, a line now and then otherwise."""

from __future__ import annotations

import sys
import time
from types import TracebackType

LINE_EVERY = 10.0  # seconds


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
        left = f"{(self.total - self.done) / rate:.0f}s left" if rate else ""
        line = f"{self.what}: {self.done}/{self.total} | {rate:,.1f}/s | {left} {note}".rstrip()
        if self.terminal:
            bar = "#" * int(20 * self.done / max(1, self.total))
            print(f"\r[{bar:<20}] {line}\x1b[K", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self._print(f"({time.monotonic() - self.started:.1f}s)")
        if self.terminal:
            print(file=sys.stderr)

"""Warnings of other libraries go to the log file of the run that they came up in, and not to the terminal."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


@contextmanager
def warnings_logged(path: Path) -> Iterator[None]:
    """Append Python's warnings, and log records that no library handles itself, to the file `path`; say so once, at the end.

    The file is made at the first of them. What libraries print by themselves, and other processes, stay as they are.
    """
    handler = _Counting(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(logging.WARNING)

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: Any = None,
    ) -> None:
        text = warnings.formatwarning(message, category, filename, lineno, line).strip()
        handler.handle(logging.LogRecord("warnings", logging.WARNING, filename, lineno, text, None, None))

    before, warnings.showwarning = warnings.showwarning, show
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        warnings.showwarning = before
        handler.close()
        if handler.count:
            print(f"{handler.count} warnings of libraries are in {path}", file=sys.stderr)


class _Counting(logging.FileHandler):
    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        super().emit(record)

"""Standard streams that cannot end a run: they may be closed, full, cut off by `head`, or of a poor encoding."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Patient:
    """A text stream that goes quiet where another one raises: once its reader is gone, or its disk is full.

    `failed` is the first error but a lost reader. What the encoding cannot write is written as escapes.
    """

    def __init__(self, stream: TextIO) -> None:
        self.failed: OSError | None = None
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._divert(error)
            return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._divert(error)
            self._stream.flush()

    def _divert(self, error: OSError) -> None:
        """Send this stream and what shares its descriptor to nowhere. Raises `error` if it has no descriptor."""
        if not isinstance(error, BrokenPipeError):
            self.failed = self.failed or error
        try:
            descriptor = self._stream.fileno()
        except OSError:
            raise error from None
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def standard_streams() -> Iterator[None]:
    """Hold standard output and error as `Patient`s, flushed at the end. Exits with status 1 if output was lost to an error.

    A lost reader is no error: `apr ... | head` ends as the command itself does, and a run goes on to its end.
    """
    for descriptor in range(3):  # or the next file that is opened takes the place of a closed stream
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    out, error = (Patient(stream or open(os.devnull, "w", encoding="utf-8")) for stream in before)  # noqa: SIM115, PTH123
    sys.stdout, sys.stderr = out, error  # type: ignore[assignment]
    try:
        yield
    finally:
        out.flush()
        if out.failed:
            error.write(f"apr: failed: cannot write to standard output: {out.failed.strerror}\n")
        error.flush()
        sys.stdout, sys.stderr = before
        if out.failed:
            raise SystemExit(1)

"""Runs of `apr rl` in processes of their own, and what is left of them."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toys import metrics

from apr.presets import dump

ROOT = Path(__file__).parents[2]


def command(config: Any, *more: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
    """`apr rl` on `config`, or with `more` in place of a configuration, called in the folder `cwd`.

    Python puts that folder before all else for `python -m`, and does not for an installed command."""
    program = [sys.executable, "-m", "apr.cli"] if cwd == ROOT else [str(Path(sys.executable).with_name("apr"))]
    given = list(more)
    if not given:
        path = config.out.with_suffix(".yaml")
        path.write_text(dump(config))
        given = ["--config", str(path)]
    return subprocess.Popen(
        [*program, "rl", *given], cwd=cwd, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    """What a run that must succeed wrote to stderr."""
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)


def recorded(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def session_members(leader: int) -> dict[int, str]:
    """The living processes of the session that `leader` started: their commands."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def left_behind(leader: int, seconds: float, but: str = "^$") -> dict[int, str]:
    """The members of a session that are still there `seconds` after its leader ended, without those that match `but`."""
    deadline = time.monotonic() + seconds
    while True:
        left = {pid: said for pid, said in session_members(leader).items() if not re.match(but, said)}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)


def weights(run: Path) -> bytes:
    return (run / "final" / "model.safetensors").read_bytes()


def same_run(a: Path, b: Path) -> bool:
    """Equal weights and metrics; engines that died have had other work."""
    learned = [
        [{name: value for name, value in line.items() if not name.startswith("engine/")} for line in metrics(run)]
        for run in (a, b)
    ]
    return weights(a) == weights(b) and learned[0] == learned[1]

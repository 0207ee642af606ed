"""Commands killed by SIGKILL: what they had started ends as well. Processes are told apart by a mark in their environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from toys import SPAWNING, make_task, rl_config

from apr.config import DataConfig
from apr.data.generate import generate
from apr.presets import check, dump

ROOT = Path(__file__).parents[2]
MARK = "APR_TEST_MARK"


def marked(mark: str) -> dict[int, str]:
    """The command lines of all processes with the mark, by pid. Those that have ended have none."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # another's, or gone meanwhile
            continue
    return found


def wait(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


def kill(
    arguments: list[str], under_way: Callable[[dict[int, str]], bool], seconds: float = 10, but: str = "^$"
) -> None:
    """Start `apr`, kill it when its processes are `under_way`, and see that none is left so much later `but` these."""
    mark = uuid.uuid4().hex
    started = subprocess.Popen(
        [sys.executable, "-m", "apr.cli", *arguments], cwd=ROOT, env={**os.environ, MARK: mark},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        running = wait(lambda: started.poll() is not None or under_way(marked(mark)), 120)
        assert running and started.poll() is None, started.stderr.read() if started.stderr else ""
    finally:
        started.kill()
        started.wait()
    assert wait(lambda: all(re.match(but, line) for line in marked(mark).values()), seconds), marked(mark)


def workers(found: dict[int, str]) -> bool:
    return sum("spawn_main" in line for line in found.values()) >= 2


def test_workers_that_generate_data(tmp_path: Path) -> None:
    kill(["data", "generate", "--config", "tiny_cpu", f"out={tmp_path / 'data'}", "train=6000", "workers=2"], workers)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards enough to be read for a while."""
    out = tmp_path_factory.mktemp("kills") / "data"
    generate(check(DataConfig, {**SPAWNING, "demonstrations_per_problem": 800, "shard_rows": 3, "out": out}, "toy"))
    return out


def test_workers_that_verify_data(data: Path) -> None:
    kill(["data", "verify", str(data)], workers)


def test_workers_that_read_rows_for_sft(data: Path, tmp_path: Path) -> None:
    kill(["sft", f"data={data}", "solver=toy", "threads=2", f"out={tmp_path / 'sft'}"], workers)


def test_the_stage_of_a_quickstart(tmp_path: Path) -> None:
    kill(
        ["quickstart", f"out={tmp_path / 'run'}"],
        lambda found: any("apr.cli" in line for line in found.values()) and len(found) > 1,
    )


def test_actors_of_ray(tmp_path: Path) -> None:
    task = make_task(tmp_path, SPAWNING, steps=110)
    config = rl_config(task, tmp_path / "rl", cluster={"address": "local"}, steps=1000)
    path = tmp_path / "rl.yaml"
    path.write_text(dump(config))
    actors = lambda found: sum("ray::" in line for line in found.values()) >= 2  # noqa: E731
    # Ray ends its processes one after the other, and its agents try for a minute to tell of the driver's end.
    kill(["rl", "--config", str(path)], actors, seconds=60, but="ray::.*Agent")

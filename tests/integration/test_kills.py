"""Commands killed by SIGKILL: what they had started ends as well."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import ROOT, left_behind, session_members, wait_for
from toys import SPAWNING, make_task, rl_config

from apr.config import DataConfig
from apr.data.generate import generate
from apr.presets import check, dump


def kill(
    arguments: list[str], under_way: Callable[[dict[int, str]], bool], seconds: float = 10, but: str = "^$"
) -> None:
    """Start `apr`, kill it when its processes are `under_way`, and see that none is left so much later `but` these."""
    started = subprocess.Popen(
        [sys.executable, "-m", "apr.cli", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(started, lambda: under_way(session_members(started.pid)))
    finally:
        started.kill()
        started.wait()
    assert not left_behind(started.pid, seconds, but)


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

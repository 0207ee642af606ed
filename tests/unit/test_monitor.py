"""Monitors: the file always, others if asked for; once a run has started none of them stops it."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from apr.config import RlConfig
from apr.errors import ConfigError, ResourceError
from rl.loop import record
from rl.monitor import JsonlMonitor, Monitors, open_monitors
from rl.parts import Monitor


class Broken:
    """A service that was there when the run began, and is no more."""

    def __init__(self) -> None:
        self.asked = 0

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.asked += 1
        raise ConnectionError("no route to host")

    def close(self) -> None:
        raise ConnectionError("no route to host")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_monitor_that_fails_is_switched_off_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, kept = Broken(), JsonlMonitor(tmp_path / "metrics.jsonl", 0)
    monitors: list[Monitor] = [broken, kept]
    together = Monitors(monitors)
    for step in range(3):
        together.log(step, {"loss": float(step)})
    together.close()
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [0, 1, 2]
    assert broken.asked == 1
    assert "Broken failed and is switched off: no route to host" in capsys.readouterr().err


def test_one_that_fails_to_close_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = JsonlMonitor(tmp_path / "metrics.jsonl", 0)
    Monitors([Broken(), kept]).close()
    assert kept.file.closed and "failed to close" in capsys.readouterr().err


class FakeWandb(ModuleType):
    """As much of the package as is used."""

    Error = RuntimeError

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0
        self.refuses = False

    def init(self, **settings: Any) -> "FakeWandb":
        if self.refuses:
            raise self.Error("401")
        self.inits.append(settings)
        return self

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.logged.append((step, metrics))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    yield fake


def test_wandb_gets_every_metric_and_a_resumed_run_is_the_same_there(wandb: FakeWandb, tmp_path: Path) -> None:
    config = RlConfig(wandb="spawning", tensorboard=False, out=tmp_path)
    for start in (0, 1):
        monitors = open_monitors(config, tmp_path, start)
        monitors.log(start, {"loss": 1.0})
        monitors.close()
    assert wandb.logged == [(0, {"loss": 1.0}), (1, {"loss": 1.0})] and wandb.finished == 2
    first, second = wandb.inits
    assert first["project"] == "spawning" and first["id"] == second["id"] and first["resume"] == "allow"
    assert first["config"]["group_size"] == config.group_size
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [0, 1]


def test_a_wandb_that_is_not_there_is_said_before_the_run_starts(
    wandb: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RlConfig(wandb="spawning", tensorboard=False, out=tmp_path)
    wandb.refuses = True
    with pytest.raises(ResourceError, match="WANDB_MODE=offline"):
        open_monitors(config, tmp_path, 0)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        open_monitors(config, tmp_path, 0)


@pytest.mark.parametrize(("left", "said"), [(0.0, "0s left"), (754.0, "12m 34s left"), (7260.0, "2h 01m left")])
def test_a_step_ends_with_the_time_left(
    left: float, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(RlConfig(steps=9), tmp_path, 2, [], {"time/step": 1.25}, Monitors([]), left)
    assert capsys.readouterr().out == f"step 3/9 | success 0.000 | s 1.2 | {said}\n"

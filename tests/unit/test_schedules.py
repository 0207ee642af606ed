"""Schedules that cannot end, or in which nothing would be learned, are errors; the others draw what they need and no more."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from apr.config import RlConfig, SftConfig
from apr.errors import ConfigError, DataError
from apr.presets import check
from apr.sft import train as sft
from apr.sft.examples import check_warmup, token_batches
from apr.sft.train import train
from rl.rollouts import problems_of

TRAIN = [{"id": str(i)} for i in range(3)]


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_rows_without_tokens_are_no_schedule(lengths: list[int]) -> None:
    with pytest.raises(DataError, match="no tokens to train on"):
        token_batches(lengths, 64, 1000, 0)


@pytest.mark.parametrize("total", [10**12, 10**15, 10**18])
def test_more_steps_than_a_training_can_have(total: int) -> None:
    with pytest.raises(ConfigError, match=f"tokens={total:,} is .* passes .*: lower tokens"):
        token_batches([10, 20, 30], 64, total, 0)


@pytest.mark.parametrize("total", [1, 59, 60])
def test_fewer_tokens_than_a_batch_are_one_step(total: int) -> None:
    assert len(token_batches([10, 20, 30], 100, total, 0)) == 1


@pytest.mark.parametrize(("warmup", "steps", "fits"), [(50, 1, False), (50, 50, False), (50, 51, True), (0, 1, True)])
def test_a_warmup_has_to_end(warmup: int, steps: int, fits: bool) -> None:
    config = SftConfig(warmup_steps=warmup)
    if fits:
        check_warmup(config, steps)
        return
    with pytest.raises(ConfigError, match=rf"warmup_steps={warmup} .* make {steps}: .*Lower warmup_steps"):
        check_warmup(config, steps)


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"model": {"window": 16}, "overlong": "drop"}, DataError, "holds no row to train on"),
        ({"tokens": 1}, ConfigError, "make 1: it would never reach"),
        ({"tokens": 10**17}, ConfigError, "lower tokens"),
        ({"warmup_steps": 10**6}, ConfigError, "Lower warmup_steps"),
    ],
    ids=str,
)
def test_sft_refuses_them_before_a_model_is_made(
    more: dict[str, Any], error: type[Exception], said: str, easy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sft, "_trainer", None)
    content = {
        "data": easy,
        "solver": "sos_plus",
        "threads": 1,
        "model": {"window": 256},
        "tokens": 50_000,
        "out": tmp_path / "sft",
        **more,
    }
    with pytest.raises(error, match=said):
        train(check(SftConfig, content, "test"))


@pytest.mark.parametrize("snapshots", [[1.0], [0.5, 1.5], [0.0]])
def test_a_snapshot_lies_within_the_training(snapshots: list[float]) -> None:
    with pytest.raises(ConfigError, match="snapshots"):
        check(SftConfig, {"snapshots": snapshots}, "test")


@pytest.mark.parametrize("size", [2, 7, 50])
def test_a_step_may_need_more_problems_than_there_are(size: int) -> None:
    config = RlConfig(problems_per_step=size)
    served = [problem["id"] for step in range(3) for problem in problems_of(config, TRAIN, step)]
    assert len(served) == 3 * size
    assert all(sorted(served[i : i + 3]) == ["0", "1", "2"] for i in range(0, len(served) - 2, 3))


@pytest.mark.parametrize("size", [32, 10**6, 10**9])
def test_redraws_are_drawn_as_they_are_needed(size: int) -> None:
    config = RlConfig(problems_per_step=size, redraws=100)
    assert len(list(islice(problems_of(config, TRAIN, 5), 10))) == 10


@pytest.mark.parametrize("redraws", [101, 10**6, 10**12])
def test_redraws_end(redraws: int) -> None:
    with pytest.raises(ConfigError, match=r"redraws: .* 100"):
        check(RlConfig, {"redraws": redraws}, "test")

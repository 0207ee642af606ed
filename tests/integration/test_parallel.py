"""Ranks that share an update make the step that one rank makes, however they divide the work."""

import asyncio
import math
import multiprocessing
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_learner import sample

from apr.config import LearnerConfig
from rl.learner import Learner
from rl.parallel import Rank
from rl.ranks import _meet

ANY_GAP = (math.inf, math.inf)
STEPS = 3


def batch(step: int) -> list[Any]:
    return [sample(random.Random(100 * step + i)) for i in range(7)]


def config(parallel: str = "plain", **more: Any) -> LearnerConfig:
    # A gradient norm below the clip, and one beyond it, would both hide a wrong scale: the clip is in between.
    return LearnerConfig(threads=1, parallel=parallel, inner_steps=2, minibatches=2, max_grad_norm=0.5, row_tokens=64,
                         tokens_per_pass=64, **more)  # fmt: skip


def trained(learner: Learner, steps: range) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    # The first minibatch is one sample, so that a rank has nothing to do in it.
    parts = {step: [batch(step)[:1], batch(step)[1:]] for step in steps}
    metrics = [asyncio.run(learner.update(parts[step], 1e-3, ANY_GAP)) for step in steps]
    return asyncio.run(learner.weights()), metrics


def one_rank(index: int, count: int, port: int, ways: tuple[str, ...], checkpoint: Path, out: Path) -> None:
    """In each way two steps, a checkpoint, and a third step by a learner that goes on from it."""
    rank = Rank(index, count)
    _meet(rank, f"127.0.0.1:{port}", 60.0)
    for way in ways:
        saved = out / way
        learner = Learner(checkpoint, config(way), 1.0, rank=rank)
        _, metrics = trained(learner, range(STEPS - 1))
        if index == 0:
            saved.mkdir()
        torch.distributed.barrier()
        asyncio.run(learner.save(saved))
        torch.distributed.barrier()
        resumed = Learner(saved, config(way), 1.0, resumed=True, rank=rank)
        weights, last = trained(resumed, range(STEPS - 1, STEPS))
        if index == 0:
            torch.save({"weights": weights, "metrics": metrics + last}, out / f"{way}.pt")
        else:
            assert weights == {}


@pytest.fixture(scope="module")
def alone(make_checkpoint: Callable[[int], Path]) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    return trained(Learner(make_checkpoint(0), config(), 1.0), range(STEPS))


@pytest.mark.slow
def test_ranks_together_make_the_step_of_one(
    make_checkpoint: Callable[[int], Path], alone: Any, tmp_path: Path
) -> None:
    ways = ("plain", "zero1", "zero2", "zero3")
    together(2, ways, make_checkpoint(0), tmp_path)
    for way in ways:
        agree(alone, torch.load(tmp_path / f"{way}.pt"), make_checkpoint(0))


@pytest.mark.slow
def test_three_ranks_share_passes_that_do_not_divide(
    make_checkpoint: Callable[[int], Path], alone: Any, tmp_path: Path
) -> None:
    together(3, ("plain",), make_checkpoint(0), tmp_path)
    agree(alone, torch.load(tmp_path / "plain.pt"), make_checkpoint(0))


def together(count: int, ways: tuple[str, ...], checkpoint: Path, out: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(target=one_rank, args=(index, count, port, ways, checkpoint, out)) for index in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * count


def agree(alone: Any, result: dict[str, Any], checkpoint: Path) -> None:
    weights, metrics = alone
    start = Learner(checkpoint, config(), 1.0).model.state_dict()
    for name, tensor in weights.items():
        difference = (result["weights"][name] - tensor).norm()
        assert difference < 1e-3 * (start[name] - tensor).norm() + 1e-7, name
    for ours, theirs in zip(result["metrics"], metrics, strict=True):
        for name in ("loss/policy", "loss/grad_norm", "loss/tokens", "mismatch/abs_gap_mean"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6), name

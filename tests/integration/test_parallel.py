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
from test_losses import sample

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
    return LearnerConfig(threads=1, parallel=parallel, inner_steps=2, max_grad_norm=0.5, row_tokens=64,
                         tokens_per_pass=64, **more)  # fmt: skip


def trained(learner: Learner, steps: range) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    metrics = [asyncio.run(learner.update(batch(step), 1e-3, ANY_GAP)) for step in steps]
    return asyncio.run(learner.weights()), metrics


def one_rank(index: int, count: int, port: int, parallel: str, checkpoint: Path, out: Path) -> None:
    """Two steps, a checkpoint, and a third step by a learner that goes on from it."""
    rank = Rank(index, count)
    _meet(rank, f"127.0.0.1:{port}", 60.0)
    learner = Learner(checkpoint, config(parallel), 1.0, rank=rank)
    _, metrics = trained(learner, range(STEPS - 1))
    asyncio.run(learner.save(out / "saved"))
    torch.distributed.barrier()
    resumed = Learner(out / "saved", config(parallel), 1.0, resumed=True, rank=rank)
    weights, last = trained(resumed, range(STEPS - 1, STEPS))
    if index == 0:
        torch.save({"weights": weights, "metrics": metrics + last}, out / "result.pt")
    else:
        assert weights == {}


@pytest.fixture(scope="module")
def alone(make_checkpoint: Callable[[int], Path]) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    return trained(Learner(make_checkpoint(0), config(), 1.0), range(STEPS))


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "count"), [("plain", 2), ("plain", 3), ("zero1", 2), ("zero2", 2), ("zero3", 2)])
def test_ranks_together_make_the_step_of_one(
    parallel: str, count: int, make_checkpoint: Callable[[int], Path], alone: Any, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    (tmp_path / "saved").mkdir()
    processes = [
        spawn.Process(target=one_rank, args=(index, count, port, parallel, make_checkpoint(0), tmp_path))
        for index in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * count
    result = torch.load(tmp_path / "result.pt")
    weights, metrics = alone
    start = Learner(make_checkpoint(0), config(), 1.0)
    moved = {name: tensor - weights[name] for name, tensor in start.model.state_dict().items()}
    for name, tensor in weights.items():
        difference = (result["weights"][name] - tensor).norm()
        assert difference < 1e-3 * moved[name].norm() + 1e-7, name
    for ours, theirs in zip(result["metrics"], metrics, strict=True):
        for name in ("loss/policy", "loss/grad_norm", "loss/tokens", "mismatch/abs_gap_mean"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6), name

"""vLLM's own weight transfer between real GPUs. The loop's parity check ends a run whose weights did not arrive whole."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from toys import SPAWNING, make_task, metrics, rl_config

from apr.config import RlConfig
from rl.launch import launch

pytestmark = [pytest.mark.gpu, pytest.mark.ray, pytest.mark.slow]


def needs_gpus(number: int) -> None:
    torch = pytest.importorskip("torch")
    if (found := torch.cuda.device_count()) < number:
        pytest.skip(f"{number} CUDA GPUs are needed, this machine has {found}")


@pytest.fixture(autouse=True)
def ray_gone() -> Iterator[None]:
    import ray

    yield
    ray.shutdown()


def config(tmp_path: Path, weight_sync: str, gpus: float, engines: int = 1, **more: object) -> RlConfig:
    cluster = {
        "address": "local", "engines": engines, "engine_cpus": 1, "learner_cpus": 1, "engine_gpus": gpus,
        "learner_gpus": gpus,
    }  # fmt: skip
    task = make_task(tmp_path, SPAWNING, steps=110)
    return rl_config(
        task, tmp_path / "run", engine={"kind": "vllm", "kv_cache_mib": 64}, cluster=cluster, weight_sync=weight_sync,
        checkpoint_every=2, **more,
    )  # fmt: skip


def check(run: RlConfig) -> None:
    """Every step's fresh tokens had the learner's logprobs, in float32 on both sides."""
    lines = metrics(run.out)
    assert len(lines) == run.steps
    assert all(line["mismatch/abs_gap_mean"] < 1e-4 for line in lines if "mismatch/abs_gap_mean" in line)
    assert any("loss/grad_norm" in line for line in lines)


@pytest.mark.parametrize("on_update", ["finish", "recompute"])
def test_an_engine_reads_the_learners_tensors_on_the_gpu_that_they_share(tmp_path: Path, on_update: str) -> None:
    needs_gpus(1)
    run = config(tmp_path, "ipc", 0.5, on_update=on_update)
    launch(run, resume=False)
    check(run)


@pytest.mark.parametrize("engines", [1, 2])
def test_weights_are_broadcast_to_engines_on_other_gpus(tmp_path: Path, engines: int) -> None:
    needs_gpus(1 + engines)
    run = config(tmp_path, "nccl", 1, engines)
    launch(run, resume=False)
    check(run)


def test_a_resumed_run_meets_its_engines_anew(tmp_path: Path) -> None:
    needs_gpus(2)
    first = config(tmp_path, "nccl", 1)
    launch(first, resume=False)
    more = first.model_copy(update={"steps": first.steps + 2})
    launch(more, resume=True)
    check(more)

"""Runs on Ray whose engines, nodes or driver are killed: they go on, and end as if nothing had happened, bit for bit."""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import command, finish, left_behind, recorded, same_run, session_members, wait_for
from safetensors.torch import load_file
from toys import SPAWNING, make_task, rl_config, undocumented

from apr.config import EvalConfig, RlConfig
from apr.engines.pool import EnginePool
from apr.errors import EngineLostError, ResourceError
from apr.evaluation.folder import TRACES
from apr.evaluation.run import evaluate
from apr.presets import check, dump
from apr.threads.codec import read_traces
from rl import checkpoint
from rl.cluster import _placed
from rl.launch import launch

pytestmark = [pytest.mark.ray, pytest.mark.slow]
LOCAL = {"address": "local", "engines": 2, "engine_cpus": 0.25, "learner_cpus": 0.25, "timeout": 120}
IN_FLIGHT = 60  # the request at which a fault comes: of the first step, with others under way

Fault = Callable[[EnginePool], None]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_task(tmp_path_factory.mktemp("spawning"), SPAWNING, steps=110)


@pytest.fixture(scope="module")
def whole(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process, undisturbed."""
    config = rl_config(task, tmp_path_factory.mktemp("rl") / "whole")
    finish(command(config))
    return config.out


@pytest.fixture(autouse=True)
def ray_gone() -> Iterator[None]:
    import ray

    yield
    ray.shutdown()


def at_request(monkeypatch: pytest.MonkeyPatch, number: int, act: Fault) -> list[float]:
    """Call `act` when so many requests have been made; returns a list that will hold the moment."""
    generate, calls, moments = EnginePool.generate, itertools.count(), []

    async def counted(pool: EnginePool, request: Any) -> Any:
        if next(calls) == number:
            act(pool)
            moments.append(time.monotonic())
        return await generate(pool, request)

    monkeypatch.setattr(EnginePool, "generate", counted)
    return moments


def actor_of(pool: EnginePool, index: int) -> dict[str, Any]:
    """What Ray knows of an engine's actor."""
    from ray._private.state import actors

    found: dict[str, Any] = actors(pool._members[index].engine._actor._actor_id.hex())
    return found


def kill_actor(pool: EnginePool) -> None:
    import ray

    ray.kill(pool._members[0].engine._actor)


def kill_process(pool: EnginePool) -> None:
    os.kill(actor_of(pool, 0)["Pid"], signal.SIGKILL)


def kill_both(pool: EnginePool) -> None:
    for index in range(2):
        os.kill(actor_of(pool, index)["Pid"], signal.SIGKILL)


@pytest.mark.parametrize(
    ("routing", "fault"), [("spread", kill_actor), ("trace", kill_process), ("trace", kill_both)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)  # fmt: skip
def test_a_run_whose_engines_are_killed_is_the_whole_run(
    routing: str, fault: Fault, task: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    moments = at_request(monkeypatch, IN_FLIGHT, fault)
    config = rl_config(task, tmp_path / "run", cluster={**LOCAL, "routing": routing})
    launch(config, resume=False)
    assert moments and same_run(config.out, whole) and undocumented(config.out) == set()
    assert "was lost" in capfd.readouterr().err


def killed_while_it_starts(config: RlConfig, actor: str) -> str:
    """What a run says whose first such actor is killed as soon as it is there: it will load torch for seconds."""
    process = command(config)

    def actors() -> list[int]:
        return [pid for pid, said in session_members(process.pid).items() if said.startswith(f"ray::{actor}")]

    wait_for(process, lambda: bool(actors()))
    os.kill(actors()[0], signal.SIGKILL)
    return finish(process)


def test_a_run_whose_engine_is_killed_while_it_starts_is_the_whole_run(task: Path, whole: Path, tmp_path: Path) -> None:
    config = rl_config(task, tmp_path / "run", cluster={**LOCAL, "restarts": 1})
    said = killed_while_it_starts(config, "EngineActor")
    assert "an engine died while it started" in said and "starting another" in said
    assert same_run(config.out, whole)


def test_a_run_goes_on_when_a_rank_is_killed_while_it_starts(task: Path, whole: Path, tmp_path: Path) -> None:
    config = rl_config(task, tmp_path / "run", cluster={**LOCAL, "ranks": 2, "restarts": 1})
    said = killed_while_it_starts(config, "RankActor")
    assert "a rank of the learner died" in said and "restart 1 of 1" in said
    assert recorded(config.out) == recorded(whole)
    mine, theirs = (load_file(run / "final" / "model.safetensors") for run in (config.out, whole))
    for name, weight in mine.items():  # sums over two ranks round otherwise than those over one
        torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=1e-5)


def test_a_run_that_may_restart_nothing_ends_within_seconds_of_a_kill(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    moments = at_request(monkeypatch, IN_FLIGHT, kill_actor)
    config = rl_config(task, tmp_path, cluster={**LOCAL, "engines": 1, "restarts": 0})
    with pytest.raises(EngineLostError, match="traces lost their engine"):
        launch(config, resume=False)
    assert time.monotonic() - moments[0] < 30
    assert not ray.is_initialized()


def test_a_run_goes_on_when_a_node_is_removed(
    task: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three nodes: the learner fits on the first one only, an engine is on each of the others."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        others = [nodes.add_node(num_cpus=1, resources={}) for _ in range(2)]

        def remove(pool: EnginePool) -> None:
            place = actor_of(pool, 1)["Address"]["NodeID"]
            (node,) = [node for node in others if node.node_id == place]
            nodes.remove_node(node, allow_graceful=False)
            others[others.index(node)] = nodes.add_node(num_cpus=1, wait=False)

        moments = at_request(monkeypatch, IN_FLIGHT, remove)
        cluster = {"address": nodes.address, "engines": 2, "engine_cpus": 1, "learner_cpus": 2, "timeout": 120}
        config = rl_config(task, tmp_path / "run", cluster=cluster)
        launch(config, resume=False)
        assert moments and same_run(config.out, whole)
    finally:
        nodes.shutdown()


def test_a_killed_driver_leaves_no_process_and_its_run_goes_on(task: Path, whole: Path, tmp_path: Path) -> None:
    config = rl_config(task, tmp_path / "run", checkpoint_every=2, cluster=LOCAL)
    process = command(config)
    wait_for(process, lambda: (config.out / "checkpoints" / "step_000002").is_dir())
    assert sum("EngineActor" in said for said in session_members(process.pid).values()) == 2
    process.kill()
    process.communicate()
    # Ray's own agents try for a minute to tell of it.
    assert left_behind(process.pid, seconds=30, but="ray::.*Agent") == {}
    assert recorded(config.out) < 4 and checkpoint.latest(config.out) is not None
    finish(command(None, "--resume", str(config.out)))
    assert same_run(config.out, whole)
    assert left_behind(process.pid, seconds=120) == {}


def test_an_evaluation_on_several_engines_is_that_on_one(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tokens(config: EvalConfig) -> list[list[tuple[int, ...]]]:
        evaluate(config)
        return [[strand.sampled for strand in trace.strands] for trace in read_traces(config.out / TRACES)]

    def config(name: str, **more: Any) -> EvalConfig:
        given = {
            "data": task / "data", "checkpoint": task / "start", "split": "train", "samples": 4, "temperature": 1.0,
            "engine": {"kind": "tiny", "threads": 1}, "limits": {"context": 64, "threads": 8}, "out": tmp_path / name,
        }  # fmt: skip
        return check(EvalConfig, {**given, **more}, "toy")

    alone = tokens(config("alone"))
    moments = at_request(monkeypatch, IN_FLIGHT, kill_process)
    assert tokens(config("pool", cluster={**LOCAL, "routing": "spread"})) == alone
    assert moments


def test_weights_cannot_go_from_gpu_to_gpu_where_there_is_none(task: Path, tmp_path: Path) -> None:
    import ray

    gpus = {**LOCAL, "engine_gpus": 1, "learner_gpus": 1}
    config = rl_config(task, tmp_path, engine={"kind": "vllm"}, cluster=gpus, weight_sync="nccl")
    ray.init("local", num_cpus=2, num_gpus=0, include_dashboard=False, logging_level="warning")
    with pytest.raises(ResourceError, match="this cluster has none: set weight_sync=tensors or file"):
        asyncio.run(_placed(config, task / "start", resumed=False))


def test_a_place_that_is_taken_is_waited_for_then_an_error_says_by_node_what_is_free() -> None:
    import ray

    from apr.engines.placement import bundle, refuse_impossible, reserve

    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="warning")
    with pytest.raises(ResourceError, match=r"one actor needs 1 GPUs|all actors need 1 GPUs, the cluster has 0"):
        refuse_impossible([bundle(1, 1)])
    asyncio.run(reserve([bundle(2, 0)], "PACK", 60, "the learner"))
    said = (
        r"an engine found no place within cluster\.timeout=0\.5 s\. Needed: 1 CPUs, 0 GPUs \(PACK\); free now: \S+ 0 CPUs, "
        r"0 GPUs \(of 2 CPUs, 0 GPUs\)\. .*lower cluster\.engines"
    )
    with pytest.raises(ResourceError, match=said):
        asyncio.run(reserve([bundle(1, 0)], "PACK", 0.5, "an engine"))


def test_actors_import_what_the_driver_imports_wherever_it_is_called(task: Path, whole: Path, tmp_path: Path) -> None:
    """In a folder with packages of the names that ours have, by paths that are relative to it."""
    for name in ("envs", "rl", "solvers", "configs"):
        (tmp_path / name).mkdir()
        for file in ("__init__", "losses", "countdown"):
            (tmp_path / name / f"{file}.py").write_text("raise RuntimeError('a file of the user was run')\n")
    (tmp_path / "task").symlink_to(task)
    config = rl_config(Path("task"), Path("out"), cluster=LOCAL)
    (tmp_path / "rl.yaml").write_text(dump(config))
    finish(command(config, "--config", "rl.yaml", cwd=tmp_path))
    assert same_run(tmp_path / "out", whole)

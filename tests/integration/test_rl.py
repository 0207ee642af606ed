"""RL runs with the tiny engine: exact under interruption, learning what it is rewarded for, and loud when it cannot."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from processes import command, finish, left_behind, recorded, same_run, session_members, wait_for, weights
from toys import SERIAL, SPAWNING, make_task, metrics, rl_config

from apr.cli import main
from apr.engines.tiny import TinyEngine
from apr.errors import (
    CheckpointError,
    ConfigError,
    EngineLostError,
    NoSignalError,
    ParityError,
    ResourceError,
    RunDirectoryError,
)
from apr.runs import run_directory
from apr.threads.codec import read_traces
from rl import checkpoint, loop, rollouts
from rl.launch import launch
from rl.learner import Learner

STEPS = 4


@pytest.fixture(scope="module")
def spawning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_task(tmp_path_factory.mktemp("spawning"), SPAWNING, steps=110)


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_task(tmp_path_factory.mktemp("serial"), SERIAL, steps=80)


@pytest.fixture(scope="module")
def whole(spawning: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `STEPS` steps that nothing interrupted. Ten training problems: its epoch ends within step 3."""
    out = tmp_path_factory.mktemp("rl") / "whole"
    launch(rl_config(spawning, out), resume=False)
    return out


def after_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Call `act` once, when the metrics of `step` steps have been recorded."""
    record = loop.record

    def then(config: Any, folder: Path, at: int, *more: Any) -> None:
        record(config, folder, at, *more)
        if at + 1 == step:
            act()

    monkeypatch.setattr(loop, "record", then)


def test_a_run_trains_on_spawned_threads(whole: Path, spawning: Path) -> None:
    lines = metrics(whole)
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert all(0 < line["reward/success"] < 1 and line["rollout/threads"] > 1.5 for line in lines)
    assert all(line["mismatch/abs_gap_mean"] < 1e-5 and line["loss/tokens"] > 0 for line in lines)
    assert [step for step, line in enumerate(lines) if "eval/accuracy" in line] == [1, 3]
    assert weights(whole) != (spawning / "start" / "model.safetensors").read_bytes()
    card = json.loads((whole / "final" / "apr_card.json").read_text())
    assert card["trained"] == ["sft", "rl"] and card["reward"] == {"budgets": {}}
    assert [(source["stage"], source["split"]) for source in card["trained_on"]] == [("rl", "train")]
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["step_000004"]
    traces = list(read_traces(whole / "traces" / "step_000000.jsonl.gz"))
    assert {span.version for trace in traces for strand in trace.strands for span in strand.versions} == {0}
    traces = list(read_traces(whole / "traces" / "step_000003.jsonl.gz"))
    assert {span.version for trace in traces for strand in trace.strands for span in strand.versions} == {3}
    assert all("total" in trace.reward for trace in traces)


@pytest.mark.parametrize("stop_after", range(1, STEPS))
def test_a_run_stopped_and_resumed_is_the_whole_run_bit_for_bit(
    stop_after: int, whole: Path, spawning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = rl_config(spawning, tmp_path / "run")
    with monkeypatch.context() as patch:
        after_step(patch, stop_after, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            launch(config, resume=False)
    assert checkpoint.latest(config.out) == (checkpoint.folder_of(config.out, stop_after), stop_after)
    assert not (config.out / "final").exists()
    launch(config, resume=True)
    assert same_run(config.out, whole)


def test_a_run_of_several_updates_and_redraws_goes_on_bit_for_bit(
    spawning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = {"lr": 3e-4, "threads": 1, "minibatches": 3, "kl_weight": 0.1}
    changes = {"steps": 2, "redraws": 1, "learner": learner, "validate_problems": 0}
    whole, config = (rl_config(spawning, tmp_path / name, **changes) for name in ("whole", "run"))
    launch(whole, resume=False)
    with monkeypatch.context() as patch:
        after_step(patch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            launch(config, resume=False)
    launch(config, resume=True)
    assert same_run(config.out, whole.out)
    assert all(line["loss/updates"] == 3 and line["rollout/groups"] > 4 for line in metrics(config.out))


def test_a_crash_between_checkpoints_costs_only_the_steps_since(
    whole: Path, spawning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = rl_config(spawning, tmp_path / "run", checkpoint_every=2)

    def crash() -> None:
        raise OSError("the machine went away")

    with monkeypatch.context() as patch:
        after_step(patch, 3, crash)
        with pytest.raises(OSError, match="went away"):
            launch(config, resume=False)
    assert len(metrics(config.out)) == 3
    (config.out / "checkpoints" / ".step_000003.1.tmp").mkdir()  # as a kill while saving leaves it
    launch(config, resume=True)
    assert same_run(config.out, whole)
    assert sorted(path.name for path in (config.out / "checkpoints").iterdir()) == ["step_000002", "step_000004"]


def test_a_run_of_more_problems_a_step_than_there_are(spawning: Path, tmp_path: Path) -> None:
    """Each problem comes several times in a step; its traces have keys, and so seeds, of their own."""
    config = rl_config(
        spawning, tmp_path, steps=1, problems_per_step=24, group_size=2, validate_problems=0, traces_per_step=48
    )
    launch(config, resume=False)
    traces = list(read_traces(tmp_path / "traces" / "step_000000.jsonl.gz"))
    keys = {trace.key(strand) for trace in traces for strand in trace.strands}
    assert len(traces) == 48 and len(keys) == sum(len(trace.strands) for trace in traces)


def test_an_epoch_serves_each_problem_once(spawning: Path) -> None:
    config = rl_config(spawning, Path("unused"), problems_per_step=4)
    train = [{"id": str(i)} for i in range(10)]
    served = [problem["id"] for step in range(5) for problem in rollouts.problems_of(config, train, step)]
    assert sorted(served[:10]) == sorted(served[10:]) == sorted(problem["id"] for problem in train)
    assert served[:10] != served[10:]


def test_more_steps_can_be_asked_of_a_finished_run(whole: Path, spawning: Path, tmp_path: Path) -> None:
    launch(rl_config(spawning, tmp_path / "run", steps=2), resume=False)
    early = weights(tmp_path / "run")
    launch(rl_config(spawning, tmp_path / "run", steps=2), resume=True)  # nothing left to do
    assert weights(tmp_path / "run") == early
    launch(rl_config(spawning, tmp_path / "run"), resume=True)
    assert weights(tmp_path / "run") == weights(whole) != early


def test_a_run_is_not_overwritten_nor_shared(whole: Path, spawning: Path) -> None:
    before = (whole / "config.yaml").read_bytes()
    with pytest.raises(RunDirectoryError, match=f"--resume {whole}"):
        launch(rl_config(spawning, whole, steps=9), resume=False)
    with run_directory(whole, rl_config(spawning, whole)), pytest.raises(RunDirectoryError, match="in use by process"):
        launch(rl_config(spawning, whole, steps=9), resume=True)
    assert (whole / "config.yaml").read_bytes() == before


def test_a_run_goes_on_only_as_it_began(whole: Path, spawning: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    before = metrics(whole)

    def resume(**more: Any) -> None:
        launch(rl_config(spawning, tmp_path / "run", **more), resume=True)

    for more, named in (
        ({"seed": 1}, "seed"), ({"temperature": 0.9, "group_size": 2}, r"group_size \(was 4, is 2\), temperature"),
        ({"reward": {"budgets": {"work": 9}}}, "reward.budgets.work"),
        ({"learner": {"lr": 3e-4, "threads": 1, "inner_steps": 2}}, "learner.inner_steps"),
    ):  # fmt: skip
        with pytest.raises(RunDirectoryError, match=f"differs: {named} \\(was "):
            resume(**more)
    manifest = tmp_path / "run" / "manifest.json"
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**facts, "data_hash": "of other problems"}))
    with pytest.raises(RunDirectoryError, match="differs: data_hash"):
        resume()
    assert metrics(tmp_path / "run") == before
    manifest.write_text(json.dumps(facts))
    resume(in_flight=3, validate_problems=0, checkpoint_every=1, learner={"lr": 1e-4, "threads": 1}, steps=5)
    (line,) = metrics(tmp_path / "run")[STEPS:]
    assert line["loss/lr"] == 1e-4


@pytest.mark.parametrize("learner", [{}, {"kl_weight": 0.1}, {"lora": {"rank": 2}}], ids=str)
def test_a_run_goes_on_where_its_data_and_checkpoint_have_moved(
    learner: dict[str, Any], spawning: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learner = {"lr": 3e-4, "threads": 1, **learner}
    task, stayed, moved = tmp_path / "task", tmp_path / "stayed", tmp_path / "moved"
    shutil.copytree(spawning, task)
    launch(rl_config(task, stayed, steps=1, validate_problems=0, learner=learner), resume=False)
    shutil.copytree(stayed, moved)
    launch(rl_config(task, stayed, steps=2, validate_problems=0, learner=learner), resume=True)
    elsewhere = task.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert main(["rl", "--resume", str(moved), "steps=2"]) == 2
    assert f"{task / 'data'} holds no data set" in (said := capsys.readouterr().err) and "set `data`" in said
    places = [f"data={elsewhere / 'data'}", f"checkpoint={elsewhere / 'start'}"]
    assert main(["rl", "--resume", str(moved), "steps=2", *places]) == 0
    assert same_run(stayed, moved)
    shutil.copytree(stayed / "final", elsewhere / "other")
    assert main(["rl", "--resume", str(moved), "steps=3", places[0], f"checkpoint={elsewhere / 'other'}"]) == 2
    assert "differs: checkpoint_hash" in capsys.readouterr().err


def test_a_run_of_an_earlier_version_goes_on_with_options_that_never_acted(
    whole: Path, spawning: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("clip_high: 0.2\n", "clip_high: 0.28\n"))
    idle = rl_config(spawning, tmp_path / "new", learner={"clip_high": 0.28})
    with pytest.raises(ConfigError, match="cannot act"):
        launch(idle, resume=False)
    assert main(["rl", "--resume", str(run), "steps=5", "--dry-run"]) == 0
    assert main(["rl", "--resume", str(run), "steps=5", "validate_problems=0"]) == 0
    assert len(metrics(run)) == 5


def test_a_checkpoint_that_is_not_here_is_not_taken_for_one(
    spawning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def elsewhere(learner: Learner, folder: Path) -> None:
        """As a learner on another node does, where `folder` is another folder."""

    monkeypatch.setattr(Learner, "save", elsewhere)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not here.*`out` must be .* share"):
        launch(rl_config(spawning, tmp_path, steps=1, validate_problems=0), resume=False)
    assert checkpoint.latest(tmp_path) is None


def test_a_checkpoint_of_another_schema_or_torn_is_refused(spawning: Path, tmp_path: Path) -> None:
    config = rl_config(spawning, tmp_path / "run", steps=1, validate_problems=0)
    launch(config, resume=False)
    folder = checkpoint.folder_of(config.out, 1)
    good = (folder / "state.json").read_text()
    for text, said in (
        (good.replace("apr.trace/1", "apr.trace/9"), "apr.trace/9"), (good[:-5], "corrupt"), ("[]", "corrupt"),
    ):  # fmt: skip
        (folder / "state.json").write_text(text)
        with pytest.raises(CheckpointError, match=said):
            launch(config.model_copy(update={"steps": 2}), resume=True)
    (folder / "state.json").write_text(good)
    (folder / "optimizer" / "rank_0_of_1.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"rank_0_of_1\.safetensors is missing, corrupt"):
        launch(config.model_copy(update={"steps": 2}), resume=True)


def test_a_disk_that_is_full_at_a_checkpoint_stops_the_run_and_the_last_one_is_whole(
    whole: Path, spawning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = rl_config(spawning, tmp_path / "run", checkpoint_every=1)
    write, calls = Path.open, iter(range(99))

    def full(path: Path, mode: str = "r", **more: Any) -> Any:
        if (
            path.name.startswith(".rank_0_of_1.safetensors") and "w" in mode and next(calls) == 2
        ):  # the third checkpoint's
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, mode, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(ResourceError, match=r"no space left to write .*rank_0_of_1\.safetensors"):
            launch(config, resume=False)
    assert checkpoint.latest(config.out) == (checkpoint.folder_of(config.out, 2), 2)
    launch(config, resume=True)
    assert same_run(config.out, whole)


def rises(task: Path, out: Path, shuffle: bool) -> tuple[float, float]:
    """Success at the start and at the end of a run with a span budget that half of the demonstrations exceed."""
    config = rl_config(
        task, out, steps=12, problems_per_step=8, group_size=8, reward={"budgets": {"span_sampled": 20}},
        learner={"lr": 2e-4, "threads": 1}, validate_problems=0, shuffle_advantages=shuffle,
    )  # fmt: skip
    launch(config, resume=False)
    success = [line["reward/success"] for line in metrics(out)]
    return fmean(success[:2]), fmean(success[-4:])


def test_reward_rises(serial: Path, tmp_path: Path) -> None:
    first, last = rises(serial, tmp_path, shuffle=False)
    assert last > first + 0.3, (first, last)


def test_reward_stays_flat_with_the_advantages_shuffled(serial: Path, tmp_path: Path) -> None:
    first, last = rises(serial, tmp_path, shuffle=True)
    assert last < first + 0.15, (first, last)  # noise wanders; it does not reach half of what learning must


def test_a_run_without_signal_ends_with_an_error(spawning: Path, tmp_path: Path) -> None:
    config = rl_config(
        spawning, tmp_path, steps=50, max_silent_steps=3, reward={"budgets": {"span_sampled": 1}}, validate_problems=0
    )
    with pytest.raises(NoSignalError, match="3 steps in a row"):
        launch(config, resume=False)
    assert [line["reward/groups_used"] for line in metrics(tmp_path)] == [0, 0]


def test_other_weights_in_the_engine_are_found_out_before_a_step(
    spawning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine drops the update that brings it to the learner's weights, and says nothing."""
    load = TinyEngine._load

    def wrong(engine: TinyEngine, source: dict[str, Any], version: int) -> None:
        name = "model.layers.0.self_attn.q_proj.weight"
        load(engine, {**source, name: source[name] * 1.05}, version)

    monkeypatch.setattr(TinyEngine, "_load", wrong)
    with pytest.raises(ParityError, match="do not hold the same weights"):
        launch(rl_config(spawning, tmp_path, validate_problems=0), resume=False)
    assert not (tmp_path / "checkpoints").exists()


def test_a_sync_that_does_nothing_is_found_out_once_the_weights_have_changed(
    spawning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TinyEngine, "_load", lambda engine, source, version: None)
    with pytest.raises(ParityError, match="did not arrive"):
        launch(rl_config(spawning, tmp_path, validate_problems=0, learner={"lr": 2e-3, "threads": 1}), resume=False)
    assert len(metrics(tmp_path)) >= 1


def test_a_lost_engine_ends_the_run(spawning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, calls = TinyEngine._forward, iter(range(1_000_000))

    def dying(engine: TinyEngine, ids: Any, cache: Any) -> Any:
        if next(calls) == 200:
            raise RuntimeError("out of memory")
        return forward(engine, ids, cache)

    monkeypatch.setattr(TinyEngine, "_forward", dying)
    with pytest.raises(EngineLostError, match="16 of 16 traces lost"):
        launch(rl_config(spawning, tmp_path), resume=False)
    assert not (tmp_path / "checkpoints").exists()


def test_an_engine_lost_in_validation_ends_the_run(
    spawning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, validate, validating = TinyEngine._forward, loop.validate, []

    def dying(engine: TinyEngine, ids: Any, cache: Any) -> Any:
        if validating:
            raise RuntimeError("out of memory")
        return forward(engine, ids, cache)

    async def noted(*arguments: Any) -> dict[str, float]:
        validating.append(True)
        return await validate(*arguments)

    monkeypatch.setattr(TinyEngine, "_forward", dying)
    monkeypatch.setattr(loop, "validate", noted)
    with pytest.raises(EngineLostError, match="validation at step 1: 2 of 2 traces lost"):
        launch(rl_config(spawning, tmp_path, steps=1, max_lost_share=1.0), resume=False)
    assert not (tmp_path / "final").exists()


# In processes of their own.


@pytest.mark.slow
def test_a_killed_run_goes_on_and_a_terminated_one_ends_cleanly(whole: Path, spawning: Path, tmp_path: Path) -> None:
    config = rl_config(spawning, tmp_path / "run", checkpoint_every=2)
    process = command(config)
    wait_for(process, lambda: recorded(config.out) >= 3 or (config.out / "checkpoints" / "step_000002").is_dir())
    process.kill()
    process.communicate()
    assert not (config.out / "final").exists()

    process = command(None, "--resume", str(config.out), "steps=400", "checkpoint_every=400", "validate_problems=0")
    wait_for(process, lambda: recorded(config.out) >= 3)
    process.terminate()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "SIGTERM: finishing this step" in said and f"apr rl --resume {config.out}" in said
    assert "Traceback" not in said
    assert session_members(process.pid) == {}
    _, reached = checkpoint.latest(config.out) or (None, 0)
    assert reached == recorded(config.out) >= 3


LOCAL = {"address": "local", "engine_cpus": 0.5, "learner_cpus": 0.5, "timeout": 120}


@pytest.fixture
def ray_gone() -> Iterator[None]:
    import ray

    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def alone(spawning: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run as `whole`, in a fresh process: an engine of vLLM that this process has had fixes its torch threads,
    and another number of threads gives other roundings."""
    config = rl_config(spawning, tmp_path_factory.mktemp("rl_alone") / "run")
    finish(command(config))
    return config.out


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("sync", ["tensors", "file"])
def test_a_run_on_ray_is_the_run_in_one_process(sync: str, alone: Path, spawning: Path, tmp_path: Path) -> None:
    config = rl_config(spawning, tmp_path / "run", weight_sync=sync, cluster=LOCAL)
    process = command(config)
    wait_for(process, lambda: recorded(config.out) >= 1)
    during = session_members(process.pid)
    assert any("raylet" in said for said in during.values())
    actors = [pid for pid, said in during.items() if said.startswith("ray::")]
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in actors} == {os.getpriority(os.PRIO_PROCESS, process.pid)}
    finish(process)
    assert same_run(config.out, alone)
    assert left_behind(process.pid, seconds=20) == {}


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_on_ray_whose_whole_process_group_is_terminated_ends_cleanly(spawning: Path, tmp_path: Path) -> None:
    config = rl_config(spawning, tmp_path / "run", steps=400, checkpoint_every=400, validate_problems=0, cluster=LOCAL)
    process = command(config)
    wait_for(process, lambda: recorded(config.out) >= 1)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    _, reached = checkpoint.latest(config.out) or (None, 0)
    assert reached == recorded(config.out) >= 1


@pytest.mark.slow
@pytest.mark.ray
def test_actors_that_cannot_be_placed_are_an_error_that_says_what_is_free(
    spawning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_gone: None
) -> None:
    from apr.errors import ResourceError

    cluster = {"address": "local", "engine_cpus": 0.5, "learner_cpus": 0.5}
    with pytest.raises(
        ResourceError, match=r"all actors need 4096\.5 CPUs, the cluster has \d+: lower cluster\.engines"
    ):
        launch(rl_config(spawning, tmp_path, cluster={**cluster, "learner_cpus": 4096}), resume=False)
    with pytest.raises(ResourceError, match=r"within cluster\.timeout=0\.1 s"):
        launch(rl_config(spawning, tmp_path, cluster={**cluster, "timeout": 0.1}), resume=False)
    nobody = {**cluster, "address": "127.0.0.1:1"}
    with pytest.raises(ResourceError, match=r"no Ray cluster at cluster\.address=127\.0\.0\.1:1 .*refused"):
        launch(rl_config(spawning, tmp_path, cluster=nobody), resume=False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ResourceError, match=r"no Ray cluster at cluster\.address=auto .*refused"):
        launch(rl_config(spawning, tmp_path, cluster={**cluster, "address": "auto"}), resume=False)


@pytest.mark.slow
@pytest.mark.ray
def test_a_learner_that_cannot_be_made_says_why_as_in_one_process(
    whole: Path, spawning: Path, tmp_path: Path, ray_gone: None
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (checkpoint.folder_of(tmp_path / "run", STEPS) / "optimizer" / "rank_0_of_1.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"^\S*rank_0_of_1\.safetensors is missing, corrupt") as caught:
        launch(rl_config(spawning, tmp_path / "run", steps=STEPS + 1, cluster=LOCAL), resume=True)
    assert "Traceback" not in str(caught.value)

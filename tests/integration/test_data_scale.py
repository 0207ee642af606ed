"""Data sets made by several processes: the same whatever their number, however often they were stopped; and opened by
the `datasets` library."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apr.config import DataConfig
from apr.data.card import content_hashes
from apr.data.check import check_folder
from apr.data.generate import generate
from apr.data.store import read_demonstrations, read_problems
from apr.data.workers import in_processes
from apr.errors import DataError, ResourceError
from apr.presets import check, dump
from envs.base import SPLITS
from envs.countdown.env import Countdown

ROOT = Path(__file__).parents[2]
# 25 shards of problems, and as many of each teacher's demonstrations.
MANY = {
    "env": {"name": "countdown", "numbers": 4, "low": 1, "high": 50, "target_low": 10, "target_high": 60, "test_share": 0.2},
    "train": 1000, "validation": 10, "test": 20, "demonstrations_per_problem": 2, "shard_rows": 40,
    "solvers": {
        "sos_plus": {
            "protocol": "serial", "beams": [1, 4], "condition": "context", "rejection": {"tries": 2, "context": 500},
        },
        "spawn_join": {
            "protocol": "spawn_join", "spawn_depth": 1, "beams": [1, 6], "promising": "per_node", "promising_share": 0.9,
            "order": "shuffled",
        },
    },
}  # fmt: skip


def config(out: Path, workers: int) -> DataConfig:
    return check(DataConfig, {**MANY, "workers": workers, "out": out}, "test")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set as one process makes it."""
    out = tmp_path_factory.mktemp("scale") / "alone"
    generate(config(out, 1))
    return out


def same(one: Path, other: Path) -> None:
    assert content_hashes(one, MANY["solvers"]) == content_hashes(other, MANY["solvers"])
    assert (one / "README.md").read_text() == (other / "README.md").read_text()
    files = [{str(path.relative_to(out)) for path in out.rglob("*.parquet")} for out in (one, other)]
    assert files[0] == files[1] and len(files[0]) == 25 + 1 + 1 + 2 * 25


def test_two_workers_make_what_one_makes(alone: Path, tmp_path: Path) -> None:
    generate(config(tmp_path / "two", 2))
    same(tmp_path / "two", alone)
    assert "1000 train, 10 validation, 20 test" in check_folder(tmp_path / "two")


def test_the_datasets_library_opens_every_part(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import get_dataset_config_names, load_dataset

    assert get_dataset_config_names(str(alone)) == ["problems", *MANY["solvers"]]
    problems = load_dataset(str(alone), "problems", cache_dir=str(tmp_path))
    assert {split: problems[split].to_list() for split in SPLITS} == {
        split: read_problems(alone, split) for split in SPLITS
    }
    for solver in MANY["solvers"]:
        opened = load_dataset(str(alone), solver, cache_dir=str(tmp_path))
        assert list(opened) == ["train"]
        traces = list(read_demonstrations(alone, solver))
        assert len(opened["train"]) == len(traces)
        for row, trace in zip(opened["train"], traces):
            assert (row["problem"], row["numbers"]) == (trace.problem["id"], trace.problem["numbers"])
            assert row["tokens"] == [token for strand in trace.strands for token in strand.sampled]
            assert row["condition"] == trace.problem.get("condition", {"value": None})["value"]
            assert trace.costs and row["context"] == trace.costs.context and row["solved"] == trace.correct


def started(out: Path) -> subprocess.Popen[str]:
    """`apr data generate` with two workers, in a process group of its own."""
    file = out.with_suffix(".yaml")
    file.write_text(dump(config(out, 2)))
    return subprocess.Popen(
        [sys.executable, "-m", "apr.cli", "data", "generate", "--config", str(file)],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=_heed_interrupts,
    )  # fmt: skip


def _heed_interrupts() -> None:
    """As from a terminal: a shell's background jobs, such as a test run may be one, ignore SIGINT, and so do theirs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(files: int, out: Path, process: subprocess.Popen[str]) -> None:
    while process.poll() is None and len(list(out.rglob("*.parquet"))) < files:
        time.sleep(0.002)
    assert process.returncode is None, f"it ended before {files} files were there"


def group_ends(group: int) -> None:
    """All processes of the group end, workers and their helpers included."""
    for _ in range(3000):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    os.killpg(group, signal.SIGKILL)
    pytest.fail("processes outlived the command")


@pytest.mark.parametrize("trial", range(3))
def test_a_killed_run_goes_on_to_the_same_data(trial: int, alone: Path, tmp_path: Path) -> None:
    rng = random.Random(trial)
    out = tmp_path / "killed"
    for files in sorted(rng.sample(range(5, 70), 2)):
        process = started(out)
        wait_for(files, out, process)
        time.sleep(rng.random() * 0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    generate(config(out, 1))
    same(out, alone)
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False)])
def test_a_signal_ends_the_run_cleanly(number: int, to_all: bool, alone: Path, tmp_path: Path) -> None:
    """SIGINT from a terminal reaches the workers too; SIGTERM the command alone."""
    out = tmp_path / "stopped"
    process = started(out)
    wait_for(40, out, process)
    (os.killpg if to_all else os.kill)(process.pid, number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "interrupted: call the same command again to go on" in said and "Traceback" not in said
    group_ends(process.pid)
    assert not list(out.rglob("*.tmp")) and not (out / "README.md").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    generate(config(out, 2))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    same(out, alone)


def test_a_signal_while_problems_are_drawn_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, before = Countdown.problems, signal.getsignal(signal.SIGTERM)

    def stopped(self: Countdown, *arguments: Any) -> Iterator[dict[str, Any]]:
        for problem in draw(self, *arguments):
            yield problem
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Countdown, "problems", stopped)
    with pytest.raises(KeyboardInterrupt):
        generate(config(tmp_path / "early", 2))
    assert not (tmp_path / "early").exists()
    assert signal.getsignal(signal.SIGTERM) is before


# The pool itself


def squared(job: int) -> int:
    return job * job


def failing(job: int) -> int:
    if job == 3:
        raise DataError(f"job {job} cannot be done")
    return job


def dying(job: int) -> int:
    if job == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def endless(job: int) -> int:
    if job:
        time.sleep(600)
    return job


@pytest.mark.parametrize("workers", [1, 3])
def test_every_job_is_done_once(workers: int) -> None:
    assert sorted(in_processes(squared, range(10), workers)) == [job * job for job in range(10)]
    assert list(in_processes(squared, [], workers)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_the_error_of_a_job_reaches_the_caller(workers: int) -> None:
    with pytest.raises(DataError, match="job 3 cannot be done"):
        list(in_processes(failing, range(10), workers))


def test_a_worker_killed_by_the_system_is_an_error_that_says_so() -> None:
    with pytest.raises(ResourceError, match="fewer `workers`"):
        list(in_processes(dying, range(10), 2))


def test_workers_end_with_a_caller_that_stops_listening() -> None:
    import multiprocessing

    before = set(multiprocessing.active_children())  # a pool of an earlier test may still be ending
    results: Any = in_processes(endless, range(4), 2)
    assert next(results) == 0
    results.close()
    deadline = time.monotonic() + 20  # they are told to end, and need a moment for it on a busy machine
    while not set(multiprocessing.active_children()) <= before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(multiprocessing.active_children()) <= before

"""How OpenMP's threads wait, and how many there are."""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import apr.processors
import apr.runs
from apr.config import EvalConfig, RlConfig, SftConfig
from apr.processors import MOST, WAITING, busy_cores, threads_that_pay, waiting
from apr.runs import MANIFEST, automatic_threads

# What a command's process has in its environment when it first imports torch; it goes no further.
AT_TORCH = """
import os, sys
class AtTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print({name: os.environ.get(name) for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}, file=sys.stderr, flush=True)
            os._exit(7)
sys.meta_path.insert(0, AtTorch())
"""
COMMAND = f"{AT_TORCH}\nfrom apr.cli import main\nsys.exit(main(sys.argv[1:]))"
FREE = {name: value for name, value in os.environ.items() if name not in apr.processors.USERS}
SETTLED = f"{{'GOMP_SPINCOUNT': '{WAITING['GOMP_SPINCOUNT']}', 'OMP_WAIT_POLICY': None}}"


@pytest.fixture(scope="module")
def stages(make_checkpoint: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Commands that train or sample, ready to run."""
    folder = tmp_path_factory.mktemp("waiting")
    (folder / "data.yaml").write_text(
        "env: {name: countdown, numbers: 2, low: 1, high: 9, target_low: 2, target_high: 20}\n"
        "train: 8\nvalidation: 2\ntest: 3\nsolvers: {sos_plus: {protocol: serial}}\n"
    )
    generate = [sys.executable, "-m", "apr.cli", "data", "generate", "--config", str(folder / "data.yaml")]
    subprocess.run([*generate, f"out={folder / 'data'}"], check=True, capture_output=True)
    data, start = f"data={folder / 'data'}", f"checkpoint={make_checkpoint(0)}"
    return {
        "sft": ["sft", data, "solver=sos_plus", f"out={folder / 'sft'}"],
        "rl": ["rl", data, start, "engine.kind=tiny", f"out={folder / 'rl'}"],
        "eval": ["eval", data, start, "engine.kind=tiny", f"out={folder / 'eval'}"],
        "eval, vLLM": ["eval", data, start, f"out={folder / 'eval_vllm'}"],
    }


@pytest.mark.parametrize("stage", ["sft", "rl", "eval", "eval, vLLM"])
def test_waiting_is_settled_when_a_command_imports_torch(stage: str, stages: dict[str, list[str]]) -> None:
    command = [sys.executable, "-c", COMMAND, *stages[stage]]
    done = subprocess.run(command, env=FREE, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert done.stderr.splitlines()[-1] == SETTLED


@pytest.mark.parametrize("module", ["rl.learner", "rl.ranks", "apr.engines.tiny", "apr.engines.cluster"])
def test_waiting_is_settled_when_an_actor_or_a_library_user_imports_torch(module: str) -> None:
    code = f"{AT_TORCH}\nimport {module}, torch"
    done = subprocess.run([sys.executable, "-c", code], env=FREE, capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (7, SETTLED)


def test_the_users_own_way_of_waiting_wins(stages: dict[str, list[str]]) -> None:
    command = [sys.executable, "-c", COMMAND, *stages["rl"]]
    done = subprocess.run(command, env=FREE | {"OMP_WAIT_POLICY": "passive"}, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "{'GOMP_SPINCOUNT': None, 'OMP_WAIT_POLICY': 'passive'}"
    assert waiting({"OMP_WAIT_POLICY": "active", "PATH": "/"}) == {"OMP_WAIT_POLICY": "active"}
    assert waiting({"GOMP_SPINCOUNT": "7"}) == {"GOMP_SPINCOUNT": "7"}
    assert waiting({"PATH": "/"}) == WAITING


def test_a_spawned_worker_waits_likewise() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(_environment).result() == waiting(os.environ)


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in apr.processors.USERS if name in os.environ}


@pytest.mark.parametrize("own", [{}, {"OMP_WAIT_POLICY": "passive"}])
def test_actors_wait_as_the_driver_does(own: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.util.placement_group import PlacementGroup

    from apr.engines.placement import options

    for name in apr.processors.USERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    variables = options(1, 0, 2, PlacementGroup.empty())["runtime_env"]["env_vars"]
    assert {name: variables[name] for name in variables if name in apr.processors.USERS} == (own or WAITING)
    assert variables["OMP_NUM_THREADS"] == "2"


@given(st.integers(1, 256), st.floats(0, 300), st.floats(0, 300))
def test_threads_are_few_and_no_more_where_others_compute(cores: int, busy: float, more: float) -> None:
    threads = threads_that_pay(cores, busy)
    assert 1 <= threads <= min(MOST, cores)
    assert threads_that_pay(cores, busy + more) <= threads <= threads_that_pay(cores + 1, busy)


@pytest.mark.parametrize(
    ("cores", "busy", "threads"), [(1, 0, 1), (2, 0, 2), (2, 0.3, 2), (2, 1, 1), (2, 2, 1), (4, 2, 2), (16, 15, 1)]
)
def test_threads_are_one_for_each_free_core(cores: int, busy: float, threads: int) -> None:
    assert threads_that_pay(cores, busy) == threads


def test_busy_cores_are_those_of_this_process_and_bursts_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readings of /proc/stat, in ticks of a hundredth of a second: samples of 60 (a burst), 30 and 33 in 0.3 s."""
    ticks = iter([0, 60, 60, 90, 90, 123])
    clock = iter([0.0, 0.3, 1.0, 1.3, 2.0, 2.3])
    monkeypatch.setattr(apr.processors, "_ticks", lambda: next(ticks))
    monkeypatch.setattr(apr.processors.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(apr.processors.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(apr.processors.time, "monotonic", lambda: next(clock))
    assert busy_cores() == pytest.approx(1.0)


def test_ticks_are_of_this_processs_cores_without_idle_and_niced_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stat").write_text(
        "cpu  9 9 9 9 9 9 9 9 9 9\n"
        "cpu0 1 100 2 1000 5000 4 8 16 1 0\ncpu1 32 0 64 0 0 0 0 0 0 0\ncpu2 500 0 0 0 0 0 0 0 0 0\nintr 5\n"
    )
    monkeypatch.setattr(apr.processors, "STAT", tmp_path / "stat")
    monkeypatch.setattr(apr.processors.os, "sched_getaffinity", lambda process: {0, 1})
    assert apr.processors._ticks() == 1 + 2 + 4 + 8 + 16 + 32 + 64


def test_a_run_that_goes_on_keeps_the_threads_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apr.runs, "threads_now", lambda: 2)
    assert automatic_threads(None) == 2
    assert automatic_threads(tmp_path) == 2  # of a version that did not record them
    (tmp_path / MANIFEST).write_text(json.dumps({"kind": "rl", "threads": 1}))
    assert automatic_threads(tmp_path) == 1


def test_threads_are_chosen_unless_the_configuration_names_them() -> None:
    for config in (SftConfig(), RlConfig().learner, RlConfig().engine, EvalConfig().engine):
        assert config.threads is None


def test_engine_and_learner_take_the_chosen_threads_where_none_are_named() -> None:
    from rl.launch import _with_threads

    named = RlConfig.model_validate({"learner": {"threads": 1}})
    taken = _with_threads(named, 2)
    assert (taken.engine.threads, taken.learner.threads) == (2, 1)
    assert _with_threads(taken, None) == taken
    assert named.engine.threads is None

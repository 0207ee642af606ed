"""Kills processes of an RL run at random moments, and checks that nothing was lost, doubled, changed or left behind.

    python benchmarks/chaos.py [--kills 12] [--steps 16] [--faults engine learner driver] [--engine tiny|shared|vllm] [--seed 0]

The task is the tests' toy, on two engines in a local Ray. With the tiny engine, and with the shared one in its deterministic
mode (which runs Multiverse here), results do not depend on batches: the final weights must be those of a run that nobody
disturbed, bit for bit. Every strand must be trained once: all
traces are kept, and each key is in them once, for all problems and samples of each step.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "integration")]

from processes import left_behind, recorded, session_members, weights  # noqa: E402 (found by the line above)
from toys import SPAWNING, make_task, rl_config  # noqa: E402

from apr.config import RlConfig  # noqa: E402
from apr.presets import dump  # noqa: E402
from apr.threads.codec import read_traces  # noqa: E402

PROBLEMS, GROUP = 8, 4
ENGINES = 2


class Run:
    """A run of `apr rl` in a session of its own, started again if it is killed."""

    def __init__(self, config: RlConfig) -> None:
        self.out = config.out
        self.file = config.out.with_suffix(".yaml")
        self.file.write_text(dump(config), encoding="utf-8")
        self.log = config.out.with_suffix(".log").open("w", encoding="utf-8")
        self.leaders: list[int] = []
        self.start("--config", str(self.file))

    def start(self, *arguments: str) -> None:
        self.driver = subprocess.Popen(
            [sys.executable, "-m", "apr.cli", "rl", *arguments], cwd=ROOT, stdout=self.log, stderr=subprocess.STDOUT,
            start_new_session=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.since = time.time()
        self.leaders.append(self.driver.pid)
        self.memory: list[float] = []  # MiB of this driver, at each step

    def reach(self, step: int) -> bool:
        """Wait until so many steps are recorded, some by this driver; False if the run ended before."""
        while recorded(self.out) < step or (self.out / "metrics.jsonl").stat().st_mtime < self.since:
            if self.driver.poll() is not None:
                return False
            time.sleep(0.02)
        self.note_memory()
        return True

    def note_memory(self) -> None:
        status = Path(f"/proc/{self.driver.pid}/status")
        if status.is_file() and (found := re.search(r"VmRSS:\s+(\d+)", status.read_text(encoding="utf-8"))):
            self.memory.append(int(found[1]) / 1024)

    def members(self, title: str) -> list[int]:
        """Processes of this run whose command begins so."""
        return sorted(pid for pid, said in session_members(self.driver.pid).items() if said.startswith(title))


def kill_engine(run: Run, rng: random.Random) -> bool:
    return kill_one(run.members("ray::EngineActor"), rng)


def kill_learner(run: Run, rng: random.Random) -> bool:
    return kill_one(run.members("ray::RankActor"), rng)


def kill_one(processes: list[int], rng: random.Random) -> bool:
    """SIGKILL to one of them, whatever it is doing; False if there is none at the moment."""
    if processes:
        os.kill(rng.choice(processes), signal.SIGKILL)
    return bool(processes)


def kill_driver(run: Run, rng: random.Random) -> bool:
    """SIGKILL to `apr rl` itself, which is then called again."""
    run.driver.kill()
    run.driver.wait()
    run.start("--resume", str(run.out))
    return True


FAULTS: dict[str, Callable[[Run, random.Random], bool]] = {
    "engine": kill_engine, "learner": kill_learner, "driver": kill_driver,
}  # fmt: skip


def disturbed(config: RlConfig, faults: list[str], kills: int, seed: int) -> tuple[Run, Counter[str]]:
    """A run with `kills` faults, each somewhere within a step drawn at random."""
    rng = random.Random(seed)
    plan = sorted(rng.uniform(1, config.steps - 1) for _ in range(kills))
    run, done = Run(config), Counter[str]()
    for moment in plan:
        if not run.reach(int(moment)):
            break
        time.sleep((moment % 1) * 2)
        fault = rng.choice(faults)
        while run.driver.poll() is None and not FAULTS[fault](run, rng):
            time.sleep(0.1)
        done[fault] += run.driver.poll() is None
    for step in range(recorded(config.out), config.steps + 1):
        run.reach(step)
    run.driver.wait()
    return run, done


def keys_trained(config: RlConfig) -> tuple[int, list[str]]:
    """The number of strands that were trained, and what is wrong with their keys."""
    seen: Counter[Any] = Counter()
    wrong = []
    for step in range(config.steps):
        traces = list(read_traces(config.out / "traces" / f"step_{step:06d}.jsonl.gz"))
        attempts = {(trace.problem["id"], trace.sample) for trace in traces}
        if len(traces) != PROBLEMS * GROUP or len(attempts) != len(traces):
            wrong.append(f"step {step}: {len(traces)} traces of {len(attempts)} attempts, {PROBLEMS * GROUP} expected")
        seen.update(trace.key(strand) for trace in traces for strand in trace.strands)
    wrong += [f"{key} {count} times" for key, count in seen.items() if count != 1]
    return sum(seen.values()), wrong


def settings(out: Path, engine: str, steps: int, kills: int) -> tuple[RlConfig, RlConfig]:
    """The same run twice, in `out`, on a task made there: in one process, and on engines that may be killed so often."""
    exact = {"kind": engine, "threads": 1}
    protocol: dict[str, Any] = {}
    if engine == "shared":
        exact |= {"deterministic": True, "kv_cache_mib": 8}
        protocol = {"protocol": "multiverse", "limits": {"context": 160, "reach": 128, "threads": 8}}
        paths = {"toy": {**SPAWNING["solvers"]["toy"], "protocol": "multiverse"}}
        task = make_task(out, {**SPAWNING, "solvers": paths}, steps=160, window=128)
    else:
        exact |= {"kv_cache_mib": 64} if engine == "vllm" else {}
        task = make_task(out, SPAWNING, steps=110)
    cluster = {
        "address": "local", "engines": ENGINES, "engine_cpus": 0.25, "learner_cpus": 0.25, "routing": "spread",
        "restarts": 4 * kills,
    }  # fmt: skip
    common = {
        "steps": steps, "problems_per_step": PROBLEMS, "group_size": GROUP, "checkpoint_every": 2,
        "traces_per_step": PROBLEMS * GROUP, "engine": exact, **protocol,
    }  # fmt: skip
    return rl_config(task, out / "undisturbed", **common), rl_config(task, out / "disturbed", **common, cluster=cluster)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--faults", nargs="+", choices=sorted(FAULTS), default=sorted(FAULTS))
    parser.add_argument("--engine", choices=["tiny", "shared", "vllm"], default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"))
    given = parser.parse_args()
    shutil.rmtree(given.out, ignore_errors=True)
    given.out.mkdir(parents=True)
    undisturbed, config = settings(given.out.resolve(), given.engine, given.steps, given.kills)
    quiet = None
    if given.engine != "vllm":
        started = time.monotonic()
        quiet = Run(undisturbed)
        quiet.driver.wait()
        print(f"undisturbed, in one process   {time.monotonic() - started:.0f} s, status {quiet.driver.returncode}")
    started = time.monotonic()
    run, done = disturbed(config, given.faults, given.kills, given.seed)
    print(f"disturbed, {ENGINES} engines          {time.monotonic() - started:.0f} s, status {run.driver.returncode}")
    print(f"killed                        {', '.join(f'{count} {name}' for name, count in done.items())}")
    failed = run.driver.returncode != 0 or sum(done.values()) != given.kills
    if not failed:
        strands, wrong = keys_trained(config)
        print(f"strands trained               {strands}; {'each once' if not wrong else '; '.join(wrong[:5])}")
        failed |= bool(wrong)
        if quiet is not None:
            same = weights(config.out) == weights(quiet.out)
            print(f"final weights                 {'equal bit for bit' if same else 'DIFFER'}")
            failed |= not same
    left = {pid: said for leader in run.leaders for pid, said in left_behind(leader, seconds=120).items()}
    print(f"processes left                {len(left)} {left or ''}")
    print(f"driver's memory, MiB          {run.memory[0]:.0f} after its first steps, {run.memory[-1]:.0f} at the end")
    sys.exit(failed or bool(left))


if __name__ == "__main__":
    main()

"""What a step of RL takes when rollouts and learning overlap, beside each of them alone; and what syncing weights costs.

    python benchmarks/overlap.py [--steps 12] [--sync tensors|file] [--out FOLDER]

Two runs of `apr rl` on the quickstart's preset and shipped SFT checkpoint, on a local Ray with one engine (vLLM) and one
learner, each pinned to a core of its own. With `staleness=0` rollout and learning take turns: their times are those of each
alone. With `staleness=1` they overlap. The bar: a step takes at most 1.15 times the longer of the two, and syncing less than
5% of a step. The first steps of each run warm up and do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "integration")]

from processes import recorded, session_members  # noqa: E402 (found by the line above)

WARM_UP = 2
PINNED = {"ray::EngineActor": 0, "ray::RankActor": 1}


def apr(*arguments: str, log: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "apr.cli", *arguments], cwd=ROOT, stdout=log.open("wb"), stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip


def pin(leader: int) -> int:
    """Each actor's threads to its own core; returns how many actors there are. Later threads inherit it."""
    cores = sorted(os.sched_getaffinity(0))
    found = 0
    for pid, said in session_members(leader).items():
        for title, core in PINNED.items():
            if said.startswith(title):
                found += 1
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    os.sched_setaffinity(int(thread.name), {cores[core]})
    return found


def steps(out: Path, data: Path, staleness: int, arguments: argparse.Namespace) -> list[dict[str, float]]:
    """The metrics of a run's steps, without those that warmed up."""
    run = apr(
        "rl", "--config", "tiny_cpu", f"data={data}", "checkpoint=checkpoints/tiny_cpu/spawn_join", f"out={out}",
        f"steps={arguments.steps}", f"staleness={staleness}", f"weight_sync={arguments.sync}", "validate_problems=0",
        "checkpoint_every=1000", "engine.threads=1", "learner.threads=1", "cluster.address=local", log=out.with_suffix(".log"),
    )  # fmt: skip
    while run.poll() is None:
        if recorded(out) <= WARM_UP:
            pin(run.pid)
        time.sleep(0.2)
    if run.returncode:
        sys.exit(f"the run failed: see {out.with_suffix('.log')}")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return lines[WARM_UP:-1]  # during the last step nothing overlaps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--sync", choices=["tensors", "file"], default="tensors")
    parser.add_argument("--out", type=Path, default=Path("runs/overlap"))
    arguments = parser.parse_args()
    if len(os.sched_getaffinity(0)) < len(PINNED):
        sys.exit("two cores are needed: one for the engine, one for the learner")
    out = arguments.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    sizes = ("train=400", "validation=50", "test=50")
    if apr("data", "generate", "--config", "tiny_cpu", *sizes, f"out={out / 'data'}", log=out / "data.log").wait():
        sys.exit(f"no data: see {out / 'data.log'}")
    runs = {
        staleness: steps(out / f"staleness_{staleness}", out / "data", staleness, arguments) for staleness in (0, 1)
    }

    def median(staleness: int, name: str) -> float:
        return statistics.median(line[name] for line in runs[staleness] if name in line)

    for staleness in runs:
        names = ("rollout", "wait", "learn", "sync", "step")
        parts = " | ".join(f"{name} {median(staleness, f'time/{name}'):.2f}" for name in names)
        share = statistics.median(line["time/sync"] / line["time/step"] for line in runs[staleness])
        print(
            f"staleness {staleness}: median seconds of {len(runs[staleness])} steps: {parts} | sync {share:.1%} of a step"
        )
    longer = max(median(0, "time/rollout"), median(0, "time/learn"))
    print(f"step with staleness 1 / max(rollout, learn) alone: {median(1, 'time/step') / longer:.2f} (bar 1.15)")
    print(f"step with staleness 0 / step with staleness 1:     {median(0, 'time/step') / median(1, 'time/step'):.2f}")


if __name__ == "__main__":
    main()

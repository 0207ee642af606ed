"""SFT and RL of each protocol of the family, with parity between what was sampled and what the learner forwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toys import SPAWNING, make_task, metrics, rl_config

from apr.threads.codec import read_traces
from apr.threads.trace import StopReason
from rl.launch import launch

REACH = 160
LIMITS = {"context": REACH, "reach": REACH, "threads": 8}
SHARED = {"kind": "shared", "threads": 1, "kv_cache_mib": 8}
TINY = {"kind": "tiny", "threads": 1}


@pytest.mark.parametrize(
    ("protocol", "engine", "more"),
    [
        ("aspd", SHARED, {}), ("pasta", SHARED, {}), ("threadweaver", SHARED, {}), ("asyncthink", TINY, {}),
        ("apar", SHARED, {}), ("skeleton", TINY, {}), ("spawn_join", TINY, {"join": "first"}),
    ],
    ids=["aspd", "pasta", "threadweaver", "asyncthink", "apar", "skeleton", "first"],
)  # fmt: skip
def test_rl_trains_on_what_was_sampled(
    protocol: str, engine: dict[str, Any], more: dict[str, Any], tmp_path: Path
) -> None:
    solvers = {"toy": {**SPAWNING["solvers"]["toy"], "protocol": protocol}}
    task = make_task(tmp_path, {**SPAWNING, "solvers": solvers}, steps=120, window=REACH)
    launch(
        rl_config(task, tmp_path / "rl", protocol=protocol, engine=engine, limits=LIMITS, steps=2, **more), resume=False
    )
    lines = metrics(tmp_path / "rl")
    print([(line["reward/success"], line["rollout/threads"]) for line in lines])
    assert len(lines) == 2 and all(line["rollout/threads"] > 1.5 for line in lines)
    learned = [line for line in lines if "loss/policy" in line]  # groups that differ in success
    assert learned and all(
        line["mismatch/abs_gap_mean"] < 1e-6 and line["mismatch/abs_gap_max"] < 1e-4 for line in learned
    )
    stops = {
        thread.stop
        for path in sorted((tmp_path / "rl" / "traces").glob("step_*.jsonl.gz"))
        for trace in read_traces(path)
        for thread in trace.threads[1:]
    }
    assert (StopReason.CANCELLED in stops) == ("join" in more)

"""`apr rl`: puts the parts of a run together (in one process, or as Ray actors) and drives the loop."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apr.config import RlConfig, load
from apr.data.store import problems_hash, read_problems
from apr.dialects import dialect_of
from apr.engines.base import Engine
from apr.engines.build import build_engine, check_window
from apr.errors import RunDirectoryError
from apr.protocols import protocol_by_name
from apr.rollout import with_condition
from apr.runs import refuse_other, run_directory, whole_folder
from envs.countdown.env import Countdown, CountdownSpec
from rl import checkpoint, loop
from rl.checkpoint import STATE_FILE
from rl.learner import OPTIMIZER_FILE, Learner, LearnerApi
from rl.monitor import JsonlMonitor, Monitor, Monitors, TensorBoardMonitor
from rl.weight_sync import FileSync, TensorSync, WeightSync

# What may change when a run goes on: where and how it runs, how long, what is watched and kept; and the learning rate.
MAY_DIFFER = (
    "out", "steps", "checkpoint_every", "keep_checkpoints", "validate_every", "validate_problems", "cluster", "engine",
    "weight_sync", "in_flight", "traces_per_step", "tensorboard", "max_silent_steps", "max_lost_share", "parity_mean",
    "parity_max",
)  # fmt: skip
LEARNER_MAY_DIFFER = ("lr", "threads", "tokens_per_pass")


def launch(config: RlConfig, resume: bool) -> Path:
    """Run to `config.steps`, or to a signal; returns the newest checkpoint. `resume`: go on from the newest one.

    Raises `RunDirectoryError` if there is a run in `config.out` that is not to be resumed, or is of another
    configuration or of other data.
    """
    train, validation = (
        with_condition(read_problems(config.data, split), config.condition) for split in ("train", "validation")
    )
    # Looked up before the run directory is entered, which replaces the configuration of the run that is there.
    found = checkpoint.latest(config.out)
    if found and not resume:
        raise RunDirectoryError(
            f"{config.out} holds a run already: `apr rl --resume {config.out}` goes on, or give another `out`"
        )
    data_hash = problems_hash(config.data, "train")
    if resume:
        _refuse_another_run(config, data_hash)
    start_from, start = found or (config.checkpoint, 0)
    check_window(start_from, config.limits.context, config.dialect)
    with run_directory(config.out, config, data_hash=data_hash) as run:
        if resume and not found:
            print(f"{run} has no checkpoint yet: starting at step 0", file=sys.stderr)
        if start >= config.steps:
            return _finished(run, start_from)
        dialect = dialect_of(start_from, config.dialect)
        # Validation draws nothing new: problems come from the data set, the environment only spells and verifies.
        env = Countdown(CountdownSpec(), dialect)
        protocol = protocol_by_name(config.protocol, dialect)
        keep = config.on_update == "recompute"
        sync: WeightSync = TensorSync(keep) if config.weight_sync == "tensors" else FileSync(run / "weights", keep)
        with placed(config, start_from, found is not None) as (engine, learner):
            monitors: list[Monitor] = [JsonlMonitor(run / "metrics.jsonl", start)]
            if config.tensorboard:
                monitors.append(TensorBoardMonitor(run / "tensorboard", start))
            parts = loop.Parts(env, protocol, engine, learner, sync, Monitors(monitors), train, validation)
            try:
                reached = asyncio.run(_drive(config, parts, run, start))
            finally:
                parts.monitor.close()
        newest = checkpoint.folder_of(run, reached)
        if reached == config.steps:
            return _finished(run, newest)
    raise KeyboardInterrupt(f"stopped after step {reached}; go on with: apr rl --resume {config.out}")


def _refuse_another_run(config: RlConfig, data_hash: str) -> None:
    before = load(RlConfig, [config.out / "config.yaml"]).learner
    learner = config.learner.model_copy(update={name: getattr(before, name) for name in LEARNER_MAY_DIFFER})
    refuse_other(config.out, config.model_copy(update={"learner": learner}), MAY_DIFFER, data_hash=data_hash)


def _finished(run: Path, newest: Path) -> Path:
    """`final`: the last checkpoint without the optimiser's state, for evaluation and export."""
    final = run / "final"
    with whole_folder(final) as folder:
        shutil.copytree(newest, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(OPTIMIZER_FILE, STATE_FILE))
    return final


async def _drive(config: RlConfig, parts: loop.Parts, run: Path, start: int) -> int:
    try:
        with _stop_at_signal() as stopping:
            return await loop.run(config, parts, run, start, stopping)
    finally:
        await parts.engine.close()


@contextmanager
def _stop_at_signal() -> Iterator[Callable[[], bool]]:
    """After SIGINT or SIGTERM the step in progress is finished and saved; a second signal stops at once."""
    asked = False

    def handle(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        print(
            f"{signal.Signals(number).name}: finishing this step, then saving (again to stop at once)", file=sys.stderr
        )

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def placed(config: RlConfig, start_from: Path, resumed: bool) -> Iterator[tuple[Engine, LearnerApi]]:
    """Engine and learner in this process, or as Ray actors that end with the block."""
    if config.cluster.address == "none":
        engine = build_engine(config.engine, start_from, config.limits.context, config.seed)
        yield engine, Learner(start_from, config.learner, config.temperature, config.dialect, resumed)
        return
    from rl.cluster import start

    remote_engine, learner, shutdown = start(config, start_from, resumed)
    try:
        yield remote_engine, learner
    finally:
        shutdown()

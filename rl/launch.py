"""`apr rl`: puts the parts of a run together (in one process, or as Ray actors) and drives the loop."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from apr.checkpoints.card import Card
from apr.checkpoints.checkpoint import Checkpoint
from apr.checkpoints.folder import ModelFolder, model_folder
from apr.config import RlConfig, refuse_idle
from apr.contact import trained_on
from apr.data.store import data_env, problems_hash, read_problems, say_if_fewer
from apr.engines.build import build_engine
from apr.errors import EngineLostError, LearnerLostError, RunDirectoryError
from apr.presets import check, load_recorded
from apr.protocols import protocol_by_name
from apr.rollout import with_condition
from apr.runs import automatic_threads, check_out, run_directory, whole_folder
from apr.signals import stop_at_signal
from apr.threads.engine import Engine
from envs.base import Env
from rl import checkpoint, loop
from rl.checkpoint import WHILE_RUNNING
from rl.monitor import Monitors, open_monitors
from rl.parts import LearnerApi, Parts, Problems, WeightSync
from rl.resume import ALGORITHM, check_resumed
from rl.rewards import reward_function
from rl.weight_sync import TRANSFERS, FileSync, TensorSync

# Engine and learner after a loss: from a checkpoint, with the optimiser's state or without.
Replace = Callable[[Path, bool], Awaitable[tuple[Engine, LearnerApi]]]


@dataclass(frozen=True)
class Prepared:
    """What a run needs, all of it found and fit. Nothing was written.

    `checkpoint_hash`: of the checkpoint that RL began from, None if an earlier version did not keep it. `start`: the step to
    begin at; `resumed`: from a checkpoint of the run itself, else from the one that the configuration names.
    """

    config: RlConfig
    env: Env
    train: Problems
    validation: Problems
    data_hash: str
    checkpoint_hash: str | None
    opened: Checkpoint
    start: int
    resumed: bool


def prepare(config: RlConfig, resume: bool) -> Prepared:
    """Find and check what `config` names. Cheap rules come first, before any heavy library is loaded.

    Raises `RunDirectoryError` if there is a run in `config.out` that is not to be resumed, or is of another
    configuration, of other data or from another checkpoint, and `ConfigError` for a `condition` that the checkpoint was not
    trained on.
    """
    check_out(config.out, config)
    if not resume:
        refuse_idle(config)
    env = data_env(config.data, config.env)
    if config.reward.function is not None:
        reward_function(config.reward.function)
    # Looked up before the run directory is entered, which replaces the configuration of the run that is there.
    found = checkpoint.latest(config.out)
    if found and not resume:
        raise RunDirectoryError(
            f"{config.out} holds a run already: `apr rl --resume {config.out}` goes on, or give another `out`"
        )
    data_hash = problems_hash(config.data, "train")
    config = config.model_copy(update={"checkpoint": model_folder(config.checkpoint)})
    if resume:
        checkpoint_hash = check_resumed(config, data_hash, found[1] if found else None)
    config = _with_horizon(config, resume)
    start_from, start = found or (config.checkpoint, 0)
    opened = Checkpoint.open(start_from, config.speller)
    opened.check_fits(config.protocol, config.condition, config.limits)
    train, validation = (
        with_condition(read_problems(config.data, split, env), config.condition) for split in ("train", "validation")
    )
    opened.model.check_finite()
    if not resume:
        checkpoint_hash = opened.model.hash
    return Prepared(config, env, train, validation, data_hash, checkpoint_hash, opened, start, found is not None)


def launch(config: RlConfig, resume: bool) -> Path:
    """Run to `config.steps`, or to a signal; returns the newest checkpoint. `resume`: go on from the newest one. Raises what
    `prepare` does."""
    ready = prepare(config, resume)
    say_if_fewer(len(ready.validation), config.validate_problems, "validation", config.data)
    config, env, opened, start, found = ready.config, ready.env, ready.opened, ready.start, ready.resumed
    train, validation, start_from = ready.train, ready.validation, opened.folder
    data_hash, checkpoint_hash = ready.data_hash, ready.checkpoint_hash
    speller = opened.speller
    facts = {
        "data_hash": data_hash, "algorithm": ALGORITHM,
        "speller": speller.name, "vocabulary": speller.vocabulary.hash, "env": env.config(),
        "trained_on": [one.model_dump() for one in trained_on(config.data, "rl", env)],
        **({} if checkpoint_hash is None else {"checkpoint_hash": checkpoint_hash}),
    }  # fmt: skip
    threads = None
    if config.engine.threads is None or config.learner.threads is None:
        threads = automatic_threads(config.out if found else None)
    with run_directory(config.out, config, **facts, threads=threads) as run:
        config = _with_threads(config, threads)
        if resume and not found:
            print(f"{run} has no checkpoint yet: starting at step 0", file=sys.stderr)
        if start >= config.steps:
            return _finished(run, start_from, config)
        protocol = protocol_by_name(config.protocol, speller, config.join)
        sync = weight_sync(config, run)
        with placed(config, start_from, found) as (engine, learner, replace, lost):
            parts = Parts(env, speller, protocol, engine, learner, sync, Monitors([]), train, validation)
            reached = asyncio.run(_drive(config, parts, run, start, replace, lost))
        newest = checkpoint.folder_of(run, reached)
        if reached == config.steps:
            return _finished(run, newest, config)
    raise KeyboardInterrupt(f"stopped after step {reached}; go on with: apr rl --resume {config.out}")


def _with_horizon(config: RlConfig, resume: bool) -> RlConfig:
    """The configuration that the run directory keeps: the schedule's horizon is that of the run's start, whatever `steps` a
    later call asks for."""
    if config.learner.lr_schedule == "constant" or config.learner.lr_steps is not None:
        return config
    # A run of an earlier version did not keep it: it is the `steps` of its last call.
    steps = load_recorded(RlConfig, config.out / "config.yaml").steps if resume else config.steps
    learner = config.learner.model_copy(update={"lr_steps": steps})
    return check(RlConfig, config.model_copy(update={"learner": learner}).model_dump(), str(config.out))


def _with_threads(config: RlConfig, threads: int | None) -> RlConfig:
    """`config`, with so many threads for engine and learner where it names no number."""
    engine = config.engine.model_copy(update={"threads": config.engine.threads or threads})
    learner = config.learner.model_copy(update={"threads": config.learner.threads or threads})
    return config.model_copy(update={"engine": engine, "learner": learner})


def weight_sync(config: RlConfig, run: Path) -> WeightSync:
    keep = config.on_update == "recompute"
    if config.weight_sync == "tensors":
        return TensorSync(keep)
    if config.weight_sync == "file":
        return FileSync(run / "weights", keep)
    from rl.weight_transfer import TransferSync

    return TransferSync(config.weight_sync, config.engine.tensor_parallel, keep)


def _finished(run: Path, newest: Path, config: RlConfig) -> Path:
    """`final`: the last checkpoint without the optimiser's state, for evaluation and export. Its card tells the reward."""
    final = run / "final"
    with whole_folder(final) as folder:
        shutil.copytree(newest, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*WHILE_RUNNING))
        Card.read(folder).with_facts(reward=config.reward.model_dump(exclude_none=True)).write(folder)
    return final


async def _drive(config: RlConfig, parts: Parts, run: Path, start: int, replace: Replace, lost: int) -> int:
    """The loop, begun again from the newest checkpoint if the learner is lost, so often as it may be. Engines are their
    pool's affair, but for those whose weights came by vLLM's own transfer, which only another start can send again.
    `lost`: learners that died while the run started."""
    losses = (LearnerLostError, EngineLostError) if config.weight_sync in TRANSFERS else (LearnerLostError,)
    found: tuple[Path, int] | None = None
    again = False
    try:
        with stop_at_signal() as stopping:
            while True:
                parts.monitor = open_monitors(config, run, start)
                try:
                    if again:
                        begin_with = found[0] if found else config.checkpoint
                        parts.engine, parts.learner = await replace(begin_with, found is not None)
                    return await loop.run(config, parts, run, start, stopping)
                except losses as error:
                    lost, again = lost + 1, True
                    if lost > config.cluster.restarts:
                        raise
                    found = checkpoint.latest(run)
                    start = found[1] if found else 0
                    print(f"{error}: restart {lost} of {config.cluster.restarts}, from step {start}", file=sys.stderr)
                finally:
                    parts.monitor.close()
    finally:
        await parts.engine.close()


@contextmanager
def placed(config: RlConfig, start_from: Path, resumed: bool) -> Iterator[tuple[Engine, LearnerApi, Replace, int]]:
    """Engine and learner in this process, or as Ray actors that end with the block; what replaces them after a loss; and how
    many learners were lost already, while they started."""
    if config.cluster.address == "none":
        from rl.learner import Learner

        engine = build_engine(config.engine, ModelFolder.open(start_from), config.limits.context, config.seed)

        async def replace(start_from: Path, resumed: bool) -> tuple[Engine, LearnerApi]:
            return engine, Learner(
                start_from, config.learner, config.temperature, config.speller, resumed, config.checkpoint
            )

        yield *asyncio.run(replace(start_from, resumed)), replace, 0
        return
    import ray

    from rl.cluster import start

    cluster = start(config, start_from, resumed)
    try:
        yield cluster.engine, cluster.learner, cluster.replace, cluster.lost
    finally:
        ray.shutdown()

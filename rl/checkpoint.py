"""Checkpoints of an RL run: whole folders `checkpoints/step_N`, written beside and moved into place.

Everything that is not in the weights or the optimiser derives from the seed and the step, so a step number is all the
state there is: which problems come next, which seeds sample them, which version the weights are.
"""

from __future__ import annotations

import json
from pathlib import Path

from apr.checkpoints.card import Card
from apr.checkpoints.weights import WEIGHTS_FILE, weight_files
from apr.errors import CheckpointError
from apr.runs import MANIFEST, recorded, remove_folder, whole_folder
from apr.threads.trace import SCHEMA
from rl.parts import LearnerApi

STATE_FILE = "state.json"
OPTIMIZER_FOLDER = "optimizer"  # a folder, since engines take each safetensors file beside the model's for weights
PICKLES = ("optimizer.pt", "zero")  # what earlier versions wrote in its place
ADAPTER_FILE = "adapter.safetensors"  # adapters in training; `model.safetensors` has them merged
# In a checkpoint that a run goes on from; the finished one lacks them.
WHILE_RUNNING = (OPTIMIZER_FOLDER, STATE_FILE, ADAPTER_FILE)


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:06d}"


async def save(learner: LearnerApi, run: Path, step: int, keep: int) -> Path:
    """Write the checkpoint after `step` steps; drop all but the newest `keep`. Its card tells the problems that the run
    draws from, which the run's manifest has.

    Raises `CheckpointError` if what the learner wrote is not here.
    """
    final = folder_of(run, step)
    with whole_folder(final) as folder:
        await learner.save(folder)
        state = (folder / OPTIMIZER_FOLDER).is_dir()
        for name, here in ((WEIGHTS_FILE, bool(weight_files(folder))), (OPTIMIZER_FOLDER, state)):
            if not here:
                raise CheckpointError(
                    f"the learner saved its checkpoint, but {folder / name} is not here. Does it run on another node? "
                    "`out` must be a folder that all nodes of the cluster share"
                )
        drawn = Card.parse({"trained_on": recorded(run)["trained_on"]}, run / MANIFEST).trained_on
        Card.read(folder).with_problems(drawn).write(folder)
        (folder / STATE_FILE).write_text(json.dumps({"schema": SCHEMA, "step": step}), encoding="utf-8")
    torn = final.parent.glob(".step_*")  # what a killed process left
    for old in [*sorted(final.parent.glob("step_*"))[:-keep], *torn]:
        remove_folder(old)
    return final


def refuse_pickles(folder: Path) -> None:
    """Raise `CheckpointError` if the optimizer's state in `folder` is a pickle of an earlier version: reading one may run
    code."""
    if (folder / OPTIMIZER_FOLDER).exists():
        return
    for path in (folder / name for name in PICKLES):
        if path.exists():
            raise CheckpointError(
                f"{path} is the optimizer's state as a pickle, as earlier versions wrote it, and pickles are not read: they "
                f"may run code. Go on from the weights with a new optimizer (checkpoint={folder} and another out), or "
                "finish this run with the version that began it"
            )


def latest(run: Path) -> tuple[Path, int] | None:
    """The newest whole checkpoint and its step, or None. Raises `CheckpointError` for one of another schema."""
    folders = sorted((run / "checkpoints").glob("step_*"))
    if not folders:
        return None
    path = folders[-1] / STATE_FILE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        schema, step = state["schema"], int(state["step"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is missing or corrupt ({error!r}): delete that folder to resume before"
        ) from error
    if schema != SCHEMA:
        raise CheckpointError(f"{path} has schema {schema}, this version reads {SCHEMA}: resume with its own version")
    return folders[-1], step

"""What a resumed run has to share with the run so far: its configuration, its problems and its starting checkpoint.

A whole checkpoint of the run holds all that the next step needs, except what is read from the starting checkpoint each
time: the frozen weights under LoRA's adapters, and the reference of the KL term.
"""

from __future__ import annotations

import sys
from pathlib import Path

from apr.checkpoints.folder import ModelFolder
from apr.checkpoints.weights import weight_files
from apr.config import RlConfig
from apr.errors import CheckpointError
from apr.presets import load_recorded
from apr.runs import CONFIG, recorded, refuse_other

# Keys that may change between calls without changing the result (`data` and `checkpoint` are covered by their hashes), and
# the learning rate, which may change at any step.
MAY_DIFFER = (
    "out", "env", "steps", "checkpoint_every", "keep_checkpoints", "validate_every", "validate_problems", "cluster", "engine",
    "weight_sync", "in_flight", "traces_per_step", "tensorboard", "wandb", "max_silent_steps", "max_lost_share", "parity_mean",
    "parity_max", "learner.lr", "learner.lr_schedule", "learner.lr_steps", "learner.threads", "learner.row_tokens",
    "learner.tokens_per_pass", "learner.activation_checkpointing",
)  # fmt: skip
# Version of the rules that turn rewards into a gradient, where no key of the configuration names them.
# 1: groups without a signal were left out of every denominator. 2: they count, unless `redraws` replaces them.
ALGORITHM = 2


def check_resumed(config: RlConfig, data_hash: str, step: int | None) -> str | None:
    """Check that `config` goes on with the run in `config.out`, whose newest checkpoint is of `step` (None: it has none).

    Returns the hash of the starting checkpoint for the manifest, None if it is unknown. Raises `RunDirectoryError` for
    another configuration, other problems or another starting checkpoint, and `CheckpointError` if that is gone but needed.
    Says on standard error where a run of an earlier version goes on under other rules.
    """
    before = recorded(config.out).get("checkpoint_hash")
    now = _starting_hash(config, step is not None)
    refuse_other(config.out, config, MAY_DIFFER, data_hash=data_hash, checkpoint_hash=now)
    if step is None:
        return now
    if (version := algorithm_of(config.out)) < ALGORITHM:
        print(
            f"{config.out} was begun with version {version} of the algorithm, which left groups without a signal out of all "
            f"denominators; from step {step} on they count in them (version {ALGORITHM}), so losses and gradients are smaller. "
            "For one rule throughout, start a new run",
            file=sys.stderr,
        )
    return before if isinstance(before, str) else None


def algorithm_of(run: Path) -> int:
    """The version of the algorithm that the newest steps of a run were made with, as its manifest says. Runs from before it
    was recorded are of version 2 if their configuration knows `redraws`, which came with it."""
    version = recorded(run).get("algorithm")
    if isinstance(version, int):
        return version
    return 2 if "redraws" in load_recorded(RlConfig, run / CONFIG).model_fields_set else 1


def _starting_hash(config: RlConfig, resumed: bool) -> str | None:
    """Hash of the starting checkpoint; None if it is gone and the resumed run does not read it."""
    readers = {
        "learner.lora adds its adapters to it": config.learner.lora is not None,
        "learner.kl_weight measures from it": config.learner.kl_weight > 0,
        "the run has no checkpoint of its own yet": not resumed,
    }
    needed = [reader for reader, reads in readers.items() if reads]
    if not weight_files(config.checkpoint):
        if not needed:
            return None
        raise CheckpointError(
            f"{config.out} cannot go on without the checkpoint that it began from ({'; '.join(needed)}), and there is no model "
            f"in {config.checkpoint}: set `checkpoint` to where it is now"
        )
    return ModelFolder.open(config.checkpoint).hash

"""Tasks that a model of one layer learns in seconds, for tests of training."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from apr.checkpoints.card import Card
from apr.checkpoints.checkpoint import save_checkpoint
from apr.config import DataConfig, ModelConfig, RlConfig, SftConfig
from apr.data.generate import generate
from apr.data.store import read_demonstrations
from apr.presets import check
from apr.sft.batches import collate
from apr.sft.rows import pointers, rows
from apr.sft.train import new_model
from envs.countdown.compact import CompactSpeller

VOCABULARY = CompactSpeller().vocabulary
WINDOW = 64
MODEL = {"layers": 1, "hidden": 64, "heads": 2, "intermediate": 128, "window": WINDOW}
# Two numbers, to be multiplied: half of the demonstrations test the right operation at once, half try + and -
# before, which is too long for a span budget of 20.
SERIAL = {
    "env": {"name": "countdown", "numbers": 2, "low": 2, "high": 12, "target_low": 25, "target_high": 99, "test_share": 0.2},
    "train": 16, "validation": 2, "test": 2, "demonstrations_per_problem": 4,
    "solvers": {"toy": {"protocol": "serial", "beams": [1, 4], "child_beam_max": 4}},
}  # fmt: skip
# Three numbers up to 4: two children for each problem, which search the two numbers that are left.
SPAWNING = {
    "env": {"name": "countdown", "numbers": 3, "low": 1, "high": 4, "target_low": 3, "target_high": 12, "test_share": 0.2},
    "train": 10, "validation": 2, "test": 2,
    "solvers": {"toy": {"protocol": "spawn_join", "spawn_depth": 1, "beams": [2], "child_beam_max": 2}},
}  # fmt: skip


def make_task(folder: Path, data: dict[str, Any], steps: int, window: int = WINDOW) -> Path:
    """`folder` with `data/` and `start/`: a checkpoint that `steps` steps on all demonstrations have taught the form."""
    config = check(DataConfig, {**data, "out": folder / "data"}, "toy")
    generate(config)
    traces = read_demonstrations(config.out, "toy")
    examples = [
        {"input_ids": list(row.block.ids), "targets": row.targets, "segments": pointers(row.block)}
        for trace in traces
        for row in rows(trace)
    ]
    batch = collate(examples, pad=0)
    del batch["tokens"]
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        model = new_model(ModelConfig.model_validate({**MODEL, "window": window}), len(VOCABULARY), 0, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        model(**batch, labels=batch["shift_labels"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    (folder / "start").mkdir()
    save_checkpoint(folder / "start", model, VOCABULARY, Card(solver="toy", trained=("sft",)))
    return folder


def rl_config(task: Path, out: Path, **more: Any) -> RlConfig:
    """A run on `task` with the tiny engine; `more` replaces whole top-level keys."""
    content = {
        "data": task / "data", "checkpoint": task / "start", "steps": 4, "problems_per_step": 4, "group_size": 4,
        "limits": {"context": WINDOW, "threads": 8}, "engine": {"kind": "tiny", "threads": 1},
        "learner": {"lr": 3e-4, "threads": 1}, "validate_problems": 2, "validate_every": 2, "checkpoint_every": 100,
        "tensorboard": False, "out": out,
    }  # fmt: skip
    return check(RlConfig, {**content, **more}, "toy")


def sft_config(data: Path, out: Path, **more: Any) -> SftConfig:
    """SFT of such a model on the toy demonstrations in `data`; `more` replaces whole top-level keys."""
    content = {
        "data": data, "solver": "toy", "model": MODEL, "tokens": 30_000, "batch_tokens": 256, "warmup_steps": 5,
        "log_every": 5, "checkpoint_every": 20, "threads": 1, "out": out,
    }  # fmt: skip
    return check(SftConfig, {**content, **more}, "toy")


def metrics(run: Path) -> list[dict[str, float]]:
    """The lines of `metrics.jsonl`, without what the clock says."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]


def undocumented(run: Path) -> set[str]:
    """Metrics that the run logged and docs/metrics.md does not name."""
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    known = re.findall(r"`([a-z_]+/[a-z_*]+)`", text)
    logged = {name for line in (run / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)} - {"step"}
    return {name for name in logged if not any(fnmatch(name, pattern) for pattern in known)}

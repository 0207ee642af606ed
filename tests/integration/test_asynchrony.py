"""Rollouts that run ahead of the learner, and learners that are lost: what is sampled when, and what it comes to."""

from pathlib import Path
from typing import Any

import pytest
from toys import SPAWNING, make_task, metrics, rl_config, undocumented

from apr.errors import LearnerLostError
from apr.threads.codec import read_traces
from apr.threads.trace import Strand
from rl.launch import launch
from rl.learner import Learner

STEPS = 5


@pytest.fixture(scope="module")
def spawning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_task(tmp_path_factory.mktemp("spawning"), SPAWNING, steps=110)


def run(task: Path, out: Path, **more: Any) -> list[dict[str, float]]:
    launch(
        rl_config(task, out, **{"steps": STEPS, "validate_problems": 0, "traces_per_step": 99, **more}), resume=False
    )
    return metrics(out)


def strands(out: Path, step: int) -> list[Strand]:
    traces = read_traces(out / "traces" / f"step_{step:06d}.jsonl.gz")
    return [strand for trace in traces for strand in trace.strands]


def versions(out: Path, step: int) -> set[int]:
    """That sampled the tokens which step `step` trained on."""
    return {span.version for strand in strands(out, step) for span in strand.versions}


@pytest.mark.parametrize(("staleness", "on_update"), [(2, "finish"), (1, "recompute")])
def test_rollouts_run_ahead_by_the_staleness_and_no_more(
    staleness: int, on_update: str, spawning: Path, tmp_path: Path
) -> None:
    learner = {"lr": 3e-4, "threads": 1, "kl_weight": 0.01}
    lines = run(spawning, tmp_path, staleness=staleness, on_update=on_update, in_flight=12, learner=learner)
    assert undocumented(tmp_path) == set()
    lags = [step - version for step in range(STEPS) for version in versions(tmp_path, step)]
    assert min(lags) == 0 < max(lags) <= staleness
    assert {line["off_policy/lag_max"] for line in lines} <= set(range(staleness + 1))
    stale = [line for line in lines if line.get("off_policy/share")]
    assert stale and all(line["off_policy/kl"] >= 0 for line in stale)
    # Tokens of the learner's own version, and they alone, are held to parity.
    assert all(line["mismatch/abs_gap_max"] < 1e-4 for line in lines if "mismatch/abs_gap_max" in line)
    mixed = [strand for step in range(STEPS) for strand in strands(tmp_path, step) if len(strand.versions) > 1]
    assert bool(mixed) == (on_update == "recompute")
    for strand in mixed:
        edges = [strand.versions[0].start, *(span.end for span in strand.versions)]
        assert edges == sorted(set(edges)) and edges[0] == 0 and edges[-1] == len(strand.sampled)


def test_without_staleness_all_is_sampled_from_the_weights_that_learn_from_it(spawning: Path, tmp_path: Path) -> None:
    lines = run(spawning, tmp_path)
    assert [versions(tmp_path, step) for step in range(STEPS)] == [{step} for step in range(STEPS)]
    assert all(line["off_policy/lag_max"] == 0 and "off_policy/share" not in line for line in lines)


def test_a_lost_learner_costs_the_steps_since_its_checkpoint_and_nothing_else(
    spawning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(spawning, tmp_path / "whole", checkpoint_every=2)
    update, calls = Learner.update, iter(range(99))

    async def dying(learner: Learner, *arguments: Any) -> dict[str, float]:
        if next(calls) in (1, 5):  # in the second step, before any checkpoint; and in the fourth
            raise LearnerLostError("a rank died")
        return await update(learner, *arguments)

    make, made = Learner.__init__, iter(range(99))

    def stillborn(learner: Learner, *arguments: Any) -> None:
        if next(made) == 1:  # the first one in the place of another
            raise LearnerLostError("a rank died while it started")
        make(learner, *arguments)

    monkeypatch.setattr(Learner, "update", dying)
    monkeypatch.setattr(Learner, "__init__", stillborn)
    lines = run(spawning, tmp_path / "run", checkpoint_every=2)
    assert lines == metrics(tmp_path / "whole")
    weights = [(tmp_path / name / "final" / "model.safetensors").read_bytes() for name in ("run", "whole")]
    assert weights[0] == weights[1]


def test_a_learner_that_is_lost_again_and_again_ends_the_run(
    spawning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    async def dying(learner: Learner, *arguments: Any) -> dict[str, float]:
        calls.append(1)
        raise LearnerLostError("a rank died")

    monkeypatch.setattr(Learner, "update", dying)
    with pytest.raises(LearnerLostError, match="a rank died"):
        run(spawning, tmp_path, cluster={"restarts": 2})
    assert len(calls) == 3

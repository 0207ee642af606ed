"""Multiverse from script to gradient: demonstrations, SFT on packed blocks, RL with the shared engine, evaluation, page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from processes import weights
from toys import MODEL, SPAWNING, make_task, metrics, rl_config, sft_config

from apr.cli import main
from apr.config import EvalConfig
from apr.errors import ConfigError
from apr.presets import check
from apr.sft.train import train
from apr.threads.codec import read_traces
from apr.threads.trace import StopReason
from rl.launch import launch

SPAWNING_PATHS = {**SPAWNING, "solvers": {"toy": {**SPAWNING["solvers"]["toy"], "protocol": "multiverse"}}}
REACH = 128  # longer than a block: plan, longest path, conclusion
SHARED = {"kind": "shared", "threads": 1, "kv_cache_mib": 8}
EXACT = {**SHARED, "deterministic": True}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_task(tmp_path_factory.mktemp("paths"), SPAWNING_PATHS, steps=160, window=REACH)


def run_config(task: Path, out: Path, engine: dict[str, Any] = SHARED, **more: Any) -> Any:
    limits = {"context": 160, "reach": REACH, "threads": 8}
    return rl_config(task, out, protocol="multiverse", engine=engine, limits=limits, **more)


@pytest.fixture(scope="module")
def whole(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rl") / "whole"
    launch(run_config(task, out, EXACT), resume=False)
    return out


def test_rl_samples_paths_and_trains_on_what_was_sampled(task: Path, whole: Path) -> None:
    lines = metrics(whole)
    assert all(0 < line["reward/success"] < 1 and line["rollout/threads"] > 1.5 for line in lines)
    assert all(line["mismatch/abs_gap_mean"] < 1e-6 and line["mismatch/abs_gap_max"] < 1e-4 for line in lines)
    assert weights(whole) != (task / "start" / "model.safetensors").read_bytes()
    traces = list(read_traces(whole / "traces" / "step_000003.jsonl.gz"))
    joins = [strand for trace in traces for strand in trace.strands if len(strand.sees) > 1]
    assert joins and all(strand.cached > 0 for strand in joins)
    assert any(thread.stop is StopReason.RETURNED for trace in traces for thread in trace.threads)


def test_a_run_stopped_and_resumed_is_the_whole_run_bit_for_bit(task: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    launch(run_config(task, out, EXACT, steps=2), resume=False)
    launch(run_config(task, out, EXACT), resume=True)
    assert weights(out) == weights(whole)
    assert metrics(out)[-1] == metrics(whole)[-1]


def test_sft_evaluation_report_and_viewer(task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = train(sft_config(task / "data", tmp_path / "sft", model={**MODEL, "window": REACH}))
    args = [f"data={task / 'data'}", f"checkpoint={checkpoint}", "engine.kind=shared", "engine.kv_cache_mib=8"]
    args += [
        "protocol=multiverse",
        "limits.context=160",
        f"limits.reach={REACH}",
        f"out={tmp_path / 'eval'}",
        "split=train",
    ]
    assert main(["eval", *args]) == 0, capsys.readouterr().err
    traces = list(read_traces(tmp_path / "eval" / "traces.jsonl.gz"))
    assert len(traces) == 10 and {trace.protocol for trace in traces} == {"multiverse"}
    assert all(trace.costs is not None and trace.costs.reach is not None for trace in traces)
    assert main(["report", str(tmp_path / "eval"), "--out", str(tmp_path / "report")]) == 0
    assert main(["view", str(tmp_path / "eval"), "--out", str(tmp_path / "view.html")]) == 0
    page = (tmp_path / "view.html").read_text()
    assert "&lt;Conclusion&gt;" in page or "<Conclusion>" in page or "Conclusion" in page


def test_an_engine_of_chains_is_refused_before_the_run(task: Path, tmp_path: Path) -> None:
    for kind in ("vllm", "tiny"):
        with pytest.raises(ConfigError, match=f"engine.kind={kind} does not serve: set engine.kind=shared"):
            rl_config(task, tmp_path / "no", protocol="multiverse", engine={"kind": kind})
        with pytest.raises(ConfigError, match=f"engine.kind={kind} does not serve"):
            check(EvalConfig, {"protocol": "multiverse", "engine": {"kind": kind}}, "toy")


def test_chains_are_served_too(tmp_path: Path) -> None:
    task = make_task(tmp_path, SPAWNING, steps=110)
    launch(rl_config(task, tmp_path / "rl", engine=SHARED, steps=2), resume=False)
    lines = metrics(tmp_path / "rl")
    assert all(line["mismatch/abs_gap_mean"] < 1e-6 and line["rollout/threads"] > 1.5 for line in lines)

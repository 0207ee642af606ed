"""The whole path in one command, with very small numbers: every stage is real, vLLM included."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from apr.threads.codec import read_traces

ROOT = Path(__file__).parents[2]
ENGINE = ["engine.kv_cache_mib=32", "in_flight=32"]
SMALL = {
    "sampled_problems": 3,
    "samples": 2,
    "stages": {
        "data": ["train=24", "validation=4", "test=8", "demonstrations_per_problem=2"],
        "sft": ["tokens=40000", "batch_tokens=1024", "warmup_steps=5", "model={layers: 1, heads: 2, hidden: 64}"],
        "rl": ["steps=2", "problems_per_step=4", "group_size=4", "validate_problems=4", "checkpoint_every=1", *ENGINE],
        "eval": ENGINE,
    },
}
EVALUATIONS = {  # traces of each, in the order of the report
    "sos_plus_sft": 8, "sos_plus_sft_sampled": 6, "sos_plus_rl": 8, "sos_plus_rl_sampled": 6, "spawn_join_sft": 8,
    "spawn_join_rl": 8,
}  # fmt: skip
STAGES = 12


def quickstart(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    config = folder / "quickstart.yaml"
    config.write_text(yaml.safe_dump({**SMALL, "out": str(folder / "run")}))
    return subprocess.run(
        [sys.executable, "-m", "apr.cli", "quickstart", "--config", str(config), *more],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip


def files(run: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != "manifest.json"}


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_whole_path_and_a_second_call_that_does_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = quickstart(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"the report is {run / 'report' / 'report.html'}" in done.stdout

    for name, count in EVALUATIONS.items():
        traces = list(read_traces(run / "eval" / name / "traces.jsonl.gz"))
        assert len(traces) == count and all(trace.outcome and trace.costs for trace in traces)
        assert json.loads((run / "eval" / name / "summary.json").read_text())
    problems = [
        [trace.problem["id"] for trace in read_traces(run / "eval" / name / "traces.jsonl.gz")]
        for name, count in EVALUATIONS.items()
        if count == 8
    ]
    assert problems[0] == problems[1] == problems[2] == problems[3]
    for rl in ("rl", "rl_serial"):
        assert len((run / rl / "metrics.jsonl").read_text().splitlines()) == 2
        assert (run / rl / "final" / "model.safetensors").is_file()
    assert yaml.safe_load((run / "rl_serial" / "config.yaml").read_text())["protocol"] == "serial"

    report = (run / "report" / "report.html").read_text()
    assert not re.findall(r"""(?:src|href|action)\s*=\s*["']?\s*(?:https?:)?//[^"'\s>]*""", report)
    assert not re.findall(r"@import|url\(\s*[\"']?(?:https?:)?//|\bfetch\(|XMLHttpRequest", report)

    models = [line.partition(",")[0] for line in (run / "report" / "data" / "results.csv").read_text().splitlines()[1:]]
    assert models == [
        "SoS+ SFT", "SoS+ SFT mean@2", "SoS+ SFT cons@2", "SoS+ SFT pass@2", "SoS+ RL", "SoS+ RL mean@2", "SoS+ RL cons@2",
        "SoS+ RL pass@2", "spawn/join SFT", "spawn/join RL",
    ]  # fmt: skip
    runs = (run / "report" / "data" / "rl_runs.csv").read_text().splitlines()[1:]
    assert [line.partition(",")[0] for line in runs] == ["rl", "rl_serial"]

    before = files(run)
    again = quickstart(tmp_path)
    assert again.returncode == 0 and again.stdout.count("done before") == len(list((run / "done").iterdir())) == STAGES
    lock = {run / ".lock", run / "config.yaml"}
    after = files(run)
    assert {path: at for path, at in after.items() if path not in lock} == {
        path: at for path, at in before.items() if path not in lock
    }

    # A stage whose product is gone runs again, whatever was done before.
    (run / "report" / "report.html").unlink()
    third = quickstart(tmp_path)
    assert third.returncode == 0 and third.stdout.count("done before") == STAGES - 1
    assert (run / "report" / "report.html").is_file()

    # A stage that is asked for again is the only one that runs, and one that fails says how to go on.
    (run / "done" / "report").unlink()
    (run / "eval" / "spawn_join_sft" / "traces.jsonl.gz").write_bytes(b"spoilt")
    failed = quickstart(tmp_path)
    assert failed.returncode == 2 and failed.stdout.count("done before") == STAGES - 1
    assert "traces.jsonl.gz, line 1" in failed.stderr and "Traceback" not in failed.stderr
    assert "stage report ended with status 2; call the same command again" in failed.stderr

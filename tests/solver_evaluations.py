"""Evaluations whose model is a solver: folders as `apr eval` writes them, in milliseconds, with real spawns and joins."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from apr.config import DataConfig, EvalConfig
from apr.data.generate import generate, teacher_of
from apr.data.store import data_env, problems_hash, read_problems
from apr.data.teach import traces
from apr.presets import check, dump, load
from apr.threads.codec import TraceWriter
from apr.threads.trace import Strand, Trace
from envs.countdown.compact import CompactSpeller

SOLVERS = {"sos_plus": {"protocol": "serial"}, "spawn_join": {"protocol": "spawn_join", "spawn_depth": 1}}


def make_data(folder: Path, numbers: int = 3, high: int = 12) -> Path:
    """40 test problems."""
    env = {"name": "countdown", "numbers": numbers, "low": 1, "high": high, "target_low": 10, "target_high": 30}
    content = {
        "env": env, "train": 8, "validation": 2, "test": 40, "workers": 1, "out": folder, "solvers": SOLVERS,
    }  # fmt: skip
    generate(check(DataConfig, content, "test"))
    return folder


def timed(trace: Trace) -> Trace:
    """Solvers take no time: a second a sampled token, children side by side; some of each prompt was cached."""
    ended: dict[object, float] = {}
    strands: list[Strand] = []
    for strand in trace.strands:
        started = max((ended[before] for before in strand.after), default=0.0)
        ended[strand.id] = started + len(strand.sampled) / 7
        strands.append(replace(strand, started=started, ended=ended[strand.id], cached=1))
    assert trace.costs is not None
    costs = replace(trace.costs, seconds=max(ended.values()), prefilled=trace.costs.prefilled - len(strands))
    return replace(trace, strands=tuple(strands), costs=costs)


def evaluation(
    folder: Path, data: Path, solver: str, seeds: list[int], trained: tuple[str, ...] = ("sft",), **changes: Any
) -> Path:
    """As `apr eval` would write it, had the solver been the model: one sample a problem for each seed."""
    content = {
        "data": data, "protocol": SOLVERS[solver]["protocol"], "samples": len(seeds), "limits": {}, "temperature": 1.0,
        "seed": 0, "split": "test", "out": folder, **changes,
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.yaml").write_text(dump(check(EvalConfig, content, "test")))
    problems = read_problems(data, "test")
    speller = CompactSpeller()
    config = load(DataConfig, [data / "config.yaml"])
    teachers = [replace(teacher_of(config, solver, data_env(data), speller), seed=seed) for seed in seeds]
    tries = [traces(problems, teacher) for teacher in teachers]
    with TraceWriter(folder / "traces.jsonl.gz") as writer:
        for number in range(len(problems)):
            for sample, made in enumerate(tries):
                writer.append(replace(timed(made[number]), sample=sample))
    facts = {
        "kind": "eval", "card": {"solver": solver, "trained": list(trained)}, "speller": speller.name,
        "vocabulary": speller.vocabulary.hash, "traces": len(problems) * len(seeds),
        "data_hash": problems_hash(data, "test"), "checkpoint_hash": f"{solver} {trained}",
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(facts))
    return folder

"""Evaluations whose model is a solver: folders as `apr eval` writes them, in milliseconds, with real spawns and joins."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from apr.config import DataConfig, EvalConfig
from apr.data.generate import demonstrations, generate
from apr.data.store import problems_hash, read_problems
from apr.presets import check, dump
from apr.threads.codec import TraceWriter
from apr.threads.trace import Strand, Trace
from apr.tokens.compact import CompactDialect

SOLVERS = {"sos_plus": {"protocol": "serial"}, "spawn_join": {"protocol": "spawn_join", "spawn_depth": 1}}


def make_data(folder: Path, numbers: int = 3, high: int = 12) -> Path:
    """40 test problems."""
    problems = {"numbers": numbers, "low": 1, "high": high, "target_low": 10, "target_high": 30}
    content = {
        "problems": problems, "train": 8, "validation": 2, "test": 40, "workers": 1, "out": folder, "solvers": SOLVERS,
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
    options = check(DataConfig, {"solvers": SOLVERS}, "test").solvers[solver]
    problems = read_problems(data, "test")
    dialect = CompactDialect()
    tries = [list(demonstrations(problems, solver, options, seed, dialect=dialect)) for seed in seeds]
    with TraceWriter(folder / "traces.jsonl.gz") as writer:
        for number in range(len(problems)):
            for sample, traces in enumerate(tries):
                writer.append(replace(timed(traces[number]), sample=sample))
    facts = {
        "kind": "eval", "card": {"solver": solver, "trained": list(trained)}, "dialect": dialect.name,
        "vocabulary": dialect.vocabulary.hash, "traces": len(problems) * len(seeds),
        "data_hash": problems_hash(data, "test"), "checkpoint_hash": f"{solver} {trained}",
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(facts))
    return folder

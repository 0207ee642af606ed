"""`apr eval`: a checkpoint on held-out problems, greedy or sampled, under limits; one trace a line, resumable."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import yaml

from apr.config import EvalConfig
from apr.data.store import problems_hash, read_problems
from apr.dialects import dialect_of
from apr.engines.base import Engine
from apr.engines.build import build_engine, check_window
from apr.errors import RunDirectoryError
from apr.evaluation.metrics import summarise
from apr.progress import Progress
from apr.protocols import protocol_by_name
from apr.rollout import Job, Roller, with_condition
from apr.runs import file_hash, run_directory, write_text
from apr.seeds import derive_seed
from apr.threads.codec import TraceWriter, read_traces
from apr.threads.session import Sampling
from apr.threads.trace import Trace
from envs.countdown.env import Countdown, CountdownSpec

TRACES = "traces.jsonl.gz"
SUMMARY = "summary.json"
FLUSH_EVERY = 50  # traces; a kill loses no more


def evaluate(config: EvalConfig) -> list[Trace]:
    """All traces of the evaluation, problem by problem; those already on disk are not made again."""
    problems = with_condition(read_problems(config.data, config.split)[: config.problems], config.condition)
    jobs = [Job(problem, sample) for problem in problems for sample in range(config.samples)]
    check_window(config.checkpoint, config.limits.context, config.dialect)
    facts = {
        "data_hash": problems_hash(config.data, config.split),
        "checkpoint_hash": file_hash(config.checkpoint / "model.safetensors"),
    }
    _check_config(config, facts["checkpoint_hash"])
    with run_directory(config.out, config, **facts) as run:
        TraceWriter(run / TRACES).close()  # drops what a kill left unfinished
        done = list(read_traces(run / TRACES))
        missing = jobs[len(done) :]
        _check_same(done, jobs, run)
        if missing:
            engine = build_engine(config.engine, config.checkpoint, config.limits.context)
            done += asyncio.run(_attempts(config, engine, missing, run / TRACES))
        write_text(run / SUMMARY, json.dumps(asdict(summarise(config.out.name, done)), indent=1))
    return done


async def _attempts(config: EvalConfig, engine: Engine, jobs: Sequence[Job], path: Path) -> list[Trace]:
    dialect = dialect_of(config.checkpoint, config.dialect)
    roller = Roller(
        Countdown(CountdownSpec(), dialect), engine, protocol_by_name(config.protocol, dialect),
        config.limits, Sampling(config.temperature, derive_seed(config.seed, "eval")), config.in_flight,
    )  # fmt: skip
    traces = []
    try:
        with TraceWriter(path) as writer, Progress(f"eval {config.out.name}", len(jobs)) as progress:
            async for trace in roller.run(jobs):
                traces.append(replace(trace, budgets=config.budgets.model_dump(exclude_none=True)))
                writer.append(traces[-1])
                progress.advance()
                if len(traces) % FLUSH_EVERY == 0:
                    writer.flush()
    finally:
        await engine.close()
    return traces


def _check_config(config: EvalConfig, checkpoint_hash: str) -> None:
    """Refuse to add traces of another model, or made under other limits, to those that `config.out` holds."""
    if not (config.out / TRACES).is_file():
        return
    before = yaml.safe_load((config.out / "config.yaml").read_text())
    now = config.model_dump(mode="json")
    changed = [
        key for key in ("seed", "samples", "temperature", "protocol", "condition", "limits", "split") if before[key] != now[key]
    ]
    if json.loads((config.out / "manifest.json").read_text())["checkpoint_hash"] != checkpoint_hash:
        changed.append("checkpoint")
    if changed:
        raise RunDirectoryError(
            f"{config.out} holds an evaluation with another {', '.join(changed)}: give another `out`"
        )


def _check_same(done: Sequence[Trace], jobs: Sequence[Job], run: Path) -> None:
    for trace, job in zip(done, jobs):
        if (trace.problem["id"], trace.sample) != (job.problem["id"], job.sample):
            raise RunDirectoryError(f"{run} holds an evaluation of other problems: give another `out`, or delete it")
    if len(done) > len(jobs):
        raise RunDirectoryError(f"{run} holds {len(done)} traces, more than asked for: give another `out`")

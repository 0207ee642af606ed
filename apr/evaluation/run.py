"""`apr eval`: a checkpoint on held-out problems, greedy or sampled, under limits; one trace a line, resumable."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from apr.checkpoints.checkpoint import MERGED, Checkpoint
from apr.checkpoints.folder import ModelFolder
from apr.config import EvalConfig
from apr.contact import contact
from apr.data.store import data_env, problems_hash, read_problems, say_if_fewer
from apr.engines.build import build_engine
from apr.errors import EngineLostError, RunDirectoryError
from apr.evaluation.folder import SUMMARY, TRACES, read_facts
from apr.evaluation.metrics import Attempt, Summary, attempt, lost, summarise
from apr.presets import load_recorded
from apr.progress import Progress
from apr.protocols import protocol_by_name
from apr.rollout import Job, Roller, with_condition
from apr.runs import CONFIG, automatic_threads, check_out, refuse_other, run_directory, write_text
from apr.seeds import derive_seed
from apr.threads.codec import TraceWriter, read_traces
from apr.threads.engine import Engine
from apr.threads.session import Sampling
from apr.tokens.speller import Speller
from envs.base import Env

FLUSH_EVERY = 50  # traces; a kill loses no more
HASHES: dict[str, type] = {"data_hash": str, "checkpoint_hash": str}
# Keys that may change between calls without changing the result (`data` and `checkpoint` are covered by their hashes). Not
# `engine` nor `in_flight`: they change seconds, and the precision of what is sampled.
MAY_DIFFER = ("out", "env", "base", "speller", "problems", "budgets", "cluster")


@dataclass(frozen=True)
class Prepared:
    """What an evaluation needs, all of it found and fit. Nothing was written. `env`: of the data."""

    config: EvalConfig
    env: Env
    jobs: list[Job]
    checkpoint: Checkpoint


def prepare(config: EvalConfig) -> Prepared:
    """Find and check what `config` names. Raises `UserError`; cheap rules come first, before any heavy library is loaded."""
    check_out(config.out, config)
    env = data_env(config.data, config.env)
    problems = with_condition(read_problems(config.data, config.split, env)[: config.problems], config.condition)
    jobs = [Job(problem, sample) for problem in problems for sample in range(config.samples)]
    checkpoint = Checkpoint.open(config.checkpoint, config.speller, adapters=True, base=config.base)
    checkpoint.check_fits(config.protocol, config.condition, config.limits)
    if not checkpoint.is_adapter:
        _check_before(config, _hashes(config, checkpoint), len(jobs))
        checkpoint.model.check_finite()
    return Prepared(config, env, jobs, checkpoint)


def _hashes(config: EvalConfig, checkpoint: Checkpoint) -> dict[str, str]:
    """What identifies the problems and the model of an evaluation: `HASHES`."""
    return {
        "data_hash": problems_hash(config.data, config.split),
        "checkpoint_hash": checkpoint.model.hash,
    }


def evaluate(config: EvalConfig) -> Summary:
    """Make the traces of the evaluation, problem by problem; those already on disk are not made again.

    Traces go to disk and leave memory; only what they cost stays.

    Raises `EngineLostError` at the first trace that lost its engine; another call then goes on with that one. Raises
    `UserError` for what does not fit together, before an engine is started.
    """
    prepared = prepare(config)
    env, jobs, checkpoint = prepared.env, prepared.jobs, _whole(prepared)
    say_if_fewer(len(jobs) // config.samples, config.problems, config.split, config.data)
    config = config.model_copy(update={"checkpoint": checkpoint.folder, "base": None})
    speller = checkpoint.speller
    shared = contact(checkpoint.card, config.data, [job.problem for job in jobs if job.sample == 0], env)
    facts = {
        **_hashes(config, checkpoint),
        "card": checkpoint.card.content(),
        "speller": speller.name,
        "vocabulary": speller.vocabulary.hash,
        "env": env.config(),
        "traces": len(jobs),
        "contact": shared.model_dump(),
    }
    if str(shared) != "none":
        print(f"apr: contact with training: {shared}", file=sys.stderr)
    threads = config.engine.threads
    if threads is None and config.engine.kind != "endpoint":  # a server's are its own
        threads = automatic_threads(config.out if (config.out / TRACES).is_file() else None)
    with run_directory(config.out, config, **facts, threads=threads) as run:
        config = config.model_copy(update={"engine": config.engine.model_copy(update={"threads": threads})})
        TraceWriter(run / TRACES).close()  # drops what a kill left unfinished
        tried = _done(run, jobs)
        if missing := jobs[len(tried) :]:
            (run / SUMMARY).unlink(missing_ok=True)  # of fewer problems
            with _engine(config, checkpoint.model) as engine:
                tried += asyncio.run(_attempts(config, env, speller, engine, missing, run / TRACES))
        summary = summarise(config.out.name, tried)
        write_text(run / SUMMARY, json.dumps({**asdict(summary), "contact": facts["contact"]}, indent=1))
    return summary


def _whole(prepared: Prepared) -> Checkpoint:
    """The checkpoint; merged, and compared with what `out` holds, if it is an adapter."""
    config, checkpoint = prepared.config, prepared.checkpoint
    if not checkpoint.is_adapter:
        return checkpoint
    checkpoint = checkpoint.whole(config.out / MERGED)
    whole = config.model_copy(update={"checkpoint": checkpoint.folder, "base": None})
    _check_before(whole, _hashes(whole, checkpoint), len(prepared.jobs))
    checkpoint.model.check_finite()
    return checkpoint


@contextmanager
def _engine(config: EvalConfig, model: ModelFolder) -> Iterator[Engine]:
    """In this process, or as Ray actors that end with the block."""
    if config.cluster.address == "none":
        yield build_engine(config.engine, model, config.limits.context)
        return
    from apr.engines.cluster import served

    with served(config.engine, config.cluster, model.path, config.limits.context) as engines:
        yield engines


async def _attempts(
    config: EvalConfig, env: Env, speller: Speller, engine: Engine, jobs: Sequence[Job], path: Path
) -> list[Attempt]:
    """Append the traces of `jobs` to the file, in their order. Raises `EngineLostError` at the first that is lost."""
    budgets = config.budgets.model_dump(exclude_none=True)
    roller = Roller(
        env, speller, engine, protocol_by_name(config.protocol, speller, config.join),
        config.limits, Sampling(config.temperature, derive_seed(config.seed, "eval")), config.in_flight, config.threshold,
    )  # fmt: skip
    try:
        with TraceWriter(path) as writer, Progress(f"eval {config.out.name}", len(jobs)) as progress:
            tried = []
            async for trace in roller.run(jobs):
                if lost(trace):
                    raise EngineLostError(
                        f"the engine died at problem {trace.problem['id']}, sample {trace.sample} (its log says why); "
                        f"the traces before are kept in {path}: call the same command again to go on"
                    )
                writer.append(replace(trace, budgets=budgets))
                progress.advance()
                tried.append(attempt(trace))
                if len(tried) % FLUSH_EVERY == 0:
                    writer.flush()
    finally:
        await engine.close()
    return tried


def _check_before(config: EvalConfig, hashes: dict[str, str], asked: int) -> None:
    """Refuse to add traces of another model or of other data, or made under other limits, to those in `config.out`."""
    if not (config.out / TRACES).is_file():
        return
    manifest = read_facts(config.out, HASHES, f"delete {config.out}, or give another `out`")
    if config.engine.threads is None and (config.out / CONFIG).is_file():  # earlier versions wrote a number
        threads = load_recorded(EvalConfig, config.out / CONFIG).engine.threads
        config = config.model_copy(update={"engine": config.engine.model_copy(update={"threads": threads})})
    refuse_other(config.out, config, MAY_DIFFER, **hashes)
    if (before := manifest.get("traces", 0)) > asked:
        raise RunDirectoryError(
            f"{config.out} holds an evaluation of {before} traces, more than the {asked} asked for: give another `out`"
        )


def _done(run: Path, jobs: Sequence[Job]) -> list[Attempt]:
    """The attempts on disk. Raises `RunDirectoryError` if they are not at the first of the jobs."""
    tried: list[Attempt] = []
    for trace in read_traces(run / TRACES):
        if len(tried) == len(jobs):
            raise RunDirectoryError(f"{run} holds more than the {len(jobs)} traces asked for: give another `out`")
        job = jobs[len(tried)]
        if (trace.problem["id"], trace.sample) != (job.problem["id"], job.sample):
            raise RunDirectoryError(f"{run} holds an evaluation of other problems: give another `out`, or delete it")
        if lost(trace):
            raise RunDirectoryError(
                f"{run / TRACES} has traces that lost their engine: delete that file to make them again"
            )
        tried.append(attempt(trace))
    return tried

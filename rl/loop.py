"""GRPO over spawned threads: the whole algorithm on one screen, the same for one process and for a Ray cluster.

    for each step:
        roll out    group_size traces of each problem; every parent and child strand is a call of the engine
        reward      success within context and latency budgets
        advantage   reward minus the mean of its group; groups without signal are dropped
        learn       each sampled token once, in the context in which it was sampled; injected tokens never
        sync        the engine pauses, takes the new weights as a new version, drops its cache, resumes
        checkpoint  whole or not at all; the step number is all the state beside weights and optimiser

`Parts` holds what may live elsewhere (engine, learner, weight sync); `rl.launch` puts it together.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr.config import RlConfig
from apr.engines.base import Engine
from apr.errors import EngineLostError, NoSignalError
from apr.rollout import Job, Roller
from apr.seeds import derive_rng, derive_seed
from apr.threads.codec import TraceWriter
from apr.threads.protocol import ThreadProtocol
from apr.threads.session import Sampling
from apr.threads.trace import StopReason, Trace
from envs.base import Env
from rl import checkpoint
from rl.advantages import advantages, shuffled
from rl.learner import LearnerApi
from rl.monitor import Monitor
from rl.rewards import rewarded
from rl.samples import samples
from rl.weight_sync import WeightSync

Problems = Sequence[dict[str, Any]]


@dataclass
class Parts:
    """What the loop drives."""

    env: Env
    protocol: ThreadProtocol
    engine: Engine
    learner: LearnerApi
    sync: WeightSync
    monitor: Monitor
    train: Problems
    validation: Problems


async def run(config: RlConfig, parts: Parts, folder: Path, start: int, stopping: Callable[[], bool]) -> int:
    """Steps `start` to `config.steps`; returns the step reached, which is earlier only if `stopping()` said so.

    Raises `ParityError` if engine and learner disagree, before the weights change; `NoSignalError` after
    `max_silent_steps` steps without a usable group; `EngineLostError` if too many traces lost their engine.
    """
    silent, parity = 0, (config.parity_mean, config.parity_max)
    await parts.sync.push(parts.learner, parts.engine, version=start)
    for step in range(start, config.steps):
        began = time.monotonic()
        groups = await roll_out(config, parts, step)
        traces = [trace for group in groups for trace in group]
        rolled = time.monotonic()

        scored = advantages(groups, config.divide_by_deviation)
        if config.shuffle_advantages:
            scored = shuffled(scored, derive_rng(config.seed, "shuffle", step))
        batch = samples(scored, config.weighting)
        silent = 0 if batch else silent + 1
        if silent >= config.max_silent_steps:
            raise NoSignalError(
                f"{silent} steps in a row without a group that has both a success and a difference in reward: the "
                "problems are too hard or too easy, the budgets too tight, or the checkpoint was not trained"
            )
        metrics = rollout_metrics(traces) | {"reward/groups_used": len(scored) / max(1, len(traces))}
        if batch:
            metrics |= await parts.learner.update(batch, learning_rate(config, step), parity)
        metrics["time/sync"] = await parts.sync.push(parts.learner, parts.engine, version=step + 1)

        last = step + 1 == config.steps
        if config.validate_problems and (last or (step + 1) % config.validate_every == 0):
            metrics |= await validate(config, parts, step + 1)
        metrics |= {"time/rollout": rolled - began, "time/step": time.monotonic() - began}
        record(config, folder, step, traces, metrics, parts.monitor)
        stop = stopping()
        if last or stop or (step + 1) % config.checkpoint_every == 0:
            await checkpoint.save(parts.learner, folder, step + 1, config.keep_checkpoints)
        if stop:
            return step + 1
    return config.steps


async def roll_out(config: RlConfig, parts: Parts, step: int) -> list[list[Trace]]:
    """One group of rewarded traces per problem of this step; groups with a lost trace are left out."""
    problems = problems_of(config, parts.train, step)
    # A problem may come twice in a step, at an epoch's edge: its samples are then numbered on, as keys must differ.
    numbers: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
    jobs = [Job(problem, next(numbers[problem["id"]])) for problem in problems for _ in range(config.group_size)]
    traces = [rewarded(trace, config.reward) async for trace in roller(config, parts).run(jobs, step)]
    lost = lost_traces(traces, config.max_lost_share, f"step {step}")
    k = config.group_size
    return [traces[i : i + k] for i in range(0, len(traces), k) if not any(lost[i : i + k])]


def lost_traces(traces: Sequence[Trace], most: float, where: str) -> list[bool]:
    """Which traces lost their engine. Raises `EngineLostError` if a larger share of them than `most` did."""
    lost = [trace.outcome is not None and trace.outcome.stop is StopReason.ENGINE_LOST for trace in traces]
    if sum(lost) > most * len(traces):
        raise EngineLostError(f"{where}: {sum(lost)} of {len(traces)} traces lost their engine; see its log")
    return lost


def problems_of(config: RlConfig, train: Problems, step: int) -> list[dict[str, Any]]:
    """The problems of a step: epoch after epoch, each in its own seeded order; an epoch's edge may fall inside a step."""
    first, chosen = step * config.problems_per_step, []
    orders: dict[int, list[int]] = {}
    for place in range(first, first + config.problems_per_step):
        epoch, index = divmod(place, len(train))
        if epoch not in orders:
            orders[epoch] = list(range(len(train)))
            derive_rng(config.seed, "epoch", epoch).shuffle(orders[epoch])
        chosen.append(train[orders[epoch][index]])
    return chosen


def learning_rate(config: RlConfig, step: int) -> float:
    """Of this step. `linear` ends small: what the last noisy steps did to a greedy policy is not averaged out later."""
    remaining = 1.0 if config.learner.lr_schedule == "constant" else 1.0 - step / config.steps
    return config.learner.lr * remaining


def roller(config: RlConfig, parts: Parts, temperature: float | None = None) -> Roller:
    temperature = config.temperature if temperature is None else temperature
    sampling = Sampling(temperature, derive_seed(config.seed, "rollout"))
    return Roller(parts.env, parts.engine, parts.protocol, config.limits, sampling, config.in_flight)


async def validate(config: RlConfig, parts: Parts, step: int) -> dict[str, float]:
    """Greedy accuracy on the first validation problems. A lost trace would count as a wrong one: none may be."""
    jobs = [Job(problem, 0) for problem in parts.validation[: config.validate_problems]]
    traces = [rewarded(trace, config.reward) async for trace in roller(config, parts, 0.0).run(jobs, step)]
    lost_traces(traces, 0.0, f"validation at step {step}")
    return {
        "eval/accuracy": statistics.fmean(trace.reward["correct"] for trace in traces),
        "eval/success": statistics.fmean(trace.reward["success"] for trace in traces),
        "eval/threads": statistics.fmean(len(trace.threads) for trace in traces),
    }


def rollout_metrics(traces: Sequence[Trace]) -> dict[str, float]:
    """Means over a step's traces of every reward part and cost, and the share of each stop reason of the roots."""
    if not traces:
        return {}
    parts = sorted({part for trace in traces for part in trace.reward})
    metrics = {f"reward/{part}": statistics.fmean(t.reward.get(part, 0.0) for t in traces) for part in parts}
    for cost in ("context", "work", "work_sampled", "span_sampled", "parallelism_sampled", "threads", "prefilled"):
        metrics[f"rollout/{cost}"] = statistics.fmean(getattr(t.costs, cost) for t in traces)
    for reason in StopReason:
        share = statistics.fmean(t.root.stop is reason for t in traces)
        if share:
            metrics[f"rollout/stop_{reason.value}"] = share
    return metrics


def record(
    config: RlConfig, folder: Path, step: int, traces: Sequence[Trace], metrics: dict[str, float], monitor: Monitor
) -> None:
    """Metrics to the monitors, a few traces to disk, one readable line to the console."""
    monitor.log(step, metrics)
    path = folder / "traces" / f"step_{step:06d}.jsonl.gz"
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    with TraceWriter(path) as writer:
        for trace in traces[: config.traces_per_step]:
            writer.append(trace)
    line = f"step {step + 1}/{config.steps} | success {metrics.get('reward/success', 0):.3f}"
    for label, name, form in (
        ("threads", "rollout/threads", ".1f"), ("context", "rollout/context", ".0f"),
        ("span", "rollout/span_sampled", ".0f"), ("gap", "mismatch/abs_gap_mean", ".1e"),
        ("grad", "loss/grad_norm", ".2f"), ("validation", "eval/accuracy", ".3f"), ("s", "time/step", ".1f"),
    ):  # fmt: skip
        if name in metrics:
            line += f" | {label} {metrics[name]:{form}}"
    print(line, flush=True)

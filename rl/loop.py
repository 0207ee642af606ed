"""GRPO over spawned threads: the whole algorithm on one screen, the same for one process and for a Ray cluster.

    for each step:
        roll out    group_size traces of each problem; every parent and child strand is a call of the engine
        reward      success within context and latency budgets
        advantage   reward minus the mean of its group; a group without a signal has advantage 0, or is drawn anew
        learn       each sampled token once per round, in the context in which it was sampled; injected tokens never
        sync        the engine pauses, takes the new weights as a new version, drops its cache, resumes
        checkpoint  whole or not at all; the step number is all the state beside weights and optimiser

With `staleness` n the rollouts of the next n steps run while this one learns. `Parts` holds what may live elsewhere
(engine, learner, weight sync); `rl.launch` puts it together.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path

from apr.config import RlConfig
from apr.errors import NoSignalError
from apr.progress import time_left
from apr.seeds import derive_rng
from apr.threads.codec import TraceWriter
from apr.threads.trace import StopReason, Trace
from rl import checkpoint
from rl.advantages import advantages, has_signal, shuffled
from rl.parts import Monitor, Parts
from rl.rollouts import Rollout, rollouts, validate
from rl.samples import Sample, minibatches, samples


async def run(config: RlConfig, parts: Parts, folder: Path, start: int, stopping: Callable[[], bool]) -> int:
    """Steps `start` to `config.steps`; returns the step reached, which is earlier only if `stopping()` said so.

    Raises `ParityError` if engine and learner disagree, before the weights change; `NoSignalError` after
    `max_silent_steps` steps without a usable group; `EngineLostError` if too many traces lost their engine;
    `LearnerLostError` if a rank of the learner died.
    """
    silent, parity = 0, (config.parity_mean, config.parity_max)
    await parts.sync.push(parts.learner, parts.engine, version=start)
    counted, step, began = await parts.engine.metrics(), start, time.monotonic()
    entered = began
    async with aclosing(rollouts(config, parts, start)) as ahead:
        async for rollout in ahead:
            batch = minibatches_of(config, rollout, step)
            silent = 0 if batch else silent + 1
            if silent >= config.max_silent_steps:
                raise NoSignalError(
                    f"{silent} steps in a row without a group whose rewards differ: the "
                    "problems are too hard or too easy, the budgets too tight, or the checkpoint was not trained"
                )
            metrics = rollout_metrics(rollout)
            if batch:
                metrics |= await parts.learner.update(batch, learning_rate(config, step), parity)
            metrics["time/sync"] = await parts.sync.push(parts.learner, parts.engine, version=step + 1)

            last = step + 1 == config.steps
            if config.validate_problems and (last or (step + 1) % config.validate_every == 0):
                metrics |= await validate(config, parts, step + 1)
            counters = await parts.engine.metrics()
            metrics |= engine_metrics(counted, counters) | {"time/step": time.monotonic() - began}
            counted, began, step = counters, time.monotonic(), step + 1
            left = (began - entered) / (step - start) * (config.steps - step)
            record(config, folder, step - 1, rollout.traces, metrics, parts.monitor, left)
            stop = stopping()
            if last or stop or step % config.checkpoint_every == 0:
                await checkpoint.save(parts.learner, folder, step, config.keep_checkpoints)
            if stop:
                break
    return step


def minibatches_of(config: RlConfig, rollout: Rollout, step: int) -> list[list[Sample]]:
    """What the learner trains on, minibatch by minibatch; nothing if no group has a signal.

    With `redraws` the groups without a signal are left out (DAPO); else they count in every denominator (GRPO).
    """
    groups = [group for group in rollout.groups if has_signal(group)] if config.redraws else rollout.groups
    scored = advantages(groups, config.divide_by_deviation)
    if not any(one.advantage for one in scored):
        return []
    if config.shuffle_advantages:
        scored = shuffled(scored, derive_rng(config.seed, "shuffle", step))
    dealt = minibatches(scored, config.learner.minibatches, derive_rng(config.seed, "minibatches", step))
    kl = config.learner.kl_weight > 0
    made = (samples(part, config.weighting, constant=config.constant, version=step, kl=kl) for part in dealt)
    return [part for part in made if part]


def learning_rate(config: RlConfig, step: int) -> float:
    """Learning rate of this step. `linear` falls to 0 at step `lr_steps`, because noise in the last steps is never
    averaged out later."""
    horizon = config.learner.lr_steps or config.steps
    remaining = 1.0 if config.learner.lr_schedule == "constant" else 1.0 - step / horizon
    return config.learner.lr * remaining


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """Means over a step's traces of every reward part and cost, and the share of each stop reason of the roots."""
    traces = rollout.traces
    metrics = {
        "time/rollout": rollout.seconds,
        "time/wait": rollout.waited,
        "rollout/groups": float(len(rollout.groups)),
    }
    if not traces:
        return metrics
    metrics["reward/groups_used"] = statistics.fmean(map(has_signal, rollout.groups))
    parts = sorted({part for trace in traces for part in trace.reward})
    metrics |= {f"reward/{part}": statistics.fmean(t.reward.get(part, 0.0) for t in traces) for part in parts}
    for cost in ("context", "work", "work_sampled", "span_sampled", "parallelism_sampled", "threads", "prefilled"):
        metrics[f"rollout/{cost}"] = statistics.fmean(getattr(t.costs, cost) for t in traces)
    for reason in StopReason:
        share = statistics.fmean(t.root.stop is reason for t in traces)
        if share:
            metrics[f"rollout/stop_{reason.value}"] = share
    return metrics


def engine_metrics(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What the engines did in this step, by their counters; and how many of a pool's are alive."""
    done = {name: value - (0.0 if name == "alive" else before.get(name, 0.0)) for name, value in after.items()}
    return {"time/engine" if name == "busy_seconds" else f"engine/{name}": value for name, value in done.items()}


def record(
    config: RlConfig,
    folder: Path,
    step: int,
    traces: Sequence[Trace],
    metrics: dict[str, float],
    monitor: Monitor,
    left: float,
) -> None:
    """Metrics to the monitors, a few traces to disk, one readable line to the console. `left`: seconds to the last step."""
    monitor.log(step, metrics)
    path = folder / "traces" / f"step_{step:06d}.jsonl.gz"
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    with TraceWriter(path) as writer:
        for trace in traces[: config.traces_per_step]:
            writer.append(trace)
    line = f"step {step + 1}/{config.steps} | success {metrics.get('reward/success', 0):.3f}"
    for label, name, form in (
        ("reward", "reward/function", ".3f"), ("threads", "rollout/threads", ".1f"), ("context", "rollout/context", ".0f"),
        ("span", "rollout/span_sampled", ".0f"), ("gap", "mismatch/abs_gap_mean", ".1e"),
        ("stale", "off_policy/share", ".2f"), ("grad", "loss/grad_norm", ".2f"),
        ("validation", "eval/accuracy", ".3f"), ("s", "time/step", ".1f"),
    ):  # fmt: skip
        if name in metrics:
            line += f" | {label} {metrics[name]:{form}}"
    print(f"{line} | {time_left(left)} left", flush=True)

"""Which problems a step rolls out, and rollouts that run ahead of the learner by a bounded number of updates."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from apr.config import RlConfig
from apr.errors import EngineLostError
from apr.rollout import Job, Roller
from apr.seeds import derive_rng, derive_seed
from apr.threads.session import Sampling
from apr.threads.trace import StopReason, Trace
from rl.advantages import has_signal
from rl.parts import Parts, Problems
from rl.rewards import rewarded


@dataclass(frozen=True)
class Rollout:
    """One group of rewarded traces per problem of a step. Groups with a lost trace are left out. `seconds`: from its
    start to its end; `waited`: those of them that the learner stood still for."""

    groups: list[list[Trace]]
    seconds: float
    waited: float

    @property
    def traces(self) -> list[Trace]:
        return [trace for group in self.groups for trace in group]


async def rollouts(config: RlConfig, parts: Parts, start: int) -> AsyncGenerator[Rollout, None]:
    """Those of steps `start` to `config.steps`, in order. While the caller works on one, the next `staleness` are under
    way; so what step n trains on was sampled from weights no older than those of step n - staleness.

    Raises `EngineLostError` if too many traces of a step lost their engine.
    """
    roller = make_roller(config, parts)
    under_way: deque[asyncio.Task[tuple[list[list[Trace]], float]]] = deque()
    launched = start
    try:
        for step in range(start, config.steps):
            while launched < min(step + 1 + config.staleness, config.steps):
                under_way.append(asyncio.create_task(_timed(config, parts, roller, launched)))
                launched += 1
            began = time.monotonic()
            groups, seconds = await under_way.popleft()
            yield Rollout(groups, seconds, time.monotonic() - began)
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def _timed(config: RlConfig, parts: Parts, roller: Roller, step: int) -> tuple[list[list[Trace]], float]:
    began = time.monotonic()
    return await roll_out(config, parts, roller, step), time.monotonic() - began


async def roll_out(config: RlConfig, parts: Parts, roller: Roller, step: int) -> list[list[Trace]]:
    """The groups of a step. With `redraws`, further problems are drawn in place of those whose groups have no signal,
    round after round, until `problems_per_step` groups have one or the rounds are used up."""
    problems = problems_of(config, parts.train, step)
    # A problem may come twice in a step, at an epoch's edge: its samples are then numbered on, as keys must differ.
    numbers: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
    groups: list[list[Trace]] = []
    traces: list[Trace] = []
    missing, k = config.problems_per_step, config.group_size
    for _ in range(1 + config.redraws):
        drawn = itertools.islice(problems, missing)
        jobs = [Job(problem, next(numbers[problem["id"]])) for problem in drawn for _ in range(k)]
        traces += [rewarded(trace, config.reward) async for trace in roller.run(jobs, step)]
        lost = lost_traces(traces, config.max_lost_share, f"step {step}")
        groups = [traces[i : i + k] for i in range(0, len(traces), k) if not any(lost[i : i + k])]
        missing = config.problems_per_step - sum(map(has_signal, groups))
        if not missing:
            break
    return groups


def lost_traces(traces: Sequence[Trace], most: float, where: str) -> list[bool]:
    """Which traces lost their engine. Raises `EngineLostError` if a larger share of them than `most` did."""
    lost = [trace.outcome is not None and trace.outcome.stop is StopReason.ENGINE_LOST for trace in traces]
    if sum(lost) > most * len(traces):
        raise EngineLostError(f"{where}: {sum(lost)} of {len(traces)} traces lost their engine; see its log")
    return lost


def problems_of(config: RlConfig, train: Problems, step: int) -> Iterator[dict[str, Any]]:
    """The problems of a step and of all its redraws, of which not all need be used: epoch after epoch, each in its own
    seeded order; an epoch's edge may fall inside a step. They depend on nothing but the step's number."""
    size = config.problems_per_step * (1 + config.redraws)
    order: list[int] = []
    for place in range(step * size, (step + 1) * size):
        epoch, index = divmod(place, len(train))
        if not order or index == 0:
            order = list(range(len(train)))
            derive_rng(config.seed, "epoch", epoch).shuffle(order)
        yield train[order[index]]


def make_roller(config: RlConfig, parts: Parts, temperature: float | None = None) -> Roller:
    temperature = config.temperature if temperature is None else temperature
    sampling = Sampling(temperature, derive_seed(config.seed, "rollout"))
    return Roller(
        parts.env,
        parts.speller,
        parts.engine,
        parts.protocol,
        config.limits,
        sampling,
        config.in_flight,
        config.reward.threshold,
    )


async def validate(config: RlConfig, parts: Parts, step: int) -> dict[str, float]:
    """Greedy accuracy on the first validation problems. A lost trace would count as a wrong one: none may be."""
    jobs = [Job(problem, 0) for problem in parts.validation[: config.validate_problems]]
    traces = [rewarded(trace, config.reward) async for trace in make_roller(config, parts, 0.0).run(jobs, step)]
    lost_traces(traces, 0.0, f"validation at step {step}")
    return {
        "eval/accuracy": statistics.fmean(trace.reward["correct"] for trace in traces),
        "eval/success": statistics.fmean(trace.reward["success"] for trace in traces),
        "eval/threads": statistics.fmean(len(trace.threads) for trace in traces),
    }

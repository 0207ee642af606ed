"""Many attempts at once: the runtime over a list of jobs, verified, in job order. RL and evaluation both use it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

from apr.config import ConditionConfig
from apr.errors import JudgeError
from apr.threads.engine import Engine
from apr.threads.limits import Limits
from apr.threads.protocol import ThreadProtocol
from apr.threads.session import Sampling, attempt
from apr.threads.trace import Outcome, StopReason, Trace
from apr.tokens.speller import Speller
from envs.base import Env, Verdict

JUDGE_ATTEMPTS = 3
AHEAD = 1024  # attempts begun or done before the next trace in order; so memory does not grow with the jobs


@dataclass(frozen=True)
class Job:
    """One attempt to make: the `sample`-th at `problem`."""

    problem: dict[str, Any]
    sample: int


@dataclass
class Roller:
    """All that attempts share. At most `in_flight` run at once, over all calls of `run`; earlier calls go first."""

    env: Env
    speller: Speller
    engine: Engine
    protocol: ThreadProtocol
    limits: Limits
    sampling: Sampling
    in_flight: int
    threshold: float | None = None  # score from which an answer is correct; None: the verifier's own verdict

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.in_flight)

    async def run(self, jobs: Iterable[Job], step: int = 0) -> AsyncIterator[Trace]:
        """Verified traces in the order of `jobs`. Raises `JudgeError` if the environment cannot judge one."""

        async def one(job: Job) -> Trace:
            async with self._slots:
                trace = await attempt(
                    job.problem, self.speller.prompt(self.env, job.problem), engine=self.engine, protocol=self.protocol,
                    limits=self.limits, sampling=self.sampling, step=step, sample=job.sample,
                )  # fmt: skip
                return verified(trace, self.env, self.speller, self.protocol, self.threshold)

        waiting = iter(jobs)
        tasks = deque(asyncio.create_task(one(job)) for job in islice(waiting, max(AHEAD, self.in_flight)))
        try:
            while tasks:
                trace = await tasks[0]
                tasks.popleft()
                tasks.extend(asyncio.create_task(one(job)) for job in islice(waiting, 1))
                yield trace
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def with_condition(problems: Sequence[dict[str, Any]], condition: ConditionConfig | None) -> list[dict[str, Any]]:
    """The problems, each asking for `condition` in its prompt."""
    return [problem if condition is None else {**problem, "condition": condition.model_dump()} for problem in problems]


def verified(
    trace: Trace, env: Env, speller: Speller, protocol: ThreadProtocol, threshold: float | None = None
) -> Trace:
    """The trace with its answer and outcome; correct from a score of `threshold`, if it is given.

    A lost engine anywhere makes the whole trace lost, never wrong."""
    if any(thread.stop is StopReason.ENGINE_LOST for thread in trace.threads):
        return replace(trace, outcome=Outcome(StopReason.ENGINE_LOST, False, "the engine was lost"))
    answer, verdict, vote = _judged(trace, env, speller, protocol)
    correct = verdict.ok if threshold is None else verdict.score >= threshold
    outcome = Outcome(trace.root.stop, correct, verdict.reason, verdict.score, vote)
    return replace(trace, answer=answer, outcome=outcome)


class Judged(NamedTuple):
    """An answer, its verdict and the key under which it votes."""

    answer: str | None
    verdict: Verdict
    vote: str | None


def _judged(trace: Trace, env: Env, speller: Speller, protocol: ThreadProtocol) -> Judged:
    """A judge that asks others (a sandbox, a service) may fail once; one that fails always must not pass for a verdict."""
    failures = 0
    while True:
        try:
            ids = protocol.answer(trace.threads)
            answer = None if ids is None else env.read(speller.answer(ids))
            vote = env.canonical(answer) if answer is not None and answer.strip() else None
            return Judged(answer, env.verify(trace.problem, answer), vote)
        except Exception as error:  # noqa: BLE001 - an environment is the user's code: whatever it raises
            failures += 1
            if failures == JUDGE_ATTEMPTS:
                raise JudgeError(
                    f"the environment failed {failures} times to judge an answer to problem {trace.problem['id']!r}: "
                    f"{error!r}. Mend its `verify`; nothing was scored wrong for it, and --resume goes on"
                ) from error

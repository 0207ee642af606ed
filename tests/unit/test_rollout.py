"""Judging: an environment may fail once or twice, never pass its failure for a verdict."""

from typing import Any

import pytest
from fakes import CONTROL, FREE, FakeEngine, join, run, says

from apr.errors import JudgeError
from apr.protocols.spawn_join import SpawnJoin
from apr.rollout import JUDGE_ATTEMPTS, Job, Roller, verified
from apr.threads.session import Sampling
from envs.base import Options, Verdict
from envs.environment import Environment

PROTOCOL = SpawnJoin(CONTROL)


class Bare:
    """A speller that shows token ids."""

    name = about = "bare"
    vocabulary: Any = None

    def prompt(self, env: Any, problem: dict[str, Any]) -> tuple[int, ...]:
        return (CONTROL.bos, 20)

    def ids(self, pieces: Any) -> tuple[int, ...]:
        return ()

    def answer(self, ids: Any) -> str:
        return str(ids)


class Flaky(Environment[Options]):
    """An environment whose verifier raises the first `failures` times that it is asked."""

    name = "flaky"

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures
        self.asked = 0

    def verify(self, problem: dict[str, Any], answer: str | None) -> Verdict:
        self.asked += 1
        if self.asked <= self.failures:
            raise TimeoutError("the sandbox does not answer")
        return Verdict(answer == "(60,)", "judged", 0.5 if answer == "(61,)" else None)


SPELLER = Bare()


@pytest.mark.parametrize("failures", range(JUDGE_ATTEMPTS))
def test_a_judge_that_fails_at_first_is_asked_again(failures: int) -> None:
    env = Flaky(failures)
    trace = verified(run(says(r_0=join(60))), env, SPELLER, PROTOCOL)
    assert trace.correct and env.asked == failures + 1


def test_a_judge_that_always_fails_stops_the_run_and_names_the_problem() -> None:
    trace = run(says(r_0=join(60)), problem={"id": "3,5,8->23"})
    with pytest.raises(JudgeError, match=r"3 times.*'3,5,8->23'.*does not answer"):
        verified(trace, Flaky(99), SPELLER, PROTOCOL)


def test_a_threshold_on_the_score_decides_what_is_correct() -> None:
    for threshold, correct in ((None, False), (0.4, True), (0.5, True), (0.6, False)):
        trace = verified(run(says(r_0=join(61))), Flaky(0), SPELLER, PROTOCOL, threshold)
        assert trace.outcome is not None and trace.outcome.score == 0.5
        assert trace.correct == correct
    assert trace.outcome.vote == "(61,)"


def test_no_more_attempts_run_at_once_than_asked_for_over_all_calls() -> None:
    import asyncio

    running, most = 0, 0

    class Counting(FakeEngine):
        async def generate(self, request: Any) -> Any:
            nonlocal running, most
            running += 1
            most = max(most, running)
            try:
                await asyncio.sleep(0)
                return await super().generate(request)
            finally:
                running -= 1

    async def both() -> list[int]:
        engine: Any = Counting(says(r_0=join(60)))
        roller = Roller(Flaky(0), SPELLER, engine, PROTOCOL, FREE, Sampling(1.0, 0), in_flight=3)

        async def one(step: int) -> int:
            jobs = [Job({"id": str(i)}, 0) for i in range(5)]
            return len([trace async for trace in roller.run(jobs, step)])

        return await asyncio.gather(one(0), one(1))

    assert asyncio.run(both()) == [5, 5]
    assert most == 3

"""Engine pools over scripted engines that die when told to: who serves what, and what a death changes (nothing)."""

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from mortals import Maker, Mortal, ask, persist, play, turns

from apr.engines import pool as pools
from apr.engines.pool import EnginePool, Routing
from apr.errors import CheckpointError, EngineError, EngineLostError, ResourceError, TornWeightsError
from apr.threads.engine import Completion, Request, Views
from apr.threads.trace import EngineStop, StrandKey


@pytest.mark.parametrize("routing", ["trace", "spread"])
@pytest.mark.parametrize("seed", range(6))
def test_deaths_at_any_moment_change_no_result(routing: Routing, seed: int) -> None:
    async def body() -> None:
        rng = random.Random(seed)
        make = Maker(turns=20)
        pool = await EnginePool.start(make, 3, routing=routing, restarts=100, timeout=30)
        requests = [ask(f"p{i % 7}", "r" if i % 3 else f"r.{i}", i, ids=(i, 2)) for i in range(60)]
        alone = Mortal(0)
        expected = [await alone.generate(request) for request in requests]
        asked = [asyncio.create_task(persist(pool, request, 100)) for request in requests]
        while not all(task.done() for task in asked):
            await turns(rng.randint(1, 8))
            if rng.random() < 0.4:
                rng.choice(make.made).die()
        assert await asyncio.gather(*asked) == expected
        counted = await pool.metrics()
        assert counted["lost_requests"] > 0 and counted["restarts"] == len(make.made) - 3
        await pool.close()

    play(body())


def test_a_lost_request_is_answered_by_an_engine_that_is_alive(capsys: pytest.CaptureFixture[str]) -> None:
    async def body() -> None:
        make = Maker()
        pool = await EnginePool.start(make, 2)
        asked = asyncio.create_task(pool.generate(ask()))
        await turns(2)
        make.made[0].die()
        with pytest.raises(EngineLostError, match="died"):
            await asked
        assert (await pool.generate(ask())).key == ask().key
        assert [len(engine.requests) for engine in make.made[:2]] == [1, 1]
        await pool.close()

    play(body())
    assert "engine 0 was lost (the engine died: RuntimeError('killed')); starting another" in capsys.readouterr().err


def test_restarts_are_bounded_for_the_whole_pool() -> None:
    async def body() -> None:
        make = Maker()
        pool = await EnginePool.start(make, 2, restarts=3)
        for _ in range(4):
            await turns(3)
            [engine for engine in make.made if engine._lost is None][-1].die()
            asked = [pool.generate(ask(str(i))) for i in range(4)]
            results = await asyncio.gather(*asked, return_exceptions=True)
            assert {type(result) for result in results} == {Completion, EngineLostError}
        assert len(make.made) == 2 + 3
        assert (await pool.generate(ask())).ids  # one is alive still
        assert (await pool.metrics())["alive"] == 1
        [engine for engine in make.made if engine._lost is None][0].die()
        with pytest.raises(EngineLostError, match="died"):
            await pool.generate(ask())
        for _ in range(2):
            with pytest.raises(EngineLostError, match="all 2 engines are lost and no restart is left .*killed"):
                await pool.generate(ask())
        with pytest.raises(EngineLostError, match="no restart is left"):
            await pool.update_weights("new", 1)
        await pool.close()

    play(body())


def test_a_restart_that_fails_is_tried_again_while_restarts_are_left() -> None:
    async def body() -> None:
        make = Maker()
        pool = await EnginePool.start(make, 1, restarts=3)
        make.failures = [ResourceError("no room"), OSError("no room at all")]
        make.made[0].die()
        assert (await persist(pool, ask())).ids
        assert (await pool.metrics())["restarts"] == 3
        make.made[-1].die()
        with pytest.raises(EngineLostError, match="no restart is left"):
            await persist(pool, ask())
        await pool.close()

    play(body())


def test_requests_wait_for_a_restart_and_say_so_when_it_takes_too_long() -> None:
    async def body() -> None:
        make = Maker()
        pool = await EnginePool.start(make, 1, timeout=0.05)
        make.made[0].die()
        make.free.clear()
        with pytest.raises(EngineLostError, match="died"):
            await pool.generate(ask())
        with pytest.raises(EngineLostError, match=r"no engine was ready within cluster\.timeout=0\.05 s.*killed"):
            await pool.generate(ask())
        waiting = [asyncio.create_task(pool.generate(ask(name))) for name in ("a", "b", "c")]
        await turns(3)
        await pool.abort(ask("c").key, 5)  # it is wanted, up to there
        with pytest.raises(EngineError, match="in flight already"):
            await pool.generate(ask("a"))
        await pool.abort(ask("b").key)
        make.free.set()
        assert (await waiting[0]).ids
        aborted = await waiting[1]
        assert (aborted.ids, aborted.stop, aborted.versions) == ((), EngineStop.ABORT, ())
        assert len((await waiting[2]).ids) == 5 < len((await waiting[0]).ids)
        await pool.close()

    play(body())


def test_an_engine_in_place_of_another_has_the_current_weights_and_state() -> None:
    async def body() -> None:
        make = Maker()
        pool = await EnginePool.start(make, 2)
        await pool.pause()
        await pool.update_weights("first", 1)
        await pool.resume()
        make.made[0].die()
        make.free.clear()
        await turns(2)
        await pool.pause()  # finds the death
        await pool.update_weights("second", 2)
        late = asyncio.create_task(pool.generate(ask("late")))
        make.free.set()
        await turns(20)
        assert [engine.took for engine in make.made] == [["first"], ["first", "second"], ["second"]]
        assert make.made[-1].version == pool.version == 2
        both = asyncio.gather(*(pool.generate(ask(str(i))) for i in range(2)))
        await turns(20)
        assert not late.done() and not both.done()  # it stays paused
        await pool.resume()
        assert {span.version for one in [await late, *await both] for span in one.versions} == {2}
        assert len(make.made[-1].requests) > 0
        await pool.close()

    play(body())


@pytest.mark.parametrize("error", [CheckpointError("missing"), TornWeightsError("its marker went first")])
def test_weights_that_change_while_an_engine_catches_up_reach_it(error: Exception) -> None:
    class Slow(Mortal):
        """Takes weights in several turns; a folder that went meanwhile is missing."""

        async def update_weights(self, source: Any, version: int) -> None:
            await turns(5)
            if source == gone:
                raise error
            await super().update_weights(source, version)

    gone = None

    async def body() -> None:
        nonlocal gone
        made: list[Mortal] = []

        async def make(index: int) -> Mortal:
            made.append(Slow(index) if made else Mortal(index))
            return made[-1]

        pool = await EnginePool.start(make, 1)
        await pool.update_weights("old", 1)
        made[0].die()
        with pytest.raises(EngineLostError):
            await pool.generate(ask())
        await turns(3)  # the new engine is at the old folder
        gone = "old"
        await pool.update_weights("new", 2)
        assert (await pool.generate(ask())).versions[0].version == 2
        assert made[1].took == ["new"]
        assert (await pool.metrics())["restarts"] == 1
        await pool.close()

    play(body())


def test_weights_that_are_refused_are_not_remembered() -> None:
    async def body() -> None:
        make = Maker()
        pool = await EnginePool.start(make, 2)
        await pool.update_weights("good", 1)
        with pytest.raises(EngineError, match="do not fit"):
            await pool.update_weights(EngineError("these do not fit"), 2)
        assert pool.version == 1
        make.made[0].die()
        await persist(pool, ask())
        await turns(10)
        assert make.made[-1].took == ["good"] and make.made[-1].version == 1
        await pool.close()

    play(body())


def test_an_engine_lost_by_an_update_is_replaced_by_one_with_the_new_weights() -> None:
    async def body() -> None:
        make = Maker()
        pool = await EnginePool.start(make, 2)
        make.made[1].die()
        await pool.pause()
        await pool.update_weights("new", 1)
        await pool.resume()
        done = await asyncio.gather(*(pool.generate(ask(str(i))) for i in range(4)))
        assert {one.versions[0].version for one in done} == {1}
        await turns(10)
        assert (await pool.metrics())["alive"] == 2 and make.made[2].took == ["new"]
        await pool.close()

    play(body())


def test_a_result_that_comes_after_a_death_answers_nothing() -> None:
    class Undead(Mortal):
        """Fails one request; goes on with the others, even when closed."""

        async def generate(self, request: Request) -> Completion:
            await turns(request.ids[0])
            if request.key.problem == "dies":
                raise EngineLostError("died")
            return Completion(request.key, (66,), (0.0,), EngineStop.STOP, ())

        async def close(self) -> None:
            """Nothing stops it."""

    async def body() -> None:
        made: list[Mortal] = []

        async def make(index: int) -> Mortal:
            made.append(Mortal(index) if made else Undead(index))
            return made[-1]

        pool = await EnginePool.start(make, 1)
        late, dies = ask("late", ids=(30, 2)), ask("dies", ids=(3, 2))
        first = await asyncio.gather(pool.generate(late), pool.generate(dies), return_exceptions=True)
        assert [type(result) for result in first] == [EngineLostError] * 2
        assert (await pool.generate(late)).ids == (await Mortal(0).generate(late)).ids
        assert (await pool.metrics())["lost_requests"] == 2
        await pool.close()

    play(body())


def served(make: Maker) -> list[set[tuple[str, str]]]:
    """(problem, thread) of what each engine was asked."""
    return [{(r.key.problem, r.key.thread) for r in engine.requests} for engine in make.made]


def test_a_trace_stays_with_one_engine_and_traces_are_spread() -> None:
    async def body() -> None:
        make = Maker()
        pool = await EnginePool.start(make, 3, routing="trace")
        await asyncio.gather(*(pool.generate(ask(f"p{i}")) for i in range(12)))
        children = [ask(f"p{i}", f"r.{child}") for i in range(12) for child in range(1 + i % 4)]
        await asyncio.gather(*(pool.generate(request) for request in children))
        await asyncio.gather(*(pool.generate(ask(f"p{i}", number=1)) for i in range(12)))
        problems = [{problem for problem, _ in seen} for seen in served(make)]
        assert [len(seen) for seen in problems] == [4, 4, 4]
        assert not problems[0] & problems[1] and not problems[1] & problems[2]
        await pool.close()

    play(body())


def test_spread_sends_children_to_whoever_is_least_busy_and_threads_return_home() -> None:
    async def body() -> None:
        make = Maker(turns=50)
        pool = await EnginePool.start(make, 3, routing="spread")
        await pool.generate(ask())
        await asyncio.gather(*(pool.generate(ask(thread=f"r.{child}")) for child in range(9)))
        busy = asyncio.create_task(pool.generate(ask()))
        await turns(2)
        again = [ask(thread=thread, number=1) for thread in ("r", "r.0", "r.1")]
        await asyncio.gather(*(pool.generate(request) for request in again))
        await busy
        threads = [[r.key.thread for r in engine.requests] for engine in make.made]
        assert [thread for thread in threads[0] if thread == "r"] == ["r"] * 3
        assert sorted(len(set(seen) - {"r"}) for seen in threads) == [3, 3, 3]
        assert all(sum(thread in seen for seen in threads) == 1 for thread in ("r.0", "r.1"))
        await pool.close()

    play(body())


def test_homes_are_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "REMEMBERED", 8)

    async def body() -> None:
        pool = await EnginePool.start(Maker(), 2)
        for i in range(40):
            await pool.generate(ask(f"p{i}"))
            await pool.generate(ask("always", number=i))
        assert len(pool._homes) == 8
        assert any(home.problem == "always" for home in pool._homes)
        await pool.close()

    play(body())


def test_metrics_are_sums_that_deaths_do_not_lower() -> None:
    async def body() -> None:
        make = Maker()
        pool = await EnginePool.start(make, 2)
        await asyncio.gather(*(pool.generate(ask(str(i))) for i in range(4)))
        before = await pool.metrics()
        assert (before["requests"], before["sampled_tokens"], before["alive"]) == (4, 80, 2)
        make.made[0].die()
        await persist(pool, ask("0"))
        after = await pool.metrics()
        assert (after["requests"], after["sampled_tokens"], after["lost_requests"]) == (5, 100, 1)
        await pool.close()

    play(body())


def test_an_engine_that_cannot_be_made_ends_the_start_and_none_is_left() -> None:
    async def body() -> None:
        make = Maker()
        make.failures = [ResourceError("no room for it")]
        with pytest.raises(ResourceError, match="no room for it"):
            await EnginePool.start(make, 3)
        assert len(make.made) == 2 and all(engine._closed for engine in make.made)

    play(body())


def test_engines_lost_while_they_start_are_made_again_and_count_as_restarts() -> None:
    async def body() -> None:
        make = Maker()
        make.failures = [EngineLostError("killed"), EngineLostError("killed again")]
        pool = await EnginePool.start(make, 2, restarts=3)
        assert sorted(engine.index for engine in make.made) == [0, 1]
        assert (await pool.metrics())["restarts"] == 2
        make.failures = [ResourceError("no room for it")]  # in vain, with the last of the three
        make.made[0].die()
        await asyncio.gather(*(persist(pool, ask(str(i))) for i in range(4)))
        assert ((await pool.metrics())["restarts"], (await pool.metrics())["alive"]) == (3, 1)
        await pool.close()

    play(body())


def test_engines_lost_while_they_start_more_often_than_they_may_end_it_and_none_is_left() -> None:
    async def body() -> None:
        make = Maker()
        make.failures = [EngineLostError(f"killed, {time}") for time in range(3)]
        with pytest.raises(EngineLostError, match="killed, 2"):
            await EnginePool.start(make, 3, restarts=2)
        assert all(engine._closed for engine in make.made)

    play(body())


def test_closing_ends_restarts_and_what_waits_for_them() -> None:
    async def body() -> None:
        make = Maker()
        pool = await EnginePool.start(make, 2)
        for engine in make.made:
            engine.die()
        make.free.clear()
        waiting = asyncio.gather(*(persist(pool, ask(str(i))) for i in range(3)), return_exceptions=True)
        await turns(10)
        await pool.close()
        await pool.close()
        assert Counter(type(result) for result in await waiting) == {EngineError: 3}
        assert all(engine._closed for engine in make.made)
        with pytest.raises(EngineError, match="closed"):
            await pool.generate(ask())

    play(body())


@pytest.mark.parametrize("routing", ["trace", "spread"])
def test_a_trace_stays_where_its_strands_share_what_they_computed_and_is_released_there(routing: Routing) -> None:
    """An engine of views `dag` serves a trace as a whole, even where threads of chains would be spread."""

    class Sharing(Mortal):
        views: Views = "dag"

        def __init__(self, index: int) -> None:
            super().__init__(index)
            self.released: list[StrandKey] = []

        async def release(self, key: StrandKey) -> None:
            self.released.append(key)

    async def body() -> None:
        made: list[Sharing] = []

        async def make(index: int) -> Sharing:
            made.append(Sharing(index))
            return made[-1]

        pool = await EnginePool.start(make, 3, routing=routing)
        assert pool.views == "dag"
        requests = [ask(f"p{trace}", thread) for trace in range(4) for thread in ("r", "r.0", "r.1", "r.2")]
        await asyncio.gather(*map(pool.generate, requests))
        homes = [
            {engine.index for engine in made for one in engine.requests if one.key.problem == f"p{i}"} for i in range(4)
        ]
        assert [len(home) for home in homes] == [1] * 4
        for trace in range(4):
            await pool.release(ask(f"p{trace}").key)
        for engine in made:
            assert {key.problem for key in engine.released} == {one.key.problem for one in engine.requests}
        await pool.close()

    play(body())


def test_all_engines_are_asked_for_metrics_at_once() -> None:
    async def body() -> None:
        make = Maker()
        pool = await EnginePool.start(make, 3)
        meeting = asyncio.Barrier(3)
        for engine in make.made:
            engine.metrics = lambda: _met(meeting)  # type: ignore[method-assign]
        assert (await asyncio.wait_for(pool.metrics(), 5))["requests"] == 3
        await pool.close()

    play(body())


async def _met(meeting: asyncio.Barrier) -> dict[str, float]:
    """Counters of an engine that answers when all have been asked."""
    await meeting.wait()
    return {"requests": 1.0}


def test_an_abort_in_the_turn_in_which_an_engine_comes_up_is_heard() -> None:
    async def body() -> None:
        make = Maker()
        pool = await EnginePool.start(make, 1, timeout=5)
        make.made[0].die()
        make.free.clear()
        with pytest.raises(EngineLostError):
            await pool.generate(ask())
        waiting = asyncio.create_task(pool.generate(ask("a")))
        await turns(3)
        pool._wake_all()  # an engine is there, and the request has not gone on yet
        await pool.abort(ask("a").key)
        make.free.set()
        aborted = await waiting
        assert (aborted.ids, aborted.stop) == ((), EngineStop.ABORT)
        await pool.close()

    play(body())

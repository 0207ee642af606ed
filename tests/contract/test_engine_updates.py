"""What every engine promises (`apr.threads.engine.Engine`) of weights, and of requests in flight: pause, suspension, updates,
abort, the end. The test that closes the engine comes last."""

import asyncio
from pathlib import Path

import pytest
from engine_cases import PROMPT, Case, ask, recompute, run, same, tensors_of, turns, update

from apr.errors import CheckpointError, EngineError, EngineLostError
from apr.threads.engine import Completion
from apr.threads.trace import EngineStop, StrandKey, VersionSpan

LONG = [ask(str(i), ids=(*PROMPT, *range(30, 60 + i)), max_tokens=100, seed=i) for i in range(4)]


def test_abort_returns_what_was_sampled_so_far(case: Case) -> None:
    long = ask("long", ids=(*PROMPT, *range(30, 60)), max_tokens=100)
    (whole,) = run(case, long)

    async def cut() -> tuple[Completion, Completion]:
        task = asyncio.create_task(case.engine.generate(long))
        other = asyncio.create_task(case.engine.generate(ask("other")))
        await case.under_way(20)
        await case.engine.abort(long.key)
        await case.engine.abort(StrandKey(0, "unknown", 0, "r", 0))
        return await task, await other

    aborted, other = asyncio.run(cut())
    assert aborted.stop is EngineStop.ABORT
    assert len(aborted.ids) == len(aborted.logprobs) < 100
    assert aborted.ids == whole.ids[: len(aborted.ids)]
    if case.neural:  # a script samples all its tokens at once
        assert aborted.ids
        assert aborted.versions == (VersionSpan(case.engine.version, 0, len(aborted.ids)),)
    assert len(other.ids) == 12
    assert same(run(case, long)[0], whole)


def test_abort_after_some_tokens_returns_as_many(case: Case) -> None:
    """The smallest number counts, and a request that ends by itself before is whole."""
    requests = [ask(f"long {i}", ids=(*PROMPT, *range(30, 60)), max_tokens=100) for i in range(3)]
    (whole,) = run(case, ask("whole", ids=requests[0].ids, max_tokens=100))

    async def cut() -> list[Completion]:
        tasks = [asyncio.create_task(case.engine.generate(request)) for request in requests]
        await case.under_way(2)
        await case.engine.abort(requests[0].key, 60)
        await case.engine.abort(requests[0].key, 30)
        await case.engine.abort(requests[0].key, 90)
        await case.engine.abort(requests[1].key, 100)
        return list(await asyncio.gather(*tasks))

    aborted, *others = asyncio.run(cut())
    assert aborted.stop is EngineStop.ABORT and len(aborted.ids) == len(aborted.logprobs) == 30
    assert aborted.ids == whole.ids[:30]
    assert all(other.stop is EngineStop.LENGTH and same(other, whole) for other in others)


def test_pause_waits_for_those_in_flight_and_holds_later_ones_until_resume(case: Case) -> None:
    async def play() -> None:
        engine = case.engine
        early = [asyncio.create_task(engine.generate(ask(f"early {i}"))) for i in range(3)]
        await asyncio.sleep(0)
        await engine.pause()
        late = asyncio.create_task(engine.generate(ask("late")))
        unwanted = asyncio.create_task(engine.generate(ask("unwanted")))
        await turns(60)
        assert all(task.done() for task in early)
        assert not late.done()
        await engine.abort(ask("unwanted").key)
        held = await unwanted
        assert (held.ids, held.stop, held.versions) == ((), EngineStop.ABORT, ())
        await engine.resume()
        assert len((await late).ids) == 12

    asyncio.run(play())


def test_an_update_changes_the_version_and_the_policy(case: Case) -> None:
    case.needs_weights()
    request = ask(ids=(*PROMPT, *range(30, 110)), temperature=0.0, max_tokens=20)
    (before,) = run(case, request)
    asyncio.run(update(case.engine, case.written(1, 7), 7))
    assert case.engine.version == 7
    (after,) = run(case, request)
    assert after.versions == (VersionSpan(7, 0, 20),)
    asyncio.run(update(case.engine, tensors_of(case.weights(0)), 8))
    (back,) = run(case, request)
    assert back.versions == (VersionSpan(8, 0, 20),)
    assert same(back, before)
    if case.neural:
        assert after.ids != before.ids
        assert after.logprobs == pytest.approx(recompute(case.weights(1), request.ids, after.ids, 1.0), abs=1e-3)
        assert after.cached == back.cached == 0, "keys and values of old weights were kept"


def test_an_update_under_requests_in_flight_is_refused(case: Case) -> None:
    case.needs_weights()

    async def update() -> None:
        task = asyncio.create_task(case.engine.generate(ask(max_tokens=150)))
        await asyncio.sleep(0)
        with pytest.raises(EngineError, match="pause"):
            await case.engine.update_weights(case.written(1, 9), 9)
        await task

    version = case.engine.version
    asyncio.run(update())
    assert case.engine.version == version


def test_suspended_requests_go_on_from_new_weights_with_their_kv_recomputed(case: Case) -> None:
    """Three policies in one strand. Each token has the logprob that its own policy gives it in its whole context, which
    no KV of another policy would."""
    case.needs_weights()

    async def play() -> list[Completion]:
        tasks = [asyncio.create_task(case.engine.generate(request)) for request in LONG]
        await turns(20)
        await update(case.engine, case.written(1, 11), 11, keep=True)
        await turns(15)
        await update(case.engine, tensors_of(case.weights(2)), 12, keep=True)
        return await asyncio.gather(*tasks)

    asyncio.run(update(case.engine, case.written(0, 10), 10))
    folders = {10: case.weights(0), 11: case.weights(1), 12: case.weights(2)}
    completions = asyncio.run(play())
    asyncio.run(update(case.engine, case.written(0, 0), 0))
    for request, completion in zip(LONG, completions):
        assert len(completion.ids) == len(completion.logprobs) == 100
        assert completion.stop is EngineStop.LENGTH
        check_spans(completion)
        if case.kind in ("tiny", "vllm"):  # what a remote engine has sampled by then depends on time
            assert [span.version for span in completion.versions] == [10, 11, 12]
        if case.neural:
            for version, start, end in completion.versions:
                expected = recompute(folders[version], request.ids, completion.ids[:end], 1.0)
                assert completion.logprobs[start:end] == pytest.approx(expected[start:], abs=1e-4)


@pytest.mark.parametrize("updates", [0, 1, 2])
def test_suspension_and_the_same_weights_change_no_result(case: Case, updates: int) -> None:
    case.needs_weights()
    whole = run(case, *LONG)
    version = case.engine.version

    async def play() -> list[Completion]:
        tasks = [asyncio.create_task(case.engine.generate(request)) for request in LONG]
        await turns(20)
        await case.engine.pause(keep=True)
        for number in range(updates):
            await case.engine.update_weights(tensors_of(case.weights(0)), version + 1 + number)
        await case.engine.resume()
        return await asyncio.gather(*tasks)

    for completion, unbroken in zip(asyncio.run(play()), whole):
        assert same(completion, unbroken)
        check_spans(completion)
        if updates == 0:
            assert completion.versions == (VersionSpan(version, 0, 100),)
        elif case.kind in ("tiny", "vllm"):  # an update that saw no token has no span
            assert [span.version for span in completion.versions] == [version, version + updates]


def test_nothing_is_sampled_while_requests_are_suspended(case: Case) -> None:
    case.needs_weights()

    async def play() -> None:
        engine = case.engine
        tasks = [asyncio.create_task(engine.generate(request)) for request in LONG[:2]]
        await turns(20)
        await engine.pause(keep=True)
        late = asyncio.create_task(engine.generate(ask("late")))
        await turns(200)
        if case.kind != "remote":  # which may have been done before
            assert not any(task.done() for task in tasks)
        assert not late.done()
        await engine.pause()  # now for those that were suspended to end
        await turns(60)
        assert all(task.done() for task in tasks)
        assert not late.done()
        await engine.resume()
        assert len((await late).ids) == 12

    asyncio.run(play())


@pytest.mark.parametrize("updated", [False, True])
def test_abort_of_a_suspended_request_returns_what_it_has(case: Case, updated: bool) -> None:
    case.needs_weights()
    (whole,) = run(case, LONG[0])
    version = case.engine.version

    async def play() -> list[Completion]:
        tasks = [asyncio.create_task(case.engine.generate(request)) for request in LONG[:2]]
        await turns(20)
        await case.engine.pause(keep=True)
        if updated:
            await case.engine.update_weights(tensors_of(case.weights(0)), version + 1)
        await case.engine.abort(LONG[0].key)
        first = await tasks[0]  # before the engine goes on
        await case.engine.resume()
        return [first, await tasks[1]]

    aborted, other = asyncio.run(play())
    assert aborted.ids == whole.ids[: len(aborted.ids)]
    assert len(aborted.ids) == len(aborted.logprobs)
    check_spans(aborted)
    assert len(other.ids) == 100
    if case.kind in ("tiny", "vllm"):
        assert aborted.stop is EngineStop.ABORT
        assert aborted.versions == (VersionSpan(version, 0, len(aborted.ids)),)
    assert same(run(case, LONG[0])[0], whole)


def test_a_cancelled_suspended_request_leaves_the_engine_idle(case: Case) -> None:
    case.needs_weights()

    async def play() -> None:
        tasks = [asyncio.create_task(case.engine.generate(request)) for request in LONG]
        await turns(20)
        await case.engine.pause(keep=True)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await case.engine.update_weights(tensors_of(case.weights(0)), case.engine.version)
        await asyncio.wait_for(case.engine.pause(), 60)
        await case.engine.resume()

    asyncio.run(play())
    assert len(run(case, LONG[0])[0].ids) == 100


def test_weights_of_another_model_are_refused_and_nothing_changes(case: Case, tmp_path: Path) -> None:
    case.needs_weights()
    if not case.neural:
        pytest.skip("a script has no weights")
    (before,) = run(case, ask())
    tensors = tensors_of(case.weights(1))
    lacking = {name: tensor for name, tensor in tensors.items() if "layers.1.mlp.up_proj" not in name}
    for wrong, error in (
        (lacking, EngineError),
        ({**tensors, "lm_head.weight": tensors["lm_head.weight"][:-1]}, EngineError),
        ({**tensors, "model.layers.2.mlp.up_proj.weight": tensors["lm_head.weight"]}, EngineError),
        (tmp_path, CheckpointError),
    ):
        with pytest.raises(error):
            asyncio.run(case.engine.update_weights(wrong, 9))
    (after,) = run(case, ask())
    assert same(before, after)
    assert after.versions == before.versions


def test_a_cancelled_request_leaves_the_engine_idle(case: Case) -> None:
    async def cancel() -> None:
        long = [ask(str(i), ids=(*PROMPT, *range(30, 60)), max_tokens=100) for i in range(4)]
        tasks = [asyncio.create_task(case.engine.generate(request)) for request in long]
        await turns(15)
        for task in tasks:
            task.cancel()
        await asyncio.wait_for(case.engine.pause(), 10)
        if case.server is None:
            await case.engine.update_weights(tensors_of(case.weights(0)), case.engine.version)
        await case.engine.resume()
        assert all(task.cancelled() for task in tasks)

    asyncio.run(cancel())
    assert len(run(case, ask("0"))[0].ids) == 12


def test_closing_fails_what_is_in_flight_and_may_be_repeated(case: Case) -> None:
    """Last: the engine of the file does not come back from it."""

    async def close() -> None:
        running = asyncio.create_task(case.engine.generate(ask("running", max_tokens=100)))
        await turns(3)
        await case.engine.close()
        with pytest.raises(EngineLostError):
            await running
        await case.engine.close()
        with pytest.raises(EngineError, match="closed"):
            await case.engine.generate(ask())

    asyncio.run(close())


def check_spans(completion: Completion) -> None:
    """Version spans cover the sampled tokens, each once, in order."""
    ends = [0, *(span.end for span in completion.versions)]
    assert [span.start for span in completion.versions] == ends[:-1]
    assert all(span.start < span.end for span in completion.versions)
    assert ends[-1] == len(completion.ids)

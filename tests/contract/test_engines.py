"""What every engine promises (`apr.engines.base.Engine`), tested on all of them.

The vLLM engine is made once for the module, since a process can hold one at a time; tests leave it usable, and the
one that closes it comes last.
"""

import asyncio
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import FakeServer, fake_endpoint

from apr.engines.base import Completion, Engine, Request
from apr.engines.scripted import ScriptedEngine
from apr.errors import CheckpointError, EngineError, EngineLostError
from apr.seeds import derive_rng
from apr.threads.trace import EngineStop, StrandKey, VersionSpan

WINDOW = 160
KINDS = ["scripted", "tiny", "pool", "remote", "endpoint", pytest.param("vllm", marks=pytest.mark.vllm)]
PROMPT = (1, 20, 21, 22, 23, 24, 25)


@dataclass
class Case:
    """An engine under test; `weights(i)` is the folder of its i-th policy, 0 the one it starts with."""

    kind: str
    engine: Engine
    weights: Callable[[int], Path]
    server: FakeServer | None = None

    @property
    def neural(self) -> bool:
        return self.kind != "scripted"

    def needs_weights(self) -> None:
        """Skip the test if the engine takes no weights, and so suspends no requests for them."""
        if self.server is not None:
            pytest.skip("the weights of an endpoint belong to its server")

    async def under_way(self, number: int) -> None:
        """Let requests in flight go on for some turns of the event loop; those of a server until it has sent some tokens."""
        await turns(number)
        if self.server is not None:
            enough = self.server.sent + number
            while self.server.sent < enough:
                await asyncio.sleep(0.001)


def _babble(request: Request) -> Sequence[int]:
    """A script that answers every request, at any length, by its ids alone."""
    return derive_rng(0, "babble", *request.ids).choices(range(8, 64), k=400)


def _remote(checkpoint: Path) -> Engine:
    """The tiny engine in a Ray actor of a local cluster, which ends with this process."""
    import ray

    from apr.config import ClusterConfig, EngineConfig
    from apr.engines.cluster import start_engine

    ray.init("local", num_cpus=1, include_dashboard=False, logging_level="warning", ignore_reinit_error=True)
    config, cluster = EngineConfig(kind="tiny", threads=1), ClusterConfig(address="local", timeout=120)
    return asyncio.run(start_engine(config, checkpoint, WINDOW, 0, cluster))


def _pool(checkpoint: Path) -> Engine:
    """Two tiny engines behind one seam."""
    from apr.engines.pool import EnginePool
    from apr.engines.tiny import TinyEngine

    async def make(index: int) -> Engine:
        return TinyEngine.from_checkpoint(checkpoint, max_context=WINDOW)

    return asyncio.run(EnginePool.start(make, 2))


def _endpoint(server: FakeServer, checkpoint: Path) -> Engine:
    from apr.config import EngineConfig
    from apr.engines.build import build_engine

    return build_engine(EngineConfig(kind="endpoint", url=server.url, timeout=60), checkpoint, WINDOW)


def _make(kind: str, checkpoint: Callable[[int], Path]) -> Engine:
    if kind == "remote":
        return _remote(checkpoint(0))
    if kind == "pool":
        return _pool(checkpoint(0))
    if kind == "scripted":
        return ScriptedEngine(_babble, max_context=WINDOW, delays=lambda request: len(request.ids))
    if kind == "tiny":
        from apr.engines.tiny import TinyEngine

        return TinyEngine.from_checkpoint(checkpoint(0), max_context=WINDOW)
    from apr.engines.vllm import VllmEngine

    return VllmEngine(checkpoint(0), max_context=WINDOW, seed=0, max_num_seqs=64, kv_cache_bytes=64 << 20)


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path]) -> Iterator[Case]:
    with ExitStack() as stack:
        if request.param == "endpoint":
            server = stack.enter_context(fake_endpoint(make_checkpoint(0), WINDOW))
            engine = _endpoint(server, make_checkpoint(0))
            yield Case(request.param, engine, make_checkpoint, server)
        else:
            engine = _make(request.param, make_checkpoint)
            yield Case(request.param, engine, make_checkpoint)
        asyncio.run(engine.close())
    if request.param == "remote":
        import ray

        ray.shutdown()  # other tests start a Ray of their own in this process


def ask(
    name: str = "p",
    ids: Sequence[int] = PROMPT,
    stop_ids: Sequence[int] = (),
    max_tokens: int = 12,
    temperature: float = 1.0,
    seed: int = 5,
) -> Request:
    return Request(StrandKey(0, name, 0, "r", 0), tuple(ids), tuple(stop_ids), max_tokens, temperature, seed)


def run(case: Case, *requests: Request) -> list[Completion]:
    async def together() -> list[Completion]:
        return list(await asyncio.gather(*(case.engine.generate(request) for request in requests)))

    return asyncio.run(together())


async def update(engine: Engine, source: Any, version: int, keep: bool = False) -> None:
    await engine.pause(keep)
    await engine.update_weights(source, version)
    await engine.resume()


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def same(a: Completion, b: Completion) -> bool:
    """Equal tokens; logprobs equal up to what batching may change."""
    return a.ids == b.ids and a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_a_stop_token_ends_the_completion_and_is_its_last_token(case: Case) -> None:
    (free,) = run(case, ask())
    stop = free.ids[5]
    length = free.ids.index(stop) + 1
    (stopped,) = run(case, ask(stop_ids=[stop, stop]))
    assert stopped.stop is EngineStop.STOP
    assert stopped.ids == free.ids[:length]
    assert len(stopped.logprobs) == length


def test_without_a_stop_token_it_runs_to_max_tokens(case: Case) -> None:
    eos = 2  # an end-of-sequence id that is no stop id of the request ends nothing
    for length in (1, 40):
        (completion,) = run(case, ask(ids=(*PROMPT, eos), max_tokens=length))
        assert completion.stop is EngineStop.LENGTH
        assert len(completion.ids) == length


def test_there_is_one_finite_logprob_per_token_and_one_version_span(case: Case) -> None:
    request = ask(max_tokens=30)
    (completion,) = run(case, request)
    assert completion.key == request.key
    assert len(completion.logprobs) == 30
    assert all(math.isfinite(logprob) and logprob <= 0 for logprob in completion.logprobs)
    assert completion.versions == (VersionSpan(case.engine.version, 0, 30),)
    assert 0 <= completion.cached < len(request.ids)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logprobs_are_of_the_distribution_sampled_from(case: Case, temperature: float) -> None:
    if not case.neural:
        pytest.skip("a script has no distribution")
    (completion,) = run(case, ask(temperature=temperature, max_tokens=30))
    expected = _recompute(case.weights(0), PROMPT, completion.ids, temperature or 1.0)
    assert completion.logprobs == pytest.approx(expected, abs=1e-3)


def test_the_same_seed_gives_the_same_tokens(case: Case) -> None:
    first, again = run(case, ask(seed=11)), run(case, ask(seed=11))
    assert same(first[0], again[0])


def test_another_seed_gives_other_tokens(case: Case) -> None:
    if not case.neural:
        pytest.skip("a script does not sample")
    sampled = run(case, *(ask(str(seed), seed=seed) for seed in range(8)))
    assert len({completion.ids for completion in sampled}) == 8


def test_the_key_does_not_enter_sampling(case: Case) -> None:
    one, other = run(case, ask("one"), ask("other"))
    assert one.ids == other.ids


def test_greedy_ignores_the_seed(case: Case) -> None:
    first, other = run(case, ask("a", temperature=0.0, seed=1), ask("b", temperature=0.0, seed=2))
    assert same(first, other)


def test_many_requests_at_once_each_get_their_own_answer(case: Case) -> None:
    rng = random.Random(0)
    requests = [
        ask(
            str(i), ids=[1, *rng.choices(range(20, 200), k=rng.randint(1, 50))], max_tokens=rng.randint(1, 20),
            temperature=rng.choice([0.0, 1.0]), seed=i,
        )
        for i in range(70)
    ]  # fmt: skip
    completions = run(case, *requests)
    for request, completion in zip(requests, completions):
        assert completion.key == request.key
        assert len(completion.ids) == request.max_tokens
    alone = run(case, requests[0]), run(case, requests[57])
    if case.kind == "vllm":  # batching changes its floats
        assert same(alone[0][0], completions[0])
    else:
        assert [alone[0][0], alone[1][0]] == [completions[0], completions[57]]


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
    asyncio.run(update(case.engine, case.weights(1), 7))
    assert case.engine.version == 7
    (after,) = run(case, request)
    assert after.versions == (VersionSpan(7, 0, 20),)
    asyncio.run(update(case.engine, _tensors(case.weights(0)), 8))
    (back,) = run(case, request)
    assert back.versions == (VersionSpan(8, 0, 20),)
    assert same(back, before)
    if case.neural:
        assert after.ids != before.ids
        assert after.logprobs == pytest.approx(_recompute(case.weights(1), request.ids, after.ids, 1.0), abs=1e-3)
        assert after.cached == back.cached == 0, "keys and values of old weights were kept"


def test_an_update_under_requests_in_flight_is_refused(case: Case) -> None:
    case.needs_weights()

    async def update() -> None:
        task = asyncio.create_task(case.engine.generate(ask(max_tokens=150)))
        await asyncio.sleep(0)
        with pytest.raises(EngineError, match="pause"):
            await case.engine.update_weights(case.weights(1), 9)
        await task

    version = case.engine.version
    asyncio.run(update())
    assert case.engine.version == version


LONG = [ask(str(i), ids=(*PROMPT, *range(30, 60 + i)), max_tokens=100, seed=i) for i in range(4)]


def test_suspended_requests_go_on_from_new_weights_with_their_kv_recomputed(case: Case) -> None:
    """Three policies in one strand. Each token has the logprob that its own policy gives it in its whole context, which
    no KV of another policy would."""
    case.needs_weights()

    async def play() -> list[Completion]:
        tasks = [asyncio.create_task(case.engine.generate(request)) for request in LONG]
        await turns(20)
        await update(case.engine, case.weights(1), 11, keep=True)
        await turns(15)
        await update(case.engine, _tensors(case.weights(2)), 12, keep=True)
        return await asyncio.gather(*tasks)

    asyncio.run(update(case.engine, case.weights(0), 10))
    folders = {10: case.weights(0), 11: case.weights(1), 12: case.weights(2)}
    completions = asyncio.run(play())
    asyncio.run(update(case.engine, case.weights(0), 0))
    for request, completion in zip(LONG, completions):
        assert len(completion.ids) == len(completion.logprobs) == 100
        assert completion.stop is EngineStop.LENGTH
        _check_spans(completion)
        if case.kind in ("tiny", "vllm"):  # what a remote engine has sampled by then depends on time
            assert [span.version for span in completion.versions] == [10, 11, 12]
        if case.neural:
            for version, start, end in completion.versions:
                expected = _recompute(folders[version], request.ids, completion.ids[:end], 1.0)
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
            await case.engine.update_weights(case.weights(0), version + 1 + number)
        await case.engine.resume()
        return await asyncio.gather(*tasks)

    for completion, unbroken in zip(asyncio.run(play()), whole):
        assert same(completion, unbroken)
        _check_spans(completion)
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
            await case.engine.update_weights(case.weights(0), version + 1)
        await case.engine.abort(LONG[0].key)
        first = await tasks[0]  # before the engine goes on
        await case.engine.resume()
        return [first, await tasks[1]]

    aborted, other = asyncio.run(play())
    assert aborted.ids == whole.ids[: len(aborted.ids)]
    assert len(aborted.ids) == len(aborted.logprobs)
    _check_spans(aborted)
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
        await case.engine.update_weights(case.weights(0), case.engine.version)
        await asyncio.wait_for(case.engine.pause(), 60)
        await case.engine.resume()

    asyncio.run(play())
    assert len(run(case, LONG[0])[0].ids) == 100


def test_more_prompt_tokens_than_an_engine_computes_at_once(case: Case) -> None:
    """A prompt cut in parts must not cost its request a random number."""
    rng = random.Random(1)
    crowd = [ask(str(i), ids=rng.choices(range(20, 200), k=150), max_tokens=4, seed=i) for i in range(64)]
    together = run(case, *crowd)
    for i in (0, 40, 54, 55, 56, 63):
        assert same(run(case, crowd[i])[0], together[i])


def test_weights_of_another_model_are_refused_and_nothing_changes(case: Case, tmp_path: Path) -> None:
    case.needs_weights()
    if not case.neural:
        pytest.skip("a script has no weights")
    (before,) = run(case, ask())
    tensors = _tensors(case.weights(1))
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


def test_the_context_is_respected(case: Case) -> None:
    (full,) = run(case, ask(ids=[20] * (WINDOW - 3), max_tokens=50))
    assert (len(full.ids), full.stop) == (3, EngineStop.LENGTH)
    (last,) = run(case, ask(ids=[20] * (WINDOW - 1)))
    assert len(last.ids) == 1
    with pytest.raises(EngineError, match="context"):
        run(case, ask(ids=[20] * WINDOW))


@pytest.mark.parametrize("wrong", [{"ids": ()}, {"max_tokens": 0}, {"temperature": -1.0}, {"ids": (1, -3)}])
def test_requests_that_make_no_sense_are_refused(case: Case, wrong: dict[str, Any]) -> None:
    with pytest.raises(EngineError):
        run(case, ask(**wrong))


def test_ids_outside_the_vocabulary_are_refused(case: Case) -> None:
    if not case.neural:
        pytest.skip("a script has no vocabulary")
    for wrong in (ask(ids=(1, 5000)), ask(stop_ids=[5000])):
        with pytest.raises(EngineError, match="vocabulary"):
            run(case, wrong)


def test_a_key_names_one_request_at_a_time(case: Case) -> None:
    with pytest.raises(EngineError, match="in flight already"):
        run(case, ask(), ask())
    assert len(run(case, ask())[0].ids) == 12


def test_a_cancelled_request_leaves_the_engine_idle(case: Case) -> None:
    async def cancel() -> None:
        long = [ask(str(i), ids=(*PROMPT, *range(30, 60)), max_tokens=100) for i in range(4)]
        tasks = [asyncio.create_task(case.engine.generate(request)) for request in long]
        await turns(15)
        for task in tasks:
            task.cancel()
        await asyncio.wait_for(case.engine.pause(), 10)
        if case.server is None:
            await case.engine.update_weights(case.weights(0), case.engine.version)
        await case.engine.resume()
        assert all(task.cancelled() for task in tasks)

    asyncio.run(cancel())
    assert len(run(case, ask("0"))[0].ids) == 12


def test_metrics_count_tokens(case: Case) -> None:
    before = dict(asyncio.run(case.engine.metrics()))
    done = run(case, ask("a", max_tokens=3), ask("b", max_tokens=4))
    after = asyncio.run(case.engine.metrics())
    grown = {name: after[name] - before[name] for name in after}
    assert grown["requests"] == 2
    assert grown["sampled_tokens"] == 7
    assert grown["cached_tokens"] == sum(completion.cached for completion in done)
    assert grown["prefilled_tokens"] == 2 * len(PROMPT) - grown["cached_tokens"]
    assert grown["busy_seconds"] > 0 or not case.neural
    assert grown["preemptions"] == 0


def test_closing_fails_what_is_in_flight_and_may_be_repeated(case: Case) -> None:
    """Last: the engine of the module does not come back from it."""

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


@pytest.mark.parametrize("method", ["submit", "collect"])
def test_whatever_ray_raises_no_request_waits_for_ever(method: str) -> None:
    """A stand-in for the actor: no Ray is started."""
    from ray.exceptions import ObjectLostError, OutOfMemoryError, RaySystemError

    from apr.engines.cluster import RemoteEngine

    class Method:
        def __init__(self, error: Exception | None) -> None:
            self.error = error

        async def remote(self, *arguments: Any) -> None:
            if self.error is not None:
                raise self.error

    async def play(error: Exception) -> None:
        methods = {name: Method(error if name == method else None) for name in ("submit", "collect")}
        ends: list[bool] = []
        engine = RemoteEngine(type("Actor", (), methods), WINDOW, 0, 30, lambda: ends.append(True))
        asked = [engine.generate(ask(name)) for name in "ab"]
        results = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 30)
        assert [type(result) for result in results] == [EngineLostError] * 2
        assert all("lost" in str(result) and type(error).__name__ in str(result) for result in results)
        assert ends == [True]
        with pytest.raises(EngineLostError):
            await engine.generate(ask())

    for error in (ObjectLostError("ref", "owner", "site"), OutOfMemoryError("full"), RaySystemError("x"), OSError("x")):
        asyncio.run(play(error))


def _check_spans(completion: Completion) -> None:
    """Version spans cover the sampled tokens, each once, in order."""
    ends = [0, *(span.end for span in completion.versions)]
    assert [span.start for span in completion.versions] == ends[:-1]
    assert all(span.start < span.end for span in completion.versions)
    assert ends[-1] == len(completion.ids)


@pytest.mark.parametrize("how", ["is silent", "says that its engine died"])
def test_an_actor_whose_engine_is_beyond_use_is_ended(how: str) -> None:
    """A stand-in for the actor, which would else stay and serve nobody: no Ray is started."""
    from apr.engines.cluster import RemoteEngine

    class Actor:
        def __getattr__(self, method: str) -> Any:
            return type("Method", (), {"remote": staticmethod(getattr(self, f"_{method}"))})

        async def _submit(self, requests: Any) -> None:
            """It came through."""

        async def _collect(self, patience: float) -> list[Any]:
            if how == "is silent":
                await asyncio.sleep(60)
            return [(1, EngineLostError("out of memory"))]

    async def play() -> None:
        ends: list[bool] = []
        engine = RemoteEngine(Actor(), WINDOW, 0, 0.05, lambda: ends.append(True))
        results = await asyncio.gather(*(engine.generate(ask(name)) for name in "abc"), return_exceptions=True)
        expected = "no answer (requests) within 0.05 s" if how == "is silent" else "out of memory"
        assert all(isinstance(result, EngineLostError) and expected in str(result) for result in results)
        for call in (engine.pause(), engine.generate(ask())):
            with pytest.raises(EngineLostError, match=re.escape(expected)):
                await call
        await engine.close()
        assert ends == [True]

    asyncio.run(play())


def _tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def _recompute(folder: Path, prompt: Sequence[int], sampled: Sequence[int], temperature: float) -> list[float]:
    """The logprobs of `sampled` after `prompt`, by one forward pass of transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *sampled]])).logits[0, len(prompt) - 1 : -1]
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    return logprobs.gather(1, torch.tensor(sampled)[:, None])[:, 0].tolist()

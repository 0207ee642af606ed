"""What every engine promises (`apr.threads.engine.Engine`) of single requests: tokens, logprobs, seeds, refusals, counters."""

import asyncio
import math
import random
from typing import Any

import pytest
from engine_cases import PROMPT, WINDOW, Case, ask, recompute, run, same

from apr.errors import EngineError
from apr.threads.trace import EngineStop, VersionSpan


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
    expected = recompute(case.weights(0), PROMPT, completion.ids, temperature or 1.0)
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
    if case.kind in ("vllm", "shared"):  # batching changes their floats
        assert same(alone[0][0], completions[0])
    else:
        assert [alone[0][0], alone[1][0]] == [completions[0], completions[57]]


def test_more_prompt_tokens_than_an_engine_computes_at_once(case: Case) -> None:
    """A prompt cut in parts must not cost its request a random number."""
    rng = random.Random(1)
    crowd = [ask(str(i), ids=rng.choices(range(20, 200), k=150), max_tokens=4, seed=i) for i in range(64)]
    together = run(case, *crowd)
    for i in (0, 40, 54, 55, 56, 63):
        assert same(run(case, crowd[i])[0], together[i])


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

"""The shared-cache engine computes what the learner's packed masked forward does, whatever strands see of each other."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from apr.engines.attention import NAME, register
from apr.engines.shared import SharedEngine
from apr.errors import ConfigError, EngineError
from apr.seeds import derive_rng
from apr.threads.engine import Request
from apr.threads.layout import block_of, blocks
from apr.threads.limits import Limits
from apr.threads.masks import mark_attended
from apr.threads.protocol import Await, Continue, Decision, Finish, Spawn
from apr.threads.session import Sampling, attempt
from apr.threads.trace import (
    EngineStop,
    Injected,
    Origin,
    Reference,
    StopReason,
    Strand,
    StrandId,
    StrandKey,
    Thread,
    Trace,
    closure_lengths,
)

VOCABULARY = 64
WINDOW = 512
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": WINDOW,
}  # fmt: skip
KINDS = ["Llama", "Qwen2", "Qwen3", "Gemma"]


def model(kind: str, attention: str = NAME, vocabulary: int = VOCABULARY) -> Any:
    """A model of this kind with random weights, the same in each call."""
    import transformers

    register()
    config = getattr(transformers, f"{kind}Config")(**SHAPE | {"vocab_size": vocabulary})
    config._attn_implementation = attention
    with torch.random.fork_rng():
        torch.manual_seed(7)
        made = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for parameter in made.parameters():
        parameter.data.mul_(3 if parameter.ndim > 1 else 1)  # so that what is seen matters
    return made


def engine(kind: str = "Llama", tokens: int = 4000, **options: Any) -> SharedEngine:
    per_token = 2 * 2 * 2 * 8 * 4
    return SharedEngine(model(kind), max_context=WINDOW, cache_bytes=tokens * per_token, **options)


class AnyDag:
    """Opens blocks, goes on beside children, joins over all that they wrote or some of it, as a die says; in no grammar: a
    strand ends at any id below 12. `rule`: of positions after a join."""

    name = "any_dag"
    nests = True
    shares = True

    def __init__(self, seed: int, rule: str = "max") -> None:
        self.seed = seed
        self.rule = rule

    def start(self, prompt: Sequence[int]) -> Continue:
        return Continue((Injected(Origin.PROMPT, tuple(prompt)),), (), 0, tuple(range(12)))

    def ended(self, strand: Strand, strands: Mapping[StrandId, Strand]) -> Decision:
        rng = derive_rng(self.seed, "ended", *strand.id)
        depth = strand.id.thread.count(".")
        if strand.id.number >= 4 or (depth and rng.random() < 0.3):
            return Finish(None if depth else (1,))
        whole = Reference(strand.id, len(strand.ids))
        if depth < 2 and rng.random() < 0.6:
            children = tuple(
                Continue(
                    (Injected(Origin.FORCED, (20 + child,) * rng.randint(1, 3)),),
                    (whole,) if rng.random() < 0.8 else (),
                    strand.end if rng.random() < 0.8 else 0,
                    tuple(range(12)),
                )
                for child in range(rng.randint(1, 3))
            )
            children = tuple(replace(child, position=strand.end if child.sees else 0) for child in children)
            goes_on = Continue((), (whole,), strand.end, tuple(range(12)))
            return Spawn(children, goes_on if rng.random() < 0.4 else Await())
        if rng.random() < 0.3:
            cut = rng.randint(1, len(strand.ids))
            return Continue(
                (Injected(Origin.FORCED, (30,)),), (Reference(strand.id, cut),), strand.position + cut, tuple(range(12))
            )
        return Await()

    def joined(self, last: Strand, children: Sequence[Thread], strands: Mapping[StrandId, Strand]) -> Decision:
        seen = [strands[child.strands[-1]] for child in children if child.stop is StopReason.RETURNED]
        sees = tuple(Reference(strand.id, len(strand.ids)) for strand in (last, *seen))
        ends = [strand.end for strand in (last, *seen)]
        position = max(ends) if self.rule == "max" else sum(ends) if self.rule == "sum" else last.end
        return Continue((Injected(Origin.FORCED, (31,)),), sees, position, tuple(range(12)))

    def answer(self, threads: Sequence[Thread]) -> tuple[int, ...] | None:
        return threads[0].message or None

    def write(self, script: Any, speller: Any) -> list[tuple[int, ...]]:
        raise NotImplementedError


LIMITS = Limits(context=WINDOW, depth=5, threads=30)


def attempts(served: Any, protocols: Sequence[Any], limits: Limits = LIMITS) -> list[Trace]:
    async def together() -> list[Trace]:
        return await asyncio.gather(
            *(
                attempt(
                    {"id": f"p{number % 3}"}, (1, 40 + number % 3, 41, 42), engine=served, protocol=protocol, limits=limits,
                    sampling=Sampling(1.0, 11), sample=number,
                )
                for number, protocol in enumerate(protocols)
            )
        )  # fmt: skip

    return asyncio.run(together())


def gaps(traces: Sequence[Trace], plain: Any) -> list[float]:
    """Differences between recorded log-probs and those of one masked forward pass over each block."""
    found = []
    for trace in traces:
        strands = trace.by_id()
        for block in blocks(trace.strands):
            mask = np.zeros((len(block.ids),) * 2, np.bool_)
            mark_attended(mask, block)
            with torch.no_grad():
                logits = plain(
                    input_ids=torch.tensor([block.ids]), position_ids=torch.tensor([block.positions]),
                    attention_mask=torch.from_numpy(mask)[None, None],
                ).logits[0]  # fmt: skip
            logprobs = torch.log_softmax(logits.float(), -1)
            before = block.before()
            for segment in block.segments:
                strand = strands[segment.strand]
                first = segment.stop - len(strand.sampled)
                assert strand.logprobs is not None
                found += [
                    abs(float(logprobs[before[index], block.ids[index]]) - said)
                    for index, said in zip(range(first, segment.stop), strand.logprobs, strict=True)
                ]
    return found


@pytest.mark.parametrize("rule", ["max", "sum", "flat"])
@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_are_those_of_the_packed_masked_forward(kind: str, rule: str) -> None:
    traces = attempts(engine(kind), [AnyDag(seed, rule) for seed in range(12)])
    assert sum(len(trace.threads) for trace in traces) > 40
    assert any(len(strand.sees) > 2 for trace in traces for strand in trace.strands)
    found = gaps(traces, model(kind, "sdpa"))
    assert len(found) > 300 and sum(found) / len(found) < 1e-6 and max(found) < 1e-5, (
        sum(found) / len(found),
        max(found),
    )


def told(trace: Trace) -> list[tuple[Any, ...]]:
    """What was sampled, without times and cache hits."""
    return [(s.id, s.sees, s.after, s.position, s.injected, s.sampled, s.stop, s.logprobs) for s in trace.strands]


DAGS = [AnyDag(seed) for seed in range(5)]


@pytest.mark.parametrize("tokens", [4000, WINDOW])
def test_a_trace_is_the_same_whatever_else_runs_and_however_often_it_is_dropped(tokens: int) -> None:
    crowded = engine(tokens=tokens, deterministic=True)
    together = attempts(crowded, DAGS)
    assert (asyncio.run(crowded.metrics())["preemptions"] > 0) == (tokens < 1000)
    roomy = [attempts(engine(deterministic=True), DAGS[: number + 1])[-1] for number in (0, 4)]
    assert [told(trace) for trace in roomy] == [told(together[number]) for number in (0, 4)]


def test_what_was_dropped_is_computed_again_exactly() -> None:
    crowded = engine(tokens=WINDOW)
    traces = attempts(crowded, DAGS)
    assert asyncio.run(crowded.metrics())["preemptions"] > 0
    assert max(gaps(traces, model("Llama", "sdpa"))) < 1e-5


def test_no_slot_is_held_after_the_traces_have_ended() -> None:
    served = engine()
    attempts(served, DAGS)
    residents = served._residents
    assert residents.free == residents.capacity and not residents.traces and not residents._prompts


def test_equal_prompts_are_computed_once() -> None:
    traces = attempts(engine(), [AnyDag(seed) for seed in (0, 1, 2, 0, 1, 2)])
    opening = [strand.cached for trace in traces for strand in trace.strands if strand.id == StrandId("r", 0)]
    assert opening == [0, 0, 0, 3, 3, 3]  # all but the last token of a prompt that another trace opened with


def test_a_join_computes_no_token_of_its_children_again() -> None:
    """Of what a joining strand sees, only the last sampled tokens, which nobody has fed, are computed for it."""
    for trace in attempts(engine(), [AnyDag(seed) for seed in range(12)]):
        strands = trace.by_id()
        for strand in trace.strands:
            if len(strand.sees) > 1:
                seen = sum(closure_lengths(strands, strand.sees).values())
                assert 0 <= seen - strand.cached <= len(strand.sees)


def test_a_sibling_that_is_cut_short_touches_no_other() -> None:
    """Two children; the first is aborted at some time, in the middle of its strand. The other is the same, bit for bit."""

    def child_of(served: SharedEngine, cancel_after: int | None) -> Any:
        parent = Strand(
            StrandId("r", 0), (), (), 0, (Injected(Origin.PROMPT, (1, 40, 41)),), (50, 51, 5), EngineStop.STOP
        )

        def request(number: int) -> Request:
            own = Strand(
                StrandId(f"r.{number}", 0), (Reference(parent.id, 6),), (), 6, (Injected(Origin.FORCED, (20 + number,)),), (),
                EngineStop.STOP,
            )  # fmt: skip
            block = block_of([(parent, 6), (own, 1)])
            key = StrandKey(0, "p", 0, *own.id)
            return Request(key, block.ids, (), 30, 1.0, 3 + number, block=block, position=7)

        async def both() -> Any:
            first, second = (asyncio.ensure_future(served.generate(request(number))) for number in range(2))
            if cancel_after is not None:
                for _ in range(cancel_after):
                    await asyncio.sleep(0)
                await served.abort(request(0).key)
            return await asyncio.gather(first, second)

        return asyncio.run(both())

    whole = child_of(engine(deterministic=True), None)
    for turns in (2, 5, 12):
        cut = child_of(engine(deterministic=True), turns)
        assert len(cut[0].ids) < 30 and cut[0].ids == whole[0].ids[: len(cut[0].ids)]
        assert (cut[1].ids, cut[1].logprobs) == (whole[1].ids, whole[1].logprobs)


def test_one_trace_that_needs_all_slots_is_refused_by_name() -> None:
    """Thirty children of one trace, 20 tokens each at once, in room for 520."""
    requests = [
        Request(StrandKey(0, "p", 0, f"r.{number}", 0), (1, *[20 + number] * 9), (), 30, 1.0, number)
        for number in range(30)
    ]

    async def together() -> None:
        served = engine(tokens=520)
        await asyncio.gather(*map(served.generate, requests))

    with pytest.raises(EngineError, match="its trace alone needs more than the 520 tokens"):
        asyncio.run(together())


def test_a_cache_below_one_context_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="fewer than one context"):
        engine(tokens=100)


def test_positions_are_bounded_by_the_window_and_not_by_the_tokens_seen() -> None:
    limits = LIMITS.model_copy(update={"reach": 40})
    traces = attempts(engine(), DAGS, limits)
    assert max(strand.end for trace in traces for strand in trace.strands) <= 40
    assert any(trace.costs is not None and trace.costs.context > 40 for trace in traces)
    assert any(thread.stop is StopReason.REACH for trace in traces for thread in trace.threads)

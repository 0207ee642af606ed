"""RL samples: every sampled token once, with its own logprob, and weights computed over a minibatch."""

import random
from collections import defaultdict
from dataclasses import replace

import pytest
from scored import SERIAL, SPAWNING, trace

from apr.threads.layout import blocks
from apr.threads.trace import Strand, VersionSpan
from rl.advantages import Scored
from rl.samples import Weighting, minibatches, samples

SCORED = [
    Scored(trace(options=SPAWNING), 0.5),
    Scored(trace(options=SERIAL), -0.25),
    Scored(trace(options=SERIAL), 0.1),
]
TOKENS = sum(len(strand.sampled) for one in SCORED for strand in one.trace.strands)


def shares(weighting: Weighting, by_strand: bool) -> dict[object, float]:
    """The sum of weights of each trace, or of each of its strands."""
    found: dict[object, float] = defaultdict(float)
    made = iter(samples(SCORED, weighting))
    for number, one in enumerate(SCORED):
        for _ in blocks(one.trace.strands):
            sample = next(made)
            for strand, weight in zip(sample.strands, sample.weights, strict=True):
                place = sample.block.segments[strand].strand
                found[(number, place) if by_strand else number] += weight
    assert next(made, None) is None
    return found


def strands(number: int) -> tuple[Strand, ...]:
    return SCORED[number].trace.strands


def test_every_sampled_token_is_there_once_with_its_logprob_and_advantage() -> None:
    made = samples(SCORED)
    assert sum(len(sample.trained) for sample in made) == TOKENS
    found = defaultdict(list)
    for sample in made:
        for place, logprob, advantage in zip(sample.trained, sample.logprobs, sample.advantages, strict=True):
            found[advantage].append((sample.block.ids[place], logprob))
    for one in SCORED:
        expected = [pair for s in one.trace.strands for pair in zip(s.sampled, s.logprobs or (), strict=True)]
        assert sorted(found[one.advantage]) == sorted(expected)


@pytest.mark.parametrize("weighting", ["token", "strand", "trace"])
def test_the_weights_of_a_step_sum_to_one(weighting: Weighting) -> None:
    assert sum(shares(weighting, by_strand=False).values()) == pytest.approx(1.0)


def test_token_weighting_gives_each_token_the_same() -> None:
    weights = {weight for sample in samples(SCORED, "token") for weight in sample.weights}
    assert weights == {1 / TOKENS}


def test_strand_weighting_gives_each_strand_the_same() -> None:
    total = sum(len(one.trace.strands) for one in SCORED)
    assert list(shares("strand", by_strand=True).values()) == pytest.approx([1 / total] * total)


def test_trace_weighting_gives_each_trace_the_same_and_its_strands_too() -> None:
    assert shares("trace", by_strand=False) == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3})
    own = [share for (number, _), share in shares("trace", by_strand=True).items() if number == 0]  # type: ignore[misc]
    assert len(own) == len(strands(0)) > 2
    assert own == pytest.approx([1 / 3 / len(own)] * len(own))


def test_constant_weighting_does_not_know_how_long_a_trace_is() -> None:
    made = samples(SCORED, "constant", constant=100)
    assert {weight for sample in made for weight in sample.weights} == {1 / (3 * 100)}


@pytest.mark.parametrize("weighting", ["token", "strand", "trace", "constant"])
def test_silent_traces_count_in_every_denominator(weighting: Weighting) -> None:
    """As if they were trained with advantage 0: the other traces' weights are those of the whole step."""
    silent = [Scored(one.trace, 0.0 if number else one.advantage) for number, one in enumerate(SCORED)]
    whole, alone = samples(SCORED, weighting), samples(silent, weighting)
    assert 0 < len(alone) < len(whole)
    assert [sample.weights for sample in alone] == [sample.weights for sample in whole[: len(alone)]]
    with_kl = samples(silent, weighting, kl=True)
    assert [sample.weights for sample in with_kl] == [sample.weights for sample in whole]
    assert {advantage for sample in with_kl[len(alone) :] for advantage in sample.advantages} == {0.0}


@pytest.mark.parametrize("weighting", ["token", "strand", "trace", "constant"])
def test_no_constant_scales_the_kl_term(weighting: Weighting) -> None:
    made = samples(SCORED, weighting, constant=7, kl=True)
    assert sum(weight for sample in made for weight in sample.kl_weights) == pytest.approx(1.0)
    assert (made[0].weights == made[0].kl_weights) == (weighting != "constant")


@pytest.mark.parametrize("count", range(1, 8))
def test_minibatches_hold_each_trace_once_in_equal_parts(count: int) -> None:
    parts = minibatches(SCORED * 2, count, random.Random(0))
    assert len(parts) == count and {len(part) for part in parts} <= {6 // count, 6 // count + 1}
    assert sorted(id(one) for part in parts for one in part) == sorted(id(one) for one in SCORED * 2)
    assert minibatches(SCORED * 2, count, random.Random(0)) == parts
    assert count > 1 or parts == [SCORED * 2]


def test_each_minibatch_has_denominators_of_its_own() -> None:
    for part in minibatches(SCORED, 3, random.Random(0)):
        assert sum(weight for sample in samples(part) for weight in sample.weights) == pytest.approx(1.0)


def test_a_strand_without_sampled_tokens_takes_no_share() -> None:
    first, *others = strands(0)
    empty = replace(first, id=others[-1].id._replace(number=9), sees=(), after=(), sampled=(), logprobs=())
    odd = Scored(replace(SCORED[0].trace, strands=(first, *others, empty)), 0.5)
    for weighting in ("strand", "trace"):
        made = samples([odd], weighting)
        assert sum(weight for sample in made for weight in sample.weights) == pytest.approx(1.0)


def test_a_demonstration_cannot_train_rl() -> None:
    bare = replace(SCORED[1].trace, strands=tuple(replace(s, logprobs=None) for s in SCORED[1].trace.strands))
    with pytest.raises(ValueError, match="no sampler logprobs"):
        samples([Scored(bare, 1.0)])


def test_lags_count_the_updates_since_each_token_was_sampled() -> None:
    first, *others = SCORED[1].trace.strands
    cut = len(first.sampled) // 2
    spans = (VersionSpan(3, 0, cut), VersionSpan(5, cut, len(first.sampled)))
    odd = replace(SCORED[1].trace, strands=(replace(first, versions=spans), *others))
    (sample,) = samples([Scored(odd, 1.0)], version=5)
    assert sample.lags == [2] * cut + [0] * (len(first.sampled) - cut)


def test_nothing_scored_is_nothing_to_learn() -> None:
    assert samples([], "token") == samples([], "trace") == []

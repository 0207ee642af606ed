"""The learner's update: it depends on nothing but the samples, checks before it steps, and goes on from its checkpoints."""

import asyncio
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apr.checkpoints.folder import ModelFolder
from apr.config import LearnerConfig, LoraConfig
from apr.errors import CheckpointError, NotFiniteError, ParityError
from apr.threads.layout import Block, Segment, causal
from apr.threads.trace import StrandId
from rl import adapters
from rl.checkpoint import OPTIMIZER_FOLDER
from rl.learner import Learner, Scorer, _model, check_parity
from rl.packing import Pass, pack, plan
from rl.parallel import Plain
from rl.prefixes import overlaid
from rl.samples import Sample


def sample(rng: random.Random) -> Sample:
    """A block of random tokens, of one strand or of two with a common prefix, of which some are trained; its numbers are as
    odd as they come."""
    ids = tuple(rng.randrange(8, 200) for _ in range(rng.randint(6, 40)))
    block = causal(ids)
    if rng.random() < 0.5:
        seen, edge = rng.randint(1, 3), rng.randint(3, len(ids) - 2)
        segments = (Segment(StrandId("r", 0), 0, edge, ()), Segment(StrandId("r", 1), edge, len(ids), ((0, seen),)))
        block = Block(ids, (*range(edge), *range(seen, seen + len(ids) - edge)), segments)
    trained = sorted(rng.sample(range(1, len(ids)), rng.randint(1, len(ids) - 1)))
    numbers = [[rng.uniform(low, high) for _ in trained] for low, high in ((-8, -2), (-1, 1), (0, 0.1))]
    return hand_made(block, trained, *numbers)


def hand_made(
    block: Block, trained: list[int], logprobs: list[float], advantages: list[float], weights: list[float]
) -> Sample:
    before = block.before()
    strands = [next(n for n, s in enumerate(block.segments) if s.start <= place < s.stop) for place in trained]
    return Sample(
        block, trained, [before[place] for place in trained], strands, logprobs, advantages, weights, weights,
        [0] * len(trained),
    )  # fmt: skip


ANY_GAP = (math.inf, math.inf)  # where samples are of no engine
BATCH = [sample(random.Random(seed)) for seed in range(12)]


def goes_on(one: Sample, rng: random.Random) -> Sample:
    """A sample that begins as another one does."""
    start, new = rng.randint(2, len(one.block.ids) - 1), tuple(rng.randrange(8, 200) for _ in range(rng.randint(1, 20)))
    ids = one.block.ids[:start] + new
    trained = list(range(1, len(ids)))
    return hand_made(causal(ids), trained, *([rng.uniform(low, 1) for _ in trained] for low in (-8, -1, 0)))


GROUPS = [goes_on(one, random.Random(seed)) for seed in range(3) for one in BATCH[:5]] + BATCH[:5]


@pytest.fixture(scope="module")
def make_learner(make_checkpoint: Callable[[int], Path]) -> Callable[..., Learner]:
    def make(temperature: float = 1.0, **config: Any) -> Learner:
        config = {"threads": 1, "max_grad_norm": 1e9, "row_tokens": 64, **config}
        return Learner(make_checkpoint(0), LearnerConfig(**config), temperature)

    return make


@pytest.fixture(scope="module")
def learner(make_learner: Callable[..., Learner]) -> Learner:
    return make_learner()


def gradient(learner: Learner, batch: list[Sample], **shape: int) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one update, of which the optimiser's step is left out. `shape`: of its forward passes."""
    learner.config = learner.config.model_copy(update={"row_tokens": 64, "tokens_per_pass": 1 << 20, **shape})
    found = []

    def keep(lr: float) -> float:
        found.append(torch.cat([parameter.grad.flatten() for parameter in learner.model.parameters()]))
        learner.model.zero_grad()
        return 1.0

    step, learner.backend.step = learner.backend.step, keep  # type: ignore[method-assign]
    try:
        metrics = asyncio.run(learner.update([batch], 1e-4, ANY_GAP))
    finally:
        learner.backend.step = step  # type: ignore[method-assign]
    return metrics["loss/policy"], found[0]


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.permutations(range(len(BATCH))), st.integers(64, 600), st.integers(16, 300),
    st.lists(st.integers(0, len(BATCH)), max_size=3),
)  # fmt: skip
def test_the_loss_does_not_depend_on_packing_order_or_split(
    learner: Learner, order: list[int], tokens_per_pass: int, row_tokens: int, cuts: list[int]
) -> None:
    loss, whole = gradient(learner, BATCH)
    edges = [0, *sorted(cuts), len(BATCH)]
    parts = [[BATCH[i] for i in order[a:b]] for a, b in zip(edges, edges[1:]) if a < b]
    results = [gradient(learner, part, tokens_per_pass=tokens_per_pass, row_tokens=row_tokens) for part in parts]
    assert sum(loss for loss, _ in results) == pytest.approx(loss, abs=1e-5)
    difference = sum(grad for _, grad in results) - whole
    assert difference.norm() < 1e-5 * whole.norm()


def test_samples_that_begin_alike_are_trained_as_if_each_stood_alone(learner: Learner) -> None:
    results = [gradient(learner, [one]) for one in GROUPS]
    loss, grad = gradient(learner, GROUPS, row_tokens=128)
    shared = sum(len(one.block.ids) for one in GROUPS) - sum(len(one.block.ids) for one in overlaid(GROUPS, 128))
    assert shared > 100
    assert loss == pytest.approx(sum(loss for loss, _ in results), abs=1e-5)
    assert (grad - sum(grad for _, grad in results)).norm() < 1e-5 * grad.norm()


def test_the_learners_loss_is_the_formula_token_by_token(learner: Learner) -> None:
    """Each strand alone in its own context, unpadded; the first inner step, where new = old."""
    expected = 0.0
    for one in BATCH:
        for i, place in enumerate(one.trained):
            segment = one.block.segments[one.strands[i]]
            seen = [j for first, last in one.block.seen(one.strands[i]) for j in range(first, last)] + list(
                range(segment.start, place + 1)
            )
            context = [one.block.ids[j] for j in seen]
            with torch.no_grad():
                logits = learner.model(input_ids=torch.tensor([context[:-1]])).logits[0, -1]
            own = torch.log_softmax(logits, dim=-1)[context[-1]].item()
            importance = min(math.exp(own - one.logprobs[i]), learner.config.importance_cap)
            expected -= one.weights[i] * one.advantages[i] * importance
    assert gradient(learner, BATCH)[0] == pytest.approx(expected, rel=1e-4)


def test_untrained_tokens_and_padding_have_no_part(learner: Learner) -> None:
    """What comes after the last trained token changes nothing; nor do the targets' neighbours in the row."""
    ids = BATCH[0].block.ids
    short, longer = (
        hand_made(causal(i), [2, 4], [-3.0, -4.0], [1.0, -0.5], [0.1, 0.2]) for i in (ids, (*ids, *range(8, 60)))
    )
    (loss, grad), (loss_, grad_) = gradient(learner, [short]), gradient(learner, [longer])
    assert loss == pytest.approx(loss_, abs=1e-6)
    assert (grad - grad_).norm() < 1e-5 * grad.norm()


def test_samples_in_one_row_do_not_see_each_other(learner: Learner) -> None:
    """Bit for bit: whatever stands beside a sample in its row, its logprobs are the same."""
    first = BATCH[0]
    others = [hand_made(causal([token] * 20), [5], [-1.0], [1.0], [1.0]) for token in (50, 60)]
    rows = [Pass([[first, other]], torch.device("cpu")) for other in others]
    with torch.no_grad():
        ours = [learner.scorer(one)[: len(first.trained)] for one in rows]
    assert torch.equal(ours[0], ours[1])


def test_an_update_raises_what_was_good_and_lowers_what_was_bad(make_learner: Callable[..., Learner]) -> None:
    ids = (1, 20, 21, 22, 23)
    for advantage in (1.0, -1.0):
        learner = make_learner(inner_steps=3)
        before = logprobs_of(learner, ids)
        one = hand_made(causal(ids), [2, 3, 4], before[1:].tolist(), [advantage] * 3, [1 / 3] * 3)
        metrics = asyncio.run(learner.update([[one]], 1e-5, parity=(1e-4, 1e-2)))  # too small to be clipped
        assert (logprobs_of(learner, ids)[1:] - before[1:]).sum() * advantage > 0
        assert metrics["loss/tokens"] == 3 and metrics["mismatch/abs_gap_max"] < 1e-5
        assert metrics["loss/padding_share"] == 0 and metrics["loss/grad_norm"] > 0


def logprobs_of(learner: Learner, ids: tuple[int, ...]) -> torch.Tensor:
    """Of each token but the first."""
    with torch.no_grad():
        logits = learner.model(input_ids=torch.tensor([ids])).logits[0, :-1] / learner.scorer.temperature
    return torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1)


def test_the_learner_divides_its_logits_by_the_samplers_temperature(make_learner: Callable[..., Learner]) -> None:
    learner = make_learner(temperature=0.5)
    ids = (1, 20, 21, 22)
    one = hand_made(causal(ids), [1, 2, 3], logprobs_of(learner, ids).tolist(), [1.0] * 3, [1.0] * 3)
    asyncio.run(learner.update([[one]], 1e-4, parity=(1e-4, 1e-2)))
    with pytest.raises(ParityError, match="same temperature"):
        asyncio.run(make_learner(temperature=1.0).update([[one]], 1e-4, parity=(1e-4, 1e-2)))


def test_parity_is_checked_before_any_weight_changes(make_learner: Callable[..., Learner]) -> None:
    learner = make_learner()
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    with pytest.raises(ParityError, match="on average"):
        asyncio.run(learner.update([BATCH], 1e-4, parity=(1e-4, 1e-2)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.model.state_dict().items())


@pytest.mark.parametrize(
    ("mean", "most", "raises"),
    [(0.5e-4, 0.5e-2, False), (2e-4, 0.5e-2, True), (0.5e-4, 2e-2, True), (math.nan, math.nan, True)],
)
def test_parity_bounds_mean_and_maximum(mean: float, most: float, raises: bool) -> None:
    gaps = {"mismatch/abs_gap_mean": mean, "mismatch/abs_gap_max": most}
    if not raises:
        check_parity(gaps, (1e-4, 1e-2))
        return
    with pytest.raises(ParityError):
        check_parity(gaps, (1e-4, 1e-2))


def test_the_optimiser_goes_on_only_when_a_run_does_and_by_its_configuration(
    make_learner: Callable[..., Learner], tmp_path: Path
) -> None:
    learner = make_learner(weight_decay=0.5)
    asyncio.run(learner.update([BATCH], 1e-4, ANY_GAP))
    asyncio.run(learner.save(tmp_path))
    config = LearnerConfig(threads=1, weight_decay=0.25)
    resumed, new = (Learner(tmp_path, config, 1.0, resumed=resumed) for resumed in (True, False))
    assert isinstance(resumed.backend, Plain) and isinstance(new.backend, Plain)
    assert len(resumed.backend.optimizer.state) == len(list(resumed.model.parameters()))
    assert not new.backend.optimizer.state
    assert [group["weight_decay"] for group in resumed.backend.optimizer.param_groups] == [0.25]
    shutil.rmtree(tmp_path / OPTIMIZER_FOLDER)
    with pytest.raises(CheckpointError, match=r"rank_0_of_1\.safetensors is missing"):
        Learner(tmp_path, config, 1.0, resumed=True)


def test_gradients_that_are_not_finite_end_the_run_before_the_step(make_learner: Callable[..., Learner]) -> None:
    learner = make_learner()
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    learner.model.get_output_embeddings().weight.register_hook(lambda gradient: gradient * math.inf)
    one = hand_made(causal((1, 20, 21)), [1, 2], [-1.0, -1.0], [1.0, 1.0], [1.0, 1.0])
    with pytest.raises(NotFiniteError, match="gradient norm is"):
        asyncio.run(learner.update([[one]], 1e-4, ANY_GAP))
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.model.state_dict().items())


def test_a_loss_that_is_not_finite_ends_the_run_before_the_step(make_learner: Callable[..., Learner]) -> None:
    """That of a reference whose logprobs are NaN: the KL term is bounded, and its gradient stays finite."""
    learner = make_learner(kl_weight=0.1)
    assert learner.reference is not None
    with torch.no_grad():
        learner.reference.model.get_output_embeddings().weight.fill_(math.nan)
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    with pytest.raises(NotFiniteError, match="the loss is nan: lower learner.lr; the last checkpoint is whole"):
        asyncio.run(learner.update([BATCH], 1e-4, ANY_GAP))
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.model.state_dict().items())


@pytest.mark.parametrize("side", ["sampler", "learner"])
def test_a_logprob_that_is_no_number_is_no_parity(side: str, make_learner: Callable[..., Learner]) -> None:
    learner, batch = make_learner(), BATCH
    if side == "sampler":
        batch = [replace(BATCH[0], logprobs=[math.nan, *BATCH[0].logprobs[1:]]), *BATCH[1:]]
    else:
        with torch.no_grad():
            learner.model.get_input_embeddings().weight[BATCH[0].block.ids[0]] = math.inf
    with pytest.raises(ParityError, match="nan"):
        asyncio.run(learner.update([batch], 1e-4, ANY_GAP))


def test_weights_that_are_not_finite_are_not_saved(make_learner: Callable[..., Learner], tmp_path: Path) -> None:
    learner = make_learner()
    with torch.no_grad():
        learner.model.get_output_embeddings().weight[3, 5] = math.inf
    with pytest.raises(NotFiniteError, match=r"the weight lm_head\.weight is not finite: lower learner\.lr"):
        asyncio.run(learner.save(tmp_path))
    assert not list(tmp_path.iterdir())


# Packing.


@given(st.lists(st.integers(1, 90), max_size=40), st.integers(16, 64), st.integers(64, 200), st.integers(1, 4))
def test_every_sample_is_in_one_row_of_one_rank_and_no_bound_is_exceeded(
    lengths: list[int], row_tokens: int, tokens_per_pass: int, ranks: int
) -> None:
    batch = [hand_made(causal(range(length)), [], [], [], []) for length in lengths]
    shares = plan(batch, row_tokens, tokens_per_pass, ranks)
    assert len(shares) == ranks and len({len(share) for share in shares}) == 1
    placed = [sample for share in shares for rows in share for row in rows for sample in row]
    assert sorted(map(id, placed)) == sorted(map(id, batch))
    for rows in (rows for share in shares for rows in share if rows):
        sizes = [sum(len(sample.block.ids) for sample in row) for row in rows]
        assert all(size <= row_tokens or len(row) == 1 for size, row in zip(sizes, rows))
        assert len(rows) * max(sizes) <= tokens_per_pass or len(rows) == 1


def test_little_of_what_a_step_forwards_is_padding() -> None:
    rng = random.Random(0)
    batch = [hand_made(causal(range(rng.randint(12, 120))), [], [], [], []) for _ in range(600)]
    rows = pack(batch, 256)
    tokens = sum(len(sample.block.ids) for sample in batch)
    assert 256 * len(rows) < 1.02 * tokens


def test_a_pass_without_rows_has_no_loss_and_no_gradient(learner: Learner) -> None:
    logprobs = learner.scorer(Pass([], torch.device("cpu")))
    assert logprobs.shape == (0,)
    logprobs.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in learner.model.parameters())
    learner.model.zero_grad()


# Choices of how the learner computes.


def test_activation_checkpointing_changes_memory_and_nothing_else(
    learner: Learner, make_learner: Callable[..., Learner]
) -> None:
    loss, grad = gradient(make_learner(activation_checkpointing=True), BATCH)
    expected, whole = gradient(learner, BATCH)
    assert loss == pytest.approx(expected, abs=1e-6) and (grad - whole).norm() < 1e-5 * whole.norm()


def test_bfloat16_computes_nearly_the_same_on_float32_weights(
    learner: Learner, make_learner: Callable[..., Learner]
) -> None:
    other = make_learner(dtype="bfloat16")
    assert {p.dtype for p in other.model.parameters()} == {torch.float32}
    (_, grad), (_, whole) = gradient(other, BATCH), gradient(learner, BATCH)
    assert 1e-5 * whole.norm() < (grad - whole).norm() < 0.1 * whole.norm()


def test_the_reference_is_where_rl_began_and_stays_there(
    make_checkpoint: Callable[[int], Path], make_learner: Callable[..., Learner], tmp_path: Path
) -> None:
    config = {"kl_weight": 0.1, "inner_steps": 2, "clip_high": 9.0}
    learner = make_learner(**config)
    first = asyncio.run(learner.update([BATCH], 1e-3, ANY_GAP))["loss/kl"]
    second = asyncio.run(learner.update([BATCH], 1e-3, ANY_GAP))["loss/kl"]
    assert second > first > 0
    asyncio.run(learner.save(tmp_path))
    resumed = Learner(tmp_path, learner.config, 1.0, resumed=True, origin=make_checkpoint(0))
    third = [asyncio.run(one.update([BATCH], 1e-3, ANY_GAP))["loss/kl"] for one in (learner, resumed)]
    assert third[0] > second and third[1] == pytest.approx(third[0], rel=1e-4)


def test_adapters_train_alone_and_are_merged_into_what_leaves_the_learner(
    make_checkpoint: Callable[[int], Path], make_learner: Callable[..., Learner], tmp_path: Path
) -> None:
    lora, origin = LoraConfig(rank=4, alpha=8), make_checkpoint(0)
    learner = make_learner(lora=lora, kl_weight=0.1)
    start = _model(ModelFolder.open(origin), torch.device("cpu")).state_dict()
    fresh = asyncio.run(learner.weights())
    assert fresh.keys() == start.keys() and all(torch.equal(fresh[name], start[name]) for name in start)
    assert asyncio.run(learner.update([BATCH], 1e-2, ANY_GAP))["loss/kl"] == pytest.approx(0, abs=1e-7)
    assert asyncio.run(learner.update([BATCH], 1e-2, ANY_GAP))["loss/kl"] > 0  # the reference has no adapters
    asyncio.run(learner.save(tmp_path))
    merged = asyncio.run(learner.weights())
    changed = {name for name in start if not torch.equal(merged[name], start[name])}
    assert changed and all("proj" in name for name in changed)
    plain = _model(ModelFolder.open(tmp_path), torch.device("cpu"))
    assert all(torch.equal(plain.state_dict()[name], merged[name]) for name in start)
    with torch.no_grad():
        one = Pass([[BATCH[0]]], torch.device("cpu"))
        torch.testing.assert_close(learner.scorer(one), Scorer(plain, 1.0, "float32")(one), atol=1e-5, rtol=1e-5)
    resumed = Learner(tmp_path, learner.config, 1.0, resumed=True, origin=origin)
    after = [
        asyncio.run(one.update([BATCH], 1e-2, ANY_GAP)) and asyncio.run(one.weights()) for one in (learner, resumed)
    ]
    assert all(torch.equal(after[0][name], after[1][name]) for name in start)
    with pytest.raises(CheckpointError, match="adapters of another model or rank"):
        adapters.load(learner.model, {}, tmp_path)


def test_first_adapters_are_the_same_in_every_run(make_learner: Callable[..., Learner]) -> None:
    first = adapters.state(make_learner(lora=LoraConfig(rank=4, alpha=8)).scorer.model)
    torch.randn(3)  # whatever was drawn before
    again = adapters.state(make_learner(lora=LoraConfig(rank=4, alpha=8)).scorer.model)
    assert first and all(torch.equal(first[name], again[name]) for name in first)

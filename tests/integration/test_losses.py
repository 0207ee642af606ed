"""The RL loss: by hand on a few tokens, and through the learner, where it depends on nothing but the samples."""

import asyncio
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apr.config import LearnerConfig
from apr.errors import AprError, CheckpointError, ParityError
from rl.learner import OPTIMIZER_FILE, Learner, check_parity
from rl.losses import LossTerms, policy_loss
from rl.samples import Sample

LOW, HIGH, CAP = 0.2, 0.3, 2.0


def terms(ratio: float, advantage: float, importance: float = 1.0, weight: float = 1.0) -> tuple[LossTerms, float]:
    """The terms of one token with these ratios, and the gradient that reaches its logprob."""
    old = torch.tensor([-1.0], dtype=torch.float64)
    new = (old + math.log(ratio)).requires_grad_()
    given_ = (old - math.log(importance), *torch.tensor([[advantage], [weight]], dtype=torch.float64))
    result = policy_loss(new, old, *given_, LOW, HIGH, CAP)
    result.loss.backward()
    assert new.grad is not None
    return result, new.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.2, 2.0, -2.4, False),
        (1.5, 2.0, -1.3 * 2.0, True),  # enough of a good thing
        (0.5, 2.0, -0.5 * 2.0, False),  # a good token that became rarer is pulled back
        (0.9, -2.0, 0.9 * 2.0, False),
        (0.5, -2.0, 0.8 * 2.0, True),
        (1.5, -2.0, 1.5 * 2.0, False),  # a bad token that became likelier is pushed back, without bound
    ],
)
def test_the_clip_keeps_what_goes_too_far_and_nothing_else(
    ratio: float, advantage: float, loss: float, clipped: bool
) -> None:
    result, gradient = terms(ratio, advantage)
    assert result.loss.item() == pytest.approx(loss)
    assert bool(result.clipped) == clipped
    assert gradient == pytest.approx(0.0 if clipped else -ratio * advantage)


@pytest.mark.parametrize(("importance", "used"), [(0.25, 0.25), (1.0, 1.0), (1.9, 1.9), (2.0, 2.0), (50.0, 2.0)])
def test_importance_weights_are_truncated_above(importance: float, used: float) -> None:
    result, gradient = terms(1.0, 1.5, importance)
    assert result.importance.item() == pytest.approx(used)
    assert result.loss.item() == pytest.approx(-1.5 * used)
    assert gradient == pytest.approx(-1.5 * used)


def test_at_the_first_inner_step_the_gradient_is_that_of_reinforce() -> None:
    """With new = old = sampler: minus the sum of weight times advantage, and the same for each token's logprob."""
    weights, advantages = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([1.0, -1.0, 0.5, 0.0])
    logprobs = torch.tensor([-0.1, -2.0, -3.0, -4.0])
    new = logprobs.clone().requires_grad_()
    result = policy_loss(new, logprobs, logprobs, advantages, weights, LOW, HIGH, CAP)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(-(weights * advantages).sum().item())
    torch.testing.assert_close(new.grad, -weights * advantages)
    assert result.ratio.shape == result.clipped.shape == result.importance.shape == new.shape
    assert result.loss.shape == () and not result.clipped.any()
    assert not any(tensor.requires_grad for tensor in (result.ratio, result.clipped, result.importance))


@pytest.mark.parametrize("gap", [-1e4, 1e4])
def test_absurd_gaps_stay_finite(gap: float) -> None:
    new = torch.tensor([gap], requires_grad=True)
    zero, one = torch.zeros(1), torch.ones(1)
    policy_loss(new, zero, -zero - gap, one, one, LOW, HIGH, CAP).loss.backward()
    assert new.grad is not None and torch.isfinite(new.grad).all()


# Through the learner.


def sample(rng: random.Random) -> Sample:
    """A row of random tokens of which some, never the first, are trained; its numbers are as odd as they come."""
    ids = tuple(rng.randrange(8, 200) for _ in range(rng.randint(3, 40)))
    positions = sorted(rng.sample(range(1, len(ids)), rng.randint(1, len(ids) - 1)))
    numbers = [[rng.uniform(low, high) for _ in positions] for low, high in ((-8, -2), (-1, 1), (0, 0.1))]
    return Sample(ids, positions, *numbers)


ANY_GAP = (math.inf, math.inf)  # where samples are of no engine
BATCH = [sample(random.Random(seed)) for seed in range(12)]


@pytest.fixture(scope="module")
def make_learner(make_checkpoint: Callable[[int], Path]) -> Callable[..., Learner]:
    def make(temperature: float = 1.0, **config: Any) -> Learner:
        return Learner(make_checkpoint(0), LearnerConfig(**{"threads": 1, "max_grad_norm": 1e9, **config}), temperature)

    return make


@pytest.fixture(scope="module")
def learner(make_learner: Callable[..., Learner]) -> Learner:
    return make_learner()


def gradient(learner: Learner, batch: list[Sample], tokens_per_pass: int = 1 << 20) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one update, of which the optimiser's step is left out."""
    learner.config = learner.config.model_copy(update={"tokens_per_pass": tokens_per_pass})
    found = []

    def keep() -> None:
        found.append(torch.cat([parameter.grad.flatten() for parameter in learner.model.parameters()]))

    step, learner.optimizer.step = learner.optimizer.step, keep
    try:
        metrics = asyncio.run(learner.update(batch, 1e-4, ANY_GAP))
    finally:
        learner.optimizer.step = step
    return metrics["loss/policy"], found[0]


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.permutations(range(len(BATCH))), st.integers(64, 600), st.lists(st.integers(0, len(BATCH)), max_size=3))
def test_the_loss_does_not_depend_on_packing_order_or_split(
    learner: Learner, order: list[int], tokens_per_pass: int, cuts: list[int]
) -> None:
    loss, whole = gradient(learner, BATCH)
    edges = [0, *sorted(cuts), len(BATCH)]
    parts = [[BATCH[i] for i in order[a:b]] for a, b in zip(edges, edges[1:]) if a < b]
    results = [gradient(learner, part, tokens_per_pass) for part in parts]
    assert sum(loss for loss, _ in results) == pytest.approx(loss, abs=1e-5)
    difference = sum(grad for _, grad in results) - whole
    assert difference.norm() < 1e-5 * whole.norm()


def test_the_learners_loss_is_the_formula_token_by_token(learner: Learner) -> None:
    """Each row alone, unpadded; the first inner step, where new = old."""
    expected = 0.0
    for one in BATCH:
        with torch.no_grad():
            logits = learner.model(input_ids=torch.tensor([one.ids])).logits[0]
        logprobs = torch.log_softmax(logits, dim=-1)
        for i, position in enumerate(one.positions):
            own = logprobs[position - 1, one.ids[position]].item()
            importance = min(math.exp(own - one.logprobs[i]), learner.config.importance_cap)
            expected -= one.weights[i] * one.advantages[i] * importance
    assert gradient(learner, BATCH)[0] == pytest.approx(expected, rel=1e-4)


def test_untrained_tokens_and_padding_have_no_part(learner: Learner) -> None:
    """What comes after the last trained token changes nothing; nor do the targets' neighbours."""
    one = BATCH[0]
    last = one.positions[-1]
    longer = Sample((*one.ids[: last + 1], *range(8, 60)), one.positions, one.logprobs, one.advantages, one.weights)
    (loss, grad), (loss_, grad_) = gradient(learner, [one]), gradient(learner, [longer])
    assert loss == pytest.approx(loss_, abs=1e-6)
    assert (grad - grad_).norm() < 1e-5 * grad.norm()


def test_an_update_raises_what_was_good_and_lowers_what_was_bad(make_learner: Callable[..., Learner]) -> None:
    ids = (1, 20, 21, 22, 23)
    for advantage in (1.0, -1.0):
        learner = make_learner(inner_steps=3)
        before = logprobs_of(learner, ids)
        one = Sample(ids, [2, 3, 4], before[1:].tolist(), [advantage] * 3, [1 / 3] * 3)
        metrics = asyncio.run(learner.update([one], 1e-5, parity=(1e-4, 1e-2)))  # too small to be clipped
        assert (logprobs_of(learner, ids)[1:] - before[1:]).sum() * advantage > 0
        assert metrics["loss/tokens"] == 3 and metrics["mismatch/abs_gap_max"] < 1e-5
        assert metrics["loss/padding_share"] == 0 and metrics["loss/grad_norm"] > 0


def logprobs_of(learner: Learner, ids: tuple[int, ...]) -> torch.Tensor:
    """Of each token but the first."""
    with torch.no_grad():
        logits = learner.model(input_ids=torch.tensor([ids])).logits[0, :-1] / learner.temperature
    return torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1)


def test_the_learner_divides_its_logits_by_the_samplers_temperature(make_learner: Callable[..., Learner]) -> None:
    learner = make_learner(temperature=0.5)
    ids = (1, 20, 21, 22)
    one = Sample(ids, [1, 2, 3], logprobs_of(learner, ids).tolist(), [1.0] * 3, [1.0] * 3)
    asyncio.run(learner.update([one], 1e-4, parity=(1e-4, 1e-2)))
    with pytest.raises(ParityError, match="same temperature"):
        asyncio.run(make_learner(temperature=1.0).update([one], 1e-4, parity=(1e-4, 1e-2)))


def test_parity_is_checked_before_any_weight_changes(make_learner: Callable[..., Learner]) -> None:
    learner = make_learner()
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    with pytest.raises(ParityError, match="on average"):
        asyncio.run(learner.update(BATCH, 1e-4, parity=(1e-4, 1e-2)))
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
    asyncio.run(learner.update(BATCH, 1e-4, ANY_GAP))
    asyncio.run(learner.save(tmp_path))
    config = LearnerConfig(threads=1, weight_decay=0.25)
    resumed, new = (Learner(tmp_path, config, 1.0, resumed=resumed) for resumed in (True, False))
    assert len(resumed.optimizer.state) == len(list(resumed.model.parameters())) and not new.optimizer.state
    assert [group["weight_decay"] for group in resumed.optimizer.param_groups] == [0.25]
    (tmp_path / OPTIMIZER_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"optimizer\.pt is missing"):
        Learner(tmp_path, config, 1.0, resumed=True)


def test_gradients_that_are_not_finite_end_the_run_before_the_step(make_learner: Callable[..., Learner]) -> None:
    learner = make_learner()
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    one = Sample((1, 20, 21), [1, 2], [-1.0, -1.0], [math.inf, 1.0], [1.0, 1.0])
    with pytest.raises(AprError, match="gradient norm is"):
        asyncio.run(learner.update([one], 1e-4, ANY_GAP))
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.model.state_dict().items())

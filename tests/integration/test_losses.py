"""The RL loss, by hand on a few tokens."""

import math
from typing import Any

import pytest
import torch

from apr.config import LearnerConfig
from rl.losses import LossTerms, policy_loss

LOW, HIGH, CAP = 0.2, 0.3, 2.0


CONFIG = LearnerConfig(minibatches=2, clip_low=LOW, clip_high=HIGH, importance_cap=CAP)


def terms(
    ratio: float, advantage: float, importance: float = 1.0, weight: float = 1.0, **more: Any
) -> tuple[LossTerms, float]:
    """The terms of one token with these ratios, and the gradient that reaches its logprob."""
    old = torch.tensor([-1.0], dtype=torch.float64)
    new = (old + math.log(ratio)).requires_grad_()
    given_ = (
        old - math.log(importance),
        *torch.tensor([[advantage], [weight], [weight]], dtype=torch.float64),
        torch.tensor([0]),
    )
    result = policy_loss(new, old, *given_, CONFIG.model_copy(update=more))
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
    result = policy_loss(
        new, logprobs, logprobs, advantages, weights, weights, torch.zeros(4, dtype=torch.long), CONFIG
    )
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
    config = CONFIG.model_copy(update={"kl_weight": 1.0})
    policy_loss(new, zero, -zero - gap, one, one, one, zero.long(), config, zero).loss.backward()
    assert new.grad is not None and torch.isfinite(new.grad).all()


@pytest.mark.parametrize(("ratio", "used"), [(0.5, 0.8), (1.0, 1.0), (1.25, 1.25), (9.0, 1.3)])
def test_cispo_bounds_the_weight_of_a_token_and_never_its_gradient(ratio: float, used: float) -> None:
    for advantage in (2.0, -2.0):
        result, gradient = terms(ratio, advantage, surrogate="cispo")
        assert gradient == pytest.approx(-used * advantage)
        assert bool(result.clipped) == (used != ratio)


def test_gspo_clips_whole_strands_by_their_mean_ratio() -> None:
    """Strand 0 has moved by a factor 1.1 in the mean, though one of its tokens by 1.21; strand 1 by 2, and is clipped."""
    ratios = torch.tensor([1.21, 1.0, 2.0, 2.0], dtype=torch.float64)
    new = torch.log(ratios).requires_grad_()
    zero, strands = torch.zeros(4, dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    advantages, weights = torch.full((4,), 3.0), torch.full((4,), 0.25)
    config = CONFIG.model_copy(update={"ratio": "strand"})
    result = policy_loss(new, zero, zero, advantages, weights, weights, strands, config)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(-3.0 * (0.5 * 1.1 + 0.5 * 1.3))
    assert new.grad is not None
    torch.testing.assert_close(new.grad, torch.tensor([-0.825, -0.825, 0.0, 0.0], dtype=torch.float64))
    assert result.clipped.tolist() == [False, False, True, True]


def test_the_kl_term_pulls_towards_the_reference() -> None:
    """k3 is 0 at the reference, positive elsewhere, and its gradient is that of the formula."""
    reference = torch.tensor([-1.0, -1.0, -1.0], dtype=torch.float64)
    new = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64, requires_grad=True)
    weights, zero = torch.tensor([0.2, 0.3, 0.5]), torch.zeros(3)
    config = CONFIG.model_copy(update={"kl_weight": 0.1})
    result = policy_loss(new, new.detach(), new.detach(), zero, 7 * weights, weights, zero.long(), config, reference)
    result.loss.backward()
    gap = (reference - new).detach()
    torch.testing.assert_close(result.kl, torch.exp(gap) - 1 - gap)
    assert result.loss.item() == pytest.approx(0.1 * (weights * result.kl).sum().item())
    torch.testing.assert_close(new.grad, (0.1 * weights * (1 - torch.exp(gap))).double())

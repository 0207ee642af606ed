"""The RL loss: a sum of per-token terms whose weights were computed beforehand (`rl.samples`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RATIO_BOUND = 20.0  # exp(20) is beyond any use, and below overflow in float32


@dataclass(frozen=True)
class LossTerms:
    """`loss`: scalar to backpropagate. The rest: per-token tensors of shape [tokens], detached, for metrics."""

    loss: Tensor
    ratio: Tensor
    clipped: Tensor
    importance: Tensor


def policy_loss(
    new: Tensor, old: Tensor, sampler: Tensor, advantages: Tensor, weights: Tensor,
    clip_low: float, clip_high: float, importance_cap: float,
) -> LossTerms:  # fmt: skip
    """Clipped surrogate with truncated importance sampling; all tensors have shape [tokens].

        loss = - sum_t w_t min(old_t / sampler_t, C) min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t),  r_t = new_t / old_t

    `new` carries the gradient; `old` are the learner's logprobs at the step's start; `sampler` the engine's own, whose
    ratio to `old` corrects for the engine's different arithmetic and is truncated at C to bound its variance. Clip:
    PPO (arXiv 1707.06347).
    """
    ratio = torch.exp((new - old).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND))
    bounded = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    surrogate = torch.minimum(ratio * advantages, bounded * advantages)
    importance = torch.exp((old - sampler).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)).clamp(max=importance_cap).detach()
    loss = -(weights * importance * surrogate).sum()
    clipped = (bounded * advantages < ratio * advantages).detach()
    return LossTerms(loss, ratio.detach(), clipped, importance)

"""The RL loss: a sum of per-token terms whose weights were computed beforehand (`rl.samples`).

Which algorithm it is depends on a few choices, all of them configuration:

| algorithm | weighting | divide_by_deviation | learner |
| --- | --- | --- | --- |
| GRPO as in the APR paper | trace | true | inner_steps 2, clip 0.2 and 0.2, kl_weight |
| Dr.GRPO (arXiv 2503.20783) | constant | false | clip 0.2 and 0.2 |
| DAPO (arXiv 2503.14476) | token | true | clip_high 0.28 |
| GSPO (arXiv 2507.18071) | strand | true | ratio strand, clip 3e-4 and 4e-4 |
| CISPO (arXiv 2506.13585) | token | true | surrogate cispo, clip_low 1 (no lower bound) |
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from apr.config import LearnerConfig

LOG_RATIO_BOUND = 20.0  # exp(20) is beyond any use, and below overflow in float32


@dataclass(frozen=True)
class LossTerms:
    """`loss`: scalar to backpropagate. The rest: per-token tensors of shape [tokens], detached, for metrics."""

    loss: Tensor
    ratio: Tensor
    clipped: Tensor
    importance: Tensor
    kl: Tensor


def policy_loss(
    new: Tensor, old: Tensor, sampler: Tensor, advantages: Tensor, weights: Tensor, strands: Tensor,
    config: LearnerConfig, reference: Tensor | None = None,
) -> LossTerms:  # fmt: skip
    """Clipped surrogate with truncated importance sampling; all tensors have shape [tokens].

        loss = sum_t w_t ( kl_weight kl_t - min(old_t / sampler_t, C) s_t ),  r_t = new_t / old_t
        clip:   s_t = min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t)        PPO, arXiv 1707.06347
        cispo:  s_t = stop_gradient(clip(r_t, 1 - low, 1 + high)) A_t log new_t
        kl_t = ref_t / new_t - 1 - log(ref_t / new_t)                       k3

    `new` carries the gradient; `old` are the learner's logprobs at the step's start; `sampler` the engine's own, whose
    ratio to `old` corrects for the engine's different arithmetic and older weights, and is truncated at C to bound its
    variance. `ratio: strand` puts the geometric mean over the tokens of a strand in place of r_t, its gradient spread
    over them (GSPO-token). `strands` numbers the strands; `reference`: logprobs of the frozen checkpoint.
    """
    log_ratio = (new - old).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    if config.ratio == "strand":
        log_ratio = _strand_means(log_ratio.detach(), strands) + (new - new.detach())
    ratio = torch.exp(log_ratio)
    bounded = ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
    if config.surrogate == "clip":
        surrogate = torch.minimum(ratio * advantages, bounded * advantages)
        clipped = bounded * advantages < ratio * advantages
    else:
        surrogate = bounded.detach() * advantages * new
        clipped = bounded != ratio
    importance = torch.exp((old - sampler).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)).clamp(max=config.importance_cap)
    loss = -(weights * importance.detach() * surrogate).sum()
    kl = torch.zeros_like(new)
    if reference is not None:
        kl = k3((reference - new).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND))
        loss = loss + config.kl_weight * (weights * kl).sum()
    return LossTerms(loss, ratio.detach(), clipped.detach(), importance.detach(), kl.detach())


def k3(gap: Tensor) -> Tensor:
    """The k3 estimate of the KL divergence of q from p, per token drawn from q: gap = log p - log q."""
    return torch.exp(gap.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)) - 1.0 - gap


def _strand_means(values: Tensor, strands: Tensor) -> Tensor:
    """For each token the mean of `values` over the tokens of its strand."""
    count = int(strands.max()) + 1 if len(strands) else 0
    sums = values.new_zeros(count).index_add_(0, strands, values)
    tokens = values.new_zeros(count).index_add_(0, strands, torch.ones_like(values))
    return (sums / tokens.clamp(min=1))[strands]

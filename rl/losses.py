"""The RL loss: a sum of per-token terms whose weights were computed beforehand (`rl.samples`).

Which algorithm it is depends on a few choices, all of them configuration. A test holds this table to the presets:

| preset | source | weighting | divide_by_deviation | redraws | updates | ratio | surrogate | clip | kl_weight |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| paper | APR, arXiv 2504.15466 | trace | true | 0 | 2 x 1 | token | clip | 0.2, 0.2 | 0.001 |
| dr_grpo | Dr.GRPO, arXiv 2503.20783 | constant | false | 0 | 1 x 1 | token | clip | 0.2, 0.2 | 0 |
| dapo | DAPO, arXiv 2503.14476 | token | true | 9 | 1 x 16 | token | clip | 0.2, 0.28 | 0 |
| gspo | GSPO, arXiv 2507.18071 | strand | true | 0 | 1 x 4 | strand | clip | 0.0003, 0.0004 | 0 |
| cispo | CISPO, arXiv 2506.13585 | token | true | 0 | 1 x 16 | token | cispo | 1, 0.2 | 0 |

`updates`: `inner_steps` x `minibatches`. The ratio new / old is 1 at the first update of a step: with one update per step
nothing is clipped, so that ratio, surrogate and clip cannot act: a new run that sets them there is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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

    def detached(self) -> LossTerms:
        """The same without the graph, whose activations would otherwise stay as long as these metrics."""
        return replace(self, loss=self.loss.detach())


def policy_loss(
    new: Tensor, old: Tensor, sampler: Tensor, advantages: Tensor, weights: Tensor, kl_weights: Tensor,
    strands: Tensor, config: LearnerConfig, reference: Tensor | None = None,
) -> LossTerms:  # fmt: skip
    """Clipped surrogate with truncated importance sampling; all tensors have shape [tokens].

        loss = sum_t ( kl_weight v_t kl_t - w_t min(old_t / sampler_t, C) s_t ),  r_t = new_t / old_t
        clip:   s_t = min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t)        PPO, arXiv 1707.06347
        cispo:  s_t = stop_gradient(clip(r_t, 1 - low, 1 + high)) A_t log new_t
        kl_t = ref_t / new_t - 1 - log(ref_t / new_t)                       k3

    `new` carries the gradient; `old` are the learner's logprobs at the step's start; `sampler` the engine's own, whose
    ratio to `old` corrects for the engine's different arithmetic and older weights, and is truncated at C to bound its
    variance. `ratio: strand` puts the geometric mean over the tokens of a strand in place of r_t, its gradient spread
    over them (GSPO-token). `strands` numbers the strands; `weights` are the w_t, `kl_weights` the v_t; `reference`:
    logprobs of the frozen checkpoint.
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
        loss = loss + config.kl_weight * (kl_weights * kl).sum()
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

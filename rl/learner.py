"""The learner: holds the trained weights, turns samples into gradients, and hands out weights and checkpoints.

All methods are coroutines, so that the loop calls a learner in its own process and one in Ray actors alike. Of several
ranks each runs this same code on its share of the passes; `rl.parallel` joins their gradients.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from apr.checkpoints.adapters import merged_state
from apr.checkpoints.checkpoint import Checkpoint, save_checkpoint
from apr.checkpoints.folder import ModelFolder
from apr.config import LearnerConfig
from apr.engines.weights import mark_complete
from apr.errors import CheckpointError, NotFiniteError, ParityError
from apr.memory import keep_freed_memory
from rl import adapters
from rl.checkpoint import ADAPTER_FILE
from rl.losses import LossTerms, k3, policy_loss
from rl.packing import Pass, Share, shares
from rl.parallel import LOWER, Rank, backend, finite
from rl.samples import Sample

if TYPE_CHECKING:
    from rl.weight_transfer import Sender

ALONE = Rank()


class Scorer(nn.Module):
    """Logprobs of chosen tokens at a temperature. What is trained, and divided among ranks."""

    def __init__(self, model: Any, temperature: float, dtype: str) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.dtype = getattr(torch, dtype)

    def forward(self, one: Pass) -> Tensor:
        """The logprobs of the pass's trained tokens, shape [tokens], in float32. What predicts them goes through the output
        layer, once, and nothing else."""
        with torch.autocast(one.ids.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            hidden = self.model.get_decoder()(
                input_ids=one.ids, position_ids=one.positions, attention_mask=one.mask, use_cache=False
            ).last_hidden_state
            logits = self.model.get_output_embeddings()(hidden[one.rows, one.before])
        return torch.log_softmax(logits.float() / self.temperature, dim=-1)[one.predictors, one.targets]


class Learner:
    """One rank. `temperature` divides its logits, as it divides the sampler's; `speller` is that of a checkpoint that
    does not say. `origin` is the checkpoint that RL began from: the reference of the KL term, and what adapters are added
    to. `resumed`: the optimiser goes on from its state in `checkpoint`; a new run begins without one, whatever run its
    checkpoint is from.

    Raises `CheckpointError` if a checkpoint cannot be read or is of another kind of run.
    """

    def __init__(
        self, checkpoint: Path, config: LearnerConfig, temperature: float, speller: str | None = None,
        resumed: bool = False, origin: Path | None = None, rank: Rank = ALONE,
    ) -> None:  # fmt: skip
        keep_freed_memory()
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.config = config
        self.rank = rank
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        opened = Checkpoint.open(checkpoint, speller)
        needed = config.lora or config.kl_weight  # it may be gone, where a run goes on without it
        start = ModelFolder.open(origin) if origin and needed else opened.model
        self.model = _model(start if config.lora else opened.model, self.device)
        if config.lora:
            adapters.add(self.model, config.lora)
            if resumed:
                adapters.load(self.model, _tensors(checkpoint / ADAPTER_FILE), checkpoint)
        if config.activation_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.model.enable_input_require_grads()
        self.scorer = Scorer(self.model, temperature, config.dtype)
        self.reference: Scorer | None = None
        if config.kl_weight:  # with adapters it is the model without them
            frozen = self.model if config.lora else _model(start, self.device).requires_grad_(False)
            self.reference = Scorer(frozen, temperature, config.dtype)
        self.backend = backend(self.scorer, config, rank)
        self.sender: Sender | None = None  # of the first rank, once it has met engines
        self.vocabulary = opened.speller.vocabulary
        self.card = opened.card.after("rl")
        if resumed:
            self.backend.load(checkpoint)

    async def update(
        self, minibatches: Sequence[Sequence[Sample]], lr: float, parity: tuple[float, float]
    ) -> dict[str, float]:
        """`inner_steps` rounds over the minibatches of one step, each an optimiser step at learning rate `lr`. Returns
        metrics over all of them, the same on every rank. `parity`: (mean, max) absolute gap between the logprobs that the
        sampler had from these very weights and ours that is still allowed; beyond it `ParityError`, before a weight has
        changed."""
        plans = shares(minibatches, self.config, self.rank.count)
        return await self.learn(plans[self.rank.index], lr, parity)

    async def learn(self, plans: Sequence[Share], lr: float, parity: tuple[float, float]) -> dict[str, float]:
        """`update` on this rank's share of each minibatch."""
        started = time.monotonic()
        parts = [[Pass(rows, self.device) for rows in share] for share in plans]
        references = [[self._reference(one) for one in passes] for passes in parts]
        # The first minibatch gets its old logprobs from its own first forward pass, the others before a weight changes.
        old = [[], *([self._logprobs(one) for one in passes] for passes in parts[1:])]
        terms: list[LossTerms] = []
        norms: list[float] = []
        metrics: dict[str, float] = {}
        for _ in range(self.config.inner_steps):
            for passes, before, reference in zip(parts, old, references):
                made = self._backward(passes, before, reference)
                if not norms:
                    metrics |= self._mismatch(list(chain(*old)), list(chain(*parts)))
                    check_parity(metrics, parity)
                (loss,) = self.rank.total([sum(term.loss.item() for term in made)])
                finite("loss", loss)  # the same on every rank: none waits for another
                norms.append(self.backend.step(lr))
                terms += made
        flat = list(chain(*parts))
        metrics |= self._loss_metrics(terms, flat, len(norms)) | {"loss/grad_norm": statistics.fmean(norms)}
        tokens = sum(len(sample.block.ids) for share in plans for rows in share for row in rows for sample in row)
        forwarded, unique, predicting = self.rank.total([
            sum(one.forwarded for one in flat), tokens, sum(len(one.before) for one in flat)
        ])  # fmt: skip
        seconds = time.monotonic() - started
        return {
            **metrics,
            "loss/lr": lr,
            "loss/padding_share": 1.0 - unique / forwarded,
            "loss/shared_share": 1.0 - predicting / metrics["loss/tokens"],
            "loss/updates": len(norms),
            "time/learn": seconds,
            "time/learn_tokens_per_second": unique * self.config.inner_steps / seconds,
        }

    def _backward(
        self, passes: Sequence[Pass], old: list[Tensor], references: Sequence[Tensor | None]
    ) -> list[LossTerms]:
        """Add up the gradients of a minibatch. `old`: the logprobs at the step's start, pass by pass; filled if empty."""
        terms = []
        for i, one in enumerate(passes):
            new = self.backend.module(one)
            if i == len(old):
                old.append(new.detach())
            term = policy_loss(
                new, old[i], one.sampler, one.advantages, one.weights, one.kl_weights, one.strands, self.config,
                references[i],
            )  # fmt: skip
            self.backend.backward(term.loss, last=i + 1 == len(passes))
            terms.append(term.detached())
        return terms

    async def weights(self) -> dict[str, Tensor]:
        """The model's parameters by name, on the CPU, adapters merged; empty on all ranks but the first."""
        with self.backend.gathered():
            return {name: tensor.detach().cpu().clone() for name, tensor in self._state().items()}

    async def save_weights(self, folder: Path, version: int) -> None:
        """The weight files in `folder`, then the marker, as `apr.engines.weights` wants them."""
        with self.backend.gathered():
            if self.rank.index == 0:
                self.model.save_pretrained(folder, state_dict=self._state())
                mark_complete(folder, version)

    async def meet(self, backend: str, engines: Sequence[Any], workers: int) -> None:
        """Make ready for `send` to these engines' actors, of so many processes each (`rl.weight_transfer`)."""
        from rl.weight_transfer import Sender, distinct

        with self.backend.gathered():
            if self.rank.index == 0:
                if self.sender is not None:
                    self.sender.close()
                # In threads: vLLM's side blocks, and Ray wants the actor's event loop free.
                self.sender = await asyncio.to_thread(Sender, backend, engines, workers, distinct(self._state()))

    async def send(self) -> None:
        """The weights as they are now, to the engines that were met."""
        from rl.weight_transfer import distinct

        with self.backend.gathered():
            if self.sender is not None:
                await asyncio.to_thread(self.sender.send, distinct(self._state()))

    async def save(self, folder: Path) -> None:
        """A checkpoint that `Learner` (and `AutoModelForCausalLM`) opens: weights, tokenizer, optimiser state; with adapters
        the merged weights, and the adapters beside them. Raises `NotFiniteError` if a weight is not finite."""
        with self.backend.gathered():
            if self.rank.index == 0:
                try:
                    save_checkpoint(folder, self.model, self.vocabulary, self.card, self._state())
                except NotFiniteError as error:
                    raise NotFiniteError(f"{error}: {LOWER}") from error
                if self.config.lora:
                    save_file(adapters.state(self.model), folder / ADAPTER_FILE)
        self.backend.save(folder)

    def _state(self) -> dict[str, Tensor]:
        if self.rank.index:
            return {}
        return merged_state(self.model) if self.config.lora else self.model.state_dict()

    @torch.no_grad()
    def _logprobs(self, one: Pass) -> Tensor:
        logprobs: Tensor = self.backend.module(one)
        return logprobs

    @torch.no_grad()
    def _reference(self, one: Pass) -> Tensor | None:
        if self.reference is None:
            return None
        with adapters.disabled(self.model) if self.config.lora else nullcontext():
            logprobs: Tensor = self.reference(one)
        return logprobs

    def _loss_metrics(self, terms: Sequence[LossTerms], passes: Sequence[Pass], updates: int) -> dict[str, float]:
        """Means over the updates of a step. `terms`: those of all `passes`, once per inner step."""
        inner = self.config.inner_steps
        kl_weights = [one.kl_weights for one in passes] * inner
        loss, clipped, truncated, kl, lags, tokens = self.rank.total([
            sum(term.loss.item() for term in terms),
            sum(term.clipped.sum().item() for term in terms),
            sum((term.importance >= self.config.importance_cap).sum().item() for term in terms),
            sum((term.kl * weight).sum().item() for term, weight in zip(terms, kl_weights, strict=True)),
            sum(one.lags.sum().item() for one in passes),
            sum(len(one.sampler) for one in passes),
        ])  # fmt: skip
        (lag,) = self.rank.largest([max((one.lags.max().item() for one in passes if len(one.lags)), default=0.0)])
        found = {
            "loss/policy": loss / updates, "loss/clipped_share": clipped / (inner * tokens),
            "loss/truncated_share": truncated / (inner * tokens), "loss/tokens": tokens,
            "off_policy/lag_mean": lags / tokens, "off_policy/lag_max": lag,
        }  # fmt: skip
        return found | ({"loss/kl": kl / updates} if self.config.kl_weight else {})

    def _mismatch(self, old: Sequence[Tensor], passes: Sequence[Pass]) -> dict[str, float]:
        """How the sampler's logprobs differ from the learner's before the step: mean and max gap and k3 KL of the tokens
        that the sampler had from these very weights, and k3 KL of those it had from older ones."""
        gap = torch.cat([ours - one.sampler for ours, one in zip(old, passes)])
        fresh = torch.cat([one.lags == 0 for one in passes])
        divergence = k3(gap)
        count, gaps, kl, stale, stale_kl = self.rank.total([
            fresh.sum().item(), gap[fresh].abs().sum().item(), divergence[fresh].sum().item(),
            (~fresh).sum().item(), divergence[~fresh].sum().item(),
        ])  # fmt: skip
        (most,) = self.rank.largest([gap[fresh].abs().max().item() if fresh.any() else 0.0])
        found = {"off_policy/share": stale / (count + stale)} if stale else {}
        if count:
            found |= {
                "mismatch/abs_gap_mean": gaps / count, "mismatch/abs_gap_max": most, "mismatch/kl": kl / count,
            }  # fmt: skip
        if stale:
            found["off_policy/kl"] = stale_kl / stale
        return found


def _model(folder: ModelFolder, device: torch.device) -> Any:
    """In float32 and in training mode, as activation checkpointing wants it, without dropout, which the sampler has not."""
    model = folder.load()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.to(device).train()


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is missing or corrupt ({error}): delete {path.parent} to resume before it"
        ) from error
    return tensors


def check_parity(gaps: dict[str, float], allowed: tuple[float, float]) -> None:
    """Raise `ParityError` if the sampler and the learner disagree more than (mean, max) allow. Tokens that were sampled
    from older weights say nothing about it."""
    if "mismatch/abs_gap_mean" not in gaps:
        return
    mean, most = gaps["mismatch/abs_gap_mean"], gaps["mismatch/abs_gap_max"]
    if not (mean <= allowed[0] and most <= allowed[1]):
        raise ParityError(
            f"the engine's and the learner's logprobs of the same tokens differ by {mean:.2e} on average (allowed "
            f"{allowed[0]:.0e}) and {most:.2e} at most (allowed {allowed[1]:.0e}): they do not hold the same weights "
            "(a weight update did not arrive whole), or not the same temperature or precision. Raise parity_mean and "
            "parity_max only if the precision differs"
        )

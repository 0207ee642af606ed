"""The learner: holds the trained weights, turns samples into gradients, and hands out weights and checkpoints.

All methods are coroutines, so that the loop calls a learner in its own process and one in a Ray actor alike.
"""

from __future__ import annotations

import io
import math
import pickle
import time
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM

from apr.config import LearnerConfig
from apr.dialects import dialect_of
from apr.errors import AprError, CheckpointError, ParityError
from apr.memory import keep_freed_memory
from apr.runs import write_bytes
from apr.sft.train import read_card, save_checkpoint
from rl.losses import policy_loss
from rl.samples import Sample

OPTIMIZER_FILE = "optimizer.pt"


class LearnerApi(typing.Protocol):
    """What the loop asks of a learner, here or in a Ray actor (`rl.cluster.RemoteLearner`)."""

    async def update(self, batch: Sequence[Sample], lr: float, parity: tuple[float, float]) -> dict[str, float]: ...

    async def weights(self) -> dict[str, Tensor]: ...

    async def save_weights(self, folder: Path) -> None: ...

    async def save(self, folder: Path) -> None: ...


class Learner:
    """One rank of plain torch, float32. `temperature` divides its logits, as it divides the sampler's; `dialect` is
    that of a checkpoint that does not say. `resumed`: the optimiser goes on from its state in the checkpoint; a new run
    begins without one, whatever run its checkpoint is from."""

    def __init__(
        self, checkpoint: Path, config: LearnerConfig, temperature: float, dialect: str | None = None,
        resumed: bool = False,
    ) -> None:  # fmt: skip
        keep_freed_memory()
        torch.set_num_threads(config.threads)
        self.config = config
        self.temperature = temperature
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True)
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"{checkpoint} holds no readable model ({error}): train or export it again"
            ) from error
        self.model = model.to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )
        self.vocabulary = dialect_of(checkpoint, dialect).vocabulary
        card = read_card(checkpoint)
        self.card = {**card, "trained": [*(stage for stage in card.get("trained", []) if stage != "rl"), "rl"]}
        if resumed:
            self._load_optimizer(checkpoint)

    def _load_optimizer(self, checkpoint: Path) -> None:
        path = checkpoint / OPTIMIZER_FILE
        try:
            self.optimizer.load_state_dict(torch.load(path, map_location=self.device, weights_only=True))
        except (OSError, RuntimeError, ValueError, LookupError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{path} is missing, corrupt or of another model ({error}): delete {checkpoint} to resume before it"
            ) from error
        for group in self.optimizer.param_groups:  # the state brings its own; `update` sets the learning rate
            group["weight_decay"] = self.config.weight_decay

    async def update(self, batch: Sequence[Sample], lr: float, parity: tuple[float, float]) -> dict[str, float]:
        """`inner_steps` optimiser steps on one batch at learning rate `lr`. Returns metrics. `parity`: (mean, max)
        absolute gap between the sampler's logprobs and ours that is still allowed; beyond it `ParityError`, before this
        update has changed a weight."""
        started = time.monotonic()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        passes = list(self._passes(batch))
        old: list[Tensor] = []
        metrics: dict[str, float] = {}
        for inner in range(self.config.inner_steps):
            loss, clipped, tokens = 0.0, 0.0, 0
            for i, one in enumerate(passes):
                with torch.enable_grad():
                    new = self._logprobs(one)
                if inner == 0:
                    old.append(new.detach())
                terms = policy_loss(
                    new, old[i], one.sampler, one.advantages, one.weights,
                    self.config.clip_low, self.config.clip_high, self.config.importance_cap,
                )  # fmt: skip
                terms.loss.backward()
                loss += terms.loss.item()
                clipped += terms.clipped.sum().item()
                tokens += len(one.sampler)
            if inner == 0:
                metrics |= _mismatch(old, [one.sampler for one in passes])
                check_parity(metrics, parity)
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm).item()
            if not math.isfinite(norm):
                raise AprError(f"the gradient norm is {norm}: lower learner.lr; the last checkpoint is whole")
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            metrics |= {"loss/policy": loss, "loss/grad_norm": norm, "loss/clipped_share": clipped / tokens}
        forwarded = sum(one.ids.numel() for one in passes)
        unpadded = sum(len(sample.ids) for sample in batch)
        return {
            **metrics,
            "loss/lr": lr,
            "loss/tokens": float(sum(len(one.sampler) for one in passes)),
            "loss/padding_share": 1.0 - unpadded / forwarded,
            "time/learn": time.monotonic() - started,
        }  # fmt: skip

    async def weights(self) -> dict[str, Tensor]:
        """The model's parameters by name, on the CPU."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}

    async def save_weights(self, folder: Path) -> None:
        """`model.safetensors` in `folder`."""
        self.model.save_pretrained(folder)

    async def save(self, folder: Path) -> None:
        """A checkpoint that `Learner` (and `AutoModelForCausalLM`) opens: weights, tokenizer, optimiser state."""
        save_checkpoint(folder, self.model, self.vocabulary, self.card)
        state = io.BytesIO()  # torch's own writer does not say when a disk is full
        torch.save(self.optimizer.state_dict(), state)
        write_bytes(folder / OPTIMIZER_FILE, state.getvalue())

    def _passes(self, batch: Sequence[Sample]) -> Iterator[_Pass]:
        """Samples of similar length, right-padded, at most `tokens_per_pass` padded tokens together."""
        waiting: list[Sample] = []
        for sample in sorted(batch, key=lambda sample: len(sample.ids)):
            if waiting and (len(waiting) + 1) * len(sample.ids) > self.config.tokens_per_pass:
                yield _Pass(waiting, self.device)
                waiting = []
            waiting.append(sample)
        if waiting:
            yield _Pass(waiting, self.device)

    def _logprobs(self, one: _Pass) -> Tensor:
        """The model's logprobs of the trained tokens, shape [tokens]. Right padding cannot reach them: causal."""
        logits = self.model(input_ids=one.ids, use_cache=False).logits
        chosen = logits[one.rows, one.positions - 1].float() / self.temperature
        return torch.log_softmax(chosen, dim=-1).gather(1, one.targets[:, None]).squeeze(1)


class _Pass:
    """A padded batch: `ids` [rows, length]; the others [trained tokens]."""

    def __init__(self, samples: Sequence[Sample], device: torch.device) -> None:
        length = max(len(sample.ids) for sample in samples)
        self.ids = torch.tensor([[*s.ids, *[0] * (length - len(s.ids))] for s in samples], device=device)
        self.rows = torch.tensor([row for row, s in enumerate(samples) for _ in s.positions], device=device)
        self.positions = torch.tensor([p for s in samples for p in s.positions], device=device)
        self.targets = self.ids[self.rows, self.positions]
        self.sampler = torch.tensor([x for s in samples for x in s.logprobs], device=device)
        self.advantages = torch.tensor([x for s in samples for x in s.advantages], device=device)
        self.weights = torch.tensor([x for s in samples for x in s.weights], device=device)


def _mismatch(old: Sequence[Tensor], sampler: Sequence[Tensor]) -> dict[str, float]:
    """How the sampler's logprobs differ from the learner's before the step: mean and max gap, and k3 KL estimate."""
    gap = torch.cat(list(old)) - torch.cat(list(sampler))
    k3 = torch.exp(gap.clamp(-20, 20)) - 1 - gap
    return {
        "mismatch/abs_gap_mean": gap.abs().mean().item(),
        "mismatch/abs_gap_max": gap.abs().max().item(),
        "mismatch/kl": k3.mean().item(),
    }


def check_parity(gaps: dict[str, float], allowed: tuple[float, float]) -> None:
    """Raise `ParityError` if the sampler and the learner disagree more than (mean, max) allow."""
    mean, most = gaps["mismatch/abs_gap_mean"], gaps["mismatch/abs_gap_max"]
    if not (mean <= allowed[0] and most <= allowed[1]):
        raise ParityError(
            f"the engine's and the learner's logprobs of the same tokens differ by {mean:.2e} on average (allowed "
            f"{allowed[0]:.0e}) and {most:.2e} at most (allowed {allowed[1]:.0e}): they do not hold the same weights "
            "(a weight update did not arrive whole), or not the same temperature or precision. Raise parity_mean and "
            "parity_max only if the precision differs"
        )

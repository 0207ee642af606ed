"""TRL's trainer, stopped at the first loss, gradient norm or weight that is not finite, and without pickles.

By itself it trains on, logs such a loss as 0 (`logging_nan_inf_filter`), and saves whatever the weights have become in
place of the last good checkpoint. What it would save as pickles and load again, it saves by `apr.checkpoints.state`:

    checkpoint-N/optimizer.safetensors     the states of optimizer and learning rate
    checkpoint-N/rng_state.safetensors     those of the random generators
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from trl import SFTTrainer

from apr.checkpoints.finite import check_finite
from apr.checkpoints.state import read_state, write_state
from apr.errors import NotFiniteError

OPTIMIZER_STATE = "optimizer.safetensors"
RANDOM_STATE = "rng_state.safetensors"


class CheckedTrainer(SFTTrainer):  # type: ignore[misc]
    """Raises `NotFiniteError` before a step that is not finite changes a weight, and before weights that are not finite are
    saved."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **named: Any) -> Any:
        """TRL counts tokens by the attention mask, which may be that of blocks; here the batch says how many there are."""
        tokens, before = int(inputs.pop("tokens")), self._total_train_tokens
        loss = super().compute_loss(model, inputs, *arguments, **named)
        self._total_train_tokens: int = before + tokens
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*arguments, **named)
        self._step_loss = loss
        return loss

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        norm: torch.Tensor = super()._clip_grad_norm(model)
        values = torch.stack([self._step_loss.float(), norm.float()]).tolist()  # a GPU is waited for once
        for what, value in zip(("loss", "gradient norm"), values):
            if not math.isfinite(value):
                raise NotFiniteError(f"the {what} of step {self.state.global_step + 1} is {value}")
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        check_finite(model.state_dict())
        super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        states = {"optimizer": self.optimizer.state_dict(), "scheduler": self.lr_scheduler.state_dict()}
        write_state(Path(output_dir) / OPTIMIZER_STATE, states)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            states = read_state(Path(checkpoint) / OPTIMIZER_STATE)
            self.optimizer.load_state_dict(states["optimizer"])
            self.lr_scheduler.load_state_dict(states["scheduler"])

    def _save_rng_state(self, output_dir: str) -> None:
        legacy: Any = np.random.get_state()
        kind, key, *rest = legacy
        states = {
            "python": random.getstate(),
            "numpy": (kind, key.tolist(), *rest),
            "cpu": torch.random.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        write_state(Path(output_dir) / RANDOM_STATE, states)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        states = read_state(Path(checkpoint) / RANDOM_STATE)
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])
        torch.random.set_rng_state(states["cpu"])
        if len(states["cuda"]) == torch.cuda.device_count():  # the run goes on where there are as many
            torch.cuda.set_rng_state_all(states["cuda"])

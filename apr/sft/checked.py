"""TRL's trainer, stopped at the first loss, gradient norm or weight that is not finite.

By itself it trains on, logs such a loss as 0 (`logging_nan_inf_filter`), and saves whatever the weights have become in
place of the last good checkpoint.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from trl import SFTTrainer

from apr.checkpoints.finite import check_finite
from apr.errors import NotFiniteError


class CheckedTrainer(SFTTrainer):  # type: ignore[misc]
    """Raises `NotFiniteError` before a step that is not finite changes a weight, and before weights that are not finite are
    saved."""

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

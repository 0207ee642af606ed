"""Muon for the matrices inside the layers, AdamW for everything else, as one optimiser.

Muon (orthogonalised momentum, as in `torch.optim.Muon`) needs about a third fewer tokens here than AdamW alone
(docs/experiments.md), which is what decides how long a small model from scratch has to be trained on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimisers behind one interface: one list of parameter groups for a scheduler, one state for a checkpoint."""

    def __init__(self, model: nn.Module, lr: float, muon_lr: float, weight_decay: float) -> None:
        named = list(model.named_parameters())
        inner = [p for name, p in named if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
        matrices = {id(p) for p in inner}
        rest = [p for _, p in named if id(p) not in matrices]
        super().__init__([p for _, p in named], {})
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(inner, lr=muon_lr, momentum=0.95, weight_decay=weight_decay),
            torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self._share_groups()

    def _share_groups(self) -> None:
        # The same dictionaries as the parts hold: a scheduler that sets `lr` here sets it there.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, content in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(content)
        self._share_groups()

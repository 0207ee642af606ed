"""Low-rank adapters (LoRA, arXiv 2106.09685) on the linear layers inside a model's layers, while they train, through peft.

Engines and checkpoints are given merged weights (`apr.checkpoints.adapters`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from apr.config import LoraConfig
from apr.errors import CheckpointError
from apr.seeds import derive_seed


def add(model: nn.Module, config: LoraConfig) -> None:
    """Put adapters in place, the same in every run and on every rank; everything else is frozen. A fresh adapter changes no
    output."""
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(0, "adapters"))
        inject_adapter_in_model(
            PeftConfig(r=config.rank, lora_alpha=config.alpha, target_modules="all-linear", task_type="CAUSAL_LM"),
            model,
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters alone; empty for a model without any."""
    return {name: tensor for name, tensor in model.state_dict().items() if "lora_" in name}


def load(model: nn.Module, adapters: Mapping[str, Tensor], source: Any) -> None:
    """Take `state` of an equal model. Raises `CheckpointError` unless it fits."""
    if adapters.keys() != state(model).keys():
        raise CheckpointError(
            f"{source} holds adapters of another model or rank: resume with the run's own configuration"
        )
    model.load_state_dict(dict(adapters), strict=False)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Within, the model computes as it did before adapters were added."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)

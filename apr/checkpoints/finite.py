"""Weights that are NaN or infinite are neither written as a checkpoint nor read from one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from apr.errors import NotFiniteError

if TYPE_CHECKING:
    import torch


def first_not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """Name of the first tensor that holds a NaN or an infinity, if any does. Allocates nothing of a tensor's size."""
    import torch

    for name, tensor in tensors:
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        extremes = torch.aminmax(
            tensor.bfloat16() if tensor.element_size() == 1 else tensor
        )  # it knows no 8-bit floats
        if not torch.stack(extremes).isfinite().all():
            return name
    return None


def check_finite(state: Mapping[str, torch.Tensor]) -> None:
    """Raise `NotFiniteError` unless every weight of a model's state is finite."""
    if name := first_not_finite(state.items()):
        raise NotFiniteError(f"the weight {name} is not finite")

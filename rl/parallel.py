"""How ranks share an update: plain torch (gradients are summed), or DeepSpeed ZeRO (states, gradients, weights divided).

The loss of a step is a sum over all ranks' samples with weights that were computed globally, so gradients are summed,
never averaged.
"""

from __future__ import annotations

import io
import math
import pickle
import typing
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from apr.config import LearnerConfig
from apr.errors import CheckpointError, NotFiniteError
from apr.runs import write_bytes
from rl.checkpoint import OPTIMIZER_FILE, ZERO_FOLDER

_TAG = "state"


@dataclass(frozen=True)
class Rank:
    """This process among those that share the learner's work."""

    index: int = 0
    count: int = 1

    def total(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all ranks."""
        return self._reduced(values, dist.ReduceOp.SUM if self.count > 1 else None)

    def largest(self, values: Sequence[float]) -> list[float]:
        return self._reduced(values, dist.ReduceOp.MAX if self.count > 1 else None)

    def _reduced(self, values: Sequence[float], how: Any) -> list[float]:
        if how is None:
            return list(values)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(tensor, how)
        reduced: list[float] = tensor.tolist()
        return reduced


class Backend(typing.Protocol):
    """What turns losses into steps. `module` is called in place of the one it was made with."""

    module: nn.Module

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of a pass; `last`: of this step's last pass."""
        ...

    def step(self, lr: float) -> float:
        """One optimiser step on the gradients of all ranks, clipped; returns their norm before clipping.
        Raises `NotFiniteError` if it is not finite."""
        ...

    def gathered(self) -> AbstractContextManager[None]:
        """Within, every rank holds whole parameters."""
        ...

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None:
        """Raises `CheckpointError` if the state is missing, corrupt, or of another model or number of ranks."""
        ...


def backend(module: nn.Module, config: LearnerConfig, rank: Rank) -> Backend:
    return Plain(module, config, rank) if config.parallel == "plain" else Zero(module, config, rank)


def _optimizer(module: nn.Module, config: LearnerConfig) -> torch.optim.AdamW:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay)


LOWER = "lower learner.lr; the last checkpoint is whole"  # what to do about values that are not finite


def finite(what: str, value: float) -> float:
    """`value`. Raises `NotFiniteError` if it is not finite."""
    if not math.isfinite(value):
        raise NotFiniteError(f"the {what} is {value}: {LOWER}")
    return value


class Plain:
    """Every rank holds everything."""

    def __init__(self, module: nn.Module, config: LearnerConfig, rank: Rank) -> None:
        self.module = module
        self.config = config
        self.rank = rank
        self.optimizer = _optimizer(module, config)
        self.parameters: list[nn.Parameter] = self.optimizer.param_groups[0]["params"]

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()

    def step(self, lr: float) -> float:
        if self.rank.count > 1:
            self._sum_gradients()
        norm = finite(
            "gradient norm", torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm).item()
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _sum_gradients(self) -> None:
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.parameters])
        dist.all_reduce(flat)
        for parameter, gradient in zip(self.parameters, flat.split([p.numel() for p in self.parameters])):
            parameter.grad = gradient.view_as(parameter)

    def gathered(self) -> AbstractContextManager[None]:
        return nullcontext()

    def save(self, folder: Path) -> None:
        if self.rank.index == 0:
            state = io.BytesIO()  # torch's own writer does not say when a disk is full
            torch.save(self.optimizer.state_dict(), state)
            write_bytes(folder / OPTIMIZER_FILE, state.getvalue())

    def load(self, folder: Path) -> None:
        path = folder / OPTIMIZER_FILE
        try:
            state = torch.load(path, map_location=self.parameters[0].device, weights_only=True)
            self.optimizer.load_state_dict(state)
        except (OSError, RuntimeError, ValueError, LookupError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{path} is missing, corrupt or of another model ({error}): delete {folder} to resume before it"
            ) from error
        for group in self.optimizer.param_groups:  # the state brings its own; `step` sets the learning rate
            group["weight_decay"] = self.config.weight_decay


class Zero:
    """DeepSpeed ZeRO (arXiv 1910.02054): stage 1 divides the optimiser's state among ranks, 2 gradients too, 3 weights."""

    def __init__(self, module: nn.Module, config: LearnerConfig, rank: Rank) -> None:
        import deepspeed

        # On a CPU it would first compile an all-reduce of its own for minutes; gloo's is there.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.config = config
        self.rank = rank
        self.stage = int(config.parallel.removeprefix("zero"))
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": config.max_grad_norm,
            "zero_optimization": {"stage": self.stage},
            "zero_allow_untrusted_optimizer": True,
        }
        self.engine, *_ = deepspeed.initialize(model=module, optimizer=_optimizer(module, config), config=settings)
        self.module: nn.Module = self.engine

    def backward(self, loss: Tensor, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.rank.count)  # DeepSpeed averages over ranks

    def step(self, lr: float) -> float:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        return finite("gradient norm", float(self.engine.get_global_grad_norm()))

    @contextmanager
    def gathered(self) -> Iterator[None]:
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self.engine.module.parameters()), enabled=self.stage == 3):
            yield

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder / ZERO_FOLDER), tag=_TAG)

    def load(self, folder: Path) -> None:
        path = folder / ZERO_FOLDER
        saved = len(list((path / _TAG).glob("*optim_states.pt")))
        if saved != self.rank.count:
            raise CheckpointError(
                f"{path} holds the state of {saved} ranks, this run has {self.rank.count}: resume with cluster.ranks={saved}"
            )
        try:
            self.engine.load_checkpoint(str(path), tag=_TAG)
        except (
            OSError,
            RuntimeError,
            ValueError,
            LookupError,
            EOFError,
            AssertionError,
            pickle.UnpicklingError,
        ) as error:
            raise CheckpointError(
                f"{path} is corrupt or of another model ({error}): delete {folder} to resume before it"
            ) from error
        for group in self.engine.optimizer.param_groups:
            group["weight_decay"] = self.config.weight_decay

"""How ranks share an update: plain torch (gradients are summed), or DeepSpeed ZeRO (states, gradients, weights divided).

The loss of a step is a sum over all ranks' samples with weights that were computed globally, so gradients are summed,
never averaged.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from apr.checkpoints.state import plain_part, read_state, write_state
from apr.config import LearnerConfig
from apr.errors import CheckpointError, NotFiniteError
from rl.checkpoint import OPTIMIZER_FOLDER, refuse_pickles

STATE_FILE = "rank_{index}_of_{count}.safetensors"  # of ranks that share one state


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
            write_state(_state_file(folder, 0, 1), self.optimizer.state_dict())

    def load(self, folder: Path) -> None:
        path = _state_file(folder, 0, 1)
        _check_ranks(folder, 1, "learner.parallel=plain")
        try:
            self.optimizer.load_state_dict(read_state(path))
        except (CheckpointError, RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise _unfit(path, folder, error) from error
        for group in self.optimizer.param_groups:  # the state brings its own; `step` sets the learning rate
            group["weight_decay"] = self.config.weight_decay


def _state_file(folder: Path, index: int, count: int) -> Path:
    return folder / OPTIMIZER_FOLDER / STATE_FILE.format(index=index, count=count)


def _check_ranks(folder: Path, count: int, wanted: str) -> None:
    """Raise `CheckpointError` unless the optimizer's state in `folder` is that of `count` ranks, and no pickle."""
    refuse_pickles(folder)
    saved = len(list((folder / OPTIMIZER_FOLDER).glob(STATE_FILE.format(index="*", count="*"))))
    if saved and saved != count:
        raise CheckpointError(
            f"{folder / OPTIMIZER_FOLDER} holds the state of {saved} ranks, and {wanted} needs that of {count}: resume with "
            "the cluster.ranks and learner.parallel that the run had"
        )


def _unfit(path: Path, folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is missing, corrupt or of another model ({error}): delete {folder} to resume before it"
    )


_WEIGHTS = {"single_partition_of_fp32_groups", "fp32_flat_groups"}  # of a state of ZeRO: the model's weights


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
        """Write this rank's part of the optimizer's state. The float32 weights that DeepSpeed keeps beside it are those of
        the model, which the checkpoint has."""
        state = {key: value for key, value in plain_part(self._state()).items() if key not in _WEIGHTS}
        write_state(_state_file(folder, self.rank.index, self.rank.count), state)

    def load(self, folder: Path) -> None:
        path = _state_file(folder, self.rank.index, self.rank.count)
        _check_ranks(folder, self.rank.count, f"cluster.ranks={self.rank.count}")
        try:
            own = self._state()
            saved = read_state(path)
            if saved.keys() != plain_part(own).keys() - _WEIGHTS or saved["zero_stage"] != own["zero_stage"]:
                raise ValueError(f"it was not written by ZeRO of stage {self.stage}")
            parts = [{**own, **saved}] * self.rank.count  # each rank reads its own
            self._between_steps("checkpoint_event_prologue")
            self.engine.optimizer.load_state_dict(parts, load_from_fp32_weights=False)
            self._between_steps("checkpoint_event_epilogue")
        except (
            CheckpointError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError
        ) as error:  # fmt: skip
            raise _unfit(path, folder, error) from error
        for group in self.engine.optimizer.param_groups:
            group["weight_decay"] = self.config.weight_decay

    def _state(self) -> dict[str, Any]:
        self._between_steps("checkpoint_event_prologue")
        state: dict[str, Any] = self.engine.optimizer.state_dict()
        self._between_steps("checkpoint_event_epilogue")
        return {key: int(value) if key == "zero_stage" else value for key, value in state.items()}

    def _between_steps(self, event: str) -> None:
        """Call what an optimizer of stage 3 wants called before and after its state is touched."""
        getattr(self.engine.optimizer, event, lambda: None)()

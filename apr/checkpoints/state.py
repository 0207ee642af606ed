"""States of optimizers and of random generators as safetensors: plain data and tensors, read without running anything.

    {"state": {0: {"step": tensor, "exp_avg": tensor}}, "lr": 1e-3}

is one safetensors file: its tensors are numbered, and its header has the rest as JSON, with a number in place of each
tensor. A pickle, which is what torch writes by itself, may run code when it is read.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.errors import CheckpointError
from apr.runs import write_bytes

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = "apr.state/1"
_PLAIN = (bool, int, float, str, type(None))


class NotPlainError(TypeError):
    """A state that holds something else than plain data and tensors."""


def write_state(path: Path, state: Any) -> None:
    """Write `state`: dictionaries, lists, tuples, numbers, texts, None and tensors, nested in any way. Whole or not at all."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    plain = json.dumps(_to_plain(state, tensors))
    write_bytes(path, save(tensors, {"schema": SCHEMA, "state": plain, "crc32": _checksum(plain, tensors)}))


def read_state(path: Path) -> Any:
    """What `write_state` wrote, equal in every type and bit, with its tensors on the CPU. Raises `CheckpointError` for a file
    that is missing, corrupt or something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("schema") != SCHEMA:
                raise ValueError(f"its schema is {header.get('schema')!r}, not {SCHEMA!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["crc32"] != _checksum(header["state"], tensors):
            raise ValueError("its content has another checksum")
        return _from_plain(json.loads(header["state"]), tensors)
    except (OSError, SafetensorError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise CheckpointError(f"{path} is missing, corrupt or no state of this project ({error!r})") from error


def _checksum(plain: str, tensors: Mapping[str, Tensor]) -> str:
    import torch

    sum_ = zlib.crc32(plain.encode())
    for name in sorted(tensors, key=int):
        sum_ = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, sum_)
    return f"{sum_:08x}"


def plain_part(state: dict[str, Any]) -> dict[str, Any]:
    """The items of `state` that `write_state` can write."""
    kept = {}
    for key, value in state.items():
        try:
            _to_plain(value, {})
        except NotPlainError:
            continue
        kept[key] = value
    return kept


def _to_plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON; a container is a list whose first item names its kind. Its tensors go into `tensors`."""
    import torch

    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return ["tensor", name]
    if type(value) is float and not math.isfinite(value):
        return ["float", repr(value)]
    if type(value) in _PLAIN:
        return value
    if isinstance(value, dict):
        if not all(type(key) in (str, int) for key in value):
            raise NotPlainError("a key of a state is neither text nor an integer")
        return ["dict", *([key, _to_plain(item, tensors)] for key, item in value.items())]
    if type(value) in (list, tuple):
        return [type(value).__name__, *(_to_plain(item, tensors) for item in value)]
    raise NotPlainError(f"a state holds a {type(value).__name__}, which is no plain data")


def _from_plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, list):
        return value
    kind, *items = value
    match kind:
        case "tensor":
            return tensors[items[0]]
        case "float":
            return float(items[0])
        case "dict":
            return {key: _from_plain(item, tensors) for key, item in items}
        case "list":
            return [_from_plain(item, tensors) for item in items]
        case "tuple":
            return tuple([_from_plain(item, tensors) for item in items])
    raise ValueError(f"it names an unknown kind, {kind!r:.40}")

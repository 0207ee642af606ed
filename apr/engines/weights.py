"""Weights on their way to an engine: tensors by name, or a folder that says of itself that it is whole.

Whoever writes such a folder writes the weight files first and the marker last. The marker names the version and has the
files' size and SHA-256, so that a write that was cut short, an old state of a shared disk and the folder of another version
are all refused before anything is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.checkpoints.weights import WEIGHTS_FILE, content_hash, weight_files
from apr.errors import CheckpointError, EngineError, ResourceError, TornWeightsError
from apr.runs import write_text

if TYPE_CHECKING:
    import torch

MARKER = "complete.json"


class Arrived:
    """In place of weights: they came to the engine's devices by vLLM's own transfer (`rl.weight_transfer`)."""


def check_cuda(transfer: str, who: str, key: str) -> None:
    """Raise `ResourceError` if this process cannot take part in such a transfer; `key` would have given it a device."""
    import torch

    if not torch.cuda.is_available():
        raise ResourceError(
            f"weight_sync={transfer} sends from GPU to GPU, and {who} sees no CUDA device: set weight_sync=tensors or file, or "
            f"give it one ({key})"
        )


def mark_complete(folder: Path, version: int) -> None:
    """Write the marker of `folder`, whose weight files are there and hold the weights of `version`."""
    write_text(folder / MARKER, json.dumps({"version": version, **_content(folder)}))


def _content(folder: Path) -> dict[str, Any]:
    files = weight_files(folder)
    if not files:
        raise FileNotFoundError(folder / WEIGHTS_FILE)
    return {"bytes": sum(path.stat().st_size for path in files), "sha256": content_hash(files)}


def check_complete(folder: Path, version: int) -> None:
    """Raise `TornWeightsError` unless the marker of `folder` is there and fits its weights and `version`;
    `FileNotFoundError` if there are no weights."""
    mend = "`apr rl --resume` writes it anew; if `out` is on a disk that keeps old states, use weight_sync=tensors"
    try:
        found = {"version": version, **_content(folder)}
    except CheckpointError as error:  # its index names a file that is not there
        raise TornWeightsError(f"{error}; {mend}") from error
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise TornWeightsError(
            f"{folder} has no readable {MARKER} ({error}), which is written last: its weights are not whole. {mend}"
        ) from error
    if marker != found:
        raise TornWeightsError(
            f"{folder} does not hold what its {MARKER} says: {marker} was written, {found} is wanted and there. The write "
            f"was cut short, or the weights were changed or are of another version. {mend}"
        )


def read_weights(source: Any, version: int) -> Mapping[str, torch.Tensor]:
    """The tensors of `source`: a mapping as it is, or those of a folder that is whole and of `version`.

    Raises `CheckpointError` if the folder holds no weights or no readable ones, `TornWeightsError` if it is not whole.
    """
    if isinstance(source, Mapping):
        return source
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(source)
    try:
        check_complete(folder, version)
        loaded: dict[str, torch.Tensor] = {}
        for path in weight_files(folder):
            loaded |= load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} has no weights ({WEIGHTS_FILE}), or has it no longer: give a folder with weights"
        ) from error
    except SafetensorError as error:
        raise CheckpointError(f"the weights in {folder} are corrupt ({error}): save them again") from error
    return loaded


def check_weights(weights: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `EngineError` unless `weights` are exactly the tensors named in `shapes`; see `check_shapes`."""
    check_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()}, shapes)


def copy_weights(model: Any, shapes: Mapping[str, tuple[int, ...]], source: Any, version: int) -> None:
    """Copy weights into a transformers model. Raises what `read_weights` and `check_weights` do."""
    import torch

    weights = read_weights(source, version)
    check_weights(weights, shapes)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(weights[name])


def check_shapes(found: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `EngineError` unless `found` are exactly `shapes`, by name.

    `lm_head.weight` may come in addition: the state of a model with tied embeddings lists the one tensor twice.
    """
    missing = sorted(shapes.keys() - found.keys())
    unknown = sorted(found.keys() - shapes.keys() - {"lm_head.weight"})
    differ = [
        f"{name} {found[name]} for {shape}" for name, shape in shapes.items() if name in found and found[name] != shape
    ]
    if missing or unknown or differ:
        raise EngineError(
            "these weights are not of the engine's model: "
            f"missing {missing[:3]}, unknown {unknown[:3]}, of another shape {differ[:3]}; send its full state"
        )

"""The weight files of a model: one, or several that an index names (the usual form above a few GB).

    model.safetensors                         all tensors
    model.safetensors.index.json              {"weight_map": {TENSOR: FILE, ...}}
    model-00001-of-00002.safetensors ...      the files that it names

Nobody else assumes a file name. Hashes and headers are read in constant memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from apr.checkpoints.finite import first_not_finite
from apr.errors import CheckpointError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CHUNK = 1 << 20  # bytes


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that hold the weights of the model in `folder`, in order of their names; none if there is no model.

    Raises `CheckpointError` if its index is corrupt or names a file that is not there.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return (folder / WEIGHTS_FILE,)
    index = folder / INDEX_FILE
    if not index.is_file():
        return ()
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or any(name != Path(name).name for name in names):
            raise ValueError("its weight_map names no files of this folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is corrupt ({error!r}): fetch or export the model again") from error
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing[:3])}, which {INDEX_FILE} names: fetch or export the model again"
        )
    return tuple(folder / name for name in names)


def content_hash(files: Iterable[Path]) -> str:
    """SHA-256 over the bytes of the files, one after the other: of a single file it is that file's own."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def content_id(files: Iterable[Path]) -> str:
    """What cards and manifests name the content of files by: the first 16 digits of its hash."""
    return content_hash(files)[:16]


def shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors, from the headers of their files. Raises `CheckpointError` for a corrupt one."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, framework="np") as tensors:
                found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} is corrupt ({error}): save the checkpoint again") from error
    return found


def check_finite_files(files: Sequence[Path]) -> None:
    """Raise `CheckpointError` unless every tensor in the safetensors `files` is finite. Reads one tensor at a time."""
    from safetensors import SafetensorError, safe_open

    for path in files:
        try:
            with safe_open(path, "pt") as tensors:
                name = first_not_finite((key, tensors.get_tensor(key)) for key in tensors.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path.parent} holds no readable model ({path.name}: {error}): train or export it again"
            ) from error
        if name:
            raise CheckpointError(
                f"{name} in {path} is not finite: a model with such weights can say nothing. Take an earlier checkpoint, or "
                "train again at a lower learning rate"
            )

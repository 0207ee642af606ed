"""Engines by configuration."""

from __future__ import annotations

import json
from pathlib import Path

from apr.config import EngineConfig
from apr.dialects import dialect_of
from apr.engines.base import Engine
from apr.errors import CheckpointError, ConfigError


def build_engine(
    config: EngineConfig, checkpoint: Path, max_context: int, seed: int = 0, transfer: str | None = None
) -> Engine:
    """Start the engine on a checkpoint, or find the server that has it. `transfer`: see `VllmEngine`. Raises
    `CheckpointError` if it has no model, or one of a shorter window; `ConfigError` for a server that is not there or does
    not fit."""
    if config.url is not None:
        from apr.engines.endpoint import EndpointEngine
        from apr.engines.server import Server

        server = Server.find(config.url, config.model, checkpoint, max_context)
        return EndpointEngine(server, max_context=max_context, connections=config.max_num_seqs, timeout=config.timeout)
    if config.kind == "tiny":
        import torch

        from apr.engines.tiny import TinyEngine

        if config.threads is not None:
            torch.set_num_threads(config.threads)
        return TinyEngine.from_checkpoint(checkpoint, max_context=max_context)
    from apr.engines.vllm import VllmEngine

    return VllmEngine(
        checkpoint, max_context=max_context, seed=seed, max_num_seqs=config.max_num_seqs,
        kv_cache_bytes=config.kv_cache_mib << 20, block_size=config.block_size, dtype=config.dtype,
        tensor_parallel=config.tensor_parallel, threads=config.threads, transfer=transfer,
    )  # fmt: skip


def check_window(checkpoint: Path, max_context: int, dialect: str | None = None) -> None:
    """Raise `CheckpointError` for a checkpoint that is none, `ConfigError` if its window is shorter than needed."""
    if max_context > (window := check_checkpoint(checkpoint, dialect)):
        raise ConfigError(
            f"limits.context ({max_context}) exceeds the window ({window}) of the model in {checkpoint}: lower it"
        )


def check_checkpoint(checkpoint: Path, dialect: str | None = None) -> int:
    """The window of a checkpoint whose dialect is known. Raises `CheckpointError`."""
    if (checkpoint / "adapter_config.json").is_file():
        raise CheckpointError(f"{checkpoint} is an adapter, which is no model by itself: merge it with `apr export`")
    if not (checkpoint / "model.safetensors").is_file():
        raise CheckpointError(f"no model in {checkpoint}: train one with `apr sft`, or set `checkpoint`")
    dialect_of(checkpoint, dialect)
    try:
        return int(json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{checkpoint}/config.json is missing or corrupt: {error!r}") from error

"""Engines by configuration."""

from __future__ import annotations

from apr.checkpoints.folder import ModelFolder
from apr.config import EngineConfig
from apr.threads.engine import Engine


def build_engine(
    config: EngineConfig, model: ModelFolder, max_context: int, seed: int = 0, transfer: str | None = None
) -> Engine:
    """Start the engine on a model, or find the server that has it. `transfer`: see `VllmEngine`. Raises `CheckpointError` if
    the model cannot be served, or has a shorter window; `ConfigError` for a server that is not there or does not fit."""
    if config.url is not None:
        from apr.engines.endpoint import EndpointEngine
        from apr.engines.server import Server

        server = Server.find(config.url, config.model, model, max_context)
        return EndpointEngine(server, max_context=max_context, connections=config.max_num_seqs, timeout=config.timeout)
    if config.kind in ("tiny", "shared") and config.threads is not None:
        import torch

        torch.set_num_threads(config.threads)
    if config.kind == "tiny":
        from apr.engines.tiny import TinyEngine

        return TinyEngine.from_folder(model, max_context=max_context)
    if config.kind == "shared":
        from apr.engines.shared import SharedEngine

        return SharedEngine.from_folder(
            model, dtype=config.dtype, max_context=max_context, cache_bytes=config.kv_cache_mib << 20,
            max_num_seqs=config.max_num_seqs, deterministic=config.deterministic, threads=config.threads,
        )  # fmt: skip
    from apr.engines.vllm import VllmEngine

    return VllmEngine(
        model, max_context=max_context, seed=seed, max_num_seqs=config.max_num_seqs,
        kv_cache_bytes=config.kv_cache_mib << 20, block_size=config.block_size, dtype=config.dtype,
        tensor_parallel=config.tensor_parallel, threads=config.threads, transfer=transfer,
    )  # fmt: skip

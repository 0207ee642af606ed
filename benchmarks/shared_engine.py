"""The shared-cache engine: its rate beside vLLM's on chains, and how its cost grows.

    python benchmarks/shared_engine.py [--rounds 5] [--threads 2] [--without-vllm]

Chains: prompts of the quickstart's problems, 64 tokens sampled for each and no stop, 64 and 256 requests at once, the shipped
checkpoint, the engines in turn; medians of the rounds. Growth: a tiny random Llama, 32 strands at once with ever more tokens to
see, and equal batches from among ever more traces that are held.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apr.checkpoints.folder import ModelFolder
from apr.config import DataConfig
from apr.presets import load, preset
from apr.processors import settle_waiting
from apr.threads.engine import Request
from apr.threads.trace import StrandKey
from envs.countdown.compact import CompactDialect

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "tiny_cpu" / "spawn_join"
SAMPLED = 64


def chains(count: int) -> list[Request]:
    """Requests for different problems, each a trace of its own."""
    dialect = CompactDialect()
    env = load(DataConfig, [preset("data", "tiny_cpu")]).env.build()
    problems = env.problems("train", count, 0)
    return [
        Request(StrandKey(0, problem["id"], 0, "r", 0), dialect.prompt(env, problem), (), SAMPLED, 1.0, number)
        for number, problem in enumerate(problems)
    ]


async def served(engine: Any, requests: Sequence[Request]) -> float:
    """Tokens sampled a second."""
    started = time.perf_counter()
    done = await asyncio.gather(*map(engine.generate, requests))
    spent = time.perf_counter() - started
    for request in requests:
        await engine.release(request.key)
    return sum(len(completion.ids) for completion in done) / spent


def rates(rounds: int, threads: int, with_vllm: bool) -> None:
    from apr.engines.shared import SharedEngine

    folder = ModelFolder.open(CHECKPOINT)
    engines: dict[str, Any] = {
        "shared": SharedEngine.from_folder(folder, max_context=128, cache_bytes=512 << 20, threads=threads)
    }
    if with_vllm:
        from apr.engines.vllm import VllmEngine

        engines["vllm"] = VllmEngine(folder, max_context=128, seed=0, threads=threads)

    async def run() -> None:
        print("| requests at once | " + " | ".join(f"{name}, tokens/s" for name in engines) + " | ratio |")
        print("| --- |" + " --- |" * (len(engines) + 1))
        for count in (64, 256):
            requests = chains(count)
            found: dict[str, list[float]] = {name: [] for name in engines}
            for turn in range(rounds + 1):
                for name, engine in engines.items():
                    rate = await served(engine, requests)
                    if turn:  # the first compiles and warms up
                        found[name].append(rate)
            medians = {name: statistics.median(values) for name, values in found.items()}
            shown = " | ".join(f"{medians[name]:,.0f} ({min(v):,.0f} to {max(v):,.0f})" for name, v in found.items())
            ratio = f"{medians['shared'] / medians['vllm']:.2f}" if with_vllm else ""
            print(f"| {count} | {shown} | {ratio} |", flush=True)

    asyncio.run(run())


def growth(threads: int) -> None:
    import torch
    import transformers

    from apr.engines.attention import NAME, register
    from apr.engines.shared import SharedEngine

    register()
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=1 << 15,
    )  # fmt: skip
    config._attn_implementation = NAME
    torch.manual_seed(0)
    engine = SharedEngine(
        transformers.LlamaForCausalLM(config),
        max_context=1 << 14,
        cache_bytes=2 << 30,
        threads=threads,
        max_num_seqs=1024,
    )

    def request(trace: int, seen: int, sampled: int) -> Request:
        ids = tuple((trace * 31 + i * 7) % 250 for i in range(seen))
        return Request(StrandKey(0, str(trace), 0, "r", 0), ids, (), sampled, 1.0, trace)

    async def seconds(requests: Sequence[Request]) -> float:
        """Per token and step of the last 32 tokens."""
        short = [Request(*(*one[:3], 1, *one[4:])) for one in map(_fields, requests)]
        began = time.perf_counter()
        await asyncio.gather(*map(engine.generate, short))
        first = time.perf_counter() - began
        for one in requests:
            await engine.release(one.key)
        began = time.perf_counter()
        await asyncio.gather(*map(engine.generate, requests))
        spent = time.perf_counter() - began - first
        for one in requests:
            await engine.release(one.key)
        return spent / (requests[0].max_tokens - 1)

    async def run() -> None:
        print("\n| tokens seen, 32 strands | milliseconds a step |\n| --- | --- |")
        for seen in (64, 256, 1024, 4096):
            spent = statistics.median([await seconds([request(i, seen, 33) for i in range(32)]) for _ in range(3)])
            print(f"| {seen} | {spent * 1000:.1f} |", flush=True)

    asyncio.run(run())


def _fields(request: Request) -> tuple[Any, ...]:
    return (request.key, request.ids, request.stop_ids, request.max_tokens, request.temperature, request.seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--without-vllm", action="store_true")
    chosen = parser.parse_args()
    settle_waiting()
    rates(chosen.rounds, chosen.threads, not chosen.without_vllm)
    growth(chosen.threads)

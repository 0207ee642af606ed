"""The shared-cache engine: its rate beside vLLM's on chains, and how its cost grows.

    python benchmarks/shared_engine.py [--rounds 5] [--threads 2] [--without-vllm]

Chains: prompts of the quickstart's problems, 64 tokens sampled for each and no stop, 64 and 256 requests at once, the shipped
checkpoint, the engines in turn; medians of the rounds. Growth: a tiny random Llama, children of 32 traces at once with ever
more tokens to see, and the same children while ever more traces are held.
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
from apr.threads.layout import block_of
from apr.threads.trace import EngineStop, Injected, Origin, Reference, Strand, StrandId, StrandKey
from envs.countdown.compact import CompactSpeller

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "tiny_cpu" / "spawn_join"
SAMPLED = 64
BATCH, ROUNDS = 32, 5


def chains(count: int) -> list[Request]:
    """Requests for different problems, each a trace of its own."""
    speller = CompactSpeller()
    env = load(DataConfig, [preset("data", "tiny_cpu")]).env.build()
    problems = env.problems("train", count, 0)
    return [
        Request(StrandKey(0, problem["id"], 0, "r", 0), speller.prompt(env, problem), (), SAMPLED, 1.0, number)
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

    async def step(seen: int, held: int = BATCH) -> float:
        """Milliseconds of a step of `BATCH` strands that go on after `seen` tokens each, while `held` traces are held."""
        opened = [_opened(str(trace), trace, seen) for trace in range(held)]
        firsts = await asyncio.gather(*map(engine.generate, opened))
        found = []
        for turn in range(ROUNDS):
            more = [_going_on(one, done.ids, turn) for one, done in zip(opened[:BATCH], firsts)]
            began = time.perf_counter()
            await asyncio.gather(*map(engine.generate, more))
            found.append((time.perf_counter() - began) / more[0].max_tokens)
        for one in opened:
            await engine.release(one.key)
        return 1000 * statistics.median(found)

    async def run() -> None:
        await step(64)  # compiles
        print(f"\n| tokens seen by each of {BATCH} strands | milliseconds a step |\n| --- | --- |")
        for seen in (64, 256, 1024, 2048):
            print(f"| {seen} | {await step(seen):.1f} |", flush=True)
        print(f"\n| traces held, of which {BATCH} go on | milliseconds a step |\n| --- | --- |")
        for held in (32, 100, 1000):
            print(f"| {held} | {await step(64, held):.1f} |", flush=True)

    asyncio.run(run())


def _opened(name: str, number: int, seen: int) -> Request:
    """The first strand of a trace: a prompt of its own, and one token sampled."""
    ids = tuple((number * 31 + i * 7) % 250 for i in range(seen - 1))
    return Request(StrandKey(0, name, 0, "r", 0), ids, (), 1, 1.0, number)


def _going_on(first: Request, sampled: tuple[int, ...], turn: int) -> Request:
    """A child that sees all of its trace's first strand."""
    root = Strand(StrandId("r", 0), (), (), 0, (Injected(Origin.PROMPT, first.ids),), sampled, EngineStop.LENGTH)
    child = Strand(
        StrandId(f"r.{turn}", 0), (Reference(root.id, len(root.ids)),), (root.id,), root.end, (), (), EngineStop.STOP
    )
    return Request(
        first.key._replace(thread=child.id.thread), root.ids, (), 32, 1.0, turn,
        block=block_of([(root, len(root.ids)), (child, 0)]), position=root.end,
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of the rates; 0: growth alone")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--without-vllm", action="store_true", help="only the shared engine's rates, and growth")
    chosen = parser.parse_args()
    settle_waiting()
    if chosen.rounds:
        rates(chosen.rounds, chosen.threads, not chosen.without_vllm)
    growth(chosen.threads)

"""What `cluster.routing` costs and gains: tokens prefilled, tokens a second and how evenly two engines share the work.

    python benchmarks/routing.py [--engines 2] [--traces 192] [--runs 3] [--checkpoint FOLDER]

The same attempts of the shipped spawn/join model, by the same vLLM engines on a local Ray, under both policies in turn;
before each run the engines take their weights again, which empties their prefix caches. Medians over the runs.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
import typing
from collections import defaultdict
from pathlib import Path

import ray
from safetensors.torch import load_file

from apr.config import ClusterConfig, DataConfig, EngineConfig
from apr.engines.cluster import start_engine
from apr.engines.placement import connect
from apr.engines.pool import EnginePool, Routing
from apr.engines.weights import WEIGHTS_FILE
from apr.presets import load, preset
from apr.protocols import protocol_by_name
from apr.rollout import Job, Roller
from apr.threads.engine import Engine
from apr.threads.limits import Limits
from apr.threads.session import Sampling
from envs.countdown.compact import CompactSpeller

GROUP = 8  # traces of a problem, as in RL
WINDOW = 128


async def measure(
    pool: EnginePool, engines: list[Engine], jobs: list[Job], given: argparse.Namespace, seed: int
) -> dict[str, float]:
    """One run's tokens and seconds; `largest_share`: of all sampled tokens, those of the engine that had most."""
    speller = CompactSpeller()
    roller = Roller(
        load(DataConfig, [preset("data", "tiny_cpu")]).env.build(), speller, pool,
        protocol_by_name("spawn_join", speller), Limits(context=WINDOW, threads=16, depth=1), Sampling(1.0, seed), 256,
    )  # fmt: skip
    await pool.pause()
    await pool.update_weights(load_file(given.checkpoint / WEIGHTS_FILE), seed + 1)
    await pool.resume()
    before = [(await engine.metrics())["sampled_tokens"] for engine in engines]
    started = time.perf_counter()
    traces = [trace async for trace in roller.run(jobs)]
    seconds = time.perf_counter() - started
    sampled = [(await engine.metrics())["sampled_tokens"] - then for engine, then in zip(engines, before)]
    return {
        "prefilled a trace": statistics.fmean(trace.costs.prefilled for trace in traces),
        "threads a trace": statistics.fmean(len(trace.threads) for trace in traces),
        "sampled tokens/s": sum(sampled) / seconds,
        "largest share": max(sampled) / sum(sampled),
    }


async def compare(given: argparse.Namespace) -> None:
    cluster = ClusterConfig(address="local", engines=given.engines, engine_cpus=0.25, timeout=600)
    config = EngineConfig(threads=1, kv_cache_mib=64)
    starting = [start_engine(config, given.checkpoint, WINDOW, 0, cluster) for _ in range(given.engines)]
    engines: list[Engine] = list(await asyncio.gather(*starting))

    async def none_is_made(index: int) -> Engine:
        raise RuntimeError("an engine died: measure again")

    env = load(DataConfig, [preset("data", "tiny_cpu")]).env.build()
    jobs = [Job(problem, k) for problem in env.problems("train", given.traces // GROUP, 0) for k in range(GROUP)]
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for seed in range(given.runs + 1):
        for routing in typing.get_args(Routing):
            pool = EnginePool(none_is_made, engines, routing=routing, restarts=0)
            measured = await measure(pool, engines, jobs, given, seed)
            if seed:  # the first warms up
                found[routing].append(measured)
    for routing, runs in found.items():
        medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        print(f"{routing:8}" + " | ".join(f"{name} {value:,.2f}" for name, value in medians.items()))
    rates = [[run["sampled tokens/s"] for run in found[routing]] for routing in ("spread", "trace")]
    ratios = [spread / trace for spread, trace in zip(*rates)]
    print(f"tokens/s, spread / trace: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    await asyncio.gather(*(engine.close() for engine in engines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--traces", type=int, default=192)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/tiny_cpu/spawn_join"))
    given = parser.parse_args()
    connect("local")
    try:
        asyncio.run(compare(given))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()

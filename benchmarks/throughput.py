"""Rates of the hot paths on one core, each the median of several runs, and the runtime's rate against the engine's own.

    python benchmarks/throughput.py [--checkpoint FOLDER] [--data FOLDER]

Without a checkpoint only problems, solvers, encoding and codec are measured. With one (and its data folder), the same
strands are also sent flat to the same engine, and the ratio of tokens per second says what the thread runtime costs.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from apr.config import DataConfig, load, preset
from apr.data.generate import demonstrations
from apr.data.store import read_problems
from apr.engines.base import Engine, Request
from apr.protocols import protocol_by_name
from apr.rollout import Job, Roller
from apr.seeds import derive_seed
from apr.sft.rows import rows
from apr.threads.codec import from_json, to_json
from apr.threads.limits import Limits
from apr.threads.session import Sampling
from apr.threads.trace import Trace, closure_ids
from apr.tokens.compact import CompactDialect
from envs.countdown.env import Countdown

RUNS = 5
PROBLEMS = 400


def rate(work: Callable[[], int]) -> str:
    """Items per second: median and range of `RUNS` runs; `work` returns how many items it did."""
    rates = []
    for _ in range(RUNS):
        started = time.perf_counter()
        done = work()
        rates.append(done / (time.perf_counter() - started))
    return f"{statistics.median(rates):10,.0f}  ({min(rates):,.0f} to {max(rates):,.0f})"


def data_rates() -> None:
    config = load(DataConfig, [preset("data", "tiny_cpu")])
    env = Countdown(config.problems, CompactDialect())
    problems = env.problems("train", PROBLEMS, 0)
    print(f"problems a second             {rate(lambda: len(env.problems('train', PROBLEMS, 0)))}")
    for name, solver in config.solvers.items():

        def solve(name: str = name) -> int:
            return len(demonstrations(problems, name, config.solvers[name], 0))

        print(f"{name + ' traces a second':29} {rate(solve)}")
        traces = demonstrations(problems, name, solver, 0)
        print(f"{name + ' rows a second':29} {rate(lambda traces=traces: sum(len(rows(t)) for t in traces))}")  # type: ignore[misc]
        print(
            f"{name + ' JSON round trips':29} {rate(lambda traces=traces: len([from_json(to_json(t)) for t in traces]))}"
        )  # type: ignore[misc]


async def runtime_rate(engine: Engine, data: Path) -> None:
    """Rolls out, then sends the same strands flat with their lengths forced by `max_tokens`, in turn, `RUNS` times."""
    dialect = CompactDialect()
    config = load(DataConfig, [preset("data", "tiny_cpu")])
    problems = read_problems(data, "train")[:256]
    ratios, flat_rates = [], []
    for run in range(RUNS):
        roller = Roller(
            Countdown(config.problems, dialect), engine, protocol_by_name("spawn_join", dialect),
            Limits(context=engine.max_context), Sampling(1.0, derive_seed(run, "benchmark")), 256,
        )  # fmt: skip
        started = time.perf_counter()
        traces = [trace async for trace in roller.run([Job(problem, 0) for problem in problems])]
        spent = time.perf_counter() - started
        started = time.perf_counter()
        done = await asyncio.gather(*[engine.generate(request) for trace in traces for request in _flat(trace)])
        flat_spent = time.perf_counter() - started
        sampled = sum(trace.costs.work_sampled for trace in traces if trace.costs)
        flat_rates.append(sum(len(one.ids) for one in done) / flat_spent)
        ratios.append((sampled / spent) / flat_rates[-1])
    print(f"engine alone, flat, tokens/s  {statistics.median(flat_rates):10,.0f}")
    print(f"runtime / engine alone        {statistics.median(ratios):10.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")
    await engine.close()


def _flat(trace: Trace) -> list[Request]:
    """The trace's strands as requests that do not wait for each other, of the lengths that were sampled."""
    strands = trace.by_id()
    return [
        Request(trace.key(s), closure_ids(strands, s.sees) + s.injected_ids, (), len(s.sampled), 1.0, 0)
        for s in trace.strands
        if s.sampled
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--checkpoint", type=Path)
    arguments.add_argument("--data", type=Path, default=Path("runs/quickstart/data"))
    given = arguments.parse_args()
    data_rates()
    if given.checkpoint:
        from apr.engines.vllm import VllmEngine

        asyncio.run(runtime_rate(VllmEngine(given.checkpoint, max_context=128, seed=0, threads=2), given.data))


if __name__ == "__main__":
    main()

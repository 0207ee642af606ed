"""Rates of problems, solvers, encoding and codec on one core, each the median of several runs.

python benchmarks/throughput.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from apr.config import DataConfig
from apr.data.generate import demonstrations
from apr.presets import load, preset
from apr.sft.rows import rows
from apr.threads.codec import from_json, to_json
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


if __name__ == "__main__":
    data_rates()

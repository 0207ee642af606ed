"""Rates of problems, solvers, encoding and codec on one core, each the median of several runs.

python benchmarks/throughput.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from apr.config import DataConfig
from apr.data.generate import teacher_of
from apr.data.teach import traces as traces_of
from apr.presets import load, preset
from apr.sft.rows import rows
from apr.threads.codec import from_json, to_json
from envs.base import Teacher
from envs.countdown.compact import CompactSpeller

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
    env = config.env.build()
    problems = list(env.problems("train", PROBLEMS, 0))
    print(f"problems a second             {rate(lambda: len(list(env.problems('train', PROBLEMS, 0))))}")
    for name in config.solvers:
        teacher = teacher_of(config, name, env, CompactSpeller())

        def solve(teacher: Teacher = teacher) -> int:
            return len(traces_of(problems, teacher))

        print(f"{name + ' traces a second':29} {rate(solve)}")
        traces = traces_of(problems, teacher)
        print(f"{name + ' rows a second':29} {rate(lambda traces=traces: sum(len(rows(t)) for t in traces))}")  # type: ignore[misc]
        print(
            f"{name + ' JSON round trips':29} {rate(lambda traces=traces: len([from_json(to_json(t)) for t in traces]))}"
        )  # type: ignore[misc]


if __name__ == "__main__":
    data_rates()

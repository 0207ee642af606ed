"""Problems checked and demonstrations made a second on one core, compiled and plain, for the teachers of a preset.

    python benchmarks/solver_rates.py [--config configs/data/paper.yaml] [--problems 30000] [--rounds 5]

Each rate is per second of processor time: the median of several rounds after a warm-up, with the slowest and the
fastest in brackets. A compiled demonstration is its tokens, costs and condition, without the draw of its options, which
has a rate of its own; a plain one is a whole trace, draw included. What they are like is printed as well.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from apr.config import DataConfig
from apr.presets import load, preset
from apr.protocols import protocol_by_name
from envs.base import Teacher
from envs.countdown.compact import CompactSpeller
from envs.countdown.demonstrate import demonstrate, drawn
from envs.countdown.env import Countdown
from envs.countdown.problems import CountdownSpec, problem_of
from envs.countdown.teacher import SearchTeacher
from solvers.compiled import Chunk, demonstrations, solvable
from solvers.exhaustive import reachable

Ints = npt.NDArray[np.int64]
SEED = 0
PLAIN = 100  # plain demonstrations are slow: so many a round


def rate(work: Callable[[], object], items: int, rounds: int) -> str:
    """Items a second of processor time (a busy machine slows the clock on the wall only): median and range of the
    rounds, after one that does not count."""
    rates = []
    for _ in range(rounds + 1):
        started = time.process_time()
        work()
        rates.append(items / (time.process_time() - started))
    return f"{statistics.median(rates[1:]):12,.0f}  ({min(rates[1:]):,.0f} to {max(rates[1:]):,.0f})"


def random_problems(spec: CountdownSpec, count: int) -> tuple[Ints, Ints]:
    """Numbers and targets drawn uniformly, solvable or not."""
    rng = np.random.default_rng(SEED)
    numbers = np.sort(rng.integers(spec.low, spec.high + 1, (count, spec.numbers)), axis=1)
    return numbers, rng.integers(spec.target_low, spec.target_high + 1, count)


def check_rates(numbers: Ints, targets: Ints, rounds: int) -> Ints:
    """Print how fast problems are checked; which ones are solvable."""
    print(f"problems checked, compiled       {rate(lambda: solvable(numbers, targets), len(targets), rounds)}")
    few = [(tuple(row), target) for row, target in zip(numbers[:PLAIN].tolist(), targets[:PLAIN].tolist())]

    def plain() -> None:
        reachable.cache_clear()
        for row, target in few:
            _ = target in reachable(row)

    print(f"problems checked, plain          {rate(plain, len(few), rounds)}")
    found = np.flatnonzero(solvable(numbers, targets))
    print(f"solvable                         {len(found) / len(targets):12.1%}\n")
    return found


def demonstration_rates(name: str, solver: SearchTeacher, numbers: Ints, targets: Ints, rounds: int) -> None:
    """Print how fast `solver` demonstrates these problems, and what its demonstrations are like."""
    problems = [problem_of(row, target) for row, target in zip(numbers.tolist(), targets.tolist())]
    drawing = rate(lambda: [drawn(problem["id"], solver, SEED, 0, 0) for problem in problems], len(problems), rounds)
    drawn_options = [drawn(problem["id"], solver, SEED, 0, 0) for problem in problems]
    beams = np.array([options.beam for options, _ in drawn_options])
    child_beams = np.array([options.child_beam for options, _ in drawn_options])
    seeds = np.array([seed for _, seed in drawn_options], np.uint64)

    def compiled() -> Chunk:
        return demonstrations(
            numbers, targets, drawn_options[0][0], beams, child_beams, seeds, solver.unfold, solver.condition,
            solver.context_bin,
        )  # fmt: skip

    speller = CompactSpeller()
    teacher = Teacher(Countdown(), solver, speller, protocol_by_name(solver.protocol, speller), SEED)
    plain = rate(
        lambda: [demonstrate(problem, teacher) for problem in problems[:PLAIN]],
        len(problems[:PLAIN]), rounds,
    )  # fmt: skip
    print(f"{name + ', compiled':32} {rate(compiled, len(problems), rounds)}")
    print(f"{name + ', plain':32} {plain}")
    print(f"{name + ', options drawn':32} {drawing}")
    print(f"    {describe(compiled())}\n")


def describe(chunk: Chunk) -> str:
    solved = chunk.solved.mean()
    error = 1.96 * np.sqrt(solved * (1 - solved) / len(chunk.solved))
    tokens, threads = chunk.work_sampled.mean(), chunk.threads.mean()
    text = f"solved {solved:.1%} ± {error:.1%}, {tokens:,.0f} tokens and {threads:.2f} threads"
    spawned = chunk.children[chunk.children > 0]
    if not len(spawned):
        return f"{text} a problem"
    rows = np.diff(chunk.row_ends, prepend=0).mean()
    return f"{text} in {rows:.2f} strands a problem; {spawned.mean():.2f} children in the widest spawn, if any"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=preset("data", "paper"))
    parser.add_argument("--problems", type=int, default=30_000, help="random; those solvable are searched")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    config = load(DataConfig, [given.config])
    numbers, targets = random_problems(config.problems, given.problems)
    found = check_rates(numbers, targets, given.rounds)
    for name, solver in config.solvers.items():
        demonstration_rates(name, solver, numbers[found], targets[found], given.rounds)


if __name__ == "__main__":
    main()

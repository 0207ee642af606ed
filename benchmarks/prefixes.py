"""What the learner saves where samples that begin alike are laid over each other (`rl.prefixes`), on the traces of an RL step.

    apr rl --config tiny_cpu data=FOLDER checkpoint=checkpoints/tiny_cpu/spawn_join steps=1 traces_per_step=192 out=RUN
    python benchmarks/prefixes.py RUN --checkpoint checkpoints/tiny_cpu/spawn_join [--rows 128 256 512] [--runs 5]

Takes all traces that RUN kept of its first step. Two arms in turn, rows of each length: every sample by itself, and overlaid.
Prints tokens forwarded, CPU seconds of all passes forward and backward (medians), and the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from learner import step

from apr.config import LearnerConfig
from apr.memory import keep_freed_memory
from apr.threads.codec import read_traces
from rl.advantages import Scored
from rl.learner import Learner
from rl.packing import Pass, plan
from rl.prefixes import overlaid
from rl.samples import Sample, samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--tokens-per-pass", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    keep_freed_memory()
    config = LearnerConfig(tokens_per_pass=arguments.tokens_per_pass, threads=arguments.threads)
    learner = Learner(arguments.checkpoint, config, 1.0)
    made = list(read_traces(arguments.run / "traces" / "step_000000.jsonl.gz"))
    batch = samples([Scored(trace, 1.0) for trace in made])
    print(f"{len(made)} traces, {sum(len(one.block.ids) for one in batch):,} tokens")
    print(
        f"{'rows':>6} {'alone: tokens':>14} {'s':>6} {'overlaid: tokens':>17} {'s':>6} {'ratio':>6} {'overlay s':>10}"
    )
    for length in arguments.rows:
        line(learner, batch, length, config.tokens_per_pass, arguments.runs)


def line(learner: Learner, batch: list[Sample], length: int, tokens_per_pass: int, runs: int) -> None:
    seconds: tuple[list[float], list[float]] = ([], [])
    overlays: list[float] = []
    forwarded = [0, 0]
    for run in range(runs + 1):  # the first warms up
        for arm in range(2):
            began = time.process_time()
            rows = overlaid(batch, length) if arm else batch
            overlay = time.process_time() - began
            passes = [Pass(one, learner.device) for one in plan(rows, length, tokens_per_pass)[0]]
            step(learner, passes)
            forwarded[arm] = sum(one.forwarded for one in passes)
            if run:
                seconds[arm].append(time.process_time() - began)
                overlays += [overlay] * arm
    alone, over = map(statistics.median, seconds)
    print(
        f"{length:6} {forwarded[0]:14,} {alone:6.2f} {forwarded[1]:17,} {over:6.2f} {alone / over:6.2f} "
        f"{statistics.median(overlays):10.3f}"
    )


if __name__ == "__main__":
    main()

"""How OpenMP threads should wait, and how many there should be: rates of SFT, engine and learner, on free cores and beside
a program that keeps one core busy.

    python benchmarks/waiting.py [--data FOLDER] [--parts sft engine learner] [--settings NAME ...] [--runs 3]

Each setting has a process of its own, since OpenMP reads its variables when torch is loaded. Settings take turns: one computes
for `--seconds` (to the end of its unit of work) while the others sleep. The units: an SFT step of `configs/sft/tiny_cpu`, 256
requests to vLLM, a learner's step on 96 traces. The busy program is a Python loop, started for every second window.
Prints medians of work per second as a Markdown table; the shares are of the first setting, on free cores.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "checkpoints" / "tiny_cpu" / "spawn_join"
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SETTINGS: dict[str, tuple[dict[str, str], int]] = {  # name: variables, threads
    "unset, 2 threads": ({}, 2),
    "GOMP_SPINCOUNT=100000, 2 threads": ({"GOMP_SPINCOUNT": "100000"}, 2),
    "GOMP_SPINCOUNT=10000, 2 threads": ({"GOMP_SPINCOUNT": "10000"}, 2),
    "GOMP_SPINCOUNT=3000, 2 threads": ({"GOMP_SPINCOUNT": "3000"}, 2),
    "GOMP_SPINCOUNT=1000, 2 threads": ({"GOMP_SPINCOUNT": "1000"}, 2),
    "OMP_WAIT_POLICY=passive, 2 threads": ({"OMP_WAIT_POLICY": "passive"}, 2),
    "1 thread": ({}, 1),
}
WARM_UP = 3  # units


class Windows:
    """A worker's side: after each unit of work `tick`, which returns within a window and sleeps between windows."""

    def __init__(self) -> None:
        self.warm = 0
        self.units = 0
        self.began = self.until = 0.0

    def tick(self) -> bool:
        """Count a unit; False once there is nothing more to do."""
        if self.warm < WARM_UP:
            self.warm += 1
            if self.warm < WARM_UP:
                return True
            return self._next("ready")
        self.units += 1
        now = time.perf_counter()
        return now < self.until or self._next(str(self.units / (now - self.began)))

    def _next(self, report: str) -> bool:
        print(f"> {report}", flush=True)
        line = sys.stdin.readline()
        if not line.strip():
            return False
        self.units, self.began = 0, time.perf_counter()
        self.until = self.began + float(line)
        return True


def sft(windows: Windows, data: Path, threads: int) -> None:
    from transformers import TrainerCallback

    from apr.config import SftConfig
    from apr.presets import load, preset
    from apr.sft.examples import examples_of
    from apr.sft.train import _trainer
    from envs.countdown.compact import CompactSpeller

    config = load(SftConfig, [preset("sft", "tiny_cpu")], [f"data={data}", f"threads={threads}", "tokens=100000000"])

    class Ticks(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            control.should_training_stop = not windows.tick()

    with tempfile.TemporaryDirectory() as folder:
        examples = examples_of(config.model_copy(update={"threads": 1}), Path(folder))
        trainer = _trainer(config, Path(folder), examples.table, examples.batches(config), CompactSpeller().vocabulary)
        trainer.args.save_strategy = "no"
        trainer.add_callback(Ticks())
        trainer.train()


def engine(windows: Windows, data: Path, threads: int) -> None:
    from apr.checkpoints.folder import ModelFolder
    from apr.config import DataConfig
    from apr.engines.vllm import VllmEngine
    from apr.presets import load, preset
    from apr.threads.engine import Request
    from apr.threads.trace import StrandKey
    from envs.countdown.compact import CompactSpeller

    speller = CompactSpeller()
    env = load(DataConfig, [preset("data", "tiny_cpu")]).env.build()
    problems = list(env.problems("train", 256, 0))
    control = speller.vocabulary.control
    vllm = VllmEngine(ModelFolder.open(CHECKPOINT), max_context=128, seed=0, threads=threads)

    async def run() -> None:
        turn = 0
        while True:
            turn += 1
            await asyncio.gather(*(
                vllm.generate(Request(
                    StrandKey(turn, str(i), 0, "r", 0), speller.prompt(env, problem), (control.eos,), 40, 1.0, turn * 256 + i
                )) for i, problem in enumerate(problems)
            ))  # fmt: skip
            if not windows.tick():
                return

    asyncio.run(run())


def learner(windows: Windows, data: Path, threads: int) -> None:
    from learner import step, traces

    from apr.config import LearnerConfig
    from rl.advantages import Scored
    from rl.learner import Learner
    from rl.packing import Pass, plan
    from rl.samples import samples

    config = LearnerConfig(threads=threads)
    trained = Learner(CHECKPOINT, config, 1.0)
    batch = samples([Scored(trace, 1.0) for trace in traces(96)], "token")
    while True:
        step(
            trained, [Pass(rows, trained.device) for rows in plan(batch, config.row_tokens, config.tokens_per_pass)[0]]
        )
        if not windows.tick():
            return


PARTS = {"sft": sft, "engine": engine, "learner": learner}


class Worker:
    """A process of one setting."""

    def __init__(self, part: str, data: Path, variables: dict[str, str], threads: int) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--data", str(data), "--work", part, str(threads)], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip

    def answer(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("> "):
                return line[2:].strip()
        sys.exit(f"a worker ended with status {self.process.wait()}")

    def rate(self, seconds: float) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return float(self.answer())


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """Beside so many programs that each keep a core busy."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measure(part: str, data: Path, names: Sequence[str], runs: int, seconds: float) -> None:
    """Print the table of a part."""
    workers = {name: Worker(part, data, *setting) for name, setting in SETTINGS.items() if name in names}
    for worker in workers.values():
        worker.answer()
    rates: dict[tuple[str, int], list[float]] = {(name, load): [] for name in workers for load in (0, 1)}
    for _ in range(runs):
        for name, worker in workers.items():
            for load in (0, 1):
                with busy(load):
                    rates[name, load].append(worker.rate(seconds))
    for worker in workers.values():
        worker.process.communicate("\n")
    first = statistics.median(rates[next(iter(workers)), 0])
    print(f"\n| {part} | free cores | share | beside a busy program | share |\n| --- | --- | --- | --- | --- |")
    for name in workers:
        cells = []
        for load in (0, 1):
            found = rates[name, load]
            middle = statistics.median(found)
            cells += [f"{middle:.3g} ({min(found):.3g} to {max(found):.3g})", f"{middle / first:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("runs/tiny_cpu/data"), help="apr data generate --config tiny_cpu"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        import torch  # noqa: F401 (before anything of apr may set a variable)

        part, threads = arguments.work
        PARTS[part](Windows(), arguments.data, int(threads))
        return
    for part in arguments.parts:
        measure(part, arguments.data, arguments.settings, arguments.runs, arguments.seconds)


if __name__ == "__main__":
    main()

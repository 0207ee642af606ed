"""What an evaluation costs beyond its engine, and whether its memory grows with the number of problems.

    python benchmarks/evaluation.py [--problems 1000] [--runs 3] [--memory 1000 10000] [--seqs 64]

Time: `apr eval` on vLLM, from its first request until its summary is written, against two measures of the engine's own
time. In the same run: the seconds spent in vLLM, taking requests and making steps. And flat: the same engine given the same
requests with no threads, no verifier, no files, as many at once as it takes, which fills its batches to the end. Greedy, so
both sample the same tokens and stop by themselves. The two ways take turns; the cache is emptied before each.

Memory: the largest resident size of a whole `apr eval` process at each of the numbers of problems.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

import apr.evaluation.run
from apr.checkpoints.folder import ModelFolder
from apr.config import DataConfig, EvalConfig
from apr.data.generate import generate
from apr.engines.vllm import VllmEngine
from apr.engines.weights import WEIGHTS_FILE
from apr.presets import load, preset
from apr.threads.engine import Completion, Request

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "checkpoints" / "tiny_cpu" / "spawn_join"


class Kept:
    """An engine that survives the evaluations it is lent to, and keeps what it was asked and when first."""

    def __init__(self, engine: VllmEngine) -> None:
        self.engine = engine
        self.asked: list[Request] = []
        self.sampled = 0
        self.first = 0.0

    async def generate(self, request: Request) -> Completion:
        self.first = self.first or time.perf_counter()
        self.asked.append(request)
        done = await self.engine.generate(request)
        self.sampled += len(done.ids)
        return done

    async def close(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


def times(data: Path, out: Path, problems: int, seqs: int, runs: int) -> None:
    """Print seconds of both ways, and their ratio."""
    engine = VllmEngine(ModelFolder.open(CHECKPOINT), max_context=128, seed=0, max_num_seqs=seqs, threads=2)
    taking = timed(engine)
    ratios, shares, asked = [], [], []
    for run in range(runs + 1):  # the first warms up, and tells what to ask
        seconds: dict[str, float] = {}
        for way in ("flat", "evaluation") if run % 2 else ("evaluation", "flat"):
            asyncio.run(engine.update_weights(load_file(CHECKPOINT / WEIGHTS_FILE), run))  # which empties the cache
            if way == "flat":
                seconds[way], flat = asyncio.run(flatly(engine, asked))
                continue
            kept = Kept(engine)
            apr.evaluation.run.build_engine = lambda *_, kept=kept: kept
            busy, taken = asyncio.run(engine.metrics())["busy_seconds"], sum(taking)
            given = [f"data={data}", f"checkpoint={CHECKPOINT}", f"out={out}/{run}", f"problems={problems}"]
            apr.evaluation.run.evaluate(
                load(EvalConfig, [preset("eval", "tiny_cpu")], [*given, f"in_flight={4 * seqs}"])
            )
            seconds[way] = time.perf_counter() - kept.first
            seconds["steps"] = asyncio.run(engine.metrics())["busy_seconds"] - busy
            seconds["taking"] = sum(taking) - taken
            asked, sampled = kept.asked, kept.sampled
        if sampled != flat:
            raise ValueError(f"the flat requests sampled {flat} tokens, the evaluation {sampled}")
        if run:
            ratios.append(seconds["evaluation"] / seconds["flat"])
            shares.append(seconds["evaluation"] / (seconds["steps"] + seconds["taking"]))
            told = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
            print(f"run {run}: {told}, {sampled} tokens, {len(asked)} strands")
    for name, values in (("evaluation / flat requests", ratios), ("evaluation / time in the engine", shares)):
        print(f"{name:38} {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    asyncio.run(engine.close())


def timed(engine: VllmEngine) -> list[float]:
    """Has the engine note the seconds that it takes to accept each request."""
    taking: list[float] = []
    begin = engine._begin

    def noted(flight: Any) -> None:
        started = time.perf_counter()
        begin(flight)
        taking.append(time.perf_counter() - started)

    engine._begin = noted  # type: ignore[method-assign]
    return taking


async def flatly(engine: VllmEngine, requests: list[Request]) -> tuple[float, int]:
    """Seconds and sampled tokens of the requests, all sent at once."""
    started = time.perf_counter()
    done = await asyncio.gather(*map(engine.generate, requests))
    return time.perf_counter() - started, sum(len(one.ids) for one in done)


def memory(data: Path, out: Path, counts: list[int]) -> None:
    """Print the largest resident size, in MiB, of an evaluation of so many problems, each in a process of its own."""
    sizes = []
    for count in counts:
        given = [
            f"data={data}",
            f"checkpoint={CHECKPOINT}",
            f"out={out}/{count}",
            f"problems={count}",
            "limits.context=48",
        ]
        given.append("engine.kv_cache_mib=64")  # small enough that a thousand problems have touched all of it
        code = (
            "import json, resource, subprocess, sys; "
            "command = [sys.executable, '-m', 'apr.cli', 'eval', '--config', 'tiny_cpu', *sys.argv[1:]]; "
            "status = subprocess.run(command).returncode; "
            "print(json.dumps([status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))"
        )
        done = subprocess.run([sys.executable, "-c", code, *given], cwd=ROOT, capture_output=True, encoding="utf-8")
        status, size = json.loads(done.stdout.splitlines()[-1])
        if status:
            sys.exit(done.stderr)
        sizes.append(size / 1024)
        print(f"{count:6} problems: {sizes[-1]:.0f} MiB")
    print(f"memory, most / least problems           {sizes[-1] / sizes[0]:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--seqs", type=int, default=64, help="requests decoded at once; four times as many problems run"
    )
    parser.add_argument("--memory", type=int, nargs="*", default=[1000, 10000], help="numbers of problems")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        count = max([given.problems, *given.memory])
        config = [f"out={out}/data", f"test={count}", "train=10", "solvers={}"]
        config += ["env.numbers=4", "env.test_share=0.4"]  # enough problems
        generate(load(DataConfig, [preset("data", "tiny_cpu")], config))
        if given.memory:
            memory(out / "data", out / "memory", given.memory)
        if given.runs:
            times(out / "data", out / "time", given.problems, given.seqs, given.runs)
    print(
        f"this process at its largest             {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
    )


if __name__ == "__main__":
    main()

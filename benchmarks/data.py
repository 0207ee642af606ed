"""Seconds, rate, size and memory of data sets at a given scale, at the settings of a preset.

    python benchmarks/data.py [--problems 500000] [--solvers spawn_join sos_plus] [--workers 2] [--config paper]

Problems and each teacher's demonstrations are made by `apr data generate` in processes of their own, one after the other,
start included. Seconds are those of the clock, then those of the processor in all processes: on a busy machine only the
latter mean something. Memory is the most that all processes held together (resident; what they share counts in each).
`--solvers` without names measures the problems alone. The data sets go to a temporary folder, or to `--out`.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from apr.config import DataConfig
from apr.presets import dump, load, preset

SAMPLE_EVERY = 0.1  # seconds


def make(config: DataConfig) -> tuple[float, float, int]:
    """Run `apr data generate`; seconds of the clock and of the processor, and bytes of memory at the peak."""
    file = config.out.with_suffix(".yaml")
    file.write_text(dump(config), encoding="utf-8")
    started, used = time.perf_counter(), processor_seconds()
    process = subprocess.Popen([sys.executable, "-m", "apr.cli", "data", "generate", "--config", str(file)])
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(psutil.Process(process.pid)))
        time.sleep(SAMPLE_EVERY)
    if process.returncode:
        sys.exit(process.returncode)
    return time.perf_counter() - started, processor_seconds() - used, peak


def processor_seconds() -> float:
    """Of all processes below this one that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def resident(process: psutil.Process) -> int:
    """Bytes of memory of a process and all below it."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def say(what: str, folder: Path, seconds: float, processor: float, peak: int) -> None:
    paths = list(folder.glob("*.parquet"))
    rows = sum(pq.read_metadata(path).num_rows for path in paths)
    size = sum(path.stat().st_size for path in paths)
    print(
        f"{what:14} {rows:>10,} rows {seconds:8.1f} s {rows / seconds:10,.0f}/s {processor:8.1f} s of processor "
        f"{size / rows:8.1f} bytes a row {peak / 2**30:6.2f} GiB",
        flush=True,
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--problems", type=int, default=50_000)
    arguments.add_argument("--solvers", nargs="*")
    arguments.add_argument("--workers", type=int)
    arguments.add_argument("--config", default="paper")
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    base = load(DataConfig, [preset("data", given.config)])
    with tempfile.TemporaryDirectory() as temporary:
        out = given.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        shared = {"train": given.problems, "workers": given.workers}
        problems = base.model_copy(update={**shared, "solvers": {}, "out": out / "problems_only"})
        say("problems", problems.out / "problems", *make(problems))
        for name in base.solvers if given.solvers is None else given.solvers:
            config = base.model_copy(update={**shared, "solvers": {name: base.solvers[name]}, "out": out / name})
            shutil.copytree(problems.out / "problems", config.out / "problems")
            config.out.joinpath("config.yaml").write_text(dump(config), encoding="utf-8")
            say(name, config.out / "demonstrations" / name, *make(config))


if __name__ == "__main__":
    main()

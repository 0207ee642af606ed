"""The thread viewer's page at scale: its size, how it is written, how fast it opens, steps, filters, searches, toggles.

    python benchmarks/viewer.py [--traces 1000] [--threads 100]

Random but valid traces (seeded), written to a page as they come, and the page opened in a headless Chromium. Painted is
the time from the user's act to the second animation frame after the timeline was drawn. Other programs on the same cores
lengthen it; the processor time of the page's main thread, beside it, they do not.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apr.report.viewer import Source, write_view
from apr.threads.costs import costs
from apr.threads.trace import (
    EngineStop,
    Injected,
    Origin,
    Outcome,
    Reference,
    StopReason,
    Strand,
    StrandId,
    Thread,
    Trace,
    VersionSpan,
)
from envs.countdown.compact import CompactSpeller

VOCABULARY = CompactSpeller().vocabulary
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-quic",
]  # fmt: skip
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHILDREN = 9  # of the root; the other threads are children of these
# In the page: do one thing, and wait until its timeline was painted.
TIMED = """
async (act) => {
  const section = document.getElementById("traces");
  const drawn = new Promise((resolve) => section.addEventListener("drawn", resolve, { once: true }));
  const painted = () => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
  const start = performance.now();
  new Function(act)();
  await drawn;
  const drew = performance.now();
  await painted();
  return [drew - start, performance.now() - start];
}
"""
OPENED = """
() => new Promise((resolve) => {
  const section = document.getElementById("traces");
  const done = () => requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now())));
  if (section.dataset.drawn !== undefined) done(); else section.addEventListener("drawn", done, { once: true });
})
"""


PAIR = 'document.getElementById("v-pair").click()'
ACTS = {
    "step": 'document.getElementById("v-next").click()',
    "far step (slider)": 'const s = document.getElementById("v-slider"); s.value = 1 + Math.floor(Math.random() * s.max);'
    ' s.dispatchEvent(new Event("input"))',
    "filter": 'const b = [...document.querySelectorAll("#v-outcome button:not([hidden])")];'
    ' b[(1 + b.findIndex((one) => one.ariaPressed === "true")) % b.length].click()',
    "search": 'const s = document.getElementById("v-search");'
    ' s.value = s.value ? "" : String(10 + Math.floor(Math.random() * 80)); s.dispatchEvent(new Event("input"))',
    "tokens or seconds": 'document.querySelector("#v-axis button[aria-pressed=false]").click()',
    "side by side": PAIR,  # once more than the others, so that it stays
    "step, side by side": 'document.getElementById("v-next").click()',
}


class Writer:
    """Writes one trace, thread by thread, at random."""

    def __init__(self, number: int, threads: int) -> None:
        self.draw = random.Random(number)
        self.below = threads - 1
        self.threads: list[Thread] = []
        self.strands: list[Strand] = []

    def trace(self) -> Trace:
        self._thread("r", None, None, 0.0, self.below)
        self.threads.sort(key=lambda thread: [int(part) for part in thread.id.split(".")[1:]])
        draw, numbers = self.draw, [self.draw.randint(1, 99) for _ in range(4)]
        correct = draw.random() < 0.6
        stop = StopReason.ANSWERED if correct else draw.choice(list(StopReason)[:5])
        strands, whole = tuple(self.strands), tuple(self.threads)
        target = draw.randint(10, 100)
        return Trace(
            {"id": f"{target}:{'-'.join(map(str, numbers))}", "numbers": numbers, "target": target}, "spawn_join", 0, 0,
            whole, strands, f"{numbers[0]}+{numbers[1]}={sum(numbers[:2])}" if correct else None,
            Outcome(stop, correct, "reaches the target" if correct else "no answer"), costs(whole, strands),
            {"context": 256, "span": 400, "threads": 128, "depth": 2}, {"span_sampled": 250, "work": 9_000},
        )  # fmt: skip

    def _thread(self, key: str, parent: str | None, spawner: StrandId | None, start: float, below: int) -> Strand:
        """Add a thread with `below` descendants; returns its last strand."""
        prompt = Injected(Origin.PROMPT if parent is None else Origin.MESSAGE, self._ids(12))
        first = last = self._strand(StrandId(key, 0), (), (spawner,) if spawner else (), prompt, start)
        children = min(below, CHILDREN) if parent is None else below
        if children:
            shares = [(below - children + i) // children for i in range(children)]
            ends = [self._thread(f"{key}.{i}", key, first.id, first.ended, share) for i, share in enumerate(shares)]
            message = Injected(Origin.MESSAGE, self._ids(6 * children))
            after = (first.id, *(end.id for end in ends))
            started = max(end.ended for end in ends)
            last = self._strand(StrandId(key, 1), (Reference(first.id, 12),), after, message, started)
        found = self.draw.random() < 0.4
        stop = StopReason.ANSWERED if found else StopReason.NO_ANSWER
        ids = (first.id,) if last is first else (first.id, last.id)
        self.threads.append(Thread(key, parent, key.count("."), ids, stop, self._ids(9) if found else ()))
        return last

    def _strand(
        self, key: StrandId, sees: tuple[Reference, ...], after: tuple[StrandId, ...], injected: Injected, start: float
    ) -> Strand:
        n = self.draw.randint(60, 100)
        logprobs = tuple(-self.draw.expovariate(4.0) for _ in range(n))
        cut = self.draw.randint(1, n - 1)
        strand = Strand(
            key, sees, after, 0, (injected,), self._ids(n), EngineStop.STOP, logprobs,
            (VersionSpan(3, 0, cut), VersionSpan(4, cut, n)), 0, start, start + n * self.draw.uniform(0.02, 0.03),
        )  # fmt: skip
        self.strands.append(strand)
        return strand

    def _ids(self, n: int) -> tuple[int, ...]:
        return tuple(self.draw.randrange(8, len(VOCABULARY)) for _ in range(n))


def random_traces(count: int, threads: int) -> Iterator[Trace]:
    """Valid traces, each made when it is asked for; equal arguments make equal traces."""
    return (Writer(number, threads).trace() for number in range(count))


def opened(chromium: Any, file: Path, times: int) -> dict[str, list[float]]:
    """Milliseconds from the start of the navigation, each time in a new browser."""
    found: dict[str, list[float]] = {"open, first timeline painted": [], "open, all traces there": []}
    for _ in range(times):
        browser = chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(file.resolve().as_uri(), wait_until="commit")
        page.wait_for_selector("#traces", state="attached")
        found["open, first timeline painted"].append(page.evaluate(OPENED))
        page.wait_for_load_state("load")
        loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        found["open, all traces there"].append(loaded)
        browser.close()
    return found


def acted(chromium: Any, file: Path, repeats: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Milliseconds by act until drawn and until painted, and those of the main thread's processor, a mean."""
    browser = chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    counters = page.context.new_cdp_session(page)
    counters.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(file.resolve().as_uri())
    found: dict[str, list[float]] = {}
    processor = {"open": _processor(counters)}
    for name, act in ACTS.items():
        before = _processor(counters)
        times: list[tuple[float, float]] = [page.evaluate(TIMED, act) for _ in range(repeats + (act == PAIR))]
        found[f"{name}, drawn"], found[f"{name}, painted"] = map(list, zip(*times))
        page.wait_for_timeout(100)
        processor[name] = (_processor(counters) - before) / len(times)
    browser.close()
    return found, processor


def _processor(counters: Any) -> float:
    """Milliseconds of the processor that the page's main thread has used."""
    metrics = {one["name"]: one["value"] for one in counters.send("Performance.getMetrics")["metrics"]}
    return 1000 * float(metrics["TaskDuration"])


def main() -> None:
    from playwright.sync_api import sync_playwright

    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--traces", type=int, default=1000)
    arguments.add_argument("--threads", type=int, default=100)
    arguments.add_argument("--repeats", type=int, default=40)
    arguments.add_argument("--keep", type=Path, help="keep the page here")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = given.keep or Path(folder) / "view.html"
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before")
        written(file, given.traces, given.threads)
        with sync_playwright() as playwright:
            found = opened(playwright.chromium, file, 5)
            more, processor = acted(playwright.chromium, file, given.repeats)
    for name, times in {**found, **more}.items():
        high = sorted(times)[int(0.95 * (len(times) - 1))]
        print(f"{name}: median {statistics.median(times):.0f} ms, 95% {high:.0f}, max {max(times):.0f} ({len(times)})")
    for name, milliseconds in processor.items():
        print(f"{name}, processor of the main thread: {milliseconds:.0f} ms")


def written(file: Path, traces: int, threads: int) -> None:
    """Write the page; print its size, and the processor's time and the memory that it took."""
    start = time.process_time()
    made = sum(1 for _ in random_traces(20, threads))
    making = (time.process_time() - start) / made
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.process_time()
    sources = [Source(label, random_traces(traces // 2, threads), VOCABULARY.text) for label in ("before", "after")]
    count = write_view(file, "Benchmark", sources)
    seconds = time.process_time() - start - making * count
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{count} traces of {threads} threads: {file.stat().st_size / 1e6:.1f} MB")
    print(
        f"written in {seconds:.1f} s of the processor ({1000 * seconds / count:.1f} ms a trace), their making not counted"
    )
    print(f"peak memory {after:.0f} MiB, {before:.0f} before the first trace")


if __name__ == "__main__":
    main()

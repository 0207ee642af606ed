"""How early does the child that succeeds come among its siblings, and what would it save to know?

    python benchmarks/children.py runs/study/eval/rl_spawn_join_10000/traces.jsonl.gz

A parent settles on its children before any has reported, so children behind the first that succeeds are spawned in vain. For
attempts that spawn once: the mean sampled span; what it would be if every successful attempt ended its list with the first
child that succeeds (an oracle's span: accuracy stays as it is); and accuracy and span if no list were longer than N. What a
child adds to the span is the slope of the line of least squares through the attempts.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from apr.threads.codec import read_traces
from apr.threads.trace import ROOT, StopReason, Trace


class Tried(NamedTuple):
    """`first`: how many children precede the first that succeeded, None if none did."""

    correct: bool
    span: int
    children: int
    first: int | None


def tried(trace: Trace) -> Tried:
    children = [thread for thread in trace.threads if thread.parent == ROOT]
    found = (index for index, child in enumerate(children) if child.stop is StopReason.ANSWERED)
    assert trace.outcome is not None and trace.costs is not None
    return Tried(trace.outcome.correct, trace.costs.span_sampled, len(children), next(found, None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path)
    attempts = [tried(trace) for trace in read_traces(parser.parse_args().traces)]
    slope = statistics.linear_regression([one.children for one in attempts], [one.span for one in attempts]).slope
    span = statistics.fmean(one.span for one in attempts)
    children = statistics.fmean(one.children for one in attempts)
    correct = statistics.fmean(one.correct for one in attempts)
    print(f"{len(attempts):,} attempts: {correct:.1%} correct, {children:.1f} children, span_sampled {span:.1f}")
    print(f"a child adds {slope:.1f} to span_sampled")
    spared = [one.children - 1 - one.first if one.correct and one.first is not None else 0 for one in attempts]
    oracle = span - slope * statistics.fmean(spared)
    print(f"without children behind the first that succeeds: {oracle:.1f} ({oracle / span - 1:+.1%})")
    places = Counter(one.first for one in attempts if one.correct and one.first is not None)
    shares = ", ".join(f"{place + 1}: {count / places.total():.1%}" for place, count in sorted(places.items()))
    print(f"its place, share of successes: {shares}")
    for most in range(3, max(one.children for one in attempts)):
        kept = statistics.fmean(one.correct and (one.first is None or one.first < most) for one in attempts)
        shorter = span - slope * statistics.fmean(max(0, one.children - most) for one in attempts)
        print(f"no more than {most:2}: {kept:.1%} correct, span_sampled {shorter:.1f} ({shorter / span - 1:+.1%})")


if __name__ == "__main__":
    main()

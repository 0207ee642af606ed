"""Why spawn/join attempts fail: was the child that leads to the answer spawned, did it find it, did the root read it?

python benchmarks/failures.py runs/quickstart/eval/spawn_join_sft/traces.jsonl.gz
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from apr.threads.codec import read_traces
from apr.threads.trace import Thread, Trace
from envs.countdown.compact import CompactSpeller
from envs.countdown.log import Node
from solvers.exhaustive import reachable
from solvers.search import children

VALUE_CAP = 99  # of the tiny_cpu teachers: children with larger numbers are in no demonstration


def numbers_of(thread: Thread, trace: Trace) -> tuple[int, ...] | None:
    """The numbers in a child's message (`steps : numbers : target`), or None if it is not of that form."""
    words = CompactSpeller().vocabulary.decode(trace.by_id()[thread.strands[0]].injected_ids)
    parts = " ".join(words).split(" : ")
    if len(parts) != 3 or not all(word.isdigit() for word in parts[1].split()):
        return None
    return tuple(sorted(int(word) for word in parts[1].split()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path)
    outcomes: Counter[str] = Counter()
    spawned: Counter[str] = Counter()
    coverage = attempts = 0.0
    for trace in read_traces(parser.parse_args().traces):
        start = Node(tuple(trace.problem["numbers"]), ())
        options = {node.numbers for node in children(start, VALUE_CAP)}
        leading = {numbers for numbers in options if trace.problem["target"] in reachable(numbers)}
        valid = {node.numbers for node in children(start)}
        first = [thread for thread in trace.threads if thread.depth == 1 and thread.strands]
        chosen = [numbers_of(thread, trace) for thread in first]
        attempts += 1
        coverage += len(options & set(chosen)) / len(options)
        for thread, numbers in zip(first, chosen):
            spawned["valid" if numbers in valid else "invalid"] += 1
            if numbers in leading:
                spawned["leading, found" if thread.message else "leading, missed"] += 1
        had = "a leading child was spawned" if leading & set(chosen) else "no leading child was spawned"
        outcomes[f"{'solved' if trace.correct else 'failed'} ({trace.root.stop.value}), {had}"] += 1
    print(f"{attempts:.0f} attempts; {coverage / attempts:.1%} of the possible children spawned")
    for name, count in [*spawned.most_common(), *outcomes.most_common()]:
        print(f"{count:6} {name}")


if __name__ == "__main__":
    main()

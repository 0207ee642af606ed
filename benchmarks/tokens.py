"""Tokens a trace takes: the same demonstrations in both spellers, and the paper wording byte by byte.

    python benchmarks/tokens.py [--problems 1000] [--seed 0] [--config paper]

Work counts all threads of a trace, told and sampled tokens; context is the largest of its contexts.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from apr.config import DataConfig
from apr.presets import load, preset
from apr.protocols import protocol_by_name
from apr.seeds import SplitMix64
from apr.threads.trace import Trace
from envs.countdown.compact import CompactSpeller
from envs.countdown.demonstrate import drawn
from envs.countdown.log import Node, SearchLog
from envs.countdown.paper import PaperSpeller
from envs.countdown.teacher import SearchTeacher
from envs.countdown.wording import encode
from solvers.search import search, unfold

COMPACT, PAPER = CompactSpeller(), PaperSpeller()


def demonstration(problem: dict[str, Any], solver: SearchTeacher, seed: int) -> SearchLog:
    """The teacher's search, as `apr data generate` draws it, before it is spelt."""
    options, search_seed = drawn(problem["id"], solver, seed, 0, 0)
    log = search(problem["target"], Node(tuple(problem["numbers"]), ()), options, SplitMix64(search_seed))
    return unfold(log) if solver.unfold else log


def sizes(trace: Trace, spelt_in: PaperSpeller | None = None) -> tuple[int, int]:
    """Work and context in tokens; in bytes of text (each control token one more) if `spelt_in` says how it reads."""
    assert trace.costs is not None
    if spelt_in is None:
        return trace.costs.work, trace.costs.context
    size: dict[Any, tuple[int, ...]] = {}  # of each token, in bytes, by strand
    for strand in trace.strands:
        pieces = spelt_in.words.pieces(strand.ids)
        size[strand.id] = tuple(1 if i < 8 else len(piece.encode()) for i, piece in zip(strand.ids, pieces))
    strands = trace.by_id()
    contexts = []
    for strand in trace.strands:
        total, sees = sum(size[strand.id]), strand.sees
        while sees:
            [(seen, length)] = sees
            total, sees = total + sum(size[seen][:length]), strands[seen].sees
        contexts.append(total)
    return sum(map(sum, size.values())), max(contexts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", default="paper", help="a data preset")
    args = parser.parse_args()
    config = load(DataConfig, [preset("data", args.config)])
    problems = list(config.env.build().problems("train", args.problems, args.seed))
    print(f"{args.problems} problems of the preset {args.config}, seed {args.seed}: mean (95th percentile)")
    print(f"{'teacher':24}{'tokens':24}{'work':>20}{'context':>20}")
    for name, solver in config.solvers.items():
        logs = [(problem, demonstration(problem, solver, args.seed)) for problem in problems]
        compact = protocol_by_name(solver.protocol, COMPACT)
        paper = protocol_by_name(solver.protocol, PAPER)
        spelt = [encode(log, PAPER, paper, problem) for problem, log in logs]
        kinds = {
            f"compact ({len(COMPACT.vocabulary)})": [sizes(encode(log, COMPACT, compact, p)) for p, log in logs],
            f"paper ({len(PAPER.vocabulary)})": [sizes(trace) for trace in spelt],
            "paper, bytes (256)": [sizes(trace, PAPER) for trace in spelt],
        }
        for kind, found in kinds.items():
            columns = [f"{np.mean(c):,.0f} ({np.percentile(c, 95):,.0f})" for c in zip(*found)]
            print(f"{name:24}{kind:24}{columns[0]:>20}{columns[1]:>20}")


if __name__ == "__main__":
    main()

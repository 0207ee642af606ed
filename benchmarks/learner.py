"""What the learner makes of a step's traces: how many of the tokens that it forwards are trained, shared or padding, and its
rate beside that of dense causal rows.

    python benchmarks/learner.py [--checkpoint FOLDER] [--traces 192] [--row-tokens 256] [--runs 5]

Traces are spawn/join demonstrations of the quickstart's preset, with made-up logprobs and advantages. Three arms, in turn:

* packed: as `rl.learner` does it.
* dense: as many tokens, the same model and as many trained tokens, in causal rows of `row-tokens` without padding or mask.
* padded: a right-padded row for every engine call, its whole context included, rows of like length together.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from apr.config import DataConfig, LearnerConfig
from apr.data.generate import teacher_of
from apr.data.teach import traces as demonstrations
from apr.memory import keep_freed_memory
from apr.presets import load, preset
from apr.threads.layout import causal
from apr.threads.trace import Trace, closure_ids
from envs.countdown.compact import CompactSpeller
from rl.advantages import Scored
from rl.learner import Learner
from rl.packing import Pass, plan
from rl.samples import Sample, samples


def traces(count: int) -> list[Trace]:
    config = load(DataConfig, [preset("data", "tiny_cpu")])
    env = config.env.build()
    made = demonstrations(
        list(env.problems("train", count, 0)), teacher_of(config, "spawn_join", env, CompactSpeller())
    )
    return [replace(t, strands=tuple(replace(s, logprobs=(-0.5,) * len(s.sampled)) for s in t.strands)) for t in made]


def row(ids: Sequence[int], trained: list[int]) -> Sample:
    ones, zeros = [1e-5] * len(trained), [0] * len(trained)
    return Sample(causal(ids), trained, [place - 1 for place in trained], zeros, ones, ones, ones, ones, zeros)


def dense(batch: list[Sample], length: int) -> list[Sample]:
    """The batch's tokens, end to end, in causal rows of `length`; as many of them trained, evenly spread."""
    tokens = [token for sample in batch for token in sample.block.ids]
    trained = sum(len(sample.trained) for sample in batch) / len(tokens)
    rows = []
    for start in range(0, len(tokens) - length + 1, length):
        chosen = [i for i in range(1, length) if int(i * trained) > int((i - 1) * trained)]
        rows.append(row(tokens[start : start + length], chosen))
    return rows


def padded(made: list[Trace]) -> list[Sample]:
    """A row for each call: what the strand saw, then itself."""
    rows = []
    for trace in made:
        strands = trace.by_id()
        for strand in (one for one in trace.strands if one.sampled):
            ids = closure_ids(strands, strand.sees) + strand.ids
            chosen = list(range(len(ids) - len(strand.sampled), len(ids)))
            rows.append(row(ids, chosen))
    return rows


def step(learner: Learner, passes: list[Pass]) -> None:
    for number, one in enumerate(passes):
        loss = -(one.weights * learner.scorer(one)).sum()
        learner.backend.backward(loss, last=number + 1 == len(passes))
    learner.backend.step(0.0)


def right_padded(rows: list[Sample], tokens_per_pass: int, device: torch.device) -> list[Pass]:
    batches: list[list[list[Sample]]] = []
    for one in sorted(rows, key=lambda one: len(one.block.ids)):
        if batches and (len(batches[-1]) + 1) * len(one.block.ids) <= tokens_per_pass:
            batches[-1].append([one])
        else:
            batches.append([[one]])
    return [Pass(batch, device, masked=False) for batch in batches]  # attention is faster without a mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/tiny_cpu/spawn_join"))
    parser.add_argument("--traces", type=int, default=192)
    parser.add_argument("--row-tokens", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    keep_freed_memory()
    config = LearnerConfig(row_tokens=arguments.row_tokens, threads=arguments.threads)
    learner = Learner(arguments.checkpoint, config, 1.0)
    made = traces(arguments.traces)
    batch = samples([Scored(trace, 1.0) for trace in made], "token")
    sampled = sum(len(strand.sampled) for trace in made for strand in trace.strands)
    unique = sum(len(strand.ids) for trace in made for strand in trace.strands)
    loss = sum(len(sample.trained) for sample in batch)

    def pack() -> list[Pass]:
        return [Pass(rows, learner.device) for rows in plan(batch, config.row_tokens, config.tokens_per_pass)[0]]

    calls = padded(made)
    rows = dense(batch, config.row_tokens)
    arms: dict[str, Callable[[], list[Pass]]] = {
        "packed": pack,
        "dense": lambda: right_padded(rows, config.tokens_per_pass, learner.device),
        "padded": lambda: right_padded(calls, config.tokens_per_pass, learner.device),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for run in range(arguments.runs + 1):  # the first warms up
        for name, passes in arms.items():
            began = time.perf_counter()
            step(learner, passes())
            if run:
                seconds[name].append(time.perf_counter() - began)
    forwarded = {name: sum(one.forwarded for one in passes()) for name, passes in arms.items()}
    print(f"{len(made)} traces, {unique:,} unique tokens, {sampled:,} sampled; rows of {config.row_tokens}")
    print(f"loss tokens / sampled tokens       {loss / sampled:.3f}")
    print(
        f"tokens forwarded / unique tokens   {forwarded['packed'] / unique:.3f}; padded: {forwarded['padded'] / unique:.3f}"
    )
    print(f"padding                            {1 - unique / forwarded['packed']:.1%}")
    dense_tokens = sum(len(one.block.ids) for one in rows)
    rates = {
        "packed": [unique / s for s in seconds["packed"]],
        "dense": [dense_tokens / s for s in seconds["dense"]],
        "padded": [unique / s for s in seconds["padded"]],
    }
    for name, values in rates.items():
        print(f"{name:8} {statistics.median(values):8,.0f} tokens/s ({min(values):,.0f} to {max(values):,.0f})")
    for name in ("dense", "padded"):
        print(f"packed / {name:7} {statistics.median(a / b for a, b in zip(rates['packed'], rates[name])):.2f}")


if __name__ == "__main__":
    main()

"""What the thread runtime costs: demonstrations replayed through it, against the same strands sent flat.

    python benchmarks/orchestration.py [--checkpoint FOLDER] [--traces N] [--seqs N] [--runs N]

vLLM computes every token and then says the recorded one. So each strand has its recorded length, the protocol spawns and
joins as recorded, and the cache holds keys and values of the recorded tokens. Both ways use one engine in one process,
in turn, each from an empty cache. A rate is that of the middle 80% of the tokens: beginning and end, when fewer requests
than `--seqs` can run, count for neither. Where other programs want the cores, tokens per CPU second tell more.

After a join the parent goes on from a prefix that was computed before. The engine shares full blocks: what fills such
blocks must be found in its cache, and what was not is counted. Demonstrations of the shipped preset are short beside a
block, so those counted are of four numbers and two levels of spawning, through a model of random weights.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file

from apr.checkpoints.card import Card
from apr.checkpoints.checkpoint import save_checkpoint
from apr.checkpoints.folder import ModelFolder
from apr.config import DataConfig, ModelConfig
from apr.data.generate import teacher_of
from apr.data.teach import traces as demonstrations
from apr.engines.vllm import VllmEngine
from apr.engines.weights import WEIGHTS_FILE
from apr.presets import load, preset
from apr.protocols import protocol_by_name
from apr.rollout import Job, Roller
from apr.seeds import derive_seed
from apr.sft.train import new_model
from apr.threads.engine import Engine, Request
from apr.threads.limits import Limits
from apr.threads.session import Sampling
from apr.threads.trace import Trace, closure_ids, closure_lengths
from envs.base import Env
from envs.countdown.compact import CompactSpeller

BLOCK = 32
SEED = 7
LONG = [
    "env.numbers=4", "env.target_high=99",
    "solvers={spawn_join: {protocol: spawn_join, spawn_depth: 2, beams: [3, 4, 5], promising_share: 0.5, value_cap: 99}}",
]  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Traces to replay, and what the runtime needs for them."""

    env: Env
    traces: Sequence[Trace]
    limits: Limits

    @classmethod
    def of(cls, overrides: Sequence[str], count: int, limits: Limits) -> Part:
        """`count` demonstrations of the spawn/join teacher that keep within `limits`."""
        config = load(DataConfig, [preset("data", "tiny_cpu")], overrides)
        env = config.env.build()
        teacher = teacher_of(config.model_copy(update={"seed": SEED}), "spawn_join", env, CompactSpeller())
        found = demonstrations(list(env.problems("train", 2 * count, SEED)), teacher)
        fitting = [t for t in found if t.costs and t.costs.context <= limits.context]
        if len(fitting) < count:
            raise ValueError(f"only {len(fitting)} of {len(found)} demonstrations keep within {limits}")
        return cls(env, [replace(trace, step=0, sample=i) for i, trace in enumerate(fitting[:count])], limits)

    def requests(self) -> list[Request]:
        """Every strand as a request that waits for no other, with the seed that the runtime gives it."""
        made = []
        for trace in self.traces:
            strands = trace.by_id()
            for strand in trace.strands:
                ids, key = closure_ids(strands, strand.sees) + strand.injected_ids, trace.key(strand)
                seed = derive_seed(SEED, "strand", *key)
                made.append(Request(key, ids, (), len(strand.sampled), 1.0, seed))
        return made

    async def run(self, engine: Engine, in_flight: int) -> list[Trace]:
        """All traces through the runtime."""
        protocol = protocol_by_name("spawn_join", CompactSpeller())
        roller = Roller(self.env, CompactSpeller(), engine, protocol, self.limits, Sampling(1.0, SEED), in_flight)
        made = [trace async for trace in roller.run([Job(trace.problem, trace.sample) for trace in self.traces])]
        for trace, recorded in zip(made, self.traces):
            if [strand.ids for strand in trace.strands] != [strand.ids for strand in recorded.strands]:
                raise ValueError(f"the replay of {recorded.problem['id']} went another way than the recorded trace")
        return made


class Rate(NamedTuple):
    """Tokens per second of the clock and of this process's CPU time, and how many requests ran at once."""

    clock: float
    cpu: float
    running: float


class Replay:
    """Makes an engine sample what was recorded under its requests' seeds; notes when it sampled how many tokens."""

    def __init__(self, engine: VllmEngine, part: Part) -> None:
        runner: Any = engine._engine.model_executor.driver_worker.model_runner
        sampled = [strand.sampled for trace in part.traces for strand in trace.strands]
        recorded = {request.seed: ids for request, ids in zip(part.requests(), sampled)}
        sample = runner.sampler.forward
        self.ticks: list[tuple[float, float, int]] = []

        def forward(*arguments: Any, **more: Any) -> Any:
            output = sample(*arguments, **more)
            running = [runner.requests[name] for name in runner.input_batch.req_ids]
            said = [recorded[one.sampling_params.seed][len(one.output_token_ids)] for one in running]
            output.sampled_token_ids[:, 0] = output.sampled_token_ids.new_tensor(said)
            self.ticks.append((time.perf_counter(), time.process_time(), len(said)))
            return output

        runner.sampler.forward = forward

    def rate(self) -> Rate:
        """Over the middle 80% of the tokens noted, which it forgets."""
        done = list(accumulate(count for *_, count in self.ticks))
        middle = [tick for tick, sum_ in zip(self.ticks, done) if 0.1 <= sum_ / done[-1] <= 0.9]
        self.ticks.clear()
        counts = [count for *_, count in middle[1:]]
        clock, cpu = (sum(counts) / (middle[-1][i] - middle[0][i]) for i in (0, 1))
        return Rate(clock, cpu, statistics.fmean(counts))


async def compare(engine: VllmEngine, checkpoint: Path, part: Part, seqs: int, runs: int) -> None:
    """Print the rates of both ways, in turn, and their ratio."""
    replay, flat = Replay(engine, part), part.requests()
    found: dict[str, list[Rate]] = {"flat": [], "runtime": []}
    for run in range(runs):
        for way in ("flat", "runtime") if run % 2 else ("runtime", "flat"):
            await engine.update_weights(load_file(checkpoint / WEIGHTS_FILE), run)  # which empties the cache
            if way == "flat":
                await asyncio.gather(*(engine.generate(request) for request in flat))
            else:
                await part.run(engine, seqs)
            found[way].append(replay.rate())
    for way, rates in found.items():
        running = statistics.median(rate.running for rate in rates)
        print(
            f"{way + ', tokens/s':24} {spread([rate.clock for rate in rates], ',.0f')}; requests running {running:.1f}"
        )
    pairs = list(zip(found["runtime"], found["flat"]))
    print(f"{'runtime / flat':24} {spread([one.clock / other.clock for one, other in pairs], '.3f')}")
    print(f"{'the same, by CPU seconds':24} {spread([one.cpu / other.cpu for one, other in pairs], '.3f')}")


def spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


async def prefilled_again(engine: VllmEngine, part: Part, seqs: int) -> None:
    """Print what parents' strands after a join saw, and what of that the cache should have held and did not."""
    Replay(engine, part)
    seen, shareable, missing = [], 0, 0
    for trace in await part.run(engine, seqs):
        strands = trace.by_id()
        for strand in trace.strands:
            if strand.sees:
                seen.append(sum(closure_lengths(strands, strand.sees).values()))
                full = seen[-1] // BLOCK * BLOCK
                shareable += full
                missing += max(0, full - strand.cached)
    preempted = (await engine.metrics())["preemptions"]
    print(f"joins {len(seen)}, prefixes of {min(seen)} to {max(seen)} tokens, median {statistics.median(seen):.0f}")
    print(f"tokens in their full blocks {shareable}; not found in the cache {missing}; preemptions {preempted:.0f}")


def random_model(folder: Path, window: int) -> Path:
    """A checkpoint of random weights for the compact speller."""
    vocabulary = CompactSpeller().vocabulary
    save_checkpoint(folder, new_model(ModelConfig(window=window), len(vocabulary), 0, 1), vocabulary, Card())
    return folder


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--checkpoint", type=Path, default=Path("checkpoints/tiny_cpu/spawn_join"))
    arguments.add_argument(
        "--traces", type=int, default=640, help="the more of them, the less beginning and end matter"
    )
    arguments.add_argument("--seqs", type=int, default=64, help="requests decoded, and traces running, at once")
    arguments.add_argument("--runs", type=int, default=5)
    given = arguments.parse_args()
    short = Part.of([], given.traces, Limits(context=128, threads=None))
    engine = VllmEngine(
        ModelFolder.open(given.checkpoint),
        max_context=128,
        seed=0,
        max_num_seqs=given.seqs,
        block_size=BLOCK,
        threads=2,
    )

    async def rates() -> None:
        await compare(engine, given.checkpoint, short, given.seqs, given.runs)
        await engine.close()

    asyncio.run(rates())
    long = Part.of(LONG, 64, Limits(context=1024, threads=None, depth=2))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = random_model(Path(folder), 1024)
        engine = VllmEngine(
            ModelFolder.open(checkpoint), max_context=1024, seed=0, max_num_seqs=given.seqs, block_size=BLOCK,
            kv_cache_bytes=2 << 30, threads=2,
        )  # fmt: skip

        async def joins() -> None:
            await prefilled_again(engine, long, given.seqs)
            await engine.close()

        asyncio.run(joins())


if __name__ == "__main__":
    main()

"""A real vLLM engine under the thread runtime: a spawned trace end to end, and exact logprobs.

A small model is trained on one spawn/join demonstration until it repeats it greedily. So the runtime must reproduce
the demonstration, strand by strand.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from apr.checkpoints.folder import ModelFolder
from apr.engines.weights import mark_complete
from apr.errors import CheckpointError, ConfigError, EngineError, EngineLostError, ResourceError
from apr.protocols.spawn_join import SpawnJoin
from apr.seeds import SplitMix64
from apr.threads.engine import Completion, Engine, Request
from apr.threads.limits import Limits
from apr.threads.session import Sampling, attempt
from apr.threads.trace import EngineStop, StopReason, StrandKey, Trace, closure_ids
from envs.countdown.compact import CompactSpeller
from envs.countdown.wording import encode, root_prompt
from solvers.search import Node, SearchOptions, search

pytestmark = pytest.mark.vllm

WINDOW = 160
PROBLEM = {"id": "p0", "numbers": [1, 4, 6, 9], "target": 27}
SPELLER = CompactSpeller()
PROTOCOL = SpawnJoin(SPELLER.vocabulary.control)
PROMPT = root_prompt(SPELLER, PROBLEM["numbers"], PROBLEM["target"])
PREFIX = tuple(range(20, 90))


def demonstration() -> Trace:
    options = SearchOptions(beam=2, child_beam=2, spawn_depth=1)
    log = search(PROBLEM["target"], Node(tuple(PROBLEM["numbers"]), ()), options, SplitMix64(0))
    return encode(log, SPELLER, PROTOCOL, PROBLEM)


def tensors_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def contexts(trace: Trace) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Per strand: what precedes its sampled tokens, and those."""
    by_id = trace.by_id()
    return [(closure_ids(by_id, s.sees) + s.injected_ids, s.sampled) for s in trace.strands]


@pytest.fixture(scope="module")
def trained(make_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that repeats the demonstration."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(make_checkpoint(0), dtype=torch.float32)
    rows = [(torch.tensor([[*before, *sampled]]), len(before)) for before, sampled in contexts(demonstration())]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(300):
        learned = True
        for ids, start in rows:
            logits = model(ids).logits[0, start - 1 : -1]
            target = ids[0, start:]
            learned &= bool((logits.softmax(-1).gather(1, target[:, None]) > 0.8).all())
            torch.nn.functional.cross_entropy(logits, target).backward()
        if learned:
            break
        optimizer.step()
        optimizer.zero_grad()
    assert learned, "the demonstration was not learned"
    folder = tmp_path_factory.mktemp("trained")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(trained: Path) -> Iterator[Engine]:
    import solvers.compiled  # noqa: F401 - as evaluation and RL have when they start vLLM, which stumbled over it
    from apr.engines.vllm import VllmEngine

    engine = VllmEngine(
        ModelFolder.open(trained), max_context=WINDOW, seed=0, max_num_seqs=32, kv_cache_bytes=2 << 20
    )  # 2,048 tokens
    yield engine
    asyncio.run(engine.close())


def roll(engine: Engine, temperature: float, samples: int = 1) -> list[Trace]:
    async def together() -> list[Trace]:
        return list(
            await asyncio.gather(
                *(
                    attempt(
                        PROBLEM, PROMPT, engine=engine, protocol=PROTOCOL, limits=Limits(context=WINDOW),
                        sampling=Sampling(temperature, seed=3), sample=sample,
                    )
                    for sample in range(samples)
                )
            )
        )  # fmt: skip

    return asyncio.run(together())


def gaps(traces: Sequence[Trace], folder: Path, temperature: float) -> list[float]:
    """|recorded - recomputed logprob| of every sampled token, recomputed by transformers in each strand's context."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found: list[float] = []
    for trace in traces:
        for strand, (before, sampled) in zip(trace.strands, contexts(trace)):
            with torch.no_grad():
                logits = model(torch.tensor([[*before, *sampled]])).logits[0, len(before) - 1 : -1]
            expected = torch.log_softmax(logits / temperature, -1).gather(1, torch.tensor(sampled)[:, None])[:, 0]
            assert strand.logprobs is not None
            found += (torch.tensor(strand.logprobs) - expected).abs().tolist()
    return found


def test_the_runtime_over_vllm_reproduces_the_demonstration(engine: Engine) -> None:
    demo = demonstration()
    (trace,) = roll(engine, temperature=0.0)
    assert [strand.id for strand in trace.strands] == [strand.id for strand in demo.strands]
    assert len(trace.threads) == 3
    for made, shown in zip(trace.strands, demo.strands):
        assert (made.injected, made.sampled) == (shown.injected, shown.sampled)
        assert (made.sees, made.after, made.position) == (shown.sees, shown.after, shown.position)
        assert made.stop is EngineStop.STOP
    assert [thread.stop for thread in trace.threads] == [thread.stop for thread in demo.threads]
    assert trace.root.stop is StopReason.ANSWERED
    assert SPELLER.answer(trace.root.message) == demo.answer
    assert trace.costs is not None
    assert demo.costs is not None
    assert trace.costs.span_sampled == demo.costs.span_sampled < trace.costs.work_sampled


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_sampled_logprobs_are_those_of_a_forward_pass_before_and_after_an_update(
    engine: Engine, trained: Path, make_checkpoint: Any, tmp_path: Path, temperature: float
) -> None:
    import torch
    from safetensors.torch import save_file

    other = make_checkpoint(1)
    between = tmp_path / "between"  # part of the way from the trained policy to a random one: varied, still spawning
    shutil.copytree(trained, between)
    mixed = {name: torch.lerp(tensor, tensors_of(other)[name], 0.15) for name, tensor in tensors_of(trained).items()}
    save_file(mixed, between / "model.safetensors", metadata={"format": "pt"})

    async def update(source: Any, version: int) -> None:
        await engine.pause()
        await engine.update_weights(source, version)
        await engine.resume()

    written = tmp_path / "written"
    shutil.copytree(other, written)
    mark_complete(written, 3)
    sources = ((tensors_of(trained), trained), (mixed, between), (written, other))
    for version, (source, folder) in enumerate(sources, start=1):
        asyncio.run(update(source, version))
        traces = roll(engine, temperature, samples=16)
        assert {span.version for trace in traces for strand in trace.strands for span in strand.versions} == {version}
        found = gaps(traces, folder, temperature)
        assert len(found) > 500
        assert sum(found) / len(found) < 1e-4
        assert max(found) < 1e-2
    asyncio.run(update(tensors_of(trained), 0))


def test_samples_differ_by_seed_and_repeat_by_key(engine: Engine) -> None:
    first, again = roll(engine, 1.5, samples=8), roll(engine, 1.5, samples=8)
    sampled = [tuple(strand.sampled for strand in trace.strands) for trace in first]
    assert len(set(sampled)) > 4
    assert sampled == [tuple(strand.sampled for strand in trace.strands) for trace in again]


def test_prefixes_are_shared_and_forgotten_with_their_weights(engine: Engine, trained: Path) -> None:
    async def play() -> list[int]:
        cached = []
        for number in range(3):
            if number == 2:
                await engine.pause()
                await engine.update_weights(tensors_of(trained), 0)
                await engine.resume()
            request = Request(StrandKey(0, "prefix", 0, "r", number), PREFIX, (), 2, 0.0, 0)
            cached.append((await engine.generate(request)).cached)
        return cached

    assert asyncio.run(play()) == [0, 64, 0]


def test_a_small_cache_preempts_and_changes_no_result(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """More contexts than the cache holds: requests wait or start over, and each still gets its own tokens."""
    scheduler = engine._engine.engine_core.engine_core.scheduler
    preempted: list[tuple[int, ...]] = []
    preempt = scheduler._preempt_request

    def count(request: Any, *args: Any, **kwargs: Any) -> None:
        preempted.append(tuple(request.prompt_token_ids))
        preempt(request, *args, **kwargs)

    monkeypatch.setattr(scheduler, "_preempt_request", count)
    requests = [Request(StrandKey(0, str(i), 0, "r", 0), (1, 20 + i), (), 150, 1.0, i) for i in range(64)]

    async def crowd() -> list[Completion]:
        return list(await asyncio.gather(*(engine.generate(request) for request in requests)))

    async def alone() -> list[Completion]:
        return [await engine.generate(request) for request in requests if request.ids in preempted[:6]]

    together = {completion.key.problem: completion for completion in asyncio.run(crowd())}
    assert preempted, "the cache was large enough after all"
    for completion in asyncio.run(alone()):
        crowded = together[completion.key.problem]
        assert crowded.ids == completion.ids
        assert crowded.logprobs == pytest.approx(completion.logprobs, abs=1e-4)
        assert len(crowded.logprobs) == 150


def test_when_the_core_dies_no_request_hangs_and_another_engine_can_start(
    engine: Engine, make_checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closes the module's engine: a process holds one at a time."""
    from apr.engines.vllm import VllmEngine

    asyncio.run(engine.close())
    tied = make_checkpoint(0, tied=True)
    before = set(Path(tempfile.gettempdir()).iterdir())
    second: Any = VllmEngine(
        ModelFolder.open(tied), max_context=WINDOW, seed=0, max_num_seqs=32, kv_cache_bytes=64 << 20
    )
    asyncio.run(_tied_weights_update(second, tied, make_checkpoint(1, tied=True)))

    def die() -> None:
        raise RuntimeError("the core is gone")

    monkeypatch.setattr(second._engine, "step", die)

    async def play() -> None:
        requests = [Request(StrandKey(0, str(i), 0, "r", 0), PREFIX, (), 10, 1.0, i) for i in range(5)]
        results = await asyncio.wait_for(
            asyncio.gather(*(second.generate(request) for request in requests), return_exceptions=True), 60
        )
        assert [type(result) for result in results] == [EngineLostError] * 5
        with pytest.raises(EngineLostError, match="the core is gone"):
            await second.generate(requests[0])
        await asyncio.wait_for(second.pause(), 10)
        with pytest.raises(EngineLostError):
            await second.update_weights(tensors_of(tied), 1)
        await second.close()

    asyncio.run(play())
    assert set(Path(tempfile.gettempdir()).iterdir()) <= before  # its sockets went with it


async def _tied_weights_update(engine: Engine, start: Path, other: Path) -> None:
    """Embeddings that are the output layer too: both change, from a file's tensors and from a full state."""
    import torch
    from transformers import AutoModelForCausalLM

    def greedy(folder: Path) -> tuple[int, ...]:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        ids = torch.tensor([PREFIX])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=[]
        )
        return tuple(out[0, len(PREFIX) :].tolist())

    state = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32).state_dict()
    assert "lm_head.weight" in state
    for number, (source, folder) in enumerate(((None, start), (tensors_of(other), other), (state, start))):
        if source is not None:
            await engine.update_weights(source, number)
        request = Request(StrandKey(0, "tied", 0, "r", number), PREFIX, (), 12, 0.0, 0)
        assert (await engine.generate(request)).ids == greedy(folder)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"kv_cache_bytes": 1 << 10}, ResourceError, r"engine\.kv_cache_mib=0\.0009"),
        ({"kv_cache_bytes": 1 << 50}, ResourceError, r"engine\.kv_cache_mib=1\.07\S+ .*lower it"),
        ({"max_context": 4096}, CheckpointError, "window"),
        ({"block_size": 16}, EngineError, "multiple of 32"),
        ({"tensor_parallel": 3}, ConfigError, r"engine\.tensor_parallel"),
    ],
)
def test_what_cannot_start_says_why(trained: Path, change: dict[str, Any], error: type[Exception], says: str) -> None:
    from apr.engines.vllm import VllmEngine

    arguments: dict[str, Any] = {
        "model": ModelFolder.open(trained),
        "max_context": WINDOW,
        "seed": 0,
        "kv_cache_bytes": 64 << 20,
    }
    with pytest.raises(error, match=says):
        VllmEngine(**{**arguments, **change})


@pytest.mark.parametrize(("file", "content"), [("config.json", b"{"), ("model.safetensors", b"\x10\0\0")])
def test_a_damaged_checkpoint_is_named(trained: Path, tmp_path: Path, file: str, content: bytes) -> None:
    from apr.engines.vllm import VllmEngine

    damaged = tmp_path / "damaged"
    shutil.copytree(trained, damaged)
    (damaged / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=file):
        VllmEngine(ModelFolder.open(damaged), max_context=WINDOW, seed=0)

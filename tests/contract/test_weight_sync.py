"""What every weight sync promises (`rl.parts.WeightSync`): the engine samples from the learner's weights."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from apr.checkpoints.folder import ModelFolder
from apr.config import LearnerConfig
from apr.engines.tiny import TinyEngine
from apr.engines.weights import mark_complete
from apr.errors import CheckpointError, EngineError, ResourceError, TornWeightsError
from apr.threads.engine import Completion, Request
from apr.threads.trace import StrandKey, VersionSpan
from rl.learner import Learner
from rl.parts import WeightSync
from rl.weight_sync import FileSync, TensorSync

PROMPT = (1, 20, 21, 22)


@pytest.fixture(params=["tensors", "file"])
def sync(request: pytest.FixtureRequest, tmp_path: Path) -> WeightSync:
    return TensorSync(keep=False) if request.param == "tensors" else FileSync(tmp_path / "weights", keep=False)


@pytest.fixture
def learner(make_checkpoint: Callable[[int], Path]) -> Learner:
    return Learner(make_checkpoint(1), LearnerConfig(threads=1), temperature=1.0)


@pytest.fixture
def engine(make_checkpoint: Callable[[int], Path]) -> TinyEngine:
    return TinyEngine.from_folder(ModelFolder.open(make_checkpoint(0)), max_context=64)


def request(name: str = "p") -> Request:
    return Request(StrandKey(0, name, 0, "r", 0), PROMPT, (), 16, 0.0, 1)


def change(learner: Learner) -> None:
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter.mul_(1.01)


def agree(learner: Learner, completion: Completion) -> None:
    """The completion is the learner's own greedy one, with its logprobs."""
    ids = torch.tensor([PROMPT + completion.ids])
    with torch.no_grad():
        logprobs = torch.log_softmax(learner.model(input_ids=ids).logits[0, len(PROMPT) - 1 : -1], dim=-1)
    assert logprobs.argmax(dim=-1).tolist() == list(completion.ids)
    torch.testing.assert_close(logprobs.max(dim=-1).values, torch.tensor(completion.logprobs), atol=1e-5, rtol=0)


def test_the_engine_has_the_learners_weights_after_a_push(
    sync: WeightSync, learner: Learner, engine: TinyEngine
) -> None:
    async def body() -> None:
        before = await engine.generate(request())
        for version in (3, 4, 5):
            assert await sync.push(learner, engine, version) >= 0
            assert engine.version == version
            completion = await engine.generate(request())
            assert completion.versions == (VersionSpan(version, 0, 16),)
            assert completion.logprobs != before.logprobs
            agree(learner, completion)
            before = completion
            change(learner)
        again = await engine.generate(request())
        assert (again.ids, again.logprobs) == (before.ids, before.logprobs)  # a change is not seen before its push

    asyncio.run(body())


def test_a_push_waits_for_what_is_in_flight_and_requests_wait_for_it(
    sync: WeightSync, learner: Learner, engine: TinyEngine
) -> None:
    async def body() -> None:
        early = asyncio.create_task(engine.generate(request("early")))
        await asyncio.sleep(0)
        pushing = asyncio.create_task(sync.push(learner, engine, 9))
        async with asyncio.timeout(30):
            while not engine._paused:
                await asyncio.sleep(0)
        late = asyncio.create_task(engine.generate(request("late")))
        await pushing
        assert {span.version for span in (await early).versions} == {0}
        assert {span.version for span in (await late).versions} == {9}
        agree(learner, await late)

    asyncio.run(body())


@pytest.mark.parametrize("kind", [TensorSync, FileSync])
def test_a_push_that_keeps_requests_in_flight_does_not_wait_for_them(
    kind: type[Any], learner: Learner, engine: TinyEngine, tmp_path: Path
) -> None:
    sync: WeightSync = TensorSync(keep=True) if kind is TensorSync else FileSync(tmp_path / "weights", keep=True)

    async def body() -> None:
        early = asyncio.create_task(engine.generate(request("early")))
        for _ in range(5):
            await asyncio.sleep(0)
        await sync.push(learner, engine, 9)
        assert not early.done()
        assert [span.version for span in (await early).versions] == [0, 9]
        agree(learner, await engine.generate(request("late")))

    asyncio.run(body())


def test_weights_of_another_model_are_refused(sync: WeightSync, learner: Learner, engine: TinyEngine) -> None:
    learner.model.model.norm.weight = torch.nn.Parameter(torch.ones(32))
    with pytest.raises(EngineError, match=r"model\.norm\.weight"):
        asyncio.run(sync.push(learner, engine, 1))
    assert engine.version == 0


def test_a_folder_is_complete_and_the_only_one(
    learner: Learner, engine: TinyEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sync = FileSync(Path("weights"), keep=False)
    torn = tmp_path / "weights" / "version_000002"
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_bytes(b"half a file")  # as a killed run leaves it
    for version in (1, 2, 3):
        asyncio.run(sync.push(learner, engine, version))
        assert [path.name for path in (tmp_path / "weights").iterdir()] == [f"version_{version:06d}"]
        folder = tmp_path / "weights" / f"version_{version:06d}"
        saved = load_file(folder / "model.safetensors")
        for name, tensor in asyncio.run(learner.weights()).items():
            assert torch.equal(saved[name], tensor)
        change(learner)


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def not_arrived(folder: Path) -> None:
    """As long as it should be, with a page of zeros, as a disk that is shared may show it."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-4096] + bytes(4096))


@pytest.mark.parametrize(
    ("tear", "says"),
    [
        (cut_short, r"version_000007 does not hold what its complete\.json says.*weight_sync=tensors"),
        (not_arrived, r"version_000007 does not hold what its complete\.json says"),
        (lambda folder: (folder / "complete.json").unlink(), r"has no readable complete\.json.*not whole.*--resume"),
        (lambda folder: (folder / "complete.json").write_text('{"versi'), r"has no readable complete\.json"),
        (lambda folder: mark_complete(folder, 6), r"'version': 6.* was written, .*'version': 7.* is wanted"),
    ],
    ids=["cut short", "not arrived", "no marker", "half a marker", "another version"],
)
def test_a_torn_write_is_refused_and_nothing_changes(
    tear: Callable[[Path], object], says: str, learner: Learner, engine: TinyEngine, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    before = asyncio.run(engine.generate(request()))
    save = learner.save_weights

    async def torn(folder: Path, version: int) -> None:
        await save(folder, version)
        tear(folder)
        if not (folder / "complete.json").is_file():  # `push` would see that: let it reach the engine
            await engine.update_weights(folder, version)

    monkeypatch.setattr(learner, "save_weights", torn)
    with pytest.raises(TornWeightsError, match=says):
        asyncio.run(FileSync(tmp_path / "weights", keep=False).push(learner, engine, 7))
    asyncio.run(engine.resume())
    again = asyncio.run(engine.generate(request()))
    assert (engine.version, again.ids, again.logprobs) == (0, before.ids, before.logprobs)


def test_a_folder_that_is_not_here_is_no_folder_of_this_run(
    learner: Learner, engine: TinyEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def elsewhere(folder: Path, version: int) -> None:
        """It wrote on another node's disk."""

    monkeypatch.setattr(learner, "save_weights", elsewhere)
    with pytest.raises(CheckpointError, match=r"complete\.json is not here.*must be a folder that all nodes"):
        asyncio.run(FileSync(tmp_path / "weights", keep=False).push(learner, engine, 7))
    assert engine.version == 0


def test_weights_handed_over_are_not_the_learners_own(learner: Learner) -> None:
    handed = asyncio.run(learner.weights())
    change(learner)
    assert not torch.equal(handed["model.norm.weight"], learner.model.model.norm.weight)


def test_where_there_is_no_gpu_both_sides_of_a_transfer_between_gpus_say_what_to_set(
    learner: Learner, make_checkpoint: Callable[..., Path]
) -> None:
    from apr.engines.vllm import VllmEngine

    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ResourceError, match="weight_sync=tensors or file.*learner_gpus"):
        asyncio.run(learner.meet("nccl", [], 1))
    with pytest.raises(ResourceError, match="weight_sync=tensors or file.*engine_gpus"):
        VllmEngine(ModelFolder.open(make_checkpoint(0)), max_context=64, seed=0, transfer="ipc")

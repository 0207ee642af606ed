"""NaN and infinity stop a training, fail a request and are refused in a checkpoint; they never become a result."""

import asyncio
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from toys import MODEL, SPAWNING, make_task, sft_config

from apr.checkpoints.adapters import trained_files
from apr.checkpoints.checkpoint import Checkpoint
from apr.checkpoints.finite import first_not_finite
from apr.checkpoints.folder import ModelFolder
from apr.checkpoints.pretrained import pretrained_model
from apr.checkpoints.weights import check_finite_files
from apr.cli import main
from apr.config import SftConfig
from apr.engines.tiny import TinyEngine
from apr.errors import CheckpointError, EngineError, NotFiniteError
from apr.protocols.serial import Serial
from apr.sft import train as sft
from apr.sft.train import train
from apr.threads.engine import Engine, Request
from apr.threads.limits import Limits
from apr.threads.session import Sampling, attempt
from apr.threads.trace import StrandKey
from envs.countdown.compact import CompactSpeller
from envs.countdown.wording import root_prompt

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e5m2)
Change = Callable[[Any, int], None]  # of a model, after a step


@given(
    st.sampled_from(DTYPES),
    st.lists(st.floats(-200, 200) | st.sampled_from([math.nan, math.inf, -math.inf]), max_size=5),
)
def test_the_first_tensor_that_is_not_finite_is_named(dtype: torch.dtype, values: list[float]) -> None:
    spoilt = "b" if any(not math.isfinite(value) for value in values) else None
    tensors = [("a", torch.ones(3, dtype=dtype)), ("b", torch.tensor(values).to(dtype)), ("c", torch.arange(3))]
    assert first_not_finite(tensors) == spoilt


# SFT


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a checkpoint of the speller that they are in."""
    return make_task(tmp_path_factory.mktemp("task"), SPAWNING, 1)


@pytest.fixture(scope="module")
def data(task: Path) -> Path:
    return task / "data"


def config(data: Path, out: Path, **more: Any) -> SftConfig:
    """A training of few steps, which logs and saves often."""
    return sft_config(data, out, **{"tokens": 8_000, "warmup_steps": 2, "log_every": 3, "checkpoint_every": 4, **more})


def changing(monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    """Let SFT's trainer call `change` with its model and the number of whole steps after each of them."""
    from transformers import TrainerCallback

    class Changing(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            change(model, state.global_step)

    def trainer(*arguments: Any, make: Any = sft._trainer) -> Any:
        made = make(*arguments)
        made.add_callback(Changing())
        return made

    monkeypatch.setattr(sft, "_trainer", trainer)


def spoil(model: Any) -> None:
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan


def spoilt_weights(at: int) -> Change:
    return lambda model, step: spoil(model) if step == at else None


def spoilt_gradient(at: int) -> Change:
    def change(model: Any, step: int) -> None:
        if step == at:
            model.lm_head.weight.register_hook(lambda gradient: gradient / 0.0)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (spoilt_weights(6), "after 6 of .* the loss of step 7 is nan"),
        (spoilt_gradient(6), "after 6 of .* the gradient norm of step 7 is (nan|inf)"),
        (spoilt_weights(8), r"after 8 of .* the weight lm_head\.weight is not finite"),
    ],
    ids=["loss", "gradient norm", "weight"],
)
def test_training_stops_and_keeps_the_last_good_checkpoint(
    change: Change, said: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing(monkeypatch, change)
    with pytest.raises(NotFiniteError, match=f"SFT stopped {said}. Lower lr=.* or muon_lr=.*/checkpoint-4, is whole"):
        train(config(data, tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run" / "trainer").glob("checkpoint-*")] == ["checkpoint-4"]
    check_finite_files(trained_files(tmp_path / "run" / "trainer" / "checkpoint-4"))
    assert not (tmp_path / "run" / "checkpoint").exists()


@pytest.mark.parametrize("snapshots", [[], [0.5]])
def test_weights_spoilt_where_only_a_folder_of_ours_is_written(
    snapshots: list[float], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the last step, or by the one whose snapshot is due."""
    steps: list[int] = []
    changing(monkeypatch, lambda model, step: steps.append(step))
    train(config(data, tmp_path / "counted"))
    at = round(steps[-1] * 0.5) if snapshots else steps[-1]
    monkeypatch.undo()
    make = sft._snapshot

    def snapshot(*arguments: Any) -> Any:
        callback = make(*arguments)
        save = callback.on_step_end

        def on_step_end(args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
            spoilt_weights(at)(model, state.global_step)
            save(args, state, control, model=model, **others)

        callback.on_step_end = on_step_end
        return callback

    monkeypatch.setattr(sft, "_snapshot", snapshot)
    changing(monkeypatch, spoilt_weights(at) if not snapshots else lambda model, step: None)
    with pytest.raises(NotFiniteError, match=r"the weight lm_head\.weight is not finite"):
        train(config(data, tmp_path / "run", checkpoint_every=1000, snapshots=snapshots))
    assert not list((tmp_path / "run").rglob("model.safetensors"))


def test_too_large_a_learning_rate_ends_with_status_1(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [
        f"data={data}",
        "solver=toy",
        f"out={tmp_path / 'run'}",
        "tokens=20000",
        "batch_tokens=256",
        "threads=1",
    ]
    settings += [f"model={json.dumps(MODEL)}", "lr=1e30", "muon_lr=1e30", "warmup_steps=1", "checkpoint_every=1"]
    assert main(["sft", *settings]) == 1
    assert "apr: failed: SFT stopped after" in (said := capsys.readouterr().err) and "Lower lr=1e+30" in said
    assert not (tmp_path / "run" / "checkpoint").exists()
    for folder in (tmp_path / "run" / "trainer").glob("checkpoint-*"):
        check_finite_files(trained_files(folder))


def test_a_trainers_checkpoint_that_is_not_finite_is_not_gone_on_from(data: Path, tmp_path: Path) -> None:
    train(config(data, tmp_path / "run"))
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    [kept] = (tmp_path / "run" / "trainer").glob("checkpoint-*")
    rewrite(kept, "lm_head.weight", math.inf)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight in .*checkpoint-"):
        train(config(data, tmp_path / "run"))


# Checkpoints


def rewrite(folder: Path, name: str, value: float) -> Path:
    """Put `value` into one weight of the checkpoint in `folder`."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[-1] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def spoilt(task: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(task / "start", tmp_path / "spoilt"))
    return rewrite(folder, "model.norm.weight", math.nan)


def test_such_a_checkpoint_is_refused(
    task: Path, spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, source = tmp_path / "out", [f"data={task / 'data'}", f"checkpoint={spoilt}"]
    commands: Mapping[str, list[str]] = {
        "eval": [*source, "engine.kind=tiny", "limits.context=60", f"out={out}"],
        "rl": [*source, "engine.kind=tiny", "limits.context=60", f"out={out}"],
        "export": [str(spoilt), "--out", str(out)],
    }
    for command, arguments in commands.items():
        assert main([command, *arguments]) == 2, command
        said = capsys.readouterr().err
        assert f"model.norm.weight in {spoilt / 'model.safetensors'} is not finite" in said, command
        assert not out.exists()


def test_such_a_base_is_not_trained(spoilt: Path) -> None:
    from chat_tokenizers import smol_like

    from apr.tokens.chat_vocabulary import ChatVocabulary

    tokenizer = smol_like()
    tokenizer.save_pretrained(spoilt)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight in .*spoilt is not finite"):
        pretrained_model(spoilt, ChatVocabulary(smol_like()), 0)


def test_an_adapter_of_infinities_is_refused(task: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(task / "start", dtype=torch.float32)
    adapter = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        next(weight for name, weight in adapter.named_parameters() if "lora_B" in name)[0, 0] = math.inf
    adapter.save_pretrained(tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match=r"lora_B\.weight in .*adapter_model\.safetensors is not finite"):
        Checkpoint.open(tmp_path / "adapter", adapters=True, base=task / "start").merge(tmp_path / "out")


# Requests


PROMPT = root_prompt(CompactSpeller(), (1, 4, 6), 24)


def tiny(checkpoint: Path) -> Engine:
    return TinyEngine.from_folder(ModelFolder.open(checkpoint), max_context=64)


def vllm(checkpoint: Path) -> Engine:
    from apr.engines.vllm import VllmEngine

    return VllmEngine(ModelFolder.open(checkpoint), max_context=64, seed=0, max_num_seqs=8, kv_cache_bytes=32 << 20)


@pytest.mark.parametrize(
    ("make", "value"),
    [(tiny, math.nan), (tiny, math.inf), pytest.param(vllm, math.nan, marks=pytest.mark.vllm)],
    ids=["tiny, nan", "tiny, inf", "vllm, nan"],
)
def test_logits_that_are_not_finite_fail_a_request(
    make: Callable[[Path], Engine], value: float, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Greedy or sampled, once and for all: no trace comes of it, no attempt to sample it again."""
    broken = rewrite(Path(shutil.copytree(make_checkpoint(0), tmp_path / "broken")), "model.norm.weight", value)
    speller = CompactSpeller()

    async def rolled() -> None:
        engine = make(broken)
        try:
            for temperature in (0.0, 1.0):
                request = Request(StrandKey(0, "p", 0, "r", 0), PROMPT, (), 4, temperature, 0)
                with pytest.raises(EngineError, match="logits are not finite.*weights") as failed:
                    await engine.generate(request)
                assert type(failed.value) is EngineError
                with pytest.raises(EngineError, match="logits are not finite"):
                    await attempt(
                        {"id": "p"}, PROMPT, engine=engine, protocol=Serial(speller.vocabulary.control),
                        limits=Limits(context=60), sampling=Sampling(temperature, 0),
                    )  # fmt: skip
        finally:
            await engine.close()

    asyncio.run(rolled())


def test_one_such_request_leaves_the_engine_fit(make_checkpoint: Callable[..., Path]) -> None:
    """New weights mend it: the engine is not lost."""
    good = load_file(make_checkpoint(0) / "model.safetensors")
    bad = {name: torch.full_like(tensor, math.nan) for name, tensor in good.items()}
    engine = tiny(make_checkpoint(0))

    async def mended() -> None:
        request = Request(StrandKey(0, "p", 0, "r", 0), PROMPT, (), 4, 1.0, 0)
        before = await engine.generate(request)
        for weights, version in ((bad, 1), (good, 2)):
            await engine.pause()
            await engine.update_weights(weights, version)
            await engine.resume()
            if weights is bad:
                with pytest.raises(EngineError, match="not finite"):
                    await engine.generate(request)
        assert (await engine.generate(request)).ids == before.ids

    asyncio.run(mended())

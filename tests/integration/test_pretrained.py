"""A pretrained chat model through the stages: demonstrations in its own tokens, SFT from it, evaluation, RL."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from chat_tokenizers import RESERVED, smol_like
from toys import SPAWNING

from apr.checkpoints.card import Card
from apr.checkpoints.checkpoint import Checkpoint
from apr.checkpoints.pretrained import chat_vocabulary, located
from apr.cli import main
from apr.config import DataConfig, EvalConfig, RlConfig, SftConfig
from apr.data.check import check_folder
from apr.data.generate import generate
from apr.data.store import demonstrations_folder, read_demonstrations
from apr.errors import CheckpointError, ConfigError
from apr.evaluation.folder import TRACES
from apr.evaluation.run import evaluate
from apr.presets import check
from apr.scripts import columns
from apr.sft import train as sft
from apr.sft.train import train
from apr.spellers import TOKENIZER, speller_in, speller_of
from apr.threads.codec import read_traces
from apr.threads.trace import Trace
from apr.tokens.chat_vocabulary import SPAWNING_TOKENS
from envs.countdown.wording import root_prompt
from rl.launch import launch

WINDOW = 256
LORA = {"rank": 16, "alpha": 32}


def make_base(folder: Path, tied: bool) -> Path:
    """A chat model that was never trained, with more outputs than its tokenizer has tokens, as many have."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = smol_like()
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 3, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=WINDOW, tie_word_embeddings=tied, initializer_range=0.1,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_data(base: Path, out: Path, **more: Any) -> Path:
    generate(check(DataConfig, {**SPAWNING, "speller": "chat", "tokenizer": base, "out": out, **more}, "toy"))
    return out


def sft_config(base: Path, data: Path, out: Path, **more: Any) -> SftConfig:
    content = {
        "data": data, "solver": "toy", "base": base, "model": {"window": WINDOW}, "tokens": 12_000, "batch_tokens": 1024,
        "lr": 1e-3, "warmup_steps": 2, "weight_decay": 0.0, "log_every": 1, "threads": 1, "out": out,
    }  # fmt: skip
    return check(SftConfig, {**content, **more}, "toy")


def losses(checkpoint: Path) -> list[float]:
    return [line["loss"] for line in json.loads((checkpoint / "log.json").read_text()) if "loss" in line]


def opened(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("pretrained") / "base", tied=True)


@pytest.fixture(scope="module")
def data(base: Path) -> Path:
    return make_data(base, base.parent / "data")


# Data


def test_a_data_set_holds_the_tokenizer_that_reads_it(base: Path, data: Path) -> None:
    assert "10 demonstrations" in check_folder(data)
    speller = speller_in(data, "chat")
    texts = [
        speller.vocabulary.text(strand.sampled)
        for trace in read_demonstrations(data, "toy")
        for strand in trace.strands
    ]
    assert any(text.startswith("<spawn><msg>") and text.endswith("</spawn>") for text in texts)
    assert any(text.endswith("<join><|im_end|>") for text in texts)
    before = (data / TOKENIZER / "apr_vocabulary.json").stat().st_mtime_ns
    make_data(base, data)
    assert (data / TOKENIZER / "apr_vocabulary.json").stat().st_mtime_ns == before


def test_a_data_set_does_not_go_on_with_another_tokenizer(base: Path, tmp_path: Path) -> None:
    data = make_data(base, tmp_path / "data")
    next(demonstrations_folder(data, "toy").glob("*.parquet")).unlink()
    tokenizer = smol_like()
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(base.parent / "other")
    config = json.loads(json.dumps({**SPAWNING, "speller": "chat", "tokenizer": str(base.parent / "other")}))
    (data / "config.yaml").write_text((data / "config.yaml").read_text().replace(str(base), str(base.parent / "other")))
    with pytest.raises(CheckpointError, match="vocabulary chat/"):
        generate(check(DataConfig, {**config, "out": data}, "toy"))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("more", [[], ["more"], ["one", "two"]], ids=str)
def test_a_tokenizer_may_move_but_not_change(
    more: list[str], whole: bool, base: Path, data: Path, tmp_path: Path
) -> None:
    begun = Path(shutil.copytree(data, tmp_path / "data"))
    if not whole:
        next(demonstrations_folder(begun, "toy").glob("*.parquet")).unlink()
    tokenizer = smol_like()
    tokenizer.add_tokens(more)
    tokenizer.save_pretrained(tmp_path / "elsewhere")
    if more:
        with pytest.raises(CheckpointError, match="vocabulary chat/"):
            make_data(tmp_path / "elsewhere", begun)
    else:
        make_data(tmp_path / "elsewhere", begun)
        assert "10 demonstrations" in check_folder(begun)


def test_large_vocabularies_have_wider_tokens(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "NARROW", 100)
    wide = make_data(base, tmp_path / "data")
    assert "10 demonstrations" in check_folder(wide)
    assert list(read_demonstrations(wide, "toy")) == list(read_demonstrations(data, "toy"))
    for folder, bits in ((wide, 32), (data, 16)):
        [path] = demonstrations_folder(folder, "toy").glob("*.parquet")
        assert pq.read_schema(path).field("tokens").type.value_type.bit_width == bits


def test_a_file_in_a_package_is_found() -> None:
    assert located(Path("apr:cli.py")).name == "cli.py"
    with pytest.raises(CheckpointError, match="no package none_such"):
        located(Path("none_such:model.gguf"))
    with pytest.raises(CheckpointError, match="is not there"):
        located(Path("apr:none.gguf"))
    with pytest.raises(CheckpointError, match="no tokenizer in"):
        chat_vocabulary(Path(__file__).parent, None)


# SFT


@pytest.mark.parametrize(
    ("tied", "names"),
    [(True, None), (True, RESERVED), (False, None)],
    ids=["tied, added", "tied, reserved", "untied, added"],
)
def test_lora_trains_adapters_and_control_tokens_and_merges_them(
    tied: bool, names: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(tmp_path / "base", tied)
    data = make_data(base, tmp_path / "data", control_tokens=names)
    seen: dict[str, Any] = {}
    ids = torch.tensor([root_prompt(speller_in(data, "chat"), (1, 2, 3), 6)])

    def merged(model: Any, merge: Any = sft.merged_in_place) -> Any:
        model.eval()
        with torch.no_grad():
            seen["logits"] = model(input_ids=ids).logits
        return merge(model)

    monkeypatch.setattr(sft, "merged_in_place", merged)
    checkpoint = train(
        sft_config(base, data, tmp_path / "sft", lora=LORA, tokens=30_000, activation_checkpointing=not tied)
    )
    found = losses(checkpoint)
    assert sum(found[-9:]) < 0.95 * sum(found[:9]), found
    assert Card.read(checkpoint).base == str(base) and Checkpoint.open(checkpoint).model.window == WINDOW
    model = opened(checkpoint)
    assert model.config.vocab_size == max(len(smol_like()) + 3, len(speller_of(checkpoint).vocabulary))
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, seen["logits"], atol=1e-4)
    vocabulary = speller_of(checkpoint).vocabulary
    control, tokens = vocabulary.control, set(vocabulary.unknown_to_text)
    spoken = {control.spawn, control.msg, control.join, control.ret}
    before = opened(base)
    for name in ("get_input_embeddings", "get_output_embeddings"):
        old, new = (getattr(one, name)().weight.detach() for one in (before, model))
        changed = {i for i in range(len(old)) if not torch.equal(old[i], new[i])}
        assert changed == {token for token in tokens if token < len(old)}
        start = sft.pretrained_model(base, speller_of(checkpoint).vocabulary, sft.derive_seed(0, "init"))
        untrained = {token for token in tokens if torch.equal(new[token], getattr(start, name)().weight[token])}
        assert not untrained & spoken  # nothing follows </spawn> or tokens of other grammars: untied, they are not read


def test_an_interrupted_training_of_adapters_goes_on_where_it_stopped(base: Path, data: Path, tmp_path: Path) -> None:
    def config(name: str) -> SftConfig:
        return sft_config(base, data, tmp_path / name, lora=LORA, checkpoint_every=4)

    whole = train(config("whole"))
    make_trainer = sft._trainer

    def stopped(*arguments: Any) -> Any:
        from transformers import TrainerCallback

        class Stop(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == 6:
                    raise KeyboardInterrupt

        trainer = make_trainer(*arguments)
        trainer.add_callback(Stop())
        return trainer

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sft, "_trainer", stopped)
        train(config("stopped"))
    assert [path.name for path in (tmp_path / "stopped" / "trainer").glob("checkpoint-*")] == ["checkpoint-4"]
    assert losses(train(config("stopped"))) == pytest.approx(losses(whole), rel=1e-3)
    damaged = next((tmp_path / "whole" / "trainer").glob("checkpoint-*")) / "adapter_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=f"{damaged} is damaged"):
        sft._check_whole(damaged.parent)


def test_a_dry_run_looks_for_the_model(base: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spelt = ["env=countdown", "speller=chat", "solvers.toy.protocol=serial"]
    for where, status in ((base, 0), (base / "none", 2)):
        assert main(["data", "generate", "--dry-run", *spelt, f"tokenizer={where}"]) == status
        assert main(["sft", "--dry-run", f"data={data}", "solver=toy", "lr=1e-4", f"base={where}"]) == status
    assert capsys.readouterr().err.count(f"{base / 'none'} is not there") == 2


def test_data_and_base_must_fit(base: Path, data: Path, tmp_path: Path) -> None:
    generate(check(DataConfig, {**SPAWNING, "out": tmp_path / "compact"}, "toy"))
    with pytest.raises(ConfigError, match="speller compact"):
        train(sft_config(base, tmp_path / "compact", tmp_path / "a"))
    with pytest.raises(ConfigError, match="set `base`"):
        train(sft_config(base, data, tmp_path / "b").model_copy(update={"base": None}))
    other = make_base(tmp_path / "other", tied=True)
    tokenizer = smol_like()
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(other)
    with pytest.raises(CheckpointError, match="another tokenizer"):
        train(sft_config(other, data, tmp_path / "c"))


# Evaluation and RL


def spawned(trace: Trace) -> bool:
    return len(trace.threads) > 1


def test_the_model_spawns_and_joins_in_evaluation_and_rl(base: Path, tmp_path: Path) -> None:
    """All weights trained on two problems, until the model knows their demonstrations by heart."""
    data = make_data(base, tmp_path / "data", train=2)
    trained = train(sft_config(base, data, tmp_path / "sft", tokens=150_000, log_every=50))
    content = {
        "data": data, "checkpoint": trained, "limits": {"context": WINDOW, "threads": 8}, "out": tmp_path / "eval",
        "engine": {"kind": "tiny", "threads": 1},
    }  # fmt: skip
    evaluate(check(EvalConfig, {**content, "split": "train"}, "toy"))
    traces = list(read_traces(tmp_path / "eval" / TRACES))
    assert all(spawned(trace) and trace.correct for trace in traces)
    more = {
        "steps": 2, "problems_per_step": 2, "group_size": 8, "learner": {"lr": 1e-5, "threads": 1, "lora": LORA},
        "validate_problems": 0, "checkpoint_every": 2, "tensorboard": False, "out": tmp_path / "rl",
    }  # fmt: skip
    final = launch(check(RlConfig, {**content, **more}, "toy"), resume=False)
    assert speller_of(final).vocabulary.hash == speller_in(data, "chat").vocabulary.hash
    assert Card.read(final).trained == ("sft", "rl")
    lines = [json.loads(line) for line in (tmp_path / "rl" / "metrics.jsonl").read_text().splitlines()]
    gaps = [line["mismatch/abs_gap_mean"] for line in lines if "mismatch/abs_gap_mean" in line]
    assert gaps and max(gaps) < 1e-4


def test_names_of_added_tokens_do_not_change() -> None:
    assert SPAWNING_TOKENS == ("<spawn>", "<msg>", "</spawn>", "<join>", "<ret>")  # saved with checkpoints and data

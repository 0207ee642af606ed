"""Adapters of peft over a checkpoint: merged once, evaluated as any model, and refused where they do not fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_tokenizers import smol_like
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from apr.checkpoints.card import Card
from apr.checkpoints.checkpoint import Checkpoint
from apr.checkpoints.weights import content_id
from apr.cli import main
from apr.spellers import speller_of
from apr.threads.codec import read_traces

IDS = torch.tensor([[1, 20, 21, 22, 23]])


def make_adapter(base: Path, folder: Path, named: str | None = None, seed: int = 0) -> Path:
    """A LoRA adapter that changes what the model in `base` says; it names `named` as its base, or `base`."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
        )
    model.save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": named or str(base)}))
    return folder


@pytest.fixture
def base(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(make_checkpoint(0), tmp_path / "base"))
    card = {"protocol": "serial", "solver": "sos_plus", "trained": ["sft"], "condition": "none"}
    (folder / "apr_card.json").write_text(json.dumps(card))
    return folder


def evaluate(data: Path, checkpoint: Path, out: Path, *more: str) -> int:
    given = [f"data={data}", f"checkpoint={checkpoint}", f"out={out}", "engine.kind=tiny", "protocol=serial"]
    context = [] if any(word.startswith("limits.context=") for word in more) else ["limits.context=60"]
    return main(["eval", *given, *context, *more])


def logits(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(IDS).logits


def test_a_merged_model_computes_what_the_adapter_did(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    adapter = make_adapter(base, tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    Checkpoint.open(adapter, adapters=True, base=base).merge(tmp_path / "merged")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter))
    with torch.no_grad():
        expected = model(IDS).logits
    assert torch.allclose(logits(tmp_path / "merged"), expected, atol=1e-4)
    assert not torch.allclose(expected, logits(base), atol=1e-1)
    card = Card.read(tmp_path / "merged")
    assert card.trained == ("sft", "adapter") and card.protocol == "serial"
    assert "condition" not in card.content()  # of the base: the adapter may have been trained on other prompts
    hashes = [content_id([adapter / "adapter_model.safetensors"]), content_id([base / "model.safetensors"])]
    assert card.adapter is not None and [card.adapter.hash, card.adapter.base_hash] == hashes


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": ["lm_head"], "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [20, 22], "lm_head": [20, 22]}},
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [20, 22]}},
        {"target_modules": ["q_proj"]},
    ],
    ids=str,
)
def test_an_adapter_of_embeddings_changes_what_it_adapts_and_no_more(
    tied: bool, options: dict[str, Any], make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Of a tied base too, whose one matrix it may leave different for input and output."""
    from peft import LoraConfig, PeftModel, get_peft_model

    base, adapter, out = make_checkpoint(0, tied), tmp_path / "adapter", tmp_path / "merged"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False, **options),
        )
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.requires_grad:
                    parameter += torch.randn_like(parameter) * 0.1
    made.save_pretrained(adapter)
    out.mkdir()
    Checkpoint.open(adapter, adapters=True, base=base).merge(out)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter))
    with torch.no_grad():
        expected = model.eval()(IDS).logits
    assert torch.allclose(logits(out), expected, atol=1e-4)
    assert not torch.allclose(logits(base), expected, atol=1e-2)
    # What an engine is told by the configuration is what the file holds.
    merged, tensors = AutoModelForCausalLM.from_pretrained(out), load_file(out / "model.safetensors")
    ends = tensors["model.embed_tokens.weight"], tensors.get("lm_head.weight")
    assert merged.config.tie_word_embeddings == (ends[1] is None)
    assert ends[1] is None or not torch.equal(*ends)


def test_an_adapter_is_evaluated_merged_and_merged_once(base: Path, data: Path, tmp_path: Path) -> None:
    adapter, out = make_adapter(base, tmp_path / "adapter"), tmp_path / "out"
    assert evaluate(data, adapter, out, "problems=1") == 0
    weights = out / "merged" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert evaluate(data, adapter, out) == 0  # goes on
    assert weights.stat().st_mtime_ns == written and len(list(read_traces(out / "traces.jsonl.gz"))) == 3
    assert main(["eval", "--config", str(out / "config.yaml"), f"out={out}"]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["checkpoint_hash"] == content_id([weights])
    assert manifest["card"]["adapter"]["hash"] == content_id([adapter / "adapter_model.safetensors"])
    plain = tmp_path / "plain"
    assert evaluate(data, out / "merged", plain) == 0
    first, again = (
        [trace.strands[0].sampled for trace in read_traces(one / "traces.jsonl.gz")] for one in (out, plain)
    )
    assert first == again


def test_a_base_that_is_elsewhere(base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter, out = make_adapter(base, tmp_path / "adapter", named="someone/model"), tmp_path / "out"
    assert evaluate(data, adapter, out) == 2
    said = capsys.readouterr().err
    assert "names 'someone/model'" in said and "set base to" in said and not out.exists()
    assert evaluate(data, adapter, out, f"base={tmp_path}") == 2
    assert evaluate(data, adapter, out, f"base={base}", "--dry-run") == 0 and not out.exists()
    assert evaluate(data, adapter, out, f"base={base}") == 0
    assert evaluate(data, base, tmp_path / "other", f"base={base}") == 2
    assert "leave base out" in capsys.readouterr().err


def test_an_adapter_of_a_model_from_elsewhere(data: Path, tmp_path: Path) -> None:
    """Its base is no checkpoint of this project: the speller has to be told, and the tokenizer is its own."""
    base, tokenizer = tmp_path / "elsewhere", smol_like()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=256,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    adapter, out = make_adapter(base, tmp_path / "adapter"), tmp_path / "out"
    assert evaluate(data, adapter, out, "limits.context=200") == 2  # no speller
    assert evaluate(data, adapter, out, "limits.context=200", "speller=paper") == 0
    assert json.loads((out / "manifest.json").read_text())["speller"] == "paper"
    assert speller_of(out / "merged").name == "paper"


def test_adapters_that_do_not_fit(
    base: Path, data: Path, make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, out = make_adapter(base, tmp_path / "adapter"), tmp_path / "out"

    def refused(folder: Path, *more: str) -> str:
        capsys.readouterr()
        assert evaluate(data, folder, out, *more) == 2
        assert not (out / "merged").exists() and not list(tmp_path.rglob("*.tmp"))
        return capsys.readouterr().err

    def spoilt(name: str, file: str, content: bytes | None) -> Path:
        folder = Path(shutil.copytree(adapter, tmp_path / name))
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(content)
        return folder

    whole = (adapter / "adapter_model.safetensors").read_bytes()
    assert "is corrupt" in refused(spoilt("config", "adapter_config.json", b"{"))
    assert "lacks adapter_model.safetensors" in refused(spoilt("lacking", "adapter_model.safetensors", None))
    assert "cannot be merged" in refused(spoilt("torn", "adapter_model.safetensors", whole[:5000]))
    lacking = spoilt("partial", "README.md", b"")
    tensors = load_file(lacking / "adapter_model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, lacking / "adapter_model.safetensors", {"format": "pt"})
    assert "the adapter lacks base_model.model" in refused(lacking)
    other = Path(shutil.copytree(base, tmp_path / "wider"))
    widen(other)
    assert "cannot be merged" in refused(adapter, f"base={other}")
    assert "is an adapter, which is no model by itself" in refused_rl(data, adapter, capsys)


def test_another_adapter_is_not_mixed_in(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert evaluate(data, make_adapter(base, tmp_path / "one"), out) == 0
    before = content_id([out / "merged" / "model.safetensors"])
    assert evaluate(data, make_adapter(base, tmp_path / "two", seed=1), out) == 2
    assert "of another adapter or base" in capsys.readouterr().err
    assert content_id([out / "merged" / "model.safetensors"]) == before


def widen(folder: Path) -> None:
    """Replace the model in `folder` by one of other shapes."""
    config = LlamaConfig.from_pretrained(folder)
    config.hidden_size, config.head_dim = 96, 48
    LlamaForCausalLM(config).save_pretrained(folder)


def refused_rl(data: Path, adapter: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["rl", f"data={data}", f"checkpoint={adapter}", f"out={adapter.parent / 'rl'}"]) == 2
    return capsys.readouterr().err

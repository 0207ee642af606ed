"""SmolLM2-135M-Instruct, a real pretrained model, through data, SFT, RL and evaluation on the CPU, with vLLM.

Two numbers to be combined by the right one of four operations: what a pretrained model needs a dozen steps to write.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from apr.config import DataConfig, EvalConfig, RlConfig, SftConfig
from apr.data.check import check_folder
from apr.data.generate import generate
from apr.data.store import read_demonstrations
from apr.dialects import dialect_in, dialect_of
from apr.evaluation.run import evaluate
from apr.presets import check, load, preset
from apr.sft.rows import rows
from apr.sft.train import read_card, train
from rl.launch import launch

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

DATA = {
    "problems": {"numbers": 2, "low": 2, "high": 9, "target_low": 4, "target_high": 40, "test_share": 0.2},
    "train": 24, "validation": 2, "test": 4,
    "solvers": {"toy": {"protocol": "spawn_join", "spawn_depth": 1, "beams": [1], "child_beam_max": 1}},
}  # fmt: skip
LORA = {"rank": 16, "alpha": 32}
LIMITS = {"context": 160, "threads": 8, "depth": 1}
ENGINE = {"kv_cache_mib": 256, "max_num_seqs": 24}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations in the preset's tokens."""
    out = tmp_path_factory.mktemp("smollm2") / "data"
    spelt = load(DataConfig, [preset("data", "smollm2")])
    chat = {"dialect": "chat", "tokenizer": spelt.tokenizer, "control_tokens": spelt.control_tokens}
    generate(check(DataConfig, {**DATA, **chat, "out": out}, "test"))
    return out


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    content = {
        "data": data, "solver": "toy", "base": load(SftConfig, [preset("sft", "smollm2")]).base, "model": {"window": 256},
        "lora": LORA, "tokens": 4_500, "batch_tokens": 384, "lr": 1e-3, "warmup_steps": 2, "weight_decay": 0.0,
        "log_every": 1, "out": data.parent / "sft",
    }  # fmt: skip
    return train(check(SftConfig, content, "test"))


def test_what_is_written_is_what_the_models_own_tokenizer_makes_of_the_text(data: Path) -> None:
    assert "24 demonstrations" in check_folder(data)
    words = dialect_in(data, "chat").vocabulary
    tokenizer: Any = words._tokenizer  # type: ignore[attr-defined]
    for trace in read_demonstrations(data, "toy"):
        for row in rows(trace):
            assert tuple(tokenizer(words.text(row.ids), add_special_tokens=False)["input_ids"]) == row.ids


def test_sft_makes_it_a_checkpoint_of_ours(data: Path, trained: Path) -> None:
    from transformers import AutoModelForCausalLM

    losses = [line["loss"] for line in json.loads((trained / "log.json").read_text()) if "loss" in line]
    print(f"SFT loss: {losses[0]:.2f} at first, {losses[-1]:.2f} at last")
    assert max(losses[-3:]) < 0.3 * min(losses[:3]), losses
    model = AutoModelForCausalLM.from_pretrained(trained)
    assert (model.config.num_attention_heads, model.config.num_key_value_heads, model.config.head_dim) == (9, 3, 64)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.num_parameters() == 134_515_008
    assert dialect_of(trained).vocabulary.hash == dialect_in(data, "chat").vocabulary.hash


def test_rl_and_evaluation_with_vllm(data: Path, trained: Path, tmp_path: Path) -> None:
    content = {"data": data, "checkpoint": trained, "limits": LIMITS, "engine": ENGINE}
    more = {
        "steps": 2, "problems_per_step": 4, "group_size": 6, "in_flight": 24, "validate_problems": 0, "checkpoint_every": 2,
        "learner": {"lr": 1e-5, "lora": LORA, "tokens_per_pass": 1024}, "tensorboard": False, "out": tmp_path / "rl",
    }  # fmt: skip
    final = launch(check(RlConfig, {**content, **more}, "test"), resume=False)
    lines = [json.loads(line) for line in (tmp_path / "rl" / "metrics.jsonl").read_text().splitlines()]
    gaps = [(line["mismatch/abs_gap_mean"], line["mismatch/abs_gap_max"]) for line in lines if "loss/policy" in line]
    print(f"success {[line['reward/success'] for line in lines]}, parity gaps {gaps}")
    assert gaps and all(mean < 1e-4 and most < 1e-2 for mean, most in gaps)
    assert read_card(final)["trained"] == ["sft", "rl"]
    traces = evaluate(check(EvalConfig, {**content, "checkpoint": final, "out": tmp_path / "eval"}, "test"))
    assert len(traces) == 4 and any(trace.root.message for trace in traces)
    assert all(logprob <= 0 for trace in traces for strand in trace.strands for logprob in strand.logprobs or ())

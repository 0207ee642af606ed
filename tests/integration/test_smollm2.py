"""SmolLM2-135M-Instruct, a real pretrained model, through data, SFT, RL and evaluation on the CPU, with vLLM: the presets.

Two problems, whose demonstrations spawn two children each: what a pretrained model knows by heart after some 25 steps.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from apr.checkpoints.card import Card
from apr.config import DataConfig, EvalConfig, RlConfig, SftConfig
from apr.data.check import check_folder
from apr.data.generate import generate
from apr.data.store import read_demonstrations
from apr.evaluation.folder import TRACES
from apr.evaluation.run import evaluate
from apr.presets import load, preset
from apr.sft.train import train
from apr.spellers import speller_in, speller_of
from apr.threads.codec import read_traces
from apr.threads.trace import closure_ids
from rl.launch import launch

pytestmark = [pytest.mark.slow, pytest.mark.vllm]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smollm2") / "data"
    generate(load(DataConfig, [preset("data", "smollm2")], [f"out={out}"]))
    return out


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    return train(load(SftConfig, [preset("sft", "smollm2")], [f"data={data}", f"out={data.parent / 'sft'}"]))


def test_what_is_written_is_what_the_models_own_tokenizer_makes_of_the_text(data: Path) -> None:
    assert "2 demonstrations" in check_folder(data)
    words = speller_in(data, "chat").vocabulary
    tokenizer: Any = words._tokenizer  # type: ignore[attr-defined]
    for trace in read_demonstrations(data, "spawn_join"):
        assert len(trace.threads) == 3
        for thread in trace.threads:
            last = trace.by_id()[thread.strands[-1]]
            ids = closure_ids(trace.by_id(), last.sees) + last.ids
            assert tuple(tokenizer(words.text(ids), add_special_tokens=False)["input_ids"]) == ids


def test_sft_makes_it_a_checkpoint_of_ours(data: Path, trained: Path) -> None:
    from transformers import AutoModelForCausalLM

    losses = [line["loss"] for line in json.loads((trained / "log.json").read_text()) if "loss" in line]
    print(f"SFT loss: {losses[:3]} at first, {losses[-3:]} at last")
    assert max(losses[-3:]) < 0.3 * min(losses[:3]), losses
    model = AutoModelForCausalLM.from_pretrained(trained)
    assert (model.config.num_attention_heads, model.config.num_key_value_heads, model.config.head_dim) == (9, 3, 64)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.num_parameters() == 134_515_008
    assert speller_of(trained).vocabulary.hash == speller_in(data, "chat").vocabulary.hash


def test_rl_and_evaluation_with_vllm(data: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "rl"
    # Warm enough that the two memorised problems are not always solved: a group of successes has no signal.
    more = [
        "steps=2",
        "temperature=1.5",
        "learner.lr=1e-5",
        "checkpoint_every=2",
        "tensorboard=false",
        "engine.threads=2",
    ]
    where = [f"data={data}", f"checkpoint={trained}", f"out={out}"]
    final = launch(load(RlConfig, [preset("rl", "smollm2")], [*where, *more]), resume=False)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    gaps = [(line["mismatch/abs_gap_mean"], line["mismatch/abs_gap_max"]) for line in lines if "loss/policy" in line]
    print(f"success {[line['reward/success'] for line in lines]}, parity gaps {gaps}")
    assert gaps and all(mean < 1e-4 and most < 1e-2 for mean, most in gaps)
    assert all(line["rollout/threads"] > 1.5 for line in lines)
    assert Card.read(final).trained == ("sft", "rl")
    where = [f"data={data}", f"checkpoint={final}", f"out={tmp_path / 'eval'}", "engine.threads=2"]
    evaluate(load(EvalConfig, [preset("eval", "smollm2")], where))
    traces = read_traces(tmp_path / "eval" / TRACES)
    assert any(len(trace.threads) > 1 and trace.correct for trace in traces)

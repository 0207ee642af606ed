"""A chat model from elsewhere, without SFT: evaluated and trained by RL where the prompt says how to answer."""

from pathlib import Path
from typing import Any

import pytest
from chat_tokenizers import TOKENIZERS, smol_like
from toys import SPAWNING

from apr.checkpoints.checkpoint import Checkpoint
from apr.cli import main
from apr.config import DataConfig
from apr.data.generate import generate
from apr.errors import ConfigError
from apr.evaluation.folder import TRACES
from apr.presets import check
from apr.protocols import protocol_by_name
from apr.spellers import speller_of
from apr.threads.codec import read_traces
from apr.tokens.vocabulary import TOKENIZER_FILE
from envs.countdown.wording import UNTRAINED

NO_SYSTEM = (  # as Gemma's: a system message is refused
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def gemma_like() -> Any:
    tokenizer = smol_like()
    tokenizer.chat_template = NO_SYSTEM
    return tokenizer


def make_model(folder: Path, tokenizer: Any, kind: str) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, Qwen2Config

    kinds = {"smol": LlamaConfig, "llama": LlamaConfig, "gemma": GemmaConfig, "qwen": Qwen2Config}
    config = kinds[kind](
        vocab_size=len(tokenizer) + 2, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems, and nothing else."""
    out = tmp_path_factory.mktemp("untrained") / "data"
    generate(check(DataConfig, {**SPAWNING, "solvers": {}, "out": out}, "toy"))
    return out


MAKERS = {**TOKENIZERS, "gemma": gemma_like, "qwen": smol_like}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_chat_model_is_evaluated_and_trained_without_sft(kind: str, data: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", MAKERS[kind](), kind)
    told = [f"data={data}", "protocol=serial", "limits.context=340", "engine.kind=tiny", "engine.threads=1"]
    ev = [*told, f"checkpoint={model}", "speller=chat", "problems=2", f"out={tmp_path / 'eval'}"]
    assert main(["eval", *ev]) == 0
    speller = speller_of(model, "chat")
    for trace in read_traces(tmp_path / "eval" / TRACES):
        prompt = speller.vocabulary.text(trace.strands[0].injected_ids)
        assert UNTRAINED in prompt and "Numbers: " in prompt and "Target: " in prompt
        assert trace.answer is None or isinstance(trace.answer, str)
    rl = [
        "steps=1",
        "problems_per_step=2",
        "group_size=2",
        "validate_problems=0",
        "learner.threads=1",
        "tensorboard=false",
    ]
    rl += ["max_silent_steps=5", f"checkpoint={model}", "speller=chat", f"out={tmp_path / 'rl'}"]
    assert main(["rl", *told, *rl]) == 0
    trained = Checkpoint.open(tmp_path / "rl")  # it says now how it is spelt
    assert trained.speller.name == "chat" and (trained.folder / TOKENIZER_FILE).is_file()
    assert trained.speller.vocabulary.hash == speller.vocabulary.hash


def test_what_it_needs_is_said(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path / "model", smol_like(), "smol")
    told = ["eval", f"data={data}", f"checkpoint={model}", "engine.kind=tiny", f"out={tmp_path / 'eval'}"]
    assert main([*told, "protocol=serial"]) == 2
    assert "If it is a chat model, set speller=chat" in capsys.readouterr().err
    assert main([*told, "speller=chat", "protocol=spawn_join", "limits.context=340"]) == 2
    assert "train it first by `apr sft` with `base`" in capsys.readouterr().err
    assert not (tmp_path / "eval").exists()
    with pytest.raises(ConfigError, match="taught its control tokens"):
        protocol_by_name("spawn_join", speller_of(model, "chat"))

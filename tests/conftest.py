"""Fixtures shared by all tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import apr  # noqa: F401 (settles how threads wait, before a test imports torch)

settings.register_profile("apr", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("apr")

Checkpoints = Callable[..., Path]


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """`make_checkpoint(seed, tied=False)`: a folder with a random Llama of 2 layers of 64, window 256, and the compact
    speller's vocabulary. Equal arguments give the same folder. Peaked enough that greedy ties do not occur."""
    made: dict[tuple[int, bool], Path] = {}

    def make(seed: int, tied: bool = False) -> Path:
        if (seed, tied) not in made:
            folder = tmp_path_factory.mktemp(f"checkpoint_{seed}")
            _save(folder, seed, tied)
            made[seed, tied] = folder
        return made[seed, tied]

    return make


def _save(folder: Path, seed: int, tied: bool) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from envs.countdown.compact import CompactSpeller

    vocabulary = CompactSpeller().vocabulary
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=tied, initializer_range=0.1,
        bos_token_id=vocabulary.control.bos, eos_token_id=vocabulary.control.eos, pad_token_id=vocabulary.control.pad,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary.save(folder)

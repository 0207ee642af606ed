"""What SFT does differently with a pretrained model: where it starts, and what LoRA trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apr.config import LoraConfig
from apr.errors import ConfigError
from apr.tokens.chat_vocabulary import ChatVocabulary
from apr.tokens.vocabulary import Vocabulary


def check_base(base: Path | None, vocabulary: Vocabulary) -> None:
    """Raise `ConfigError` unless the demonstrations are spelt for what is to be trained."""
    if base is not None and not isinstance(vocabulary, ChatVocabulary):
        raise ConfigError(
            f"`base` is given, but the demonstrations are of speller {vocabulary.speller}: make them with speller=chat and "
            f"tokenizer={base}, or leave `base` out"
        )
    if base is None and isinstance(vocabulary, ChatVocabulary):
        raise ConfigError(
            "the demonstrations are of speller chat, which a pretrained model's tokenizer spells: set `base` to that model"
        )


def adapters(lora: LoraConfig, vocabulary: Vocabulary) -> Any:
    """Adapters on all projections inside the layers; and the embeddings, in and out, of the control tokens, which mean nothing
    to the model yet, are trained in full."""
    from peft import LoraConfig as PeftConfig

    tokens = list(vocabulary.unknown_to_text)
    return PeftConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules="all-linear", bias="none",
        task_type="CAUSAL_LM", trainable_token_indices={"embed_tokens": tokens, "lm_head": tokens},
    )  # fmt: skip


def let_head_train(model: Any) -> None:
    """TRL's loss reads the weight and bias of the output layer, which PEFT has wrapped: the wrapper gives the trained
    weight, but of a layer without bias does not say so."""
    head = model.get_output_embeddings()
    if not hasattr(head, "bias"):
        head.bias = None

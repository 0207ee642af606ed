"""Tokenizers of other people's models, trained in a second on the wording: a byte-level one, and one after Llama-2's."""

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from apr.tokens.text import PretrainedVocabulary


def byte_level(texts: Sequence[str], merge_lines: bool = False) -> PretrainedVocabulary:
    """Byte-level BPE, as GPT-2's; with `merge_lines` tokens reach over line ends."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not merge_lines)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PretrainedVocabulary("paper", _wrapped(tokenizer))


def llama_like(texts: Sequence[str]) -> PretrainedVocabulary:
    """BPE with a space put before each text, bytes for what it does not know (line ends), and a BOS that it adds."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_of_its_own = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *bytes_of_its_own], show_progress=False
    )
    tokenizer.train_from_iterator([line for text in texts for line in text.split("\n")], trainer)
    # Trained so, the byte tokens are special ones; a byte-fallback model has them in its vocabulary and no more.
    state: Any = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PretrainedVocabulary("paper", _wrapped(tokenizer))


def _wrapped(tokenizer: Tokenizer) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=AddedToken("<s>", normalized=False, special=True),
        eos_token=AddedToken("</s>", normalized=False, special=True), clean_up_tokenization_spaces=False,
    )  # fmt: skip

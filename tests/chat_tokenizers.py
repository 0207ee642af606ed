"""Tokenizers of chat models, trained in a second: one after SmolLM2's (digits, ChatML), one after Llama 3's (numbers of
up to three digits, a BOS of its own, a template that tells the date)."""

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}<|begin|>"
    "{% for message in messages %}{{ '<|head|>' + message['role'] + '<|/head|>\n\n' }}"
    "{% if loop.first %}{{ 'Today Date: ' + date_string + '\n\n' }}{% endif %}{{ message['content'] + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)
RESERVED = ["<|r1|>", "<|r2|>", "<|r3|>", "<|r4|>", "<|r5|>"]
TEXTS = [
    "Numbers: 3 5 8. Target: 24.\nat 3+5=8: 8 8 -> 24\nlater 8-3=5: 5 5 -> 24\n8+8=16 vs 24: low\n3*8=24 vs 24: hit\n"
    "8*8=64 vs 24: high\n100+200=300, 17*29=493 system user assistant Reach the target with every number once."
] * 4


def smol_like() -> Any:
    """Digits one by one; padding with EOS."""
    split = pre_tokenizers.Digits(individual_digits=True)
    return _made(split, CHATML, ["<|end|>", "<|im_start|>", "<|im_end|>"], bos_token="<|im_start|>", eos_token="<|im_end|>",
                 pad_token="<|im_end|>")  # fmt: skip


def llama_like() -> Any:
    """Numbers of up to three digits in one token; no padding token."""
    split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated")
    return _made(
        split, HEADERS, ["<|begin|>", "<|head|>", "<|/head|>", "<|eot|>"], bos_token="<|begin|>", eos_token="<|eot|>"
    )


def _made(split: Any, template: str, own: list[str], **roles: str) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [AddedToken(token, special=True, normalized=False) for token in [*own, *RESERVED]]
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **roles)
    wrapped.chat_template = template
    return wrapped


TOKENIZERS = {"smol": smol_like, "llama": llama_like}

"""Vocabularies built for a task: a fixed list of tokens, known by its hash, saved as a Hugging Face tokenizer.

Encoding and decoding here are plain table look-ups on token lists. The Hugging Face tokenizer (words separated by
spaces) is for exports and for people; nothing in training goes through text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from apr.errors import CheckpointError
from apr.tokens.control import CONTROL_TOKENS, ControlTokens

TOKENIZER_FILE = "apr_vocabulary.json"
NO_TOKEN = "\ufffd"  # the text of an id that is no token: models may have more outputs than their tokenizer has tokens
CONTROL_NAMES: dict[str, Any] = {  # how a Hugging Face tokenizer is told of the control tokens
    "pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>",
    "additional_special_tokens": list(CONTROL_TOKENS[3:]), "clean_up_tokenization_spaces": False,
}  # fmt: skip


class Vocabulary:
    """Tokens by id. Ids 0..7 are the control tokens; a dialect names the rest."""

    def __init__(self, dialect: str, words: Sequence[str]) -> None:
        self.dialect = dialect
        self.tokens = (*CONTROL_TOKENS, *words)
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            raise ValueError("a vocabulary names some token twice")
        self.control = ControlTokens(*range(len(CONTROL_TOKENS)))

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def hash(self) -> str:
        """Identifies dialect and token order; a checkpoint carries it."""
        return hashlib.sha256(json.dumps([self.dialect, self.tokens]).encode()).hexdigest()[:16]

    def encode(self, tokens: Iterable[str]) -> tuple[int, ...]:
        return tuple(self.ids[token] for token in tokens)

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The token of each id; `NO_TOKEN` for an id that the vocabulary lacks."""
        return [self.tokens[i] if 0 <= i < len(self.tokens) else NO_TOKEN for i in ids]

    def text(self, ids: Iterable[int]) -> str:
        """For people: tokens separated by spaces."""
        return " ".join(self.decode(ids))

    def save(self, folder: Path) -> None:
        """Write the vocabulary, and a tokenizer that `AutoTokenizer` opens, into a checkpoint folder."""
        self._save_tokenizer(folder)
        content = {"dialect": self.dialect, "hash": self.hash, "tokens": self.tokens}
        (folder / TOKENIZER_FILE).write_text(json.dumps(content), encoding="utf-8")

    def _save_tokenizer(self, folder: Path) -> None:
        """Write the Hugging Face tokenizer: here one of words separated by spaces."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        tokenizer = Tokenizer(models.WordLevel(self.ids, unk_token="<pad>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **CONTROL_NAMES).save_pretrained(folder)

    def check(self, folder: Path) -> None:
        """Raise `CheckpointError` unless the checkpoint in `folder` was trained with this vocabulary."""
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise CheckpointError(f"{folder} is no checkpoint of this project: {TOKENIZER_FILE} is missing")
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            found = (saved["dialect"], saved["hash"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is corrupt ({error!r}): export or train the checkpoint again") from error
        if found != (self.dialect, self.hash):
            raise CheckpointError(
                f"{folder} was trained with vocabulary {found[0]}/{found[1]}, but this is {self.dialect}/{self.hash}: "
                "set the dialect it was trained with, or train it again"
            )

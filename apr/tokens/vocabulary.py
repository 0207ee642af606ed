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

from apr.errors import CheckpointError, ConfigError
from apr.tokens.control import CONTROL_TOKENS, FAMILY_TOKENS, MARKS, ControlTokens

TOKENIZER_FILE = "apr_vocabulary.json"
NO_TOKEN = "\ufffd"  # the text of an id that is no token: models may have more outputs than their tokenizer has tokens


class Vocabulary:
    """Tokens by id: the control tokens (ids 0..7), the speller's words, the control tokens of the family, and what marks these
    number children with, where that is no word already."""

    def __init__(self, speller: str, words: Sequence[str], family: Sequence[str] = FAMILY_TOKENS) -> None:
        """`family`: the control tokens of other systems that it has; without them it needs no `MARKS` either."""
        self.speller = speller
        self.family = tuple(family)
        marks = [mark for mark in MARKS if mark not in words] if family else []
        self.tokens = (*CONTROL_TOKENS, *words, *family, *marks)
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            raise ValueError("a vocabulary names some token twice")
        self.control = ControlTokens(*range(len(CONTROL_TOKENS)))

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def reserved(self) -> frozenset[int]:
        """The ids of all control tokens: no text has them."""
        family = (self.ids[token] for token in FAMILY_TOKENS if token in self.ids)
        return frozenset((*vars(self.control).values(), *family)) - {-1}

    @property
    def unknown_to_text(self) -> tuple[int, ...]:
        """Control tokens that no text has, by ids: a model trained elsewhere has to learn what they mean."""
        control = self.control
        return tuple(sorted(self.reserved - {control.pad, control.bos, control.eos}))

    def tags(self, names: Sequence[str]) -> tuple[int, ...]:
        """The ids of the control tokens of a grammar. Raises `ConfigError` if the vocabulary lacks some."""
        if missing := [name for name in names if name not in self.ids]:
            raise ConfigError(
                f"this vocabulary has no {' '.join(missing)}, which the protocol needs: take a model that was taught it, or "
                "train one with `apr sft`"
            )
        return self.encode(names)

    @cached_property
    def hash(self) -> str:
        """Identifies speller and token order; a checkpoint carries it."""
        return hashlib.sha256(json.dumps([self.speller, self.tokens]).encode()).hexdigest()[:16]

    def encode(self, tokens: Iterable[str]) -> tuple[int, ...]:
        return tuple(self.ids[token] for token in tokens)

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The token of each id; `NO_TOKEN` for an id that the vocabulary lacks."""
        return [self.tokens[i] if 0 <= i < len(self.tokens) else NO_TOKEN for i in ids]

    def text(self, ids: Iterable[int]) -> str:
        """For people: tokens separated by spaces."""
        return " ".join(self.decode(ids))

    def control_names(self) -> dict[str, Any]:
        """How a Hugging Face tokenizer is told of the control tokens."""
        return {
            "pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "clean_up_tokenization_spaces": False,
            "additional_special_tokens": [*CONTROL_TOKENS[3:], *self.family],
        }  # fmt: skip

    def save(self, folder: Path) -> None:
        """Write the vocabulary, and a tokenizer that `AutoTokenizer` opens, into a checkpoint folder."""
        self._save_tokenizer(folder)
        content = {"speller": self.speller, "hash": self.hash, "tokens": self.tokens}
        (folder / TOKENIZER_FILE).write_text(json.dumps(content), encoding="utf-8")

    def _save_tokenizer(self, folder: Path) -> None:
        """Write the Hugging Face tokenizer: here one of words separated by spaces."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        tokenizer = Tokenizer(models.WordLevel(self.ids, unk_token="<pad>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **self.control_names()).save_pretrained(folder)

    def check(self, folder: Path) -> None:
        """Raise `CheckpointError` unless the checkpoint in `folder` was trained with this vocabulary."""
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise CheckpointError(f"{folder} is no checkpoint of this project: {TOKENIZER_FILE} is missing")
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            found = (saved["speller"], saved["hash"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is corrupt ({error!r}): export or train the checkpoint again") from error
        if found != (self.speller, self.hash):
            raise CheckpointError(
                f"{folder} was trained with vocabulary {found[0]}/{found[1]}, but this is {self.speller}/{self.hash}: "
                "set the speller it was trained with, or train it again"
            )

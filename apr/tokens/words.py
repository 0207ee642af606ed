"""The words speller: an environment's own words, one token each, for models trained from scratch.

    prompt    <bos> sort 4 2 3 1 ;       the environment's words
    strand    4 > 2 <join> 2 4 <eos>     the words of a script, split at spaces

A vocabulary is known by its words alone: a checkpoint or a data set keeps the list, so that reading it needs no code of
the environment.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from apr.errors import CheckpointError, ConfigError, DataError
from apr.tokens.control import CONTROL_TOKENS, FAMILY_TOKENS
from apr.tokens.speller import Told, condition_of
from apr.tokens.vocabulary import TOKENIZER_FILE, Vocabulary


class WordsSpeller:
    """Token ids for words separated by spaces. `words`: all that there are, in the order of their ids."""

    name = "words"
    about = "A token per word of the task."

    def __init__(self, words: Sequence[str]) -> None:
        if unfit := [word for word in words if word.split() != [word]]:
            raise ConfigError(
                f"the vocabulary has {unfit[0]!r}, which is no word: words hold no space and are not empty"
            )
        if twice := [word for word, times in Counter(words).items() if times > 1]:
            raise ConfigError(f"the vocabulary has {twice[0]!r} twice: name each word once")
        if taken := sorted({*CONTROL_TOKENS, *FAMILY_TOKENS}.intersection(words)):
            raise ConfigError(f"the vocabulary has {taken[0]!r}, which is a control token: take another word")
        self.vocabulary = Vocabulary(self.name, words)

    @classmethod
    def saved(cls, folder: Path) -> WordsSpeller:
        """The speller of the data set or checkpoint in `folder`. Raises `CheckpointError`."""
        path = folder / TOKENIZER_FILE
        try:
            tokens = json.loads(path.read_text(encoding="utf-8"))["tokens"]
            return cls(tokens[len(CONTROL_TOKENS) : tokens.index(FAMILY_TOKENS[0])])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is missing or corrupt ({error!r}): make its folder again") from error

    def prompt(self, env: Told, problem: dict[str, Any]) -> tuple[int, ...]:
        if condition_of(problem) is not None:
            raise ConfigError(
                "the words speller has no words for a condition: leave `condition` out, or use speller chat"
            )
        return self.ids((self.vocabulary.control.bos, *env.words(problem)))

    def ids(self, pieces: Iterable[str | int]) -> tuple[int, ...]:
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, int):
                ids.append(piece)
                continue
            for word in piece.split():
                if word.isdecimal() and word.isascii() and word not in self.vocabulary.ids:
                    ids += self.vocabulary.encode(word)  # digit by digit
                    continue
                if self.vocabulary.ids.get(word, -1) in self.vocabulary.reserved or word not in self.vocabulary.ids:
                    raise DataError(f"{word!r} is no word of this vocabulary: add it to the environment's `vocabulary`")
                ids.append(self.vocabulary.ids[word])
        return tuple(ids)

    def answer(self, ids: Iterable[int]) -> str:
        return self.vocabulary.text(ids)

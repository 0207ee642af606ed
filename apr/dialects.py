"""The dialects by name, and the one that a checkpoint or a data set speaks."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from apr.errors import CheckpointError
from apr.tokens.chat import ChatDialect
from apr.tokens.chat_vocabulary import ChatVocabulary
from apr.tokens.dialect import Dialect
from apr.tokens.text import PretrainedVocabulary
from apr.tokens.vocabulary import TOKENIZER_FILE
from apr.tokens.words import WordsDialect
from envs.registry import DIALECTS as BUILT
from envs.registry import TEXTUAL, built_dialect, textual_dialect

KEPT = (WordsDialect.name, ChatDialect.name)  # known by a vocabulary or tokenizer that data sets and checkpoints keep
DIALECTS = (*BUILT, *KEPT)
TOKENIZER = "tokenizer"  # where a data set keeps it


def dialect_in(data: Path, name: str) -> Dialect:
    """The dialect `name` as the data set in `data` spells it. Raises `CheckpointError` if its tokenizer is not there."""
    return _kept(data / TOKENIZER, name) if name in KEPT else built_dialect(name)


@lru_cache
def _kept(folder: Path, name: str) -> Dialect:
    return WordsDialect.saved(folder) if name == WordsDialect.name else ChatDialect(ChatVocabulary.saved(folder))


def dialect_of(checkpoint: Path, name: str | None = None) -> Dialect:
    """The dialect that the model in `checkpoint` was trained in, with its vocabulary.

    A checkpoint of this project names it. One from elsewhere does not: `name` must be `chat` then, or a dialect whose text
    any tokenizer spells. Raises `CheckpointError` if there is no dialect to be had, or another than `name`.
    """
    path = checkpoint / TOKENIZER_FILE
    if not path.is_file():
        if name == ChatDialect.name:
            return ChatDialect(ChatVocabulary.untrained(checkpoint))
        if name not in TEXTUAL:
            raise CheckpointError(
                f"{checkpoint} is no checkpoint of this project: {TOKENIZER_FILE} is missing. If it is a chat model, set "
                "dialect=chat and protocol=serial, or teach it to spawn by `apr sft` with `base`; if it was trained on the "
                f"text of a dialect, set dialect={' or '.join(TEXTUAL)}"
            )
        return textual_dialect(name, PretrainedVocabulary.load(name, checkpoint))
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        found, vocabulary = saved["dialect"], saved["hash"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is corrupt ({error!r}): export or train the checkpoint again") from error
    if found not in DIALECTS or name not in (None, found):
        raise CheckpointError(f"{checkpoint} was trained in dialect {found!r}, not in {name or ' or '.join(DIALECTS)}")
    dialect = _kept(checkpoint, found) if found in KEPT else built_dialect(found)
    if found in TEXTUAL and vocabulary != dialect.vocabulary.hash:
        dialect = textual_dialect(found, PretrainedVocabulary.load(found, checkpoint))
    dialect.vocabulary.check(checkpoint)
    return dialect

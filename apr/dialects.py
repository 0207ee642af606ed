"""The dialects by name, and the one that a checkpoint or a data set speaks."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from apr.errors import CheckpointError
from apr.tokens.chat import ChatDialect
from apr.tokens.chat_vocabulary import ChatVocabulary
from apr.tokens.compact import CompactDialect
from apr.tokens.dialect import Dialect
from apr.tokens.paper import PaperDialect
from apr.tokens.text import PretrainedVocabulary
from apr.tokens.vocabulary import TOKENIZER_FILE

OWN: dict[str, type[CompactDialect] | type[PaperDialect]] = {cls.name: cls for cls in (CompactDialect, PaperDialect)}
DIALECTS = (*OWN, ChatDialect.name)
TOKENIZER = "tokenizer"  # where a data set of dialect chat keeps the one that it is spelt with


@lru_cache
def dialect_by_name(name: str) -> Dialect:
    """A dialect with a vocabulary of its own."""
    return OWN[name]()


def dialect_in(data: Path, name: str) -> Dialect:
    """The dialect `name` as the data set in `data` spells it. Raises `CheckpointError` if its tokenizer is not there."""
    return _chat(data / TOKENIZER) if name == ChatDialect.name else dialect_by_name(name)


@lru_cache
def _chat(folder: Path) -> ChatDialect:
    return ChatDialect(ChatVocabulary.saved(folder))


def dialect_of(checkpoint: Path, name: str | None = None) -> Dialect:
    """The dialect that the model in `checkpoint` was trained in, with its vocabulary.

    A checkpoint of this project names it. One from elsewhere does not: `name` must be `paper` then, whose text its own
    tokenizer spells. Raises `CheckpointError` if there is no dialect to be had, or another than `name`.
    """
    path = checkpoint / TOKENIZER_FILE
    if not path.is_file():
        if name != PaperDialect.name:
            raise CheckpointError(
                f"{checkpoint} is no checkpoint of this project: {TOKENIZER_FILE} is missing. If its model was trained on "
                "the published wording, set dialect=paper; a chat model from elsewhere becomes one by `apr sft` with `base`"
            )
        return PaperDialect(PretrainedVocabulary.load(PaperDialect.name, checkpoint))
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        found, vocabulary = saved["dialect"], saved["hash"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is corrupt ({error!r}): export or train the checkpoint again") from error
    if found not in DIALECTS or name not in (None, found):
        raise CheckpointError(f"{checkpoint} was trained in dialect {found!r}, not in {name or ' or '.join(DIALECTS)}")
    dialect = _chat(checkpoint) if found == ChatDialect.name else dialect_by_name(found)
    if found == PaperDialect.name and vocabulary != dialect.vocabulary.hash:
        dialect = PaperDialect(PretrainedVocabulary.load(found, checkpoint))
    dialect.vocabulary.check(checkpoint)
    return dialect

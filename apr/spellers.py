"""The spellers by name, and the one that a checkpoint or a data set speaks."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from apr.errors import CheckpointError
from apr.tokens.chat import ChatSpeller
from apr.tokens.chat_vocabulary import ChatVocabulary
from apr.tokens.speller import Speller
from apr.tokens.text import PretrainedVocabulary
from apr.tokens.vocabulary import TOKENIZER_FILE
from apr.tokens.words import WordsSpeller
from envs.registry import SPELLERS as BUILT
from envs.registry import TEXTUAL, built_speller, textual_speller

KEPT = (WordsSpeller.name, ChatSpeller.name)  # known by a vocabulary or tokenizer that data sets and checkpoints keep
SPELLERS = (*BUILT, *KEPT)
TOKENIZER = "tokenizer"  # where a data set keeps it


def speller_in(data: Path, name: str) -> Speller:
    """The speller `name` as the data set in `data` spells it. Raises `CheckpointError` if its tokenizer is not there."""
    return _kept(data / TOKENIZER, name) if name in KEPT else built_speller(name)


@lru_cache
def _kept(folder: Path, name: str) -> Speller:
    return WordsSpeller.saved(folder) if name == WordsSpeller.name else ChatSpeller(ChatVocabulary.saved(folder))


def speller_of(checkpoint: Path, name: str | None = None) -> Speller:
    """The speller that the model in `checkpoint` was trained in, with its vocabulary.

    A checkpoint of this project names it. One from elsewhere does not: `name` must be `chat` then, or a speller whose text
    any tokenizer spells. Raises `CheckpointError` if there is no speller to be had, or another than `name`.
    """
    path = checkpoint / TOKENIZER_FILE
    if not path.is_file():
        if name == ChatSpeller.name:
            return ChatSpeller(ChatVocabulary.untrained(checkpoint))
        if name not in TEXTUAL:
            raise CheckpointError(
                f"{checkpoint} is no checkpoint of this project: {TOKENIZER_FILE} is missing. If it is a chat model, set "
                "speller=chat and protocol=serial, or teach it to spawn by `apr sft` with `base`; if it was trained on "
                f"published text, set speller={' or '.join(TEXTUAL)}"
            )
        return textual_speller(name, PretrainedVocabulary.load(name, checkpoint))
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        found, vocabulary = saved["speller"], saved["hash"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is corrupt ({error!r}): export or train the checkpoint again") from error
    if found not in SPELLERS or name not in (None, found):
        raise CheckpointError(f"{checkpoint} was trained in speller {found!r}, not in {name or ' or '.join(SPELLERS)}")
    speller = _kept(checkpoint, found) if found in KEPT else built_speller(found)
    if found in TEXTUAL and vocabulary != speller.vocabulary.hash:
        speller = textual_speller(found, PretrainedVocabulary.load(found, checkpoint))
    speller.vocabulary.check(checkpoint)
    return speller

"""Vocabularies of spellers that are text: ids for any text, the text of any ids, and cuts of ids at places in the text.

Two kinds: `PhraseVocabulary`, built from a speller's wording, and `PretrainedVocabulary`, around the tokenizer of a model
that was trained elsewhere. The text of some ids is by definition the concatenation of their pieces, one piece a token,
so that a place in the text always lies in one token or between two.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from apr.errors import CheckpointError, DataError
from apr.tokens.control import CONTROL_TOKENS, ControlTokens
from apr.tokens.vocabulary import NO_TOKEN, TOKENIZER_FILE, Vocabulary

_IDS = 1 << 32  # a Hugging Face tokenizer takes smaller ids only


class TextVocabulary(Vocabulary, ABC):
    """A vocabulary that spells text."""

    @abstractmethod
    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Each token's own text."""

    @abstractmethod
    def continued(self, text: str) -> tuple[int, ...]:
        """`text` as it goes on after other text. Raises `DataError` for text that the vocabulary cannot spell."""

    @abstractmethod
    def opened(self, text: str) -> tuple[int, ...]:
        """A context that opens with `text`: BOS, then `text`. Raises `DataError` as `continued` does."""

    def text(self, ids: Iterable[int]) -> str:
        """The text of `ids`, control tokens by their names."""
        return "".join(self.pieces(ids))

    def without_bos(self, ids: Sequence[int]) -> Sequence[int]:
        """`ids` after the BOS tokens that they open with."""
        start = 0
        while start < len(ids) and ids[start] == self.control.bos:
            start += 1
        return ids[start:]


class Spelt:
    """Token ids beside their text, to be cut at places in the text (`text` offsets, in characters)."""

    def __init__(self, vocabulary: TextVocabulary, ids: Sequence[int]) -> None:
        pieces = vocabulary.pieces(ids)
        self.ids = tuple(ids)
        self.text = "".join(pieces)
        self._vocabulary = vocabulary
        self._pieces = pieces

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(map(len, self._pieces)))

    def before(self, place: int) -> tuple[int, str]:
        """How many tokens end at or before `place`, and the text between the last of them and `place`."""
        count = bisect_right(self._ends, place)
        return count, self.text[self._ends[count - 1] if count else 0 : place]

    def between(self, start: int, end: int) -> tuple[int, ...]:
        """The ids of `text[start:end]`. Only what is left of tokens that reach over an edge is spelt again."""
        first, head = self.before(start)
        last, tail = self.before(end)
        if head and first >= last:
            return self._vocabulary.continued(self.text[start:end])
        opening = self._vocabulary.continued(self._pieces[first][len(head) :]) if head else ()
        closing = self._vocabulary.continued(tail) if tail else ()
        return (*opening, *self.ids[first + bool(head) : last], *closing)


class PhraseVocabulary(TextVocabulary):
    """Tokens: the control tokens (those of the family aside: here the grammar is in the text), a speller's phrases, and each
    character of either, so that any text of these characters can be spelt, numbers of any size digit by digit. Text is cut
    into the longest tokens from left to right."""

    def __init__(self, speller: str, phrases: Sequence[str], characters: str = "") -> None:
        alphabet = sorted({*characters, *"".join(phrases), *"".join(CONTROL_TOKENS)})
        super().__init__(speller, [*phrases, *(c for c in alphabet if c not in phrases)], family=())
        self._pattern = re.compile(_longest_first(self.tokens))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        return self.decode(ids)

    def continued(self, text: str) -> tuple[int, ...]:
        found = self._pattern.findall(text)
        if sum(map(len, found)) != len(text):
            place = _first_gap(self._pattern, text)
            raise DataError(
                f"the {self.speller} vocabulary has no token for {text[place]!r} (character {place} of "
                f"{text[max(0, place - 20) : place + 20]!r}): it spells the wording of this speller only"
            )
        return tuple([self.ids[token] for token in found])

    def opened(self, text: str) -> tuple[int, ...]:
        return (self.control.bos, *self.continued(text))

    def _save_tokenizer(self, folder: Path) -> None:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        tokenizer = Tokenizer(models.WordLevel(self.ids, unk_token="<pad>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(self._pattern.pattern), "isolated")
        tokenizer.decoder = decoders.Fuse()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **self.control_names()).save_pretrained(folder)


def _longest_first(tokens: Iterable[str]) -> str:
    """A pattern that matches the longest of `tokens`. Digits are tried first, being most of the text."""
    ranked = sorted(tokens, key=len, reverse=True)
    single = "".join(re.escape(token) for token in ranked if len(token) == 1)
    return "|".join(["[0-9]", *(re.escape(token) for token in ranked if len(token) > 1), f"[{single}]"])


def _first_gap(pattern: re.Pattern[str], text: str) -> int:
    """Where the first character is that no token matches."""
    end = 0
    for match in pattern.finditer(text):
        if match.start() != end:
            break
        end = match.end()
    return end


class PretrainedVocabulary(TextVocabulary):
    """Around a Hugging Face tokenizer, such as the Llama-2 one of APR's published models.

    A context opens as the published trainer and host open theirs: the tokenizer is given its BOS in the text and may put
    another in front. Of the control tokens only pad, BOS and EOS exist; the others are -1, which is no token.
    """

    def __init__(self, speller: str, tokenizer: Any, control: ControlTokens | None = None) -> None:
        """`tokenizer`: a fast one; `control`: its control tokens, by default its own pad, BOS and EOS. Raises
        `CheckpointError` if it should have them and has no BOS or EOS."""
        self.speller = speller
        self.tokens = tuple(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        self.control = control or _own_control(tokenizer)
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}
        self._anchors = [(anchor, self._plain(anchor)) for anchor in ("\n", "0", "a")]

    @classmethod
    def load(cls, speller: str, folder: Path) -> PretrainedVocabulary:
        """The tokenizer in a checkpoint folder. Raises `CheckpointError` if there is none."""
        return cls(speller, load_tokenizer(folder))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        return [self._pieces.get(i) or self._piece(i) for i in ids]

    def continued(self, text: str) -> tuple[int, ...]:
        # A tokenizer may treat the start of a text in a way of its own (Llama-2's puts a space there), so the text is
        # spelt after an anchor that keeps its own tokens beside it.
        for anchor, head in self._anchors:
            ids = self._plain(anchor + text)
            if ids[: len(head)] == head:
                return self._checked(text, ids[len(head) :])
        raise DataError(f"this tokenizer merges {text[:40]!r} with whatever precedes it: it cannot be spelt on its own")

    def opened(self, text: str) -> tuple[int, ...]:
        ids = tuple(self._tokenizer(self._tokenizer.bos_token + text)["input_ids"])
        if ids[-1] == self.control.eos != self.control.bos:
            ids = ids[:-1]  # a tokenizer that closes what it encodes
        start = len(ids) - len(self.without_bos(ids))
        return (*ids[:start], *self._checked(text, ids[start:]))

    def check(self, folder: Path) -> None:
        """Raise `CheckpointError` unless the checkpoint in `folder` has this tokenizer."""
        if (folder / TOKENIZER_FILE).is_file():
            super().check(folder)
        elif load_tokenizer(folder).get_vocab() != self._tokenizer.get_vocab():
            raise CheckpointError(f"{folder} has another tokenizer than the one in use: take the one from {folder}")

    def _save_tokenizer(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(folder)

    def _plain(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _piece(self, token: int) -> str:
        if not 0 <= token < _IDS:
            return NO_TOKEN
        anchor, head = self._anchors[-1]
        self._pieces[token] = self._decoded((*head, token))[len(self._decoded(head)) :]
        return self._pieces[token]

    def _decoded(self, ids: tuple[int, ...]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _checked(self, text: str, ids: tuple[int, ...]) -> tuple[int, ...]:
        if self.text(ids).removeprefix(" ") != text.removeprefix(" "):
            raise DataError(f"this tokenizer cannot spell {text[:80]!r}: it gives back {self.text(ids)[:80]!r}")
        return ids


def _own_control(tokenizer: Any) -> ControlTokens:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None or eos is None:
        raise CheckpointError("this tokenizer has no BOS or no EOS token, which end and open contexts: add them")
    pad = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return ControlTokens(pad, bos, eos, *[-1] * (len(CONTROL_TOKENS) - 3))


def load_tokenizer(folder: Path, **options: Any) -> Any:
    """The Hugging Face tokenizer in a folder. Raises `CheckpointError` if there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(f"no tokenizer in {folder}: copy it there from where the model came ({error})") from error

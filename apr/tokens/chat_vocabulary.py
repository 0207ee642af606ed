"""The vocabulary of a pretrained chat model: its own tokens, five of which are the control tokens of spawn and join, and
those of the family where they were added, or where the model has them.

The five are either tokens that the model has and that its template does not use (most models reserve some), or tokens
that are added to it. The other three are its own: BOS is the token that its prompts open with, EOS the one that ends
its turn; where the model pads with EOS, there is no padding token (-1), since what ends a strand may not be forbidden.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from apr.errors import CheckpointError
from apr.tokens.control import CONTROL_TOKENS, FAMILY_TOKENS, ControlTokens
from apr.tokens.speller import Message
from apr.tokens.text import PretrainedVocabulary, load_tokenizer
from apr.tokens.vocabulary import TOKENIZER_FILE

SPAWNING_TOKENS = CONTROL_TOKENS[3:]
# The day that templates take for today, however they ask for it: the real one would make another prompt of the same problem
# tomorrow.
TODAY = datetime(2024, 7, 26)


class ChatVocabulary(PretrainedVocabulary):
    """Around the tokenizer of a chat model. `names`: tokens of its own to be spawn, msg, </spawn>, join and ret; an empty list:
    it has none, and can neither spawn nor join. If none are given, tokens of these names and those of the family are added.

    Raises `CheckpointError` for a tokenizer without a template or EOS, and for names that it lacks or uses."""

    def __init__(self, tokenizer: Any, names: Sequence[str] | None = None) -> None:
        if names is None:
            tokenizer.add_tokens([*SPAWNING_TOKENS, *FAMILY_TOKENS], special_tokens=True)
        self.names = tuple(SPAWNING_TOKENS if names is None else names)
        super().__init__("chat", tokenizer, _control(tokenizer, self.names))

    @classmethod
    def saved(cls, folder: Path) -> ChatVocabulary:
        """That of a data set or a checkpoint, as `save` wrote it. Raises `CheckpointError`."""
        path = folder / TOKENIZER_FILE
        try:
            names = json.loads(path.read_text(encoding="utf-8"))["control"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is missing or corrupt ({error!r}): make its folder again") from error
        return cls(load_tokenizer(folder), names)

    @classmethod
    def untrained(cls, folder: Path) -> ChatVocabulary:
        """That of a chat model from elsewhere, without tokens for spawn and join. Raises `CheckpointError`."""
        return cls(load_tokenizer(folder), ())

    @cached_property
    def hash(self) -> str:
        """Identifies tokens, control tokens and template: what prompts and strands are spelt with."""
        content = [self.speller, self.tokens, self.names, self._tokenizer.chat_template]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The messages in the model's own template, up to where its turn begins."""
        return rendered(self._tokenizer, messages)

    def save(self, folder: Path) -> None:
        self._save_tokenizer(folder)
        content = {"speller": self.speller, "hash": self.hash, "control": self.names, "today": str(TODAY.date())}
        (folder / TOKENIZER_FILE).write_text(json.dumps(content), encoding="utf-8")


def _control(tokenizer: Any, names: Sequence[str]) -> ControlTokens:
    """The tokens of these names, and those that the tokenizer opens and ends turns with."""
    if not tokenizer.chat_template or tokenizer.eos_token_id is None:
        raise CheckpointError("this tokenizer has no chat template or no EOS token: take an instruction-tuned model")
    prompt = rendered(tokenizer, [{"role": "system", "content": ""}, {"role": "user", "content": ""}])
    bos, eos, pad = prompt[0], tokenizer.eos_token_id, tokenizer.pad_token_id
    if bos == eos:
        raise CheckpointError("this model's prompts open with the token that ends its turn: take another model")
    pad = -1 if pad is None or pad == eos else pad
    vocabulary = tokenizer.get_vocab()
    if not names:
        return ControlTokens(pad, bos, eos, *[-1] * len(SPAWNING_TOKENS))
    unfit = [name for name in names if vocabulary.get(name, -1) in {-1, pad, bos, eos, *prompt}]
    if unfit or len(set(names)) != len(SPAWNING_TOKENS):
        raise CheckpointError(
            f"the control tokens {', '.join(names)} must be {len(SPAWNING_TOKENS)} different ones that the tokenizer has "
            f"and that its template and padding do not use; unfit: {', '.join(unfit) or 'their number'}. Name others that "
            "it reserves, or none, to have some added"
        )
    return ControlTokens(pad, bos, eos, *(vocabulary[name] for name in names))


def rendered(tokenizer: Any, messages: Sequence[Message]) -> tuple[int, ...]:
    """The ids of a prompt, the same on every day. Templates that take no system message get it in the user's first turn.
    Raises `CheckpointError` if the template refuses the messages all the same."""
    from jinja2 import TemplateError

    try:
        try:
            return _templated(tokenizer, messages)
        except TemplateError:
            if messages[0]["role"] != "system" or len(messages) < 2:
                raise
            return _templated(tokenizer, _folded(messages))
    except TemplateError as error:
        raise CheckpointError(f"this model's chat template refuses the prompt ({error}): take another model") from error


def _templated(tokenizer: Any, messages: Sequence[Message]) -> tuple[int, ...]:
    ids = tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, return_dict=False,
        date_string=TODAY.strftime("%d %b %Y"), strftime_now=TODAY.strftime,
    )  # fmt: skip
    return tuple(ids)


def _folded(messages: Sequence[Message]) -> list[Message]:
    """The system message at the head of the first user's."""
    system, user, *rest = messages
    return [Message(role=user["role"], content=f"{system['content']}\n\n{user['content']}".strip()), *rest]

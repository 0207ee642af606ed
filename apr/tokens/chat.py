"""The chat speller: any environment in a pretrained chat model's own vocabulary and template.

What a strand of a demonstration samples is spelt piece by piece, a piece being a word with the spaces around it: a piece
is the same tokens wherever it stands, and the tokens, not the text, are what is stored, sampled and trained. Spawn and
join are single control tokens (`apr.tokens.chat_vocabulary`); a vocabulary without them is of a model that has seen no
demonstration, which is told how to write its answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from apr.tokens.chat_vocabulary import ChatVocabulary
from apr.tokens.speller import Message, Told, condition_of
from apr.tokens.vocabulary import Vocabulary

CONDITIONS = {"children": "Open {} children at each spawn.", "context": "Stay within {} tokens."}


class ChatSpeller:
    """Token ids for prompts, pieces of scripts and answers. Exact, and total on their inputs."""

    name = "chat"
    about = "The tokens of the pretrained model; prompts in its own chat template."

    def __init__(self, vocabulary: ChatVocabulary) -> None:
        self.words = vocabulary
        self.vocabulary: Vocabulary = vocabulary
        self._spelt: dict[str, tuple[int, ...]] = {}

    def prompt(self, env: Told, problem: dict[str, Any]) -> tuple[int, ...]:
        """The environment's messages in the model's own template; a condition ends what the user says."""
        messages = env.messages(problem, untrained=self.words.control.join < 0)
        if (condition := condition_of(problem)) is not None:
            last = messages[-1]
            asked = CONDITIONS[condition.kind].format(condition.value)
            messages = [*messages[:-1], Message(role=last["role"], content=f"{last['content']} {asked}")]
        return self.words.prompt(messages)

    def ids(self, pieces: Iterable[str | int]) -> tuple[int, ...]:
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, int):
                ids.append(piece)
                continue
            if piece not in self._spelt:
                self._spelt[piece] = self.words.continued(piece)
            ids += self._spelt[piece]
        return tuple(ids)

    def answer(self, ids: Iterable[int]) -> str:
        return self.words.text(ids).strip()

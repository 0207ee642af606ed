"""Ids that are no tokens: a model may have more outputs than its vocabulary has tokens, and so may sample them."""

import pytest
from chat_tokenizers import TOKENIZERS

from apr.tokens.chat import ChatSpeller
from apr.tokens.chat_vocabulary import ChatVocabulary
from apr.tokens.speller import Speller
from apr.tokens.vocabulary import NO_TOKEN
from apr.tokens.words import WordsSpeller
from envs.countdown.compact import CompactSpeller
from envs.countdown.env import Countdown
from envs.countdown.paper import PaperSpeller

IDS = [230, 255, 10**6, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 70, -1, -231]
SPELLERS = {
    "compact": CompactSpeller(),
    "words": WordsSpeller(["3", "+", "5", "="]),
    "paper": PaperSpeller(),
    **{f"chat, {name}": ChatSpeller(ChatVocabulary(make(), None)) for name, make in TOKENIZERS.items()},
}


@pytest.mark.parametrize("name", SPELLERS)
@pytest.mark.parametrize("token", IDS)
def test_an_id_that_is_no_token_is_some_text_and_a_wrong_answer(name: str, token: int) -> None:
    speller: Speller = SPELLERS[name]
    size = len(speller.vocabulary)
    given = token + size if 0 <= token < 256 else token
    known = next(i for i in range(size) if speller.vocabulary.decode([i]) not in ([""], [NO_TOKEN]))
    for ids in ([given], [known, given], [given, known], [given] * 3):
        answer = speller.answer(ids)
        assert isinstance(answer, str) and isinstance(speller.vocabulary.text(ids), str)
        verdict = Countdown().verify({"id": "p", "numbers": (3, 5), "target": 8}, answer)
        assert not verdict.ok

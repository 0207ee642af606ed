"""Which speller a checkpoint speaks: its own word for it, or ours for one from elsewhere."""

import json
from pathlib import Path

import pytest
from chat_tokenizers import smol_like
from paper_tokenizers import byte_level

from apr.errors import CheckpointError, ConfigError
from apr.protocols import PROTOCOLS, protocol_by_name, spoken
from apr.spellers import SPELLERS, TOKENIZER, speller_in, speller_of
from apr.tokens.chat_vocabulary import ChatVocabulary
from apr.tokens.vocabulary import TOKENIZER_FILE
from apr.tokens.words import WordsSpeller
from envs.countdown.paper import PaperSpeller
from envs.countdown.wording import root_prompt

TEXT = "Moving to Node #0\nCurrent State: 24:[3, 5, 8], Operations: []"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each speller, with the tokenizer that such a data set keeps."""
    folder = tmp_path_factory.mktemp("data")
    for name, vocabulary in (("chat", ChatVocabulary(smol_like())), ("words", WordsSpeller(["a", "b"]).vocabulary)):
        (folder / name / TOKENIZER).mkdir(parents=True)
        vocabulary.save(folder / name / TOKENIZER)
    return folder


@pytest.mark.parametrize("name", SPELLERS)
def test_a_checkpoint_of_ours_names_its_speller(name: str, data: Path, tmp_path: Path) -> None:
    speller_in(data / name, name).vocabulary.save(tmp_path)
    assert speller_of(tmp_path).name == speller_of(tmp_path, name).name == name
    other = next(one for one in SPELLERS if one != name)
    with pytest.raises(CheckpointError, match=f"was trained in speller '{name}', not in {other}"):
        speller_of(tmp_path, other)


def test_a_checkpoint_from_elsewhere_needs_to_be_told(tmp_path: Path) -> None:
    words = byte_level([TEXT])
    words._save_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="set speller=paper"):
        speller_of(tmp_path)
    with pytest.raises(CheckpointError, match="set speller=paper"):
        speller_of(tmp_path, "compact")
    found = speller_of(tmp_path, "paper")
    assert root_prompt(found, (3, 5, 8), 24) == root_prompt(PaperSpeller(words), (3, 5, 8), 24)
    # Trained further here and saved, it is known by its own tokenizer.
    found.vocabulary.save(tmp_path)
    assert root_prompt(speller_of(tmp_path), (3, 5, 8), 24) == root_prompt(found, (3, 5, 8), 24)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"speller": "compact"}', '{"speller": "latin", "hash": "0"}'])
def test_a_torn_vocabulary_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / TOKENIZER_FILE).write_text(content)
    with pytest.raises(CheckpointError):
        speller_of(tmp_path)


def test_another_vocabulary_of_the_same_speller_is_refused(tmp_path: Path) -> None:
    content = {"speller": "compact", "hash": "0123", "tokens": []}
    (tmp_path / TOKENIZER_FILE).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="compact/0123"):
        speller_of(tmp_path)


@pytest.mark.parametrize("speller", SPELLERS)
def test_each_speller_has_each_protocol_but_the_published_one(speller: str, data: Path) -> None:
    found = speller_in(data / speller, speller)
    if speller == "paper":
        assert spoken(found) == ("serial", "spawn_join")
        with pytest.raises(ConfigError, match="the published wording has no protocol multiverse"):
            protocol_by_name("multiverse", found)
    else:
        assert spoken(found) == PROTOCOLS


def test_a_data_set_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path / TOKENIZER)):
        speller_in(tmp_path, "chat")

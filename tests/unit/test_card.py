"""The card of a checkpoint: its JSON form stays, what it does not say is unknown, and a corrupt one is refused once for all."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr.checkpoints.card import CARD, Card, TrainingProblems
from apr.config import ConditionConfig, RewardConfig
from apr.errors import CheckpointError, ConfigError

SHIPPED = sorted((Path(__file__).parents[2] / "checkpoints" / "tiny_cpu").iterdir())
PROBLEMS = {"stage": "sft", "split": "train", "hash": "5f", "env": {"numbers": 3, "of": None}}
WHOLE: dict[str, Any] = {
    "solver": "sos_plus", "protocol": "serial", "trained": ["sft", "rl"], "condition": "none", "data_hash": "5f7da7a",
    "commit": "c0ffee", "trained_on": [PROBLEMS], "base": "someone/model", "share": 0.5,
    "adapter": {"name": "a", "hash": "b", "base": "c", "base_hash": "d"},
    "reward": {"budgets": {"work": 90}, "soft_span": {"budget": 30, "weight": 0.5}},
}  # fmt: skip


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_cards_are_read_and_written_as_they_are(folder: Path, tmp_path: Path) -> None:
    card = Card.read(folder)
    card.write(tmp_path)
    assert json.loads((tmp_path / CARD).read_text()) == json.loads((folder / CARD).read_text())


@given(st.sets(st.sampled_from(sorted(WHOLE))))
def test_the_json_form_says_what_is_known_and_no_more(keys: set[str]) -> None:
    said = {key: WHOLE[key] for key in keys}
    assert Card.parse(said, "a card").content() == json.loads(json.dumps(said))


def test_keys_of_other_versions_are_kept(tmp_path: Path) -> None:
    said = {**WHOLE, "step": 4, "reward": {**WHOLE["reward"], "later": [1]}}
    Card.parse(said, "a card").write(tmp_path)
    assert Card.read(tmp_path).after("rl").content() == said


def test_no_card_says_nothing(tmp_path: Path) -> None:
    assert Card.read(tmp_path) == Card() and Card().content() == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe{}", b'{"solver": "a"', b"null", b"3", b"[1, 2]", b'"text"'],
)
def test_a_torn_card_is_refused_by_its_path(content: bytes, tmp_path: Path) -> None:
    (tmp_path / CARD).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{tmp_path / CARD} is corrupt .*train or export"):
        Card.read(tmp_path)


@pytest.mark.parametrize(
    ("unfit", "named"),
    [
        ({"solver": ["a"]}, "solver"), ({"protocol": "telepathy"}, "protocol"), ({"trained": 3}, "trained"),
        ({"trained": None}, "trained"), ({"trained": "sft"}, "trained"), ({"trained": [1]}, "trained.0"),
        ({"condition": ["none"]}, "condition"), ({"condition": "telepathy"}, "condition"),
        ({"trained_on": [{**PROBLEMS, "env": 3}]}, "trained_on.0.env"), ({"share": "half"}, "share"),
        ({"adapter": {"name": "a"}}, "adapter.hash"), ({"reward": 3}, "reward"),
        ({"reward": {"budgets": {"x": 1}}}, "reward.budgets.x"), ({"base": 3, "commit": 4}, "commit.*base"),
    ],
)  # fmt: skip
def test_unfit_keys_are_named(unfit: dict[str, Any], named: str, tmp_path: Path) -> None:
    (tmp_path / CARD).write_text(json.dumps({**WHOLE, **unfit}))
    with pytest.raises(CheckpointError, match=f"is corrupt .*{named}"):
        Card.read(tmp_path)


def test_stages_follow_each_other_and_are_counted_once() -> None:
    card = Card(trained=("sft",)).after("rl")
    assert card.trained == ("sft", "rl") == card.after("rl").trained and card.after("sft").trained == ("rl", "sft")
    assert Card().after("sft").trained == ("sft",)


def test_facts_are_replaced_checked_and_forgotten() -> None:
    card = Card.parse(WHOLE, "a card")
    reward = RewardConfig().model_dump(exclude_none=True)
    assert card.with_facts(reward=reward, condition=None).content() == {
        **{key: value for key, value in WHOLE.items() if key != "condition"}, "reward": {"budgets": {}},
    }  # fmt: skip
    with pytest.raises(CheckpointError, match="condition"):
        card.with_facts(condition="telepathy")


def test_training_problems_of_earlier_versions_are_unknown() -> None:
    old = {"stage": "sft", "split": "train", "hash": "a", "problems": {"numbers": 3}}
    assert Card.parse({**WHOLE, "trained_on": [old]}, "a card").trained_on == ()
    assert len(Card.parse({**WHOLE, "trained_on": [old, PROBLEMS]}, "a card").trained_on) == 1


def test_training_problems_are_named_once() -> None:
    more = [TrainingProblems.model_validate({**PROBLEMS, "stage": stage}) for stage in ("sft", "rl")]
    card = Card.parse(WHOLE, "a card").with_problems(more)
    assert [one.stage for one in card.trained_on] == ["sft", "rl"] and card.with_problems(more) == card
    assert card.content()["trained_on"][0] == PROBLEMS


def test_what_a_model_was_not_trained_on_is_not_asked_of_it() -> None:
    children = ConditionConfig(kind="children", value=3)
    for card in (Card(), Card(protocol="serial", condition="children")):
        card.check_protocol("serial", Path("model"))
        card.check_condition(children, Path("model"))
        card.check_condition(None, Path("model"))
    with pytest.raises(
        ConfigError, match="model was trained in protocol serial, not in spawn_join: set protocol=serial"
    ):
        Card(protocol="serial").check_protocol("spawn_join", Path("model"))
    with pytest.raises(ConfigError, match="prompts that ask for nothing: leave condition out"):
        Card(condition="none").check_condition(children, Path("model"))
    with pytest.raises(ConfigError, match="prompts that ask for context: set condition={kind: context, value: ...}"):
        Card(condition="context").check_condition(children, Path("model"))
